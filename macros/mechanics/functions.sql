{# A query function: the arguments, the row type and the texts of its YAML around a PL/pgSQL block that is compiled as a
   model is. Written only when it changed, and in one transaction: a caller finds the old one or the new one, never none.
   One signature per name: with other argument types or another row type the old one leaves in the same transaction, and
   who could execute it can execute the new one. It runs with the rights of its caller, or with meta {security: definer} those
   of its owner, by names that no search_path can turn to something else. A range's plan is made for the range: kept for any, it would be that of an average one. #}
{% materialization function, adapter='postgres', supported_languages=['sql'] %}
    {%- set relation = this.incorporate(type=this.Function) -%}
    {%- do run_hooks(pre_hooks) -%}
    {%- set ddl = function_ddl(relation) -%}
    {%- set version = local_md5(ddl) -%}
    {%- set found = run_query(function_is_there(version)).columns[0].values()[0] -%}
    {%- if found -%}
        {% call noop_statement('main', 'UNCHANGED', 'UNCHANGED') %}{{ ddl }}{% endcall %}
    {%- else -%}
        {% call statement('main') %}
            select pg_advisory_xact_lock(hashtextextended('{{ this }}', 42));
            {{ ddl }}
            {{ record('function ' ~ this.identifier, version) }}
            {{ secured(model) }}
        {% endcall %}
        {%- do adapter.commit() -%}
    {%- endif -%}
    {%- do run_hooks(post_hooks) -%}
    {{ return({'relations': [relation]}) }}
{% endmaterialization %}


{# Was this version written, and is the one function of its name still there? #}
{% macro function_is_there(version) %}
select exists (select from {{ state_schema() }}.model_state where model = 'function {{ this.identifier }}' and fingerprint = '{{ version }}')
    and 1 = (select count(*) from pg_proc where pronamespace = to_regnamespace('{{ this.schema }}') and proname = '{{ this.identifier }}')
{% endmacro %}


{% macro function_ddl(relation) %}
{%- set name = '"' ~ relation.schema ~ '"."' ~ relation.identifier ~ '"' -%}
{%- set types = model.arguments | map(attribute='data_type') | join(', ') -%}
{%- set returned = model.returns.data_type | trim -%}
do $replace$
declare
    signature constant text := '{{ name }}({{ types }})';
    outdated regprocedure;
    former oid[];
    former_caller text;
    former_callers text[];
begin
    select array_agg(oid) into former from pg_proc
    where pronamespace = '"{{ relation.schema }}"'::regnamespace and proname = '{{ relation.identifier }}';
    select array_agg(distinct case when grantee <> 0 then format('%I', pg_get_userbyid(grantee)) end) into former_callers
    from pg_proc cross join aclexplode(proacl)
    where pg_proc.oid = any(former) and grantee not in (0, proowner) and privilege_type = 'EXECUTE';
    for outdated in
        select oid from pg_proc
        where oid = any(former) and (
            oid is distinct from to_regprocedure(signature)
            -- the same but for spelling: types and defaults as PostgreSQL writes them cannot be compared with ours
            or coalesce(obj_description(oid, 'pg_proc'), '') not like {{ quoted_text('%' ~ signature_mark(returned)) }}
        )
    loop
        execute format('drop function %s', outdated);
    end loop;
    execute {{ quoted_text(create_function(name, returned)) }};
    execute format('comment on function %s is %L', signature, {{ quoted_text(function_comment() ~ signature_mark(returned)) }});
    execute format('revoke all on function %s from public', signature);
    foreach former_caller in array coalesce(former_callers, '{}') loop
        execute format('grant execute on function %s to %s', signature, former_caller);
    end loop;
end $replace$;
{% endmacro %}


{% macro create_function(name, returned) %}
create or replace function {{ name }}(
    {%- for argument in model.arguments %}
    {{ argument.name }} {{ argument.data_type }}{{ ' default ' ~ argument.default_value if argument.get('default_value') is not none }}{{ ',' if not loop.last }}
    {%- endfor %}
) returns {{ returned }}
language plpgsql {{ {'deterministic': 'immutable', 'stable': 'stable', 'non-deterministic': 'volatile'}[config.require('volatility')] }} security {{ config.get('meta', {}).get('security', 'invoker') }}
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan set jit = off
as $function$
#variable_conflict use_column
{{ without_database(model.compiled_code) }}
$function$
{% endmacro %}


{# Names without their database, so that a copy of it under another name works; quoted texts stay as they are. #}
{% macro without_database(code) %}{{ return(modules.re.sub("(?<!')\"" ~ target.database ~ '"\\.("[^"]+"\\."[^"]+")', '\\1', code)) }}{% endmacro %}


{# The end of the comment: by it a function with another row type or other argument names is told, which cannot be replaced. #}
{% macro signature_mark(returned) -%}
{{ return('[' ~ local_md5(model.arguments | map(attribute='name') | join(',') ~ returned) ~ ']') }}
{%- endmacro %}


{# What the YAML says of a function, of its arguments and of what it returns. #}
{% macro function_comment() %}
{%- set lines = [model.description | trim] -%}
{%- for argument in model.arguments -%}{%- do lines.append(argument.name ~ ': ' ~ argument.description | trim) -%}{%- endfor -%}
{%- do lines.append('Returns: ' ~ model.returns.description | trim) -%}
{{ return(lines | join('\n') ~ '\n') }}
{% endmacro %}


{% macro quoted_text(text) %}{{ return("'" ~ (text | replace("'", "''")) ~ "'") }}{% endmacro %}


{# In a function: stops it with a sentence (what was given, why it cannot be, what to do instead) unless the condition
   holds. values: what the sentence's %s stand for. #}
{% macro refuse_unless(condition, sentence, values) %}
if not coalesce({{ condition }}, false) then
        raise exception using errcode = 'invalid_parameter_value', message = format('{{ sentence }}', {{ values }});
    end if;
{%- endmacro %}
