"""Preconditions on everything that reads, writes, copies and deletes: each that S3 has holds, each that it has not is refused."""
import datetime
import threading
import uuid

import pytest
from botocore.exceptions import ClientError

FUTURE = datetime.datetime(2099, 1, 1, tzinfo=datetime.timezone.utc)
PAST = datetime.datetime(2015, 1, 1, tzinfo=datetime.timezone.utc)


def refused(code, status, call, *args, **more):
    """The error's members."""
    with pytest.raises(ClientError) as caught:
        call(*args, **more)
    response = caught.value.response
    assert (response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]) == (code, status), response
    return response["Error"]


def with_headers(s3, operation, headers, call, *args, **more):
    """A call with headers that boto3 has no parameters for."""
    def add(request, **_):
        for name, value in headers.items():
            request.headers[name] = value
    s3.meta.events.register_first(f"before-sign.s3.{operation}", add)
    try:
        return call(*args, **more)
    finally:
        s3.meta.events.unregister(f"before-sign.s3.{operation}", add)


def read(s3, bucket, key):
    return s3.get_object(Bucket=bucket, Key=key)["Body"].read()


@pytest.fixture(params=["off", "enabled"])
def kept(request, s3, bucket):
    """A bucket that keeps no versions, and one that does."""
    if request.param == "enabled":
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    return bucket


def put(s3, bucket, key, body=b"new", **conditions):
    return s3.put_object(Bucket=bucket, Key=key, Body=body, **conditions)


def copy(s3, bucket, key, body=b"new", **conditions):
    s3.put_object(Bucket=bucket, Key="the-source", Body=body)
    return s3.copy_object(Bucket=bucket, Key=key, CopySource={"Bucket": bucket, "Key": "the-source"}, **conditions)


def complete(s3, bucket, key, body=b"new", **conditions):
    upload = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    etag = s3.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=body)["ETag"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": etag}]}
    return s3.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload, MultipartUpload=parts, **conditions)


@pytest.mark.parametrize("write", [put, copy, complete])
def test_writes(s3, kept, write):
    failing = lambda code, status, **conditions: refused(code, status, write, s3, kept, "k", **conditions)
    assert failing("NoSuchKey", 404, IfMatch='"00"')["Key"] == "k"
    write(s3, kept, "k", IfNoneMatch="*")
    assert failing("PreconditionFailed", 412, IfNoneMatch="*")["Condition"] == "If-None-Match"
    assert failing("PreconditionFailed", 412, IfMatch='"00"')["Condition"] == "If-Match"
    assert read(s3, kept, "k") == b"new"
    first = s3.head_object(Bucket=kept, Key="k")
    etag = write(s3, kept, "k", b"second", IfMatch=first["ETag"])
    etag = s3.head_object(Bucket=kept, Key="k")["ETag"]
    assert failing("PreconditionFailed", 412, IfMatch=first["ETag"])["Condition"] == "If-Match"
    write(s3, kept, "k", b"third", IfMatch=etag.strip('"'))
    assert read(s3, kept, "k") == b"third"
    s3.delete_object(Bucket=kept, Key="k")
    failing("NoSuchKey", 404, IfMatch=etag)
    write(s3, kept, "k", b"fourth", IfNoneMatch="*")
    assert read(s3, kept, "k") == b"fourth"


@pytest.mark.parametrize("write", [put, copy, complete])
def test_values_that_s3_does_not_take_on_a_write(s3, kept, write):
    etag = put(s3, kept, "k", b"old")["ETag"]
    for conditions, header in [({"IfNoneMatch": etag}, "If-None-Match"), ({"IfNoneMatch": '"00"'}, "If-None-Match"), ({"IfMatch": "*"}, "If-Match"),
                               ({"IfMatch": etag, "IfNoneMatch": "*"}, "If-Match,If-None-Match")]:
        error = refused("NotImplemented", 501, write, s3, kept, "k", **conditions)
        assert error["Header"] == header and error["additionalMessage"], error
    assert read(s3, kept, "k") == b"old"


def test_a_precondition_that_an_operation_does_not_have_is_no_yes(storage, bucket):
    # An answer that comes before the body may end the connection.
    s3 = storage.client(retries={"max_attempts": 3})
    put(s3, bucket, "k", b"old")
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m")["UploadId"]
    tags = {"TagSet": [{"Key": "a", "Value": "b"}]}
    calls = {
        "PutObject": lambda: put(s3, bucket, "k"),
        "CopyObject": lambda: s3.copy_object(Bucket=bucket, Key="k", CopySource={"Bucket": bucket, "Key": "k"}, MetadataDirective="REPLACE"),
        "DeleteObject": lambda: s3.delete_object(Bucket=bucket, Key="k"),
        "DeleteObjects": lambda: s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k"}]}),
        "UploadPart": lambda: s3.upload_part(Bucket=bucket, Key="m", UploadId=upload, PartNumber=1, Body=b"x"),
        "UploadPartCopy": lambda: s3.upload_part_copy(Bucket=bucket, Key="m", UploadId=upload, PartNumber=1, CopySource={"Bucket": bucket, "Key": "k"}),
        "CreateMultipartUpload": lambda: s3.create_multipart_upload(Bucket=bucket, Key="m2"),
        "AbortMultipartUpload": lambda: s3.abort_multipart_upload(Bucket=bucket, Key="m", UploadId=upload),
        "PutObjectTagging": lambda: s3.put_object_tagging(Bucket=bucket, Key="k", Tagging=tags),
        "DeleteBucket": lambda: s3.delete_bucket(Bucket=bucket),
        "PutBucketVersioning": lambda: s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}),
    }
    etag = {"If-Match": '"00"', "If-None-Match": "*"}
    times = {"If-Modified-Since": "Thu, 01 Jan 2099 00:00:00 GMT", "If-Unmodified-Since": "Thu, 01 Jan 2015 00:00:00 GMT"}
    deletes = {"x-amz-if-match-size": "5", "x-amz-if-match-last-modified-time": "Thu, 01 Jan 2015 00:00:00 GMT"}
    source = {"x-amz-copy-source-if-match": '"00"'}
    has = {"PutObject": etag, "CopyObject": etag | source, "UploadPartCopy": source, "DeleteObject": {"If-Match": ""} | deletes}
    for operation, call in calls.items():
        for header, value in (etag | times | deletes | source).items():
            if header in has.get(operation, {}):
                continue
            error = refused("NotImplemented", 501, with_headers, s3, operation, {header: value}, call)
            assert error["Header"].lower() == header.lower(), (operation, error)
    assert read(s3, bucket, "k") == b"old"
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == []
    assert "Status" not in s3.get_bucket_versioning(Bucket=bucket)
    uploads = s3.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert [entry["Key"] for entry in uploads] == ["m"]
    assert "Parts" not in s3.list_parts(Bucket=bucket, Key="m", UploadId=upload)


def test_reads_name_the_condition_and_ignore_times_to_come(s3, bucket):
    etag = put(s3, bucket, "k", b"body")["ETag"]
    modified = s3.head_object(Bucket=bucket, Key="k")["LastModified"]
    get = lambda **conditions: s3.get_object(Bucket=bucket, Key="k", **conditions)
    assert refused("PreconditionFailed", 412, get, IfMatch='"00"')["Condition"] == "If-Match"
    assert refused("PreconditionFailed", 412, get, IfUnmodifiedSince=PAST)["Condition"] == "If-Unmodified-Since"
    refused("304", 304, get, IfNoneMatch=etag)
    refused("304", 304, get, IfNoneMatch=etag.strip('"'))
    refused("304", 304, get, IfModifiedSince=modified)
    for conditions in [{"IfModifiedSince": FUTURE}, {"IfUnmodifiedSince": modified}, {"IfMatch": etag, "IfUnmodifiedSince": PAST},
                       {"IfNoneMatch": '"00"', "IfModifiedSince": modified}]:
        assert get(**conditions)["Body"].read() == b"body", conditions
    refused("412", 412, s3.head_object, Bucket=bucket, Key="k", IfMatch='"00"')


@pytest.mark.parametrize("part", [False, True])
def test_sources_of_copies_name_the_condition(s3, bucket, part):
    etag = put(s3, bucket, "k", b"body")["ETag"]
    modified = s3.head_object(Bucket=bucket, Key="k")["LastModified"]
    upload = s3.create_multipart_upload(Bucket=bucket, Key="c")["UploadId"]
    source = {"Bucket": bucket, "Key": "c", "CopySource": {"Bucket": bucket, "Key": "k"}}

    def call(**conditions):
        if part:
            return s3.upload_part_copy(**source, UploadId=upload, PartNumber=1, **conditions)
        return s3.copy_object(**source, **conditions)
    for conditions, named in [({"CopySourceIfMatch": '"00"'}, "If-Match"), ({"CopySourceIfNoneMatch": etag}, "If-None-Match"),
                              ({"CopySourceIfModifiedSince": modified}, "If-Modified-Since"), ({"CopySourceIfUnmodifiedSince": PAST}, "If-Unmodified-Since")]:
        error = refused("PreconditionFailed", 412, call, **conditions)
        assert error["Condition"] == f"x-amz-copy-source-{named}"
    refused("404", 404, s3.head_object, Bucket=bucket, Key="c")
    for conditions in [{"CopySourceIfModifiedSince": FUTURE}, {"CopySourceIfMatch": etag, "CopySourceIfUnmodifiedSince": PAST}]:
        call(**conditions)


def test_deletions(s3, kept):
    etag = put(s3, kept, "k", b"12345")["ETag"]
    modified = s3.head_object(Bucket=kept, Key="k")["LastModified"]
    delete = lambda **conditions: s3.delete_object(Bucket=kept, Key="k", **conditions)
    assert refused("PreconditionFailed", 412, delete, IfMatch='"00"')["Condition"] == "If-Match"
    assert refused("PreconditionFailed", 412, delete, IfMatchSize=4)["Condition"] == "x-amz-if-match-size"
    assert refused("PreconditionFailed", 412, delete, IfMatchLastModifiedTime=PAST)["Condition"] == "x-amz-if-match-last-modified-time"
    refused("PreconditionFailed", 412, delete, IfMatch=etag, IfMatchSize=4, IfMatchLastModifiedTime=modified)
    assert read(s3, kept, "k") == b"12345"
    delete(IfMatch=etag, IfMatchSize=5, IfMatchLastModifiedTime=modified)
    refused("404", 404, s3.head_object, Bucket=kept, Key="k")
    # What is not there has no ETag; behind a delete marker there is something, and it is another.
    marked = "Status" in s3.get_bucket_versioning(Bucket=kept)
    gone = ("PreconditionFailed", 412) if marked else ("NoSuchKey", 404)
    refused(*gone, delete, IfMatch="*")
    refused(*gone, delete, IfMatch=etag)
    refused("NoSuchKey", 404, s3.delete_object, Bucket=kept, Key="never", IfMatch="*")
    assert s3.delete_object(Bucket=kept, Key="never", IfMatchSize=4)["ResponseMetadata"]["HTTPStatusCode"] == 204
    put(s3, kept, "k", b"again")
    delete(IfMatch="*")
    refused("404", 404, s3.head_object, Bucket=kept, Key="k")


def test_deletions_of_versions(s3, bucket):
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    first, second = (put(s3, bucket, "k", body) for body in (b"1", b"22"))
    delete = lambda **conditions: s3.delete_object(Bucket=bucket, Key="k", VersionId=first["VersionId"], **conditions)
    refused("PreconditionFailed", 412, delete, IfMatch=second["ETag"])
    refused("PreconditionFailed", 412, delete, IfMatchSize=2)
    delete(IfMatch=first["ETag"], IfMatchSize=1)
    assert [version["VersionId"] for version in s3.list_object_versions(Bucket=bucket)["Versions"]] == [second["VersionId"]]
    refused("NoSuchVersion", 404, delete, IfMatch=first["ETag"])
    delete(IfMatchSize=9)
    delete()


def test_entries_of_delete_objects(s3, kept):
    etags = {key: put(s3, kept, key, b"12345")["ETag"] for key in "abcdefg"}
    modified = s3.head_object(Bucket=kept, Key="a")["LastModified"]
    entries = [{"Key": "a", "ETag": '"00"'}, {"Key": "b", "ETag": etags["b"]}, {"Key": "c", "Size": 4}, {"Key": "d", "Size": 5},
               {"Key": "e", "LastModifiedTime": PAST}, {"Key": "f", "ETag": "*"}, {"Key": "g", "ETag": etags["g"], "Size": 4}, {"Key": "none", "ETag": "*"}]
    answer = s3.delete_objects(Bucket=kept, Delete={"Objects": entries})
    assert sorted(entry["Key"] for entry in answer["Deleted"]) == ["b", "d", "f"]
    assert {entry["Key"]: entry["Code"] for entry in answer["Errors"]} == {key: "PreconditionFailed" for key in "aceg"} | {"none": "NoSuchKey"}
    assert [entry["Key"] for entry in s3.list_objects_v2(Bucket=kept)["Contents"]] == ["a", "c", "e", "g"]
    answer = s3.delete_objects(Bucket=kept, Delete={"Objects": [{"Key": "a", "LastModifiedTime": modified, "Size": 5, "ETag": etags["a"]}]})
    assert [entry["Key"] for entry in answer["Deleted"]] == ["a"]


def test_aborting_an_upload_of_another_time(s3, bucket):
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m")["UploadId"]
    initiated = s3.list_multipart_uploads(Bucket=bucket)["Uploads"][0]["Initiated"]
    abort = lambda **conditions: s3.abort_multipart_upload(Bucket=bucket, Key="m", UploadId=upload, **conditions)
    assert refused("PreconditionFailed", 412, abort, IfMatchInitiatedTime=PAST)["Condition"] == "x-amz-if-match-initiated-time"
    abort(IfMatchInitiatedTime=initiated)
    refused("NoSuchUpload", 404, abort)


def begun(s3, bucket):
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
    etag = s3.upload_part(Bucket=bucket, Key="k", UploadId=upload, PartNumber=1, Body=b"parts")["ETag"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": etag}]}
    return lambda **conditions: s3.complete_multipart_upload(Bucket=bucket, Key="k", UploadId=upload, MultipartUpload=parts, **conditions)


def test_a_key_touched_since_the_upload_began_is_a_conflict(s3, kept):
    old = put(s3, kept, "k", b"old")["ETag"]
    finish = begun(s3, kept)
    same = put(s3, kept, "k", b"old")["ETag"]
    assert same == old
    error = refused("ConditionalRequestConflict", 409, finish, IfMatch=old)
    assert (error["Condition"], error["Key"]) == ("If-Match", "k")
    refused("PreconditionFailed", 412, finish, IfMatch='"00"')
    s3.delete_object(Bucket=kept, Key="k")
    refused("NoSuchKey", 404, finish, IfMatch=old)
    assert refused("ConditionalRequestConflict", 409, finish, IfNoneMatch="*")["Condition"] == "If-None-Match"
    refused("404", 404, s3.head_object, Bucket=kept, Key="k")
    begun(s3, kept)(IfNoneMatch="*")
    assert read(s3, kept, "k") == b"parts"


def race(count, call):
    """Runs `call(n)` at once; the codes of those that failed, and the numbers of those that did not."""
    gate, won, lost = threading.Barrier(count), [], []

    def one(number):
        gate.wait()
        try:
            call(number)
            won.append(number)
        except ClientError as error:
            lost.append(error.response["Error"]["Code"])
    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return won, lost


RACERS = 6


@pytest.mark.parametrize("write", ["put", "copy", "complete"])
@pytest.mark.parametrize("over", [False, True])
def test_of_many_at_once_one_wins(storage, kept, write, over):
    clients = [storage.client() for _ in range(RACERS)]
    for number, client in enumerate(clients):
        client.put_object(Bucket=kept, Key=f"source-{number}", Body=f"{write} {number}".encode())
    for attempt in range(5):
        key = f"k{attempt}"
        conditions = {"IfMatch": put(clients[0], kept, key, b"old")["ETag"]} if over else {"IfNoneMatch": "*"}
        finish = []
        for number, client in enumerate(clients):
            if write == "complete":
                upload = client.create_multipart_upload(Bucket=kept, Key=key)["UploadId"]
                etag = client.upload_part(Bucket=kept, Key=key, UploadId=upload, PartNumber=1, Body=f"complete {number}".encode())["ETag"]
                parts = {"Parts": [{"PartNumber": 1, "ETag": etag}]}
                finish.append(dict(Bucket=kept, Key=key, UploadId=upload, MultipartUpload=parts, **conditions))

        def call(number):
            if write == "put":
                clients[number].put_object(Bucket=kept, Key=key, Body=f"put {number}".encode(), **conditions)
            elif write == "copy":
                clients[number].copy_object(Bucket=kept, Key=key, CopySource=f"{kept}/source-{number}", **conditions)
            else:
                clients[number].complete_multipart_upload(**finish[number])
        won, lost = race(RACERS, call)
        assert len(won) == 1 and len(lost) == RACERS - 1 and set(lost) <= {"PreconditionFailed", "ConditionalRequestConflict"}, (won, lost)
        assert read(clients[0], kept, key) == f"{write} {won[0]}".encode()


def test_of_a_deletion_and_a_write_at_once_one_wins(storage, kept):
    clients = [storage.client() for _ in range(2)]
    for attempt in range(20):
        etag = put(clients[0], kept, "k", f"old {attempt}".encode())["ETag"]
        calls = [lambda: clients[0].delete_object(Bucket=kept, Key="k", IfMatch=etag), lambda: put(clients[1], kept, "k", b"new", IfMatch=etag)]
        won, lost = race(2, lambda number: calls[number]())
        assert len(won) == 1 and len(lost) == 1 and lost[0] in ("PreconditionFailed", "NoSuchKey"), (won, lost)
        listed = clients[0].list_objects_v2(Bucket=kept, Prefix="k").get("KeyCount")
        assert listed == (0 if won == [0] else 1)


@pytest.mark.parametrize("key", ["a&b", "<k>]]>", "\"'", "\U0001f511 emoji", "tab\tand\nnewline", "\x01control"])
def test_errors_name_keys_that_xml_cannot_carry_as_they_are(s3, bucket, key):
    error = refused("NoSuchKey", 404, put, s3, bucket, key, IfMatch='"00"')
    assert error["Key"] == key.replace("\x01", "\ufffd")
    put(s3, bucket, key, b"old")
    refused("PreconditionFailed", 412, put, s3, bucket, key, IfNoneMatch="*")
    assert read(s3, bucket, key) == b"old"
