"""Every listing, page by page: markers of its own, and none of another."""
import base64
import concurrent.futures
import os

import pytest
from service import OTHER_REGION, Service, iam, refused
from test_rotation import external, import_material

NOWHERE = "1234abcd-12ab-34cd-56ef-1234567890ab"


class Pages:
    """One listing: how it is asked for, how its items are called, how one of them goes."""

    def __init__(self, client, operation: str, items: str, name: str, remove=None, page: int = 3, **asked):
        self.call, self.items, self.name, self.remove = getattr(client, operation), items, name, remove
        self.asked = asked | {"Limit": page}

    def page(self, marker: str | None = None) -> tuple[list, str | None]:
        answer = self.call(**self.asked, **({"Marker": marker} if marker else {}))
        assert answer["Truncated"] == ("NextMarker" in answer)
        return [item[self.name] for item in answer[self.items]], answer.get("NextMarker")

    def all(self) -> list:
        found, marker = self.page()
        while marker:
            more, marker = self.page(marker)
            found += more
        return found


@pytest.fixture(scope="module")
def listings(tmp_path_factory):
    """Every listing that has pages, each with ten items."""
    service = Service(tmp_path_factory.mktemp("pages")).start()
    kms = service.client("root")
    keys = [kms.create_key()["KeyMetadata"]["KeyId"] for _ in range(12)]
    target = keys[0]
    for number in range(10):
        kms.create_alias(AliasName=f"alias/page-{number}", TargetKeyId=target)
        kms.create_grant(KeyId=target, GranteePrincipal=iam("user/bob"), RetiringPrincipal=iam("user/alice"), Operations=["Encrypt"])
    kms.tag_resource(KeyId=target, Tags=[{"TagKey": f"tag-{number}", "TagValue": ""} for number in range(10)])
    for _ in range(9):
        kms.rotate_key_on_demand(KeyId=target)
    yield service, {
        "ListKeys": Pages(kms, "list_keys", "Keys", "KeyId"),
        "ListAliases": Pages(kms, "list_aliases", "Aliases", "AliasName"),
        "ListAliases of a key": Pages(kms, "list_aliases", "Aliases", "AliasName", KeyId=target),
        "ListGrants": Pages(kms, "list_grants", "Grants", "GrantId", KeyId=target),
        "ListGrants of a grantee": Pages(kms, "list_grants", "Grants", "GrantId", KeyId=target, GranteePrincipal=iam("user/bob")),
        "ListRetirableGrants": Pages(kms, "list_retirable_grants", "Grants", "GrantId", RetiringPrincipal=iam("user/alice")),
        "ListResourceTags": Pages(kms, "list_resource_tags", "Tags", "TagKey", KeyId=target),
        "ListKeyRotations": Pages(kms, "list_key_rotations", "Rotations", "KeyMaterialId", KeyId=target),
        "ListKeyRotations of all": Pages(kms, "list_key_rotations", "Rotations", "KeyMaterialId", KeyId=target, IncludeKeyMaterial="ALL_KEY_MATERIAL"),
    }
    service.check_end()


LISTINGS = ["ListKeys", "ListAliases", "ListAliases of a key", "ListGrants", "ListGrants of a grantee", "ListRetirableGrants", "ListResourceTags",
            "ListKeyRotations", "ListKeyRotations of all"]


@pytest.mark.parametrize("name", LISTINGS)
def test_foreign_markers(listings, name):
    service, pages = listings
    listing = pages[name]
    everything = listing.all()
    assert len(everything) >= 9 and len(set(everything)) == len(everything)
    first, marker = listing.page()
    assert listing.page(marker) == listing.page(marker), "a marker may be used again"
    for foreign in ["x", first[-1], NOWHERE, marker[:-4], marker + "AAAA", "A" + marker[1:], base64.b64encode(base64.b64decode(marker)[:-1]).decode(), "ä", " "]:
        with refused("InvalidMarkerException"):
            listing.page(foreign)
    for bad in ("x" * 1025,):
        with refused("ValidationException"):
            listing.page(bad)
    with refused("ValidationException"):
        listing.call(**listing.asked, Marker="")
    for other, theirs in pages.items():
        if other != name:
            with refused("InvalidMarkerException"):
                listing.page(theirs.page()[1])
    # A page may have another size than that before.
    rest, listing.asked["Limit"] = [], 4
    while marker:
        more, marker = listing.page(marker)
        rest += more
    listing.asked["Limit"] = 3
    assert first + rest == everything


def test_a_marker_is_for_one_account_region_and_key(listings, kms):
    service, pages = listings
    root = service.client("root")
    marker = pages["ListKeys"].page()[1]
    for client in (service.client("stranger"), service.client("root", OTHER_REGION)):
        with refused("InvalidMarkerException"):
            client.list_keys(Marker=marker)
    assert service.client("admin").list_keys(Marker=marker)["Keys"], "another caller of the account sees the same"
    other = root.create_key()["KeyMetadata"]["KeyId"]
    for name, call in [("ListGrants", root.list_grants), ("ListResourceTags", root.list_resource_tags), ("ListKeyRotations", root.list_key_rotations)]:
        with refused("InvalidMarkerException"):
            call(KeyId=other, Marker=pages[name].page()[1])
    # The one listing that always has one page has no marker, and its model no InvalidMarkerException.
    assert root.list_key_policies(KeyId=other) | {"ResponseMetadata": 0} == {"PolicyNames": ["default"], "Truncated": False, "ResponseMetadata": 0}
    for foreign in ("x", marker):
        with refused("ValidationException"):
            root.list_key_policies(KeyId=other, Marker=foreign)


def test_markers_outlive_a_restart(listings):
    service, pages = listings
    markers = {name: listing.page()[1] for name, listing in pages.items()}
    wanted = {name: listing.page(markers[name]) for name, listing in pages.items()}
    service.restart(9)
    assert {name: listing.page(markers[name]) for name, listing in pages.items()} == wanted


@pytest.mark.parametrize("name", ["ListAliases", "ListGrants", "ListRetirableGrants", "ListResourceTags"])
def test_pages_go_on_when_the_item_of_the_marker_is_gone(own, name):
    """Every page's items are deleted before the next is asked for, the last one first: all are seen."""
    kms = own.client("root")
    key = kms.create_key(Tags=[{"TagKey": f"tag-{number}", "TagValue": ""} for number in range(10)])["KeyMetadata"]["KeyId"]
    for number in range(10):
        kms.create_alias(AliasName=f"alias/page-{number}", TargetKeyId=key)
        kms.create_grant(KeyId=key, GranteePrincipal=iam("user/bob"), RetiringPrincipal=iam("user/alice"), Operations=["Encrypt"])

    def revoke(grant: str) -> None:
        kms.revoke_grant(KeyId=key, GrantId=grant)

    listing = {
        "ListAliases": Pages(kms, "list_aliases", "Aliases", "AliasName", lambda alias: kms.delete_alias(AliasName=alias)),
        "ListGrants": Pages(kms, "list_grants", "Grants", "GrantId", revoke, KeyId=key),
        "ListRetirableGrants": Pages(kms, "list_retirable_grants", "Grants", "GrantId", revoke, RetiringPrincipal=iam("user/alice")),
        "ListResourceTags": Pages(kms, "list_resource_tags", "Tags", "TagKey", lambda tag: kms.untag_resource(KeyId=key, TagKeys=[tag]), KeyId=key),
    }[name]
    everything, seen = listing.all(), []
    assert len(everything) == 10
    found, marker = listing.page()
    while True:
        seen += found
        for item in reversed(found):
            listing.remove(item)
        if marker is None:
            break
        found, marker = listing.page(marker)
    assert seen == everything and listing.all() == []


def key_store(kms, number: int) -> str:
    """A store of a proxy that nobody looks at before it is connected."""
    return kms.create_custom_key_store(
        CustomKeyStoreName=f"store-{number}", CustomKeyStoreType="EXTERNAL_KEY_STORE", XksProxyConnectivity="VPC_ENDPOINT_SERVICE",
        XksProxyUriEndpoint="https://xks.example.com", XksProxyUriPath=f"/store-{number}/kms/xks/v1",
        XksProxyVpcEndpointServiceName="com.amazonaws.vpce.us-east-1.vpce-svc-0123456789",
        XksProxyAuthenticationCredential={"AccessKeyId": "A" * 20, "RawSecretAccessKey": "s" * 43})["CustomKeyStoreId"]


def test_pages_of_key_stores(own):
    kms = own.client("root")
    stores = sorted(key_store(kms, number) for number in range(10))
    listing = Pages(kms, "describe_custom_key_stores", "CustomKeyStores", "CustomKeyStoreId",
                    lambda store: kms.delete_custom_key_store(CustomKeyStoreId=store))
    assert listing.all() == stores
    found, marker = listing.page()
    for _ in range(2):
        kms.create_key()
    for foreign in ("x", found[-1], stores[5], marker[:-4], kms.list_keys(Limit=1)["NextMarker"]):
        with refused("InvalidMarkerException"):
            listing.page(foreign)
    for client in (own.client("stranger"), own.client("root", OTHER_REGION)):
        with refused("InvalidMarkerException"):
            client.describe_custom_key_stores(Marker=marker)
    own.restart(9)
    seen = list(found)
    while marker:
        for store in reversed(found):
            listing.remove(store)
        found, marker = listing.page(marker)
        seen += found
    assert seen == stores


def test_changes_of_one_key_store_are_done_one_after_the_other(own):
    kms = own.client("root", max_pool_connections=16)
    store = key_store(kms, 1)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        names = [f"name-{number}" for number in range(48)]
        list(pool.map(lambda name: kms.update_custom_key_store(CustomKeyStoreId=store, NewCustomKeyStoreName=name), names))
    assert kms.describe_custom_key_stores(CustomKeyStoreId=store)["CustomKeyStores"][0]["CustomKeyStoreName"] in names


def test_pages_of_imported_material_go_on_when_it_is_gone(kms):
    key = external(kms)
    import_material(kms, key, os.urandom(32))
    pending = import_material(kms, key, os.urandom(32), ImportType="NEW_KEY_MATERIAL")["KeyMaterialId"]
    asked = {"KeyId": key, "IncludeKeyMaterial": "ALL_KEY_MATERIAL", "Limit": 1}
    first = kms.list_key_rotations(**asked)
    assert kms.list_key_rotations(**asked, Marker=first["NextMarker"])["Rotations"][0]["KeyMaterialId"] == pending
    kms.rotate_key_on_demand(KeyId=key)
    again = kms.list_key_rotations(**asked, Marker=first["NextMarker"])
    assert [found["KeyMaterialId"] for found in again["Rotations"]] == [pending] and not again["Truncated"]
    last = import_material(kms, key, os.urandom(32), ImportType="NEW_KEY_MATERIAL")["KeyMaterialId"]
    whole = kms.list_key_rotations(**asked | {"Limit": 3})
    assert [found["KeyMaterialId"] for found in whole["Rotations"]][-1] == last
    page = kms.list_key_rotations(**asked | {"Limit": 2})
    # What waits leaves no trace when it is deleted; the marker before it still leads to the end.
    kms.delete_imported_key_material(KeyId=key, KeyMaterialId=last)
    assert kms.list_key_rotations(**asked, Marker=page["NextMarker"])["Rotations"] == []


def test_new_material_while_other_waits(kms):
    key = external(kms)
    import_material(kms, key, os.urandom(32))
    with refused("KMSInvalidStateException") as error:
        kms.rotate_key_on_demand(KeyId=key)
    assert error.message.startswith("No available key material pending rotation for the key: ")
    pending = import_material(kms, key, os.urandom(32), ImportType="NEW_KEY_MATERIAL")["KeyMaterialId"]
    with refused("KMSInvalidStateException") as error:
        import_material(kms, key, os.urandom(32), ImportType="NEW_KEY_MATERIAL")
    assert error.message.startswith("New key material (id: ") and error.message.endswith(f"because another key material (id: {pending}) is pending rotation.")
