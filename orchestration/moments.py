"""Moments that people write."""

from __future__ import annotations

from datetime import UTC, datetime


def parse_moment(text: str) -> datetime:
    """ISO 8601 in UTC; without an offset it is UTC, and a date is its first instant. Raises ValueError for anything else."""
    moment = datetime.fromisoformat(text)
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"no such moment in UTC: {text!r}") from error
