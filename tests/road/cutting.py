"""Requests as bytes: sent whole, or cut off by whoever sent them."""
import contextlib
import http.client
import json
import socket
import struct
import threading
import time
from typing import NamedTuple

HOW = ("reset", "close", "half")
"""How a connection is cut: by a reset; closed; the sending side closed, so that what was sent certainly arrives."""
SECONDS_TO_BE_READ = 0.3
"""What was sent until then was read: the service had all that it needs to judge too early."""


class Request(NamedTuple):
    head: bytes
    body: bytes = b""

    @classmethod
    def http(cls, method: str, path: str, headers: dict, body: bytes = b"") -> "Request":
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        if not any(name.lower() in ("content-length", "transfer-encoding") for name in headers):
            lines.append(f"Content-Length: {len(body)}")
        return cls("\r\n".join([*lines, "", ""]).encode(), body)


class Answer(NamedTuple):
    status: int
    headers: dict
    body: bytes

    def json(self):
        return json.loads(self.body) if self.body else None


class Door:
    """Where a service listens. `context`: of TLS, if it speaks that; `path`: of a Unix socket, in place of a port."""

    def __init__(self, port: int = 0, context=None, name: str = "localhost", path=lambda: None):
        self.port, self.context, self.name, self.path = port, context, name, path
        self.kept, self.generation = threading.local(), 0

    def connect(self) -> socket.socket:
        if path := self.path():
            stream = socket.socket(socket.AF_UNIX)
            stream.connect(path)
            return stream
        stream = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.context.wrap_socket(stream, server_hostname=self.name) if self.context else stream

    def restarted(self) -> None:
        """Connections from before are of no use."""
        self.generation += 1

    def call(self, request: Request) -> Answer:
        """On a connection that each thread keeps."""
        if getattr(self.kept, "generation", None) != self.generation:
            self.kept.generation, self.kept.stream = self.generation, None
        for last in (False, True):
            stream = self.kept.stream = self.kept.stream or self.connect()
            try:
                stream.sendall(request.head + request.body)
                response = http.client.HTTPResponse(stream, method=request.head.split(b" ", 1)[0].decode())
                response.begin()
                answer = Answer(response.status, {name.lower(): value for name, value in response.headers.items()}, response.read())
            except (ConnectionError, http.client.RemoteDisconnected):
                # Nobody had used it for long.
                self.kept.stream = None
                if last:
                    raise
                continue
            if response.will_close:
                self.kept.stream = None
            return answer
        raise AssertionError

    def line(self, request: Request) -> dict:
        """To an admin socket: the last line that it answers."""
        with self.connect() as stream:
            stream.sendall(request.head + request.body)
            return json.loads(stream.makefile().readlines()[-1])

    def cut(self, request: Request, length: int, seconds: float, how: str, read: bool) -> tuple[int | None, socket.socket | None]:
        """Sends so many bytes of it, waits, and hangs up. Gives the status of what came until then, if it was `read`, and the stream
        if its other half is still open."""
        stream = self.connect()
        with contextlib.suppress(ConnectionError):
            stream.sendall((request.head + request.body)[:length])
        time.sleep(seconds)
        status = status_of(arrived(stream)) if read else None
        with contextlib.suppress(OSError):
            if how == "half":
                stream.shutdown(socket.SHUT_WR)
                return status, stream
            if how == "reset":
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.close()
        return status, None


def arrived(stream: socket.socket) -> bytes:
    stream.setblocking(False)
    with contextlib.suppress(OSError):
        return stream.recv(65536)
    return b""


def status_of(data: bytes) -> int | None:
    if data.startswith(b"{"):
        # An admin socket.
        return 200 if data.endswith(b"\n") and json.loads(data.splitlines()[-1]).get("done") else None
    words = data[:16].split(b" ")
    return int(words[1]) if len(words) > 2 and words[0] == b"HTTP/1.1" else None


@contextlib.contextmanager
def half_sent(door: Door, request: Request):
    """Half of the body is there while the block runs; `answer()` sends the rest, and gives status and body."""
    with door.connect() as stream:
        half = len(request.body) // 2
        stream.sendall(request.head + request.body[:half])
        time.sleep(SECONDS_TO_BE_READ)

        def answer() -> tuple[int, bytes]:
            # Who is refused before his body is there may hear it at once.
            with contextlib.suppress(ConnectionError):
                stream.sendall(request.body[half:])
            response = http.client.HTTPResponse(stream, method=request.head.split(b" ", 1)[0].decode())
            response.begin()
            return response.status, response.read()
        yield answer
