"""A Managed HSM as the proxy meets it: Azure's side of the EKM protocol."""
import base64
import json

import requests
from proxy import Proxy

POOL = "pool1.managedhsmclient.azure.net"
VERSION = "0.1-preview"


def enc(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def dec(text: str) -> bytes:
    assert "=" not in text and "+" not in text and "/" not in text
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Azure:
    """Calls the proxy as a Managed HSM does."""

    def __init__(self, proxy: Proxy, port: int, certificate, prefix: str = "/azure/pool-1"):
        self.proxy, self.port, self.certificate, self.prefix = proxy, port, certificate, prefix
        self.session = requests.Session()

    def raw(self, path: str, body, *, version: str | None = VERSION, method: str = "POST", certificate=...) -> requests.Response:
        url = f"https://localhost:{self.port}{self.prefix}/{path}" + (f"?api-version={version}" if version else "")
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        cert = self.certificate if certificate is ... else certificate
        return self.session.request(method, url, data=data, cert=cert, verify=self.proxy.ca_file, timeout=10, headers={"Content-Type": "application/json"})

    @staticmethod
    def context(**more) -> dict:
        return {"request_context": {"correlation_id": "corr-1", "pool_name": "pool-1", "request_id": "r-1"}} | more

    def ok(self, path: str, **more) -> dict:
        answer = self.raw(path, self.context(**more))
        assert answer.status_code == 200, (answer.status_code, answer.text)
        return answer.json()

    def refused(self, path: str, status: int, code: str, **more) -> None:
        assert_refused(self.raw(path, self.context(**more)), status, code)


def assert_refused(answer: requests.Response, status: int, code: str) -> None:
    assert answer.status_code == status, (answer.status_code, answer.text)
    assert set(answer.json()) == {"code", "message"} and answer.json()["code"] == code, answer.text
    if status == 429:
        assert answer.headers["Retry-After"]
