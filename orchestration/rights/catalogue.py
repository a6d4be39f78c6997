"""What each table tells of people: read from the YAML of the models, and the rows of it that are a person's.

A table says in `meta: {personal_data: ...}` for each of its columns whether it is an `identifier`, `personal`, `behaviour` or
`none`; or `none` for all of them. Erasure, subject export and their tests walk this one catalogue.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
import yaml
from psycopg import sql
from psycopg.types.json import Jsonb

from orchestration.errors import CheckFailed
from orchestration.settings import project_dir, project_variables, target_schema

CLASSES = ("identifier", "personal", "behaviour", "none")
CHANGES = "__changes"
# What tells whose a row is: the first of these that its table has. How: rows_of_subject in macros/mechanics/subjects.sql.
ROW_KEYS = (
    "visitor_ids", "visitor_id", "landing_id", "order_key", "event_id", "sender_id", "user_id", "device_id", "order_reference",
    "rejection_id", "subject",
)  # fmt: skip
_TABLES = """
select nspname, relname, array_agg(cast(attname as text) order by attnum)
from pg_class join pg_namespace on pg_namespace.oid = relnamespace
join pg_attribute on attrelid = pg_class.oid and attnum > 0 and not attisdropped
where relkind in ('r', 'p', 'm', 'f') and not relispartition
    and (nspname in (%(landing)s, %(target)s) or nspname like replace(%(target)s, '_', '\\_') || '\\_%%')
group by nspname, relname
order by nspname, relname
"""


@dataclass(frozen=True)
class Table:
    """A table of the database. classes: of its columns, in their order. key: the one of ROW_KEYS that tells whose a row is;
    None: it has rows of nobody."""

    schema: str
    name: str
    classes: Mapping[str, str]

    @property
    def full_name(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    @property
    def is_personal(self) -> bool:
        return set(self.classes.values()) != {"none"}

    @property
    def key(self) -> str | None:
        return next((key for key in ROW_KEYS if self.classes.get(key, "none") != "none"), None)


def declared() -> dict[tuple[str, str], Any]:
    """What the YAML says of each table: {(schema, name): personal_data}; the schema of a model or a seed is ''."""
    files = [*(project_dir() / "models").rglob("*.yml"), *(project_dir() / "seeds").rglob("*.yml")]
    schemas = {"landing": project_variables()["landing_schema"], "state": f"{target_schema()}_state"}
    found: dict[tuple[str, str], Any] = {}
    for file in files:
        content = yaml.load(file.read_text(), Loader=yaml.CSafeLoader) or {}
        for node in [*content.get("models", []), *content.get("seeds", [])]:
            found["", node["name"]] = _personal_data(node)
        for source in content.get("sources", []):
            for table in source["tables"]:
                found[schemas.get(source["name"], source["name"]), table["name"]] = _personal_data(table)
    return found


def _personal_data(node: Mapping[str, Any]) -> Any:
    return node.get("config", {}).get("meta", {}).get("personal_data")


def read_catalogue(connection: psycopg.Connection) -> list[Table]:
    """Every table of the target and of the landing schema.

    Raises CheckFailed with what is not classified: a person's rows in it would be passed over.
    """
    said = declared()
    schemas = {"landing": project_variables()["landing_schema"], "target": target_schema()}
    tables, wrong = [], []
    for schema, name, columns in connection.execute(_TABLES, schemas).fetchall():
        is_feed = name.endswith(CHANGES)
        personal_data = said.get((schema, name), said.get(("", name.removesuffix(CHANGES))))
        classes = _classes(personal_data, columns)
        if is_feed:
            # as in the table whose changes it holds
            classes |= {"change_id": "none", "weight": "none"}
        wrong += [f"{schema}.{name}.{column}" for column in columns if classes.get(column) not in CLASSES]
        tables.append(Table(schema, name, {column: classes.get(column, "none") for column in columns}))
    if wrong:
        raise CheckFailed(
            f"It is not said what {_some(wrong)} tells of people: say it as personal_data in the YAML of the table, "
            "or drop the table when a release removed it."
        )
    return tables


def _classes(personal_data: Any, columns: list[str]) -> dict[str, str]:
    if personal_data == "none":
        return dict.fromkeys(columns, "none")
    if not isinstance(personal_data, Mapping):
        return {}
    return {column: kind for kind, named in personal_data.items() for column in named}


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def personal_tables(connection: psycopg.Connection) -> list[Table]:
    """Tables that have rows of people, whose they are by a column of theirs."""
    return [table for table in read_catalogue(connection) if table.key]


def as_argument(tables: Iterable[Table]) -> Jsonb:
    """Tables as the functions of the database take them."""
    return Jsonb(
        [
            {
                "schema_name": table.schema,
                "table_name": table.name,
                "key": table.key,
                "device": "device_id" if "device_id" in table.classes else "anonymous_id",
            }
            for table in tables
        ]
    )


def count_rows(connection: psycopg.Connection, subject: Mapping[str, Any]) -> dict[str, int]:
    """How many rows on a subject each table has; tables without one are left out. For the owner."""
    query = sql.SQL("select {}(%s, %s)").format(sql.Identifier(f"{target_schema()}_state", "count_rows_of_subject"))
    counts = connection.execute(query, [Jsonb(subject), as_argument(personal_tables(connection))]).fetchone()[0]  # type: ignore[index]
    return dict(sorted(counts.items()))
