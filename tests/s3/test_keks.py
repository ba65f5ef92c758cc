"""Whoever holds the KEK decides: disabled, denied, away, back, rotated; and how often the key service is asked."""
import os
import subprocess
import threading
import time
import uuid

import pytest
import requests
from botocore.exceptions import ClientError, ResponseStreamingError
from conftest import BINARY, ENCRYPTION_USER, ROLES, STORAGE, Hsm, Storage, ADMIN, CRYPTO_OFFICER, CRYPTO_USER
from urllib3.exceptions import ProtocolError


def refused(code, status, call, *args, **more):
    with pytest.raises(ClientError) as caught:
        call(*args, **more)
    response = caught.value.response
    assert (response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]) == (code, status), response


def until(seconds, check, what):
    """Waits for `check`; says how long it took."""
    begun = time.monotonic()
    while time.monotonic() < begun + seconds:
        if check():
            return time.monotonic() - begun
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")


def fails_with(code, call):
    try:
        call()
    except ClientError as error:
        return error.response["Error"]["Code"] == code
    return False


@pytest.fixture
def kek(hsm):
    """A KEK of the test's own."""
    name = f"k-{uuid.uuid4().hex[:10]}"
    return name, hsm.create_kek(name)


def kms(kek):
    return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kek[1]}


def test_disabled_stops_reads_and_writes_within_the_ttl(hsm, make_storage, kek):
    ttl = 2
    storage = make_storage(default_kek=kek[1], dek_cache_ttl_secs=ttl)
    s3 = storage.client()
    s3.create_bucket(Bucket="bkt-d")
    s3.put_object(Bucket="bkt-d", Key="k", Body=b"container")
    s3.put_object(Bucket="bkt-d", Key="own", Body=b"own", **kms(kek))
    hsm.enable(kek[0], False)
    get = lambda: s3.get_object(Bucket="bkt-d", Key="k")["Body"].read()
    took = until(ttl + 1, lambda: fails_with("KMS.DisabledException", get), "the disabled KEK stops reads")
    print(f"disabled KEK: reads refused after {took:.2f} s with a TTL of {ttl} s")
    refused("KMS.DisabledException", 400, s3.put_object, Bucket="bkt-d", Key="k2", Body=b"x")
    # Its DEK was wrapped a little later than the container's, so its time ends a little later.
    until(1, lambda: fails_with("KMS.DisabledException", lambda: s3.get_object(Bucket="bkt-d", Key="own")), "the object's own DEK")
    # Clean-up and inventory go on.
    assert s3.list_objects_v2(Bucket="bkt-d")["KeyCount"] == 2 and s3.head_object(Bucket="bkt-d", Key="k")["ContentLength"] == 9
    s3.put_object_tagging(Bucket="bkt-d", Key="k", Tagging={"TagSet": []})
    hsm.enable(kek[0], True)
    assert get() == b"container" and s3.get_object(Bucket="bkt-d", Key="own")["Body"].read() == b"own"
    hsm("DELETE", f"/keys/{kek[0]}")
    until(ttl + 1, lambda: fails_with("KMS.NotFoundException", get), "the deleted KEK stops reads")
    s3.delete_object(Bucket="bkt-d", Key="own")
    hsm("POST", f"/deletedkeys/{kek[0]}/recover")
    assert get() == b"container"


def test_forget_drops_all_at_once(hsm, make_storage, kek):
    storage = make_storage(default_kek=kek[1])
    s3 = storage.client()
    s3.create_bucket(Bucket="bkt-f")
    s3.put_object(Bucket="bkt-f", Key="k", Body=b"x")
    hsm.enable(kek[0], False)
    assert s3.get_object(Bucket="bkt-f", Key="k")["Body"].read() == b"x", "cached for 300 s"
    out = subprocess.run([BINARY, "storage", "forget", "--data-dir", storage.data_dir], capture_output=True, text=True, check=True).stdout
    assert out == "1 DEKs forgotten\n"
    refused("KMS.DisabledException", 400, s3.get_object, Bucket="bkt-f", Key="k")
    hsm.enable(kek[0], True)


def test_a_long_read_is_cut_when_revoked(hsm, make_storage, kek):
    storage = make_storage(dek_cache_ttl_secs=1)
    s3 = storage.client()
    s3.create_bucket(Bucket="bkt-l")
    size = 64 * 1024 * 1024
    s3.put_object(Bucket="bkt-l", Key="k", Body=bytes(size), **kms(kek))
    url = s3.generate_presigned_url("get_object", {"Bucket": "bkt-l", "Key": "k"})
    with requests.get(url, stream=True, timeout=30) as answer:
        got = len(answer.raw.read(1024 * 1024))
        hsm.enable(kek[0], False)
        time.sleep(1.2)
        try:
            while piece := answer.raw.read(1024 * 1024):
                got += len(piece)
        except (ProtocolError, requests.RequestException):
            pass  # cut; whether the client is told depends on the client, that it gets no more does not
    assert got < size, "the rest was not given out"
    hsm.enable(kek[0], True)


def test_forget_ends_a_read_under_way(hsm, make_storage, kek):
    storage = make_storage()
    s3 = storage.client()
    s3.create_bucket(Bucket="bkt-u")
    size = 64 * 1024 * 1024
    s3.put_object(Bucket="bkt-u", Key="k", Body=bytes(size), **kms(kek))
    url = s3.generate_presigned_url("get_object", {"Bucket": "bkt-u", "Key": "k"})
    with requests.get(url, stream=True, timeout=30) as answer:
        got = len(answer.raw.read(1024 * 1024))
        hsm.enable(kek[0], False)
        subprocess.run([BINARY, "storage", "forget", "--data-dir", storage.data_dir], check=True, capture_output=True)
        try:
            while piece := answer.raw.read(1024 * 1024):
                got += len(piece)
        except (ProtocolError, requests.RequestException):
            pass
    assert got < size, "the DEK was good for 300 s more, and was to be forgotten"
    hsm.enable(kek[0], True)


def own_pair(tmp_path, **options):
    hsm = Hsm(tmp_path / "h")
    hsm.start()
    for role in (CRYPTO_USER, CRYPTO_OFFICER):
        hsm.grant(role, ADMIN[1])
    assignment = hsm.grant(ENCRYPTION_USER, STORAGE[1])
    kek = hsm.create_kek("kek")
    return hsm, Storage(tmp_path / "s", hsm, kek, **options).start(), assignment


def test_role_removed_and_given_back(tmp_path):
    hsm, storage, assignment = own_pair(tmp_path, dek_cache_ttl_secs=1)
    s3 = storage.client()
    s3.create_bucket(Bucket="bkt-r")
    s3.put_object(Bucket="bkt-r", Key="k", Body=b"x")
    hsm("DELETE", f"{ROLES}/{assignment}")
    took = until(2.5, lambda: fails_with("AccessDenied", lambda: s3.get_object(Bucket="bkt-r", Key="k")), "reads are denied")
    print(f"role removed: reads denied after {took:.2f} s with a TTL of 1 s")
    refused("AccessDenied", 403, s3.put_object, Bucket="bkt-r", Key="k", Body=b"y")
    hsm.grant(ENCRYPTION_USER, STORAGE[1])
    assert s3.get_object(Bucket="bkt-r", Key="k")["Body"].read() == b"x"
    storage.stop()
    hsm.stop()


def test_hsm_stopped_and_restarted(tmp_path):
    hsm, storage, _ = own_pair(tmp_path, dek_cache_ttl_secs=1, kek_poll_secs=1)
    s3 = storage.client()
    s3.create_bucket(Bucket="bkt-h")
    s3.put_object(Bucket="bkt-h", Key="k", Body=b"x")
    upload = s3.create_multipart_upload(Bucket="bkt-h", Key="m")["UploadId"]
    hsm.stop()
    until(3, lambda: fails_with("ServiceUnavailable", lambda: s3.get_object(Bucket="bkt-h", Key="k")), "503")
    refused("ServiceUnavailable", 503, s3.put_object, Bucket="bkt-h", Key="k", Body=b"y")
    refused("ServiceUnavailable", 503, s3.create_bucket, Bucket="bkt-h2")
    assert s3.list_objects_v2(Bucket="bkt-h")["KeyCount"] == 1
    s3.abort_multipart_upload(Bucket="bkt-h", Key="m", UploadId=upload)
    until(4, lambda: requests.get(storage.url + "/readyz", timeout=1).json()["status"] == "degraded", "readiness says so")
    # It starts, and lists, while the HSM is away.
    storage.stop()
    storage.start()
    assert s3.head_object(Bucket="bkt-h", Key="k")["ContentLength"] == 1
    refused("ServiceUnavailable", 503, s3.get_object, Bucket="bkt-h", Key="k")
    hsm.start()
    until(5, lambda: not fails_with("ServiceUnavailable", lambda: s3.get_object(Bucket="bkt-h", Key="k")), "the data is back")
    assert s3.get_object(Bucket="bkt-h", Key="k")["Body"].read() == b"x"
    until(4, lambda: requests.get(storage.url + "/readyz", timeout=1).json()["status"] == "ready", "ready again")
    storage.stop()
    hsm.stop()


def test_outage_grace_is_opt_in_and_ends_with_a_denial(tmp_path):
    hsm, storage, assignment = own_pair(tmp_path, dek_cache_ttl_secs=1, outage_grace_secs=600)
    s3 = storage.client()
    s3.create_bucket(Bucket="bkt-g")
    s3.put_object(Bucket="bkt-g", Key="k", Body=b"x")
    assert s3.get_object(Bucket="bkt-g", Key="k")["Body"].read() == b"x"
    hsm.stop()
    time.sleep(1.5)
    assert s3.get_object(Bucket="bkt-g", Key="k")["Body"].read() == b"x", "grace"
    hsm.start()
    hsm("DELETE", f"{ROLES}/{assignment}")
    refused("AccessDenied", 403, s3.get_object, Bucket="bkt-g", Key="k")
    hsm.stop()
    refused("ServiceUnavailable", 503, s3.get_object, Bucket="bkt-g", Key="k")
    storage.stop()


def test_calls_are_counted(hsm, make_storage, kek):
    ttl = 3
    storage = make_storage(default_kek=kek[1], dek_cache_ttl_secs=ttl)
    s3 = storage.client()
    wraps, unwraps = (lambda: hsm.events("KeyWrap")), (lambda: hsm.events("KeyUnwrap"))
    before = wraps(), unwraps()
    s3.create_bucket(Bucket="bkt-c")
    begun = time.monotonic()
    for number in range(20):
        s3.put_object(Bucket="bkt-c", Key=str(number), Body=os.urandom(1000))
        s3.get_object(Bucket="bkt-c", Key=str(number))["Body"].read()
    assert time.monotonic() - begun < ttl
    assert (wraps() - before[0], unwraps() - before[1]) == (1, 0), "one call for the container, at its creation"
    time.sleep(ttl)
    threads = [threading.Thread(target=lambda n=n: s3.get_object(Bucket="bkt-c", Key=str(n))["Body"].read()) for n in range(20)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert (wraps() - before[0], unwraps() - before[1]) == (1, 1), "one call for the container in each TTL, however many readers"
    before = wraps(), unwraps()
    for number in range(5):
        s3.put_object(Bucket="bkt-c", Key=f"own{number}", Body=b"x", **kms(kek))
    assert (wraps() - before[0], unwraps() - before[1]) == (5, 0), "exactly one for each PUT under its own DEK"
    storage.stop()
    storage.start()
    for _ in range(3):
        for number in range(5):
            s3.get_object(Bucket="bkt-c", Key=f"own{number}")["Body"].read()
    assert (wraps() - before[0], unwraps() - before[1]) == (5, 5), "one for each cold GET, none for a warm one"
    for number in range(5):
        s3.head_object(Bucket="bkt-c", Key=f"own{number}")
        s3.delete_object(Bucket="bkt-c", Key=f"own{number}")
    assert unwraps() - before[1] == 5, "none for HEAD, listing and deletion"


def rewrap(storage, *more):
    command = [BINARY, "storage", "rewrap", "--data-dir", storage.data_dir, *more]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def uses(storage):
    out = subprocess.run([BINARY, "storage", "uses", "--data-dir", storage.data_dir], capture_output=True, text=True, check=True).stdout
    return {line.split()[2]: tuple(map(int, line.split()[:2])) for line in out.splitlines()[1:]}


def test_rotation_rewraps_and_never_encrypts_anew(hsm, make_storage, kek):
    storage = make_storage(default_kek=kek[1], kek_poll_secs=86_400)
    s3 = storage.client()
    s3.create_bucket(Bucket="bkt-w")
    s3.put_object(Bucket="bkt-w", Key="k", Body=b"container" * 20_000)
    for number in range(5):
        s3.put_object(Bucket="bkt-w", Key=f"own/{number}", Body=b"own" * 50_000, **kms(kek))
    (old,) = uses(storage)
    assert uses(storage)[old] == (1, 5)
    blobs = {path: path.read_bytes() for path in storage.blobs()}
    hsm("POST", f"/keys/{kek[0]}/rotate")
    new = hsm("GET", f"/keys/{kek[0]}")["key"]["kid"]
    assert "1 moved" in rewrap(storage) and uses(storage) == {new: (1, 0), old: (0, 5)}
    assert "objects: 1 DEKs seen, 1 moved" in rewrap(storage, "--bucket", "bkt-w", "--prefix", "own/4")
    assert uses(storage)[old] == (0, 4)
    rewrap(storage, "--bucket", "bkt-w")
    assert uses(storage) == {new: (1, 5)}, "nothing depends on the old version"
    assert "objects: 5 DEKs seen, 0 moved" in rewrap(storage, "--bucket", "bkt-w"), "a second run has nothing to do"
    assert {path: path.read_bytes() for path in storage.blobs()} == blobs, "no data was touched"
    hsm("PATCH", old[len(hsm.url):], {"attributes": {"enabled": False}})
    subprocess.run([BINARY, "storage", "forget", "--data-dir", storage.data_dir], check=True, capture_output=True)
    assert s3.get_object(Bucket="bkt-w", Key="k")["Body"].read() == b"container" * 20_000
    assert s3.get_object(Bucket="bkt-w", Key="own/3")["Body"].read() == b"own" * 50_000
    assert s3.head_object(Bucket="bkt-w", Key="own/3")["SSEKMSKeyId"] == kek[1], "told as it was asked for, whatever its version"


def test_a_versionless_kek_is_followed_by_itself(hsm, make_storage, kek):
    storage = make_storage(default_kek=kek[1], kek_poll_secs=1)
    storage.client().create_bucket(Bucket="bkt-v")
    hsm("POST", f"/keys/{kek[0]}/rotate")
    new = hsm("GET", f"/keys/{kek[0]}")["key"]["kid"]
    took = until(4, lambda: list(uses(storage)) == [new], "the container follows its KEK")
    print(f"rotation followed after {took:.2f} s with a poll interval of 1 s")


def test_an_aes_kek_wraps_too(hsm, make_storage):
    name = f"aes-{uuid.uuid4().hex[:8]}"
    hsm("POST", f"/keys/{name}/create", {"kty": "oct-HSM", "key_size": 256, "key_ops": ["wrapKey", "unwrapKey"]})
    storage = make_storage(default_kek=f"{hsm.url}/keys/{name}", dek_cache_ttl_secs=0)
    s3 = storage.client()
    s3.create_bucket(Bucket="bkt-a")
    s3.put_object(Bucket="bkt-a", Key="k", Body=b"x")
    assert s3.get_object(Bucket="bkt-a", Key="k")["Body"].read() == b"x"
