import pytest

from orchestration.user_agents import MAX_LENGTH, UNKNOWN, parse_user_agent, parser_version

WINDOWS_CHROME = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"
)
IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/17.5 Mobile/15E148 Safari/604.1"
)
ANDROID = "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 {}Safari/537.36"


def test_names_are_the_parsers_own():
    assert parse_user_agent(WINDOWS_CHROME) == ("desktop", "Windows", "Chrome", False, None)
    assert parse_user_agent(IPHONE) == ("mobile", "iOS", "Mobile Safari", False, None)


@pytest.mark.parametrize("text", [None, "", "   ", "\n"])
def test_no_text_is_unknown_and_not_a_robot(text):
    assert parse_user_agent(text) == (UNKNOWN, UNKNOWN, UNKNOWN, False, None)


@pytest.mark.parametrize(
    ("text", "device_type"),
    [
        (ANDROID.format("Mobile "), "mobile"),
        (ANDROID.format(""), "tablet"),
        # "Mobile" counts wherever it stands, also before a second "Android".
        (ANDROID.format("Mobile ") + " (Ecosia android@150.0.0.0)", "mobile"),
        (ANDROID.replace("; K", "; SM-T500").format("Mobile "), "tablet"),
        ("Mozilla/5.0 (iPad; CPU OS 17_5 like Mac OS X) AppleWebKit/605.1.15 Version/17.5 Mobile/15E148", "tablet"),
        ("Mozilla/5.0 (Windows NT 6.1; Trident/7.0; Tablet PC 2.0; rv:11.0) like Gecko", "desktop"),
        ("Mozilla/5.0 (Linux; Android 4.0.3; Woxter Tablet PC 76CXi) AppleWebKit/535.19 Chrome/18.0", "tablet"),
        ("Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) AppleWebKit/537.36 Chrome/126.0.0.0 Safari/537.36", "desktop"),
        ("Mozilla/5.0 (Mobile; Windows Phone 8.1; Android 4.0; Lumia 520) like iPhone OS 7_0_3", "mobile"),
        (ANDROID.replace("; K", "; AFTT Build/LVY48F").format("Mobile "), "tv"),
        (ANDROID.replace("; K", "; BRAVIA 4K").format(""), "tv"),
        ("Mozilla/5.0 (Windows NT 10.0; Win64; x64; Xbox; Xbox One) AppleWebKit/537.36 Edge/44.18363", "console"),
        ("Mozilla/5.0 (X11; Linux x86_64; Quest 2) AppleWebKit/537.36 OculusBrowser/26.2 VR Safari/537.36", "wearable"),
        # A phone, a tablet and a television all send this one.
        ("Dalvik/2.1.0 (Linux; U; Android 13; K Build/T1)", UNKNOWN),
        ("Dalvik/2.1.0 (Linux; U; Android 9; SM-G960F Build/PPR1)", "mobile"),
        ("Tickets/4.2 CFNetwork/1496.0.7 Darwin/23.5.0", UNKNOWN),
        ("Tickets look after you", UNKNOWN),
    ],
)
def test_device_type(text, device_type):
    assert parse_user_agent(text).device_type == device_type


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", "crawler list: Googlebot/"),
        ("curl/8.7.1", "crawler list: curl"),
        (WINDOWS_CHROME.replace("Chrome", "HeadlessChrome"), "crawler list: HeadlessChrome"),
        ("EurekaSpider/1.0", "ua-parser: Spider"),
        ("Huaweisymantecspider (compatible; MSIE 8.0)", "says so: spider"),
        ("Java-EurekaClient/v1.6.2", "says so: program library"),
    ],
)
def test_robots_and_why(text, reason):
    agent = parse_user_agent(text)
    assert (agent.is_bot, agent.bot_reason) == (True, reason)


@pytest.mark.parametrize("model", ["CUBOT X6", "Cubot One", "Robotech"])
def test_a_phone_with_bot_in_its_name_is_a_phone(model):
    agent = parse_user_agent(ANDROID.replace("; K", f"; {model} Build/JDQ39").format("Mobile "))
    assert agent == ("mobile", "Android", "Chrome Mobile", False, None)


def test_a_robot_keeps_the_device_it_claims():
    text = IPHONE + " (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
    assert parse_user_agent(text)[:2] == ("mobile", "iOS")


def test_an_endless_text_is_cut():
    assert parse_user_agent("x" * MAX_LENGTH + "Googlebot/2.1").is_bot is False


def test_version_names_every_library_that_answers():
    version = parser_version()
    for name in ("rules=", "ua-parser=", "ua-parser-builtins=", "ua-parser-rs=", "crawler-user-agents="):
        assert name in version
