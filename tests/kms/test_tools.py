"""What is built on the API, unmodified: the aws cli, the AWS Encryption SDK; and a Managed HSM as a custom key store."""
import base64
import json
import os
import pathlib
import subprocess
import sys

import pytest
from chain import Chain, connect
from managed_hsm import ADMIN, CRYPTO_OFFICER, CRYPTO_USER, KMS, TENANT, Hsm
from service import REGION, Service, refused

AWS = pathlib.Path(sys.executable).with_name("aws")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    chain = Chain(tmp_path_factory.mktemp("tools"), ["orders", "other"]).start()
    yield chain
    chain.check_end()


def aws(service, *command, check: bool = True):
    access_key, secret = service.keys["root"]
    env = {"PATH": os.environ["PATH"], "HOME": str(service.directory), "AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret,
           "AWS_DEFAULT_REGION": REGION, "AWS_ENDPOINT_URL_KMS": service.url, "AWS_CA_BUNDLE": service.ca_file}
    done = subprocess.run([AWS, "kms", *command], env=env, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return json.loads(done.stdout) if done.stdout.strip() and check else done


def test_the_aws_cli(chain):
    service = chain.service
    key = aws(service, "create-key", "--description", "from the cli", "--tags", "TagKey=a,TagValue=b")["KeyMetadata"]["KeyId"]
    aws(service, "create-alias", "--alias-name", "alias/cli", "--target-key-id", key)
    assert {"alias/cli"} <= {alias["AliasName"] for alias in aws(service, "list-aliases")["Aliases"]}
    for name in ("alias/cli", chain.keys["orders"]):
        blob = aws(service, "encrypt", "--key-id", name, "--plaintext", "hello", "--encryption-context", "tenant=blue")["CiphertextBlob"]
        file = service.directory / "blob"
        file.write_bytes(base64.b64decode(blob))
        plain = aws(service, "decrypt", "--ciphertext-blob", f"fileb://{file}", "--encryption-context", "tenant=blue")["Plaintext"]
        assert base64.b64decode(plain) == b"hello"
        refused_ = aws(service, "decrypt", "--ciphertext-blob", f"fileb://{file}", "--encryption-context", "tenant=red", check=False)
        assert refused_.returncode != 0 and "InvalidCiphertextException" in refused_.stderr
    tried = aws(service, "encrypt", "--key-id", "alias/cli", "--plaintext", "eA==", "--dry-run", check=False)
    assert "DryRunOperationException" in tried.stderr
    assert aws(service, "describe-custom-key-stores")["CustomKeyStores"][0]["ConnectionState"] == "CONNECTED"
    aws(service, "disable-key", "--key-id", key)
    assert aws(service, "describe-key", "--key-id", "alias/cli")["KeyMetadata"]["KeyState"] == "Disabled"


def test_the_encryption_sdk(chain):
    """Message encryption with data keys of two KMS keys, one hosted and one external; each alone opens the message."""
    import aws_encryption_sdk
    import botocore.session
    from aws_encryption_sdk.identifiers import CommitmentPolicy
    access_key, secret = chain.service.keys["root"]
    session = botocore.session.get_session()
    session.set_credentials(access_key, secret)
    # The SDK makes its clients itself, so that they are pointed at the service by the environment.
    settings = {"AWS_ENDPOINT_URL_KMS": chain.service.url, "AWS_CA_BUNDLE": chain.service.ca_file}
    old = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        client = aws_encryption_sdk.EncryptionSDKClient(commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT)
        names = [chain.hosted[0], chain.keys["orders"]]
        provider = lambda keys: aws_encryption_sdk.StrictAwsKmsMasterKeyProvider(key_ids=keys, botocore_session=session)
        source = os.urandom(100_000)
        sealed, header = client.encrypt(source=source, key_provider=provider(names), encryption_context={"purpose": "test"})
        assert len(header.encrypted_data_keys) == 2 and "aws-crypto-public-key" in header.encryption_context
        for name in names:
            plain, _ = client.decrypt(source=sealed, key_provider=provider([name]))
            assert plain == source
        with pytest.raises(Exception):
            client.decrypt(source=sealed, key_provider=provider([chain.hosted[1]]))
    finally:
        for name, value in old.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def test_a_managed_hsm_as_a_custom_key_store(tmp_path):
    """AWS_CLOUDHSM: the outer layer is under a key of the Managed HSM, whose owner can take it away."""
    hsm = Hsm(tmp_path / "hsm")
    hsm.start()
    for role in (CRYPTO_USER, CRYPTO_OFFICER):
        hsm.grant(role, ADMIN[1])
    hsm.grant(CRYPTO_USER, KMS[1])
    ca = hsm.data_dir / "ca.pem"
    cluster = (f'[[hsm_clusters]]\nid = "cluster-abcdefghijk"\nurl = "{hsm.url}"\nca_file = "{ca}"\nauthority = "{hsm.authority}/{TENANT}"\n'
               f'authority_ca_file = "{ca}"\nclient_id = "{KMS[0]}"\nclient_secret_file = "{hsm.directory}/kms.secret"\n')
    service = Service(tmp_path / "kms", cluster, "store_budget_ms = 2000\n").start()
    kms = service.client("root")
    with refused("CloudHsmClusterNotFoundException"):
        kms.create_custom_key_store(CustomKeyStoreName="no", CloudHsmClusterId="cluster-zzzzzzzzzzz")
    store = kms.create_custom_key_store(CustomKeyStoreName="hsm", CloudHsmClusterId="cluster-abcdefghijk", KeyStorePassword="not-used",
                                        TrustAnchorCertificate="not used")["CustomKeyStoreId"]
    with refused("CloudHsmClusterInUseException"):
        kms.create_custom_key_store(CustomKeyStoreName="again", CloudHsmClusterId="cluster-abcdefghijk")
    assert connect(kms, store)["ConnectionState"] == "CONNECTED"
    made = kms.create_key(Origin="AWS_CLOUDHSM", CustomKeyStoreId=store)["KeyMetadata"]
    assert (made["Origin"], made["CloudHsmClusterId"], made["CustomKeyStoreId"]) == ("AWS_CLOUDHSM", "cluster-abcdefghijk", store)
    assert hsm("GET", f"/keys/{made['KeyId']}")["key"]["kty"] == "RSA-HSM"
    key = made["Arn"]
    blob = kms.encrypt(KeyId=key, Plaintext=b"under both", EncryptionContext={"a": "b"})["CiphertextBlob"]
    assert kms.decrypt(CiphertextBlob=blob, EncryptionContext={"a": "b"})["Plaintext"] == b"under both"
    with refused("InvalidCiphertextException"):
        kms.decrypt(CiphertextBlob=blob, EncryptionContext={"a": "c"})
    # The HSM's owner rotates: old ciphertext opens by its version.
    hsm("POST", f"/keys/{made['KeyId']}/rotate")
    newer = kms.encrypt(KeyId=key, Plaintext=b"newer")["CiphertextBlob"]
    assert kms.decrypt(CiphertextBlob=blob, EncryptionContext={"a": "b"})["Plaintext"] == b"under both"
    assert kms.decrypt(CiphertextBlob=newer)["Plaintext"] == b"newer"
    for version in hsm("GET", f"/keys/{made['KeyId']}/versions")["value"]:
        hsm("PATCH", version["kid"].removeprefix(hsm.url), {"attributes": {"enabled": False}})
    for use in (lambda: kms.decrypt(CiphertextBlob=newer), lambda: kms.encrypt(KeyId=key, Plaintext=b"x")):
        with refused("KMSInvalidStateException"):
            use()
    hsm.stop(9)
    with refused("KMSInvalidStateException"):
        kms.encrypt(KeyId=key, Plaintext=b"x")
    service.check_end()
