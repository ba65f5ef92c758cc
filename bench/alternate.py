#!/usr/bin/env python3
"""Two binaries side by side: CPU per operation of each, their ratio, and each as a multiple of a server that does no work.

Both are started once with state of their own, and loaded in turns (A, B, B, A, ...), so that what else the machine does meets both. The floor is
`crates/holdfast/examples/floor.rs`: the same server, the same request, an answer of the same size. Needs the Debian packages wrk and softhsm2, and the
packages of the tests; both binaries in the same profile. The raw operations and the floor are looked for in `examples` beside B. From the root of the repository:

    cargo build --profile dist --workspace --bins --examples
    target/python-sdk/bin/python bench/alternate.py BEFORE target/dist/holdfast --rounds 5 --only kms,hsm
"""
import argparse
import json
import os
import pathlib
import re
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import warnings

import requests

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))
import hsm_load  # noqa: E402
import kms_load  # noqa: E402  (it adds the directories of the tests)
import s3_load  # noqa: E402
import xks_load  # noqa: E402
import process  # noqa: E402
import proxy as proxy_module  # noqa: E402
import service as service_module  # noqa: E402
from botocore.auth import SigV4Auth  # noqa: E402
from botocore.awsrequest import AWSRequest  # noqa: E402
from botocore.credentials import Credentials  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")
ROUNDS, SECONDS = 5, 4
DONE = """
done = function(s, l, r)
  io.write(string.format("RESULT %d %d %d %.3f %.3f\\n", s.requests, s.duration,
    s.errors.status + s.errors.connect + s.errors.read + s.errors.write + s.errors.timeout, l:percentile(50) / 1000, l:percentile(99) / 1000))
end
"""


class Request:
    """What is sent, again and again. `lua` makes each request another one."""

    def __init__(self, url: str, method: str = "POST", headers: dict | None = None, body: str = "", lua: str = ""):
        self.url, self.method, self.headers, self.body, self.lua = url, method, headers or {}, body, lua

    def to(self, url: str) -> "Request":
        return Request(url, self.method, self.headers, self.body, self.lua)

    def script(self) -> str:
        headers = "".join(f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}\n" for name, value in self.headers.items())
        return f"wrk.method = {json.dumps(self.method)}\nwrk.body = {json.dumps(self.body)}\n{headers}{self.lua}{DONE}"

    def answer_bytes(self) -> int:
        """How long the answer's body is; it has to be a good one."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = requests.request(self.method, self.url, data=self.body or None, headers=self.headers, verify=False, timeout=30)
        assert answer.status_code == 200, (answer.status_code, answer.text)
        return len(answer.content)


def processes(pid: int) -> list[int]:
    """It and those it started: hosts of HSMs."""
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [pid, *map(int, children)]


def cpu_seconds(pid: int) -> float:
    total = 0
    for each in processes(pid):
        fields = pathlib.Path(f"/proc/{each}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def switches(pid: int) -> int:
    """Context switches, of one's own will and not; of the threads that live."""
    total = 0
    for each in processes(pid):
        for status in pathlib.Path(f"/proc/{each}/task").glob("*/status"):
            total += sum(map(int, re.findall(r"ctxt_switches:\s+(\d+)", status.read_text())))
    return total


def load(pid: int, request: Request, connections: int, seconds: int) -> dict:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(request.script())
        script.flush()
        command = ["wrk", "-t", str(min(2, connections)), "-c", str(connections), "-d", f"{seconds}s", "--timeout", "10s", "-s", script.name, request.url]
        cpu, switched = cpu_seconds(pid), switches(pid)
        out = subprocess.run(command, capture_output=True, text=True).stdout
        cpu, switched = cpu_seconds(pid) - cpu, switches(pid) - switched
    assert "RESULT" in out, out
    count, micros, errors, p50, p99 = re.search(r"RESULT (.*)", out)[1].split()
    count = int(count)
    return {"cpu_us": cpu / count * 1e6, "rate": count / (int(micros) / 1e6), "errors": int(errors), "p50_ms": float(p50), "p99_ms": float(p99),
            "switches": switched / count}


# What each role is asked. A side is a dict: operation to (pid, how to make its request); requests are signed anew for each turn.

def use(binary: pathlib.Path) -> None:
    for module in (process, proxy_module, service_module, hsm_load, kms_load, s3_load, xks_load):
        module.BINARY = binary


def hsm_side(base: pathlib.Path, port: int) -> dict:
    server = hsm_load.Server(port, str(base / "hsm"))
    bodies = hsm_load.operations(server)
    pid = server.process.pid

    def post(path: str, body: dict) -> Request:
        headers = {"Authorization": f"Bearer {server.get_token()}", "Content-Type": "application/json"}
        return Request(f"{server.url}{path}?{hsm_load.VERSION}", headers=headers, body=json.dumps(body))
    made = iter(range(10**9))

    def create() -> Request:
        """The name of each key is new: number of the turn, of the thread, of the request."""
        request = post(f"/keys/first-{next(made)}/create", {"kty": "oct-HSM"})
        request.lua = hsm_load.CREATE.replace("PREFIX", f"turn-{next(made)}")
        return request
    side = {f"hsm {name}": (pid, lambda name=name: post(*bodies[name]), (32,)) for name in ("a256gcm-encrypt", "a256kw-wrap", "a256kw-unwrap", "es256-sign")}
    side["hsm a256gcm-encrypt"] = (*side["hsm a256gcm-encrypt"][:2], (32, 4, 1))
    side["hsm rsa2048-unwrap"] = (pid, lambda: post(*bodies["rsa2048-oaep256-unwrap"]), (32, 1))
    side["hsm create"] = (pid, create, (32,))
    return side | {"stop": server.stop}


def kms_side(base: pathlib.Path, _port: int) -> dict:
    chain = kms_load.Chain(base / "kms", ["orders", "other"]).start()
    kms, service = chain.kms, chain.service
    context = {"tenant": "blue"}
    blob = kms.encrypt(KeyId=chain.hosted[0], Plaintext=b"k" * 32, EncryptionContext=context)["CiphertextBlob"]
    rsa = kms.create_key(KeySpec="RSA_2048", KeyUsage="ENCRYPT_DECRYPT")["KeyMetadata"]["Arn"]
    sealed = kms.encrypt(KeyId=rsa, Plaintext=b"k" * 32, EncryptionAlgorithm="RSAES_OAEP_SHA_256")["CiphertextBlob"]

    def ask(operation: str, body: dict) -> Request:
        data = json.dumps(body)
        request = AWSRequest("POST", service.url + "/", data=data.encode(),
                             headers={"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": "TrentService." + operation})
        SigV4Auth(Credentials(*service.keys["root"]), "kms", kms_load.REGION).add_auth(request)
        return Request(service.url + "/", headers=dict(request.headers.items()), body=data)
    pid, b64 = service.process.pid, kms_load.b64
    asked = {
        "kms Decrypt": ("Decrypt", {"CiphertextBlob": b64(blob), "EncryptionContext": context}, (32, 1)),
        "kms GenerateDataKey": ("GenerateDataKey", {"KeyId": chain.hosted[0], "KeySpec": "AES_256", "EncryptionContext": context}, (32,)),
        "kms Decrypt RSA-2048": ("Decrypt", {"KeyId": rsa, "CiphertextBlob": b64(sealed), "EncryptionAlgorithm": "RSAES_OAEP_SHA_256"}, (32, 1)),
        "kms CreateKey": ("CreateKey", {}, (32,)),
        "kms Decrypt external": ("Decrypt", {"CiphertextBlob": b64(kms.encrypt(KeyId=chain.keys["orders"], Plaintext=b"k" * 32)["CiphertextBlob"])}, (32,)),
    }

    def stop() -> None:
        service.stop()
        chain.proxy.stop()
    return {name: (pid, lambda operation=operation, body=body: ask(operation, body), connections) for name, (operation, body, connections) in asked.items()} | {"stop": stop}


def xks_side(base: pathlib.Path, _port: int) -> dict:
    side, stops = {}, []
    for name, options in (("xks encrypt SoftHSM2", {}), ("xks encrypt software", {"software": True})):
        server, kms = xks_load.start(base / name.replace(" ", "-"), ["key-0"], **options)
        kms.encrypt()
        body = json.dumps(kms.encrypt_body())

        def ask(server=server, kms=kms, body=body) -> Request:
            path = kms.path("encrypt")
            return Request(server.url() + path, headers=dict(kms.signed(path, body.encode())), body=body)
        side[name] = (server.processes["a"].pid, ask, (32,))
        stops.append(server.stop)
    return side | {"stop": lambda: [stop() for stop in stops]}


def s3_side(base: pathlib.Path, port: int) -> dict:
    server = s3_load.Server(base, port)
    s3 = server.client()
    s3.create_bucket(Bucket="small")
    s3.put_object(Bucket="small", Key="k", Body=os.urandom(4096))
    ask = lambda: Request(s3.generate_presigned_url("get_object", {"Bucket": "small", "Key": "k"}), "GET")  # noqa: E731
    return {"s3 GET 4 KiB": (server.process.pid, ask, (32,)), "stop": server.stop}


SIDES = {"hsm": hsm_side, "kms": kms_side, "xks": xks_side, "s3": s3_side}


def raw_rsa() -> float:
    return hsm_load.raw_operations()["rsa2048-oaep256-unwrap"]


class Floor:
    """Answers with so many bytes, and does nothing else."""

    def __init__(self, program: pathlib.Path, request: Request, answer_bytes: int):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        asked = urllib.parse.urlsplit(request.url)
        plain = ["--plain"] if asked.scheme == "http" else []
        self.process = subprocess.Popen([program, "--address", f"127.0.0.1:{port}", "--answer-bytes", str(answer_bytes), *plain], stdout=subprocess.DEVNULL)
        self.url = urllib.parse.urlunsplit((asked.scheme, f"127.0.0.1:{port}", asked.path, asked.query, ""))
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1) as stream:
                    if not plain:
                        ssl._create_unverified_context().wrap_socket(stream).close()
                    return
            except OSError:
                assert self.process.poll() is None
                time.sleep(0.01)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def spread(values: list[float], form: str = "{:.1f}") -> str:
    middle, low, high = (form.format(value) for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def measure(name: str, sides: dict, floor_program: pathlib.Path, connections: int, rounds: int, seconds: int) -> dict:
    found = {"A": [], "B": [], "floor": []}
    request = sides["B"][name][1]()
    floor = Floor(floor_program, request, request.answer_bytes())
    try:
        for which in "AB":
            pid, ask, _ = sides[which][name]
            load(pid, ask(), connections, 1)
        for number in range(rounds):
            for which in ("A", "B") if number % 2 == 0 else ("B", "A"):
                pid, ask, _ = sides[which][name]
                found[which].append(load(pid, ask(), connections, seconds))
            found["floor"].append(load(floor.process.pid, request.to(floor.url), connections, seconds))
    finally:
        floor.stop()
    return found


def show(name: str, connections: int, found: dict, raw: float | None) -> None:
    cpu = {which: [run["cpu_us"] for run in runs] for which, runs in found.items()}
    rate = {which: statistics.median(run["rate"] for run in runs) for which, runs in found.items()}
    middle = {which: statistics.median(values) for which, values in cpu.items()}
    errors = sum(run["errors"] for which in "AB" for run in found[which])
    pairs = [b / a for a, b in zip(cpu["A"], cpu["B"])]
    switched = " / ".join(f"{statistics.median(run['switches'] for run in found[which]):.2f}" for which in "AB")
    above = "" if raw is None else f"  raw {raw:.0f}: above it {middle['A'] - raw:.0f} / {middle['B'] - raw:.0f}"
    print(f"{name:<24}{connections:>3}  A {spread(cpu['A']):<24} B {spread(cpu['B']):<24} B/A {spread(pairs, '{:.3f}'):<26} floor {middle['floor']:5.1f}: "
          f"{middle['A'] / middle['floor']:.2f} x / {middle['B'] / middle['floor']:.2f} x  rate {rate['A']:.0f} / {rate['B']:.0f}  switches {switched}{above}"
          + (f"  ERRORS {errors}" if errors else ""), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=pathlib.Path, help="binary A: the commit before")
    parser.add_argument("b", type=pathlib.Path, help="binary B")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--only", default=",".join(SIDES), help="roles")
    parser.add_argument("--operations", default="", help="a part of their names")
    parser.add_argument("--examples", type=pathlib.Path, help="where floor and raw_operations are")
    parser.add_argument("--port", type=int, default=23443)
    parser.add_argument("--json", type=pathlib.Path, help="every run's figures go here")
    args = parser.parse_args()
    binaries = {"A": args.a.resolve(), "B": args.b.resolve()}
    examples = (args.examples or args.b.resolve().parent / "examples").resolve()
    hsm_load.RAW = examples / "raw_operations"
    print(f"# CPU of the server in us an operation: median (least to most) of {args.rounds} turns of {args.seconds} s; B/A by pairs of turns; switches: of context, an operation")
    kept = []
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-", dir="/var/tmp") as directory:
        for number, role in enumerate(args.only.split(",")):
            sides = {}
            try:
                for at, (which, binary) in enumerate(binaries.items()):
                    use(binary)
                    base = pathlib.Path(directory) / role / which
                    base.mkdir(parents=True)
                    sides[which] = SIDES[role](base, args.port + 20 * number + 10 * at)
                for name, (_, _, many) in ((name, entry) for name, entry in sides["B"].items() if name != "stop" and args.operations in name):
                    for connections in many:
                        raw = [raw_rsa()] if "rsa" in name.lower() else []
                        found = measure(name, sides, examples / "floor", connections, args.rounds, args.seconds)
                        raw += [raw_rsa()] if raw else []
                        show(name, connections, found, statistics.mean(raw) if raw else None)
                        kept.append({"operation": name, "connections": connections, "raw": raw} | found)
            finally:
                for side in sides.values():
                    side["stop"]()
    if args.json:
        args.json.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
