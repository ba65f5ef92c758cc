"""Uses against a revocation: some wait when it is asked for, others come while it is carried out."""
import random
import threading
import time
from typing import Callable, Iterator, NamedTuple

from cutting import Door, Request, arrived, status_of

SECONDS_BETWEEN_USES = 0.004
SECONDS_TO_END = 15


class Found(NamedTuple):
    """Statuses of the uses whose answers had arrived whole when the revocation returned, and of those that had not, with their bodies."""
    before: list[int]
    after: list[tuple[int, bytes]]

    def given_late(self, is_success: Callable[[int, bytes], bool]) -> list[bytes]:
        return [body for status, body in self.after if is_success(status, body)]


class Use:
    """One on a connection of its own."""

    def __init__(self, door: Door, request: Request):
        self.stream, self.data = door.connect(), b""
        self.stream.sendall(request.head + request.body)

    def look(self) -> None:
        """Takes what has been handed over until now."""
        while data := arrived(self.stream):
            self.data += data

    def is_whole(self) -> bool:
        head, end, body = self.data.partition(b"\r\n\r\n")
        length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
        return bool(end) and len(body) >= length

    def end(self) -> tuple[int, bytes]:
        """0: the connection was cut before the answer was whole."""
        deadline = time.monotonic() + SECONDS_TO_END
        self.stream.setblocking(True)
        self.stream.settimeout(1)
        while not self.is_whole() and time.monotonic() < deadline:
            try:
                data = self.stream.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            if not data:
                break
            self.data += data
        self.stream.close()
        return (status_of(self.data) or 0) if self.is_whole() else 0, self.data.partition(b"\r\n\r\n")[2]


def race(door: Door, uses: Iterator[Request], waiting: int, seconds: float, revoke: Callable[[], None]) -> Found:
    """Sends so many uses, waits, then revokes and goes on sending until that has returned. What has not arrived by then came too late."""
    sent = [Use(door, next(uses)) for _ in range(waiting)]
    time.sleep(seconds)
    failed = []

    def revoking() -> None:
        try:
            revoke()
        except BaseException as error:  # told by whoever joins
            failed.append(error)
    thread = threading.Thread(target=revoking)
    thread.start()
    while thread.is_alive() and len(sent) < 3 * waiting:
        sent.append(Use(door, next(uses)))
        thread.join(SECONDS_BETWEEN_USES)
    thread.join()
    for use in sent:
        use.look()
    assert not failed, failed
    whole = [use.is_whole() for use in sent]
    ended = [use.end() for use in sent]
    return Found([status for (status, _), early in zip(ended, whole) if early], [end for end, early in zip(ended, whole) if not early])


def race_often(door: Door, trials: int, seed: int, waits: float, uses: Callable[[], Iterator[Request]], revoke: Callable[[], None] | None,
               restore: Callable[[], None] = lambda: None, is_success: Callable[[int, bytes], bool] = lambda status, _: status == 200,
               waiting: int = 10) -> None:
    """So many uses in all, each against a revocation that returns at a random moment of the wait. Without one each is given: the control."""
    chance, seen = random.Random(seed), 0
    given_before, refused = 0, 0
    while seen < trials:
        found = race(door, uses(), waiting, chance.uniform(0, waits), revoke or (lambda: None))
        late = found.given_late(is_success)
        if revoke:
            restore()
            assert not late, f"seed {seed}: {len(late)} results were handed out after the revocation had returned, such as {late[0]!r}"
        else:
            assert all(status == 200 for status in found.before) and all(status == 200 for status, _ in found.after), found
        given_before += sum(status == 200 for status in found.before)
        refused += len(found.after)
        seen += len(found.before) + len(found.after)
    if revoke:
        assert refused or given_before, f"seed {seed}: nothing was used"
