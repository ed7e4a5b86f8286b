-- +goose Up
create table pgjet.consumer (
    name           text        primary key,
    stream         text        not null,
    stream_created timestamptz not null,
    generation     integer     not null default 1,
    epoch          bigint      not null default 1,
    slices         smallint    not null default 1,
    ordered        boolean     not null default false,
    effects        boolean     not null default false,
    prefix         text        check (octet_length(prefix) between 1 and 64),
    types          text[],
    rebuild        boolean     not null default false,
    paused_at      timestamptz,
    paused_by      text,
    pause_reason   text,
    place          text,
    placed_at      timestamptz,
    server_start   timestamptz,
    constraint consumer_bounds check (
        name <> '' and length(name) <= 255 and name !~ '[[:space:][:cntrl:].*>/\\]'
        and stream <> '' and length(stream) <= 255 and stream !~ '[[:space:][:cntrl:].*>/\\]'
        and generation between 0 and 1000000000 and epoch between 0 and 1000000000000000000
        and slices in (1, 2, 4, 8, 16, 32, 64)
        and stream_created between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and (paused_at is null or paused_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')),
    constraint consumer_types check (array_ndims(types) = 1 and array_position(types, null) is null),
    constraint consumer_place check (
        (place is null or length(place) <= 100) and (place is null) = (placed_at is null)
        and (placed_at is null or placed_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
        and (server_start is null or server_start between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'))
);

comment on table pgjet.consumer is
    'What is known of a consumer. Attempts of an older epoch, and while it is paused, are refused.';
comment on column pgjet.consumer.generation is
    'Counts the incarnations of the stream that this consumer saw; stream_created is that of the last.';
comment on column pgjet.consumer.epoch is 'A counter: a process that takes a slice, or ends the sessions of the consumer, gets the next number.';
comment on column pgjet.consumer.slices is 'How many slices its keys are divided into: 64 tokens of subjects, as many to each.';
comment on column pgjet.consumer.ordered is 'Whether one process at a time handles the events of a slice, in order per key.';
comment on column pgjet.consumer.effects is 'Whether handling has effects outside this database, such as mails.';
comment on column pgjet.consumer.prefix is 'What the subjects of the events begin with. Null: it has not run yet.';
comment on column pgjet.consumer.types is
    'The types of events that it handles, or patterns of them, as the last process that began to run it said. Null: it has not run yet.';
comment on column pgjet.consumer.rebuild is 'The consumer shall forget what its handlers wrote before it goes on.';
comment on column pgjet.consumer.paused_at is 'Since when an operator wants no attempts. Null if not.';
comment on column pgjet.consumer.place is
    'System identifier of the cluster and oid of the database in which the consumer ran last. A server that was started since may be a copy, beside which the original goes on.';
comment on column pgjet.consumer.placed_at is 'When the consumer ran there first.';
comment on column pgjet.consumer.server_start is 'When the PostgreSQL server had been started in which the consumer ran last.';

create table pgjet.slice (
    consumer   text        not null references pgjet.consumer on delete cascade,
    slice      smallint    not null,
    epoch      bigint      not null,
    process    text,
    since      timestamptz,
    floor      bigint      not null default 0,
    high       bigint      not null default 0,
    stored     timestamptz
        constraint slice_stored check (stored between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'),
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
comment on column pgjet.slice.stored is
    'When the stream stored the message at high. If it has another one there, it lost its end since, and events stand at other places.';

create table pgjet.process (
    consumer text        not null,
    process  text        not null,
    since    timestamptz not null default clock_timestamp(),
    seen_at  timestamptz not null default clock_timestamp(),
    workers  integer     not null,
    types    text[],
    cause    text,
    attempts integer     not null default 0,
    failed   integer     not null default 0,
    took     interval    not null default '0',
    error    text,
    primary key (consumer, process),
    constraint process_types check (array_ndims(types) = 1 and array_position(types, null) is null),
    constraint process_bounds check (
        workers >= 0 and attempts >= 0 and failed between 0 and attempts
        and took between interval '0' and interval '100 years'
        and since between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and seen_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
);

comment on table pgjet.process is
    'Processes that run a consumer. Each writes here every few seconds; one that does not is gone.';
comment on column pgjet.process.types is 'The types of events that this process handles, or patterns of them.';
comment on column pgjet.process.cause is 'Why it handles nothing. Null while it does.';
comment on column pgjet.process.attempts is
    'How many of its last attempts, at most 50, the next columns are about: failed ones, the median time, the last error.';

create table pgjet.inbox (
    consumer   text        not null,
    event_id   uuid        not null,
    state      text        not null constraint inbox_state check (state in ('done', 'intent', 'dead', 'discarded')),
    attempts   integer     not null,
    at         timestamptz not null default clock_timestamp(),
    generation integer     not null default 0,
    stream_seq bigint      not null default 0,
    began      timestamptz,
    primary key (consumer, event_id),
    constraint inbox_bounds check (
        attempts >= 0 and generation >= 0 and stream_seq >= 0
        and at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and (began is null or began between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'))
);

comment on table pgjet.inbox is
    'Every event that a consumer has taken over. A done row commits together with the handler''s effects.';
comment on column pgjet.inbox.state is
    'done; intent: it waits in pgjet.intent for an attempt; dead: in pgjet.dead_letter; discarded: given up for good.';
comment on column pgjet.inbox.began is 'When the attempt began that made it done.';
create index inbox_place on pgjet.inbox using brin (stream_seq, at) with (pages_per_range = 16, autosummarize = on);

-- The token of the subject decides to which slice a row belongs. A header is an object of arrays of strings.
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
    token      smallint    not null
        generated always as (coalesce(('x' || substring(subject from '\.([0-9a-f]{2})\.'))::bit(8)::int & 63, 0)) stored,
    primary key (consumer, event_id),
    constraint intent_bounds check (
        attempts between 0 and 1000000000 and deaths between 0 and 1000000000 and generation >= 0 and stream_seq >= 0
        and since between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and (taken_at is null or taken_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
        and jsonb_typeof(header) in ('object', 'null')
        and not jsonb_path_exists(header, 'strict $.* ? (@.type() <> "array")', '{}', true)
        and not jsonb_path_exists(header, 'strict $.*[*] ? (@.type() <> "string")', '{}', true))
);

comment on table pgjet.intent is
    'Attempts that are recorded before they are made, with the whole message: retries, redriven dead letters, replayed events, effects outside the database, and events of a process that died.';
comment on column pgjet.intent.due_at is
    'When to try. Infinity: an earlier event of its key comes first.';
comment on column pgjet.intent.taken_by is
    'The process that makes an attempt now. It holds a session advisory lock of its name for as long as it lives.';
comment on column pgjet.intent.attempts is 'Attempts begun.';
comment on column pgjet.intent.deaths is 'Attempts whose process died.';
comment on column pgjet.intent.token is 'The token of the subject, 0 to 63: all events of a key share it.';
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
    error    text,
    constraint attempt_bounds check (
        attempt >= 0 and (took is null or took between interval '-100 years' and interval '100 years')
        and began between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
);

comment on table pgjet.attempt is
    'Each attempt: when, for how long, by which process. An event that was done at its first attempt has none: the inbox row says it.';
comment on column pgjet.attempt.took is 'Null if its process died.';
create index attempt_event on pgjet.attempt (consumer, event_id);
create index attempt_began on pgjet.attempt using brin (began);

create table pgjet.dead_letter (
    id            bigint      generated always as identity primary key,
    consumer      text        not null,
    event_id      uuid        not null,
    type          text        not null default '',
    key           text        not null default '',
    stream        text        not null,
    generation    integer     not null default 0,
    stream_seq    bigint      not null,
    subject       text        not null,
    header        jsonb       not null,
    data          bytea       not null,
    error         text        not null,
    error_group   text        not null default '',
    stack         text,
    trace_id      text,
    process       text,
    attempts      integer     not null,
    at            timestamptz not null default clock_timestamp(),
    state         text        not null default 'dead'
        constraint dead_letter_state check (state in ('dead', 'redriven', 'done', 'discarded')),
    changed_at    timestamptz,
    changed_by    text,
    change_reason text,
    token         smallint    not null
        generated always as (coalesce(('x' || substring(subject from '\.([0-9a-f]{2})\.'))::bit(8)::int & 63, 0)) stored,
    constraint dead_letter_event unique (consumer, event_id),
    constraint dead_letter_bounds check (
        attempts between 0 and 1000000000 and generation >= 0 and stream_seq >= 0
        and at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and (changed_at is null or changed_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
        and jsonb_typeof(header) in ('object', 'null')
        and not jsonb_path_exists(header, 'strict $.* ? (@.type() <> "array")', '{}', true)
        and not jsonb_path_exists(header, 'strict $.*[*] ? (@.type() <> "string")', '{}', true))
);

comment on table pgjet.dead_letter is
    'Events that a consumer gave up on, with the whole message. The row commits together with the inbox row.';
comment on column pgjet.dead_letter.error_group is
    'The same for errors that differ in ids, numbers, quoted text, addresses and times only.';
comment on column pgjet.dead_letter.state is
    'dead; redriven: an operator gave it another chance; done: that succeeded; discarded: an operator gave it up for good.';
comment on column pgjet.dead_letter.token is 'The token of the subject, 0 to 63: all events of a key share it.';
create index dead_letter_state on pgjet.dead_letter (consumer, state, key);

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
    tracestate  text        not null default '',
    constraint saga_bounds check (
        attempts between 0 and 1000000000 and waits between 0 and 1000000000 and epoch between 0 and 1000000000000000000
        and due_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and started_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and changed_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and (ended_at is null or ended_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
        and jsonb_typeof(steps) = 'array'
        and not jsonb_path_exists(steps, 'strict $[*] ? (@.type() <> "object")', '{}', true)
        and not jsonb_path_exists(steps, 'lax $[*] ? (@.name.type() <> "string" || @.state.type() <> "string" || @.error.type() <> "string")')
        and not jsonb_path_exists(steps, 'lax $[*] ? (@.attempts.type() <> "number" || @.attempts < 0 || @.attempts > 1000000000)'))
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
    'Grows with every change. A process that knows an older one was overtaken, and can change nothing.';
comment on column pgjet.saga.process is 'The process that runs it now, as host:pid and what distinguishes its claims.';
comment on column pgjet.saga.due_at is 'When it goes on. While a process runs it: when others may take it over.';

create index saga_due on pgjet.saga (name, due_at) where state in ('running', 'undoing');
create index saga_ended on pgjet.saga (name, ended_at) where ended_at is not null;
create index saga_started on pgjet.saga (started_at);

create trigger epoch_jump_in before insert on pgjet.consumer
    for each row when (new.epoch > 1000000000000000) execute function pgjet.refuse_jump('epoch');
create trigger epoch_jump before update of epoch on pgjet.consumer
    for each row when (new.epoch > 1000000000000000 and new.epoch not between old.epoch and old.epoch + 1) execute function pgjet.refuse_jump('epoch');
create trigger generation_jump_in before insert on pgjet.consumer
    for each row when (new.generation > 500000000) execute function pgjet.refuse_jump('generation');
create trigger generation_jump before update of generation on pgjet.consumer
    for each row when (new.generation > 500000000 and new.generation not between old.generation and old.generation + 1) execute function pgjet.refuse_jump('generation');
create trigger epoch_jump_in before insert on pgjet.saga
    for each row when (new.epoch > 1000000000000000) execute function pgjet.refuse_jump('epoch');
create trigger epoch_jump before update of epoch on pgjet.saga
    for each row when (new.epoch > 1000000000000000 and new.epoch not between old.epoch and old.epoch + 1) execute function pgjet.refuse_jump('epoch');

-- +goose Down
drop table pgjet.saga, pgjet.dead_letter, pgjet.attempt, pgjet.intent, pgjet.inbox, pgjet.process, pgjet.slice, pgjet.consumer;
