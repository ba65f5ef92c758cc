"""A removed administrator finishes nothing that he had half sent: his rights are judged when the body is there.

Each is sent once whole and slowly, while nobody is removed: that is carried out, so that the refusal is the removal's.
Nor does what he sent before wait out his removal, for a lock or for the disk.
"""
import contextlib
import json
import ssl
import uuid

import pytest
from cutting import Door, Request, half_sent
from managed_hsm import ADMIN, CRYPTO_OFFICER, CRYPTO_USER, KMS, ROLES, Hsm

ADMINISTRATOR = "a290e904-7015-4bba-90c8-60543313cdb4"


@pytest.fixture(scope="module")
def hsm(tmp_path_factory):
    hsm = Hsm(tmp_path_factory.mktemp("removed") / "hsm")
    hsm.start()
    for role in (CRYPTO_USER, CRYPTO_OFFICER):
        hsm.grant(role, ADMIN[1])
    yield hsm
    hsm.stop()
    assert "panicked" not in hsm.log.read_text()


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize("what", ["assignment", "definition", "key", "update", "setting"])
def test_a_removed_administrator(hsm, what, removed):
    """The second administrator is removed in the middle of the body by which he would come back, or leave something behind."""
    second, oid, name = "kms", KMS[1], f"half-{uuid.uuid4().hex[:8]}"
    for item in hsm("GET", ROLES)["value"]:
        if item["properties"]["principalId"] == oid:
            hsm("DELETE", f"{ROLES}/{item['name']}")
    roles = [hsm.grant(role, oid) for role in (ADMINISTRATOR, CRYPTO_USER)]
    if what == "update":
        hsm("POST", f"/keys/{name}/create", {"kty": "oct-HSM"})
    role = ADMINISTRATOR if removed else CRYPTO_OFFICER
    back = {"properties": {"roleDefinitionId": f"Microsoft.KeyVault/providers/Microsoft.Authorization/roleDefinitions/{role}", "principalId": oid}}
    definition = {"properties": {"roleName": name, "type": "CustomRole", "assignableScopes": ["/"], "permissions": [{"dataActions": ["Microsoft.KeyVault/managedHsm/keys/read/action"]}]}}
    guid = str(uuid.uuid4())
    method, path, body = {
        "assignment": ("PUT", f"{ROLES}/{guid}", back),
        "definition": ("PUT", f"/providers/Microsoft.Authorization/roleDefinitions/{guid}", definition),
        "key": ("POST", f"/keys/{name}/create", {"kty": "oct-HSM"}),
        "update": ("PATCH", f"/keys/{name}", {"tags": {"half": "sent"}}),
        "setting": ("PATCH", "/settings/AllowKeyManagementOperationsThroughARM", {"value": "true"}),
    }[what]
    headers = {"Host": f"127.0.0.1:{hsm.port}", "Authorization": f"Bearer {hsm.token(second)}", "Content-Type": "application/json"}
    request = Request.http(method, f"{path}?api-version=7.5", headers, json.dumps(body).encode())
    door = Door(hsm.port, ssl.create_default_context(cafile=hsm.data_dir / "ca.pem"), "127.0.0.1")
    with half_sent(door, request) as answer:
        if removed:
            for role in roles:
                hsm("DELETE", f"{ROLES}/{role}")
        status, text = answer()
    if not removed:
        assert status in (200, 201), text
        return
    assert status == 403, (status, text)
    assert not any(item["properties"]["principalId"] == oid for item in hsm("GET", ROLES)["value"])
    if what == "update":
        assert not hsm("GET", f"/keys/{name}").get("tags")
    elif what != "setting":
        assert name not in json.dumps([hsm("GET", "/keys"), hsm("GET", "/providers/Microsoft.Authorization/roleDefinitions")])


def test_no_change_of_his_comes_after_his_removal(hsm):
    """He sends more than can be done at once; his removal is sent among them. By the numbers of the changes his end with it."""
    door = Door(hsm.port, ssl.create_default_context(cafile=hsm.data_dir / "ca.pem"), "127.0.0.1")

    def request(who: str, method: str, path: str, body=None) -> Request:
        headers = {"Host": f"127.0.0.1:{hsm.port}", "Authorization": f"Bearer {hsm.token(who)}", "Content-Type": "application/json"}
        return Request.http(method, f"{path}?api-version=7.5", headers, json.dumps(body).encode() if body else b"")

    def assign(principal: str) -> tuple[str, dict]:
        definition = f"Microsoft.KeyVault/providers/Microsoft.Authorization/roleDefinitions/{CRYPTO_OFFICER}"
        return f"{ROLES}/{uuid.uuid4()}", {"properties": {"roleDefinitionId": definition, "principalId": principal}}
    for item in hsm("GET", ROLES)["value"]:
        if item["properties"]["principalId"] == KMS[1]:
            hsm("DELETE", f"{ROLES}/{item['name']}")
    removals, made = set(), 0
    for _ in range(5):
        role = hsm.grant(ADMINISTRATOR, KMS[1])
        removals.add(role)
        his = [request("kms", "PUT", *assign(str(uuid.uuid4()))) for _ in range(16)]
        removal = request("admin", "DELETE", f"{ROLES}/{role}")
        with contextlib.ExitStack() as open_streams:
            streams = [open_streams.enter_context(door.connect()) for _ in range(len(his) + 1)]
            sent = his[:6] + [removal] + his[6:]
            for stream, each in zip(streams, sent):
                stream.sendall(each.head + each.body)
            answers = [stream.recv(65536) for stream in streams]
        assert answers[6].startswith(b"HTTP/1.1 200"), answers[6]
        made += sum(b" 201 " in answer[:16] for answer in answers)
    events = [json.loads(line) for path in sorted((hsm.data_dir / "audit").glob("*.jsonl")) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    changes = sorted((event for event in events if event.get("revision") and event.get("outcome") == "allowed"), key=lambda event: event["revision"])
    rights = 0
    late = []
    for event in changes:
        who, operation = event["caller"].get("oid"), event["operation"]
        removed = operation == "RoleAssignmentDelete" and any(role in event["path"] for role in removals)
        if who == KMS[1] and not rights:
            late.append(event)
        rights = 0 if removed else 1 if operation == "RoleAssignmentCreate" and who == ADMIN[1] else rights
    assert made, "in no round did any of his come before"
    assert not late, f"{len(late)} changes of somebody who was removed before, such as {late[0]}"
