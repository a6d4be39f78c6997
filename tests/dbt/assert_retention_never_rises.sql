-- On or after a week is at least on it, never more than the week before, and never more than the cohort.
{{ config(meta={'dagster': {'ref': {'name': 'cohort_retention_weekly'}}}) }}
with weeks as (
    select
        *,
        lag(returned_on_or_after_count, 1, cohort_size) over cohort as returned_before_count,
        lag(repurchased_on_or_after_count, 1, cohort_size) over cohort as repurchased_before_count
    from {{ ref('cohort_retention_weekly') }}
    window cohort as (partition by org_id, cohort_week order by week_number)
)
select *
from weeks
where returned_on_or_after_count < returned_count
    or repurchased_on_or_after_count < repurchased_count
    or returned_on_or_after_count > returned_before_count
    or repurchased_on_or_after_count > repurchased_before_count
    or repurchased_count > returned_count
