-- Grain: one row per calendar day from the first to the last with an event, of any org. What MetricFlow joins to.
{{ config(materialized='view') }}
select cast(series.day as date) as calendar_date
from (select min(event_date) as first_date, max(event_date) as last_date from {{ ref('audience_overview_daily') }}) as history
cross join lateral generate_series(first_date, last_date, interval '1 day') as series (day)
