#!/usr/bin/env python3
"""kill -9 of the storage service in a loop, under mixed load: nothing acknowledged may be lost, nothing is left readable.

Writers put, overwrite, delete and upload in parts, each under keys of its own, in every mode of encryption. Each notes
what it intends and what was acknowledged. After each kill and restart every key is read back:

- acknowledged: the body is what was last written, or gone if it was deleted;
- intended and not acknowledged: the old state or the new one, whole, and stable from then on;
- each acknowledged change has exactly one event in the audit log, and the last event of a key tells what the key has now: there is no change without
  its event and no event of a change that did not happen;
- nothing of any body, acknowledged or not, is readable at rest (looked for after one kill in five);
- when all is deleted in the end, no blob is left: whatever was to be cleared away when a kill came was cleared away after it.

    python3 tests/crash/s3_crash_loop.py --kills 50
"""
import collections
import functools
import hashlib
import pathlib
import random
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "s3"))
from botocore.exceptions import BotoCoreError, ClientError  # noqa: E402
from conftest import ADMIN, CRYPTO_OFFICER, CRYPTO_USER, ENCRYPTION_USER, STORAGE, Hsm, Storage  # noqa: E402
from kills import arguments, kill_under_load  # noqa: E402

WRITERS, KEYS, MARKER = 6, 12, b"plaintext-of-the-crash-loop"
PART = 5 * 1024 * 1024


def body_of(seed: str, size: int) -> bytes:
    block = MARKER + hashlib.sha256(seed.encode()).digest()
    return (block * (size // len(block) + 1))[:size]


class Writer:
    def __init__(self, number, seed, keks):
        self.number, self.random, self.keks = number, random.Random(seed), keks
        self.state, self.doubt, self.count, self.acknowledged = {}, None, 0, []

    def step(self, s3):
        key, self.count = f"w{self.number}-{self.random.randrange(KEYS)}", self.count + 1
        choice = self.random.random()
        if choice < 0.15:
            self.doubt = (key, None)
            answer = s3.delete_object(Bucket="crash", Key=key)
        elif choice < 0.22:
            body = body_of(f"{key}-{self.count}", PART + self.random.randrange(100_000))
            self.doubt = (key, hashlib.sha256(body).digest())
            upload = s3.create_multipart_upload(Bucket="crash", Key=key, **self.random.choice(self.keks))["UploadId"]
            parts = [{"PartNumber": n, "ETag": s3.upload_part(Bucket="crash", Key=key, UploadId=upload, PartNumber=n, Body=piece)["ETag"]}
                     for n, piece in enumerate((body[:PART], body[PART:]), 1)]
            answer = s3.complete_multipart_upload(Bucket="crash", Key=key, UploadId=upload, MultipartUpload={"Parts": parts})
        else:
            body = body_of(f"{key}-{self.count}", self.random.choice([0, 100, 5000, 40_000, 300_000]))
            self.doubt = (key, hashlib.sha256(body).digest())
            answer = s3.put_object(Bucket="crash", Key=key, Body=body, **self.random.choice(self.keks))
        self.state[key] = self.doubt[1]
        self.doubt = None
        self.acknowledged.append(answer["ResponseMetadata"]["HTTPHeaders"]["x-amz-request-id"])

    def run(self, s3):
        try:
            while True:
                self.step(s3)
        except (BotoCoreError, ClientError, OSError):
            pass  # killed


def check(s3, writer):
    for key in {*writer.state, *([writer.doubt[0]] if writer.doubt else [])}:
        try:
            found = hashlib.sha256(s3.get_object(Bucket="crash", Key=key)["Body"].read()).digest()
        except ClientError as error:
            assert error.response["Error"]["Code"] == "NoSuchKey", (key, error)
            found = None
        allowed = {writer.state.get(key)} | ({writer.doubt[1]} if writer.doubt and writer.doubt[0] == key else set())
        assert found in allowed, f"{key}: what was acknowledged is lost"
        writer.state[key] = found
    writer.doubt = None


CHANGES = ("PutObject", "DeleteObject", "CompleteMultipartUpload")


def check_events(storage, writers):
    storage.settle()
    events = [event for event in storage.events() if event["operation"] in CHANGES and event["outcome"] == "allowed"]
    times = collections.Counter(event["request_id"] for event in events)
    assert max(times.values(), default=1) == 1, "an event is there twice"
    for writer in writers:
        missing = [wanted for wanted in writer.acknowledged if wanted not in times]
        assert not missing, f"acknowledged changes without an event: {missing}"
    s3, last = storage.client(), {event["context"]["key"]: event for event in events}
    now = {entry["Key"]: entry["Size"] for entry in s3.list_objects_v2(Bucket="crash").get("Contents", [])}
    told = {key: int(event["context"]["size"]) for key, event in last.items() if event["operation"] != "DeleteObject"}
    assert told == now, "what the events tell is not what is there"


def empty(storage, orphans_max):
    s3 = storage.client()
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket="crash"):
        for entry in page.get("Contents", []):
            s3.delete_object(Bucket="crash", Key=entry["Key"])
    s3.delete_bucket(Bucket="crash")
    # One that was finished when the kill came, and not yet named, is kept for a month: a writer may leave one with each kill.
    deadline = time.monotonic() + 30
    while len(storage.blobs()) > orphans_max:
        assert time.monotonic() < deadline, f"{len(storage.blobs())} blobs are left"
        time.sleep(0.1)


def main():
    kills, seed = arguments(__doc__)
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        hsm = Hsm(pathlib.Path(directory) / "h")
        hsm.start()
        for role in (CRYPTO_USER, CRYPTO_OFFICER):
            hsm.grant(role, ADMIN[1])
        hsm.grant(ENCRYPTION_USER, STORAGE[1])
        kek = hsm.create_kek("kek")
        storage = Storage(pathlib.Path(directory) / "s", hsm, kek).start()
        storage.client().create_bucket(Bucket="crash")
        modes = [{}, {}, {"ServerSideEncryption": "aws:kms"}, {"ServerSideEncryption": "aws:kms", "BucketKeyEnabled": True}]
        writers = [Writer(number, seed + number, modes) for number in range(WRITERS)]
        for _ in range(kills):
            kill_under_load(storage.process, [functools.partial(writer.run, storage.client()) for writer in writers], chance.uniform(0.05, 0.6))
            storage.start()
            for writer in writers:
                check(storage.client(), writer)
            check_events(storage, writers)
            if chance.random() < 0.2:
                assert MARKER not in storage.raw_bytes(), "plaintext at rest"
        empty(storage, kills * WRITERS)
        total = sum(len(writer.acknowledged) for writer in writers)
        storage.stop()
        hsm.stop()
        assert "panicked" not in storage.log.read_text()
    print(f"{kills} kills, {total} acknowledged requests: 0 lost", flush=True)


if __name__ == "__main__":
    main()
