{# The landing tables: made when missing, never dropped or rewritten. The rows that collectors write are here. #}
{% macro landing_ddl() %}
{% set landing = var('landing_schema') %}
create schema if not exists {{ landing }};

create table if not exists {{ landing }}.events (
    landing_id bigint generated always as identity,
    event_id text,
    org_id text,
    event_type text,
    occurred_at timestamptz,
    received_at timestamptz,
    anonymous_id text,
    user_id text,
    session_id text,
    url text,
    referrer text,
    user_agent text,
    properties jsonb not null default '{}',
    landed_xid xid8 not null default pg_current_xact_id(),
    rejection_reason text generated always as ({{ rejection_reason() }}) stored
);
create index if not exists events_event on {{ landing }}.events using hash (event_id);
drop index if exists {{ landing }}.events_device, {{ landing }}.events_user;
create index if not exists events_landed on {{ landing }}.events (landed_xid);
create index if not exists events_received on {{ landing }}.events using brin (received_at);
-- else what landed since the last vacuum is read by whoever asks for any day
alter index {{ landing }}.events_received set (autosummarize = on);
create index if not exists events_unfinished on {{ landing }}.events (landing_id) where {{ is_unfinished() }};
create index if not exists events_rejected on {{ landing }}.events (landing_id) where rejection_reason is not null;

-- What left the landing tables or was corrected in them, so that builds can follow. A row without event_id: everything;
-- without landing_id: a rejected row.
create table if not exists {{ landing }}.events_removed (
    org_id text,
    event_id text,
    landing_id bigint,
    received_at timestamptz,
    landed_xid xid8 not null default pg_current_xact_id()
);
alter table {{ landing }}.events_removed add column if not exists landing_id bigint;
create index if not exists events_removed_landed on {{ landing }}.events_removed (landed_xid);

-- Other limits judge what landed before, too: then everything is noted as changed.
do $judge$
declare
    rule constant text := 'by rule {{ local_md5(rejection_reason()) }}';
begin
    if rule = (
        select col_description(attrelid, attnum) from pg_attribute
        where attrelid = '{{ landing }}.events'::regclass and attname = 'rejection_reason'
    ) then
        return;
    end if;
    if current_setting('server_version_num')::int >= 170000 then
        execute $rule$alter table {{ landing }}.events alter column rejection_reason set expression as ({{ rejection_reason() }})$rule$;
    else
        alter table {{ landing }}.events drop column rejection_reason cascade;
        alter table {{ landing }}.events add column rejection_reason text generated always as ({{ rejection_reason() }}) stored;
        create index events_rejected on {{ landing }}.events (landing_id) where rejection_reason is not null;
    end if;
    if exists (select from {{ landing }}.events) then
        insert into {{ landing }}.events_removed default values;
    end if;
    execute format('comment on column {{ landing }}.events.rejection_reason is %L', rule);
end $judge$;

-- Rows of loaded files that could not become an event, kept as they came.
create table if not exists {{ landing }}.rejected_rows (
    rejection_id text primary key,
    org_id text,
    rejection_reason text not null,
    raw_row text not null,
    file_name text,
    line_number bigint,
    received_at timestamptz not null default now(),
    landed_xid xid8 not null default pg_current_xact_id()
);
create index if not exists rejected_rows_landed on {{ landing }}.rejected_rows (landed_xid);

-- One row per distinct user agent, parsed by the runner with a maintained library; SQL joins it by md5.
create table if not exists {{ landing }}.user_agents (
    user_agent_id text primary key,
    user_agent text not null,
    device_type text not null,
    os text not null,
    browser text not null,
    is_bot boolean not null,
    bot_reason text,
    parser_version text not null,
    is_reparsed boolean not null default false,
    landed_xid xid8 not null default pg_current_xact_id()
);
create index if not exists user_agents_landed on {{ landing }}.user_agents (landed_xid);

-- One row per load. The check holds for every finished load.
create table if not exists {{ landing }}.loads (
    load_id bigint generated always as identity primary key,
    file_names text[] not null,
    received_count bigint not null default 0,
    accepted_count bigint not null default 0,
    rejected_count bigint not null default 0,
    duplicate_count bigint not null default 0,
    started_at timestamptz not null default now(),
    finished_at timestamptz
);
alter table {{ landing }}.loads drop constraint if exists loads_conserve, add constraint loads_conserve check (
    received_count = accepted_count + rejected_count + duplicate_count
    and least(accepted_count, rejected_count, duplicate_count) >= 0
);

-- How far the runner has read a landing table, as the transaction that it has to look at first; and, as `cluster`, whose
-- transactions the numbers of the landing tables are.
create table if not exists {{ landing }}.runner_state (
    name text primary key,
    position bigint not null
);

-- The id of a row that came without one. An array, because joined texts would not tell a null from the next column.
create or replace function {{ landing }}.event_id_of(
    org_id text, event_type text, occurred_at timestamptz, anonymous_id text, user_id text, session_id text, url text,
    referrer text, user_agent text, properties jsonb
) returns text language sql stable parallel safe as $$
    select md5(cast(jsonb_build_array(org_id, event_type, extract(epoch from occurred_at), anonymous_id, user_id,
        session_id, url, referrer, user_agent, properties) as text))
$$;

-- Rows that miss their id or a possible time of receipt get them at the end of the statement that inserted them. Not
-- row by row: a trigger for each row would make COPY insert one by one.
create or replace function {{ landing }}.repair_events() returns trigger language plpgsql as $$
begin
    update {{ landing }}.events as unfinished
    set received_at = case when {{ is_usable_receipt('received_at') }} then received_at else now() end,
        event_id = coalesce(nullif(btrim(event_id), ''), {{ landing }}.event_id_of(org_id, event_type, occurred_at,
            anonymous_id, user_id, session_id, url, referrer, user_agent, properties))
    where {{ is_unfinished() }} and landed_xid = pg_current_xact_id();
    return null;
end $$;
drop trigger if exists events_repair on {{ landing }}.events;
create or replace trigger events_finish after insert on {{ landing }}.events for each statement
execute function {{ landing }}.repair_events();

create or replace function {{ landing }}.restamp() returns trigger language plpgsql as $$
begin
    new.landed_xid := pg_current_xact_id();
    return new;
end $$;
drop trigger if exists events_restamp on {{ landing }}.events;
drop function if exists {{ landing }}.restamp_event();

-- Arguments: expressions for org, event, landing row and time of receipt of a row. What the same transaction landed, nobody has seen; and
-- an event that is retained has not gone.
create or replace function {{ landing }}.record_removed() returns trigger language plpgsql as $$
begin
    if tg_op = 'TRUNCATE' then
        insert into {{ landing }}.events_removed default values;
    else
        execute format('insert into {{ landing }}.events_removed (org_id, event_id, landing_id, received_at)
            select org_id, event_id, landing_id, received_at
            from (
                select %1$s as org_id, %2$s as event_id, cast(%3$s as bigint) as landing_id, %4$s as received_at
                from removed where (%2$s) is not null and landed_xid <> pg_current_xact_id()
            ) as gone
            where not %5$s',
            tg_argv[0], tg_argv[1], tg_argv[2], tg_argv[3], case
                when tg_op = 'DELETE' and tg_relid = '{{ landing }}.events'::regclass
                    then 'exists (select from {{ landing }}.retained_events as kept where kept.landing_id = gone.landing_id)'
                else 'false'
            end);
    end if;
    return null;
end $$;
drop trigger if exists events_deleted on {{ landing }}.events;
drop trigger if exists events_updated on {{ landing }}.events;
drop trigger if exists events_truncated on {{ landing }}.events;
drop trigger if exists rejected_rows_deleted on {{ landing }}.rejected_rows;
drop trigger if exists rejected_rows_truncated on {{ landing }}.rejected_rows;
drop function if exists {{ landing }}.record_removed_events(), {{ landing }}.record_removed_rows();
{{ follow_removals(landing ~ '.events', 'org_id', 'event_id', 'landing_id', 'received_at') }}
{{ follow_removals(landing ~ '.rejected_rows', 'org_id', 'rejection_id', 'null', 'received_at') }}

{{ privacy_ddl() }}
{{ retention_ddl() }}
{{ retained_events_ddl() }}
{{ event_functions_ddl(landing) }}
{{ tombstones_ddl() }}
{{ storage_ddl(landing) }}
{% endmacro %}


{# Triggers that number updated rows anew and note what was removed or corrected in a table of landed rows. #}
{% macro follow_removals(table, org_id, event_id, landing_id, received_at) %}
{%- set landing = var('landing_schema') -%}
{%- set note = landing ~ '.record_removed($e$' ~ [org_id, event_id, landing_id, received_at] | join('$e$, $e$') ~ '$e$)' -%}
create or replace trigger follow_update before update on {{ table }} for each row execute function {{ landing }}.restamp();
create or replace trigger follow_updated after update on {{ table }}
referencing old table as removed for each statement execute function {{ note }};
create or replace trigger follow_deleted after delete on {{ table }}
referencing old table as removed for each statement execute function {{ note }};
create or replace trigger follow_truncated after truncate on {{ table }}
for each statement execute function {{ landing }}.record_removed();
{% endmacro %}


{# Run once, for a table that a collector owns: from then on builds follow what is written, corrected and removed there.
     audience dbt run-operation follow_table --args '{table: shop.hits, org_id: shop, event_id: hit_id, landing_id: hit_number, received_at: arrived}'
   Rows that are there count as landed before; the table is not rewritten. #}
{% macro follow_table(table, org_id, event_id, landing_id, received_at) %}
{% do run_query(
    "alter table " ~ table ~ " add column if not exists landed_xid xid8 not null default '0';"
    ~ "alter table " ~ table ~ " alter landed_xid set default pg_current_xact_id();"
    ~ "create index if not exists " ~ table.split('.')[-1] ~ "_landed on " ~ table ~ " (landed_xid);"
    ~ follow_removals(table, org_id, event_id, landing_id, received_at) ~ "; commit;"
) %}
{% endmacro %}


{# A time of receipt that is missing or impossible is taken as now. #}
{% macro is_usable_receipt(moment) -%}
({{ moment }} >= timestamptz '{{ var("earliest_event_date") }} 00:00:00+00' and {{ moment }} < timestamptz 'infinity')
{%- endmacro %}


{# A row that lacks an id or a possible time of receipt, until the end of its statement. #}
{% macro is_unfinished() -%}
(event_id is null or btrim(event_id) = '' or received_at is null or not {{ is_usable_receipt('received_at') }})
{%- endmacro %}


{# Written so that the planner expects it to be rare. #}
{% macro is_too_large(properties) -%}
sign(pg_column_size({{ properties }}) - {{ var('properties_max_bytes') }}) = 1
{%- endmacro %}


{# Why a row of the landing table cannot be used: the stored reason, or its size, which PostgreSQL cannot store a
   judgement of. Size is as stored, that is compressed. #}
{% macro landed_rejection_reason() -%}
coalesce(rejection_reason, case when {{ is_too_large('properties') }} then 'properties_too_large' end)
{%- endmacro %}


{# Why a landed row cannot be used, or null. Stored with the row, so every writer's rows are judged alike.
   Only immutable expressions: PostgreSQL keeps the answer. #}
{% macro rejection_reason() %}
case
    when org_id is null or btrim(org_id) = '' then 'missing_org'
    when event_type is null or btrim(event_type) = '' then 'missing_event_type'
    when occurred_at is null then 'missing_time'
    when not isfinite(occurred_at) then 'time_not_finite'
    when occurred_at < timestamptz '{{ var("earliest_event_date") }} 00:00:00+00' then 'time_too_early'
    when occurred_at - received_at > interval '{{ var("future_tolerance_hours") }} hours' then 'time_in_future'
    when greatest(octet_length(org_id), octet_length(event_id), octet_length(event_type), octet_length(anonymous_id), octet_length(user_id))
        > {{ var('identifier_max_bytes') }} then 'identifier_too_long'
    when jsonb_typeof(properties) <> 'object' then 'properties_not_an_object'
    when properties ->> 'revenue' is null or properties ->> 'revenue' = '' then null
    when properties ->> 'revenue' ~ '^\s*-' then 'negative_revenue'
    when properties ->> 'revenue' !~ '^\s*\+?[0-9]{1,11}(\.[0-9]+)?\s*$' then 'invalid_revenue'
end
{% endmacro %}


{# Functions of single events that models use. Functions, because a correlated subquery keeps a query from running
   in parallel: a decoder of %-escapes that never fails, the value of a url's parameter, which of several parameters
   an event carries, why its traffic is internal, and the session that an event continues. #}
{% macro event_functions_ddl(schema) %}
create or replace function {{ schema }}.url_decode(encoded text) returns text
language plpgsql immutable strict parallel safe as $$
declare
    bytes bytea := '';
    part text;
begin
    for part in select (regexp_matches(replace(encoded, '+', ' '), '(%[0-9A-Fa-f]{2}|[^%]+|%)', 'g'))[1] loop
        bytes := bytes || case
            when part ~ '^%..$' then decode(substr(part, 2), 'hex')
            else convert_to(part, 'UTF8') end;
    end loop;
    -- Only text that PostgreSQL can hold: UTF-8 without NUL, told from its bytes, because an exception handler
    -- would keep a query from running in parallel.
    if encode(bytes, 'hex') ~ ('^(0[1-9a-f]|[1-7][0-9a-f]|(c[2-9a-f]|d[0-9a-f])[89ab][0-9a-f]|e0[ab][0-9a-f][89ab][0-9a-f]'
        || '|(e[1-9abcef])([89ab][0-9a-f]){2}|ed[89][0-9a-f][89ab][0-9a-f]|f0[9ab][0-9a-f]([89ab][0-9a-f]){2}'
        || '|f[1-3]([89ab][0-9a-f]){3}|f48[0-9a-f]([89ab][0-9a-f]){2})*$') then
        return convert_from(bytes, 'UTF8');
    end if;
    return encoded;
end $$;

create or replace function {{ schema }}.url_parameter(url text, parameter text) returns text
language sql immutable strict parallel safe as $$
    select case when value like '%\%%' or value like '%+%' then {{ schema }}.url_decode(value) else value end
    from (select nullif(substring(url from '(?i)[?&]' || parameter || '=([^&#]*)'), '') as value) as found
$$;

-- The first of `parameters` that the properties or the url give, with its value: {parameter, value}.
create or replace function {{ schema }}.first_parameter(properties jsonb, url text, parameters text[]) returns text[]
language sql immutable parallel safe as $$
    select array[parameter, value]
    from unnest(parameters) with ordinality as given (parameter, place)
    cross join lateral (select coalesce(properties ->> parameter, {{ schema }}.url_parameter(url, parameter)) as value) as found
    where value is not null
    order by place
    limit 1
$$;

-- rules: rows of the seed internal_traffic as an array of objects.
create or replace function {{ schema }}.internal_traffic_reason(org_id text, host text, properties jsonb, rules jsonb) returns text
language sql immutable parallel safe as $$
    select min(rule ->> 'reason')
    from jsonb_array_elements(rules) as rule
    where rule ->> 'org_id' in ('*', org_id)
        and case when rule ->> 'field' = 'host' then host else properties ->> substr(rule ->> 'field', 12) end ~* (rule ->> 'pattern')
$$;

-- As a window over a device's events in order: {start of the event's session, time of the event}. A session ends before
-- an event that comes more than `timeout` after the one before, or more than `longest` after the session's start.
create or replace function {{ schema }}.continue_session(session timestamptz[], occurred_at timestamptz, timeout interval, longest interval)
returns timestamptz[] language plpgsql immutable parallel safe as $$
begin
    if occurred_at - session[2] <= timeout and occurred_at - session[1] <= longest then
        return array[session[1], occurred_at];
    end if;
    return array[occurred_at, occurred_at];
end $$;
create or replace aggregate {{ schema }}.session_of(occurred_at timestamptz, timeout interval, longest interval) (
    sfunc = {{ schema }}.continue_session, stype = timestamptz[]
);
{% endmacro %}
