{# Counts by bucket add up over days and slices, percentiles do not. The percentile of any sum is read from the buckets,
   at most as wrong as a bucket is wide: a tenth of the value (seed histogram_buckets). #}

{# The lowest values of the buckets as one array, to be cross joined. #}
{% macro bucket_bounds() -%}
(select array_agg(from_value order by from_value) as from_values from {{ ref('histogram_buckets') }}) as bucket_bounds
{%- endmacro %}

{# The lowest value of the bucket that a whole number of 0 or more is in. Beside it: cross join bucket_bounds(). #}
{% macro bucket_from(value) -%}
from_values[width_bucket({{ value }}, from_values)]
{%- endmacro %}


{# Page loads of a day or another span of days, by the device and the network of their session and by bucket.
   name, span: its first day as a column, and as an expression over `visits` and `orgs`. #}
{% macro page_load_counts(name, span) -%}
select
    visits.org_id,
    visits.device_type,
    visits.network_type,
    {{ bucket_from('page_load_ms') }} as page_load_from_ms,
    {{ total('weight', 'page_loads_count') }},
    {{ span }} as {{ name }}
from {{ delta('int_visits') }} as visits
cross join unnest(visits.page_loads_ms) as page_loads (page_load_ms)
cross join {{ bucket_bounds() }}
left join {{ ref('orgs') }} as orgs on orgs.org_id = visits.org_id
group by visits.org_id, visits.device_type, visits.network_type, {{ bucket_from('page_load_ms') }}, {{ span }}
-- what is read together lies together
order by {{ span }}, visits.org_id
{%- endmacro %}

{# What holds for each of its rows. #}
{% macro checks_of_page_loads() -%}
{{ return({'has_page_loads': 'page_loads_count > 0 and page_load_from_ms >= 0'}) }}
{%- endmacro %}


{# Rows of an org over a range: its whole weeks by week, the days before and after them by day. In a function with p_org,
   p_from and p_to, and with the first day of its first whole week and the day after its last as v_first_week and v_after_weeks. #}
{% macro counts_of_range(daily, weekly, columns) -%}
select {{ columns }} from {{ daily }} as counts
        where org_id = p_org and event_date between p_from and least(p_to, v_first_week - 1)
        union all
        select {{ columns }} from {{ daily }} as counts
        where org_id = p_org and event_date between greatest(v_first_week, v_after_weeks) and p_to
        union all
        select {{ columns }} from {{ weekly }} as counts
        where org_id = p_org and week_start_date >= v_first_week and week_start_date < v_after_weeks
{%- endmacro %}


{# In a row of a bucket: how many values lie in lower buckets of its group, and how many in all. #}
{% macro bucket_ranks(group) -%}
sum(bucket_count) over (partition by {{ group }} order by from_value) - bucket_count as count_before,
            sum(bucket_count) over (partition by {{ group }}) as total_count
{%- endmacro %}

{# Over the buckets of a group: the value below or at which the share of all lies, by nearest rank; within the bucket the
   values are taken to lie evenly. Columns: from_value, to_value (of the seed), bucket_count and those of bucket_ranks(). #}
{% macro bucket_percentile(share) -%}
{%- set rank -%}ceil({{ share }} * total_count){%- endset -%}
cast(max(
            round(from_value + (to_value - from_value) * ({{ rank }} - count_before - 0.5) / bucket_count)
        ) filter (where {{ rank }} > count_before and {{ rank }} <= count_before + bucket_count) as integer)
{%- endmacro %}
