#!/usr/bin/env python3
"""kill -9 in a loop, under load: nothing acknowledged may be lost, and the audit chain must verify each time.

Eight writers create, rotate, delete, recover and purge keys of their own and wrap under them. Each notes what it
intends before a request and what was acknowledged after it. After each kill and restart everything is read back:

- acknowledged: as it was left, the same versions, and what was wrapped unwraps to the same;
- intended and not acknowledged: either way, but stable from then on;
- purged and acknowledged: gone;
- every acknowledged request is exactly one `allowed` event of the audit log, found by the id the client gave it; with
  --in-flight, what was in flight has one if it happened, and none if it did not.

    python3 tests/crash/crash_loop.py --kills 50
"""
import collections
import functools
import http.client
import json
import os
import pathlib
import random
import ssl
import sys
import tempfile
import time
import urllib.parse

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from kills import arguments, in_flight, kill_under_load  # noqa: E402
from process import Server, b64, unb64  # noqa: E402

WRITERS = 8
DEK = b"k" * 32


class Connection:
    def __init__(self, server, token):
        parsed = urllib.parse.urlparse(server.url)
        context = ssl.create_default_context(cafile=server.ca_file)
        self.http = http.client.HTTPSConnection(parsed.hostname, parsed.port, context=context, timeout=10)
        self.token = token

    def __call__(self, method, path, body=None, request_id=""):
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json", "x-ms-client-request-id": request_id}
        self.http.request(method, f"{path}?api-version=7.5", json.dumps(body) if body is not None else "", headers)
        answer = self.http.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text else None


class Key:
    """What a writer knows of one key. `state` and `versions` are certain unless `doubt` names a request in flight."""

    def __init__(self, name):
        self.name, self.state, self.versions, self.wrapped, self.doubt, self.asked = name, "absent", [], None, None, ""


class Writer:
    def __init__(self, number, seed):
        self.number, self.random = number, random.Random(seed)
        self.keys, self.acknowledged, self.made = {}, [], 0

    def intend(self):
        live = [key for key in self.keys.values() if key.doubt is None]
        choice = self.random.random()
        pick = lambda state: self.random.choice([key for key in live if key.state == state] or [None])
        if choice < 0.45 and (key := pick("active")):
            return key, self.random.choice(["rotate", "rotate", "delete", "wrap"])
        if choice < 0.6 and (key := pick("deleted")):
            return key, self.random.choice(["recover", "purge"])
        self.made += 1
        key = Key(f"w{self.number}-{self.made}")
        self.keys[key.name] = key
        return key, "create"

    def step(self, connection):
        key, act = self.intend()
        request_id = f"{self.number}-{time.monotonic_ns()}"
        key.doubt, key.asked = act, request_id
        requests = {
            "create": ("POST", f"/keys/{key.name}/create", {"kty": "oct-HSM"}), "rotate": ("POST", f"/keys/{key.name}/rotate", {}),
            "delete": ("DELETE", f"/keys/{key.name}", None), "recover": ("POST", f"/deletedkeys/{key.name}/recover", {}),
            "purge": ("DELETE", f"/deletedkeys/{key.name}", None), "wrap": ("POST", f"/keys/{key.name}/wrapkey", {"alg": "A256KW", "value": b64(DEK)}),
        }
        status, answer = connection(*requests[act], request_id)
        assert status in (200, 204), (act, key.name, status, answer)
        self.acknowledged.append(request_id)
        self.apply(key, act, answer)

    def apply(self, key, act, answer):
        if act in ("create", "rotate"):
            key.state, version = "active", answer["key"]["kid"].rsplit("/", 1)[1]
            key.versions.append(version)
        elif act == "wrap":
            key.wrapped = (answer["kid"].rsplit("/", 1)[1], answer["value"])
        else:
            key.state = {"delete": "deleted", "recover": "active", "purge": "absent"}[act]
            if act == "purge":
                key.versions, key.wrapped = [], None
        key.doubt = None

    def run(self, server, token):
        try:
            connection = Connection(server, token)
            while True:
                self.step(connection)
        except (OSError, http.client.HTTPException):
            pass  # killed


def observed(connection, key):
    """State and versions as the server tells them."""
    status, answer = connection("GET", f"/keys/{key.name}/versions")
    assert status == 200, (status, answer)
    if answer["value"]:
        return "active", {item["kid"].rsplit("/", 1)[1] for item in answer["value"]}
    status, answer = connection("GET", f"/deletedkeys/{key.name}")
    return ("deleted", None) if status == 200 else ("absent", set())


AFTER = {"create": "active", "rotate": "active", "wrap": "active", "delete": "deleted", "recover": "active", "purge": "absent"}


def happened(key, state, versions):
    """Whether what was in flight was done, if one can see it."""
    if key.doubt == "rotate":
        return None if versions is None or len(key.versions) >= 25 else len(versions) > len(key.versions)
    return None if key.doubt == "wrap" else state == AFTER[key.doubt]


def check_key(connection, key, told):
    state, versions = observed(connection, key)
    known = set(key.versions)
    if in_flight() and key.doubt is not None and (done := happened(key, state, versions)) is not None:
        events = told[key.asked]
        assert events == done, f"{key.name}: {key.doubt} from {key.state} {'happened' if done else 'did not happen'}, and has {events} events"
    if key.doubt is None:
        assert state == key.state, f"{key.name}: {key.state} was acknowledged, {state} was found"
        # A page holds 25 versions.
        assert versions is None or len(known) > 25 or versions == known, f"{key.name}: versions {known} were acknowledged, {versions} were found"
    else:
        assert state in (key.state, AFTER[key.doubt]), f"{key.name}: {key.doubt} from {key.state} left {state}"
        assert versions is None or state == "absent" or len(known) > 25 or known <= versions, f"{key.name}: acknowledged versions are missing"
        if state == "absent":
            key.versions, key.wrapped = [], None
        elif versions is not None and len(known) <= 25:
            key.versions += sorted(versions - known)
        key.state, key.doubt = state, None
    if key.state == "active" and key.wrapped:
        version, wrapped = key.wrapped
        status, answer = connection("POST", f"/keys/{key.name}/{version}/unwrapkey", {"alg": "A256KW", "value": wrapped})
        assert status == 200 and unb64(answer["value"]) == DEK, f"{key.name}: what was wrapped does not unwrap: {status} {answer}"


def check_audit(server, writers, seen):
    """How often the log says that a request was done, by its id. A change that is told twice by its revision is told once."""
    result = server.holdfast("audit", "verify", "--log", server.data_dir / "audit", check=False)
    assert result.returncode == 0, result.stderr
    lines = server.holdfast("audit", "export", "--log", server.data_dir / "audit", "--from", str(seen["line"] + 1)).stdout.splitlines()
    events = [json.loads(line) for line in lines]
    told = collections.defaultdict(set)
    for event in events:
        if event.get("outcome") == "allowed":
            told[event.get("client_request_id")].add(event.get("revision") or f"line {event['seq']}")
    acknowledged = {request_id for writer in writers for request_id in writer.acknowledged}
    wrong = {request_id: len(told[request_id]) for request_id in acknowledged if len(told[request_id]) != 1}
    assert not wrong, f"acknowledged requests do not have one event each: {sorted(wrong.items())[:5]}"
    seen["line"], seen["total"] = events[-1]["seq"] if events else seen["line"], seen["total"] + len(acknowledged)
    for writer in writers:
        writer.acknowledged.clear()
    return collections.Counter({request_id: len(events) for request_id, events in told.items()})


def main():
    kills, seed = arguments(__doc__)
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        server = Server(pathlib.Path(directory))
        writers = [Writer(number, seed + number) for number in range(WRITERS)]
        seen, slowest = {"line": 0, "total": 0}, 0.0
        for kill in range(kills + 1):
            server.env_file.unlink(missing_ok=True)
            started = time.monotonic()
            server.start()
            slowest = max(slowest, time.monotonic() - started)
            token = server.token()
            connection = Connection(server, token)
            told = check_audit(server, writers, seen)
            for writer in writers:
                for key in writer.keys.values():
                    check_key(connection, key, told)
                # Bounded, so that the check does not grow with the loop: settled keys have been checked.
                settled = [key.name for key in writer.keys.values() if len(writer.keys) > 60]
                for name in settled[:-60]:
                    del writer.keys[name]
            if kill == kills:
                break
            kill_under_load(server.process, [functools.partial(writer.run, server, token) for writer in writers], chance.uniform(0.01, 0.5))
        server.stop()
        assert "panicked" not in server.log.read_text()
    print(f"{kills} kills, {seen['total']} acknowledged requests: 0 lost, each with its event; slowest start {slowest:.2f} s", flush=True)


if __name__ == "__main__":
    main()
