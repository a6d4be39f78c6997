-- Grain: one row per org and local day of receipt: what was received, and what became of it.
-- received = accepted + rejected + duplicate, always. A row without an org counts under (missing).
{{ config(unique_key=['org_id', 'received_date']) }}
{% call audit('received is accepted, rejected or duplicate') %}
select org_id from {{ this }} where received_count <> accepted_count + rejected_count + duplicate_count
{% endcall %}
{% call scope('org_id, received_date') %}
select org_id, received_date from {{ changes('int_events_enriched') }} as events
union all
select {{ org_or_missing('landed.org_id') }}, {{ local_date('landed.received_at', 'orgs.time_zone') }}
from {{ landed('events') }} as landed left join {{ ref('orgs') }} as orgs on orgs.org_id = landed.org_id
union all
select {{ org_or_missing('landed.org_id') }}, {{ local_date('landed.received_at', 'orgs.time_zone') }}
from {{ landed('rejected_rows') }} as landed left join {{ ref('orgs') }} as orgs on orgs.org_id = landed.org_id
union all
select case when removed.event_id is not null then {{ org_or_missing('removed.org_id') }} end, {{ local_date('removed.received_at', 'orgs.time_zone') }}
from {{ landed('events_removed') }} as removed left join {{ ref('orgs') }} as orgs on orgs.org_id = removed.org_id
{% endcall %}
with received as (
    select {{ org_or_missing('org_id') }} as org_id, event_id, landing_id, {{ landed_rejection_reason() }} as rejection_reason, occurred_at, received_at
    from {{ source('landing', 'events') }}
    where {{ in_scope_days('received_at', 'received_date') }}
    union all
    select {{ org_or_missing('org_id') }}, null, null, rejection_reason, null, received_at
    from {{ source('landing', 'rejected_rows') }}
    where {{ in_scope_days('received_at', 'received_date') }}
),
dated as (
    select received.*, {{ local_date('received.received_at', 'orgs.time_zone') }} as received_date
    from received
    left join {{ ref('orgs') }} as orgs on orgs.org_id = received.org_id
),
scoped as (
    select * from dated where {{ in_scope('org_id, received_date') }}
),
judged as (
    select
        scoped.org_id,
        scoped.received_date,
        scoped.rejection_reason,
        scoped.received_at - scoped.occurred_at > interval '{{ var("late_after_hours") }} hours' as is_late,
        events.event_id is not null as is_accepted,
        events.is_bot,
        events.is_internal,
        events.is_opted_out,
        events.device_id is null as is_without_visitor
    from scoped
    left join {{ ref('int_events_enriched') }} as events
        on events.org_id = scoped.org_id and events.event_id = scoped.event_id and events.landing_id = scoped.landing_id
),
final as (
    select
        org_id,
        count(*) as received_count,
        count(*) filter (where is_accepted) as accepted_count,
        count(*) filter (where rejection_reason is not null) as rejected_count,
        count(*) filter (where rejection_reason is null and not is_accepted) as duplicate_count,
        count(*) filter (where is_accepted and is_late) as late_count,
        count(*) filter (where is_bot) as robot_count,
        count(*) filter (where is_internal) as internal_count,
        count(*) filter (where is_opted_out) as opted_out_count,
        count(*) filter (where is_accepted and is_without_visitor and not is_opted_out) as without_visitor_count,
        received_date
    from judged
    group by org_id, received_date
)
select * from final
