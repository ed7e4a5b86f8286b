-- +goose Up
alter table users.users add column token_generation integer not null default 0;

comment on column users.users.token_generation is
    'Counts changes of the password. A token holds the count of its log-in; the user service refuses it under any other.';

-- +goose Down
alter table users.users drop column token_generation;
