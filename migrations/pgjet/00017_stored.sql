-- +goose Up
alter table pgjet.slice add column stored timestamptz
    constraint slice_stored check (stored between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00');
comment on column pgjet.slice.stored is
    'When the stream stored the message at high. If it has another one there, it lost its end since, and events stand at other places.';

-- +goose Down
alter table pgjet.slice drop column stored;
