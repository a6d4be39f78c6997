{# Over one row per day: the day on which the same visitor (in the same slice) last did the same before this day; '0001-01-01' for never.
   Null when the visitor did not do it on this day. Summing visitors whose previous day is before the first day of a
   range counts each of them once, over any range. #}
{% macro previous_date(condition) -%}
case when {{ condition }} then coalesce(
            max(event_date) filter (where {{ condition }}) over (chain rows between unbounded preceding and 1 preceding),
            date '0001-01-01') end
{%- endmacro %}


{# The activities that are counted by distinct visitors, with the columns that tell them in a visitor's day. #}
{% macro unique_activities(days) -%}
cross join lateral (values
    ('visit', {{ days }}.previous_visit_date),
    ('ticket_cta', {{ days }}.previous_ticket_cta_date),
    ('checkout_start', {{ days }}.previous_checkout_date),
    ('purchase', {{ days }}.previous_purchase_date)
) as activities (activity, previous_date)
{%- endmacro %}


{# What holds for each row of distinct visitors that add up. #}
{% macro checks_of_uniques() -%}
{{ return({
    'known_activity': "activity in ('visit', 'ticket_cta', 'checkout_start', 'purchase')",
    'uniques_are_plausible': 'visitors_count > 0 and previous_date < event_date',
}) }}
{%- endmacro %}


{# Did the visitor's row of the day hold this? Orders are joined to the visit they were made in. #}
{% macro visitor_day_flags() -%}
sum(ticket_ctas_count) > 0 as has_ticket_cta,
        sum(checkouts_count) > 0 as has_checkout,
        sum(orders_count) > 0 as has_purchase
{%- endmacro %}

{% macro visitor_day_previous_dates() -%}
{{ previous_date('true') }} as previous_visit_date,
        {{ previous_date('has_ticket_cta') }} as previous_ticket_cta_date,
        {{ previous_date('has_checkout') }} as previous_checkout_date,
        {{ previous_date('has_purchase') }} as previous_purchase_date
{%- endmacro %}
