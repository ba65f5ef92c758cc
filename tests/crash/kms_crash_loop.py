#!/usr/bin/env python3
"""kill -9 of the key management service in a loop, under mixed load: nothing acknowledged may be lost.

Writers make keys, rotate, disable and enable them, move aliases, make and revoke grants, each on keys of its own, and keep every
ciphertext. Each notes what it intends and what was acknowledged. After each kill and restart:

- every ciphertext that was acknowledged opens, whatever was rotated since;
- whether a key is enabled, where an alias leads, which grants there are, is what was acknowledged last, or what was intended;
- what was acknowledged has exactly one event; with --in-flight, what was in flight has one if it happened, and none if it did not;
- the audit log verifies.

    python3 tests/crash/kms_crash_loop.py --kills 50
"""
import collections
import functools
import pathlib
import random
import sys
import tempfile
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "kms"))
from botocore.exceptions import BotoCoreError, ClientError  # noqa: E402
from kills import arguments, in_flight, kill_under_load  # noqa: E402
from service import Service, iam  # noqa: E402

WRITERS, KEYS_MAX, BLOBS_MAX = 6, 8, 60


class Asked(threading.local):
    """The id that this thread's last request had, by which its event is found."""
    id = ""

    def note(self, request, **_) -> None:
        self.id = request.headers["amz-sdk-invocation-id"]
        self.id = self.id.decode() if isinstance(self.id, bytes) else self.id


class Writer:
    """What it asked for and was not told of is in `doubt`: the id of the request, and how one sees that it happened."""

    def __init__(self, number: int, seed: int, asked: Asked):
        self.number, self.random, self.asked = number, random.Random(seed), asked
        self.keys: list[str] = []
        self.enabled: dict[str, bool] = {}
        self.rotations: dict[str, int] = {}
        self.alias: str | None = None
        self.grants: dict[str, str] = {}
        self.blobs: dict[bytes, bytes] = {}
        self.acknowledged: list[str] = []
        self.made, self.doubt = 0, None

    def do(self, happened, call, **members):
        """`happened(kms)`: whether it was done, if it was not acknowledged; `None`: a use."""
        self.asked.id, self.doubt = "", happened
        answer = call(**members)
        self.acknowledged.append(self.asked.id)
        self.doubt = None
        return answer

    def create(self, kms) -> None:
        self.made += 1
        mark = f"writer {self.number}, key {self.made}"
        key = self.do(lambda kms: any(kms.describe_key(KeyId=key)["KeyMetadata"]["Description"] == mark for key in all_keys(kms)),
                      kms.create_key, Description=mark)["KeyMetadata"]["Arn"]
        self.enabled[key], self.rotations[key] = True, 0
        self.keys.append(key)

    def switch(self, kms, key: str) -> None:
        wanted = not self.enabled[key]
        self.do(lambda kms: enabled(kms, key) == wanted, kms.enable_key if wanted else kms.disable_key, KeyId=key)
        self.enabled[key] = wanted

    def move_alias(self, kms, key: str) -> None:
        name = f"alias/writer-{self.number}"
        if self.alias != key:
            self.do(lambda kms: target(kms, name) == key, kms.update_alias if self.alias else kms.create_alias, AliasName=name, TargetKeyId=key)
            self.alias = key

    def rotate(self, kms, key: str) -> None:
        if self.rotations[key] < 20:
            self.do(lambda kms: rotations(kms, key) > self.rotations[key], kms.rotate_key_on_demand, KeyId=key)
            self.rotations[key] += 1

    def grant(self, kms, key: str) -> None:
        self.made += 1
        name = f"{self.number}-{self.made}"
        self.do(lambda kms: name in grants(kms, key), kms.create_grant, KeyId=key, GranteePrincipal=iam("user/bob"), Operations=["Decrypt"], Name=name)
        self.grants[name] = key

    def revoke(self, kms) -> None:
        name, key = self.random.choice(list(self.grants.items()))
        grant = grants(kms, key)[name]
        self.do(lambda kms: name not in grants(kms, key), kms.revoke_grant, KeyId=key, GrantId=grant)
        del self.grants[name]

    def step(self, kms) -> None:
        choice = self.random.random()
        if len(self.keys) < 2 or (choice < 0.1 and len(self.keys) < KEYS_MAX):
            return self.create(kms)
        key = self.random.choice(self.keys)
        if choice < 0.2:
            self.switch(kms, key)
        elif choice < 0.3:
            self.move_alias(kms, key)
        elif not self.enabled[key]:
            pass
        elif choice < 0.36:
            self.rotate(kms, key)
        elif choice < 0.46:
            self.grant(kms, key)
        elif choice < 0.54 and self.grants:
            self.revoke(kms)
        else:
            plaintext = self.random.randbytes(24)
            blob = self.do(None, kms.encrypt, KeyId=key, Plaintext=plaintext)["CiphertextBlob"]
            if len(self.blobs) < BLOBS_MAX:
                self.blobs[blob] = plaintext

    def run(self, kms) -> None:
        try:
            while True:
                self.step(kms)
        except (BotoCoreError, ClientError, OSError):
            self.last = self.asked.id  # killed

    def check(self, kms, told: dict[str, list]) -> None:
        """`told`: how often the log says that a request was done, by its id."""
        for acknowledged in self.acknowledged:
            assert len(told[acknowledged]) == 1, f"an acknowledged request has {len(told[acknowledged])} events"
        if self.doubt and in_flight():
            happened, events = self.doubt(kms), len(told[self.last])
            assert happened == events, f"writer {self.number}: what was in flight {'happened' if happened else 'did not happen'}, and has {events} events"
        self.acknowledged.clear()
        self.settle(kms)
        for blob, plaintext in self.blobs.items():
            assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == plaintext, "what was acknowledged does not open"

    def settle(self, kms) -> None:
        """What was acknowledged is there; of what was in flight, whatever is found holds from now on."""
        doubtful = 1 if self.doubt else 0
        differs = 0
        for key in self.keys:
            found, turned = enabled(kms, key), rotations(kms, key)
            differs += (found != self.enabled[key]) + (turned != self.rotations[key])
            if not found:
                kms.enable_key(KeyId=key)
            self.enabled[key], self.rotations[key] = True, turned
        leads = target(kms, f"alias/writer-{self.number}") if self.keys else None
        there = {name: key for key in self.keys for name in grants(kms, key)}
        differs += (leads != self.alias) + len(there.keys() ^ self.grants.keys())
        assert differs <= doubtful, f"writer {self.number}: {differs} things are not as they were acknowledged"
        self.alias, self.grants, self.doubt = leads, there, None


def all_keys(kms) -> list[str]:
    return [key["KeyId"] for page in kms.get_paginator("list_keys").paginate() for key in page["Keys"]]


def enabled(kms, key: str) -> bool:
    return kms.describe_key(KeyId=key)["KeyMetadata"]["Enabled"]


def rotations(kms, key: str) -> int:
    return len(kms.list_key_rotations(KeyId=key)["Rotations"])


def grants(kms, key: str) -> dict[str, str]:
    return {grant["Name"]: grant["GrantId"] for page in kms.get_paginator("list_grants").paginate(KeyId=key) for grant in page["Grants"]}


def target(kms, alias: str) -> str | None:
    try:
        return kms.describe_key(KeyId=alias)["KeyMetadata"]["Arn"]
    except kms.exceptions.NotFoundException:
        return None


def told_by(service) -> dict[str, list]:
    """Of each request, by its id, the events that say that it was done. A change that is told twice by its revision is told once."""
    found: dict[str, dict] = collections.defaultdict(dict)
    for number, event in enumerate(service.events()):
        if event["outcome"] == "allowed" and event.get("client_request_id"):
            found[event["client_request_id"]][event.get("revision") or f"line {number}"] = event
    return collections.defaultdict(list, {name: list(events.values()) for name, events in found.items()})


def main() -> None:
    kills, seed = arguments(__doc__)
    chance, asked, total = random.Random(seed), Asked(), 0
    with tempfile.TemporaryDirectory() as directory:
        service = Service(pathlib.Path(directory) / "kms").start()
        kms = service.client("root", max_pool_connections=WRITERS)
        kms.meta.events.register("before-send.kms", asked.note)
        writers = [Writer(number, seed + number, asked) for number in range(WRITERS)]
        for _ in range(kills):
            kill_under_load(service.process, [functools.partial(writer.run, kms) for writer in writers], chance.uniform(0.05, 0.5))
            service.start()
            told = told_by(service)
            total += sum(len(writer.acknowledged) for writer in writers)
            for writer in writers:
                writer.check(kms, told)
        service.check_end()
    print(f"{kills} kills, {total} acknowledged requests: 0 lost, each with its event", flush=True)


if __name__ == "__main__":
    main()
