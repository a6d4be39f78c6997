{# Before a run: refuse settings that make no sense and a build beside another, make the landing and state tables and the
   roles when they are missing or older. #}
{% macro prepare_run() %}
{% if execute and flags.WHICH in ('run', 'build', 'seed', 'test', 'run-operation') %}
    {% do refuse_impossible_settings() %}
    {% do refuse_beside_another_build() %}
    {% do ensure_tables() %}
    {% if flags.WHICH in ('run', 'build', 'seed') %}{% do secure_what_is_there() %}{% endif %}
    {% if flags.WHICH in ('run', 'build') %}{% do forget_personal_data() %}{% do retain_old_events() %}{% endif %}
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


{# Runs the idempotent DDL once per release: the md5 of its text is kept as the schema's comment. Then the roles. #}
{% macro ensure_tables() %}
{% for schema, ddl in [(var('landing_schema'), landing_ddl()), (state_schema(), state_ddl())] %}
    {% set version = local_md5(ddl) %}
    {% set found = run_query("select obj_description(oid, 'pg_namespace') from pg_namespace where nspname = '" ~ schema ~ "'") %}
    {% if not (found.rows and found.columns[0].values()[0] == 'release ' ~ version) %}
        {% do run_query("select pg_advisory_xact_lock(hashtextextended('audience ddl', 42));" ~ ddl ~ "; comment on schema " ~ schema ~ " is 'release " ~ version ~ "'; commit;") %}
    {% endif %}
{% endfor %}
{% do run_query(follow_cluster_sql()) %}
{% if var('roles_are_needed') %}{% do run_query(ensure_roles_sql()) %}{% endif %}
{% do run_query(secure_exports_sql()) %}
{% do run_query(secure_campaigns_sql()) %}
{% do run_query(secure_subjects_sql()) %}
{% endmacro %}


{# Transaction numbers mean something in their own cluster only. In one into which a dump was restored, rows that landed
   before are older than everything, and each target is computed anew. #}
{% macro follow_cluster_sql() %}
{%- set landing = var('landing_schema') -%}
do $$
declare
    here constant bigint := (select system_identifier from pg_control_system());
    landed regclass;
begin
    if exists (select from {{ landing }}.runner_state where name = 'cluster' and position = here)
        and exists (select from {{ state_schema() }}.model_state where model = 'the cluster' and fingerprint = cast(here as text)) then
        return;
    end if;
    perform pg_advisory_xact_lock(hashtextextended('audience ddl', 42));
    if exists (select from {{ landing }}.runner_state where name = 'cluster' and position <> here) then
        for landed in
            select attrelid from pg_attribute join pg_class on oid = attrelid
            where attname = 'landed_xid' and atttypid = 'xid8'::regtype and relkind = 'r'
        loop
            execute format('alter table %s alter landed_xid type xid8 using cast(''0'' as xid8)', landed);
        end loop;
        delete from {{ landing }}.runner_state;
    end if;
    if exists (select from {{ state_schema() }}.model_state where model = 'the cluster' and fingerprint <> cast(here as text)) then
        delete from {{ state_schema() }}.model_state;
    end if;
    insert into {{ landing }}.runner_state (name, position) values ('cluster', here) on conflict do nothing;
    insert into {{ state_schema() }}.model_state (model, fingerprint, positions, as_of, built_at)
    values ('the cluster', cast(here as text), '{}', 'epoch', clock_timestamp()) on conflict do nothing;
end $$;
commit;
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
alter table {{ state_schema() }}.model_state drop column if exists documentation, add column if not exists declared text;
-- By which SQL: {schema, sql (with its marks), unique_key, add, rules (name:version of its seeds, views and look-ups)}.
alter table {{ state_schema() }}.model_state add column if not exists definition jsonb;

-- Numbers of changes. They begin at the microseconds since 1970, so that none comes twice when this schema was lost;
-- tables of changes that outlived it are numbered by it again.
do $$
declare
    feed text;
begin
    execute format('create sequence if not exists {{ state_schema() }}.change_id start with %s',
        cast(extract(epoch from clock_timestamp()) * 1000000 as bigint));
    for feed in
        select format('%I.%I', table_schema, table_name) from information_schema.columns
        where (table_schema = '{{ target.schema }}' or table_schema like '{{ target.schema }}\_%')
            and table_name like '%\_\_changes' and column_name = 'change_id' and column_default is null
    loop
        execute format('alter table %s alter change_id set default nextval(''{{ state_schema() }}.change_id'')', feed);
    end loop;
end $$;

{{ rights_ddl() }}
{{ segments_ddl() }}
{{ suppressions_ddl() }}
{{ hot_leads_ddl() }}
{{ exports_ddl() }}
{{ standing_exports_ddl() }}
{{ campaigns_ddl() }}
{{ subjects_ddl() }}
{{ erasure_ddl() }}
{{ storage_ddl(state_schema()) }}
{% endmacro %}


{# Records by which version a model, or as 'seed <name>', 'view <name>', 'test <name>' something else, was built, and when. #}
{% macro record(name, fingerprint, positions={}) -%}
insert into {{ state_schema() }}.model_state (model, fingerprint, positions, as_of, built_at)
values ('{{ name }}', '{{ fingerprint }}', '{{ tojson(positions) }}', cast('{{ as_of_text() }}' as timestamptz), clock_timestamp())
on conflict (model) do update set fingerprint = excluded.fingerprint, positions = excluded.positions,
    as_of = excluded.as_of, built_at = excluded.built_at;
{%- endmacro %}


{# After a run: changes that every model has consumed are emptied, what is no model any more is forgotten, and what was made
   is handed to its owner. Those of an interrupted run wait for the next. #}
{% macro finish_run() %}
{% if execute and flags.WHICH in ('run', 'build') %}
{% do run_query(prune_changes_sql()) %}
{% do run_query('select ' ~ state_schema() ~ '.refresh_suppressed_visitors(); commit;') %}
{% do run_query(hand_over_sql()) %}
{% endif %}
{% endmacro %}

{% macro prune_changes_sql() %}
{%- set models = graph.nodes.values() | selectattr('resource_type', 'equalto', 'model') | list -%}
{%- set consumers = models | map(attribute='name') | list -%}
{%- set schemas = models | map(attribute='schema') | unique | list -%}
do $$
declare
    feed record;
    newest bigint;
begin
    for feed in
        select tables.relid::regclass as name, replace(tables.relname, '__changes', '') as model
        from pg_stat_user_tables as tables
        where tables.schemaname in ('{{ schemas | join("', '") }}') and tables.relname like '%\_\_changes'
    loop
        execute format('select max(change_id) from %s', feed.name) into newest;
        if newest is not null then
            begin
                -- The lock before the look: what a build beside this one commits in between would be emptied unread.
                execute format('lock table %s in access exclusive mode nowait', feed.name);
                execute format('select max(change_id) from %s', feed.name) into newest;
                if newest <= (
                    select min(cast(positions ->> feed.model as bigint)) from {{ state_schema() }}.model_state
                    where positions ? feed.model and model in ('{{ consumers | join("', '") }}')
                ) then
                    execute format('truncate %s', feed.name);
                end if;
            exception when lock_not_available then
                null;  -- a build beside this one is writing changes: they are emptied after a later run
            end;
        end if;
    end loop;
end $$;
delete from {{ state_schema() }}.model_state where model not like '% %' and model not in ('{{ consumers | join("', '") }}');
commit;
{% endmacro %}


{# The recorded fingerprint of a model, of a seed ('seed <name>': its content as loaded) or of a view ('view <name>'); on
   request only if this is what was declared of it. #}
{% macro recorded_fingerprint(name, declared=none) %}
{%- set alike = " and declared = '" ~ declared ~ "'" if declared else '' -%}
{{ return(run_query("select fingerprint from " ~ state_schema() ~ ".model_state where model = '" ~ name ~ "'" ~ alike).columns[0].values() | join('')) }}
{% endmacro %}
