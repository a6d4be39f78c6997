{# What is kept for a time only. Before the models of a build: personal data leaves the landed rows that were received too long
   ago, and the models follow as they follow any correction. More: docs/privacy.md #}

{% macro retention_ddl() %}
{%- set landing = var('landing_schema') -%}
create or replace function {{ landing }}.without_personal_data(properties jsonb) returns jsonb
language sql immutable strict parallel safe as $$
    select properties - {{ personal_properties() }}
$$;

-- Rows of files whose text is still there: a night reads no others.
create index if not exists rejected_rows_readable on {{ landing }}.rejected_rows (received_at) where raw_row <> '';
{% endmacro %}


{# Removes what was received more than personal_data_retention_days before the run's start, in batches that are transactions of
   their own: killed anywhere, the next run goes on. A run reads what became too old since the one before, and of what landed
   since then what is too old already. #}
{% macro forget_personal_data() %}
{%- set days = var('personal_data_retention_days') -%}
{%- if days > 0 -%}
    {%- set before = (run_started_at - modules.datetime.timedelta(days=days)).strftime('%Y-%m-%d %H:%M:%S.%f+00') -%}
    {#- Before anything is read: what an older transaction lands later is read by the next run. -#}
    {%- set horizon = run_query('select cast(cast(pg_snapshot_xmin(pg_current_snapshot()) as text) as bigint)').columns[0].values()[0] -%}
    {%- do run_query(find_outdated_sql(before)) -%}
    {%- for statement in [strip_outdated_sql(), retire_rejected_sql(), empty_rejected_rows_sql(before)] -%}
        {%- set more = namespace(found=true) -%}
        {%- for batch in range(100000) if more.found -%}
            {%- set more.found = run_query(statement).columns[0].values()[0] > 0 -%}
            {%- do run_query('commit') -%}
        {%- endfor -%}
    {%- endfor -%}
    {%- do run_query(remember_removed_sql(before, horizon)) -%}
{%- endif -%}
{% endmacro %}


{# The landed rows that the run has to change, by what there is an index of. #}
{% macro find_outdated_sql(before) %}
{%- set landing = var('landing_schema') -%}
{%- set known = {} -%}
{%- for name, position in run_query("select name, position from " ~ landing ~ ".runner_state where name like 'personal data %'").rows -%}
    {%- do known.update({name: position}) -%}
{%- endfor -%}
drop table if exists pg_temp.outdated_rows;
create temporary table outdated_rows as
select landing_id, event_id, {{ landed_rejection_reason() }} as reason
from {{ landing }}.events
where received_at < timestamptz '{{ before }}'
    and (
        received_at >= timestamptz 'epoch' + {{ known.get('personal data received', 0) }} * interval '1 microsecond'
        or landed_xid >= cast('{{ known.get('personal data landed', 0) }}' as xid8)
    )
    and (properties ?| {{ personal_properties() }} or {{ landed_rejection_reason() }} is not null);
create index on pg_temp.outdated_rows (landing_id);
analyze pg_temp.outdated_rows;
commit;
{% endmacro %}


{# Usable rows lose what is personal and nothing else. #}
{% macro strip_outdated_sql() %}
with batch as (
    delete from pg_temp.outdated_rows
    where landing_id in (select landing_id from pg_temp.outdated_rows where reason is null order by landing_id limit {{ var('retention_batch_rows') }})
    returning landing_id, event_id
),
stripped as (
    update {{ var('landing_schema') }}.events as events set properties = {{ var('landing_schema') }}.without_personal_data(events.properties)
    from batch
    where events.event_id = batch.event_id and events.landing_id = batch.landing_id and events.properties ?| {{ personal_properties() }}
)
select count(*) from batch
{% endmacro %}


{# Rows that cannot be used may have anything anywhere. They are counted on by their reason, among the rows that became no event. #}
{% macro retire_rejected_sql() %}
{%- set landing = var('landing_schema') -%}
with batch as (
    delete from pg_temp.outdated_rows
    where landing_id in (select landing_id from pg_temp.outdated_rows where reason is not null order by landing_id limit {{ var('retention_batch_rows') }})
    returning landing_id, event_id, reason
),
retired as (
    delete from {{ landing }}.events as events using batch
    where events.event_id = batch.event_id and events.landing_id = batch.landing_id
    returning batch.reason, events.*
),
counted as (
    insert into {{ landing }}.rejected_rows (rejection_id, org_id, rejection_reason, raw_row, received_at)
    select md5(reason || cast(to_jsonb(retired) - array['landing_id', 'landed_xid'] as text)), org_id, reason, '', received_at
    from retired
    on conflict do nothing
)
select count(*) from batch
{% endmacro %}


{% macro empty_rejected_rows_sql(before) %}
{%- set rows = var('landing_schema') ~ '.rejected_rows' -%}
with emptied as (
    update {{ rows }} as rejected set raw_row = ''
    where rejection_id in (
        select rejection_id from {{ rows }}
        where received_at < timestamptz '{{ before }}' and raw_row <> '' order by received_at limit {{ var('retention_batch_rows') }}
    )
    returning 1
)
select count(*) from emptied
{% endmacro %}


{% macro remember_removed_sql(before, horizon) %}
insert into {{ var('landing_schema') }}.runner_state (name, position)
values ('personal data received', cast(extract(epoch from timestamptz '{{ before }}') * 1000000 as bigint)), ('personal data landed', {{ horizon }})
on conflict (name) do update set position = excluded.position;
drop table pg_temp.outdated_rows;
commit;
{% endmacro %}


{# Landed rows that were received too long ago, in the form in which they are kept: what the models read of them. #}
{% macro retained_events_ddl() %}
{%- set landing = var('landing_schema') -%}
-- What a delivery says, for the order of those received at the same moment and to tell copies; without personal data.
create or replace function {{ landing }}.delivery_content(
    event_type text, occurred_at timestamptz, anonymous_id text, user_id text, session_id text, url text, referrer text,
    user_agent text, properties jsonb
) returns text language sql stable parallel safe as $$
    select md5(cast(jsonb_build_array(event_type, extract(epoch from occurred_at), anonymous_id, user_id, session_id, url,
        referrer, user_agent, properties - {{ personal_properties() }}) as text))
$$;

create table if not exists {{ landing }}.retained_events (
    landing_id bigint primary key,
    event_id text not null,
    org_id text not null,
    event_type text not null,
    anonymous_id text,
    user_id text,
    session_id text,
    host text,
    referrer_host text,
    user_agent_id text,
    content_md5 text not null,
    properties jsonb not null,
    occurred_at timestamptz not null,
    received_at timestamptz not null,
    landed_xid xid8 not null
);
create index if not exists retained_events_event on {{ landing }}.retained_events using hash (event_id);
create index if not exists retained_events_landed on {{ landing }}.retained_events (landed_xid);
create index if not exists retained_events_received on {{ landing }}.retained_events using brin (received_at) with (autosummarize = on);
{{ follow_removals(landing ~ '.retained_events', 'org_id', 'event_id', 'landing_id', 'received_at') }}
{% endmacro %}


{# Properties that models read, but for those that say who somebody is, campaigns, click ids and what the seed internal_traffic names. #}
{% macro read_properties() -%}
array[
    'order_id', 'revenue', 'currency', 'product', 'page_load_ms', 'consent', 'dnt', 'gpc', 'device_type', 'os', 'browser',
    'network_type', 'connection_type', 'effective_type', 'network_effective_type', 'effectiveType'
]
{%- endmacro %}


{# Moves usable rows that were received more than raw_events_retention_days before the run's start to retained_events, a batch in
   a transaction. They keep their number, and the transaction that they landed by: no model notices. #}
{% macro retain_old_events() %}
{%- set days = var('raw_events_retention_days') -%}
{%- set seeds = target.schema ~ '_seeds' -%}
{%- set there = "select to_regclass('" ~ seeds ~ ".click_ids') is not null and to_regclass('" ~ seeds ~ ".internal_traffic') is not null" -%}
{#- Before the first build there are no seeds, which say what is read of a row. -#}
{%- if days > 0 and run_query(there).columns[0].values()[0] -%}
    {%- set before = (run_started_at - modules.datetime.timedelta(days=days)).strftime('%Y-%m-%d %H:%M:%S.%f+00') -%}
    {%- do run_query(find_retained_sql(before)) -%}
    {%- set more = namespace(found=true) -%}
    {%- for batch in range(100000) if more.found -%}
        {%- set more.found = run_query(retain_batch_sql(seeds)).columns[0].values()[0] > 0 -%}
        {%- do run_query('commit') -%}
    {%- endfor -%}
{%- endif -%}
{% endmacro %}


{% macro find_retained_sql(before) %}
drop table if exists pg_temp.outdated_rows;
create temporary table outdated_rows as
select landing_id, event_id from {{ var('landing_schema') }}.events
where received_at < timestamptz '{{ before }}' and {{ landed_rejection_reason() }} is null;
create index on pg_temp.outdated_rows (landing_id);
analyze pg_temp.outdated_rows;
commit;
{% endmacro %}


{# What is kept gives the models what the row gave: campaign parameters and click ids, which the url may hold, are among the
   properties then, where they come first. #}
{% macro retain_batch_sql(seeds) %}
{%- set landing = var('landing_schema') -%}
with batch as (
    delete from pg_temp.outdated_rows
    where landing_id in (select landing_id from pg_temp.outdated_rows order by landing_id limit {{ var('retention_batch_rows') }})
    returning landing_id, event_id
),
gone as (
    delete from {{ landing }}.events as events using batch
    where events.event_id = batch.event_id and events.landing_id = batch.landing_id
    returning events.*
),
click_rules as (
    select array_agg(parameter) as parameters, '[?&](' || string_agg(parameter, '|') || ')=' as pattern from {{ seeds }}.click_ids
),
internal_rules as (
    select coalesce(array_agg(distinct substr(field, 12)) filter (where field like 'properties.%'), '{}') as parameters from {{ seeds }}.internal_traffic
),
moved as (
    insert into {{ landing }}.retained_events
    select
        landing_id, event_id, org_id, event_type, anonymous_id, user_id, session_id,
        {{ url_host('url') }}, {{ url_host('referrer') }}, md5(user_agent),
        {{ landing }}.delivery_content(event_type, occurred_at, anonymous_id, user_id, session_id, url, referrer, user_agent, properties),
        coalesce((
            select jsonb_object_agg(key, value) from jsonb_each(properties)
            where (key = any({{ read_properties() }}) or key = any(internal_rules.parameters)) and not key = any({{ personal_properties() }})
        ), '{}')
        || jsonb_strip_nulls(jsonb_build_object(
            'utm_source', {{ campaign_parameter('utm_source') }}, 'utm_medium', {{ campaign_parameter('utm_medium') }}, 'utm_campaign', {{ campaign_parameter('utm_campaign') }}
        ))
        || case when properties ?| click_rules.parameters or (url like '%?%' and url ~* click_rules.pattern) then coalesce((
            select jsonb_object_agg(parameter, value) filter (where value is not null)
            from unnest(click_rules.parameters) as parameter
            cross join lateral (select coalesce(properties ->> parameter, {{ landing }}.url_parameter(url, parameter)) as value) as found
        ), '{}') else '{}' end,
        occurred_at, received_at, landed_xid
    from gone
    cross join click_rules
    cross join internal_rules
)
select count(*) from batch
{% endmacro %}
