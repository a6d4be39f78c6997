"""The parser against public collections of user agents.

The collections are not part of this project: AUDIENCE_TEST_DATA names the folder that has them in
`conformance/`. Without it these tests are skipped.
"""

import gzip
import json
import os
from pathlib import Path

import pytest

from orchestration.user_agents import UNKNOWN, parse_user_agent

TEST_DATA = os.environ.get("AUDIENCE_TEST_DATA")

pytestmark = pytest.mark.skipif(not TEST_DATA, reason="AUDIENCE_TEST_DATA is not set")


def parsed(name):
    """(expected row, parsed agent) for every line of a collection."""
    with gzip.open(Path(TEST_DATA, "conformance", f"{name}.jsonl.gz"), "rt") as lines:
        rows = [json.loads(line) for line in lines]
    assert rows, f"{name} is empty"
    return [(row, parse_user_agent(row["user_agent"])) for row in rows]


def share(hits):
    return sum(hits) / len(hits)


def test_known_robots_are_flagged_with_a_reason():
    agents = parsed("crawler_user_agents")
    assert share([agent.is_bot for _, agent in agents]) >= 0.95
    assert all(agent.bot_reason for _, agent in agents if agent.is_bot)


def test_no_person_is_called_a_robot():
    assert [agent.bot_reason for _, agent in parsed("intoli_user_agents") if agent.is_bot] == []


def test_every_persons_device_type_is_right():
    agents = parsed("intoli_user_agents")
    assert [row["user_agent"] for row, agent in agents if agent.device_type != row["device_category"]] == []


@pytest.mark.parametrize(("name", "column"), [("uap_core_ua", "browser"), ("uap_core_os", "os")])
def test_families_agree_with_uap_core(name, column):
    agents = parsed(name)
    expected = [UNKNOWN if row["family"] == "Other" else row["family"] for row, _ in agents]
    assert share([getattr(agent, column) == family for (_, agent), family in zip(agents, expected, strict=True)]) >= 0.9
