"""Who may read what, persona by persona: by tables, views, functions, COPY, errors and plans; before, during and after rebuilds."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg import errors, sql

from orchestration import database, dbt, members
from orchestration.build import build
from orchestration.errors import UserError
from orchestration.load import load_files
from orchestration.sample import write_sample
from orchestration.settings import project_dir
from tests.projects import AS_OF, END, Questions
from tests.readings import crowd, write

# Logins are of the cluster: a name for each run.
NAMES = {
    name: f"{name}_{os.getpid()}" for name in ("nobody", "stranger", "reader", "analyst", "admin", "other", "pool")
}
ORG, OTHER_ORG = "north_hall", "harbor_live"
MEMBERS = ("reader", "analyst", "admin")
MARTS = {file.stem for file in (project_dir() / "models/marts").glob("*.sql")} - {"rejected_events"}
SEEDS = {
    "orgs",
    "kpi_targets",
    "benchmarks",
    "histogram_buckets",
    "propensity_bands",
    "propensity_weights",
    "quality_weights",
}
EXPOSED = {f"audience.{name}" for name in MARTS} | {f"audience_seeds.{name}" for name in SEEDS}
# What analysts, and so admins, have beside: segments, their members and the log; contact details leave by the door alone.
OF_ANALYSTS = {
    "audience_state.audience_segments": {"select", "insert", "delete"}, "audience_state.segment_memberships": {"select"},
    "audience_state.segment_export_log": {"select"}, "audience_state.suppressed_visitors": {"select"},
}  # fmt: skip
DOOR = {
    f"audience_state.{name}"
    for name in (
        "customers_as_of",
        "request_segment_export",
        "read_segment_export",
        "record_segment_export",
        "count_withdrawn",
    )
}
# For readers, too, so that their refusals are logged.
ASKING = "audience_state.request_segment_export"
# What admins have beside: campaigns and who was written to, and functions.
READ_BY_ADMINS = {"audience_state.campaigns": {"select"}, "audience_state.campaign_sends": {"select"}}
CAMPAIGNS = {
    f"audience_state.{name}" for name in ("send_standing", "open_campaign", "claim_send", "record_send", "unsubscribe")
}
OF_ADMINS = {"audience_state.suppress", "audience_state.read_subject", "audience_state.erase_subject"} | CAMPAIGNS
# For readers, too, so that their refusals are kept.
ASKING_FOR_PEOPLE = "audience_state.request_subject"
# With its owner's rights, and granted to nobody.
OF_ERASURE = {"analytics.keep_erased_out"}
WITHOUT_ORG = {"audience.calendar_days"} | {
    f"audience_seeds.{name}" for name in SEEDS - {"orgs", "kpi_targets", "benchmarks"}
}
OF_ORGS = sorted(EXPOSED - WITHOUT_ORG)
QUESTIONS = {
    "get_audience_overview": "audience.get_audience_overview(%s, '2026-06-01', '2026-06-30')",
    "get_audience_acquisition": "audience.get_audience_acquisition(%s, '2026-06-01', '2026-06-30')",
    "get_audience_device_network": "audience.get_audience_device_network(%s, '2026-06-01', '2026-06-30')",
    "get_audience_paths": "audience.get_audience_paths(%s, '2026-06-01', '2026-06-30')",
    "get_audience_cohorts": "audience.get_audience_cohorts(%s, 30)",
    "get_high_intent_visitors": f"audience.get_high_intent_visitors(%s, 720, 0, '{AS_OF}')",
}
RELATIONS = """
select format('%I.%I', nspname, relname) from pg_class join pg_namespace on pg_namespace.oid = relnamespace
where nspname ~ '^(audience(_.*)?|analytics)$' and relkind in ('r', 'v', 'm', 'p')
"""
# Everybody but the owner who was granted something: on relations and columns, functions of the marts' schema, and schemas.
GRANTED = """
with rights as (
    select format('%I.%I', nspname, relname) as name, relowner as owner, relacl as rights
    from pg_class join pg_namespace on pg_namespace.oid = relnamespace where nspname ~ '^(audience(_.*)?|analytics)$'
    union all
    select 'a column of ' || attrelid::regclass, relowner, attacl
    from pg_attribute join pg_class on pg_class.oid = attrelid join pg_namespace on pg_namespace.oid = relnamespace
    where nspname ~ '^(audience(_.*)?|analytics)$'
    union all
    select format('%I.%I', nspname, proname), proowner, coalesce(proacl, acldefault('f', proowner))
    from pg_proc join pg_namespace on pg_namespace.oid = pronamespace where nspname in ('audience', 'audience_state')
    union all
    select nspname, nspowner, nspacl from pg_namespace where nspname ~ '^(audience(_.*)?|analytics)$'
)
select name, lower(privilege_type), case grantee when 0 then 'public' else grantee::regrole::text end
from rights cross join aclexplode(rights.rights) where grantee <> owner
"""
# Rows of the catalog that say who may do what, with what an update of an equal row would change.
CATALOG = """
select 'class ' || relname, pg_class.xmin::text from pg_class join pg_namespace on pg_namespace.oid = relnamespace
where nspname ~ '^(audience|analytics)' and relname !~ '__changes' -- emptied once consumed
union all
select 'policy ' || polrelid::regclass, xmin::text from pg_policy
union all
select 'function ' || proname, pg_proc.xmin::text from pg_proc join pg_namespace on pg_namespace.oid = pronamespace where nspname ~ '^(audience|analytics)'
union all
select 'schema ' || nspname, xmin::text from pg_namespace where nspname ~ '^(audience|analytics)'
union all
select 'role ' || roleid::regrole || ' ' || member::regrole, xmin::text from pg_auth_members
"""


OWNERS = """
select distinct pg_get_userbyid(relowner) from pg_class join pg_namespace on pg_namespace.oid = relnamespace where nspname ~ '^(audience|analytics)'
union
select pg_get_userbyid(proowner) from pg_proc join pg_namespace on pg_namespace.oid = pronamespace where nspname ~ '^(audience|analytics)'
union
select pg_get_userbyid(nspowner) from pg_namespace where nspname ~ '^(audience|analytics)'
"""


@contextmanager
def logged_in(name: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(user=NAMES[name], password="secret", autocommit=True) as connection:
        yield connection


def one(connection: psycopg.Connection, query: str, parameters: Any = None) -> Any:
    return connection.execute(query, parameters).fetchone()[0]


def orgs_of(connection: psycopg.Connection, relation: str) -> dict[str, int]:
    """How many rows of each org a login sees; rows for every org are those of settings."""
    return dict(
        connection.execute(f"select org_id, count(*) from {relation} where org_id <> '*' group by 1").fetchall()
    )


def answer(connection: psycopg.Connection, function: str, org: str) -> list[tuple]:
    return connection.execute(f"select * from {QUESTIONS[function]}", [org]).fetchall()


@dataclass
class Watch:
    """A reader of one org who looks again and again, beside a build."""

    seen: int = 0
    foreign: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @contextmanager
    def looking(self) -> Iterator[None]:
        ended = threading.Event()
        thread = threading.Thread(target=self._look, args=[ended])
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _look(self, ended: threading.Event) -> None:
        with logged_in("other") as connection:
            while not ended.is_set():
                for relation in OF_ORGS:
                    self._ask(connection, relation, f"select distinct org_id from {relation} where org_id <> '*'")
                for function, call in QUESTIONS.items():
                    self._ask(connection, function, f"select '{OTHER_ORG}' from {call}", [OTHER_ORG])

    def _ask(self, connection: psycopg.Connection, name: str, query: str, parameters: Any = None) -> None:
        try:
            orgs = {org for (org,) in connection.execute(query, parameters)}
        except psycopg.Error as error:
            self.failed.append(f"{name}: {error}")
            return
        self.seen += len(orgs)
        if orgs - {OTHER_ORG}:
            self.foreign.append(f"{name}: {orgs}")


@pytest.fixture(scope="module")
def project(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Questions]:
    folder: Path = tmp_path_factory.mktemp("rights")
    with database.connect(autocommit=True) as connection:
        for name in NAMES.values():
            connection.execute(sql.SQL("create role {} login password 'secret'").format(sql.Identifier(name)))
        try:
            connection.execute(f"grant audience_reader to {NAMES['stranger']}")
            for name in MEMBERS:
                members.add(NAMES[name], [ORG], name)
            members.add(NAMES["other"], [OTHER_ORG])
            connection.execute(f"alter role {NAMES['pool']} noinherit")
            connection.execute(f"grant {NAMES['reader']}, {NAMES['other']} to {NAMES['pool']}")
            files = [file.path for file in write_sample(folder / "sample", events=3_000, seed=7, end=END)]
            load_files([*files, write(folder / "crowd.ndjson", crowd(5))])
            watch = Watch()
            with watch.looking():  # from before there is anything: what is not there yet fails
                build(as_of=AS_OF)
            assert watch.foreign == [] and watch.seen > 0
            build(as_of=AS_OF, select="orgs")  # hands over what was being read
            yield Questions(connection)
        finally:
            for name in reversed(NAMES.values()):
                connection.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(name)))


# Nobody reads what is not granted


def test_without_a_role_nothing_is_readable(project):
    with logged_in("nobody") as connection:
        for relation in EXPOSED:
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(f"select 1 from {relation}")
        for function in QUESTIONS:
            with pytest.raises(errors.InsufficientPrivilege):
                answer(connection, function, ORG)


def test_without_an_org_no_row_is_seen(project):
    with logged_in("stranger") as connection:
        assert {relation: orgs_of(connection, relation) for relation in OF_ORGS} == {name: {} for name in OF_ORGS}
        assert one(connection, "select count(*) from audience.calendar_days") == 0
        for function in QUESTIONS:
            with pytest.raises(errors.InvalidParameterValue, match=f"There is no org '{ORG}'"):
                answer(connection, function, ORG)


@pytest.mark.parametrize("name", MEMBERS)
def test_nothing_but_what_is_granted_is_readable(project, name):
    others = {relation for (relation,) in project.connection.execute(RELATIONS)} - EXPOSED
    others -= set() if name == "reader" else OF_ANALYSTS.keys()
    others -= READ_BY_ADMINS.keys() if name == "admin" else set()
    assert {"audience_contacts.customer_contacts", "audience_state.org_members", "analytics.events"} < others
    with logged_in(name) as connection:
        for relation in others:
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(f"select 1 from {relation}")


@pytest.mark.parametrize("name", MEMBERS)
def test_nothing_can_be_changed(project, name):
    with logged_in(name) as connection:
        for statement in (
            "insert into audience.audience_customers default values", "delete from audience.audience_customers",
            "update audience.audience_customers set org_id = 'north_hall'", "truncate audience.audience_overview_daily",
            "alter table audience.audience_customers disable row level security", "drop policy readers on audience.audience_customers",
            "create policy mine on audience.audience_customers using (true)", "create table audience.mine (a integer)",
            "create or replace function audience.get_audience_cohorts(p_org text, p_weeks integer) returns integer language sql as 'select 1'",
            f"insert into audience_state.org_members (login_name, org_id) values ('{NAMES[name]}', '{OTHER_ORG}')",
        ):  # fmt: skip
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(statement)


# Members read their orgs, all of them and no other


@pytest.mark.parametrize(("name", "org"), [*[(name, ORG) for name in MEMBERS], ("other", OTHER_ORG)])
def test_a_member_sees_the_rows_of_its_org_alone(project, name, org):
    empty = set()
    with logged_in(name) as connection:
        for relation in OF_ORGS:
            everybodys = orgs_of(project.connection, relation)
            expected = {org: everybodys[org]} if org in everybodys else {}
            assert orgs_of(connection, relation) == expected, relation
            empty |= set() if len(everybodys) > 1 and expected else {relation}
        days = "select count(*) from generate_series((select min(event_date) from audience.audience_overview_daily where org_id = %s), (select max(event_date) from audience.audience_overview_daily where org_id = %s), interval '1 day')"
        assert one(connection, "select count(*) from audience.calendar_days") == one(
            project.connection, days, [org] * 2
        )
    # the canary: elsewhere there is a row of the org, and one of another that could have been seen
    assert empty <= {"audience.device_network_alerts", "audience_seeds.kpi_targets", "audience_seeds.benchmarks"}


def test_settings_for_every_org_are_everybodys(project):
    with logged_in("stranger") as connection:
        for relation in ("audience_seeds.kpi_targets", "audience_seeds.benchmarks"):
            query = f"select count(*) from {relation} where org_id = '*'"
            assert one(connection, query) == one(project.connection, query)
        for relation in WITHOUT_ORG - {"audience.calendar_days"}:
            query = f"select count(*) from {relation}"
            assert one(connection, query) == one(project.connection, query) > 0


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("function", QUESTIONS)
def test_a_function_answers_a_member_as_it_answers_the_owner(project, function, name):
    expected = answer(project.connection, function, ORG)
    assert expected
    with logged_in(name) as connection:
        assert answer(connection, function, ORG) == expected


@pytest.mark.parametrize("function", QUESTIONS)
def test_an_org_of_others_is_refused_like_one_that_nobody_has(project, function):
    assert answer(project.connection, function, OTHER_ORG)
    refusals = []
    with logged_in("reader") as connection:
        for org in (OTHER_ORG, "never_heard"):
            with pytest.raises(errors.InvalidParameterValue) as refused:
                answer(connection, function, org)
            found = refused.value.diag
            refusals.append(
                (found.sqlstate, found.message_primary.replace(org, "?"), found.message_detail, found.message_hint)
            )
    assert refusals[0] == refusals[1]


def test_a_member_of_two_orgs_sees_both_until_one_is_taken_away(project):
    name = NAMES["reader"]
    members.add(name, [OTHER_ORG])
    with logged_in("reader") as connection:
        assert orgs_of(connection, "audience.audience_customers").keys() == {ORG, OTHER_ORG}
        assert answer(connection, "get_high_intent_visitors", OTHER_ORG)
        assert members.remove(name, [OTHER_ORG]) == 1
        assert orgs_of(connection, "audience.audience_customers").keys() == {ORG}
        with pytest.raises(errors.InvalidParameterValue):
            answer(connection, "get_high_intent_visitors", OTHER_ORG)


# By other ways


def test_copy_gives_the_rows_of_the_org_alone(project):
    with logged_in("reader") as connection:
        for source in ("audience.audience_customers", "(select * from audience.audience_customers)"):
            with connection.cursor().copy(f"copy {source} to stdout") as rows:
                assert {row[0] for row in rows.rows()} == {ORG}


ATTEMPTS = [
    f"set role {NAMES['other']}", "set role audience_owner", "set role audience_admin", f"set session authorization {NAMES['other']}",
    f"select set_config('role', '{NAMES['other']}', false)", f"select set_config('session_authorization', '{NAMES['other']}', false)",
    f"set audience.org = '{OTHER_ORG}'", f"select set_config('audience.login', '{NAMES['other']}', false)",
    "set row_security = off", "set search_path = pg_temp, audience", "set session_replication_role = replica",
    f"create temporary table org_members as select '{NAMES['reader']}'::text as login_name, '{OTHER_ORG}'::text as org_id; set search_path = pg_temp",
    "create function pg_temp.current_setting(text) returns text language sql as 'select ''postgres''::text'; set search_path = pg_temp, pg_catalog",
    "set role audience_reader", "begin; set local role audience_reader",
]  # fmt: skip


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=range(len(ATTEMPTS)))
def test_no_setting_shows_a_foreign_row(project, attempt):
    with logged_in("reader") as connection:
        try:
            connection.execute(attempt)
        except errors.InsufficientPrivilege:
            connection.execute("rollback")
        try:
            assert orgs_of(connection, "audience.audience_customers").keys() <= {ORG}
            assert orgs_of(connection, "audience_seeds.orgs").keys() <= {ORG}
        except errors.InsufficientPrivilege as error:
            assert "row-level security" in str(error)
        connection.execute("rollback")
        for function in QUESTIONS:
            with pytest.raises((errors.InvalidParameterValue, errors.InsufficientPrivilege)):
                answer(connection, function, OTHER_ORG)


def test_conditions_errors_plans_and_statistics_tell_nothing_of_others(project):
    connection = project.connection
    foreign = {OTHER_ORG} | {
        visitor for (visitor,) in connection.execute(
            "select visitor_id from audience.audience_customers where org_id <> %s"
            " except select visitor_id from audience.audience_customers where org_id = %s", [ORG] * 2,
        )
    }  # fmt: skip
    assert len(foreign) > 50
    connection.execute("analyze audience.audience_customers")
    told: list[str] = []
    with logged_in("reader") as reader:
        reader.add_notice_handler(lambda notice: told.append(notice.message_primary))
        reader.execute(
            "create function pg_temp.tell(text) returns boolean cost 0.0000001 language plpgsql as"
            " $$ begin raise notice '%', $1; return true; end $$"
        )
        reader.execute(
            "select 1 from audience.audience_customers where pg_temp.tell(visitor_id) and pg_temp.tell(org_id)"
        )
        assert ORG in told
        with pytest.raises(errors.InvalidDatetimeFormat) as wrong:
            reader.execute(
                "select 1 from audience.audience_customers where cast(visitor_id as date) > date '2026-01-01'"
            )
        told.append(str(wrong.value))
        told += [
            row for (row,) in reader.execute("explain (analyze, verbose) select * from audience.audience_customers")
        ]
        assert one(reader, "select count(*) from pg_stats where schemaname like 'audience%%'") == 0
    assert not [text for text in told if any(name == text or f'"{name}"' in text for name in foreign)]


def test_a_pool_reads_for_whom_it_stands_in(project):
    with logged_in("pool") as connection:
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute("select 1 from audience.audience_customers")
        for name, org, foreign in (("reader", ORG, OTHER_ORG), ("other", OTHER_ORG, ORG)):
            with connection.transaction():
                connection.execute(f"set local role {NAMES[name]}")
                assert orgs_of(connection, "audience.audience_customers").keys() == {org}
                assert answer(connection, "get_high_intent_visitors", org)
            with pytest.raises(errors.InvalidParameterValue), connection.transaction():
                connection.execute(f"set local role {NAMES[name]}")
                answer(connection, "get_high_intent_visitors", foreign)


def test_a_function_with_the_rights_of_somebody_else_lends_no_orgs(project):
    """Who asks is the login of the session, also within a function that another member made."""
    connection = project.connection
    connection.execute(
        f"create schema lent; grant usage, create on schema lent to {NAMES['other']}; grant usage on schema lent to public"
    )
    try:
        with logged_in("other") as owner:
            owner.execute(
                "create function lent.orgs() returns setof text security definer language sql as 'select distinct org_id from audience.audience_customers'"
            )
        with logged_in("reader") as reader:
            assert {org for (org,) in reader.execute("select * from lent.orgs()")} <= {ORG}
    finally:
        connection.execute("drop schema lent cascade")


# What is declared is what there is


def test_everything_is_of_one_owner(project):
    assert project.connection.execute(OWNERS).fetchall() == [("audience_owner",)]


def test_grants_are_those_declared(project):
    expected = {(name, "select", "audience_reader") for name in EXPOSED}
    expected |= {
        (f"audience.{name}", "execute", "audience_reader") for name in (*QUESTIONS, "calculate_propensity_score")
    }
    expected |= {(schema, "usage", "audience_reader") for schema in ("audience", "audience_seeds")}
    expected |= {(name, privilege, "audience_analyst") for name, held in OF_ANALYSTS.items() for privilege in held}
    expected |= {(name, privilege, "audience_admin") for name, held in READ_BY_ADMINS.items() for privilege in held}
    expected |= {(name, "execute", "audience_analyst") for name in DOOR - {ASKING}} | {
        (ASKING, "execute", "audience_reader")
    }
    expected |= {("audience_state", "usage", role) for role in ("audience_reader", "audience_analyst")}
    expected |= {(name, "execute", "audience_admin") for name in OF_ADMINS}
    expected.add((ASKING_FOR_PEOPLE, "execute", "audience_reader"))
    expected.add(("a column of audience_state.audience_segments", "update", "audience_analyst"))
    # as their caller, who may change nothing by them; and the orgs of who asks, for policies
    expected |= {
        (f"audience_state.{name}", "execute", "public") for name in ("secure", "policy_version", "readable_orgs")
    }
    assert set(project.connection.execute(GRANTED).fetchall()) == expected
    groups = "select roleid::regrole::text, member::regrole::text from pg_auth_members where member::regrole::text ~ '^audience_'"
    assert set(project.connection.execute(groups).fetchall()) == {
        ("audience_reader", "audience_analyst"),
        ("audience_analyst", "audience_admin"),
    }
    powers = "select count(*) from pg_roles where rolname ~ '^audience_' and (rolcanlogin or rolsuper or rolbypassrls or rolcreaterole or rolcreatedb)"
    assert one(project.connection, powers) == 0


def test_what_is_declared_is_in_the_project_file():
    declared = yaml.safe_load((project_dir() / "dbt_project.yml").read_text())
    seeds = declared["seeds"]["audience_intelligence"]
    reads = {"select": ["audience_reader"]}
    assert {
        name for name, settings in seeds.items() if isinstance(settings, dict) and settings.get("+grants") == reads
    } == SEEDS
    granted = {
        name
        for name, settings in declared["models"]["audience_intelligence"].items()
        if isinstance(settings, dict) and "+grants" in settings
    }
    assert granted == {"marts"}


def test_every_exposed_relation_is_secured(project):
    """The net for a model that somebody adds next year: whatever anybody but the owner may read."""
    exposed = (
        "select format('%I.%I', nspname, relname), relkind, relrowsecurity, reloptions @> array['security_invoker=true'],"
        " array(select pg_get_expr(polqual, polrelid) from pg_policy where polrelid = pg_class.oid)"
        " from pg_class join pg_namespace on pg_namespace.oid = relnamespace"
        " where nspname ~ '^(audience(_.*)?|analytics)$' and relkind in ('r', 'v', 'm', 'p', 'f')"
        " and exists (select from aclexplode(relacl) where grantee <> relowner)"
    )
    found = project.connection.execute(exposed).fetchall()
    assert {name for name, *_ in found} == EXPOSED | OF_ANALYSTS.keys() | READ_BY_ADMINS.keys()
    for name, kind, is_secured, is_invoker, policies in found:
        if kind == "v":
            assert is_invoker, f"{name} reads with its owner's rights"
        else:
            assert kind == "r" and is_secured and len(policies) == 1 + (name == "audience_state.audience_segments"), (
                name
            )
            assert all(("readable_orgs()" in policy) == (name not in WITHOUT_ORG) for policy in policies), name
    forced = "select count(*) from pg_class where relforcerowsecurity"
    assert one(project.connection, forced) == 0  # the owner has to read what it builds
    definers = project.connection.execute(
        "select pronamespace::regnamespace || '.' || proname, proconfig from pg_proc where prosecdef"
        " and pronamespace::regnamespace::text ~ '^(audience(_.*)?|analytics)$'"
    ).fetchall()
    assert {name for name, _ in definers} == {
        "audience_state.readable_orgs",
        "audience.get_high_intent_visitors",
    } | DOOR | OF_ADMINS | OF_ERASURE | {ASKING_FOR_PEOPLE}
    assert all("search_path=pg_catalog, pg_temp" in settings for _, settings in definers)


# Builds


def test_a_build_with_nothing_new_writes_nothing_to_the_catalog(project):
    before = project.connection.execute(CATALOG).fetchall()
    build(as_of=AS_OF)
    assert set(project.connection.execute(CATALOG).fetchall()) == set(before)


def test_rebuilds_never_show_a_foreign_row_and_never_fail(project):
    connection, watch = project.connection, Watch()
    secured = [
        set(connection.execute(query).fetchall()) for query in (GRANTED, "select polrelid, polname from pg_policy")
    ]
    with watch.looking():
        build(as_of=AS_OF, full_refresh=True)
        # as another release: views and functions are made again, a table gets another key and column
        connection.execute("delete from audience_state.model_state where model ~ '^(view|function) '")
        connection.execute(
            "update audience_state.model_state set fingerprint = 'other', declared = 'other' where model not like '% %'"
        )
        connection.execute("alter table audience.audience_customers add column former text")
        build(as_of=AS_OF)
    assert (watch.foreign, watch.failed) == ([], [])
    assert watch.seen > 1000
    assert secured == [
        set(connection.execute(query).fetchall()) for query in (GRANTED, "select polrelid, polname from pg_policy")
    ]


def test_tables_made_anew_never_show_a_foreign_row(project):
    connection, watch = project.connection, Watch()
    with watch.looking():
        connection.execute(
            "drop table audience.audience_customers, audience.device_network_daily, audience_seeds.kpi_targets cascade"
        )
        connection.execute("drop schema audience_state cascade")
        # no state, no members: nothing is seen, not everything
        for login, org in (("reader", ORG), ("other", OTHER_ORG)):
            dbt.prepare()
            members.add(NAMES[login], [org])
        build(as_of=AS_OF)
    assert watch.foreign == []
    members.add(NAMES["analyst"], [ORG], "analyst")
    members.add(NAMES["admin"], [ORG], "admin")
    test_every_exposed_relation_is_secured(project)
    test_grants_are_those_declared(project)
    test_a_member_sees_the_rows_of_its_org_alone(project, "reader", ORG)


DAMAGE = (
    "drop policy readers on audience.audience_customers",
    "alter policy readers on audience.audience_overview_daily using (true)",
    "alter policy readers on audience.device_network_daily to audience_admin",
    "alter table audience.cohort_retention_weekly disable row level security",
    "revoke select on audience.data_quality_daily from audience_reader",
    "grant insert, delete on audience.audience_customers to audience_admin",
    "revoke execute on function audience.get_audience_cohorts from audience_reader",
    "revoke usage on schema audience_seeds from audience_reader",
    "grant select on audience_seeds.orgs to audience_analyst",
)


def test_the_next_run_puts_right_what_was_changed_by_hand(project):
    for damage in DAMAGE:
        project.connection.execute(damage)
    with logged_in("reader") as connection:
        assert len(orgs_of(connection, "audience.audience_overview_daily")) > 1, "the damage is one"
    build(as_of=AS_OF, select="orgs")
    test_every_exposed_relation_is_secured(project)
    test_grants_are_those_declared(project)
    test_a_member_sees_the_rows_of_its_org_alone(project, "reader", ORG)


# Members


def test_a_login_has_one_of_the_roles(project):
    name = NAMES["nobody"]
    try:
        for role in ("admin", "reader", "analyst"):
            members.add(name, [ORG], role)
            (found,) = [member for member in members.members() if member.login == name]
            assert (found.orgs, found.roles, found.exists) == ([ORG], [role], True)
    finally:
        assert members.remove(name) == 1
    assert name not in {member.login for member in members.members()}
    held = "select count(*) from pg_auth_members where member = %s::regrole"
    assert one(project.connection, held, [name]) == 0
    with pytest.raises(UserError, match="is a member of no org"):
        members.remove(name)


def test_a_member_that_left_the_server_is_told(project):
    project.connection.execute(
        "insert into audience_state.org_members (login_name, org_id) values ('gone', 'north_hall')"
    )
    (found,) = [member for member in members.members() if member.login == "gone"]
    assert (found.roles, found.exists) == ([], False)
    assert members.remove("gone") == 1


@pytest.mark.parametrize(
    ("login", "sentence"),
    [("never_heard", "The server has no login 'never_heard': create it first"), ("audience_reader", "is a group of logins"),
     ("audience_owner", "reads the rows of every org whatever is added")],
)  # fmt: skip
def test_whom_no_policy_holds_for_becomes_no_member(project, login, sentence):
    with pytest.raises(UserError, match=sentence):
        members.add(login, [ORG])


# A server on which the login that builds may not make roles


@pytest.fixture
def limited(database: str) -> Iterator[str]:
    """An empty database of a login with no rights beyond it; the environment points to it."""
    login, name = f"limited_{os.getpid()}", f"{database}_limited"
    with psycopg.connect(autocommit=True) as connection, pytest.MonkeyPatch.context() as patch:
        connection.execute(f"create role {login} login password 'secret'")
        connection.execute(f"create database {name} owner {login} template template0 encoding 'UTF8'")
        try:
            patch.setenv("PGUSER", login)
            patch.setenv("PGPASSWORD", "secret")
            patch.setenv("PGDATABASE", name)
            yield login
        finally:
            connection.execute(f"drop database {name} with (force)")
            connection.execute(f"drop owned by {login}; drop role {login}")


def test_who_may_not_make_roles_is_told_what_an_administrator_runs(limited, project, tmp_path):
    with pytest.raises(UserError) as refused:
        dbt.prepare()
    text = " ".join(str(refused.value).split())
    told = text.split("An administrator of the server runs: ")[1].split("Or set the variable")[0]
    assert f"grant audience_owner to {limited};" in told
    done = dbt.run("run-operation", "ensure_tables", "--vars", "{roles_are_needed: false}")
    assert done.returncode == 0, done.stdout
    with pytest.raises(UserError, match=f"may not change who has the role.* runs: grant .* to .*{NAMES['nobody']}"):
        members.add(NAMES["nobody"], [ORG])

    project.connection.execute(told)
    load_files([file.path for file in write_sample(tmp_path / "sample", events=1_000, seed=7, end=END)])
    build(as_of=AS_OF)
    build(as_of=AS_OF, full_refresh=True)
    members.add(NAMES["nobody"], [ORG])
    with logged_in("nobody") as connection:
        assert orgs_of(connection, "audience.audience_overview_daily").keys() == {ORG}
        assert answer(connection, "get_audience_overview", ORG)
        assert answer(connection, "get_high_intent_visitors", ORG)
    members.remove(NAMES["nobody"])
