-- Grain: one row per org, local day and path: journeys that took these steps and no more, and how many of them ended in a purchase.
-- A journey is of the day of its first step. Every figure adds up, over days and over paths.
{{ config(
    unique_key=['org_id', 'event_date', 'path', 'steps_count'],
    add=true,
    checks={'purchases_are_of_journeys': 'journeys_count > 0 and purchases_count between 0 and journeys_count'},
) }}
select
    org_id,
    {{ path_of('steps') }} as path,
    {{ steps_count('steps') }} as steps_count,
    {{ total('weight', 'journeys_count') }},
    {{ total('weight * cast(is_purchased as integer)', 'purchases_count') }},
    event_date
from {{ delta('int_journeys') }} as journeys
group by org_id, steps, event_date
