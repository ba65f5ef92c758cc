#!/usr/bin/env python3
"""Measures a Managed HSM under load: CPU per operation from the server's own accounting, against the raw operation.

Starts `holdfast dev` from target/dist, makes keys, and loads it with wrk (Debian package `wrk`) over TLS
keep-alive. The raw operations are measured before and after, in the same run. Run from the root of the repository:

    cargo build --profile dist --workspace --bins --examples && python3 bench/hsm_load.py
"""
import argparse, base64, concurrent.futures, json, os, pathlib, re, signal, ssl, subprocess, tempfile, threading, time
import http.client, urllib.parse, urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = ROOT / "target/dist/holdfast"
RAW = ROOT / "target/dist/examples/raw_operations"
VERSION = "api-version=7.5"


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Server:
    def __init__(self, port, data_dir):
        self.env_file = pathlib.Path(data_dir).with_suffix(".env")
        command = [BINARY, "dev", "--data-dir", data_dir, "--port-base", str(port), "--env-file", self.env_file]
        self.started = time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not self.env_file.exists():
            if self.process.poll() is not None:
                raise SystemExit("holdfast dev did not start")
            time.sleep(0.005)
        self.startup = time.monotonic() - self.started
        self.env = dict(line.split("=", 1) for line in self.env_file.read_text().splitlines())
        self.url = self.env["HOLDFAST_HSM_URL"]
        self.context = ssl.create_default_context(cafile=self.env["HOLDFAST_CA_FILE"])
        self.token = self.get_token()

    def get_token(self):
        form = urllib.parse.urlencode({
            "grant_type": "client_credentials", "client_id": self.env["HOLDFAST_CLIENT_ID"],
            "client_secret": self.env["HOLDFAST_CLIENT_SECRET"], "scope": "https://managedhsm.azure.net/.default"})
        url = f'{self.env["HOLDFAST_AUTHORITY_URL"]}/{self.env["HOLDFAST_TENANT_ID"]}/oauth2/v2.0/token'
        with urllib.request.urlopen(url, form.encode(), context=self.context) as answer:
            return json.load(answer)["access_token"]

    def connect(self):
        parsed = urllib.parse.urlparse(self.url)
        return http.client.HTTPSConnection(parsed.hostname, parsed.port, context=self.context)

    def post(self, path, body, connection=None):
        connection = connection or self.connect()
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        connection.request("POST", f"{path}?{VERSION}", json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == 200, (answer.status, text)
        return json.loads(text)

    def cpu_seconds(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self):
        return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{self.process.pid}/status").read_text())[1]) * 1024

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def wrk(server, path, body, connections, seconds, method="POST"):
    """Requests per second, latencies in ms, CPU microseconds per request on the server."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"""
wrk.method = "{method}"
wrk.body = {json.dumps(json.dumps(body) if body is not None else "")}
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer {server.token}"
done = function(summary, latency, requests)
  io.write(string.format("RESULT %d %d %d %.3f %.3f %.3f\\n", summary.requests, summary.duration,
    summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, latency.max / 1000))
end
""")
        script.flush()
        before = server.cpu_seconds()
        threads = str(min(2, connections))
        command = ["wrk", "-t", threads, "-c", str(connections), "-d", f"{seconds}s", "-s", script.name, f"{server.url}{path}?{VERSION}"]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        cpu = server.cpu_seconds() - before
    requests, micros, errors, p50, p99, worst = re.search(r"RESULT (.*)", out)[1].split()
    requests = int(requests)
    return {"rate": requests / (int(micros) / 1e6), "errors": int(errors), "p50": float(p50), "p99": float(p99),
            "max": float(worst), "cpu_us": cpu / requests * 1e6}


def raw_operations():
    """CPU microseconds of each raw operation, both cores busy with it, as they are under load."""
    running = [subprocess.Popen([RAW], stdout=subprocess.PIPE, text=True) for _ in range(os.cpu_count())]
    outputs = [process.communicate()[0] for process in running]
    tables = [dict(line.split() for line in out.splitlines()) for out in outputs]
    return {name: sum(int(table[name]) for table in tables) / len(tables) / 1000 for name in tables[0]}


def operations(server):
    def make(name, kty, **more):
        kid = server.post(f"/keys/{name}/create", {"kty": kty, **more})["key"]["kid"]
        return urllib.parse.urlparse(kid).path
    secret = b64(b"k" * 32)
    aes = make("aes", "oct-HSM", key_size=256)
    ec = make("ec", "EC-HSM", crv="P-256")
    bodies = {
        "a256kw-wrap": (f"{aes}/wrapkey", {"alg": "A256KW", "value": secret}),
        "a256gcm-encrypt": (f"{aes}/encrypt", {"alg": "A256GCM", "value": secret}),
        "es256-sign": (f"{ec}/sign", {"alg": "ES256", "value": b64(b"d" * 32)}),
    }
    bodies["a256kw-unwrap"] = (f"{aes}/unwrapkey", {"alg": "A256KW", "value": server.post(*bodies["a256kw-wrap"])["value"]})
    for bits in (2048, 4096):
        rsa = make(f"rsa{bits}", "RSA-HSM", key_size=bits)
        wrapped = server.post(f"{rsa}/wrapkey", {"alg": "RSA-OAEP-256", "value": secret})["value"]
        bodies[f"rsa{bits}-oaep256-unwrap"] = (f"{rsa}/unwrapkey", {"alg": "RSA-OAEP-256", "value": wrapped})
    return bodies


def measure_operations(server, seconds):
    bodies = operations(server)
    before = raw_operations()
    results = {}
    for name, (path, body) in bodies.items():
        connections = 4 if name.startswith("rsa4096") else 32
        wrk(server, path, body, connections, 1)
        results[name] = wrk(server, path, body, connections, seconds)
    after = raw_operations()
    print(f"{'operation':<24}{'per s':>9}{'cpu us':>9}{'raw us':>9}{'ratio':>8}{'p50 ms':>9}{'p99 ms':>9}{'errors':>8}")
    for name, r in results.items():
        raw = (before[name] + after[name]) / 2
        print(f"{name:<24}{r['rate']:>9.0f}{r['cpu_us']:>9.1f}{raw:>9.1f}{r['cpu_us'] / raw:>8.2f}{r['p50']:>9.2f}{r['p99']:>9.2f}{r['errors']:>8}")
    return bodies


def measure_isolation(where, server, bodies, seconds):
    path, body = bodies["rsa4096-oaep256-unwrap"]
    hammer = threading.Thread(target=wrk, args=(server, path, body, 4, seconds + 2))
    alone = wrk(server, *bodies["a256gcm-encrypt"], 4, seconds)
    hammer.start()
    time.sleep(1)
    beside = wrk(server, *bodies["a256gcm-encrypt"], 4, seconds)
    hammer.join()
    print(f"a256gcm p99 with 4 clients, {where}: {alone['p99']:.2f} ms alone, {beside['p99']:.2f} ms while 4 clients unwrap RSA-4096 (p50 {beside['p50']:.2f})")


def create_keys(server, prefix, count, clients):
    def work(client):
        connection = server.connect()
        for number in range(client, count, clients):
            server.post(f"/keys/{prefix}{number:06d}/create", {"kty": "oct-HSM"}, connection)
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        list(pool.map(work, range(clients)))


CREATE = """
local n = 0
local id = 0
setup = function(thread) thread:set("id", id); id = id + 1 end
request = function()
  n = n + 1
  return wrk.format("POST", string.format("/keys/PREFIX-%d-%d/create?api-version=7.5", id, n))
end
"""


def create_with_wrk(server, prefix, seconds):
    """Creates AES keys as fast as 32 clients can for some seconds; the count and the rate."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"""wrk.body = '{{"kty":"oct-HSM"}}'
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer {server.token}"
""" + CREATE.replace("PREFIX", prefix) + """
done = function(summary, latency, requests)
  io.write(string.format("RESULT %d %d %d %.3f\\n", summary.requests, summary.duration, summary.errors.status, latency:percentile(99) / 1000))
end
""")
        script.flush()
        command = ["wrk", "-t", "2", "-c", "32", "-d", f"{seconds}s", "-s", script.name, server.url]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    requests, micros, errors, p99 = re.search(r"RESULT (.*)", out)[1].split()
    return int(requests), int(requests) / (int(micros) / 1e6), int(errors), float(p99)


def measure_many_keys(port, count):
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        data_dir = os.path.join(directory, "data")
        server = Server(port, data_dir)
        kid = urllib.parse.urlparse(server.post("/keys/first/create", {"kty": "oct-HSM"})["key"]["kid"]).path
        body = {"alg": "A256KW", "value": b64(b"k" * 32)}
        few = (wrk(server, f"{kid}/wrapkey", body, 32, 3), wrk(server, kid, None, 32, 3, "GET"))
        empty = server.resident_bytes()
        made, rounds = 1, 0
        while made < count:
            requests, rate, errors, p99 = create_with_wrk(server, f"k{rounds}", 10)
            made, rounds = made + requests, rounds + 1
            print(f"durable creation of AES keys, 32 clients: {rate:.0f}/s, p99 {p99:.1f} ms, {errors} errors ({made} keys)")
        many = (wrk(server, f"{kid}/wrapkey", body, 32, 3), wrk(server, kid, None, 32, 3, "GET"))
        grown = server.resident_bytes()
        server.stop()
        server = Server(port, data_dir)
        print(f"start-up with {made} keys: {server.startup:.2f} s; resident {server.resident_bytes() / 2**20:.0f} MiB")
        print(f"memory: {empty / 2**20:.0f} MiB empty, {grown / 2**20:.0f} MiB after creation")
        server.stop()
        empty_server = Server(port + 10, os.path.join(directory, "empty"))
        per_key = (server_resident := empty_server.resident_bytes())
        empty_server.stop()
        print(f"an empty instance: {server_resident / 2**20:.0f} MiB")
        for name, a, b in zip(("wrap", "get"), few, many):
            print(f"{name} with 1 key {a['cpu_us']:.1f} us CPU, with {made} keys {b['cpu_us']:.1f} us ({b['cpu_us'] / a['cpu_us']:.2f}x)")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5, help="length of each measurement")
    parser.add_argument("--port", type=int, default=18443)
    parser.add_argument("--keys", type=int, default=100_000, help="size of the large instance; 0 leaves it out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        server = Server(args.port, os.path.join(directory, "data"))
        bodies = measure_operations(server, args.seconds)
        measure_isolation("on disk", server, bodies, args.seconds)
        server.stop()
    # Each answer waits for the audit log's sync: in memory the disk's own tail is left out.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        server = Server(args.port, os.path.join(directory, "data"))
        measure_isolation("in memory", server, operations(server), args.seconds)
        server.stop()
    if args.keys:
        measure_many_keys(args.port, args.keys)


if __name__ == "__main__":
    main()
