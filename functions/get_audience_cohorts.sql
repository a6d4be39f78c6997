-- Returns: one row per cohort (local week of the first purchase) and week since, of the latest cohorts.
declare
    v_current_week date;
begin
    {{ refuse_unknown_org() }}
    {{ refuse_unless("p_weeks between 1 and " ~ var('query_max_days') // 7,
        "%s weeks of cohorts cannot be shown: give p_weeks from 1 to " ~ var('query_max_days') // 7 ~ ".", "coalesce(cast(p_weeks as text), 'null')") }}
    -- every cohort has a row for each week up to the current one, the latest cohort as well
    select week_start_date into v_current_week
    from {{ ref('cohort_retention_weekly') }}
    where org_id = p_org
    order by cohort_week desc, week_number desc
    limit 1;

    return query
    select
        cohort_week,
        week_start_date,
        week_number,
        eligible_count,
        returned_count,
        returned_on_or_after_count,
        repurchased_count,
        repurchased_on_or_after_count,
        round(cast(returned_count as numeric) / eligible_count, 6) as returned_rate,
        round(cast(returned_on_or_after_count as numeric) / eligible_count, 6) as returned_on_or_after_rate,
        round(cast(repurchased_count as numeric) / eligible_count, 6) as repurchased_rate,
        round(cast(repurchased_on_or_after_count as numeric) / eligible_count, 6) as repurchased_on_or_after_rate,
        is_complete
    from {{ ref('cohort_retention_weekly') }}
    where org_id = p_org and cohort_week > v_current_week - p_weeks * 7
    order by cohort_week, week_number;
end
