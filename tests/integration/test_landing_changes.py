"""What happens to landed rows when the world around them changes: another cluster, other limits."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from orchestration import database, dbt
from orchestration.build import build
from tests.projects import AS_OF, Project, shuffled_sample

# An event from a clock 22 hours ahead.
AHEAD = "from the clock of tomorrow"


@pytest.fixture(scope="module")
def project(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    from orchestration.load import load_files

    load_files(shuffled_sample(tmp_path_factory.mktemp("sample"), events=2_000))
    with database.connect(autocommit=True) as connection:
        land(connection, AHEAD, occurred_at="2026-07-01T08:00:00Z")
        build(as_of=AS_OF)
        yield Project(connection)


def land(connection, event_id: str, **columns: object) -> None:
    row = {"event_id": event_id, "org_id": "north_hall", "event_type": "page_view", "anonymous_id": "new", **columns}
    row = {"occurred_at": "2026-06-30T10:00:00Z", "received_at": "2026-06-30T10:00:01Z", "properties": "{}", **row}
    names = ", ".join(row)
    connection.execute(
        f"insert into analytics.events ({names}) values ({', '.join(['%s'] * len(row))})", list(row.values())
    )


def test_a_dump_restored_into_another_cluster_loses_nothing(project):
    """A cluster is told by its identifier, so another one in the records stands for a restored dump."""
    connection = project.connection
    for table in ("events", "events_removed", "rejected_rows", "user_agents"):
        connection.execute(f"alter table analytics.{table} disable trigger user")
        connection.execute(
            f"update analytics.{table} set landed_xid = (landed_xid::text::bigint + 9000000000)::text::xid8"
        )
        connection.execute(f"alter table analytics.{table} enable trigger user")
    connection.execute("update analytics.runner_state set position = position + 9000000000 where name <> 'cluster'")
    connection.execute("update analytics.runner_state set position = 1 where name = 'cluster'")
    connection.execute("update audience_state.model_state set fingerprint = '1' where model = 'the cluster'")
    connection.execute(
        "update audience_state.model_state set positions = (select jsonb_object_agg(key, value::bigint + 9000000000)"
        " from jsonb_each_text(positions)) where positions ? 'analytics.events' or positions::text ~ 'events'"
    )
    land(
        connection,
        "after the restore",
        user_agent="Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    )

    build(as_of=AS_OF)
    found = connection.execute(
        "select device_type from audience_intermediate.int_events_enriched where event_id = 'after the restore'"
    ).fetchall()
    assert found == [("desktop",)]

    land(connection, "later")
    connection.execute("delete from analytics.events where event_id = 'after the restore'")
    build(as_of=AS_OF)
    project.assert_equals_a_rebuild()


def test_other_limits_judge_landed_rows_anew(project):
    connection = project.connection
    judged = "select rejection_reason from analytics.events where event_id = %s"
    accepted = "select count(*) from audience_intermediate.int_events_enriched where event_id = %s"
    before = project.rows("audience")
    assert connection.execute(judged, [AHEAD]).fetchall() == [(None,)]
    assert connection.execute(accepted, [AHEAD]).fetchone() == (1,)

    strict = json.dumps({"future_tolerance_hours": 12, "as_of": AS_OF})
    done = dbt.run("build", "--exclude-resource-type", "unit_test", "--vars", strict)
    assert done.returncode == 0, done.stdout[-3000:]
    assert connection.execute(judged, [AHEAD]).fetchall() == [("time_in_future",)]
    assert connection.execute(accepted, [AHEAD]).fetchone() == (0,)

    build(as_of=AS_OF)
    assert connection.execute(judged, [AHEAD]).fetchall() == [(None,)]
    assert project.rows("audience") == before


def test_a_row_that_breaks_a_check_is_not_published(project):
    """A sum that would become negative: what a subtraction of something never added would do."""
    connection = project.connection
    mart = "audience.audience_overview_daily"
    day = connection.execute(f"select org_id, event_date from {mart} order by sessions_count desc limit 1").fetchone()
    connection.execute(f"update {mart} set sessions_count = 0, ticket_cta_sessions_count = 0, checkout_sessions_count = 0,"
                       " purchase_sessions_count = 0, mobile_sessions_count = 0, desktop_sessions_count = 0"
                       " where (org_id, event_date) = (%s, %s)", day)  # fmt: skip
    before = project.rows("audience")[".audience_overview_daily"]
    connection.execute("delete from analytics.events where org_id = %s and occurred_at::date = %s", day)
    done = dbt.run("build", "--exclude-resource-type", "unit_test", "--vars", json.dumps({"as_of": AS_OF}))
    assert done.returncode == 1
    assert 'new row for relation "audience_overview_daily" violates check constraint' in done.stdout
    assert project.rows("audience")[".audience_overview_daily"] == before
