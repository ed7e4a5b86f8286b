-- +goose Up
create table directory.deleted (
    id      uuid    not null constraint deleted_pkey primary key,
    counted boolean not null
);

comment on table directory.deleted is
    'Who was deleted: an id and nothing else, so that no late event brings them back.';
comment on column directory.deleted.counted is 'Whether signups counts their sign-up.';

-- +goose StatementBegin
create or replace function directory.grant_roles() returns void
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

select directory.grant_roles();

-- +goose Down
-- +goose StatementBegin
create or replace function directory.grant_roles() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    if to_regrole('pgjet_consumer') is null then
        raise notice 'role pgjet_consumer is missing: once it is there, run "select directory.grant_roles()" as %', current_user;
        return;
    end if;
    grant usage on schema directory to pgjet_consumer;
    grant select, insert, update, delete on directory.users, directory.signups to pgjet_consumer;
end
$$;
-- +goose StatementEnd
drop table directory.deleted;
