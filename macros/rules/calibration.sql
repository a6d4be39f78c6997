{# The first date after a local day at whose beginning scores are compared with what came of them. A date is the first day of
   a week of the org, or of every second week and so on, counted from a Monday. #}
{% macro calibration_date_after(day, org) -%}
{%- set days = var('calibration_interval_days') -%}
({{ day }} + {{ days }} - mod({{ day }} - date '0001-01-01' + 1 - coalesce({{ org }}.week_starts_on, {{ var('default_week_starts_on') }}), {{ days }}))
{%- endmacro %}


{# Further dates at most so many days after a first one, as numbers in `step`. #}
{% macro calibration_steps(days) -%}
generate_series(0, {{ days }}, {{ var('calibration_interval_days') }}) as steps (step)
{%- endmacro %}


{# The last local day on which behaviour of a moment earns points: at the beginning of the next it is too old. #}
{% macro earns_points_until(moment, time_zone) -%}
{{ local_date("(" ~ moment ~ " + interval '" ~ var('propensity_window_days') ~ " days')", time_zone) }}
{%- endmacro %}


{# Inside scope(): whoever was seen before a date whose days all passed, or are no more all past, since the previous build. #}
{% macro visitors_of_passed_dates() %}
select visits.org_id, visits.visitor_id, dates.score_date, orgs.time_zone
from {{ orgs_of(ref('int_visits')) }} as known_orgs
left join {{ ref('orgs') }} as orgs on orgs.org_id = known_orgs.org_id
cross join lateral (
    select
        {{ local_date('least(' ~ previous_as_of() ~ ', ' ~ as_of() ~ ')', 'orgs.time_zone') }} - {{ var('calibration_outcome_days') }} as after_date,
        {{ local_date('greatest(' ~ previous_as_of() ~ ', ' ~ as_of() ~ ')', 'orgs.time_zone') }} - {{ var('calibration_outcome_days') }} as last_date
) as passed
cross join lateral generate_series(0, last_date - {{ calibration_date_after('after_date', 'orgs') }}, {{ var('calibration_interval_days') }}) as steps (step)
cross join lateral (select {{ calibration_date_after('after_date', 'orgs') }} + step as score_date) as dates
cross join lateral (
    select visits.org_id, visits.visitor_id
    from {{ ref('int_visits') }} as visits
    where visits.org_id = known_orgs.org_id and visits.event_date < dates.score_date
        and visits.event_date >= dates.score_date - {{ var('propensity_window_days') }} - 1
    {{ computed_once() }}
) as visits
{% endmacro %}
