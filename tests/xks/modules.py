"""Other PKCS #11 modules than SoftHSM2, as Debian has them."""
import fcntl
import os
import pathlib
import subprocess
import time

import pytest
from softhsm import SoftHsm

LIBRARIES = pathlib.Path("/usr/lib/x86_64-linux-gnu")
NSS_MODULE = LIBRARIES / "libsoftokn3.so"


class Nss:
    """A database of NSS's software token, which takes a string at its start to find it by."""

    module, label, pin = str(NSS_MODULE), "NSS Certificate DB", "nss-1234567890"

    def __init__(self, directory: pathlib.Path):
        self.directory = directory
        directory.mkdir(parents=True)
        (directory / "pin").write_text(self.pin)
        subprocess.run(["certutil", "-N", "-d", f"sql:{directory}", "-f", directory / "pin"], check=True)
        self.parameters = f"configdir='sql:{directory}'"

    def hsm_config(self, name: str, **more) -> str:
        options = {"library_parameters": self.parameters, "sessions": 4, "relist_secs": 2, "hang_secs": 1} | more
        lines = "".join(f'{option} = "{value}"\n' if isinstance(value, str) else f"{option} = {value}\n" for option, value in options.items())
        return f'[[hsms]]\nname = "{name}"\nmodule = "{self.module}"\ntoken_label = "{self.label}"\n{lines}'


class OpenCryptoki(SoftHsm):
    """openCryptoki's software token in slot 3. It is the machine's: only one that nobody uses is taken, and left as it was."""

    module = str(LIBRARIES / "pkcs11/libopencryptoki.so")
    state, locks = pathlib.Path("/var/lib/opencryptoki/swtok"), pathlib.Path("/var/lock/opencryptoki")
    socket, pid_file = pathlib.Path("/var/run/pkcsslotd.socket"), pathlib.Path("/var/run/pkcsslotd.pid")
    slot, so_pin, pin = "3", "76543210", "91827364"

    def __init__(self, label: str):
        assert pathlib.Path(self.module).exists() and os.geteuid() == 0, "this test uses openCryptoki of Debian, as root"
        self.label, self.mine, self.env = label, self.state / "of-holdfast-tests", dict(os.environ)
        # Another run on this machine has its turn first.
        self.turn = open("/tmp/holdfast-opencryptoki.lock", "w")
        fcntl.flock(self.turn, fcntl.LOCK_EX)
        if self.used() and not self.mine.exists():
            pytest.fail(f"openCryptoki's software token is somebody's: if it is nobody's, empty {self.state} and run this again")
        self.clear()
        self.mine.touch()
        for name in ("", "icsf", "swtok", "tpm", "lite", "ccatok", "ep11tok"):
            (self.locks / name).mkdir(mode=0o770, parents=True, exist_ok=True)
            subprocess.run(["chown", "root:pkcs11", self.locks / name], check=True)
        self.daemon = None if self.running() else self.start()
        self.init_token(label)

    def used(self) -> bool:
        return (self.state / "NVTOK.DAT").exists()

    def running(self) -> int | None:
        try:
            pid = int(self.pid_file.read_text())
            os.kill(pid, 0)
            return pid
        except (OSError, ValueError):
            return None

    def start(self) -> int:
        for stale in (self.socket, self.pid_file):
            stale.unlink(missing_ok=True)
        subprocess.run(["/usr/sbin/pkcsslotd"], check=True)
        deadline = time.monotonic() + 10
        while not (self.socket.exists() and self.running()):
            assert time.monotonic() < deadline, "pkcsslotd does not start"
            time.sleep(0.05)
        return self.running()

    def pkcsconf(self, *args: str, given: str = "") -> None:
        done = subprocess.run(["pkcsconf", "-c", self.slot, *args], input=given, capture_output=True, text=True)
        assert done.returncode == 0, (args, done.stdout, done.stderr)

    def init_token(self, label: str, pin: str = pin) -> None:
        self.pkcsconf("-I", "-S", "87654321", given=label + "\n")
        self.pkcsconf("-P", "-S", "87654321", "-n", self.so_pin)
        self.pkcsconf("-u", "-S", self.so_pin, "-n", "12345678")
        self.pkcsconf("-p", "-U", "12345678", "-n", pin)

    def clear(self) -> None:
        for file in [self.state / "NVTOK.DAT", *self.state.glob("MK_*"), *(self.state / "TOK_OBJ").glob("*"),
                     pathlib.Path("/dev/shm/var.lib.opencryptoki.swtok")]:
            file.unlink(missing_ok=True)
        self.mine.unlink(missing_ok=True)

    def stop(self) -> None:
        if self.daemon:
            os.kill(self.daemon, 15)
            deadline = time.monotonic() + 10
            while self.running() and time.monotonic() < deadline:
                time.sleep(0.05)
        self.clear()
        self.turn.close()

    def hsm_config(self, name: str, **more) -> str:
        options = {"sessions": 4, "relist_secs": 2, "hang_secs": 1} | more
        lines = "".join(f"{option} = {value}\n" for option, value in options.items())
        return f'[[hsms]]\nname = "{name}"\nmodule = "{self.module}"\ntoken_label = "{self.label}"\n{lines}'
