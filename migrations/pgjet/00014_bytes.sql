-- +goose NO TRANSACTION
-- +goose Up
-- A payload that is not JSON is stored in body. SQL writers of JSON go on as before.

-- +goose StatementBegin
do $$
begin
    -- In a moment in which nobody holds the outbox.
    perform set_config('lock_timeout', '50ms', true);
    for try in 1..50 loop
        begin
            perform pgjet.lock_outbox();
            exit;
        exception when lock_not_available then
            if try = 50 then
                raise;
            end if;
            perform pg_sleep(0.2);
        end;
    end loop;
    alter table pgjet.outbox
        add column if not exists content_type text,
        add column if not exists body bytea,
        alter column data drop not null,
        drop constraint if exists outbox_payload,
        add constraint outbox_payload check (num_nonnulls(data, body) = 1 and (body is null or content_type is not null)) not valid;
end
$$;
-- +goose StatementEnd

-- Old rows are checked while others work.
alter table pgjet.outbox validate constraint outbox_payload;

comment on column pgjet.outbox.data is 'The payload, if it is JSON; else it is in body.';
comment on column pgjet.outbox.content_type is 'The media type of the payload. Null: application/json.';
comment on column pgjet.outbox.body is 'The payload, if it is not JSON.';

-- The rest of the function stays as it is.
-- +goose StatementBegin
do $$
declare
    before constant text := pg_get_functiondef('pgjet.grant_roles()'::regprocedure);
    after  constant text := replace(before, 'grant insert (id, type, key, traceparent, header, data, time) on pgjet.outbox',
        'grant insert (id, type, key, traceparent, header, data, time, content_type, body) on pgjet.outbox');
begin
    if position('data, time, content_type, body) on pgjet.outbox' in after) = 0 then
        raise exception 'pgjet.grant_roles() is not the function that the migrations made';
    end if;
    execute after;
end
$$;
-- +goose StatementEnd

select pgjet.grant_roles();

-- +goose Down
-- +goose StatementBegin
do $$
declare
    before constant text := pg_get_functiondef('pgjet.grant_roles()'::regprocedure);
begin
    if exists (select from pgjet.outbox where body is not null) then
        raise exception 'the outbox has payloads that are not JSON; they would be lost';
    end if;
    execute replace(before, 'data, time, content_type, body) on pgjet.outbox', 'data, time) on pgjet.outbox');
    alter table pgjet.outbox
        drop constraint outbox_payload,
        drop column content_type,
        drop column body,
        alter column data set not null;
end
$$;
-- +goose StatementEnd
