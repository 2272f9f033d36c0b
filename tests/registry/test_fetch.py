"""The guarded fetcher: it calls what may be called, as it was checked, and nothing behind it."""

import socket
import threading
from contextlib import closing
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import fetch
from registry.errors import Invalid
from tests.receiver import listening


@pytest.fixture
def receiver(settings):
    with listening() as running:
        settings.WEBHOOK_PORTS = frozenset({80, 443, running.port})
        settings.WEBHOOK_NETWORKS = [ip_network("127.0.0.1/32")]
        yield running


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "does not begin with"),
        ("ftp://example.org/x", "does not begin with"),
        ("file:///etc/passwd", "does not begin with"),
        ("gopher://example.org", "does not begin with"),
        ("https:///nowhere", "host of the address"),
        ("https://exa mple.org", "host of the address"),
        ("https://ex\u00e4mple.org", "host of the address"),
        ("https://user:word@example.org", "user name or a password"),
        ("https://example.org:22/", "port of the address"),
        ("https://example.org:99999/", "cannot be read"),
        ("https://[::1/", "cannot be read"),
        # Two parsers read these as two addresses.
        ("http://0177.0.0.1/", "cannot be read"),
        ("http://010.010.010.010/", "cannot be read"),
        ("http://[2606:4700::1111]x/", "cannot be read"),
    ],
)
def test_addresses_that_cannot_be_called_are_refused(url, words):
    with pytest.raises(Invalid, match=words) as refusal:
        fetch.check_url(url)
    assert refusal.value.reason == "bad_url"


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "2130706433",
        "0x7f000001",
        "127.1",
        "[::1]",
        "[::]",
        "[fe80::1]",
        "[fc00::1]",
        "[ff02::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:10.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b:1::7f00:1]",
        "[fec0::1]",
        "[::127.0.0.1]",
        "[::ffff:0:127.0.0.1]",
        "[2002:7f00:1::]",
        "[2001:0:0:0:0:0:80ff:fffe]",
    ],
)
def test_addresses_that_lead_inwards_are_not_called(host):
    with pytest.raises(fetch.Unreachable, match="not at a public address"):
        fetch.post(f"http://{host}/", b"{}", {})


def test_names_that_lead_nowhere_are_said_to():
    with pytest.raises(fetch.Unreachable, match="does not resolve"):
        fetch.post("http://no-such-host.invalid/", b"{}", {})


def test_a_slow_name_server_takes_no_longer_than_a_call_may(monkeypatch):
    answered = threading.Event()

    def look_up(*_args, **_more):
        answered.wait(60)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(fetch, "TIMEOUT_SECONDS", 0.2)
    with pytest.raises(fetch.Unreachable, match="in time"):
        fetch.post("http://example.org/", b"{}", {})
    assert not answered.is_set()
    answered.set()


def test_a_private_network_is_reached_where_the_administrator_allows_it(receiver):
    answer = fetch.post(receiver.url, b'{"a": 1}', {"Content-Type": "application/json"})
    assert answer.status == 204
    ((headers, body),) = receiver.messages
    assert body == b'{"a": 1}'
    assert headers["Host"] == f"127.0.0.1:{receiver.port}"


def test_the_name_is_sent_and_not_the_address_that_was_dialled(receiver):
    fetch.post(receiver.url.replace("127.0.0.1", "localhost"), b"{}", {})
    ((headers, _),) = receiver.messages
    assert headers["Host"] == f"localhost:{receiver.port}"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_an_answer_and_not_followed(receiver, status):
    receiver.status, receiver.headers = status, {"Location": receiver.url}
    assert fetch.post(receiver.url, b"{}", {}).status == status
    assert len(receiver.messages) == 1


def test_a_long_answer_is_not_read_to_its_end(receiver):
    receiver.status, receiver.body = 200, b"x" * (50 * fetch.MAX_ANSWER_BYTES)
    assert fetch.post(receiver.url, b"{}", {}).status == 200


def test_proxies_of_the_environment_are_not_used(receiver, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert fetch.post(receiver.url, b"{}", {}).status == 204


def test_a_server_that_never_ends_is_left(settings, monkeypatch):
    """Each byte comes in time, the answer never does."""
    monkeypatch.setattr(fetch, "TIMEOUT_SECONDS", 0.5)
    over = threading.Event()
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        settings.WEBHOOK_PORTS = frozenset({port})
        settings.WEBHOOK_NETWORKS = [ip_network("127.0.0.0/8")]

        def drip():
            line, _ = server.accept()
            with closing(line):
                while not over.wait(0.05):
                    try:
                        line.sendall(b"H")
                    except OSError:
                        return

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        with pytest.raises(fetch.Unreachable):
            fetch.post(f"http://127.0.0.1:{port}/", b"{}", {})
        over.set()
        thread.join()


def test_nobody_listening_is_said(settings):
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    settings.WEBHOOK_PORTS = frozenset({port})
    settings.WEBHOOK_NETWORKS = [ip_network("127.0.0.0/8")]
    with pytest.raises(fetch.Unreachable, match="could not be made"):
        fetch.post(f"http://127.0.0.1:{port}/", b"{}", {})


@given(st.text(max_size=60) | st.builds("https://{}".format, st.text(max_size=60)))
def test_any_text_is_an_address_or_a_refusal(text):
    try:
        parts = fetch.check_url(text)
    except Invalid:
        return
    assert parts.hostname
