{# What the query functions ask of their arguments. An org is known when it is configured or has any day; one of which the
   caller sees no row is refused alike, also where a function runs with its owner's rights and has to ask (is_readable). #}
{% macro refuse_unknown_org(or_known='false', is_readable='true') -%}
{{ refuse_unless(
        is_readable ~ " and (exists (select from " ~ ref('audience_overview_daily') ~ " where org_id = p_org)
        or exists (select from " ~ ref('orgs') ~ " where org_id = p_org) or " ~ or_known ~ ")",
        "There is no org %s: it has no events that you may see and no row in the seed orgs. Give the org_id that its events carry, after a build.", "coalesce(quote_literal(p_org), 'null')",
    ) }}
{%- endmacro %}

{% macro refuse_impossible_range() -%}
{{ refuse_unless("isfinite(p_from) and isfinite(p_to)",
        "The range from %s to %s is open: give a first and a last local date, both included.", "coalesce(cast(p_from as text), 'null'), coalesce(cast(p_to as text), 'null')") }}
    {{ refuse_unless("p_from <= p_to",
        "The range from %s to %s ends before it begins: give the earlier date as p_from.", "p_from, p_to") }}
    {{ refuse_unless("p_to - p_from < " ~ var('query_max_days'),
        "The range from %s to %s is longer than " ~ var('query_max_days') ~ " days: ask for a shorter one.", "p_from, p_to") }}
{%- endmacro %}


{# The org's own row of a seed of KPI values, else everybody's, for a period of v_days: what is per week is scaled to it. #}
{% macro kpi_setting(seed) -%}
select trim_scale(round(case answers.unit when 'count' then settings.value * v_days / 7.0 else settings.value end, 6)) as value
            from {{ ref(seed) }} as settings
            where settings.org_id in (p_org, '*') and settings.kpi = answers.kpi || case answers.unit when 'count' then '_weekly' else '' end
            order by case when settings.org_id = '*' then 1 else 0 end
            limit 1
{%- endmacro %}


{# Distinct people of the rows of audience_overview_uniques_daily for which the condition holds. #}
{% macro overview_people(condition, prefix='') -%}
sum(visitors_count) filter (where activity = 'visit' and {{ condition }}) as {{ prefix }}visitors,
            sum(visitors_count) filter (where activity = 'checkout_start' and {{ condition }}) as {{ prefix }}checkout_visitors,
            sum(visitors_count) filter (where activity = 'purchase' and {{ condition }}) as {{ prefix }}buyers,
            sum(visitors_count) filter (where activity = 'purchase' and previous_date = date '0001-01-01' and {{ condition }}) as {{ prefix }}new_buyers
{%- endmacro %}
