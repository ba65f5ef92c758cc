"""What people encrypt files with by a KMS: sops (of PyPI) and the command line of the AWS Encryption SDK."""
import json
import os

import pytest
import ruamel.yaml
from conftest import BIN, contents, run


@pytest.fixture
def keys(kms):
    client = kms.client("root")
    return [client.create_key()["KeyMetadata"]["Arn"] for _ in range(2)]


@pytest.mark.parametrize("form", ["yaml", "json", "binary"])
def test_sops(kms, kms_env, keys, tmp_path, form):
    plain = {"yaml": "password: geheim 🔑\nlist:\n- 1\n- two\n", "json": json.dumps({"password": "geheim 🔑", "list": [1, "two"]}), "binary": "any \tbytes\n"}[form]
    file = tmp_path / f"secrets.{'txt' if form == 'binary' else form}"
    file.write_text(plain)

    def sops(*command, ok=True):
        return run(BIN / "sops", *command, env=kms_env | {"SOPS_KMS_ARN": ",".join(keys)}, ok=ok)
    sealed = sops("--encrypt", "--encryption-context", "app:web,stage:test", file).stdout
    assert "geheim" not in sealed and all(key in sealed for key in keys)
    sops("--encrypt", "--in-place", "--encryption-context", "app:web", file)
    assert "geheim" not in file.read_text()
    opened = sops("--decrypt", file).stdout
    parse = {"yaml": ruamel.yaml.YAML(typ="safe").load, "json": json.loads, "binary": str.strip}[form]
    assert parse(opened) == parse(plain)
    before = file.read_text()
    sops("--rotate", "--in-place", file)
    assert file.read_text() != before and parse(sops("--decrypt", file).stdout) == parse(plain)
    # One key is enough; without any, nobody reads.
    client = kms.client("root")
    client.disable_key(KeyId=keys[0])
    assert sops("--decrypt", file).returncode == 0
    client.disable_key(KeyId=keys[1])
    failed = sops("--decrypt", file, ok=False)
    assert failed.returncode != 0 and "geheim" not in failed.stdout
    client.enable_key(KeyId=keys[1])
    assert sops("--decrypt", file).returncode == 0
    if form == "yaml":
        assert sops("--decrypt", "--extract", '["list"][1]', file).stdout.strip() == "two"


def test_the_encryption_cli(kms, kms_env, keys, tmp_path):
    source = tmp_path / "plain"
    (source / "deep").mkdir(parents=True)
    for name, content in {"a": b"hello", "deep/b 🔑": os.urandom(200_000), "empty": b""}.items():
        (source / name).write_bytes(content)

    def cli(*command, ok=True):
        return run(BIN / "aws-encryption-cli", *command, "--metadata-output", tmp_path / "metadata.json", "--overwrite-metadata", env=kms_env, ok=ok)
    sealed, opened = tmp_path / "sealed", tmp_path / "opened"
    sealed.mkdir()
    opened.mkdir()
    cli("--encrypt", "--recursive", "--input", source, "--output", sealed, "--wrapping-keys", f"key={keys[0]}", f"key={keys[1]}",
        "--encryption-context", "app=web", "--suffix", ".enc")
    assert set(contents(sealed)) == {f"{name}.enc" for name in contents(source)}
    assert b"hello" not in (sealed / "a.enc").read_bytes()
    for wrapping in ([f"key={keys[1]}"], ["discovery=true", "discovery-account=111122223333", "discovery-partition=aws"]):
        cli("--decrypt", "--recursive", "--input", sealed, "--output", opened, "--wrapping-keys", *wrapping, "--encryption-context", "app=web", "--suffix", "")
        assert {name.removesuffix(".enc"): content for name, content in contents(opened).items()} == contents(source)
    cli("--decrypt", "--input", sealed / "a.enc", "--output", tmp_path / "x", "--wrapping-keys", f"key={keys[0]}", "--encryption-context", "app=mobile", ok=False)
    assert not (tmp_path / "x").exists(), "of another context"
    kms.client("root").disable_key(KeyId=keys[0])
    only = cli("--decrypt", "--input", sealed / "a.enc", "--output", tmp_path / "y", "--wrapping-keys", f"key={keys[0]}", ok=False)
    assert only.returncode != 0
    assert not (tmp_path / "y").exists() or (tmp_path / "y").read_bytes() == b""
