"""Goodput from marks to shares, by hand-worked numbers."""

import json
import time
from pathlib import Path

import pytest

from tood_jax.run_log.appender import Appender
from tood_jax.run_log.goodput import KINDS, Ledger, Mark, Stopwatch, goodput_sentence, goodput_shares, read_marks


def mark(began, time, step, **spent):
    return Mark(began, time, step, spent)


UNBROKEN = [
    mark(1000, 1010, 0, starting=10),
    mark(1000, 1060, 50, starting=10, compiling=20, waiting=5, steps=25),
    mark(1000, 1100, 100, starting=10, compiling=20, waiting=5, evaluating=10, saving=5, steps=50),
]
# Killed some time after step 50, of which step 30 was saved; begun again after 40 s; there nothing was lost.
BROKEN = [
    mark(1000, 1010, 0, starting=10),
    mark(1000, 1040, 30, starting=10, saving=5, steps=25),
    mark(1000, 1060, 50, starting=10, saving=5, steps=45),
    mark(1100, 1110, 30, starting=10),
    mark(1100, 1200, 100, starting=10, steps=90),
]


def test_a_run_without_a_break():
    expected = {"steps": 0.5, "starting": 0.1, "compiling": 0.2, "waiting": 0.05, "evaluating": 0.1, "saving": 0.05}
    assert goodput_shares(UNBROKEN) == pytest.approx({**dict.fromkeys(KINDS, 0.0), **expected})


def test_what_was_done_again_is_lost():
    expected = {"steps": 115 / 200, "starting": 20 / 200, "saving": 5 / 200, "lost": 20 / 200, "stopped": 40 / 200}
    assert goodput_shares(BROKEN) == pytest.approx({**dict.fromkeys(KINDS, 0.0), **expected})


def test_a_start_that_a_later_one_made_void():
    """The third start goes back to step 0, say because the folder of checkpoints was removed: all before is lost."""
    marks = [*BROKEN, mark(1300, 1310, 0, starting=10), mark(1300, 1400, 10, starting=10, steps=90)]
    shares = goodput_shares(marks)
    # Of the first start only its first mark stands (it too went on from step 0): 10 s of starting.
    assert shares["lost"] == pytest.approx((50 + 100) / 400)
    assert shares["starting"] == pytest.approx((10 + 10) / 400)
    assert shares["steps"] == pytest.approx(90 / 400)
    assert shares["stopped"] == pytest.approx((40 + 100) / 400)
    assert sum(shares.values()) == pytest.approx(1)


def test_clocks_that_go_backwards_and_no_time_at_all():
    marks = [mark(1000, 1010, 0, steps=10), mark(1005, 1015, 0, steps=10)]
    assert goodput_shares(marks)["stopped"] == 0
    assert goodput_shares([mark(1000, 1000, 0)]) == dict.fromkeys(KINDS, 0.0)


def test_the_sentence():
    assert goodput_sentence(BROKEN) == (
        "Goodput 57.5 % of 0.06 hours since the first start (2 starts); 20.0 % stopped, 10.0 % starting, 10.0 % lost, "
        "2.5 % saving."
    )
    assert goodput_sentence([mark(0, 7200, 9, steps=7200)]) == "Goodput 100.0 % of 2.00 hours since the first start."


def test_torn_and_strange_lines_are_passed_over():
    good = json.dumps({"began": 1, "time": 2, "step": 3, "spent": {"steps": 1.0, "dreaming": 5.0}})
    assert read_marks([good, good[:20], "[]", "3", '{"began": 1}', ""]) == [Mark(1.0, 2.0, 3, {"steps": 1.0})]


def test_a_stopwatch_counts_every_second_once(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: 5000 + now[0])
    watch = Stopwatch(began=5090.0)  # ten seconds ago
    now[0] += 5
    watch.started()
    with watch.spend("evaluating"):
        now[0] += 3
    now[0] += 20
    watch.add("waiting", 2)
    assert watch.spent() == {"starting": 15, "evaluating": 3, "waiting": 2, "steps": 18}


def test_the_ledger_goes_on(tmp_path: Path):
    file = tmp_path / "goodput.jsonl"
    file.write_text(
        "".join(json.dumps({"began": m.began, "time": m.time, "step": m.step, "spent": m.spent}) + "\n" for m in BROKEN)
        + '{"began": 13'  # kill −9 in the middle of a line
    )
    ledger = Ledger(Appender(file, print), Stopwatch(time.time()))
    ledger.mark(100)
    marks = read_marks(file.read_text().splitlines())
    assert marks[:5] == BROKEN
    assert len(marks) == 6
    assert ledger.sentence().count("3 starts") == 1
    assert ledger.shares()["stopped"] > 0.9


def test_a_process_without_a_ledger(tmp_path: Path):
    ledger = Ledger(None, Stopwatch(time.time() - 5))
    ledger.mark(0)
    assert ledger.shares()["steps"] == 1
