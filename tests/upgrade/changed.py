"""Changes to an installation that an earlier version made, and how they are found after a restart."""
import base64
import time
import uuid

from found import customer, read, refused, sha256, std, unstd, unwrap, xks_body
from installation import Installation
from process import b64

CONTENT = b"put by the present version" * 3000


def change(at: Installation, expected: dict) -> dict:
    """Changes something of everything; gives what must be found."""
    change_proxy(at, expected["proxy"])
    made = {"hsm": change_hsm(at, expected["hsm"]), "kms": change_kms(at, expected["kms"])}
    made["storage"] = change_storage(at, expected, made["kms"]["created"])
    return made


def check(at: Installation, expected: dict, made: dict) -> None:
    check_hsm(at, expected["hsm"], made["hsm"])
    check_proxy(at, expected["proxy"])
    check_kms(at, expected["kms"], made["kms"])
    check_storage(at, expected, made["storage"])


def change_hsm(at: Installation, hsm: dict) -> dict:
    admin = at.keys()
    created = admin.create_oct_key("created", size=256, hardware_protected=True)
    wrapped = at.rest("POST", "/keys/created/wrapkey", {"alg": "A256KW", "value": b64(b"k" * 32)})["value"]
    rotated = at.rest("POST", "/keys/rsa/rotate")["key"]["kid"]
    at.rest("PATCH", "/keys/disabled", {"attributes": {"enabled": True}, "tags": {"now": "enabled"}})
    admin.restore_key_backup(_padded(hsm["backup"]["value"]))
    recovered = time.time() < hsm["deleted"]["deleted"]
    if recovered:
        admin.begin_recover_deleted_key("deleted").wait()
    admin.create_oct_key("given-up", size=256, hardware_protected=True)
    admin.begin_delete_key("given-up").wait()
    access = at.access()
    definition = "Microsoft.KeyVault/providers/Microsoft.Authorization/roleDefinitions/21dbd100-6940-42c2-9190-5d6cb909625b"
    access.create_role_assignment("/", definition, at.secrets["clients"]["bob"]["object_id"], name=uuid.uuid4())
    return {"created": created.id, "wrapped": wrapped, "rotated": rotated, "recovered": recovered}


def _padded(value: str) -> bytes:
    return base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))


def check_hsm(at: Installation, hsm: dict, made: dict) -> None:
    admin = at.keys()
    assert admin.get_key("created").id == made["created"] and admin.get_key("rsa").id == made["rotated"]
    unwrap(at, {"kid": made["created"], "alg": "A256KW", "wrapped": made["wrapped"], "sha256": sha256(b"k" * 32)})
    for entry in hsm["unwrap"]:
        name = entry["kid"].split("/")[4]
        if name in ("disabled", "backed-up") or name == "deleted" and made["recovered"]:
            unwrap(at, entry)
    assert admin.get_deleted_key("given-up").recovery_id
    assert at.keys("bob").get_key("of-bob")


def change_proxy(at: Installation, proxy: dict) -> None:
    together(at, "lift", "--key-id", proxy["killed"])
    assert stopped_keys_answers(at, proxy) == {200}
    at.holdfast("xks", "kill", "--state-dir", at.state, "--key-id", proxy["killed"], "--reason", "the test says so")
    together(at, "key-create", "--key-id", "fresh", "--hsm", "east", "--label", "fresh")
    if time.time() < proxy["pending_until"]:
        for proposal in (proxy["pending"], proxy["pending_secret"]):
            assert "executed" in at.decide("approve", "ben", proposal)


def stopped_keys_answers(at: Installation, proxy: dict) -> set[int]:
    entries = [entry for entry in proxy["sealed"] if entry["key"] == proxy["killed"]]
    return {at.xks(proxy["credentials"]["blue"], f"keys/{entry['key']}/decrypt", xks_body(entry)).status_code for entry in entries}


def together(at: Installation, *change) -> None:
    """By operators of whom one is not of the first hour."""
    assert "executed" in at.decide("approve", "dora", at.propose("ann", *change))


def check_proxy(at: Installation, proxy: dict) -> None:
    assert stopped_keys_answers(at, proxy) == {400}
    together(at, "lift", "--key-id", proxy["killed"])
    assert stopped_keys_answers(at, proxy) == {200}


def change_kms(at: Installation, kms: dict) -> dict:
    root, alice = at.kms(), at.kms("alice")
    created = root.create_key(Description="by the present version")["KeyMetadata"]["Arn"]
    blob = root.encrypt(KeyId=created, Plaintext=b"new")["CiphertextBlob"]
    root.create_alias(AliasName="alias/hosted-too", TargetKeyId=kms["hosted"])
    root.enable_key(KeyId=kms["disabled"])
    [(pending, when)] = kms["pending"].items()
    cancelled = time.time() < when
    if cancelled:
        root.cancel_key_deletion(KeyId=pending)
        root.enable_key(KeyId=pending)
    root.rotate_key_on_demand(KeyId=kms["second"])
    grant = root.create_grant(KeyId=created, GranteePrincipal="arn:aws:iam::111122223333:user/bob", Operations=["Decrypt"])["GrantId"]
    alice.retire_grant(KeyId=kms["hosted"], GrantId=kms["grants"]["bob"])
    more = root.encrypt(KeyId=kms["external"], Plaintext=b"outside")["CiphertextBlob"]
    return {"created": created, "blob": std(blob), "cancelled": cancelled, "grant": grant, "external": std(more)}


def check_kms(at: Installation, kms: dict, made: dict) -> None:
    root, bob = at.kms(), at.kms("bob")
    for client in (root, bob):
        assert client.decrypt(CiphertextBlob=unstd(made["blob"]))["Plaintext"] == b"new"
    assert root.decrypt(CiphertextBlob=unstd(made["external"]))["Plaintext"] == b"outside"
    assert root.decrypt(CiphertextBlob=unstd(kms["disabled_blob"]))
    if made["cancelled"]:
        assert root.decrypt(CiphertextBlob=unstd(kms["pending_blob"]))
    under_grant = kms["decrypt"][0]
    refused("AccessDeniedException", lambda: bob.decrypt(CiphertextBlob=unstd(under_grant["blob"]), **under_grant["more"]))
    assert [grant["GrantId"] for grant in root.list_grants(KeyId=made["created"])["Grants"]] == [made["grant"]]
    assert root.describe_key(KeyId="alias/hosted-too")["KeyMetadata"]["Arn"] == kms["hosted"]


def change_storage(at: Installation, expected: dict, key: str) -> dict:
    s3, storage = at.s3(), expected["storage"]
    keyed = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key, "BucketKeyEnabled": False}
    made = []
    for bucket, name, more in (("container", "new", {}), ("keyed", "new", {}), ("keyed", "new-own", keyed),
                               ("keyed", "new-customer", customer(expected)), ("versions", "k", {})):
        s3.put_object(Bucket=bucket, Key=name, Body=CONTENT, **more)
        made.append((bucket, name, more if "SSECustomerKey" in more else {}))
    s3.delete_object(Bucket="versions", Key="hidden", VersionId=storage["marker"])
    for entry in storage["uploads"]:
        more = customer(expected) if entry["customer"] else {}
        s3.complete_multipart_upload(Bucket="uploads", Key=entry["key"], UploadId=entry["upload"],
                                     MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": entry["etag"]}]}, **more)
    s3.copy_object(Bucket="container", Key="copied-again", CopySource={"Bucket": "keyed", "Key": "own-2"})
    s3.create_bucket(Bucket="created")
    return {"objects": made}


def check_storage(at: Installation, expected: dict, made: dict) -> None:
    s3, storage = at.s3(), expected["storage"]
    for bucket, name, more in made["objects"]:
        assert read(s3, bucket, name, **more) == sha256(CONTENT), (bucket, name)
    assert s3.get_object(Bucket="versions", Key="hidden")["Body"].read() == b"under a marker"
    for entry in storage["uploads"]:
        assert read(s3, "uploads", entry["key"], **(customer(expected) if entry["customer"] else {})) == entry["sha256"]
    [own] = [entry for entry in storage["objects"] if entry["key"] == "own-2"]
    assert read(s3, "container", "copied-again") == own["sha256"]
