"""Life of a key: create, import, get, list, versions, update, delete, recover, purge, backup, restore, rotate."""
import datetime
import json
import os

import pytest
import requests
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError
from azure.keyvault.keys import (
    ApiVersion, JsonWebKey, KeyClient, KeyRotationLifetimeAction, KeyRotationPolicy, KeyRotationPolicyAction,
)
from azure.keyvault.keys.crypto import EncryptionAlgorithm, KeyWrapAlgorithm, SignatureAlgorithm
from conftest import assert_error, b64, unb64
from cryptography.hazmat.primitives import hashes, keywrap, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

UTC = datetime.timezone.utc


def test_create_with_everything(key_client, name):
    expires = datetime.datetime(2040, 1, 1, tzinfo=UTC)
    from_ = datetime.datetime(2020, 1, 1, tzinfo=UTC)
    key = key_client.create_rsa_key(name, size=2048, hardware_protected=True, enabled=True, expires_on=expires, not_before=from_,
                                    tags={"team": "storage"}, key_operations=["wrapKey", "unwrapKey"])
    assert key.properties.expires_on == expires and key.properties.not_before == from_
    assert key.properties.tags == {"team": "storage"}
    assert set(key.key_operations) == {"wrapKey", "unwrapKey"}
    assert key.properties.recoverable_days == 90 and key.properties.recovery_level == "Recoverable+Purgeable"
    assert key.properties.exportable is False and key.properties.managed is None
    assert key.id == f"{key_client.vault_url}/keys/{name}/{key.properties.version}"
    again = key_client.get_key(name.upper())
    assert again.id == key.id, "names ignore case and are kept as written"


def test_versions_and_update(key_client, name):
    first = key_client.create_ec_key(name, hardware_protected=True)
    second = key_client.create_ec_key(name, hardware_protected=True, tags={"n": "2"})
    assert key_client.get_key(name).id == second.id
    assert key_client.get_key(name, first.properties.version).key.x == first.key.x
    listed = {p.version: p for p in key_client.list_properties_of_key_versions(name)}
    assert set(listed) == {first.properties.version, second.properties.version}
    updated = key_client.update_key_properties(name, first.properties.version, enabled=False, tags={"old": "yes"})
    assert updated.properties.enabled is False and updated.properties.tags == {"old": "yes"}
    assert updated.properties.updated_on >= updated.properties.created_on
    assert key_client.get_key(name).properties.enabled is True
    kept = key_client.update_key_properties(name, first.properties.version, key_operations=["verify"])
    assert kept.properties.enabled is False and kept.properties.tags == {"old": "yes"} and kept.key_operations == ["verify"]
    with pytest.raises(ResourceNotFoundError):
        key_client.get_key(name, "0" * 32)


def test_attributes_decide(key_client, crypto_client, rest, name):
    key = key_client.create_rsa_key(name, size=2048, hardware_protected=True)
    ciphertext = crypto_client(key).encrypt(EncryptionAlgorithm.rsa_oaep_256, b"secret").ciphertext
    crypt = lambda op, value: rest("POST", f"/keys/{name}/{op}", {"alg": "RSA-OAEP-256", "value": b64(value)})
    key_client.update_key_properties(name, enabled=False)
    for op in ("encrypt", "decrypt", "wrapkey", "unwrapkey"):
        assert_error(crypt(op, ciphertext), 403, "Forbidden")
    # Outside its validity a key protects nothing new, and still opens what is old.
    past = datetime.datetime(2020, 1, 1, tzinfo=UTC)
    key_client.update_key_properties(name, enabled=True, expires_on=past)
    assert_error(crypt("encrypt", b"x"), 403, "Forbidden")
    assert crypt("decrypt", ciphertext).status_code == 200
    future = datetime.datetime(2040, 1, 1, tzinfo=UTC)
    key_client.update_key_properties(name, not_before=future, expires_on=future + datetime.timedelta(days=1))
    assert_error(crypt("wrapkey", b"x"), 403, "Forbidden")
    assert crypt("unwrapkey", ciphertext).status_code == 200
    other = key_client.create_rsa_key(name + "-ops", size=2048, hardware_protected=True, key_operations=["sign"])
    assert_error(rest("POST", f"/keys/{other.name}/encrypt", {"alg": "RSA-OAEP", "value": b64(b"x")}), 403, "Forbidden")


def test_soft_delete(key_client, crypto_client, rest, name):
    key = key_client.create_rsa_key(name, size=2048, hardware_protected=True)
    ciphertext = crypto_client(key).encrypt(EncryptionAlgorithm.rsa_oaep, b"secret").ciphertext
    deleted = key_client.begin_delete_key(name).result()
    assert deleted.recovery_id == f"{key_client.vault_url}/deletedkeys/{name}"
    assert deleted.scheduled_purge_date - deleted.deleted_date == datetime.timedelta(days=90)
    with pytest.raises(ResourceNotFoundError):
        key_client.get_key(name)
    assert_error(rest("POST", f"/keys/{name}/decrypt", {"alg": "RSA-OAEP", "value": b64(ciphertext)}), 404, "KeyNotFound")
    with pytest.raises(ResourceExistsError):
        key_client.create_rsa_key(name, size=2048, hardware_protected=True)
    assert name in [k.name for k in key_client.list_deleted_keys()]
    assert key_client.get_deleted_key(name).id == key.id
    recovered = key_client.begin_recover_deleted_key(name).result()
    assert recovered.id == key.id
    assert crypto_client(recovered).decrypt(EncryptionAlgorithm.rsa_oaep, ciphertext).plaintext == b"secret"
    key_client.begin_delete_key(name).wait()
    key_client.purge_deleted_key(name)
    with pytest.raises(ResourceNotFoundError):
        key_client.get_deleted_key(name)
    assert_error(rest("DELETE", f"/deletedkeys/{name}"), 404, "KeyNotFound")
    fresh = key_client.create_rsa_key(name, size=2048, hardware_protected=True)
    assert fresh.id != key.id


def test_paging(key_client, rest):
    names = {f"page-{number:03}" for number in range(30)}
    for number in sorted(names):
        rest.ok("POST", f"/keys/{number}/create", {"kty": "oct-HSM"})
    assert names <= {p.name for p in key_client.list_properties_of_keys(max_page_size=7)}
    page = rest.ok("GET", "/keys", params={"maxresults": 7})
    assert len(page["value"]) == 7 and "api-version" not in page["nextLink"]
    assert all(item["kid"].count("/") == 4 for item in page["value"]), "ids in this list have no version"
    assert len(rest.ok("GET", "/keys")["value"]) == 25
    seen, link = [], "/keys?maxresults=25"
    while link:
        page = rest.ok("GET", link.removeprefix(rest.server.url))
        seen += [item["kid"] for item in page["value"]]
        link = page.get("nextLink")
    assert len(seen) == len(set(seen)) >= 30
    for bad in ("0", "26", "x", "-1"):
        assert_error(rest("GET", "/keys", params={"maxresults": bad}), 400, "BadParameter")
    assert_error(rest("GET", "/keys", params={"$skiptoken": "!!"}), 400, "BadParameter")
    versions = "many-versions"
    for _ in range(12):
        rest.ok("POST", f"/keys/{versions}/create", {"kty": "oct-HSM"})
    assert len(list(key_client.list_properties_of_key_versions(versions, max_page_size=5))) == 12
    for number in range(27):
        rest.ok("POST", f"/keys/gone-{number}/create", {"kty": "oct-HSM"})
        rest.ok("DELETE", f"/keys/gone-{number}")
    assert {f"gone-{n}" for n in range(27)} <= {k.name for k in key_client.list_deleted_keys(max_page_size=10)}


def test_backup_and_restore(key_client, crypto_client, rest, name):
    key_client.create_rsa_key(name, size=2048, hardware_protected=True, tags={"v": "1"})
    second = key_client.create_rsa_key(name, size=2048, hardware_protected=True, tags={"v": "2"})
    ciphertext = crypto_client(second).encrypt(EncryptionAlgorithm.rsa_oaep_256, b"secret").ciphertext
    blob = key_client.backup_key(name)
    with pytest.raises(ResourceExistsError):
        key_client.restore_key_backup(blob)
    key_client.begin_delete_key(name).wait()
    with pytest.raises(ResourceExistsError):
        key_client.restore_key_backup(blob)
    key_client.purge_deleted_key(name)
    restored = key_client.restore_key_backup(blob)
    assert restored.id == second.id and restored.properties.tags == {"v": "2"}
    assert len(list(key_client.list_properties_of_key_versions(name))) == 2
    assert crypto_client(restored).decrypt(EncryptionAlgorithm.rsa_oaep_256, ciphertext).plaintext == b"secret"
    rest.ok("DELETE", f"/keys/{name}")
    rest.ok("DELETE", f"/deletedkeys/{name}", status=204)
    for damaged in (blob[:-1], blob[:40], blob[:100] + bytes([blob[100] ^ 1]) + blob[101:], b"", b"nonsense"):
        assert_error(rest("POST", "/keys/restore", {"value": b64(damaged)}), 400, "BadParameter")


def test_import_rsa(key_client, crypto_client, name):
    private = rsa.generate_private_key(65537, 2048)
    n = private.private_numbers()
    number = lambda value: value.to_bytes((value.bit_length() + 7) // 8)
    jwk = JsonWebKey(kty="RSA-HSM", n=b"\0" + number(n.public_numbers.n), e=number(65537), d=number(n.d), p=number(n.p), q=number(n.q),
                     dp=number(n.dmp1), dq=number(n.dmq1), qi=number(n.iqmp), key_ops=["encrypt", "decrypt", "sign", "verify"])
    key = key_client.import_key(name, jwk, hardware_protected=True)
    assert key.key_type == "RSA-HSM" and key.key.n == number(n.public_numbers.n) and key.key.d is None
    ciphertext = private.public_key().encrypt(b"hi", padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None))
    assert crypto_client(key).decrypt(EncryptionAlgorithm.rsa_oaep, ciphertext).plaintext == b"hi"
    jwk.d = number(n.d + 2)
    with pytest.raises(HttpResponseError) as refused:
        key_client.import_key(name + "-bad", jwk, hardware_protected=True)
    assert refused.value.status_code == 400


@pytest.mark.parametrize("crv,curve", [("P-256", ec.SECP256R1()), ("P-256K", ec.SECP256K1()), ("P-384", ec.SECP384R1()), ("P-521", ec.SECP521R1())])
def test_import_ec(key_client, crypto_client, name, crv, curve):
    private = ec.generate_private_key(curve)
    numbers = private.private_numbers()
    size = (curve.key_size + 7) // 8
    jwk = JsonWebKey(kty="EC", crv=crv, x=numbers.public_numbers.x.to_bytes(size), y=numbers.public_numbers.y.to_bytes(size),
                     d=numbers.private_value.to_bytes(size), key_ops=["sign", "verify"])
    key = key_client.import_key(name, jwk)
    assert key.key_type == "EC-HSM", "there are no software keys here"
    algorithm = {"P-256": "ES256", "P-256K": "ES256K", "P-384": "ES384", "P-521": "ES512"}[crv]
    digest = os.urandom({"ES384": 48, "ES512": 64}.get(algorithm, 32))
    assert crypto_client(key).sign(SignatureAlgorithm(algorithm), digest).signature
    jwk.x = bytes(size)
    with pytest.raises(HttpResponseError):
        key_client.import_key(name + "-bad", jwk)


def test_import_wrapped_key(key_client, rest, name):
    """BYOK: a key leaves another HSM wrapped under an exchange key of ours (CKM_RSA_AES_KEY_WRAP)."""
    exchange = key_client.create_rsa_key(name + "-kek", size=3072, hardware_protected=True, key_operations=["import"])
    public = rsa.RSAPublicNumbers(int.from_bytes(exchange.key.e), int.from_bytes(exchange.key.n)).public_key()
    assert_error(rest("POST", f"/keys/{exchange.name}/wrapkey", {"alg": "RSA-OAEP", "value": b64(b"x")}), 403, "Forbidden")

    def transfer(target: bytes) -> str:
        ephemeral = os.urandom(32)
        sealed = public.encrypt(ephemeral, padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None))
        sealed += keywrap.aes_key_wrap_with_padding(ephemeral, target)
        header = {"kid": exchange.id, "alg": "dir", "enc": "CKM_RSA_AES_KEY_WRAP"}
        return b64(json.dumps({"schema_version": "1.0.0", "header": header, "ciphertext": b64(sealed), "generator": "test"}).encode())

    pkcs8 = (serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    theirs = rsa.generate_private_key(65537, 2048)
    made = rest.ok("PUT", f"/keys/{name}-rsa", {"key": {"kty": "RSA-HSM", "key_hsm": transfer(theirs.private_bytes(*pkcs8))}})
    assert int.from_bytes(unb64(made["key"]["n"])) == theirs.public_key().public_numbers().n
    curve = ec.generate_private_key(ec.SECP384R1())
    rest.ok("PUT", f"/keys/{name}-ec", {"key": {"kty": "EC-HSM", "crv": "P-384", "key_hsm": transfer(curve.private_bytes(*pkcs8))}})
    raw = os.urandom(32)
    rest.ok("PUT", f"/keys/{name}-oct", {"key": {"kty": "oct-HSM", "key_hsm": transfer(raw)}})
    wrapped = rest.ok("POST", f"/keys/{name}-oct/wrapkey", {"alg": "A256KW", "value": b64(b"k" * 32)})["value"]
    assert keywrap.aes_key_unwrap(raw, unb64(wrapped)) == b"k" * 32
    assert_error(rest("PUT", f"/keys/{name}-bad", {"key": {"kty": "oct-HSM", "key_hsm": transfer(b"short")}}), 400, "BadParameter")
    assert_error(rest("PUT", f"/keys/{name}-bad", {"key": {"kty": "oct-HSM", "key_hsm": b64(b"{}")}}), 400, "BadParameter")


def test_rotation(key_client, crypto_client, name):
    first = key_client.create_rsa_key(name, size=2048, hardware_protected=True, tags={"a": "b"})
    wrapped = crypto_client(first).wrap_key(KeyWrapAlgorithm.rsa_oaep_256, b"k" * 32).encrypted_key
    policy = KeyRotationPolicy(expires_in="P90D", lifetime_actions=[KeyRotationLifetimeAction(KeyRotationPolicyAction.rotate, time_after_create="P30D")])
    stored = key_client.update_key_rotation_policy(name, policy)
    assert stored.expires_in == "P90D" and stored.lifetime_actions[0].time_after_create == "P30D"
    assert stored.created_on and stored.updated_on
    second = key_client.rotate_key(name)
    assert second.properties.version != first.properties.version
    assert second.key.n != first.key.n and len(second.key.n) == len(first.key.n)
    assert second.properties.tags == {"a": "b"} and set(second.key_operations) == set(first.key_operations)
    assert second.properties.expires_on - second.properties.created_on == datetime.timedelta(days=90)
    assert crypto_client(first.id).unwrap_key(KeyWrapAlgorithm.rsa_oaep_256, wrapped).key == b"k" * 32, "old versions go on"
    assert key_client.get_key_rotation_policy(name).lifetime_actions[0].action == KeyRotationPolicyAction.rotate
    with pytest.raises(HttpResponseError):
        key_client.update_key_rotation_policy(name, KeyRotationPolicy(expires_in="P10D"))


CLAIM = {"claim": "x-ms-isolation-tee.x-ms-compliance-status", "equals": "azure-compliant-cvm"}
POLICY = {"version": "1.0.0", "anyOf": [{"authority": "https://sharedeus.eus.attest.azure.net/", "allOf": [CLAIM]}]}


@pytest.mark.parametrize("bad", [
    b"", b"nonsense", b"[]", b"{}", b'{"version":"1.0.0","anyOf":[]}', {"anyOf": POLICY["anyOf"]}, POLICY | {"version": 1}, POLICY | {"version": "7"},
    POLICY | {"more": 1}, {"version": "1.0.0", "allOf": POLICY["anyOf"]}, POLICY | {"anyOf": [{"authority": "https://a/"}]},
    POLICY | {"anyOf": [{"authority": "http://a/", "allOf": [CLAIM]}]}, POLICY | {"anyOf": [{"authority": "https://a/", "allOf": [CLAIM], "anyOf": [CLAIM]}]},
    POLICY | {"anyOf": [{"authority": "https://a/", "allOf": []}]}, POLICY | {"anyOf": [{"authority": "https://a/", "allOf": [{"claim": "c"}]}]},
    POLICY | {"anyOf": [{"authority": "https://a/", "allOf": [{"claim": "c", "notEquals": 1}]}]},
    POLICY | {"anyOf": [{"authority": "https://a/", "allOf": [{"claim": "c", "equals": {"a": 1}}]}]},
    POLICY | {"anyOf": [{"authority": "https://a/", "allOf": [CLAIM | {"anyOf": [CLAIM]}]}]},
])
def test_a_release_policy_is_parsed_when_it_is_set(rest, name, bad):
    encode = lambda policy: {"data": b64(policy if isinstance(policy, bytes) else json.dumps(policy).encode())}
    exportable = {"kty": "oct-HSM", "attributes": {"exportable": True}}
    assert_error(rest("POST", f"/keys/{name}/create", exportable | {"release_policy": encode(bad)}), 400, "BadParameter")
    imported = {"key": {"kty": "oct-HSM", "k": b64(bytes(32))}, "attributes": {"exportable": True}, "release_policy": encode(bad)}
    assert_error(rest("PUT", f"/keys/{name}", imported), 400, "BadParameter")
    assert_error(rest("GET", f"/keys/{name}"), 404, "KeyNotFound")
    good = encode(POLICY | {"anyOf": [{"authority": "https://a.example/", "anyOf": [{"allOf": [CLAIM, {"claim": "n", "equals": 1.5}]}, {"claim": "b", "equals": True}]}]})
    rest.ok("POST", f"/keys/{name}/create", exportable | {"release_policy": good})
    assert_error(rest("PATCH", f"/keys/{name}", {"release_policy": encode(bad)}), 400, "BadParameter")
    assert rest.ok("GET", f"/keys/{name}")["release_policy"]["data"] == good["data"], "a refused policy changes nothing"


def test_a_release_policy_is_json(rest, name):
    body = {"kty": "oct-HSM", "attributes": {"exportable": True}, "release_policy": {"data": b64(json.dumps(POLICY).encode())}}
    for odd in ({"contentType": "text/plain"}, {"data": "*"}, {"data": None}, {"data": b64(b'{"version":"1.0.0"' + b" " * 20_000)}):
        assert_error(rest("POST", f"/keys/{name}/create", body | {"release_policy": body["release_policy"] | odd}), 400, "BadParameter")
    rest.ok("POST", f"/keys/{name}/create", body | {"release_policy": body["release_policy"] | {"contentType": None, "immutable": None}})


@pytest.mark.parametrize("member", ["exp", "nbf"])
def test_times_that_no_client_can_read_are_refused(rest, key_client, name, member):
    newest, oldest = 253_402_300_799, -62_135_596_800  # years 9999 and 1
    for secs in (2**62, newest + 1, oldest - 1, -2**62, 2**63, 1.5, "1"):
        attributes = {"attributes": {member: secs}}
        assert_error(rest("POST", f"/keys/{name}/create", {"kty": "oct-HSM"} | attributes), 400, "BadParameter")
        assert_error(rest("PUT", f"/keys/{name}", {"key": {"kty": "oct-HSM", "k": b64(bytes(32))}} | attributes), 400, "BadParameter")
    assert_error(rest("GET", f"/keys/{name}"), 404, "KeyNotFound")
    last = {"exp": newest, "nbf": 1}[member]
    made = rest.ok("POST", f"/keys/{name}/create", {"kty": "oct-HSM", "attributes": {member: last}})
    assert made["attributes"][member] == last and key_client.get_key(name).properties.expires_on is not None or member == "nbf"
    assert_error(rest("PATCH", f"/keys/{name}", {"attributes": {member: 2**62}}), 400, "BadParameter")
    assert rest.ok("GET", f"/keys/{name}")["attributes"][member] == last


def test_a_rotation_policy_that_leaves_the_calendar_is_refused(rest, name):
    rest.ok("POST", f"/keys/{name}/create", {"kty": "oct-HSM"})
    for period in ("P9000Y", "P9999Y", "P999999999999Y"):
        policy = {"lifetimeActions": [], "attributes": {"expiryTime": period}}
        assert_error(rest("PUT", f"/keys/{name}/rotationpolicy", policy), 400, "BadParameter")


def test_null_is_absent(rest, name):
    nothing = {"attributes": None, "tags": None, "key_ops": None, "release_policy": None}
    created = rest.ok("POST", f"/keys/{name}/create", {"kty": "EC-HSM", "crv": None, "key_size": None, "public_exponent": None} | nothing)
    assert created["key"]["crv"] == "P-256" and created["attributes"]["enabled"] is True and "tags" not in created
    rest.ok("PUT", f"/keys/{name}-i", {"key": {"kty": "oct-HSM", "k": b64(bytes(32)), "n": None, "key_ops": None}, "Hsm": None} | nothing)
    tagged = rest.ok("PATCH", f"/keys/{name}", {"tags": {"a": "b"}, "attributes": {"exp": 4_000_000_000, "enabled": None}})
    same = rest.ok("PATCH", f"/keys/{name}", nothing)
    inner = rest.ok("PATCH", f"/keys/{name}", {"attributes": {"enabled": None, "nbf": None, "exp": None, "exportable": None}})
    for answer in (same, inner):
        assert answer["tags"] == {"a": "b"} and answer["attributes"]["exp"] == 4_000_000_000 and answer["key"] == tagged["key"]
    policy = {"lifetimeActions": None, "attributes": {"expiryTime": "P90D"}, "id": None}
    assert rest.ok("PUT", f"/keys/{name}/rotationpolicy", policy)["lifetimeActions"] == []
    assert rest.ok("PUT", f"/keys/{name}/rotationpolicy", {"lifetimeActions": [], "attributes": None})["attributes"] == {}
    sealed = rest.ok("POST", f"/keys/{name}-i/encrypt", {"alg": "A256GCM", "value": b64(b"x"), "iv": None, "aad": None, "tag": None, "digest": None})
    assert rest.ok("POST", f"/keys/{name}-i/decrypt", {"alg": "A256GCM", "value": sealed["value"], "iv": sealed["iv"], "tag": sealed["tag"], "aad": None})["value"] == b64(b"x")


def test_json_is_json(rest, name):
    """Every way to write a character: a value with escapes is the same value."""
    rest.ok("POST", f"/keys/{name}/create", {"kty": "oct-HSM"})
    escaped = lambda text: "".join(f"\\u{ord(letter):04x}" for letter in text)
    body = '{"%s":"%s","value":"%s"}' % (escaped("alg"), escaped("A256KW"), escaped(b64(b"k" * 32)))
    headers = {"Authorization": f"Bearer {rest.token}", "Content-Type": "application/json"}
    answer = requests.post(f"{rest.server.url}/keys/{name}/wrapkey?api-version=7.5", data=body, headers=headers, verify=rest.server.ca_file)
    assert answer.status_code == 200, answer.text
    assert answer.json()["value"] == rest.ok("POST", f"/keys/{name}/wrapkey", {"alg": "A256KW", "value": b64(b"k" * 32)})["value"]
    rest.ok("PATCH", f"/keys/{name}", {"tags": {"path": "a/b"}})
    answer = requests.patch(f"{rest.server.url}/keys/{name}?api-version=7.5", data=r'{"tags":{"path":"a\/b\u00e9"}}', headers=headers, verify=rest.server.ca_file)
    assert answer.json()["tags"] == {"path": "a/b\u00e9"}


def test_a_name_that_a_deleted_key_holds(rest, key_client, name):
    key = {"kty": "oct-HSM", "k": b64(bytes(32))}
    rest.ok("PUT", f"/keys/{name}", {"key": key})
    backup = rest.ok("POST", f"/keys/{name}/backup")["value"]
    there = rest("POST", "/keys/restore", {"value": backup})
    assert_error(there, 409, "Conflict")
    assert "innererror" not in there.json()["error"], "an active key is not a deleted one"
    rest.ok("DELETE", f"/keys/{name}")
    for answer in (rest("POST", f"/keys/{name}/create", {"kty": "oct-HSM"}), rest("PUT", f"/keys/{name}", {"key": key}),
                   rest("PUT", f"/keys/{name.upper()}", {"key": key}), rest("POST", "/keys/restore", {"value": backup})):
        message = assert_error(answer, 409, "Conflict")
        assert answer.json()["error"]["innererror"] == {"code": "ObjectIsDeletedButRecoverable"}
        assert "is currently in a deleted but recoverable state, and its name cannot be reused; in this state, the key can only be recovered or purged." in message
    with pytest.raises(ResourceExistsError) as refused:
        key_client.create_oct_key(name, hardware_protected=True)
    assert refused.value.error.innererror["code"] == "ObjectIsDeletedButRecoverable"


def test_exportable_needs_a_release_policy(rest, name):
    create = lambda body: rest("POST", f"/keys/{name}/create", {"kty": "RSA-HSM"} | body)
    policy = {"data": b64(json.dumps(POLICY).encode()), "contentType": "application/json; charset=utf-8"}
    assert_error(create({"attributes": {"exportable": True}}), 400, "BadParameter")
    assert_error(create({"release_policy": policy}), 400, "BadParameter")
    made = create({"attributes": {"exportable": True}, "release_policy": policy}).json()
    assert made["attributes"]["exportable"] is True and made["release_policy"]["data"] == policy["data"]
    assert_error(rest("POST", f"/keys/{name}//release", {"target": "x"}), 501, "NotSupported")


def test_limits_of_requests(rest, name):
    path = f"/keys/{name}/create"
    for body in (
        {"kty": "nothing"}, {}, {"kty": "RSA-HSM", "key_size": 1024}, {"kty": "RSA-HSM", "key_size": "2048"}, {"kty": "oct-HSM", "key_size": 64},
        {"kty": "EC-HSM", "crv": "P-999"}, {"kty": "RSA-HSM", "public_exponent": 4}, {"kty": "EC-HSM", "key_ops": ["encrypt"]},
        {"kty": "RSA-HSM", "key_ops": ["import", "sign"]}, {"kty": "oct-HSM", "tags": {str(n): "" for n in range(16)}},
        {"kty": "oct-HSM", "tags": {"k": "v" * 257}}, {"kty": "oct-HSM", "attributes": {"nbf": 2, "exp": 1}},
    ):
        assert_error(rest("POST", path, body), 400, "BadParameter")
    assert rest("GET", f"/keys/{name}").status_code == 404, "a refused request leaves nothing behind"


def test_every_api_version(server):
    for version in ApiVersion:
        if version.value in ("2016-10-01", "7.0", "7.1"):
            continue  # older than Managed HSM
        client = KeyClient(server.url, server.credential(), api_version=version, connection_verify=server.ca_file)
        key = client.create_key("versioned", "RSA-HSM")
        assert client.get_key("versioned").id == key.id
