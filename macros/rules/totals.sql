{# A sum, under the column's own name or another; of nothing it is zero. #}
{% macro total(column, name=none) -%}
cast(coalesce(sum({{ column }}), 0) as bigint) as {{ name or column }}
{%- endmacro %}

{% macro total_amount(column) -%}
cast(coalesce(sum({{ column }}), 0) as numeric(18, 2)) as {{ column }}
{%- endmacro %}


{# Audits that this mart's revenue is that of the orders, per org: run in the transaction that writes it. #}
{% macro audit_revenue() -%}
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
{%- endmacro %}
