#!/usr/bin/env python3
"""Measures an external key store proxy under load: CPU per operation of the proxy and its HSM hosts, against the raw operation.

Starts `holdfast xks serve` from target/dist over SoftHSM2 and over the software HSM, and loads it with wrk over TLS keep-alive.
A signed request is replayed: it holds for five minutes. Needs the Debian packages wrk and softhsm2, and the packages of the tests.
From the root of the repository:

    cargo build --profile dist --workspace --bins --examples && target/python-sdk/bin/python bench/xks_load.py
"""
import argparse, json, os, pathlib, re, subprocess, sys, tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = ROOT / "target/dist/holdfast"
os.environ["HOLDFAST_BINARY"] = str(BINARY)
os.environ["HOLDFAST_PYTHON"] = sys.executable
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/xks")]
from conftest import hsm_config  # noqa: E402
from proxy import Kms, Proxy  # noqa: E402
from softhsm import MODULE, PIN, SoftHsm  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")


def policy(keys, rate):
    names = json.dumps(keys)
    listed = "".join(f'[[keys]]\nid = "{key}"\nhsms = ["east"]\nlabel = "{key}"\n' for key in keys)
    return (f'version = 1\n[[stores]]\nname = "s"\npath_prefix = "/s"\nregion = "us-east-1"\nmode = "patterns"\nrequests_per_sec = {rate}\nkeys = {names}\n'
            f'{listed}[[rules]]\nname = "account"\neffect = "allow"\naccounts = ["123456789012"]\n')


def cpu_seconds(pid):
    """Of the proxy and the hosts it started, those that ended included."""
    total = 0
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    for process in [str(pid), *children]:
        fields = pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        total += sum(int(field) for field in fields[11:15 if process == str(pid) else 13])
    return total / TICKS


def threads(pid):
    return sum(len(list(pathlib.Path(f"/proc/{process}/task").iterdir())) for process in
               [str(pid), *subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()])


def wrk(kms, operation, body, connections, seconds, *, delay_ms=0, cpus=None, key=None):
    """Requests per second, latencies in ms, errors, CPU microseconds per request."""
    data = json.dumps(body).encode()
    path = kms.path(operation, key)
    headers = {name: value for name, value in kms.signed(path, data).items()}
    pid = kms.proxy.processes["a"].pid
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f'wrk.method = "POST"\nwrk.body = {json.dumps(data.decode())}\n')
        script.writelines(f'wrk.headers["{name}"] = {json.dumps(value)}\n' for name, value in headers.items())
        if delay_ms:
            # Connections begin at different moments, so that the load is even.
            script.write(f"local first = true\nfunction delay() if first then first = false return math.random(0, {delay_ms}) end return {delay_ms} end\n")
        script.write('done = function(s, l, r) io.write(string.format("RESULT %d %d %d %d %.3f %.3f %.3f\\n", s.requests, s.duration, s.errors.status, '
                     's.errors.connect + s.errors.read + s.errors.write + s.errors.timeout, l:percentile(50) / 1000, l:percentile(99) / 1000, l.max / 1000)) end\n')
        script.flush()
        before = cpu_seconds(pid)
        command = ["wrk", "-t", str(min(2, connections)), "-c", str(connections), "-d", f"{seconds}s", "-s", script.name, kms.proxy.url() + path]
        if cpus:
            command = ["taskset", "-c", cpus, *command]
        done = subprocess.run(command, capture_output=True, text=True)
        assert "RESULT" in done.stdout, done.stdout + done.stderr
        cpu = cpu_seconds(pid) - before
    requests, micros, refused, broken, p50, p99, worst = re.search(r"RESULT (.*)", done.stdout)[1].split()
    requests = int(requests)
    return {"rate": requests / (int(micros) / 1e6), "refused": int(refused), "broken": int(broken), "p50": float(p50), "p99": float(p99), "max": float(worst),
            "cpu_us": cpu / requests * 1e6}


def start(directory, keys, *, software=False, rate=1_000_000, module=MODULE, environment="", pinned=None, **options):
    if software:
        proxy = Proxy(directory / "proxy", '[[hsms]]\nname = "east"\nsoftware_insecure = true\n').start()
        for key in keys:
            proxy.change("key-create", "--key-id", key, "--hsm", "east", "--label", key)
    else:
        softhsm = SoftHsm(directory / "softhsm")
        softhsm.init_token("east")
        softhsm.aes_many("east", keys)
        # SoftHSM computes on these cores: more sessions than cores only contend.
        options = {"sessions": os.cpu_count(), "relist_secs": 60} | options
        proxy = Proxy(directory / "proxy", hsm_config(softhsm, "east", "east", module=str(module), environment=environment, **options)).start()
        if pinned:
            # Before the PIN is entered, so that the host is pinned with it.
            subprocess.run(["taskset", "-a", "-p", "-c", pinned, str(proxy.processes["a"].pid)], check=True, capture_output=True)
        proxy.change("hsm-pin", "--hsm", "east", secret=PIN)
        proxy.wait_for_hsm("east")
        proxy.softhsm = softhsm
    proxy.set_policy(policy(keys, rate))
    return proxy, Kms(proxy, proxy.add_credential("s"), key=keys[0])


def raw_softhsm(softhsm, key):
    command = [ROOT / "target/dist/examples/raw_pkcs11", MODULE, "east", key]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=softhsm.env | {"RAW_PIN": PIN}) for _ in range(os.cpu_count())]
    tables = [dict(line.split() for line in process.communicate()[0].splitlines()) for process in running]
    return {name: sum(int(table[name]) for table in tables) / len(tables) / 1000 for name in tables[0]}


def raw_aes():
    out = subprocess.run([ROOT / "target/dist/examples/raw_operations"], capture_output=True, text=True, check=True).stdout
    return int(dict(line.split() for line in out.splitlines())["a256gcm-encrypt"]) / 1000


def show(title, result, raw=None):
    ratio = f"  raw {raw:5.1f} us, ratio {result['cpu_us'] / raw:6.1f}" if raw else ""
    print(f"{title:46} {result['rate']:8.0f}/s  cpu {result['cpu_us']:6.1f} us  p50 {result['p50']:6.2f}  p99 {result['p99']:7.2f}  max {result['max']:7.1f} ms"
          f"  refused {result['refused']}  broken {result['broken']}{ratio}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--only", default="cpu,rate,overlap")
    arguments = parser.parse_args()
    only, seconds = arguments.only.split(","), arguments.seconds
    temporary = tempfile.TemporaryDirectory(prefix="holdfast-bench-")
    base = pathlib.Path(temporary.name)
    if "cpu" in only:
        print("# CPU of proxy and hosts, wrk beside them on the same cores, 32 connections")
        for keys in (5, 500):
            names = [f"key-{n}" for n in range(keys)]
            proxy, kms = start(base / f"soft-{keys}", names)
            raw = raw_softhsm(proxy.softhsm, names[-1])
            for name in {names[0], names[-1]}:
                # The first request finds the key.
                sealed = kms.encrypt(key=name)
            for cdiv in (False, True):
                show(f"SoftHSM2, {keys} keys, encrypt{' with CDIV' if cdiv else ''}", wrk(kms, "encrypt", kms.encrypt_body(cdiv=cdiv), 32, seconds, key=names[-1]),
                     raw["encrypt"] + (raw["decrypt"] if cdiv else 0))
            sealed = kms.encrypt(key=names[-1])
            show(f"SoftHSM2, {keys} keys, decrypt", wrk(kms, "decrypt", kms.decrypt_body(sealed), 32, seconds, key=names[-1]), raw["decrypt"])
            proxy.stop()
        proxy, kms = start(base / "software", ["key-0"], software=True)
        raw = raw_aes()
        show("software HSM, encrypt", wrk(kms, "encrypt", kms.encrypt_body(), 32, seconds), raw)
        show("software HSM, decrypt", wrk(kms, "decrypt", kms.decrypt_body(kms.encrypt()), 32, seconds), raw)
        proxy.stop()
    if "rate" in only:
        print("# proxy and host on core 0, wrk on core 1; 1,800 requests/s is the store's quota; each connection sends at even intervals")
        proxy, kms = start(base / "rate", ["key-0"], rate=1800, pinned="0")
        body = kms.encrypt_body()
        kms.encrypt()
        show("1,750/s offered, quota 1,800/s", wrk(kms, "encrypt", body, 175, seconds * 2, delay_ms=99, cpus="1"))
        show("5,400/s offered, quota 1,800/s", wrk(kms, "encrypt", body, 540, seconds * 2, delay_ms=99, cpus="1"))
        proxy.set_policy(policy(["key-0"], 1_000_000))
        show("5,400/s offered, no quota", wrk(kms, "encrypt", body, 540, seconds * 2, delay_ms=99, cpus="1"))
        proxy.stop()
    if "overlap" in only:
        print("# an HSM that takes 2 ms a call; 128 connections")
        shim = base / "shim.so"
        subprocess.run(["cc", "-std=gnu11", "-O2", "-shared", "-fPIC", "-o", shim, ROOT / "tests/xks/shim.c", "-ldl"], check=True)
        for sessions in (1, 4, 8, 16, 32, 64):
            environment = f', P11SHIM_MODULE = "{MODULE}", P11SHIM_SLEEP_MICROS = "2000"'
            proxy, kms = start(base / f"slow-{sessions}", ["key-0"], module=shim, environment=environment, sessions=sessions, queue=256)
            kms.encrypt()
            result = wrk(kms, "encrypt", kms.encrypt_body(), 128, seconds)
            show(f"{sessions} sessions, {threads(proxy.processes['a'].pid)} threads", result)
            print(f"{'':46} {sessions / 0.002:8.0f}/s would be full overlap")
            proxy.stop()


if __name__ == "__main__":
    main()
