-- Returns: one row per KPI, in the order of the Audience page.
declare
    v_days integer;
    v_shift integer;
    v_window integer;
    v_first_date date;
begin
    {{ refuse_unknown_org() }}
    {{ refuse_impossible_range() }}
    {{ refuse_unless("p_compare in ('previous_period', 'previous_year', 'none')",
        "There is no comparison %s: give previous_period, previous_year or none.", "coalesce(quote_literal(p_compare), 'null')") }}
    v_days := p_to - p_from + 1;
    -- 52 weeks back are the same days of the week
    v_shift := case p_compare when 'previous_period' then v_days when 'previous_year' then 364 end;
    v_window := least(v_days, 7 * {{ var('benchmark_weeks') }});
    select min(event_date) into v_first_date from {{ ref('audience_overview_daily') }} where org_id = p_org;

    return query
    with periods as (
        select 'value' as role, p_from as first_date, p_to as last_date
        union all
        select 'previous', p_from - v_shift, p_to - v_shift where v_shift is not null
        union all
        select 'day', p_from + number, p_from + number from generate_series(0, v_days - 1) as numbers (number)
        union all
        -- only whole ones: a window that begins before the org's first day would drag the mean down
        select 'own', p_from - number * v_window, p_from - (number - 1) * v_window - 1
        from generate_series(1, 7 * {{ var('benchmark_weeks') }} / v_window) as numbers (number)
        where p_from - number * v_window >= v_first_date
    ),
    -- of one pass over the range: who was there on each day, and who for the first time in the range
    people_of_days as (
        select
            event_date,
            {{ overview_people('true') }},
            {{ overview_people('previous_date < p_from', 'first_') }}
        from {{ ref('audience_overview_uniques_daily') }}
        where org_id = p_org and event_date between p_from and p_to
        group by event_date
    ),
    people as (
        select 'day' as role, event_date as first_date, visitors, checkout_visitors, buyers, new_buyers from people_of_days
        union all
        select 'value', p_from, sum(first_visitors), sum(first_checkout_visitors), sum(first_buyers), sum(first_new_buyers) from people_of_days
        union all
        select periods.role, periods.first_date, {{ overview_people('true') }}
        from periods
        join {{ ref('audience_overview_uniques_daily') }} as uniques
            on uniques.org_id = p_org and uniques.event_date between periods.first_date and periods.last_date
            and uniques.previous_date < periods.first_date
        where periods.role in ('previous', 'own')
        group by periods.role, periods.first_date
    ),
    sessions as (
        select
            periods.role,
            periods.first_date,
            sum(sessions_count) as sessions,
            sum(mobile_sessions_count) as mobile_sessions,
            sum(mobile_purchase_sessions_count) as mobile_purchases,
            sum(desktop_sessions_count) as desktop_sessions,
            sum(desktop_purchase_sessions_count) as desktop_purchases
        from periods
        join {{ ref('audience_overview_daily') }} as days
            on days.org_id = p_org and days.event_date between periods.first_date and periods.last_date
        group by periods.role, periods.first_date
    ),
    totals as (
        select
            periods.role,
            case when periods.role = 'day' then periods.first_date end as day,
            count(*) as periods_count,
            {%- for column in ['visitors', 'checkout_visitors', 'buyers', 'new_buyers', 'sessions', 'mobile_sessions', 'mobile_purchases', 'desktop_sessions', 'desktop_purchases'] %}
            coalesce(sum({{ column }}), 0) as {{ column }}{{ ',' if not loop.last }}
            {%- endfor %}
        from periods
        left join people using (role, first_date)
        left join sessions using (role, first_date)
        group by periods.role, day
    ),
    kpis as (
        select place, kpi, unit, role, day, trim_scale(round(numerator / nullif(denominator, 0), 6)) as value
        from totals
        cross join lateral (values
            (1, 'visitors', 'count', visitors, periods_count),
            (2, 'sessions', 'count', sessions, periods_count),
            (3, 'checkout_rate', 'rate', checkout_visitors, visitors),
            (4, 'purchase_rate', 'rate', buyers, visitors),
            (5, 'new_buyers', 'count', new_buyers, periods_count),
            (6, 'returning_buyers', 'count', buyers - new_buyers, periods_count),
            (7, 'mobile_conversion_rate', 'rate', mobile_purchases, mobile_sessions),
            (8, 'desktop_conversion_rate', 'rate', desktop_purchases, desktop_sessions)
        ) as measures (place, kpi, unit, numerator, denominator)
        -- counts of a longer range cannot be told from shorter windows
        where role <> 'own' or unit = 'rate' or v_days = v_window
    ),
    answers as (
        select
            place,
            kpi,
            unit,
            max(value) filter (where role = 'value') as value,
            max(value) filter (where role = 'previous') as previous,
            max(value) filter (where role = 'own') as own_benchmark,
            jsonb_agg(jsonb_build_object('date', day, 'value', value) order by day) filter (where role = 'day') as series
        from kpis
        group by place, kpi, unit
    ),
    final as (
        select
            answers.kpi,
            answers.unit,
            case when benchmarks.value is not null then 'benchmarks' when answers.own_benchmark is not null then 'own weeks' end as benchmark_basis,
            answers.value,
            answers.previous,
            targets.value as target,
            coalesce(benchmarks.value, answers.own_benchmark) as benchmark,
            answers.series
        from answers
        left join lateral ({{ kpi_setting('kpi_targets') }}) as targets on true
        left join lateral ({{ kpi_setting('benchmarks') }}) as benchmarks on true
        order by answers.place
    )
    select * from final;
end
