"""Print yes if this machine is too slow to run everything in CI's 90 minutes, and no otherwise; for .ci/run.

Nearly all the time of the tests is Python (tracing) and XLA's compiler, which slow down alike, so a plain loop tells.
"""

import sys
import time

SLOW_SECONDS = 0.55  # a loop of 0.68 s goes with quick tests of a quarter of an hour instead of ten minutes
LOOPS = 10_000_000


def loop_seconds() -> float:
    """Return the least time of three runs of a plain loop."""
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        total = 0
        for i in range(LOOPS):
            total += i
        times.append(time.perf_counter() - begin)
    return min(times)


if __name__ == "__main__":
    seconds = loop_seconds()
    print(f"A loop takes {seconds:.2f} s here; above {SLOW_SECONDS} s late checks are skipped.", file=sys.stderr)
    print("yes" if seconds > SLOW_SECONDS else "no")
