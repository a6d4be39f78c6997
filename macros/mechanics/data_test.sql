{# dbt's data test. In a build, one that passed is not run again until something that it reads was written;
   `dbt test` runs every one. #}
{% materialization test, adapter='postgres' %}
    {%- set tables = [] -%}
    {%- for id in model.depends_on.nodes -%}{%- do written_tables(id, tables) -%}{%- endfor -%}
    {%- set version, passed = tested_version(tables) -%}
    {%- if flags.WHICH == 'build' and version == passed and not should_store_failures() -%}
        {% call statement('main', fetch_result=True) %}select 0 as failures, false as should_warn, false as should_error{% endcall %}
        {{ return({'relations': []}) }}
    {%- endif -%}
    {%- set result = dbt.materialization_test_default() -%}
    {%- if version and load_result('main').data[0][0] == 0 -%}
        {% call statement('record') %}{{ record('test ' ~ model.name, version) }}{% endcall %}
        {%- do adapter.commit() -%}
    {%- endif -%}
    {{ return(result) }}
{% endmaterialization %}


{# The seeds and maintained models that a node reads, through views; `none` for what nobody keeps a record of. #}
{% macro written_tables(id, tables) %}
{%- set node = graph.nodes.get(id) -%}
{%- if not node -%}
    {%- do tables.append(none) -%}
{%- elif node.resource_type == 'seed' -%}
    {%- do tables.append('seed ' ~ node.name) -%}
{%- elif node.config.materialized == 'maintained' -%}
    {%- do tables.append(node.alias) -%}
{%- else -%}
    {%- do tables.append('view ' ~ node.alias) if node.config.materialized == 'view' -%}
    {%- for parent in node.depends_on.nodes -%}{%- do written_tables(parent, tables) -%}{%- endfor -%}
{%- endif -%}
{% endmacro %}


{# What the test would look at, as one number, and the one at which it last passed. #}
{% macro tested_version(tables) %}
{%- if none in tables or not tables -%}{{ return(['', none]) }}{%- endif -%}
{%- set query -%}
select
    md5('{{ local_md5(sql) }}' || string_agg(model || ' ' || built_at, ',' order by model) filter (where model in ('{{ tables | unique | join("', '") }}'))),
    max(fingerprint) filter (where model = 'test {{ model.name }}')
from {{ state_schema() }}.model_state
{%- endset -%}
{{ return(run_query(query).rows[0].values()) }}
{% endmacro %}
