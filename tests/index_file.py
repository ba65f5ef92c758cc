"""Edits the storage's index as somebody does who may write to its file and has no key."""
import json
import pathlib
import subprocess

from process import BINARY, ROOT

TAG = 32
"""Bytes of a row's MAC, before its content."""


def editor() -> pathlib.Path:
    """The example of crates/store, as the tests before this one or `cargo build` have left it; else it is built."""
    for directory in (BINARY.parent, ROOT / "target/debug"):
        if (directory / "examples/edit_index").exists():
            return directory / "examples/edit_index"
    subprocess.run(["cargo", "build", "--quiet", "-p", "holdfast-store", "--example", "edit_index"], cwd=ROOT, check=True)
    return ROOT / "target/debug/examples/edit_index"


class IndexFile:
    """An index that no process has open."""

    def __init__(self, path: pathlib.Path, table: str = "index v2"):
        self.path, self.table = path, table
        self.tag = TAG if table.endswith("v2") else 0

    def run(self, *words: str) -> str:
        return subprocess.run([editor(), self.path, self.table, *words], check=True, capture_output=True, text=True).stdout

    def rows(self) -> dict[bytes, bytes]:
        pairs = [line.split(" ") for line in self.run("list").splitlines()]
        return {bytes.fromhex(name): bytes.fromhex(row) for name, row in pairs}

    def put(self, name: bytes, row: bytes):
        self.run("put", name.hex(), row.hex())

    def remove(self, name: bytes):
        self.run("remove", name.hex())

    def record(self, name: bytes) -> dict:
        content = self.rows()[name][self.tag:]
        return json.loads(content[4:4 + int.from_bytes(content[:4])])

    def with_record(self, row: bytes, change, inline: bytes | None = None) -> bytes:
        """The same row with another record; the MAC, if there is one, stays what it was."""
        tag, content = row[:self.tag], row[self.tag:]
        size = int.from_bytes(content[:4])
        record, rest = json.loads(content[4:4 + size]), content[4 + size:]
        change(record)
        text = json.dumps(record, separators=(",", ":")).encode()
        return tag + len(text).to_bytes(4) + text + (rest if inline is None else inline)

    def bucket(self, name: str) -> bytes:
        return bytes.fromhex(self.record(b"B" + name.encode())["id"])

    def object(self, bucket: str, key: str) -> bytes:
        return b"O" + self.bucket(bucket) + key.encode()
