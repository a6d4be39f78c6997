{# Variables whose values would make an answer wrong without a word, or fail in the middle of a build. What depends on two
   of them is said of the one that is more likely changed. #}
{% macro refuse_impossible_settings() %}
{%- set limits = [
    ('session_max_hours', 'more than 0 and at least as long as session_timeout_seconds', 0 < var('session_timeout_seconds') <= var('session_max_hours') * 3600),
    ('attribution_window_days', 'at least as long as a session may be, session_max_hours', var('attribution_window_days') * 24 >= var('session_max_hours')),
    ('churned_after_days', 'more than at_risk_after_days, and that more than 0', 0 < var('at_risk_after_days') < var('churned_after_days')),
    ('repeat_visitor_min_sessions', 'at least 1', var('repeat_visitor_min_sessions') >= 1),
    ('calibration_interval_days', 'at least 1', var('calibration_interval_days') >= 1),
    ('calibration_outcome_days', 'at least 1', var('calibration_outcome_days') >= 1),
    ('personal_data_retention_days', 'a whole number of days, at least 0', var('personal_data_retention_days') is integer and var('personal_data_retention_days') >= 0),
    ('raw_events_retention_days', '0, or a whole number of days that is not less than personal_data_retention_days, which has to be set, too', var('raw_events_retention_days') is integer and (var('raw_events_retention_days') == 0 or 0 < var('personal_data_retention_days') <= var('raw_events_retention_days'))),
    ('retention_batch_rows', 'at least 1', var('retention_batch_rows') >= 1),
    ('export_minimum_people_count', 'at least 0', var('export_minimum_people_count') >= 0),
    ('export_webhook_attempts', 'at least 1', var('export_webhook_attempts') >= 1),
    ('quality_high_min_score', 'more than quality_medium_min_score', var('quality_medium_min_score') < var('quality_high_min_score')),
    ('alert_window_days', 'whole weeks, so a multiple of 7 above 0', var('alert_window_days') > 0 and var('alert_window_days') % 7 == 0),
    ('default_week_starts_on', 'an ISO day of the week, from 1 for Monday to 7', var('default_week_starts_on') in (1, 2, 3, 4, 5, 6, 7)),
] -%}
{%- set refused = [] -%}
{%- for name, limit, holds in limits if not holds -%}{%- do refused.append(name ~ ' is ' ~ var(name) ~ ' and has to be ' ~ limit) -%}{%- endfor -%}
{%- if refused -%}
    {%- do exceptions.raise_compiler_error('Nothing was built: ' ~ refused | join('; ') ~ '. Correct the variable in dbt_project.yml or in --vars.') -%}
{%- endif -%}
{% endmacro %}
