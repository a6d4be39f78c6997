"""Exports posted to a webhook: a real server on this machine, which is allowed by its name."""

import base64
import hmac
import shutil
import socket
import ssl
import subprocess
import threading
import tracemalloc
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from orchestration.errors import UserError
from orchestration.exports import destinations, webhooks
from orchestration.exports.delivery import Delivery

DELIVERY = Delivery(export_id="7", delivery_id="d-1", media_type="text/csv; charset=utf-8")
CONTENT = b"email\r\n" + b"jane@example.com\r\n" * 5000
KEY = bytes(range(32))
PUBLIC = "203.0.114.7"


class Receiver(ThreadingHTTPServer):
    """Answers with `answers` one after the other, then 200; keeps what it was asked. reads: whether it reads bodies."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.requests, self.reads = [], [], True


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        digest, left = sha256(), int(self.headers["content-length"])
        while left and self.server.reads:
            chunk = self.rfile.read(min(left, 1 << 16))
            digest.update(chunk)
            left -= len(chunk)
        self.server.requests.append((self.path, self.headers, digest.hexdigest()))
        status, headers, text = (self.server.answers or [(200, {}, b"thanks")]).pop(0)
        if not status:
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@contextmanager
def serving(server):
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def receiver():
    with serving(Receiver()) as server:
        yield server


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The environment of a sender, and the pauses that it made, in seconds."""
    made = []
    monkeypatch.setattr(webhooks.time, "sleep", made.append)
    monkeypatch.setenv("AUDIENCE_WEBHOOK_SECRET", "whsec_" + base64.b64encode(KEY).decode())
    monkeypatch.setenv("AUDIENCE_WEBHOOK_ALLOWED_HOSTS", "127.0.0.1, LOCALHOST,rebound.example")
    return made


@pytest.fixture
def export(tmp_path):
    file = tmp_path / "champions.csv"
    file.write_bytes(CONTENT)
    return file


def url_of(server, host="127.0.0.1", scheme="http"):
    return f"{scheme}://{host}:{server.server_port}/hooks/audience?list=7"


def resolve_to(monkeypatch, *answers):
    """Makes names resolve to the addresses of each answer in turn; returns the names that were asked for."""
    asked, real = [], socket.getaddrinfo

    def found(host, port, *arguments, **options):
        if host.replace(".", "").isdigit() or ":" in host:
            return real(host, port, *arguments, **options)
        asked.append(host)
        return [
            (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port))
            for one in answers[min(len(asked), len(answers)) - 1]
        ]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    return asked


def test_a_file_is_posted_with_a_signature_of_standard_webhooks(export, receiver):
    assert destinations.deliver(export, url_of(receiver), DELIVERY) == url_of(receiver).partition("?")[0]
    [(path, headers, digest)] = receiver.requests
    assert path == "/hooks/audience?list=7"
    assert digest == sha256(CONTENT).hexdigest()
    assert headers["content-type"] == "text/csv; charset=utf-8"
    assert headers["host"] == f"127.0.0.1:{receiver.server_port}"
    assert (headers["webhook-id"], headers["audience-export-id"]) == ("d-1", "7")
    signed = b"d-1." + headers["webhook-timestamp"].encode() + b"." + CONTENT
    assert headers["webhook-signature"] == "v1," + base64.b64encode(hmac.digest(KEY, signed, "sha256")).decode()


def test_the_signature_is_that_of_the_published_example(tmp_path, monkeypatch):
    file = tmp_path / "body"
    file.write_bytes(b'{"test": 2432232314}')
    monkeypatch.setattr(webhooks.time, "time", lambda: 1614265330.9)
    monkeypatch.setenv("AUDIENCE_WEBHOOK_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = webhooks._headers(file, webhooks._key(), Delivery("7", "msg_p5jXN8AQM9LWM0D4loKWxJek", "text/csv"))
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("failure", [500, 503, 429, None])
def test_a_receiver_that_fails_is_tried_again_with_the_same_id(export, receiver, pauses, failure):
    receiver.answers = [(failure, {}, b"later")] * 2
    destinations.deliver(export, url_of(receiver), DELIVERY)
    assert [headers["webhook-id"] for _, headers, _ in receiver.requests] == ["d-1"] * 3
    assert {digest for *_, digest in receiver.requests} == {sha256(CONTENT).hexdigest()}
    assert pauses == [2.5, 5.0]


def test_a_receiver_that_keeps_failing_is_given_up(export, receiver, pauses):
    receiver.answers = [(503, {}, b"closed\r\nfor the day")] * 9
    with pytest.raises(
        UserError, match=r"/hooks/audience did not take the export \(it answered 503 closed  for the day\)"
    ):
        destinations.deliver(export, url_of(receiver), DELIVERY)
    assert len(receiver.requests) == 5
    assert pauses == [2.5, 5.0, 10.0, 20.0]


def test_a_receiver_that_is_not_there_is_given_up(export, pauses):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/x?token=hunter2"
        with pytest.raises(UserError, match=r"did not take the export \(NewConnectionError: .*refused") as refused:
            destinations.deliver(export, url, DELIVERY)
    assert "hunter2" not in str(refused.value)
    assert len(pauses) == 4


@pytest.mark.parametrize("status", [301, 307, 400, 401, 404, 410])
def test_another_answer_is_final_and_no_redirect_is_followed(export, receiver, pauses, status):
    receiver.answers = [(status, {"location": url_of(receiver)}, b"no " * 500)]
    with pytest.raises(UserError, match=rf"\(it answered {status} no no") as refused:
        destinations.deliver(export, url_of(receiver), DELIVERY)
    assert len(receiver.requests) == 1 and not pauses
    assert len(str(refused.value)) < 400


def test_a_receiver_may_answer_before_it_has_read_everything(tmp_path, receiver):
    file = tmp_path / "long.csv"
    file.write_bytes(bytes(50_000_000))
    receiver.reads, receiver.answers = False, [(413, {}, b"too long")] * 5
    with pytest.raises(UserError, match=r"answered 413|ProtocolError"):
        destinations.deliver(file, url_of(receiver), DELIVERY)


def test_a_long_file_is_not_in_memory(tmp_path, receiver):
    file = tmp_path / "long.csv"
    with file.open("wb") as content:
        content.truncate(50_000_000)
    tracemalloc.start()
    try:
        destinations.deliver(file, url_of(receiver), DELIVERY)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(receiver.requests) == 1
    assert peak < 5_000_000


def test_a_receiver_that_says_nothing_is_given_up_in_time(export, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        variables = {**webhooks.project_variables(), "export_webhook_answer_seconds": 0.1, "export_webhook_attempts": 2}
        monkeypatch.setattr(webhooks, "project_variables", lambda: variables)
        with pytest.raises(UserError, match="ReadTimeoutError"):
            destinations.deliver(export, f"http://127.0.0.1:{silent.getsockname()[1]}/", DELIVERY)


# Whom it is sent to


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.100.100.200", "168.63.129.16",
        "192.0.0.192", "0.0.0.0", "224.0.1.1", "240.0.0.1", "255.255.255.255", "198.18.0.1", "203.0.113.5", "::1", "::",
        "fe80::1", "fd00:ec2::254", "ff0e::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::7f00:1",
        "64:ff9b:1::a00:1", "2002:7f00:1::", "2001:0:4136:e378::", "2001:db8::1", "::7f00:1", "fec0::1",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public_is_refused(export, monkeypatch, pauses, address):
    resolve_to(monkeypatch, [PUBLIC, address])
    monkeypatch.setattr(webhooks.urllib3, "HTTPSConnectionPool", None)
    with pytest.raises(UserError, match=rf"is {address}, which is no public address.*AUDIENCE_WEBHOOK_ALLOWED_HOSTS"):
        destinations.deliver(export, "https://hook.example/x", DELIVERY)
    assert not pauses


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "[::1]", "127.0.0.2", "0"])
def test_a_number_is_no_way_around(export, monkeypatch, host):
    monkeypatch.setattr(webhooks.urllib3, "HTTPSConnectionPool", None)
    with pytest.raises(UserError, match="which is no public address"):
        destinations.deliver(export, f"https://{host}/x", DELIVERY)


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:4700::1111"])
def test_a_public_address_is_what_is_connected_to(export, monkeypatch, address):
    connected = []

    def connect(place, *_, **__):
        connected.append(place)
        raise OSError("not in a test")

    asked = resolve_to(monkeypatch, [address])
    monkeypatch.setattr(webhooks.urllib3.util.connection, "create_connection", connect)
    with pytest.raises(UserError, match="not in a test"):
        destinations.deliver(export, "https://hook.example/x", DELIVERY)
    assert connected == [(address, 443)] * 5
    assert asked == ["hook.example"] * 5


def test_the_next_attempt_takes_the_next_address(export, receiver, monkeypatch, pauses):
    resolve_to(monkeypatch, ["127.0.0.2", "127.0.0.1"])  # nobody listens on the first
    destinations.deliver(export, url_of(receiver, "rebound.example"), DELIVERY)
    assert len(receiver.requests) == 1 and len(pauses) == 1


def test_the_address_that_was_checked_is_connected_to_whatever_the_name_says_next(export, receiver, monkeypatch):
    asked = resolve_to(monkeypatch, ["127.0.0.1"], ["198.51.100.1"])
    destinations.deliver(export, url_of(receiver, "rebound.example"), DELIVERY)
    assert asked == ["rebound.example"]
    [(_, headers, _)] = receiver.requests
    assert headers["host"] == f"rebound.example:{receiver.server_port}"


def test_what_is_not_encrypted_stays_on_this_machine(export, monkeypatch):
    resolve_to(monkeypatch, [PUBLIC])
    with pytest.raises(UserError, match=rf"is not encrypted, and not on this machine \({PUBLIC}\)"):
        destinations.deliver(export, "http://rebound.example/x", DELIVERY)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://hook.example/x", "is not encrypted: use https://"),
        ("https://user:hunter2@hook.example/x", "has a user or password in it"),
        ("https://user@hook.example/x", "has a user or password in it"),
        ("https:///x", "is no URL of a webhook"),
        ("https://hook.example/a b", "is no URL of a webhook"),
        ("https://hook.exam\tple/a", "is no URL of a webhook"),
        ("https://hook.example\\@other.example/", "is no URL of a webhook"),
        ("https://b\u00fccher.example/", "is no URL of a webhook"),
        ("https://[::1/", "is no URL"),
        ("https://hook.example:99999/", "is no URL: correct its host or port"),
        ("https://user:hunter2/x@hook.example/", "https://... is no URL"),
    ],
)
def test_a_url_that_is_none_is_refused_before_anything_is_asked(export, monkeypatch, url, sentence):
    asked = resolve_to(monkeypatch, [PUBLIC])
    for refused in (destinations.check, lambda url: destinations.deliver(export, url, DELIVERY)):
        with pytest.raises(UserError, match=sentence) as found:
            refused(url)
        assert "hunter2" not in str(found.value)
    assert not asked


def test_a_name_that_cannot_be_is_refused(export):
    with pytest.raises(UserError, match="names no host that could exist"):
        destinations.deliver(export, f"https://{'a' * 70}.example/", DELIVERY)


def test_a_name_that_nobody_has_is_asked_for_again(export, monkeypatch, pauses):
    def unknown(*_, **__):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UserError, match="Temporary failure in name resolution"):
        destinations.deliver(export, "https://hook.example/", DELIVERY)
    assert len(pauses) == 4


@pytest.mark.parametrize(
    "secret", ["", "hunter2", "whsec_" + base64.b64encode(bytes(23)).decode(), "ä" * 40], ids=str.__len__
)
def test_without_a_secret_nothing_is_sent(export, receiver, monkeypatch, secret):
    monkeypatch.delenv("AUDIENCE_WEBHOOK_SECRET")
    if secret:
        monkeypatch.setenv("AUDIENCE_WEBHOOK_SECRET", secret)
    for refused in (destinations.check, lambda url: destinations.deliver(export, url, DELIVERY)):
        with pytest.raises(UserError, match=r"AUDIENCE_WEBHOOK_SECRET is not set to 24 to 64 bytes") as found:
            refused(url_of(receiver))
        assert "hunter2" not in str(found.value)
    assert not receiver.requests


# Encryption


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of localhost, signed by itself, and its key."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("certificate")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "certificate.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder / "certificate.pem", folder / "key.pem"


@pytest.fixture
def encrypted(certificate):
    server = Receiver()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None
    with serving(server):
        yield server


def test_an_encrypted_receiver_proves_its_name(export, encrypted, certificate, monkeypatch, pauses):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    resolve_to(monkeypatch, ["127.0.0.1"])
    destinations.deliver(export, url_of(encrypted, "localhost", "https"), DELIVERY)
    [(_, headers, digest)] = encrypted.requests
    assert digest == sha256(CONTENT).hexdigest()
    assert headers["host"] == f"localhost:{encrypted.server_port}"
    with pytest.raises(UserError, match=r"did not prove who it is .*Hostname mismatch.*nothing was sent"):
        destinations.deliver(export, url_of(encrypted, "rebound.example", "https"), DELIVERY)
    assert len(encrypted.requests) == 1 and not pauses


def test_a_certificate_of_nobody_known_is_refused(export, encrypted, monkeypatch, pauses):
    resolve_to(monkeypatch, ["127.0.0.1"])
    with pytest.raises(UserError, match=r"did not prove who it is .*self-signed certificate"):
        destinations.deliver(export, url_of(encrypted, "localhost", "https"), DELIVERY)
    assert not encrypted.requests and not pauses
