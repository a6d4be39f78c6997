-- What a team without this project runs every night: four aggregates over all raw events.
create temporary table customers on commit drop as
select org_id, coalesce(user_id, anonymous_id) as visitor, min(occurred_at) as first_seen_at, max(occurred_at) as last_seen_at,
    count(*) as events, count(*) filter (where event_type = 'purchase') as orders,
    sum(cast(properties ->> 'revenue' as numeric)) as revenue
from analytics.events where rejection_reason is null group by 1, 2;

create temporary table channels on commit drop as
select org_id, cast(occurred_at as date) as day, properties ->> 'utm_source' as source, properties ->> 'utm_medium' as medium,
    count(distinct anonymous_id) as visitors, count(distinct session_id) as sessions,
    sum(cast(properties ->> 'revenue' as numeric)) as revenue
from analytics.events where rejection_reason is null group by 1, 2, 3, 4;

create temporary table devices on commit drop as
select org_id, cast(occurred_at as date) as day, user_agent, properties ->> 'network_type' as network_type,
    count(distinct anonymous_id) as visitors, avg(cast(properties ->> 'page_load_ms' as numeric)) as page_load_ms
from analytics.events where rejection_reason is null group by 1, 2, 3, 4;

create temporary table cohorts on commit drop as
with firsts as (
    select org_id, coalesce(user_id, anonymous_id) as visitor, date_trunc('week', min(occurred_at)) as cohort
    from analytics.events where event_type = 'purchase' and rejection_reason is null group by 1, 2
)
select events.org_id, cohort, date_trunc('week', occurred_at) as week, count(distinct visitor) as visitors
from analytics.events
join firsts on firsts.org_id = events.org_id and firsts.visitor = coalesce(events.user_id, events.anonymous_id)
group by 1, 2, 3;
