-- +goose Up
-- Where a consumer ran last: a server that was started since may be a copy, beside which the original goes on.
alter table pgjet.consumer
    add column place text,
    add column placed_at timestamptz,
    add column server_start timestamptz,
    add constraint consumer_place check (
        (place is null or length(place) <= 100) and (place is null) = (placed_at is null)
        and (placed_at is null or placed_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00')
        and (server_start is null or server_start between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'));

comment on column pgjet.consumer.place is
    'System identifier of the cluster and oid of the database in which the consumer ran last. Null: an older version ran it.';
comment on column pgjet.consumer.placed_at is
    'When the consumer ran there first.';
comment on column pgjet.consumer.server_start is
    'When the PostgreSQL server had been started in which the consumer ran last.';

-- Whatever else the function does stays as it is.
-- +goose StatementBegin
do $$
declare
    body text := pg_get_functiondef('pgjet.grant_roles()'::regprocedure);
begin
    body := replace(body, 'effects, slices, prefix, types)', 'effects, slices, prefix, types, place, placed_at, server_start)');
    body := replace(body, 'effects, rebuild, prefix, types)', 'effects, rebuild, prefix, types, place, placed_at, server_start)');
    if position('slices, prefix, types, place,' in body) = 0 or position('rebuild, prefix, types, place,' in body) = 0 then
        raise exception 'pgjet.grant_roles() is not the function that the migrations made';
    end if;
    execute body;
end
$$;
-- +goose StatementEnd

select pgjet.grant_roles();

-- +goose Down
-- +goose StatementBegin
do $$
begin
    execute replace(pg_get_functiondef('pgjet.grant_roles()'::regprocedure), ', types, place, placed_at, server_start)', ', types)');
end
$$;
-- +goose StatementEnd

alter table pgjet.consumer drop column server_start, drop column placed_at, drop column place;

select pgjet.grant_roles();
