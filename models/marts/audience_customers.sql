-- Grain: one row per org and visitor: where they came from, what they bought, where they stand and how likely they are to buy, as of as_of.
{{ config(
    unique_key=['org_id', 'visitor_id'],
    fillfactor=85,
    indexes=[{'columns': ['org_id', 'last_seen_at']}],
    checks={
        'known_lifecycle_stage': "lifecycle_stage in ('churned', 'at_risk', 'champion', 'repeat_buyer', 'customer', 'prospect')",
        'known_propensity_band': "propensity_band is not null and propensity_band in ('contact_now', 'retarget', 'nurture', 'awareness')",
        'points_make_the_score': "propensity_score = " ~ propensity_score(),
        'counts_are_plausible': "sessions_count between 1 and events_count and orders_count >= 0",
        'seen_in_order': "first_seen_at <= last_seen_at and first_order_at <= last_order_at",
    },
) }}
{% call scope('org_id, visitor_id') %}
{{ changed_visitors() }}
union all
{{ customers_with_changed_consent() }}
union all
{{ customers_not_seen_for(var('at_risk_after_days')) }}
union all
{{ customers_not_seen_for(var('churned_after_days')) }}
union all
-- what was clicked counts no more; or a visit does, of somebody slow or with other visits that count
select visits.org_id, visits.visitor_id
from {{ ref('int_visits') }} as visits
join {{ this }} as customers on customers.org_id = visits.org_id and customers.visitor_id = visits.visitor_id
where {{ visited_days_ago(var('propensity_window_days')) }}
    and (
        {{ passed_days_ago('visits.last_ticket_cta_at', var('propensity_window_days')) }}
        or {{ passed_days_ago('visits.last_checkout_at', var('propensity_window_days')) }}
        or {{ passed_days_ago('visits.last_event_at', var('propensity_window_days')) }} and (
            customers.propensity_slow_network_points <> 0
            or customers.last_seen_at + interval '{{ var("propensity_window_days") }} days' > {{ as_of() }}
            or {{ as_of() }} < {{ previous_as_of() }}
        )
    )
union all
-- a session is recent no more, of a buyer who had enough of them
select visits.org_id, visits.visitor_id
from {{ ref('int_visits') }} as visits
join {{ this }} as customers on customers.org_id = visits.org_id and customers.visitor_id = visits.visitor_id
where {{ visited_days_ago(var('champion_recent_days')) }}
    and {{ passed_days_ago('visits.first_event_at', var('champion_recent_days')) }}
    and customers.orders_count > 0 and customers.sessions_count >= {{ var('champion_min_recent_sessions') }}
{% endcall %}
with activity as (
    select * from {{ ref('int_customer_activity') }}
),
orders as (
    select
        org_id,
        visitor_id,
        sum(orders_count) as orders_count,
        sum(gross_revenue_amount) as gross_revenue_amount,
        sum(refunded_amount) as refunded_amount,
        sum(net_revenue_amount) as net_revenue_amount,
        min(ordered_at) filter (where orders_count = 1) as first_order_at,
        max(ordered_at) filter (where orders_count = 1) as last_order_at
    from {{ ref('int_orders') }}
    where {{ in_scope('org_id, visitor_id') }} and visitor_id is not null
    group by org_id, visitor_id
),
channels as (
    select * from {{ ref('int_channels') }}
),
slow_networks as (
    select distinct network_type from {{ ref('network_types') }} where is_slow
),
weights as (
    {{ propensity_weights_row() }}
),
facts as (
    select
        activity.*,
        coalesce(orders.orders_count, 0) as orders_count,
        coalesce(orders.gross_revenue_amount, 0) as gross_revenue_amount,
        coalesce(orders.refunded_amount, 0) as refunded_amount,
        coalesce(orders.net_revenue_amount, 0) as net_revenue_amount,
        orders.first_order_at,
        orders.last_order_at,
        slow_networks.network_type is not null or coalesce(recent_page_load_ms > {{ var('slow_page_load_ms') }}, false) as is_slow
    from activity
    left join orders on orders.org_id = activity.org_id and orders.visitor_id = activity.visitor_id
    left join slow_networks on slow_networks.network_type = activity.recent_network_type
),
scored as (
    select
        facts.*,
        {{ lifecycle_stage('last_seen_at', 'orders_count', 'recent_sessions_count', as_of()) }} as lifecycle_stage,
        {{ propensity_points('weights', 'has_recent_ticket_cta', 'has_recent_checkout', 'sessions_count', 'is_slow', 'orders_count') }}
    from facts
    cross join weights
),
final as (
    select
        scored.org_id,
        scored.visitor_id,
        first_touch_source,
        first_touch_medium,
        first_touch_campaign,
        first_channel.channel as first_touch_channel,
        last_touch_source,
        last_touch_medium,
        last_touch_campaign,
        last_channel.channel as last_touch_channel,
        last_non_direct_source,
        last_non_direct_medium,
        last_non_direct_campaign,
        coalesce(non_direct_channel.channel, 'Direct') as last_non_direct_channel,
        coalesce(usual_device_type, 'unknown') as usual_device_type,
        coalesce(usual_network_type, 'unknown') as usual_network_type,
        scored.consent_state,
        lifecycle_stage,
        bands.band as propensity_band,
        sessions_count,
        events_count,
        cast(orders_count as bigint) as orders_count,
        cast(gross_revenue_amount as numeric(18, 2)) as gross_revenue_amount,
        cast(refunded_amount as numeric(18, 2)) as refunded_amount,
        cast(net_revenue_amount as numeric(18, 2)) as net_revenue_amount,
        cast(round(net_revenue_amount / nullif(orders_count, 0), 2) as numeric(18, 2)) as average_order_amount,
        score as propensity_score,
        propensity_ticket_cta_points,
        propensity_checkout_start_points,
        propensity_repeat_visitor_points,
        propensity_slow_network_points,
        propensity_past_purchaser_points,
        coalesce(consent_states.is_consented, false) as is_consented,
        coalesce(consent_states.is_opted_out, false) as is_opted_out,
        first_seen_at,
        last_seen_at,
        first_order_at,
        last_order_at
    from scored
    cross join lateral (select {{ propensity_score('scored.') }} as score) as scores
    left join {{ ref('propensity_bands') }} as bands on score between bands.min_score and bands.max_score
    left join {{ ref('consent_states') }} as consent_states on consent_states.consent_state = scored.consent_state
    left join channels as first_channel
        on first_channel.org_id = scored.org_id and first_channel.source = first_touch_source
        and first_channel.medium = first_touch_medium and first_channel.campaign = first_touch_campaign
    left join channels as last_channel
        on last_channel.org_id = scored.org_id and last_channel.source = last_touch_source
        and last_channel.medium = last_touch_medium and last_channel.campaign = last_touch_campaign
    left join channels as non_direct_channel
        on non_direct_channel.org_id = scored.org_id and non_direct_channel.source = last_non_direct_source
        and non_direct_channel.medium = last_non_direct_medium and non_direct_channel.campaign = last_non_direct_campaign
)
-- in the order of time, so that the customers for whom a limit of days passes on the same day lie together
select * from final order by last_seen_at
