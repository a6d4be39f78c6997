"""The build: whatever the order and the batches, the same rows; nothing new, nothing written; one at a time."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestration import database, dbt
from orchestration.build import BuildReport, build, build_lock
from orchestration.errors import UserError
from orchestration.load import load_files
from tests.projects import AS_OF, RARE, Project, audience, own_project, shuffled_sample

# Builds before the last: what is ahead of their moment waits, and days pass between them.
EARLIER = ("2026-05-10T09:00:00+00:00", "2026-06-26T02:00:00+00:00")


@dataclass
class Copy(Project):
    """A copy of the dbt project with the sample of one seed, loaded and built in shuffled batches."""

    folder: Path = Path()

    def edit_seed(self, name: str, edit: Callable[[dict[str, str]], None], *added: dict[str, str]) -> None:
        path = self.folder / "seeds" / f"{name}.csv"
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), reader.fieldnames or []
        for row in rows:
            edit(row)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows([*rows, *added])


def unchanged(row: dict[str, str]) -> None:
    """For edit_seed: leaves the rows as they are."""


@pytest.fixture(scope="module")
def project(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    with own_project(tmp_path_factory.mktemp("build") / "project") as folder:
        for batch, moment in zip(shuffled_sample(folder.parent), (*EARLIER, AS_OF), strict=True):
            load_files([batch])
            build(as_of=moment)
        with database.connect(autocommit=True) as connection:
            yield Copy(connection, folder=folder)


def written(report: BuildReport) -> dict[str, int | None]:
    return {node.name: node.rows for node in report.changed}


def test_shuffled_batches_equal_one_build_of_everything(project):
    rows = project.rows("audience")
    assert len(rows) > 20
    empty = {name for name, found in rows.items() if not found}
    assert {name.split(".")[1] for name in empty} == RARE, "the sample reaches too little"
    project.assert_equals_a_rebuild()


@pytest.mark.parametrize("full_refresh", [False, True], ids=["incremental", "full refresh"])
def test_a_build_with_nothing_new_writes_nothing(project, full_refresh):
    before = project.rows("audience", where_they_lie=True)
    report = build(as_of=AS_OF, full_refresh=full_refresh)
    assert written(report) == {}
    after = project.rows("audience", where_they_lie=True)
    assert {name for name, rows in before.items() if after[name] != rows} == set()


def test_removed_and_corrected_events_are_followed(project):
    connection = project.connection
    user = connection.execute(
        "select user_id from analytics.events where user_id is not null group by 1 order by count(*) desc, 1 limit 1"
    ).fetchone()
    erased = connection.execute(
        "delete from analytics.events where user_id = %s or anonymous_id in"
        " (select anonymous_id from analytics.events where user_id = %s) returning event_id",
        user * 2,
    ).rowcount
    login = connection.execute(
        "select org_id, device_id, user_id from audience_intermediate.int_devices"
        " where users_count = 1 and user_id <> %s order by 2 limit 1",
        user,
    ).fetchone()
    forgotten = connection.execute(
        "delete from analytics.events where (org_id, anonymous_id, user_id) = (%s, %s, %s)", login
    ).rowcount
    corrected = connection.execute(
        "update analytics.events set occurred_at = occurred_at - interval '3 hours' where event_id in"
        " (select min(event_id) from analytics.events where event_type = 'checkout_start' group by org_id)"
    ).rowcount
    assert min(erased, forgotten, corrected) > 0

    build(as_of=AS_OF)
    customers = "select count(*) from audience.audience_customers where visitor_id = %s"
    assert connection.execute(customers, user).fetchone() == (0,)
    devices = "select count(*) from audience_intermediate.int_devices where (org_id, device_id) = (%s, %s)"
    assert connection.execute(devices, login[:2]).fetchone() == (0,)
    project.assert_equals_a_rebuild()


def test_changed_seed_rows_are_followed(project):
    def cheaper(row: dict[str, str]) -> None:
        if row["rule"] == "ticket_cta":
            row["points"] = "2"

    def moved(row: dict[str, str]) -> None:
        if row["org_id"] == "harbor_live":
            row["time_zone"], row["week_starts_on"] = "Asia/Tokyo", "3"

    project.edit_seed("propensity_weights", cheaper)
    project.edit_seed("orgs", moved)
    rule = {"org_id": "north_hall", "source_event_type": "search", "event_type": "ticket_cta"}
    project.edit_seed("event_taxonomy", unchanged, rule)
    channel = {"org_id": "harbor_live", "priority": "1", "channel": "Affiliates", "source_pattern": "^google$"}
    project.edit_seed("channel_rules", unchanged, channel)

    build(as_of=AS_OF)
    one = project.connection.execute(
        "select max(propensity_ticket_cta_points), count(*) filter (where first_touch_channel = 'Affiliates')"
        " from audience.audience_customers where org_id = 'harbor_live'"
    ).fetchone()
    assert one[0] == 2
    assert one[1] > 0
    project.assert_equals_a_rebuild()


def test_a_build_beside_another_is_refused(project):
    with build_lock():
        with pytest.raises(UserError, match="Another build of schema audience is running: wait"):
            build(as_of=AS_OF)
        typed = dbt.run("build", "--select", "orgs")
    assert typed.returncode != 0
    assert "Another build of schema audience is running: wait" in typed.stdout


def test_a_build_beside_a_dbt_typed_by_hand_is_refused(project):
    with database.connect(application_name="dbt audience"):
        with pytest.raises(UserError, match="Another build of schema audience is running: wait"):
            build(as_of=AS_OF)
        time.sleep(1.5)
        typed = dbt.run("build", "--select", "orgs")
    assert typed.returncode != 0
    assert "Another build of schema audience is running: wait" in typed.stdout


def test_what_an_audit_or_a_test_finds_is_not_published_and_fails_the_build(project):
    audited, tested = project.folder / "models/marts/audience_overview_daily.sql", project.folder / "tests/dbt"
    sql = audited.read_text()
    try:
        audited.write_text(
            "{% call audit('nothing_may_be_there') %}select 1 as violation{% endcall %}\n"
            + sql.replace("select * from final", "select * from final where false")
        )
        (tested / "assert_never.sql").write_text("select 1 as violation\n")
        before = project.rows("audience", where_they_lie=True)
        chosen = "audience_overview_daily,resource_type:model assert_never"
        result = audience("build", "--as-of", AS_OF, "--select", chosen)
        assert result.returncode == 1
        message = result.stderr
        assert "Audit nothing_may_be_there of audience_overview_daily found 1 rows. Nothing was published" in message
        assert "assert_never" in message
        assert project.rows("audience", where_they_lie=True) == before
    finally:
        audited.write_text(sql)
        (tested / "assert_never.sql").unlink()


ADAPTER = """-- Grain: one row per hit.
select
    -hit_number as landing_id, hit_id as event_id, shop as org_id, name as event_type, browser as anonymous_id,
    cast(null as text) as user_id, cast(null as text) as session_id, cast(null as text) as url,
    cast(null as text) as referrer, cast(null as text) as user_agent, cast('{}' as jsonb) as properties,
    happened as occurred_at, arrived as received_at, cast(null as text) as user_agent_id, cast(null as text) as content_md5
from {{ source('shop', 'hits') }}
"""


def test_a_release_gives_what_is_staged_another_column(project):
    """A view that selects everything of it has it, too, though its own SQL is as before."""
    model = project.folder / "models/staging/native/stg_native__events.sql"
    before = model.read_text()
    column = "select count(*) from pg_attribute where attrelid = 'audience_staging.stg_events'::regclass and attname = 'of_a_release'"
    try:
        model.write_text(before.replace("content_md5\nfrom (", "content_md5,\n    1 as of_a_release\nfrom (", 1))
        built = dbt.run("build", "--select", "stg_native__events", "stg_events")
        assert built.returncode == 0, built.stdout
        assert project.connection.execute(column).fetchone() == (1,)
        again = dbt.run("build", "--select", "stg_native__events", "stg_events")
        assert again.stdout.count("UNCHANGED") == 2, again.stdout
    finally:
        model.write_text(before)
    built = dbt.run("build", "--select", "stg_native__events", "stg_events")
    assert built.returncode == 0, built.stdout
    assert project.connection.execute(column).fetchone() == (0,)


def test_a_table_that_a_collector_owns_is_followed(project):
    """An adapter as docs/event_contract.md describes it, for a table without any column of ours."""
    connection, models = project.connection, project.folder / "models/staging"
    connection.execute("create schema shop")
    connection.execute(
        "create table shop.hits (hit_number bigint generated always as identity, hit_id text, shop text, name text,"
        " browser text, happened timestamptz default '2026-06-20 10:00:00+00', arrived timestamptz default '2026-06-20 10:00:01+00')"
    )
    hit = "insert into shop.hits (hit_id, shop, name, browser) values (%s, 'north_hall', 'page_view', %s)"
    for name in ("before", "erased"):
        connection.execute(hit, [name, "b1"])
    (models / "shop").mkdir()
    (models / "shop/stg_shop__events.sql").write_text(ADAPTER)
    (models / "shop/_shop.yml").write_text("sources: [{name: shop, schema: shop, tables: [{name: hits}]}]\n")
    with (models / "stg_events.sql").open("a") as union:
        union.write("union all\nselect * from {{ ref('stg_shop__events') }}\n")
    rules = project.folder / "macros/rules/events.sql"
    native = "select org_id, event_id, landing_id, null, received_at from {{ rows('events_removed') }}"
    ours = "select shop, hit_id, -hit_number, name, arrived from {{ rows('hits', 'shop') }} as shop\nunion all\n"
    assert native in rules.read_text()
    rules.write_text(rules.read_text().replace(native, ours + native))
    arguments = "{table: shop.hits, org_id: shop, event_id: hit_id, landing_id: -hit_number, received_at: arrived}"
    followed = dbt.run("run-operation", "follow_table", "--args", arguments)
    assert followed.returncode == 0, followed.stdout
    build(as_of=AS_OF)

    def found() -> set[str]:
        query = "select event_id from audience_intermediate.int_events_enriched where device_id like 'b_'"
        return {name for (name,) in connection.execute(query)}

    assert found() == {"before", "erased"}
    with database.connect() as slow:
        slow.execute(hit, ["late", "b2"])
        connection.execute(hit, ["after", "b1"])
        connection.execute(hit, ["after", "b1"])
        connection.execute("delete from shop.hits where hit_id = 'erased'")
        build(as_of=AS_OF)
        assert "late" not in found()
    build(as_of=AS_OF)
    assert found() == {"before", "after", "late"}
    project.assert_equals_a_rebuild()


def test_a_release_changes_key_and_checks(project):
    """The rows of the new release would break the key and a check of the old one, and a seed's accepted values."""
    connection, folder = project.connection, project.folder
    model, seeds = folder / "models/intermediate/int_visitorless_days.sql", folder / "seeds"
    before = model.read_text(), (seeds / "_seeds.yml").read_text(), (seeds / "kpi_targets.csv").read_text()
    key, check = "unique_key=['org_id', 'source', 'medium', 'campaign', 'event_date']", '"events_count > 0"'
    assert key in before[0] and check in before[0]

    def constraints() -> dict[str, str]:
        found = connection.execute(
            "select conname, pg_get_constraintdef(oid) from pg_constraint"
            " where conrelid = 'audience_intermediate.int_visitorless_days'::regclass and contype in ('p', 'c')"
        )
        return dict(found.fetchall())

    connection.execute(
        "insert into analytics.events (event_id, org_id, event_type, occurred_at, received_at, properties)"
        " select 'visitorless ' || n, 'north_hall', 'page_view', '2026-06-20 10:00:00+00', '2026-06-20 10:00:01+00', '{}'"
        " from generate_series(1, 2) as numbers (n)"
    )
    build(as_of=AS_OF)
    assert connection.execute("select count(*) from audience_intermediate.int_visitorless_days").fetchone()[0] > 0
    old = constraints()
    try:
        # each row twice, told apart by the sign of its count
        twice = (
            before[0]
            .replace(key, key.replace("'event_date']", "'event_date', 'events_count']"))
            .replace(check, '"events_count <> 0"')
        )
        twice += "union all\nselect 'twice', 'twice', 'twice', 'twice', -1, date '2026-06-20'\nunion all\nselect 'twice', 'twice', 'twice', 'twice', 1, date '2026-06-20'\n"
        model.write_text(twice)
        (seeds / "_seeds.yml").write_text(before[1].replace("visitors_weekly", "visitors_weekly', 'another_kpi"))
        (seeds / "kpi_targets.csv").write_text(before[2] + "*,another_kpi,1\n")
        built = dbt.run("build", "--select", "int_visitorless_days", "kpi_targets")
        assert built.returncode == 0, built.stdout
        new = constraints()
        assert (
            new["has_events"] == "CHECK ((events_count <> 0))" and "events_count)" in new["int_visitorless_days_pkey"]
        )
        count = "select count(*) from audience_intermediate.int_visitorless_days where org_id = 'twice'"
        assert connection.execute(count).fetchone()[0] == 2
        assert (
            connection.execute("select count(*) from audience_seeds.kpi_targets where kpi = 'another_kpi'").fetchone()[
                0
            ]
            == 1
        )
    finally:
        model.write_text(before[0])
        (seeds / "_seeds.yml").write_text(before[1])
        (seeds / "kpi_targets.csv").write_text(before[2])
    build(as_of=AS_OF)
    assert constraints() == old
    project.assert_equals_a_rebuild()
