"""The Key Vault dialect, for the cut battery."""
import json
import ssl
import uuid

from battery import Operation
from cutting import Answer, Door, Request
from managed_hsm import ADMIN, CRYPTO_OFFICER, CRYPTO_USER, Hsm
from process import b64

AUDITOR = "2c18b078-7c48-4d3a-af88-5a3a1b3f82b3"
ASSIGNMENTS = "/providers/Microsoft.Authorization/roleAssignments"
DEFINITIONS = "/providers/Microsoft.Authorization/roleDefinitions"
SETTING = "/settings/AllowKeyManagementOperationsThroughARM"
ROLES_MAX = 20
"""Cuts of an operation on custom roles: there are at most fifty."""
OCT, EC = {"kty": "oct-HSM", "key_size": 256}, {"kty": "EC-HSM", "crv": "P-256"}


def guid(mark: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, mark))


class KeyVault:
    def __init__(self, directory, cuts: int):
        self.hsm = Hsm(directory / "hsm")
        self.hsm.start()
        for role in (CRYPTO_USER, CRYPTO_OFFICER):
            self.hsm.grant(role, ADMIN[1])
        self.door = Door(self.hsm.port, ssl.create_default_context(cafile=self.hsm.data_dir / "ca.pem"), "127.0.0.1")
        self.token = self.hsm.token()
        self.do("POST", "/keys/shared/create", OCT)
        self.do("POST", "/keys/shared-ec/create", EC)
        sealed = self.do("POST", "/keys/shared/encrypt", {"alg": "A256GCM", "value": b64(b"x" * 32)}).json()
        self.sealed = {"alg": "A256GCM", "value": sealed["value"], "iv": sealed["iv"], "tag": sealed["tag"]}
        self.wrapped = self.do("POST", "/keys/shared/wrapkey", {"alg": "A256KW", "value": b64(b"k" * 32)}).json()["value"]
        self.operations = self.changes_of_keys() + self.changes_of_roles() + self.uses()

    # Requests.

    def request(self, method: str, path: str, body=None, mark: str = "") -> Request:
        headers = {"Host": f"127.0.0.1:{self.hsm.port}", "Authorization": f"Bearer {self.token}", "Content-Type": "application/json",
                   "x-ms-client-request-id": mark}
        return Request.http(method, f"{path}?api-version=7.5", headers, b"" if body is None else json.dumps(body).encode())

    def ask(self, method: str, path: str, body=None) -> Answer:
        return self.door.call(self.request(method, path, body))

    def do(self, method: str, path: str, body=None) -> Answer:
        answer = self.ask(method, path, body)
        assert answer.status // 100 == 2, (method, path, answer.status, answer.body)
        return answer

    def told(self, path: str) -> dict:
        """What is told, be it an error."""
        answer = self.ask("GET", path)
        return answer.json() if answer.status == 200 else {"status": answer.status, "error": answer.json()["error"]["code"]}

    def send(self, operation: Operation, request: Request) -> Answer:
        return self.door.call(request)

    # What there is.

    def changes_of_keys(self) -> list[Operation]:
        def key(mark):
            self.do("POST", f"/keys/{mark}/create", OCT)
            return mark

        def deleted(mark):
            key(mark)
            self.do("DELETE", f"/keys/{mark}")
            return mark

        def backup(mark):
            deleted_blob = self.do("POST", f"/keys/{key(mark)}/backup").json()["value"]
            self.do("DELETE", f"/keys/{mark}")
            self.do("DELETE", f"/deletedkeys/{mark}")
            return deleted_blob

        def change(name, prepare, method, path, body, happened, title=""):
            return Operation(name, prepare, lambda subject, mark: self.request(method, path.format(mark), body and body(subject, mark), mark),
                             happened, self.probe_key, title)

        def there(told, subject, mark):
            return f"key {mark}" in told

        def versions(told, subject, mark):
            return len(told.get(f"key {mark}", {"versions": [None]})["versions"]) - 1

        policy = {"lifetimeActions": [{"trigger": {"timeAfterCreate": "P90D"}, "action": {"type": "Rotate"}}], "attributes": {"expiryTime": "P2Y"}}
        return [
            change("KeyCreate", str, "POST", "/keys/{}/create", lambda s, m: OCT, there),
            change("KeyCreate", key, "POST", "/keys/{}/create", lambda s, m: OCT, versions, title="KeyCreate-again"),
            change("KeyImport", str, "PUT", "/keys/{}", lambda s, m: {"key": {"kty": "oct-HSM", "k": b64(m.encode().ljust(32)[:32])}}, there),
            change("KeyUpdate", key, "PATCH", "/keys/{}", lambda s, m: {"tags": {"mark": m}},
                   lambda told, s, m: told.get(f"key {m}", {}).get("latest", {}).get("tags") == {"mark": m}),
            change("KeyUpdate", key, "PATCH", "/keys/{}", lambda s, m: {"attributes": {"enabled": False}},
                   lambda told, s, m: told.get(f"key {m}", {}).get("latest", {}).get("attributes", {}).get("enabled") is False,
                   title="KeyUpdate-disable"),
            change("KeyDelete", key, "DELETE", "/keys/{}", None, lambda told, s, m: f"deleted {m}" in told),
            change("KeyRecover", deleted, "POST", "/deletedkeys/{}/recover", None, there),
            change("KeyPurge", deleted, "DELETE", "/deletedkeys/{}", None, lambda told, s, m: f"deleted {m}" not in told),
            change("KeyRotate", key, "POST", "/keys/{}/rotate", lambda s, m: {}, versions),
            change("KeyRestore", backup, "POST", "/keys/restore", lambda s, m: {"value": s}, there),
            change("KeyRotationPolicySet", key, "PUT", "/keys/{}/rotationpolicy", lambda s, m: policy,
                   lambda told, s, m: told.get(f"key {m}", {}).get("policy", {}).get("attributes", {}).get("expiryTime") == "P2Y"),
        ]

    def changes_of_roles(self) -> list[Operation]:
        assignment = {"properties": {"roleDefinitionId": f"Microsoft.KeyVault{DEFINITIONS}/{AUDITOR}", "principalId": guid("somebody")}}

        def definition(mark):
            return {"properties": {"roleName": mark, "type": "CustomRole", "assignableScopes": ["/"],
                                   "permissions": [{"dataActions": ["Microsoft.KeyVault/managedHsm/keys/read/action"]}]}}

        def assigned(mark):
            self.do("PUT", f"{ASSIGNMENTS}/{guid(mark)}", assignment_of(mark))
            return mark

        def assignment_of(mark):
            return {"properties": assignment["properties"] | {"principalId": guid("principal " + mark)}}

        def defined(mark):
            self.do("PUT", f"{DEFINITIONS}/{guid(mark)}", definition(mark))
            return mark

        def role(name, prepare, method, where, body, there: bool):
            kind = "assignment" if where == ASSIGNMENTS else "definition"
            return Operation(name, prepare, lambda subject, mark: self.request(method, f"{where}/{guid(mark)}", body and body(mark), mark),
                             lambda told, subject, mark: (f"{kind} {guid(mark)}" in told) is there,
                             lambda subject, mark, told: self.probe_role(where, mark, body or (definition if kind == "definition" else assignment_of)),
                             most=ROLES_MAX)

        return [
            role("RoleAssignmentCreate", str, "PUT", ASSIGNMENTS, assignment_of, True),
            role("RoleAssignmentDelete", assigned, "DELETE", ASSIGNMENTS, None, False),
            role("RoleDefinitionSet", str, "PUT", DEFINITIONS, definition, True),
            role("RoleDefinitionDelete", defined, "DELETE", DEFINITIONS, None, False),
            # There is one setting: each cut is of the same, and what it is in the end must be the same after a restart.
            Operation("SettingUpdate", str, lambda s, mark: self.request("PATCH", SETTING, {"value": str(len(mark) % 2 == 0).lower()}, mark), None,
                      lambda s, mark, told: self.do("PATCH", SETTING, {"value": "true"})),
        ]

    def uses(self) -> list[Operation]:
        def use(name, path, body, method="POST"):
            return Operation(name, str, lambda subject, mark: self.request(method, path, body, mark))

        return [
            use("KeyEncrypt", "/keys/shared/encrypt", {"alg": "A256GCM", "value": b64(b"x" * 32)}),
            use("KeyDecrypt", "/keys/shared/decrypt", self.sealed),
            use("KeyWrap", "/keys/shared/wrapkey", {"alg": "A256KW", "value": b64(b"k" * 32)}),
            use("KeyUnwrap", "/keys/shared/unwrapkey", {"alg": "A256KW", "value": self.wrapped}),
            use("KeySign", "/keys/shared-ec/sign", {"alg": "ES256", "value": b64(b"d" * 32)}),
            use("RandomBytesGet", "/rng", {"count": 32}),
            use("KeyBackup", "/keys/shared/backup", None),
            use("KeyGet", "/keys/shared", None, "GET"),
        ]

    # What must be done whatever was cut.

    def probe_key(self, subject, mark: str, told: dict) -> None:
        if f"deleted {mark}" in told:
            self.do("POST", f"/deletedkeys/{mark}/recover")
        elif f"key {mark}" not in told:
            self.do("POST", f"/keys/{mark}/create", OCT)
        self.do("PATCH", f"/keys/{mark}", {"attributes": {"enabled": True}, "tags": {"probe": "1"}})
        self.do("POST", f"/keys/{mark}/wrapkey", {"alg": "A256KW", "value": b64(b"k" * 32)})

    def probe_role(self, where: str, mark: str, body) -> None:
        """Made if it is not there, then deleted."""
        if self.ask("GET", f"{where}/{guid(mark)}").status == 404:
            self.do("PUT", f"{where}/{guid(mark)}", body(mark))
        self.do("DELETE", f"{where}/{guid(mark)}")

    # What the API tells.

    def listed(self, path: str) -> list[dict]:
        found, more = [], ""
        while True:
            request = self.request("GET", path)
            answer = self.door.call(Request(request.head.replace(b"?api-version=7.5", f"?api-version=7.5{more}".encode()))).json()
            found += answer["value"]
            if not answer.get("nextLink"):
                return found
            more = "&" + answer["nextLink"].split("?", 1)[1].replace("api-version=7.5&", "").replace("&api-version=7.5", "")

    def tell(self, pool) -> dict:
        def of_key(item):
            name = item["kid"].rsplit("/", 1)[1]
            return f"key {name}", {"latest": self.told(f"/keys/{name}"), "policy": self.told(f"/keys/{name}/rotationpolicy"),
                                   "versions": self.listed(f"/keys/{name}/versions")}

        def of_deleted(item):
            return f"deleted {item['kid'].rsplit('/', 1)[1]}", item

        told = dict(pool.map(of_key, self.listed("/keys")))
        told |= dict(map(of_deleted, self.listed("/deletedkeys")))
        told |= {f"assignment {item['name']}": item for item in self.do("GET", ASSIGNMENTS).json()["value"]}
        told |= {f"definition {item['name']}": item for item in self.do("GET", DEFINITIONS).json()["value"]}
        return told | {"setting": self.do("GET", SETTING).json()}

    def restart(self, kill: bool) -> None:
        self.hsm.stop(9 if kill else 15)
        self.hsm.start()
        self.door.restarted()
        self.token = self.hsm.token()

    def metrics(self) -> str:
        return self.ask("GET", "/metrics").body.decode()

    def is_busy(self) -> bool:
        return False

    def size_of_log(self) -> int:
        return sum(path.stat().st_size for path in (self.hsm.data_dir / "audit").glob("*.jsonl"))

    def events(self) -> list[dict]:
        lines = [json.loads(line) for path in sorted((self.hsm.data_dir / "audit").glob("*.jsonl")) for line in path.read_text().splitlines()]
        return [line for line in lines if line["type"] == "event"]

    def mark_of(self, event: dict) -> str | None:
        return event.get("client_request_id") or None

    def change_of(self, event: dict):
        """The change that it tells of, by its number."""
        return event.get("revision")

    def more_faults(self) -> list[str]:
        return []

    def stop(self) -> None:
        self.hsm.stop()
        assert "panicked" not in self.hsm.log.read_text()
