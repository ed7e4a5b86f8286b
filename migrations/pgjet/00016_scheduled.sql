-- +goose Up
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
    -- Who finds nothing writes nothing. The start of this statement is a time that an index can be searched
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
revoke execute on function pgjet.move_due from public;

-- The rest of the function stays as it is. Of other writers' events, a writer sees only what it needs to delete one by its id.
-- +goose StatementBegin
do $$
declare
    before constant text := pg_get_functiondef('pgjet.grant_roles()'::regprocedure);
    after  text := before;
    more   record;
begin
    for more in
        select * from (values
            ('data, time, content_type, body) on pgjet.outbox to pgjet_writer;',
                'grant insert (id, due, type, key, traceparent, header, data, time, content_type, body), select (id), delete on pgjet.scheduled to pgjet_writer;'),
            ('pgjet.drop_outbox_partition to pgjet_relay;',
                'grant select (due) on pgjet.scheduled to pgjet_relay; grant execute on function pgjet.move_due to pgjet_relay;'),
            ('pgjet.drop_outbox_partition to pgjet_operator;',
                'grant update (due), delete on pgjet.scheduled to pgjet_operator;')
        ) as m (behind, grants)
    loop
        if position(more.behind in after) = 0 then
            raise exception 'pgjet.grant_roles() is not the function that the migrations made';
        end if;
        after := replace(after, more.behind, more.behind || E'\n            ' || more.grants);
    end loop;
    execute after;
end
$$;
-- +goose StatementEnd

select pgjet.grant_roles();

-- +goose Down
-- +goose StatementBegin
do $$
declare
    before constant text := pg_get_functiondef('pgjet.grant_roles()'::regprocedure);
begin
    if exists (select from pgjet.scheduled) then
        raise exception 'there are scheduled events; they would be lost';
    end if;
    execute regexp_replace(before, '\n *grant [^\n]* on pgjet.scheduled to [^\n]*', '', 'g');
end
$$;
-- +goose StatementEnd
drop function pgjet.move_due;
drop table pgjet.scheduled;
