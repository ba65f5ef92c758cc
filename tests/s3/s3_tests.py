"""Runs Ceph's s3-tests, from a checkout that the caller has, against a storage service on a Managed HSM: README.md beside this file.

    python tests/s3/s3_tests.py --checkout DIR --python PYTHON [--all] [arguments of pytest]
"""
import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from managed_hsm import ADMIN, CRYPTO_OFFICER, CRYPTO_USER, ENCRYPTION_USER, STORAGE, Hsm  # noqa: E402
from storage_service import Storage  # noqa: E402

# What the storage service does not have, by a mark of the suite or a part of a test's name.
UNWANTED_MARKS = ["bucket_logging", "bucket_logging_cleanup", "bucket_policy", "cloud_restore", "cloud_transition", "iam_account", "iam_cross_account", "iam_role",
                  "iam_tenant", "iam_user", "lifecycle", "object_ownership", "s3select", "s3website", "sns", "storage_class", "appendobject", "auth_aws2",
                  "target_by_bucket", "user_policy", "role_policy", "session_policy", "group", "group_policy", "test_of_sts", "webidentity_test", "abac_test"]
UNWANTED_NAMES = ["_acl", "acls", "access_bucket_p", "anon", "cors", "object_lock", "policy", "public_block", "torrent", "website", "usage", "logging", "requestpayment",
                  "tenant", "unordered", "block_public", "ownership", "allow_unordered", "storage_class", "lifecycle"]
# Names with such a part that are wanted all the same.
WANTED_NAMES = ["post_object_missing_policy_condition", "post_object_expired_policy", "post_object_request_missing_policy_specified_field"]


def configuration(storage: Storage, keks: list[str]) -> str:
    users = {"s3 main": "alice", "s3 alt": "bob", "s3 tenant": "bob", "iam": "bob", "iam root": "bob", "iam alt root": "bob"}
    text = f"[DEFAULT]\nhost = 127.0.0.1\nport = {storage.port}\nis_secure = False\n\n[fixtures]\nbucket prefix = ceph-{{random}}-\n"
    for section, user in users.items():
        access_key, secret = storage.keys[user]
        text += f"\n[{section}]\ndisplay_name = {user}\nuser_id = {user}\nemail = {user}@example.com\naccess_key = {access_key}\nsecret_key = {secret}\n"
        text += f"kms_keyid = {keks[0]}\nkms_keyid2 = {keks[1]}\napi_name =\n" if section == "s3 main" else "tenant = none\n"
    return text


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--checkout", required=True, type=pathlib.Path, help="a work tree of ceph/s3-tests")
    arguments.add_argument("--python", required=True, help="an interpreter with the packages of its requirements.txt")
    arguments.add_argument("--all", action="store_true", help="also what is known not to be there")
    known, more = arguments.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = pathlib.Path(scratch)
        hsm = Hsm(directory / "hsm")
        hsm.start()
        for role in (CRYPTO_USER, CRYPTO_OFFICER):
            hsm.grant(role, ADMIN[1])
        hsm.grant(ENCRYPTION_USER, STORAGE[1])
        keks = [hsm.create_kek(name) for name in ("default", "first", "second")]
        storage = Storage(directory / "storage", hsm, keks[0]).start()
        config = directory / "s3tests.conf"
        config.write_text(configuration(storage, keks[1:]))
        names = f"not ({' or '.join(UNWANTED_NAMES)}) or {' or '.join(WANTED_NAMES)}"
        chosen = [] if known.all else ["-m", " and ".join(f"not {mark}" for mark in UNWANTED_MARKS), "-k", names]
        files = [f"s3tests/functional/{name}" for name in ("test_s3.py", "test_headers.py")]
        done = subprocess.run([known.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, *(more or []), *([] if any("::" in part for part in more) else files)],
                              cwd=known.checkout, env=os.environ | {"S3TEST_CONF": str(config)})
        storage.stop()
        hsm.stop()
        for process in (storage, hsm):
            assert "panicked" not in process.log.read_text(), process.log.read_text()
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
