"""A removed administrator finishes nothing that he had half sent: his rights are judged when the body is there.

Each is sent once whole and slowly, while nobody is removed: that is carried out, so that the refusal is the removal's.
"""
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
