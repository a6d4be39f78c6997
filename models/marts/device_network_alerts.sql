-- Grain: one row per org, device type, network and opening: a slice that converts significantly worse than the rest of the org.
-- Opened when a significant day is over, closed when the slice was no worse for days in a row. A function of the events
-- and as_of, not of when a run happened to look: a day's decision changes only when the rows of its window do.
{{ config(
    unique_key=['org_id', 'device_type', 'network_type', 'opened_at'],
    checks={
        'closed_after_opened': "opened_at < closed_at",
        'it_was_worse': "purchase_rate < reference_purchase_rate",
    },
) }}
{% call scope('org_id') %}
select org_id from {{ changes('int_device_network_worse_days') }} as days
union all
select alerts.org_id
from {{ this }} as alerts
left join {{ ref('orgs') }} as orgs on orgs.org_id = alerts.org_id
where {{ passed_since_previous(day_ended_at("alerts.last_worse_date + " ~ var('alert_clear_days'), 'orgs.time_zone')) }}
{% endcall %}
with days as (
    select *, event_date - lag(event_date) over slice > {{ var('alert_clear_days') }} as follows_clear_days
    from {{ ref('int_device_network_worse_days') }}
    where {{ in_scope('org_id') }}
    window slice as (partition by org_id, device_type, network_type order by event_date)
),
runs as (
    select *, count(*) filter (where follows_clear_days) over (partition by org_id, device_type, network_type order by event_date) as run_number
    from days
),
openings as (
    select
        *,
        max(event_date) over run as last_worse_date,
        row_number() over (run order by is_significant desc, event_date) as place
    from runs
    window run as (partition by org_id, device_type, network_type, run_number)
),
final as (
    select
        openings.org_id,
        device_type,
        network_type,
        visitors_count,
        buyers_count,
        reference_visitors_count,
        reference_buyers_count,
        purchase_rate,
        reference_purchase_rate,
        p_value,
        adjusted_p_value,
        last_worse_date,
        {{ day_ended_at('event_date', 'orgs.time_zone') }} as opened_at,
        case when clear.ended_at <= {{ as_of() }} then clear.ended_at end as closed_at
    from openings
    left join {{ ref('orgs') }} as orgs on orgs.org_id = openings.org_id
    cross join lateral (select {{ day_ended_at('last_worse_date + ' ~ var('alert_clear_days'), 'orgs.time_zone') }} as ended_at) as clear
    where place = 1 and is_significant
)
select * from final
