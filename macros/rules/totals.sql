{# A sum, under the column's own name or another; of nothing it is zero. #}
{% macro total(column, name=none) -%}
cast(coalesce(sum({{ column }}), 0) as bigint) as {{ name or column }}
{%- endmacro %}

{% macro total_amount(column) -%}
cast(coalesce(sum({{ column }}), 0) as numeric(18, 2)) as {{ column }}
{%- endmacro %}
