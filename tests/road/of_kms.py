"""The AWS KMS dialect, for the cut battery: hosted keys, external keys through a proxy, and their stores."""
import base64
import json
import os
import secrets
import ssl
import threading

from battery import WHOLE, Operation
from botocore.awsrequest import AWSRequest
from chain import Chain, connect
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cutting import Answer, Door, Request
from service import ACCOUNT, OTHER_REGION, REGION, document, allow, iam
from signing import sign

OPERATIONS_OF_STORES = 5
SPECS = {"sign": ("ECC_NIST_P256", "SIGN_VERIFY"), "mac": ("HMAC_256", "GENERATE_VERIFY_MAC"), "agree": ("ECC_NIST_P256", "KEY_AGREEMENT")}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class KeyManagement:
    def __init__(self, directory, cuts: int):
        # An account of its own for each store: they have few, and each leads to the same proxy.
        self.accounts, text = {}, ""
        for number in range((cuts + WHOLE) * OPERATIONS_OF_STORES):
            account, secret = f"{900_000_000_000 + number}", secrets.token_hex(20)
            self.accounts[account] = (f"AKSTORE{number}", secret)
            (directory / f"{account}.secret").write_text(secret)
            text += (f'[[principals]]\narn = "{iam("root", account)}"\n[[credentials]]\naccess_key_id = "AKSTORE{number}"\n'
                     f'secret_file = "{directory}/{account}.secret"\nprincipal = "{iam("root", account)}"\n')
        self.free, self.lock = iter(self.accounts), threading.Lock()
        self.chain = Chain(directory, ["orders", "spare"], more=text, limits="store_budget_ms = 5000\n").start()
        self.service, self.external = self.chain.service, self.chain.keys["orders"]
        self.root = self.service.keys["root"]
        self.door = Door(self.service.port, ssl.create_default_context(cafile=self.service.ca_file), "localhost")
        self.hosted, self.second = self.chain.hosted
        self.keys = {name: self.create(KeySpec=spec, KeyUsage=usage) for name, (spec, usage) in SPECS.items()}
        self.operations = self.of_keys() + self.of_material() + self.of_grants_and_aliases() + self.of_stores() + self.uses()

    # Requests.

    def request(self, operation: str, members: dict, mark: str = "", who: tuple | None = None, region: str = REGION) -> Request:
        body = json.dumps(members).encode()
        host = f"localhost:{self.service.port}"
        headers = {"Host": host, "Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": "TrentService." + operation, "amz-sdk-invocation-id": mark}
        asked = AWSRequest("POST", f"https://{host}/", data=body, headers=headers)
        return Request.http("POST", "/", sign(asked, *(who or self.root), "kms", region), body)

    def ask(self, operation: str, members: dict, **more) -> Answer:
        return self.door.call(self.request(operation, members, **more))

    def do(self, operation: str, members: dict, **more) -> dict:
        answer = self.ask(operation, members, **more)
        assert answer.status == 200, (operation, members, answer.status, answer.body)
        return answer.json() or {}

    def send(self, operation: Operation, request: Request) -> Answer:
        return self.door.call(request)

    def create(self, mark: str = "", **more) -> str:
        return self.do("CreateKey", {"Description": mark} | more)["KeyMetadata"]["KeyId"]

    # What there is.

    def of_keys(self) -> list[Operation]:
        def after(*names):
            def prepare(mark):
                key = self.create(mark)
                for name in names:
                    self.do(name, {"KeyId": key})
                return key
            return prepare

        def tagged(mark):
            return self.create(mark, Tags=[{"TagKey": "old", "TagValue": "x"}])

        def change(name, happened, prepare=self.create, title="", **members):
            def body(key, mark):
                return {"KeyId": key} | {member: value(mark) if callable(value) else value for member, value in members.items()}
            return Operation(name, prepare, lambda key, mark: self.request(name, body(key, mark), mark),
                             lambda told, key, mark: happened(told[f"key {REGION} {key}"], mark), self.probe_key, title)

        def state(wanted):
            return lambda told, mark: told["about"].get("KeyState") == wanted

        def policy(mark):
            return json.dumps(document(allow("kms:*", Principal={"AWS": iam("root")}), allow("kms:Encrypt", Principal={"AWS": iam("user/bob")}, Sid=mark)))

        return [
            Operation("CreateKey", str, lambda s, mark: self.request("CreateKey", {"Description": mark}, mark),
                      lambda told, s, mark: sum(value.get("about", {}).get("Description") == mark for value in told.values()), self.probe_made),
            change("UpdateKeyDescription", lambda told, mark: told["about"].get("Description") == "new " + mark, Description=lambda mark: "new " + mark),
            change("DisableKey", state("Disabled")), change("EnableKey", state("Enabled"), after("DisableKey")),
            change("ScheduleKeyDeletion", state("PendingDeletion"), PendingWindowInDays=7),
            change("CancelKeyDeletion", state("Disabled"), after("ScheduleKeyDeletion")),
            change("PutKeyPolicy", lambda told, mark: mark in str(told["policy"]), Policy=policy),
            change("TagResource", lambda told, mark: mark in str(told["tags"]), Tags=lambda mark: [{"TagKey": "new", "TagValue": mark}]),
            change("UntagResource", lambda told, mark: "old" not in str(told["tags"]), tagged, TagKeys=["old"]),
            change("EnableKeyRotation", lambda told, mark: told["rotation"].get("KeyRotationEnabled") is True),
            change("DisableKeyRotation", lambda told, mark: told["rotation"].get("KeyRotationEnabled") is False, after("EnableKeyRotation")),
            change("RotateKeyOnDemand", lambda told, mark: len(told["rotations"].get("Rotations", []))),
        ]

    def of_material(self) -> list[Operation]:
        def parameters(mark):
            key = self.create(mark, Origin="EXTERNAL")
            got = self.do("GetParametersForImport", {"KeyId": key, "WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_2048"})
            public = load_der_public_key(base64.b64decode(got["PublicKey"]))
            sealed = public.encrypt(os.urandom(32), padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None))
            return {"KeyId": key, "ImportToken": got["ImportToken"], "EncryptedKeyMaterial": b64(sealed), "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"}

        def imported(mark):
            got = parameters(mark)
            self.do("ImportKeyMaterial", got)
            return {"KeyId": got["KeyId"]}

        def primary(mark):
            return {"KeyId": self.create(mark, MultiRegion=True)}

        def replicated(mark):
            made = primary(mark)
            self.do("ReplicateKey", made | {"ReplicaRegion": OTHER_REGION})
            return made

        def change(name, prepare, happened, **members):
            return Operation(name, prepare, lambda subject, mark: self.request(name, subject | members, mark), happened,
                             lambda subject, mark, told: self.probe_key(subject["KeyId"], mark, told))

        def state(told, subject):
            return told[f"key {REGION} {subject['KeyId']}"]["about"].get("KeyState")

        def primary_of(told, subject):
            return told[f"key {REGION} {subject['KeyId']}"]["about"].get("MultiRegionConfiguration", {}).get("PrimaryKey", {}).get("Region")

        return [
            change("ImportKeyMaterial", parameters, lambda told, subject, mark: state(told, subject) == "Enabled"),
            change("DeleteImportedKeyMaterial", imported, lambda told, subject, mark: state(told, subject) == "PendingImport"),
            change("ReplicateKey", primary, lambda told, subject, mark: f"key {OTHER_REGION} {subject['KeyId']}" in told, ReplicaRegion=OTHER_REGION),
            change("UpdatePrimaryRegion", replicated, lambda told, subject, mark: primary_of(told, subject) == OTHER_REGION, PrimaryRegion=OTHER_REGION),
        ]

    def of_grants_and_aliases(self) -> list[Operation]:
        def terms(key, mark):
            return {"KeyId": key, "GranteePrincipal": iam("user/bob"), "Operations": ["Decrypt"], "Name": mark}

        def granted(mark):
            key = self.create(mark)
            return {"KeyId": key, "GrantId": self.do("CreateGrant", terms(key, mark))["GrantId"]}

        def grants(told, key, mark):
            return sum(grant.get("Name") == mark for grant in told[f"key {REGION} {key}"]["grants"].get("Grants", []))

        def probe_grant(key, mark, told):
            for grant in self.do("ListGrants", {"KeyId": key})["Grants"]:
                self.do("RevokeGrant", {"KeyId": key, "GrantId": grant["GrantId"]})
            self.do("CreateGrant", terms(key, "probe"))

        def aliased(mark):
            key = self.create(mark)
            self.do("CreateAlias", {"AliasName": f"alias/{mark}", "TargetKeyId": key})
            return key

        def alias(name, prepare, happened, target=None):
            def members(key, mark):
                return {"AliasName": f"alias/{mark}"} | ({} if target is None else {"TargetKeyId": target or key})
            return Operation(name, prepare, lambda key, mark: self.request(name, members(key, mark), mark), happened, probe_alias)

        def probe_alias(key, mark, told):
            there = any(item["AliasName"] == f"alias/{mark}" for item in self.do("ListAliases", {"KeyId": key})["Aliases"])
            there = there or self.ask("DescribeKey", {"KeyId": f"alias/{mark}"}).status == 200
            self.do("UpdateAlias" if there else "CreateAlias", {"AliasName": f"alias/{mark}", "TargetKeyId": key})
            self.do("DeleteAlias", {"AliasName": f"alias/{mark}"})

        second = self.second.rsplit("/", 1)[1]
        return [
            Operation("CreateGrant", self.create, lambda key, mark: self.request("CreateGrant", terms(key, mark), mark), grants, probe_grant),
            *[Operation(name, granted, lambda subject, mark, name=name: self.request(name, subject, mark),
                        lambda told, subject, mark: not grants(told, subject["KeyId"], mark),
                        lambda subject, mark, told: probe_grant(subject["KeyId"], mark, told)) for name in ("RetireGrant", "RevokeGrant")],
            alias("CreateAlias", self.create, lambda told, key, mark: f"alias {REGION} alias/{mark}" in told, ""),
            alias("UpdateAlias", aliased, lambda told, key, mark: told.get(f"alias {REGION} alias/{mark}", {}).get("TargetKeyId") == second, second),
            alias("DeleteAlias", aliased, lambda told, key, mark: f"alias {REGION} alias/{mark}" not in told),
        ]

    def of_stores(self) -> list[Operation]:
        def terms(mark):
            return {"CustomKeyStoreName": mark, "CustomKeyStoreType": "EXTERNAL_KEY_STORE", "XksProxyConnectivity": "PUBLIC_ENDPOINT",
                    "XksProxyUriEndpoint": self.chain.proxy.url(), "XksProxyUriPath": self.chain.credential.uri_path,
                    "XksProxyAuthenticationCredential": self.chain.pair()}

        def account(mark):
            with self.lock:
                return next(self.free), None

        def store(mark):
            owner, _ = account(mark)
            return owner, self.do("CreateCustomKeyStore", terms(mark), who=self.accounts[owner])["CustomKeyStoreId"]

        def connected(mark):
            owner, made = store(mark)
            access_key, secret = self.accounts[owner]
            self.do("ConnectCustomKeyStore", {"CustomKeyStoreId": made}, who=(access_key, secret))
            self.wait_connected(owner, made)
            return owner, made

        def change(name, prepare, happened, members=lambda mark: {}):
            def request(subject, mark):
                named = {"CustomKeyStoreId": subject[1]} if subject[1] else {}
                return self.request(name, named | members(mark), mark, self.accounts[subject[0]])
            return Operation(name, prepare, request, happened, probe)

        def state(told, subject):
            return told.get(f"store {subject[0]}", {}).get("ConnectionState")

        def probe(subject, mark, told):
            owner, who = subject[0], self.accounts[subject[0]]
            entry = next(iter(self.do("DescribeCustomKeyStores", {}, who=who)["CustomKeyStores"]), None)
            if entry is None:
                self.do("CreateCustomKeyStore", terms(mark), who=who)
                return
            named = {"CustomKeyStoreId": entry["CustomKeyStoreId"]}
            if entry["ConnectionState"] != "DISCONNECTED":
                self.do("DisconnectCustomKeyStore", named, who=who)
            self.do("UpdateCustomKeyStore", named | {"NewCustomKeyStoreName": "probed " + mark}, who=who)
            self.do("ConnectCustomKeyStore", named, who=who)
            self.wait_connected(owner, entry["CustomKeyStoreId"])

        return [
            change("CreateCustomKeyStore", account, lambda told, subject, mark: f"store {subject[0]}" in told, terms),
            change("UpdateCustomKeyStore", store, lambda told, subject, mark: told.get(f"store {subject[0]}", {}).get("CustomKeyStoreName") == "new " + mark,
                   lambda mark: {"NewCustomKeyStoreName": "new " + mark}),
            change("DeleteCustomKeyStore", store, lambda told, subject, mark: f"store {subject[0]}" not in told),
            change("ConnectCustomKeyStore", store, lambda told, subject, mark: state(told, subject) != "DISCONNECTED"),
            change("DisconnectCustomKeyStore", connected, lambda told, subject, mark: state(told, subject) == "DISCONNECTED"),
        ]

    def wait_connected(self, account: str, store: str) -> None:
        """A look at the other side may be too slow where all of it runs on a busy machine: it is taken again."""
        named, who = {"CustomKeyStoreId": store}, self.accounts[account]
        for _ in range(3):
            for _ in range(3000):
                [entry] = self.do("DescribeCustomKeyStores", named, who=who)["CustomKeyStores"]
                if entry["ConnectionState"] == "CONNECTED":
                    return
                if entry["ConnectionState"] == "FAILED":
                    break
            assert entry.get("ConnectionErrorCode") == "XKS_PROXY_TIMED_OUT", entry
            self.do("DisconnectCustomKeyStore", named, who=who)
            self.do("ConnectCustomKeyStore", named, who=who)
        raise AssertionError(entry)

    def uses(self) -> list[Operation]:
        def use(name, title="", **members):
            return Operation(name, str, lambda subject, mark: self.request(name, members, mark), title=title)

        plain = b64(b"x" * 32)
        sealed = {title: self.do("Encrypt", {"KeyId": key, "Plaintext": plain})["CiphertextBlob"] for title, key in (("hosted", self.hosted), ("external", self.external))}
        signed = {"KeyId": self.keys["sign"], "Message": plain, "SigningAlgorithm": "ECDSA_SHA_256"}
        mac = {"KeyId": self.keys["mac"], "Message": plain, "MacAlgorithm": "HMAC_SHA_256"}
        peer = self.do("GetPublicKey", {"KeyId": self.keys["agree"]})["PublicKey"]
        return [
            use("Encrypt", KeyId=self.hosted, Plaintext=plain), use("Encrypt", "Encrypt-external", KeyId=self.external, Plaintext=plain),
            use("Decrypt", CiphertextBlob=sealed["hosted"]), use("Decrypt", "Decrypt-external", CiphertextBlob=sealed["external"]),
            use("ReEncrypt", CiphertextBlob=sealed["external"], DestinationKeyId=self.hosted),
            use("GenerateDataKey", KeyId=self.hosted, KeySpec="AES_256"),
            use("GenerateDataKeyWithoutPlaintext", "GenerateDataKeyWithoutPlaintext-external", KeyId=self.external, KeySpec="AES_256"),
            use("GenerateDataKeyPair", KeyId=self.hosted, KeyPairSpec="ECC_NIST_P256"), use("GenerateRandom", NumberOfBytes=32),
            use("Sign", **signed), use("Verify", **signed, Signature=self.do("Sign", signed)["Signature"]),
            use("GenerateMac", **mac), use("VerifyMac", **mac, Mac=self.do("GenerateMac", mac)["Mac"]),
            use("DeriveSharedSecret", KeyId=self.keys["agree"], KeyAgreementAlgorithm="ECDH", PublicKey=peer),
            use("DescribeKey", KeyId=self.hosted), use("ListKeys"),
        ]

    # What must be done whatever was cut.

    def probe_key(self, key: str, mark: str, told: dict) -> None:
        # A replica that was made primary leaves this one a replica, which is changed by itself all the same.
        state = self.do("DescribeKey", {"KeyId": key})["KeyMetadata"]["KeyState"]
        if state == "PendingDeletion":
            self.do("CancelKeyDeletion", {"KeyId": key})
        self.do("TagResource", {"KeyId": key, "Tags": [{"TagKey": "probe", "TagValue": "1"}]})
        if state != "PendingImport":
            self.do("EnableKey", {"KeyId": key})
            self.do("Encrypt", {"KeyId": key, "Plaintext": "eA=="})

    def probe_made(self, subject, mark: str, told: dict) -> None:
        for name, value in told.items():
            if value.get("about", {}).get("Description") == mark:
                self.probe_key(name.split(" ")[2], mark, told)

    # What the API tells.

    def told(self, operation: str, members: dict, **more) -> dict:
        """What is told, be it an error."""
        answer = self.ask(operation, members, **more)
        return answer.json() if answer.status == 200 else {"status": answer.status, "error": answer.json()["__type"]}

    def listed(self, operation: str, member: str, region: str) -> list[dict]:
        found, marker = [], {}
        while True:
            page = self.do(operation, {"Limit": 100} | marker, region=region)
            found += page[member]
            if not page["Truncated"]:
                return found
            marker = {"Marker": page["NextMarker"]}

    def tell(self, pool) -> dict:
        def of_key(where):
            region, key = where
            about = self.told("DescribeKey", {"KeyId": key}, region=region)
            about = about.get("KeyMetadata", about)
            told = {"about": about}
            asked = {"policy": "GetKeyPolicy", "grants": "ListGrants", "tags": "ListResourceTags"}
            if about.get("KeySpec") == "SYMMETRIC_DEFAULT" and about.get("Origin") == "AWS_KMS":
                asked |= {"rotation": "GetKeyRotationStatus", "rotations": "ListKeyRotations"}
            for name, operation in asked.items():
                told[name] = self.told(operation, {"KeyId": key}, region=region)
            return f"key {region} {key}", told

        def of_account(account):
            entries = self.do("DescribeCustomKeyStores", {}, who=self.accounts[account])["CustomKeyStores"]
            return [(f"store {account}", entry) for entry in entries]

        keys = [(region, item["KeyId"]) for region in (REGION, OTHER_REGION) for item in self.listed("ListKeys", "Keys", region)]
        told = dict(pool.map(of_key, keys))
        told |= {f"alias {region} {item['AliasName']}": item for region in (REGION, OTHER_REGION)
                 for item in self.listed("ListAliases", "Aliases", region)}
        return told | dict(entry for entries in pool.map(of_account, self.accounts) for entry in entries)

    def restart(self, kill: bool) -> None:
        self.service.restart(9 if kill else 15)
        self.door.restarted()
        # A store that is connected is looked at anew.
        for account in self.accounts:
            for entry in self.do("DescribeCustomKeyStores", {}, who=self.accounts[account])["CustomKeyStores"]:
                if entry["ConnectionState"] == "CONNECTING":
                    self.wait_connected(account, entry["CustomKeyStoreId"])

    def metrics(self) -> str:
        return self.door.call(Request.http("GET", "/metrics", {"Host": "localhost"})).body.decode()

    def is_busy(self) -> bool:
        return False

    def size_of_log(self) -> int:
        return sum(path.stat().st_size for path in (self.service.data_dir / "audit").glob("*.jsonl"))

    def events(self) -> list[dict]:
        return self.service.events()

    def mark_of(self, event: dict) -> str | None:
        return event.get("client_request_id") or None

    def change_of(self, event: dict):
        """The change that it tells of, by its number."""
        return event.get("revision")

    def more_faults(self) -> list[str]:
        """A key behind the proxy that was used, by the proxy's own log, was used by a request that is in ours."""
        ours = {event["request_id"] for event in self.service.events()}
        theirs = [event for event in self.chain.proxy.events() if event["operation"] in ("Encrypt", "Decrypt")]
        assert theirs
        return [f"the proxy did {event['operation']} for {event['client_request_id']}, which no event here names" for event in theirs
                if event["client_request_id"] not in ours]

    def stop(self) -> None:
        self.chain.check_end()
