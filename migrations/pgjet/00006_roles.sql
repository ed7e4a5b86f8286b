-- +goose Up
-- Four roles without login; grant them to the roles that services log in with. Roles
-- belong to the whole cluster: another database may have made them, or be about to.

-- +goose StatementBegin
do $$
declare
    wanted text;
begin
    foreach wanted in array array['pgjet_writer', 'pgjet_relay', 'pgjet_consumer', 'pgjet_operator'] loop
        begin
            if not exists (select from pg_roles where rolname = wanted) then
                execute format('create role %I nologin', wanted);
            end if;
        exception
            when duplicate_object or unique_violation then
                null;
            when insufficient_privilege then
                raise notice 'no right to create role %: have it created, and repeat the grants of this migration', wanted;
        end;
    end loop;
end
$$;
-- +goose StatementEnd

-- +goose StatementBegin
do $$
declare
    g record;
begin
    for g in select * from (values
        ('pgjet_writer',   'usage on schema pgjet'),
        ('pgjet_writer',   'insert (id, type, key, traceparent, header, data, time) on pgjet.outbox'),

        ('pgjet_relay',    'usage on schema pgjet'),
        ('pgjet_relay',    'select on pgjet.outbox, pgjet.outbox_partition, pgjet.adoption, pgjet.pruned'),
        ('pgjet_relay',    'select, insert, update on pgjet.leader'),
        ('pgjet_relay',    'select, insert, delete on pgjet.checkpoint'),
        ('pgjet_relay',    'select, insert, update, delete on pgjet.quarantine, pgjet.unknown_message'),
        ('pgjet_relay',    'execute on function pgjet.outbox_stray(), pgjet.turn_outbox_default(),'
                           ' pgjet.add_outbox_partition(bigint, bigint), pgjet.drop_outbox_partition(text, pg_snapshot, bigint)'),

        ('pgjet_consumer', 'usage on schema pgjet'),
        ('pgjet_consumer', 'select, insert, update, delete on pgjet.inbox, pgjet.dead_letter'),

        ('pgjet_operator', 'usage on schema pgjet'),
        ('pgjet_operator', 'select on all tables in schema pgjet'),
        ('pgjet_operator', 'insert, update (paused_at, paused_by, pause_reason) on pgjet.leader'),
        ('pgjet_operator', 'insert on pgjet.adoption, pgjet.operation'),
        ('pgjet_operator', 'delete on pgjet.unknown_message'),
        ('pgjet_operator', 'delete on pgjet.unknown_message'),
        ('pgjet_operator', 'update (state, changed_at, changed_by, change_reason) on pgjet.quarantine'),
        ('pgjet_operator', 'execute on function pgjet.outbox_stray(), pgjet.turn_outbox_default(),'
                           ' pgjet.add_outbox_partition(bigint, bigint), pgjet.drop_outbox_partition(text, pg_snapshot, bigint)')
        ) as v (role, what) where exists (select from pg_roles where rolname = v.role)
    loop
        execute format('grant %s to %I', g.what, g.role);
    end loop;
end
$$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
do $$
declare
    wanted text;
begin
    -- The roles stay: other databases may use them.
    for wanted in select rolname from pg_roles where rolname in ('pgjet_writer', 'pgjet_relay', 'pgjet_consumer', 'pgjet_operator') loop
        execute format('revoke all on all tables in schema pgjet from %I', wanted);
        execute format('revoke all on all functions in schema pgjet from %I', wanted);
        execute format('revoke all on schema pgjet from %I', wanted);
    end loop;
end
$$;
-- +goose StatementEnd
