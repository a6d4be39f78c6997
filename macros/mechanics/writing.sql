{# How a maintained table is written. Each returns the number of rows written or removed. #}

{# The first build: create, fill, key and secure. #}
{% macro maintained_create(relation, plan) %}
{%- set columns = maintained_columns(plan.sql) -%}
{%- do keep_nonzero_sums(plan, columns) -%}
{% call statement('create') %}create table {{ relation }} with {{ storage_clause(storage_parameters(config.get('fillfactor'))) }} as {{ plan.sql }}{% endcall %}
{% do add_key(relation) %}
{% do create_changes_table(relation, columns) %}
{% call statement('finish') %}{{ secured(model) }} analyze {{ relation }}{% endcall %}
{{ return(load_result('create').response.rows_affected) }}
{% endmacro %}


{# Recomputes the touched keys (or everything) and writes the rows that differ. #}
{% macro maintained_replace(relation, plan) %}
{%- if plan.full -%}
    {%- set names = maintained_columns(plan.sql) -%}
    {%- do synchronize_columns(relation, names, plan.sql) -%}
    {%- do synchronize_changes(relation, names) -%}
    {%- set is_keyless = drop_other_key(relation) -%}
    {%- do keep_nonzero_sums(plan, names) -%}
{%- endif -%}
{%- set keys = config.require('unique_key') -%}
{% call statement('rebuild') %}
    create temporary table rebuilt on commit drop as {{ plan.sql }};
    -- no column but the key decides how the steps below are planned
    analyze rebuilt ({{ keys | join(', ') }});
{% endcall %}
{%- set columns = adapter.get_columns_in_relation(relation) | map(attribute='quoted') | list -%}
{%- set kept = kept_columns(columns) -%}
{% call statement('write', fetch_result=True) %}
    create temporary table written (weight int, row_count bigint) on commit drop;
    create temporary table outdated on commit drop as
    select old.*, new.{{ keys[0] }} is not null as is_replaced
    from ({{ touched_rows(relation, plan) }}) as old
    left join rebuilt as new on {{ 'false' if is_keyless else same_key('new', 'old') }}
    where new.{{ keys[0] }} is null or (new.{{ columns | join(', new.') }}) is distinct from (old.{{ columns | join(', old.') }});

    delete from {{ relation }} as old {% if not is_keyless %}using outdated where not outdated.is_replaced and {{ same_key('outdated', 'old') }}{% endif %};

    update {{ relation }} as old set {% for column in columns %}{{ column }} = new.{{ column }}{{ ', ' if not loop.last }}{% endfor %}
    from outdated join rebuilt as new on {{ same_key('new', 'outdated') }}
    where outdated.is_replaced and {{ same_key('outdated', 'old') }};

    with removed as (
        select * from outdated
    ){{ keep_changes(relation, kept, 'removed', -1) }}
    insert into written select -1, count(*) from removed;

    with inserted as (
        insert into {{ relation }} ({{ columns | join(', ') }})
        select {{ columns | join(', ') }} from rebuilt as new
        where not exists (select from {{ relation }} as old where {{ same_key('new', 'old') }})
        -- in the order of the key, so that neighbours in its index are written one after the other
        order by {{ keys | join(', ') }}
        returning {{ (kept or keys) | join(', ') }}
    ),
    added as (
        select * from inserted
        union all
        select {{ 'new.' ~ (kept or keys) | join(', new.') }} from outdated join rebuilt as new on {{ same_key('new', 'outdated') }} where outdated.is_replaced
    ){{ keep_changes(relation, kept, 'added', 1) }}
    insert into written select 1, count(*) from added;

    {% if plan.full %}analyze {{ relation }};{% endif %}
    select sum(row_count), sum(row_count) > (select reltuples / 10 from pg_class where oid = '{{ relation }}'::regclass) from written;
{% endcall %}
{%- set changed, is_other_table = load_result('write').data[0] -%}
{#- Whoever reads it in this build plans by what is known of the table: of a new org nothing would be. -#}
{%- if is_other_table and not plan.full -%}{% call statement('analyze') %}analyze {{ relation }}{% endcall %}{%- endif -%}
{%- if is_keyless -%}{%- do add_key(relation) -%}{%- endif -%}
{{ return(changed | int) }}
{% endmacro %}


{# What is stored of the touched keys. #}
{% macro touched_rows(relation, plan) -%}
select stored.* from {{ relation }} as stored
{%- if plan.scope_keys and not plan.full %} join touched on ({{ rows_of('stored', plan.scope_keys) }}) = ({{ rows_of('touched', plan.scope_keys) }})
        {{- ' and stored.' ~ plan.scope_since ~ ' >= touched.since' if plan.scope_since }}
{%- endif -%}
{%- endmacro %}


{% macro same_key(one, other) -%}
{%- for key in config.require('unique_key') %}{{ ' and ' if not loop.first }}{{ one }}.{{ key }} = {{ other }}.{{ key }}{% endfor -%}
{%- endmacro %}


{# A sum of nothing is no row: the same in an increment, where a row whose sums became zero leaves. #}
{% macro keep_nonzero_sums(plan, columns) %}
{%- if config.get('add') -%}
    {%- set sums = columns | reject('in', config.require('unique_key')) | list -%}
    {%- set plan.sql = 'select * from (' ~ plan.sql ~ ') as sums where ' ~ sums | join(' <> 0 or ') ~ ' <> 0' -%}
{%- endif -%}
{% endmacro %}


{# Adds signed sums to the rows of their keys; a row whose every sum is zero leaves. Kept as changes are the
   keys of what was added: they tell a scope what was touched, and are no rows that came or went. #}
{% macro maintained_add(relation, plan) %}
{%- set keys = config.require('unique_key') -%}
{%- set sums = adapter.get_columns_in_relation(relation) | map(attribute='name') | reject('in', keys) | list -%}
{%- if plan.then_sql -%}{%- set plan.sql = now_less_then(plan, keys, sums) -%}{%- endif -%}
{%- do keep_nonzero_sums(plan, keys + sums) -%}
{%- set kept = kept_columns(keys + sums) -%}
{% call statement('write') %}
    {%- if kept %}
    create temporary table added on commit drop as {{ plan.sql }};
    {%- endif %}
    merge into {{ relation }} as old
    using {{ 'added' if kept else '(' ~ plan.sql ~ ')' }} as new
    on {% for key in keys %}old.{{ key }} = new.{{ key }}{{ ' and ' if not loop.last }}{% endfor %}
    when matched and {% for sum in sums %}old.{{ sum }} + new.{{ sum }} = 0{{ ' and ' if not loop.last }}{% endfor %} then delete
    when matched then update set {% for sum in sums %}{{ sum }} = old.{{ sum }} + new.{{ sum }}{{ ', ' if not loop.last }}{% endfor %}
    when not matched then insert ({{ (keys + sums) | join(', ') }}) values (new.{{ (keys + sums) | join(', new.') }});
{% endcall %}
{%- if kept -%}
{% call statement('keep') %}
    with touched_sums as (
        select * from added
    ){{ keep_changes(relation, kept, 'touched_sums', 1) }}
    select 1;
{% endcall %}
{%- endif -%}
{{ return(load_result('write').response.rows_affected) }}
{% endmacro %}


{% macro now_less_then(plan, keys, sums) -%}
select {{ keys | join(', ') }}{% for sum in sums %}, sum({{ sum }}) as {{ sum }}{% endfor %}
from (
    select {{ (keys + sums) | join(', ') }} from ({{ plan.sql }}) as now
    union all
    select {{ keys | join(', ') }}, -{{ sums | join(', -') }} from ({{ plan.then_sql }}) as then_it_was
) as moves
group by {{ keys | join(', ') }}
{%- endmacro %}


{# The columns whose differences are kept for the models downstream, of all of the table's; none where nobody wants any. #}
{% macro kept_columns(columns) %}
{{ return(columns if config.get('changes') == '*' else config.get('changes') or []) }}
{% endmacro %}

{# The differences, kept for the models downstream until all have consumed them. #}
{% macro create_changes_table(relation, columns) %}
{%- set kept = kept_columns(columns) -%}
{% if kept %}
{% call statement('changes') %}
    create sequence if not exists {{ state_schema() }}.change_id;
    drop table if exists {{ changes_of(relation) }};
    create table {{ changes_of(relation) }} as
    select cast(0 as bigint) as change_id, {{ kept | join(', ') }}, cast(null as integer) as weight from {{ relation }} limit 0;
    alter table {{ changes_of(relation) }} alter change_id set default nextval('{{ state_schema() }}.change_id'), add primary key (change_id);
    insert into {{ changes_of(relation) }} (weight) values (null);
    comment on table {{ changes_of(relation) }} is 'Unconsumed changes of {{ relation.identifier }}: weight 1 came, -1 went, null everything.';
{% endcall %}
{% endif %}
{% endmacro %}

{% macro changes_of(relation) %}{{ relation.incorporate(path={'identifier': relation.identifier ~ '__changes'}) }}{% endmacro %}

{% macro keep_changes(relation, kept, rows, weight) %}
{%- if kept %},
    kept as (
        {%- set has_key = config.get('changes') == '*' or not config.require('unique_key') | reject('in', kept) | list %}
        insert into {{ changes_of(relation) }} ({{ kept | join(', ') }}, weight)
        {%- if has_key %}
        select {{ kept | join(', ') }}, {{ weight }} from {{ rows }}
        {%- else %}
        select {{ kept | join(', ') }}, {{ weight }} * count(*) from {{ rows }} group by {{ kept | join(', ') }}
        {%- endif %}
    )
{%- endif -%}
{% endmacro %}


{# The columns of the model's SQL, checked against its contract. #}
{% macro maintained_columns(sql) %}
{%- if config.get('contract').enforced -%}{%- set checked = get_assert_columns_equivalent(sql) -%}{%- endif -%}
{{ return(get_columns_in_query(sql)) }}
{% endmacro %}


{# A release that adds or drops columns changes the table in place: views, policies and grants stay. #}
{% macro synchronize_columns(relation, names, sql) %}
{%- set existing = adapter.get_columns_in_relation(relation) | map(attribute='name') | list -%}
{%- set added = names | reject('in', existing) | list -%}
{%- set dropped = existing | reject('in', names) | list -%}
{%- if added or dropped -%}
    {% call statement('probe', fetch_result=True) %}
        create temporary table probe on commit drop as select * from ({{ sql }}) as rows limit 0;
        select attname, format_type(atttypid, atttypmod) from pg_attribute where attrelid = 'probe'::regclass and attnum > 0;
    {% endcall %}
    {%- set types = dict(load_result('probe').data) -%}
    {% call statement('synchronize') %}
        {%- for name in dropped %}alter table {{ relation }} drop column {{ name }};{% endfor %}
        {%- for name in added %}alter table {{ relation }} add column {{ name }} {{ types[name] }};{% endfor %}
    {% endcall %}
{%- endif -%}
{% endmacro %}

{# The same for the columns that are kept for the models downstream, which then take everything as changed, and for the key. #}
{% macro synchronize_changes(relation, names) %}
{%- set kept = kept_columns(names) -%}
{%- set wanted = ['change_id'] + kept + ['weight'] -%}
{%- set existing = run_query("select attname from pg_attribute where attrelid = to_regclass('" ~ changes_of(relation) ~ "') and attnum > 0 and not attisdropped").columns[0].values() | list -%}
{%- if kept and existing | sort != wanted | sort -%}{%- do create_changes_table(relation, names) -%}{%- endif -%}
{% endmacro %}

{# Drops another key than the wanted one, and returns whether a key is to be added once the rows, all of them, are written. #}
{% macro drop_other_key(relation) %}
{%- set keys = run_query("select conname, (select string_agg(attname, ', ' order by place) from unnest(conkey) with ordinality as keys (attnum, place) join pg_attribute using (attnum) where attrelid = conrelid) from pg_constraint where contype = 'p' and conrelid = '" ~ relation ~ "'::regclass").rows -%}
{%- set is_wanted = keys and keys[0][1] == config.require('unique_key') | join(', ') -%}
{%- if keys and not is_wanted -%}{% call statement('drop_key') %}alter table {{ relation }} drop constraint "{{ keys[0][0] }}"{% endcall %}{%- endif -%}
{{ return(not is_wanted) }}
{% endmacro %}

{# Readers do not wait for an index; they would for a constraint that has yet to make its own. #}
{% macro add_key(relation) %}
{%- set name = '"' ~ relation.identifier ~ '_pkey"' -%}
{% call statement('key') %}
    create unique index {{ name }} on {{ relation }} ({{ config.require('unique_key') | join(', ') }});
    alter table {{ relation }} add constraint {{ name }} primary key using index {{ name }};
{% endcall %}
{% endmacro %}


{% macro run_audits(plan) %}
{%- for name, query in plan.audits -%}
    {%- set query = in_touched(query, plan.scope_keys) if plan.scope_keys and not plan.full else modules.re.sub('@ in scope .*? @', '', query) -%}
    {%- set found = run_query('select count(*) from (' ~ at_this_moment(query) ~ ') as violations').columns[0].values()[0] -%}
    {%- if found > 0 -%}
        {%- do exceptions.raise_compiler_error('Audit ' ~ name ~ ' of ' ~ this.identifier ~ ' found ' ~ found ~ ' rows. Nothing was published: readers keep the last good state. The query is in the compiled model.') -%}
    {%- endif -%}
{%- endfor -%}
{% endmacro %}


{# What is declared of a table, and its version. #}
{% macro declaration_of(sql, plan) %}
{%- set definition = tojson({'schema': this.schema, 'sql': sql, 'unique_key': config.require('unique_key'), 'add': config.get('add', false), 'rules': plan.rules}) -%}
{%- set texts = [model.description, config.get('checks', {}) | string, config.get('indexes', []) | string, storage_parameters(config.get('fillfactor')) | string, definition] -%}
{%- for column in model.columns.values() -%}{%- do texts.append(column.name ~ ' ' ~ column.description) -%}{%- endfor -%}
{{ return({'definition': definition, 'version': local_md5(texts | join('|'))}) }}
{% endmacro %}


{# Comments follow the YAML, indexes, storage and checks the config, also on a table that did not change; a check that a row breaks
   undoes what was written. Beside them, for those who check the table without dbt, the definition by which it was built. #}
{% macro keep_declared(relation, declaration, plan) %}
{%- if plan.declared != declaration.version -%}
    {%- do persist_docs(relation, model) -%}
    {%- do declare_storage(relation) -%}
    {%- do declare_indexes(relation) -%}
    {%- do declare_checks(relation, config.get('checks', {})) -%}
    {% call statement('declare') %}
        update {{ state_schema() }}.model_state set declared = '{{ declaration.version }}', definition = cast({{ quoted_text(declaration.definition) }} as jsonb)
        where model = '{{ this.identifier }}';
    {% endcall %}
{%- endif -%}
{% endmacro %}

{# Named by what they index, so that a release that changes one makes and drops that one. #}
{% macro declare_indexes(relation) %}
{%- set existing = run_query("select relname from pg_index join pg_class on pg_class.oid = indexrelid where indrelid = '" ~ relation ~ "'::regclass and not indisunique").columns[0].values() -%}
{%- set wanted = {} -%}
{%- for index in config.get('indexes', []) -%}
    {%- set definition = '(' ~ index.columns | join(', ') ~ ')' ~ (' where ' ~ index.where if index.where else '') -%}
    {%- do wanted.update({relation.identifier ~ '_' ~ local_md5(definition)[:8]: definition}) -%}
{%- endfor -%}
{%- for name in existing -%}
    {%- if name not in wanted -%}{% call statement('drop_index') %}drop index "{{ relation.schema }}"."{{ name }}"{% endcall %}{%- endif -%}
{%- endfor -%}
{%- for name, definition in wanted.items() -%}
    {%- if name not in existing -%}{% call statement('index') %}create index "{{ name }}" on {{ relation }} {{ definition }}{% endcall %}{%- endif -%}
{%- endfor -%}
{% endmacro %}

{# A constraint's comment tells which expression it was made of: PostgreSQL shows its own spelling. #}
{% macro declare_checks(relation, checks) %}
{%- do drop_outdated_checks(relation, checks) -%}
{%- set existing = checks_of(relation).columns[0].values() -%}
{%- for name, expression in checks.items() if name not in existing -%}
    {% call statement('check') %}
        alter table {{ relation }} add constraint {{ name }} check ({{ expression }});
        comment on constraint {{ name }} on {{ relation }} is '{{ local_md5(expression) }}';
    {% endcall %}
{%- endfor -%}
{% endmacro %}

{# A key and checks of the release before, which could refuse rows of this one. Returns whether there were any. #}
{% macro drop_outdated_constraints(relation) %}
{%- set checks_dropped = drop_outdated_checks(relation, config.get('checks', {})) -%}
{{ return(drop_other_key(relation) or checks_dropped) }}
{% endmacro %}

{# Returns whether there were any. #}
{% macro drop_outdated_checks(relation, checks) %}
{%- set outdated = [] -%}
{%- for name, version in checks_of(relation).rows if name not in checks or version != local_md5(checks[name]) -%}{%- do outdated.append('drop constraint "' ~ name ~ '"') -%}{%- endfor -%}
{%- if outdated -%}{% call statement('drop_checks') %}alter table {{ relation }} {{ outdated | join(', ') }}{% endcall %}{%- endif -%}
{{ return(outdated | length > 0) }}
{% endmacro %}

{% macro checks_of(relation) %}
{{ return(run_query("select conname, obj_description(oid, 'pg_constraint') from pg_constraint where conrelid = '" ~ relation ~ "'::regclass and contype = 'c'")) }}
{% endmacro %}


{% macro record_state(plan) %}
{% call statement('record') %}{{ record(this.identifier, plan.fingerprint, plan.positions) }}{% endcall %}
{% endmacro %}
