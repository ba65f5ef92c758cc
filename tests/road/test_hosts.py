"""What a host gives to a service, and what a service makes of it: users, modes, sockets, descriptors, balancers, the service manager."""
import contextlib
import http.client
import json
import os
import pathlib
import re
import shutil
import socket
import ssl
import stat
import struct
import subprocess
import tempfile
import time

import pytest
import requests
from process import BINARY
from stopped import There, there

NOBODY = 65534


def config_of(there) -> pathlib.Path:
    return pathlib.Path(there.command[there.command.index("--config") + 1])


def configure(there, section: str, line: str) -> None:
    config = config_of(there)
    text = config.read_text()
    assert f"[{section}]\n" in text
    config.write_text(text.replace(f"[{section}]\n", f"[{section}]\n{line}\n", 1))


def port_of(there) -> int:
    return int(re.search(r'address = "127.0.0.1:(\d+)"', config_of(there).read_text())[1])


def open_to_others(directory: pathlib.Path) -> list[str]:
    found = [path for path in [directory, *directory.rglob("*")] if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) & 0o077]
    return sorted(str(path) for path in found)


def test_files_are_their_owners_alone_whatever_the_umask(there):
    shutil.rmtree(there.data_dir)
    there.list.unlink()
    with there.started(umask=0):
        assert not open_to_others(there.data_dir)
    assert not open_to_others(there.data_dir)
    # As an earlier version, or a restore, left them.
    subprocess.run(["chmod", "-R", "go+rX", there.data_dir], check=True)
    assert str(there.data_dir) in open_to_others(there.data_dir)
    with there.started(umask=0) as log:
        assert "open to group or others" in log.read_text()
        assert not [path for path in open_to_others(there.data_dir) if "/blobs/" not in path]


def socket_of(directory: pathlib.Path) -> pathlib.Path:
    return pathlib.Path((directory / "admin-socket.path").read_text())


def explain(data_dir: pathlib.Path, **more) -> subprocess.CompletedProcess:
    command = [BINARY, "kms", "explain", "--data-dir", data_dir, "--principal", "arn:aws:iam::111122223333:root", "--action", "kms:ListKeys"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **more)


def test_admin_sockets_lie_in_the_hosts_runtime_directory(tmp_path):
    there = There("kms", tmp_path)
    run = pathlib.Path(tempfile.mkdtemp(dir="/run"))
    run.chmod(0o700)
    bare = {name: value for name, value in os.environ.items() if name not in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR")}
    try:
        (run / "unit").mkdir(mode=0o755)
        (run / "open").mkdir()
        (run / "open").chmod(0o777)
        for given, lies_in in [({"RUNTIME_DIRECTORY": f"{run}/unit:{run}/second"}, run / "unit"), ({"XDG_RUNTIME_DIR": str(run)}, run / "holdfast"),
                               ({"XDG_RUNTIME_DIR": str(tmp_path)}, pathlib.Path("/run/holdfast")), ({"RUNTIME_DIRECTORY": "relative"}, pathlib.Path("/run/holdfast")),
                               ({"XDG_RUNTIME_DIR": str(run / "open")}, pathlib.Path("/run/holdfast")), ({}, pathlib.Path("/run/holdfast"))]:
            with there.started(env=bare | given):
                path = socket_of(there.data_dir)
                assert path.parent == lies_in and stat.S_IMODE(path.stat().st_mode) == 0o600, given
                assert explain(there.data_dir).returncode in (0, 3)
            assert not path.exists()
    finally:
        shutil.rmtree(run)


def test_without_one_they_lie_in_the_services_directory_however_long_its_path(tmp_path):
    there = There("kms", tmp_path)
    home = pathlib.Path(tempfile.mkdtemp())
    home.chmod(0o755)
    try:
        config = config_of(there).read_text()
        long = home / ("a" * 120) / ("b" * 120)
        moved = config.replace(str(there.data_dir.parent), str(home / "kms")).replace(str(home / "kms" / there.data_dir.name), str(long))
        assert str(long) in moved
        shutil.copytree(there.data_dir.parent, home / "kms", ignore=shutil.ignore_patterns(there.data_dir.name, "*silicon*", "*.log"))
        (home / "kms" / config_of(there).name).write_text(moved)
        long.parent.mkdir()
        program = home / "holdfast"
        shutil.copy(BINARY, program)
        program.chmod(0o755)
        for path in [home, *home.rglob("*")]:
            os.chown(path, NOBODY, NOBODY)
        command = [program, "kms", "serve", "--config", home / "kms" / config_of(there).name]
        log = home / "log"
        env = {name: value for name, value in os.environ.items() if name not in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR")}
        with open(log, "wb") as out:
            process = subprocess.Popen(command, stderr=out, user=NOBODY, group=NOBODY, extra_groups=[], env=env)
        deadline = time.monotonic() + 60
        while " ready" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        path = socket_of(long)
        assert path == long / "admin.sock" and len(str(path)) > 240 and stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 and not open_to_others(long)
        for user in (NOBODY, 0):
            done = explain(long, user=user) if user == 0 else subprocess.run(
                [program, *explain(long).args[1:]], capture_output=True, text=True, user=NOBODY, group=NOBODY, extra_groups=[], timeout=60)
            assert done.returncode in (0, 3), done.stderr
        process.terminate()
        process.wait(30)
        assert not path.exists()
        assert explain(long).returncode == 4
    finally:
        shutil.rmtree(home)


def limited(there, soft: int, hard: int) -> None:
    there.command = ["prlimit", f"--nofile={soft}:{hard}", *there.command]


def test_connections_are_no_more_than_there_are_descriptors_for(tmp_path):
    there = There("kms", tmp_path)
    bare = there.command
    limited(there, 200, 9000)
    with there.started() as log:
        assert "Max open files            9000" in pathlib.Path(f"/proc/{there.process.pid}/limits").read_text()
        assert "RLIMIT_NOFILE" not in log.read_text(), "4096 connections of one listener need 8448"
    there.command = bare
    limited(there, 100, 330)
    with there.started() as log:
        said = log.read_text()
        assert "there are 330 file descriptors" in said and "needs 8448" in said and "each takes 37 connections" in said, said
        held = [socket.create_connection(("127.0.0.1", port_of(there))) for _ in range(400)]
        deadline = time.monotonic() + 30
        # Those that found no place are closed; the log and the store have theirs.
        while sum(closed(one) for one in held) < 400 - 37:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert "could not be accepted" not in log.read_text() and len(os.listdir(f"/proc/{there.process.pid}/fd")) < 330
        for one in held:
            one.close()
        until(lambda: there.there.use() == 200)
    there.command = bare
    limited(there, 100, 280)
    said = there.refused()
    assert "the process may have 280 file descriptors" in said and "needs 8448" in said and "LimitNOFILE=8448" in said, said
    there.command = bare
    there.served_again()


def closed(one: socket.socket) -> bool:
    one.setblocking(False)
    try:
        return one.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def until(holds) -> None:
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(OSError, AssertionError, http.client.HTTPException):
            if holds():
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Behind a balancer.

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def version_2(command: int, family: int, rest: bytes) -> bytes:
    return SIGNATURE + bytes([command, family]) + struct.pack(">H", len(rest)) + rest


V4 = socket.inet_aton("192.0.2.71") + socket.inet_aton("10.0.0.1") + struct.pack(">HH", 56324, 443)
V6 = socket.inet_pton(socket.AF_INET6, "2001:db8::72") + bytes(16) + struct.pack(">HH", 56324, 443)
HEADERS = [(b"PROXY TCP4 192.0.2.70 10.0.0.1 56324 443\r\n", "192.0.2.70"), (version_2(0x21, 0x11, V4 + b"\x04\x00\x03abc"), "192.0.2.71"),
           (version_2(0x21, 0x21, V6), "2001:db8::72")]
OWN = [version_2(0x20, 0x00, b""), b"PROXY UNKNOWN\r\n"]


class Behind:
    """Requests of nobody who is known, which the log tells with their source."""

    def __init__(self, there: There):
        self.there, self.tls = there, "insecure_http = true" not in config_of(there).read_text()
        self.log = there.there.audit

    def ask(self, header: bytes, split: int = 0) -> int:
        with socket.create_connection(("127.0.0.1", port_of(self.there)), timeout=20) as raw:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for part in (header[:split], header[split:]):
                raw.sendall(part)
                time.sleep(0.05 if split else 0)
            stream = raw
            if self.tls:
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                stream = context.wrap_socket(raw, server_hostname="localhost")
            stream.sendall(b"GET /keys?api-version=7.5 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = http.client.HTTPResponse(stream)
            answer.begin()
            return answer.status

    def sources(self) -> list[str]:
        lines = [line for path in sorted(self.log.glob("audit-*.jsonl")) for line in path.read_bytes().split(b"\n")[:-1]]
        return [event["source"] for event in map(json.loads, lines) if event.get("source")]

    def told(self, source: str) -> bool:
        return any(found.strip("[").startswith((source + ":", source + "]")) or found == source for found in self.sources())


@pytest.mark.parametrize("role", ["managed-hsm", "kms", "storage"])
def test_the_log_tells_the_client_behind_a_balancer(role, tmp_path):
    there = There(role, tmp_path)
    plain = config_of(there).read_text()
    configure(there, "listen", 'proxy_protocol_from = ["10.0.0.0/8", "127.0.0.1"]')
    behind = Behind(there)
    with there.started() as log:
        for header, source in HEADERS:
            assert not behind.told(source)
            assert 400 <= behind.ask(header) < 500
            until(lambda source=source: behind.told(source))
            assert 400 <= behind.ask(header, split=7) < 500, "in two pieces"
        for header in OWN:
            assert 400 <= behind.ask(header) < 500
        until(lambda: behind.told("127.0.0.1"))
        # Without a header, with half of one, with a wrong one: closed, and said once.
        for header in (b"", b"PROXY TCP4 192.0.2.99 10.0.0.1 1 65536\r\n", b"PROXY TCP4 " + b"1" * 200, version_2(0x21, 0x11, b"short"),
                       version_2(0x21, 0x11, b"x" * 5000)):
            with pytest.raises((OSError, http.client.HTTPException)):
                behind.ask(header)
        with socket.create_connection(("127.0.0.1", port_of(there))) as slow:
            slow.sendall(b"PROXY TCP4 192")
            assert 400 <= behind.ask(HEADERS[0][0]) < 500, "it holds up nobody"
        assert log.read_text().count("of a balancer is closed") == 1, "once, until it goes well again"
    assert not behind.told("192.0.2.99")
    # From everybody else it is what it was.
    config_of(there).write_text(plain)
    configure(there, "listen", 'proxy_protocol_from = ["10.0.0.0/8"]')
    before = len(behind.sources())
    with there.started():
        header = b"PROXY TCP4 192.0.2.98 10.0.0.1 56324 443\r\n"
        if behind.tls:
            with pytest.raises((OSError, http.client.HTTPException)):
                behind.ask(header)
        else:
            with contextlib.suppress(OSError, http.client.HTTPException):
                assert behind.ask(header) == 400, "it is no request"
        assert 400 <= behind.ask(b"") < 500
        until(lambda: len(behind.sources()) > before)
    assert not behind.told("192.0.2.98")
    for wrong in ("0.0.0.0/0", "10.0.0.1/8", "balancer"):
        config_of(there).write_text(plain)
        configure(there, "listen", f'proxy_protocol_from = ["{wrong}"]')
        assert "listen.proxy_protocol_from" in there.refused()
    config_of(there).write_text(plain)
    there.there.restart(kill=False)
    there.there.stop()


def test_a_proxys_doors_are_behind_balancers_too(tmp_path):
    there = There("xks-proxy", tmp_path)
    configure(there, "listen", 'proxy_protocol_from = ["127.0.0.1"]')
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with there.started():
        def ping(header: bytes) -> int:
            with socket.create_connection(("127.0.0.1", port_of(there)), timeout=20) as raw:
                raw.sendall(header)
                stream = context.wrap_socket(raw, server_hostname="localhost")
                stream.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                answer = http.client.HTTPResponse(stream)
                answer.begin()
                return answer.status
        assert ping(HEADERS[0][0]) == ping(OWN[0]) == 200
        with pytest.raises(OSError):
            ping(b"")
        metrics = re.search(r'metrics_address = "([^"]+)"', config_of(there).read_text())[1]
        assert "holdfast_proxy_headers_refused_total" in requests.get(f"http://{metrics}/metrics", timeout=5).text, "which knows no such headers"


def test_the_service_manager_hears_of_its_life(there):
    path = there.data_dir.parent / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(path))
        heard.settimeout(30)
        with there.started(env=os.environ | {"NOTIFY_SOCKET": str(path)}):
            assert heard.recv(4096).startswith(b"READY=1")
            with socket.create_connection(("127.0.0.1", port_of(there)), timeout=5):
                pass
            there.process.terminate()
            assert heard.recv(4096).startswith(b"STOPPING=1")
    path.unlink()
    with there.started(env=os.environ | {"NOTIFY_SOCKET": str(path)}) as log:
        assert "could not be told" in log.read_text(), "it serves all the same"
