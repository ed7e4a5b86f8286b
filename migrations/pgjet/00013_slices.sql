-- +goose Up
-- Processes share a consumer that keeps the order: its keys are divided into slices, each with an owner, an epoch
-- and a position of its own. The data in pgjet.consumer about the only owner moves here.
create table pgjet.slice (
    consumer   text        not null references pgjet.consumer on delete cascade,
    slice      smallint    not null,
    epoch      bigint      not null,
    process    text,
    since      timestamptz,
    floor      bigint      not null default 0,
    high       bigint      not null default 0,
    lost_until bigint      not null default 0,
    redeliver  boolean     not null default false,
    primary key (consumer, slice),
    constraint slice_bounds check (
        slice between 0 and 63 and epoch between 0 and 1000000000000000000
        and floor >= 0 and high >= 0 and lost_until >= 0
        and (since is null or since between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'))
);

comment on table pgjet.slice is
    'A fixed share of the keys of a consumer. One that does not keep the order, or runs in one process at a time, has one.';
comment on column pgjet.slice.epoch is 'The epoch of the consumer when the slice was taken, or its sessions were ended. Attempts of another one are refused.';
comment on column pgjet.slice.process is 'Of a consumer that keeps the order: the owner, as host:pid.';
comment on column pgjet.slice.floor is 'Every event of the slice that the stream holds up to here is in the inbox.';
comment on column pgjet.slice.high is 'The last place in the stream that was ever delivered.';
comment on column pgjet.slice.lost_until is
    'What comes from up to here and is not in the inbox was lost once: by a restored database, or a limit of JetStream.';
comment on column pgjet.slice.redeliver is 'The next session has everything delivered once more.';

insert into pgjet.slice (consumer, slice, epoch, process, since, floor, high, lost_until)
select name, 0, least(greatest(epoch, 0), 1000000000000000000), process,
       case when since is not null then least(greatest(since, '0001-01-01 00:00:00+00'), '9999-12-31 23:59:59.999999+00') end, greatest(floor, 0), greatest(high, 0), greatest(lost_until, 0)
  from pgjet.consumer;

alter table pgjet.consumer
    drop constraint consumer_bounds,
    drop column floor, drop column high, drop column lost_until, drop column process, drop column since,
    add column slices smallint not null default 1;
alter table pgjet.consumer
    add constraint consumer_bounds check (
        name <> '' and length(name) <= 255 and name !~ '[[:space:][:cntrl:].*>/\\]'
        and stream <> '' and length(stream) <= 255 and stream !~ '[[:space:][:cntrl:].*>/\\]'
        and generation between 0 and 1000000000 and epoch between 0 and 1000000000000000000
        and slices in (1, 2, 4, 8, 16, 32, 64)
        and stream_created between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and (paused_at is null or paused_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')) not valid;
comment on column pgjet.consumer.slices is 'How many slices its keys are divided into: 64 tokens of subjects, as many to each.';
comment on column pgjet.consumer.epoch is 'Counts: whoever takes a slice, or ends the sessions of the consumer, gets the next number.';
comment on column pgjet.consumer.ordered is 'Whether one process at a time handles the events of a slice, in order per key.';

-- The token of an intent's subject decides to which slice it belongs.
alter table pgjet.intent add column token smallint not null
    generated always as (coalesce(('x' || substring(subject from '\.([0-9a-f]{2})\.'))::bit(8)::int & 63, 0)) stored;
comment on column pgjet.intent.token is 'The token of the subject, 0 to 63: all events of a key share it.';
alter table pgjet.dead_letter add column token smallint not null
    generated always as (coalesce(('x' || substring(subject from '\.([0-9a-f]{2})\.'))::bit(8)::int & 63, 0)) stored;
comment on column pgjet.dead_letter.token is 'The token of the subject, 0 to 63: all events of a key share it.';

-- The rest of the function stays as it is.
-- +goose StatementBegin
do $$
declare
    body text := pg_get_functiondef('pgjet.grant_roles()'::regprocedure);
begin
    body := replace(body, 'insert (name, stream, stream_created, ordered, effects)', 'insert (name, stream, stream_created, ordered, effects, slices)');
    body := replace(body, 'update (stream, stream_created, generation, floor, high, epoch, ordered, effects, process, since, rebuild, lost_until)
                on pgjet.consumer to pgjet_consumer;', 'update (stream, stream_created, generation, epoch, slices, ordered, effects, rebuild)
                on pgjet.consumer to pgjet_consumer;
            grant select, insert, update, delete on pgjet.slice to pgjet_consumer;');
    body := replace(body, 'grant update (floor, epoch, rebuild, paused_at, paused_by, pause_reason) on pgjet.consumer to pgjet_operator;',
        'grant update (epoch, rebuild, paused_at, paused_by, pause_reason) on pgjet.consumer to pgjet_operator;
            grant update (floor, epoch) on pgjet.slice to pgjet_operator;');
    if position('on pgjet.slice to pgjet_consumer' in body) = 0 or position('on pgjet.slice to pgjet_operator' in body) = 0 then
        raise exception 'pgjet.grant_roles() is not the function that the migrations made';
    end if;
    execute body;
end
$$;
-- +goose StatementEnd

select pgjet.grant_roles();

-- +goose Down
alter table pgjet.dead_letter drop column token;
alter table pgjet.intent drop column token;
alter table pgjet.consumer
    drop constraint consumer_bounds,
    drop column slices,
    add column floor bigint not null default 0,
    add column high bigint not null default 0,
    add column process text,
    add column since timestamptz,
    add column lost_until bigint not null default 0;
update pgjet.consumer c set epoch = least(epoch + 1, 1000000000000000000), floor = s.floor, high = s.high, lost_until = s.lost_until
  from (select consumer, min(floor) as floor, max(high) as high, max(lost_until) as lost_until from pgjet.slice group by consumer) s
 where s.consumer = c.name;
alter table pgjet.consumer
    add constraint consumer_bounds check (
        name <> '' and length(name) <= 255 and name !~ '[[:space:][:cntrl:].*>/\\]'
        and stream <> '' and length(stream) <= 255 and stream !~ '[[:space:][:cntrl:].*>/\\]'
        and generation between 0 and 1000000000 and epoch between 0 and 1000000000000000000
        and floor >= 0 and high >= 0 and lost_until >= 0
        and stream_created between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and (since is null or since between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
        and (paused_at is null or paused_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')) not valid;
comment on column pgjet.consumer.floor is 'Every event that the stream holds up to here is in the inbox.';
comment on column pgjet.consumer.high is 'The last place in the stream that was ever delivered.';
comment on column pgjet.consumer.ordered is 'Whether one process at a time handles events, in order per key.';
comment on column pgjet.consumer.process is 'Of an ordered consumer: who is active, as host:pid.';
comment on column pgjet.consumer.lost_until is
    'What comes from up to here and is not in the inbox was lost once: by a restored database, or a limit of JetStream.';
comment on column pgjet.consumer.epoch is null;
drop table pgjet.slice;

-- +goose StatementBegin
do $$
declare
    body text := pg_get_functiondef('pgjet.grant_roles()'::regprocedure);
begin
    body := replace(body, 'insert (name, stream, stream_created, ordered, effects, slices)', 'insert (name, stream, stream_created, ordered, effects)');
    body := replace(body, 'update (stream, stream_created, generation, epoch, slices, ordered, effects, rebuild)
                on pgjet.consumer to pgjet_consumer;
            grant select, insert, update, delete on pgjet.slice to pgjet_consumer;', 'update (stream, stream_created, generation, floor, high, epoch, ordered, effects, process, since, rebuild, lost_until)
                on pgjet.consumer to pgjet_consumer;');
    body := replace(body, 'grant update (epoch, rebuild, paused_at, paused_by, pause_reason) on pgjet.consumer to pgjet_operator;
            grant update (floor, epoch) on pgjet.slice to pgjet_operator;',
        'grant update (floor, epoch, rebuild, paused_at, paused_by, pause_reason) on pgjet.consumer to pgjet_operator;');
    execute body;
end
$$;
-- +goose StatementEnd

select pgjet.grant_roles();
