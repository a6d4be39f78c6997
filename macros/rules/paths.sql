{# The milestones of a path as literals, in the order of the funnel. #}
{% macro milestones() -%}
'{{ var("path_milestones") | join("', '") }}'
{%- endmacro %}

{# The place of an act in the order of acts of one moment: that of the funnel, so that a clock which tells seconds does
   not put a checkout behind its purchase. #}
{% macro place_in_moment(step) -%}
coalesce(array_position(array[{{ milestones() }}, 'purchase'], {{ step }}), 0)
{%- endmacro %}


{# Steps as one text. #}
{% macro path_of(steps) -%}
array_to_string({{ steps }}, ' > ')
{%- endmacro %}

{# How many steps a path has; one that was cut has one more than is kept. #}
{% macro steps_count(steps) -%}
cardinality(array_remove({{ steps }}, '(none)'))
{%- endmacro %}


{# Purchases of a day or another span of days by the path before them, and by the bucket of the time since its first
   step. name, span: its first day as a column, and as an expression over `journeys` and `orgs`. #}
{% macro purchase_time_counts(name, span) -%}
select
    journeys.org_id,
    {{ path_of('journeys.steps') }} as path,
    {{ bucket_from('journeys.purchased_after_seconds') }} as purchased_after_from_seconds,
    {{ total('weight', 'purchases_count') }},
    {{ span }} as {{ name }}
from {{ delta('int_journeys') }} as journeys
cross join {{ bucket_bounds() }}
left join {{ ref('orgs') }} as orgs on orgs.org_id = journeys.org_id
where journeys.purchased_after_seconds is not null
group by journeys.org_id, journeys.steps, {{ bucket_from('journeys.purchased_after_seconds') }}, {{ span }}
{%- endmacro %}

{# What holds for each of its rows. #}
{% macro checks_of_purchase_times() -%}
{{ return({'has_purchases': 'purchases_count > 0 and purchased_after_from_seconds >= 0'}) }}
{%- endmacro %}
