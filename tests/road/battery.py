"""The cut battery: for every operation of a dialect, clients that hang up at every moment of a request's life.

What must hold afterwards, and again after a restart:

- what the API tells is the same before the restart and after it: memory equals disk;
- each change has exactly one event, and each event of a success its change;
- half a request changes nothing; what certainly arrived whole has its event, whoever hung up;
- what was answered had its event;
- nothing is stuck: the next operation on the same key, grant, alias, bucket or object is done.
"""
import collections
import concurrent.futures
import contextlib
import dataclasses
import random
import statistics
import time
from typing import Any, Callable

from cutting import HOW, Request

THREADS = 8
WHOLE = 3
"""Requests of each operation that are not cut: they say how long it takes, and that the battery sees what it does."""
STAGES = ("head", "body", "work", "work", "work", "work", "work", "work")
"""While what a client hangs up: mostly while the request is at work or answered."""
EXAMPLES = 3
SECONDS_TO_SETTLE = 30


@dataclasses.dataclass
class Operation:
    name: str
    """As events name it."""
    prepare: Callable[[str], Any]
    """Makes what it is about. Given the mark of this cut, by which all of it can be found."""
    request: Callable[[Any, str], Request]
    """The request, signed, with the mark in it."""
    happened: Callable[[dict, Any, str], int] | None = None
    """How often, by what the API tells: subject, mark. None: a use, which nobody sees but by its event."""
    probe: Callable[[Any, str, dict], None] | None = None
    """Another operation on the same, which must be done; it raises if it is not."""
    title: str = ""
    door: Any = None
    changes: int = 1
    """So many things it changes at once, each with an event of its own."""
    most: int = 1 << 30
    """So many cuts at most, where more of it cannot be there at once."""

    def __post_init__(self):
        self.title = self.title or self.name


@dataclasses.dataclass
class Cut:
    operation: Operation
    number: int
    mark: str
    moment: float
    """0 .. 1 of twice the time that the operation takes."""
    stage: str
    how: str
    read: bool
    subject: Any = None
    seconds: float = 0.0
    whole: bool = False
    status: int | None = None
    heard: str = ""
    """What a client that had closed its sending half was answered."""

    def __str__(self) -> str:
        return f"{self.mark}: cut {self.seconds * 1000:.1f} ms after {'the whole request' if self.whole else 'half of the ' + self.stage}, by {self.how}" + (f", who heard {self.heard}" if self.heard else "")


@dataclasses.dataclass
class Row:
    """What is written down of an operation."""
    cuts: int = 0
    whole: int = 0
    answered: int = 0
    changed: int = 0
    logged: int = 0
    milliseconds: float = 0.0


class Battery:
    def __init__(self, dialect, cuts: int, seed: int):
        self.dialect, self.seed, self.random = dialect, seed, random.Random(seed)
        self.faults: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
        self.rows: dict[str, Row] = collections.defaultdict(Row)
        self.cuts = [self.plan(operation, number, cuts) for operation in dialect.operations for number in range(min(cuts, operation.most) + WHOLE)]
        self.random.shuffle(self.cuts)
        self.open = []
        self.pool = concurrent.futures.ThreadPoolExecutor(THREADS)

    def plan(self, operation: Operation, number: int, cuts: int) -> Cut:
        mark = f"{operation.title.lower()}-{number}"
        if number < WHOLE:
            return Cut(operation, number, mark, 0, "none", "none", True)
        moment = (number - WHOLE + self.random.random()) / cuts
        return Cut(operation, number, mark, moment, self.random.choice(STAGES), self.random.choice(HOW), self.random.random() < 0.5)

    def each(self, work: Callable, cuts: list[Cut]) -> None:
        list(self.pool.map(work, cuts))

    def fault(self, kind: str, cut: Cut, more: str = "") -> None:
        self.faults[cut.operation.title, kind].append(f"{cut}{': ' if more else ''}{more}")

    # What is done.

    def prepare(self, cut: Cut) -> None:
        cut.subject = cut.operation.prepare(cut.mark)

    def send_whole(self, cut: Cut) -> None:
        request = cut.operation.request(cut.subject, cut.mark)
        begun = time.perf_counter()
        answer = self.dialect.send(cut.operation, request)
        cut.seconds, cut.whole, cut.status = time.perf_counter() - begun, True, answer.status
        assert answer.status // 100 == 2, (cut.mark, answer)

    def send_cut(self, cut: Cut) -> None:
        request = cut.operation.request(cut.subject, cut.mark)
        length, chance = len(request.head) + len(request.body), random.Random(f"{self.seed} {cut.mark}")
        takes = self.rows[cut.operation.title].milliseconds / 1000
        cut.seconds = 2 * takes * cut.moment
        if cut.stage == "head":
            length = chance.randrange(1, len(request.head) or length - 1)
        elif cut.stage == "body" and len(request.body) > 2:
            length = len(request.head) + chance.randrange(1, len(request.body) - 1)
        else:
            cut.stage, cut.whole = "work", True
        cut.status, half = (cut.operation.door or self.dialect.door).cut(request, length, cut.seconds, cut.how, cut.read)
        if half:
            self.open.append((cut, half))

    def settle(self) -> None:
        """Waits until nothing of what was abandoned is at work any more, and the log grows no further. Who has closed his sending half only hears
        the end of his request."""
        deadline = time.monotonic() + SECONDS_TO_SETTLE
        for cut, stream in self.open:
            stream.settimeout(max(0.001, deadline - time.monotonic()))
            with contextlib.suppress(OSError):
                cut.heard = stream.recv(300).decode(errors="replace")
        count, calm = -1, 0
        while calm < 4:
            time.sleep(0.25)
            lines = self.dialect.metrics().splitlines()
            at_work = self.dialect.is_busy() or any(line.startswith("holdfast_requests_abandoned{") and not line.endswith(" 0") for line in lines)
            now = self.dialect.size_of_log()
            count, calm = now, calm + 1 if now == count and not at_work else 0
        for _, stream in self.open:
            stream.close()

    # What must hold.

    def check_events(self, told: dict, when: str, cuts: list[Cut]) -> None:
        found = collections.defaultdict(dict)
        for number, event in enumerate(self.dialect.events()):
            # A change that was told twice, for it was not known whether it had been, is one.
            if (mark := self.dialect.mark_of(event)) is not None:
                found[mark][self.dialect.change_of(event) or f"line {number}"] = event
        for cut in cuts:
            self.check_cut(cut, list(found[cut.mark].values()), told, when)

    def check_cut(self, cut: Cut, events: list[dict], told: dict, when: str) -> None:
        operation, done = cut.operation, [event for event in events if event["outcome"] == "allowed"]
        if len(events) > operation.changes:
            self.fault("more events than changes", cut, str([event["outcome"] for event in events]))
        if any(event["operation"] != operation.name for event in done):
            self.fault("an event of something else", cut, str([event["operation"] for event in events]))
        times = self.times(cut, told)
        if times is not None:
            if times > 1:
                self.fault("happened twice", cut)
            if times and len(done) < operation.changes:
                self.fault(f"changed, without an event ({when})", cut)
            if done and not times:
                self.fault(f"an event, and no change ({when})", cut)
            if times and not cut.whole:
                self.fault("changed by half a request", cut)
        if cut.status and cut.status // 100 == 2 and not done:
            self.fault(f"answered, without an event ({when})", cut)
        if cut.whole and cut.how in ("half", "none") and not events:
            self.fault(f"came whole, and has no event ({when})", cut)
        if when == "before the restart" and cut.number >= WHOLE:
            row = self.rows[operation.title]
            row.cuts, row.whole, row.answered = row.cuts + 1, row.whole + cut.whole, row.answered + (cut.status is not None)
            row.changed, row.logged = row.changed + bool(times), row.logged + bool(events)

    def times(self, cut: Cut, told: dict) -> int | None:
        """How often it happened; `None`: nobody can see that."""
        if cut.operation.happened is None:
            return None
        try:
            return int(cut.operation.happened(told, cut.subject, cut.mark))
        except AssertionError as error:
            self.fault("half done", cut, str(error))
            return 1

    def probe(self, cut: Cut, told: dict, when: str) -> None:
        if cut.operation.probe:
            try:
                cut.operation.probe(cut.subject, cut.mark, told)
            except AssertionError as error:
                self.fault(f"stuck ({when})", cut, str(error)[:300])

    def compare(self, before: dict, after: dict) -> None:
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                kind = "on disk alone" if name not in before else "in memory alone" if name not in after else "not the same"
                self.faults["memory and disk", kind].append(f"{name}: {differing(before.get(name), after.get(name))}")

    def run(self) -> "Battery":
        dialect = self.dialect
        self.each(self.prepare, self.cuts)
        self.each(self.send_whole, [cut for cut in self.cuts if cut.number < WHOLE])
        for operation in dialect.operations:
            takes = statistics.median(cut.seconds for cut in self.cuts if cut.operation is operation and cut.number < WHOLE)
            self.rows[operation.title].milliseconds = takes * 1000
        self.each(self.send_cut, [cut for cut in self.cuts if cut.number >= WHOLE])
        self.settle()
        # Half of them are probed at once; the others are left as they are, so that no probe mends what is to be seen after the restart.
        probed, left = ([cut for cut in self.cuts if cut.number % 2 == odd] for odd in (1, 0))
        told = dialect.tell(self.pool)
        self.check_events(told, "before the restart", self.cuts)
        self.each(lambda cut: self.probe(cut, told, "before the restart"), probed)
        before = dialect.tell(self.pool)
        dialect.restart(kill=self.random.random() < 0.5)
        after = dialect.tell(self.pool)
        self.compare(before, after)
        self.check_events(after, "after the restart", left)
        self.each(lambda cut: self.probe(cut, after, "after the restart"), left)
        for fault in dialect.more_faults():
            self.faults["all", "the other side"].append(fault)
        self.pool.shutdown()
        return self

    def report(self) -> str:
        lines = [f"{dialect_name(self.dialect)}, seed {self.seed}: {sum(map(len, self.faults.values()))} faults"]
        for (title, kind), examples in sorted(self.faults.items()):
            lines += [f"  {title}: {kind}: {len(examples)}", *(f"      {example}" for example in examples[:EXAMPLES])]
        return "\n".join(lines)


def dialect_name(dialect) -> str:
    return type(dialect).__name__


def differing(before, after) -> str:
    if isinstance(before, dict) and isinstance(after, dict):
        names = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
        return "; ".join(f"{name} was {str(before.get(name))[:200]}, is {str(after.get(name))[:200]}" for name in sorted(names))
    return f"was {str(before)[:200]}, is {str(after)[:200]}"
