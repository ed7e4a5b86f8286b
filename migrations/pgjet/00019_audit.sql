-- +goose Up
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

alter table pgjet.quarantine
    add column stream    text,
    add column operation bigint;
comment on column pgjet.quarantine.operation is
    'The operation for which the relay of the stream publishes the event again, which that stream lacks. Null: it is in quarantine.';

alter table pgjet.operation
    add column state      text constraint operation_state check (state in ('planned', 'running', 'done', 'failed', 'cancelled')),
    add column done       bigint,
    add column total      bigint,
    add column changed_at timestamptz constraint operation_changed check (changed_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00');
comment on column pgjet.operation.state is 'Null: it was done when it was noted.';
comment on column pgjet.operation.done is 'How many of total events are done.';
comment on column pgjet.operation.changed_at is 'When state or done was last noted. A command that runs does so every few seconds.';

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

-- The rest of the function stays as it is. A relay reads which events an operator had published later than others.
-- +goose StatementBegin
do $$
declare
    before constant text := pg_get_functiondef('pgjet.grant_roles()'::regprocedure);
    after  text := before;
    more   record;
begin
    for more in
        select * from (values
            ('grant select (due) on pgjet.scheduled to pgjet_relay;',
                'grant select, insert, update, delete on pgjet.audit to pgjet_relay; grant select (kind, target, at, detail, state) on pgjet.operation to pgjet_relay;'),
            ('grant update (detail) on pgjet.operation to pgjet_operator;',
                'grant update (state, done, total, changed_at) on pgjet.operation to pgjet_operator; grant execute on function pgjet.republish, pgjet.end_republish to pgjet_operator;')
        ) as m (behind, grants)
    loop
        if position(more.behind in after) = 0 then
            raise exception 'pgjet.grant_roles() is not the function that the migrations made';
        end if;
        after := replace(after, more.behind, more.behind || E'\n            ' || more.grants);
    end loop;
    execute after;
end
$$;
-- +goose StatementEnd

select pgjet.grant_roles();

-- +goose Down
-- +goose StatementBegin
do $$
declare
    before constant text := pg_get_functiondef('pgjet.grant_roles()'::regprocedure);
begin
    if exists (select from pgjet.quarantine where operation is not null) then
        raise exception 'there are events that are to be published again; wait, or cancel that';
    end if;
    execute regexp_replace(before, '\n *grant [^\n]*(pgjet.audit to|, changed_at\) on pgjet.operation to)[^\n]*', '', 'g');
end
$$;
-- +goose StatementEnd
drop function pgjet.end_republish;
drop function pgjet.republish;
alter table pgjet.operation drop column state, drop column done, drop column total, drop column changed_at;
alter table pgjet.quarantine drop column stream, drop column operation;
drop table pgjet.audit;
