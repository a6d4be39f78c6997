-- Grain: one row per org, local day, device type, operating system, browser and network: sessions, orders, revenue and page load.
-- Orders count in the session they were made in; without a session: (unattributed). Every figure adds up.
{{ config(
    unique_key=['org_id', 'device_type', 'os', 'browser', 'network_type', 'event_date'],
    add=true,
    checks=checks_of_sums(),
) }}
{{ audit_sums() }}
with visitorless as (
    select
        org_id, '(unattributed)' as device_type, '(unattributed)' as os, '(unattributed)' as browser, '(unattributed)' as network_type,
        event_date, weight * events_count as events_count
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
        org_id, device_type, os, browser, network_type, event_date,
        weight * events_count as events_count,
        weight * sessions_count as sessions_count,
        weight * ticket_cta_sessions_count as ticket_cta_sessions_count,
        weight * checkout_sessions_count as checkout_sessions_count,
        weight * purchase_sessions_count as purchase_sessions_count,
        weight * page_loads_count as page_loads_count,
        weight * page_load_total_ms as page_load_total_ms,
        0 as orders_count,
        0 as gross_revenue_amount,
        0 as refunded_amount,
        0 as net_revenue_amount
    from visits
    union all
    select
        org_id, device_type, os, browser, network_type, order_date, 0, 0, 0, 0, 0, 0, 0,
        weight * orders_count,
        weight * gross_revenue_amount,
        weight * refunded_amount,
        weight * net_revenue_amount
    from orders
    union all
    select org_id, device_type, os, browser, network_type, event_date, events_count, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
    from visitorless
),
final as (
    select
        org_id,
        device_type,
        os,
        browser,
        network_type,
        {{ total('events_count') }},
        {{ total('sessions_count') }},
        {{ total('ticket_cta_sessions_count') }},
        {{ total('checkout_sessions_count') }},
        {{ total('purchase_sessions_count') }},
        {{ total('page_loads_count') }},
        {{ total('page_load_total_ms') }},
        {{ total('orders_count') }},
        {{ total_amount('gross_revenue_amount') }},
        {{ total_amount('refunded_amount') }},
        {{ total_amount('net_revenue_amount') }},
        event_date
    from combined
    group by org_id, device_type, os, browser, network_type, event_date
)
select * from final
-- what is read together lies together
order by event_date, org_id
