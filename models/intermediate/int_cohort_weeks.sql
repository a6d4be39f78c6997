-- Grain: one row per org, cohort week and week number with any activity: how many buyers of the cohort were active in it.
{{ config(
    unique_key=['org_id', 'cohort_week', 'week_number'],
    add=true,
    checks={
        'no_count_is_negative': "least(returned_count, repurchased_count, last_returned_count, last_repurchased_count) >= 0",
        'repurchased_have_returned': "repurchased_count <= returned_count",
    },
) }}
select
    org_id,
    cohort_week,
    week_number,
    {{ total('weight', 'returned_count') }},
    {{ total('case when has_repurchased then weight end', 'repurchased_count') }},
    {{ total('case when is_last_return then weight end', 'last_returned_count') }},
    {{ total('case when is_last_repurchase then weight end', 'last_repurchased_count') }}
from {{ delta('int_buyer_weeks') }} as weeks
group by org_id, cohort_week, week_number
