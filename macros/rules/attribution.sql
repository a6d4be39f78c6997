{# The part of an amount that falls to a source with `parts` of the `whole` touches, `up_to` of them its own and those of the
   sources before it: the rounded total so far less the rounded total before it. So the parts add up to the amount. #}
{% macro credit_share(amount, parts, up_to, whole, digits) -%}
round(cast({{ amount }} as numeric) * {{ up_to }} / {{ whole }}, {{ digits }}) - round(cast({{ amount }} as numeric) * ({{ up_to }} - {{ parts }}) / {{ whole }}, {{ digits }})
{%- endmacro %}


{# An order's own session says nothing of where it came from, and a touch recent enough before it does. #}
{% macro is_explained_by_earlier_touch(has_touch, session_started_at, touched_at) -%}
coalesce(not {{ has_touch }} and {{ touched_at }} >= {{ session_started_at }} - interval '{{ var("last_non_direct_days") }} days', false)
{%- endmacro %}


{# The attributions, each with its columns of a row of audience_acquisition_daily. #}
{% macro attributions() -%}
cross join lateral (values
    ('first_touch', first_touch_orders_count, first_touch_net_revenue_amount),
    ('last_touch', last_touch_orders_count, last_touch_net_revenue_amount),
    ('last_non_direct', last_non_direct_orders_count, last_non_direct_net_revenue_amount),
    ('linear', linear_orders_count, linear_net_revenue_amount)
) as attributions (attribution, orders_count, net_revenue_amount)
{%- endmacro %}
