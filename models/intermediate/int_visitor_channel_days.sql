-- Grain: one row per org, visitor, traffic source and local day: when the visitor did the same from the same source before.
{{ config(
    unique_key=['org_id', 'visitor_id', 'source', 'medium', 'campaign', 'event_date'],
    changes=['org_id', 'source', 'medium', 'campaign', 'event_date', 'previous_visit_date', 'previous_ticket_cta_date', 'previous_checkout_date', 'previous_purchase_date'],
) }}
{% call scope('org_id, visitor_id') %}
select org_id, visitor_id from {{ changes('int_visits') }} as visits
union all
select org_id, visitor_id from {{ changes('int_orders') }} as orders where visitor_id is not null
{% endcall %}
with days as (
    select
        org_id,
        visitor_id,
        source,
        medium,
        campaign,
        event_date,
        {{ visitor_day_flags() }}
    from {{ ref('int_visit_orders') }}
    group by org_id, visitor_id, source, medium, campaign, event_date
),
final as (
    select
        org_id,
        visitor_id,
        source,
        medium,
        campaign,
        event_date,
        {{ visitor_day_previous_dates() }}
    from days
    window chain as (partition by org_id, visitor_id, source, medium, campaign order by event_date)
)
select * from final
