-- +goose Up
-- A seq may be as high as a bigint, and a partition ends before its upper bound: only the default
-- partition can hold the very last seq.
create or replace function pgjet.outbox_default_used() returns boolean
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
as 'select exists (select from pgjet.outbox_default where seq < 9223372036854775807)';

comment on function pgjet.outbox_default_used is 'Whether there are events in the default partition that belong into another one.';

-- +goose StatementBegin
create or replace function pgjet.add_outbox_partition(low bigint, high bigint) returns void
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '50ms'
as $$
declare
    margin constant bigint := 20000;
    part   constant text := 'outbox_' || low;
    last   bigint;
begin
    if low >= high or low < 1 then
        raise exception 'a partition from % to below % holds nothing', low, high;
    end if;
    perform pgjet.tend_outbox();
    select last_value into last from pgjet.outbox_seq_seq;
    if low - margin <= last then
        perform pgjet.lock_outbox();
    end if;
    execute format('create table pgjet.%I (like pgjet.outbox including all excluding identity)', part);
    execute format('alter table pgjet.outbox attach partition pgjet.%I for values from (%s) to (%s)', part, low, high);
    if low - margin > last then
        select last_value into last from pgjet.outbox_seq_seq;
        if low - margin / 2 <= last then
            raise exception 'seq came close to % at this moment', low using errcode = 'lock_not_available';
        end if;
    end if;
end
$$;
-- +goose StatementEnd

-- +goose StatementBegin
create or replace function pgjet.empty_outbox_default(width bigint) returns bigint
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '50ms'
as $$
declare
    low   bigint;
    high  bigint;
    part  text;
    taken bigint;
    moved bigint;
    bound constant bigint := 9223372036854775807;
begin
    perform pgjet.tend_outbox();
    -- Of the gaps between partitions the one with the most rows.
    select g.low, g.high, count(*) into low, high, taken
      from (select lag(p.high) over (order by p.low), p.low from pgjet.outbox_partition p
            union all
            select max(p.high), null from pgjet.outbox_partition p) as g (low, high)
      join pgjet.outbox_default d on (g.low is null or d.seq >= g.low) and (g.high is null or d.seq < g.high) and d.seq < bound
     where g.low < g.high or g.low is null or g.high is null
     group by g.low, g.high order by count(*) desc limit 1;
    if not found then
        return 0;
    end if;
    -- With the lock no statement is under way that reads or writes by the old plan.
    perform pgjet.lock_outbox();
    lock table pgjet.outbox_default in access exclusive mode nowait;
    low := coalesce(low, (select min(seq) from pgjet.outbox_default));
    if high is null then
        high := greatest((select last_value from pgjet.outbox_seq_seq), (select max(seq) from pgjet.outbox_default));
        high := high + least(width, bound - high);
    end if;
    part := 'outbox_' || low;

    alter table pgjet.outbox detach partition pgjet.outbox_default;
    execute format('alter table pgjet.outbox_default rename to %I', part);
    create table pgjet.outbox_default (like pgjet.outbox including all excluding identity);
    execute format('with stray as (delete from pgjet.%I where seq < %s or seq >= %s returning *)'
        ' insert into pgjet.outbox_default select * from stray', part, low, high);
    get diagnostics moved = row_count;
    alter table pgjet.outbox attach partition pgjet.outbox_default default;
    execute format('alter table pgjet.outbox attach partition pgjet.%I for values from (%s) to (%s)', part, low, high);
    return taken;
end
$$;
-- +goose StatementEnd

-- +goose Down
create or replace function pgjet.outbox_default_used() returns boolean
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
as 'select exists (select from pgjet.outbox_default)';

comment on function pgjet.outbox_default_used is 'Whether there are events in the default partition.';

-- +goose StatementBegin
create or replace function pgjet.add_outbox_partition(low bigint, high bigint) returns void
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '50ms'
as $$
declare
    margin constant bigint := 20000;
    part   constant text := 'outbox_' || low;
    last   bigint;
begin
    if low >= high then
        raise exception 'a partition from % to below % holds nothing', low, high;
    end if;
    perform pgjet.tend_outbox();
    select last_value into last from pgjet.outbox_seq_seq;
    if low <= last + margin then
        perform pgjet.lock_outbox();
    end if;
    execute format('create table pgjet.%I (like pgjet.outbox including all excluding identity)', part);
    execute format('alter table pgjet.outbox attach partition pgjet.%I for values from (%s) to (%s)', part, low, high);
    if low > last + margin then
        select last_value into last from pgjet.outbox_seq_seq;
        if low <= last + margin / 2 then
            raise exception 'seq came close to % at this moment', low using errcode = 'lock_not_available';
        end if;
    end if;
end
$$;
-- +goose StatementEnd

-- +goose StatementBegin
create or replace function pgjet.empty_outbox_default(width bigint) returns bigint
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '50ms'
as $$
declare
    low   bigint;
    high  bigint;
    part  text;
    taken bigint;
    moved bigint;
begin
    perform pgjet.tend_outbox();
    -- Of the gaps between partitions the one with the most rows.
    select g.low, g.high, count(*) into low, high, taken
      from (select lag(p.high) over (order by p.low), p.low from pgjet.outbox_partition p
            union all
            select max(p.high), null from pgjet.outbox_partition p) as g (low, high)
      join pgjet.outbox_default d on (g.low is null or d.seq >= g.low) and (g.high is null or d.seq < g.high)
     where g.low < g.high or g.low is null or g.high is null
     group by g.low, g.high order by count(*) desc limit 1;
    if not found then
        return 0;
    end if;
    -- With the lock no statement is under way that reads or writes by the old plan.
    perform pgjet.lock_outbox();
    lock table pgjet.outbox_default in access exclusive mode nowait;
    low := coalesce(low, (select min(seq) from pgjet.outbox_default));
    high := coalesce(high, width + greatest(
        (select last_value from pgjet.outbox_seq_seq), (select max(seq) from pgjet.outbox_default)));
    part := 'outbox_' || low;

    alter table pgjet.outbox detach partition pgjet.outbox_default;
    execute format('alter table pgjet.outbox_default rename to %I', part);
    create table pgjet.outbox_default (like pgjet.outbox including all excluding identity);
    execute format('with stray as (delete from pgjet.%I where seq < %s or seq >= %s returning *)'
        ' insert into pgjet.outbox_default select * from stray', part, low, high);
    get diagnostics moved = row_count;
    alter table pgjet.outbox attach partition pgjet.outbox_default default;
    execute format('alter table pgjet.outbox attach partition pgjet.%I for values from (%s) to (%s)', part, low, high);
    return taken;
end
$$;
-- +goose StatementEnd
