-- +goose Up
-- A relay need not own the outbox to look after its partitions: these functions run
-- with the rights of the owner. None of them makes a writer wait for long: a lock
-- that is not free soon is an error (55P03), and the caller tries again later.

-- +goose StatementBegin
create function pgjet.add_outbox_partition(low bigint, high bigint) returns bigint
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '50ms'
as $$
declare
    part  text := 'outbox_' || low;
    moved bigint;
begin
    if low < 1 or high <= low then
        raise exception 'a partition from % to % holds nothing', low, high;
    end if;
    -- The check spares ATTACH the scan.
    execute format('create table pgjet.%I (like pgjet.outbox including defaults including constraints including indexes,'
        ' constraint %I check (seq >= %s and seq < %s))', part, part || '_range', low, high);
    lock table pgjet.outbox_default in access exclusive mode;
    execute format('with gone as (delete from pgjet.outbox_default where seq >= %s and seq < %s returning *)'
        ' insert into pgjet.%I select * from gone', low, high, part);
    get diagnostics moved = row_count;
    execute format('alter table pgjet.outbox attach partition pgjet.%I for values from (%s) to (%s)', part, low, high);
    execute format('alter table pgjet.%I drop constraint %I', part, part || '_range');
    return moved;
end
$$;
-- +goose StatementEnd

comment on function pgjet.add_outbox_partition is
    'Makes a partition of the outbox for low <= seq < high, moves what the default partition holds of it, and returns how many rows those were.';

-- +goose StatementBegin
create function pgjet.turn_outbox_default() returns bigint
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '50ms'
as $$
declare
    low  bigint;
    high bigint;
begin
    lock table pgjet.outbox in access exclusive mode;
    select min(seq), max(seq) + 1 into low, high from pgjet.outbox_default;
    alter table pgjet.outbox detach partition pgjet.outbox_default;
    execute format('alter table pgjet.outbox_default rename to %I', 'outbox_' || low);
    create table pgjet.outbox_default partition of pgjet.outbox default;
    execute format('alter table pgjet.outbox attach partition pgjet.%I for values from (%s) to (%s)', 'outbox_' || low, low, high);
    return high - low;
end
$$;
-- +goose StatementEnd

comment on function pgjet.turn_outbox_default is
    'Makes the default partition of the outbox an ordinary one for what it holds, and another the default.';

create function pgjet.outbox_stray() returns bigint
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
as 'select min(seq) from pgjet.outbox_default';

comment on function pgjet.outbox_stray is 'The lowest seq in the default partition of the outbox, null if it is empty.';

create view pgjet.outbox_partition as
    select c.relname as name,
           (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''?(\d+)''?\)'))[1]::bigint as low,
           (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''?(\d+)''?\)'))[1]::bigint as high
      from pg_inherits i join pg_class c on c.oid = i.inhrelid
     where i.inhparent = 'pgjet.outbox'::regclass and c.relname <> 'outbox_default';

comment on view pgjet.outbox_partition is 'The partitions of the outbox, but for the default: low <= seq < high.';

-- +goose StatementBegin
create function pgjet.drop_outbox_partition(part text, published pg_snapshot, floor bigint) returns bigint
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '50ms'
as $$
declare
    p       pgjet.outbox_partition;
    now_at  bigint := pg_snapshot_xmax(pg_current_snapshot())::text::bigint;
    count   bigint;
    waiting bigint;
begin
    select * into p from pgjet.outbox_partition o where o.name = part;
    if not found then
        raise exception 'the outbox has no partition %', part;
    end if;
    -- Whoever has appended there and is not done holds a lock. Its events would be lost.
    execute format('lock table pgjet.%I in access exclusive mode nowait', part);
    -- To drop the partition the whole outbox has to be locked for a moment. Behind a
    -- transaction that lasts, everybody else would have to wait with us.
    if exists (select from pg_locks l join pg_stat_activity a using (pid)
                where l.relation = 'pgjet.outbox'::regclass and a.pid <> pg_backend_pid()
                  and l.database = (select oid from pg_database where datname = current_database())
                  and a.xact_start < clock_timestamp() - interval '1 second')
       or exists (select from pg_locks l where l.relation = 'pgjet.outbox'::regclass and l.pid is null
                  and l.database = (select oid from pg_database where datname = current_database())) then
        raise exception 'a transaction that has appended is open' using errcode = 'lock_not_available';
    end if;
    -- The transaction of a row is the smaller of what it says and what its xmin, which has
    -- 32 bits of 64, says: a restored row says one of another cluster.
    execute format(
        'select count(*) from pgjet.%I'
        ' where (xid >= pg_snapshot_xmax($1) or xid = any(array(select pg_snapshot_xip($1))))'
        '   and not pg_visible_in_snapshot(least(xid::text::bigint, $2 + mod(mod(xmin::text::bigint - $2 + 2147483648, 4294967296)'
        '       + 4294967296, 4294967296) - 2147483648)::text::xid8, $1)', part)
        into waiting using published, now_at;
    if p.high > floor + 1 or waiting > 0 then
        raise exception 'partition % holds events that are not published', part using errcode = 'PJ001';
    end if;
    select count(*) into waiting from pgjet.quarantine q where q.seq >= p.low and q.seq < p.high and q.state <> 'dropped';
    if waiting > 0 then
        raise exception 'partition % holds % events in quarantine', part, waiting using errcode = 'PJ001';
    end if;
    execute format('select count(*) from pgjet.%I', part) into count;
    execute format('drop table pgjet.%I', part);
    update pgjet.pruned u set seq = greatest(u.seq, p.high - 1), events = u.events + count, at = clock_timestamp();
    return count;
end
$$;
-- +goose StatementEnd

comment on function pgjet.drop_outbox_partition is
    'Drops a partition of the outbox of which every event is published: visible in the snapshot, with a seq up to floor. Returns how many those were; fails with PJ001 if one is not.';

-- +goose StatementBegin
do $$
begin
    if not exists (select from pgjet.outbox) then
        perform pgjet.add_outbox_partition(low, low + 50000)
           from generate_series(1, 100001, 50000) as low;
    end if;
end
$$;
-- +goose StatementEnd

revoke execute on function pgjet.add_outbox_partition from public;
revoke execute on function pgjet.outbox_stray from public;
revoke execute on function pgjet.turn_outbox_default from public;
revoke execute on function pgjet.drop_outbox_partition from public;

-- +goose Down
drop function pgjet.drop_outbox_partition;
drop function pgjet.turn_outbox_default;
drop function pgjet.add_outbox_partition;
drop view pgjet.outbox_partition;
drop function pgjet.outbox_stray;
