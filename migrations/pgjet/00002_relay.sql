-- +goose Up
create table pgjet.leader (
    stream text   primary key,
    epoch  bigint not null
);

comment on table pgjet.leader is
    'How often a relay took the lead of a stream. Checkpoints of an older epoch are refused.';

create table pgjet.checkpoint (
    id             bigint      generated always as identity primary key,
    stream         text        not null,
    stream_created timestamptz not null,
    stream_seq     bigint      not null,
    event_id       uuid,
    snapshot       pg_snapshot not null,
    floor          bigint      not null,
    epoch          bigint      not null,
    at             timestamptz not null default clock_timestamp()
);

comment on table pgjet.checkpoint is
    'Proven pairs: every event visible in snapshot is in the stream at or before stream_seq.';
comment on column pgjet.checkpoint.event_id is
    'The event that the stream holds at stream_seq. Null while the stream is empty.';
comment on column pgjet.checkpoint.floor is
    'The last seq given out before snapshot was taken.';

create table pgjet.quarantine (
    seq      bigint      primary key,
    event_id uuid        not null,
    reason   text        not null,
    at       timestamptz not null default clock_timestamp()
);

comment on table pgjet.quarantine is
    'Outbox events that no stream takes, set aside so that the others flow.';

-- +goose Down
drop table pgjet.quarantine;
drop table pgjet.checkpoint;
drop table pgjet.leader;
