-- Grain: one row per org and local day: events, sessions, orders and revenue. Every figure adds up over days.
{{ config(
    unique_key=['org_id', 'event_date'],
    add=true,
    checks=dict(checks_of_sums(), devices_are_plausible='mobile_sessions_count + desktop_sessions_count <= sessions_count'),
) }}
{{ audit_sums() }}
with visitorless as (
    select org_id, event_date, weight * events_count as events_count from {{ delta('int_visitorless_days') }} as days
),
visits as (
    select
        org_id,
        event_date,
        weight * events_count as events_count,
        weight * sessions_count as sessions_count,
        weight * ticket_cta_sessions_count as ticket_cta_sessions_count,
        weight * checkout_sessions_count as checkout_sessions_count,
        weight * purchase_sessions_count as purchase_sessions_count,
        case when device_type = 'mobile' then weight * sessions_count end as mobile_sessions_count,
        case when device_type = 'mobile' then weight * purchase_sessions_count end as mobile_purchase_sessions_count,
        case when device_type = 'desktop' then weight * sessions_count end as desktop_sessions_count,
        case when device_type = 'desktop' then weight * purchase_sessions_count end as desktop_purchase_sessions_count
    from {{ delta('int_visits') }} as visits
),
orders as (
    select
        org_id,
        order_date as event_date,
        weight * orders_count as orders_count,
        weight * gross_revenue_amount as gross_revenue_amount,
        weight * refunded_amount as refunded_amount,
        weight * net_revenue_amount as net_revenue_amount
    from {{ delta('int_orders') }} as orders
),
combined as (
    select org_id, event_date, events_count, 0 as sessions_count, 0 as ticket_cta_sessions_count, 0 as checkout_sessions_count,
        0 as purchase_sessions_count, 0 as mobile_sessions_count, 0 as mobile_purchase_sessions_count, 0 as desktop_sessions_count,
        0 as desktop_purchase_sessions_count, 0 as orders_count, 0 as gross_revenue_amount, 0 as refunded_amount, 0 as net_revenue_amount
    from visitorless
    union all
    select org_id, event_date, events_count, sessions_count, ticket_cta_sessions_count, checkout_sessions_count, purchase_sessions_count,
        mobile_sessions_count, mobile_purchase_sessions_count, desktop_sessions_count, desktop_purchase_sessions_count, 0, 0, 0, 0
    from visits
    union all
    select org_id, event_date, 0, 0, 0, 0, 0, 0, 0, 0, 0, orders_count, gross_revenue_amount, refunded_amount, net_revenue_amount
    from orders
),
final as (
    select
        org_id,
        {{ total('events_count') }},
        {{ total('sessions_count') }},
        {{ total('ticket_cta_sessions_count') }},
        {{ total('checkout_sessions_count') }},
        {{ total('purchase_sessions_count') }},
        {{ total('mobile_sessions_count') }},
        {{ total('mobile_purchase_sessions_count') }},
        {{ total('desktop_sessions_count') }},
        {{ total('desktop_purchase_sessions_count') }},
        {{ total('orders_count') }},
        {{ total_amount('gross_revenue_amount') }},
        {{ total_amount('refunded_amount') }},
        {{ total_amount('net_revenue_amount') }},
        event_date
    from combined
    group by org_id, event_date
)
select * from final
