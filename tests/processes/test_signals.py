"""Signals that ask for a stop: all finish the step, a repeated one changes nothing, a Ctrl-C after it stops at once."""

from __future__ import annotations

import logging
import os
import signal
import threading

import pytest

from doubles.messages import heard
from luspo_cli.processes.signals import stop_on_signals, stop_signals_handled
from luspo_cli.runs.log import messages_to

ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _hangup_as_in_a_terminal(_signals_as_before: None) -> None:
    """A suite under nohup has SIGHUP ignored, and `stop_on_signals` leaves it so."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize("number", ALL)
def test_the_first_signal_asks_and_a_ctrl_c_after_it_interrupts(number: signal.Signals) -> None:
    before = [signal.getsignal(one) for one in ALL]
    with heard() as said, stop_on_signals() as stop_requested:
        assert not stop_requested()
        os.kill(os.getpid(), number)
        assert stop_requested()
        assert stop_requested.signal == number
        assert "Ctrl-C again stops at once" in said[0]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before[0]
    assert [signal.getsignal(one) for one in ALL[1:]] == [signal.SIG_IGN] * 2


def test_without_a_stop_the_handlers_are_back() -> None:
    before = [signal.getsignal(one) for one in ALL]
    with stop_on_signals():
        pass
    assert [signal.getsignal(one) for one in ALL] == before


def test_a_signal_on_the_way_out_changes_nothing() -> None:
    with stop_on_signals() as stop_requested:
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGHUP)
    assert stop_requested.signal == signal.SIGTERM


def test_a_signal_that_a_launcher_passes_on_once_more_changes_nothing() -> None:
    with heard() as said, stop_on_signals() as stop_requested:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert stop_requested.signal == signal.SIGTERM
    assert len(said) == 1


def test_nohup_keeps_a_hangup_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_on_signals() as stop_requested:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop_requested()


def test_a_signal_in_the_middle_of_a_print_does_not_end_the_run() -> None:
    """A buffered stream cannot be entered twice and says so with RuntimeError."""

    class Reentered(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("reentrant call")

    with messages_to([Reentered()]), stop_on_signals() as stop_requested:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_requested()


def test_outside_the_main_thread_no_handler_is_set() -> None:
    answers: list[bool] = []

    def use() -> None:
        with stop_on_signals() as stop_requested:
            answers.append(stop_requested())

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert answers == [False]


def test_a_terminal_that_closes_ends_nothing_under_nohup() -> None:
    passed_on: list[int] = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup starts a program
    with stop_signals_handled(passed_on.append):
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with stop_signals_handled(passed_on.append):
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    assert passed_on == [signal.SIGTERM, signal.SIGHUP]
