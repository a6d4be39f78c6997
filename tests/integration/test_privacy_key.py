"""Keyed hashes of identifiers, against Python's HMAC."""

import hashlib
import hmac

import psycopg
import pytest

INNER_PAD = 0x36


@pytest.mark.parametrize(
    ("kind", "value", "hashed"),
    [
        ("email", " Ana@Example.ORG ", "ana@example.org"),
        ("phone", "+49 (170) 12-34", "491701234"),
        ("phone", "0049 1701234", "491701234"),
        ("id", " User-7 ", " User-7 "),
        ("email", "jürgen@bücher.example", "jürgen@bücher.example"),
    ],
)
def test_the_keyed_hash_is_an_hmac_of_the_identifier_of_an_org(
    database: str, kind: str, value: str, hashed: str
) -> None:
    with psycopg.connect() as connection:
        inner_pad, found = connection.execute(
            "select inner_pad, analytics.keyed_hash(inner_pad, outer_pad, 'nörd', %s, %s) from analytics.privacy_key",
            [kind, value],
        ).fetchone()
    key = bytes(byte ^ INNER_PAD for byte in inner_pad)
    assert len(set(key)) > 10
    assert found == hmac.new(key, f"{kind}:5:nörd:{hashed}".encode(), hashlib.sha256).hexdigest()


def test_what_is_blank_has_no_keyed_hash(database: str) -> None:
    with psycopg.connect() as connection:
        found = connection.execute(
            "select analytics.keyed_hash(inner_pad, outer_pad, 'o', kind, value) from analytics.privacy_key,"
            " (values ('email', ' '), ('phone', '+-'), ('id', ''), ('id', null)) as given (kind, value)"
        ).fetchall()
    assert found == [(None,)] * 4
