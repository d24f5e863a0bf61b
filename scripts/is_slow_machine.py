"""Print yes if Python runs at less than half of the usual speed here, and no otherwise; for .ci/run.

The tests take 21 minutes of processor time where this loop takes 0.7 s, nearly all of it in Python (tracing) and in
XLA's compiler, which slow down alike.
"""

import sys
import time

USUAL_SECONDS = 0.7  # of the loop, on the EPYC cores of November 2026
LOOPS = 10_000_000


def loop_seconds() -> float:
    """The least of three runs of a plain loop."""
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
    print(f"a loop takes {seconds:.2f} s here, {USUAL_SECONDS} s usually", file=sys.stderr)
    print("yes" if seconds > 2 * USUAL_SECONDS else "no")
