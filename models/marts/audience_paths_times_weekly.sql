-- Grain: one row per org, local week, path and bucket of time: purchases at the end of journeys that took these steps and no more.
-- The weeks of audience_paths_times_daily, so that a long range reads fewer rows.
{{ config(
    unique_key=['org_id', 'week_start_date', 'path', 'purchased_after_from_seconds'],
    add=true,
    checks=checks_of_purchase_times(),
) }}
{{ purchase_time_counts('week_start_date', week_start('journeys.event_date', 'orgs')) }}
