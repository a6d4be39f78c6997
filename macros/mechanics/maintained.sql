{# A table that keeps its identity and follows change. In one transaction, under the model's lock:
     1. what was not consumed yet (changes of upstream models, landed rows, passed time) gives the touched keys;
     2. the model's SQL is run for those keys;
     3. only rows that differ are deleted or inserted, and the difference is kept for the models downstream;
     4. audits run, and what was consumed is recorded.
   Everything is touched on the first build, with --full-refresh, and when the rules changed: the compiled SQL,
   a seed, or a view that it reads. The same steps then apply, so readers never see a gap and only differences move.
   config: unique_key (columns, the primary key), changes (columns kept for downstream models; '*' for all),
   add: true (rows are sums of delta() rows, or of then_and_now() rows of touched keys: an increment is added instead of
   recomputed; its changes are of its key),
   indexes (columns, where), checks (what holds for every row, as constraints by name). #}
{% materialization maintained, adapter='postgres' %}
    {%- set target_relation = this.incorporate(type='table') -%}
    {%- do run_hooks(pre_hooks) -%}

    {#- Asked again under the lock: another run may have made it since this one listed what there is. -#}
    {%- set kind = locked_relation_kind() -%}
    {%- if kind == 'v' -%}{%- do adapter.drop_relation(this.incorporate(type='view')) -%}{%- endif -%}
    {%- set fresh = kind in (none, 'v') -%}
    {%- set plan = maintained_plan(sql, fresh) -%}
    {%- set declaration = declaration_of(sql, plan) -%}
    {%- if not fresh and plan.declared != declaration.version and drop_outdated_constraints(target_relation) -%}
        {#- At once, because readers would wait for it while rows are written. Should this run end here, the next one adds the new ones. -#}
        {%- do adapter.commit() -%}
        {#- dbt sends a commit past its driver, which therefore begins no other transaction by itself. -#}
        {% call statement('begin', auto_begin=True) %}begin{% endcall %}
        {%- set kind = locked_relation_kind() -%}
        {%- set plan = maintained_plan(sql, fresh) -%}
    {%- endif -%}

    {%- if plan.idle -%}
        {%- set changed = 0 -%}
    {%- else -%}
        {%- if fresh -%}
            {%- set changed = maintained_create(target_relation, plan) -%}
        {%- elif plan.full or not config.get('add') -%}
            {%- set changed = maintained_replace(target_relation, plan) -%}
        {%- else -%}
            {%- set changed = maintained_add(target_relation, plan) -%}
        {%- endif -%}
        {%- do run_audits(plan) -%}
        {%- do record_state(plan) -%}
    {%- endif -%}
    {%- do keep_declared(target_relation, declaration, plan) -%}

    {%- do run_hooks(post_hooks) -%}
    {% call noop_statement('main', plan.mode ~ ' ' ~ changed, plan.mode, changed) %}
{{ plan.sql }}
    {% endcall %}
    {%- do adapter.commit() -%}
    {{ return({'relations': [target_relation]}) }}
{% endmaterialization %}


{# The model's lock, until the transaction ends; and what there is under its name. #}
{% macro locked_relation_kind() %}
{% call statement('lock', fetch_result=True) %}
    set local timezone = 'UTC';
    select pg_advisory_xact_lock(hashtextextended('{{ this }}', 42));
    select (select relkind from pg_class where oid = to_regclass('{{ this }}'));
{% endcall %}
{{ return(load_result('lock').data[0][0]) }}
{% endmacro %}


{# Decides what this run recomputes.
   Returns {mode, full, idle, sql, then_sql (sums that are taken away), scope_keys, scope_since, positions, fingerprint, rules, audits}; makes the table `touched`. #}
{% macro maintained_plan(sql, fresh) %}
{%- set re = modules.re -%}
{%- set scopes = re.findall('/\* scope (.+?)\n(.*?)\nscope \*/', sql, re.S) -%}
{%- set audits = re.findall('/\* audit (.+?)\n(.*?)\naudit \*/', sql, re.S) -%}
{%- set body = re.sub('/\* (scope|audit) .*?\n\\1 \*/', '', sql, flags=re.S) -%}
{%- set header, scope_sql = scopes[0] if scopes else ('', '') -%}
{%- set scope_keys, _, scope_since = header.partition(' since ') -%}
{%- set feeds = (re.findall('@changes (\S+) (\S+)@', scope_sql) + re.findall('/\* (?:delta|then and now) (\S+) (\S+) ', body)) | unique | list -%}
{%- set landings = re.findall('@landed ([^@]+)@', scope_sql) | unique | list -%}

{%- set rules = rule_versions() -%}
{%- set fingerprint = local_md5(body ~ config.require('unique_key') ~ config.get('changes')) ~ (local_md5(rules | join('|')) if rules else '') -%}
{%- set state = maintained_state(feeds, landings) -%}
{%- set known = state.model is not none and not fresh -%}
{#- Back in time nearly every key is touched: sums of rows then and now cost more than to make them anew. -#}
{%- set goes_back = config.get('add') and scope_keys and state.model and state.model.as_of_went_back -%}
{%- set full = not known or should_full_refresh() or state.model.fingerprint != fingerprint or state.reset or goes_back -%}
{%- if config.get('add') and feeds and (full or scope_keys) -%}
    {#- A sum of rows, not of changes alone: what is committed between the look and the read would be added again later. -#}
    {% call statement('still') %}
        lock table {% for name, schema in feeds %}"{{ schema }}"."{{ name }}__changes"{{ ', ' if not loop.last }}{% endfor %} in share mode;
    {% endcall %}
    {%- set state = maintained_state(feeds, landings) -%}
{%- endif -%}
{%- set asks_time = '/* as of */' in sql or '@as of@' in sql -%}
{%- set idle = not full and not state.pending and not (asks_time and state.model.as_of_moved) -%}
{%- set plan = namespace(full=full, idle=idle, mode='FULL' if full else 'CHANGED', scope_keys=scope_keys, scope_since=scope_since, audits=audits,
    positions=state.next, fingerprint=fingerprint, rules=rules, declared=state.model.declared if state.model else none, sql=at_this_moment(body), then_sql=none) -%}

{%- if not full and not idle -%}
    {%- set ns = namespace(scope=at_this_moment(scope_sql, state.model.as_of)) -%}
    {%- for name, schema in feeds -%}
        {%- set window = unconsumed_changes(name, schema, state.model.positions.get(name, 0), state.next[name]) -%}
        {%- set ns.scope = ns.scope.replace('@changes ' ~ name ~ ' ' ~ schema ~ '@', window) -%}
        {%- set plan.sql = plan.sql.replace(all_rows(api.Relation.create(database=target.database, schema=schema, identifier=name)), window) if config.get('add') else plan.sql -%}
    {%- endfor -%}
    {%- for table in landings -%}
        {%- set window = unconsumed_landings(table, state.model.positions.get(table, 0), state.next[table]) -%}
        {%- set ns.scope = ns.scope.replace('@landed ' ~ table ~ '@', window) -%}
    {%- endfor -%}
    {%- if scope_keys -%}{%- do narrow_to_touched(plan, ns.scope, feeds) -%}{%- endif -%}
    {%- if scope_keys and config.get('add') and not plan.full and not plan.idle -%}
        {%- set plan.then_sql = as_the_previous_build_saw(at_this_moment(body, now=state.model.as_of), plan, feeds, state.model.positions) -%}
    {%- endif -%}
{%- endif -%}
{{ return(plan) }}
{% endmacro %}


{# Puts the touched keys into the table `touched` and narrows the plan to them.
   A null key means that everything is touched. #}
{% macro narrow_to_touched(plan, scope_sql, feeds) %}
{% call statement('touched', fetch_result=True) %}
    create temporary table touched on commit drop as
    select {{ plan.scope_keys }}{{ ', min(since) as since' if plan.scope_since }} from ({{ scope_sql }}) as keys group by {{ plan.scope_keys }};
    analyze touched;
    select count(*) as keys, count(*) filter (where row({{ plan.scope_keys }}) is null or not row({{ plan.scope_keys }}) is not null) as nulls,
        (select max(reltuples) from pg_class where oid in (
            {%- if config.get('add') -%}
                {%- for name, schema in feeds %}'"{{ schema }}"."{{ name }}"'::regclass{{ ', ' if not loop.last }}{% endfor -%}
            {%- else -%}'{{ this }}'::regclass{%- endif -%}
        )) as rows
    from touched;
{% endcall %}
{%- set keys, nulls, rows = load_result('touched').data[0] -%}
{%- if nulls > 0 -%}
    {%- set plan.full = true -%}
    {%- set plan.mode = 'FULL' -%}
{%- elif keys == 0 -%}
    {%- set plan.idle = true -%}
    {%- do record_state(plan) -%}
{%- else -%}
    {%- set plan.sql = in_touched(plan.sql, plan.scope_keys) -%}
    {#- A few keys are looked up by index. The planner would rather read tables whole, as if everything were in memory:
        the work would grow with the history. -#}
    {%- if keys < rows / 10 -%}{% call statement('by_index') %}set local enable_seqscan = off{% endcall %}{%- endif -%}
{%- endif -%}
{% endmacro %}


{# A definition of sums with a scope, on the rows of its touched keys as they were: as they are, without what came since
   and with what went. Keys of which the table has nothing from their `since` on have nothing to be taken away. #}
{% macro as_the_previous_build_saw(sql, plan, feeds, positions) %}
{%- set ns = namespace(sql=sql) -%}
{%- for name, schema in feeds -%}
    {%- set window = unconsumed_changes(name, schema, positions.get(name, 0), plan.positions[name]) -%}
    {%- set columns = adapter.get_columns_in_relation(api.Relation.create(database=target.database, schema=schema, identifier=name)) | map(attribute='quoted') | join(', ') -%}
    {%- set versions -%}
        (select {{ columns }} from (
            select {{ columns }}, 1 as weight from \1 where \2 in (select {{ plan.scope_keys }} from touched)
            union all
            select {{ columns }}, -weight from {{ window }} as changes where \2 in (select {{ plan.scope_keys }} from touched)
        ) as versions group by {{ columns }} having sum(weight) > 0)
    {%- endset -%}
    {%- set ns.sql = modules.re.sub('(\S+) /\* then and now ' ~ name ~ ' ' ~ schema ~ ' (\(.*?\)) \*/', versions, ns.sql) -%}
{%- endfor -%}
{%- set sql = in_touched(ns.sql, plan.scope_keys) -%}
{%- if not plan.scope_since -%}{{ return(sql) }}{%- endif -%}
{%- set shared = plan.scope_keys.split(', ') | select('in', config.require('unique_key')) | list -%}
{%- set stored -%}
select from {{ this }} as stored
where stored.{{ plan.scope_since }} >= touched.since{% for key in shared %} and stored.{{ key }} = touched.{{ key }}{% endfor %}
{%- endset -%}
{{ return('with touched as (select * from touched where exists (' ~ stored ~ ')) select * from (' ~ sql ~ ') as sums') }}
{% endmacro %}


{% macro in_touched(sql, keys) %}
{%- set narrowed = modules.re.sub('true (?:/\*|@) in scope (\(.*?\)) (?:\*/|@)', '\\1 in (select ' ~ keys ~ ' from touched)', sql) -%}
{%- set narrowed = modules.re.sub('(\S+) /\* then and now \S+ \S+ (\(.*?\)) \*/', '(select * from \\1 where \\2 in (select ' ~ keys ~ ' from touched))', narrowed) -%}
{%- set narrowed = modules.re.sub('/\* since \((.*?)\) (\S+) \*/', 'join touched on (' ~ rows_of('touched', keys) ~ ') = (\\1) and \\2 >= touched.since', narrowed) -%}
{{ return(modules.re.sub('true (?:/\*|@) in scope days \((.*?)\) (\S+) (?:\*/|@)', touched_days('\\1', '\\2'), narrowed)) }}
{% endmacro %}


{% macro rows_of(alias, keys) -%}
{{ alias }}.{{ keys | replace(', ', ', ' ~ alias ~ '.') }}
{%- endmacro %}


{# Local days begin and end within a day of UTC's. #}
{% macro touched_days(moment, date_key) -%}
{{ moment }} >= (select min({{ date_key }}) - 1 from touched) and {{ moment }} < (select max({{ date_key }}) + 2 from touched)
{%- endmacro %}


{% macro all_rows(relation) -%}
(select *, 1 as weight from {{ relation }}) /* delta {{ relation.identifier }} {{ relation.schema }} */
{%- endmacro %}

{% macro unconsumed_changes(name, schema, after, until) -%}
(select * from "{{ schema }}"."{{ name }}__changes" where change_id > {{ after }} and change_id <= {{ until }})
{%- endmacro %}

{% macro unconsumed_landings(table, since, before) -%}
(select * from {{ table }} where landed_xid >= cast('{{ since }}' as xid8) and landed_xid < cast('{{ before }}' as xid8))
{%- endmacro %}

{% macro at_this_moment(sql, previous=none, now=none) %}
{%- set moment = "cast('" ~ (now or as_of_text()) ~ "' as timestamptz)" -%}
{{ return(sql.replace('current_timestamp /* as of */', moment).replace('@as of@', moment).replace('@previous as of@', "cast('" ~ (previous or as_of_text()) ~ "' as timestamptz)")) }}
{% endmacro %}

{# The run's as_of as text: the variable, what the runner sets (another value of a variable makes dbt parse everything
   again), or the start of the run. #}
{% macro as_of_text() %}
{{ return((var('as_of', '') | string) or env_var('AUDIENCE_AS_OF', '') or run_started_at.strftime('%Y-%m-%d %H:%M:%S.%f+00')) }}
{% endmacro %}


{# What the model reads by rule rather than by change, as 'name:version': its seeds, look-ups, and views with what they read. #}
{% macro rule_versions() %}
{%- set recorded, views = [], [] -%}
{%- for id in model.depends_on.nodes -%}{%- do rule_names(id, recorded, views) -%}{%- endfor -%}
{%- if not recorded and not views -%}{{ return([]) }}{%- endif -%}
{%- set query -%}
select regexp_replace(model, '^seed ', '') || ':' || fingerprint from {{ state_schema() }}.model_state where model in ('{{ recorded | join("', '") }}')
{%- for schema, name in views | unique %}
union all
select '{{ name }}:' || md5(pg_get_viewdef('"{{ schema }}"."{{ name }}"'::regclass))
{%- endfor %}
{%- endset -%}
{{ return(run_query(query).columns[0].values() | sort) }}
{% endmacro %}

{% macro rule_names(id, recorded, views) %}
{%- set node = graph.nodes.get(id) -%}
{%- if node and node.resource_type == 'seed' -%}
    {%- do recorded.append('seed ' ~ node.name) -%}
{%- elif node and node.resource_type == 'model' and node.config.get('lookup') -%}
    {%- do recorded.append(node.alias) -%}
{%- elif node and node.resource_type == 'model' and node.config.materialized in ('ephemeral', 'view') -%}
    {%- do views.append((node.schema, node.alias)) if node.config.materialized == 'view' -%}
    {%- for parent in node.depends_on.nodes -%}{%- do rule_names(parent, recorded, views) -%}{%- endfor -%}
{%- endif -%}
{% endmacro %}


{# Names of the tables that a model reads, also through ephemeral models and views. #}
{% macro upstream_tables(id, names) %}
{%- for parent in graph.nodes[id].depends_on.nodes if parent.startswith('model.') -%}
    {%- set node = graph.nodes[parent] -%}
    {%- if node.config.materialized in ('ephemeral', 'view') -%}{%- do upstream_tables(parent, names) -%}{%- else -%}{%- do names.append(node.alias) -%}{%- endif -%}
{%- endfor -%}
{% endmacro %}


{# What the model consumed, up to where it can consume now, and whether anything is pending. One round trip.
   Landed rows are taken up to the oldest transaction still running, so a row committed late is never passed over; and no
   further than the models it reads have taken them, so that what lands during a build is judged by all or by none. #}
{% macro maintained_state(feeds, landings) %}
{%- set upstream = [] -%}
{%- do upstream_tables(model.unique_id, upstream) -%}
{%- set query -%}
with known as (
    select * from {{ state_schema() }}.model_state where model = '{{ this.identifier }}'
),
inputs (input, pending, next_position, is_reset) as (
    select null::text, {{ 'false' if feeds or landings else 'true' }}, null::bigint, false
    {%- for name, schema in feeds %}
    union all
    select '{{ name }}', count(*) > 0, max(change_id), coalesce(bool_or(weight is null), false)
    from "{{ schema }}"."{{ name }}__changes"
    where change_id > coalesce((select cast(positions ->> '{{ name }}' as bigint) from known), 0)
    {%- endfor %}
    {%- for table in landings %}
    union all
    select '{{ table }}', exists (
        select from {{ table }}
        where landed_xid >= cast(coalesce((select positions ->> '{{ table }}' from known), '0') as xid8) and landed_xid < landed_before
    ), cast(cast(landed_before as text) as bigint), false
    from (
        select least(pg_snapshot_xmin(pg_current_snapshot()), min(cast(positions ->> '{{ table }}' as xid8))) as landed_before
        from {{ state_schema() }}.model_state where model in ('{{ upstream | join("', '") }}')
    ) as limits
    {%- endfor %}
)
select cast(jsonb_build_object(
    'model', (select to_jsonb(known) - 'definition' || jsonb_build_object(
        'as_of_moved', as_of <> cast('{{ as_of_text() }}' as timestamptz), 'as_of_went_back', as_of > cast('{{ as_of_text() }}' as timestamptz)) from known),
    'pending', bool_or(pending),
    'reset', bool_or(is_reset),
    'next', coalesce((select positions from known), '{}') || coalesce(jsonb_object_agg(input, coalesce(next_position,
        (select cast(positions ->> input as bigint) from known), 0)) filter (where input is not null), '{}')
) as text)
from inputs
{%- endset -%}
{{ return(fromjson(run_query(query).columns[0].values()[0])) }}
{% endmacro %}
