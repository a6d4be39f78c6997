{# Where a customer stands at a moment; the first match wins. #}
{% macro lifecycle_stage(last_seen_at, orders_count, recent_sessions_count, at) -%}
case
            when {{ at }} - {{ last_seen_at }} >= interval '{{ var("churned_after_days") }} days' then 'churned'
            when {{ at }} - {{ last_seen_at }} >= interval '{{ var("at_risk_after_days") }} days' then 'at_risk'
            when {{ orders_count }} >= {{ var('champion_min_orders') }} then 'champion'
            when {{ orders_count }} >= 1 and {{ recent_sessions_count }} >= {{ var('champion_min_recent_sessions') }} then 'champion'
            when {{ orders_count }} >= {{ var('repeat_buyer_min_orders') }} then 'repeat_buyer'
            when {{ orders_count }} = 1 then 'customer'
            else 'prospect'
        end
{%- endmacro %}


{# The points of each propensity rule: a column a rule. The batch and the live score are both made of these.
   weights: one row with a column of points per rule. #}
{% macro propensity_points(weights, has_ticket_cta, has_checkout, sessions_count, is_slow, orders_count) -%}
case when {{ has_ticket_cta }} then {{ weights }}.ticket_cta else 0 end as propensity_ticket_cta_points,
        case when {{ has_checkout }} then {{ weights }}.checkout_start else 0 end as propensity_checkout_start_points,
        case when {{ sessions_count }} >= {{ var('repeat_visitor_min_sessions') }} then {{ weights }}.repeat_visitor else 0 end as propensity_repeat_visitor_points,
        case when {{ is_slow }} then {{ weights }}.slow_network else 0 end as propensity_slow_network_points,
        case when {{ orders_count }} >= 1 then {{ weights }}.past_purchaser else 0 end as propensity_past_purchaser_points
{%- endmacro %}

{# points: what has the columns of points, with a dot; left out where they are columns of their own row. #}
{% macro propensity_score(points='') -%}
greatest(0, least({{ var('propensity_max_score') }}, {{ points }}propensity_ticket_cta_points + {{ points }}propensity_checkout_start_points
            + {{ points }}propensity_repeat_visitor_points + {{ points }}propensity_slow_network_points + {{ points }}propensity_past_purchaser_points))
{%- endmacro %}

{# The weights seed as one row; a rule that is not in it earns nothing. #}
{% macro propensity_weights_row() -%}
select
        {%- for rule in ['ticket_cta', 'checkout_start', 'repeat_visitor', 'slow_network', 'past_purchaser'] %}
        coalesce(max(points) filter (where rule = '{{ rule }}'), 0) as {{ rule }}{{ ',' if not loop.last }}
        {%- endfor %}
    from {{ ref('propensity_weights') }}
{%- endmacro %}


{# Inside scope(), a condition on `visits`: near the days on which a limit of days passed. Read by an index. #}
{% macro visited_days_ago(days) -%}
visits.event_date between cast(least({{ previous_as_of() }}, {{ as_of() }}) as date) - {{ days }} - 1
        and cast(greatest({{ previous_as_of() }}, {{ as_of() }}) as date) - {{ days }} + 1
{%- endmacro %}

{# Inside scope(): `moment` became, or is no more, a number of days old since the previous build. #}
{% macro passed_days_ago(moment, days) -%}
{{ passed_since_previous(moment ~ " + interval '" ~ days ~ " days'") }}
{%- endmacro %}

{# Inside scope(): visitors whose latest visit became, or is no more, a number of days old since the previous build. #}
{% macro customers_not_seen_for(days) %}
select visits.org_id, visits.visitor_id
from {{ ref('int_visits') }} as visits
where {{ visited_days_ago(days) }} and {{ passed_days_ago('visits.last_event_at', days) }}
    and not exists (
        select from {{ ref('int_visits') }} as later
        where later.org_id = visits.org_id and later.visitor_id = visits.visitor_id and later.last_event_at > visits.last_event_at
    )
{% endmacro %}


{# Inside scope(): visitors one of whose senders made or unmade a consent statement, or made one that as_of has passed since. #}
{% macro customers_with_changed_consent() %}
select visits.org_id, visits.visitor_id
from (
    select org_id, anonymous_id, user_id from {{ changes('int_consent_events') }} as changed
    union
    select org_id, anonymous_id, user_id from {{ ref('int_consent_events') }} as newly_past where {{ passed_since_previous('occurred_at') }}
) as statements
join {{ ref('int_visits') }} as visits on visits.org_id = statements.org_id and visits.device_id = statements.anonymous_id
union all
select org_id, user_id from {{ changes('int_consent_events') }} as changed where user_id is not null
union all
select org_id, user_id from {{ ref('int_consent_events') }} as newly_past
where user_id is not null and {{ passed_since_previous('occurred_at') }}
{% endmacro %}
