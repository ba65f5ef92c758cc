"""minio-py, obstore (the Rust crate object_store) and s3fs (aiobotocore)."""
import datetime
import io
import os

import minio
import obstore
import pytest
import requests
import s3fs
import urllib3
from conftest import EMOJI
from minio.commonconfig import REPLACE, ComposeSource, CopySource, Tags
from minio.datatypes import PostPolicy
from minio.deleteobjects import DeleteObject
from minio.error import S3Error
from minio.sse import SseCustomerKey, SseKMS, SseS3
from minio.sseconfig import Rule, SSEConfig
from minio.versioningconfig import ENABLED, VersioningConfig
from obstore.store import S3Store

MIB = 1024 * 1024
ODD = ["plain", "a b+c%41&<>\"'", EMOJI, "ü/ñ", "𝄞", "tab\tin", "\U0010ffff", "~._-!*()"]


@pytest.fixture
def minio_client(door, bucket):
    pool = urllib3.PoolManager(cert_reqs="CERT_REQUIRED", ca_certs=door.ca, retries=False)
    client = minio.Minio(door.host, access_key=door.access_key, secret_key=door.secret, secure=door.secure, http_client=pool)
    client.make_bucket(bucket)
    return client


class refused:
    """`with refused("NoSuchKey"): ...` by minio-py's error."""

    def __init__(self, code: str):
        self.code = code

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace) -> bool:
        assert error is not None, f"{self.code} was expected, and nothing was refused"
        assert not isinstance(error, S3Error) or error.code == self.code, error
        return isinstance(error, S3Error)


def test_minio_objects(minio_client, bucket, tmp_path):
    client = minio_client
    assert client.bucket_exists(bucket) and not client.bucket_exists(bucket + "-none")
    assert bucket in [found.name for found in client.list_buckets()]
    with refused("BucketAlreadyOwnedByYou"):
        client.make_bucket(bucket)
    data = os.urandom(12 * MIB)
    for name in ODD:
        client.put_object(bucket, name, io.BytesIO(name.encode()), len(name.encode()), metadata={"who": "me"}, content_type="text/plain")
        with client.get_object(bucket, name) as answer:
            assert answer.data == name.encode()
        stat = client.stat_object(bucket, name)
        assert stat.metadata["x-amz-meta-who"] == "me" and stat.content_type == "text/plain" and stat.size == len(name.encode())
    assert {item.object_name for item in client.list_objects(bucket, recursive=True)} == set(ODD)
    assert {item.object_name for item in client.list_objects(bucket)} == {name if "/" not in name else name.split("/")[0] + "/" for name in ODD}
    # Of unknown length, in parts sent by three threads.
    client.put_object(bucket, "stream", io.BytesIO(data), -1, part_size=5 * MIB)
    with client.get_object(bucket, "stream", offset=5 * MIB - 3, length=7) as answer:
        assert answer.data == data[5 * MIB - 3:5 * MIB + 4]
    (tmp_path / "up").write_bytes(data)
    client.fput_object(bucket, "file", str(tmp_path / "up"), part_size=5 * MIB)
    client.fget_object(bucket, "file", str(tmp_path / "down"))
    assert (tmp_path / "down").read_bytes() == data
    client.put_object(bucket, "empty", io.BytesIO(b""), 0)
    assert client.stat_object(bucket, "empty").size == 0
    with refused("NoSuchKey"):
        client.get_object(bucket, "none")
    with refused("NoSuchKey"):
        client.stat_object(bucket, "none")
    with refused("NoSuchBucket"):
        client.put_object(bucket + "-none", "x", io.BytesIO(b"x"), 1)
    with refused("BucketNotEmpty"):
        client.remove_bucket(bucket)
    names = ODD + ["stream", "file", "empty", "never there"]
    assert list(client.remove_objects(bucket, [DeleteObject(name) for name in names])) == []
    assert list(client.list_objects(bucket, recursive=True)) == []
    client.remove_bucket(bucket)
    assert not client.bucket_exists(bucket)


def test_minio_copies(minio_client, bucket):
    client = minio_client
    data = os.urandom(6 * MIB)
    etag = client.put_object(bucket, EMOJI, io.BytesIO(data), len(data), metadata={"who": "me"}).etag
    client.copy_object(bucket, "copy", CopySource(bucket, EMOJI))
    assert client.stat_object(bucket, "copy").metadata["x-amz-meta-who"] == "me"
    client.copy_object(bucket, "copy", CopySource(bucket, EMOJI, match_etag=etag), metadata={"who": "you"}, metadata_directive=REPLACE)
    assert client.stat_object(bucket, "copy").metadata["x-amz-meta-who"] == "you"
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    earlier = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    for condition in ({"match_etag": "0" * 32}, {"not_match_etag": etag}, {"unmodified_since": earlier}):
        with refused("PreconditionFailed"):
            client.copy_object(bucket, "not-made", CopySource(bucket, EMOJI, **condition))
    client.copy_object(bucket, "made", CopySource(bucket, EMOJI, modified_since=earlier, unmodified_since=later))
    sources = [ComposeSource(bucket, EMOJI), ComposeSource(bucket, EMOJI, offset=1, length=5 * MIB), ComposeSource(bucket, "copy", offset=7, length=9)]
    client.compose_object(bucket, "composed", sources)
    with client.get_object(bucket, "composed") as answer:
        assert answer.data == data + data[1:1 + 5 * MIB] + data[7:16]
    with refused("PreconditionFailed"):
        client.get_object(bucket, EMOJI, request_headers={"If-Match": '"none"'})
    assert [item.object_name for item in client.list_objects(bucket, start_after="composed")] == ["copy", "made", "päth/"]


def test_minio_append(minio_client, bucket):
    """An append, which S3 has in directory buckets, is refused, and the object is what it was."""
    client = minio_client
    client.put_object(bucket, "once", io.BytesIO(b"first"), 5)
    with refused("NotImplemented"):
        client.append_object(bucket, "once", io.BytesIO(b" second"), 7)
    with client.get_object(bucket, "once") as answer:
        assert answer.data == b"first"


def test_minio_presigned(minio_client, bucket, door):
    client, verify = minio_client, door.ca or True
    put = client.presigned_put_object(bucket, EMOJI, expires=datetime.timedelta(minutes=5))
    assert requests.put(put, data=b"presigned", verify=verify).ok
    get = client.presigned_get_object(bucket, EMOJI, response_headers={"response-content-type": "text/x-odd"})
    answer = requests.get(get, verify=verify)
    assert answer.content == b"presigned" and answer.headers["Content-Type"] == "text/x-odd"
    assert requests.get(get[:-1] + ("0" if get[-1] != "0" else "1"), verify=verify).status_code == 403
    assert requests.delete(get, verify=verify).status_code == 403, "signed for one method"
    policy = PostPolicy(bucket, datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=5))
    policy.add_starts_with_condition("key", "form/")
    policy.add_content_length_range_condition(1, 100)
    form = client.presigned_post_policy(policy) | {"key": "form/${filename}"}
    url = f"{door.url}/{bucket}"
    assert requests.post(url, data=form, files={"file": ("näme.txt", b"posted")}, verify=verify).status_code == 204
    with client.get_object(bucket, "form/näme.txt") as found:
        assert found.data == b"posted"
    assert requests.post(url, data=form, files={"file": ("big", b"x" * 101)}, verify=verify).status_code == 400
    assert requests.post(url, data=form | {"key": "other/x"}, files={"file": ("x", b"x")}, verify=verify).status_code == 403


def test_minio_versions_tags_encryption(minio_client, bucket, door):
    client = minio_client
    client.set_bucket_versioning(bucket, VersioningConfig(ENABLED))
    assert client.get_bucket_versioning(bucket).status == "Enabled"
    made = [client.put_object(bucket, "v", io.BytesIO(bytes([n])), 1).version_id for n in range(3)]
    client.remove_object(bucket, "v")
    with refused("NoSuchKey"):
        client.get_object(bucket, "v")
    with client.get_object(bucket, "v", version_id=made[1]) as answer:
        assert answer.data == b"\1"
    listed = list(client.list_objects(bucket, include_version=True))
    assert len(listed) == 4 and sum(item.is_delete_marker for item in listed) == 1
    assert list(client.remove_objects(bucket, [DeleteObject("v", item.version_id) for item in listed])) == []
    assert list(client.list_objects(bucket, include_version=True)) == []
    tags = Tags.new_object_tags()
    tags["a b"] = "c+d=e"
    client.put_object(bucket, "t", io.BytesIO(b"t"), 1, tags=tags)
    assert client.get_object_tags(bucket, "t") == tags
    client.delete_object_tags(bucket, "t")
    assert not client.get_object_tags(bucket, "t")
    client.put_object(bucket, "s3", io.BytesIO(b"x"), 1, sse=SseS3())
    client.put_object(bucket, "kms", io.BytesIO(b"x"), 1, sse=SseKMS(door.kek, {}))
    assert client.stat_object(bucket, "kms").metadata["x-amz-server-side-encryption"] == "aws:kms"
    client.set_bucket_encryption(bucket, SSEConfig(Rule.new_sse_kms_rule(door.kek)))
    assert client.get_bucket_encryption(bucket).rule.kms_master_key_id == door.kek
    client.put_object(bucket, "default", io.BytesIO(b"x"), 1)
    assert client.stat_object(bucket, "default").metadata["x-amz-server-side-encryption-aws-kms-key-id"] == door.kek
    client.delete_bucket_encryption(bucket)
    if door.secure:
        key = SseCustomerKey(os.urandom(32))
        data = os.urandom(6 * MIB)
        client.put_object(bucket, "own", io.BytesIO(data), len(data), sse=key, part_size=5 * MIB)
        with client.get_object(bucket, "own", ssec=key) as answer:
            assert answer.data == data
        with refused("InvalidRequest"):
            client.get_object(bucket, "own")


@pytest.fixture
def store(door, bucket, monkeypatch, minio_client):
    if door.ca:
        monkeypatch.setenv("SSL_CERT_FILE", door.ca)
    return S3Store(bucket, endpoint=door.url, access_key_id=door.access_key, secret_access_key=door.secret, region="us-east-1",
                   client_options={"allow_http": True}, config={"virtual_hosted_style_request": False})


def test_obstore(store):
    data = os.urandom(11 * MIB)
    names = [name for name in ODD if name != "tab\tin"] + [f"n/{i:04}" for i in range(20)]
    for name in names:
        obstore.put(store, name, name.encode())
    listed = {meta["path"] for batch in obstore.list(store, chunk_size=5) for meta in batch}
    assert listed == set(names)
    for name in names:
        assert obstore.get(store, name).bytes().to_bytes() == name.encode()
    found = obstore.list_with_delimiter(store, "n")
    assert len(found["objects"]) == 20 and not found["common_prefixes"]
    assert [meta["path"] for batch in obstore.list(store, "n", offset="n/0017") for meta in batch] == ["n/0018", "n/0019"]
    obstore.put(store, "big", data, chunk_size=5 * MIB, use_multipart=True, attributes={"Content-Type": "text/x-odd", "who": "me"})
    got = obstore.get(store, "big")
    assert got.attributes["Content-Type"] == "text/x-odd" and got.attributes["who"] == "me"
    assert got.bytes().to_bytes() == data
    assert b"".join(bytes(part) for part in obstore.get(store, "big").stream(min_chunk_size=MIB)) == data
    assert obstore.get_range(store, "big", start=100, length=50).to_bytes() == data[100:150]
    assert [part.to_bytes() for part in obstore.get_ranges(store, "big", starts=[0, 9 * MIB], ends=[9, 9 * MIB + 7])] == [data[:9], data[9 * MIB:9 * MIB + 7]]
    with obstore.open_writer(store, "written", buffer_size=5 * MIB) as writer:
        for start in range(0, len(data), MIB):
            writer.write(data[start:start + MIB])
    reader = obstore.open_reader(store, "written")
    reader.seek(6 * MIB)
    assert reader.read(10).to_bytes() == data[6 * MIB:6 * MIB + 10]
    obstore.copy(store, EMOJI, "copied")
    obstore.rename(store, "copied", "renamed")
    assert obstore.get(store, "renamed").bytes().to_bytes() == EMOJI.encode()
    with pytest.raises(FileNotFoundError):
        obstore.head(store, "copied")
    # One DeleteObjects for all, the emoji in its body.
    obstore.delete(store, names + ["big", "written", "renamed"])
    assert [meta for batch in obstore.list(store) for meta in batch] == []


def test_obstore_conditions(store, door):
    made = obstore.put(store, "once", b"first", mode="create")
    with pytest.raises(obstore.exceptions.AlreadyExistsError):
        obstore.put(store, "once", b"second", mode="create")
    with pytest.raises(obstore.exceptions.PreconditionError):
        obstore.put(store, "once", b"second", mode={"e_tag": '"0123"'})
    obstore.put(store, "once", b"second", mode={"e_tag": made["e_tag"]})
    with pytest.raises(obstore.exceptions.PreconditionError):
        obstore.put(store, "once", b"third", mode={"e_tag": made["e_tag"]})
    assert obstore.get(store, "once").bytes().to_bytes() == b"second"
    with pytest.raises(obstore.exceptions.NotModifiedError):
        obstore.get(store, "once", options={"if_none_match": obstore.head(store, "once")["e_tag"]})
    with pytest.raises(obstore.exceptions.PreconditionError):
        obstore.get(store, "once", options={"if_match": made["e_tag"]})
    # A copy that overwrites nothing: by a multipart upload of copied parts whose completion is conditional, or by a header.
    obstore.put(store, "source", b"source")
    config = {"virtual_hosted_style_request": False, "endpoint": door.url, "access_key_id": door.access_key, "secret_access_key": door.secret,
              "region": "us-east-1"}
    for way in ("header-with-status:If-None-Match:*:412", "multipart"):
        careful = S3Store(store.config["bucket"], client_options={"allow_http": True}, config=config | {"copy_if_not_exists": way})
        fresh = f"fresh-{way[:6]}"
        obstore.copy(careful, "source", fresh, overwrite=False)
        assert obstore.get(store, fresh).bytes().to_bytes() == b"source"
        with pytest.raises(obstore.exceptions.AlreadyExistsError):
            obstore.copy(careful, "source", "once", overwrite=False)
        assert obstore.get(store, "once").bytes().to_bytes() == b"second"
    url = obstore.sign(store, "GET", "once", datetime.timedelta(minutes=1))
    assert requests.get(url, verify=door.ca or True).content == b"second"


@pytest.fixture
def fs(door, minio_client):
    made = s3fs.S3FileSystem(key=door.access_key, secret=door.secret, endpoint_url=door.url, skip_instance_cache=True, use_listings_cache=False,
                             client_kwargs={"region_name": "us-east-1", "verify": door.ca})
    return made


def test_s3fs(fs, bucket, tmp_path):
    data = os.urandom(12 * MIB)
    with fs.open(f"{bucket}/deep/big", "wb", block_size=5 * MIB) as file:
        file.write(data)
    with fs.open(f"{bucket}/deep/big", "rb", block_size=MIB) as file:
        assert file.read(10) == data[:10]
        file.seek(-100, 2)
        assert file.read() == data[-100:]
    assert fs.info(f"{bucket}/deep/big")["size"] == len(data) and fs.isdir(f"{bucket}/deep")
    with fs.open(f"{bucket}/deep/big", "ab", block_size=5 * MIB) as file:
        file.write(b"end")
    assert fs.cat_file(f"{bucket}/deep/big", start=-5) == data[-2:] + b"end"
    names = [f"{bucket}/{name}" for name in ODD]
    fs.pipe({name: name.encode() for name in names})
    assert fs.cat(names) == {name: name.encode() for name in names}
    assert set(fs.find(bucket)) == {*names, f"{bucket}/deep/big"}
    assert fs.glob(f"{bucket}/deep/*") == [f"{bucket}/deep/big"]
    fs.cp_file(f"{bucket}/{EMOJI}", f"{bucket}/copied")
    fs.mv(f"{bucket}/copied", f"{bucket}/moved")
    assert fs.cat(f"{bucket}/moved") == f"{bucket}/{EMOJI}".encode() and not fs.exists(f"{bucket}/copied")
    # Larger than one copy may be by the client's setting: copied in parts.
    fs.cp_file(f"{bucket}/deep/big", f"{bucket}/big2")
    assert fs.du(f"{bucket}/big2") == len(data) + 3
    assert fs.checksum(f"{bucket}/big2") != fs.checksum(f"{bucket}/moved")
    fs.put_tags(f"{bucket}/moved", {"a": "b"})
    assert fs.get_tags(f"{bucket}/moved") == {"a": "b"}
    fs.setxattr(f"{bucket}/moved", who="me")
    assert fs.getxattr(f"{bucket}/moved", "who") == "me"
    (tmp_path / "up/sub").mkdir(parents=True)
    (tmp_path / "up/sub/🔑").write_bytes(b"key")
    fs.put(str(tmp_path / "up"), f"{bucket}/tree", recursive=True)
    fs.get(f"{bucket}/tree", str(tmp_path / "down"), recursive=True)
    assert (tmp_path / "down/sub/🔑").read_bytes() == b"key"
    with pytest.raises(FileNotFoundError):
        fs.cat(f"{bucket}/none")
    # Exclusive creation is If-None-Match, of one request and of a multipart upload.
    for name, size in (("x1", 5), ("x2", 11 * MIB)):
        fs.pipe_file(f"{bucket}/{name}", b"a" * size, mode="create", chunksize=5 * MIB)
        with pytest.raises(FileExistsError):
            fs.pipe_file(f"{bucket}/{name}", b"b" * size, mode="create", chunksize=5 * MIB)
        assert fs.cat_file(f"{bucket}/{name}", start=0, end=3) == b"aaa"
    fs.rm(bucket, recursive=True)
    assert not fs.exists(bucket)
