{# dbt's view, replaced in place and only when its SQL or the columns that it reads changed: readers and dependent views keep it.
   Rights are those of the reader (security_invoker). #}
{% materialization view, adapter='postgres' %}
    {%- set relation = this.incorporate(type='view') -%}
    {%- do run_hooks(pre_hooks) -%}
    {%- set version = local_md5(sql ~ columns_read(model)) -%}
    {%- set found = run_query("select exists (select from " ~ state_schema() ~ ".model_state where model = 'view " ~ this.identifier ~ "' and fingerprint = '" ~ version ~ "') and to_regclass('" ~ this ~ "') is not null").columns[0].values()[0] -%}
    {%- if found -%}
        {% call noop_statement('main', 'UNCHANGED', 'UNCHANGED') %}{{ sql }}{% endcall %}
    {%- else -%}
        {% call statement('main') %}
            select pg_advisory_xact_lock(hashtextextended('{{ this }}', 42));
            do $replace$
            begin
                execute $view$create or replace view {{ relation }} with (security_invoker = true) as {{ sql }}$view$;
            exception when invalid_table_definition or feature_not_supported then
                execute 'drop view {{ relation }} cascade';
                execute $view$create view {{ relation }} with (security_invoker = true) as {{ sql }}$view$;
            end $replace$;
            {{ record('view ' ~ this.identifier, version) }}
            {{ secured(model) }}
        {% endcall %}
        {%- do persist_docs(relation, model) -%}
        {%- do adapter.commit() -%}
    {%- endif -%}
    {%- do run_hooks(post_hooks) -%}
    {{ return({'relations': [relation]}) }}
{% endmaterialization %}


{# The columns of what a model reads: a select * of them is another one when they change. #}
{% macro columns_read(model) %}
{%- set names = [] -%}
{%- for name in model.depends_on.nodes if name in graph.nodes or name in graph.sources -%}
    {%- do names.append("to_regclass('" ~ (graph.nodes.get(name) or graph.sources.get(name)).relation_name ~ "')") -%}
{%- endfor -%}
{%- if names -%}
{{ return(run_query("select coalesce(string_agg(format('%s.%s %s', cast(attrelid as regclass), attname, format_type(atttypid, atttypmod)), ', ' order by cast(cast(attrelid as regclass) as text), attnum), '') from pg_attribute where attnum > 0 and not attisdropped and attrelid in (" ~ names | join(', ') ~ ")").columns[0].values()[0]) }}
{%- endif -%}
{{ return('') }}
{% endmacro %}
