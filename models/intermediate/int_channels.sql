-- Grain: one row per org, source, medium and campaign: the channel of the first rule that matches.
-- A look-up: a row's channel depends on the rules only, so models that join it are recomputed when the rules change.
-- Sums do not join it: what they subtract may have left it already.
{{ config(
    unique_key=['org_id', 'source', 'medium', 'campaign'],
    lookup=true,
    checks={
        'has_a_channel': "channel is not null",
    },
) }}
with traffic_sources as (
    select org_id, source, medium, campaign from {{ ref('int_traffic_sources') }}
),
final as (
    {{ channels_of('traffic_sources') }}
)
select * from final
