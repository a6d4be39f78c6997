{# Columns of a relation with their types, as dbt asks for them: information_schema calls every array ARRAY, to which the
   rows of a unit test cannot be cast. #}
{% macro postgres__get_columns_in_relation(relation) %}
{% call statement('columns', fetch_result=True) %}
    select
        column_name,
        case data_type when 'ARRAY' then cast(cast(format('%I.%I', udt_schema, udt_name) as regtype) as text) else data_type end as data_type,
        character_maximum_length,
        numeric_precision,
        numeric_scale
    from {{ relation.information_schema('columns') }}
    where table_name = '{{ relation.identifier }}' {{ "and table_schema = '" ~ relation.schema ~ "'" if relation.schema }}
    order by ordinal_position
{% endcall %}
{{ return(sql_convert_columns_in_relation(load_result('columns').table)) }}
{% endmacro %}
