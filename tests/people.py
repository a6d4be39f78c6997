"""People of a sample: what landed of them, told in Python from the rows themselves, and where any of it is still found."""

from __future__ import annotations

import json
import os
import random
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from orchestration import database, embedded
from orchestration.rights import catalogue
from orchestration.rights.subjects import Given


@dataclass
class Person:
    """A visitor of an org and the rows that landed of him."""

    org_id: str
    visitor_id: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def values(self, *names: str) -> set[str]:
        return {row[name] for row in self.rows for name in names if row[name]}

    def contacts(self, name: str) -> set[str]:
        return {value.strip().lower() for row in self.rows if (value := row["properties"].get(name))}


def landed(connection: psycopg.Connection) -> list[dict[str, Any]]:
    """What landed and can be used, as JSON."""
    query = "select to_jsonb(events) from analytics.events where rejection_reason is null order by landing_id"
    return [row for (row,) in connection.execute(query)]


def people(rows: list[dict[str, Any]], persons: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Person]:
    """Everybody by org and visitor: the user, else the first user of the device, else the device.

    persons: org and event_id of events of people, not of robots and staff, who did not opt out; only these log a device in.
    """
    counting: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (row["received_at"], row["landing_id"])):
        counting.setdefault((row["org_id"], row["event_id"]), row)
    logins = defaultdict(list)
    for key in set(persons) & counting.keys():
        row = counting[key]
        if row["user_id"] and row["anonymous_id"]:
            logins[row["org_id"], row["anonymous_id"]].append((row["occurred_at"], row["event_id"], row["user_id"]))
    user = {device: min(found)[2] for device, found in logins.items() if len({one[2] for one in found}) <= 3}
    found: dict[tuple[str, str], Person] = {}
    for row in rows:
        device = row["org_id"], row["anonymous_id"]
        visitor = row["user_id"] or user.get(device) or row["anonymous_id"]
        if visitor:
            key = row["org_id"], visitor
            found.setdefault(key, Person(*key)).rows.append(row)
    return found


def everybody(connection: psycopg.Connection) -> dict[tuple[str, str], Person]:
    counted = connection.execute(
        "select org_id, event_id from audience.enriched_events where is_person and not is_opted_out"
    )
    return people(landed(connection), counted.fetchall())


def identifiers(chosen: list[Person], everybody_there: Iterable[Person]) -> set[str]:
    """User ids, devices and addresses that are of the chosen and of nobody else."""
    keys = {(one.org_id, one.visitor_id) for one in chosen}

    def all_of(group: Iterable[Person]) -> set[str]:
        return {
            value
            for one in group
            for value in one.values("user_id", "anonymous_id") | one.contacts("email") | one.contacts("phone")
        }

    return all_of(chosen) - all_of(one for one in everybody_there if (one.org_id, one.visitor_id) not in keys)


def given_of(one: Person, own: set[str], by: random.Random) -> Given:
    """One of the identifiers that a person has, by chance: of addresses and devices those that nobody else has."""
    ways = [Given(user_ids=[user]) for user in sorted(one.values("user_id"))]
    ways += [Given(device_ids=[device]) for device in sorted(one.values("anonymous_id") & own)]
    ways += [Given(emails=[f" {email.upper()}"]) for email in sorted(one.contacts("email") & own)]
    return by.choice(ways)


def merged(givens: Iterable[Given]) -> Given:
    kinds = {"emails": [], "phones": [], "user_ids": [], "device_ids": [], "event_ids": []}
    for given in givens:
        for kind, values in kinds.items():
            values += getattr(given, kind)
    return Given(**kinds)


def rows_of_people(connection: psycopg.Connection) -> dict[str, Counter[str]]:
    """Every row of the tables that have rows of people, as JSON with sorted keys; but for who asked for exports and erasures."""
    return {
        table.full_name: Counter(
            canonical(row)
            for (row,) in connection.execute(f'select to_jsonb(rows) from "{table.schema}"."{table.name}" as rows')
        )
        for table in catalogue.personal_tables(connection)
        if table.name != "subject_requests"
    }


def canonical(row: Any) -> str:
    return json.dumps(row, sort_keys=True)


def traces(connection: psycopg.Connection, wanted: set[str], *folders: Path) -> set[str]:
    """Which of the identifiers are in a dump of the database, in its statistics or in files: whole words, whatever the case."""
    assert wanted
    with tempfile.TemporaryDirectory() as folder:
        words, dump, statistics = Path(folder, "words"), Path(folder, "dump.sql"), Path(folder, "statistics")
        words.write_text("".join(f"{word}\n" for word in sorted(wanted)))
        subprocess.run(
            [embedded.binary("pg_dump"), "--no-sync", "--file", str(dump)], env=database.environment(), check=True
        )
        stored = connection.execute(
            "select cast(pg_stats as text) from pg_stats where schemaname ~ '^(analytics|audience)'"
        )
        statistics.write_text("\n".join(row for (row,) in stored))
        command = ["grep", "-rohiwF", "-f", str(words), str(dump), str(statistics), *map(str, folders)]
        found = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
        assert found.returncode in (0, 1), found.stderr
        return set(found.stdout.splitlines())
