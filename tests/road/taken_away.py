"""Files that a service cannot write any more, though it has them open; and how they are given back."""
import contextlib
import os
import pathlib
import shutil
import subprocess

import pytest


class Immutable:
    """Files and directory take no byte more, whoever has them open."""

    def __init__(self, directory: pathlib.Path):
        self.directory = directory

    @property
    def files(self) -> list[pathlib.Path]:
        return [self.directory, *self.directory.iterdir()]

    def prepare(self) -> None:
        pass

    def take(self) -> None:
        subprocess.run(["chattr", "+i", *self.files], check=True)

    def mend(self) -> None:
        subprocess.run(["chattr", "-i", *self.files], check=True)

    def close(self) -> None:
        self.mend()


class Full:
    """The directory is a file system of its own, with something else that fills it."""

    size = "32m"

    def __init__(self, directory: pathlib.Path):
        self.directory, self.filler = directory, directory / "filler"

    def prepare(self) -> None:
        before = self.directory.with_name(self.directory.name + "-before")
        self.directory.rename(before)
        self.directory.mkdir(mode=0o700)
        options = f"size={self.size},mode=700"
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.directory], capture_output=True, text=True)
        assert made.returncode == 0, f"this test mounts a file system, as root: {made.stderr}"
        shutil.copytree(before, self.directory, dirs_exist_ok=True)

    def take(self) -> None:
        with contextlib.suppress(OSError), open(self.filler, "wb", buffering=0) as out:
            while True:
                out.write(bytes(4096))

    def mend(self) -> None:
        self.filler.unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", "-l", self.directory], check=True)


class Failing:
    """Writes to a file, and syncs of it, end with an I/O error. The service must have been started under `preloaded`."""

    def __init__(self, directory: pathlib.Path):
        self.directory, self.switch = directory, pathlib.Path(os.environ["FAILING_DISK"])

    @property
    def files(self) -> list[pathlib.Path]:
        return [self.directory]

    def prepare(self) -> None:
        pass

    def take(self) -> None:
        [file] = self.files
        self.switch.write_text(str(file))

    def mend(self) -> None:
        self.switch.unlink(missing_ok=True)

    def close(self) -> None:
        self.mend()


@pytest.fixture
def preloaded(tmp_path, monkeypatch):
    """What is started now may have a disk that fails."""
    library = tmp_path / "failing_disk.so"
    source = pathlib.Path(__file__).with_name("failing_disk.c")
    subprocess.run(["cc", "-std=gnu11", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    monkeypatch.setenv("FAILING_DISK", str(tmp_path / "disk-fails"))
    monkeypatch.setenv("LD_PRELOAD", str(library))
