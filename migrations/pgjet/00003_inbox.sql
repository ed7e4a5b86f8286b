-- +goose Up
create table pgjet.inbox (
    consumer text        not null,
    event_id uuid        not null,
    state    text        not null constraint inbox_state check (state in ('done', 'dead')),
    attempts integer     not null,
    at       timestamptz not null default clock_timestamp(),
    primary key (consumer, event_id)
);

comment on table pgjet.inbox is
    'What a consumer has handled. The row commits together with the handler''s effects.';

create table pgjet.dead_letter (
    consumer   text        not null,
    event_id   uuid        not null,
    stream     text        not null,
    stream_seq bigint      not null,
    subject    text        not null,
    header     jsonb       not null,
    data       bytea       not null,
    error      text        not null,
    attempts   integer     not null,
    at         timestamptz not null default clock_timestamp(),
    primary key (consumer, event_id)
);

comment on table pgjet.dead_letter is
    'Events that a consumer gave up on, with the whole message. The row commits together with the inbox row.';

-- +goose Down
drop table pgjet.dead_letter;
drop table pgjet.inbox;
