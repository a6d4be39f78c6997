-- Grain: one row per org, local day, device type and network: distinct visitors and buyers of the window of days that ends on the day.
-- A visitor enters the window with an act, unless in it already, and leaves it when the act is as old as the window is
-- long: sums of what came and left, so an increment adds to the days that it can affect. Windows of days to come are in it.
{{ config(
    unique_key=['org_id', 'event_date', 'device_type', 'network_type'],
    add=true,
    changes=['org_id', 'event_date'],
    indexes=[{'columns': ['event_date', 'org_id']}],
    checks={
        'buyers_are_visitors': "buyers_count >= 0 and visitors_count >= buyers_count",
    },
) }}
with acts as (
    select
        days.org_id,
        days.device_type,
        days.network_type,
        activities.activity,
        greatest(days.event_date, activities.previous_date + {{ var('alert_window_days') }}) as enters_on,
        days.event_date + {{ var('alert_window_days') }} as leaves_on,
        sum(weight) as visitors_count
    from {{ delta('int_visitor_days') }} as days
    {{ unique_activities('days', 'network_') }}
    where activities.previous_date is not null and activities.activity in ('visit', 'purchase')
    group by days.org_id, days.device_type, days.network_type, activities.activity, enters_on, leaves_on
),
steps as (
    select
        org_id,
        device_type,
        network_type,
        sum(weight * visitors_count) filter (where activity = 'visit') as visitors_count,
        sum(weight * visitors_count) filter (where activity = 'purchase') as buyers_count,
        event_date
    from acts
    cross join lateral (values (enters_on, 1), (leaves_on, -1)) as moves (event_date, weight)
    group by org_id, device_type, network_type, event_date
),
days as (
    select org_id, device_type, network_type, cast(series.day as date) as event_date
    from (
        select org_id, device_type, network_type, min(event_date) as first_date, max(event_date) as last_date
        from steps
        group by org_id, device_type, network_type
    ) as spans
    cross join lateral generate_series(first_date, last_date, interval '1 day') as series (day)
),
final as (
    select
        org_id,
        device_type,
        network_type,
        cast(coalesce(sum(steps.visitors_count) over so_far, 0) as bigint) as visitors_count,
        cast(coalesce(sum(steps.buyers_count) over so_far, 0) as bigint) as buyers_count,
        event_date
    from days
    left join steps using (org_id, device_type, network_type, event_date)
    window so_far as (partition by org_id, device_type, network_type order by event_date)
)
select * from final
