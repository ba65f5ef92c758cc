"""Listings: pages go on whatever is deleted between them, also the very item that the marker names."""
import re

import pytest
import requests
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError


def refused(code, status, call, *args, **more):
    with pytest.raises(ClientError) as caught:
        call(*args, **more)
    response = caught.value.response
    assert (response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]) == (code, status), response
    return response["Error"]


def versioned(s3, bucket):
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})


def lines(page):
    """Versions and delete markers of a page, in the order of the keys, the newest first."""
    found = page.get("Versions", []) + page.get("DeleteMarkers", [])
    return [(entry["Key"], entry["VersionId"]) for entry in sorted(found, key=lambda entry: entry["Key"].encode())]


def emptied_page_by_page(s3, bucket, size, **more):
    """What clients do to empty a bucket: delete a page, list on from its end."""
    seen, markers = [], {}
    while True:
        page = s3.list_object_versions(Bucket=bucket, MaxKeys=size, **markers, **more)
        found = lines(page)
        assert len(found) + len(page.get("CommonPrefixes", [])) <= size
        seen += found
        if found:
            answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key, "VersionId": version} for key, version in found]})
            assert "Errors" not in answer
        if not page["IsTruncated"]:
            return seen
        markers = {"KeyMarker": page["NextKeyMarker"]}
        if "NextVersionIdMarker" in page:
            markers["VersionIdMarker"] = page["NextVersionIdMarker"]


def test_emptying_a_bucket_leaves_nothing(storage, s3, bucket):
    """boto3's `object_versions.delete()`, with more than a page of versions of one key."""
    import boto3
    versioned(s3, bucket)
    for number in range(1100):
        s3.put_object(Bucket=bucket, Key="k", Body=str(number).encode())
    access_key, secret = storage.keys["alice"]
    resource = boto3.resource("s3", endpoint_url=storage.url, aws_access_key_id=access_key, aws_secret_access_key=secret, region_name="us-east-1")
    resource.Bucket(bucket).object_versions.delete()
    assert lines(s3.list_object_versions(Bucket=bucket)) == []
    s3.delete_bucket(Bucket=bucket)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_versions_are_deleted_page_by_page(s3, bucket, size):
    s3.put_object(Bucket=bucket, Key="b", Body=b"from before")
    s3.put_object(Bucket=bucket, Key="unlisted", Body=b"from before")
    versioned(s3, bucket)
    expected = [("b", "null"), ("unlisted", "null")]
    for key in "abc":
        for _ in range(3):
            expected.append((key, s3.put_object(Bucket=bucket, Key=key, Body=b"x")["VersionId"]))
        expected.append((key, s3.delete_object(Bucket=bucket, Key=key)["VersionId"]))
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    s3.put_object(Bucket=bucket, Key="c", Body=b"null between two")
    versioned(s3, bucket)
    expected += [("c", "null"), ("c", s3.put_object(Bucket=bucket, Key="c", Body=b"y")["VersionId"])]
    assert sorted(emptied_page_by_page(s3, bucket, size)) == sorted(expected)
    assert lines(s3.list_object_versions(Bucket=bucket)) == []
    s3.delete_bucket(Bucket=bucket)


def test_the_marker_of_a_listing_may_also_be_the_id_of_its_last_version(s3, bucket):
    versioned(s3, bucket)
    ids = [s3.put_object(Bucket=bucket, Key="k", Body=b"x")["VersionId"] for _ in range(6)][::-1]
    other = s3.put_object(Bucket=bucket, Key="l", Body=b"x")["VersionId"]
    page = s3.list_object_versions(Bucket=bucket, MaxKeys=2)
    assert (page["NextKeyMarker"], page["NextVersionIdMarker"]) == ("k", ids[1])
    behind = lambda version: [entry[1] for entry in lines(s3.list_object_versions(Bucket=bucket, KeyMarker="k", VersionIdMarker=version))]
    assert behind(ids[2]) == ids[3:] + [other]
    for gone in (ids[2], ids[5], ids[0]):
        s3.delete_object(Bucket=bucket, Key="k", VersionId=gone)
    left = s3.list_object_versions(Bucket=bucket)["Versions"]
    assert [(entry["VersionId"], entry["IsLatest"]) for entry in left] == [(ids[1], True), (ids[3], False), (ids[4], False), (other, True)]
    assert behind(ids[2]) == [ids[3], ids[4], other] and behind(ids[0]) == [ids[1], ids[3], ids[4], other] and behind(ids[5]) == [other]
    for version in (ids[1], ids[3], ids[4]):
        s3.delete_object(Bucket=bucket, Key="k", VersionId=version)
    assert behind(ids[2]) == [other], "the key is gone altogether"
    refused("InvalidArgument", 400, s3.list_object_versions, Bucket=bucket, VersionIdMarker=ids[0])
    refused("InvalidArgument", 400, s3.list_object_versions, Bucket=bucket, KeyMarker="k", VersionIdMarker="no version")


def test_a_null_version_that_is_gone(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"null")
    versioned(s3, bucket)
    ids = [s3.put_object(Bucket=bucket, Key="k", Body=b"x")["VersionId"] for _ in range(2)][::-1]
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    s3.put_object(Bucket=bucket, Key="k", Body=b"null, and newest")
    page = s3.list_object_versions(Bucket=bucket, MaxKeys=1)
    assert lines(page) == [("k", "null")]
    s3.delete_object(Bucket=bucket, Key="k", VersionId="null")
    page = s3.list_object_versions(Bucket=bucket, KeyMarker=page["NextKeyMarker"], VersionIdMarker=page["NextVersionIdMarker"])
    assert [entry[1] for entry in lines(page)] == ids
    assert [entry[1] for entry in lines(s3.list_object_versions(Bucket=bucket, KeyMarker="k", VersionIdMarker="null"))] == ids
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"x"


def test_versions_with_delimiter_and_encoding(s3, bucket):
    versioned(s3, bucket)
    keys = ["a/1", "a/2", "b", "d/ö 1/x", "d/ö 2/y", "e\u0001", "z/\U0010ffff"]
    for key in keys:
        for _ in range(2):
            s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    for size in (1, 2, 3):
        markers, prefixes, seen = {}, [], []
        while True:
            page = s3.list_object_versions(Bucket=bucket, Delimiter="/", MaxKeys=size, **markers)
            prefixes += [entry["Prefix"] for entry in page.get("CommonPrefixes", [])]
            found = lines(page)
            seen += [key for key, _ in found]
            for key, version in found:
                s3.delete_object(Bucket=bucket, Key=key, VersionId=version)
            if not page["IsTruncated"]:
                break
            markers = {"KeyMarker": page["NextKeyMarker"]} | ({"VersionIdMarker": page["NextVersionIdMarker"]} if "NextVersionIdMarker" in page else {})
        assert (prefixes, seen) == (["a/", "d/", "z/"], ["b", "b", "e\u0001", "e\u0001"])
        for key in ("b", "e\u0001"):
            for _ in range(2):
                s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    page = s3.list_object_versions(Bucket=bucket, Delimiter="/", KeyMarker="a/1", MaxKeys=1)
    assert [key for key, _ in lines(page)] == ["b"], "a marker under a common prefix stands for all of it"
    page = s3.list_object_versions(Bucket=bucket, Prefix="d/", Delimiter="/", MaxKeys=1, EncodingType="url")
    assert page["CommonPrefixes"] == [{"Prefix": "d/%C3%B6%201/"}] and page["NextKeyMarker"] == "d/%C3%B6%201/"
    for marker in ("b", "zzz"):
        nothing = s3.list_object_versions(Bucket=bucket, MaxKeys=0, KeyMarker=marker)
        assert lines(nothing) == [] and not nothing["IsTruncated"] and nothing["MaxKeys"] == 0


def started(s3, bucket, keys):
    return {key: s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"] for key in keys}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_uploads_with_delimiter(s3, bucket, size):
    keys = ["a", "b/1", "b/2", "c", "d/ü/1", "d/ü/2", "e"]
    started(s3, bucket, keys)
    markers, seen = {}, []
    while True:
        page = s3.list_multipart_uploads(Bucket=bucket, Delimiter="/", MaxUploads=size, **markers)
        found = [entry["Key"] for entry in page.get("Uploads", [])] + [entry["Prefix"] for entry in page.get("CommonPrefixes", [])]
        assert 0 < len(found) <= size
        seen += sorted(found)
        for upload in page.get("Uploads", []):
            s3.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        if not page["IsTruncated"]:
            break
        assert page["NextKeyMarker"] == sorted(found)[-1]
        markers = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page.get("NextUploadIdMarker", "")}
    assert seen == ["a", "b/", "c", "d/", "e"]


def test_uploads_of_one_key(s3, bucket):
    ids = [s3.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"] for _ in range(5)]
    last = s3.create_multipart_upload(Bucket=bucket, Key="l")["UploadId"]
    listed = [entry["UploadId"] for entry in s3.list_multipart_uploads(Bucket=bucket)["Uploads"]]
    assert sorted(listed) == sorted([*ids, last]) and listed[-1] == last
    page = s3.list_multipart_uploads(Bucket=bucket, MaxUploads=2)
    for gone in listed[1:3]:
        s3.abort_multipart_upload(Bucket=bucket, Key="k", UploadId=gone)
    rest = lambda **markers: [entry["UploadId"] for entry in s3.list_multipart_uploads(Bucket=bucket, **markers).get("Uploads", [])]
    assert rest(KeyMarker=page["NextKeyMarker"], UploadIdMarker=page["NextUploadIdMarker"]) == listed[3:]
    assert rest(KeyMarker="k") == [last] and rest(KeyMarker="l", UploadIdMarker=last) == []
    assert rest(UploadIdMarker=listed[1]) == [listed[0], *listed[3:]], "without a key it says nothing"
    refused("InvalidArgument", 400, s3.list_multipart_uploads, Bucket=bucket, KeyMarker="k", UploadIdMarker="x")
    page = s3.list_multipart_uploads(Bucket=bucket, Prefix="", MaxUploads=0)
    assert "Uploads" not in page and not page["IsTruncated"]


def test_encoded_uploads(s3, bucket):
    started(s3, bucket, ["ü 1", "ü 2"])
    page = s3.list_multipart_uploads(Bucket=bucket, MaxUploads=1, EncodingType="url", Delimiter="ä", KeyMarker="a b")
    assert page["Uploads"][0]["Key"] == page["NextKeyMarker"] == "%C3%BC%201"
    assert (page["Delimiter"], page["KeyMarker"]) == ("%C3%A4", "a%20b")


def test_parts(s3, bucket):
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
    listed = lambda **more: s3.list_parts(Bucket=bucket, Key="k", UploadId=upload, **more)
    assert listed()["NextPartNumberMarker"] == 0
    for number in (1, 5, 7, 10_000):
        s3.upload_part(Bucket=bucket, Key="k", UploadId=upload, PartNumber=number, Body=b"x")
    page = listed(MaxParts=2)
    assert ([part["PartNumber"] for part in page["Parts"]], page["NextPartNumberMarker"], page["IsTruncated"]) == ([1, 5], 5, True)
    # A part that is uploaded again is another, in the same place.
    s3.upload_part(Bucket=bucket, Key="k", UploadId=upload, PartNumber=5, Body=b"y")
    page = listed(PartNumberMarker=5)
    assert [part["PartNumber"] for part in page["Parts"]] == [7, 10_000] and not page["IsTruncated"]
    assert "Parts" not in listed(PartNumberMarker=10_000) and "Parts" not in listed(PartNumberMarker=2_000_000)
    page = listed(MaxParts=0)
    assert "Parts" not in page and not page["IsTruncated"]
    for wrong in ({"MaxParts": -1}, {"PartNumberMarker": -1}):
        assert refused("InvalidArgument", 400, listed, **wrong)["ArgumentName"]


@pytest.mark.parametrize("operation, contents", [("list_objects", "Contents"), ("list_objects_v2", "Contents")])
@pytest.mark.parametrize("delimiter", [None, "/"])
def test_objects_are_deleted_page_by_page(s3, bucket, operation, contents, delimiter):
    keys = [f"{a}/{n}" for a in "ab" for n in range(5)] + [f"k{n}" for n in range(5)]
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    more = {"Delimiter": delimiter} if delimiter else {}
    seen = []
    for page in s3.get_paginator(operation).paginate(Bucket=bucket, PaginationConfig={"PageSize": 2}, **more):
        seen += [entry["Key"] for entry in page.get(contents, [])]
        for prefix in page.get("CommonPrefixes", []):
            below = s3.list_objects_v2(Bucket=bucket, Prefix=prefix["Prefix"])["Contents"]
            seen += [entry["Key"] for entry in below]
        s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in seen]})
    assert sorted(seen) == sorted(keys) and s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_markers_under_a_common_prefix(s3, bucket):
    for key in ["f/a/1", "f/a/2", "f/b", "f/c"]:
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    page = s3.list_objects(Bucket=bucket, Prefix="f/", Delimiter="/", Marker="f/a/1", MaxKeys=1)
    assert [entry["Key"] for entry in page["Contents"]] == ["f/b"]
    for operation in (s3.list_objects, s3.list_objects_v2):
        page = operation(Bucket=bucket, MaxKeys=0)
        assert "Contents" not in page and not page["IsTruncated"]
        assert refused("InvalidArgument", 400, operation, Bucket=bucket, MaxKeys=-1)["ArgumentName"] == "max-keys"
    assert refused("InvalidArgument", 400, s3.list_objects_v2, Bucket=bucket, ContinuationToken="=?")["ArgumentName"] == "continuation-token"


def test_buckets(make_storage):
    s3 = make_storage().client(parameter_validation=False)
    names = [f"bkt-{n}" for n in range(5)] + ["other-1"]
    for name in names:
        s3.create_bucket(Bucket=name)
    listed = lambda **more: s3.list_buckets(**more)
    page = listed(MaxBuckets=2)
    assert [entry["Name"] for entry in page["Buckets"]] == names[:2]
    s3.delete_bucket(Bucket=names[1])
    rest = listed(ContinuationToken=page["ContinuationToken"])
    assert [entry["Name"] for entry in rest["Buckets"]] == names[2:] and "ContinuationToken" not in rest
    s3.create_bucket(Bucket=names[1])
    pages = s3.get_paginator("list_buckets").paginate(PaginationConfig={"PageSize": 2}, Prefix="bkt-")
    assert [entry["Name"] for page in pages for entry in page["Buckets"]] == names[:5]
    assert len(listed(MaxBuckets=6)["Buckets"]) == 6 and "ContinuationToken" not in listed(MaxBuckets=6)
    assert listed(BucketRegion="eu-central-1")["Buckets"] == [] and len(listed(BucketRegion="us-east-1")["Buckets"]) == 6
    for wrong in (0, -1, 10_001):
        refused("InvalidArgument", 400, listed, MaxBuckets=wrong)
    refused("InvalidArgument", 400, listed, ContinuationToken="?")


def raw(storage, path):
    """A signed GET, its body as it came."""
    request = AWSRequest("GET", storage.url + path, headers={"x-amz-content-sha256": "UNSIGNED-PAYLOAD"})
    SigV4Auth(Credentials(*storage.keys["alice"]), "s3", "us-east-1").add_auth(request)
    answer = requests.get(request.url, headers=dict(request.headers), timeout=10)
    assert answer.status_code == 200, answer.text
    return answer.text


def test_moments_are_whole_seconds_everywhere(storage, s3, bucket):
    versioned(s3, bucket)
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    s3.put_object(Bucket=bucket, Key="gone", Body=b"x")
    s3.delete_object(Bucket=bucket, Key="gone")
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m")["UploadId"]
    s3.upload_part(Bucket=bucket, Key="m", UploadId=upload, PartNumber=1, Body=b"x")
    for path in ["/", f"/{bucket}", f"/{bucket}?list-type=2", f"/{bucket}?versions=", f"/{bucket}?uploads=", f"/{bucket}/m?uploadId={upload}"]:
        moments = re.findall(r"<(?:LastModified|Initiated|CreationDate)>([^<]*)<", raw(storage, path))
        assert moments and all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.000Z", moment) for moment in moments), (path, moments)
    copied = s3.copy_object(Bucket=bucket, Key="c", CopySource=f"{bucket}/k")["CopyObjectResult"]["LastModified"]
    part = s3.upload_part_copy(Bucket=bucket, Key="m", UploadId=upload, PartNumber=2, CopySource=f"{bucket}/k")["CopyPartResult"]["LastModified"]
    listed = s3.list_objects_v2(Bucket=bucket)["Contents"]
    assert copied.microsecond == part.microsecond == 0
    assert {entry["Key"]: entry["LastModified"] for entry in listed} == {key: s3.head_object(Bucket=bucket, Key=key)["LastModified"] for key in "kc"}
