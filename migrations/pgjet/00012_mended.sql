-- +goose Up
-- Rows that are older than the bounds broke every later change of them, and every other change in
-- the same statement. They keep their meaning. Rows that cannot be mended stay as they are, such as
-- a checkpoint, which is never changed.

-- +goose StatementBegin
create function pgjet.mended(t timestamptz) returns timestamptz
    language sql immutable
as $$
    select case when t is not null
                then least(greatest(t, '0001-01-01 00:00:00+00'), '9999-12-31 23:59:59.999999+00') end
$$;
-- +goose StatementEnd

-- A header value that is a string becomes an array of one string. Any other value that is no array of strings is dropped.
-- +goose StatementBegin
create function pgjet.mended_header(header jsonb) returns jsonb
    language sql immutable
as $$
    select coalesce(jsonb_object_agg(key, texts), '{}')
      from jsonb_each(case jsonb_typeof(header) when 'object' then header else '{}' end) h (key, value),
           lateral (select jsonb_agg(v order by n) as texts
                      from jsonb_array_elements(case jsonb_typeof(value) when 'array' then value else jsonb_build_array(value) end)
                           with ordinality as e (v, n)
                     where jsonb_typeof(v) = 'string') t
     where texts is not null
$$;
-- +goose StatementEnd

-- Each step keeps its place, and its readable fields.
-- +goose StatementBegin
create function pgjet.mended_steps(steps jsonb) returns jsonb
    language sql immutable
as $$
    select coalesce(jsonb_agg(fields order by n), '[]')
      from jsonb_array_elements(case jsonb_typeof(steps) when 'array' then steps else '[]' end) with ordinality as s (step, n),
           lateral (select coalesce(jsonb_object_agg(key, value), '{}') as fields
                      from jsonb_each(case jsonb_typeof(step) when 'object' then step else '{}' end) f (key, value)
                     where case when key in ('name', 'state', 'error') then jsonb_typeof(value) = 'string'
                                when key = 'attempts' then jsonb_typeof(value) = 'number' and value between '0' and '1000000000'
                                else true end) t
$$;
-- +goose StatementEnd

-- Only tables in which 00009_bounds found such rows are searched.
-- +goose StatementBegin
do $$
declare
    c         record;
    old       record;
    left_over boolean;
begin
    for c in
        select m.tab, m.change, con.conname, pg_get_expr(con.conbin, con.conrelid) as bound
          from (values
            ('leader', 'epoch = case when epoch between 0 and 1000000000000000000 then epoch when epoch < 0 then 0 else 1000000000000000 end,
                since = pgjet.mended(since), cause_at = pgjet.mended(cause_at), paused_at = pgjet.mended(paused_at),
                heal_snapshot = case when heal_floor is not null then heal_snapshot end,
                heal_floor = case when heal_snapshot is not null then heal_floor end'),
            ('quarantine', 'at = pgjet.mended(at), changed_at = pgjet.mended(changed_at)'),
            ('unknown_message', 'stream_created = pgjet.mended(stream_created), at = pgjet.mended(at)'),
            ('adoption', 'stream_created = pgjet.mended(stream_created), at = pgjet.mended(at)'),
            ('operation', 'at = pgjet.mended(at)'),
            ('consumer', 'generation = case when generation between 0 and 1000000000 then generation when generation < 0 then 0 else 500000000 end,
                epoch = case when epoch between 0 and 1000000000000000000 then epoch when epoch < 0 then 0 else 1000000000000000 end,
                floor = greatest(floor, 0), high = greatest(high, 0), lost_until = greatest(lost_until, 0),
                stream_created = pgjet.mended(stream_created), since = pgjet.mended(since), paused_at = pgjet.mended(paused_at)'),
            ('process', 'workers = greatest(workers, 0), attempts = greatest(attempts, 0), failed = least(greatest(failed, 0), greatest(attempts, 0)),
                took = least(greatest(took, ''0''), ''100 years''), since = pgjet.mended(since), seen_at = pgjet.mended(seen_at)'),
            ('inbox', 'attempts = greatest(attempts, 0), generation = greatest(generation, 0), stream_seq = greatest(stream_seq, 0),
                at = pgjet.mended(at), began = pgjet.mended(began)'),
            ('intent', 'attempts = least(greatest(attempts, 0), 1000000000), deaths = least(greatest(deaths, 0), 1000000000),
                generation = greatest(generation, 0), stream_seq = greatest(stream_seq, 0),
                since = pgjet.mended(since), taken_at = pgjet.mended(taken_at), header = pgjet.mended_header(header)'),
            ('attempt', 'attempt = greatest(attempt, 0), took = case when took is not null then least(greatest(took, ''-100 years''), ''100 years'') end, began = pgjet.mended(began)'),
            ('dead_letter', 'attempts = least(greatest(attempts, 0), 1000000000), generation = greatest(generation, 0),
                stream_seq = greatest(stream_seq, 0), at = pgjet.mended(at), changed_at = pgjet.mended(changed_at),
                header = pgjet.mended_header(header)'),
            -- With a step that cannot be read a saga does not go on by itself.
            ('saga', 'attempts = least(greatest(attempts, 0), 1000000000), waits = least(greatest(waits, 0), 1000000000),
                epoch = case when epoch between 0 and 1000000000000000000 then epoch when epoch < 0 then 0 else 1000000000000000 end,
                due_at = pgjet.mended(due_at), started_at = pgjet.mended(started_at),
                changed_at = pgjet.mended(changed_at), ended_at = pgjet.mended(ended_at),
                steps = pgjet.mended_steps(steps),
                state = case when state in (''running'', ''undoing'') and steps <> pgjet.mended_steps(steps) then ''needs_operator'' else state end,
                error = case when steps <> pgjet.mended_steps(steps) then ''the record of the steps could not be read: '' || steps::text else error end')
          ) as m (tab, change)
          join pg_constraint con on con.connamespace = 'pgjet'::regnamespace and con.conname = m.tab || '_bounds' and not con.convalidated
         order by m.tab
    loop
        left_over := false;
        for old in execute format('select ctid from pgjet.%I where (%s) is false', c.tab, c.bound) loop
            begin
                execute format('update pgjet.%I set %s where ctid = $1', c.tab, c.change) using old.ctid;
            exception when check_violation then
                raise notice 'pgjet.% has a row from before that breaks % and cannot be mended: select * from pgjet.% where ctid = ''%''', c.tab, c.conname, c.tab, old.ctid;
                left_over := true;
            end;
        end loop;
        if not left_over then
            execute format('alter table pgjet.%I validate constraint %I', c.tab, c.conname);
        end if;
    end loop;
end
$$;
-- +goose StatementEnd

drop function pgjet.mended, pgjet.mended_header, pgjet.mended_steps;

-- +goose Down
