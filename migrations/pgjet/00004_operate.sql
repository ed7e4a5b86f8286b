-- +goose Up
alter table pgjet.leader
    add column process       text,
    add column since         timestamptz,
    add column cause         text,
    add column cause_at      timestamptz,
    add column paused_at     timestamptz,
    add column paused_by     text,
    add column pause_reason  text,
    add column heal_snapshot pg_snapshot,
    add column heal_floor    bigint;

comment on column pgjet.leader.process is 'Who took the lead last, as host:pid.';
comment on column pgjet.leader.cause is 'Why that relay does not publish. Null while it does.';
comment on column pgjet.leader.paused_at is 'Since when an operator wants no publishing. Null if not.';
comment on column pgjet.leader.heal_floor is
    'With heal_snapshot the position that the stream had reached before it lost events. Null once they are back.';

alter table pgjet.checkpoint
    add column system_identifier bigint not null default 0,
    add column events            bigint not null default 0,
    add column kept              boolean not null default false;

comment on column pgjet.checkpoint.system_identifier is
    'The database cluster that counts the transactions of snapshot. In another one they mean nothing.';
comment on column pgjet.checkpoint.events is
    'How many events the position covers: all that are in the stream, in quarantine, or pruned.';

comment on column pgjet.checkpoint.kept is
    'One a minute is kept as long as the outbox is; of the others only the newest.';

alter table pgjet.quarantine
    add column state         text not null default 'held'
        constraint quarantine_state check (state in ('held', 'retry', 'dropped')),
    add column changed_at    timestamptz,
    add column changed_by    text,
    add column change_reason text;

comment on column pgjet.quarantine.state is
    'held: set aside. retry: the relay shall try again. dropped: an operator gave it up for good.';

create table pgjet.unknown_message (
    stream         text        not null,
    stream_created timestamptz not null,
    stream_seq     bigint      not null,
    event_id       uuid,
    subject        text        not null,
    at             timestamptz not null default clock_timestamp(),
    primary key (stream, stream_seq)
);

comment on table pgjet.unknown_message is
    'Messages for which the relay halted: the stream holds them and the outbox does not know them. At most 1000 of a stream.';
comment on column pgjet.unknown_message.event_id is 'Null if the message is no event of ours.';

create table pgjet.adoption (
    id             bigint      generated always as identity primary key,
    stream         text        not null,
    stream_created timestamptz not null,
    stream_seq     bigint      not null,
    by             text        not null,
    reason         text        not null,
    at             timestamptz not null default clock_timestamp()
);

comment on table pgjet.adoption is
    'An operator accepts what the stream holds up to stream_seq, known or not.';

create table pgjet.pruned (
    one    boolean     primary key default true constraint pruned_one check (one),
    seq    bigint      not null,
    events bigint      not null,
    at     timestamptz not null default clock_timestamp()
);

comment on table pgjet.pruned is
    'What was pruned from the outbox: the highest seq, and how many events.';
insert into pgjet.pruned (seq, events) values (0, 0);

create table pgjet.operation (
    id     bigint      generated always as identity primary key,
    kind   text        not null,
    target text        not null,
    by     text        not null,
    reason text        not null,
    detail jsonb       not null default '{}',
    at     timestamptz not null default clock_timestamp()
);

comment on table pgjet.operation is
    'Who did what by hand: pause, resume, adopt, quarantine, prune.';

-- +goose Down
drop table pgjet.operation;
drop table pgjet.pruned;
drop table pgjet.adoption;
drop table pgjet.unknown_message;
alter table pgjet.quarantine drop column state, drop column changed_at, drop column changed_by, drop column change_reason;
alter table pgjet.checkpoint drop column system_identifier, drop column events, drop column kept;
alter table pgjet.leader drop column process, drop column since, drop column cause, drop column cause_at,
    drop column paused_at, drop column paused_by, drop column pause_reason, drop column heal_snapshot, drop column heal_floor;
