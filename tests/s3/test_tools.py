"""The aws command line and rclone, unmodified."""
import os
import shutil
import subprocess
import sys
import pathlib

import pytest
AWS = pathlib.Path(sys.executable).parent / "aws"


@pytest.fixture
def tools(storage, tmp_path):
    access_key, secret = storage.keys["alice"]
    env = os.environ | {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": storage.url,
                        "AWS_CONFIG_FILE": str(tmp_path / "aws.conf"), "RCLONE_CONFIG_HF_TYPE": "s3", "RCLONE_CONFIG_HF_PROVIDER": "Other",
                        "RCLONE_CONFIG_HF_ENV_AUTH": "true", "RCLONE_CONFIG_HF_ENDPOINT": storage.url, "RCLONE_CONFIG_HF_REGION": "us-east-1",
                        "RCLONE_CONFIG": str(tmp_path / "rclone.conf")}
    (tmp_path / "rclone.conf").touch()
    (tmp_path / "aws.conf").touch()
    env.pop("AWS_CA_BUNDLE", None)

    def run(*command, ok=True):
        result = subprocess.run([str(part) for part in command], env=env, capture_output=True, text=True, timeout=120)
        assert not ok or result.returncode == 0, result.stderr
        return result
    return run


def tree(directory):
    directory.mkdir()
    (directory / "deep/er").mkdir(parents=True)
    contents = {"a.txt": b"a", "deep/b +%&.bin": os.urandom(200_000), "deep/er/ü": b"", "big": os.urandom(12_000_000)}
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    return contents


def same(directory, contents):
    found = {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert found == contents


@pytest.mark.parametrize("sse", [[], ["--sse", "aws:kms", "--sse-kms-key-id"]], ids=["default", "kms"])
def test_aws_cli(tools, tmp_path, keks, sse):
    contents = tree(tmp_path / "up")
    bucket = f"s3://cli-{'kms' if sse else 'default'}"
    # Without its scheme: this aws fetches any parameter that looks like a URL.
    sse = [*sse, keks[0].removeprefix("https://")] if sse else []
    tools(AWS, "s3", "mb", bucket)
    tools(AWS, "s3", "sync", tmp_path / "up", f"{bucket}/x", *sse)
    tools(AWS, "s3", "cp", f"{bucket}/x", tmp_path / "down", "--recursive")
    same(tmp_path / "down", contents)
    tools(AWS, "s3", "mv", f"{bucket}/x/a.txt", f"{bucket}/moved", *sse)
    assert "moved" in tools(AWS, "s3", "ls", bucket).stdout
    assert tools(AWS, "s3", "sync", tmp_path / "up", f"{bucket}/x", "--exclude", "a.txt", *sse).stdout == "", "nothing is sent twice"
    failed = tools(AWS, "s3", "cp", f"{bucket}/none", tmp_path / "n", ok=False)
    assert failed.returncode == 1 and "404" in failed.stderr
    tools(AWS, "s3", "rb", bucket, "--force")


@pytest.mark.parametrize("mode", ["default", "kms"])
def test_rclone(tools, tmp_path, keks, mode):
    assert shutil.which("rclone"), "rclone is not installed"
    contents = tree(tmp_path / "up")
    more = {"default": [], "kms": ["--s3-server-side-encryption", "aws:kms", "--s3-sse-kms-key-id", keks[1]]}[mode]
    target = f"hf:rclone-{mode}"
    tools("rclone", "copy", tmp_path / "up", target, *more, "--s3-chunk-size", "5M", "--s3-upload-cutoff", "5M")
    tools("rclone", "check", tmp_path / "up", target, *more, "--download")
    if mode == "default":
        tools("rclone", "check", tmp_path / "up", target, *more)
    tools("rclone", "copy", target, tmp_path / "down", *more)
    same(tmp_path / "down", contents)
    tools("rclone", "purge", target)
