"""The index, written to by somebody who has no key: what he plants is refused by name, and what he drops or puts back is found."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import pytest
from botocore.exceptions import ClientError
from conftest import BINARY
from index_file import IndexFile

BODY = b"content of a small object" * 10


@pytest.fixture
def stored(make_storage, keks):
    """A service with some objects, and its index, which is to be edited while the service is stopped."""
    storage = make_storage()
    s3 = storage.client()
    for bucket in ("one", "two"):
        s3.create_bucket(Bucket=bucket)
        for key in ("a", "b", "c"):
            s3.put_object(Bucket=bucket, Key=key, Body=BODY + key.encode())
    s3.put_object(Bucket="two", Key="own", Body=BODY, ServerSideEncryption="aws:kms", SSEKMSKeyId=keks[0])
    storage.stop()
    return storage, IndexFile(storage.data_dir / "index.redb")


def again(storage, edit=None):
    """Stops the service, edits, starts it again."""
    storage.stop()
    if edit:
        edit()
    storage.start()
    return storage.client()


def refused(call, **arguments) -> str:
    """The id of a request that is refused for what lies in the index."""
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    error = caught.value.response
    assert error["Error"]["Code"] == "InternalError" or error["ResponseMetadata"]["HTTPStatusCode"] == 500, error
    return error["ResponseMetadata"]["HTTPHeaders"]["x-amz-request-id"]


def told(storage, request_id: str, row: str):
    """The log names the row that was refused, and so does the service's own."""
    [event] = storage.events_of(request_id)
    assert event["outcome"] == "failed" and row in event["reason"], event
    assert row in storage.log.read_text()


def verify(storage, *more) -> tuple[int, dict]:
    done = subprocess.run([BINARY, "storage", "verify", "--data-dir", storage.data_dir, "--json", *more], capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout)


def bad(storage, *more) -> dict[str, dict]:
    """What a verification finds, by set; its exit code says the same."""
    code, report = verify(storage, *more)
    found = {entry["set"]: entry for entry in report["found"] if entry["verdict"] != "whole" or entry["bad_blobs"]}
    assert set(report["bad"]) == set(found) and (code == 0) == (not found) == report["done"], report
    return found


def test_a_planted_envelope(stored, keks):
    """Of a bucket, and of an object: a DEK that somebody else has wrapped under our KEK."""
    storage, index = stored
    rows = index.rows()

    def plant(record):
        record["deks"][0]["envelope"]["wrapped"] = record["deks"][0]["envelope"]["wrapped"][::-1]
    name = b"Bone"
    s3 = again(storage, lambda: index.put(name, index.with_record(rows[name], plant)))
    told(storage, refused(s3.get_object, Bucket="one", Key="a"), "bucket one")
    told(storage, refused(s3.put_object, Bucket="one", Key="a", Body=b"under his key"), "bucket one")
    refused(s3.list_objects_v2, Bucket="one")
    refused(s3.list_buckets)
    assert s3.get_object(Bucket="two", Key="a")["Body"].read() == BODY + b"a", "the other bucket is not touched"
    storage.stop()
    index.put(name, rows[name])
    own = index.object("two", "own")

    def plant_own(record):
        record["encryption"]["envelope"]["kek_url"] = keks[1] + "/" + "0" * 32
    s3 = again(storage, lambda: index.put(own, index.with_record(rows[own], plant_own)))
    told(storage, refused(s3.get_object, Bucket="two", Key="own"), "object own")
    refused(s3.copy_object, Bucket="two", Key="copy", CopySource={"Bucket": "two", "Key": "own"})
    refused(s3.put_object, Bucket="two", Key="own", Body=b"over it")
    s3 = again(storage, lambda: index.put(own, rows[own]))
    assert s3.get_object(Bucket="two", Key="own")["Body"].read() == BODY, "it was these rows"
    assert bad(storage) == {}


def test_encryption_turned_off(stored):
    """A record of an object in clear, which a service with encryption off writes; and a bucket's default."""
    storage, index = stored
    rows, name = index.rows(), index.object("one", "a")
    stream = bytes.fromhex(index.record(name)["stream"]["id"])

    def off(record):
        record["encryption"] = {"mode": "off"}
        record["size"] = record["stream"]["size"] = 5
        record["mac"] = ""
    header = bytearray(128)
    header[:7] = b"HFOS\x01\x00\x10"
    header[24:40], header[40:56], header[56:72] = index.bucket("one"), bytes.fromhex(index.record(name)["object"]), stream
    planted = index.with_record(rows[name], off, bytes(header) + b"clear")
    s3 = again(storage, lambda: index.put(name, planted))
    told(storage, refused(s3.get_object, Bucket="one", Key="a"), "object a")
    told(storage, refused(s3.head_object, Bucket="one", Key="a"), "object a")
    refused(s3.list_objects_v2, Bucket="one")
    assert b"clear" not in s3.get_object(Bucket="one", Key="b")["Body"].read()
    found = bad(storage)
    assert set(found) == {"one"} and found["one"]["verdict"] == "forged" and "object a" in found["one"]["names"][0]


def test_a_row_under_another_name(stored):
    storage, index = stored
    rows = index.rows()
    a, b = index.object("one", "a"), index.object("one", "b")
    s3 = again(storage, lambda: index.put(a, rows[b]))
    told(storage, refused(s3.get_object, Bucket="one", Key="a"), "object a")
    assert s3.get_object(Bucket="one", Key="b")["Body"].read() == BODY + b"b"
    # A bucket under the name of another.
    s3 = again(storage, lambda: (index.put(a, rows[a]), index.put(b"Bone", rows[b"Btwo"])))
    told(storage, refused(s3.get_object, Bucket="one", Key="a"), "bucket one")
    s3 = again(storage, lambda: index.put(b"Bone", rows[b"Bone"]))
    assert s3.get_object(Bucket="one", Key="a")["Body"].read() == BODY + b"a"


def test_what_is_dropped_or_put_back_is_found(stored):
    storage, index = stored
    before = index.rows()
    a, b, c = (index.object("one", key) for key in "abc")
    s3 = again(storage)
    s3.put_object(Bucket="one", Key="a", Body=b"newer")
    s3.delete_object(Bucket="one", Key="b")
    s3.put_object(Bucket="one", Key="b", Body=b"made again")
    s3.delete_object(Bucket="two", Key="c")
    assert bad(storage) == {}, "the control"
    storage.stop()
    after = index.rows()
    again(storage, lambda: index.remove(c))
    found = bad(storage)
    assert set(found) == {"one"} and (found["one"]["rows"], found["one"]["expected"]) == (2, 3)
    for what, name in (("older", a), ("deleted and made again", b)):
        s3 = again(storage, lambda: (index.put(c, after[c]), index.put(a, after[a]), index.put(b, after[b]), index.put(name, before[name])))
        found = bad(storage)
        assert set(found) == {"one"} and found["one"]["verdict"] == "changed", what
        assert bad(storage, "--bucket", "two") == {} and set(bad(storage, "--bucket", "one")) == {"one"}
    again(storage, lambda: (index.put(a, after[b]), index.put(b, after[a])))
    found = bad(storage)
    assert found["one"]["forged"] == 2, "swapped"
    storage.stop()
    index.put(a, after[a])
    index.put(b, after[b])
    gone = index.object("two", "c")
    again(storage, lambda: index.put(gone, before[gone]))
    found = bad(storage)
    assert set(found) == {"two"} and found["two"]["rows"] == found["two"]["expected"] + 1
    again(storage, lambda: index.remove(gone))
    assert bad(storage) == {}, "it was these rows"
    text = subprocess.run([BINARY, "storage", "verify", "--data-dir", storage.data_dir], capture_output=True, text=True)
    assert text.returncode == 0 and "whole    one" in text.stdout and "0 not whole" in text.stdout
    events = [event for event in storage.events() if event["operation"] == "VerifyIndex"]
    assert {event["outcome"] for event in events} == {"allowed", "failed"}


def test_an_operator_accepts_what_is_there(stored):
    storage, index = stored
    rows, a, b = index.rows(), index.object("one", "a"), index.object("one", "b")
    s3 = again(storage, lambda: (index.put(a, rows[b]), index.remove(b)))
    assert set(bad(storage)) == {"one"}
    refused(s3.delete_object, Bucket="one", Key="a")
    done = subprocess.run([BINARY, "storage", "verify", "--data-dir", storage.data_dir, "--accept", "one"], capture_output=True, text=True)
    assert done.returncode == 0 and "1 not ours" in done.stdout, done
    assert bad(storage) == {}
    assert [entry["Key"] for entry in s3.list_objects_v2(Bucket="one")["Contents"]] == ["c"]
    storage.settle()
    [event] = [event for event in storage.events() if event["operation"] == "AcceptIndexRows"]
    told = event["context"]
    assert (told["set"], told["forged_rows_removed"], told["rows"], told["expected_rows"]) == ("one", "1", "1", "3")
    assert subprocess.run([BINARY, "storage", "verify", "--data-dir", storage.data_dir, "--accept", "none"], capture_output=True).returncode != 0
    s3 = again(storage)
    assert bad(storage) == {}


def test_a_blob_whose_row_was_dropped_is_kept(stored):
    storage, index = stored
    s3 = again(storage)
    body = os.urandom(200_000)
    s3.put_object(Bucket="one", Key="big", Body=body)
    assert bad(storage, "--blobs") == {}
    storage.stop()
    [blob] = storage.blobs()
    rows, name = index.rows(), index.object("one", "big")
    os.utime(blob, (time.time() - 2 * 86400,) * 2)
    again(storage, lambda: index.remove(name))
    deadline = time.monotonic() + 10
    while storage.metric("holdfast_storage_orphan_blobs") != 1:
        assert time.monotonic() < deadline, storage.log.read_text()
        time.sleep(0.05)
    assert storage.blobs() == [blob]
    s3 = again(storage, lambda: index.put(name, rows[name]))
    assert s3.get_object(Bucket="one", Key="big")["Body"].read() == body
    content = blob.read_bytes()
    blob.write_bytes(content[:40] + bytes(16) + content[56:])
    assert bad(storage, "--bucket", "one") == {}, "rows alone"
    assert bad(storage, "--blobs")["one"]["bad_blob_names"] == [blob.name]
    blob.unlink()
    assert bad(storage, "--blobs")["one"]["bad_blobs"] == 1
    blob.write_bytes(content)
    assert bad(storage, "--blobs") == {}


def test_an_index_of_another_instance(stored, make_storage):
    """Its file is refused at the start."""
    storage, index = stored
    other = make_storage()
    other.stop()
    ours = index.path.read_bytes()
    index.path.write_bytes((other.data_dir / "index.redb").read_bytes())
    with pytest.raises(AssertionError, match="belongs to instance"):
        storage.start()
    index.path.write_bytes(ours)
    storage.start()
    assert storage.client().get_object(Bucket="one", Key="a")["Body"].read() == BODY + b"a"
    assert bad(storage) == {}


def test_names_that_no_row_has(stored):
    """They are found, hide nothing, and can be accepted away."""
    storage, index = stored
    names = [b"", b"O" + b"q" * 15, b"Zfoo", b"B\x1b[2Jx"]
    again(storage, lambda: [index.put(name, b"x" * 40) for name in names])
    found = bad(storage)
    assert set(found) == {"*unknown-", "*unknown-4f", "*unknown-5a", "*buckets"}, found
    said = subprocess.run([BINARY, "storage", "verify", "--data-dir", storage.data_dir], capture_output=True, text=True)
    assert "bucket ?[2Jx" in said.stdout and "\x1b" not in said.stdout + said.stderr
    for called in found:
        accepted = subprocess.run([BINARY, "storage", "verify", "--data-dir", storage.data_dir, "--accept", called], capture_output=True, text=True)
        assert accepted.returncode == 0, accepted.stderr
    assert bad(storage) == {}
    storage.stop()
    assert not set(names) & set(index.rows())


def test_an_acceptance_that_the_log_did_not_tell_is_none(stored):
    """The log cannot be opened at the start that accepts: the next one has to accept it again."""
    storage, index = stored
    kept = IndexFile(index.path, "sets v2")
    kept.remove(index.bucket("one"))
    audit, config = storage.data_dir / "audit", storage.directory / "storage.toml"
    text = config.read_text()

    def starts(accept: bool) -> bool:
        config.write_text(text + "\n[audit]\naccept_loss = true\n" if accept else text)
        try:
            storage.start()
        except AssertionError:
            return False
        return True
    assert not starts(False)
    audit.rename(audit.with_name("away"))
    audit.write_text("no directory")
    assert not starts(True)
    audit.unlink()
    audit.with_name("away").rename(audit)
    assert not starts(False), "nothing was accepted"
    assert starts(True)
    assert [event["operation"] for event in storage.events()].count("AcceptLoss") == 1
    storage.stop()
    assert starts(False)


@pytest.mark.parametrize("file", ["audit", "records.redb.new"])
def test_links_lead_nowhere(stored, file):
    """A link in the place of a file that is cut or made at a start: what it leads to is not touched."""
    storage, _ = stored
    victim = storage.directory / "victim"
    victim.write_text("everything")
    link = storage.data_dir / file
    if file == "audit":
        last = max(int(path.stem.split("-")[1]) for path in link.glob("audit-*.jsonl"))
        link = link / f"audit-{last + 1:012}.jsonl"
    link.symlink_to(victim)
    try:
        storage.start()
        assert file != "audit", "it was taken for a segment"
    except AssertionError:
        assert "is a symbolic link" in storage.log.read_text()
    assert victim.read_text() == "everything"
    storage.stop()
    link.unlink(missing_ok=True)
    storage.start()


def test_each_start_looks_at_the_rows(stored):
    """A row that is removed, until its owner has written and deleted another one of that name, and put back then, would even out: it is told in between,
    and what was left under that name is remembered."""
    storage, index = stored
    row = index.object("one", "a")
    first = index.rows()[row]

    def told() -> list[str]:
        return [event["context"]["bad"] for event in storage.events() if event["operation"] == "CheckIndexAtStart"]
    assert told() == []
    s3 = again(storage, lambda: index.remove(row))
    deadline = time.monotonic() + 30
    while told() != ["one"]:
        assert time.monotonic() < deadline, storage.events()
        time.sleep(0.05)
    s3.put_object(Bucket="one", Key="a", Body=b"another")
    s3.delete_object(Bucket="one", Key="a")
    with pytest.raises(AssertionError, match="the store is not what its last commit"):
        again(storage, lambda: index.put(row, first))
    again(storage, lambda: index.remove(row))
    assert bad(storage) != {}, "the first row is missing still"
    assert set(told()) == {"one"}


SOMEBODY = 65534
LIAR = """
import os, socket, sys
os.setuid(int(sys.argv[2]))
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("there", flush=True)
while True:
    stream, _ = listener.accept()
    heard = stream.recv(9999)
    if heard:
        stream.sendall(b'{"done":true,"sets":1,"rows":1,"bad":[]}\\n')
        print(heard, flush=True)
    stream.close()
"""


def test_a_socket_of_somebody_else(stored):
    """Where the service's socket is, a file in its directory says: nothing is asked of another user who has put his own there."""
    assert os.getuid() == 0, "this test becomes another user, as root"
    storage, _ = stored
    storage.start()
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o777)
        path = f"{directory}/liar.sock"
        for user in (0, SOMEBODY):
            pathlib.Path(path).unlink(missing_ok=True)
            liar = subprocess.Popen([sys.executable, "-c", LIAR, path, str(user)], stdout=subprocess.PIPE, text=True)
            try:
                assert liar.stdout.readline() == "there\n"
                (storage.data_dir / "admin-socket.path").write_text(path)
                done = subprocess.run([BINARY, "storage", "verify", "--data-dir", storage.data_dir], capture_output=True, text=True)
            finally:
                liar.kill()
            said = liar.communicate()[0]
            if user == SOMEBODY:
                assert done.returncode == 3 and "nothing was asked" in done.stderr and said == "", (done, said)
            else:
                assert done.returncode == 0 and "verify" in said, "control: whoever runs the service is believed"
