-- +goose Up
create table users.users (
    id         uuid        not null constraint users_pkey primary key,
    email      text        not null,
    name       text        not null,
    password   text        not null,
    created_at timestamptz not null default now()
);

comment on table users.users is 'People who signed up.';
comment on column users.users.password is 'argon2id hash in PHC form.';

-- One account for an address, whatever the case of its letters.
create unique index users_email_key on users.users (lower(email));

-- +goose Down
drop table users.users;
