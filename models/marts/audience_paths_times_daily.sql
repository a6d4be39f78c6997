-- Grain: one row per org, local day, path and bucket of time: purchases at the end of journeys that took these steps and no more.
-- The time is that from the first step. The buckets, in seconds, are those of the seed histogram_buckets.
{{ config(
    unique_key=['org_id', 'event_date', 'path', 'purchased_after_from_seconds'],
    add=true,
    checks=checks_of_purchase_times(),
) }}
{{ purchase_time_counts('event_date', 'journeys.event_date') }}
