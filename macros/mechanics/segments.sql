{# State that people make, and no build can compute again: it outlives full refreshes, and a release changes it in place,
   by further statements here. Each must do nothing the second time. #}
{% macro segments_ddl() %}
create table if not exists {{ state_schema() }}.audience_segments (
    org_id text not null,
    segment_name text not null,
    description text not null,
    origin text not null constraint known_origin check (origin in ('stored', 'yaml')),
    filter jsonb not null constraint filter_is_a_group check (filter ? 'rules'),
    filter_version integer not null default 1,
    members_count bigint,
    created_at timestamptz not null default clock_timestamp(),
    updated_at timestamptz not null default clock_timestamp(),
    materialized_at timestamptz,
    materialized_as_of timestamptz,
    materialized_filter_version integer,
    primary key (org_id, segment_name)
);
comment on table {{ state_schema() }}.audience_segments is 'One row per org and segment: a named filter over audience_customers.';
comment on column {{ state_schema() }}.audience_segments.origin is 'stored: made by command or page; yaml: declared in segments/, changed by sync alone.';
comment on column {{ state_schema() }}.audience_segments.filter is 'What react-querybuilder produces, without what is of its screen alone.';
comment on column {{ state_schema() }}.audience_segments.filter_version is 'Counts the changes of the filter, from 1.';
comment on column {{ state_schema() }}.audience_segments.members_count is 'Members at the last materialization; null before the first.';
comment on column {{ state_schema() }}.audience_segments.materialized_at is 'When membership was last observed; later at each materialization.';
comment on column {{ state_schema() }}.audience_segments.materialized_as_of is 'The as_of of the customers that were observed.';
comment on column {{ state_schema() }}.audience_segments.materialized_filter_version is 'By which version of the filter.';

create table if not exists {{ state_schema() }}.segment_memberships (
    org_id text not null,
    segment_name text not null,
    visitor_id text not null,
    entered_at timestamptz not null,
    left_at timestamptz constraint left_after_entering check (left_at > entered_at),
    primary key (org_id, segment_name, visitor_id, entered_at),
    foreign key (org_id, segment_name) references {{ state_schema() }}.audience_segments on delete cascade
);
create unique index if not exists segment_memberships_current
on {{ state_schema() }}.segment_memberships (org_id, segment_name, visitor_id) where left_at is null;
comment on table {{ state_schema() }}.segment_memberships is 'One row per org, segment, visitor and stay, as observed by materializations.';
comment on column {{ state_schema() }}.segment_memberships.entered_at is 'The materialization that first found the visitor in the segment.';
comment on column {{ state_schema() }}.segment_memberships.left_at is 'The first one after it that did not; null while a member.';
{% endmacro %}
