-- +goose Up
create table users.users (
    id               uuid        not null constraint users_pkey primary key,
    email            text        not null,
    name             text        not null,
    password         text        not null,
    created_at       timestamptz not null default now(),
    version          integer     not null default 1,
    state            text        not null default 'pending' constraint users_state check (state in ('pending', 'active', 'rejected')),
    reason           text,
    roles            text[]      not null default '{}',
    token_generation integer     not null default 0,
    constraint users_bounds check (
        created_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and version > 0 and token_generation >= 0
        and case when array_ndims(roles) > 1 then false else array_position(roles, null) is null end)
);

comment on table users.users is 'People who signed up.';
comment on column users.users.password is 'argon2id hash in PHC form.';
comment on column users.users.version is 'Counts the changes; the ETag.';
comment on column users.users.state is
    'pending: signed up; active: everything that belongs to an account is there; rejected: it could not be, see reason.';
comment on column users.users.roles is 'What a token may say of the user beside their id, such as admin.';
comment on column users.users.token_generation is
    'Counts changes of the password. A token holds the count of its log-in; the user service refuses it under any other.';

-- One account for an address, whatever the case of its letters. A rejected user may sign up again.
create unique index users_email_key on users.users (lower(email)) where state <> 'rejected';
create index users_rejected on users.users (lower(email)) where state = 'rejected';

create table users.idempotency (
    key         text        not null constraint idempotency_pkey primary key,
    fingerprint bytea       not null,
    password    text        not null,
    user_id     uuid        not null constraint idempotency_user references users.users on delete cascade,
    created_at  timestamptz not null default now(),
    constraint idempotency_bounds check (created_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
);

comment on table users.idempotency is 'Answers to sign-ups with an Idempotency-Key, for repetitions. Kept for a day.';
comment on column users.idempotency.fingerprint is 'SHA-256 of the request, without the password.';
comment on column users.idempotency.password is 'argon2id hash in PHC form, to recognise the same request by.';
create index idempotency_created_at on users.idempotency (created_at);
create index idempotency_user_id on users.idempotency (user_id);

-- +goose StatementBegin
create function users.refuse_jump() returns trigger
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

create trigger version_jump_in before insert on users.users
    for each row when (new.version > 1000000000) execute function users.refuse_jump('version');
create trigger version_jump before update of version on users.users
    for each row when (new.version > 1000000000 and new.version not between old.version and old.version + 1) execute function users.refuse_jump('version');
create trigger token_generation_jump_in before insert on users.users
    for each row when (new.token_generation > 1000000000) execute function users.refuse_jump('token_generation');
create trigger token_generation_jump before update of token_generation on users.users
    for each row when (new.token_generation > 1000000000 and new.token_generation not between old.token_generation and old.token_generation + 1) execute function users.refuse_jump('token_generation');

-- +goose Down
drop table users.idempotency, users.users;
drop function users.refuse_jump;
