-- +goose NO TRANSACTION
-- +goose Up
-- Times and days that an answer cannot show are refused.
alter table directory.users
    drop constraint if exists users_bounds, add constraint users_bounds check (
        created_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00') not valid;

alter table directory.signups
    drop constraint if exists signups_bounds, add constraint signups_bounds check (
        users >= 0 and day between '0001-01-01' and '9999-12-31'
        and last_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00') not valid;

-- Old rows that break a bound stay as they are.
-- +goose StatementBegin
do $$
declare
    c record;
begin
    for c in select conrelid::regclass as tab, conname from pg_constraint
              where connamespace = 'directory'::regnamespace and contype = 'c' and not convalidated order by 1, 2 loop
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
alter table directory.signups drop constraint if exists signups_bounds;
alter table directory.users drop constraint if exists users_bounds;
