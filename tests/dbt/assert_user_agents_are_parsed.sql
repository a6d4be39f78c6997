-- An event whose user agent was not parsed yet counts as a person's on an unknown device; the next parse corrects it.
{{ config(severity='warn', meta={'dagster': {'ref': {'name': 'int_events_enriched'}}}) }}
select pending_user_agent_id, count(*) as events_count
from {{ ref('int_events_enriched') }}
where pending_user_agent_id is not null
group by pending_user_agent_id
