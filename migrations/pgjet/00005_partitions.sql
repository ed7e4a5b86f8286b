-- +goose Up
-- A relay need not own the outbox to maintain its partitions: these functions have the
-- owner's rights. None makes a writer wait for long, or fail. If a lock is not free, they
-- fail with 55P03 (lock_not_available), and the caller tries again later.
create view pgjet.outbox_partition as
    select c.relname as name,
           (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''?(-?\d+)''?\)'))[1]::bigint as low,
           (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''?(-?\d+)''?\)'))[1]::bigint as high
      from pg_inherits i join pg_class c on c.oid = i.inhrelid
     where i.inhparent = 'pgjet.outbox'::regclass and c.relname <> 'outbox_default';

comment on view pgjet.outbox_partition is 'The partitions of the outbox, but for the default one: low <= seq < high.';

create function pgjet.outbox_default_used() returns boolean
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
as 'select exists (select from pgjet.outbox_default)';

comment on function pgjet.outbox_default_used is 'Whether there are events in the default partition.';

create function pgjet.outbox_xid(xid xid8, xmin xid) returns xid8
    language sql stable parallel safe
as $$
    select least(xid, greatest(0, at - mod(mod(at - xmin::text::bigint, 4294967296) + 4294967296, 4294967296))::text::xid8)
      from (select pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1) as newest (at)
$$;

comment on function pgjet.outbox_xid is
    'Which transaction wrote a row that has these two columns. One that was restored has the xid of another cluster, one that was moved the xmin of who moved it: the lesser counts.';

-- Every transaction queues behind a request to lock the outbox exclusively. There must be no
-- such request while a transaction that may last long holds the outbox. If the owner may not
-- see a transaction's start (it is not in pg_read_all_stats), it waits, but not longer than lock_timeout.

-- +goose StatementBegin
create function pgjet.expect_outbox() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    hostage text;
begin
    select coalesce('process ' || l.pid, 'a prepared transaction') into hostage
      from pg_locks l left join pg_stat_activity a using (pid)
     where l.locktype = 'relation' and l.relation = 'pgjet.outbox'::regclass
       and l.database = (select oid from pg_database where datname = current_database())
       and l.pid is distinct from pg_backend_pid()
       and (l.pid is null or a.xact_start < clock_timestamp() - interval '1 second')
     limit 1;
    if found then
        raise exception 'the outbox is held for longer than a second by the transaction of %', hostage
            using errcode = 'lock_not_available';
    end if;
end
$$;
-- +goose StatementEnd

-- +goose StatementBegin
create function pgjet.lock_outbox() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    for attempt in 1..3 loop
        perform pgjet.expect_outbox();
        begin
            lock table only pgjet.outbox in access exclusive mode;
            return;
        exception when lock_not_available then
            perform pg_sleep(0.1);
        end;
    end loop;
    raise exception 'the outbox is in use' using errcode = 'lock_not_available';
end
$$;
-- +goose StatementEnd

-- +goose StatementBegin
create function pgjet.tend_outbox() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    if not pg_try_advisory_xact_lock(hashtextextended('pgjet.tend_outbox', 0)) then
        raise exception 'another session is changing the partitions of the outbox' using errcode = 'lock_not_available';
    end if;
end
$$;
-- +goose StatementEnd

comment on function pgjet.expect_outbox is 'Fails if the outbox will not be free soon. Internal.';
comment on function pgjet.lock_outbox is 'Locks the outbox alone, if that is to be had soon. Internal.';
comment on function pgjet.tend_outbox is 'Lets one session at a time change the partitions. Internal.';

-- A row that was routed to the default partition is refused if its seq moves to another
-- partition before the row is stored. So while others write, a partition is attached only
-- if it lies so far ahead that no transaction can have a seq of it yet.

-- +goose StatementBegin
create function pgjet.add_outbox_partition(low bigint, high bigint) returns void
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '50ms'
as $$
declare
    margin constant bigint := 20000;
    part   constant text := 'outbox_' || low;
    last   bigint;
begin
    if low >= high then
        raise exception 'a partition from % to below % holds nothing', low, high;
    end if;
    perform pgjet.tend_outbox();
    select last_value into last from pgjet.outbox_seq_seq;
    if low <= last + margin then
        perform pgjet.lock_outbox();
    end if;
    execute format('create table pgjet.%I (like pgjet.outbox including all excluding identity)', part);
    execute format('alter table pgjet.outbox attach partition pgjet.%I for values from (%s) to (%s)', part, low, high);
    if low > last + margin then
        select last_value into last from pgjet.outbox_seq_seq;
        if low <= last + margin / 2 then
            raise exception 'seq came close to % at this moment', low using errcode = 'lock_not_available';
        end if;
    end if;
end
$$;
-- +goose StatementEnd

comment on function pgjet.add_outbox_partition is 'Makes the partition low <= seq < high. Inserts go on meanwhile if it lies ahead.';

-- +goose StatementBegin
create function pgjet.empty_outbox_default(width bigint) returns bigint
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '50ms'
as $$
declare
    low   bigint;
    high  bigint;
    part  text;
    taken bigint;
    moved bigint;
begin
    perform pgjet.tend_outbox();
    -- Of the gaps between partitions the one with the most rows.
    select g.low, g.high, count(*) into low, high, taken
      from (select lag(p.high) over (order by p.low), p.low from pgjet.outbox_partition p
            union all
            select max(p.high), null from pgjet.outbox_partition p) as g (low, high)
      join pgjet.outbox_default d on (g.low is null or d.seq >= g.low) and (g.high is null or d.seq < g.high)
     where g.low < g.high or g.low is null or g.high is null
     group by g.low, g.high order by count(*) desc limit 1;
    if not found then
        return 0;
    end if;
    -- With the lock no statement is under way that reads or writes by the old plan.
    perform pgjet.lock_outbox();
    lock table pgjet.outbox_default in access exclusive mode nowait;
    low := coalesce(low, (select min(seq) from pgjet.outbox_default));
    high := coalesce(high, width + greatest(
        (select last_value from pgjet.outbox_seq_seq), (select max(seq) from pgjet.outbox_default)));
    part := 'outbox_' || low;

    alter table pgjet.outbox detach partition pgjet.outbox_default;
    execute format('alter table pgjet.outbox_default rename to %I', part);
    create table pgjet.outbox_default (like pgjet.outbox including all excluding identity);
    execute format('with stray as (delete from pgjet.%I where seq < %s or seq >= %s returning *)'
        ' insert into pgjet.outbox_default select * from stray', part, low, high);
    get diagnostics moved = row_count;
    alter table pgjet.outbox attach partition pgjet.outbox_default default;
    execute format('alter table pgjet.outbox attach partition pgjet.%I for values from (%s) to (%s)', part, low, high);
    return taken;
end
$$;
-- +goose StatementEnd

comment on function pgjet.empty_outbox_default is
    'Makes the default partition an ordinary one, which goes on for width beyond the last seq, and a new default. No row is moved, but those of other gaps between partitions: they wait for the next call. Returns how many rows it held.';

-- +goose StatementBegin
create function pgjet.drop_outbox_partition(part text, published pg_snapshot, floor bigint) returns bigint
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '50ms'
as $$
declare
    p         pgjet.outbox_partition;
    found_seq bigint;
    taken     bigint;
begin
    perform pgjet.tend_outbox();
    select * into p from pgjet.outbox_partition o where o.name = part;
    if not found then
        raise exception 'the outbox has no partition %', part;
    end if;
    if p.high > floor + 1 then
        raise exception 'partition % is not published beyond seq %', part, floor using errcode = 'PJ001';
    end if;
    -- This takes a while. Nothing that comes in from here on is published.
    execute format('select count(*) from pgjet.%I', part) into taken;
    perform pgjet.expect_outbox();
    -- Who has appended there and is not done holds a lock, and its events would be lost.
    execute format('lock table pgjet.%I in access exclusive mode nowait', part);
    execute format(
        'select seq from pgjet.%I'
        ' where (xid >= pg_snapshot_xmax($1) or xid = any (array(select pg_snapshot_xip($1))))'
        '   and not pg_visible_in_snapshot(pgjet.outbox_xid(xid, xmin), $1)'
        ' limit 1', part) into found_seq using published;
    if found_seq is not null then
        raise exception 'partition % holds an event that is not published, seq %', part, found_seq using errcode = 'PJ001';
    end if;
    select q.seq into found_seq from pgjet.quarantine q where q.seq >= p.low and q.seq < p.high and q.state <> 'dropped' limit 1;
    if found then
        raise exception 'partition % holds an event in quarantine, seq %', part, found_seq using errcode = 'PJ001';
    end if;
    update pgjet.pruned u set seq = greatest(u.seq, p.high - 1), events = u.events + taken, at = clock_timestamp();
    perform pgjet.lock_outbox();
    execute format('drop table pgjet.%I', part);
    return taken;
end
$$;
-- +goose StatementEnd

comment on function pgjet.drop_outbox_partition is
    'Drops a partition of which every event is published: visible in the snapshot, with a seq up to floor. Returns how many events it held. Fails with PJ001 if one is not published.';

revoke execute on function pgjet.outbox_default_used, pgjet.expect_outbox, pgjet.lock_outbox, pgjet.tend_outbox, pgjet.add_outbox_partition,
    pgjet.empty_outbox_default, pgjet.drop_outbox_partition from public;

-- +goose StatementBegin
do $$
begin
    if not exists (select from pgjet.outbox) then
        perform pgjet.add_outbox_partition(low, low + 50000)
           from (select last_value as last from pgjet.outbox_seq_seq) s, generate_series(s.last, s.last + 100000, 50000) as low;
    end if;
exception when lock_not_available then
    null; -- the relay will do it
end
$$;
-- +goose StatementEnd

-- +goose Down
drop function pgjet.drop_outbox_partition;
drop function pgjet.empty_outbox_default;
drop function pgjet.add_outbox_partition;
drop function pgjet.tend_outbox;
drop function pgjet.lock_outbox;
drop function pgjet.expect_outbox;
drop function pgjet.outbox_xid;
drop function pgjet.outbox_default_used;
drop view pgjet.outbox_partition;
