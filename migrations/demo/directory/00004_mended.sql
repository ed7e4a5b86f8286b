-- +goose Up
-- Rows that are older than the bounds broke every later change of them. They keep their meaning.
update directory.users
   set created_at = least(greatest(created_at, '0001-01-01 00:00:00+00'), '9999-12-31 23:59:59.999999+00')
 where created_at not between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00';

update directory.signups
   set users = greatest(users, 0),
       last_at = least(greatest(last_at, '0001-01-01 00:00:00+00'), '9999-12-31 23:59:59.999999+00')
 where day between '0001-01-01' and '9999-12-31'
   and (users < 0 or last_at not between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00');

-- A day that no answer can show is counted as the nearest one that it can.
with old as (
    delete from directory.signups where day not between '0001-01-01' and '9999-12-31' returning *
)
insert into directory.signups as s (day, users, last_at)
select least(greatest(day, '0001-01-01'), '9999-12-31') as shown, sum(greatest(users, 0)),
       max(least(greatest(last_at, '0001-01-01 00:00:00+00'), '9999-12-31 23:59:59.999999+00'))
  from old group by shown
on conflict (day) do update set users = s.users + excluded.users, last_at = greatest(s.last_at, excluded.last_at);

alter table directory.users validate constraint users_bounds;
alter table directory.signups validate constraint signups_bounds;

-- +goose Down
