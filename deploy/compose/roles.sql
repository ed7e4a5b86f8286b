-- The database and the roles of compose.yaml. It runs as superuser before the migrations, at
-- each start; what exists stays. The passwords are examples: nothing outside the
-- composition reaches PostgreSQL.

-- The group roles, to which pgjet's migrations grant their rights. Creating them takes more
-- than the owner of one database may do.
select format('create role %I nologin', name)
  from unnest(array['pgjet_writer', 'pgjet_relay', 'pgjet_consumer', 'pgjet_operator']) name
 where to_regrole(name) is null
\gexec

-- The owner of the database, who migrates, and a role for each service.
select format('create role %I login password %L', name, name)
  from unnest(array['owner', 'users', 'relay', 'mailer', 'directory', 'onboarding', 'operator']) name
 where to_regrole(name) is null
\gexec

grant pgjet_writer to users, onboarding;
grant pgjet_relay to relay;
grant pgjet_consumer to mailer, directory, onboarding;
grant pgjet_operator to operator;

select 'create database pgjet owner owner'
 where not exists (select from pg_database where datname = 'pgjet')
\gexec
revoke connect, temporary on database pgjet from public;
grant connect on database pgjet to users, relay, mailer, directory, onboarding, operator;
