"""A disk that fills: it is told before it is full, deletions still work, nothing is lost."""
import os
import subprocess
import threading

import pytest
import requests
from botocore.exceptions import ClientError
from conftest import Storage

MIB = 1024 * 1024
FULL = {("InsufficientStorage", 507), ("ServiceUnavailable", 503)}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 96 MiB; the service's directory is made in it."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", mount], capture_output=True, text=True)
    assert made.returncode == 0, f"this test mounts a file system, as root: {made.stderr}"
    yield mount
    subprocess.run(["umount", "-l", mount], check=True)


@pytest.fixture
def storage(small_disk, hsm):
    storage = Storage(small_disk / "s", hsm, f"{hsm.url}/keys/default").start()
    yield storage
    storage.stop()
    assert "panicked" not in storage.log.read_text()


def answer_of(call, *args, **more):
    try:
        call(*args, **more)
        return None
    except ClientError as error:
        return error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]


def ready(storage):
    return requests.get(storage.url + "/readyz", timeout=5).json()


def metric(storage, name):
    lines = requests.get(storage.url + "/metrics", timeout=5).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split(" ")[0].split("{")[0] == name)


def fill(s3, bucket, size, prefix="k"):
    """Puts objects until one is refused; those that were acknowledged, and the refusal."""
    kept = {}
    for number in range(10_000):
        body = os.urandom(16) * (size // 16)
        refusal = answer_of(s3.put_object, Bucket=bucket, Key=f"{prefix}{number}", Body=body)
        if refusal:
            return kept, refusal
        kept[f"{prefix}{number}"] = body
    raise AssertionError("the disk does not fill")


def test_a_disk_that_fills(storage):
    s3 = storage.client()
    s3.create_bucket(Bucket="bkt-f")
    assert ready(storage)["status"] == "ready" and ready(storage)["takes_new_data"]
    upload = s3.create_multipart_upload(Bucket="bkt-f", Key="m")["UploadId"]
    part = s3.upload_part(Bucket="bkt-f", Key="m", UploadId=upload, PartNumber=1, Body=b"part")
    kept, refusal = fill(s3, "bkt-f", 4 * MIB)
    assert refusal in FULL and len(kept) > 10
    small, refusal = fill(s3, "bkt-f", 256 * 1024, "s")
    assert refusal in FULL
    kept |= small
    # Small ones that would lie in the index do not eat the reserve either.
    inline, refusal = fill(s3, "bkt-f", 8192, "i")
    assert refusal in FULL
    kept |= inline
    # Events take room, too: to the last page of it.
    tiny, refusal = fill(s3, "bkt-f", 16, "t")
    assert refusal in FULL
    kept |= tiny
    state = ready(storage)
    assert state["status"] == "degraded" and not state["takes_new_data"] and state["disk_free_bytes"] > 0
    assert metric(storage, "holdfast_storage_refused_for_room_total") > 0
    assert 0 < metric(storage, "holdfast_storage_disk_free_bytes") and metric(storage, "holdfast_storage_disk_reserve_bytes") > 0
    for call, more in [(s3.put_object, {"Key": "new", "Body": b"x"}), (s3.copy_object, {"Key": "new", "CopySource": "bkt-f/k0"}),
                       (s3.create_multipart_upload, {"Key": "new"}), (s3.upload_part, {"Key": "m", "UploadId": upload, "PartNumber": 2, "Body": b"x"}),
                       (s3.upload_part_copy, {"Key": "m", "UploadId": upload, "PartNumber": 2, "CopySource": "bkt-f/k0"})]:
        assert answer_of(call, Bucket="bkt-f", **more) in FULL, call
    # Reading, listing, finishing and deleting go on.
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    s3.complete_multipart_upload(Bucket="bkt-f", Key="m", UploadId=upload, MultipartUpload=parts)
    s3.put_object_tagging(Bucket="bkt-f", Key="k0", Tagging={"TagSet": [{"Key": "a", "Value": "b"}]})
    for key, body in kept.items():
        assert s3.get_object(Bucket="bkt-f", Key=key)["Body"].read() == body, key
    assert s3.list_objects_v2(Bucket="bkt-f", Prefix="k")["KeyCount"] == len([key for key in kept if key[0] == "k"])
    doomed = [key for key in kept if key[0] == "k"][:5]
    answer = s3.delete_objects(Bucket="bkt-f", Delete={"Objects": [{"Key": key} for key in doomed]})
    assert len(answer["Deleted"]) == 5
    s3.put_object(Bucket="bkt-f", Key="new", Body=b"there is room again, at once")
    until_ready(storage)
    # Nothing is lost over a restart.
    storage.stop()
    storage.start()
    for key, body in kept.items():
        if key not in doomed:
            assert s3.get_object(Bucket="bkt-f", Key=key)["Body"].read() == body, key
    assert s3.get_object(Bucket="bkt-f", Key="m")["Body"].read() == b"part"


def until_ready(storage):
    import time
    deadline = time.monotonic() + 10
    while not ready(storage)["takes_new_data"]:
        assert time.monotonic() < deadline, "deletions have made no room"
        time.sleep(0.05)
    assert ready(storage)["status"] == "ready"


def test_a_body_that_does_not_fit_is_refused_before_or_while_it_comes(storage):
    s3 = storage.client()
    s3.create_bucket(Bucket="bkt-b")
    assert answer_of(s3.put_object, Bucket="bkt-b", Key="k", Body=bytes(200 * MIB)) in FULL
    # Its length is not known before it comes.
    url = s3.generate_presigned_url("put_object", {"Bucket": "bkt-b", "Key": "k"})
    assert answer_of(s3.head_object, Bucket="bkt-b", Key="k") == ("404", 404) and url
    assert storage.blobs() == []


def test_many_writers_at_once_do_not_eat_the_reserve(storage):
    storage.client().create_bucket(Bucket="bkt-m")
    refusals, kept = [], {}

    def write(number):
        own, refusal = fill(storage.client(), "bkt-m", 2 * MIB, f"w{number}-")
        kept.update(own)
        refusals.append(refusal)
    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert set(refusals) <= FULL and len(refusals) == 6
    state = ready(storage)
    assert state["disk_free_bytes"] > state["disk_reserve_bytes"] // 2
    s3 = storage.client()
    for key, body in kept.items():
        assert s3.get_object(Bucket="bkt-m", Key=key)["Body"].read() == body
    s3.delete_objects(Bucket="bkt-m", Delete={"Objects": [{"Key": key} for key in kept]})
    until_ready(storage)


def test_rewriting_does_not_fill_the_disk(storage):
    """Far more is written than the disk holds."""
    s3 = storage.client()
    s3.create_bucket(Bucket="bkt-w")
    for number in range(40):
        s3.put_object(Bucket="bkt-w", Key="k", Body=os.urandom(16) * (MIB // 2))
    assert len(s3.get_object(Bucket="bkt-w", Key="k")["Body"].read()) == 8 * MIB


def test_somebody_else_fills_the_disk(storage, small_disk):
    s3 = storage.client()
    s3.create_bucket(Bucket="bkt-e")
    s3.put_object(Bucket="bkt-e", Key="k", Body=b"kept")
    filler = small_disk / "filler"
    with open(filler, "wb") as out:
        try:
            while True:
                out.write(bytes(MIB))
                out.flush()
        except OSError:
            pass
    assert answer_of(s3.put_object, Bucket="bkt-e", Key="new", Body=b"x") in FULL
    assert answer_of(s3.delete_object, Bucket="bkt-e", Key="k") in FULL, "not even a deletion can be noted"
    # Nor can the event of a read, and nothing is read without (unless the configuration says so: `audit.reads`).
    answers = {answer_of(s3.get_object, Bucket="bkt-e", Key="k") for _ in range(50)} - {None}
    assert answers == {("ServiceUnavailable", 503)}
    filler.unlink()
    assert s3.get_object(Bucket="bkt-e", Key="k")["Body"].read() == b"kept"
    s3.put_object(Bucket="bkt-e", Key="new", Body=b"there is room again")
    s3.delete_object(Bucket="bkt-e", Key="k")
    assert answer_of(s3.head_object, Bucket="bkt-e", Key="k") == ("404", 404)


def test_the_reserve_is_configured(make_storage):
    storage = make_storage(disk_reserve_mib=1 << 30)
    s3 = storage.client()
    assert answer_of(s3.create_bucket, Bucket="bkt-c") in FULL
    assert ready(storage)["disk_reserve_bytes"] == 1 << 50
