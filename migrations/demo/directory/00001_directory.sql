-- +goose Up
create table directory.users (
    id         uuid             not null constraint users_pkey primary key,
    email      text             not null,
    name       text             not null,
    created_at timestamptz      not null,
    name_key   text collate "C" not null,
    email_key  text collate "C" not null,
    constraint users_bounds check (created_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
);

comment on table directory.users is
    'People who signed up, according to the events. A replay rebuilds it.';
comment on column directory.users.name_key is
    'The name in lower case and NFC, whatever the locale of the database. So is email_key.';

-- In collation C, one index finds prefixes and lists in order.
create index users_name on directory.users (name_key, id);
create index users_email on directory.users (email_key);

create table directory.signups (
    day     date        not null constraint signups_pkey primary key,
    users   bigint      not null,
    last_at timestamptz not null,
    constraint signups_bounds check (
        users >= 0 and day between '0001-01-01' and '9999-12-31'
        and last_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
);

comment on table directory.signups is 'How many people signed up on a day (UTC), and when the last of them did.';

create table directory.deleted (
    id      uuid    not null constraint deleted_pkey primary key,
    counted boolean not null
);

comment on table directory.deleted is
    'Users who were deleted: an id and nothing else, so that no late event brings them back.';
comment on column directory.deleted.counted is 'Whether signups counts their sign-up.';

-- +goose StatementBegin
create function directory.grant_roles() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    if to_regrole('pgjet_consumer') is null then
        raise notice 'role pgjet_consumer is missing: once it is there, run "select directory.grant_roles()" as %', current_user;
        return;
    end if;
    grant usage on schema directory to pgjet_consumer;
    grant select, insert, update, delete on directory.users, directory.signups, directory.deleted to pgjet_consumer;
end
$$;
-- +goose StatementEnd

comment on function directory.grant_roles is
    'Gives pgjet_consumer, if that role exists, what it needs here. May be repeated.';
revoke execute on function directory.grant_roles from public;

select directory.grant_roles();

-- +goose Down
-- +goose StatementBegin
do $$
begin
    if to_regrole('pgjet_consumer') is not null then
        revoke all on schema directory from pgjet_consumer;
    end if;
end
$$;
-- +goose StatementEnd
drop function directory.grant_roles;
drop table directory.users, directory.signups, directory.deleted;
