"""Stopping in good order."""

import contextlib
import os
import signal
import threading
import time

import pytest

from tood_jax.distributed.signals import EXIT_STATUS, Reason, Stopped, StopRequest, StuckWatch, waiting_for_others

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
REASONS = {signal.SIGINT: Reason.INTERRUPT, signal.SIGTERM: Reason.PREEMPTION, signal.SIGUSR1: Reason.PREEMPTION}


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_asks_and_a_later_ctrl_c_stops(number: signal.Signals) -> None:
    said: list[str] = []
    former = [signal.getsignal(each) for each in NUMBERS]
    with StopRequest(said.append, patience=0) as stop:
        stop.check()
        assert stop.reason is Reason.NONE
        send(number)
        assert stop.reason is REASONS[number]
        assert said == [f"{number.name}: saving, then stopping; press Ctrl-C again to stop at once"]
        with pytest.raises(Stopped) as stopped:
            stop.check()
        assert stopped.value.reason is REASONS[number]
        if number != signal.SIGINT:
            send(signal.SIGINT)  # the first of its kind
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert [signal.getsignal(each) for each in NUMBERS] == former
    assert len(said) == 1


def test_a_ctrl_c_that_arrives_twice_at_once_is_one() -> None:
    with StopRequest(lambda text: None, patience=3600) as stop:
        send(signal.SIGINT)
        send(signal.SIGINT)
        assert stop.reason is Reason.INTERRUPT


def test_a_scheduler_that_repeats_itself_does_not_cut_the_save_short() -> None:
    with StopRequest(lambda text: None, patience=0) as stop:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            send(number)
        assert stop.reason is Reason.PREEMPTION


def test_a_preemption_outranks_ctrl_c() -> None:
    """The run should go on by itself, whoever else asked for a stop."""
    with StopRequest(lambda text: None) as stop:
        send(signal.SIGINT)
        send(signal.SIGTERM)
        assert stop.reason is Reason.PREEMPTION
    assert max(Reason) is Reason.PREEMPTION
    assert EXIT_STATUS == {
        Reason.NONE: 0, Reason.OUT_OF_TIME: 0, Reason.INTERRUPT: 130, Reason.PREEMPTION: 75
    }  # fmt: skip


def test_former_handlers_come_back() -> None:
    heard: list[int] = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with StopRequest(lambda text: None) as stop:
            send(signal.SIGTERM)
            assert stop.reason
            assert not heard
        send(signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, former)


@pytest.fixture
def watched():
    """`watch(heard, limit, times)`: the statuses with which a process was ended that got SIGTERM so many times."""
    former = signal.signal(signal.SIGTERM, lambda number, frame: None)
    watches: list[StuckWatch] = []

    def watch(heard: bool, limit: float, times: int) -> list[int]:
        ended: list[int] = []
        watches.append(StuckWatch(lambda: heard, seconds=0.1, limit=limit, end=ended.append))
        watches[0].start()
        for time_ in range(times):
            send(signal.SIGTERM)
            time.sleep(1.2 if time_ + 1 < times else 0.6)
        return ended

    yield watch
    watches[0].stop()
    signal.signal(signal.SIGTERM, former)


@pytest.mark.parametrize(
    ("waits", "heard", "limit", "times", "ended"),
    [
        (False, True, 0.1, 2, []),  # it works: it saves, say
        (True, True, 3600, 1, []),  # the others may still come
        (True, True, 3600, 2, [75]),
        (False, False, 3600, 2, [75]),  # the main thread hangs in a collective
        (True, True, 0.3, 1, [75]),
        (True, True, 0.1, 0, []),  # nobody asked
    ],
)
def test_a_process_that_waits_for_others_in_vain_is_ended(watched, waits, heard, limit, times, ended) -> None:
    with waiting_for_others() if waits else contextlib.nullcontext():
        assert watched(heard, limit, times) == ended


def test_it_speaks_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with StopRequest():
        send(signal.SIGTERM)
    assert capfd.readouterr().err.startswith("SIGTERM: saving, then stopping")


def test_it_does_nothing_in_another_thread() -> None:
    former = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def work() -> None:
        with StopRequest() as stop:
            seen.append((stop.reason, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(Reason.NONE, former)]
