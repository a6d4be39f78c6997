-- Grain: one row per org, order reference and visitor: an order with what was refunded of it, in the org's currency.
-- The first received purchase of an order counts. A purchase without an order id is its own order.
{{ config(
    unique_key=['org_id', 'order_key'],
    changes='*',
    indexes=[
        {'columns': ['org_id', 'order_reference']},
        {'columns': ['org_id', 'visitor_id']},
        {'columns': ['order_date', 'org_id']},
    ],
    checks={
        'order_is_counted_once': "orders_count in (0, 1)",
        'net_is_gross_less_refunds': "net_revenue_amount = gross_revenue_amount - refunded_amount and refunded_amount >= 0",
    },
) }}
{% call scope('org_id, order_reference') %}
select org_id, order_reference from {{ changes('int_events_enriched') }} as events where order_reference is not null
union all
select events.org_id, events.order_reference
from (select distinct org_id, device_id from {{ changes('int_visits') }} as changed) as visits
join {{ ref('int_events_enriched') }} as events on events.org_id = visits.org_id and events.device_id = visits.device_id
where events.order_reference is not null
union all
select org_id, order_reference from {{ ref('int_events_enriched') }} as newly_past
where order_reference is not null and {{ passed_since_previous('occurred_at') }}
{% endcall %}
with lines as (
    select * from {{ ref('int_order_lines') }}
),
orders as (
    select
        org_id,
        order_reference,
        visitor_id,
        (array_agg(event_id order by is_refund, received_at, occurred_at, event_id))[1] as event_id,
        count(*) filter (where not is_refund) as purchase_events_count,
        count(*) filter (where is_refund) as refunds_count,
        case when not bool_or(is_refund and is_rate_missing) then coalesce(sum(amount) filter (where is_refund), 0) end as refunded_amount,
        bool_or(is_refund and amount is null and revenue_amount is null) as is_refunded_whole,
        bool_or(is_rate_missing) as is_rate_missing
    from lines
    group by org_id, order_reference, visitor_id
),
visits as (
    select * from {{ ref('int_visits') }}
),
final as (
    select
        orders.org_id,
        md5(cast(row(orders.order_reference, orders.visitor_id) as text)) as order_key,
        orders.order_reference,
        lines.order_id,
        orders.event_id,
        orders.visitor_id,
        visits.session_id,
        coalesce(visits.source, '(unattributed)') as source,
        coalesce(visits.medium, '(unattributed)') as medium,
        coalesce(visits.campaign, '(unattributed)') as campaign,
        coalesce(visits.device_type, '(unattributed)') as device_type,
        coalesce(visits.os, '(unattributed)') as os,
        coalesce(visits.browser, '(unattributed)') as browser,
        coalesce(visits.network_type, '(unattributed)') as network_type,
        lines.currency as source_currency,
        orders.purchase_events_count,
        orders.refunds_count,
        cast(not lines.is_refund as integer) as orders_count,
        cast(case when lines.is_refund then 0 else lines.amount end as numeric(18, 2)) as gross_revenue_amount,
        cast(amounts.refunded as numeric(18, 2)) as refunded_amount,
        cast(case when lines.is_refund then 0 else lines.amount end - amounts.refunded as numeric(18, 2)) as net_revenue_amount,
        orders.is_rate_missing,
        lines.event_date as order_date,
        lines.occurred_at as ordered_at
    from orders
    join lines on lines.org_id = orders.org_id and lines.event_id = orders.event_id
    cross join lateral (
        select case when orders.is_refunded_whole and not lines.is_refund then lines.amount else orders.refunded_amount end as refunded
    ) as amounts
    left join visits
        on visits.org_id = lines.org_id and visits.device_id = lines.device_id and visits.visitor_id = orders.visitor_id
        and visits.event_date = lines.event_date and lines.occurred_at between visits.session_started_at and visits.session_ended_at
)
select * from final
