-- +goose Up
create table pgjet.saga (
    id          uuid        primary key,
    name        text        not null,
    key         text        not null,
    state       text        not null default 'running'
        constraint saga_state check (state in ('running', 'undoing', 'done', 'undone', 'needs_operator')),
    step        text        not null default '',
    attempts    integer     not null default 0,
    waits       integer     not null default 0,
    reason      text        not null default '',
    error       text        not null default '',
    steps       jsonb       not null default '[]',
    input       jsonb       not null,
    epoch       bigint      not null default 1,
    process     text,
    due_at      timestamptz not null default clock_timestamp(),
    started_at  timestamptz not null default clock_timestamp(),
    changed_at  timestamptz not null default clock_timestamp(),
    ended_at    timestamptz,
    traceparent text        not null default '',
    tracestate  text        not null default ''
);

comment on table pgjet.saga is
    'Sagas: what was begun step by step, and is undone in reverse order if it cannot be finished.';
comment on column pgjet.saga.id is 'Made of name and key, so that there is one saga for each.';
comment on column pgjet.saga.state is
    'running; undoing; done: all steps are; undone: all that was done is undone; needs_operator: an undo does not succeed, see error.';
comment on column pgjet.saga.step is 'What it is at, such as "billing", "undo billing", or "rejected" at the very end.';
comment on column pgjet.saga.attempts is 'How often that was tried. It is written down before each try.';
comment on column pgjet.saga.waits is 'How often what that needs was away, which counts as no attempt.';
comment on column pgjet.saga.reason is 'Why it is being undone, or was: a code such as billing_declined.';
comment on column pgjet.saga.error is 'Why the last attempt failed.';
comment on column pgjet.saga.steps is
    'Those that have begun, in order: name, state (trying, done, refused, failed, unknown, undoing, undone), attempts, result, error. Unknown: it may have happened, and is undone.';
comment on column pgjet.saga.epoch is
    'Grows with every change. Who knows an older one was overtaken, and can change nothing.';
comment on column pgjet.saga.process is 'Who runs it now, as host:pid and what tells its claims apart.';
comment on column pgjet.saga.due_at is 'When it goes on. While somebody runs it: when others may take it over.';

create index saga_due on pgjet.saga (name, due_at) where state in ('running', 'undoing');
create index saga_ended on pgjet.saga (name, ended_at) where ended_at is not null;
create index saga_started on pgjet.saga (started_at);

-- +goose StatementBegin
create or replace function pgjet.grant_roles() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    role text;
begin
    foreach role in array '{pgjet_writer,pgjet_relay,pgjet_consumer,pgjet_operator}'::text[] loop
        if to_regrole(role) is null then
            begin
                execute format('create role %I nologin', role);
            exception
                when duplicate_object or unique_violation then
                    null;
                when insufficient_privilege then
                    raise notice 'role % is missing, and % may not create it: as a superuser run "create role % nologin", then "select pgjet.grant_roles()" as %',
                        role, current_user, role, current_user;
                    continue;
            end;
        end if;
        execute format('grant usage on schema pgjet to %I', role);
        case role
        when 'pgjet_writer' then
            -- Neither xid nor seq: a wrong one would lose events.
            grant insert (id, type, key, traceparent, header, data, time) on pgjet.outbox to pgjet_writer;
        when 'pgjet_relay' then
            grant select on pgjet.outbox, pgjet.outbox_partition, pgjet.outbox_seq_seq, pgjet.adoption, pgjet.pruned to pgjet_relay;
            grant select, insert, update on pgjet.leader to pgjet_relay;
            grant select, insert, delete on pgjet.checkpoint to pgjet_relay;
            grant select, insert, update, delete on pgjet.quarantine, pgjet.unknown_message to pgjet_relay;
            grant execute on function pgjet.outbox_default_used, pgjet.add_outbox_partition,
                pgjet.empty_outbox_default, pgjet.drop_outbox_partition to pgjet_relay;
        when 'pgjet_consumer' then
            -- It may neither pause nor resume. It prunes dead letters that were dealt with.
            grant select, insert (name, stream, stream_created, ordered, effects),
                update (stream, stream_created, generation, floor, high, epoch, ordered, effects, process, since, rebuild, lost_until)
                on pgjet.consumer to pgjet_consumer;
            grant select, insert, update, delete on pgjet.process, pgjet.inbox, pgjet.intent to pgjet_consumer;
            grant select, insert, update, delete on pgjet.dead_letter to pgjet_consumer;
            grant select, insert, delete on pgjet.attempt to pgjet_consumer;
            grant select, insert, update, delete on pgjet.saga to pgjet_consumer;
        when 'pgjet_operator' then
            grant select on all tables in schema pgjet to pgjet_operator;
            grant select on pgjet.outbox_seq_seq to pgjet_operator;
            grant insert (stream, epoch, paused_at, paused_by, pause_reason),
                update (paused_at, paused_by, pause_reason) on pgjet.leader to pgjet_operator;
            grant insert on pgjet.adoption, pgjet.operation to pgjet_operator;
            grant update (detail) on pgjet.operation to pgjet_operator;
            grant update (state, changed_at, changed_by, change_reason) on pgjet.quarantine to pgjet_operator;
            grant delete on pgjet.unknown_message to pgjet_operator;
            grant execute on function pgjet.outbox_default_used, pgjet.drop_outbox_partition to pgjet_operator;
            grant update (floor, epoch, rebuild, paused_at, paused_by, pause_reason) on pgjet.consumer to pgjet_operator;
            grant update (state, changed_at, changed_by, change_reason) on pgjet.dead_letter to pgjet_operator;
            grant insert, update, delete on pgjet.inbox, pgjet.intent to pgjet_operator;
            grant update (state, epoch, attempts, waits, due_at, changed_at) on pgjet.saga to pgjet_operator;
        end case;
    end loop;
end
$$;
-- +goose StatementEnd

select pgjet.grant_roles();

-- +goose Down
-- +goose StatementBegin
create or replace function pgjet.grant_roles() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    role text;
begin
    foreach role in array '{pgjet_writer,pgjet_relay,pgjet_consumer,pgjet_operator}'::text[] loop
        if to_regrole(role) is null then
            begin
                execute format('create role %I nologin', role);
            exception
                when duplicate_object or unique_violation then
                    null;
                when insufficient_privilege then
                    raise notice 'role % is missing, and % may not create it: as a superuser run "create role % nologin", then "select pgjet.grant_roles()" as %',
                        role, current_user, role, current_user;
                    continue;
            end;
        end if;
        execute format('grant usage on schema pgjet to %I', role);
        case role
        when 'pgjet_writer' then
            -- Neither xid nor seq: a wrong one would lose events.
            grant insert (id, type, key, traceparent, header, data, time) on pgjet.outbox to pgjet_writer;
        when 'pgjet_relay' then
            grant select on pgjet.outbox, pgjet.outbox_partition, pgjet.outbox_seq_seq, pgjet.adoption, pgjet.pruned to pgjet_relay;
            grant select, insert, update on pgjet.leader to pgjet_relay;
            grant select, insert, delete on pgjet.checkpoint to pgjet_relay;
            grant select, insert, update, delete on pgjet.quarantine, pgjet.unknown_message to pgjet_relay;
            grant execute on function pgjet.outbox_default_used, pgjet.add_outbox_partition,
                pgjet.empty_outbox_default, pgjet.drop_outbox_partition to pgjet_relay;
        when 'pgjet_consumer' then
            -- It may neither pause nor resume. It prunes dead letters that were dealt with.
            grant select, insert (name, stream, stream_created, ordered, effects),
                update (stream, stream_created, generation, floor, high, epoch, ordered, effects, process, since, rebuild, lost_until)
                on pgjet.consumer to pgjet_consumer;
            grant select, insert, update, delete on pgjet.process, pgjet.inbox, pgjet.intent to pgjet_consumer;
            grant select, insert, update, delete on pgjet.dead_letter to pgjet_consumer;
            grant select, insert, delete on pgjet.attempt to pgjet_consumer;
        when 'pgjet_operator' then
            grant select on all tables in schema pgjet to pgjet_operator;
            grant select on pgjet.outbox_seq_seq to pgjet_operator;
            grant insert (stream, epoch, paused_at, paused_by, pause_reason),
                update (paused_at, paused_by, pause_reason) on pgjet.leader to pgjet_operator;
            grant insert on pgjet.adoption, pgjet.operation to pgjet_operator;
            grant update (detail) on pgjet.operation to pgjet_operator;
            grant update (state, changed_at, changed_by, change_reason) on pgjet.quarantine to pgjet_operator;
            grant delete on pgjet.unknown_message to pgjet_operator;
            grant execute on function pgjet.outbox_default_used, pgjet.drop_outbox_partition to pgjet_operator;
            grant update (floor, epoch, rebuild, paused_at, paused_by, pause_reason) on pgjet.consumer to pgjet_operator;
            grant update (state, changed_at, changed_by, change_reason) on pgjet.dead_letter to pgjet_operator;
            grant insert, update, delete on pgjet.inbox, pgjet.intent to pgjet_operator;
        end case;
    end loop;
end
$$;
-- +goose StatementEnd

drop table pgjet.saga;
