"""Roles that have run and are stopped, to be started again in other surroundings."""
import contextlib
import pathlib
import subprocess
import time

import pytest
from test_history import ROLES


class There:
    """A role that has run and is stopped, and what it is started with."""

    def __init__(self, role: str, directory: pathlib.Path):
        self.role = role
        self.there = there = ROLES[role][0](directory, 0)
        assert there.use() == 200 and there.change("of-today") // 100 == 2
        owner = next(getattr(there, name) for name in ("hsm", "service", "storage", "proxy") if name != "hsm" or role == "managed-hsm" if hasattr(there, name))
        process = getattr(owner, "process", None) or owner.processes["a"]
        self.command = [str(part) for part in process.args]
        self.was = there.there()
        there.halt()
        self.data_dir: pathlib.Path = there.data_dir
        config = pathlib.Path(self.command[self.command.index("--config") + 1]).read_text()
        named = [line.split('"')[1] for line in config.splitlines() if line.startswith("root_file")]
        self.silicon = pathlib.Path(named[0] if named else f"{self.data_dir}.silicon")
        self.list = pathlib.Path(f"{self.silicon}.founded")

    def refused(self, *more: str, **popen) -> str:
        """A start that ends by itself."""
        done = subprocess.run([*self.command, *more], capture_output=True, text=True, timeout=60, **popen)
        assert done.returncode in (1, 2) and "panicked" not in done.stderr, done.stderr
        return done.stderr

    @contextlib.contextmanager
    def started(self, *more: str, **popen):
        """A start that serves."""
        log = self.data_dir.parent / "started.log"
        with open(log, "wb") as out:
            process = self.process = subprocess.Popen([*self.command, *more], stderr=out, **popen)
        try:
            deadline = time.monotonic() + 30
            while " ready" not in log.read_text():
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
            yield log
        finally:
            process.terminate()
            process.wait(30)

    def files(self) -> dict[str, bytes]:
        return {str(path.relative_to(self.data_dir)): path.read_bytes() for path in self.data_dir.rglob("*") if path.is_file()}

    def served_again(self) -> None:
        self.there.restart(kill=False)
        assert self.there.there() == self.was
        self.there.halt()


@pytest.fixture(params=ROLES)
def there(request, tmp_path):
    there = There(request.param, tmp_path)
    yield there
    # An HSM that a storage service stands on, too.
    with contextlib.suppress(Exception):
        there.there.stop()
