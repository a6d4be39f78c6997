{# An organisation's settings: its row of the orgs seed, else the documented defaults. #}
{% macro org_currency(org) -%}coalesce({{ org }}.currency, '{{ var("default_currency") }}'){%- endmacro %}

{% macro week_start(day, org) -%}
cast({{ day }} - cast(mod(cast(extract(isodow from {{ day }}) as integer) - coalesce({{ org }}.week_starts_on, {{ var("default_week_starts_on") }}) + 7, 7) as integer) as date)
{%- endmacro %}


{# The orgs of a table whose key begins with the org, by a look into its index for each. #}
{% macro orgs_of(relation) -%}
(
        with recursive found as (
            select min(org_id) as org_id from {{ relation }}
            union all
            select (select min(rows.org_id) from {{ relation }} as rows where rows.org_id > found.org_id) from found where org_id is not null
        )
        select org_id from found where org_id is not null
    )
{%- endmacro %}


{% macro org_or_missing(org_id) -%}case when btrim({{ org_id }}) <> '' then {{ org_id }} else '(missing)' end{%- endmacro %}
