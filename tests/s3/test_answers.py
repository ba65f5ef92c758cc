"""What S3 tells with an answer, as Ceph's s3-tests and clients found it missing here."""
import hashlib

import pytest
import requests
from botocore.exceptions import ClientError


def sent(s3, operation, **arguments):
    """The bare answer to a presigned request: botocore makes of some what was not sent."""
    url = s3.generate_presigned_url(operation, Params=arguments)
    return requests.get(url, timeout=30)


def test_not_modified_tells_of_what(s3, bucket):
    made = s3.put_object(Bucket=bucket, Key="k", Body=b"x", CacheControl="max-age=9")
    known = s3.head_object(Bucket=bucket, Key="k")
    for operation in (s3.get_object, s3.head_object):
        for condition in ({"IfNoneMatch": made["ETag"]}, {"IfModifiedSince": known["LastModified"]}):
            with pytest.raises(ClientError) as refused:
                operation(Bucket=bucket, Key="k", **condition)
            answer = refused.value.response["ResponseMetadata"]
            assert answer["HTTPStatusCode"] == 304
            assert answer["HTTPHeaders"]["etag"] == made["ETag"]
            assert answer["HTTPHeaders"]["cache-control"] == "max-age=9"
            assert "last-modified" in answer["HTTPHeaders"]


def test_head_counts_tags(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Tagging="b=1&a=2&c=3")
    assert s3.head_object(Bucket=bucket, Key="k")["TagCount"] == s3.get_object(Bucket=bucket, Key="k")["TagCount"] == 3
    assert [tag["Key"] for tag in s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"]] == ["a", "b", "c"]
    s3.delete_object_tagging(Bucket=bucket, Key="k")
    assert "TagCount" not in s3.head_object(Bucket=bucket, Key="k")


def test_an_empty_delimiter_is_none(s3, bucket):
    s3.put_object(Bucket=bucket, Key="a/b")
    for operation in (s3.list_objects, s3.list_objects_v2, s3.list_object_versions, s3.list_multipart_uploads):
        found = operation(Bucket=bucket, Delimiter="")
        assert "Delimiter" not in found and "CommonPrefixes" not in found
        assert operation(Bucket=bucket, Delimiter="/")["Delimiter"] == "/"


@pytest.mark.parametrize("asked, told", [("deflate, gzip", "deflate, gzip"), ("gzip, aws-chunked", "gzip"), ("aws-chunked,gzip", "gzip"), ("aws-chunked", None)])
def test_a_content_encoding_stays_as_it_was(s3, bucket, asked, told):
    s3.put_object(Bucket=bucket, Key="k", ContentEncoding=asked)
    assert s3.head_object(Bucket=bucket, Key="k").get("ContentEncoding") == told


def test_a_part_of_a_composite_checksum(s3, bucket):
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k", ChecksumAlgorithm="SHA256", ChecksumType="COMPOSITE")["UploadId"]
    part = s3.upload_part(Bucket=bucket, Key="k", UploadId=upload, PartNumber=1, Body=b"x", ChecksumAlgorithm="SHA256")
    parts = [{"PartNumber": 1, "ETag": part["ETag"], "ChecksumSHA256": part["ChecksumSHA256"]}]
    s3.complete_multipart_upload(Bucket=bucket, Key="k", UploadId=upload, MultipartUpload={"Parts": parts})
    told = s3.get_object(Bucket=bucket, Key="k", PartNumber=1, ChecksumMode="ENABLED")
    assert (told["ChecksumType"], told["ChecksumSHA256"]) == ("COMPOSITE", part["ChecksumSHA256"])


def test_attributes_tell_the_etag_without_quotes(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    assert s3.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=["ETag"])["ETag"] == hashlib.md5(b"x").hexdigest()


def test_an_error_tells_its_request(s3, bucket):
    for key in ("none", "n<&>"):
        answer = sent(s3, "get_object", Bucket=bucket, Key=key)
        assert answer.status_code == 404
        told = answer.headers["x-amz-request-id"]
        assert f"<RequestId>{told}</RequestId>" in answer.text
        assert answer.text.count("<RequestId>") == 1
    denied = requests.get(s3.meta.endpoint_url + f"/{bucket}/k", timeout=30)
    assert denied.status_code == 403 and f"<RequestId>{denied.headers['x-amz-request-id']}</RequestId>" in denied.text
