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



@pytest.fixture
def fs(door, minio_client):
    made = s3fs.S3FileSystem(key=door.access_key, secret=door.secret, endpoint_url=door.url, skip_instance_cache=True, use_listings_cache=False,
                             client_kwargs={"region_name": "us-east-1", "verify": door.ca})
    return made
