-- +goose Up
create table directory.users (
    id         uuid        not null constraint users_pkey primary key,
    email      text        not null,
    name       text        not null,
    created_at timestamptz not null,
    name_key   text        not null,
    email_key  text        not null
);

comment on table directory.users is
    'People who signed up, as events told. A replay rebuilds it.';
comment on column directory.users.name_key is
    'The name in lower case, whatever the locale of the database. So is email_key.';
create index users_name on directory.users (name_key text_pattern_ops, id);
create index users_email on directory.users (email_key text_pattern_ops);

create table directory.signups (
    day   date   not null constraint signups_pkey primary key,
    users bigint not null
);

comment on table directory.signups is 'How many people signed up on a day (UTC).';

-- +goose StatementBegin
do $$
begin
    if to_regrole('pgjet_consumer') is not null then
        grant usage on schema directory to pgjet_consumer;
        grant select, insert, update, delete on directory.users, directory.signups to pgjet_consumer;
    end if;
end
$$;
-- +goose StatementEnd

-- +goose Down
drop table directory.users, directory.signups;
