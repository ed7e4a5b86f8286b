-- +goose Up
-- Rows that are older than the bounds broke every later change of them. They keep their meaning.
update users.users set
    roles = array(select r from unnest(roles) r where r is not null),
    created_at = least(greatest(created_at, '0001-01-01 00:00:00+00'), '9999-12-31 23:59:59.999999+00'),
    version = least(greatest(version, 1), 1000000000),
    -- No token holds this count: whoever has one logs in again.
    token_generation = case when token_generation between 0 and 1000000000 then token_generation else 1000000000 end
where created_at not between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
   or version not between 1 and 1000000000
   or token_generation not between 0 and 1000000000
   or array_ndims(roles) > 1
   or case when array_ndims(roles) = 1 then array_position(roles, null) is not null end;

-- Answers that would be kept for ever are kept for another day.
update users.idempotency set created_at = now()
 where created_at not between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00';

alter table users.users validate constraint users_bounds;
alter table users.idempotency validate constraint idempotency_bounds;

comment on column users.idempotency.answer is 'The answer, for processes of an older version. It is not read any more.';

-- +goose Down
comment on column users.idempotency.answer is null;
