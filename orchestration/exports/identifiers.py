"""What identifies a person, as ad platforms want it before it is hashed. Without Dagster, database and network.

Each function takes a value that somebody typed and returns its one normal form, or "" when it is not such a value: what
cannot match anybody is never hashed.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from hashlib import sha256

import phonenumbers

from orchestration.errors import UserError

# The longest address that mail can be sent to (RFC 5321, characters of its path without the brackets).
_EMAIL_MAX_CHARACTERS = 254
# A local part without quotes and a domain of letters a-z: platforms hash no others, so xn-- is how another is written.
_EMAIL = re.compile(r"([\w.!#$%&'*+/=?^`{|}~-]+)@(?:[a-z0-9-]+\.)+[a-z][a-z0-9-]*[a-z0-9]")
_POSTAL_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 -]{1,9}")
_US_POSTAL_CODE = re.compile(r"([0-9]{5})(-?[0-9]{4})?")
_ADVERTISING_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# What a phone gives away whose owner refused to be tracked.
_NO_ADVERTISING_ID = "00000000-0000-0000-0000-000000000000"


def hashed(value: str) -> str:
    """SHA-256 of the UTF-8 value, 64 lower-case hexadecimal digits; of nothing, nothing."""
    return sha256(value.encode()).hexdigest() if value else ""


def _plain(value: str) -> str:
    """Trimmed, lower case, accents composed: the one way to write a text."""
    return unicodedata.normalize("NFC", value.strip().lower())


def email(value: str) -> str:
    """An e-mail address, with the dots and the suffix that it has."""
    address = _plain(value)
    return address if len(address) <= _EMAIL_MAX_CHARACTERS and _EMAIL.fullmatch(address) else ""


def email_without_suffix(value: str) -> str:
    """An e-mail address without what follows a + before the @."""
    local, _, domain = email(value).partition("@")
    mailbox = local.partition("+")[0]
    return f"{mailbox}@{domain}" if mailbox else ""


def check_region(region: str | None) -> None:
    """Raises UserError when the default of phone numbers is no country."""
    if region is not None and region not in phonenumbers.SUPPORTED_REGIONS:
        raise UserError(
            f"{region!r} is no country whose phone numbers could be the default: give two capital letters of ISO 3166, such as GB."
        )


def phone(value: str, region: str | None) -> str:
    """A phone number as E.164, with its +. region: the country of numbers that are written without one; None: of none."""
    try:
        number = phonenumbers.parse(value, region)
    except phonenumbers.NumberParseException:
        return ""
    if not phonenumbers.is_valid_number(number):
        return ""
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def name(value: str) -> str:
    """A first or last name, with its punctuation; no name has no letter."""
    text = " ".join(_plain(value).split())
    return text if any(map(str.isalpha, text)) else ""


def name_without_punctuation(value: str) -> str:
    return name("".join(character for character in value if not _is_punctuation(character)))


@cache
def _is_punctuation(character: str) -> bool:
    # the second kind are symbols to Unicode and punctuation to everybody else
    return unicodedata.category(character).startswith("P") or character in "$+<=>^`|~"


def country(value: str) -> str:
    """Two capital letters of ISO 3166: those of a country that has phone numbers."""
    code = value.strip().upper()
    return code if code in phonenumbers.SUPPORTED_REGIONS else ""


def postal_code(value: str) -> str:
    """A postal code as it is written. It begins with a letter or a digit, so no spreadsheet takes it for a formula."""
    code = value.strip()
    return code if _POSTAL_CODE.fullmatch(code) else ""


def short_postal_code(value: str, country_code: str) -> str:
    """A postal code in lower case without spaces; of the United States the first five digits."""
    code = postal_code(value).replace(" ", "").lower()
    if country_code != "US":
        return code
    found = _US_POSTAL_CODE.fullmatch(code)
    return found[1] if found else ""


def advertising_id(value: str) -> str:
    """The advertising id of a phone (IDFA or that of Android), in lower case."""
    identifier = value.strip().lower()
    return identifier if _ADVERTISING_ID.fullmatch(identifier) and identifier != _NO_ADVERTISING_ID else ""


def user_number(value: str) -> str:
    """The number by which a platform knows a user: digits."""
    number = value.strip()
    return number if re.fullmatch(r"[0-9]{1,20}", number) else ""
