"""Deletions: many versions at once, what replaced objects leave behind, buckets with open uploads, requests that are sent again."""
import os
import threading
import time

import pytest
import requests
from botocore.exceptions import ClientError

MIB = 1024 * 1024
PART = 5 * MIB


def refused(code, status, call, *args, **more):
    with pytest.raises(ClientError) as caught:
        call(*args, **more)
    response = caught.value.response
    assert (response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]) == (code, status), response
    return response["Error"]


def until(seconds, check, what):
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def versioned(s3, bucket):
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})


def blob_bytes(storage):
    return sum(path.stat().st_size for path in storage.blobs() if path.exists())


def test_a_thousand_versions_of_one_key(s3, storage, bucket):
    """While they are deleted, others write; how much each commit looks at is a unit test (storage/src/ops/tests.rs)."""
    versioned(s3, bucket)
    body = os.urandom(20_000)
    versions = [s3.put_object(Bucket=bucket, Key="k", Body=body)["VersionId"] for _ in range(1000)]
    other, stop, written = storage.client(), threading.Event(), []

    def write():
        while not stop.is_set():
            other.put_object(Bucket=bucket, Key="other", Body=b"x")
            written.append(1)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k", "VersionId": version} for version in versions]})
    finally:
        stop.set()
        writer.join()
    assert len(answer["Deleted"]) == 1000 and "Errors" not in answer and written
    assert [entry["Key"] for entry in s3.list_object_versions(Bucket=bucket, Prefix="k").get("Versions", [])] == []
    refused("NoSuchKey", 404, s3.get_object, Bucket=bucket, Key="k")


def test_whichever_versions_go_the_newest_of_the_rest_is_current(s3, bucket):
    versioned(s3, bucket)
    versions = [s3.put_object(Bucket=bucket, Key="k", Body=str(number).encode())["VersionId"] for number in range(6)]
    marker = s3.delete_object(Bucket=bucket, Key="k")["VersionId"]
    doomed = [marker, versions[5], versions[3], versions[0], versions[5]]
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k", "VersionId": version} for version in doomed]})
    assert len(answer["Deleted"]) == 5
    assert [entry.get("DeleteMarkerVersionId") for entry in answer["Deleted"]] == [marker, None, None, None, None]
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"4"
    assert [entry["VersionId"] for entry in s3.list_object_versions(Bucket=bucket)["Versions"]] == [versions[n] for n in (4, 2, 1)]


def test_ids_that_never_were_versions(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    for call in (s3.delete_object, s3.get_object, s3.head_object, s3.get_object_tagging):
        expected = ("400", 400) if call == s3.head_object else ("InvalidArgument", 400)
        refused(*expected, call, Bucket=bucket, Key="k", VersionId="HPniJFCxqTsMuIH9KX8K8wEjNUgmABCD")
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k", "VersionId": "HPniJFCxqTsMuIH9KX8K8wEjNUgmABCD"}]})
    assert [entry["Code"] for entry in answer["Errors"]] == ["NoSuchVersion"]
    unknown = "0" * 32
    refused("NoSuchVersion", 404, s3.get_object, Bucket=bucket, Key="k", VersionId=unknown)
    assert s3.delete_object(Bucket=bucket, Key="k", VersionId=unknown)["VersionId"] == unknown
    assert s3.get_object(Bucket=bucket, Key="k", VersionId="null")["Body"].read() == b"x"


def test_replaced_objects_leave_the_disk(make_storage):
    storage = make_storage()
    s3 = storage.client()
    s3.create_bucket(Bucket="bkt-r")
    for number in range(10):
        s3.put_object(Bucket="bkt-r", Key="k", Body=os.urandom(MIB))
    until(10, lambda: len(storage.blobs()) == 1, "replaced blobs are gone")
    s3.delete_object(Bucket="bkt-r", Key="k")
    until(10, lambda: storage.blobs() == [], "a deleted one is, too")


def test_a_replaced_object_stays_for_its_reader_and_no_longer(make_storage):
    storage = make_storage()
    s3 = storage.client()
    s3.create_bucket(Bucket="bkt-r")
    body = os.urandom(32 * MIB)
    s3.put_object(Bucket="bkt-r", Key="read", Body=body)
    s3.put_object(Bucket="bkt-r", Key="other", Body=os.urandom(MIB))
    upload = s3.create_multipart_upload(Bucket="bkt-r", Key="parts")["UploadId"]
    parts = []
    for number in range(1, 4):
        etag = s3.upload_part(Bucket="bkt-r", Key="parts", UploadId=upload, PartNumber=number, Body=body[:8 * MIB])["ETag"]
        parts.append({"PartNumber": number, "ETag": etag})
    s3.complete_multipart_upload(Bucket="bkt-r", Key="parts", UploadId=upload, MultipartUpload={"Parts": parts})
    url = lambda key: s3.generate_presigned_url("get_object", {"Bucket": "bkt-r", "Key": key})
    with requests.get(url("read"), stream=True, timeout=30) as one, requests.get(url("parts"), stream=True, timeout=30) as parted:
        first = one.raw.read(MIB)
        begun = parted.raw.read(MIB)
        s3.put_object(Bucket="bkt-r", Key="read", Body=b"new, and small")
        s3.delete_object(Bucket="bkt-r", Key="other")
        s3.delete_object(Bucket="bkt-r", Key="parts")
        until(10, lambda: len(storage.blobs()) == 4, "what nobody reads goes, whoever reads something else")
        time.sleep(1)
        assert first + one.raw.read() == body
        assert begun + parted.raw.read() == body[:8 * MIB] * 3
    until(10, lambda: storage.blobs() == [], "with the last reader the rest goes")
    assert s3.get_object(Bucket="bkt-r", Key="read")["Body"].read() == b"new, and small"


def test_readers_of_an_object_that_is_rewritten_all_the_time(make_storage):
    """Each gets one of its states, whole, and none an error: looking and holding are one step to the collector."""
    storage = make_storage()
    clients = [storage.client() for _ in range(5)]
    clients[0].create_bucket(Bucket="bkt-w")
    rewritten, stop, faults, read = [0], threading.Event(), [], []

    def body(number):
        return bytes([number % 251]) * (200_000 + number % 7)

    def write():
        while not stop.is_set():
            clients[0].put_object(Bucket="bkt-w", Key="k", Body=body(rewritten[0]))
            rewritten[0] += 1

    def reads(client):
        while not stop.is_set():
            try:
                found = client.get_object(Bucket="bkt-w", Key="k")["Body"].read()
                assert found[:1] * len(found) == found and len(found) >= 200_000
                read.append(1)
            except Exception as fault:  # noqa: BLE001
                faults.append(fault)
                return
    write_once = clients[0].put_object(Bucket="bkt-w", Key="k", Body=body(0))
    assert write_once["ETag"]
    threads = [threading.Thread(target=write)] + [threading.Thread(target=reads, args=(client,)) for client in clients[1:]]
    [thread.start() for thread in threads]
    time.sleep(4)
    stop.set()
    [thread.join() for thread in threads]
    assert not faults and rewritten[0] > 10 and len(read) > 10, faults
    until(10, lambda: len(storage.blobs()) == 1, "the replaced ones are gone")


def test_a_reader_that_hangs_up_holds_nothing(make_storage):
    storage = make_storage()
    s3 = storage.client()
    s3.create_bucket(Bucket="bkt-h")
    s3.put_object(Bucket="bkt-h", Key="k", Body=os.urandom(32 * MIB))
    url = s3.generate_presigned_url("get_object", {"Bucket": "bkt-h", "Key": "k"})
    answer = requests.get(url, stream=True, timeout=30)
    answer.raw.read(1000)
    s3.delete_object(Bucket="bkt-h", Key="k")
    assert len(storage.blobs()) == 1
    answer.close()
    until(10, lambda: storage.blobs() == [], "the reader is gone")


def test_garbage_of_before_a_crash_goes_after_it(make_storage):
    import signal
    storage = make_storage()
    s3 = storage.client()
    s3.create_bucket(Bucket="bkt-c")
    s3.put_object(Bucket="bkt-c", Key="k", Body=os.urandom(MIB))
    url = s3.generate_presigned_url("get_object", {"Bucket": "bkt-c", "Key": "k"})
    s3.put_object(Bucket="bkt-c", Key="big", Body=os.urandom(32 * MIB))
    held = requests.get(s3.generate_presigned_url("get_object", {"Bucket": "bkt-c", "Key": "big"}), stream=True, timeout=30)
    held.raw.read(1000)
    s3.delete_object(Bucket="bkt-c", Key="big")
    storage.stop(signal.SIGKILL)
    held.close()
    storage.start()
    until(10, lambda: len(storage.blobs()) == 1, "what was garbage is deleted after a restart")
    assert len(requests.get(url, timeout=30).content) == MIB


def test_aborted_uploads_and_replaced_parts_leave_the_disk(make_storage):
    storage = make_storage()
    s3 = storage.client()
    s3.create_bucket(Bucket="bkt-a")
    upload = s3.create_multipart_upload(Bucket="bkt-a", Key="k")["UploadId"]
    for number in (1, 2, 2, 2):
        s3.upload_part(Bucket="bkt-a", Key="k", UploadId=upload, PartNumber=number, Body=os.urandom(MIB))
    until(10, lambda: len(storage.blobs()) == 2, "replaced parts are gone")
    s3.abort_multipart_upload(Bucket="bkt-a", Key="k", UploadId=upload)
    until(10, lambda: storage.blobs() == [], "so are those of an aborted upload")
    # Completed with one of two parts: the other goes, the object stays.
    upload = s3.create_multipart_upload(Bucket="bkt-a", Key="k")["UploadId"]
    etags = {number: s3.upload_part(Bucket="bkt-a", Key="k", UploadId=upload, PartNumber=number, Body=os.urandom(MIB))["ETag"] for number in (1, 2)}
    s3.complete_multipart_upload(Bucket="bkt-a", Key="k", UploadId=upload, MultipartUpload={"Parts": [{"PartNumber": 2, "ETag": etags[2]}]})
    until(10, lambda: len(storage.blobs()) == 1, "the part that was not named is gone")
    assert len(s3.get_object(Bucket="bkt-a", Key="k")["Body"].read()) == MIB


def test_a_bucket_with_an_open_upload_can_be_deleted(make_storage):
    storage = make_storage()
    s3 = storage.client()
    s3.create_bucket(Bucket="bkt-u")
    upload = s3.create_multipart_upload(Bucket="bkt-u", Key="k")["UploadId"]
    for number in (1, 2):
        s3.upload_part(Bucket="bkt-u", Key="k", UploadId=upload, PartNumber=number, Body=os.urandom(MIB))
    s3.put_object(Bucket="bkt-u", Key="object", Body=b"x")
    refused("BucketNotEmpty", 409, s3.delete_bucket, Bucket="bkt-u")
    assert len(s3.list_parts(Bucket="bkt-u", Key="k", UploadId=upload)["Parts"]) == 2, "a refused deletion has aborted nothing"
    s3.delete_object(Bucket="bkt-u", Key="object")
    s3.delete_bucket(Bucket="bkt-u")
    until(10, lambda: storage.blobs() == [], "its parts are gone")
    s3.create_bucket(Bucket="bkt-u")
    assert "Uploads" not in s3.list_multipart_uploads(Bucket="bkt-u")
    refused("NoSuchUpload", 404, s3.upload_part, Bucket="bkt-u", Key="k", UploadId=upload, PartNumber=1, Body=b"x")


def completed(s3, bucket, key, bodies=(b"body",), **args):
    """An upload that is completed, and the request that completed it."""
    upload = s3.create_multipart_upload(Bucket=bucket, Key=key, **args)["UploadId"]
    checksum = {name: value for name, value in args.items() if name == "ChecksumAlgorithm"}
    parts = []
    for number, body in enumerate(bodies, 1):
        etag = s3.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=body, **checksum)["ETag"]
        parts.append({"PartNumber": number, "ETag": etag})
    request = {"Bucket": bucket, "Key": key, "UploadId": upload, "MultipartUpload": {"Parts": parts}}
    return request, s3.complete_multipart_upload(**request)


def told(answer):
    return {name: value for name, value in answer.items() if name != "ResponseMetadata"}


@pytest.mark.parametrize("args", [{}, {"ChecksumAlgorithm": "SHA256"}, {"ServerSideEncryption": "aws:kms"}, {"ServerSideEncryption": "aws:kms", "BucketKeyEnabled": True}])
@pytest.mark.parametrize("versions", [False, True])
def test_a_completion_that_is_sent_again_hears_the_same(s3, bucket, args, versions):
    if versions:
        versioned(s3, bucket)
    request, answer = completed(s3, bucket, "k", [os.urandom(PART), b"end"], **args)
    assert told(s3.complete_multipart_upload(**request)) == told(answer)
    assert told(s3.complete_multipart_upload(**request, IfNoneMatch="*")) == told(answer), "the first made it come true"
    # Whatever became of the object since, it is not made again.
    s3.put_object(Bucket=bucket, Key="k", Body=b"since")
    assert told(s3.complete_multipart_upload(**request)) == told(answer)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"since"
    s3.delete_object(Bucket=bucket, Key="k")
    assert told(s3.complete_multipart_upload(**request)) == told(answer)
    refused("NoSuchKey", 404, s3.get_object, Bucket=bucket, Key="k")
    # Another list of parts is another request, and the upload is no more.
    other = request | {"MultipartUpload": {"Parts": request["MultipartUpload"]["Parts"][:1]}}
    refused("NoSuchUpload", 404, s3.complete_multipart_upload, **other)
    refused("NoSuchUpload", 404, s3.list_parts, Bucket=bucket, Key="k", UploadId=request["UploadId"])
    refused("NoSuchUpload", 404, s3.abort_multipart_upload, Bucket=bucket, Key="k", UploadId=request["UploadId"])
    refused("NoSuchUpload", 404, s3.complete_multipart_upload, **(request | {"Key": "another"}))


def test_completions_are_remembered_over_a_restart(make_storage):
    storage = make_storage()
    s3 = storage.client()
    s3.create_bucket(Bucket="bkt-m")
    request, answer = completed(s3, "bkt-m", "k")
    storage.stop()
    storage.start()
    assert told(s3.complete_multipart_upload(**request)) == told(answer)
    assert s3.get_object(Bucket="bkt-m", Key="k")["Body"].read() == b"body"


def test_the_same_completion_twice_at_once(storage, s3, bucket):
    clients = [storage.client() for _ in range(4)]
    for attempt in range(10):
        upload = s3.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
        etag = s3.upload_part(Bucket=bucket, Key="k", UploadId=upload, PartNumber=1, Body=str(attempt).encode())["ETag"]
        answers, gate = [], threading.Barrier(4)

        def call(client):
            gate.wait()
            parts = {"Parts": [{"PartNumber": 1, "ETag": etag}]}
            answers.append(told(client.complete_multipart_upload(Bucket=bucket, Key="k", UploadId=upload, MultipartUpload=parts)))
        threads = [threading.Thread(target=call, args=(client,)) for client in clients]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert len(answers) == 4 and all(answer == answers[0] for answer in answers)
        assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == str(attempt).encode()


def test_the_kek_is_told_as_it_was_asked_for(s3, hsm, bucket, keks):
    kek = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": keks[0]}
    version = hsm("GET", "/keys/kek-a")["key"]["kid"]
    for asked, args in [(keks[0], kek), (keks[0], kek | {"BucketKeyEnabled": True}), (version, kek | {"SSEKMSKeyId": version})]:
        assert s3.put_object(Bucket=bucket, Key="k", Body=b"x", **args)["SSEKMSKeyId"] == asked
        assert s3.head_object(Bucket=bucket, Key="k")["SSEKMSKeyId"] == asked
        assert s3.get_object(Bucket=bucket, Key="k")["SSEKMSKeyId"] == asked
        s3.put_object(Bucket=bucket, Key="plain", Body=b"x")
        assert s3.copy_object(Bucket=bucket, Key="c", CopySource=f"{bucket}/plain", **args)["SSEKMSKeyId"] == asked
        create = s3.create_multipart_upload(Bucket=bucket, Key="m", **args)
        part = s3.upload_part(Bucket=bucket, Key="m", UploadId=create["UploadId"], PartNumber=1, Body=b"x")
        copied = s3.upload_part_copy(Bucket=bucket, Key="m", UploadId=create["UploadId"], PartNumber=2, CopySource=f"{bucket}/plain")
        parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        done = s3.complete_multipart_upload(Bucket=bucket, Key="m", UploadId=create["UploadId"], MultipartUpload=parts)
        assert {answer["SSEKMSKeyId"] for answer in (create, part, copied, done, s3.head_object(Bucket=bucket, Key="m"))} == {asked}
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": keks[1]}}
    s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": [rule]})
    assert s3.put_object(Bucket=bucket, Key="k", Body=b"x")["SSEKMSKeyId"] == keks[1]
    s3.update_object_encryption(Bucket=bucket, Key="k", ObjectEncryption={"SSEKMS": {"KMSKeyArn": keks[0]}})
    assert s3.head_object(Bucket=bucket, Key="k")["SSEKMSKeyId"] == keks[0]


def test_answers_tell_of_delete_markers(s3, bucket):
    versioned(s3, bucket)
    version = s3.put_object(Bucket=bucket, Key="k", Body=b"x")["VersionId"]
    marker = s3.delete_object(Bucket=bucket, Key="k")["VersionId"]

    def answer(call, **more):
        with pytest.raises(ClientError) as caught:
            call(Bucket=bucket, Key="k", **more)
        response = caught.value.response
        headers = response["ResponseMetadata"]["HTTPHeaders"]
        return response["ResponseMetadata"]["HTTPStatusCode"], headers.get("x-amz-delete-marker"), headers.get("x-amz-version-id"), response["Error"]
    for call in (s3.get_object, s3.head_object):
        assert answer(call)[:3] == (404, "true", marker)
        assert answer(call, VersionId=marker)[:3] == (405, "true", marker)
    assert answer(s3.get_object, VersionId=marker)[3]["ResourceType"] == "DeleteMarker"
    refused("InvalidRequest", 400, s3.copy_object, Bucket=bucket, Key="c", CopySource={"Bucket": bucket, "Key": "k", "VersionId": marker})
    refused("NoSuchKey", 404, s3.copy_object, Bucket=bucket, Key="c", CopySource={"Bucket": bucket, "Key": "k"})
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    request, done = completed(s3, bucket, "m")
    copied = s3.copy_object(Bucket=bucket, Key="c", CopySource={"Bucket": bucket, "Key": "k", "VersionId": version})
    for told_by in (s3.put_object(Bucket=bucket, Key="k", Body=b"x"), done, copied):
        assert "VersionId" not in told_by, "an object that gets no version is told none"
    assert s3.get_object(Bucket=bucket, Key="k")["VersionId"] == "null" and s3.delete_object(Bucket=bucket, Key="k")["VersionId"] == "null"


def test_clients_that_hang_up_lose_nothing(storage, s3, bucket):
    """A commit under way cannot be called back: the key has its old body or its new one, never neither."""
    import socket
    from urllib.parse import urlsplit
    host, port = urlsplit(storage.url).netloc.split(":")
    bodies = {}
    for attempt in range(60):
        key = f"k{attempt}"
        old, new = (bytes([attempt, number]) * 50_000 for number in (1, 2))
        s3.put_object(Bucket=bucket, Key=key, Body=old)
        url = urlsplit(s3.generate_presigned_url("put_object", {"Bucket": bucket, "Key": key}))
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            head = f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: {len(new)}\r\n\r\n"
            raw.sendall(head.encode() + new)
            time.sleep(0.0004 * (attempt % 30))
        bodies[key] = {old, new}
    time.sleep(1)
    for key, allowed in bodies.items():
        assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() in allowed, key
