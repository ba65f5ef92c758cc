"""Listings as clients of every age follow them: links as they stand, and items that go between one page and the next."""
import uuid

import pytest
import requests
from conftest import Rest, assert_error
from test_rbac import AUDITOR, definition_id

COUNT = 28  # one page holds 25


def kids(pages: list[dict]) -> list[str]:
    return [item["kid"] for page in pages for item in page["value"]]


def follow(rest: Rest, path: str, between=lambda: None, change=lambda link: link, **params) -> list[dict]:
    """All pages, each but the first by the link as it stands; `between` happens once, after the first page."""
    pages = [rest.ok("GET", path, params=params)]
    while link := pages[-1].get("nextLink"):
        if len(pages) == 1:
            between()
        assert link.startswith(rest.server.url + path), link
        answer = requests.get(change(link), headers={"Authorization": f"Bearer {rest.token}"}, verify=rest.server.ca_file, timeout=30)
        assert answer.status_code == 200, answer.text
        pages.append(answer.json())
    return pages


WAYS = {"as it stands": lambda link: link, "with the client's own": lambda link: link + "&api-version=7.4"}


@pytest.fixture
def prefix(rest):
    """A name for keys that are gone when the test is over."""
    prefix = f"l{uuid.uuid4().hex[:10]}"
    yield prefix
    for path in ("/keys", "/deletedkeys"):
        for kid in kids(follow(rest, path)):
            if (name := kid.rsplit("/", 1)[1]).startswith(prefix):
                rest("DELETE", f"{path}/{name}")
                rest("DELETE", f"/deletedkeys/{name}")


def make(rest: Rest, prefix: str) -> list[str]:
    names = [f"{prefix}-{number:02}" for number in range(COUNT)]
    for name in names:
        rest.ok("POST", f"/keys/{name}/create", {"kty": "oct-HSM"})
    return names


@pytest.mark.parametrize("way", WAYS)
def test_a_next_link_works_as_it_stands(rest, prefix, way):
    names = make(rest, prefix)
    mine = lambda path, **params: [kid.rsplit("/", 1)[1] for kid in kids(follow(rest, path, change=WAYS[way], **params)) if f"/{prefix}" in kid]
    assert mine("/keys") == names and mine("/keys", maxresults=7) == names
    for name in names:
        rest.ok("DELETE", f"/keys/{name}")
    assert mine("/deletedkeys") == names and mine("/keys") == []
    rest.ok("POST", f"/deletedkeys/{names[0]}/recover")
    for _ in range(COUNT - 1):
        rest.ok("POST", f"/keys/{names[0]}/create", {"kty": "oct-HSM"})
    versions = kids(follow(rest, f"/keys/{names[0]}/versions", change=WAYS[way]))
    assert len(set(versions)) == len(versions) == COUNT


def test_a_link_with_another_version_is_refused(rest, prefix):
    make(rest, prefix)
    link = rest.ok("GET", "/keys", params={"maxresults": 1})["nextLink"]
    headers = {"Authorization": f"Bearer {rest.token}"}
    refused = requests.get(link + "&api-version=1.0", headers=headers, verify=rest.server.ca_file)
    assert_error(refused, 400, "BadParameter")
    assert_error(rest("GET", "/keys", params={"$skiptoken": "nonsense"}), 400, "BadParameter")
    # What is not the next page of anything still needs its version.
    assert_error(rest("GET", "/keys", version=None), 400, "BadParameter")


def test_a_listing_goes_on_although_its_marker_is_gone(rest, prefix):
    names = make(rest, prefix)
    first = {kid.rsplit("/", 1)[1] for kid in kids([rest.ok("GET", "/keys")])}

    def deleted():
        for name in first & set(names):
            rest.ok("DELETE", f"/keys/{name}")
    told = {kid.rsplit("/", 1)[1] for kid in kids(follow(rest, "/keys", deleted))}
    assert told >= set(names), set(names) - told

    in_bin = {kid.rsplit("/", 1)[1] for kid in kids(follow(rest, "/deletedkeys", maxresults=5))} & set(names)

    def purged():
        for kid in kids([rest.ok("GET", "/deletedkeys", params={"maxresults": 5})]):
            rest.ok("DELETE", f"/deletedkeys/{kid.rsplit('/', 1)[1]}", status=204)
    told = {kid.rsplit("/", 1)[1] for kid in kids(follow(rest, "/deletedkeys", purged, maxresults=5))}
    assert told >= in_bin, in_bin - told


def test_versions_of_a_key_that_goes_meanwhile(rest, name):
    for _ in range(COUNT):
        rest.ok("POST", f"/keys/{name}/create", {"kty": "oct-HSM"})
    path = f"/keys/{name}/versions"
    assert len(kids(follow(rest, path, lambda: rest.ok("DELETE", f"/keys/{name}")))) == 25
    rest.ok("POST", f"/deletedkeys/{name}/recover")

    def another():
        rest.ok("DELETE", f"/keys/{name}")
        rest.ok("DELETE", f"/deletedkeys/{name}", status=204)
        rest.ok("POST", f"/keys/{name}/create", {"kty": "oct-HSM"})
    # The next key of that name is younger than all that was told.
    assert len(kids(follow(rest, path, another))) == 26


def test_versions_of_a_key_that_is_not_there(rest, key_client, name):
    assert rest.ok("GET", f"/keys/{name}/versions") == {"value": []}
    assert list(key_client.list_properties_of_key_versions(name)) == []
    rest.ok("POST", f"/keys/{name}/create", {"kty": "oct-HSM"})
    rest.ok("DELETE", f"/keys/{name}")
    assert rest.ok("GET", f"/keys/{name}/versions") == {"value": []}
    assert_error(rest("GET", f"/keys/{name}"), 404, "KeyNotFound")


def test_filters_of_role_assignments(rest, server, access, name):
    """At the scope alone; at and above it; of one principal at, above and below it."""
    bob, alice = server.env["HOLDFAST_BOB_OBJECT_ID"], server.env["HOLDFAST_ALICE_OBJECT_ID"]
    top, keys, key = "", "/keys", f"/keys/{name}"
    made = {}
    for scope in (top, keys, key):
        for principal in (bob, alice):
            guid = str(uuid.uuid4())
            body = {"properties": {"roleDefinitionId": definition_id(AUDITOR), "principalId": principal}}
            rest.ok("PUT", f"{scope}/providers/Microsoft.Authorization/roleAssignments/{guid}", body, status=201)
            made[scope, principal] = guid

    def listed(scope: str, **params) -> set[str]:
        found = rest.ok("GET", f"{scope}/providers/Microsoft.Authorization/roleAssignments", params=params)["value"]
        return {item["name"] for item in found} & set(made.values())

    def of(*who) -> set[str]:
        return {made[one] for one in who}
    both = (bob, alice)
    everywhere = {made[scope, bob] for scope in (top, keys, key)}
    try:
        assert listed(key) == of(*((key, who) for who in both))
        assert listed(key, **{"$filter": "atScope()"}) == set(made.values())
        assert listed(top, **{"$filter": "atScope()"}) == listed(top) == of(*((scope, who) for scope in (top, keys) for who in both))
        for text in (f"principalId eq {bob}", f"principalId eq '{bob}'", f"principalId eq {bob.upper()}"):
            for scope in (top, keys, key):
                assert listed(scope, **{"$filter": text}) == everywhere, (scope, text)
        assert listed(f"/keys/{name}-other", **{"$filter": f"principalId eq {bob}"}) == of((top, bob), (keys, bob))
        for bad in ("principalId eq", "principalId eq bob", f"principalId ne {bob}", f"principalId eq '{bob}", f"assignedTo('{bob}')",
                    "roleName eq 'x'", "atScopeAndBelow()", "nonsense", f"principalId eq {bob} or atScope()"):
            path = "/providers/Microsoft.Authorization/roleAssignments"
            assert_error(rest("GET", path, params={"$filter": bad}), 400, "BadParameter")
    finally:
        for (scope, _), guid in made.items():
            rest.ok("DELETE", f"{scope}/providers/Microsoft.Authorization/roleAssignments/{guid}")


def test_filters_of_role_definitions(rest):
    path = "/providers/Microsoft.Authorization/roleDefinitions"
    names = lambda **params: {role["properties"]["roleName"] for role in rest.ok("GET", path, params=params)["value"]}
    everything = names()
    assert names(**{"$filter": "atScopeAndBelow()"}) == everything and "Managed HSM Crypto Auditor" in everything
    assert names(**{"$filter": "roleName eq 'Managed HSM Crypto Auditor'"}) == {"Managed HSM Crypto Auditor"}
    assert names(**{"$filter": "type eq 'AKVBuiltInRole'"}) <= everything
    for bad in ("type eq CustomRole", "nonsense", f"principalId eq {uuid.uuid4()}"):
        assert_error(rest("GET", path, params={"$filter": bad}), 400, "BadParameter")
