-- Grain: one row per org, local day, source, medium, campaign and channel: sessions, orders and revenue by where the session came from.
-- Orders count where the session they were made in came from; without a session: (unattributed). Every figure adds up.
{{ config(unique_key=['org_id', 'source', 'medium', 'campaign', 'channel', 'event_date'], add=true) }}
{{ audit_revenue() }}
with visitorless as (
    select org_id, source, medium, campaign, event_date, weight * events_count as events_count
    from {{ delta('int_visitorless_days') }} as days
),
visits as (
    select * from {{ delta('int_visits') }} as visits
),
orders as (
    select * from {{ delta('int_orders') }} as orders
),
combined as (
    select
        org_id, source, medium, campaign, event_date,
        weight * events_count as events_count,
        weight * sessions_count as sessions_count,
        weight * ticket_cta_sessions_count as ticket_cta_sessions_count,
        weight * checkout_sessions_count as checkout_sessions_count,
        weight * purchase_sessions_count as purchase_sessions_count,
        0 as orders_count,
        0 as gross_revenue_amount,
        0 as refunded_amount,
        0 as net_revenue_amount
    from visits
    union all
    select
        org_id, source, medium, campaign, order_date, 0, 0, 0, 0, 0,
        weight * orders_count,
        weight * gross_revenue_amount,
        weight * refunded_amount,
        weight * net_revenue_amount
    from orders
    union all
    select org_id, source, medium, campaign, event_date, events_count, 0, 0, 0, 0, 0, 0, 0, 0
    from visitorless
),
channels as (
    select * from {{ ref('int_channels') }}
),
final as (
    select
        combined.org_id,
        combined.source,
        combined.medium,
        combined.campaign,
        {{ channel_or_unattributed('channels') }} as channel,
        {{ total('events_count') }},
        {{ total('sessions_count') }},
        {{ total('ticket_cta_sessions_count') }},
        {{ total('checkout_sessions_count') }},
        {{ total('purchase_sessions_count') }},
        {{ total('orders_count') }},
        {{ total_amount('gross_revenue_amount') }},
        {{ total_amount('refunded_amount') }},
        {{ total_amount('net_revenue_amount') }},
        combined.event_date
    from combined
    left join channels
        on channels.org_id = combined.org_id and channels.source = combined.source
        and channels.medium = combined.medium and channels.campaign = combined.campaign
    group by combined.org_id, combined.source, combined.medium, combined.campaign, channels.channel, combined.event_date
)
select * from final
