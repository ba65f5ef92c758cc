"""restic and s3cmd, as Debian ships them."""
import os
import shutil

import pytest
from conftest import contents, run


@pytest.fixture
def restic(door, tmp_path, bucket):
    assert shutil.which("restic"), "restic is not installed"
    env = door.env(tmp_path) | {"RESTIC_PASSWORD": "correct horse", "RESTIC_REPOSITORY": f"s3:{door.url}/{bucket}/repo", "RESTIC_CACHE_DIR": str(tmp_path / "cache")}
    tls = ["--cacert", door.ca] if door.ca else []
    return lambda *command, **more: run("restic", *tls, *command, env=env, **more)


def test_restic(restic, tree, tmp_path):
    """A repository's whole life: what is restored is what was backed up, also after old snapshots were pruned."""
    restic("init")
    assert restic("init", ok=False).returncode != 0, "a repository that is there is not made again"
    restic("backup", tree, "--tag", "first")
    first = contents(tree)
    (tree / "a.txt").write_bytes(b"changed")
    (tree / "new").write_bytes(os.urandom(3_000_000))
    (tree / "big").unlink()
    restic("backup", tree, "--tag", "second")
    assert contents(tree) != first
    restic("check", "--read-data")
    assert len(restic("snapshots", "--json").stdout.split('"short_id"')) == 3
    restic("restore", "latest", "--tag", "first", "--target", tmp_path / "old")
    assert contents(tmp_path / "old" / tree.relative_to("/")) == first
    restic("forget", "--keep-last", "1", "--prune")
    assert len(restic("snapshots", "--json").stdout.split('"short_id"')) == 2
    restic("check", "--read-data")
    restic("restore", "latest", "--target", tmp_path / "new")
    assert contents(tmp_path / "new" / tree.relative_to("/")) == contents(tree)
    assert restic("dump", "latest", tree / "a.txt").stdout == "changed"
    assert restic("list", "locks").stdout.strip() == "", "each command took its lock away again"
    restic("key", "passwd", "--new-password-file", _written(tmp_path / "pw", "new horse"))
    wrong = restic("snapshots", ok=False)
    assert wrong.returncode != 0 and "wrong password" in wrong.stderr


def _written(path, text):
    path.write_text(text)
    return path


@pytest.fixture
def s3cmd(door, tmp_path):
    assert shutil.which("s3cmd"), "s3cmd is not installed"
    config = tmp_path / "s3cfg"
    config.write_text(f"[default]\naccess_key = {door.access_key}\nsecret_key = {door.secret}\nhost_base = {door.host}\nhost_bucket = {door.host}\n"
                      f"use_https = {door.secure}\nbucket_location = us-east-1\n" + (f"ca_certs_file = {door.ca}\n" if door.ca else ""))
    return lambda *command, **more: run("s3cmd", "-c", config, "--no-progress", *command, **more)


def test_s3cmd(s3cmd, tree, tmp_path, bucket):
    root = f"s3://{bucket}"
    s3cmd("mb", root)
    assert root in s3cmd("ls").stdout
    odd = f"{root}/päth/🔑 & <clé> +%41.txt"
    s3cmd("put", tree / "deep/🔑.key", odd)
    s3cmd("get", odd, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == b"emoji"
    assert odd in s3cmd("ls", f"{root}/päth/").stdout
    # 12 MB in parts of 5 MiB, whose ETag is no MD5: s3cmd compares the parts'.
    s3cmd("put", tree / "big", f"{root}/big", "--multipart-chunk-size-mb=5")
    s3cmd("get", f"{root}/big", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == (tree / "big").read_bytes()
    assert s3cmd("multipart", root).stdout.count("big") == 0, "no upload is left"
    s3cmd("cp", odd, f"{root}/copied")
    s3cmd("mv", f"{root}/copied", f"{root}/moved")
    assert s3cmd("get", f"{root}/copied", tmp_path / "none", ok=False).returncode == 64, "there is no such object"
    s3cmd("modify", "--add-header=x-amz-meta-who: me", f"{root}/moved")
    info = s3cmd("info", f"{root}/moved").stdout
    assert "me" in info and "File size: 5" in info
    s3cmd("info", root)
    s3cmd("du", root)
    s3cmd("del", f"{root}/moved", odd)
    assert odd not in s3cmd("la", "--recursive").stdout


def test_s3cmd_learns_its_region(s3cmd, tree, bucket):
    s3cmd("mb", f"s3://{bucket}", "--region=US")
    for region in ("US", "eu-west-1"):
        s3cmd("put", tree / "a.txt", f"s3://{bucket}/{region}", f"--region={region}")
        assert f"s3://{bucket}/{region}" in s3cmd("ls", f"s3://{bucket}", f"--region={region}").stdout


def test_s3cmd_sync(s3cmd, tree, tmp_path, bucket):
    root = f"s3://{bucket}"
    s3cmd("mb", root)
    s3cmd("sync", f"{tree}/", f"{root}/sync/")
    assert "upload:" not in s3cmd("sync", f"{tree}/", f"{root}/sync/").stdout, "nothing is sent twice"
    (tmp_path / "down").mkdir()
    s3cmd("sync", f"{root}/sync/", f"{tmp_path}/down/")
    assert contents(tmp_path / "down") == contents(tree)
    (tree / "a.txt").unlink()
    deleted = s3cmd("sync", "--delete-removed", f"{tree}/", f"{root}/sync/").stdout
    assert "a.txt" in deleted and "a.txt" not in s3cmd("ls", "--recursive", root).stdout
    s3cmd("sync", f"{root}/sync/", f"{root}/again/")
    s3cmd("get", f"{root}/again/deep/🔑.key", tmp_path / "emoji")
    assert (tmp_path / "emoji").read_bytes() == b"emoji"
    # Many at once, by DeleteObjects with the emoji in its body.
    s3cmd("del", "--recursive", "--force", root)
    assert s3cmd("ls", "--recursive", root).stdout == ""
    s3cmd("rb", root)
    assert root not in s3cmd("ls").stdout
