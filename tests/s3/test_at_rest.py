"""What lies at rest: no plaintext, and nothing that was tampered with is given out."""
import base64
import json
import os
import re
import shutil
import subprocess
import time

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError, ResponseStreamingError, IncompleteReadError
from conftest import BINARY
from urllib3.exceptions import ProtocolError

CHUNK = 65536
MARKER = b"the-plaintext-that-must-not-be-found"
CUT = (ClientError, ResponseStreamingError, IncompleteReadError, ReadTimeoutError, ProtocolError, ConnectionError)


def read(client, bucket, key, **more):
    """The body, or None if it was refused or cut."""
    try:
        return client.get_object(Bucket=bucket, Key=key, **more)["Body"].read()
    except CUT:
        return None


def test_no_plaintext_at_rest(make_storage, keks):
    storage = make_storage()
    s3 = storage.client()
    s3.create_bucket(Bucket="rest")
    modes = [{}, {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": keks[0]}, {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": os.urandom(32)}]
    for number, args in enumerate(modes):
        for size in (1, 1000, 20_000):
            s3.put_object(Bucket="rest", Key=f"{number}-{size}", Body=MARKER * size, **args)
        upload = s3.create_multipart_upload(Bucket="rest", Key=f"{number}-m", **args)["UploadId"]
        own = {name: value for name, value in args.items() if name.startswith("SSECustomer")}
        etag = s3.upload_part(Bucket="rest", Key=f"{number}-m", UploadId=upload, PartNumber=1, Body=MARKER * 200_000, **own)["ETag"]
        s3.complete_multipart_upload(Bucket="rest", Key=f"{number}-m", UploadId=upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]})
    assert MARKER[:12] not in storage.raw_bytes()
    for blob in storage.blobs():
        report = subprocess.run([BINARY, "storage", "inspect", blob, "--json"], capture_output=True, text=True, check=True)
        report = json.loads(report.stdout)
        assert report["suite"].startswith("AES-256-GCM") and report["entropy_bits_per_byte"] > 7.9
        assert report["envelope"] is None or re.search(r"/keys/(default|kek-a)/[0-9a-f]{32}$", report["envelope"]["kek_url"])


def test_inspect_without_a_service(make_storage, keks):
    storage = make_storage()
    s3 = storage.client()
    s3.create_bucket(Bucket="bkt-i")
    s3.put_object(Bucket="bkt-i", Key="k", Body=os.urandom(100_000), ServerSideEncryption="aws:kms", SSEKMSKeyId=keks[0])
    storage.stop()
    (blob,) = storage.blobs()
    report = json.loads(subprocess.run([BINARY, "storage", "inspect", blob, "--json"], capture_output=True, text=True, check=True).stdout)
    assert report["envelope"]["kek_url"].startswith(keks[0] + "/")


def test_no_secret_in_the_log_at_any_level(make_storage, monkeypatch):
    monkeypatch.setenv("RUST_LOG", "trace")
    storage = make_storage()
    key = os.urandom(32)
    s3 = storage.client()
    s3.create_bucket(Bucket="bkt-l")
    s3.put_object(Bucket="bkt-l", Key="k", Body=MARKER, SSECustomerAlgorithm="AES256", SSECustomerKey=key)
    assert s3.get_object(Bucket="bkt-l", Key="k", SSECustomerAlgorithm="AES256", SSECustomerKey=key)["Body"].read() == MARKER
    storage.stop()
    log = storage.log.read_bytes()
    assert b"TRACE" in log or b"DEBUG" in log, "the level was taken"
    for secret in (base64.b64encode(key), MARKER, storage.keys["alice"][1].encode(), storage.hsm.secrets["storage"].encode()):
        assert secret not in log


@pytest.fixture
def stored(make_storage, keks):
    """A service with two objects in blobs, and nothing cached."""
    storage = make_storage()
    s3 = storage.client()
    s3.create_bucket(Bucket="bkt-t")
    bodies, names = {}, {}
    for key in ("one", "two"):
        before = set(storage.blobs())
        bodies[key] = os.urandom(3 * CHUNK + 100)
        s3.put_object(Bucket="bkt-t", Key=key, Body=bodies[key], ServerSideEncryption="aws:kms", SSEKMSKeyId=keks[0])
        (names[key],) = set(storage.blobs()) - before
    return storage, s3, bodies, names


def test_flipped_bytes_are_refused(stored):
    _, s3, bodies, names = stored
    path = names["one"]
    good = path.read_bytes()
    places = list(range(0, 128, 5)) + [127, 128, 129, 128 + CHUNK - 1, 128 + CHUNK, 128 + CHUNK + 15, 128 + CHUNK + 16, len(good) - 17, len(good) - 1]
    for at in places:
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1:])
        assert read(s3, "bkt-t", "one") is None, f"byte {at}"
    # What comes before the bad chunk may be given; nothing of it, or after it.
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert read(s3, "bkt-t", "one", Range=f"bytes=0-{CHUNK - 1}") == bodies["one"][:CHUNK]
    assert read(s3, "bkt-t", "one", Range=f"bytes={3 * CHUNK}-") is None
    path.write_bytes(good)
    assert read(s3, "bkt-t", "one") == bodies["one"]


def test_truncated_extended_reordered_and_missing_are_refused(stored):
    _, s3, bodies, names = stored
    path = names["one"]
    good = path.read_bytes()
    whole = CHUNK + 16
    first, second = good[128:128 + whole], good[128 + whole:128 + 2 * whole]
    bad = {
        "empty": b"", "header only": good[:128], "one byte short": good[:-1], "a chunk short": good[:128 + 2 * whole],
        "one byte more": good + b"\0", "a chunk more": good + first,
        "reordered": good[:128] + second + first + good[128 + 2 * whole:], "repeated": good[:128] + first + first + good[128 + 2 * whole:],
    }
    for what, content in bad.items():
        path.write_bytes(content)
        assert read(s3, "bkt-t", "one") is None, what
    path.unlink()
    assert read(s3, "bkt-t", "one") is None
    path.write_bytes(good)
    assert read(s3, "bkt-t", "one") == bodies["one"]


def test_swapped_blobs_are_refused(stored):
    _, s3, bodies, names = stored
    one, two = names["one"].read_bytes(), names["two"].read_bytes()
    names["one"].write_bytes(two)
    names["two"].write_bytes(one)
    assert read(s3, "bkt-t", "one") is None and read(s3, "bkt-t", "two") is None
    # Spliced: the other object's chunks behind the right header.
    names["one"].write_bytes(one[:128] + two[128:])
    assert read(s3, "bkt-t", "one") is None
    names["one"].write_bytes(one)
    assert read(s3, "bkt-t", "one") == bodies["one"]


@pytest.mark.parametrize("what", ["metadata", "size", "dek", "name"])
def test_tampered_index_is_refused(stored, what):
    """Refused by our MAC, or by redb's own checksums if they notice first; `record`'s unit tests hold the MAC alone.

    The index is edited while the service is stopped: redb has checksums, so it is done by swapping text of equal length."""
    storage, s3, bodies, names = stored
    s3.put_object(Bucket="bkt-t", Key="aaaa", Body=b"x" * 100, Metadata={"who": "alice"})
    s3.put_object(Bucket="bkt-t", Key="bbbb", Body=b"y" * 100, Metadata={"who": "bobby"})
    backup = storage.directory / "backup"
    storage.stop()
    shutil.copytree(storage.data_dir, backup)
    path = storage.data_dir / "index.redb"
    raw = path.read_bytes()
    edits = {"metadata": (b'"who":"alice"', b'"who":"mallo"'), "size": (b'"size":100', b'"size":101'), "name": (b'"key":"aaaa"', b'"key":"bbbb"'),
             "dek": (b'"alg":"RSA-OAEP-256"', b'"alg":"RSA-OAEP-25x"')}
    old, new = edits[what]
    assert raw.count(old) >= 1
    path.write_bytes(raw.replace(old, new))
    started = True
    try:
        storage.start()
    except AssertionError:
        started = False  # redb noticed first
    if started:
        s3 = storage.client()
        assert read(s3, "bkt-t", "aaaa") is None
        if what == "dek":
            assert read(s3, "bkt-t", "one") is None
    storage.stop()
    shutil.rmtree(storage.data_dir)
    shutil.copytree(backup, storage.data_dir)
    storage.start()
    assert read(storage.client(), "bkt-t", "aaaa") == b"x" * 100


def age(path, days):
    """As if it had been written so many days ago."""
    then = time.time() - days * 86400
    os.utime(path, (then, then))


def test_blobs_that_nothing_names_are_set_aside_and_counted(make_storage):
    """None is deleted at a start: the index may be an older one than its blobs."""
    storage = make_storage()
    s3 = storage.client()
    s3.create_bucket(Bucket="bkt-g")
    s3.put_object(Bucket="bkt-g", Key="k", Body=os.urandom(200_000))
    orphans = [storage.data_dir / f"blobs/ab/cd/abcd{number:028x}" for number in range(2)]
    orphans[0].parent.mkdir(parents=True, exist_ok=True)
    for orphan, days in zip(orphans, (0, 2)):
        orphan.write_bytes(b"left by a crash")
        age(orphan, days)
    there = storage.blobs()
    storage.stop()
    storage.start()
    deadline = time.monotonic() + 10
    while storage.metric("holdfast_storage_orphan_blobs") != 1:
        assert time.monotonic() < deadline, storage.log.read_text()
        time.sleep(0.05)
    assert storage.blobs() == there, "one is aside, one is too young, none is gone"
    unfinished = storage.data_dir / "blobs/unfinished" / orphans[0].name
    unfinished.write_bytes(b"a crash came before its end")
    storage.stop()
    storage.start()
    assert storage.blobs() == there, "what never was a blob is removed"
    assert "blobs that nothing names" in storage.log.read_text()
    assert len(s3.get_object(Bucket="bkt-g", Key="k")["Body"].read()) == 200_000


def test_an_installation_does_not_touch_the_blobs_of_another(make_storage):
    """A new data directory on the blobs of an old one: they were all deleted once."""
    storage = make_storage()
    s3 = storage.client()
    s3.create_bucket(Bucket="bkt-o")
    for number in range(3):
        s3.put_object(Bucket="bkt-o", Key=str(number), Body=os.urandom(200_000))
    storage.stop()
    for blob in storage.blobs():
        age(blob, 40)
    other = make_storage()
    other.stop()
    ours = storage.blobs()
    shutil.rmtree(other.data_dir / "blobs")
    (other.data_dir / "blobs").symlink_to(storage.data_dir / "blobs")
    with pytest.raises(AssertionError, match="belong to another installation"):
        other.start()
    assert storage.blobs() == ours
    storage.start()
    for number in range(3):
        assert len(storage.client().get_object(Bucket="bkt-o", Key=str(number))["Body"].read()) == 200_000


def test_blobs_of_nobody_are_adopted_with_a_word(make_storage):
    storage = make_storage()
    storage.stop()
    stray = storage.data_dir / "blobs/ab/cd/abcd0000000000000000000000000000"
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_bytes(b"of nobody")
    (storage.data_dir / "blobs/owner").unlink()
    with pytest.raises(AssertionError, match="not the place where its blobs lay"):
        storage.start()
    config = storage.directory / "storage.toml"
    config.write_text(config.read_text().replace("[storage]", "[storage]\nadopt_blobs = true", 1))
    storage.start()
    storage.settle()
    [*_, event] = [event for event in storage.events() if event["operation"] == "ClaimBlobs"]
    assert event["context"]["adopt"] == "true" and stray.exists()


def test_a_volume_that_is_not_mounted_is_no_new_place(make_storage):
    """Its directory lies there, empty: what is written there would be missing when the volume is back."""
    storage = make_storage()
    s3 = storage.client()
    s3.create_bucket(Bucket="bkt-v")
    s3.put_object(Bucket="bkt-v", Key="k", Body=os.urandom(200_000))
    storage.stop()
    place, elsewhere = storage.data_dir / "blobs", storage.directory / "volume"
    place.rename(elsewhere)
    (elsewhere / "lost+found").mkdir(mode=0)
    place.mkdir()
    with pytest.raises(AssertionError, match="not the place where its blobs lay"):
        storage.start()
    assert not list(place.iterdir())
    place.rmdir()
    elsewhere.rename(place)
    storage.start()
    assert len(storage.client().get_object(Bucket="bkt-v", Key="k")["Body"].read()) == 200_000


def test_blobs_in_an_object_store(storage, make_storage, keks, tmp_path):
    """The blobs of one service in a bucket of another: S3 as a back end, by the crate that speaks to the real one too."""
    outer = storage.client()
    outer.create_bucket(Bucket="ciphertext")
    access_key, secret = storage.keys["alice"]
    (tmp_path / "blobs.secret").write_text(secret)
    there = f'''
[blobs]
url = "s3://ciphertext/inner"
options = {{ aws_endpoint = "{storage.url}", aws_region = "us-east-1", aws_allow_http = "true", aws_access_key_id = "{access_key}" }}
secret_files = {{ aws_secret_access_key = "{tmp_path / 'blobs.secret'}" }}
'''
    inner = make_storage(more=there)
    s3 = inner.client()
    s3.create_bucket(Bucket="plain")
    body = MARKER * 700_000
    for key, args in {"container": {}, "own": {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": keks[0]}}.items():
        s3.put_object(Bucket="plain", Key=key, Body=body, **args)
        assert s3.get_object(Bucket="plain", Key=key)["Body"].read() == body
        assert read(s3, "plain", key, Range="bytes=10000000-10000099") == body[10_000_000:10_000_100]
    with pytest.raises(AssertionError, match="the blobs in s3://ciphertext/inner: they belong to another installation"):
        make_storage(more=there)
    stored = outer.list_objects_v2(Bucket="ciphertext", Prefix="inner/")["Contents"]
    [owner] = [entry for entry in stored if entry["Key"] == "inner/owner"]
    stored.remove(owner)
    assert len(stored) == 2 and not inner.blobs()
    for entry in stored:
        raw = outer.get_object(Bucket="ciphertext", Key=entry["Key"])["Body"].read()
        assert raw.startswith(b"HFOS") and MARKER not in raw
        outer.put_object(Bucket="ciphertext", Key=entry["Key"], Body=raw[:-1] + bytes([raw[-1] ^ 1]))
    assert read(s3, "plain", "container") is None and read(s3, "plain", "own") is None
