"""SigV4 by botocore's own signer, at any moment."""
import datetime

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials


def sign(request: AWSRequest, access_key: str, secret: str, service: str, region: str, offset: int = 0) -> dict:
    """The headers of the request, signed so many seconds from now."""
    signer = SigV4Auth(Credentials(access_key, secret), service, region)
    if offset:
        moment = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=offset)
        request.context["timestamp"] = moment.strftime("%Y%m%dT%H%M%SZ")
        request.headers["X-Amz-Date"] = request.context["timestamp"]
        text = signer.string_to_sign(request, signer.canonical_request(request))
        request.headers["Authorization"] = ", ".join([
            f"AWS4-HMAC-SHA256 Credential={signer.scope(request)}", f"SignedHeaders={signer.signed_headers(signer.headers_to_sign(request))}",
            f"Signature={signer.signature(text, request)}"])
    else:
        signer.add_auth(request)
    return dict(request.headers)
