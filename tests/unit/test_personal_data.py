"""What is said of each table's columns, read from the YAML: no database."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import yaml

from orchestration.rights.catalogue import CLASSES, ROW_KEYS, declared
from orchestration.rights.rejected import identifiers_of
from orchestration.settings import project_dir

# Whatever else is in a table: one that has such a column tells of people. The note of removed rows says no more than a number.
TELLING = {"visitor_id", "visitor_ids", "user_id", "anonymous_id", "device_id", "sender_id", "landing_id", "event_id", "email",
           "phone", "first_name", "last_name", "full_name", "properties", "raw_row", "url", "order_key"}  # fmt: skip
KEPT = {"events_removed"}


@cache
def nodes() -> dict[str, dict[str, Any]]:
    """Models that are tables, seeds and source tables, by name."""
    found: dict[str, dict[str, Any]] = {}
    files = [*(project_dir() / "models").rglob("*.yml"), *(project_dir() / "seeds").rglob("*.yml")]
    for file in files:
        content = yaml.load(file.read_text(), Loader=yaml.CSafeLoader) or {}
        for node in [*content.get("models", []), *content.get("seeds", []), *_tables(content)]:
            found[node["name"]] = node
    for model in (project_dir() / "models").rglob("*.sql"):
        if "materialized='view'" in (text := model.read_text()) or "materialized='ephemeral'" in text:
            found.pop(model.stem)
    return {name: node for name, node in found.items() if name not in ("stg_events", "stg_native__events")}


def _tables(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [table for source in content.get("sources", []) for table in source["tables"]]


SAID = {name: personal_data for (_, name), personal_data in declared().items()}


@pytest.mark.parametrize("name", sorted(nodes()))
def test_every_column_is_classified_once(name):
    personal_data, described = SAID[name], [column["name"] for column in nodes()[name].get("columns", [])]
    if personal_data == "none":
        assert name in KEPT or not TELLING & set(described)
        return
    assert personal_data is not None, f"{name} says nothing of personal_data"
    assert set(personal_data) <= set(CLASSES)
    named = [column for columns in personal_data.values() for column in columns]
    assert len(named) == len(set(named))
    assert not described or sorted(named) == sorted(described), f"{name}: classified is not what is described"
    assert not TELLING & set(personal_data.get("none", [])) and not TELLING & set(personal_data.get("behaviour", []))


@pytest.mark.parametrize("name", sorted(name for name, said in SAID.items() if isinstance(said, dict)))
def test_a_table_that_tells_of_people_says_whose_its_rows_are(name):
    classes = {column: kind for kind, columns in SAID[name].items() for column in columns}
    assert any(classes.get(key, "none") != "none" for key in ROW_KEYS)


@pytest.mark.parametrize(
    ("reason", "text", "found"),
    [
        ("missing_org", '{"user_id": "u 1", "anonymous_id": "d", "event_id": 5, "properties": {"email": "a@b.c"}}', {"u 1", "d", "5", "a@b.c"}),
        ("negative_revenue", '{"user_id": null, "email": "top@b.c", "properties": "{\\"phone\\": \\"+1 2\\"}"}', {"top@b.c", "+1 2"}),
        ("missing_org", '{"url": "u", "properties": {"order_id": "u"}}', set()),
        ("wrong_column_count", '{"org_id": "u-1", "column 14": "x"}', {"org_id", "u-1", "column", "14", "x"}),
        ("invalid_json", '{"user_id": "u.1", "email": "jane+x@b.c"', {"user_id", "u.1", "email", "jane+x@b.c"}),
        ("not_an_object", "[1, 2]", {"1", "2"}), ("missing_org", '{"user_id": {"id": "u"}, "properties": [1]}', set()),
    ],
)  # fmt: skip
def test_the_identifiers_of_a_rejected_row(reason, text, found):
    assert identifiers_of(reason, text) == found
