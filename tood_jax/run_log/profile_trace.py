"""Read a profile that JAX wrote: which operations ran, and how long."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

_TPU_LINE = "XLA Ops"  # operations of a TPU; events elsewhere name theirs


class Event(NamedTuple):
    """An operation that ran on one thread or stream."""

    name: str
    start: float  # nanoseconds
    duration: float


def read_events(folder: Path) -> list[list[Event]]:
    """Return the operations of the newest profile below a folder, one list for each thread or stream.

    Raises:
        FileNotFoundError: there is no profile.
    """
    import jax  # here, so that the log itself is free of it

    files = sorted(folder.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"{folder} has no profile")
    planes = jax.profiler.ProfileData.from_file(str(files[-1])).planes
    return [
        [
            Event(name, event.start_ns, event.duration_ns)
            for event in line.events
            if (name := _operation(event.name, line.name, dict(event.stats)))
        ]
        for plane in planes
        for line in plane.lines
    ]


def own_times(line: list[Event]) -> Iterator[tuple[str, float]]:
    """Yield (name, nanoseconds) of each event of one thread, without the time of the events inside it."""
    open_events: list[Event] = []
    inside: list[float] = []  # for each open event, the time of the events inside it

    def close(until: float) -> Iterator[tuple[str, float]]:
        while open_events and open_events[-1].start + open_events[-1].duration <= until:
            event = open_events.pop()
            yield event.name, event.duration - inside.pop()
            if inside:
                inside[-1] += event.duration

    for event in sorted(line, key=lambda event: (event.start, -event.duration)):
        yield from close(event.start)
        open_events.append(event)
        inside.append(0.0)
    yield from close(float("inf"))


def seconds_by_operation(lines: Sequence[list[Event]]) -> dict[str, float]:
    """Return the seconds of each operation over all threads or streams, without those inside it, the longest first."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for line in lines:
        for name, nanoseconds in own_times(line):
            seconds[name] += nanoseconds / 1e9
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def _operation(event: str, line: str, stats: dict[str, object]) -> str:
    """Return the name of the operation of an event; "" if it is something else."""
    if "hlo_op" in stats:
        return str(stats["hlo_op"])
    return event.partition(" = ")[0].lstrip("%") if line == _TPU_LINE else ""
