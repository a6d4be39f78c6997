{# Marts live in the target schema itself; everything else beside it, under the same prefix, so that a second
   target schema is a complete second build from the same landing tables. #}
{% macro generate_schema_name(custom_schema_name, node) -%}
{{ target.schema if custom_schema_name is none else target.schema ~ '_' ~ custom_schema_name | trim }}
{%- endmacro %}
