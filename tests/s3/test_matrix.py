"""Every mode of encryption to every other, single and multipart: copy, ranges at every chunk edge, presigned URLs."""
import base64
import hashlib
import itertools
import os

import pytest
import requests

MODES = ["sse-s3", "kms-a", "kms-b", "sse-c", "default"]
CHUNK = 65536
PART = 5 * 1024 * 1024
CUSTOMER_KEY = hashlib.sha256(b"the customer's key").digest()
SMALL = os.urandom(3 * CHUNK + 1000)
LARGE = os.urandom(PART + 2 * CHUNK + 7)


@pytest.fixture(scope="module", params=["managed-hsm", "hosted", "external"])
def keks(request, hsm, kms):
    """Two KEKs under each architecture: in a Managed HSM, hosted by a KMS, behind it in an external key store."""
    return {"managed-hsm": (f"{hsm.url}/keys/kek-a", f"{hsm.url}/keys/kek-b"), "hosted": tuple(kms.hosted),
            "external": (kms.keys["kek-a"], kms.keys["kek-b"])}[request.param]


def write_args(mode, keks):
    return {"sse-s3": {"ServerSideEncryption": "AES256"}, "default": {},
            "kms-a": {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": keks[0]},
            "kms-b": {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": keks[1]},
            "sse-c": {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": CUSTOMER_KEY}}[mode]


def read_args(mode):
    return {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": CUSTOMER_KEY} if mode == "sse-c" else {}


def source_args(mode):
    return {"CopySource" + name: value for name, value in read_args(mode).items()}


def put(s3, bucket, key, mode, keks, multipart):
    if not multipart:
        s3.put_object(Bucket=bucket, Key=key, Body=SMALL, **write_args(mode, keks))
        return SMALL
    upload = s3.create_multipart_upload(Bucket=bucket, Key=key, **write_args(mode, keks))["UploadId"]
    pieces = [LARGE[:PART], LARGE[PART:]]
    parts = [{"PartNumber": number, "ETag": s3.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=piece, **read_args(mode))["ETag"]}
             for number, piece in enumerate(pieces, 1)]
    s3.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts})
    return LARGE


def check_told(answer, mode, keks):
    if mode == "sse-c":
        assert answer["SSECustomerAlgorithm"] == "AES256" and "ServerSideEncryption" not in answer
        assert answer["SSECustomerKeyMD5"] == base64.b64encode(hashlib.md5(CUSTOMER_KEY).digest()).decode()
    elif mode in ("kms-a", "kms-b"):
        kek = keks[0] if mode == "kms-a" else keks[1]
        assert answer["ServerSideEncryption"] == "aws:kms" and (answer["SSEKMSKeyId"] + "/").startswith(kek + "/")
    else:
        assert answer["ServerSideEncryption"] == "AES256" and "SSEKMSKeyId" not in answer


@pytest.fixture(scope="module")
def shelf(s3, keks):
    """One object of each mode and kind, made once."""
    if "matrix" not in {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}:
        s3.create_bucket(Bucket="matrix")
    made = {}
    for mode, multipart in itertools.product(MODES, (False, True)):
        key = f"{mode}-{'multi' if multipart else 'single'}"
        made[mode, multipart] = (key, put(s3, "matrix", key, mode, keks, multipart))
    return made


@pytest.mark.parametrize("multipart", [False, True], ids=["single", "multi"])
@pytest.mark.parametrize("mode", MODES)
def test_read_back_and_told(s3, shelf, keks, mode, multipart):
    key, body = shelf[mode, multipart]
    answer = s3.get_object(Bucket="matrix", Key=key, **read_args(mode))
    assert answer["Body"].read() == body
    check_told(answer, mode, keks)
    head = s3.head_object(Bucket="matrix", Key=key, **read_args(mode))
    check_told(head, mode, keks)
    assert head["ContentLength"] == len(body)
    md5 = hashlib.md5(body).hexdigest()
    if not multipart:
        # The MD5 where AWS has it, and never where it would be a fingerprint of secret data.
        assert (head["ETag"] == f'"{md5}"') == (mode in ("sse-s3", "default"))


@pytest.mark.parametrize("multipart", [False, True], ids=["single", "multi"])
@pytest.mark.parametrize("mode", MODES)
def test_ranges_at_every_chunk_edge(s3, shelf, mode, multipart):
    key, body = shelf[mode, multipart]
    edges = [at for at in range(0, len(body) + CHUNK, CHUNK) if at <= len(body)]
    if multipart:
        edges = edges[:3] + edges[-4:] + [PART, PART + CHUNK]
    points = sorted({min(max(edge + delta, 0), len(body) - 1) for edge in edges + [len(body)] for delta in (-1, 0, 1)})
    for first, last in itertools.combinations(points[:4] + points[-5:] + ([PART - 1, PART, PART + 1] if multipart else []), 2):
        if first > last:
            continue
        answer = s3.get_object(Bucket="matrix", Key=key, Range=f"bytes={first}-{last}", **read_args(mode))
        assert answer["Body"].read() == body[first:last + 1], (first, last)
        assert answer["ContentRange"] == f"bytes {first}-{last}/{len(body)}"
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert s3.get_object(Bucket="matrix", Key=key, Range="bytes=-10", **read_args(mode))["Body"].read() == body[-10:]


@pytest.mark.parametrize("multipart", [False, True], ids=["single", "multi"])
@pytest.mark.parametrize("target", MODES)
@pytest.mark.parametrize("mode", MODES)
def test_copy(s3, shelf, keks, mode, target, multipart):
    key, body = shelf[mode, multipart]
    copied = f"copy-{key}-{target}"
    answer = s3.copy_object(Bucket="matrix", Key=copied, CopySource={"Bucket": "matrix", "Key": key},
                            **source_args(mode), **write_args(target, keks))
    check_told(answer, target, keks)
    answer = s3.get_object(Bucket="matrix", Key=copied, **read_args(target))
    assert answer["Body"].read() == body
    check_told(answer, target, keks)
    s3.delete_object(Bucket="matrix", Key=copied)


@pytest.mark.parametrize("target", MODES)
@pytest.mark.parametrize("mode", MODES)
def test_part_copy(s3, shelf, keks, mode, target):
    key, body = shelf[mode, True]
    copied = f"part-copy-{mode}-{target}"
    upload = s3.create_multipart_upload(Bucket="matrix", Key=copied, **write_args(target, keks))["UploadId"]
    ranges = [(0, PART - 1), (PART - 3, len(body) - 1)]
    parts = []
    for number, (first, last) in enumerate(ranges, 1):
        result = s3.upload_part_copy(Bucket="matrix", Key=copied, UploadId=upload, PartNumber=number, CopySource={"Bucket": "matrix", "Key": key},
                                     CopySourceRange=f"bytes={first}-{last}", **source_args(mode), **read_args(target))
        parts.append({"PartNumber": number, "ETag": result["CopyPartResult"]["ETag"]})
    s3.complete_multipart_upload(Bucket="matrix", Key=copied, UploadId=upload, MultipartUpload={"Parts": parts})
    expected = b"".join(body[first:last + 1] for first, last in ranges)
    assert s3.get_object(Bucket="matrix", Key=copied, **read_args(target))["Body"].read() == expected
    s3.delete_object(Bucket="matrix", Key=copied)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "sse-c"])
def test_presigned(s3, shelf, keks, mode):
    key, body = shelf[mode, False]
    url = s3.generate_presigned_url("get_object", {"Bucket": "matrix", "Key": key})
    assert requests.get(url, timeout=10).content == body
    assert requests.get(url, headers={"Range": "bytes=65535-65536"}, timeout=10).content == body[65535:65537]
    target = f"presigned-{mode}"
    url = s3.generate_presigned_url("put_object", {"Bucket": "matrix", "Key": target, **write_args(mode, keks)})
    headers = {"sse-s3": {"x-amz-server-side-encryption": "AES256"}, "default": {}}.get(
        mode, {"x-amz-server-side-encryption": "aws:kms", "x-amz-server-side-encryption-aws-kms-key-id": keks[0 if mode == "kms-a" else 1]})
    answer = requests.put(url, data=body, headers=headers, timeout=10)
    assert answer.status_code == 200, answer.text
    stored = s3.get_object(Bucket="matrix", Key=target)
    assert stored["Body"].read() == body
    check_told(stored, mode, keks)
    if headers:
        # The URL itself asks for the encryption, and its signature covers that: without it, it is another request.
        assert requests.put(url, data=body, timeout=10).status_code == 200
        check_told(s3.get_object(Bucket="matrix", Key=target), mode, keks)
        address, query = url.split("?")
        without = "&".join(pair for pair in query.split("&") if not pair.startswith("x-amz-server-side-encryption"))
        assert without != query and requests.put(f"{address}?{without}", data=body, timeout=10).status_code == 403


def test_bucket_default_applies_to_new_writes(s3, keks, bucket):
    s3.put_object(Bucket=bucket, Key="before", Body=b"x")
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": keks[0]}, "BucketKeyEnabled": False}
    s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": [rule]})
    assert s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"] == [rule]
    check_told(s3.put_object(Bucket=bucket, Key="after", Body=b"x"), "kms-a", keks)
    check_told(s3.head_object(Bucket=bucket, Key="before"), "sse-s3", keks)
    check_told(s3.put_object(Bucket=bucket, Key="said", Body=b"x", ServerSideEncryption="AES256"), "sse-s3", keks)
    # A copy without headers takes the destination's default, not the source's encryption.
    check_told(s3.copy_object(Bucket=bucket, Key="copied", CopySource={"Bucket": bucket, "Key": "before"}), "kms-a", keks)
    upload = s3.create_multipart_upload(Bucket=bucket, Key="multi")
    check_told(upload, "kms-a", keks)
    s3.abort_multipart_upload(Bucket=bucket, Key="multi", UploadId=upload["UploadId"])
    s3.delete_bucket_encryption(Bucket=bucket)
    check_told(s3.put_object(Bucket=bucket, Key="again", Body=b"x"), "sse-s3", keks)


def asked(hsm, kms) -> tuple[int, int]:
    """How often storage had something wrapped and unwrapped, by the audit logs of both key services."""
    events = [event["operation"] for event in kms.service.events() if event["caller"]["oid"].endswith("role/storage")]
    return hsm.events("KeyWrap") + events.count("Encrypt"), hsm.events("KeyUnwrap") + events.count("Decrypt")


def test_bucket_keys(s3, hsm, kms, keks, bucket):
    before = asked(hsm, kms)
    for number in range(10):
        answer = s3.put_object(Bucket=bucket, Key=str(number), Body=b"x", ServerSideEncryption="aws:kms", SSEKMSKeyId=keks[1], BucketKeyEnabled=True)
        assert answer["BucketKeyEnabled"] is True
        check_told(answer, "kms-b", keks)
        assert s3.get_object(Bucket=bucket, Key=str(number))["BucketKeyEnabled"] is True
    after = asked(hsm, kms)
    assert after[0] - before[0] == 1 and after[1] == before[1], "one DEK for all ten objects"
