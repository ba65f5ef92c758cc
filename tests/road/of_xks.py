"""The doors of the external key store proxy, for the cut battery: AWS XKS, Azure EKM, and the socket at which operators change things."""
import base64
import contextlib
import hashlib
import json
import os
import ssl
import time

import requests
from authority import Authority
from battery import Operation
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cutting import Answer, Door, Request
from pool import POOL, VERSION, Azure, enc
from proxy import Kms, Proxy, free_port
from softhsm import MODULE, PIN, SoftHsm

SOFTWARE = '[[hsms]]\nname = "east"\nsoftware_insecure = true\n'
STORE = '[[stores]]\nname = "{0}"\npath_prefix = "/{0}"\nregion = "us-east-1"\nmode = "trust-provider"\nrequests_per_sec = 100000\nkeys = {1}\n'
KEY = '[[keys]]\nid = "{0}"\nhsms = ["east"]\nlabel = "{0}"\n'
OPEN_PROPOSALS = 24
"""Of an operation of a quorum: sixty-four may be open at once."""


class OfProxy:
    """What the doors of a proxy have in common."""

    proxy: Proxy
    door: Door

    def send(self, operation: Operation, request: Request) -> Answer:
        return (operation.door or self.door).call(request)

    def tell(self, pool) -> dict:
        return {}

    def restart(self, kill: bool) -> None:
        self.proxy.stop(how=9 if kill else 15)
        self.proxy.start()
        self.door.restarted()

    @property
    def logs(self):
        return sorted((self.proxy.state / "processes" / "a" / "audit").glob("*.jsonl"))

    def metrics(self) -> str:
        return requests.get(f"http://127.0.0.1:{self.proxy.metrics['a']}/metrics", timeout=30).text

    def is_busy(self) -> bool:
        """Events may wait in the state for a moment."""
        return self.proxy.status()["state"]["events_to_tell"] > 0

    def size_of_log(self) -> int:
        return sum(path.stat().st_size for path in self.logs)

    def events(self) -> list[dict]:
        return self.proxy.events()

    def mark_of(self, event: dict) -> str | None:
        return event.get("client_request_id")

    def change_of(self, event: dict):
        """Each line counts: only after a crash may an event be written twice, and here nothing crashes."""
        return None

    def more_faults(self) -> list[str]:
        return []

    def stop(self) -> None:
        self.proxy.verify_audit()
        self.proxy.stop()
        assert "panicked" not in self.proxy.log().read_text()


class Xks(OfProxy):
    """Uses, over both protocols, of keys in an HSM that is a process of its own. Nobody sees them but by their events."""

    def __init__(self, directory, cuts: int):
        authority, port = Authority(directory, "azure-ca"), free_port()
        softhsm = SoftHsm(directory / "softhsm")
        softhsm.init_token("east")
        softhsm.aes("east", "data")
        softhsm.aes("east", "kek", encrypt=False, decrypt=False, wrap=True)
        hsm = f'[[hsms]]\nname = "east"\nmodule = "{MODULE}"\ntoken_label = "east"\nenvironment = {{ SOFTHSM2_CONF = "{softhsm.conf}" }}\nsessions = 4\n'
        self.proxy = Proxy(directory / "proxy", hsm, tls=f'ekm_client_ca_file = "{authority.file}"', listen=f'ekm_address = "127.0.0.1:{port}"').start()
        self.proxy.change("hsm-pin", "--hsm", "east", secret=PIN)
        self.proxy.wait_for_hsm("east")
        self.proxy.set_policy(
            "version = 1\n" + STORE.format("aws", '["data"]') + KEY.format("data") + KEY.format("kek")
            + f'[[stores]]\nname = "azure"\npath_prefix = "/azure/pool-1"\ndialect = "azure-ekm"\nmode = "trust-provider"\nclient_subject = "{POOL}"\n'
            f'client_ca_sha256 = "{authority.sha256()}"\nkeys = ["kek"]\nrequests_per_sec = 100000\n')
        self.aws = Kms(self.proxy, self.proxy.add_credential("aws"), key="data")
        self.azure = Azure(self.proxy, port, authority.client(POOL))
        self.door = Door(self.proxy.ports["a"], ssl.create_default_context(cafile=self.proxy.ca_file))
        context = ssl.create_default_context(cafile=self.proxy.ca_file)
        context.load_cert_chain(*self.azure.certificate)
        self.other_door = Door(port, context)
        sealed, wrapped = self.aws.encrypt(), self.azure.ok("kek/wrapkey", alg="A256KW", value=enc(b"k" * 32))["value"]
        self.operations = [
            self.of_aws("Encrypt", "encrypt", lambda mark: self.aws.encrypt_body(kmsRequestId=mark)),
            self.of_aws("Decrypt", "decrypt", lambda mark: self.aws.decrypt_body(sealed, kmsRequestId=mark)),
            self.of_aws("GetKeyMetadata", "metadata", lambda mark: {"requestMetadata": self.aws.metadata("DescribeKey", kmsRequestId=mark)}),
            self.of_azure("WrapKey", "kek/wrapkey", alg="A256KW", value=enc(b"k" * 32)),
            self.of_azure("UnwrapKey", "kek/unwrapkey", alg="A256KW", value=wrapped),
            self.of_azure("Metadata", "kek/metadata"),
        ]

    def of_aws(self, name: str, word: str, members) -> Operation:
        def request(subject, mark):
            body, path = json.dumps(members(mark)).encode(), self.aws.path(word)
            headers = {"Host": f"localhost:{self.door.port}"} | self.aws.signed(path, body)
            return Request.http("POST", path, headers, body)
        return Operation(name, str, request)

    def of_azure(self, name: str, path: str, **more) -> Operation:
        def request(subject, mark):
            body = json.dumps({"request_context": {"correlation_id": mark, "pool_name": "pool-1", "request_id": "r-1"}} | more).encode()
            headers = {"Host": f"localhost:{self.azure.port}", "Content-Type": "application/json"}
            return Request.http("POST", f"{self.azure.prefix}/{path}?api-version={VERSION}", headers, body)
        return Operation(name, str, request, door=self.other_door)

    def restart(self, kill: bool) -> None:
        super().restart(kill)
        self.other_door.restarted()
        self.proxy.wait_for_hsm("east")


class Quorum(OfProxy):
    """Changes by two operators, over the admin socket. A proposal and its execution are told apart by their events."""

    def __init__(self, directory, cuts: int):
        self.proxy = Proxy(directory / "proxy", SOFTWARE).start()
        self.socket = self.proxy.state / "processes" / "a" / "admin-socket.path"
        self.signers = {name: load_pem_private_key(path.read_bytes(), None) for name, path in self.proxy.keys.items()}
        self.door = Door(path=self.socket.read_text)
        self.wait()
        self.instance, self.marks = self.ask(op="hello")["instance"], {}
        self.operations = self.acts()
        names = [f"{operation.title.lower()}-{number}" for operation in self.operations for number in range(OPEN_PROPOSALS + 10)]
        self.proxy.set_policy("version = 1\n" + "".join(STORE.format(name, f'["{name}"]') + KEY.format(name) for name in names))

    def acts(self) -> list[Operation]:
        raise NotImplementedError

    def wait(self) -> None:
        """Until the socket is there: a moment after the proxy is well."""
        for _ in range(1000):
            with contextlib.suppress(OSError):
                return self.door.connect().close()
            time.sleep(0.01)
        raise AssertionError("no admin socket")

    def restart(self, kill: bool) -> None:
        super().restart(kill)
        self.wait()

    # Requests.

    def line(self, **members) -> Request:
        return Request(b"", json.dumps(members).encode() + b"\n")

    def ask(self, **members) -> dict:
        return self.door.line(self.line(**members))

    def send(self, operation: Operation, request: Request) -> Answer:
        answer = self.door.line(request)
        return Answer(200 if answer["done"] else 400, {}, json.dumps(answer).encode())

    def sign(self, operator: str, text: str) -> str:
        statement = f"holdfast quorum v1\napprove\n{hashlib.sha256(text.encode()).hexdigest()}\n"
        return base64.b64encode(self.signers[operator].sign(statement.encode())).decode()

    def proposal(self, mark: str, change: dict, secret: bytes | None = None) -> dict:
        """The members that propose it."""
        members = {}
        if secret is not None:
            blind = os.urandom(32)
            change = change | {"commitment": hashlib.sha256(blind + secret).hexdigest()}
            members = {"secret": {"blind": base64.b64encode(blind).decode(), "secret": base64.b64encode(secret).decode()}}
        now = int(time.time())
        text = json.dumps({"instance": self.instance, "proposer": "ann", "created": now, "expires": now + 3600, "nonce": mark, "change": change})
        return {"op": "propose", "text": text, "signature": self.sign("ann", text)} | members

    def of_proposal(self, members: dict) -> str:
        return hashlib.sha256(members["text"].encode()).hexdigest()[:16]

    def done(self, **members) -> None:
        answer = self.ask(**members)
        assert answer["done"], answer

    def decide(self, proposal: tuple, operator: str) -> dict:
        name, text = proposal
        return {"op": "decide", "id": name, "operator": operator, "approve": True, "signature": self.sign(operator, text)}

    def executed(self, act: str, change, there, secret=None, before=lambda mark: None) -> Operation:
        """The second approval of a change is cut."""
        def prepare(mark):
            before(mark)
            members = self.proposal(mark, {"act": act} | change(mark), secret and secret(mark))
            self.done(**members)
            self.marks["QuorumExecute", self.of_proposal(members)] = mark
            return self.of_proposal(members), members["text"]

        def happened(told, subject, mark):
            executed, there_is = told[f"proposal {subject[0]}"]["status"] == "executed", there(told, mark)
            assert executed == there_is, f"the proposal is {told[f'proposal {subject[0]}']}, and what it changes is {'' if there_is else 'not '}there"
            return executed

        def probe(subject, mark, told):
            answer = self.ask(**self.decide(subject, "cat"))
            assert answer["done"] or "decided already" in answer["error"], answer
            [now] = [entry for entry in self.ask(op="proposals")["proposals"] if entry["id"] == subject[0]]
            assert now["status"] == "executed", now
        return Operation("QuorumExecute", prepare, lambda subject, mark: self.line(**self.decide(subject, "ben")), happened, probe,
                         f"QuorumExecute-{act}", most=OPEN_PROPOSALS)

    # What the API tells.

    def tell(self, pool) -> dict:
        status = self.ask(op="status")
        told = {f"proposal {entry['id']}": entry for entry in self.ask(op="proposals")["proposals"]}
        told |= {f"credentials {store['name']}": store["credentials"] for store in status["stores"]}
        told |= {f"switch {switch['scope']}": switch for switch in status["kill_switches"]}
        return told | {f"key {key['key']}": key for key in self.ask(op="keys")["keys"]}

    def mark_of(self, event: dict) -> str | None:
        if event["operation"] == "Kill":
            return event["context"]["scope"].split('"')[1]
        return self.marks.get((event["operation"], event.get("context", {}).get("proposal")))


def exists(told, mark) -> bool:
    return told[f"key {mark}"]["problem"] is None


class QuorumKeys(Quorum):
    def acts(self) -> list[Operation]:
        def change(mark):
            return {"key": mark, "hsm": "east", "label": mark, "usage": "data"}

        def propose(mark):
            members = self.proposal(mark, {"act": "key-create"} | change(mark))
            self.marks["QuorumPropose", self.of_proposal(members)] = mark
            return members

        def probe(members, mark, told):
            if f"proposal {self.of_proposal(members)}" not in told:
                self.done(**members)
            self.done(**self.decide((self.of_proposal(members), members["text"]), "ben"))

        return [
            Operation("QuorumPropose", propose, lambda members, mark: self.line(**members),
                      lambda told, members, mark: f"proposal {self.of_proposal(members)}" in told, probe, most=OPEN_PROPOSALS),
            self.executed("key-create", change, exists),
        ]


class QuorumCredentials(Quorum):
    def acts(self) -> list[Operation]:
        def name(mark):
            return base64.b32encode(hashlib.sha256(mark.encode()).digest())[:20].decode()

        def change(mark):
            return {"store": mark, "access_key_id": name(mark)}

        def secret(mark):
            return base64.b32encode(os.urandom(40))[:64]

        def add(mark):
            members = self.proposal("before " + mark, {"act": "credential-add"} | change(mark), secret(mark))
            self.done(**members)
            self.done(**self.decide((self.of_proposal(members), members["text"]), "ben"))

        return [
            self.executed("credential-add", change, lambda told, mark: name(mark) in told[f"credentials {mark}"], secret),
            self.executed("credential-remove", change, lambda told, mark: name(mark) not in told[f"credentials {mark}"], before=add),
        ]


class QuorumSwitches(Quorum):
    def acts(self) -> list[Operation]:
        def scope(mark):
            return {"scope": {"kind": "key", "name": mark}}

        def pull(mark):
            self.done(op="kill", reason="battery", **scope(mark))
            self.pulled.add(mark)

        self.pulled = set()
        return [
            Operation("Kill", str, lambda subject, mark: self.line(op="kill", reason="battery", **scope(mark)),
                      lambda told, subject, mark: f'switch key "{mark}"' in told, lambda subject, mark, told: self.done(op="kill", reason="again", **scope(mark)),
                      most=OPEN_PROPOSALS),
            self.executed("lift", scope, lambda told, mark: f'switch key "{mark}"' not in told, before=pull),
        ]

    def mark_of(self, event: dict) -> str | None:
        # Those that are to be lifted were pulled before.
        mark = super().mark_of(event)
        return None if event["operation"] == "Kill" and (mark in self.pulled or event["reason"] == "again") else mark
