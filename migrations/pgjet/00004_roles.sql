-- +goose Up
-- Roles belong to the whole cluster: they may exist already, other databases may make
-- them at the same time, and the migrating role may not be allowed to make them.

-- +goose StatementBegin
create function pgjet.grant_roles() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    role text;
begin
    foreach role in array '{pgjet_writer,pgjet_relay,pgjet_consumer,pgjet_operator}'::text[] loop
        if to_regrole(role) is null then
            begin
                execute format('create role %I nologin', role);
            exception
                when duplicate_object or unique_violation then
                    null;
                when insufficient_privilege then
                    raise notice 'role % is missing, and % may not create it: as a superuser run "create role % nologin", then "select pgjet.grant_roles()" as %',
                        role, current_user, role, current_user;
                    continue;
            end;
        end if;
        execute format('grant usage on schema pgjet to %I', role);
        case role
        when 'pgjet_writer' then
            -- Neither xid nor seq: a wrong one would lose events.
            grant insert (id, type, key, traceparent, header, data, time, content_type, body) on pgjet.outbox to pgjet_writer;
            grant insert (id, due, type, key, traceparent, header, data, time, content_type, body), select (id), delete on pgjet.scheduled to pgjet_writer;
        when 'pgjet_relay' then
            grant select on pgjet.outbox, pgjet.outbox_partition, pgjet.outbox_seq_seq, pgjet.adoption, pgjet.pruned to pgjet_relay;
            grant select, insert, update on pgjet.leader to pgjet_relay;
            grant select, insert, delete on pgjet.checkpoint to pgjet_relay;
            grant select, insert, update, delete on pgjet.quarantine, pgjet.unknown_message to pgjet_relay;
            grant execute on function pgjet.outbox_default_used, pgjet.add_outbox_partition,
                pgjet.empty_outbox_default, pgjet.drop_outbox_partition to pgjet_relay;
            grant select (due) on pgjet.scheduled to pgjet_relay;
            grant select, insert, update, delete on pgjet.audit to pgjet_relay;
            grant select (kind, target, at, detail, state) on pgjet.operation to pgjet_relay;
            grant execute on function pgjet.move_due to pgjet_relay;
        when 'pgjet_consumer' then
            -- It may neither pause nor resume. It prunes dead letters that were dealt with.
            grant select, insert (name, stream, stream_created, ordered, effects, slices, prefix, types, place, placed_at, server_start),
                update (stream, stream_created, generation, epoch, slices, ordered, effects, rebuild, prefix, types, place, placed_at, server_start)
                on pgjet.consumer to pgjet_consumer;
            grant select, insert, update, delete on pgjet.slice to pgjet_consumer;
            grant select, insert, update, delete on pgjet.process, pgjet.inbox, pgjet.intent to pgjet_consumer;
            grant select, insert, update, delete on pgjet.dead_letter to pgjet_consumer;
            grant select, insert, delete on pgjet.attempt to pgjet_consumer;
            grant select, insert, update, delete on pgjet.saga to pgjet_consumer;
        when 'pgjet_operator' then
            grant select on all tables in schema pgjet to pgjet_operator;
            grant select on pgjet.outbox_seq_seq to pgjet_operator;
            grant insert (stream, epoch, paused_at, paused_by, pause_reason),
                update (paused_at, paused_by, pause_reason) on pgjet.leader to pgjet_operator;
            grant insert on pgjet.adoption, pgjet.operation to pgjet_operator;
            grant update (detail, state, done, total, changed_at) on pgjet.operation to pgjet_operator;
            grant execute on function pgjet.republish, pgjet.end_republish to pgjet_operator;
            grant update (state, changed_at, changed_by, change_reason) on pgjet.quarantine to pgjet_operator;
            grant delete on pgjet.unknown_message to pgjet_operator;
            grant execute on function pgjet.outbox_default_used, pgjet.drop_outbox_partition to pgjet_operator;
            grant update (due), delete on pgjet.scheduled to pgjet_operator;
            grant update (epoch, rebuild, paused_at, paused_by, pause_reason) on pgjet.consumer to pgjet_operator;
            grant update (floor, epoch) on pgjet.slice to pgjet_operator;
            grant update (state, changed_at, changed_by, change_reason) on pgjet.dead_letter to pgjet_operator;
            grant insert, update, delete on pgjet.inbox, pgjet.intent to pgjet_operator;
            grant update (state, epoch, attempts, waits, due_at, changed_at) on pgjet.saga to pgjet_operator;
        end case;
    end loop;
end$$;
-- +goose StatementEnd

comment on function pgjet.grant_roles is
    'Creates the roles pgjet_writer, pgjet_relay, pgjet_consumer and pgjet_operator where they are missing, and gives each what it needs in this database. May be repeated.';
revoke execute on function pgjet.grant_roles from public;

select pgjet.grant_roles();

-- +goose Down
-- +goose StatementBegin
do $$
declare
    role text;
begin
    -- The roles stay: other databases may use them.
    foreach role in array '{pgjet_writer,pgjet_relay,pgjet_consumer,pgjet_operator}'::text[] loop
        if to_regrole(role) is not null then
            execute format('revoke all on all tables in schema pgjet from %I', role);
            execute format('revoke all on all sequences in schema pgjet from %I', role);
            execute format('revoke all on all functions in schema pgjet from %I', role);
            execute format('revoke all on schema pgjet from %I', role);
        end if;
    end loop;
end
$$;
-- +goose StatementEnd
drop function pgjet.grant_roles;
