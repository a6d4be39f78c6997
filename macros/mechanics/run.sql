{# Before a run: refuse beside another build, make the landing and state tables when they are missing or older. #}
{% macro prepare_run() %}
{% if execute and flags.WHICH in ('run', 'build', 'seed', 'test', 'run-operation') %}
    {% do refuse_beside_another_build() %}
    {% do ensure_tables() %}
{% endif %}
{% endmacro %}


{# The key of the lock that one build at a time holds, per database and target schema. #}
{% macro build_lock_key() %}hashtextextended('audience build {{ target.schema }}', 42){% endmacro %}


{% macro refuse_beside_another_build() %}
{# `audience build` holds the lock for its dbt and says so; a dbt typed by hand finds it taken. A dbt typed by hand
   cannot hold a lock between its models, but its connections carry its name and are older than this run. #}
{% if env_var('AUDIENCE_BUILD_LOCK', '') == '' %}
    {% set query %}
        select pg_try_advisory_xact_lock_shared({{ build_lock_key() }}) and not exists (
            select from pg_stat_activity
            where datname = current_database() and application_name = 'dbt {{ target.schema }}' and pid <> pg_backend_pid()
                and backend_start < cast('{{ run_started_at.strftime("%Y-%m-%d %H:%M:%S.%f+00") }}' as timestamptz) - interval '1 second'
        )
    {% endset %}
    {% if not run_query(query).columns[0].values()[0] %}
        {% do exceptions.raise_compiler_error("Another build of schema " ~ target.schema ~ " is running: wait for it to end, then run this again.") %}
    {% endif %}
{% endif %}
{% endmacro %}


{# Runs the idempotent DDL once per release: the md5 of its text is kept as the schema's comment. #}
{% macro ensure_tables() %}
{% for schema, ddl in [(var('landing_schema'), landing_ddl()), (state_schema(), state_ddl())] %}
    {% set version = local_md5(ddl) %}
    {% set found = run_query("select obj_description(oid, 'pg_namespace') from pg_namespace where nspname = '" ~ schema ~ "'") %}
    {% if not (found.rows and found.columns[0].values()[0] == 'release ' ~ version) %}
        {% do run_query("select pg_advisory_xact_lock(hashtextextended('audience ddl', 42));" ~ ddl ~ "; comment on schema " ~ schema ~ " is 'release " ~ version ~ "'; commit;") %}
    {% endif %}
{% endfor %}
{% endmacro %}


{% macro state_schema() %}{{ target.schema }}_state{% endmacro %}


{% macro state_ddl() %}
create schema if not exists {{ state_schema() }};

-- What each model has consumed and by which rules it was built. Losing a row costs one full recompute, no answer.
create table if not exists {{ state_schema() }}.model_state (
    model text primary key,
    fingerprint text not null,
    positions jsonb not null,
    as_of timestamptz not null,
    built_at timestamptz not null
);
alter table {{ state_schema() }}.model_state add column if not exists documentation text;
{% endmacro %}


{# After a run: changes that every model has consumed are emptied. Those of an interrupted run wait for the next. #}
{% macro finish_run() %}
{% if execute and flags.WHICH in ('run', 'build') %}
{% do run_query(prune_changes_sql()) %}
{% endif %}
{% endmacro %}

{% macro prune_changes_sql() %}
{%- set consumers = graph.nodes.values() | selectattr('resource_type', 'equalto', 'model') | map(attribute='name') | list -%}
do $$
declare
    feed record;
    newest bigint;
begin
    for feed in
        select tables.relid::regclass as name, replace(tables.relname, '__changes', '') as model
        from pg_stat_user_tables as tables
        where tables.schemaname like '{{ target.schema }}%' and tables.relname like '%\_\_changes'
    loop
        execute format('select max(change_id) from %s', feed.name) into newest;
        if newest is not null and newest <= (
            select min(cast(positions ->> feed.model as bigint)) from {{ state_schema() }}.model_state
            where positions ? feed.model and model in ('{{ consumers | join("', '") }}')
        ) then
            begin
                set local lock_timeout = '1s';
                execute format('truncate %s', feed.name);
            exception when lock_not_available then
                null;  -- a build beside this one is writing changes: they are emptied after a later run
            end;
        end if;
    end loop;
end $$;
commit;
{% endmacro %}


{# The recorded fingerprint of a model, of a seed ('seed <name>': its content as loaded) or of a view ('view <name>'). #}
{% macro recorded_fingerprint(name) %}
{{ return(run_query("select fingerprint from " ~ state_schema() ~ ".model_state where model = '" ~ name ~ "'").columns[0].values() | join('')) }}
{% endmacro %}
