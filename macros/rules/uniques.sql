{# Over the rows of a visitor's days in order: the day on which the visitor last did the same before this day;
   '0001-01-01' for never. Null in a row without it, and where an earlier row of the same day has it.
   Summing visitors whose previous day is before the first day of a range counts each of them once, over any range. #}
{% macro previous_date(condition, chain) -%}
case when {{ condition }} then nullif(coalesce(
            max(event_date) filter (where {{ condition }}) over ({{ chain }} rows between unbounded preceding and 1 preceding),
            date '0001-01-01'), event_date) end
{%- endmacro %}


{# The previous day of each activity, along a chain of the visitor's rows: all, or those of a slice, which the names then begin with. #}
{% macro previous_dates(chain, slice='') -%}
{{ previous_date('true', chain) }} as previous_{{ slice }}visit_date,
        {{ previous_date('has_ticket_cta', chain) }} as previous_{{ slice }}ticket_cta_date,
        {{ previous_date('has_checkout', chain) }} as previous_{{ slice }}checkout_date,
        {{ previous_date('has_purchase', chain) }} as previous_{{ slice }}purchase_date
{%- endmacro %}


{# The activities that are counted by distinct visitors, with the columns that tell them in a row of a visitor's day. #}
{% macro unique_activities(days, slice='') -%}
cross join lateral (values
    ('visit', {{ days }}.previous_{{ slice }}visit_date),
    ('ticket_cta', {{ days }}.previous_{{ slice }}ticket_cta_date),
    ('checkout_start', {{ days }}.previous_{{ slice }}checkout_date),
    ('purchase', {{ days }}.previous_{{ slice }}purchase_date)
) as activities (activity, previous_date)
{%- endmacro %}


{# What holds for each row of distinct visitors that add up. #}
{% macro checks_of_uniques() -%}
{{ return({
    'known_activity': "activity in ('visit', 'ticket_cta', 'checkout_start', 'purchase')",
    'uniques_are_plausible': 'visitors_count > 0 and previous_date < event_date',
}) }}
{%- endmacro %}
