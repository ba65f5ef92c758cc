"""The S3 dialect, for the cut battery: buckets, objects, versions, uploads in parts, forms."""
import base64
import hashlib
import hmac
import json
import time
import urllib.parse
import xml.etree.ElementTree as ElementTree

from battery import Operation
from cutting import Answer, Door, Request
from managed_hsm import ADMIN, CRYPTO_OFFICER, CRYPTO_USER, ENCRYPTION_USER, STORAGE, Hsm
from signed import signed
from storage_service import Storage

BUCKET, VERSIONED = "cuts", "versioned"
SMALL, LARGE = b"small body " * 20, b"large body, in a file of its own " * 10_000
TAGS = "<Tagging><TagSet><Tag><Key>mark</Key><Value>{}</Value></Tag></TagSet></Tagging>"
KMS_ENCRYPTION = ("<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>aws:kms</SSEAlgorithm>"
                  "</ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>")
PARTS = "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{}</ETag></Part></CompleteMultipartUpload>"
XMLNS = "{http://s3.amazonaws.com/doc/2006-03-01/}"
SECONDS_TO_CLEAR = 60


def md5(body: bytes) -> dict:
    return {"Content-MD5": base64.b64encode(hashlib.md5(body).digest()).decode()}


class S3:
    def __init__(self, directory, cuts: int):
        self.hsm = Hsm(directory / "hsm")
        self.hsm.start()
        for role in (CRYPTO_USER, CRYPTO_OFFICER):
            self.hsm.grant(role, ADMIN[1])
        self.hsm.grant(ENCRYPTION_USER, STORAGE[1])
        self.kek, self.other_kek = self.hsm.create_kek("kek"), self.hsm.create_kek("other-kek")
        self.storage = Storage(directory / "s3", self.hsm, self.kek).start()
        self.door = Door(self.storage.port)
        for bucket in (BUCKET, VERSIONED):
            self.do("PUT", f"/{bucket}")
        self.enable_versions(VERSIONED)
        self.do("PUT", f"/{BUCKET}/source", LARGE)
        self.operations = self.of_buckets() + self.of_objects() + self.of_uploads() + [self.form()] + self.uses()

    # Requests.

    def request(self, method: str, path: str, body: bytes = b"", mark: str = "", headers: dict | None = None) -> Request:
        headers = {"amz-sdk-invocation-id": mark, "User-Agent": mark or "battery"} | (headers or {})
        if body.startswith(b"<"):
            headers |= md5(body)
        return Request.http(method, path, signed(self.storage, method, path, body, headers), body)

    def ask(self, method: str, path: str, body: bytes = b"", **more) -> Answer:
        return self.door.call(self.request(method, path, body, **more))

    def do(self, method: str, path: str, body: bytes = b"", **more) -> Answer:
        answer = self.ask(method, path, body, **more)
        assert answer.status // 100 == 2, (method, path, answer.status, answer.body[:300])
        return answer

    def send(self, operation: Operation, request: Request) -> Answer:
        return self.door.call(request)

    def enable_versions(self, bucket: str) -> None:
        self.do("PUT", f"/{bucket}?versioning=", b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>")

    # What there is.

    def of_buckets(self) -> list[Operation]:
        def bucket(*more):
            def prepare(mark):
                self.do("PUT", f"/{mark}")
                for query, body in more:
                    self.do("PUT", f"/{mark}?{query}=", body.encode())
                return mark
            return prepare

        def change(name, prepare, method, query, body, happened):
            def request(subject, mark):
                return self.request(method, f"/{mark}" + (f"?{query}=" if query else ""), body.format(mark).encode(), mark)
            return Operation(name, prepare, request, lambda told, subject, mark: happened(told.get(f"bucket {mark}", {}), mark), self.probe_bucket)

        encrypted, tagged = bucket(("encryption", KMS_ENCRYPTION)), bucket(("tagging", TAGS.format("old")))
        versioning = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
        return [
            change("CreateBucket", str, "PUT", "", "", lambda told, mark: bool(told)),
            change("DeleteBucket", bucket(), "DELETE", "", "", lambda told, mark: not told),
            change("PutBucketVersioning", bucket(), "PUT", "versioning", versioning, lambda told, mark: "Enabled" in told["versioning"]),
            change("PutBucketEncryption", bucket(), "PUT", "encryption", KMS_ENCRYPTION, lambda told, mark: "aws:kms" in told["encryption"]),
            change("DeleteBucketEncryption", encrypted, "DELETE", "encryption", "", lambda told, mark: "aws:kms" not in told["encryption"]),
            change("PutBucketTagging", bucket(), "PUT", "tagging", TAGS, lambda told, mark: mark in told["tagging"]),
            change("DeleteBucketTagging", tagged, "DELETE", "tagging", "", lambda told, mark: "old" not in told["tagging"]),
        ]

    def of_objects(self) -> list[Operation]:
        def put(mark, bucket=BUCKET, body=SMALL):
            self.do("PUT", f"/{bucket}/{mark}", body)
            return mark

        def tagged(mark):
            put(mark)
            self.do("PUT", f"/{BUCKET}/{mark}?tagging=", TAGS.format("old").encode())
            return mark

        def several(mark):
            for number in range(3):
                put(f"{mark}/{number}")

        def change(name, prepare, method, query, body, happened, title="", bucket=BUCKET, **headers):
            def request(subject, mark):
                sent = body if isinstance(body, bytes) else body.format(mark).encode()
                given = {key.replace("_", "-"): value for key, value in headers.items()}
                return self.request(method, f"/{bucket}/{mark}{query}", sent, mark, given)
            return Operation(name, prepare, request, lambda told, subject, mark: happened(told.get(f"object {bucket}/{mark}"), mark),
                             lambda subject, mark, told: self.probe_object(bucket, mark), title)

        def there(told, mark):
            return told is not None

        def versions(told, mark):
            return len((told or {"versions": []})["versions"])

        def gone(told, subject, mark):
            left = sum(f"object {BUCKET}/{mark}/{number}" in told for number in range(3))
            assert left in (0, 3), f"{left} of 3 are left"
            return left == 0

        def doomed(mark):
            return "<Delete>" + "".join(f"<Object><Key>{mark}/{number}</Key></Object>" for number in range(3)) + "</Delete>"

        update = "<ObjectEncryption><SSE-KMS><KMSKeyArn>{}</KMSKeyArn></SSE-KMS></ObjectEncryption>".format(self.other_kek)

        def under_kms(mark):
            self.do("PUT", f"/{BUCKET}/{mark}", SMALL, headers={"x-amz-server-side-encryption": "aws:kms"})
            return mark

        def other_kek(told, mark):
            return told is not None and "other-kek" in told["versions"][0]["headers"].get("x-amz-server-side-encryption-aws-kms-key-id", "")

        return [
            change("PutObject", str, "PUT", "", SMALL, there), change("PutObject", str, "PUT", "", LARGE, there, "PutObject-large"),
            change("PutObject", str, "PUT", "", LARGE, there, "PutObject-kms", x_amz_server_side_encryption="aws:kms"),
            change("PutObject", put, "PUT", "", LARGE, lambda told, mark: told["versions"][0]["headers"]["content-length"] == str(len(LARGE)), "PutObject-over"),
            change("PutObject", lambda mark: put(mark, VERSIONED), "PUT", "", SMALL, lambda told, mark: versions(told, mark) - 1, "PutObject-version", VERSIONED),
            change("CopyObject", str, "PUT", "", b"", there, x_amz_copy_source=f"/{BUCKET}/source"),
            change("DeleteObject", put, "DELETE", "", b"", lambda told, mark: not there(told, mark)),
            change("DeleteObject", lambda mark: put(mark, VERSIONED), "DELETE", "", b"", lambda told, mark: versions(told, mark) - 1, "DeleteObject-marker", VERSIONED),
            Operation("DeleteObjects", several, lambda s, mark: self.request("POST", f"/{BUCKET}?delete=", doomed(mark).encode(), mark), gone, changes=3),
            change("PutObjectTagging", put, "PUT", "?tagging=", TAGS, lambda told, mark: mark in told["tags"]),
            change("DeleteObjectTagging", tagged, "DELETE", "?tagging=", b"", lambda told, mark: "old" not in told["tags"]),
            change("UpdateObjectEncryption", under_kms, "PUT", "?encryption=", update.encode(), other_kek),
        ]

    def of_uploads(self) -> list[Operation]:
        def upload(mark):
            made = self.do("POST", f"/{BUCKET}/{mark}?uploads=")
            return ElementTree.fromstring(made.body).find(f"{XMLNS}UploadId").text

        def part(mark):
            made = upload(mark)
            etag = self.do("PUT", f"/{BUCKET}/{mark}?partNumber=1&uploadId={made}", LARGE).headers["etag"]
            return made, etag

        def change(name, prepare, method, query, body, happened, **headers):
            def request(subject, mark):
                given = {key.replace("_", "-"): value for key, value in headers.items()}
                return self.request(method, f"/{BUCKET}/{mark}{query(subject)}", body(subject), mark, given)
            return Operation(name, prepare, request, happened, probe)

        def parts(told, subject, mark):
            return "<PartNumber>" in told.get(f"upload {subject}", "")

        def probe(subject, mark, told):
            made = subject if isinstance(subject, str) else subject[0]
            answer = self.ask("DELETE", f"/{BUCKET}/{mark}?uploadId={made}")
            assert answer.status == 204 or b"NoSuchUpload" in answer.body, answer
            self.probe_object(BUCKET, mark)

        one = lambda subject: f"?partNumber=1&uploadId={subject}"  # noqa: E731
        return [
            change("CreateMultipartUpload", str, "POST", lambda s: "?uploads=", lambda s: b"",
                   lambda told, subject, mark: sum(name.startswith("upload ") and f"<Key>{mark}<" in value for name, value in told.items())),
            change("UploadPart", upload, "PUT", one, lambda s: LARGE, parts),
            change("UploadPartCopy", upload, "PUT", one, lambda s: b"", parts, x_amz_copy_source=f"/{BUCKET}/source"),
            change("CompleteMultipartUpload", part, "POST", lambda s: f"?uploadId={s[0]}", lambda s: PARTS.format(s[1]).encode(),
                   lambda told, subject, mark: f"object {BUCKET}/{mark}" in told),
            change("AbortMultipartUpload", part, "DELETE", lambda s: f"?uploadId={s[0]}", lambda s: b"",
                   lambda told, subject, mark: f"upload {subject[0]}" not in told),
        ]

    def form(self) -> Operation:
        access_key, secret = self.storage.keys["alice"]

        def request(subject, mark):
            document = {"expiration": "2035-01-01T00:00:00.000Z", "conditions": [{"bucket": BUCKET}, {"key": mark}]}
            policy = base64.b64encode(json.dumps(document).encode()).decode()
            signature = base64.b64encode(hmac.new(secret.encode(), policy.encode(), hashlib.sha1).digest()).decode()
            fields = {"key": mark, "AWSAccessKeyId": access_key, "policy": policy, "signature": signature}
            parts = [f'--edge\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
            body = b"".join(parts) + b'--edge\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + LARGE + b"\r\n--edge--\r\n"
            headers = {"Host": f"127.0.0.1:{self.storage.port}", "Content-Type": "multipart/form-data; boundary=edge", "User-Agent": mark,
                       "amz-sdk-invocation-id": mark}
            return Request.http("POST", f"/{BUCKET}", headers, body)
        return Operation("PutObject", str, request, lambda told, subject, mark: f"object {BUCKET}/{mark}" in told,
                         lambda subject, mark, told: self.probe_object(BUCKET, mark), "PutObject-form")

    def uses(self) -> list[Operation]:
        def use(name, method, path, title=""):
            return Operation(name, str, lambda subject, mark: self.request(method, path, b"", mark), title=title)
        return [use("GetObject", "GET", f"/{BUCKET}/source"), use("HeadObject", "HEAD", f"/{BUCKET}/source"),
                use("ListObjectsV2", "GET", f"/{VERSIONED}?list-type=2"), use("ListBuckets", "GET", "/")]

    # What must be done whatever was cut.

    def probe_bucket(self, subject, mark: str, told: dict) -> None:
        if self.ask("HEAD", f"/{mark}").status == 404:
            self.do("PUT", f"/{mark}")
        self.do("PUT", f"/{mark}?tagging=", TAGS.format("probe").encode())
        self.probe_object(mark, "probe")
        self.enable_versions(mark)

    def probe_object(self, bucket: str, name: str) -> None:
        self.do("PUT", f"/{bucket}/{name}", SMALL)
        assert self.do("GET", f"/{bucket}/{name}").body == SMALL, name
        self.do("PUT", f"/{bucket}/{name}?tagging=", TAGS.format("probe").encode())
        self.do("DELETE", f"/{bucket}/{name}")

    # What the API tells.

    def pages(self, path: str, names: dict) -> list:
        """All entries of a listing. `names`: of the members that go on with it, and what they are in the query."""
        found, more = [], ""
        while True:
            page = ElementTree.fromstring(self.do("GET", path + more).body)
            found += [entry for entry in page if entry.tag.removeprefix(XMLNS) in ("Version", "DeleteMarker", "Upload", "Buckets")]
            if page.findtext(f"{XMLNS}IsTruncated") != "true":
                return found
            more = "".join(f"&{query}={urllib.parse.quote(page.findtext(XMLNS + name) or '', safe='')}" for name, query in names.items())

    def tell(self, pool) -> dict:
        def of_bucket(name):
            asked = {query: self.ask("GET", f"/{name}?{query}=").body.decode() for query in ("versioning", "encryption", "tagging")}
            return f"bucket {name}", {query: without_ids(text) for query, text in asked.items()}

        def of_version(entry):
            name, version = entry.findtext(f"{XMLNS}Key"), entry.findtext(f"{XMLNS}VersionId")
            text = ElementTree.tostring(entry.element).decode()
            if entry.tag.endswith("DeleteMarker"):
                return {"entry": text, "headers": {}}
            query = f"?versionId={version}"
            got = self.ask("GET", f"/{entry.bucket}/{name}{query}")
            headers = {key: value for key, value in got.headers.items() if key not in ("date", "x-amz-request-id", "x-amz-id-2")}
            tags = without_ids(self.ask("GET", f"/{entry.bucket}/{name}?tagging=&versionId={version}").body.decode())
            return {"entry": text, "status": got.status, "headers": headers, "tags": tags, "body": hashlib.sha256(got.body).hexdigest()}

        def of_upload(entry):
            key, upload = entry.findtext(f"{XMLNS}Key"), entry.findtext(f"{XMLNS}UploadId")
            return f"upload {upload}", without_ids(self.ask("GET", f"/{BUCKET}/{key}?uploadId={upload}").body.decode())

        buckets = [bucket.findtext(f"{XMLNS}Name") for entry in self.pages("/", {}) for bucket in entry]
        told = dict(pool.map(of_bucket, buckets))
        for bucket in (BUCKET, VERSIONED):
            entries = self.pages(f"/{bucket}?versions=", {"NextKeyMarker": "key-marker", "NextVersionIdMarker": "version-id-marker"})
            entries = [Entry(entry, bucket) for entry in entries]
            for entry, value in zip(entries, pool.map(of_version, entries)):
                kept = told.setdefault(f"object {bucket}/{entry.findtext(f'{XMLNS}Key')}", {"versions": [], "tags": ""})
                kept["versions"].append(value)
                kept["tags"] = kept["tags"] or value.get("tags", "")
        uploads = self.pages(f"/{BUCKET}?uploads=", {"NextKeyMarker": "key-marker", "NextUploadIdMarker": "upload-id-marker"})
        return told | dict(pool.map(of_upload, uploads))

    def restart(self, kill: bool) -> None:
        self.storage.stop(9 if kill else 15)
        self.storage.start()
        self.door.restarted()

    @property
    def logs(self):
        return sorted((self.storage.data_dir / "audit").glob("*.jsonl"))

    def metrics(self) -> str:
        return self.door.call(Request.http("GET", "/metrics", {"Host": "localhost"})).body.decode()

    def is_busy(self) -> bool:
        return False

    def size_of_log(self) -> int:
        return sum(path.stat().st_size for path in self.logs)

    def events(self) -> list[dict]:
        lines = [json.loads(line) for path in self.logs for line in path.read_text().splitlines()]
        return [line for line in lines if line["type"] == "event"]

    def mark_of(self, event: dict) -> str | None:
        return event.get("client_request_id") or event.get("user_agent")

    def change_of(self, event: dict):
        """The change that it tells of, by its number."""
        return event.get("revision")

    def more_faults(self) -> list[str]:
        """When all is deleted, nothing is left: whatever was to be cleared away when its request was cut is cleared away."""
        s3 = self.storage.client()
        for bucket in s3.list_buckets()["Buckets"]:
            name = bucket["Name"]
            for upload in s3.get_paginator("list_multipart_uploads").paginate(Bucket=name).search("Uploads || `[]`"):
                s3.abort_multipart_upload(Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"])
            for page in s3.get_paginator("list_object_versions").paginate(Bucket=name):
                entries = [{"Key": entry["Key"], "VersionId": entry["VersionId"]} for entry in page.get("Versions", []) + page.get("DeleteMarkers", [])]
                if entries:
                    s3.delete_objects(Bucket=name, Delete={"Objects": entries})
            s3.delete_bucket(Bucket=name)
        deadline = time.monotonic() + SECONDS_TO_CLEAR
        while self.storage.blobs() and time.monotonic() < deadline:
            time.sleep(0.2)
        return [f"{blob.name} is left when all is deleted" for blob in self.storage.blobs()]

    def stop(self) -> None:
        self.storage.stop()
        self.hsm.stop()
        assert "panicked" not in self.storage.log.read_text()


class Entry:
    """An entry of a listing, and whose it is."""

    def __init__(self, element, bucket: str):
        self.element, self.bucket, self.tag = element, bucket, element.tag

    def findtext(self, name: str) -> str | None:
        return self.element.findtext(name)


def without_ids(text: str) -> str:
    """Without what tells one request from another."""
    for name in ("RequestId", "HostId"):
        if f"<{name}>" in text:
            before, _, rest = text.partition(f"<{name}>")
            text = before + rest.partition(f"</{name}>")[2]
    return text
