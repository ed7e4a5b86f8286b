-- +goose Up
-- The identity of this outbox. A stream names the outbox that it has, so that no other one is published there.
create table if not exists pgjet.identity (
    id                uuid        primary key default gen_random_uuid(),
    created_at        timestamptz not null default clock_timestamp(),
    system_identifier bigint      not null,
    database          oid         not null,
    single            boolean     not null default true unique,
    constraint identity_bounds check (
        single and created_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
);

comment on table pgjet.identity is
    'One row: which outbox this is. Whoever copies the database copies it; see pgjet.new_identity.';
comment on column pgjet.identity.id is
    'A stream has it in its metadata, as pgjet.outbox.';
comment on column pgjet.identity.system_identifier is
    'The cluster in which the row was made; with database it tells a copy from its original.';

-- +goose StatementBegin
create or replace function pgjet.new_identity() returns uuid
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    made uuid;
begin
    delete from pgjet.identity;
    insert into pgjet.identity (system_identifier, database)
    select c.system_identifier, d.oid from pg_control_system() c, pg_database d where d.datname = current_database()
    returning id into made;
    return made;
end
$$;
-- +goose StatementEnd

comment on function pgjet.new_identity is
    'Makes this an outbox of its own, for a copy of a database that is used beside the original. It then needs a stream of its own.';
revoke execute on function pgjet.new_identity from public;
select pgjet.new_identity() where not exists (select from pgjet.identity);

-- It is no secret, and every role needs it.
grant select on pgjet.identity to public;

-- The place where a relay led last: a server that was started since may be a copy, beside which the original goes on.
alter table pgjet.leader
    add column if not exists place text,
    add column if not exists placed_at timestamptz,
    add column if not exists server_start timestamptz,
    drop constraint if exists leader_place, add constraint leader_place check (
        (place is null or length(place) <= 100) and (place is null) = (placed_at is null)
        and (placed_at is null or placed_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
        and (server_start is null or server_start between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'));

comment on column pgjet.leader.place is
    'System identifier of the cluster and oid of the database in which a relay led last.';
comment on column pgjet.leader.placed_at is
    'When a relay led there first.';
comment on column pgjet.leader.server_start is
    'When the PostgreSQL server had been started in which a relay led last.';

-- A stream that is another outbox's, and to which nothing was published, holds nothing back. The rest of
-- the function stays as it is.
-- +goose StatementBegin
do $$
declare
    before constant text := pg_get_functiondef('pgjet.drop_outbox_partition(text, pg_snapshot, bigint)'::regprocedure);
    after  constant text := replace(before, 'not like ''stream\_missing:%''', '!~ ''^(stream_missing|foreign_outbox):''');
begin
    if position('(stream_missing|foreign_outbox)' in after) = 0 then
        raise exception 'pgjet.drop_outbox_partition() is not the function that the migrations made';
    end if;
    execute after;
end
$$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
do $$
begin
    execute replace(pg_get_functiondef('pgjet.drop_outbox_partition(text, pg_snapshot, bigint)'::regprocedure),
        '!~ ''^(stream_missing|foreign_outbox):''', 'not like ''stream\_missing:%''');
end
$$;
-- +goose StatementEnd
alter table pgjet.leader drop constraint leader_place, drop column server_start, drop column placed_at, drop column place;
drop function pgjet.new_identity;
drop table pgjet.identity;
