"""What an application does with azure-keyvault-keys of any age: one part of it, by its name. Ends with "done", or raises."""
import os
import sys
from datetime import datetime, timedelta, timezone

from azure.core.exceptions import ResourceExistsError, ResourceNotFoundError
from azure.identity import ClientSecretCredential
from azure.keyvault.keys import KeyClient, __version__
from azure.keyvault.keys.crypto import CryptographyClient, EncryptionAlgorithm, KeyWrapAlgorithm, SignatureAlgorithm

part, version = sys.argv[1:]
assert __version__ == version, __version__
# Of its keys: several versions of the library meet one server.
prefix = f"py-{version.replace('.', '')}"
env = os.environ
tls = {"connection_verify": env["HOLDFAST_CA_FILE"]}
credential = ClientSecretCredential(env["HOLDFAST_TENANT_ID"], env["HOLDFAST_CLIENT_ID"], env["HOLDFAST_CLIENT_SECRET"],
                                    authority=env["HOLDFAST_AUTHORITY_URL"], disable_instance_discovery=True, **tls)
client = KeyClient(env["HOLDFAST_HSM_URL"], credential, **tls)


def listings():
    names = [f"{prefix}-{n:03}" for n in range(60)]
    for name in names:
        client.create_ec_key(name, hardware_protected=True, tags={"by": "python"})
    assert sorted(key.name for key in client.list_properties_of_keys() if key.name.startswith(prefix)) == names
    for _ in range(29):
        client.create_ec_key(names[0], hardware_protected=True)
    assert len({key.version for key in client.list_properties_of_key_versions(names[0])}) == 30
    assert list(client.list_properties_of_key_versions(f"{prefix}-none")) == []
    for name in names[1:31]:
        client.begin_delete_key(name, _polling_interval=0).wait()
    assert sorted(key.name for key in client.list_deleted_keys() if key.name.startswith(prefix)) == names[1:31]
    client.begin_recover_deleted_key(names[1], _polling_interval=0).wait()
    assert client.get_key(names[1]).name == names[1]
    try:
        client.create_ec_key(names[2], hardware_protected=True)
        raise AssertionError("the name is taken by a deleted key")
    except ResourceExistsError:
        client.purge_deleted_key(names[2])


def uses():
    dek = os.urandom(32)
    rsa = client.create_rsa_key(f"{prefix}-rsa", size=2048, hardware_protected=True)
    aes = client.create_oct_key(f"{prefix}-aes", size=256, hardware_protected=True)
    for key, algorithm in ((rsa, KeyWrapAlgorithm.rsa_oaep_256), (rsa, KeyWrapAlgorithm.rsa_oaep), (aes, KeyWrapAlgorithm.aes_256)):
        crypto = CryptographyClient(key, credential, **tls)
        assert crypto.unwrap_key(algorithm, crypto.wrap_key(algorithm, dek).encrypted_key).key == dek
    crypto = CryptographyClient(aes, credential, **tls)
    sealed = crypto.encrypt(EncryptionAlgorithm.a256_gcm, b"hello", additional_authenticated_data=b"aad")
    opened = crypto.decrypt(EncryptionAlgorithm.a256_gcm, sealed.ciphertext, iv=sealed.iv, authentication_tag=sealed.tag, additional_authenticated_data=b"aad")
    assert opened.plaintext == b"hello"
    crypto = CryptographyClient(client.create_ec_key(f"{prefix}-ec", hardware_protected=True), credential, **tls)
    signature = crypto.sign(SignatureAlgorithm.es256, b"d" * 32).signature
    assert crypto.verify(SignatureAlgorithm.es256, b"d" * 32, signature).is_valid
    assert not crypto.verify(SignatureAlgorithm.es256, b"e" * 32, signature).is_valid


def properties():
    name = f"{prefix}-props"
    expires = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(days=1)
    made = client.create_ec_key(name, hardware_protected=True, expires_on=expires, not_before=datetime(1970, 1, 2, tzinfo=timezone.utc))
    assert client.get_key(name).properties.expires_on == expires
    assert client.get_key(name, made.properties.version).id == made.id
    changed = client.update_key_properties(name, enabled=False, tags={"a": "b"})
    assert (changed.properties.enabled, changed.properties.tags) == (False, {"a": "b"})
    backup = client.backup_key(name)
    client.begin_delete_key(name, _polling_interval=0).wait()
    client.purge_deleted_key(name)
    try:
        client.get_key(name)
        raise AssertionError("it was purged")
    except ResourceNotFoundError as error:
        assert error.error.code == "KeyNotFound", error
    assert client.restore_key_backup(backup).properties.version == made.properties.version


{"listings": listings, "uses": uses, "properties": properties}[part]()
print("done")
