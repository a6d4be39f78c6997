-- Grain: one row per org, cohort (local week of the first purchase) and week since: who came back and who bought again.
-- Every week that has begun by as_of has a row; a week that has not ended is not complete.
{{ config(
    unique_key=['org_id', 'cohort_week', 'week_number'],
    checks={
        'retention_is_plausible': "repurchased_count <= returned_count and returned_count <= cohort_size and returned_on_or_after_count between returned_count and cohort_size",
    },
) }}
with weeks as (
    select * from {{ ref('int_cohort_weeks') }}
),
sizes as (
    select weeks.org_id, weeks.cohort_week, weeks.returned_count as cohort_size, {{ local_date(as_of(), 'orgs.time_zone') }} as today
    from weeks
    left join {{ ref('orgs') }} as orgs on orgs.org_id = weeks.org_id
    where weeks.week_number = 0
),
grid as (
    select sizes.*, week_number
    from sizes
    cross join lateral generate_series(0, (today - cohort_week) / 7) as series (week_number)
),
final as (
    select
        grid.org_id,
        grid.week_number,
        grid.cohort_size,
        grid.cohort_size as eligible_count,
        coalesce(weeks.returned_count, 0) as returned_count,
        coalesce(weeks.repurchased_count, 0) as repurchased_count,
        cast(coalesce(sum(weeks.last_returned_count) over from_here, 0) as bigint) as returned_on_or_after_count,
        cast(coalesce(sum(weeks.last_repurchased_count) over from_here, 0) as bigint) as repurchased_on_or_after_count,
        grid.cohort_week + (grid.week_number + 1) * 7 <= grid.today as is_complete,
        grid.cohort_week,
        grid.cohort_week + grid.week_number * 7 as week_start_date
    from grid
    left join weeks
        on weeks.org_id = grid.org_id and weeks.cohort_week = grid.cohort_week and weeks.week_number = grid.week_number
    window from_here as (
        partition by grid.org_id, grid.cohort_week order by grid.week_number
        rows between current row and unbounded following
    )
)
select * from final
