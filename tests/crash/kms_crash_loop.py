#!/usr/bin/env python3
"""kill -9 of the key management service in a loop, under mixed load: nothing acknowledged may be lost.

Writers make keys, rotate, disable and enable them, move aliases, make and revoke grants, each on keys of its own, and keep every
ciphertext. Each notes what it intends and what was acknowledged. After each kill and restart:

- every ciphertext that was acknowledged opens, whatever was rotated since;
- whether a key is enabled, where an alias leads, which grants there are, is what was acknowledged last, or what was intended;
- the audit log verifies.

    python3 tests/crash/kms_crash_loop.py --kills 50
"""
import functools
import pathlib
import random
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "kms"))
from botocore.exceptions import BotoCoreError, ClientError  # noqa: E402
from kills import arguments, kill_under_load  # noqa: E402
from service import Service, iam  # noqa: E402

WRITERS, KEYS_MAX, BLOBS_MAX = 6, 8, 60


class Writer:
    def __init__(self, number: int, seed: int):
        self.number, self.random = number, random.Random(seed)
        self.keys: list[str] = []
        self.enabled: dict[str, set[bool]] = {}
        self.alias: set[str] = set()
        self.grants: dict[str, str] = {}
        self.doubtful_grants: set[str] = set()
        self.blobs: dict[bytes, bytes] = {}
        self.acknowledged = 0

    def step(self, kms) -> None:
        choice = self.random.random()
        if len(self.keys) < 2 or (choice < 0.1 and len(self.keys) < KEYS_MAX):
            key = kms.create_key()["KeyMetadata"]["Arn"]
            self.enabled[key] = {True}
            self.keys.append(key)
        else:
            key = self.random.choice(self.keys)
            if choice < 0.2:
                wanted = not next(iter(self.enabled[key]))
                self.enabled[key].add(wanted)
                (kms.enable_key if wanted else kms.disable_key)(KeyId=key)
                self.enabled[key] = {wanted}
            elif choice < 0.3:
                name = f"alias/writer-{self.number}"
                move = kms.update_alias if self.alias else kms.create_alias
                self.alias.add(key)
                try:
                    move(AliasName=name, TargetKeyId=key)
                except ClientError as error:
                    # It was made in the moment of a kill.
                    if error.response["Error"]["Code"] != "AlreadyExistsException":
                        raise
                    kms.update_alias(AliasName=name, TargetKeyId=key)
                self.alias = {key}
            elif not next(iter(self.enabled[key])):
                return
            elif choice < 0.36:
                if kms.describe_key(KeyId=key)["KeyMetadata"]["Enabled"] and len(kms.list_key_rotations(KeyId=key)["Rotations"]) < 25:
                    kms.rotate_key_on_demand(KeyId=key)
            elif choice < 0.46:
                made = kms.create_grant(KeyId=key, GranteePrincipal=iam("user/bob"), Operations=["Decrypt"])
                self.grants[made["GrantId"]] = key
            elif choice < 0.54 and self.grants:
                grant = self.random.choice(list(self.grants))
                self.doubtful_grants.add(grant)
                kms.revoke_grant(KeyId=self.grants[grant], GrantId=grant)
                self.doubtful_grants.discard(grant)
                del self.grants[grant]
            else:
                plaintext = self.random.randbytes(24)
                blob = kms.encrypt(KeyId=key, Plaintext=plaintext)["CiphertextBlob"]
                if len(self.blobs) < BLOBS_MAX:
                    self.blobs[blob] = plaintext
        self.acknowledged += 1

    def run(self, kms) -> None:
        try:
            while True:
                self.step(kms)
        except (BotoCoreError, ClientError, OSError):
            pass  # killed

    def check(self, kms) -> None:
        for key in self.keys:
            found = kms.describe_key(KeyId=key)["KeyMetadata"]["Enabled"]
            assert found in self.enabled[key], f"{key}: enabled is {found}"
            self.enabled[key] = {found}
            if not found:
                kms.enable_key(KeyId=key)
                self.enabled[key] = {True}
        for blob, plaintext in self.blobs.items():
            assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == plaintext, "what was acknowledged does not open"
        if len(self.alias) == 1:
            assert kms.describe_key(KeyId=f"alias/writer-{self.number}")["KeyMetadata"]["Arn"] in self.alias
        there = {grant["GrantId"] for key in self.keys
                 for page in kms.get_paginator("list_grants").paginate(KeyId=key) for grant in page["Grants"]}
        assert set(self.grants) - self.doubtful_grants <= there, "an acknowledged grant is lost"
        self.grants = {grant: key for grant, key in self.grants.items() if grant in there}
        self.doubtful_grants = set()


def main() -> None:
    kills, seed = arguments(__doc__)
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        service = Service(pathlib.Path(directory) / "kms").start()
        kms = service.client("root", max_pool_connections=WRITERS)
        writers = [Writer(number, seed + number) for number in range(WRITERS)]
        for _ in range(kills):
            kill_under_load(service.process, [functools.partial(writer.run, kms) for writer in writers], chance.uniform(0.05, 0.5))
            service.start()
            for writer in writers:
                writer.check(kms)
        total = sum(writer.acknowledged for writer in writers)
        service.check_end()
    print(f"{kills} kills, {total} acknowledged requests: 0 lost", flush=True)


if __name__ == "__main__":
    main()
