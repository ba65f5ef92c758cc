#!/usr/bin/env python3
"""Measures the key management service under load: CPU per operation of the service, against the raw operation.

Starts `holdfast kms serve` from target/dist, with an external key store proxy over the software HSM beside it, and loads it with wrk over
TLS keep-alive. A signed request is replayed: it holds for five minutes. Needs the Debian package wrk and the packages of the tests.
From the root of the repository:

    cargo build --profile dist --workspace --bins --examples && target/python-sdk/bin/python bench/kms_load.py
"""
import argparse, asyncio, base64, hashlib, json, os, pathlib, re, ssl, statistics, subprocess, sys, tempfile, threading, time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = ROOT / "target/dist/holdfast"
os.environ["HOLDFAST_BINARY"] = str(BINARY)
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/xks"), str(ROOT / "tests/kms")]
from between import certificate  # noqa: E402
from botocore.auth import SigV4Auth  # noqa: E402
from botocore.awsrequest import AWSRequest  # noqa: E402
from botocore.credentials import Credentials  # noqa: E402
from chain import Chain, connect  # noqa: E402
from proxy import Kms as ProxyClient, free_port  # noqa: E402
from service import ACCOUNT, REGION, Service, document, iam  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")


def b64(data):
    return base64.b64encode(data).decode()


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(int(field) for field in fields[11:13]) / TICKS


def threads(pid):
    return len(list(pathlib.Path(f"/proc/{pid}/task").iterdir()))


def resident_mib(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def wrk(service, operation, body, connections, seconds, watch=None):
    data = json.dumps(body)
    request = AWSRequest("POST", service.url + "/", data=data.encode(),
                         headers={"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": "TrentService." + operation})
    SigV4Auth(Credentials(*service.keys["root"]), "kms", REGION).add_auth(request)
    pid = service.process.pid
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f'wrk.method = "POST"\nwrk.body = {json.dumps(data)}\n')
        script.writelines(f'wrk.headers["{name}"] = {json.dumps(value)}\n' for name, value in request.headers.items())
        script.write('done = function(s, l, r) io.write(string.format("RESULT %d %d %d %d %.3f %.3f %.3f\\n", s.requests, s.duration, s.errors.status, '
                     's.errors.connect + s.errors.read + s.errors.write + s.errors.timeout, l:percentile(50) / 1000, l:percentile(99) / 1000, l.max / 1000)) end\n')
        script.flush()
        before = cpu_seconds(pid)
        running = subprocess.Popen(["wrk", "-t", str(min(2, connections)), "-c", str(connections), "-d", f"{seconds}s", "--timeout", "10s", "-s", script.name,
                                    service.url + "/"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if watch:
            watch()
        out = running.communicate()[0]
        cpu = cpu_seconds(pid) - before
    assert "RESULT" in out, out
    requests, micros, refused, broken, p50, p99, worst = re.search(r"RESULT (.*)", out)[1].split()
    requests = int(requests)
    return {"rate": requests / (int(micros) / 1e6), "refused": int(refused), "broken": int(broken), "p50": float(p50), "p99": float(p99),
            "max": float(worst), "cpu_us": cpu / max(requests, 1) * 1e6}


def show(title, result, raw=None):
    ratio = f"  raw {raw:6.1f} us, ratio {result['cpu_us'] / raw:6.2f}, above it {result['cpu_us'] - raw:5.1f} us" if raw else ""
    print(f"{title:50} {result['rate']:7.0f}/s  cpu {result['cpu_us']:6.1f} us  p50 {result['p50']:6.2f}  p99 {result['p99']:7.2f}  max {result['max']:7.1f} ms"
          f"  refused {result['refused']}  broken {result['broken']}{ratio}", flush=True)


def raw_operations():
    """Microseconds, with as many at once as there are cores: load shares the caches."""
    running = [subprocess.Popen([ROOT / "target/dist/examples/raw_operations"], stdout=subprocess.PIPE, text=True) for _ in range(os.cpu_count())]
    tables = [dict(line.split() for line in process.communicate()[0].splitlines()) for process in running]
    return {name: statistics.mean(int(table[name]) for table in tables) / 1000 for name in tables[0]}


class SlowProxy(threading.Thread):
    """Speaks enough of the proxy's side to encrypt, and takes its time over it, with any number of requests at once."""

    def __init__(self, directory, port, seconds):
        super().__init__(daemon=True)
        self.ca_file, self.key = certificate(directory, ["localhost"])
        self.port, self.seconds, self.now, self.most = port, seconds, 0, 0

    def answer(self, path, body):
        if path.endswith("/health"):
            return {"xksProxyFleetSize": 1, "xksProxyVendor": "v", "xksProxyModel": "m", "ekmVendor": "e",
                    "ekmFleetDetails": [{"id": "1", "model": "m", "healthStatus": "ACTIVE"}]}
        if path.endswith("/metadata"):
            return {"keySpec": "AES_256", "keyUsage": ["ENCRYPT", "DECRYPT"], "keyStatus": "ENABLED"}
        plaintext = base64.b64decode(body["plaintext"])
        aad, iv, tag = base64.b64decode(body.get("additionalAuthenticatedData", "")), bytes(12), bytes(16)
        return {"ciphertext": b64(plaintext), "initializationVector": b64(iv), "authenticationTag": b64(tag), "ciphertextMetadata": "",
                "ciphertextDataIntegrityValue": b64(hashlib.sha256(aad + iv + plaintext + tag).digest())}

    async def serve(self, reader, writer):
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split(b" ", 2)[1].decode()
                length = int(re.search(rb"content-length: (\d+)", head, re.I)[1])
                body = json.loads(await reader.readexactly(length))
                self.now += 1
                self.most = max(self.most, self.now)
                if path.endswith("/encrypt"):
                    await asyncio.sleep(self.seconds)
                self.now -= 1
                data = json.dumps(self.answer(path, body)).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data))
        except (asyncio.IncompleteReadError, ConnectionError, OSError):
            pass

    def run(self):
        async def main():
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(self.ca_file, self.key)
            server = await asyncio.start_server(self.serve, "127.0.0.1", self.port, ssl=tls, backlog=4096)
            await server.serve_forever()
        asyncio.run(main())


def hosted(chain, seconds):
    kms, service, raw = chain.kms, chain.service, raw_operations()
    key, context = chain.hosted[0], {"tenant": "blue"}
    make = lambda spec, usage: kms.create_key(KeySpec=spec, KeyUsage=usage)["KeyMetadata"]["Arn"]
    blob = kms.encrypt(KeyId=key, Plaintext=b"k" * 32, EncryptionContext=context)["CiphertextBlob"]
    gcm = raw["a256gcm-encrypt"]
    run = lambda operation, body, conns=32: wrk(service, operation, body, conns, seconds)
    show("GenerateDataKey", run("GenerateDataKey", {"KeyId": key, "KeySpec": "AES_256", "EncryptionContext": context}), gcm)
    show("Decrypt, 32 bytes", run("Decrypt", {"CiphertextBlob": b64(blob), "EncryptionContext": context}), gcm)
    show("Encrypt, 32 bytes", run("Encrypt", {"KeyId": key, "Plaintext": b64(b"k" * 32), "EncryptionContext": context}), gcm)
    show("Encrypt, 4096 bytes", run("Encrypt", {"KeyId": key, "Plaintext": b64(b"k" * 4096)}))
    show("DescribeKey", run("DescribeKey", {"KeyId": key}))
    rsa = make("RSA_2048", "ENCRYPT_DECRYPT")
    sealed = kms.encrypt(KeyId=rsa, Plaintext=b"k" * 32, EncryptionAlgorithm="RSAES_OAEP_SHA_256")["CiphertextBlob"]
    show("Decrypt, RSA-2048 OAEP-256", run("Decrypt", {"KeyId": rsa, "CiphertextBlob": b64(sealed), "EncryptionAlgorithm": "RSAES_OAEP_SHA_256"}),
         raw["rsa2048-oaep256-unwrap"])
    p256 = make("ECC_NIST_P256", "SIGN_VERIFY")
    show("Sign, P-256", run("Sign", {"KeyId": p256, "Message": b64(b"m" * 32), "MessageType": "DIGEST", "SigningAlgorithm": "ECDSA_SHA_256"}), raw["es256-sign"])
    show("Sign, ML-DSA-65", run("Sign", {"KeyId": make("ML_DSA_65", "SIGN_VERIFY"), "Message": b64(b"m" * 32), "SigningAlgorithm": "ML_DSA_SHAKE_256"}))
    # 100 statements, of which the last lets the caller in, and 50 grants of the caller's that do not.
    many = [{"Sid": f"s{n}", "Effect": "Allow", "Principal": {"AWS": iam("user/bob")}, "Action": ["kms:Encrypt", "kms:Decrypt"], "Resource": "*",
             "Condition": {"StringEquals": {"kms:EncryptionContext:tenant": f"t{n}"}}} for n in range(99)]
    last = {"Sid": "Root", "Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}, "Action": "kms:*", "Resource": "*"}
    for who in ("user/bob", "root"):
        for statement in many:
            statement["Principal"] = {"AWS": iam(who)}
        crowded = kms.create_key(Policy=json.dumps(document(*many, last)))["KeyMetadata"]["Arn"]
        for n in range(50):
            kms.create_grant(KeyId=crowded, GranteePrincipal=iam("root"), Operations=["Decrypt"], Constraints={"EncryptionContextSubset": {"tenant": f"g{n}"}})
        sealed = kms.encrypt(KeyId=crowded, Plaintext=b"k" * 32, EncryptionContext=context)["CiphertextBlob"]
        title = f"Decrypt, 100 statements about {'others' if who != 'root' else 'the caller'}, 50 grants"
        show(title, run("Decrypt", {"CiphertextBlob": b64(sealed), "EncryptionContext": context}), gcm)


def external(chain, seconds):
    client = ProxyClient(chain.proxy, chain.credential, key="orders")
    body = client.encrypt_body(b"k" * 76, aad=bytes(19), cdiv=True)
    path = client.path("encrypt")
    data = json.dumps(body).encode()
    headers = client.signed(path, data)
    times = []
    for _ in range(2000):
        begun = time.perf_counter()
        assert client.send(path, data, headers).status_code == 200
        times.append(time.perf_counter() - begun)
    own = statistics.median(times) * 1000
    kms, times = chain.kms, []
    for _ in range(2000):
        begun = time.perf_counter()
        kms.generate_data_key(KeyId=chain.keys["orders"], KeySpec="AES_256", EncryptionContext={"tenant": "blue"})
        times.append(time.perf_counter() - begun)
    hosted = []
    for _ in range(2000):
        begun = time.perf_counter()
        kms.generate_data_key(KeyId=chain.hosted[0], KeySpec="AES_256", EncryptionContext={"tenant": "blue"})
        hosted.append(time.perf_counter() - begun)
    print(f"one client, p50: proxy alone {own:.2f} ms (requests), hosted {statistics.median(hosted) * 1000:.2f} ms, external "
          f"{statistics.median(times) * 1000:.2f} ms (boto3)")
    show("GenerateDataKey, external, CPU of the KMS alone", wrk(chain.service, "GenerateDataKey", {"KeyId": chain.keys["orders"], "KeySpec": "AES_256",
         "EncryptionContext": {"tenant": "blue"}}, 32, seconds))
    for conns in (1,):
        one = wrk(chain.service, "GenerateDataKey", {"KeyId": chain.keys["orders"], "KeySpec": "AES_256"}, conns, seconds)
        here = wrk(chain.service, "GenerateDataKey", {"KeyId": chain.hosted[0], "KeySpec": "AES_256"}, conns, seconds)
        show("GenerateDataKey, external, one connection", one)
        show("GenerateDataKey, hosted, one connection", here)


def waiting(base, seconds):
    port = free_port()
    slow = SlowProxy(base, port, 0.05)
    slow.start()
    endpoint = f'[[proxies]]\nendpoint = "https://localhost:{port}"\nca_file = "{slow.ca_file}"\n'
    service = Service(base / "kms", endpoint, "store_budget_ms = 5000\nrequests_in_flight = 8192\n").start()
    kms = service.client("root")
    store = kms.create_custom_key_store(
        CustomKeyStoreName="slow", CustomKeyStoreType="EXTERNAL_KEY_STORE", XksProxyConnectivity="PUBLIC_ENDPOINT", XksProxyUriEndpoint=f"https://localhost:{port}",
        XksProxyUriPath="/kms/xks/v1", XksProxyAuthenticationCredential={"AccessKeyId": "A" * 20, "RawSecretAccessKey": "s" * 43})["CustomKeyStoreId"]
    connect(kms, store)
    key = kms.create_key(Origin="EXTERNAL_KEY_STORE", CustomKeyStoreId=store, XksKeyId="k")["KeyMetadata"]["Arn"]
    pid = service.process.pid
    before = threads(pid), resident_mib(pid)
    seen = []

    def watch():
        time.sleep(seconds / 2)
        seen.append((threads(pid), resident_mib(pid)))
    result = wrk(service, "GenerateDataKey", {"KeyId": key, "KeySpec": "AES_256"}, 2000, seconds, watch)
    show("external, a proxy of 50 ms, 2,000 connections", result)
    print(f"most requests at the proxy at once {slow.most}; threads {before[0]} before, {seen[0][0]} under load; memory {before[1]:.0f} MiB before, {seen[0][1]:.0f} under load")
    service.stop()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--only", default="hosted,external,waiting")
    arguments = parser.parse_args()
    only, seconds = arguments.only.split(","), arguments.seconds
    temporary = tempfile.TemporaryDirectory(prefix="holdfast-bench-")
    base = pathlib.Path(temporary.name)
    if {"hosted", "external"} & set(only):
        chain = Chain(base / "chain", ["orders", "other"]).start()
        if "hosted" in only:
            hosted(chain, seconds)
        if "external" in only:
            external(chain, seconds)
        chain.service.stop()
        chain.proxy.stop()
    if "waiting" in only:
        (base / "slow").mkdir()
        waiting(base / "slow", seconds * 2)


if __name__ == "__main__":
    main()
