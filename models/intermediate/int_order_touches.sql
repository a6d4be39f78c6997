-- Grain: one row per org, order and traffic source that the buyer came from up to the order: how often, and when first and last.
-- Counted along one line of the buyer's sessions and orders, so that people with hundreds of both stay cheap.
{{ config(materialized='ephemeral') }}
with orders as (
    select org_id, order_key, visitor_id, session_id, ordered_at
    from {{ ref('int_orders') }}
    where {{ in_scope('org_id, order_key') }}
),
sessions as (
    select
        org_id,
        visitor_id,
        session_id,
        min(source) as source,
        min(medium) as medium,
        min(campaign) as campaign,
        bool_or(has_touch) as has_touch,
        min(event_date) as session_date,
        min(session_started_at) as started_at
    from {{ ref('int_visits') }}
    where (org_id, visitor_id) in (select org_id, visitor_id from orders where session_id is not null)
    group by org_id, visitor_id, session_id
),
touches as (
    select *, row_number() over (partition by org_id, visitor_id order by started_at, session_id) as touch_number from sessions
),
sources as (
    select
        org_id,
        visitor_id,
        source,
        medium,
        campaign,
        min(session_date) filter (where touch_number = 1) as first_touch_date
    from touches
    group by org_id, visitor_id, source, medium, campaign
),
moments as (
    select org_id, visitor_id, source, medium, campaign, null as order_key, touch_number, has_touch, started_at as moment
    from touches
    union all
    select org_id, visitor_id, source, medium, campaign, order_key, null, false, ordered_at
    from orders
    join sources using (org_id, visitor_id)
    where session_id is not null
),
counted as (
    select
        *,
        count(touch_number) over (
            so_far range between interval '{{ var("attribution_window_days") }} days' preceding and current row
        ) as touches_count,
        max(touch_number) filter (where has_touch) over so_far as last_touch_number,
        max(moment) filter (where has_touch) over so_far as last_touch_at
    from moments
    window so_far as (partition by org_id, visitor_id, source, medium, campaign order by moment)
),
final as (
    select
        org_id,
        order_key,
        source,
        medium,
        campaign,
        touches_count,
        last_touch_number,
        first_touch_date is not null as is_first_touch,
        first_touch_date,
        last_touch_at
    from counted
    join sources using (org_id, visitor_id, source, medium, campaign)
    where order_key is not null and (touches_count > 0 or last_touch_number is not null or first_touch_date is not null)
    union all
    select org_id, order_key, '(unattributed)', '(unattributed)', '(unattributed)', 1, null, true, null, null
    from orders
    where session_id is null
)
select * from final
