-- +goose NO TRANSACTION
-- +goose Up
-- Values that no program of pgjet writes, and none of its views can show, are refused. Each
-- table is changed in a transaction of its own, so that no other waits for long, and old rows
-- are checked while others work.

alter table pgjet.leader
    drop constraint if exists leader_bounds, add constraint leader_bounds check (
        epoch between 0 and 1000000000000000000
        and (since is null or since between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
        and (cause_at is null or cause_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
        and (paused_at is null or paused_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
        and (heal_snapshot is null) = (heal_floor is null)) not valid;

alter table pgjet.checkpoint
    drop constraint if exists checkpoint_bounds, add constraint checkpoint_bounds check (
        stream_seq >= 0 and floor >= 0 and events >= 0
        and stream_created between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00') not valid;

alter table pgjet.quarantine
    drop constraint if exists quarantine_bounds, add constraint quarantine_bounds check (
        at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and (changed_at is null or changed_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')) not valid;

alter table pgjet.unknown_message
    drop constraint if exists unknown_message_bounds, add constraint unknown_message_bounds check (
        stream_seq >= 0
        and stream_created between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00') not valid;

alter table pgjet.adoption
    drop constraint if exists adoption_bounds, add constraint adoption_bounds check (
        stream_seq >= 0
        and stream_created between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00') not valid;

alter table pgjet.operation
    drop constraint if exists operation_bounds, add constraint operation_bounds check (
        at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00') not valid;

alter table pgjet.consumer
    drop constraint if exists consumer_bounds, add constraint consumer_bounds check (
        name <> '' and length(name) <= 255 and name !~ '[[:space:][:cntrl:].*>/\\]'
        and stream <> '' and length(stream) <= 255 and stream !~ '[[:space:][:cntrl:].*>/\\]'
        and generation between 0 and 1000000000 and epoch between 0 and 1000000000000000000
        and floor >= 0 and high >= 0 and lost_until >= 0
        and stream_created between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and (since is null or since between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
        and (paused_at is null or paused_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')) not valid;

alter table pgjet.process
    drop constraint if exists process_bounds, add constraint process_bounds check (
        workers >= 0 and attempts >= 0 and failed between 0 and attempts
        and took between interval '0' and interval '100 years'
        and since between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and seen_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00') not valid;

alter table pgjet.inbox
    drop constraint if exists inbox_bounds, add constraint inbox_bounds check (
        attempts >= 0 and generation >= 0 and stream_seq >= 0
        and at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and (began is null or began between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')) not valid;

-- A header is an object of arrays of strings.
alter table pgjet.intent
    drop constraint if exists intent_bounds, add constraint intent_bounds check (
        attempts between 0 and 1000000000 and deaths between 0 and 1000000000 and generation >= 0 and stream_seq >= 0
        and since between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and (taken_at is null or taken_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
        and jsonb_typeof(header) in ('object', 'null')
        and not jsonb_path_exists(header, 'strict $.* ? (@.type() <> "array")', '{}', true)
        and not jsonb_path_exists(header, 'strict $.*[*] ? (@.type() <> "string")', '{}', true)) not valid;

alter table pgjet.attempt
    drop constraint if exists attempt_bounds, add constraint attempt_bounds check (
        attempt >= 0 and (took is null or took between interval '-100 years' and interval '100 years')
        and began between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00') not valid;

alter table pgjet.dead_letter
    drop constraint if exists dead_letter_bounds, add constraint dead_letter_bounds check (
        attempts between 0 and 1000000000 and generation >= 0 and stream_seq >= 0
        and at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and (changed_at is null or changed_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
        and jsonb_typeof(header) in ('object', 'null')
        and not jsonb_path_exists(header, 'strict $.* ? (@.type() <> "array")', '{}', true)
        and not jsonb_path_exists(header, 'strict $.*[*] ? (@.type() <> "string")', '{}', true)) not valid;

alter table pgjet.saga
    drop constraint if exists saga_bounds, add constraint saga_bounds check (
        attempts between 0 and 1000000000 and waits between 0 and 1000000000 and epoch between 0 and 1000000000000000000
        and due_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and started_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and changed_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and (ended_at is null or ended_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
        and jsonb_typeof(steps) = 'array'
        and not jsonb_path_exists(steps, 'strict $[*] ? (@.type() <> "object")', '{}', true)
        and not jsonb_path_exists(steps, 'lax $[*] ? (@.name.type() <> "string" || @.state.type() <> "string" || @.error.type() <> "string")')
        and not jsonb_path_exists(steps, 'lax $[*] ? (@.attempts.type() <> "number" || @.attempts < 0 || @.attempts > 1000000000)')) not valid;

-- A seq counts from one. The outbox is changed in a moment in which no transaction holds it. The
-- relay checks its other columns, and sets aside what it cannot publish.
-- +goose StatementBegin
do $$
begin
    perform set_config('lock_timeout', '50ms', true);
    for try in 1..50 loop
        begin
            perform pgjet.lock_outbox();
            exit;
        exception when lock_not_available then
            if try = 50 then
                raise;
            end if;
            perform pg_sleep(0.2);
        end;
    end loop;
    alter table pgjet.outbox drop constraint if exists outbox_seq, add constraint outbox_seq check (seq > 0) not valid;
end
$$;
-- +goose StatementEnd

-- Old rows that break a bound stay as they are.
-- +goose StatementBegin
do $$
declare
    c record;
begin
    for c in select conrelid::regclass as tab, conname from pg_constraint
              where connamespace = 'pgjet'::regnamespace and contype = 'c' and not convalidated order by conparentid, 1, 2 loop
        begin
            execute format('alter table %s validate constraint %I', c.tab, c.conname);
        exception when check_violation then
            raise notice '% has rows from before that break %', c.tab, c.conname;
        end;
    end loop;
end
$$;
-- +goose StatementEnd

-- +goose Down
alter table pgjet.outbox drop constraint if exists outbox_seq;
alter table pgjet.saga drop constraint if exists saga_bounds;
alter table pgjet.dead_letter drop constraint if exists dead_letter_bounds;
alter table pgjet.attempt drop constraint if exists attempt_bounds;
alter table pgjet.intent drop constraint if exists intent_bounds;
alter table pgjet.inbox drop constraint if exists inbox_bounds;
alter table pgjet.process drop constraint if exists process_bounds;
alter table pgjet.consumer drop constraint if exists consumer_bounds;
alter table pgjet.operation drop constraint if exists operation_bounds;
alter table pgjet.adoption drop constraint if exists adoption_bounds;
alter table pgjet.unknown_message drop constraint if exists unknown_message_bounds;
alter table pgjet.quarantine drop constraint if exists quarantine_bounds;
alter table pgjet.checkpoint drop constraint if exists checkpoint_bounds;
alter table pgjet.leader drop constraint if exists leader_bounds;
