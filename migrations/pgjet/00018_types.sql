-- +goose Up
-- Commands that do not contain a consumer know from here which events it handles.
alter table pgjet.consumer
    add column prefix text check (octet_length(prefix) between 1 and 64),
    add column types text[],
    add constraint consumer_types check (array_ndims(types) = 1 and array_position(types, null) is null);
alter table pgjet.process
    add column types text[],
    add constraint process_types check (array_ndims(types) = 1 and array_position(types, null) is null);

comment on column pgjet.consumer.prefix is 'What the subjects of the events begin with. Null: an older version runs it.';
comment on column pgjet.consumer.types is
    'The types of events that it handles, or patterns of them, as the last process that began to run it said. Null: an older version runs it.';
comment on column pgjet.process.types is 'The types of events that this process handles, or patterns of them.';

-- The rest of the function stays as it is.
-- +goose StatementBegin
do $$
declare
    body text := pg_get_functiondef('pgjet.grant_roles()'::regprocedure);
begin
    body := replace(body, 'insert (name, stream, stream_created, ordered, effects, slices)', 'insert (name, stream, stream_created, ordered, effects, slices, prefix, types)');
    body := replace(body, 'epoch, slices, ordered, effects, rebuild)', 'epoch, slices, ordered, effects, rebuild, prefix, types)');
    if position('effects, slices, prefix, types)' in body) = 0 or position('effects, rebuild, prefix, types)' in body) = 0 then
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
declare
    body text := pg_get_functiondef('pgjet.grant_roles()'::regprocedure);
begin
    body := replace(body, 'effects, slices, prefix, types)', 'effects, slices)');
    body := replace(body, 'effects, rebuild, prefix, types)', 'effects, rebuild)');
    execute body;
end
$$;
-- +goose StatementEnd

alter table pgjet.process drop column types;
alter table pgjet.consumer drop column types, drop column prefix;

select pgjet.grant_roles();
