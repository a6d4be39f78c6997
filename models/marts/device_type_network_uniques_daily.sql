-- Grain: one row per org, local day, device type, network, activity and previous day: distinct visitors that add up over any range.
-- The previous day is that of the same visitor with the same device type and network. By it the key begins: of a long
-- range only the few rows whose previous day lies before it count.
{{ config(
    unique_key=['org_id', 'previous_date', 'event_date', 'device_type', 'network_type', 'activity'],
    add=true,
    indexes=[{'columns': ['org_id', 'event_date', 'previous_date']}],
    checks=checks_of_uniques(),
) }}
select
    days.org_id,
    days.device_type,
    days.network_type,
    activities.activity,
    {{ total('weight', 'visitors_count') }},
    activities.previous_date,
    days.event_date
from {{ delta('int_visitor_days') }} as days
{{ unique_activities('days', 'network_') }}
where activities.previous_date is not null
group by days.org_id, days.device_type, days.network_type, activities.activity, activities.previous_date, days.event_date
-- what is read together lies together
order by days.event_date, days.org_id
