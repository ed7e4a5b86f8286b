-- What the roles of compose.yaml may do in the schema of the user service. It runs as owner
-- after the migrations, which grant what is needed in pgjet's own schemas.
grant usage on schema users to users, onboarding, operator;
grant select, insert, update, delete on all tables in schema users to users;
revoke all on users.schema_version from users;
grant insert (kind, target, by, reason, detail) on pgjet.operation to users; -- what admins do

-- docs/cli.md: the onboarding decides on users, an operator makes admins of them.
grant select (id, email, name, state, version), update (state, reason, version) on users.users to onboarding;
grant select (id, email, state, roles, version), update (roles, version) on users.users to operator;
