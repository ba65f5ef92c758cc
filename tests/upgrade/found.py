"""What must be found in an installation, through real clients: `keep` holds always, `begin` only until something is changed."""
import base64
import hashlib
import json
import time

import pytest
from azure.core.exceptions import HttpResponseError
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from installation import CLEAR, OTHER_REGION, PROXY, PROXY_B, Installation
from process import b64, unb64

CURVES = {"P-256": (ec.SECP256R1(), hashes.SHA256()), "P-384": (ec.SECP384R1(), hashes.SHA384()), "P-521": (ec.SECP521R1(), hashes.SHA512()),
          "P-256K": (ec.SECP256K1(), hashes.SHA256())}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def std(data: bytes) -> str:
    return base64.b64encode(data).decode()


def unstd(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def refused(code, use) -> None:
    """By botocore's or azure-core's own reading of the answer."""
    with pytest.raises((ClientError, HttpResponseError)) as caught:
        use()
    error = caught.value
    found = error.response["Error"]["Code"] if isinstance(error, ClientError) else error.status_code
    assert found == code, error


def path(at: Installation, kid: str) -> str:
    return kid.removeprefix(at.url)


# The Managed HSM.

def keep_hsm(at: Installation, hsm: dict) -> None:
    admin = at.keys()
    for name, told in hsm["keys"].items():
        now = at.rest("GET", f"/keys/{name}")
        versions = {version["kid"] for version in at.rest("GET", f"/keys/{name}/versions")["value"]}
        assert versions >= set(told["versions"]), name
        if len(versions) == len(told["versions"]) and name != "disabled":
            assert (now["key"], now["attributes"], now.get("tags"), now.get("release_policy")) == (told["key"], told["attributes"], told["tags"], told["release_policy"])
            assert at.rest("GET", f"/keys/{name}/rotationpolicy") == told["rotation"]
    refused(404, lambda: admin.get_key("purged"))
    refused(404, lambda: admin.get_key("again", hsm["not_again"].rsplit("/", 1)[1]))
    for entry in hsm["unwrap"]:
        name = entry["kid"].split("/")[4]
        if name in ("deleted", "disabled", "backed-up"):
            continue
        unwrap(at, entry)
    for entry in hsm["decrypt"]:
        opened = at.rest("POST", path(at, entry["kid"]) + "/decrypt",
                         {name: entry[of] for name, of in (("alg", "alg"), ("value", "ciphertext"), ("iv", "iv"), ("tag", "tag"), ("aad", "aad"))})
        assert sha256(unb64(opened["value"])) == entry["sha256"]
    for entry in hsm["sign"]:
        curve, digest = CURVES[entry["crv"]]
        whole = hashes.Hash(digest)
        whole.update(b"message")
        raw = unb64(at.rest("POST", path(at, entry["kid"]) + "/sign", {"alg": entry["alg"], "value": b64(whole.finalize())})["value"])
        half = len(raw) // 2
        signature = encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))
        x, y = (int.from_bytes(unb64(entry[name]), "big") for name in "xy")
        ec.EllipticCurvePublicNumbers(x, y, curve).public_key().verify(signature, b"message", ec.ECDSA(digest))
    wrapped = at.rest("POST", "/keys/imported/wrapkey", {"alg": "A128KW", "value": b64(bytes(32))})["value"]
    assert unb64(wrapped) == aes_key_wrap(unb64(hsm["imported"]), bytes(32)), "it is the key that was brought"
    for name in ("expired", "future"):
        with pytest.raises(AssertionError, match="Forbidden"):
            at.rest("POST", f"/keys/{name}/wrapkey", {"alg": "A256KW", "value": b64(bytes(32))})
    keep_roles(at, hsm)


def unwrap(at: Installation, entry: dict) -> None:
    opened = at.rest("POST", path(at, entry["kid"]) + "/unwrapkey", {"alg": entry["alg"], "value": entry["wrapped"]})
    assert sha256(unb64(opened["value"])) == entry["sha256"], entry["kid"]


def keep_roles(at: Installation, hsm: dict) -> None:
    access, roles = at.access(), hsm["roles"]
    custom = access.get_role_definition("/", roles["custom"])
    assert custom.role_name == "Reader of secrets" and len(custom.permissions[0].data_actions) == 2
    assert access.get_role_assignment("/keys/aes", roles["custom_assignment"]).properties.principal_id == at.secrets["clients"]["alice"]["object_id"]
    refused(404, lambda: access.get_role_assignment("/", roles["removed_assignment"]))
    entry = hsm["decrypt"][0]
    body = {name: entry[of] for name, of in (("alg", "alg"), ("value", "ciphertext"), ("iv", "iv"), ("tag", "tag"), ("aad", "aad"))}
    assert sha256(unb64(at.rest("POST", path(at, entry["kid"]) + "/decrypt", body, who="alice")["value"])) == entry["sha256"]
    refused(403, lambda: list(at.keys("alice").list_properties_of_keys()))
    setting = at.settings().get_setting("AllowKeyManagementOperationsThroughARM")
    assert setting.getboolean() is True


def begin_hsm(at: Installation, hsm: dict) -> None:
    admin = at.keys()
    refused(403, lambda: at.keys("bob").get_key("of-bob"))
    [of_disabled] = [entry for entry in hsm["unwrap"] if "/disabled/" in entry["kid"]]
    assert hsm["keys"]["disabled"]["attributes"] == at.rest("GET", "/keys/disabled")["attributes"]
    with pytest.raises(AssertionError, match="Forbidden"):
        unwrap(at, of_disabled)
    refused(404, lambda: admin.get_key("backed-up"))
    refused(404, lambda: admin.get_key("deleted"))
    if time.time() < hsm["deleted"]["deleted"]:
        assert abs(admin.get_deleted_key("deleted").scheduled_purge_date.timestamp() - hsm["deleted"]["deleted"]) < 1
    # Later it is purged by and by.


# The external key store proxy.

def xks_body(entry: dict, **more) -> dict:
    metadata = {"awsPrincipalArn": "arn:aws:iam::111122223333:user/alice", "kmsKeyArn": "arn:aws:kms:us-east-1:111122223333:key/1", "kmsOperation": "Decrypt",
                "kmsRequestId": "r"} | more
    sealed = {name: value for name, value in entry["sealed"].items() if value and name in ("ciphertext", "initializationVector", "authenticationTag", "ciphertextMetadata")}
    return {"requestMetadata": metadata, "encryptionAlgorithm": "AES_GCM"} | sealed | ({"additionalAuthenticatedData": entry["aad"]} if "aad" in entry else {})


def keep_proxy(at: Installation, proxy: dict) -> None:
    blue = proxy["credentials"]["blue"]
    for port in (PROXY, PROXY_B):
        for entry in proxy["sealed"]:
            if entry["key"] == proxy["killed"]:
                continue
            answer = at.xks(blue, f"keys/{entry['key']}/decrypt", xks_body(entry), port)
            assert answer.status_code == 200 and sha256(unstd(answer.json()["plaintext"])) == entry["sha256"], answer.text
        entry = proxy["sealed"][0]
        for arn in ("arn:aws:iam::111122223333:user/Mallory", "arn:aws:iam::444455556666:user/alice"):
            assert at.xks(blue, f"keys/{entry['key']}/decrypt", xks_body(entry, awsPrincipalArn=arn), port).json()["errorName"] == "AccessDeniedException"
        assert at.xks(proxy["credentials"]["removed"], f"keys/{entry['key']}/decrypt", xks_body(entry), port).json()["errorName"] == "AuthenticationFailedException"
        assert at.xks(blue, "keys/other/decrypt", xks_body(entry), port).json()["errorName"] == "KeyNotFoundException", "this store does not offer it"
    assert sha256(unb64(at.ekm("kek/unwrapkey", alg="A256KW", value=proxy["ekm"]["wrapped"])["value"])) == proxy["ekm"]["sha256"]
    assert at.holdfast("xks", "policy", "--state-dir", at.state) == proxy["policy"]


def begin_proxy(at: Installation, proxy: dict) -> None:
    for port in (PROXY, PROXY_B):
        for entry in proxy["sealed"]:
            if entry["key"] == proxy["killed"]:
                answer = at.xks(proxy["credentials"]["blue"], f"keys/{entry['key']}/decrypt", xks_body(entry), port)
                assert answer.json()["errorName"] == "InvalidStateException", answer.text
    body = {"requestMetadata": xks_body(proxy["sealed"][0])["requestMetadata"] | {"kmsOperation": "KmsHealthCheck"}}
    assert at.xks(proxy["credentials"]["idle"], "health", body).json()["errorName"] == "InvalidStateException", "the whole store is stopped"
    for proposal, status in ((proxy["pending"], "open"), (proxy["pending_secret"], "open"), (proxy["rejected"], "rejected")):
        shown = json.loads(at.holdfast("quorum", "show", "--state-dir", at.state, "--json", proposal))
        assert shown["status"] == status, shown
    with pytest.raises(AssertionError, match="cat"):
        at.propose(proxy["former_operator"], "lift", "--key-id", proxy["killed"])


# The key management service.

def keep_kms(at: Installation, kms: dict) -> None:
    root, elsewhere = at.kms(), at.kms(region=OTHER_REGION)
    changing = {kms["disabled"], kms["waiting"], *kms["pending"]}
    for key, told in kms["keys"].items():
        client = elsewhere if f":{OTHER_REGION}:" in key else root
        if key in kms["pending"] and time.time() > kms["pending"][key]:
            refused("NotFoundException", lambda key=key, client=client: client.describe_key(KeyId=key))
            continue
        metadata = client.describe_key(KeyId=key)["KeyMetadata"]
        for name, value in told["metadata"].items():
            # A key may rotate by itself meanwhile.
            if key not in changing and name != "CurrentKeyMaterialId":
                found = metadata[name]
                assert (found.timestamp() if hasattr(found, "timestamp") else found) == value, (key, name)
        assert client.get_key_policy(KeyId=key)["Policy"] == told["policy"]
        assert client.list_resource_tags(KeyId=key)["Tags"] == told["tags"]
    for entry in kms["decrypt"]:
        opened = root.decrypt(KeyId=entry["key"], CiphertextBlob=unstd(entry["blob"]), **entry["more"])
        assert sha256(opened["Plaintext"]) == entry["sha256"], entry["key"]
    replica = kms["replica"]
    assert sha256(elsewhere.decrypt(KeyId=replica["key"], CiphertextBlob=unstd(replica["blob"]))["Plaintext"]) == replica["sha256"]
    for entry in kms["sign"]:
        asked = {"KeyId": entry["key"], "Message": b"signed in 2026", "SigningAlgorithm": entry["alg"]}
        assert root.verify(Signature=unstd(entry["signature"]), **asked)["SignatureValid"]
        assert root.verify(Signature=root.sign(**asked)["Signature"], **asked)["SignatureValid"]
        assert std(root.get_public_key(KeyId=entry["key"])["PublicKey"]) == entry["public"]
    for entry in kms["mac"]:
        assert root.generate_mac(KeyId=entry["key"], Message=b"m", MacAlgorithm="HMAC_SHA_256")["Mac"] == unstd(entry["mac"])
    found = {alias["AliasName"]: alias.get("TargetKeyId") for alias in root.list_aliases()["Aliases"]}
    assert found.items() >= {name: key.rsplit("/", 1)[1] for name, key in kms["aliases"].items()}.items() and "alias/gone" not in found
    refused("KMSInvalidStateException", lambda: root.decrypt(CiphertextBlob=unstd(kms["emptied_blob"])))
    assert root.describe_key(KeyId=kms["primary_going"])["KeyMetadata"]["KeyState"] == "PendingReplicaDeletion"
    refused("AccessDeniedException", lambda: at.kms("alice").decrypt(CiphertextBlob=unstd(kms["guarded_blob"])))
    assert root.decrypt(CiphertextBlob=unstd(kms["guarded_blob"]))
    stores = {store["CustomKeyStoreId"]: store["ConnectionState"] for store in root.describe_custom_key_stores()["CustomKeyStores"]}
    assert stores == kms["stores"]


def begin_kms(at: Installation, kms: dict) -> None:
    root, bob, backup = at.kms(), at.kms("bob"), at.kms("backup")
    for key, told in kms["keys"].items():
        if key in kms["pending"] and time.time() > kms["pending"][key]:
            continue
        client = at.kms(region=OTHER_REGION) if f":{OTHER_REGION}:" in key else root
        assert client.describe_key(KeyId=key)["KeyMetadata"]["KeyState"] == told["metadata"]["KeyState"], key
        # Not in which order.
        listed = {grant["GrantId"]: grant | {"CreationDate": grant["CreationDate"].timestamp()} for grant in client.list_grants(KeyId=key)["Grants"]}
        assert listed == {grant["GrantId"]: grant for grant in told["grants"]}
    refused("DisabledException", lambda: root.decrypt(CiphertextBlob=unstd(kms["disabled_blob"])))
    if time.time() < min(kms["pending"].values()):
        refused("KMSInvalidStateException", lambda: root.decrypt(CiphertextBlob=unstd(kms["pending_blob"])))
    under_grant = kms["decrypt"][0]
    assert sha256(bob.decrypt(CiphertextBlob=unstd(under_grant["blob"]), **under_grant["more"])["Plaintext"]) == under_grant["sha256"]
    refused("AccessDeniedException", lambda: bob.decrypt(CiphertextBlob=unstd(kms["second_blob"])))

    def on_behalf(request, **_):
        request.headers["x-amz-source-arn"] = kms["grants"]["bucket"]
    refused("AccessDeniedException", lambda: backup.encrypt(KeyId=kms["second"], Plaintext=b"x"))
    backup.meta.events.register("before-sign.kms", on_behalf)
    assert backup.encrypt(KeyId=kms["second"], Plaintext=b"x")


# Storage.

def customer(expected: dict) -> dict:
    return {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": unstd(expected["customer_key"])}


def read(s3, bucket: str, key: str, **more) -> str:
    return sha256(s3.get_object(Bucket=bucket, Key=key, **more)["Body"].read())


def keep_storage(at: Installation, expected: dict) -> None:
    storage = expected["storage"]
    clients = {name: at.s3(name) for name in ("alice", "bob")}
    for name, client in clients.items():
        assert {bucket["Name"] for bucket in client.list_buckets()["Buckets"]} - {"created"} == set(storage["buckets"][name])
    s3 = clients["alice"]
    for entry in storage["objects"]:
        more = (customer(expected) if entry["customer"] else {}) | ({"VersionId": entry["version"]} if entry["version"] else {})
        assert read(clients[entry["who"]], entry["bucket"], entry["key"], **more) == entry["sha256"], entry
        told = clients[entry["who"]].head_object(Bucket=entry["bucket"], Key=entry["key"], **more)
        assert entry["etag"] in (None, told["ETag"])
    small = s3.head_object(Bucket="container", Key="small")
    assert (small["ContentType"], small["CacheControl"], small["Metadata"]) == ("text/x-fixture", "no-cache", {"a": "b"})
    assert {tag["Key"]: tag["Value"] for tag in s3.get_object_tagging(Bucket="container", Key="small")["TagSet"]} == {"team": "blue", "x": " y"}
    assert s3.get_bucket_tagging(Bucket="keyed")["TagSet"] == [{"Key": "owner", "Value": "alice"}]
    [rule] = s3.get_bucket_encryption(Bucket="keyed")["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["BucketKeyEnabled"] and rule["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": f"{at.url}/keys/kek-a"}
    refused("InvalidRequest", lambda: s3.get_object(Bucket="keyed", Key="customer"))
    refused("AccessDenied", lambda: clients["bob"].get_object(Bucket="container", Key="small"))
    refused("NoSuchKey", lambda: s3.get_object(Bucket="remade", Key="of-the-former"))
    assert read(s3, "was-clear", "in-clear") == storage["in_clear"], "written while encryption was off"
    clear = at.s3(port=CLEAR)
    for entry in storage["clear"]:
        assert read(clear, "clear", entry["key"]) == entry["sha256"], entry


def begin_storage(at: Installation, expected: dict) -> None:
    storage, s3 = expected["storage"], at.s3()
    refused("NoSuchKey", lambda: s3.get_object(Bucket="versions", Key="hidden"))
    assert [marker["VersionId"] for marker in s3.list_object_versions(Bucket="versions")["DeleteMarkers"]] == [storage["marker"]]
    assert {(entry["Key"], entry["UploadId"]) for entry in s3.list_multipart_uploads(Bucket="uploads")["Uploads"]} == {(entry["key"], entry["upload"]) for entry in storage["uploads"]}
    for entry in storage["uploads"]:
        assert [part["ETag"] for part in s3.list_parts(Bucket="uploads", Key=entry["key"], UploadId=entry["upload"])["Parts"]] == [entry["etag"]]
    listed = {bucket: sorted({entry["key"] for entry in storage["objects"] if entry["bucket"] == bucket} - {"hidden"}, key=str.encode) for bucket in storage["buckets"]["alice"]}
    listed["container"] = sorted([*listed["container"], *expected["killed"]["objects"]], key=str.encode)
    listed["was-clear"] = ["in-clear"]
    for bucket, keys in listed.items():
        assert [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket).get("Contents", [])] == keys, bucket


def keep(at: Installation, expected: dict) -> None:
    keep_hsm(at, expected["hsm"])
    keep_proxy(at, expected["proxy"])
    keep_kms(at, expected["kms"])
    keep_storage(at, expected)
    killed, root, admin, s3 = expected["killed"], at.kms(), at.keys(), at.s3()
    for key in killed["keys"]:
        assert root.describe_key(KeyId=key)["KeyMetadata"]["KeyState"] == "Enabled"
    for kid in killed["hsm_keys"]:
        assert admin.get_key(kid.split("/")[4]).id == kid
    for number, key in enumerate(killed["objects"]):
        assert len(s3.get_object(Bucket="container", Key=key)["Body"].read()) == 500 + number


def begin(at: Installation, expected: dict) -> None:
    begin_hsm(at, expected["hsm"])
    begin_proxy(at, expected["proxy"])
    begin_kms(at, expected["kms"])
    begin_storage(at, expected)
