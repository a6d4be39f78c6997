-- Grain: one row per org, local day, source, medium, campaign and channel: sessions, orders and revenue by where the session came from.
-- Orders count where the session they were made in came from; without a session: (unattributed). Every figure adds up.
{{ config(
    unique_key=['org_id', 'source', 'medium', 'campaign', 'channel', 'event_date'],
    add=true,
    checks=checks_of_sums(),
) }}
{{ audit_sums() }}
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
sums as (
    select
        org_id,
        source,
        medium,
        campaign,
        {{ total('events_count') }},
        {{ total('sessions_count') }},
        {{ total('ticket_cta_sessions_count') }},
        {{ total('checkout_sessions_count') }},
        {{ total('purchase_sessions_count') }},
        {{ total('orders_count') }},
        {{ total_amount('gross_revenue_amount') }},
        {{ total_amount('refunded_amount') }},
        {{ total_amount('net_revenue_amount') }},
        event_date
    from combined
    group by org_id, source, medium, campaign, event_date
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
        sums.events_count,
        sums.sessions_count,
        sums.ticket_cta_sessions_count,
        sums.checkout_sessions_count,
        sums.purchase_sessions_count,
        sums.orders_count,
        sums.gross_revenue_amount,
        sums.refunded_amount,
        sums.net_revenue_amount,
        sums.event_date
    from sums
    join channels using (org_id, source, medium, campaign)
)
select * from final
-- what is read together lies together
order by event_date, org_id
