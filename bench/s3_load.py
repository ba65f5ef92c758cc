#!/usr/bin/env python3
"""Measures the storage service: what encryption costs, small objects, memory, listing.

Runs the S3 load script of the reference material (`../shared/clients/s3_bench.py` by default, `--script` otherwise) against
two servers, one with encryption and one with it off, in alternating rounds; then small objects with many clients, memory
with a large object and with many clients, and a listing in a large bucket. Run from the root of the repository:

    cargo build --profile dist -p holdfast && target/python-sdk/bin/python bench/s3_load.py
"""
import argparse, hashlib, io, json, multiprocessing, os, pathlib, re, signal, statistics, subprocess, sys, tempfile, time

import boto3
import requests
from botocore.config import Config

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = ROOT / "target/dist/holdfast"
MIB = 1 << 20


class Server:
    def __init__(self, directory, port, *more):
        self.env_file = pathlib.Path(directory) / f"{port}.env"
        command = [BINARY, "dev", "--data-dir", pathlib.Path(directory) / f"d{port}", "--port-base", str(port), "--insecure-s3-http", "--env-file", self.env_file, *more]
        self.process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not self.env_file.exists():
            assert self.process.poll() is None, "the server did not start"
            time.sleep(0.01)
        self.env = dict(line.split("=", 1) for line in self.env_file.read_text().splitlines())

    def client(self):
        config = Config(retries={"max_attempts": 0}, signature_version="s3v4", s3={"addressing_style": "path"}, request_checksum_calculation="when_required")
        return boto3.client("s3", endpoint_url=self.env["HOLDFAST_S3_URL"], aws_access_key_id=self.env["AWS_ACCESS_KEY_ID"],
                            aws_secret_access_key=self.env["AWS_SECRET_ACCESS_KEY"], region_name="us-east-1", config=config)

    def cpu_seconds(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self, what):
        return int(re.search(rf"{what}:\s+(\d+)", pathlib.Path(f"/proc/{self.process.pid}/status").read_text())[1]) / 1024

    def reset_peak(self):
        pathlib.Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def bench(server, script, bucket, **options):
    env = os.environ | {"S3_URL": server.env["HOLDFAST_S3_URL"], "S3_BUCKET": bucket, "AWS_ACCESS_KEY_ID": server.env["AWS_ACCESS_KEY_ID"],
                        "AWS_SECRET_ACCESS_KEY": server.env["AWS_SECRET_ACCESS_KEY"], "S3_SSE": "none"} | {name: str(value) for name, value in options.items()}
    cpu = server.cpu_seconds()
    out = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stdout + out.stderr
    result = json.loads(out.stdout.rsplit("JSON ", 1)[1])
    return result | {"cpu": server.cpu_seconds() - cpu}


def ratios(encrypted, plain, script, rounds):
    """Encryption against the same server without, one round after the other."""
    found = {}
    for number in range(rounds):
        for name, server in sorted({"on": encrypted, "off": plain}.items(), reverse=bool(number % 2)):
            result = bench(server, script, f"ratio-{number}", ROUNDS=1, BIG_MIB=64, BIG_N=4, SMALL_N=800, CONNS=4)
            for key, value in result.items():
                found.setdefault(key, {}).setdefault(name, []).append(value)
    for key, label in {"big_put_plain": "64 MiB PUT", "big_get_first_plain": "64 MiB GET, first", "big_get_again_plain": "64 MiB GET, again",
                       "small_put_plain": "4 KiB PUT, 4 clients", "small_get_again_plain": "4 KiB GET, 4 clients"}.items():
        pairs = [a / b for a, b in zip(found[key]["on"], found[key]["off"])]
        unit = "MiB/s" if key.startswith("big") else "/s"
        print(f"{label:<22} on {statistics.median(found[key]['on']):8.0f} {unit:<6} off {statistics.median(found[key]['off']):8.0f} {unit:<6} ratio {statistics.median(pairs):.3f} ({min(pairs):.2f} to {max(pairs):.2f})")


def put_many(env, worker, seconds, results):
    import http.client
    sys.path.insert(0, str(ROOT.parent / "shared/clients"))
    os.environ.update({"S3_URL": env["HOLDFAST_S3_URL"], "S3_BUCKET": "small", "AWS_ACCESS_KEY_ID": env["AWS_ACCESS_KEY_ID"], "AWS_SECRET_ACCESS_KEY": env["AWS_SECRET_ACCESS_KEY"]})
    import s3_bench
    connection, body, count, end = s3_bench.Conn(), os.urandom(4096), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        status, _, _ = connection.do(s3_bench.request("PUT", f"{worker}-{count}", body), body)
        assert status == 200
        count += 1
    results.put(count)


def small_puts(server, clients, seconds):
    server.client().create_bucket(Bucket="small")
    results, cpu = multiprocessing.Queue(), server.cpu_seconds()
    workers = [multiprocessing.Process(target=put_many, args=(server.env, n, seconds, results)) for n in range(clients)]
    [worker.start() for worker in workers]
    total = sum(results.get() for _ in workers)
    [worker.join() for worker in workers]
    print(f"4 KiB PUT, durable, {clients} clients: {total / seconds:.0f}/s, {(server.cpu_seconds() - cpu) / total * 1e6:.0f} us CPU each")


class Endless(io.RawIOBase):
    def __init__(self, size):
        self.size, self.at, self.block = size, 0, os.urandom(MIB)

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=0):
        self.at = {0: 0, 1: self.at, 2: self.size}[whence] + offset
        return self.at

    def tell(self):
        return self.at

    def readinto(self, buffer):
        begin = self.at % MIB  # the same bytes at the same place, however it is read
        size = min(len(buffer), self.size - self.at, MIB - begin)
        buffer[:size] = self.block[begin:begin + size]
        self.at += size
        return size

    def __len__(self):
        return self.size


def memory(server, gib, clients):
    s3 = server.client()
    s3.create_bucket(Bucket="memory")
    idle = server.memory("VmRSS")
    server.reset_peak()
    size = int(gib * 1024) * MIB
    upload = s3.create_multipart_upload(Bucket="memory", Key="large")["UploadId"]
    parts, part = [], 512 * MIB
    for number in range(1, -(-size // part) + 1):
        body = Endless(min(part, size - (number - 1) * part))
        etag = s3.upload_part(Bucket="memory", Key="large", UploadId=upload, PartNumber=number, Body=body)["ETag"]
        parts.append({"PartNumber": number, "ETag": etag})
    s3.complete_multipart_upload(Bucket="memory", Key="large", UploadId=upload, MultipartUpload={"Parts": parts})
    put = server.memory("VmHWM")
    server.reset_peak()
    total = sum(len(piece) for piece in s3.get_object(Bucket="memory", Key="large")["Body"].iter_chunks(MIB))
    assert total == size
    print(f"memory: {idle:.0f} MiB idle; {gib} GiB object: +{put - idle:.0f} MiB writing, +{server.memory('VmHWM') - idle:.0f} MiB reading")
    s3.delete_object(Bucket="memory", Key="large")
    server.reset_peak()
    workers = [multiprocessing.Process(target=one_client, args=(server, n)) for n in range(clients)]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    print(f"memory: {clients} clients at once, 32 MiB each, writing and reading: {server.memory('VmHWM'):.0f} MiB in all")


def one_client(server, number):
    s3, body = server.client(), os.urandom(32 * MIB)
    s3.put_object(Bucket="memory", Key=f"c{number}", Body=body)
    assert hashlib.sha256(s3.get_object(Bucket="memory", Key=f"c{number}")["Body"].read()).digest() == hashlib.sha256(body).digest()


def fill(env, worker, count):
    os.environ.update({"S3_URL": env["HOLDFAST_S3_URL"], "S3_BUCKET": "list", "AWS_ACCESS_KEY_ID": env["AWS_ACCESS_KEY_ID"], "AWS_SECRET_ACCESS_KEY": env["AWS_SECRET_ACCESS_KEY"]})
    sys.path.insert(0, str(ROOT.parent / "shared/clients"))
    import s3_bench
    connection = s3_bench.Conn()
    for number in range(count):
        connection.do(s3_bench.request("PUT", f"{number % 97:02d}/{worker:02d}/{number:06d}", b"x"), b"x")


def listing(server, sizes):
    s3, filled, clients = server.client(), 0, 32
    s3.create_bucket(Bucket="list")
    for size in sizes:
        step = (size - filled) // clients
        begun = time.monotonic()
        workers = [multiprocessing.Process(target=fill, args=(server.env, n + filled, step)) for n in range(clients)]
        [worker.start() for worker in workers]
        [worker.join() for worker in workers]
        filled = size
        url = s3.generate_presigned_url("list_objects_v2", {"Bucket": "list", "StartAfter": "05/"})
        times, cpu = [], server.cpu_seconds()
        with requests.Session() as session:
            for _ in range(50):
                start = time.perf_counter()
                answer = session.get(url)
                times.append(time.perf_counter() - start)
        assert answer.content.count(b"<Key>") == 1000, (answer.status_code, answer.content[:300])
        cpu = (server.cpu_seconds() - cpu) / 50
        print(f"listing 1,000 of {size} keys: {statistics.median(times) * 1e3:.1f} ms, {cpu * 1e3:.1f} ms of it CPU on the server (filled in {time.monotonic() - begun:.0f} s)", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--script", default=str(ROOT.parent / "shared/clients/s3_bench.py"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gib", type=float, default=10)
    parser.add_argument("--keys", type=int, nargs="*", default=[2048, 1_000_000])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        encrypted, plain = Server(directory, 21443), Server(directory, 22443, "--insecure-no-encryption")
        if args.rounds:
            ratios(encrypted, plain, args.script, args.rounds)
        plain.stop()
        small_puts(encrypted, 32, 5)
        if args.gib:
            memory(encrypted, args.gib, 64)
        listing(encrypted, args.keys)
        encrypted.stop()


if __name__ == "__main__":
    main()
