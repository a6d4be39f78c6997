-- Grain: one row per org, session, visitor and local day: the visit with how many orders were made in it.
{{ config(materialized='ephemeral') }}
with visits as (
    select * from {{ ref('int_visits') }} where {{ in_scope('org_id, visitor_id') }}
),
orders as (
    select org_id, session_id, visitor_id, order_date, sum(orders_count) as orders_count
    from {{ ref('int_orders') }}
    where {{ in_scope('org_id, visitor_id') }}
    group by org_id, session_id, visitor_id, order_date
),
final as (
    select visits.*, coalesce(orders.orders_count, 0) as orders_count
    from visits
    left join orders
        on orders.org_id = visits.org_id and orders.session_id = visits.session_id
        and orders.visitor_id = visits.visitor_id and orders.order_date = visits.event_date
)
select * from final
