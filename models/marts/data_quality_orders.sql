-- Grain: one row per org, order reference and finding: orders that need a person's eye.
{{ config(materialized='view', contract={'enforced': false}) }}
with orders as (
    select * from {{ ref('int_orders') }}
),
-- told from the index alone
repeated as (
    select org_id, order_reference from orders group by org_id, order_reference having count(*) > 1
),
final as (
    select
        orders.org_id,
        orders.order_reference,
        max(orders.order_id) as order_id,
        'same order id from several visitors: counted once for each' as finding,
        count(*) as orders_count,
        sum(orders.gross_revenue_amount) as gross_revenue_amount
    from repeated
    join orders on orders.org_id = repeated.org_id and orders.order_reference = repeated.order_reference
    where orders.orders_count = 1
    group by orders.org_id, orders.order_reference
    having count(*) > 1
    union all
    select org_id, order_reference, order_id, 'no exchange rate: the amount is null', orders_count, gross_revenue_amount
    from orders
    where is_rate_missing
    union all
    select org_id, order_reference, order_id, 'refund without a purchase', orders_count, gross_revenue_amount
    from orders
    where orders_count = 0
    union all
    select org_id, order_reference, order_id, 'more refunded than paid', orders_count, gross_revenue_amount
    from orders
    where orders_count = 1 and net_revenue_amount < 0
)
select * from final
