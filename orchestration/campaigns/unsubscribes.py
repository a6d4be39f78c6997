"""Those who used the link of a campaign: reads their tokens, which no address is in, and takes them off every later one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import BinaryIO

import psycopg

from orchestration.campaigns import log
from orchestration.errors import UserError

# As unsubscribe_token makes it: the org, the hash of the address, and what proves both.
TOKEN = re.compile(rb"(?<![0-9a-z.])([0-9a-f]{2,}\.[0-9a-f]{64}\.[0-9a-f]{32})(?![0-9a-z.])")
# A line of a web server's log that tells the method: only a POST is the click. Others are looks, often those of scanners.
LOOK = re.compile(rb'"(?!POST )[A-Z]+ ')
# Longer lines are none of a token; a line of junk shall not fill the memory.
LINE_BYTES = 16_384
# Lines whose tokens are looked up together.
LINES = 10_000


@dataclass(frozen=True)
class UnsubscribeReport:
    """What became of the lines of a file. ignored: empty, without a token, or of a page that was only looked at.
    invalid_lines: the numbers of the first lines whose token was not made here."""

    lines_count: int
    unsubscribed_count: int
    already_count: int
    ignored_count: int
    invalid_count: int
    invalid_lines: list[int]


def unsubscribe(connection: psycopg.Connection, path: Path) -> UnsubscribeReport:
    """Takes off whoever is in a file of tokens, one a line, alone or in a line of a web server's log. The same file again
    changes nothing. Raises UserError for a file that cannot be read."""
    counts = Counter({"unsubscribed": 0, "already": 0, "ignored": 0})
    invalid: list[int] = []
    lines_count = 0
    try:
        with path.open("rb") as file:
            while lines := list(islice(_lines(file), LINES)):
                tokens = [found and found[1].decode() for found in map(_token, lines)]
                became = _take_off(connection, {token for token in tokens if token})
                for number, token in enumerate(tokens, lines_count + 1):
                    what = became[token] if token else "ignored"
                    if what == "invalid":
                        invalid.append(number)
                    counts[what] += 1
                    if what == "unsubscribed":
                        became[token] = "already"
                lines_count += len(lines)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): correct the name.") from error
    return UnsubscribeReport(
        lines_count, counts["unsubscribed"], counts["already"], counts["ignored"], len(invalid), invalid[:20]
    )


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines, each cut at the longest that one with a token has."""
    while line := file.readline(LINE_BYTES):
        yield line
        while not line.endswith(b"\n") and line:
            line = file.readline(LINE_BYTES)


def _token(line: bytes) -> re.Match[bytes] | None:
    return None if LOOK.search(line) else TOKEN.search(line)


def _take_off(connection: psycopg.Connection, tokens: set[str]) -> dict[str, str]:
    """What became of each token. Org by org, because one call looks through the contacts of one."""
    became: dict[str, str] = {}
    for org_hex, theirs in groupby(sorted(tokens), key=lambda token: token.partition(".")[0]):
        given = list(theirs)
        try:
            org_id = bytes.fromhex(org_hex).decode()
        except ValueError:
            became |= dict.fromkeys(given, "invalid")
            continue
        became |= dict(log.call_all(connection, "unsubscribe", org_id.replace("\0", ""), given))
    return became
