-- +goose Up
create table pgjet.leader (
    stream        text   primary key,
    epoch         bigint not null,
    process       text,
    since         timestamptz,
    cause         text,
    cause_at      timestamptz,
    paused_at     timestamptz,
    paused_by     text,
    pause_reason  text,
    heal_snapshot pg_snapshot,
    heal_floor    bigint,
    place         text,
    placed_at     timestamptz,
    server_start  timestamptz,
    constraint leader_bounds check (
        epoch between 0 and 1000000000000000000
        and (since is null or since between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
        and (cause_at is null or cause_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
        and (paused_at is null or paused_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
        and (heal_snapshot is null) = (heal_floor is null)),
    constraint leader_place check (
        (place is null or length(place) <= 100) and (place is null) = (placed_at is null)
        and (placed_at is null or placed_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
        and (server_start is null or server_start between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'))
);

comment on table pgjet.leader is
    'How often a relay took the lead of a stream. Checkpoints of an older epoch are refused.';
comment on column pgjet.leader.process is 'The relay that took the lead last, as host:pid.';
comment on column pgjet.leader.cause is 'Why that relay does not publish. Null while it does.';
comment on column pgjet.leader.paused_at is 'Since when an operator wants no publishing. Null if not.';
comment on column pgjet.leader.heal_floor is
    'With heal_snapshot the position that the stream had reached before it lost events. Null once they are back.';
comment on column pgjet.leader.place is
    'System identifier of the cluster and oid of the database in which a relay led last. A server that was started since may be a copy, beside which the original goes on.';
comment on column pgjet.leader.placed_at is 'When a relay led there first.';
comment on column pgjet.leader.server_start is 'When the PostgreSQL server had been started in which a relay led last.';

create table pgjet.checkpoint (
    id                bigint      generated always as identity primary key,
    stream            text        not null,
    stream_created    timestamptz not null,
    stream_seq        bigint      not null,
    event_id          uuid,
    snapshot          pg_snapshot not null,
    floor             bigint      not null,
    epoch             bigint      not null,
    at                timestamptz not null default clock_timestamp(),
    system_identifier bigint      not null default 0,
    events            bigint      not null default 0,
    kept              boolean     not null default false,
    constraint checkpoint_bounds check (
        stream_seq >= 0 and floor >= 0 and events >= 0
        and stream_created between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
);

comment on table pgjet.checkpoint is
    'Proven pairs: every event visible in snapshot is in the stream at or before stream_seq.';
comment on column pgjet.checkpoint.event_id is
    'The event that the stream holds at stream_seq. Null while the stream is empty.';
comment on column pgjet.checkpoint.floor is 'The last seq given out before snapshot was taken.';
comment on column pgjet.checkpoint.system_identifier is
    'The database cluster that counts the transactions of snapshot. In another one they mean nothing.';
comment on column pgjet.checkpoint.events is
    'How many events the position covers: all that are in the stream, in quarantine, or pruned.';
comment on column pgjet.checkpoint.kept is
    'One a minute is kept as long as the outbox is; of the others only the newest.';

create table pgjet.quarantine (
    seq           bigint      primary key,
    event_id      uuid        not null,
    reason        text        not null,
    at            timestamptz not null default clock_timestamp(),
    state         text        not null default 'held'
        constraint quarantine_state check (state in ('held', 'retry', 'dropped')),
    changed_at    timestamptz,
    changed_by    text,
    change_reason text,
    stream        text,
    operation     bigint,
    constraint quarantine_bounds check (
        at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and (changed_at is null or changed_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'))
);

comment on table pgjet.quarantine is
    'Outbox events that no stream takes, set aside so that the others flow.';
comment on column pgjet.quarantine.state is
    'held: set aside. retry: the relay shall try again. dropped: an operator gave it up for good.';
comment on column pgjet.quarantine.operation is
    'The operation for which the relay of the stream publishes the event again, which that stream lacks. Null: it is in quarantine.';

create table pgjet.unknown_message (
    stream         text        not null,
    stream_created timestamptz not null,
    stream_seq     bigint      not null,
    event_id       uuid,
    subject        text        not null,
    at             timestamptz not null default clock_timestamp(),
    primary key (stream, stream_seq),
    constraint unknown_message_bounds check (
        stream_seq >= 0
        and stream_created between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
);

comment on table pgjet.unknown_message is
    'Messages for which the relay halted: the stream holds them and the outbox does not know them. At most 1000 of a stream.';
comment on column pgjet.unknown_message.event_id is 'Null if the message is no event of this outbox.';

create table pgjet.adoption (
    id             bigint      generated always as identity primary key,
    stream         text        not null,
    stream_created timestamptz not null,
    stream_seq     bigint      not null,
    by             text        not null,
    reason         text        not null,
    at             timestamptz not null default clock_timestamp(),
    constraint adoption_bounds check (
        stream_seq >= 0
        and stream_created between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
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
    id         bigint      generated always as identity primary key,
    kind       text        not null,
    target     text        not null,
    by         text        not null,
    reason     text        not null,
    detail     jsonb       not null default '{}',
    at         timestamptz not null default clock_timestamp(),
    state      text        constraint operation_state check (state in ('planned', 'running', 'done', 'failed', 'cancelled')),
    done       bigint,
    total      bigint,
    changed_at timestamptz constraint operation_changed check (changed_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'),
    constraint operation_bounds check (
        at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
);

comment on table pgjet.operation is
    'What was done by hand, by which person and why: pause, resume, adopt, redrive, replay, prune and others.';
comment on column pgjet.operation.state is 'Null: it was done when it was recorded.';
comment on column pgjet.operation.done is 'How many of total events are done.';
comment on column pgjet.operation.changed_at is 'When state or done was last recorded. A command that runs does so every few seconds.';

create table pgjet.audit (
    id                bigint      generated always as identity primary key,
    stream            text        not null,
    stream_created    timestamptz not null,
    system_identifier bigint      not null,
    stream_seq        bigint      not null,
    event_id          uuid,
    snapshot          pg_snapshot not null,
    floor             bigint      not null,
    events            bigint      not null,
    compared          bigint      not null,
    missing           bigint      not null,
    extra             bigint      not null,
    twice             bigint      not null,
    out_of_order      bigint      not null,
    changed           bigint      not null,
    differences       jsonb       not null default '[]',
    began_at          timestamptz not null default clock_timestamp(),
    ended_at          timestamptz,
    constraint audit_bounds check (
        stream_seq >= 0 and floor >= 0 and events >= 0
        and compared >= 0 and missing >= 0 and extra >= 0 and twice >= 0 and out_of_order >= 0 and changed >= 0
        and stream_created between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and began_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and (ended_at is null or ended_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'))
);

comment on table pgjet.audit is
    'Passes in which the leading relay of a stream compares it with the outbox, in the background. The last ones are kept.';
comment on column pgjet.audit.stream_seq is
    'With event_id, snapshot, floor and events the place up to which both were compared: what a checkpoint said there.';
comment on column pgjet.audit.differences is 'The first ones, without payload or key.';
comment on column pgjet.audit.ended_at is 'Null: the pass is under way.';
create index audit_stream on pgjet.audit (stream, id);

-- Only events that are published, by the newest checkpoint of a relay that still leads, are published again. So this cannot hold an
-- event back: no relay reads such an event any more, and a relay that takes the lead later finds it here.

-- +goose StatementBegin
create function pgjet.republish(of_operation bigint, of_stream text, of_epoch bigint, seqs bigint[]) returns setof bigint
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '5s'
as $$
begin
    perform from pgjet.leader l where l.stream = of_stream and l.epoch = of_epoch for share;
    if not found then
        raise exception 'another relay took the lead of stream % since this was planned', of_stream using errcode = 'PJ002';
    end if;
    return query
    insert into pgjet.quarantine (seq, event_id, reason, state, changed_at, changed_by, change_reason, stream, operation)
    select o.seq, o.id, 'the stream lacks it', 'retry', clock_timestamp(), p.by, p.reason, of_stream, p.id
      from pgjet.operation p, pgjet.outbox o, lateral (
           select c.snapshot, c.floor from pgjet.checkpoint c
            where c.stream = of_stream and c.system_identifier = (select system_identifier from pg_control_system())
            order by c.id desc limit 1) c
     where p.id = of_operation and p.kind = 'republish' and o.seq = any (seqs)
       and o.seq <= c.floor and pg_visible_in_snapshot(pgjet.outbox_xid(o.xid, o.xmin), c.snapshot)
    on conflict (seq) do nothing
    returning seq;
end
$$;
-- +goose StatementEnd

comment on function pgjet.republish is
    'Has the relay of a stream publish events again that the stream lacks, for an operation: of these seqs those that its newest checkpoint covers. Fails with PJ002 if it is not the relay of that epoch that leads. Returns the seqs of those.';

create function pgjet.end_republish(of_operation bigint) returns setof bigint
    language sql security definer
    set search_path = pg_catalog, pg_temp
as 'delete from pgjet.quarantine where operation = of_operation and state = ''retry'' returning seq';

comment on function pgjet.end_republish is 'Ends an operation that publishes events again: what waits is not published. Returns the seqs of those.';
revoke execute on function pgjet.republish, pgjet.end_republish from public;

-- Each session of a relay increases a counter. No role may set it so high that the next steps are refused.

-- +goose StatementBegin
create function pgjet.refuse_jump() returns trigger
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

create trigger epoch_jump_in before insert on pgjet.leader
    for each row when (new.epoch > 1000000000000000) execute function pgjet.refuse_jump('epoch');
create trigger epoch_jump before update of epoch on pgjet.leader
    for each row when (new.epoch > 1000000000000000 and new.epoch not between old.epoch and old.epoch + 1) execute function pgjet.refuse_jump('epoch');

-- +goose Down
drop function pgjet.end_republish, pgjet.republish;
drop table pgjet.audit, pgjet.operation, pgjet.pruned, pgjet.adoption, pgjet.unknown_message, pgjet.quarantine, pgjet.checkpoint, pgjet.leader;
drop function pgjet.refuse_jump;
