-- +goose Up
create table pgjet.consumer (
    name           text        primary key,
    stream         text        not null,
    stream_created timestamptz not null,
    generation     integer     not null default 1,
    floor          bigint      not null default 0,
    high           bigint      not null default 0,
    epoch          bigint      not null default 1,
    ordered        boolean     not null default false,
    effects        boolean     not null default false,
    process        text,
    since          timestamptz,
    rebuild        boolean     not null default false,
    lost_until     bigint      not null default 0,
    paused_at      timestamptz,
    paused_by      text,
    pause_reason   text
);

comment on table pgjet.consumer is
    'What is known of a consumer. Attempts of an older epoch, and while it is paused, are refused.';
comment on column pgjet.consumer.generation is
    'Counts the incarnations of the stream that this consumer saw; stream_created is that of the last.';
comment on column pgjet.consumer.floor is
    'Every event that the stream holds up to here is in the inbox.';
comment on column pgjet.consumer.high is 'The last place in the stream that was ever delivered.';
comment on column pgjet.consumer.ordered is 'Whether one process at a time handles events, in order per key.';
comment on column pgjet.consumer.effects is 'Whether handling has effects outside this database, such as mails.';
comment on column pgjet.consumer.process is 'Of an ordered consumer: who is active, as host:pid.';
comment on column pgjet.consumer.rebuild is 'The consumer shall forget what its handlers wrote before it goes on.';
comment on column pgjet.consumer.lost_until is
    'What comes from up to here and is not in the inbox was lost once: by a restored database, or a limit of JetStream.';
comment on column pgjet.consumer.paused_at is 'Since when an operator wants no attempts. Null if not.';

create table pgjet.process (
    consumer text        not null,
    process  text        not null,
    since    timestamptz not null default clock_timestamp(),
    seen_at  timestamptz not null default clock_timestamp(),
    workers  integer     not null,
    cause    text,
    attempts integer     not null default 0,
    failed   integer     not null default 0,
    took     interval    not null default '0',
    error    text,
    primary key (consumer, process)
);

comment on table pgjet.process is
    'Processes that run a consumer. Each writes here every few seconds; one that does not is gone.';
comment on column pgjet.process.cause is 'Why it handles nothing. Null while it does.';
comment on column pgjet.process.attempts is
    'How many of its last attempts, at most 50, the next columns speak of: failed ones, the median time, the last error.';

alter table pgjet.inbox
    drop constraint inbox_state,
    add constraint inbox_state check (state in ('done', 'intent', 'dead', 'discarded')),
    add column generation integer     not null default 0,
    add column stream_seq bigint      not null default 0,
    add column began      timestamptz;

comment on table pgjet.inbox is
    'Every event that a consumer has taken over. A done row commits together with the handler''s effects.';
comment on column pgjet.inbox.state is
    'done; intent: it waits in pgjet.intent for an attempt; dead: in pgjet.dead_letter; discarded: given up for good.';
comment on column pgjet.inbox.began is 'When the attempt began that made it done.';
create index inbox_place on pgjet.inbox using brin (stream_seq, at) with (pages_per_range = 16, autosummarize = on);

create table pgjet.intent (
    consumer   text        not null,
    event_id   uuid        not null,
    type       text        not null,
    key        text        not null,
    stream     text        not null,
    generation integer     not null,
    stream_seq bigint      not null,
    subject    text        not null,
    header     jsonb       not null,
    data       bytea       not null,
    attempts   integer     not null default 0,
    deaths     integer     not null default 0,
    due_at     timestamptz not null default clock_timestamp(),
    taken_by   text,
    taken_at   timestamptz,
    error      text,
    since      timestamptz not null default clock_timestamp(),
    primary key (consumer, event_id)
);

comment on table pgjet.intent is
    'Attempts that are written down before they are made, with the whole message: retries, redriven dead letters, replayed events, effects outside the database, and what was in the hands of a process that died.';
comment on column pgjet.intent.due_at is
    'When to try. Infinity: an earlier event of its key comes first.';
comment on column pgjet.intent.taken_by is
    'The process that makes an attempt now. It holds a session advisory lock of its name for as long as it lives.';
comment on column pgjet.intent.attempts is 'Attempts begun.';
comment on column pgjet.intent.deaths is 'Attempts whose process died.';
create index intent_due on pgjet.intent (consumer, due_at);
create index intent_key on pgjet.intent (consumer, key, generation, stream_seq);

create table pgjet.attempt (
    consumer text        not null,
    event_id uuid        not null,
    attempt  integer     not null,
    began    timestamptz not null,
    took     interval,
    process  text        not null,
    outcome  text        not null constraint attempt_outcome check (outcome in ('done', 'retried', 'dead', 'died')),
    error    text
);

comment on table pgjet.attempt is
    'What was tried when, for how long, by whom. Of an event that was done at its first attempt only the inbox row tells.';
comment on column pgjet.attempt.took is 'Null if its process died.';
create index attempt_event on pgjet.attempt (consumer, event_id);
create index attempt_began on pgjet.attempt using brin (began);

alter table pgjet.dead_letter
    drop constraint dead_letter_pkey,
    add column id            bigint generated always as identity primary key,
    add column type          text    not null default '',
    add column key           text    not null default '',
    add column generation    integer not null default 0,
    add column error_group   text    not null default '',
    add column stack         text,
    add column trace_id      text,
    add column process       text,
    add column state         text    not null default 'dead'
        constraint dead_letter_state check (state in ('dead', 'redriven', 'done', 'discarded')),
    add column changed_at    timestamptz,
    add column changed_by    text,
    add column change_reason text,
    add constraint dead_letter_event unique (consumer, event_id);

comment on column pgjet.dead_letter.error_group is
    'The same for errors that differ in ids, numbers, quoted text, addresses and times only.';
comment on column pgjet.dead_letter.state is
    'dead; redriven: an operator gave it another chance; done: that succeeded; discarded: an operator gave it up for good.';
create index dead_letter_state on pgjet.dead_letter (consumer, state, key);

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
            -- It may neither pause nor resume.
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

select pgjet.grant_roles();

-- +goose Down
drop table pgjet.attempt, pgjet.intent, pgjet.process, pgjet.consumer;
drop index pgjet.inbox_place;
delete from pgjet.inbox where state in ('intent', 'discarded');
alter table pgjet.inbox
    drop constraint inbox_state,
    add constraint inbox_state check (state in ('done', 'dead')),
    drop column generation, drop column stream_seq, drop column began;
delete from pgjet.dead_letter where state <> 'dead';
alter table pgjet.dead_letter
    drop constraint dead_letter_event, drop constraint dead_letter_pkey, drop column id, drop column type,
    drop column key, drop column generation, drop column error_group, drop column stack, drop column trace_id,
    drop column process, drop column state, drop column changed_at, drop column changed_by, drop column change_reason,
    add primary key (consumer, event_id);
