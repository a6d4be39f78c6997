-- Grain: one row per org, local day, traffic source, activity and previous day: distinct visitors that add up over any range.
-- The previous day is that of the same visitor from the same source.
{{ config(unique_key=['org_id', 'source', 'medium', 'campaign', 'channel', 'activity', 'previous_date', 'event_date'], add=true) }}
with days as (
    select * from {{ delta('int_visitor_channel_days') }} as days
),
channels as (
    select * from {{ ref('int_channels') }}
),
final as (
    select
        days.org_id,
        days.source,
        days.medium,
        days.campaign,
        {{ channel_or_unattributed('channels') }} as channel,
        activities.activity,
        {{ total('weight', 'visitors_count') }},
        activities.previous_date,
        days.event_date
    from days
    {{ unique_activities('days') }}
    left join channels
        on channels.org_id = days.org_id and channels.source = days.source
        and channels.medium = days.medium and channels.campaign = days.campaign
    where activities.previous_date is not null
    group by days.org_id, days.source, days.medium, days.campaign, channels.channel, activities.activity, activities.previous_date, days.event_date
)
select * from final
