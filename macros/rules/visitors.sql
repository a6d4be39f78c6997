{# Who acted: the event's user; else the user its device is mapped to; else the device. #}
{% macro visitor_id(event, device) -%}
coalesce({{ event }}.user_id, {{ device }}.user_id, {{ event }}.anonymous_id)
{%- endmacro %}


{# The last known value in a group of events. One ordering for all, so that it is sorted once. #}
{% macro last_known(column, condition) -%}
(array_agg({{ column }} order by occurred_at, event_id) filter (where {{ condition }}))[cardinality(array_agg({{ column }} order by occurred_at, event_id) filter (where {{ condition }}))]
{%- endmacro %}


{# Inside scope(): visitors with changed visits or orders. #}
{% macro changed_visitors() %}
select org_id, visitor_id from {{ changes('int_visits') }} as visits
union all
select org_id, visitor_id from {{ changes('int_orders') }} as orders where visitor_id is not null
{% endmacro %}
