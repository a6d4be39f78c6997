{# A sum, under the column's own name or another; of nothing it is zero. #}
{% macro total(column, name=none) -%}
cast(coalesce(sum({{ column }}), 0) as bigint) as {{ name or column }}
{%- endmacro %}

{% macro total_amount(column) -%}
cast(coalesce(sum({{ column }}), 0) as numeric(18, 2)) as {{ column }}
{%- endmacro %}


{# What holds for each row of a mart of sums. #}
{% macro checks_of_sums() -%}
{{ return({
    'no_count_is_negative': 'least(events_count, sessions_count, ticket_cta_sessions_count, checkout_sessions_count, purchase_sessions_count, orders_count, refunded_amount) >= 0',
    'sessions_are_plausible': 'sessions_count between greatest(ticket_cta_sessions_count, checkout_sessions_count, purchase_sessions_count) and events_count',
}) }}
{%- endmacro %}


{# Audits of a mart of sums, in the transaction that writes it: its revenue is that of the orders, per org, and nobody
   is in it of whom there is no event. #}
{% macro audit_sums() -%}
{% call audit('revenue is conserved') %}
select org_id
from (
    select org_id, gross_revenue_amount, refunded_amount, net_revenue_amount from {{ this }}
    union all
    select org_id, -gross_revenue_amount, -refunded_amount, -net_revenue_amount from {{ ref('int_orders') }}
) as both_sides
group by org_id
having coalesce(sum(gross_revenue_amount), 0) <> 0 or coalesce(sum(refunded_amount), 0) <> 0 or coalesce(sum(net_revenue_amount), 0) <> 0
{% endcall %}
{% call audit('no foreign org') %}
select org_id
from (select distinct org_id from {{ this }}) as orgs
where not exists (select from {{ ref('int_events_enriched') }} as events where events.org_id = orgs.org_id)
{% endcall %}
{%- endmacro %}
