-- Grain: one row per org, order reference and finding: orders that need a person's eye.
{{ config(unique_key=['org_id', 'order_reference', 'finding']) }}
{% call scope('org_id, order_reference') %}
select org_id, order_reference from {{ changes('int_orders') }} as orders
{% endcall %}
with orders as (
    select *, count(*) filter (where orders_count = 1) over (partition by order_reference, org_id) as buyers_count
    from {{ ref('int_orders') }}
    where {{ in_scope('org_id, order_reference') }}
),
final as (
    select
        orders.org_id,
        orders.order_reference,
        max(orders.order_id) as order_id,
        findings.finding,
        sum(orders.orders_count) as orders_count,
        cast(sum(orders.gross_revenue_amount) as numeric(18, 2)) as gross_revenue_amount
    from orders
    cross join lateral (values
        ('same order id from several visitors: counted once for each', orders.orders_count = 1 and orders.buyers_count > 1),
        ('no exchange rate: the amount is null', orders.is_rate_missing),
        ('refund without a purchase', orders.orders_count = 0),
        ('more refunded than paid', orders.orders_count = 1 and orders.net_revenue_amount < 0)
    ) as findings (finding, is_found)
    where findings.is_found
    group by orders.org_id, orders.order_reference, findings.finding
)
select * from final
