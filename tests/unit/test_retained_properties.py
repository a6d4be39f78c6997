"""What is kept of an old event is all that models read of its properties: told from the SQL, no database."""

from __future__ import annotations

import re

from orchestration.settings import project_dir

READ = (r"properties\s*(?:->>?|\?)\s*'(\w+)'", r"number_or_null\('(\w+)'\)", r"campaign_parameter\('(\w+)'\)")
CAMPAIGN = {"utm_source", "utm_medium", "utm_campaign"}


def listed(macro: str) -> set[str]:
    text = "".join(path.read_text() for path in (project_dir() / "macros").rglob("*.sql"))
    found = re.search(rf"macro {macro}\(\) -%\}}\s*array\[(.*?)\]", text, re.S)
    return set(re.findall(r"'(\w+)'", found[1]))


def read() -> set[str]:
    """Properties that SQL names. Not those in the names of macros' arguments, and not what a rejected row says."""
    files = [path for folder in ("models", "macros", "functions") for path in (project_dir() / folder).rglob("*.sql")]
    return {name for file in files for pattern in READ for name in re.findall(pattern, file.read_text())}


def test_every_property_that_is_read_is_kept_or_personal():
    assert {"order_id", "effectiveType", "email", "utm_source"} <= read()
    assert read() == listed("read_properties") | listed("personal_properties") | CAMPAIGN
