"""Stopping in good order."""

import os
import signal
import threading

import pytest

from tood_jax.training.signals import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_stops(number: signal.Signals) -> None:
    said: list[str] = []
    former = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest(said.append) as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert said == [f"{number.name}: saving, then stopping; press Ctrl-C again to stop at once"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == former
    assert len(said) == 1


def test_former_handlers_come_back() -> None:
    heard: list[int] = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with StopRequest(lambda text: None) as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested
            assert not heard
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, former)


def test_a_reentrant_print_does_no_harm() -> None:
    def reentrant(text: str) -> None:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stdout>'>")

    with StopRequest(reentrant) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested


def test_it_does_nothing_in_another_thread() -> None:
    former = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def work() -> None:
        with StopRequest() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, former)]
