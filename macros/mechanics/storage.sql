{# How tables are kept in shape over many nights. More: docs/operations.md, "Tables grow" #}

{# Storage parameters of every table, by name. Autovacuum waits for a fifth of a table by default: in one of ten million rows
   for two million dead ones, which readers and builds read past. #}
{% macro storage_parameters(fillfactor=none) %}
{%- set parameters = {
    'autovacuum_vacuum_scale_factor': var('vacuum_dead_rows_share'),
    'autovacuum_vacuum_insert_scale_factor': var('vacuum_new_rows_share'),
    'autovacuum_analyze_scale_factor': var('analyze_changed_rows_share'),
} -%}
{%- if fillfactor -%}{%- do parameters.update({'fillfactor': fillfactor}) -%}{%- endif -%}
{{ return(parameters) }}
{% endmacro %}

{% macro storage_clause(parameters) -%}
({% for name, value in parameters.items() %}{{ name }} = {{ value }}{{ ', ' if not loop.last }}{% endfor %})
{%- endmacro %}


{# On a table that was made before they were as they are now. Nobody waits for it. #}
{% macro declare_storage(relation) %}
{% call statement('storage') %}
    alter table {{ relation }} set {{ storage_clause(storage_parameters(config.get('fillfactor'))) }}
    {%- if not config.get('fillfactor') %}, reset (fillfactor){% endif %};
{% endcall %}
{% endmacro %}


{# The same for all tables of a schema that are made by DDL. #}
{% macro storage_ddl(schema) %}
{%- set clause = storage_clause(storage_parameters()) -%}
do $storage$
declare
    owned regclass;
begin
    for owned in
        select oid from pg_class
        where relnamespace = '{{ schema }}'::regnamespace and relkind = 'r' and pg_has_role(relowner, 'usage')
            and not coalesce(reloptions, '{}') @> string_to_array('{{ clause[1:-1] | replace(" ", "") }}', ',')
    loop
        execute format('alter table %s set {{ clause }}', owned);
    end loop;
end $storage$;
{% endmacro %}
