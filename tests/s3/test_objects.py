"""The S3 API as clients use it: listing, versions, conditions, checksums, tags, forms, errors."""
import base64
import hashlib
import io
import os
import zlib

import pytest
import requests
from botocore.exceptions import ClientError

PART = 5 * 1024 * 1024


def refused(code, status, call, *args, **more):
    with pytest.raises(ClientError) as caught:
        call(*args, **more)
    response = caught.value.response
    assert (response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]) == (code, status), response
    return response


def test_listing_with_delimiters_and_paging(s3, bucket):
    names = [f"{a}/{b}/{c}" for a in "abc" for b in "xy" for c in range(3)] + ["a", "b", "z", "ü/1", "p%+ &=#"]
    for name in names:
        s3.put_object(Bucket=bucket, Key=name, Body=b"")
    listed = [entry["Key"] for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, PaginationConfig={"PageSize": 4}) for entry in page["Contents"]]
    assert listed == sorted(names, key=str.encode)
    for page_size in (1, 2, 3, 1000):
        pages = list(s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Delimiter="/", PaginationConfig={"PageSize": page_size}))
        assert [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", [])] == ["a/", "b/", "c/", "ü/"]
        assert [entry["Key"] for page in pages for entry in page.get("Contents", [])] == ["a", "b", "p%+ &=#", "z"]
        pages = list(s3.get_paginator("list_objects").paginate(Bucket=bucket, Delimiter="/", Prefix="a/", PaginationConfig={"PageSize": page_size}))
        assert [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", [])] == ["a/x/", "a/y/"]
    page = s3.list_objects_v2(Bucket=bucket, StartAfter="b/", MaxKeys=2)
    assert [entry["Key"] for entry in page["Contents"]] == ["b/x/0", "b/x/1"] and page["IsTruncated"]
    assert s3.list_objects_v2(Bucket=bucket, Prefix="nothing")["KeyCount"] == 0
    for name in names:
        assert s3.get_object(Bucket=bucket, Key=name)["Body"].read() == b""


def test_versions(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"from before")
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    first = s3.put_object(Bucket=bucket, Key="k", Body=b"one")["VersionId"]
    second = s3.put_object(Bucket=bucket, Key="k", Body=b"two")["VersionId"]
    marker = s3.delete_object(Bucket=bucket, Key="k")
    assert marker["DeleteMarker"] is True
    refused("NoSuchKey", 404, s3.get_object, Bucket=bucket, Key="k")
    read = lambda version: s3.get_object(Bucket=bucket, Key="k", VersionId=version)["Body"].read()
    assert (read(first), read(second), read("null")) == (b"one", b"two", b"from before")
    refused("MethodNotAllowed", 405, s3.get_object, Bucket=bucket, Key="k", VersionId=marker["VersionId"])
    listed = s3.list_object_versions(Bucket=bucket)
    assert [version["VersionId"] for version in listed["Versions"]] == [second, first, "null"]
    assert [(entry["VersionId"], entry["IsLatest"]) for entry in listed["DeleteMarkers"]] == [(marker["VersionId"], True)]
    pages = s3.get_paginator("list_object_versions").paginate(Bucket=bucket, PaginationConfig={"PageSize": 1})
    assert [version["VersionId"] for page in pages for version in page.get("Versions", [])] == [second, first, "null"]
    s3.delete_object(Bucket=bucket, Key="k", VersionId=marker["VersionId"])
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"two"
    s3.delete_object(Bucket=bucket, Key="k", VersionId=second)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"one"
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    assert "VersionId" not in s3.put_object(Bucket=bucket, Key="k", Body=b"suspended")
    assert read("null") == b"suspended" and read(first) == b"one"
    refused("BucketNotEmpty", 409, s3.delete_bucket, Bucket=bucket)
    for version in s3.list_object_versions(Bucket=bucket)["Versions"]:
        s3.delete_object(Bucket=bucket, Key="k", VersionId=version["VersionId"])
    s3.delete_bucket(Bucket=bucket)
    refused("NoSuchBucket", 404, s3.list_objects_v2, Bucket=bucket)


def test_conditions(s3, bucket):
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"one", IfNoneMatch="*")["ETag"]
    refused("PreconditionFailed", 412, s3.put_object, Bucket=bucket, Key="k", Body=b"two", IfNoneMatch="*")
    refused("PreconditionFailed", 412, s3.put_object, Bucket=bucket, Key="k", Body=b"two", IfMatch='"00"')
    s3.put_object(Bucket=bucket, Key="k", Body=b"two", IfMatch=etag)
    refused("PreconditionFailed", 412, s3.get_object, Bucket=bucket, Key="k", IfMatch=etag)
    new = s3.head_object(Bucket=bucket, Key="k")
    refused("304", 304, s3.get_object, Bucket=bucket, Key="k", IfNoneMatch=new["ETag"])
    refused("304", 304, s3.get_object, Bucket=bucket, Key="k", IfModifiedSince=new["LastModified"])
    refused("PreconditionFailed", 412, s3.copy_object, Bucket=bucket, Key="c", CopySource={"Bucket": bucket, "Key": "k"}, CopySourceIfMatch=etag)
    refused("InvalidRange", 416, s3.get_object, Bucket=bucket, Key="k", Range="bytes=3-")
    refused("InvalidRequest", 400, s3.copy_object, Bucket=bucket, Key="k", CopySource={"Bucket": bucket, "Key": "k"})


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
def test_checksums(s3, bucket, algorithm):
    body = os.urandom(100_000)
    name = f"Checksum{algorithm}"
    put = s3.put_object(Bucket=bucket, Key="k", Body=body, ChecksumAlgorithm=algorithm)
    got = s3.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert got[name] == put[name] and got["Body"].read() == body
    expected = {"CRC32": zlib.crc32(body).to_bytes(4, "big"), "SHA1": hashlib.sha1(body).digest(), "SHA256": hashlib.sha256(body).digest()}.get(algorithm)
    assert expected is None or base64.b64decode(put[name]) == expected
    attributes = s3.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=["Checksum", "ObjectSize", "ETag"])
    assert attributes["Checksum"][name] == put[name] and attributes["ObjectSize"] == len(body)
    wrong = base64.b64encode(bytes(len(base64.b64decode(put[name])))).decode()
    refused("BadDigest", 400, s3.put_object, Bucket=bucket, Key="bad", Body=body, **{name: wrong})
    refused("BadDigest", 400, s3.put_object, Bucket=bucket, Key="bad", Body=body, ContentMD5=base64.b64encode(bytes(16)).decode())
    refused("404", 404, s3.head_object, Bucket=bucket, Key="bad")


def test_multipart_details(s3, bucket):
    create = s3.create_multipart_upload(Bucket=bucket, Key="m", Metadata={"a": "b"}, ContentType="text/x", ChecksumAlgorithm="CRC64NVME")
    upload, pieces = create["UploadId"], {3: os.urandom(PART), 7: os.urandom(10)}
    parts = []
    for number, piece in pieces.items():
        answer = s3.upload_part(Bucket=bucket, Key="m", UploadId=upload, PartNumber=number, Body=piece, ChecksumAlgorithm="CRC64NVME")
        parts.append({"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC64NVME": answer["ChecksumCRC64NVME"]})
    assert [part["PartNumber"] for part in s3.list_parts(Bucket=bucket, Key="m", UploadId=upload)["Parts"]] == [3, 7]
    assert [entry["Key"] for entry in s3.list_multipart_uploads(Bucket=bucket)["Uploads"]] == ["m"]
    refused("InvalidPartOrder", 400, s3.complete_multipart_upload, Bucket=bucket, Key="m", UploadId=upload, MultipartUpload={"Parts": parts[::-1]})
    refused("InvalidPart", 400, s3.complete_multipart_upload, Bucket=bucket, Key="m", UploadId=upload, MultipartUpload={"Parts": [{"PartNumber": 5, "ETag": parts[0]["ETag"]}]})
    done = s3.complete_multipart_upload(Bucket=bucket, Key="m", UploadId=upload, MultipartUpload={"Parts": parts})
    whole = s3.put_object(Bucket=bucket, Key="whole", Body=b"".join(pieces.values()), ChecksumAlgorithm="CRC64NVME")
    assert done["ChecksumCRC64NVME"] == whole["ChecksumCRC64NVME"], "the CRC of the whole, combined from the parts'"
    digests = b"".join(hashlib.md5(piece).digest() for piece in pieces.values())
    assert done["ETag"] == f'"{hashlib.md5(digests).hexdigest()}-2"'
    got = s3.get_object(Bucket=bucket, Key="m", PartNumber=7)
    assert got["Body"].read() == pieces[7] and got["PartsCount"] == 2 and got["ContentType"] == "text/x" and got["Metadata"] == {"a": "b"}
    refused("NoSuchUpload", 404, s3.upload_part, Bucket=bucket, Key="m", UploadId=upload, PartNumber=1, Body=b"x")
    small = s3.create_multipart_upload(Bucket=bucket, Key="s")["UploadId"]
    parts = [{"PartNumber": n, "ETag": s3.upload_part(Bucket=bucket, Key="s", UploadId=small, PartNumber=n, Body=b"x")["ETag"]} for n in (1, 2)]
    refused("EntityTooSmall", 400, s3.complete_multipart_upload, Bucket=bucket, Key="s", UploadId=small, MultipartUpload={"Parts": parts})
    s3.abort_multipart_upload(Bucket=bucket, Key="s", UploadId=small)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)


def test_tags_and_metadata(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", Tagging="a=1&b=%C3%BC", CacheControl="no-store", ContentDisposition="inline")
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "ü"}]
    s3.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": [{"Key": "c", "Value": "3"}]})
    got = s3.get_object(Bucket=bucket, Key="k", ResponseContentType="text/plain")
    assert got["TagCount"] == 1 and got["CacheControl"] == "no-store" and got["ContentType"] == "text/plain"
    s3.delete_object_tagging(Bucket=bucket, Key="k")
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == []
    s3.copy_object(Bucket=bucket, Key="k", CopySource={"Bucket": bucket, "Key": "k"}, MetadataDirective="REPLACE", Metadata={"new": "yes"})
    assert s3.head_object(Bucket=bucket, Key="k")["Metadata"] == {"new": "yes"}
    refused("NoSuchTagSet", 404, s3.get_bucket_tagging, Bucket=bucket)
    s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": [{"Key": "team", "Value": "a"}]})
    assert s3.get_bucket_tagging(Bucket=bucket)["TagSet"] == [{"Key": "team", "Value": "a"}]
    refused("MetadataTooLarge", 400, s3.put_object, Bucket=bucket, Key="big", Body=b"", Metadata={"x": "y" * 3000})


def test_delete_objects(s3, bucket):
    for number in range(30):
        s3.put_object(Bucket=bucket, Key=str(number), Body=b"x")
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": str(number)} for number in range(31)]})
    assert len(answer["Deleted"]) == 31 and "Errors" not in answer
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_post_form(s3, bucket, keks):
    fields = {"x-amz-server-side-encryption": "aws:kms", "x-amz-server-side-encryption-aws-kms-key-id": keks[0]}
    form = s3.generate_presigned_post(bucket, "form/f.txt", Fields=fields, Conditions=[{name: value} for name, value in fields.items()])
    answer = requests.post(form["url"], data=form["fields"], files={"file": ("f.txt", b"from a form")}, timeout=10)
    assert answer.status_code in (200, 204), answer.text
    stored = s3.get_object(Bucket=bucket, Key="form/f.txt")
    assert stored["Body"].read() == b"from a form" and stored["SSEKMSKeyId"].startswith(keks[0])


def test_update_object_encryption(s3, storage, bucket, keks):
    for key, args in {"plain": {}, "kms": {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": keks[0]}}.items():
        body = os.urandom(200_000)
        s3.put_object(Bucket=bucket, Key=key, Body=body, **args)
        blobs, before = storage.blobs(), s3.head_object(Bucket=bucket, Key=key)
        s3.update_object_encryption(Bucket=bucket, Key=key, ObjectEncryption={"SSEKMS": {"KMSKeyArn": keks[1]}})
        after = s3.head_object(Bucket=bucket, Key=key)
        assert after["SSEKMSKeyId"].startswith(keks[1]) and (after["ETag"], after["LastModified"]) == (before["ETag"], before["LastModified"])
        assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == body
        assert storage.blobs() == blobs, "no data was moved"


@pytest.mark.parametrize("args, code, status", [
    ({"ServerSideEncryption": "aws:kms:dsse"}, "NotImplemented", 501),
    ({"ServerSideEncryption": "nonsense"}, "InvalidArgument", 400),
    ({"SSEKMSKeyId": "https://127.0.0.1/keys/k"}, "InvalidArgument", 400),
    ({"ServerSideEncryption": "AES256", "SSEKMSKeyId": "https://127.0.0.1/keys/k"}, "InvalidArgument", 400),
    ({"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "https://evil.example/keys/k"}, "KMS.NotFoundException", 400),
    ({"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "alias/none"}, "KMS.NotFoundException", 400),
    ({"ServerSideEncryption": "aws:kms", "SSEKMSEncryptionContext": "e30="}, "NotImplemented", 501),
    ({"SSECustomerAlgorithm": "AES256", "SSECustomerKey": b"short"}, "InvalidArgument", 400),
    ({"SSECustomerAlgorithm": "AES256", "SSECustomerKey": base64.b64encode(bytes(32)).decode(), "SSECustomerKeyMD5": "AAAAAAAAAAAAAAAAAAAAAA=="}, "InvalidArgument", 400),
    ({"SSECustomerAlgorithm": "AES256", "SSECustomerKey": bytes(32), "ServerSideEncryption": "AES256"}, "InvalidArgument", 400),
])
def test_encryption_that_cannot_be_given_is_refused(s3, bucket, args, code, status):
    refused(code, status, s3.put_object, Bucket=bucket, Key="k", Body=b"x", **args)
    refused("404", 404, s3.head_object, Bucket=bucket, Key="k")
    refused(code, status, s3.create_multipart_upload, Bucket=bucket, Key="k", **args)


def test_reading_names_no_encryption(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")

    def add(request, **_):
        request.headers["x-amz-server-side-encryption"] = "AES256"
    s3.meta.events.register_first("before-sign.s3.GetObject", add)
    try:
        refused("InvalidArgument", 400, s3.get_object, Bucket=bucket, Key="k")
    finally:
        s3.meta.events.unregister("before-sign.s3.GetObject", add)


def test_customer_keys(s3, bucket):
    key = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": os.urandom(32)}
    s3.put_object(Bucket=bucket, Key="k", Body=b"secret", **key)
    refused("InvalidRequest", 400, s3.get_object, Bucket=bucket, Key="k")
    refused("400", 400, s3.head_object, Bucket=bucket, Key="k")
    other = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": os.urandom(32)}
    refused("AccessDenied", 403, s3.get_object, Bucket=bucket, Key="k", **other)
    s3.put_object(Bucket=bucket, Key="plain", Body=b"x")
    refused("InvalidRequest", 400, s3.get_object, Bucket=bucket, Key="plain", **key)
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m", **key)["UploadId"]
    refused("InvalidRequest", 400, s3.upload_part, Bucket=bucket, Key="m", UploadId=upload, PartNumber=1, Body=b"x")
    refused("AccessDenied", 403, s3.upload_part, Bucket=bucket, Key="m", UploadId=upload, PartNumber=1, Body=b"x", **other)


@pytest.mark.parametrize("args, code", [
    ({"ACL": "public-read"}, "AccessControlListNotSupported"),
    ({"GrantRead": "id=somebody"}, "AccessControlListNotSupported"),
    ({"ObjectLockLegalHoldStatus": "ON"}, "InvalidRequest"),
    ({"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": "2099-01-01T00:00:00Z"}, "InvalidRequest"),
])
def test_access_for_others_and_locks_are_refused_not_passed_over(s3, bucket, args, code):
    s3.put_object(Bucket=bucket, Key="source", Body=b"x", ACL="private")
    refused(code, 400, s3.put_object, Bucket=bucket, Key="k", Body=b"x", **args)
    refused(code, 400, s3.copy_object, Bucket=bucket, Key="k", CopySource=f"{bucket}/source", **args)
    refused(code, 400, s3.create_multipart_upload, Bucket=bucket, Key="k", **args)
    assert "k" not in [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]]
    if "ACL" in args:
        refused(code, 400, s3.create_bucket, Bucket=bucket + "-public", **args)


def test_principals_have_buckets_of_their_own(s3, storage, bucket):
    bob = storage.client("bob")
    s3.put_object(Bucket=bucket, Key="k", Body=b"alice's")
    refused("AccessDenied", 403, bob.get_object, Bucket=bucket, Key="k")
    refused("AccessDenied", 403, bob.list_objects_v2, Bucket=bucket)
    refused("BucketAlreadyExists", 409, bob.create_bucket, Bucket=bucket)
    refused("BucketAlreadyOwnedByYou", 409, s3.create_bucket, Bucket=bucket)
    own = "bob-" + bucket
    bob.create_bucket(Bucket=own)
    refused("AccessDenied", 403, bob.copy_object, Bucket=own, Key="k", CopySource={"Bucket": bucket, "Key": "k"})
    refused("AccessDenied", 403, bob.update_object_encryption, Bucket=bucket, Key="k", ObjectEncryption={"SSEKMS": {"KMSKeyArn": "https://127.0.0.1/keys/kek-a"}})
    assert requests.get(f"{storage.url}/{bucket}/k", timeout=10).status_code == 403
    assert [entry["Name"] for entry in bob.list_buckets()["Buckets"]] == [own]


def test_streaming_upload_of_unknown_quality(s3, bucket):
    class Torn(io.RawIOBase):
        """Says 1 MiB and gives half."""
        def __init__(self):
            self.left = 512 * 1024

        def readinto(self, buffer):
            size = min(len(buffer), self.left)
            self.left -= size
            buffer[:size] = bytes(size)
            return size
    with pytest.raises(Exception):
        s3.put_object(Bucket=bucket, Key="torn", Body=Torn(), ContentLength=1024 * 1024)
    refused("404", 404, s3.head_object, Bucket=bucket, Key="torn")
