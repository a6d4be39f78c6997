-- Grain: one row per org, local day, traffic source, activity and previous day: distinct visitors that add up over any range.
-- The previous day is that of the same visitor from the same source.
{{ config(
    unique_key=['org_id', 'source', 'medium', 'campaign', 'channel', 'activity', 'previous_date', 'event_date'],
    add=true,
    indexes=[{'columns': ['org_id', 'event_date', 'previous_date']}],
    checks=checks_of_uniques(),
) }}
with sums as (
    select
        days.org_id,
        days.source,
        days.medium,
        days.campaign,
        activities.activity,
        {{ total('weight', 'visitors_count') }},
        activities.previous_date,
        days.event_date
    from {{ delta('int_visitor_days') }} as days
    {{ unique_activities('days', 'source_') }}
    where activities.previous_date is not null
    group by days.org_id, days.source, days.medium, days.campaign, activities.activity, activities.previous_date, days.event_date
),
channels as (
    {{ channels_of('sums') }}
),
final as (
    select
        org_id,
        source,
        medium,
        campaign,
        channels.channel,
        sums.activity,
        sums.visitors_count,
        sums.previous_date,
        sums.event_date
    from sums
    join channels using (org_id, source, medium, campaign)
)
select * from final
-- what is read together lies together
order by event_date, org_id
