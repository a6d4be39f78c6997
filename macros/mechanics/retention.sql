{# What is kept for a time only. Before the models of a build: personal data leaves the landed rows that were received too long
   ago, and the models follow as they follow any correction. More: docs/privacy.md #}

{# The properties that say who somebody is. #}
{% macro personal_properties() -%}
array['email', 'phone', 'first_name', 'last_name', 'name']
{%- endmacro %}


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
