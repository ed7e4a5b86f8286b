-- +goose NO TRANSACTION
-- +goose Up
-- Values that the API could not show or continue from are refused.
alter table users.users
    drop constraint if exists users_bounds, add constraint users_bounds check (
        created_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and version > 0 and token_generation >= 0
        and case when array_ndims(roles) > 1 then false else array_position(roles, null) is null end) not valid;

alter table users.idempotency
    drop constraint if exists idempotency_bounds, add constraint idempotency_bounds check (
        created_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00') not valid;

-- +goose StatementBegin
create or replace function users.refuse_jump() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception '% of %.% is too large: it counts in steps of one', tg_argv[0], tg_table_schema, tg_table_name using errcode = 'check_violation';
end
$$;
-- +goose StatementEnd

comment on function users.refuse_jump is 'Refuses a value from which a counter could soon not be increased. Internal.';
revoke execute on function users.refuse_jump from public;

create or replace trigger version_jump_in before insert on users.users
    for each row when (new.version > 1000000000) execute function users.refuse_jump('version');
create or replace trigger version_jump before update of version on users.users
    for each row when (new.version > 1000000000 and new.version not between old.version and old.version + 1) execute function users.refuse_jump('version');
create or replace trigger token_generation_jump_in before insert on users.users
    for each row when (new.token_generation > 1000000000) execute function users.refuse_jump('token_generation');
create or replace trigger token_generation_jump before update of token_generation on users.users
    for each row when (new.token_generation > 1000000000 and new.token_generation not between old.token_generation and old.token_generation + 1) execute function users.refuse_jump('token_generation');

-- Old rows that break a bound stay as they are.
-- +goose StatementBegin
do $$
declare
    c record;
begin
    for c in select conrelid::regclass as tab, conname from pg_constraint
              where connamespace = 'users'::regnamespace and contype = 'c' and not convalidated order by 1, 2 loop
        begin
            execute format('alter table %s validate constraint %I', c.tab, c.conname);
        exception when check_violation then
            raise notice '% has rows from before that break %', c.tab, c.conname;
        end;
    end loop;
end
$$;
-- +goose StatementEnd

-- +goose Down
drop trigger if exists token_generation_jump on users.users;
drop trigger if exists token_generation_jump_in on users.users;
drop trigger if exists version_jump on users.users;
drop trigger if exists version_jump_in on users.users;
drop function if exists users.refuse_jump;
alter table users.idempotency drop constraint if exists idempotency_bounds;
alter table users.users drop constraint if exists users_bounds;
