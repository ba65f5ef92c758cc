"""boto3 -> kms -> xks-proxy -> HSM: a key management service with an external key store."""
import pathlib
import time

from proxy import Proxy
from service import REGION, Service

STORE_POLICY = """
version = 1
[[stores]]
name = "blue"
path_prefix = "/blue"
region = "us-east-1"
mode = "{mode}"
caller_proof = "{proof}"
requests_per_sec = 100000
keys = [{names}]
"""


def connect(kms, store: str, seconds: float = 10) -> dict:
    """Connects a store, waits for the outcome."""
    kms.connect_custom_key_store(CustomKeyStoreId=store)
    deadline = time.monotonic() + seconds
    while (entry := kms.describe_custom_key_stores(CustomKeyStoreId=store)["CustomKeyStores"][0])["ConnectionState"] == "CONNECTING":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return entry


class Chain:
    """Over the software HSM unless `hsms` says otherwise. `names`: keys behind the proxy."""

    def __init__(self, directory: pathlib.Path, names: list[str], *, hsms: str | None = None, more: str = "", limits: str = "store_budget_ms = 1000\n",
                 proof: str = "off", mode: str = "trust-provider"):
        self.names, self.hsms = names, hsms
        self.proxy = Proxy(directory / "proxy", hsms or '[[hsms]]\nname = "east"\nsoftware_insecure = true\n')
        self.proxy.config("a")
        endpoint = f'[[proxies]]\nendpoint = "{self.proxy.url()}"\nca_file = "{self.proxy.ca_file}"\ncaller_proof = {str(proof != "off").lower()}\n'
        self.service_more, self.limits, self.directory = endpoint + more, limits, directory
        listed = ", ".join(f'"{name}"' for name in names)
        accept = '["was-extractable", "extractable", "other-usage"]' if hsms else "[]"
        self.policy = STORE_POLICY.format(mode=mode, proof=proof, names=listed) + "".join(
            f'[[keys]]\nid = "{name}"\nhsms = ["east"]\nlabel = "{name}"\naccept = {accept}\n' for name in names)

    def start(self, prepare=lambda proxy: None) -> "Chain":
        self.proxy.start()
        prepare(self.proxy)
        if not self.hsms:
            for name in self.names:
                self.proxy.change("key-create", "--key-id", name, "--hsm", "east", "--label", name)
        self.proxy.set_policy(self.policy)
        self.credential = self.proxy.add_credential("blue")
        self.service = Service(self.directory / "kms", self.service_more, self.limits).start()
        self.kms = self.service.client("root")
        self.store = self.create_store("store")
        assert connect(self.kms, self.store)["ConnectionState"] == "CONNECTED"
        self.keys = {name: self.create_key(name) for name in self.names[:2]}
        self.hosted = [self.kms.create_key()["KeyMetadata"]["Arn"] for _ in range(2)]
        return self

    def create_store(self, name: str, **more) -> str:
        asked = {"CustomKeyStoreName": name, "CustomKeyStoreType": "EXTERNAL_KEY_STORE", "XksProxyConnectivity": "PUBLIC_ENDPOINT",
                 "XksProxyUriEndpoint": self.proxy.url(), "XksProxyUriPath": self.credential.uri_path,
                 "XksProxyAuthenticationCredential": self.pair()}
        return self.kms.create_custom_key_store(**asked | more)["CustomKeyStoreId"]

    def pair(self, **more) -> dict:
        return {"AccessKeyId": self.credential.access_key, "RawSecretAccessKey": self.credential.secret} | more

    def create_key(self, name: str, **more) -> str:
        asked = {"Origin": "EXTERNAL_KEY_STORE", "CustomKeyStoreId": self.store, "XksKeyId": name}
        return self.kms.create_key(**asked | more)["KeyMetadata"]["Arn"]

    def storage_config(self) -> str:
        """For a storage service on it."""
        access_key, _ = self.service.keys["storage"]
        return (f'[kms]\nurl = "{self.service.url}"\nregion = "{REGION}"\nca_file = "{self.service.ca_file}"\n'
                f'access_key_id = "{access_key}"\nsecret_file = "{self.service.directory}/storage.secret"\n')

    def check_end(self) -> None:
        self.service.check_end(self.credential.secret)
        self.proxy.stop()
        assert "panicked" not in self.proxy.log().read_text()

