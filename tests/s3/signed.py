"""Requests that SDKs do not make, signed by botocore's own signers."""
import hashlib
import http.client
import urllib.parse

from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials


def signed(storage, method, path, body=b"", headers=None, who="alice", region="us-east-1", service="s3", host=None, payload=None):
    """The headers of a request, signed. `payload`: what the header x-amz-content-sha256 says in place of the hash."""
    access_key, secret = storage.keys[who]
    netloc = urllib.parse.urlsplit(storage.url).netloc
    asked = AWSRequest(method, f"http://{host or netloc}{path}", data=body, headers=dict(headers or {}))
    asked.context["payload_signing_enabled"] = True
    asked.context["client_config"] = None
    signer = S3SigV4Auth(Credentials(access_key, secret), service, region)
    signer.payload = lambda _: payload or hashlib.sha256(body).hexdigest()
    signer.add_auth(asked)
    return dict(asked.headers.items()) | {"Host": host or netloc}


def request(storage, method, path, body=b"", headers=None, **more):
    """Sends it signed, and gives status, headers and body."""
    return send(urllib.parse.urlsplit(storage.url).netloc, method, path, body, signed(storage, method, path, body, headers, **more))


def presigned(storage, method, path, seconds=3600, headers=None, region="us-east-1", who="alice"):
    """The path and query of a presigned URL."""
    access_key, secret = storage.keys[who]
    asked = AWSRequest(method, storage.url + path, headers=dict(headers or {}))
    S3SigV4QueryAuth(Credentials(access_key, secret), "s3", region, expires=seconds).add_auth(asked)
    return asked.url.removeprefix(storage.url)


def send(netloc, method, path, body=b"", headers=None):
    connection = http.client.HTTPConnection(netloc, timeout=30)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()
