-- Grain: one row per org, visitor, local day, traffic source and device slice: when the visitor did the same before, at
-- all, from the same source, in the same device slice, and with the same device type and network. Each counts once a day:
-- in the first row of the day that has it.
{{ config(
    unique_key=['org_id', 'visitor_id', 'event_date', 'row_in_day'],
    changes=['org_id', 'source', 'medium', 'campaign', 'device_type', 'os', 'browser', 'network_type', 'is_first_touch', 'event_date',
        'previous_visit_date', 'previous_ticket_cta_date', 'previous_checkout_date', 'previous_purchase_date',
        'previous_source_visit_date', 'previous_source_ticket_cta_date', 'previous_source_checkout_date', 'previous_source_purchase_date',
        'previous_device_visit_date', 'previous_device_ticket_cta_date', 'previous_device_checkout_date', 'previous_device_purchase_date',
        'previous_network_visit_date', 'previous_network_ticket_cta_date', 'previous_network_checkout_date', 'previous_network_purchase_date'],
) }}
{% call scope('org_id, visitor_id', since='event_date') %}
-- a day looks back alone, at visits in the order of their sessions' starts, the earliest of which is a local day before UTC's
select org_id, visitor_id, cast(session_started_at as date) - 1 as since from {{ changes('int_visits') }} as visits
union all
select org_id, visitor_id, order_date from {{ changes('int_orders') }} as orders where visitor_id is not null
{% endcall %}
with visits as (
    select
        *,
        row_number() over (partition by visitor_id, org_id order by session_started_at, session_id, event_date) as visit_number
    from {{ ref('int_visit_orders') }}
),
days as (
    select
        org_id,
        visitor_id,
        source,
        medium,
        campaign,
        device_type,
        os,
        browser,
        network_type,
        sum(ticket_ctas_count) > 0 as has_ticket_cta,
        sum(checkouts_count) > 0 as has_checkout,
        sum(orders_count) > 0 as has_purchase,
        min(visit_number) = 1 as is_first_touch,
        cast(row_number() over (
            partition by visitor_id, org_id, event_date order by source, medium, campaign, device_type, os, browser, network_type
        ) as integer) as row_in_day,
        event_date
    from visits
    group by org_id, visitor_id, source, medium, campaign, device_type, os, browser, network_type, event_date
),
final as (
    select
        org_id,
        visitor_id,
        source,
        medium,
        campaign,
        device_type,
        os,
        browser,
        network_type,
        row_in_day,
        is_first_touch,
        event_date,
        {{ previous_dates('at_all') }},
        {{ previous_dates('from_source', 'source_') }},
        {{ previous_dates('in_slice', 'device_') }},
        {{ previous_dates('on_network', 'network_') }}
    from days
    window
        at_all as (partition by visitor_id, org_id order by event_date, row_in_day),
        from_source as (partition by visitor_id, org_id, source, medium, campaign order by event_date, row_in_day),
        -- in this order the rows of a slice lie together within those of its device type and network
        in_slice as (partition by visitor_id, org_id, device_type, network_type, os, browser order by event_date, row_in_day),
        on_network as (partition by visitor_id, org_id, device_type, network_type order by event_date, row_in_day)
)
select final.*
from final
{{ since('final.org_id, final.visitor_id', 'final.event_date') }}
