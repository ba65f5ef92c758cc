"""Clients that hang up, pause, or change their mind: what was asked happens whole or not at all, and the log knows."""
import contextlib
import json
import random
import socket
import ssl
import time
import urllib.parse

import pytest
from conftest import Rest, Server


@pytest.fixture
def own(tmp_path):
    server = Server(tmp_path).start()
    yield server
    server.stop()
    log = server.log.read_text()
    assert "panicked" not in log and " ERROR " not in log, log


@contextlib.contextmanager
def connected(server):
    parsed = urllib.parse.urlparse(server.url)
    context = ssl.create_default_context(cafile=server.ca_file)
    with socket.create_connection((parsed.hostname, parsed.port), timeout=20) as plain:
        with context.wrap_socket(plain, server_hostname=parsed.hostname) as tls:
            yield tls


def request(method, path, token, body: bytes) -> bytes:
    head = f"{method} {path}?api-version=7.5 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def settle(rest):
    """Waits until nothing is at work for clients that are gone."""
    for _ in range(1000):
        lines = rest("GET", "/metrics", version=None).text.splitlines()
        left = [line for line in lines if line.startswith('holdfast_requests_abandoned{listener="hsm"}')]
        if all(line.endswith(" 0") for line in left):
            return sum(int(line.split()[-1]) for line in lines if line.startswith('holdfast_requests_abandoned_total{listener="hsm"}'))
        time.sleep(0.01)
    raise AssertionError("abandoned requests do not end")


def events(server, prefix):
    """What the log says of keys whose names begin so."""
    exported = server.holdfast("audit", "export", "--log", server.data_dir / "audit").stdout
    return [event for event in map(json.loads, exported.splitlines()) if "operation" in event and (event.get("key") or "").startswith(prefix)]


def test_who_hangs_up_leaves_nothing_half_done(own):
    rest = Rest(own, own.token())
    cuts = 60
    for number in range(cuts):
        with connected(own) as tls:
            tls.sendall(request("POST", f"/keys/cut{number}/create", rest.token, b'{"kty":"EC-HSM","crv":"P-256"}'))
            time.sleep(random.uniform(0, 0.004))
            with contextlib.suppress(ssl.SSLError):
                tls.unwrap() if number % 3 == 0 else tls.close()
    assert settle(rest) > 0, "no client was fast enough to be gone before its answer"

    def known(rest):
        return {name for name in (f"cut{number}" for number in range(cuts)) if rest("GET", f"/keys/{name}").status_code == 200}
    before = known(rest)
    assert before
    # None of them is stuck.
    for name in before:
        rest.ok("PATCH", f"/keys/{name}", {"tags": {"a": "b"}})
    own.stop()
    created = [event["key"] for event in events(own, "cut") if event["operation"] == "KeyCreate" and event["outcome"] == "allowed"]
    assert sorted(created) == sorted(before), "each change has one event, and each event its change"
    own.start()
    assert known(Rest(own, own.token())) == before, "memory was what the disk says"


def test_a_request_whose_body_breaks_off_is_in_the_log(own):
    rest = Rest(own, own.token())
    with connected(own) as tls:
        tls.sendall(request("POST", "/keys/broken/create", rest.token, b'{"kty":"oct-HSM"}')[:-5])
        time.sleep(0.2)
    settle(rest)
    [event] = events(own, "broken")
    assert (event["operation"], event["outcome"], event["status"], event["reason"]) == ("KeyCreate", "failed", 400, "The request body could not be read")
    assert rest("GET", "/keys/broken").status_code == 404


def test_a_stop_waits_for_work_whose_client_is_gone(own):
    """A key of 3072 bits takes a while; the stop comes in the middle of it."""
    rest = Rest(own, own.token())
    with connected(own) as tls:
        tls.sendall(request("POST", "/keys/slow/create", rest.token, b'{"kty":"RSA-HSM","key_size":3072}'))
        time.sleep(0.05)
    own.stop()
    assert [(event["operation"], event["outcome"]) for event in events(own, "slow")] == [("KeyCreate", "allowed")]
    own.start()
    assert Rest(own, own.token())("GET", "/keys/slow").status_code == 200


ADMINISTRATOR = "a290e904-7015-4bba-90c8-60543313cdb4"


@pytest.mark.parametrize("removed", [True, False])
def test_who_is_removed_while_his_request_waits_is_refused(tmp_path, removed):
    """The head of alice's request is looked at; then she is removed; then her body comes."""
    server = Server(tmp_path, "--client", "alice", "--client", "bob").start()
    root, alice = Rest(server, server.token()), Rest(server, server.token("alice"))
    path = "/providers/Microsoft.Authorization/roleAssignments"

    def administrator(client):
        return {"properties": {"roleDefinitionId": ADMINISTRATOR, "principalId": server.env[f"HOLDFAST_{client}_OBJECT_ID"]}}
    hers, theirs = (f"{digit * 8}-{digit * 4}-4{digit * 3}-8{digit * 3}-{digit * 12}" for digit in "12")
    root.ok("PUT", f"{path}/{hers}", administrator("ALICE"), status=201)
    body = json.dumps(administrator("BOB")).encode()
    with connected(server) as tls:
        head, body = request("PUT", f"{path}/{theirs}", alice.token, body).split(b"\r\n\r\n")
        tls.sendall(head + b"\r\nExpect: 100-continue\r\n\r\n" + body[:10])
        assert tls.recv(100).startswith(b"HTTP/1.1 100 "), "what the head says was looked at, and let by"
        if removed:
            root.ok("DELETE", f"{path}/{hers}")
        tls.sendall(body[10:])
        answer = tls.recv(10_000).decode()
    assert answer.startswith("HTTP/1.1 403 " if removed else "HTTP/1.1 201 "), answer
    assert root("GET", f"{path}/{theirs}").status_code == (404 if removed else 200)
    server.stop()
    exported = server.holdfast("audit", "export", "--log", server.data_dir / "audit").stdout
    ours = [event for event in map(json.loads, exported.splitlines()) if event.get("path", "").endswith(theirs)]
    told = [(event["operation"], event["outcome"], event["status"]) for event in ours if event["operation"] == "RoleAssignmentCreate"]
    assert told == [("RoleAssignmentCreate", "denied", 403) if removed else ("RoleAssignmentCreate", "allowed", 201)]


def test_strangers_do_not_fill_the_log(own):
    """Who shows no token is counted; who is known and may not is told of each time."""
    rest = Rest(own, own.token())
    asked = 400
    with connected(own) as tls:
        for _ in range(asked):
            tls.sendall(b"GET /keys/strange?api-version=7.5 HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while b"(Activity ID" not in answer:
                answer += tls.recv(10_000)
            assert answer.startswith(b"HTTP/1.1 401 ")
    rest("GET", "/keys/strange")
    own.stop()
    denied = [event for event in events(own, "strange") if event["outcome"] == "denied"]
    assert all("caller" not in event and event["status"] == 401 for event in denied)
    assert sum(int(event.get("context", {}).get("count", 1)) for event in denied) == asked
    assert len(denied) < asked / 4
