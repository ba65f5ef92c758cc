"""Attacks. All are refused, and each refusal is in the audit log."""
import datetime
import json
import time

import pytest
from proxy import ALICE, Credential, Kms, assert_refused, b64


def a_new_second():
    """Refusals of nobody that is known are counted within a second, and written apart in the next."""
    time.sleep(1.1)


def last(proxy, **wanted):
    for event in reversed(proxy.events()):
        if all(event.get(name) == value for name, value in wanted.items()):
            return event
    raise AssertionError(wanted)


@pytest.mark.parametrize("offset, taken", [(-295, True), (295, True), (-305, False), (305, False), (-86400, False), (86400, False)])
def test_stale_and_early_signatures(blue, proxy, offset, taken):
    """Five minutes either way. Inside them a request can be sent again: the protocol has no nonce."""
    answer = blue.raw("encrypt", blue.encrypt_body(), offset=offset)
    if taken:
        assert answer.status_code == 200
    else:
        assert_refused(answer, 401, "AuthenticationFailedException")
        assert last(proxy, error="AuthenticationFailedException")["reason"] == "the X-Amz-Date header is more than five minutes off"


def test_replay_inside_the_window_works_and_is_said(blue):
    body = json.dumps(blue.encrypt_body()).encode()
    path = blue.path("encrypt")
    headers = blue.signed(path, body)
    assert [blue.send(path, body, headers).status_code for _ in range(2)] == [200, 200]
    assert "no nonce" in open("SECURITY.md").read()


def test_redated(blue, proxy):
    # Refusals of strangers within a second are one event, with the reason of the first.
    time.sleep(1.2)
    path, body = blue.path("encrypt"), json.dumps(blue.encrypt_body()).encode()
    headers = blue.signed(path, body)
    moment = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=60)
    assert_refused(blue.send(path, body, headers | {"X-Amz-Date": moment.strftime("%Y%m%dT%H%M%SZ")}), 401, "AuthenticationFailedException")
    assert last(proxy, error="AuthenticationFailedException")["reason"] == "the signature does not match"
    assert_refused(blue.send(path, body, headers | {"X-Amz-Date": "20260101T000000Z"}), 401, "AuthenticationFailedException")


def test_rerouted(blue, proxy):
    body = json.dumps(blue.encrypt_body()).encode()
    headers = blue.signed(blue.path("encrypt"), body)
    for path in (blue.path("encrypt", "other"), blue.path("metadata"), blue.path("decrypt"), blue.path("health")):
        assert_refused(blue.send(path, body, headers), 401, "AuthenticationFailedException")
    # To another host.
    assert_refused(blue.send(blue.path("encrypt"), body, headers | {"Host": "xks.example.com"}), 401, "AuthenticationFailedException")


def test_body_swapped(blue):
    path, body = blue.path("encrypt"), json.dumps(blue.encrypt_body()).encode()
    headers = blue.signed(path, body)
    for other in (json.dumps(blue.encrypt_body(b"other")).encode(), body + b" ", body[:-1], b""):
        assert_refused(blue.send(path, other, headers), 401, "AuthenticationFailedException")


def test_query_parameters_are_not_signed_and_so_refused(blue):
    path, body = blue.path("encrypt"), json.dumps(blue.encrypt_body()).encode()
    assert_refused(blue.send(path + "?a=b", body, blue.signed(path, body)), 401, "AuthenticationFailedException")


@pytest.mark.parametrize("change", [
    lambda h: {k: v for k, v in h.items() if k != "Authorization"},
    lambda h: {k: v for k, v in h.items() if k != "X-Amz-Date"},
    lambda h: h | {"Authorization": ""},
    lambda h: h | {"Authorization": "Bearer x"},
    lambda h: h | {"Authorization": h["Authorization"][:-1]},
    lambda h: h | {"Authorization": h["Authorization"][:-1] + "g"},
    lambda h: h | {"Authorization": h["Authorization"].replace("x-amz-date", "x-amz-data")},
    lambda h: h | {"Authorization": h["Authorization"].replace("host;", "")},
    lambda h: h | {"Authorization": h["Authorization"].replace("aws4_request", "aws4_reques")},
    lambda h: h | {"Authorization": h["Authorization"].replace("AWS4-HMAC", "AWS3-HMAC")},
    lambda h: h | {"Authorization": h["Authorization"] + ", Signature=" + "0" * 64},
    lambda h: h | {"Authorization": "AWS4-HMAC-SHA256 " + "A=B," * 4000},
])
def test_mutilated_headers(blue, change):
    path, body = blue.path("encrypt"), json.dumps(blue.encrypt_body()).encode()
    assert_refused(blue.send(path, body, change(blue.signed(path, body))), 401, "AuthenticationFailedException")


def test_wrong_region_service_secret_and_id_look_the_same(blue):
    mine = blue.credential
    answers = [
        blue.raw("encrypt", blue.encrypt_body(), region="eu-central-1"),
        blue.raw("encrypt", blue.encrypt_body(), service="kms"),
        blue.raw("encrypt", blue.encrypt_body(), credential=Credential(mine.access_key, mine.secret + "x", "")),
        blue.raw("encrypt", blue.encrypt_body(), credential=Credential(mine.access_key + "X", mine.secret, "")),
        blue.raw("encrypt", blue.encrypt_body(), credential=Credential("A" * 20, mine.secret, "")),
    ]
    for answer in answers:
        assert_refused(answer, 401, "AuthenticationFailedException")
    assert len({answer.text for answer in answers}) == 1, "nothing tells a known id from an unknown one"


def test_a_leaked_credential_of_another_prefix(blue, green, proxy):
    a_new_second()
    thief = Kms(proxy, Credential(green.credential.access_key, green.credential.secret, blue.credential.uri_path))
    assert_refused(thief.raw("encrypt", thief.encrypt_body()), 401, "AuthenticationFailedException")
    assert last(proxy, error="AuthenticationFailedException")["reason"] == "the access key id is unknown in this store"


def test_a_principal_outside_its_pattern(blue, proxy):
    for principal in (ALICE.replace("123456789012", "999999999999"), "arn:aws:iam::123456789012:user/Mallory", "AWS Internal", "*", "123456789012"):
        assert_refused(blue.raw("encrypt", blue.encrypt_body(awsPrincipalArn=principal)), 403, "AccessDeniedException")
        assert last(proxy, error="AccessDeniedException")["context"]["awsPrincipalArn"] == principal


def test_control_characters_do_not_reach_the_log(blue, proxy):
    evil = ALICE + "\n\x1b[2Jforged line"
    assert blue.raw("encrypt", blue.encrypt_body(awsPrincipalArn=evil, kmsRequestId="evil-\r\n1")).status_code == 200
    event = next(event for event in proxy.events() if event.get("client_request_id") == "evil-??1")
    assert event["context"]["awsPrincipalArn"] == ALICE + "??[2Jforged line"


def test_64_kib_of_aad(blue, proxy):
    assert_refused(blue.raw("encrypt", blue.encrypt_body(aad=b"a" * 65536)), 400, "ValidationException")
    assert last(proxy, error="ValidationException")["operation"] == "Encrypt"
    assert_refused(blue.raw("encrypt", blue.encrypt_body() | {"additionalAuthenticatedData": b64(b"a" * 110_000)}), 400, "ValidationException")


def test_every_refusal_is_in_the_log(blue, proxy):
    a_new_second()
    before = len(proxy.events())
    refused = [
        blue.send("/nowhere", b"", {}),
        blue.send(blue.path("encrypt"), b"", {}, "GET"),
        blue.send(blue.path("encrypt"), b"", {}),
        blue.raw("encrypt", b"{"),
        blue.raw("encrypt", blue.encrypt_body(), "never-heard-of"),
        blue.raw("encrypt", blue.encrypt_body(awsPrincipalArn="AWS Internal")),
        blue.raw("encrypt", blue.encrypt_body(), "decrypt-only"),
    ]
    events = proxy.events()[before:]
    assert [event["error"] for event in events] == [answer.json()["errorName"] for answer in refused]
    assert [event["status"] for event in events] == [answer.status_code for answer in refused]
    assert all(event["outcome"] in ("denied", "failed") for event in events)


def test_rotation_of_credentials_without_a_restart_or_a_dropped_connection(blue, proxy):
    old = Kms(proxy, proxy.add_credential("blue"))
    old.encrypt()
    new = Kms(proxy, proxy.add_credential("blue"))
    assert old.decrypt(new.encrypt()) == b"k" * 32, "both live"
    proxy.change("credential-remove", "--store", "blue", "--access-key-id", old.credential.access_key)
    assert_refused(old.raw("encrypt", old.encrypt_body()), 401, "AuthenticationFailedException")
    new.encrypt()
    proxy.change("credential-remove", "--store", "blue", "--access-key-id", new.credential.access_key)
