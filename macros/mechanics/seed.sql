{# dbt's seed, skipped while the file is what was loaded last; models compare the recorded version.
   meta.key, not_null and checks become constraints: a bad file is refused when it is loaded, and tested no more. #}
{% materialization seed, adapter='postgres' %}
    {%- set version = model.checksum.checksum -%}
    {%- set relation = this.incorporate(type='table') -%}
    {%- set existing = load_cached_relation(this) -%}
    {%- do run_hooks(pre_hooks) -%}
    {%- set declared = local_md5(config.require('meta') | string) -%}
    {%- if existing is not none and not should_full_refresh() and recorded_fingerprint('seed ' ~ model.name, declared) == version -%}
        {%- do store_result('agate_table', response='OK') -%}
        {% call noop_statement('main', 'UNCHANGED', 'UNCHANGED', 0) %}{% endcall %}
    {%- else -%}
        {%- set rows = load_agate_table() -%}
        {%- do store_result('agate_table', response='OK', agate_table=rows) -%}
        {% call statement('lock') %}select pg_advisory_xact_lock(hashtextextended('{{ this }}', 42));{% endcall %}
        {%- if existing is none -%}
            {%- set created = create_csv_table(model, rows) -%}
            {% call statement('constrain') %}
                alter table {{ this }} add primary key ({{ config.require('meta').key | join(', ') }});
                {%- for column in config.require('meta').not_null %}
                alter table {{ this }} alter column {{ column }} set not null;
                {%- endfor %}
                {{ secured(model) }}
            {% endcall %}
        {%- else -%}
            {%- do synchronize_seed_columns(rows) -%}
            {%- do drop_outdated_checks(this, config.require('meta').get('checks', {})) -%}
            {% call statement('empty') %}delete from {{ this }};{% endcall %}
        {%- endif -%}
        {%- if rows.rows -%}{%- set loaded = load_csv_rows(model, rows) -%}{%- endif -%}
        {%- do declare_checks(this, config.require('meta').get('checks', {})) -%}
        {% call statement('record') %}
            analyze {{ this }};
            {{ record('seed ' ~ model.name, version) }}
            update {{ state_schema() }}.model_state set declared = '{{ declared }}' where model = 'seed {{ model.name }}';
        {% endcall %}
        {%- do persist_docs(relation, model) -%}
        {% call noop_statement('main', 'INSERT ' ~ rows.rows | length, 'INSERT', rows.rows | length) %}{% endcall %}
        {%- do adapter.commit() -%}
    {%- endif -%}
    {%- do run_hooks(post_hooks) -%}
    {{ return({'relations': [relation]}) }}
{% endmaterialization %}


{# A release that adds or drops a column of a seed changes the table in place, so that views on it stay. #}
{% macro synchronize_seed_columns(rows) %}
{%- set existing = adapter.get_columns_in_relation(this) | map(attribute='name') | list -%}
{%- for name in rows.column_names -%}
    {%- if name not in existing -%}
        {%- set type = config.get('column_types', {}).get(name) or adapter.convert_type(rows, loop.index0) -%}
        {% call statement('add_column') %}alter table {{ this }} add column {{ name }} {{ type }};{% endcall %}
    {%- endif -%}
{%- endfor -%}
{%- for name in existing -%}
    {%- if name not in rows.column_names -%}
        {% call statement('drop_column') %}alter table {{ this }} drop column {{ name }};{% endcall %}
    {%- endif -%}
{%- endfor -%}
{% endmacro %}
