-- Grain: one row per org, local day, device slice, activity and previous day: distinct visitors that add up over any range.
-- The previous day is that of the same visitor in the same slice.
{{ config(
    unique_key=['org_id', 'device_type', 'os', 'browser', 'network_type', 'activity', 'previous_date', 'event_date'],
    add=true,
    checks=checks_of_uniques(),
) }}
select
    days.org_id,
    days.device_type,
    days.os,
    days.browser,
    days.network_type,
    activities.activity,
    {{ total('weight', 'visitors_count') }},
    activities.previous_date,
    days.event_date
from {{ delta('int_visitor_days') }} as days
{{ unique_activities('days', 'device_') }}
where activities.previous_date is not null
group by days.org_id, days.device_type, days.os, days.browser, days.network_type, activities.activity, activities.previous_date, days.event_date
-- what is read together lies together
order by days.event_date, days.org_id
