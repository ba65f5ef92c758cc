"""Where an instance begins: nowhere by itself where something of one lies, nor where this machine's silicon knows of one."""
import fcntl
import os
import pathlib
import shutil
import subprocess
import time

from process import BINARY, Server
from stopped import There, there

GONE = {
    "managed-hsm": [("instance.sealed", "are there"), ("records.redb", "watermark.slots, audit are there")],
    "kms": [("instance.sealed", "are there"), ("records.redb", "watermark.slots, audit are there")],
    "storage": [("instance.sealed", "index.redb is there"), ("records.redb", "watermark.slots, audit are there"),
                ("index.redb", "watermark.slots, audit, blobs/owner are there")],
    "xks-proxy": [("instance.sealed", "rows.shared, processes are there"), ("rows.shared", "the mark of process a has seen generation")],
}


def test_a_volume_that_is_not_mounted_is_no_place_to_found(there):
    volume = there.data_dir.with_name("volume")
    there.data_dir.rename(volume)
    for _ in range(2):
        # The mount point, or not even that.
        assert "knows it as the place of instance" in (said := there.refused()) and "--found" in said and "mounted?" in said
        left = list(there.data_dir.iterdir())
        assert [path.name for path in left] in ([], ["open.lock"]), left
        shutil.rmtree(there.data_dir)
    link = there.data_dir.with_name("empty")
    link.mkdir()
    there.data_dir.symlink_to(link)
    elsewhere = there.data_dir.with_name("elsewhere")
    with there.started():
        pass  # The link leads to a directory that is new.
    there.data_dir.unlink()
    link.rename(elsewhere)
    # The control: by silicon that knows of nothing it is founded, as it was before there was a list.
    known = there.list.read_bytes()
    there.list.unlink()
    with there.started() as log:
        assert "a new instance was founded" in log.read_text()
    shutil.rmtree(there.data_dir)
    there.list.write_bytes(known)
    assert "knows it as the place of instance" in there.refused()
    with there.started("--found") as log:
        assert "a new instance was founded" in log.read_text() and "in the place of another one" in log.read_text()
    assert "there is an instance in" in there.refused("--found"), "nobody leaves the word in a unit file"
    with there.started():
        pass
    shutil.rmtree(there.data_dir)
    volume.rename(there.data_dir)
    there.served_again()


def test_a_part_of_an_installation_is_refused_by_name(there):
    whole = there.data_dir.with_name("whole")
    for name, why in GONE[there.role]:
        shutil.copytree(there.data_dir, whole, symlinks=True)
        (there.data_dir / name).unlink()
        left = there.files()
        for more in ((), ("--found",)) if name == "instance.sealed" else ((),):
            said = there.refused(*more)
            assert f"{there.data_dir / name} is missing" in said and why in said and "restore" in said, said
        now = there.files()
        for lock in ("open.lock", "rows.lock"):
            now.pop(lock, None), left.pop(lock, None)
        assert now.keys() == left.keys(), "nothing is begun"
        # What is opened before something is missed is noted in the files of redb.
        assert all(now[file] == left[file] for file in now if not file.endswith(".redb"))
        shutil.rmtree(there.data_dir)
        whole.rename(there.data_dir)
    there.served_again()


def test_a_proxy_whose_rows_and_processes_are_gone_is_no_new_one(tmp_path):
    there = There("xks-proxy", tmp_path)
    (there.data_dir / "rows.shared").unlink()
    shutil.rmtree(there.data_dir / "processes")
    said = there.refused()
    assert "rows.shared is missing, but instance.sealed knows of it" in said, said


def test_a_command_founds_nothing(tmp_path):
    there = There("xks-proxy", tmp_path)
    volume = there.data_dir.with_name("volume")
    there.data_dir.rename(volume)
    config = there.command[there.command.index("--config") + 1]
    done = subprocess.run([BINARY, "xks", "kill", "--config", config, "--all"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "there is no instance in" in done.stderr, done.stderr
    assert not there.data_dir.exists()
    volume.rename(there.data_dir)
    there.served_again()


def test_a_first_start_that_is_cut_short_goes_on(tmp_path):
    """Killed at any of its writes, the last of which the list may be, a first start is gone on with by the next one, without a word."""
    there = There("kms", tmp_path)
    for moment in range(25):
        shutil.rmtree(there.data_dir)
        there.list.unlink()
        process = subprocess.Popen(there.command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while not (there.data_dir / "instance.sealed").exists():
            assert time.monotonic() < deadline
        time.sleep(moment / 500)
        process.kill()
        process.wait(30)
        with there.started():
            assert there.list.exists()
    shutil.rmtree(there.data_dir)
    assert "knows it as the place" in there.refused()


def test_what_others_write_beside_the_silicon(tmp_path):
    """A list that is damaged stops a founding, and no instance; the next entry sets it aside."""
    there = There("kms", tmp_path)
    volume = there.data_dir.with_name("volume")
    good = there.list.read_bytes()
    for planted in (b"HFFD\x01planted", good[:-1], good[:-1] + bytes([good[-1] ^ 1]), b""):
        there.list.write_bytes(planted)
        there.data_dir.rename(volume)
        assert "is damaged, or was not written by this silicon" in there.refused()
        assert not list(there.data_dir.iterdir())
        there.data_dir.rmdir()
        volume.rename(there.data_dir)
        with there.started() as log:
            assert "is set aside" in log.read_text()
        assert pathlib.Path(f"{there.list}.damaged").read_bytes() == planted
    there.list.chmod(0o644)
    there.data_dir.rename(volume)
    assert "chmod 600" in there.refused()
    there.list.unlink()
    os.mkfifo(there.list)
    there.list.chmod(0o600)
    assert "should be a regular file" in there.refused()
    there.list.unlink()


def test_silicon_that_cannot_be_written_stops_nobody(tmp_path):
    """Its root lies in a directory that is read-only, as a secret that is mounted does."""
    there = There("kms", tmp_path)
    silicon = tmp_path / "read-only"
    silicon.mkdir()
    there.silicon.rename(silicon / "root")
    config = pathlib.Path(there.command[there.command.index("--config") + 1])
    config.write_text(config.read_text().replace(str(there.silicon), str(silicon / "root")))
    subprocess.run(["chattr", "+i", silicon], check=True)
    try:
        with there.started() as log:
            assert "the silicon cannot remember this data directory" in log.read_text()
        shutil.rmtree(there.data_dir)
        with there.started() as log:
            assert "a new instance was founded" in log.read_text()
    finally:
        subprocess.run(["chattr", "-i", silicon], check=True)


def test_dev_begins_anew_without_a_word(tmp_path):
    server = Server(tmp_path)
    for _ in range(2):
        server.start()
        server.stop()
        shutil.rmtree(server.data_dir)
        server.env_file.unlink(missing_ok=True)
    assert not list(tmp_path.glob("*.founded"))


def test_two_first_starts_at_once_found_one_instance(tmp_path):
    there = There("kms", tmp_path)
    for _ in range(10):
        shutil.rmtree(there.data_dir)
        there.list.unlink()
        there.silicon.unlink()
        two = [subprocess.Popen(there.command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        deadline = time.monotonic() + 60
        while not (ended := [process for process in two if process.poll() is not None]):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        # The port, or the store, is taken.
        assert len(ended) == 1 and ended[0].returncode, [process.communicate() for process in ended]
        [other] = [process for process in two if process is not ended[0]]
        said = ended[0].communicate()[1]
        assert "another" in said, said
        other.terminate()
        said += other.communicate(timeout=30)[1]
        assert said.count("a new instance was founded") == 1, said
        with there.started():
            pass


def test_who_holds_the_silicon_up_stops_nobody(tmp_path):
    """A neighbour on the same silicon that was stopped while it wrote to the list."""
    there = There("kms", tmp_path)
    with open(there.silicon, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with there.started() as log:
            assert "cannot remember" not in log.read_text(), "there is nothing to write"
        there.list.unlink()
        with there.started() as log:
            assert "the silicon cannot remember this data directory" in log.read_text() and "is it stopped?" in log.read_text()
        assert not there.list.exists()
    with there.started():
        assert there.list.exists()
