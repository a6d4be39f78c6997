-- Grain: one row per org, local day, stage left and stage entered: how often customers went from one to the other.
-- A first stage is entered from (new). Every figure adds up; what came into a stage less what left it is its size.
{{ config(
    unique_key=['org_id', 'event_date', 'from_stage', 'to_stage'],
    add=true,
    checks={
        'a_transition_leads_elsewhere': "from_stage <> to_stage and transitions_count > 0",
    },
) }}
select
    org_id,
    coalesce(previous_stage, '(new)') as from_stage,
    lifecycle_stage as to_stage,
    {{ total('weight', 'transitions_count') }},
    entered_date as event_date
from {{ delta('customer_lifecycle_history') }} as entries
group by org_id, previous_stage, lifecycle_stage, entered_date
