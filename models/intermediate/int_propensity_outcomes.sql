-- Grain: one row per org, past date and propensity score: visitors who had the score when the local day began, and how many of them bought in the days from then on.
-- Who was seen in the days before, by what is known today: an event counts from when it happened, whenever it was received.
{{ config(
    unique_key=['org_id', 'score_date', 'propensity_score'],
    add=true,
    changes=['org_id'],
    checks={
        'buyers_are_visitors': "buyers_count >= 0 and visitors_count >= buyers_count",
    },
) }}
{% call scope('org_id, visitor_id', since='score_date') %}
select org_id, visitor_id, since
from (
    -- a visit counts from the next date on, an order for the dates before it that have it among their days as well
    select visits.org_id, visits.visitor_id, {{ calibration_date_after('visits.event_date', 'orgs') }} as since, orgs.time_zone
    from {{ changes('int_visits') }} as visits
    left join {{ ref('orgs') }} as orgs on orgs.org_id = visits.org_id
    union all
    select orders.org_id, orders.visitor_id, {{ calibration_date_after('orders.order_date - ' ~ var('calibration_outcome_days'), 'orgs') }}, orgs.time_zone
    from {{ changes('int_orders') }} as orders
    left join {{ ref('orgs') }} as orgs on orgs.org_id = orders.org_id
    where orders.visitor_id is not null
    union all
    {{ visitors_of_passed_dates() }}
) as moved
where since + {{ var('calibration_outcome_days') }} <= {{ local_date('greatest(' ~ previous_as_of() ~ ', ' ~ as_of() ~ ')', 'time_zone') }}
{% endcall %}
with visits as (
    select
        visits.org_id,
        visits.visitor_id,
        visits.session_id,
        {{ calibration_date_after('visits.event_date', 'orgs') }} as first_date,
        {{ earns_points_until('visits.last_event_at', 'orgs.time_zone') }} as seen_until,
        {{ earns_points_until('visits.last_ticket_cta_at', 'orgs.time_zone') }} as ticket_cta_until,
        {{ earns_points_until('visits.last_checkout_at', 'orgs.time_zone') }} as checkout_until,
        -- to be compared as text: the latest network is that of the highest, and begins at the 21st character
        to_char(visits.last_event_at at time zone 'UTC', 'YYYYMMDDHH24MISSUS') || visits.last_network_type as known_network,
        visits.page_loads_count,
        visits.page_load_total_ms,
        {{ local_date(as_of(), 'orgs.time_zone') }} - {{ var('calibration_outcome_days') }} as last_date
    from {{ then_and_now('int_visits', 'org_id, visitor_id') }} as visits
    left join {{ ref('orgs') }} as orgs on orgs.org_id = visits.org_id
),
sessions as (
    select org_id, visitor_id, min(first_date) as first_date
    from visits
    group by visitor_id, org_id, session_id
),
repeat_visitors as (
    select org_id, visitor_id, (array_agg(first_date order by first_date))[{{ var('repeat_visitor_min_sessions') }}] as first_date
    from sessions
    group by visitor_id, org_id
    having count(*) >= {{ var('repeat_visitor_min_sessions') }}
),
orders as (
    select
        orders.org_id,
        orders.visitor_id,
        {{ calibration_date_after('orders.order_date', 'orgs') }} as first_date,
        {{ calibration_date_after('orders.order_date - ' ~ var('calibration_outcome_days'), 'orgs') }} as first_outcome_date,
        orders.order_date
    from {{ then_and_now('int_orders', 'org_id, visitor_id') }} as orders
    left join {{ ref('orgs') }} as orgs on orgs.org_id = orders.org_id
    where orders.visitor_id is not null and orders.orders_count = 1
),
past_purchasers as (
    select org_id, visitor_id, min(first_date) as first_date from orders group by org_id, visitor_id
),
moments as (
    select
        visits.org_id,
        visits.visitor_id,
        dates.score_date,
        true as is_visit,
        false as has_bought,
        dates.score_date <= ticket_cta_until as has_ticket_cta,
        dates.score_date <= checkout_until as has_checkout,
        dates.score_date >= repeat_visitors.first_date as is_repeat_visitor,
        dates.score_date >= past_purchasers.first_date as is_past_purchaser,
        known_network,
        page_loads_count,
        page_load_total_ms
    from visits
    left join repeat_visitors on repeat_visitors.org_id = visits.org_id and repeat_visitors.visitor_id = visits.visitor_id
    left join past_purchasers on past_purchasers.org_id = visits.org_id and past_purchasers.visitor_id = visits.visitor_id
    cross join {{ calibration_steps(var('propensity_window_days')) }}
    cross join lateral (select visits.first_date + step as score_date) as dates
    {{ since('visits.org_id, visits.visitor_id', 'dates.score_date') }}
    where dates.score_date <= least(seen_until, last_date)
    union all
    select org_id, visitor_id, first_outcome_date + step, false, true, null, null, null, null, null, 0, 0
    from orders
    cross join {{ calibration_steps(var('calibration_outcome_days') ~ ' - 1') }}
    where first_outcome_date + step <= order_date
),
facts as (
    select
        org_id,
        score_date,
        bool_or(has_bought) as has_bought,
        bool_or(has_ticket_cta) as has_ticket_cta,
        bool_or(has_checkout) as has_checkout,
        bool_or(is_repeat_visitor) as is_repeat_visitor,
        bool_or(is_past_purchaser) as is_past_purchaser,
        max(known_network) as known_network,
        sum(page_load_total_ms) > {{ var('slow_page_load_ms') }} * sum(page_loads_count) as has_slow_pages
    from moments
    group by visitor_id, org_id, score_date
    having bool_or(is_visit)
),
slow_networks as (
    select distinct network_type from {{ ref('network_types') }} where is_slow
),
weights as (
    {{ propensity_weights_row() }}
),
scored as (
    select
        org_id,
        score_date,
        has_bought,
        {{ propensity_points(
            'weights', 'has_ticket_cta', 'has_checkout', 'case when is_repeat_visitor then ' ~ var('repeat_visitor_min_sessions') ~ ' else 1 end',
            'slow_networks.network_type is not null or has_slow_pages', 'case when is_past_purchaser then 1 else 0 end',
        ) }}
    from facts
    left join slow_networks on slow_networks.network_type = substr(known_network, 21)
    cross join weights
),
final as (
    select
        org_id,
        cast({{ propensity_score() }} as integer) as propensity_score,
        count(*) as visitors_count,
        count(*) filter (where has_bought) as buyers_count,
        score_date
    from scored
    group by org_id, propensity_score, score_date
)
select * from final
