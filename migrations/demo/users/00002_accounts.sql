-- +goose Up
alter table users.users
    add column version integer not null default 1,
    add column state   text    not null default 'pending' constraint users_state check (state in ('pending', 'active', 'rejected')),
    add column reason  text,
    add column roles   text[]  not null default '{}';

comment on column users.users.version is 'Counts the changes; the ETag.';
comment on column users.users.state is
    'pending: signed up; active: everything that belongs to an account is there; rejected: it could not be, see reason.';
comment on column users.users.roles is 'What a token may say of the user beside their id, such as admin.';

-- A rejected user may sign up again.
drop index users.users_email_key;
create unique index users_email_key on users.users (lower(email)) where state <> 'rejected';
create index users_rejected on users.users (lower(email)) where state = 'rejected';

create table users.idempotency (
    key         text        not null constraint idempotency_pkey primary key,
    fingerprint bytea       not null,
    password    text        not null,
    user_id     uuid        not null constraint idempotency_user references users.users on delete cascade,
    answer      json        not null,
    created_at  timestamptz not null default now()
);

comment on table users.idempotency is 'Answers to sign-ups with an Idempotency-Key, for repetitions. Kept for a day.';
comment on column users.idempotency.fingerprint is 'SHA-256 of the request, without the password.';
comment on column users.idempotency.password is 'argon2id hash in PHC form, to recognise the same request by.';
create index idempotency_created_at on users.idempotency (created_at);
create index idempotency_user_id on users.idempotency (user_id);

-- +goose Down
drop table users.idempotency;
drop index users.users_rejected;
drop index users.users_email_key;
create unique index users_email_key on users.users (lower(email));
alter table users.users
    drop constraint users_state,
    drop column version, drop column state, drop column reason, drop column roles;
