"""What a user agent says: kind of device, operating system, browser, robot or not.

Pure text in, facts out. The caller parses each distinct text once and keeps the answers in
`analytics.user_agents`; `parser_version` tells it when kept answers are out of date.

`unknown` means that the text does not say. It is never filled by the most likely answer: a share of
phones that is partly a guess cannot be told from a change in traffic.
"""

import re
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from typing import NamedTuple

import ua_parser
from crawleruseragents import CRAWLER_USER_AGENTS_DATA
from ua_parser.loaders import load_lazy_builtins
from ua_parser.matchers import UserAgentMatcher

# The Rust engine by name, not ua_parser.parse: that one falls back to Python when the extra is
# missing, gives the same answers, and takes thirty times as long without a word.
from ua_parser.regex import Resolver

UNKNOWN = "unknown"

# Raise it with every change to the rules below: kept answers are parsed again.
RULES_VERSION = 1

LIBRARIES = ("ua-parser", "ua-parser-builtins", "ua-parser-rs", "crawler-user-agents")

# No browser sends more; a sender who does is not owed the time that its text takes.
MAX_LENGTH = 2_000


class UserAgent(NamedTuple):
    device_type: str
    os: str
    browser: str
    is_bot: bool
    bot_reason: str | None


NOTHING_SAID = UserAgent(UNKNOWN, UNKNOWN, UNKNOWN, False, None)


@cache
def parser_version() -> str:
    """The versions an answer depends on, as one text: kept answers with another one are stale."""
    return " ".join([f"rules={RULES_VERSION}", *(f"{name}={version(name)}" for name in LIBRARIES)])


def parse_user_agent(text: str | None) -> UserAgent:
    """The facts in one user agent. Empty or null: nothing is known, and nobody is called a robot."""
    text = (text or "").strip()[:MAX_LENGTH]
    if not text:
        return NOTHING_SAID
    parsed = _families()(text, ua_parser.Domain.ALL)
    os = _family(parsed.os)
    browser = _family(parsed.user_agent)
    bot_reason = _bot_reason(text, _family(parsed.device))
    return UserAgent(_device_type(text, os), os, browser, bot_reason is not None, bot_reason)


def _family(part: ua_parser.UserAgent | ua_parser.OS | ua_parser.Device | None) -> str:
    if part is None or part.family == "Other":
        return UNKNOWN
    return part.family


@cache
def _families() -> Resolver:
    return Resolver(load_lazy_builtins())


def _first_match(matchers: Resolver, text: str) -> str | None:
    """The name of the first matcher that finds itself in the text."""
    found = matchers(text, ua_parser.Domain.USER_AGENT).user_agent
    return None if found is None else found.family


def _matchers(rules: Iterable[tuple[str, str]]) -> Resolver:
    """(name, pattern) rules behind ua-parser's engine: all of them in one pass over the text.

    It knows neither look-ahead nor look-behind; the order of the rules does that work.
    """
    return Resolver(([UserAgentMatcher(pattern, name) for name, pattern in rules], [], []))


@cache
def _crawlers() -> Resolver:
    """The crawler list: 190,000 texts a second this way, 5,500 by the list's own function."""
    return _matchers((_crawler_name(crawler["pattern"]), crawler["pattern"]) for crawler in CRAWLER_USER_AGENTS_DATA)


def _crawler_name(pattern: str) -> str:
    """The pattern as people write the name. A `$` would be a group reference to the engine."""
    return re.sub(r"\\(?=\W)", "", pattern).replace("$", "").strip("^ ")


# Robots that name their trade and are on no list yet. What comes before "bot" leaves the phones of
# the brand Cubot alone, what comes after it every longer word.
_TRADES = (
    ("bot", r"(?i)(?:^|[^u]|(?:^|[^c])u)bot(?:[/;,:)_+-]|\s*$|\s+\()"),
    ("crawler", r"(?i)crawler"),
    ("spider", r"(?i)spider(?:[^a-z]|$)"),
    ("scraper", r"(?i)scraper"),
    ("headless", r"(?i)headless"),
    ("program library", r"(?i)^(?:python|java|perl|ruby|php|go-http-client|node-fetch|libwww|lwp|apache-httpclient)\b"),
)


@cache
def _trades() -> Resolver:
    return _matchers(_TRADES)


def _bot_reason(text: str, device: str) -> str | None:
    if crawler := _first_match(_crawlers(), text):
        return f"crawler list: {crawler}"
    if device == "Spider":
        return "ua-parser: Spider"
    if trade := _first_match(_trades(), text):
        return f"says so: {trade}"
    return None


# First match wins. Televisions, consoles and worn devices come first because they run the systems
# of phones and computers and say so: without a kind of their own they would be counted as those.
# Model names are matched as written (AFTT is a Fire TV, "after" is not).
_KINDS = (
    ("tv", r"(?i)smart[-_]?tv|hbbtv|apple ?tv|tvos|google ?tv|android ?tv|\broku\b|bravia|netcast|web0s|webos\.tv"),
    ("tv", r"(?i)crkey|viera|netrange|opera tv|tizen[^)]*\btv\b|philipstv|inettvbrowser|\bnettv\b"),
    ("tv", r"\bAFT[A-Z]{1,3}\d?\b"),
    ("console", r"(?i)playstation|\bxbox\b|nintendo|\bpsp\b"),
    # Watches and headsets: neither held in a hand nor standing on a desk.
    ("wearable", r"(?i)watchos|apple watch|\bwear ?os\b|oculusbrowser|\bquest \d|\bpico (?:neo|\d)|visionos"),
    ("mobile", r"(?i)iphone|ipod|windows phone|windows ce|windows mobile|iemobile|xblwp7|zunewp7"),
    ("desktop", r"(?i)\btablet pc \d\.\d"),
    ("tablet", r"(?i)ipad|playbook|kindle fire|\btablet\b|nexus (?:7|9|10)\b|pixel c\b|mediapad|matepad|android 3\."),
    ("tablet", r"(?i)lenovo (?:tb|tab)|\bxoom\b|touchpad"),
    ("tablet", r"\bKF[A-Z]{2,6}\b|\bSM-[TXP]\d{3}|\bGT-P\d{4}"),
    ("mobile", r"(?i)\bmobile\b|opera mini|opera mobi|\bmobi\b|fennec|\bphone;|kaios|midp|up\.browser|j2me|bada/"),
    ("mobile", r"(?i)blackberry|\bbb10\b|symbian|series ?[46]0|\bs60|nokia|meego|maemo"),
    ("mobile", r"\bSM-[AGNSFMJE]\d{3}|\bPixel \d"),
    # A browser on an Android phone says Mobile, on an Android tablet it does not: the platform's own
    # rule. Other programs on Android follow none and stay unknown.
    ("tablet", r"(?i)^mozilla/.*\bandroid\b"),
    ("desktop", r"(?i)windows nt|windows (?:9[58]|xp)|win(?:9[58]|nt)|macintosh|mac_powerpc|\bx11\b|\bcros\b"),
)

# Systems that only computers run, for programs that name the system in a way of their own.
_COMPUTER_SYSTEMS = frozenset(
    {"Chrome OS", "Debian", "Fedora", "FreeBSD", "Linux Mint", "Mac OS", "Mac OS X", "NetBSD", "OpenBSD", "Red Hat"}
    | {"SUSE", "Solaris", "Ubuntu", "Windows"}
)


@cache
def _kinds() -> Resolver:
    return _matchers(_KINDS)


def _device_type(text: str, os: str) -> str:
    kind = _first_match(_kinds(), text)
    if kind is not None:
        return kind
    return "desktop" if os in _COMPUTER_SYSTEMS else UNKNOWN
