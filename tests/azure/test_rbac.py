"""Local RBAC: built-in roles, custom roles, scopes; allow and deny with two clients that begin with nothing."""
import uuid

import pytest
from azure.core.exceptions import HttpResponseError, ResourceExistsError
from azure.keyvault.administration import KeyVaultDataAction, KeyVaultPermission, KeyVaultRoleScope
from azure.keyvault.keys import KeyClient
from azure.keyvault.keys.crypto import CryptographyClient, EncryptionAlgorithm, KeyWrapAlgorithm
from conftest import Rest, assert_error, b64

CRYPTO_USER = "21dbd100-6940-42c2-9190-5d6cb909625b"
ENCRYPTION_USER = "33413926-3206-4cdd-b39a-83574fe37a17"
AUDITOR = "2c18b078-7c48-4d3a-af88-5a3a1b3f82b3"


def definition_id(guid):
    return f"Microsoft.KeyVault/providers/Microsoft.Authorization/roleDefinitions/{guid}"


@pytest.fixture
def alice(server):
    return KeyClient(server.url, server.credential("alice"), connection_verify=server.ca_file)


@pytest.fixture
def assign(access, server):
    made = []

    def make(client, role, scope=KeyVaultRoleScope.GLOBAL):
        found = access.create_role_assignment(scope, definition_id(role), server.env[f"HOLDFAST_{client.upper()}_OBJECT_ID"], name=uuid.uuid4())
        made.append((scope, found.name))
        return found
    yield make
    for scope, found in made:
        access.delete_role_assignment(scope, found)


def test_built_in_roles(access):
    roles = {role.role_name: role for role in access.list_role_definitions(KeyVaultRoleScope.GLOBAL)}
    administrator = roles["Managed HSM Administrator"]
    assert administrator.name == "a290e904-7015-4bba-90c8-60543313cdb4"
    assert administrator.role_type == "AKVBuiltInRole" and administrator.assignable_scopes == ["/"]
    actions = {action for permission in roles["Managed HSM Crypto Service Encryption User"].permissions for action in permission.data_actions}
    assert actions == {KeyVaultDataAction.READ_HSM_KEY, "Microsoft.KeyVault/managedHsm/keys/wrap/action", "Microsoft.KeyVault/managedHsm/keys/unwrap/action"}
    with pytest.raises(HttpResponseError) as refused:
        access.delete_role_definition(KeyVaultRoleScope.GLOBAL, administrator.name)
    assert refused.value.status_code == 403


def test_nobody_may_do_anything_by_default(server, alice):
    with pytest.raises(HttpResponseError) as refused:
        alice.create_rsa_key("alices", size=2048, hardware_protected=True)
    assert refused.value.status_code == 403 and refused.value.error.code == "AccessDenied"
    assert "Microsoft.KeyVault/managedHsm/keys/create" in refused.value.message
    rest = Rest(server, server.token("alice"))
    for method, path in (("GET", "/keys"), ("GET", "/deletedkeys"), ("POST", "/rng"), ("GET", "/settings"), ("POST", "/keys/restore"),
                         ("GET", "/providers/Microsoft.Authorization/roleDefinitions"), ("POST", "/securitydomain/download"), ("POST", "/backup")):
        assert_error(rest(method, path), 403, "AccessDenied")


def test_role_on_one_key(key_client, alice, assign, server, name):
    key = key_client.create_rsa_key(name, size=2048, hardware_protected=True)
    key_client.create_rsa_key(name + "-other", size=2048, hardware_protected=True)
    assign("alice", ENCRYPTION_USER, f"/keys/{name}")
    assert alice.get_key(name).id == key.id
    crypto = CryptographyClient(alice.get_key(name), server.credential("alice"), connection_verify=server.ca_file)
    wrapped = crypto.wrap_key(KeyWrapAlgorithm.rsa_oaep_256, b"k" * 32)
    assert crypto.unwrap_key(KeyWrapAlgorithm.rsa_oaep_256, wrapped.encrypted_key).key == b"k" * 32
    rest = Rest(server, server.token("alice"))
    for path in (f"/keys/{name}/decrypt", f"/keys/{name}/sign", f"/keys/{name}-other/unwrapkey"):
        assert_error(rest("POST", path, {"alg": "RSA-OAEP", "value": b64(wrapped.encrypted_key)}), 403, "AccessDenied")
    assert_error(rest("GET", "/keys"), 403, "AccessDenied")
    assert_error(rest("DELETE", f"/keys/{name}"), 403, "AccessDenied")


def test_role_for_a_name_that_does_not_exist_yet(alice, assign, name):
    assign("alice", CRYPTO_USER, f"/keys/{name}")
    assert alice.create_rsa_key(name, size=2048, hardware_protected=True).name == name
    with pytest.raises(HttpResponseError):
        alice.create_rsa_key(name + "-x", size=2048, hardware_protected=True)


def test_revocation_is_immediate(key_client, alice, access, server, name):
    key_client.create_rsa_key(name, size=2048, hardware_protected=True)
    role = access.create_role_assignment(KeyVaultRoleScope.KEYS, definition_id(AUDITOR), server.env["HOLDFAST_ALICE_OBJECT_ID"], name=uuid.uuid4())
    assert alice.get_key(name)
    access.delete_role_assignment(KeyVaultRoleScope.KEYS, role.name)
    with pytest.raises(HttpResponseError):
        alice.get_key(name)


def test_custom_role(access, alice, assign, rest, name, key_client):
    key_client.create_rsa_key(name, size=2048, hardware_protected=True)
    role = access.set_role_definition(KeyVaultRoleScope.GLOBAL, role_name=f"readers {name}", description="they read",
                                      permissions=[KeyVaultPermission(data_actions=[KeyVaultDataAction.READ_HSM_KEY])])
    assert role.role_type == "CustomRole" and role.description == "they read"
    assign("alice", role.name)
    assert alice.get_key(name)
    # A PUT replaces: what is not sent becomes empty.
    path = f"/providers/Microsoft.Authorization/roleDefinitions/{role.name}"
    changed = rest.ok("PUT", path, {"properties": {"permissions": [{"dataActions": ["Microsoft.KeyVault/managedHsm/keys/create"]}]}}, status=201)
    assert changed["properties"]["roleName"] == "" and changed["properties"]["permissions"][0]["notDataActions"] == []
    with pytest.raises(HttpResponseError):
        alice.get_key(name)
    access.set_role_definition(KeyVaultRoleScope.GLOBAL, name=role.name, permissions=[KeyVaultPermission(data_actions=[KeyVaultDataAction.READ_HSM_KEY])])
    assert alice.get_key(name)
    access.delete_role_definition(KeyVaultRoleScope.GLOBAL, role.name)
    with pytest.raises(HttpResponseError):
        alice.get_key(name)
    assert_error(rest("DELETE", path), 404, "RoleDefinitionNotFound")
    access.delete_role_definition(KeyVaultRoleScope.GLOBAL, role.name)
    unknown = {"properties": {"permissions": [{"dataActions": ["Microsoft.KeyVault/managedHsm/everything"]}]}}
    assert_error(rest("PUT", f"/providers/Microsoft.Authorization/roleDefinitions/{uuid.uuid4()}", unknown), 400, "BadParameter")


@pytest.mark.parametrize("scopes", [["/"], ["/keys"], ["/", "/keys/"], [], None])
def test_assignable_scopes_are_answered_as_the_whole_hsm(rest, name, scopes):
    path = f"/providers/Microsoft.Authorization/roleDefinitions/{uuid.uuid4()}"
    body = {"properties": {"roleName": name, "assignableScopes": scopes, "permissions": [{"dataActions": [KeyVaultDataAction.READ_HSM_KEY]}]}}
    assert rest.ok("PUT", path, body, status=201)["properties"]["assignableScopes"] == ["/"]
    assert rest.ok("PUT", "/keys" + path, body, status=201)["properties"]["assignableScopes"] == ["/"]
    assert rest.ok("GET", path)["properties"]["assignableScopes"] == ["/"]
    rest.ok("DELETE", path)


def test_a_role_for_one_key_alone_is_refused(rest, name):
    """Such a bound would not be kept."""
    path = f"/providers/Microsoft.Authorization/roleDefinitions/{uuid.uuid4()}"
    for scopes in ([f"/keys/{name}"], ["/", f"/keys/{name}"], ["/subscriptions/x"], ["*"]):
        assert_error(rest("PUT", path, {"properties": {"roleName": name, "assignableScopes": scopes}}), 400, "BadParameter")
    assert_error(rest("PUT", f"/keys/{name}{path}", {"properties": {"roleName": name}}), 400, "BadParameter")
    assert_error(rest("GET", path), 404, "RoleDefinitionNotFound")


def test_who_has_rights_on_one_key_deletes_no_role_of_the_hsm(rest, name):
    path = f"/providers/Microsoft.Authorization/roleDefinitions/{uuid.uuid4()}"
    rest.ok("PUT", path, {"properties": {"roleName": name}}, status=201)
    assert_error(rest("DELETE", f"/keys/{name}{path}"), 400, "BadParameter")
    assert rest.ok("GET", path)["properties"]["roleName"] == name
    rest.ok("DELETE", path)


def test_an_assignment_ends_with_its_key(key_client, alice, assign, access, rest, name):
    """Soft delete and recovery leave it; a purge ends it, and the next key of that name is another one."""
    key_client.create_rsa_key(name, size=2048, hardware_protected=True)
    key_client.create_rsa_key(name + "-other", size=2048, hardware_protected=True)
    scope = f"/keys/{name}"
    guid, other, everywhere = str(uuid.uuid4()), str(uuid.uuid4()), assign("alice", ENCRYPTION_USER, f"{scope}-other")
    body = {"properties": {"roleDefinitionId": definition_id(CRYPTO_USER), "principalId": everywhere.properties.principal_id}}
    path = f"{scope}/providers/Microsoft.Authorization/roleAssignments"
    # The name of a key is the same in any case.
    rest.ok("PUT", f"/keys/{name.upper()}/providers/Microsoft.Authorization/roleAssignments/{guid}", body, status=201)
    rest.ok("PUT", f"{path}/{other}", body | {"properties": body["properties"] | {"roleDefinitionId": definition_id(AUDITOR)}}, status=201)
    assert alice.get_key(name)
    rest.ok("DELETE", scope)
    assert {found["name"] for found in rest.ok("GET", path)["value"]} == {guid, other}
    rest.ok("POST", f"/deletedkeys/{name}/recover")
    assert alice.get_key(name), "it is the same key"
    rest.ok("DELETE", scope)
    rest.ok("DELETE", f"/deletedkeys/{name}", status=204)
    assert rest.ok("GET", path)["value"] == []
    assert_error(rest("DELETE", f"{path}/{guid}"), 404, "RoleAssignmentNotFound")
    key_client.create_rsa_key(name, size=2048, hardware_protected=True)
    with pytest.raises(HttpResponseError) as refused:
        alice.get_key(name)
    assert refused.value.status_code == 403
    assert alice.get_key(name + "-other"), "others are left alone"
    # The name of the assignment is free again.
    rest.ok("PUT", f"{path}/{guid}", body, status=201)
    assert alice.get_key(name)
    rest.ok("DELETE", f"{path}/{guid}")


def test_assignments(access, rest, server, assign, name):
    top = assign("bob", AUDITOR)
    on_key = assign("bob", AUDITOR, f"/keys/{name}")
    listed = {found.name for found in access.list_role_assignments(KeyVaultRoleScope.GLOBAL)}
    assert top.name in listed and on_key.name not in listed
    assert on_key.name in {found.name for found in access.list_role_assignments(f"/keys/{name}")}
    found = access.get_role_assignment(f"/keys/{name}", on_key.name)
    assert found.properties.scope == f"/keys/{name}" and found.role_assignment_id.startswith(f"/keys/{name}/providers/")
    with pytest.raises(ResourceExistsError):
        access.create_role_assignment(KeyVaultRoleScope.GLOBAL, definition_id(AUDITOR), server.env["HOLDFAST_BOB_OBJECT_ID"], name=top.name)
    path = "/providers/Microsoft.Authorization/roleAssignments"
    assert_error(rest("GET", f"{path}/{uuid.uuid4()}"), 404, "RoleAssignmentNotFound")
    assert_error(rest("DELETE", f"{path}/{uuid.uuid4()}"), 404, "RoleAssignmentNotFound")
    nowhere = {"properties": {"principalId": str(uuid.uuid4()), "roleDefinitionId": definition_id(uuid.uuid4())}}
    assert_error(rest("PUT", f"{path}/{uuid.uuid4()}", nowhere), 404, "RoleDefinitionNotFound")
    assert_error(rest("PUT", f"{path}/not-a-guid", nowhere), 400, "BadParameter")
    for scope in ("/providers", "//providers", "/%2F/providers"):
        assert rest("GET", f"{scope}/Microsoft.Authorization/roleAssignments").status_code == 200


def test_settings(settings, rest):
    assert [setting.name for setting in settings.list_settings()] == ["AllowKeyManagementOperationsThroughARM"]
    setting = settings.get_setting("AllowKeyManagementOperationsThroughARM")
    assert setting.getboolean() is False
    setting.value = "true"
    assert settings.update_setting(setting).getboolean() is True
    assert_error(rest("PATCH", f"/settings/{setting.name}", {"value": "TRUE"}), 400, "BadParameter")
    assert_error(rest("GET", "/settings/Nothing"), 404, "SettingNotFound")
    setting.value = "false"
    settings.update_setting(setting)
