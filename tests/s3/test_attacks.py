"""Whoever has a presigned URL, a form, a name that was somebody's, or a reader that reads otherwise, gets nothing by it."""
import base64
import datetime
import hashlib
import hmac
import http.client
import json
import socket
import time
import urllib.parse
import uuid

import pytest
import requests
import signed
from test_asked import code, read
from test_objects import refused


def netloc(storage):
    return storage.url.removeprefix("http://")


@pytest.mark.parametrize(("path", "body"), [
    ("?delete", b"<Delete><Object><Key>k</Key></Object></Delete>"),
    ("?versioning", b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"),
    ("?tagging", b"<Tagging><TagSet><Tag><Key>a</Key><Value>alices</Value></Tag></TagSet></Tagging>"),
    ("?encryption", b"<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>aws:kms</SSEAlgorithm>"
                    b"</ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>"),
    ("/k?tagging", b"<Tagging><TagSet><Tag><Key>a</Key><Value>alices</Value></Tag></TagSet></Tagging>"),
    ("/k", b"alices"),
])
def test_a_body_that_ends_after_the_bucket_is_anothers(storage, s3, path, body):
    name, bob = f"race-{uuid.uuid4().hex[:10]}", storage.client("bob")
    s3.create_bucket(Bucket=name)
    method = "POST" if path == "?delete" else "PUT"
    headers = {"Content-MD5": base64.b64encode(hashlib.md5(body).digest()).decode()}
    asked = signed.signed(storage, method, f"/{name}{path}", body, headers)
    host, port = netloc(storage).split(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        lines = "".join(f"{key}: {value}\r\n" for key, value in asked.items() if key.lower() != "content-length")
        client.sendall(f"{method} /{name}{path} HTTP/1.1\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{lines}\r\n".encode() + body[:3])
        time.sleep(0.2)
        s3.delete_bucket(Bucket=name)
        bob.create_bucket(Bucket=name)
        bob.put_object(Bucket=name, Key="k", Body=b"bobs", Tagging="a=bobs")
        client.sendall(body[3:])
        answer = client.makefile("rb").read()
    assert answer.split()[1] in (b"403", b"404"), answer
    assert read(bob, name, "k") == b"bobs"
    assert bob.get_object_tagging(Bucket=name, Key="k")["TagSet"] == [{"Key": "a", "Value": "bobs"}]
    assert "Status" not in bob.get_bucket_versioning(Bucket=name)
    refused("NoSuchTagSet", 404, bob.get_bucket_tagging, Bucket=name)
    bob.delete_object(Bucket=name, Key="k")
    bob.delete_bucket(Bucket=name)


@pytest.fixture
def secret(s3):
    name = f"secret-{uuid.uuid4().hex[:8]}"
    s3.create_bucket(Bucket=name)
    s3.put_object(Bucket=name, Key="secret", Body=b"secret")
    return f"/{name}/secret"


@pytest.mark.parametrize("name", ["x-amz-copy-source", "x-amz-tagging", "x-amz-meta-a", "x-amz-website-redirect-location"])
def test_headers_that_nobody_signed(storage, s3, bucket, secret, name):
    more = {name: secret}
    url = signed.presigned(storage, "PUT", f"/{bucket}/k")
    assert signed.send(netloc(storage), "PUT", url, b"1", {"x-amz-user-agent": "browser"})[0] == 200, "the control"
    answer = signed.send(netloc(storage), "PUT", url, b"2", more)
    assert code(answer) == (403, "AccessDenied") and f"<HeadersNotSigned>{name}</HeadersNotSigned>".encode() in answer[2], answer
    headers = signed.signed(storage, "PUT", f"/{bucket}/k", b"3")
    assert code(signed.send(netloc(storage), "PUT", f"/{bucket}/k", b"3", headers | more)) == (403, "AccessDenied")
    v2 = storage.client(signature_version="s3").generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "k"})
    v2 = v2.removeprefix(storage.url)
    assert signed.send(netloc(storage), "PUT", v2, b"1")[0] == 200, "the control"
    assert code(signed.send(netloc(storage), "PUT", f"{v2}&{urllib.parse.urlencode(more)}", b"4")) == (403, "SignatureDoesNotMatch")
    assert code(signed.send(netloc(storage), "PUT", v2, b"4", more)) == (403, "SignatureDoesNotMatch")
    assert read(s3, bucket, "k") == b"1"


def test_headers_of_version_2_are_covered_where_they_stand_in_the_query(storage, s3, bucket):
    v2 = storage.client(signature_version="s3")
    url = v2.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "k", "Metadata": {"a": "b"}, "ServerSideEncryption": "AES256"})
    assert requests.put(url, data=b"1", timeout=10).status_code == 200
    assert s3.head_object(Bucket=bucket, Key="k")["Metadata"] == {"a": "b"}
    get = v2.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"})
    assert requests.get(f"{get}&attributes&x-amz-object-attributes=ETag", timeout=10).status_code == 501
    assert requests.get(get, timeout=10).content == b"1"


def test_one_signature_a_request(storage, s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"1")
    v2 = storage.client(signature_version="s3")
    url = v2.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"}, ExpiresIn=400_000_000)
    assert requests.get(f"{url}&X-Amz-Signature=x&X-Amz-Expires=1", timeout=10).status_code == 400
    assert requests.get(url, headers={"Authorization": "AWS a:b"}, timeout=10).status_code == 400
    assert requests.get(signed.presigned(storage, "GET", f"/{bucket}/k", -1).join([storage.url, ""]), timeout=10).status_code == 400


@pytest.mark.parametrize(("date", "expected"), [
    (lambda now: now.strftime("%a, %d %b %Y %H:%M:%S GMT"), (200, "")),
    (lambda now: now.strftime("%a, %d %b %Y %H:%M:%S +0000"), (200, "")),
    (lambda now: (now - datetime.timedelta(minutes=20)).strftime("%a, %d %b %Y %H:%M:%S GMT"), (403, "RequestTimeTooSkewed")),
    (lambda now: "Tue, 27 Mar 2001 19:36:42 +0000", (403, "RequestTimeTooSkewed")), (lambda now: "garbage", (403, "AccessDenied")),
])
def test_version_2_is_good_for_some_minutes(storage, s3, bucket, date, expected):
    s3.put_object(Bucket=bucket, Key="k", Body=b"1")
    date = date(datetime.datetime.now(datetime.timezone.utc))
    access_key, secret = storage.keys["alice"]
    signature = base64.b64encode(hmac.new(secret.encode(), f"GET\n\n\n{date}\n/{bucket}/k".encode(), hashlib.sha1).digest()).decode()
    assert code(signed.send(netloc(storage), "GET", f"/{bucket}/k", headers={"Date": date, "Authorization": f"AWS {access_key}:{signature}"})) == expected


@pytest.mark.parametrize(("body", "gone"), [
    ("<Key>a<![CDATA[c]]></Key>", "ac"), ("<Key><![CDATA[a]]></Key>", "a"), ("<Key>a<!-- b -->c</Key>", "ac"), ("<Key></Key>", None),
    ("<Key>a</Key></Object></Delete>more", None), ("<Key>&#+97;</Key>", None),
])
def test_a_key_is_read_whole(storage, s3, bucket, body, gone):
    for key in ("a", "ac"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"1")
    whole = f"<Delete><Object>{body}</Object></Delete>" if "more" not in body else f"<Delete><Object>{body}"
    headers = {"Content-MD5": base64.b64encode(hashlib.md5(whole.encode()).digest()).decode()}
    status, _, _ = signed.request(storage, "POST", f"/{bucket}?delete", whole.encode(), headers)
    assert status == (200 if gone else 400)
    assert {entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]} == {"a", "ac"} - {gone}


def form(storage, bucket, *, minutes=0, region="us-east-1", service="s3", key="k", extra=(), conditions=()):
    """A form signed by version 4 so long ago, good for an hour."""
    access_key, secret = storage.keys["alice"]
    now = datetime.datetime.now(datetime.timezone.utc)
    date = (now - datetime.timedelta(minutes=minutes)).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{access_key}/{date[:8]}/{region}/{service}/aws4_request"
    own = {"x-amz-algorithm": "AWS4-HMAC-SHA256", "x-amz-credential": scope, "x-amz-date": date}
    expiration = (now + datetime.timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    names = {name for name, _ in extra}
    policy = {"expiration": expiration, "conditions": [{"bucket": bucket}, ["starts-with", "$key", ""], *({n: v} for n, v in own.items()),
                                                       *(["starts-with", f"${name}", ""] for name in names), *conditions]}
    encoded = base64.b64encode(json.dumps(policy).encode()).decode()
    signing = b"AWS4" + secret.encode()
    for part in (date[:8], region, service, "aws4_request"):
        signing = hmac.new(signing, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(signing, encoded.encode(), hashlib.sha256).hexdigest()
    fields = [("key", key), *own.items(), ("policy", encoded), ("x-amz-signature", signature), *extra]
    return requests.post(f"{storage.url}/{bucket}", files=[(n, (None, v)) for n, v in fields] + [("file", ("f", b"data"))], timeout=20)


def test_a_form_lives_as_long_as_its_policy_and_for_its_scope(storage, s3, bucket):
    assert form(storage, bucket).status_code == 204
    assert form(storage, bucket, minutes=20).status_code == 204
    assert form(storage, bucket, region="eu-west-9").status_code == 400
    assert form(storage, bucket, service="sts").status_code == 400


@pytest.mark.parametrize(("extra", "status"), [
    ([("if-none-match", "*")], 501), ([("if-match", '"x"')], 501), ([("tagging", "<Tagging/>")], 501), ([("x-amz-meta-é", "1")], 400),
    ([("x-amz-meta-a b", "1")], 400), ([("content-disposition", "a\r\nb")], 400), ([("content-type", "x\x01")], 400), ([("key", "other")], 400),
    ([("x-amz-meta-a", "1")], 204),
])
def test_what_a_form_says_is_kept_and_can_be_answered(storage, s3, bucket, extra, status):
    s3.put_object(Bucket=bucket, Key="k", Body=b"before")
    assert form(storage, bucket, extra=extra).status_code == status
    assert read(s3, bucket, "k") == (b"data" if status == 204 else b"before")


def test_a_form_is_bounded_before_anybody_signed_it(storage, bucket):
    for key, name in (("${filename}" * 2500, "a" * 30000), ("${filename}" * 2500, "a" * 1000), ("k", "a" * 2000), ("k" * 40000, "a")):
        answer = requests.post(f"{storage.url}/{bucket}", files=[("key", (None, key)), ("file", (name, b"data"))], timeout=20)
        assert code((answer.status_code, None, answer.content)) == (400, "MalformedPOSTRequest")


def answer_without_file(storage, bucket, fields) -> tuple[int, str]:
    """What a form is answered whose file, announced with 50 MiB, stays away."""
    lines = "".join(f'--B\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields)
    lines += '--B\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nbegin'
    host, port = netloc(storage).split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall((f"POST /{bucket} HTTP/1.1\r\nHost: {netloc(storage)}\r\nContent-Length: {50 << 20}\r\n"
                        f"Content-Type: multipart/form-data; boundary=B\r\n\r\n{lines}").encode())
        answer = http.client.HTTPResponse(client)
        answer.begin()
        return code((answer.status, None, answer.read()))


def test_nobody_waits_for_the_file_of_a_form_that_nobody_signed(storage, bucket):
    assert answer_without_file(storage, bucket, [("key", "k")]) == (403, "AccessDenied")
    policy = {"expiration": "2100-01-01T00:00:00Z", "conditions": [["starts-with", "$key", ""]]}
    encoded = base64.b64encode(json.dumps(policy).encode()).decode()
    assert answer_without_file(storage, bucket, [("key", "k"), ("policy", encoded)]) == (403, "AccessDenied")
    access_key, secret = storage.keys["alice"]
    by_version_2 = lambda secret: base64.b64encode(hmac.new(secret.encode(), encoded.encode(), hashlib.sha1).digest()).decode()
    old = lambda access_key, secret: [("key", "k"), ("policy", encoded), ("awsaccesskeyid", access_key), ("signature", by_version_2(secret))]
    assert answer_without_file(storage, bucket, old(access_key, "guessed")) == (403, "SignatureDoesNotMatch")
    assert answer_without_file(storage, bucket, old("nobody", secret)) == (403, "InvalidAccessKeyId")
    signed_by_alice = [("awsaccesskeyid", (None, access_key)), ("signature", (None, by_version_2(secret)))]
    files = [("key", (None, "k")), ("policy", (None, encoded)), *signed_by_alice, ("file", ("f", b"data"))]
    assert requests.post(f"{storage.url}/{bucket}", files=files, timeout=20).status_code == 204


def test_the_fields_of_a_form_do_not_take_for_ever(storage, bucket):
    host, port = netloc(storage).split(":")
    with socket.create_connection((host, int(port)), timeout=80) as client:
        client.sendall((f"POST /{bucket} HTTP/1.1\r\nHost: {netloc(storage)}\r\nContent-Length: 1000\r\n"
                        "Content-Type: multipart/form-data; boundary=B\r\n\r\n--B\r\n").encode())
        answer = http.client.HTTPResponse(client)
        answer.begin()
        assert code((answer.status, None, answer.read())) == (400, "RequestTimeout")


def test_what_a_known_form_is_refused_for_is_told_of_its_signer(storage, bucket):
    for _ in range(3):
        answer = form(storage, bucket, conditions=[["content-length-range", 1, 2]])
        assert answer.status_code == 400
        event, = storage.events_of(answer.headers["x-amz-request-id"])
        assert (event["caller"]["oid"], event["error"], event["status"]) == ("alice", "EntityTooLarge", 400)


def test_what_a_form_is_refused_for_is_told_with_its_bucket(storage, bucket):
    """Also before s3s has read it: by its policy, its fields, its scope."""
    refusals = [form(storage, bucket, conditions=[["eq", "$x-amz-meta-a", "b"]]), form(storage, bucket, service="sts"),
                form(storage, bucket, extra=[("if-match", '"x"')]), form(storage, bucket, conditions=[["content-length-range", 1, 2]])]
    for answer in refusals:
        assert answer.status_code >= 400
        event, = storage.events_of(answer.headers["x-amz-request-id"])
        assert (event["caller"]["oid"], event["operation"], event["context"]["bucket"]) == ("alice", "PutObject", bucket), event


def half_sent(storage, method, path, headers, begin) -> tuple:
    """What is answered to a client that sends no more than the beginning of its body."""
    host, port = netloc(storage).split(":")
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection((host, int(port)), timeout=80) as client:
        client.sendall(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + begin)
        answer = http.client.HTTPResponse(client)
        answer.begin()
        return code((answer.status, None, answer.read())), answer.headers["x-amz-request-id"]


def test_bodies_do_not_take_for_ever(make_storage):
    storage = make_storage(more_listen="body_idle_timeout_secs = 1")
    s3 = storage.client()
    s3.create_bucket(Bucket="slow")
    s3.put_object(Bucket="slow", Key="k", Body=b"1")
    plain = signed.signed(storage, "PUT", "/slow/k", b"x" * 1000, {"Content-Length": "1000"})
    framed = signed.signed(storage, "PUT", "/slow/k", b"", {"Content-Length": "2000", "x-amz-decoded-content-length": "1000", "Content-Encoding": "aws-chunked"},
                           payload="STREAMING-AWS4-HMAC-SHA256-PAYLOAD")
    xml = b"<Tagging><TagSet></TagSet></Tagging>"
    tags = signed.signed(storage, "PUT", "/slow?tagging=", xml, {"Content-Length": str(len(xml)), "Content-MD5": base64.b64encode(hashlib.md5(xml).digest()).decode()})
    cases = [("PUT", "/slow/k", plain, b"x" * 10), ("PUT", "/slow/k", framed, b"3e8;chunk-signature="), ("PUT", "/slow?tagging=", tags, xml[:9])]
    access_key, secret = storage.keys["alice"]
    encoded = base64.b64encode(json.dumps({"expiration": "2100-01-01T00:00:00Z", "conditions": [["starts-with", "$key", ""]]}).encode()).decode()
    signature = base64.b64encode(hmac.new(secret.encode(), encoded.encode(), hashlib.sha1).digest()).decode()
    fields = [("key", "k"), ("policy", encoded), ("awsaccesskeyid", access_key), ("signature", signature)]
    begin = "".join(f'--B\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields)
    begin += '--B\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nhalf'
    whole = {"Host": netloc(storage), "Content-Length": "100000", "Content-Type": "multipart/form-data; boundary=B"}
    cases.append(("POST", "/slow", whole, begin.encode()))
    for case in cases:
        answer, request_id = half_sent(storage, *case)
        assert answer == (400, "RequestTimeout"), case
        event, = storage.events_of(request_id)
        assert (event["outcome"], event["error"], event["context"]["bucket"]) == ("failed", "RequestTimeout", "slow")
    assert s3.get_object(Bucket="slow", Key="k")["Body"].read() == b"1" and not storage.blobs()


def chunk(storage, path, body, headers, forge):
    """One signed chunk and the last one; `forge` changes the signature of the first."""
    access_key, secret = storage.keys["alice"]
    asked = signed.signed(storage, "PUT", path, b"", headers, payload="STREAMING-AWS4-HMAC-SHA256-PAYLOAD")
    date = asked["X-Amz-Date"]
    previous = asked["Authorization"].rsplit("Signature=", 1)[1]
    key = b"AWS4" + secret.encode()
    for part in (date[:8], "us-east-1", "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    sent = b""
    for piece in (body, b""):
        text = "\n".join(["AWS4-HMAC-SHA256-PAYLOAD", date, f"{date[:8]}/us-east-1/s3/aws4_request", previous, hashlib.sha256(b"").hexdigest(), hashlib.sha256(piece).hexdigest()])
        previous = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        shown = forge(previous) if piece else previous
        sent += f"{len(piece):x};chunk-signature={shown}\r\n".encode() + piece + b"\r\n"
    return signed.send(netloc(storage), "PUT", path, sent, asked)


def test_a_forged_chunk_is_a_denial(storage, s3, bucket):
    headers = {"x-amz-decoded-content-length": "5", "Content-Encoding": "aws-chunked"}
    put = lambda forge: chunk(storage, f"/{bucket}/k", b"hello", headers, forge)
    status, told, _ = put(lambda good: good)
    assert status == 200, "the control"
    answer = put(lambda good: good[::-1])
    assert code(answer) == (403, "SignatureDoesNotMatch")
    event, = storage.events_of(answer[1]["x-amz-request-id"])
    assert (event["outcome"], event["error"], event["status"], event["caller"]["oid"]) == ("denied", "SignatureDoesNotMatch", 403, "alice")
    assert code(put(lambda good: good[:-1])) == (400, "IncompleteBody"), "malformed is another thing"
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"hello"


def test_small_things_that_were_passed_over(storage, s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"1")
    ask = lambda headers, path="c": code(signed.request(storage, "PUT", f"/{bucket}/{path}", b"", headers))
    assert ask({"x-amz-copy-source": f"/{bucket}/k", "x-amz-tagging-directive": "FOO"}) == (400, "InvalidArgument")
    assert ask({"x-amz-server-side-encryption-customer-algorithm": ""}) == (400, "InvalidArgument")
    assert [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["k"]
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m")["UploadId"]
    etag = s3.upload_part(Bucket=bucket, Key="m", UploadId=upload, PartNumber=1, Body=b"1")["ETag"]
    body = f"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>".encode()
    wrong = {"Content-MD5": base64.b64encode(hashlib.md5(b"other").digest()).decode()}
    assert code(signed.request(storage, "POST", f"/{bucket}/m?uploadId={upload}", body, wrong)) == (400, "BadDigest")
