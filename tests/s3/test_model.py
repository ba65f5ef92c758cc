"""Every operation and every member of the S3 model that is installed: it works, or it is refused and nothing changed."""
import datetime
import uuid

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.session import get_session

MODEL = get_session().get_service_model("s3")

# Works here. What each member of these does is tested elsewhere; which members they have is below.
KEPT = {
    "AbortMultipartUpload", "CompleteMultipartUpload", "CopyObject", "CreateBucket", "CreateMultipartUpload", "DeleteBucket",
    "DeleteBucketEncryption", "DeleteBucketTagging", "DeleteObject", "DeleteObjectTagging", "DeleteObjects", "GetBucketEncryption",
    "GetBucketLocation", "GetBucketTagging", "GetBucketVersioning", "GetObject", "GetObjectAttributes", "GetObjectTagging", "HeadBucket",
    "HeadObject", "ListBuckets", "ListMultipartUploads", "ListObjectVersions", "ListObjects", "ListObjectsV2", "ListParts",
    "PutBucketEncryption", "PutBucketTagging", "PutBucketVersioning", "PutObject", "PutObjectTagging", "UpdateObjectEncryption",
    "UploadPart", "UploadPartCopy",
}
# Members that a change may have because they are obeyed, or ask for what is so anyway.
OBEYED = {
    "Body", "Bucket", "Key", "UploadId", "PartNumber", "VersionId", "CacheControl", "ContentDisposition", "ContentEncoding", "ContentLanguage",
    "ContentLength", "ContentMD5", "ContentType", "Expires", "Metadata", "MetadataDirective", "Tagging", "TaggingDirective",
    "WebsiteRedirectLocation", "IfMatch", "IfNoneMatch", "ChecksumAlgorithm", "ChecksumCRC32", "ChecksumCRC32C", "ChecksumCRC64NVME",
    "ChecksumSHA1", "ChecksumSHA256", "ChecksumType", "MpuObjectSize", "SSECustomerAlgorithm", "SSECustomerKey", "SSECustomerKeyMD5",
    "ServerSideEncryption", "SSEKMSKeyId", "BucketKeyEnabled", "CopySource", "CopySourceIfMatch", "CopySourceIfModifiedSince",
    "CopySourceIfNoneMatch", "CopySourceIfUnmodifiedSince", "CopySourceRange", "CopySourceSSECustomerAlgorithm", "CopySourceSSECustomerKey",
    "CopySourceSSECustomerKeyMD5", "MultipartUpload", "Delete", "CreateBucketConfiguration", "VersioningConfiguration",
    "ServerSideEncryptionConfiguration", "ObjectEncryption",
    "IfMatchLastModifiedTime", "IfMatchSize",
    # Nothing here is locked, deleted only with MFA, or paid for by who asks for it; there are no annotations.
    "BypassGovernanceRetention", "MFA", "RequestPayer", "AnnotationDirective",
}
# Values that ask for more than is kept, where the first of the enumeration does not.
SAMPLES = {
    "ACL": "public-read", "StorageClass": "GLACIER", "ObjectOwnership": "ObjectWriter", "BucketNamespace": "account-regional",
    "ObjectLockEnabledForBucket": True, "ExpectedBucketOwner": "somebody-else", "ExpectedSourceBucketOwner": "somebody-else",
    "CopySource": "b/k",
}
KEPT_CHANGES = sorted(name for name in KEPT if MODEL.operation_model(name).http["method"] in ("PUT", "POST", "DELETE"))


def sample(shape, name="", everything=False):
    """A value that the model takes."""
    if name in SAMPLES:
        return SAMPLES[name]
    match shape.type_name:
        case "structure":
            required = shape.members if everything else shape.required_members
            if getattr(shape, "is_tagged_union", False):
                required = list(shape.members)[:1]
            return {member: sample(shape.members[member], member) for member in required}
        case "list":
            return [sample(shape.member)]
        case "map":
            return {"a": "b"}
        case "boolean":
            return True
        case "integer" | "long" | "float" | "double":
            return 1
        case "timestamp":
            return datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc)
        case "blob":
            return b"x"
    return shape.enum[-1] if shape.enum else "x" * max(1, shape.metadata.get("min", 1))


@pytest.fixture(scope="module")
def client(storage):
    access_key, secret = storage.keys["alice"]
    config = Config(retries={"max_attempts": 0}, s3={"addressing_style": "path", "disable_s3_express_session_auth": True},
                    inject_host_prefix=False, parameter_validation=True)
    made = get_session().create_client("s3", endpoint_url=storage.url, aws_access_key_id=access_key, aws_secret_access_key=secret,
                                       region_name="us-east-1", config=config)
    return made


class World:
    """One bucket with an object and an upload, and one that is empty."""

    def __init__(self, client):
        self.client = client
        self.full, self.empty = f"full-{uuid.uuid4().hex[:8]}", f"empty-{uuid.uuid4().hex[:8]}"
        for bucket in (self.full, self.empty):
            client.create_bucket(Bucket=bucket)
        client.put_object(Bucket=self.full, Key="k", Body=b"hello", Metadata={"a": "b"}, Tagging="t=1")
        client.put_object(Bucket=self.full, Key="source", Body=b"other")
        self.upload = client.create_multipart_upload(Bucket=self.full, Key="k")["UploadId"]

    def seen(self):
        """All that a client can see of both."""
        out = []
        for bucket in (self.full, self.empty):
            objects = self.client.list_object_versions(Bucket=bucket)
            for version in objects.get("Versions", []):
                got = self.client.get_object(Bucket=bucket, Key=version["Key"])
                head = {name: got.get(name) for name in ("ETag", "LastModified", "Metadata", "ContentType", "ServerSideEncryption", "TagCount")}
                out.append((version, got["Body"].read(), head))
            out.append(objects.get("DeleteMarkers"))
            out.append(self.client.list_multipart_uploads(Bucket=bucket).get("Uploads"))
            out.append(self.client.get_bucket_versioning(Bucket=bucket).get("Status"))
            out.append(self.client.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"])
        return out

    def arguments(self, operation, bucket):
        shape = operation.input_shape
        arguments = sample(shape) if shape else {}
        return arguments | {name: value for name, value in {"Bucket": bucket, "Key": "k", "UploadId": self.upload,
                                                            "CopySource": f"{self.full}/source"}.items() if name in arguments}


@pytest.fixture(scope="module")
def world(client):
    return World(client)


def call(client, operation, arguments):
    names = {model: method for method, model in client.meta.method_to_api_mapping.items()}
    return getattr(client, names[operation.name])(**arguments)


@pytest.mark.parametrize("name", sorted(set(MODEL.operation_names) - KEPT))
def test_an_operation_that_is_not_kept_is_refused_and_changes_nothing(client, world, name):
    operation, before = MODEL.operation_model(name), world.seen()
    for bucket in (world.full, world.empty):
        for everything in (False, True):
            arguments = world.arguments(operation, bucket)
            if everything and operation.input_shape:
                arguments = sample(operation.input_shape, everything=True) | arguments
                arguments.pop("ExpectedBucketOwner", None)
            with pytest.raises(ClientError) as caught:
                call(client, operation, arguments)
            status = caught.value.response["ResponseMetadata"]["HTTPStatusCode"]
            # The path of one operation is no bucket's.
            assert status == 501 or name == "WriteGetObjectResponse" or (everything and status in (400, 403)), caught.value.response
    assert world.seen() == before


@pytest.mark.parametrize("name", KEPT_CHANGES)
def test_a_member_that_is_not_kept_is_refused_and_changes_nothing(client, world, name):
    operation, before = MODEL.operation_model(name), world.seen()
    for member, shape in operation.input_shape.members.items():
        if member in OBEYED:
            continue
        bucket = f"new-{uuid.uuid4().hex[:8]}" if name == "CreateBucket" else world.empty if name == "DeleteBucket" else world.full
        value = sample(shape, member)
        with pytest.raises(ClientError) as caught:
            call(client, operation, world.arguments(operation, bucket) | {member: value})
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] in (400, 403, 412, 501), (member, caught.value.response)
        assert caught.value.response["Error"]["Code"] != "MalformedXML", (member, "was not looked at")
        if name == "CreateBucket":
            with pytest.raises(ClientError):
                client.head_bucket(Bucket=bucket)
    assert world.seen() == before
