-- Grain: one row per org and local day of receipt: what was received, and what became of it.
-- received = accepted + rejected + duplicate, always. A row without an org counts under (missing).
{{ config(
    unique_key=['org_id', 'received_date'],
    checks={
        'received_is_conserved': "received_count = accepted_count + rejected_count + duplicate_count and least(accepted_count, rejected_count, duplicate_count) >= 0",
    },
) }}
{% call audit('what landed was accepted, rejected or a duplicate') %}
select quality.org_id, quality.received_date
from {{ this }} as quality
join (
    select org_id, {{ local_date('received_at', 'time_zone') }} as received_date, count(*) as landed_count
    from {{ ref('stg_events') }}
    left join {{ ref('orgs') }} as orgs using (org_id)
    where {{ in_scope_days('received_at', 'received_date') }}
    group by 1, 2
) as landed using (org_id, received_date)
where {{ in_scope('org_id, received_date') }} and landed_count <> accepted_count + duplicate_count
    -- what landed or left since the events were read waits for the next build
    and not exists (
        select from ({{ landed_events(unread) }}) as unread left join {{ ref('orgs') }} as orgs on orgs.org_id = unread.org_id
        where unread.event_id is null or unread.org_id = quality.org_id
            and {{ local_date('unread.received_at', 'orgs.time_zone') }} = quality.received_date
    )
{% endcall %}
{% call scope('org_id, received_date') %}
select org_id, received_date from {{ changes('int_events_enriched') }} as events
union all
select landed.org_id, {{ local_date('landed.received_at', 'orgs.time_zone') }}
from ({{ landed_events() }}) as landed left join {{ ref('orgs') }} as orgs on orgs.org_id = landed.org_id
union all
select {{ org_or_missing('landed.org_id') }}, {{ local_date('landed.received_at', 'orgs.time_zone') }}
from {{ landed('events') }} as landed left join {{ ref('orgs') }} as orgs on orgs.org_id = landed.org_id
where landed.rejection_reason is not null
union all
select {{ org_or_missing('landed.org_id') }}, {{ local_date('landed.received_at', 'orgs.time_zone') }}
from {{ landed('rejected_rows') }} as landed left join {{ ref('orgs') }} as orgs on orgs.org_id = landed.org_id
union all
select case when removed.event_id is not null then {{ org_or_missing('removed.org_id') }} end, {{ local_date('removed.received_at', 'orgs.time_zone') }}
from {{ landed('events_removed') }} as removed left join {{ ref('orgs') }} as orgs on orgs.org_id = removed.org_id
{% endcall %}
with deliveries as (
    select org_id, null as rejection_reason, true as is_accepted, is_bot, is_internal, is_opted_out, device_id, occurred_at, received_at
    from {{ ref('int_events_enriched') }}
    where {{ in_scope('org_id, received_date') }}
    union all
    select org_id, null, false, null, null, null, null, null, received_at
    from {{ ref('int_repeated_deliveries') }}
    where {{ in_scope_days('received_at', 'received_date') }}
    union all
    select {{ org_or_missing('org_id') }}, {{ landed_rejection_reason() }}, false, null, null, null, null, null, received_at
    from {{ source('landing', 'events') }}
    where {{ in_scope_days('received_at', 'received_date') }} and {{ landed_rejection_reason() }} is not null
    union all
    select {{ org_or_missing('org_id') }}, rejection_reason, false, null, null, null, null, null, received_at
    from {{ source('landing', 'rejected_rows') }}
    where {{ in_scope_days('received_at', 'received_date') }}
),
dated as (
    select deliveries.*, {{ local_date('deliveries.received_at', 'orgs.time_zone') }} as received_date
    from deliveries
    left join {{ ref('orgs') }} as orgs on orgs.org_id = deliveries.org_id
    {{ computed_once() }}
),
final as (
    select
        org_id,
        count(*) as received_count,
        count(*) filter (where is_accepted) as accepted_count,
        count(*) filter (where rejection_reason is not null) as rejected_count,
        count(*) filter (where not is_accepted and rejection_reason is null) as duplicate_count,
        count(*) filter (where received_at - occurred_at > interval '{{ var("late_after_hours") }} hours') as late_count,
        count(*) filter (where is_bot) as robot_count,
        count(*) filter (where is_internal) as internal_count,
        count(*) filter (where is_opted_out) as opted_out_count,
        count(*) filter (where is_accepted and device_id is null and not is_opted_out) as without_visitor_count,
        received_date
    from dated
    where {{ in_scope('org_id, received_date') }}
    group by org_id, received_date
)
select * from final
