"""Two target schemas of one database, and how to compare them row for row."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from orchestration.build import LOCK_HELD
from orchestration.settings import project_dir

# Before any event.
FIRST = "1990-01-01T00:00:00+00:00"
# Thresholds that a few people meet: at those of the project alerts would be tested with empty tables, and no path cut.
VARIABLES = {
    "path_max_steps": 2,
    "alert_min_visitors": 1, "alert_min_expected_buyers": 0, "alert_stays_open_p_value": 0.6, "alert_looks_per_week": 1,
    "alert_max_false_per_week": 0.5, "alert_min_relative_drop": 0, "alert_clear_days": 2, "alert_window_days": 14,
}  # fmt: skip
# Every table of a target: whatever a build writes but its bookkeeping, the seeds and the changes waiting for others.
TABLES = """
select namespaces.nspname, classes.relname
from pg_class as classes join pg_namespace as namespaces on namespaces.oid = classes.relnamespace
where classes.relkind = 'r' and classes.relname !~ '__changes$'
    and (namespaces.nspname = %(schema)s or namespaces.nspname like %(schema)s || '\\_%%')
    and namespaces.nspname !~ '_(state|seeds)$'
order by 1, 2
"""


def tables(connection: psycopg.Connection, schema: str) -> dict[str, sql.Identifier]:
    """The tables of a target schema and of those beside it, by their names without the prefix."""
    found = connection.execute(TABLES, {"schema": schema}).fetchall()
    return {
        f"{namespace.removeprefix(schema).removeprefix('_')}.{table}".removeprefix("."): sql.Identifier(
            namespace, table
        )
        for namespace, table in found
    }


def row_counts(connection: psycopg.Connection, schema: str) -> dict[str, int]:
    """How many rows each table has."""
    found = tables(connection, schema)
    counts = [sql.SQL("select {}, count(*) from {}").format(name, table) for name, table in found.items()]
    return dict(connection.execute(sql.SQL(" union all ").join(counts)).fetchall())


def differences(connection: psycopg.Connection, schema: str, expected_schema: str) -> list[str]:
    """Rows that one of two targets has more often than the other: some of each table, readable, and none if all are equal."""
    found, expected = tables(connection, schema), tables(connection, expected_schema)
    assert found.keys() == expected.keys()
    # "C": texts that differ but compare as equal must not be taken for one.
    rows = 'select {0}, {1}, rows.text, count(*) over () from (select t::text collate "C" as text from {2} as t except all select t::text collate "C" from {3} as t) as rows'
    queries = [
        sql.SQL("(" + rows + " limit 5)").format(name, verdict, one, other)
        for name in expected
        for verdict, one, other in (
            ("too much", found[name], expected[name]),
            ("missing", expected[name], found[name]),
        )
    ]
    result = connection.execute(sql.SQL(" union all ").join(queries)).fetchall()
    columns = {name: _columns(connection, expected[name]) for name in {row[0] for row in result}}
    lines, before = [], None
    for name, verdict, text, count in result:
        if (name, verdict) != before:
            lines.append(f"{name} {verdict}: {count} rows" + ("" if before and before[0] == name else columns[name]))
            before = (name, verdict)
        lines.append(f"    {text}")
    return lines


def _columns(connection: psycopg.Connection, table: sql.Identifier) -> str:
    names = connection.execute(sql.SQL("select * from {} limit 0").format(table)).description or []
    return " (" + ", ".join(column.name for column in names) + ")"


@dataclass
class Builder:
    """Builds of one target schema by a dbt in this process, which parses and compiles the project once.

    It makes its first build at once, for `first_as_of`: views, and tables of all that has landed by then.
    The moment and what is pending are looked up when a model runs, not when it is compiled; both is checked.
    """

    schema: str
    folder: Path
    connection: psycopg.Connection
    first_as_of: str = FIRST
    manifest: Any = field(init=False)

    def __post_init__(self) -> None:
        parsed = self._dbt("parse", manifest=None)
        self._dbt("seed", manifest=parsed)
        # A run writes what it compiled into its manifest, and could not be repeated with it: each gets a copy.
        first, second = parsed.deepcopy(), parsed.deepcopy()
        self._dbt("run", manifest=first, as_of=self.first_as_of)
        self._dbt("compile", manifest=second)
        self.manifest = parsed
        for name, node in _maintained(parsed).items():
            code = _maintained(first)[name].compiled_code
            assert code == _maintained(second)[name].compiled_code, f"{name} depends on the moment of its compilation"
            node.raw_code = "{% raw %}" + code + "{% endraw %}"

    def run(self, as_of: str, *arguments: str) -> None:
        """Runs the maintained models, without their tests. Views are as they were made at first."""
        chosen = ["--select", "config.materialized:maintained"]
        self._dbt("run", *chosen, *arguments, manifest=self.manifest.deepcopy(), as_of=as_of)
        built = self.connection.execute(
            sql.SQL("select as_of from {} where model = 'audience_customers'").format(
                sql.Identifier(f"{self.schema}_state", "model_state")
            )
        ).fetchone()
        assert built == self.connection.execute("select %s::timestamptz", [as_of]).fetchone()

    def _dbt(self, *arguments: str, manifest: Any, as_of: str = "") -> Any:
        from dbt.cli.main import dbtRunner

        places = {
            "--project-dir": project_dir(),
            "--profiles-dir": project_dir() / "profiles",
            "--target-path": self.folder / self.schema,
            "--log-path": self.folder / self.schema,
        }
        quiet = ["--log-level", "none", "--log-level-file", "none", "--no-write-json", "--no-version-check"]
        named = [str(part) for place in places.items() for part in place]
        named += ["--vars", json.dumps({**VARIABLES, "as_of": as_of})]
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            patch.setenv("AUDIENCE_SCHEMA", self.schema)
            patch.setenv(LOCK_HELD, "held")
            result = dbtRunner(manifest=manifest).invoke([*quiet, *arguments, *named])
        if not result.success:
            nodes = getattr(result.result, "results", None) or []
            failed = [f"{node.node.name}: {node.message}" for node in nodes if node.status in ("error", "fail")]
            raise AssertionError(f"dbt {' '.join(arguments)} failed: {result.exception or ''}\n" + "\n".join(failed))
        return result.result


def _maintained(manifest: Any) -> dict[str, Any]:
    return {
        node.name: node
        for node in manifest.nodes.values()
        if node.resource_type == "model" and node.config.materialized == "maintained"
    }
