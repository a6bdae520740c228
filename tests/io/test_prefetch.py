"""Work ahead: in order, within bounds, in parallel, and over when it fails or nobody asks any more."""

import itertools
import signal
import threading
import time

import pytest

from gantx.io.prefetch import ahead


def threads_left():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_results_come_in_order_whoever_is_done_first():
    def slow_where_even(number):
        time.sleep(0.01 * (number % 2 == 0))
        return number * number

    found = list(ahead(slow_where_even, range(20), threads=3, waiting=4))
    assert found == [number * number for number in range(20)]
    assert list(ahead(str, [], threads=2, waiting=2)) == []
    assert threads_left() == []


def test_threads_work_at_once():
    meeting = threading.Barrier(2, timeout=20)  # raises unless two of them meet in it
    list(ahead(lambda _: meeting.wait(), range(4), threads=2, waiting=2))


def test_no_more_is_begun_than_may_wait():
    begun = []
    results = ahead(begun.append, itertools.count(), threads=2, waiting=3)
    for asked in range(1, 6):
        next(results)
        assert len(begun) <= asked + 3
    results.close()
    assert threads_left() == []


def test_an_error_comes_in_its_turn_and_ends_everything():
    def fails_at_three(number):
        if number == 3:
            raise OSError("disk full")
        return number

    results = ahead(fails_at_three, itertools.count(), threads=2, waiting=5)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="disk full"):
        next(results)
    assert threads_left() == []


def test_an_error_of_the_items_ends_everything_too():
    def items():
        yield 1
        raise RuntimeError("the generator failed")

    with pytest.raises(RuntimeError, match="the generator failed"):
        list(ahead(str, items(), threads=2, waiting=5))
    assert threads_left() == []


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to threads here")
def test_ctrl_c_while_waiting_ends_everything():
    done = []

    def work(number):
        if number == 2:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.02)
        done.append(number)

    with pytest.raises(KeyboardInterrupt):
        list(ahead(work, range(1000), threads=2, waiting=100))
    assert len(done) < 20
    assert threads_left() == []
