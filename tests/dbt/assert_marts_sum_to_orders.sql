-- Orders and amounts of every daily mart are those of int_orders, per org: nothing lost or doubled on the way.
{{ config(meta={'dagster': {'ref': {'name': 'audience_overview_daily'}}}) }}
with orders as (
    select
        org_id,
        sum(orders_count) as orders_count,
        coalesce(sum(gross_revenue_amount), 0) as gross_revenue_amount,
        coalesce(sum(refunded_amount), 0) as refunded_amount,
        coalesce(sum(net_revenue_amount), 0) as net_revenue_amount
    from {{ ref('int_orders') }}
    group by org_id
),
daily as (
    select 'audience_overview_daily' as mart, org_id, orders_count, gross_revenue_amount, refunded_amount, net_revenue_amount
    from {{ ref('audience_overview_daily') }}
    union all
    select 'audience_by_channel_daily', org_id, orders_count, gross_revenue_amount, refunded_amount, net_revenue_amount
    from {{ ref('audience_by_channel_daily') }}
    union all
    select 'device_network_daily', org_id, orders_count, gross_revenue_amount, refunded_amount, net_revenue_amount
    from {{ ref('device_network_daily') }}
),
marts as (
    select
        mart,
        org_id,
        sum(orders_count) as orders_count,
        sum(gross_revenue_amount) as gross_revenue_amount,
        sum(refunded_amount) as refunded_amount,
        sum(net_revenue_amount) as net_revenue_amount
    from daily
    group by mart, org_id
),
-- An org without orders may be in a mart, with zeros; one with orders must be in each.
expected as (
    select marts.mart, orgs.org_id
    from (values ('audience_overview_daily'), ('audience_by_channel_daily'), ('device_network_daily')) as marts (mart)
    cross join (select org_id from orders union select org_id from marts) as orgs
),
final as (
    select expected.mart, expected.org_id, orders.net_revenue_amount as expected_amount, marts.net_revenue_amount as found_amount
    from expected
    left join orders on orders.org_id = expected.org_id
    left join marts on marts.mart = expected.mart and marts.org_id = expected.org_id
    where coalesce(orders.orders_count, 0) <> coalesce(marts.orders_count, 0)
        or coalesce(orders.gross_revenue_amount, 0) <> coalesce(marts.gross_revenue_amount, 0)
        or coalesce(orders.refunded_amount, 0) <> coalesce(marts.refunded_amount, 0)
        or coalesce(orders.net_revenue_amount, 0) <> coalesce(marts.net_revenue_amount, 0)
)
select * from final
