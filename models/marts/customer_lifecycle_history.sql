-- Grain: one row per org, visitor and entry into a lifecycle stage: when it was entered and left.
-- A function of the visits, the orders and as_of, not of when a run happened to look.
{{ config(
    unique_key=['org_id', 'visitor_id', 'entered_at'],
    changes=['org_id', 'lifecycle_stage', 'previous_stage', 'entered_date'],
    fillfactor=90,
    indexes=[{'columns': ['entered_at', 'org_id']}],
    checks={
        'known_lifecycle_stage': "lifecycle_stage in ('churned', 'at_risk', 'champion', 'repeat_buyer', 'customer', 'prospect')",
        'left_after_entered': "entered_at < left_at",
    },
) }}
{% call audit('the stage that was not left is that of the customer') %}
with current_stages as (
    select org_id, visitor_id, min(lifecycle_stage) as lifecycle_stage, count(*) as rows_count
    from {{ this }}
    where left_at is null and {{ in_scope('org_id, visitor_id') }}
    group by org_id, visitor_id
),
customers as (
    select org_id, visitor_id, lifecycle_stage from {{ ref('audience_customers') }} where {{ in_scope('org_id, visitor_id') }}
)
select org_id, visitor_id
from customers
full join current_stages using (org_id, visitor_id)
where (customers.lifecycle_stage is distinct from current_stages.lifecycle_stage or rows_count is distinct from 1)
    -- a build of one of them alone may be of another moment
    and (select as_of = {{ as_of() }} from {{ state_schema() }}.model_state where model = 'audience_customers')
{% endcall %}
{% call scope('org_id, visitor_id') %}
{{ changed_visitors() }}
union all
{{ customers_not_seen_for(var('at_risk_after_days')) }}
union all
{{ customers_not_seen_for(var('churned_after_days')) }}
union all
-- a session that is recent no more matters to whom has had enough of them
select org_id, visitor_id
from {{ ref('int_visits') }} as visits
where {{ visited_days_ago(var('champion_recent_days')) }}
    and {{ passed_days_ago('visits.first_event_at', var('champion_recent_days')) }}
    and exists (
        select from {{ ref('int_visits') }} as others
        where others.org_id = visits.org_id and others.visitor_id = visits.visitor_id
        offset {{ var('champion_min_recent_sessions') - 1 }}
    )
{% endcall %}
with visits as (
    select
        org_id,
        visitor_id,
        first_event_at,
        max(last_event_at) over visitor as last_event_at,
        cast(row_number() over (partition by visitor_id, org_id, session_id order by first_event_at) = 1 as integer) as joined_sessions_count,
        coalesce(lead(first_event_at) over visitor, {{ as_of() }}) as next_event_at,
        count(*) over (partition by visitor_id, org_id) as visits_count
    from {{ ref('int_visits') }}
    where {{ in_scope('org_id, visitor_id') }}
    window visitor as (partition by visitor_id, org_id order by first_event_at, session_id)
),
orders as (
    select org_id, visitor_id, ordered_at
    from {{ ref('int_orders') }}
    where {{ in_scope('org_id, visitor_id') }} and visitor_id is not null and orders_count = 1
),
moments as (
    select org_id, visitor_id, first_event_at as moment, last_event_at as seen_until, joined_sessions_count, 0 as orders_count from visits
    union all
    select org_id, visitor_id, ordered_at, ordered_at, 0, 1 from orders
    union all
    select org_id, visitor_id, last_event_at + interval '{{ var("at_risk_after_days") }} days', null, 0, 0
    from visits
    where last_event_at + interval '{{ var("at_risk_after_days") }} days' <= next_event_at
    union all
    select org_id, visitor_id, last_event_at + interval '{{ var("churned_after_days") }} days', null, 0, 0
    from visits
    where last_event_at + interval '{{ var("churned_after_days") }} days' <= next_event_at
    union all
    select org_id, visitor_id, first_event_at + interval '{{ var("champion_recent_days") }} days', null, 0, 0
    from visits
    where visits_count >= {{ var('champion_min_recent_sessions') }}
),
running as (
    select distinct
        org_id,
        visitor_id,
        moment,
        max(seen_until) over so_far as seen_until,
        sum(orders_count) over so_far as orders_count,
        sum(joined_sessions_count) over (
            partition by visitor_id, org_id order by moment
            range between interval '{{ var("champion_recent_days") }} days' - interval '1 microsecond' preceding and current row
        ) as recent_sessions_count
    from moments
    where moment <= {{ as_of() }}
    window so_far as (partition by visitor_id, org_id order by moment)
),
stages as (
    select
        *,
        {{ lifecycle_stage('least(seen_until, moment)', 'orders_count', 'recent_sessions_count', 'moment') }} as lifecycle_stage
    from running
),
entries as (
    select
        *,
        lag(lifecycle_stage) over (partition by visitor_id, org_id order by moment) as previous_stage
    from stages
),
final as (
    select
        entries.org_id,
        visitor_id,
        lifecycle_stage,
        previous_stage,
        {{ local_date('moment', 'orgs.time_zone') }} as entered_date,
        moment as entered_at,
        lead(moment) over (partition by visitor_id, entries.org_id order by moment) as left_at
    from entries
    left join {{ ref('orgs') }} as orgs on orgs.org_id = entries.org_id
    where lifecycle_stage is distinct from previous_stage
)
-- in the order of time, so that what is left on the same day lies together
select * from final order by entered_at
