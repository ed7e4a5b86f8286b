-- +goose NO TRANSACTION
-- +goose Up
-- A role that may drop a partition cannot decide alone what is published: the checkpoints count too.

-- +goose StatementBegin
create or replace function pgjet.drop_outbox_partition(part text, published pg_snapshot, floor bigint) returns bigint
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
    perform pgjet.tend_outbox();
    select * into p from pgjet.outbox_partition o where o.name = part;
    if not found then
        raise exception 'the outbox has no partition %', part;
    end if;
    -- What lies before the caller's position and before the newest checkpoint of each stream. One that was
    -- never published to, and does not exist, is a mistyped name.
    with led as (
        select l.stream from pgjet.leader l
         where l.epoch > 0 and (coalesce(l.cause, '') not like 'stream\_missing:%'
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
    -- Who has appended there and is not done holds a lock, and its events would be lost.
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

-- Each session of a relay increases a counter. No role may set it so high that the next steps are refused.

-- +goose StatementBegin
create or replace function pgjet.refuse_jump() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception '% of %.% is too large: it counts in steps of one', tg_argv[0], tg_table_schema, tg_table_name using errcode = 'check_violation';
end
$$;
-- +goose StatementEnd

comment on function pgjet.refuse_jump is 'Refuses a value from which a counter could soon not be increased. Internal.';
revoke execute on function pgjet.refuse_jump from public;

create or replace trigger epoch_jump_in before insert on pgjet.leader
    for each row when (new.epoch > 1000000000000000) execute function pgjet.refuse_jump('epoch');
create or replace trigger epoch_jump before update of epoch on pgjet.leader
    for each row when (new.epoch > 1000000000000000 and new.epoch not between old.epoch and old.epoch + 1) execute function pgjet.refuse_jump('epoch');
create or replace trigger epoch_jump_in before insert on pgjet.consumer
    for each row when (new.epoch > 1000000000000000) execute function pgjet.refuse_jump('epoch');
create or replace trigger epoch_jump before update of epoch on pgjet.consumer
    for each row when (new.epoch > 1000000000000000 and new.epoch not between old.epoch and old.epoch + 1) execute function pgjet.refuse_jump('epoch');
create or replace trigger generation_jump_in before insert on pgjet.consumer
    for each row when (new.generation > 500000000) execute function pgjet.refuse_jump('generation');
create or replace trigger generation_jump before update of generation on pgjet.consumer
    for each row when (new.generation > 500000000 and new.generation not between old.generation and old.generation + 1) execute function pgjet.refuse_jump('generation');
create or replace trigger epoch_jump_in before insert on pgjet.saga
    for each row when (new.epoch > 1000000000000000) execute function pgjet.refuse_jump('epoch');
create or replace trigger epoch_jump before update of epoch on pgjet.saga
    for each row when (new.epoch > 1000000000000000 and new.epoch not between old.epoch and old.epoch + 1) execute function pgjet.refuse_jump('epoch');

-- +goose Down
drop trigger if exists epoch_jump on pgjet.saga;
drop trigger if exists epoch_jump_in on pgjet.saga;
drop trigger if exists generation_jump on pgjet.consumer;
drop trigger if exists generation_jump_in on pgjet.consumer;
drop trigger if exists epoch_jump on pgjet.consumer;
drop trigger if exists epoch_jump_in on pgjet.consumer;
drop trigger if exists epoch_jump on pgjet.leader;
drop trigger if exists epoch_jump_in on pgjet.leader;
drop function if exists pgjet.refuse_jump;

-- +goose StatementBegin
create or replace function pgjet.drop_outbox_partition(part text, published pg_snapshot, floor bigint) returns bigint
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
