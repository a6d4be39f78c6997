{# An organisation's settings: its row of the orgs seed, else the documented defaults. #}
{% macro org_currency(org) -%}coalesce({{ org }}.currency, '{{ var("default_currency") }}'){%- endmacro %}

{% macro week_start(day, org) -%}
cast({{ day }} - cast(mod(cast(extract(isodow from {{ day }}) as integer) - coalesce({{ org }}.week_starts_on, {{ var("default_week_starts_on") }}) + 7, 7) as integer) as date)
{%- endmacro %}


{% macro org_or_missing(org_id) -%}case when btrim({{ org_id }}) <> '' then {{ org_id }} else '(missing)' end{%- endmacro %}
