-- Grain: one row per org, local day and traffic source: events of people without a visitor (opted out, or no identifier at all).
{{ config(
    unique_key=['org_id', 'source', 'medium', 'campaign', 'event_date'],
    changes='*',
    checks={
        'has_events': "events_count > 0",
    },
) }}
{% call scope('org_id, event_date') %}
select org_id, event_date from {{ changes('int_events_enriched') }} as events where device_id is null
union all
select org_id, event_date from {{ ref('int_events_enriched') }} as newly_past
where device_id is null and {{ passed_since_previous('occurred_at') }}
{% endcall %}
select
    org_id,
    source,
    medium,
    campaign,
    count(*) as events_count,
    event_date
from {{ ref('int_events_enriched') }}
where {{ in_scope('org_id, event_date') }}
    and device_id is null
    and is_person
    and occurred_at <= {{ as_of() }}
group by org_id, source, medium, campaign, event_date
