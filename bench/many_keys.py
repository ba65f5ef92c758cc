#!/usr/bin/env python3
"""Measures what many keys cost: memory of a key, and the start with all of them, of the kms and of the managed HSM.

One key is made by the service; `many_keys` copies it in the stopped store. Memory of a key is the slope between so many keys and twice as
many, so that caches and what an empty service needs are not counted. A start is timed until the service is ready. From the root of the
repository:

    cargo build --release --workspace --bins --examples && target/python-sdk/bin/python bench/many_keys.py
"""
import argparse, base64, json, os, pathlib, re, statistics, subprocess, sys, tempfile, time, urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--keys", type=int, default=138_000)
parser.add_argument("--starts", type=int, default=5, help="starts of which the median is given")
parser.add_argument("--profile", default="release", help="directory under target/")
parser.add_argument("--binary", type=pathlib.Path, help="another service on the same store, to compare")
args = parser.parse_args()
TOOL = ROOT / "target" / args.profile / "examples/many_keys"
BINARY = args.binary or ROOT / "target" / args.profile / "holdfast"
os.environ["HOLDFAST_BINARY"] = str(BINARY)
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests"), str(ROOT / "tests/kms")]
import hsm_load  # noqa: E402
from process import free_ports  # noqa: E402
from service import Service  # noqa: E402

hsm_load.BINARY = BINARY


class Kms:
    name = "kms"

    def __init__(self, directory):
        self.service = Service(directory / "kms")
        self.data_dir, self.silicon = self.service.data_dir, directory / "kms" / "silicon"

    def start(self):
        self.service.start()
        return self.service.process.pid

    def make(self):
        self.service.client("root").create_key(Description="copied many times")

    def stop(self):
        self.service.stop()


class Hsm:
    name = "managed HSM"

    def __init__(self, directory):
        self.data_dir, self.silicon, self.port = directory / "hsm", directory / "hsm.silicon", free_ports(6)

    def start(self):
        (self.data_dir.with_suffix(".env")).unlink(missing_ok=True)
        self.server = hsm_load.Server(self.port, self.data_dir)
        return self.server.process.pid

    def make(self):
        self.server.post("/keys/first/create", {"kty": "oct-HSM"})

    def stop(self):
        self.server.stop()


def status(pid, name):
    return int(re.search(name + r":\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1]) * 1024


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(int(field) for field in fields[11:13]) / os.sysconf("SC_CLK_TCK")


def measure(role, count):
    subprocess.run([TOOL, role.data_dir, role.silicon, str(count)], check=True)
    seconds, cpu, resident, peak = [], [], [], []
    for _ in range(args.starts):
        begun = time.monotonic()
        pid = role.start()
        seconds.append(time.monotonic() - begun)
        cpu.append(cpu_seconds(pid))
        time.sleep(1)
        resident.append(status(pid, "VmRSS"))
        peak.append(status(pid, "VmHWM"))
        role.stop()
    print(f"{role.name}, {count} keys: start {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), {statistics.median(cpu):.2f} s of CPU; "
          f"resident {statistics.median(resident) / 2**20:.0f} MiB, at most {statistics.median(peak) / 2**20:.0f} MiB", flush=True)
    return statistics.median(resident)


for make_role in (Kms, Hsm):
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        role = make_role(pathlib.Path(directory))
        role.start()
        role.make()
        role.stop()
        few = measure(role, args.keys)
        many = measure(role, 2 * args.keys)
        print(f"{role.name}: {(many - few) / args.keys:.0f} bytes a key", flush=True)
