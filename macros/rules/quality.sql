{# One end of the Wilson interval of a rate, between which the true one lies with the confidence of the variable; the sign
   says which. A rate of nothing has none. #}
{% macro wilson_bound(successes, trials, sign) -%}
{%- set z = var('confidence_z') -%}
round((cast({{ successes }} as numeric) / nullif({{ trials }}, 0) + {{ z }} * {{ z }} / (2.0 * nullif({{ trials }}, 0))
            {{ sign }} {{ z }} * sqrt(cast({{ successes }} as numeric) * ({{ trials }} - {{ successes }}) / nullif({{ trials }}, 0) + {{ z }} * {{ z }} / 4.0) / nullif({{ trials }}, 0))
            / (1 + {{ z }} * {{ z }} / nullif({{ trials }}, 0)), 6)
{%- endmacro %}


{# A mean of few is believed little: as many of the org's own as the prior says are put beside them. #}
{% macro shrunk_mean(total, size, org_mean, prior_size) -%}
({{ total }} + {{ prior_size }} * {{ org_mean }}) / ({{ size }} + {{ prior_size }})
{%- endmacro %}

{# Points of one component of the quality: 50 at the org's mean, 100 at twice the mean. Without a positive mean there is
   nothing to compare with. #}
{% macro quality_points(total, size, org_mean, prior_size) -%}
case when {{ org_mean }} > 0 then greatest(0, least(100, 50 * {{ shrunk_mean(total, size, org_mean, prior_size) }} / {{ org_mean }})) end
{%- endmacro %}

{# Over rows of components: the mean of their points by weight, of those that have points. #}
{% macro quality_score(points, weight) -%}
round(sum({{ points }} * {{ weight }}) / nullif(sum({{ weight }}) filter (where {{ points }} is not null), 0), 1)
{%- endmacro %}

{% macro quality_band(score) -%}
case
            when {{ score }} >= {{ var('quality_high_min_score') }} then 'high'
            when {{ score }} < {{ var('quality_medium_min_score') }} then 'low'
            when {{ score }} is not null then 'medium'
        end
{%- endmacro %}
