-- Grain: one row per org, path, local day and previous day: distinct visitors whose journeys begin with this path, in a form that adds up.
-- The previous day is that of the same visitor's last journey that begins alike. The key leads to the rows of one path
-- whose previous day lies before a range: of a long one few.
{{ config(
    unique_key=['org_id', 'path', 'previous_date', 'event_date'],
    add=true,
    checks={'uniques_are_plausible': 'visitors_count > 0 and previous_date < event_date'},
) }}
with begun as (
    select
        journeys.org_id,
        {{ path_of('journeys.steps[1:prefixes.steps_count]') }} as path,
        journeys.weight,
        journeys.previous_dates[prefixes.steps_count] as previous_date,
        journeys.event_date
    from {{ delta('int_journeys') }} as journeys
    cross join generate_series(1, cardinality(journeys.previous_dates)) as prefixes (steps_count)
)
select org_id, path, {{ total('weight', 'visitors_count') }}, previous_date, event_date
from begun
where previous_date is not null
group by org_id, path, previous_date, event_date
