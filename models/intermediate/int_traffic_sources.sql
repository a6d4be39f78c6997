-- Grain: one row per org, source, medium and campaign: how many events carry it.
{{ config(
    unique_key=['org_id', 'source', 'medium', 'campaign'],
    add=true,
    checks={
        'has_events': "events_count > 0",
    },
) }}
select
    org_id,
    source,
    medium,
    campaign,
    sum(weight) as events_count
from {{ delta('int_events_enriched') }} as events
group by org_id, source, medium, campaign
