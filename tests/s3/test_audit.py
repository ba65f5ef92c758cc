"""The audit log of storage: each change and each denial has its one event; no change is without."""
import collections
import concurrent.futures
import json
import os
import signal
import subprocess
import time

import pytest
import requests
from botocore.exceptions import ClientError
from conftest import BINARY, Storage

CONTEXT = ("bucket", "key", "version", "mode", "kek")


def request_id(answer) -> str:
    return answer["ResponseMetadata"]["HTTPHeaders"]["x-amz-request-id"]


def refusal(call, **arguments) -> tuple[str, str]:
    with pytest.raises(ClientError) as refused:
        call(**arguments)
    return refused.value.response["Error"]["Code"], request_id(refused.value.response)


def answer_of(call, **arguments) -> str | None:
    try:
        call(**arguments)
        return None
    except ClientError as refused:
        return refused.response["Error"]["Code"]


def event_of(storage, answer, **more) -> dict:
    """The one event of a request."""
    wanted = answer if isinstance(answer, str) else request_id(answer)
    found = storage.events_of(wanted)
    assert len(found) == 1, found
    assert all(found[0].get(name) == value for name, value in more.items()), found[0]
    return found[0]


@pytest.fixture
def own(make_storage):
    return make_storage()


def test_each_change_has_its_one_event(storage, s3, bucket, keks):
    answers = {}

    def done(operation, answer, **context):
        answers[request_id(answer)] = (operation, context)
        return answer
    key = {"Bucket": bucket, "Key": "a/ö b"}
    done("PutObject", s3.put_object(**key, Body=b"1"), key=key["Key"], mode="SSE-S3")
    own_key = done("PutObject", s3.put_object(**key, Body=b"2", ServerSideEncryption="aws:kms", SSEKMSKeyId=keks[0]), mode="SSE-KMS")
    done("PutObject", s3.put_object(**key, Body=b"3", SSECustomerAlgorithm="AES256", SSECustomerKey=b"k" * 32), mode="SSE-C")
    done("PutBucketVersioning", s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}), versioning="Enabled")
    version = done("PutObject", s3.put_object(**key, Body=b"4"))["VersionId"]
    answers[request_id(own_key)][1]["key"] = key["Key"]
    done("PutObjectTagging", s3.put_object_tagging(**key, Tagging={"TagSet": [{"Key": "t", "Value": "u"}]}), version=version)
    done("DeleteObjectTagging", s3.delete_object_tagging(**key), version=version)
    done("CopyObject", s3.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": key["Key"]}), source_key=key["Key"], key="copy")
    marker = done("DeleteObject", s3.delete_object(**key), delete_marker="true")["VersionId"]
    done("DeleteObject", s3.delete_object(**key, VersionId=marker), version=marker)
    upload = {"Bucket": bucket, "Key": "m"} | {"UploadId": done("CreateMultipartUpload", s3.create_multipart_upload(Bucket=bucket, Key="m"))["UploadId"]}
    etag = done("UploadPart", s3.upload_part(**upload, PartNumber=1, Body=b"p"), upload=upload["UploadId"], part="1")["ETag"]
    done("CompleteMultipartUpload", s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]}), upload=upload["UploadId"])
    aborted = s3.create_multipart_upload(Bucket=bucket, Key="gone")
    done("AbortMultipartUpload", s3.abort_multipart_upload(Bucket=bucket, Key="gone", UploadId=aborted["UploadId"]), upload=aborted["UploadId"])
    done("PutBucketTagging", s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": [{"Key": "t", "Value": "u"}]}))
    done("DeleteBucketTagging", s3.delete_bucket_tagging(Bucket=bucket))
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": keks[1]}}
    done("PutBucketEncryption", s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": [rule]}), mode="SSE-KMS", kek=keks[1])
    done("DeleteBucketEncryption", s3.delete_bucket_encryption(Bucket=bucket), mode="SSE-S3")
    done("CreateBucket", s3.create_bucket(Bucket=f"{bucket}-2"))
    done("DeleteBucket", s3.delete_bucket(Bucket=f"{bucket}-2"))
    for answer, (operation, context) in answers.items():
        event = event_of(storage, answer, operation=operation, outcome="allowed")
        assert event["caller"]["oid"] == "alice" and event["context"]["access_key"] == storage.keys["alice"][0]
        assert event["source"].startswith("127.0.0.1:")
        assert {name: event["context"].get(name) for name in context} == context, event
    assert event_of(storage, own_key)["context"]["kek"].startswith(keks[0] + "/"), "the version that wraps"


def test_each_object_of_a_batch_has_its_event(storage, s3, bucket):
    keys = [f"k{number}" for number in range(40)]
    for key in keys[:3]:
        s3.put_object(Bucket=bucket, Key=key, Body=b"")
    objects = [{"Key": key} for key in keys] + [{"Key": "k0", "ETag": "00"}, {"Key": "k1", "VersionId": "never"}]
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": objects})
    assert {error["Code"] for error in answer["Errors"]} == {"NoSuchKey", "NoSuchVersion"}
    found = storage.events_of(request_id(answer))
    outcomes = collections.Counter((event["context"]["key"], event["outcome"]) for event in found)
    assert outcomes == {**{(key, "allowed"): 1 for key in keys}, ("k0", "failed"): 1, ("k1", "failed"): 1}
    assert {event["operation"] for event in found} == {"DeleteObjects"}


def test_a_data_key_of_a_bucket_is_told_beside_the_object(storage, s3, bucket, keks):
    answers = [s3.put_object(Bucket=bucket, Key="k", Body=b"", ServerSideEncryption="aws:kms", SSEKMSKeyId=keks[1], BucketKeyEnabled=True) for _ in range(2)]
    told = [[event["operation"] for event in storage.events_of(request_id(answer))] for answer in answers]
    assert told == [["CreateBucketDataKey", "PutObject"], ["PutObject"]]


def test_reads_are_told_with_what_they_read(storage, s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"body")
    for operation, answer in [
        ("GetObject", s3.get_object(Bucket=bucket, Key="k")), ("HeadObject", s3.head_object(Bucket=bucket, Key="k")),
        ("ListObjectsV2", s3.list_objects_v2(Bucket=bucket)), ("ListBuckets", s3.list_buckets()), ("HeadBucket", s3.head_bucket(Bucket=bucket)),
    ]:
        event = event_of(storage, answer, operation=operation, outcome="allowed", status=200)
        assert event["context"].get("key") == ("k" if "Object" in operation and "List" not in operation else None)
        assert event["context"].get("mode") == ("SSE-S3" if operation in ("GetObject", "HeadObject") else None)
    code, missing = refusal(s3.get_object, Bucket=bucket, Key="none")
    assert code == event_of(storage, missing, outcome="failed", status=404)["error"] == "NoSuchKey"


def test_denials_are_told(storage, s3, bucket):
    bob = storage.client("bob")
    for call, more in [(bob.get_object, {"Key": "k"}), (bob.put_object, {"Key": "k", "Body": b""}), (bob.delete_bucket, {}), (bob.list_objects_v2, {})]:
        code, denied = refusal(call, Bucket=bucket, **more)
        event = event_of(storage, denied, outcome="denied", status=403, error="AccessDenied")
        assert code == "AccessDenied" and event["caller"]["oid"] == "bob" and event["context"]["bucket"] == bucket
    expected = refusal(s3.list_objects_v2, Bucket=bucket, ExpectedBucketOwner="123456789012")
    assert event_of(storage, expected[1], outcome="denied")["caller"]["oid"] == "alice"


def test_strangers_are_told_and_do_not_fill_the_disk(own):
    url = own.url + "/some-bucket/key"
    before = len(own.events())
    began = time.monotonic()
    with requests.Session() as session:
        for number in range(300):
            headers = {"Authorization": f"AWS4-HMAC-SHA256 Credential=AK{number}/20261126/us-east-1/s3/aws4_request,SignedHeaders=host,Signature=00"}
            assert session.get(url, headers=headers if number % 2 else {}).status_code in (400, 403)
    seconds = time.monotonic() - began
    deadline = time.monotonic() + 30

    def told() -> list[dict]:
        return [event for event in own.events()[before:] if "caller" not in event]
    while sum(int(event["context"].get("count", "1")) for event in map(lambda event: {"context": {}} | event, told())) < 300:
        assert time.monotonic() < deadline, told()
        time.sleep(0.1)
    assert sum(int(event.get("context", {}).get("count", "1")) for event in told()) == 300
    assert len(told()) <= 40 * (seconds + 2), "they are counted together"
    assert all(event["source"].startswith("127.0.0.1") for event in told())


def test_reads_can_be_left_out_and_denials_cannot(make_storage):
    quiet = make_storage(more="[audit]\nreads = false\n")
    s3 = quiet.client()
    s3.create_bucket(Bucket="quiet")
    put = s3.put_object(Bucket="quiet", Key="k", Body=b"1")
    reads = [s3.get_object(Bucket="quiet", Key="k"), s3.list_objects_v2(Bucket="quiet")]
    _, missing = refusal(s3.get_object, Bucket="quiet", Key="none")
    _, denied = refusal(quiet.client("bob").get_object, Bucket="quiet", Key="k")
    event_of(quiet, put, operation="PutObject")
    event_of(quiet, denied, operation="GetObject", outcome="denied")
    assert [quiet.events_of(wanted) for wanted in (*map(request_id, reads), missing)] == [[], [], []]


def test_acts_on_keys_are_told(own, hsm):
    s3, kek = own.client(), hsm.create_kek("audited")
    s3.create_bucket(Bucket="keys")
    s3.put_object(Bucket="keys", Key="k", Body=b"1", ServerSideEncryption="aws:kms", SSEKMSKeyId=kek)
    hsm.rotate("audited") if hasattr(hsm, "rotate") else None
    for command in (["rewrap", "--data-dir", own.data_dir, "--bucket", "keys"], ["forget", "--data-dir", own.data_dir], ["uses", "--data-dir", own.data_dir]):
        subprocess.run([BINARY, "storage", *map(str, command)], check=True, capture_output=True)
    told = {event["operation"]: event for event in own.events() if event["caller"]["oid"] == "system"}
    assert {"RewrapBuckets", "RewrapObjects", "ForgetDataKeys", "CountKekUses"} <= told.keys()
    assert told["ForgetDataKeys"]["context"] == {"uid": str(os.getuid()), "forgotten": told["ForgetDataKeys"]["context"]["forgotten"]}


def test_the_log_verifies_and_health_tells_its_length(own):
    own.client().create_bucket(Bucket="verified")
    lines = requests.get(own.url + "/readyz", timeout=5).json()["audit_lines"]
    assert lines > 0
    own.stop()
    done = subprocess.run([BINARY, "audit", "verify", "--log", own.data_dir / "audit", "--json"], capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert report["ok"] and report["lines"] >= lines, report
    tail = subprocess.run([BINARY, "audit", "tail", "--log", own.data_dir / "audit", "-n", "20"], capture_output=True, text=True)
    assert "CreateBucket" in tail.stdout, tail


def refused_start(storage) -> str:
    done = subprocess.run([BINARY, "storage", "serve", "--config", storage.directory / "storage.toml"], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    return done.stdout + done.stderr


def test_an_index_opens_with_its_own_instance_alone(make_storage):
    one, other = make_storage(), make_storage()
    one.client().create_bucket(Bucket="kept")
    one.stop()
    other.stop()
    state, silicon = one.data_dir / "instance.sealed", one.data_dir.with_name("d.silicon")
    kept = state.read_bytes(), silicon.read_bytes()
    state.unlink()
    assert "instance.sealed is missing" in refused_start(one)
    state.touch(mode=0o600)
    state.write_bytes((other.data_dir / "instance.sealed").read_bytes())
    silicon.write_bytes(other.data_dir.with_name("d.silicon").read_bytes())
    assert "belongs to instance" in refused_start(one)
    # The control: with what belongs to it, it opens.
    state.write_bytes(kept[0])
    silicon.write_bytes(kept[1])
    one.start()
    assert [bucket["Name"] for bucket in one.client().list_buckets()["Buckets"]] == ["kept"]


@pytest.fixture
def small_log(tmp_path, hsm):
    """A service whose log lies in a file system of its own, of 4 MiB."""
    made = Storage(tmp_path / "s", hsm, f"{hsm.url}/keys/default")
    (made.data_dir / "audit").mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", made.data_dir / "audit"], capture_output=True, text=True)
    assert mounted.returncode == 0, f"this test mounts a file system, as root: {mounted.stderr}"
    yield made.start()
    made.stop()
    subprocess.run(["umount", "-l", made.data_dir / "audit"], check=True)
    assert "panicked" not in made.log.read_text()


def fill(path) -> None:
    """Takes what is left of a file system."""
    with open(path, "wb", buffering=0) as file:
        for size in (64 * 1024, 1):
            with pytest.raises(OSError):
                while file.write(bytes(size)) == size:
                    pass
                raise OSError("written in part")


def test_nothing_happens_without_its_event_while_the_log_cannot_be_written(small_log):
    s3 = small_log.client()
    s3.create_bucket(Bucket="told")
    filler = small_log.data_dir / "audit" / "filler"
    fill(filler)
    acknowledged, refused = [], None
    # Events of changes wait in the index, as many as may; then there are no more changes. A read waits for its own event.
    codes = {answer_of(s3.list_buckets) for _ in range(100)} - {None}
    assert codes == {"ServiceUnavailable"}, "but those that fit into the last page"
    for number in range(20_000):
        try:
            acknowledged.append(request_id(s3.put_object(Bucket="told", Key=f"k{number}", Body=b"")))
        except ClientError as error:
            refused = number, error.response["Error"]["Code"]
            break
    assert refused and refused[1] == "ServiceUnavailable"
    told = requests.get(small_log.url + "/readyz", timeout=5).json()
    assert told["status"] == "degraded" and told["audit_fault"] and told["audit_waiting"] > 0, told
    filler.unlink()
    deadline = time.monotonic() + 30
    while (audit := requests.get(small_log.url + "/readyz", timeout=5).json()).get("audit_fault") or audit["audit_waiting"]:
        assert time.monotonic() < deadline, audit
        time.sleep(0.1)
    acknowledged.append(request_id(s3.put_object(Bucket="told", Key="after", Body=b"")))
    keys = [entry["Key"] for page in s3.get_paginator("list_objects_v2").paginate(Bucket="told") for entry in page["Contents"]]
    assert len(keys) == len(acknowledged) and f"k{refused[0]}" not in keys, "no change without its event"
    small_log.settle()
    told = collections.Counter(event["request_id"] for event in small_log.events())
    assert all(told[wanted] == 1 for wanted in acknowledged)


def test_events_of_a_service_that_was_killed_are_told_once(small_log):
    """Changes whose events the log does not have yet when the process dies."""
    s3 = small_log.client()
    s3.create_bucket(Bucket="told")
    filler = small_log.data_dir / "audit" / "filler"
    fill(filler)
    acknowledged = [request_id(s3.put_object(Bucket="told", Key=f"k{number}", Body=b"")) for number in range(50)]
    small_log.stop(signal.SIGKILL)
    filler.unlink()
    for _ in range(2):
        small_log.start()
        small_log.settle()
        told = collections.Counter(event["request_id"] for event in small_log.events())
        assert all(told[wanted] == 1 for wanted in acknowledged)
        small_log.stop(signal.SIGKILL)


def test_updates_of_one_object_at_the_same_time_are_told_as_they_happened(storage, s3, bucket, keks):
    clients = [storage.client() for _ in range(4)]
    for _ in range(6):
        s3.put_object(Bucket=bucket, Key="k", Body=b"1", ServerSideEncryption="aws:kms")
        ask = lambda at: clients[at].update_object_encryption(Bucket=bucket, Key="k", ObjectEncryption={"SSEKMS": {"KMSKeyArn": keks[at % 2]}})
        with concurrent.futures.ThreadPoolExecutor(4) as at_once:
            for answer in at_once.map(ask, range(4)):
                event_of(storage, answer, operation="UpdateObjectEncryption", outcome="allowed")
        told = [event for event in storage.events() if event["operation"] == "UpdateObjectEncryption" and event["context"]["bucket"] == bucket]
        assert told[-1]["context"]["kek"].startswith(s3.head_object(Bucket=bucket, Key="k")["SSEKMSKeyId"])
        # Each goes on from what the one before left.
        own = told[-4:]
        assert [event["context"]["from_kek"] for event in own[1:]] == [event["context"]["kek"] for event in own[:-1]]
