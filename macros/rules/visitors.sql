{# Who acted: the event's user; else the user its device is mapped to; else the device. #}
{% macro visitor_id(event, device) -%}
coalesce({{ event }}.user_id, {{ device }}.user_id, {{ event }}.anonymous_id)
{%- endmacro %}


{# The first known values of several columns at once, as a 1 x n array: read [1][1], [1][2] ... #}
{% macro first_known_together(columns, condition) -%}
(array_agg(array[{{ columns }}] order by occurred_at, event_id) filter (where {{ condition }}))[1:1]
{%- endmacro %}


{# The first and the last known value in a group of events. One ordering for all, so that it is sorted once. #}
{% macro first_known(column, condition) -%}
(array_agg({{ column }} order by occurred_at, event_id) filter (where {{ condition }}))[1]
{%- endmacro %}

{% macro last_known(column, condition) -%}
(array_agg({{ column }} order by occurred_at, event_id) filter (where {{ condition }}))[cardinality(array_agg({{ column }} order by occurred_at, event_id) filter (where {{ condition }}))]
{%- endmacro %}
