-- Returns: one row per visitor who may be about to buy, the likeliest first.
declare
    v_since timestamptz;
    v_built_for timestamptz;
    v_unread xid8;
    v_time_zone text;
    v_is_current boolean;
    v_visitors text[];
    v_settled text[];
    v_devices text[];
    v_starts timestamptz[];
    v_rows tid[];
    v_removed text[];
    taxonomy jsonb;
    networks jsonb;
    decisive_networks jsonb;
    opt_outs jsonb;
begin
    {{ refuse_unknown_org(has_landed(), may_read_org()) }}
    {{ refuse_unless("p_hours between 1 and 24 * " ~ var('propensity_window_days'),
        "The last %s hours cannot be asked for: give p_hours from 1 to " ~ 24 * var('propensity_window_days') ~ ".", "coalesce(cast(p_hours as text), 'null')") }}
    {{ refuse_unless("p_min_score between 0 and " ~ var('propensity_max_score'),
        "No score is %s: give p_min_score from 0 to " ~ var('propensity_max_score') ~ ".", "coalesce(cast(p_min_score as text), 'null')") }}
    select as_of into v_built_for from {{ state_schema() }}.model_state where model = 'int_visits';
    {{ refuse_unless("isfinite(p_as_of) and p_as_of >= v_built_for",
        "The leads of %s are not known any more: the last build was for %s. Give a later moment, or leave p_as_of out.", "coalesce(cast(p_as_of as text), 'null'), v_built_for") }}
    v_since := p_as_of - make_interval(hours => p_hours);
    -- a database that was renamed knows no position: then all that landed lately is read, and what was built of it left out
    v_unread := coalesce({{ unread_position() }}, '0');
    select coalesce(max(time_zone), '{{ var("default_time_zone") }}') into v_time_zone from {{ ref('orgs') }} where org_id = p_org;
    {{ live_lookups() }}
    v_is_current := v_built_for = (select as_of from {{ state_schema() }}.model_state where model = 'audience_customers')
        {%- for model_name in ['int_visits', 'int_orders', 'int_consent_events'] %}
        and not exists (select from {{ changes_of(ref(model_name)) }} where change_id > {{ change_position('audience_customers', model_name) }})
        {%- endfor %};

    -- Who could reach the score, told from few columns and never too few of them; only these are computed in full.
    with acts as materialized (
        {{ unread_acts() }}
    ),
    weights as (
        {{ propensity_weights_row() }}
    ),
    {{ reachable_visitors() }},
    candidates as (
        select visitor_id from reachable
        union
        select visitor_id
        from {{ ref('audience_customers') }}
        where org_id = p_org and last_seen_at > v_since
            -- who has done nothing after the last order is no lead, until something lands
            and coalesce(last_order_at < last_seen_at, true)
            -- a slow network may be forgotten since: its points come back
            and propensity_score = any(array(select generate_series(p_min_score - abs(slow_network), {{ var('propensity_max_score') }}) from weights))
        union
        select visitor_id
        from {{ changes_of(ref('int_visits')) }}
        where org_id = p_org and change_id > {{ change_position('audience_customers', 'int_visits') }}
    ),
    {{ starts_of_devices() }}
    select
        array(select visitor_id from candidates where not v_is_current or visitor_id in (select visitor_id from links)),
        array(select visitor_id from candidates where v_is_current and visitor_id not in (select visitor_id from links)),
        array(select device_id from starts order by device_id),
        array(select start_at from starts order by device_id),
        array(select place from acts where place is not null and device_id in (select device_id from starts))
    into v_visitors, v_settled, v_devices, v_starts, v_rows;

    return query
    with asked as (
        select unnest(v_visitors) as visitor_id, date '-infinity' as since_date
        union all
        select unnest(v_settled), cast(p_as_of as date) - {{ var('propensity_window_days') }} - 2
    ),
    kept_visits as materialized (
        select
            visits.visitor_id, visits.device_id, session_id, last_network_type, last_consent_state, event_views_count, ticket_ctas_count,
            page_loads_count, page_load_total_ms, last_event_at, last_consent_at, last_ticket_cta_at, last_checkout_at
        from asked
        join {{ ref('int_visits') }} as visits on visits.visitor_id = asked.visitor_id and visits.event_date >= asked.since_date
        left join unnest(v_devices, v_starts) as touched (device_id, start_at) on touched.device_id = visits.device_id
        where org_id = p_org and coalesce(session_started_at < touched.start_at, true)
    ),
    settled as (
        select visitor_id, sessions_count, orders_count, last_order_at, consent_state
        from {{ ref('audience_customers') }}
        where org_id = p_org and visitor_id = any(v_settled)
    ),
    {{ live_events() }},
    {{ live_visits() }},
    weights as (
        {{ propensity_weights_row() }}
    ),
    {{ live_scores() }},
    leads as materialized (
        select
            visitor_id,
            bands.band as propensity_band,
            array_remove(array[
                case when propensity_ticket_cta_points <> 0 then 'ticket_cta' end,
                case when propensity_checkout_start_points <> 0 then 'checkout_start' end,
                case when propensity_repeat_visitor_points <> 0 then 'repeat_visitor' end,
                case when propensity_slow_network_points <> 0 then 'slow_network' end,
                case when propensity_past_purchaser_points <> 0 then 'past_purchaser' end
            ], null) as reasons,
            score as propensity_score,
            event_views_count,
            ticket_ctas_count,
            coalesce(last_checkout_at > last_ordered_at or last_ordered_at is null, false) and last_checkout_at is not null as has_unfinished_checkout,
            last_checkout_at,
            last_active_at
        from scored
        cross join lateral (select {{ propensity_score('scored.') }} as score) as scores
        left join {{ ref('propensity_bands') }} as bands on score between bands.min_score and bands.max_score
        where score >= p_min_score
            and last_active_at > v_since
            and not is_opted_out
            and coalesce(last_ordered_at < coalesce(greatest(last_ticket_cta_at, last_checkout_at), v_since), true)
        order by score desc, last_active_at desc, visitor_id
    )
    -- of the leads alone: a hash takes longer than all else that is asked of somebody
    select * from leads where not {{ is_left_alone_by_id('p_org', 'leads.visitor_id') }};
end
