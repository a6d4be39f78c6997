{# Which leads were alerted lately: state of the snapshots, which outlives full refreshes. #}
{% macro hot_leads_ddl() %}
create table if not exists {{ state_schema() }}.hot_lead_alerts (
    org_id text not null,
    visitor_id text not null,
    propensity_score integer not null,
    outcome text not null constraint known_outcome check (outcome in ('claimed', 'posted', 'unsure')),
    alerted_at timestamptz not null,
    primary key (org_id, visitor_id)
);
comment on table {{ state_schema() }}.hot_lead_alerts is 'One row per org and visitor who was alerted as a hot lead within hot_lead_repeat_hours.';
comment on column {{ state_schema() }}.hot_lead_alerts.propensity_score is 'The score, 0-10, at that time.';
comment on column {{ state_schema() }}.hot_lead_alerts.outcome is 'claimed: before the alert is posted; posted; unsure: whether it arrived is not known, and it is not posted again.';
comment on column {{ state_schema() }}.hot_lead_alerts.alerted_at is 'The moment that the snapshot was for.';
{% endmacro %}
