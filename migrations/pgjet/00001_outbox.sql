-- +goose Up
create table pgjet.outbox (
    xid          xid8        not null default pg_current_xact_id(),
    seq          bigint      generated always as identity,
    id           uuid        not null,
    type         text        not null,
    key          text        not null,
    traceparent  text,
    header       jsonb,
    data         json,
    time         timestamptz not null default clock_timestamp(),
    content_type text,
    body         bytea,
    primary key (seq),
    constraint outbox_seq check (seq > 0),
    constraint outbox_payload check (num_nonnulls(data, body) = 1 and (body is null or content_type is not null))
) partition by range (seq);

comment on table pgjet.outbox is
    'Events appended by services, in the transaction of the change that they announce. Append-only.';
comment on column pgjet.outbox.xid is
    'The writing transaction. It stands before seq, so that a transaction that has a seq has an xid.';
comment on column pgjet.outbox.data is 'The payload, if it is JSON; else it is in body.';
comment on column pgjet.outbox.content_type is 'The media type of the payload. Null: application/json.';
comment on column pgjet.outbox.body is 'The payload, if it is not JSON.';

-- Finds the late commits of transactions that were running when the relay last looked.
create index outbox_xid on pgjet.outbox (xid, seq);

-- An insert never fails because a partition is missing.
create table pgjet.outbox_default partition of pgjet.outbox default;

create table pgjet.scheduled (
    id           uuid        primary key,
    due          timestamptz not null,
    n            bigint      generated always as identity,
    type         text        not null,
    key          text        not null,
    traceparent  text,
    header       jsonb,
    data         json,
    time         timestamptz,
    content_type text,
    body         bytea,
    constraint scheduled_payload check (num_nonnulls(data, body) = 1 and (body is null or content_type is not null)),
    -- The author of an event is not there any more when it is due. What could never be published is refused here.
    constraint scheduled_bounds check (
        due between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and (time is null or time between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
        and octet_length(type) <= 128 and type ~ '^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$'
        and octet_length(key) between 1 and 255 and key !~ '[\u0001-\u001f\u007f-\u009f]'
        and (header is null or jsonb_typeof(header) = 'object')
        and octet_length(content_type) <= 128
        and octet_length(data::text) <= 921600 and octet_length(body) <= 921600)
) with (autovacuum_vacuum_scale_factor = 0.05);

comment on table pgjet.scheduled is
    'Events that wait until they are due. The leading relay moves them into the outbox then; to cancel one is to delete it.';
comment on column pgjet.scheduled.due is 'When it is appended to the outbox, by the clock of the database; not before.';
comment on column pgjet.scheduled.n is 'Events of one key that are due at the same time are appended in this order.';
comment on column pgjet.scheduled.time is 'When it happened. Null: when it is appended to the outbox.';

create index scheduled_due on pgjet.scheduled (due, n);
create index scheduled_key on pgjet.scheduled (key, due, n);

-- The identity of this outbox. A stream names the outbox that it has, so that no other one is published there.
create table pgjet.identity (
    id                uuid        primary key default gen_random_uuid(),
    created_at        timestamptz not null default clock_timestamp(),
    system_identifier bigint      not null,
    database          oid         not null,
    single            boolean     not null default true unique,
    constraint identity_bounds check (
        single and created_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
);

comment on table pgjet.identity is
    'One row: which outbox this is. Whoever copies the database copies it; see pgjet.new_identity.';
comment on column pgjet.identity.id is
    'A stream has it in its metadata, as pgjet.outbox.';
comment on column pgjet.identity.system_identifier is
    'The cluster in which the row was made; with database it distinguishes a copy from its original.';

-- +goose StatementBegin
create function pgjet.new_identity() returns uuid
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    made uuid;
begin
    delete from pgjet.identity;
    insert into pgjet.identity (system_identifier, database)
    select c.system_identifier, d.oid from pg_control_system() c, pg_database d where d.datname = current_database()
    returning id into made;
    return made;
end
$$;
-- +goose StatementEnd

comment on function pgjet.new_identity is
    'Makes this an outbox of its own, for a copy of a database that is used beside the original. It then needs a stream of its own.';
revoke execute on function pgjet.new_identity from public;
select pgjet.new_identity();

-- It is no secret, and every role needs it.
grant select on pgjet.identity to public;

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

-- A seq may be as high as a bigint, and a partition ends before its upper bound: only the default
-- partition can hold the very last seq.
create function pgjet.outbox_default_used() returns boolean
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
as 'select exists (select from pgjet.outbox_default where seq < 9223372036854775807)';

comment on function pgjet.outbox_default_used is 'Whether there are events in the default partition that belong into another one.';

create function pgjet.outbox_xid(xid xid8, xmin xid) returns xid8
    language sql stable parallel safe
as $$
    select least(xid, greatest(0, at - mod(mod(at - xmin::text::bigint, 4294967296) + 4294967296, 4294967296))::text::xid8)
      from (select pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1) as newest (at)
$$;

comment on function pgjet.outbox_xid is
    'Which transaction wrote a row that has these two columns. One that was restored has the xid of another cluster, one that was moved the xmin of the transaction that moved it: the lesser counts.';

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
create function pgjet.change_outbox() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    if not pg_try_advisory_xact_lock(hashtextextended('pgjet.change_outbox', 0)) then
        raise exception 'another session is changing the partitions of the outbox' using errcode = 'lock_not_available';
    end if;
end
$$;
-- +goose StatementEnd

comment on function pgjet.expect_outbox is 'Fails if the outbox will not be free soon. Internal.';
comment on function pgjet.lock_outbox is 'Locks the outbox alone, if that is to be had soon. Internal.';
comment on function pgjet.change_outbox is 'Lets one session at a time change the partitions. Internal.';

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
    if low >= high or low < 1 then
        raise exception 'a partition from % to below % holds nothing', low, high;
    end if;
    perform pgjet.change_outbox();
    select last_value into last from pgjet.outbox_seq_seq;
    if low - margin <= last then
        perform pgjet.lock_outbox();
    end if;
    execute format('create table pgjet.%I (like pgjet.outbox including all excluding identity)', part);
    execute format('alter table pgjet.outbox attach partition pgjet.%I for values from (%s) to (%s)', part, low, high);
    if low - margin > last then
        select last_value into last from pgjet.outbox_seq_seq;
        if low - margin / 2 <= last then
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
    bound constant bigint := 9223372036854775807;
begin
    perform pgjet.change_outbox();
    -- Of the gaps between partitions the one with the most rows.
    select g.low, g.high, count(*) into low, high, taken
      from (select lag(p.high) over (order by p.low), p.low from pgjet.outbox_partition p
            union all
            select max(p.high), null from pgjet.outbox_partition p) as g (low, high)
      join pgjet.outbox_default d on (g.low is null or d.seq >= g.low) and (g.high is null or d.seq < g.high) and d.seq < bound
     where g.low < g.high or g.low is null or g.high is null
     group by g.low, g.high order by count(*) desc limit 1;
    if not found then
        return 0;
    end if;
    -- With the lock no statement is under way that reads or writes by the old plan.
    perform pgjet.lock_outbox();
    lock table pgjet.outbox_default in access exclusive mode nowait;
    low := coalesce(low, (select min(seq) from pgjet.outbox_default));
    if high is null then
        high := greatest((select last_value from pgjet.outbox_seq_seq), (select max(seq) from pgjet.outbox_default));
        high := high + least(width, bound - high);
    end if;
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

-- A role that may drop a partition cannot decide alone what is published: the checkpoints count, too.

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
    safe      pg_snapshot;
    upto      bigint;
begin
    perform pgjet.change_outbox();
    select * into p from pgjet.outbox_partition o where o.name = part;
    if not found then
        raise exception 'the outbox has no partition %', part;
    end if;
    -- What lies before the caller's position and before the newest checkpoint of each stream. One that was
    -- never published to, and does not exist, is a mistyped name.
    with led as (
        select l.stream from pgjet.leader l
         where l.epoch > 0 and (coalesce(l.cause, '') !~ '^(stream_missing|foreign_outbox):'
                or exists (select from pgjet.checkpoint c where c.stream = l.stream))
    ), claimed (snapshot, floor) as (
        select published, drop_outbox_partition.floor
        union all
        select coalesce(n.snapshot, '1:1:'), coalesce(n.floor, 0)
          from led l left join lateral (
               select c.snapshot, c.floor from pgjet.checkpoint c
                where c.stream = l.stream and c.system_identifier = (select system_identifier from pg_control_system())
                order by c.id desc limit 1) n on true
        union all
        select '1:1:', 0 where not exists (select from led)
    ), least_of (floor, xmin, xmax) as (
        select min(c.floor), min(pg_snapshot_xmin(snapshot)::text::numeric), min(pg_snapshot_xmax(snapshot)::text::numeric) from claimed c
    )
    select l.floor, format('%s:%s:%s', l.xmin, l.xmax, (
               select string_agg(r.xid::text, ',' order by r.xid)
                 from (select distinct pg_snapshot_xip(snapshot)::text::numeric from claimed) r (xid) where r.xid < l.xmax))
      into upto, safe from least_of l;
    if p.high - 1 > upto then
        raise exception 'partition % is not published beyond seq %', part, upto using errcode = 'PJ001';
    end if;
    -- This takes a while. Nothing that comes in from here on is published.
    execute format('select count(*) from pgjet.%I', part) into taken;
    perform pgjet.expect_outbox();
    -- A transaction that has appended there and is not done holds a lock; its events would be lost.
    execute format('lock table pgjet.%I in access exclusive mode nowait', part);
    execute format(
        'select seq from pgjet.%I'
        ' where (xid >= pg_snapshot_xmax($1) or xid = any (array(select pg_snapshot_xip($1))))'
        '   and not pg_visible_in_snapshot(pgjet.outbox_xid(xid, xmin), $1)'
        ' limit 1', part) into found_seq using safe;
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
    'Drops a partition of which every event is published: visible in the snapshot and in that of the newest checkpoint of each stream, with a seq up to floor and theirs. Returns how many events it held. Fails with PJ001 if one is not published.';

-- A relay cannot invent events, it can only move those that are due. If a lock on a table is not free, this fails
-- with 55P03 (lock_not_available), and the caller tries again later: other events do not wait for that.

-- +goose StatementBegin
create function pgjet.move_due(of_stream text, of_epoch bigint, inout after_due timestamptz, inout after_n bigint,
    out led boolean, out moved bigint, out more boolean, out next interval)
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '50ms'
as $$
declare
    most  constant bigint := 1000;    -- rows and
    bytes constant bigint := 4194304; -- bytes that one call moves
    taken bigint;
begin
    led := true;
    moved := 0;
    more := false;
    next := interval '0';
    -- If nothing is due, nothing is written. The start of this statement is a time that an index can be searched
    -- for, and it lies before now.
    if exists (select from pgjet.scheduled s
                where (s.due, s.n) > (after_due, after_n) and s.due <= statement_timestamp() order by s.due, s.n limit 1) then
        perform from pgjet.leader l where l.stream = of_stream and l.epoch = of_epoch for share;
        led := found;
        if not led then
            return;
        end if;
        -- A move that a crash took back would be made again after the event was published.
        perform set_config('synchronous_commit', 'on', true);
        with page as materialized (
            select s.id, s.due, s.n, s.key, coalesce(pg_column_size(s.data), pg_column_size(s.body)) as size from pgjet.scheduled s
             where (s.due, s.n) > (after_due, after_n) and s.due <= statement_timestamp()
             order by s.due, s.n limit most for update skip locked
        ), mine as materialized (
            select f.id, f.due, f.n, f.key
              from (select p.*, sum(p.size) over (order by p.due, p.n) - p.size as before from page p) f where f.before < bytes
        ), others as materialized (
            -- Of each key the first event that somebody else holds, if there is one: those behind it have to wait.
            select k.key, o.due, o.n from (select distinct m.key from mine m) k, lateral (
                select s.due, s.n from pgjet.scheduled s
                 where s.key = k.key and s.due <= (select max(m.due) from mine m) and s.id not in (select m.id from mine m)
                 order by s.due, s.n limit 1) o
        ), gone as (
            delete from pgjet.scheduled s using mine m left join others o on o.key = m.key
             where s.id = m.id and (o.key is null or (m.due, m.n) < (o.due, o.n))
            returning s.*
        ), appended as (
            insert into pgjet.outbox (id, type, key, traceparent, header, data, time, content_type, body)
            select g.id, g.type, g.key, g.traceparent, g.header, g.data, coalesce(g.time, clock_timestamp()), g.content_type, g.body
              from gone g order by g.due, g.n
            returning seq
        )
        select count(*), (select count(*) from appended), (select count(*) from page) = most or count(*) < (select count(*) from page),
               (array_agg(m.due order by m.due desc, m.n desc))[1], (array_agg(m.n order by m.due desc, m.n desc))[1]
          into taken, moved, more, after_due, after_n
          from mine m;
    end if;
    if not more then
        after_due := statement_timestamp();
        after_n := 9223372036854775807;
        select least(min(s.due) - clock_timestamp(), interval '1 hour') into next from pgjet.scheduled s where s.due > statement_timestamp();
    end if;
end
$$;
-- +goose StatementEnd

comment on function pgjet.move_due is
    'Moves events that are due, and lie behind a place in the order of due and n, into the outbox: so many at a time, in that order, and of one key none before those that somebody else holds. Returns whether the caller leads, how many it moved, whether there may be more, behind which place to go on, and in what time: when the next is due, or in an hour.';

revoke execute on function pgjet.outbox_default_used, pgjet.expect_outbox, pgjet.lock_outbox, pgjet.change_outbox, pgjet.add_outbox_partition,
    pgjet.empty_outbox_default, pgjet.drop_outbox_partition, pgjet.move_due from public;

-- +goose StatementBegin
do $$
begin
    perform pgjet.add_outbox_partition(low, low + 50000) from generate_series(1, 100001, 50000) as low;
end
$$;
-- +goose StatementEnd

-- +goose Down
drop function pgjet.move_due, pgjet.drop_outbox_partition, pgjet.empty_outbox_default, pgjet.add_outbox_partition, pgjet.change_outbox,
    pgjet.lock_outbox, pgjet.expect_outbox, pgjet.outbox_xid, pgjet.outbox_default_used, pgjet.new_identity;
drop view pgjet.outbox_partition;
drop table pgjet.identity, pgjet.scheduled, pgjet.outbox;
