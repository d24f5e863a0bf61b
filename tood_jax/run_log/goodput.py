"""Goodput: the share of a run's time, since its first start, that was spent in steps that count.

A running process spends its time in exactly one of

    starting     from the start of the process to its first step: imports, annotations, restoring
    compiling    the first step of each canvas, up to its dispatch
    waiting      fetching a batch while the devices are idle
    evaluating
    saving       as far as training waits for it
    steps        everything else: the steps, and the little that the loop does around them

and writes a mark with these totals to goodput.jsonl at every line of the log, save and evaluation. From the marks of
all starts follow two more:

    lost         spent by a start after the step from which a later start continued
    stopped      between the last mark of a start and the beginning of the next: the run was not running, or it was
                 killed before it could write a mark

The shares of the eight add up to 1, and that of `steps` is the goodput.
"""

import contextlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise

from tood_jax.run_log.appender import Appender

STEPS = "steps"
RUNNING = (STEPS, "starting", "compiling", "waiting", "evaluating", "saving")
KINDS = (*RUNNING, "lost", "stopped")


@dataclass(frozen=True)
class Mark:
    """Time that a start has spent up to a step. Its first mark has the step that it continues from."""

    began: float  # Unix time at which the process began; it identifies the start
    time: float  # Unix time
    step: int
    spent: Mapping[str, float]  # seconds by kind (RUNNING) since `began`; absent: 0


def goodput_shares(marks: Sequence[Mark]) -> dict[str, float]:
    """Return the shares (0–1, by KINDS) of the time from the first start to the last mark; marks in order of time."""
    starts = [list(group) for _, group in groupby(marks, lambda mark: mark.began)]
    seconds = dict.fromkeys(KINDS, 0.0)
    resumed_at = math.inf  # the earliest step from which a later start continued
    for start in reversed(starts):
        kept = max((mark for mark in start if mark.step <= resumed_at), key=lambda mark: mark.time, default=None)
        for kind, spent in (kept.spent if kept else {}).items():
            seconds[kind] += spent
        seconds["lost"] += _total(start[-1]) - (_total(kept) if kept else 0.0)
        resumed_at = min(resumed_at, start[0].step)
    for former, latter in pairwise(starts):
        seconds["stopped"] += max(0.0, latter[0].began - former[-1].time)
    whole = sum(seconds.values())
    return {kind: value / whole if whole > 0 else 0.0 for kind, value in seconds.items()}


def _total(mark: Mark) -> float:
    return sum(mark.spent.values())


def goodput_sentence(marks: Sequence[Mark]) -> str:
    """Return the shares as a sentence, the largest losses first."""
    shares = goodput_shares(marks)
    losses = sorted(((share, kind) for kind, share in shares.items() if kind != STEPS), reverse=True)
    named = ", ".join(f"{_percent(share)} {kind}" for share, kind in losses if share >= 0.0005)
    starts = len({mark.began for mark in marks})
    hours = (marks[-1].time - marks[0].began) / 3600
    return (
        f"Goodput {_percent(shares[STEPS])} of {hours:.2f} hours since the first start"
        f"{f' ({starts} starts)' if starts > 1 else ''}{f'; {named}' if named else ''}."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def read_marks(lines: Iterable[str | bytes]) -> list[Mark]:
    """Return the marks in the lines of goodput.jsonl; incomplete lines of a killed process are skipped."""
    marks = []
    for line in lines:
        try:
            row = json.loads(line)
            spent = {kind: float(row["spent"][kind]) for kind in RUNNING if kind in row["spent"]}
            marks.append(Mark(float(row["began"]), float(row["time"]), int(row["step"]), spent))
        except (ValueError, KeyError, TypeError):
            continue
    return marks


class Stopwatch:
    """Measures the seconds that this process spends, by kind (RUNNING), since it began at Unix time `began`."""

    def __init__(self, began: float):
        self.began = began
        self._origin = time.perf_counter() - max(0.0, time.time() - began)
        self._spent: dict[str, float] = {}

    def started(self) -> None:
        """Count all time up to now as starting."""
        self._spent = {"starting": time.perf_counter() - self._origin}

    @contextlib.contextmanager
    def spend(self, kind: str) -> Iterator[None]:
        """Count the time inside this context as of this kind; contexts must not nest."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.add(kind, time.perf_counter() - begin)

    def add(self, kind: str, seconds: float) -> None:
        """Count seconds that have just passed."""
        self._spent[kind] = self._spent.get(kind, 0.0) + seconds

    def spent(self) -> dict[str, float]:
        """Return the seconds by kind up to now."""
        elapsed = time.perf_counter() - self._origin
        return {**self._spent, STEPS: max(0.0, elapsed - sum(self._spent.values()))}


class Ledger:
    """The marks of a run over all its starts, in a file of its folder.

    Args:
        out: file for new marks; None: this process writes none.
    """

    def __init__(self, out: Appender | None, watch: Stopwatch):
        self._out = out
        self._watch = watch
        written = out.file.read_bytes() if out is not None and out.file.exists() else b""
        self._marks = read_marks(written.splitlines())
        last = {mark.began: _total(mark) for mark in self._marks if mark.began != watch.began}
        self._earlier_seconds = sum(last.values())
        if out is not None and written and not written.endswith(b"\n"):  # incomplete, of a killed process
            out.append(b"\n")

    def mark(self, step: int) -> None:
        """Write a mark with the time spent up to now."""
        spent = self._watch.spent()
        mark = Mark(self._watch.began, self._watch.began + sum(spent.values()), step, spent)
        self._marks.append(mark)
        if self._out is not None:
            rounded = {kind: round(seconds, 3) for kind, seconds in spent.items()}
            self._out.append(f"{json.dumps({**asdict(mark), 'spent': rounded})}\n".encode())

    def seconds(self) -> float:
        """Return the time that all starts have taken up to now, without that between them; of this process alone if it
        writes no marks."""
        return self._earlier_seconds + sum(self._watch.spent().values())

    def shares(self) -> dict[str, float]:
        """Return `goodput_shares` up to the last mark."""
        return goodput_shares(self._marks)

    def sentence(self) -> str:
        """Return `goodput_sentence` up to the last mark."""
        return goodput_sentence(self._marks)
