-- Grain: one row per org, local day, activity and previous day: distinct visitors, in a form that adds up over any range.
-- Distinct visitors in [a, b] = sum of visitors_count where event_date is in [a, b] and previous_date < a.
{{ config(
    unique_key=['org_id', 'activity', 'previous_date', 'event_date'],
    add=true,
    indexes=[{'columns': ['org_id', 'event_date']}],
    checks=checks_of_uniques(),
) }}
select
    days.org_id,
    activities.activity,
    {{ total('weight', 'visitors_count') }},
    activities.previous_date,
    days.event_date
from {{ delta('int_visitor_days') }} as days
{{ unique_activities('days') }}
where activities.previous_date is not null
group by days.org_id, activities.activity, activities.previous_date, days.event_date
-- what is read together lies together
order by days.event_date, days.org_id
