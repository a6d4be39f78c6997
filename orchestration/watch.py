"""What changed between two looks of the doctor, told once each: freshness and whatever else keeps a night from going well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestration.doctor import Finding

# Of these a warning is told too: a day without events, a night without a build.
FRESHNESS = {"events", "last build"}


def news(before: Mapping[str, str], findings: Sequence[Finding]) -> tuple[dict[str, str], str]:
    """The state of each check that is wrong, and a text of what became wrong, or right again, since the states `before`.

    A check that was not made, because nobody answered, stays as it was. The text is empty when nothing changed.
    """
    after, lines = dict(before), []
    for one in findings:
        is_wrong = one.state == "failed" or (one.state == "warning" and one.name in FRESHNESS)
        if is_wrong and before.get(one.name) != one.state:
            lines.append(f"{one.name}, {one.state}: {one.found} {one.remedy}")
        elif not is_wrong and one.name in before:
            lines.append(f"{one.name} is well again.")
        if is_wrong:
            after[one.name] = one.state
        else:
            after.pop(one.name, None)
    return after, "\n".join(lines)
