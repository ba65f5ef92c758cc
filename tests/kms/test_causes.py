"""storage -> somebody in between who edits answers -> kms -> xks-proxy: only a code makes an outage, and only an outage has grace."""
import time
import types

import pytest
from between import Between
from botocore.exceptions import ClientError
from chain import Chain
from process import free_ports
from service import REGION
from storage_service import Storage

TTL = 1
"""Seconds that a DEK lives in the cache."""
AWAY = "AWS KMS cannot communicate with the external key store proxy. This might be a transient network issue."
DENIED = "The external key store proxy denied access to the operation. The external key is disabled, and does not accept anything."


class Road:
    def __init__(self, directory):
        self.chain = Chain(directory, ["orders", "other"]).start()
        port = free_ports()
        (directory / "between").mkdir()
        self.between = Between(directory / "between", self.chain.service.url, self.chain.service.ca_file, port, ["localhost"])
        access_key, secret = self.chain.service.keys["storage"]
        nobody = directory / "nobody"  # a storage service wants to be told of an HSM, and this one never asks it
        nobody.mkdir()
        (nobody / "storage.secret").write_text("nobody needs this secret")
        (nobody / "ca.pem").write_text((directory / "between" / "between.pem").read_text())
        hsm = types.SimpleNamespace(url="https://localhost:1", data_dir=nobody, authority="https://localhost:1", directory=nobody)
        config = (f'[kms]\nurl = "https://localhost:{port}"\nregion = "{REGION}"\nca_file = "{self.between.ca_file}"\naccess_key_id = "{access_key}"\n'
                  f'secret_file = "{self.chain.service.directory}/storage.secret"\n')
        kms = types.SimpleNamespace(storage_config=lambda: config)
        self.storage = Storage(directory / "storage", hsm, self.chain.keys["orders"], kms=kms, dek_cache_ttl_secs=TTL, outage_grace_secs=600, kek_poll_secs=86_400)
        self.storage.start()
        self.s3 = self.storage.client()
        self.s3.create_bucket(Bucket="bkt-c")
        for name in ("one", "two"):
            self.s3.put_object(Bucket="bkt-c", Key=name, Body=b"x", ServerSideEncryption="aws:kms", SSEKMSKeyId=self.chain.keys["orders"])

    def get(self, name: str = "one") -> str:
        """What a reader gets: the object, or the code of the error."""
        try:
            return self.s3.get_object(Bucket="bkt-c", Key=name)["Body"].read().decode()
        except ClientError as error:
            return error.response["Error"]["Code"]

    def wait_for(self, wanted: str, name: str = "one") -> None:
        deadline = time.monotonic() + 15
        while (found := self.get(name)) != wanted:
            assert time.monotonic() < deadline, found
            time.sleep(0.1)

    def cached_and_old(self) -> None:
        """Both DEKs are in the cache, and their time is over."""
        self.between.honest()
        for name in ("one", "two"):
            self.wait_for("x", name)
        time.sleep(TTL + 0.2)

    def stop(self) -> None:
        self.storage.stop()
        assert "panicked" not in self.storage.log.read_text()
        self.between.stop()
        self.chain.check_end()


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    road = Road(tmp_path_factory.mktemp("road"))
    yield road
    road.stop()


def edited(**members):
    def change(path, status, answer):
        return status, {name: value for name, value in (answer | members).items() if value is not None}
    return change


def answer(status: int, code: str | None, **more):
    return lambda path: (status, {"__type": code, "message": AWAY} | more)


@pytest.mark.parametrize(("change", "told"), [
    (edited(message=AWAY), "KMS.DisabledException"),
    (edited(message=AWAY, holdfastCause=None), "KMS.DisabledException"),
    (edited(message=AWAY, holdfastCause="Outage"), "KMS.DisabledException"),
    (edited(message=AWAY, holdfastCause=["outage"]), "KMS.DisabledException"),
    (edited(message=AWAY, holdfastCause="passing"), "KMS.DisabledException"),
    (lambda path, status, answer: (200, b"<html>"), "ServiceUnavailable"),
    (lambda path, status, answer: (200, {}), "ServiceUnavailable"),
    (lambda path, status, answer: (302, b""), "ServiceUnavailable"),
    (lambda path, status, answer: (500, answer), "KMS.DisabledException"),
    (lambda path, status, answer: (503, answer), "KMS.DisabledException"),
])
def test_an_edited_refusal_stays_one(road, change, told):
    road.cached_and_old()
    road.chain.proxy.kill("--key-id", "orders")
    try:
        road.between.change = change
        assert road.get() == told
        # The other DEK under the key was not asked for while it was refused; it has no grace either.
        road.between.before = lambda path: (503, b"<html>")
        assert (road.get("two"), road.get()) == ("ServiceUnavailable", "ServiceUnavailable")
    finally:
        road.chain.proxy.change("lift", "--key-id", "orders")


@pytest.mark.parametrize(("before", "told"), [
    (answer(400, "AccessDeniedException", holdfastCause="outage"), "AccessDenied"),
    (answer(503, "AccessDeniedException", holdfastCause="outage"), "AccessDenied"),
    (answer(503, "DisabledException", holdfastCause="outage"), "KMS.DisabledException"),
    (answer(500, "KMSInvalidStateException", holdfastCause="outage"), "KMS.DisabledException"),
    (answer(500, "KMSInternalException", holdfastCause="refusal"), "ServiceUnavailable"),
    (answer(503, "DependencyTimeoutException", holdfastCause="who knows"), "ServiceUnavailable"),
    (answer(429, "ThrottlingException", holdfastCause="refusal"), "ServiceUnavailable"),
    (answer(500, "SomethingElse", holdfastCause="outage"), "ServiceUnavailable"),
    (answer(500, None), "ServiceUnavailable"),
    (lambda path: (500, b"unavailable"), "ServiceUnavailable"),
])
def test_of_code_and_status_the_stricter_counts(road, before, told):
    road.cached_and_old()
    road.between.before = before
    assert road.get() == told
    road.between.before = lambda path: (503, b"<html>")
    assert (road.get("two"), road.get()) == ("ServiceUnavailable", "ServiceUnavailable")


@pytest.mark.parametrize("before", [
    answer(400, "KMSInvalidStateException", holdfastCause="outage", message=DENIED),
    answer(500, "KMSInternalException", message=DENIED),
    answer(503, "DependencyTimeoutException", holdfastCause="outage"),
    answer(400, "ThrottlingException", message=DENIED),
    lambda path: (502, b"<html>"),
])
def test_an_outage_is_one_whatever_the_words(road, before):
    """The positive control of all the above: grace is there, and works."""
    road.cached_and_old()
    road.between.before = before
    assert (road.get(), road.get("two")) == ("x", "x")


def test_an_outage_at_the_end_of_the_chain_is_told_through_it(road):
    road.cached_and_old()
    road.chain.proxy.stop("a", 9)
    road.between.change = edited(message=DENIED)
    assert (road.get(), road.get("two")) == ("x", "x"), "the proxy is away, and nobody said no"
    # Of a service that is not ours nobody knows what the one code for both means.
    road.between.change = edited(holdfastCause=None)
    assert (road.get(), road.get("two")) == ("KMS.DisabledException", "KMS.DisabledException")
    road.between.honest()
    assert road.get() == "ServiceUnavailable", "the grace is over"
    road.chain.proxy.start("a")
    road.wait_for("x")
