"""The real `az`, offline, against its own `holdfast dev`."""
import base64
import json
import os
import subprocess
import uuid

import pytest
from conftest import Server
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils


class Az:
    """`az`, logged in as the administrator, with a configuration of its own."""

    def __init__(self, server, directory):
        self.server = server
        authority = server.env["HOLDFAST_AUTHORITY_URL"]
        self.env = os.environ | {
            "AZURE_CONFIG_DIR": str(directory / "az"), "REQUESTS_CA_BUNDLE": server.ca_file, "AZURE_CORE_COLLECT_TELEMETRY": "false",
            "AZURE_CORE_ONLY_SHOW_ERRORS": "true", "AZURE_CORE_NO_COLOR": "true",
        }
        self.env.pop("HTTPS_PROXY", None)
        cloud = {
            "endpoints": {name: authority for name in ("active_directory", "resource_manager", "management", "active_directory_resource_id",
                                                       "microsoft_graph_resource_id")},
            # A name has the form https://NAME + suffix: here NAME is 127.0.0.1.
            "suffixes": {"mhsm_dns": f":{server.port}", "keyvault_dns": ".vault.localhost", "storage_endpoint": "core.localhost"},
        }
        path = directory / "cloud.json"
        path.write_text(json.dumps(cloud))
        self("cloud", "register", "-n", "Holdfast", "--cloud-config", f"@{path}", "--skip-endpoint-discovery")
        self("cloud", "set", "-n", "Holdfast")
        self("config", "set", "core.instance_discovery=false")
        self("login", "--service-principal", "-u", server.env["HOLDFAST_CLIENT_ID"], "-p", server.env["HOLDFAST_CLIENT_SECRET"],
             "--tenant", server.env["HOLDFAST_TENANT_ID"], "--skip-subscription-discovery")

    def run(self, *args):
        return subprocess.run([os.environ["HOLDFAST_AZ"], *map(str, args), "-o", "json"], capture_output=True, text=True, env=self.env, timeout=120)

    def __call__(self, *args):
        result = self.run(*args)
        assert result.returncode == 0, (args, result.stdout, result.stderr)
        return json.loads(result.stdout) if result.stdout.strip() else None

    def key_id(self, name):
        return ("--id", f"{self.server.url}/keys/{name}")


@pytest.fixture(scope="module")
def az(tmp_path_factory):
    directory = tmp_path_factory.mktemp("az")
    server = Server(directory).start()
    yield Az(server, directory)
    server.stop()
    assert "panicked" not in server.log.read_text()


def test_keys(az, tmp_path):
    made = az("keyvault", "key", "create", *az.key_id("kek"), "--kty", "RSA-HSM", "--size", "3072", "--ops", "wrapKey", "unwrapKey", "encrypt", "decrypt", "sign", "verify")
    assert made["key"]["kty"] == "RSA-HSM" and len(base64.b64decode(made["key"]["n"] + "==")) in (384, 385)
    shown = az("keyvault", "key", "show", *az.key_id("kek"))
    assert shown["key"]["kid"] == made["key"]["kid"]
    az("keyvault", "key", "create", *az.key_id("aes"), "--kty", "oct-HSM", "--size", "256")
    az("keyvault", "key", "create", *az.key_id("curve"), "--kty", "EC-HSM", "--curve", "P-384")
    names = {item["name"] for item in az("keyvault", "key", "list", "--hsm-name", "127.0.0.1")}
    assert {"kek", "aes", "curve"} <= names
    az("keyvault", "key", "set-attributes", *az.key_id("kek"), "--tags", "team=storage", "--enabled", "true")
    assert az("keyvault", "key", "show", *az.key_id("kek"))["tags"] == {"team": "storage"}
    assert len(az("keyvault", "key", "list-versions", *az.key_id("kek"))) == 1


def test_encrypt_and_sign(az):
    value = base64.b64encode(b"secret").decode()
    az("keyvault", "key", "create", *az.key_id("crypt"), "--kty", "RSA-HSM")
    made = az("keyvault", "key", "encrypt", *az.key_id("crypt"), "--algorithm", "RSA-OAEP-256", "--value", value, "--data-type", "base64")
    back = az("keyvault", "key", "decrypt", *az.key_id("crypt"), "--algorithm", "RSA-OAEP-256", "--value", made["result"], "--data-type", "base64")
    assert back["result"] == value
    az("keyvault", "key", "create", *az.key_id("gcm"), "--kty", "oct-HSM", "--size", "256")
    made = az("keyvault", "key", "encrypt", *az.key_id("gcm"), "--algorithm", "A256GCM", "--value", value, "--data-type", "base64", "--aad", "00ff")
    back = az("keyvault", "key", "decrypt", *az.key_id("gcm"), "--algorithm", "A256GCM", "--value", made["result"], "--data-type", "base64",
              "--iv", made["iv"], "--tag", made["tag"], "--aad", "00ff")
    assert back["result"] == value
    shown = az("keyvault", "key", "create", *az.key_id("signer"), "--kty", "EC-HSM", "--curve", "P-256")
    digest = base64.b64encode(bytes(range(32))).decode()
    signed = az("keyvault", "key", "sign", *az.key_id("signer"), "--algorithm", "ES256", "--digest", digest)
    signature = base64.b64decode(signed["signature"])
    number = lambda text: int.from_bytes(base64.b64decode(text))
    public = ec.EllipticCurvePublicNumbers(number(shown["key"]["x"]), number(shown["key"]["y"]), ec.SECP256R1()).public_key()
    der = utils.encode_dss_signature(int.from_bytes(signature[:32]), int.from_bytes(signature[32:]))
    public.verify(der, bytes(range(32)), ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    assert az("keyvault", "key", "verify", *az.key_id("signer"), "--algorithm", "ES256", "--digest", digest, "--signature", signed["signature"])["isValid"]


def test_import_backup_restore(az, tmp_path):
    private = rsa.generate_private_key(65537, 2048)
    pem = tmp_path / "key.pem"
    pem.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()))
    az("keyvault", "key", "import", *az.key_id("imported"), "--pem-file", pem)
    ciphertext = private.public_key().encrypt(b"hello", padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None))
    back = az("keyvault", "key", "decrypt", *az.key_id("imported"), "--algorithm", "RSA-OAEP-256", "--value", base64.b64encode(ciphertext).decode(), "--data-type", "base64")
    assert base64.b64decode(back["result"]) == b"hello"
    curve = tmp_path / "ec.pem"
    curve.write_bytes(ec.generate_private_key(ec.SECP256K1()).private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()))
    assert az("keyvault", "key", "import", *az.key_id("k1"), "--pem-file", curve)["key"]["crv"] == "P-256K"
    blob = tmp_path / "blob"
    az("keyvault", "key", "backup", *az.key_id("imported"), "--file", blob)
    az("keyvault", "key", "delete", *az.key_id("imported"))
    deleted = ("--id", f"{az.server.url}/deletedkeys/imported")
    assert az("keyvault", "key", "show-deleted", *deleted)["key"]["kid"]
    assert [item["name"] for item in az("keyvault", "key", "list-deleted", "--hsm-name", "127.0.0.1")] == ["imported"]
    az("keyvault", "key", "recover", *deleted)
    az("keyvault", "key", "delete", *az.key_id("imported"))
    az("keyvault", "key", "purge", *deleted)
    az("keyvault", "key", "restore", "--hsm-name", "127.0.0.1", "--file", blob)
    assert az("keyvault", "key", "show", *az.key_id("imported"))["key"]["kty"] == "RSA-HSM"


def test_rotation(az, tmp_path):
    az("keyvault", "key", "create", *az.key_id("rotated"), "--kty", "RSA-HSM")
    policy = {"lifetimeActions": [{"trigger": {"timeAfterCreate": "P60D"}, "action": {"type": "Rotate"}}], "attributes": {"expiryTime": "P120D"}}
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(policy))
    az("keyvault", "key", "rotation-policy", "update", *az.key_id("rotated"), "--value", path)
    assert az("keyvault", "key", "rotation-policy", "show", *az.key_id("rotated"))["expiresIn"] == "P120D"
    az("keyvault", "key", "rotate", *az.key_id("rotated"))
    assert len(az("keyvault", "key", "list-versions", *az.key_id("rotated"))) == 2
    assert len(base64.b64decode(az("keyvault", "key", "random", "--hsm-name", "127.0.0.1", "--count", "16")["value"])) == 16


def test_roles_and_settings(az):
    roles = {role["roleName"] for role in az("keyvault", "role", "definition", "list", "--hsm-name", "127.0.0.1")}
    assert "Managed HSM Crypto User" in roles and len(roles) == 10
    assert "Holdfast Managed HSM Audit Reader" in roles, "the one that the real service does not have"
    who = str(uuid.uuid4())
    assign = ("keyvault", "role", "assignment")
    made = az(*assign, "create", "--hsm-name", "127.0.0.1", "--role", "Managed HSM Crypto Auditor", "--assignee-object-id", who, "--scope", "/keys/kek")
    assert made["principalId"] == who and made["scope"] == "/keys/kek"
    assert [found["name"] for found in az(*assign, "list", "--hsm-name", "127.0.0.1", "--scope", "/keys/kek")] == [made["name"]]
    az(*assign, "delete", "--hsm-name", "127.0.0.1", "--scope", "/keys/kek", "--role", "Managed HSM Crypto Auditor", "--assignee-object-id", who)
    assert az(*assign, "list", "--hsm-name", "127.0.0.1", "--scope", "/keys/kek") == []
    custom = {"roleName": "Wrappers", "description": "wrap only", "actions": [], "notActions": [], "dataActions": ["Microsoft.KeyVault/managedHsm/keys/wrap/action"], "notDataActions": []}
    made = az("keyvault", "role", "definition", "create", "--hsm-name", "127.0.0.1", "--role-definition", json.dumps(custom))
    assert made["roleName"] == "Wrappers"
    az("keyvault", "role", "definition", "delete", "--hsm-name", "127.0.0.1", "--name", made["name"])
    setting = ("--name", "AllowKeyManagementOperationsThroughARM", "--hsm-name", "127.0.0.1")
    assert az("keyvault", "setting", "update", *setting, "--value", "true")["value"] == "true"
    assert az("keyvault", "setting", "show", *setting)["value"] == "true"
    assert len(az("keyvault", "setting", "list", "--hsm-name", "127.0.0.1")) == 1


def test_errors_reach_the_user(az):
    missing = az.run("keyvault", "key", "show", *az.key_id("nobody"))
    assert missing.returncode != 0 and "KeyNotFound" in missing.stderr
    closed = az.run("keyvault", "backup", "start", "--id", az.server.url, "--storage-resource-uri", "https://x.blob.localhost/c", "--storage-container-SAS-token", "t")
    assert closed.returncode != 0 and "not available on this server yet" in closed.stderr
