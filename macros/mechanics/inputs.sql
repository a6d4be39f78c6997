{# What a model writes in its SQL. Compiled, the SQL is the model's full definition and can be run by hand;
   the `maintained` materialization narrows it to what changed by replacing the marked pieces. #}

{# Which keys are touched: a query over changes() and landed(), kept as a comment in the compiled SQL.
   since: a column of the model, a time; rows of a touched key before the query's `since` stay as they are. #}
{% macro scope(keys, since=none) %}
/* scope {{ keys }}{{ ' since ' ~ since if since }}
{{ without_comments(caller()) }}
scope */
{% endmacro %}


{# A query that must return no row before the model may be published; runs in the writing transaction. With in_scope()
   it looks at the touched keys. #}
{% macro audit(name) %}
/* audit {{ name }}
{{ without_comments(caller()) }}
audit */
{% endmacro %}


{# Comments do not nest everywhere: inside of one, the marks are written without. #}
{% macro without_comments(sql) %}
{{ return(modules.re.sub('/\* (in scope .*?) \*/', '@ \\1 @', sql.replace('current_timestamp /* as of */', '@as of@'))) }}
{% endmacro %}


{# The predicate that narrows a source to the touched keys: `where {{ in_scope('org_id, device_id') }}`. #}
{% macro in_scope(columns) %}true /* in scope ({{ columns }}) */{% endmacro %}


{# After a source in `from`, beside in_scope(): with scope(since=...), its rows of touched keys from `since` on. #}
{% macro since(columns, moment) %}/* since ({{ columns }}) {{ moment }} */{% endmacro %}


{# The same for a moment whose local day is a touched key: reads only from the first touched day to the last. #}
{% macro in_scope_days(moment, date_key) %}true /* in scope days ({{ moment }}) {{ date_key }} */{% endmacro %}


{# Inside scope(): the changes of an upstream model that this model has not consumed. #}
{% macro changes(model_name) %}@changes {{ ref(model_name).identifier }} {{ ref(model_name).schema }}@{% endmacro %}


{# Inside scope(): rows of a landing table written by transactions that this model has not consumed. #}
{% macro landed(table, source_name='landing') %}@landed {{ source(source_name, table) }}@{% endmacro %}


{# Inside audit(): the transaction from which on rows of a landing table are not yet in the model. #}
{% macro consumed(model_name, table, source_name) -%}
(select cast(positions ->> '{{ source(source_name, table) }}' as xid8) from {{ state_schema() }}.model_state where model = '{{ ref(model_name).identifier }}')
{%- endmacro %}


{# All rows of a model with weight 1; in an increment, its unconsumed changes with weight 1 (new) or -1 (old). #}
{% macro delta(model_name) %}{{ all_rows(ref(model_name)) }}{% endmacro %}


{# For sums (add=true) with a scope: a source in `from`, a model whose `changes` are '*', by columns as in in_scope(). In an
   increment its rows of the touched keys, once as they are and once as the previous build saw them: what the model's SQL
   gives of these is added, what it gives of those at the previous as_of is taken away. So the sums need not be linear in the rows. #}
{% macro then_and_now(model_name, columns) -%}
{%- set relation = ref(model_name) -%}
{{ relation }} /* then and now {{ relation.identifier }} {{ relation.schema }} ({{ columns }}) */
{%- endmacro %}


{# The moment the answer is for: var as_of, else the start of the run. #}
{% macro as_of() %}current_timestamp /* as of */{% endmacro %}

{# Inside scope(): the as_of of the model's previous build. #}
{% macro previous_as_of() %}@previous as of@{% endmacro %}

{# Inside scope(): `moment` passed (either way) between the previous build's as_of and this one's. #}
{% macro passed_since_previous(moment) -%}
({{ moment }} > least({{ previous_as_of() }}, {{ as_of() }}) and {{ moment }} <= greatest({{ previous_as_of() }}, {{ as_of() }}))
{%- endmacro %}
