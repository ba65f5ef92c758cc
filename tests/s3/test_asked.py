"""What is asked for is done, or refused: values, places and forms in which clients ask."""
import base64
import datetime
import hashlib
import hmac
import json
import socket
import urllib.parse
import uuid
import zlib

import pytest
import requests
import signed
from botocore.config import Config
from test_objects import refused

FIVE_MIB = 5 * 1024 * 1024


def read(s3, bucket, key):
    return s3.get_object(Bucket=bucket, Key=key)["Body"].read()


def code(answer):
    status, _, body = answer
    text = body.decode()
    return status, text.split("<Code>")[1].split("</Code>")[0] if "<Code>" in text else ""


def test_values_that_ask_for_what_is_so_anyway_are_taken(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"1", ACL="private", StorageClass="STANDARD", RequestPayer="requester", ExpectedBucketOwner="alice")
    s3.copy_object(Bucket=bucket, Key="c", CopySource=f"{bucket}/k", ACL="bucket-owner-full-control", StorageClass="STANDARD",
                   ExpectedBucketOwner="alice", ExpectedSourceBucketOwner="alice")
    s3.delete_object(Bucket=bucket, Key="c", BypassGovernanceRetention=True, MFA="1 2")
    name = f"n-{uuid.uuid4().hex[:10]}"
    s3.create_bucket(Bucket=name, ACL="private", ObjectOwnership="BucketOwnerEnforced", ObjectLockEnabledForBucket=False)
    for storage_class in ("GLACIER", "REDUCED_REDUNDANCY", "STANDARD_IA"):
        refused("InvalidStorageClass", 400, s3.put_object, Bucket=bucket, Key="k", Body=b"2", StorageClass=storage_class)
    assert read(s3, bucket, "k") == b"1"


def test_an_append_does_not_replace(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"hello")
    refused("NotImplemented", 501, s3.put_object, Bucket=bucket, Key="k", Body=b" world", WriteOffsetBytes=5)
    assert read(s3, bucket, "k") == b"hello"


def test_another_owner_is_not_the_expected_one(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"1")
    for call, more in ((s3.get_object, {"Key": "k"}), (s3.delete_object, {"Key": "k"}), (s3.put_object, {"Key": "k", "Body": b"2"}),
                       (s3.list_objects_v2, {}), (s3.delete_bucket, {}), (s3.get_bucket_encryption, {}), (s3.list_multipart_uploads, {})):
        refused("AccessDenied", 403, call, Bucket=bucket, ExpectedBucketOwner="111122223333", **more)
    refused("AccessDenied", 403, s3.copy_object, Bucket=bucket, Key="c", CopySource=f"{bucket}/k", ExpectedSourceBucketOwner="bob")
    assert read(s3, bucket, "k") == b"1"


def test_names_without_a_meaning_are_passed_over(storage, s3, bucket):
    assert signed.request(storage, "PUT", f"/{bucket}/k?x-id=PutObject&foo=bar&baz", b"1", {"x-amz-foo": "1"})[0] == 200
    assert signed.request(storage, "GET", f"/{bucket}?x-id=ListObjects&foo")[0] == 200
    assert read(s3, bucket, "k") == b"1"


@pytest.mark.parametrize(("method", "query", "headers", "expected"), [
    ("PUT", "uploadId=x", {}, (501, "NotImplemented")),
    ("PUT", "partNumber=1", {}, (501, "NotImplemented")),
    ("PUT", "versionId=null", {}, (400, "InvalidArgument")),
    ("PUT", "acl&tagging", {}, (501, "NotImplemented")),
    ("PUT", "", {"Content-Range": "bytes 0-0/5"}, (501, "NotImplemented")),
    ("PUT", "", {"If-Unmodified-Since": "Mon, 01 Jan 2024 00:00:00 GMT"}, (501, "NotImplemented")),
    ("PUT", "", {"x-amz-checksum-sha512": "eA=="}, (501, "NotImplemented")),
    ("PUT", "", {"x-amz-server-side-encryption-tomorrow": "1"}, (501, "NotImplemented")),
    ("DELETE", "partNumber=1", {}, (501, "NotImplemented")),
    ("DELETE", "", {"If-None-Match": "*"}, (501, "NotImplemented")),
    ("POST", "restore", {}, (501, "NotImplemented")),
    ("PATCH", "", {}, (405, "MethodNotAllowed")),
    ("GET", "torrent", {}, (501, "NotImplemented")),
    ("GET", "", {"x-amz-server-side-encryption": "AES256"}, (400, "InvalidArgument")),
])
def test_a_request_for_something_else_does_not_run_as_the_plain_one(storage, s3, bucket, method, query, headers, expected):
    s3.put_object(Bucket=bucket, Key="k", Body=b"hello")
    assert code(signed.request(storage, method, f"/{bucket}/k?{query}", b"x", headers)) == expected
    assert read(s3, bucket, "k") == b"hello"


def test_a_list_type_that_there_is_not(storage, bucket):
    assert code(signed.request(storage, "GET", f"/{bucket}?list-type=3")) == (400, "InvalidArgument")


def test_sse_c_is_blocked_where_the_bucket_says_so(s3, bucket, make_storage):
    key = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "k" * 32}
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    put = lambda **more: s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": [rule | more]})
    blocked = lambda client=s3, bucket=bucket: client.get_bucket_encryption(
        Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"][0].get("BlockedEncryptionTypes")
    s3.put_object(Bucket=bucket, Key="before", Body=b"1", **key)
    assert blocked() is None
    put(BlockedEncryptionTypes={"EncryptionType": ["SSE-C"]})
    assert blocked() == {"EncryptionType": ["SSE-C"]}
    refused("AccessDenied", 403, s3.put_object, Bucket=bucket, Key="k", Body=b"1", **key)
    refused("AccessDenied", 403, s3.create_multipart_upload, Bucket=bucket, Key="k", **key)
    source = {"CopySourceSSECustomerAlgorithm": "AES256", "CopySourceSSECustomerKey": "k" * 32}
    refused("AccessDenied", 403, s3.copy_object, Bucket=bucket, Key="k", CopySource=f"{bucket}/before", **key, **source)
    s3.copy_object(Bucket=bucket, Key="k", CopySource=f"{bucket}/before", **source)
    assert s3.get_object(Bucket=bucket, Key="before", **key)["Body"].read() == b"1"
    put()
    s3.delete_bucket_encryption(Bucket=bucket)
    assert blocked() == {"EncryptionType": ["SSE-C"]}, "what does not speak of it does not unblock"
    put(BlockedEncryptionTypes={"EncryptionType": ["NONE"]})
    s3.put_object(Bucket=bucket, Key="k", Body=b"1", **key)
    refused("MalformedXML", 400, put, BlockedEncryptionTypes={"EncryptionType": ["SSE-KMS"]})
    blocking = make_storage(new_buckets_block_sse_c=True).client()
    blocking.create_bucket(Bucket="new-bucket")
    assert blocked(blocking, "new-bucket") == {"EncryptionType": ["SSE-C"]}
    refused("AccessDenied", 403, blocking.put_object, Bucket="new-bucket", Key="k", Body=b"1", **key)


def test_tags_and_place_of_a_new_bucket(s3):
    name = f"n-{uuid.uuid4().hex[:10]}"
    refused("IllegalLocationConstraintException", 400, s3.create_bucket, Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    refused("NotImplemented", 501, s3.create_bucket, Bucket=name, CreateBucketConfiguration={"Location": {"Type": "AvailabilityZone", "Name": "x"}})
    refused("NoSuchBucket", 404, s3.list_objects_v2, Bucket=name)
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"Tags": [{"Key": "a", "Value": "1"}]})
    assert s3.get_bucket_tagging(Bucket=name)["TagSet"] == [{"Key": "a", "Value": "1"}]


def test_members_of_bodies_that_nobody_knows_are_refused(storage, s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"1")
    for path, body in [
        (f"/{bucket}?versioning", b"<VersioningConfiguration><Status>Enabled</Status><New>1</New></VersioningConfiguration>"),
        (f"/{bucket}?tagging", b"<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value><New>1</New></Tag></TagSet></Tagging>"),
        (f"/{bucket}?encryption", b"<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>AES256"
                                  b"</SSEAlgorithm></ApplyServerSideEncryptionByDefault><New>1</New></Rule></ServerSideEncryptionConfiguration>"),
        (f"/{bucket}/k?encryption", b"<ObjectEncryption><New>1</New></ObjectEncryption>"),
    ]:
        assert code(signed.request(storage, "PUT", path, body)) == (400, "MalformedXML"), path
    delete = b"<Delete><Object><Key>k</Key><OnlyIfOlder>1</OnlyIfOlder></Object></Delete>"
    md5 = {"Content-MD5": base64.b64encode(hashlib.md5(delete).digest()).decode()}
    assert code(signed.request(storage, "POST", f"/{bucket}?delete", delete, md5)) == (400, "MalformedXML")
    assert "Status" not in s3.get_bucket_versioning(Bucket=bucket) and read(s3, bucket, "k") == b"1"


ODD = ["\U0001f511", "\U0001f468\u200d\U0001f469", "a b", " lead", "trail ", "tab\tnew\nline", "car\rriage", "<&>\"'", "%41+", "\x01\x1f", "\x7f", "é", "e\u0301",
       "\uffff", "\U0010ffff", "a//b", "]]>", "&#65;", "&amp;", "..a"]


def test_any_key_passes_in_every_body(s3, bucket):
    for key in ODD:
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    listed = [entry["Key"] for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, PaginationConfig={"PageSize": 3}) for entry in page["Contents"]]
    assert listed == sorted(ODD, key=str.encode)
    for key in ODD:
        s3.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": key})
        assert read(s3, bucket, "copy") == key.encode()
        if set(key) & set("\x01\uffff"):
            continue  # no reader of XML 1.0 takes an answer that names it, S3's own included
        upload = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        part = s3.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"part")
        s3.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]})
        assert read(s3, bucket, key) == b"part"


def test_any_key_is_deleted_by_its_name(storage, s3, bucket):
    for key in ODD:
        s3.put_object(Bucket=bucket, Key=key, Body=b"")
    escape = lambda key: "".join(f"&#{ord(letter)};" for letter in key)
    for keys, write in ((ODD[: len(ODD) // 2], escape), (ODD[len(ODD) // 2:], lambda key: "".join(f"&#x{ord(letter):X};" for letter in key))):
        body = ("<Delete>" + "".join(f"<Object><Key>{write(key)}</Key></Object>" for key in keys) + "</Delete>").encode()
        status, _, answer = signed.request(storage, "POST", f"/{bucket}?delete", body, {"Content-MD5": base64.b64encode(hashlib.md5(body).digest()).decode()})
        assert status == 200 and b"<Error>" not in answer, answer
        for key in keys:
            # In the form that S3 has, whatever a reader of XML 1.0 makes of it.
            written = "".join(f"&#x{ord(letter):X};" if letter in "\r\x01\x1f\uffff" else letter for letter in key)
            written = written if "&#x" in written else written.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;").replace("'", "&apos;")
            assert f"<Key>{written}</Key>".encode() in answer, (key, answer)
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)


def test_nothing_is_deleted_on_a_body_that_is_not_what_was_sent(storage, s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"1")
    body = b"<Delete><Object><Key>k</Key></Object></Delete>"
    send = lambda headers: code(signed.request(storage, "POST", f"/{bucket}?delete", body, headers))
    good = base64.b64encode(hashlib.md5(body).digest()).decode()
    crc = base64.b64encode(zlib.crc32(b"other").to_bytes(4, "big")).decode()
    assert send({"Content-MD5": base64.b64encode(hashlib.md5(b"other").digest()).decode()}) == (400, "BadDigest")
    assert send({"Content-MD5": "short"}) == (400, "InvalidDigest")
    assert send({"x-amz-checksum-crc32": crc, "x-amz-sdk-checksum-algorithm": "CRC32"}) == (400, "BadDigest")
    assert send({"x-amz-checksum-crc32": crc, "Content-MD5": good}) == (400, "BadDigest")
    assert send({}) == (400, "InvalidRequest"), "S3 demands one of them"
    assert read(s3, bucket, "k") == b"1"
    assert send({"Content-MD5": good})[0] == 200
    refused("NoSuchKey", 404, s3.get_object, Bucket=bucket, Key="k")


@pytest.mark.parametrize(("file", "expected"), [("a b.txt", "up/a b.txt"), ("C:\\dir\\c.txt", "up/c.txt"), ("\U0001f511.txt", "up/\U0001f511.txt"), ("", "up/")])
def test_the_name_of_the_file_in_a_form(storage, s3, bucket, file, expected):
    form = s3.generate_presigned_post(Bucket=bucket, Key="up/${filename}", Fields={"success_action_status": "201"}, Conditions=[{"success_action_status": "201"}])
    boundary = "BoundarY"
    parts = [*form["fields"].items(), ("file", b"data")]
    body = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"'.encode() + (f'; filename="{file}"'.encode() if name == "file" else b"")
        + b"\r\n\r\n" + (value if isinstance(value, bytes) else value.encode()) + b"\r\n" for name, value in parts) + f"--{boundary}--\r\n".encode()
    answer = requests.post(f"{storage.url}/{bucket}", data=body, headers={"Content-Type": f"multipart/form-data; boundary={boundary}"}, timeout=10)
    assert answer.status_code == 201 and "filename}" not in answer.text, answer.text
    assert read(s3, bucket, expected) == b"data"


@pytest.mark.parametrize(("name", "value", "expected"), [
    ("acl", "public-read", (400, "AccessControlListNotSupported")), ("x-amz-storage-class", "GLACIER", (400, "InvalidStorageClass")),
    ("x-amz-checksum-sha256", base64.b64encode(hashlib.sha256(b"other").digest()).decode(), (400, "BadDigest")),
    ("x-amz-object-lock-mode", "GOVERNANCE", (400, "InvalidRequest")), ("acl", "private", (204, "")),
])
def test_what_a_form_asks_for(storage, s3, bucket, name, value, expected):
    form = s3.generate_presigned_post(Bucket=bucket, Key="k", Fields={name: value}, Conditions=[{name: value}])
    answer = requests.post(f"{storage.url}/{bucket}", data=form["fields"], files={"file": b"data"}, timeout=10)
    assert code((answer.status_code, None, answer.content)) == expected
    assert ("Contents" in s3.list_objects_v2(Bucket=bucket)) == (expected[0] == 204)


@pytest.mark.parametrize(("policy", "more", "expected"), [
    ({}, {}, (204, "")),
    ({}, {"x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(b"data").digest()).decode(), "x-ignore-a": "1"}, (204, "")),
    ({}, {"acl": "private"}, (403, "AccessDenied")),
    ({"conditions": [{"bucket": "other"}]}, {}, (403, "AccessDenied")),
    ({"conditions": [["eq", "$key", "other"]]}, {}, (403, "AccessDenied")),
    ({"conditions": [["content-length-range", 0, 3]]}, {}, (400, "EntityTooLarge")),
    ({"expiration": "2035-01-01 00:00:00+00:00"}, {}, (400, "InvalidPolicyDocument")),
    ({"expiration": "2020-01-01T00:00:00Z"}, {}, (403, "AccessDenied")),
])
def test_a_form_says_what_its_policy_allows(storage, s3, bucket, policy, more, expected):
    document = {"expiration": "2035-01-01T00:00:00.000Z", "conditions": [{"bucket": bucket}, ["starts-with", "$key", "k"]]}
    document |= policy | {"conditions": document["conditions"] + policy.get("conditions", [])}
    encoded = base64.b64encode(json.dumps(document).encode()).decode()
    access_key, secret = storage.keys["alice"]
    signature = base64.b64encode(hmac.new(secret.encode(), encoded.encode(), hashlib.sha1).digest()).decode()
    fields = {"key": "k", "AWSAccessKeyId": access_key, "policy": encoded, "signature": signature, **more}
    answer = requests.post(f"{storage.url}/{bucket}", data=fields, files={"file": b"data"}, timeout=10)
    assert code((answer.status_code, None, answer.content)) == expected
    assert ("Contents" in s3.list_objects_v2(Bucket=bucket)) == (expected[0] == 204)


def test_headers_in_a_presigned_query_ask_for_the_same(storage, s3, bucket):
    send = lambda query, body=b"1": signed.send(storage.url.removeprefix("http://"), "PUT", signed.presigned(storage, "PUT", f"/{bucket}/k?{query}"), body)
    assert code(send("x-amz-acl=public-read")) == (400, "AccessControlListNotSupported")
    assert code(send("x-amz-write-offset-bytes=1")) == (501, "NotImplemented")
    assert code(send("x-amz-checksum-crc32=AAAAAQ==&x-amz-sdk-checksum-algorithm=CRC32")) == (400, "BadDigest")
    # What the SDK for JavaScript presigns for a body that it does not have.
    assert send("x-amz-checksum-crc32=AAAAAA==&x-amz-sdk-checksum-algorithm=CRC32")[0] == 200
    assert send("x-amz-server-side-encryption=aws:kms&x-amz-meta-a=b&x-amz-tagging=t%3D1")[0] == 200
    head = s3.head_object(Bucket=bucket, Key="k")
    assert (head["ServerSideEncryption"], head["Metadata"], head["TagCount"] if "TagCount" in head else 1) == ("aws:kms", {"a": "b"}, 1)


def test_presigned_urls_live_a_week(storage, s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"1")
    send = lambda seconds: signed.send(storage.url.removeprefix("http://"), "GET", signed.presigned(storage, "GET", f"/{bucket}/k", seconds))
    assert send(604800)[2] == b"1"
    assert code(send(604801)) == (400, "AuthorizationQueryParametersError")
    v2 = storage.client(signature_version="s3")
    assert requests.get(v2.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"}, ExpiresIn=3600), timeout=10).content == b"1"
    assert requests.get(v2.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"}, ExpiresIn=700000), timeout=10).status_code == 400
    expired = requests.get(v2.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"}, ExpiresIn=-10), timeout=10)
    assert code((expired.status_code, None, expired.content)) == (403, "AccessDenied")


def test_a_wrong_region_is_told_with_the_right_one(storage, s3, bucket):
    answer = signed.request(storage, "GET", f"/{bucket}", region="eu-west-1")
    assert code(answer) == (400, "AuthorizationHeaderMalformed") and b"<Region>us-east-1</Region>" in answer[2], answer
    assert "the region 'eu-west-1' is wrong; expecting 'us-east-1'" in answer[2].decode().replace("&apos;", "'")
    answer = signed.send(storage.url.removeprefix("http://"), "GET", signed.presigned(storage, "GET", f"/{bucket}", region="eu-west-1"))
    assert code(answer) == (400, "AuthorizationQueryParametersError")
    assert code(signed.request(storage, "GET", f"/{bucket}", service="sts"))[0] == 400
    assert code(signed.request(storage, "GET", f"/{bucket}", headers={"X-Amz-Security-Token": "token"})) == (400, "InvalidToken")


def test_a_trailer_that_was_announced_comes(storage, s3, bucket):
    crc = base64.b64encode(zlib.crc32(b"hello").to_bytes(4, "big")).decode()

    def send(trailer, announced="x-amz-checksum-crc32"):
        body = b"5\r\nhello\r\n0\r\n" + trailer + b"\r\n"
        headers = {"x-amz-trailer": announced, "x-amz-decoded-content-length": "5", "Content-Encoding": "aws-chunked"}
        return signed.request(storage, "PUT", f"/{bucket}/k", body, headers, payload="STREAMING-UNSIGNED-PAYLOAD-TRAILER")
    assert send(f"x-amz-checksum-crc32:{crc}\r\n".encode())[0] == 200
    s3.delete_object(Bucket=bucket, Key="k")
    assert code(send(b"")) == (400, "MalformedTrailerError")
    assert code(send(f"x-amz-checksum-crc32c:{crc}\r\n".encode())) == (400, "MalformedTrailerError")
    assert code(send(b"x-amz-checksum-crc32:AAAAAA==\r\n")) == (400, "BadDigest")
    assert code(send(b"x-amz-checksum-foo:AAAAAA==\r\n", "x-amz-checksum-foo")) == (400, "InvalidRequest")
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)


@pytest.mark.parametrize(("headers", "expected"), [
    ({"x-amz-sdk-checksum-algorithm": "FOO"}, (400, "InvalidRequest")),
    ({"x-amz-sdk-checksum-algorithm": "CRC32"}, (400, "InvalidRequest")),
    ({"x-amz-sdk-checksum-algorithm": "SHA512"}, (501, "NotImplemented")),
    ({"x-amz-checksum-foo": "AAAA"}, (501, "NotImplemented")),
    ({"x-amz-checksum-crc32": "not base64"}, (400, "InvalidRequest")),
    ({"x-amz-checksum-crc32": "AAAA"}, (400, "InvalidRequest")),
    ({"x-amz-checksum-crc32": "AAAAAA==", "x-amz-checksum-sha1": "x"}, (400, "InvalidRequest")),
    ({"x-amz-checksum-crc32": "AAAAAA==", "x-amz-sdk-checksum-algorithm": "SHA1"}, (400, "InvalidRequest")),
])
def test_checksums_that_cannot_be_checked(storage, s3, bucket, headers, expected):
    assert code(signed.request(storage, "PUT", f"/{bucket}/k", b"hello", headers)) == expected
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)


def test_ranges_and_dates_that_cannot_be_read(storage, s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"0123456789")
    get = lambda **headers: signed.request(storage, "GET", f"/{bucket}/k", headers={name.replace("_", "-"): value for name, value in headers.items()})
    for malformed in ("bytes=5-2", "bytes=a-b", "lines=1-2", "bytes=", "bytes=1", "bytes=0-1,3-4", "bytes=--1"):
        status, _, body = get(Range=malformed)
        assert (status, body) == (200, b"0123456789"), malformed
    assert (get(Range="bytes=2-3")[0], get(Range="bytes=2-3")[2]) == (206, b"23")
    assert code(get(Range="bytes=10-")) == (416, "InvalidRange")
    for malformed in ("yesterday", "2024-01-01T00:00:00Z", "0"):
        assert get(If_Modified_Since=malformed)[0] == 200
        assert get(If_Unmodified_Since=malformed)[0] == 200
    etag = s3.head_object(Bucket=bucket, Key="k")["ETag"]
    assert get(Range="bytes=0-1", If_Range=etag)[2] == b"01" and get(Range="bytes=0-1", If_Range='"other"')[2] == b"0123456789"
    for date in ("garbage", "20240101", ""):
        status = signed.send(storage.url.removeprefix("http://"), "GET", f"/{bucket}/k", headers={
            "x-amz-date": date, "x-amz-content-sha256": "UNSIGNED-PAYLOAD",
            "Authorization": f"AWS4-HMAC-SHA256 Credential={storage.keys['alice'][0]}/20240101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature={'0' * 64}"})
        assert code(status) == (403, "AccessDenied"), date


def test_expires_is_kept_as_it_was_sent(storage, s3, bucket):
    for text in ("Thu, 01 Dec 2034 16:00:00 GMT", "0", "never", "Thursday, 01-Dec-34 16:00:00 GMT"):
        assert signed.request(storage, "PUT", f"/{bucket}/k", b"1", {"Expires": text})[0] == 200, text
        assert signed.request(storage, "GET", f"/{bucket}/k")[1]["Expires"] == text
        assert signed.request(storage, "HEAD", f"/{bucket}/k")[1]["Expires"] == text
    s3.copy_object(Bucket=bucket, Key="c", CopySource=f"{bucket}/k")
    assert signed.request(storage, "GET", f"/{bucket}/c")[1]["Expires"] == text
    url = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k", "ResponseExpires": datetime.datetime(2030, 1, 1)})
    assert "2030" in requests.get(url, timeout=10).headers["Expires"]


def test_buckets_as_hosts(make_storage):
    storage = make_storage(more_listen='host_domains = ["s3.test", "alt.test"]')
    client = storage.client()
    client.create_bucket(Bucket="my.bucket")
    client.create_bucket(Bucket="plain")
    ask = lambda method, host, path, body=b"", headers=None: signed.request(storage, method, path, body, headers, host=host)
    for host in ("plain.s3.test", "my.bucket.s3.test:8080", "plain.alt.test"):
        assert ask("PUT", host, "/a/k", b"1")[0] == 200, host
        assert ask("GET", host, "/a/k")[2] == b"1"
        assert b"<Key>a/k</Key>" in ask("GET", host, "/?list-type=2&prefix=a")[2]
        assert ask("GET", host, "/?versioning")[0] == 200
        body = b"<Delete><Object><Key>a/k</Key></Object></Delete>"
        assert ask("POST", host, "/?delete", body, {"Content-MD5": base64.b64encode(hashlib.md5(body).digest()).decode()})[0] == 200
    assert b"<Name>plain</Name>" in ask("GET", "s3.test", "/")[2], "the domain itself is addressed by paths"
    assert ask("PUT", "other.example", "/plain/k", b"1")[0] == 200
    assert ask("PUT", "new-one.s3.test", "/")[0] == 200
    assert code(ask("GET", "missing.s3.test", "/")) == (404, "NoSuchBucket")
    assert ask("PUT", "plain.s3.test", "/k?encryption", b"<ObjectEncryption/>")[0] == 400
    assert ask("GET", "plain.s3.test", "/healthz")[0] == 404, "an object of a bucket, not the service's own page"
    assert client.list_buckets()["Buckets"]


def test_the_refusal_of_an_upload_reaches_a_client_that_sends_before_it_reads(storage, bucket):
    netloc = storage.url.removeprefix("http://")
    host, port = netloc.split(":")
    body = b"x" * (20 * 1024 * 1024)
    for headers in ({"Authorization": "AWS4-HMAC-SHA256 Credential=NOBODY/20240101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"}, {}):
        with socket.create_connection((host, int(port)), timeout=30) as client:
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            client.sendall(f"PUT /{bucket}/k HTTP/1.1\r\nHost: {netloc}\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode())
            client.sendall(body)
            answer = client.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 4") and b"<Code>" in answer, answer[:300]
