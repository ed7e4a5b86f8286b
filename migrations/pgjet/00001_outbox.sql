-- +goose Up
create table pgjet.outbox (
    xid         xid8        not null default pg_current_xact_id(),
    seq         bigint      generated always as identity,
    id          uuid        not null,
    type        text        not null,
    key         text        not null,
    traceparent text,
    header      jsonb,
    data        json        not null,
    time        timestamptz not null default clock_timestamp(),
    primary key (seq)
) partition by range (seq);

comment on table pgjet.outbox is
    'Events appended by services, in the transaction of the change they announce. Append-only.';
comment on column pgjet.outbox.xid is
    'The writing transaction. It stands before seq: whoever has a seq has an xid.';

-- Finds the late commits of transactions that were running when the relay last looked.
create index outbox_xid on pgjet.outbox (xid, seq);

-- An insert never fails because a partition is missing.
create table pgjet.outbox_default partition of pgjet.outbox default;

-- +goose Down
drop table pgjet.outbox;
