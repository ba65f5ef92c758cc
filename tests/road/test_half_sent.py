"""Rights are judged when the body is there, on what a name means then: whoever is removed while he sends slowly changes nothing any more.

Each is sent once whole and slowly, while nobody is removed: that is carried out, so that the refusal is the removal's.
"""
import contextlib
import json
import ssl
import uuid
import xml.etree.ElementTree as ElementTree

import pytest
from botocore.awsrequest import AWSRequest
from cutting import Door, Request, half_sent
from managed_hsm import ADMIN, CRYPTO_USER, ENCRYPTION_USER, STORAGE, Hsm
from of_s3 import TAGS, XMLNS, md5
from service import REGION, Service, allow, document, iam
from signed import signed
from signing import sign
from storage_service import Storage


@pytest.fixture(scope="module")
def hsm(tmp_path_factory):
    hsm = Hsm(tmp_path_factory.mktemp("half") / "hsm")
    hsm.start()
    hsm.grant(CRYPTO_USER, ADMIN[1])
    hsm.grant(ENCRYPTION_USER, STORAGE[1])
    hsm.create_kek("kek")
    yield hsm
    hsm.stop()
    assert "panicked" not in hsm.log.read_text()


@pytest.mark.parametrize("removed", [False, True])
def test_a_caller_whose_policy_was_changed(tmp_path, removed):
    service = Service(tmp_path / "kms").start()
    kms = service.client("root")
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    everything = allow("kms:*", Principal={"AWS": iam("root")})
    bobs = document(everything, allow(["kms:PutKeyPolicy", "kms:GetKeyPolicy"], Principal={"AWS": iam("user/bob")}))
    kms.put_key_policy(KeyId=key, Policy=json.dumps(bobs))
    body = json.dumps({"KeyId": key, "Policy": json.dumps(bobs | {"Id": "of bob"})}).encode()
    headers = {"Host": f"localhost:{service.port}", "Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": "TrentService.PutKeyPolicy"}
    asked = AWSRequest("POST", service.url + "/", data=body, headers=headers)
    request = Request.http("POST", "/", sign(asked, *service.keys["bob"], "kms", REGION), body)
    with half_sent(Door(service.port, ssl.create_default_context(cafile=service.ca_file)), request) as answer:
        if removed:
            kms.put_key_policy(KeyId=key, Policy=json.dumps(document(everything)))
        status, text = answer()
    assert status == (400 if removed else 200), text
    assert ("of bob" in kms.get_key_policy(KeyId=key)["Policy"]) is not removed
    assert not removed or json.loads(text)["__type"] == "AccessDeniedException"
    service.check_end()


@pytest.fixture(scope="module")
def storage(tmp_path_factory, hsm):
    storage = Storage(tmp_path_factory.mktemp("half") / "s3", hsm, f"{hsm.url}/keys/kek").start()
    yield storage
    storage.stop()
    assert "panicked" not in storage.log.read_text()


def upload(s3, bucket, part: bool):
    made = s3.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
    etag = s3.upload_part(Bucket=bucket, Key="k", UploadId=made, PartNumber=1, Body=b"part")["ETag"] if part else ""
    return made, etag


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize("what", ["put", "put-large", "delete", "tagging", "encryption", "part", "complete"])
def test_a_bucket_that_is_another_owners_by_then(storage, what, removed):
    """Deleted and made again by somebody else, while a body of its former owner is on its way."""
    alice, bob, bucket = storage.client("alice"), storage.client("bob"), f"half-{uuid.uuid4().hex[:8]}"
    alice.create_bucket(Bucket=bucket)
    if what == "delete":
        alice.put_object(Bucket=bucket, Key="k", Body=b"alice's")
    made, etag = upload(alice, bucket, what == "complete") if what in ("part", "complete") else ("", "")
    method, path, body = {
        "put": ("PUT", "/k", b"alice's body"), "put-large": ("PUT", "/k", b"alice's body" * 100_000),
        "delete": ("POST", "?delete=", b"<Delete><Object><Key>k</Key></Object></Delete>"),
        "tagging": ("PUT", "?tagging=", TAGS.format("alice").encode()),
        "encryption": ("PUT", "?encryption=", b"<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>AES256"
                       b"</SSEAlgorithm></ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>"),
        "part": ("PUT", f"/k?partNumber=1&uploadId={made}", b"alice's body"),
        "complete": ("POST", f"/k?uploadId={made}", f"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>".encode()),
    }[what]
    path = f"/{bucket}{path}"
    headers = signed(storage, method, path, body, md5(body) if body.startswith(b"<") else {})
    with half_sent(Door(storage.port), Request.http(method, path, headers, body)) as answer:
        if removed:
            alice.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k"}]})
            alice.delete_bucket(Bucket=bucket)
            bob.create_bucket(Bucket=bucket)
            bob.put_object(Bucket=bucket, Key="k", Body=b"bob's")
        status, text = answer()
    if not removed:
        assert status // 100 == 2 and b"<Error>" not in text, text
        return
    code = ElementTree.fromstring(text).findtext("Code") or ElementTree.fromstring(text).findtext(f".//{XMLNS}Code")
    assert code in ("AccessDenied", "NoSuchBucket", "NoSuchUpload"), (status, text)
    assert bob.get_object(Bucket=bucket, Key="k")["Body"].read() == b"bob's"
    assert "alice" not in str(bob.list_object_versions(Bucket=bucket)["Versions"])
    with contextlib.suppress(bob.exceptions.ClientError):
        assert "alice" not in str(bob.get_bucket_tagging(Bucket=bucket)["TagSet"])
