-- Grain: one row per org and purchase or refund event of a person, with its amount in the org's currency.
-- A refund sent by somebody else than the buyer (the shop's own system) belongs to the buyer, when there is one.
{{ config(materialized='ephemeral') }}
with events as (
    select *
    from {{ ref('int_events_enriched') }}
    where {{ in_scope('org_id, order_reference') }}
        and order_reference is not null
        and is_person
        and occurred_at <= {{ as_of() }}
),
devices as (
    select * from {{ ref('int_devices') }}
),
identified as (
    select
        events.*,
        events.event_type = 'refund' as is_refund,
        {{ visitor_id('events', 'devices') }} as own_visitor_id,
        coalesce(upper(events.currency), {{ org_currency('orgs') }}) as source_currency,
        {{ org_currency('orgs') }} as org_currency
    from events
    left join devices on devices.org_id = events.org_id and devices.device_id = events.device_id
    left join {{ ref('orgs') }} as orgs on orgs.org_id = events.org_id
),
buyers as (
    select
        *,
        min(own_visitor_id) filter (where not is_refund) over (partition by org_id, order_reference) as buyer_id,
        max(own_visitor_id) filter (where not is_refund) over (partition by org_id, order_reference) as other_buyer_id,
        bool_or(not is_refund and own_visitor_id is null) over (partition by org_id, order_reference) as has_unknown_buyer,
        bool_or(not is_refund) over (partition by org_id, order_reference) as has_purchase
    from identified
),
valued as (
    select *, case when is_refund then revenue_amount else coalesce(revenue_amount, 0) end as value_amount from buyers
),
rates as (
    select
        currency,
        to_currency,
        rate,
        valid_from,
        lead(valid_from, 1, 'infinity') over (partition by currency, to_currency order by valid_from) as valid_to
    from {{ ref('fx_rates') }}
),
final as (
    select
        valued.org_id,
        valued.event_id,
        valued.order_reference,
        valued.order_id,
        case
            when is_refund and has_purchase and has_unknown_buyer and buyer_id is null then null
            when is_refund and buyer_id = other_buyer_id and not has_unknown_buyer then buyer_id
            else own_visitor_id
        end as visitor_id,
        device_id,
        source_currency as currency,
        revenue_amount,
        case
            when source_currency = org_currency then round(value_amount, 2)
            else round(value_amount * rates.rate, 2)
        end as amount,
        is_refund,
        source_currency <> org_currency and rates.rate is null and value_amount is not null as is_rate_missing,
        event_date,
        occurred_at,
        received_at
    from valued
    left join rates
        on rates.currency = source_currency and rates.to_currency = org_currency and source_currency <> org_currency
        and event_date >= rates.valid_from and event_date < rates.valid_to
)
select * from final
