"""What the keeper holds outlives this process's own descriptor, and nothing else."""

from __future__ import annotations

import os
import select
import signal
import time

from spanweld.bpf.keeper import LinkKeeper


def is_open(read_end: int) -> bool:
    """Whether anyone still has the other end of a pipe."""
    ready, _, _ = select.select([read_end], [], [], 0)
    return not ready


def test_what_is_held_stays_open_until_let_go() -> None:
    keeper = LinkKeeper()
    read_end, write_end = os.pipe()
    keeper.hold(write_end)
    os.close(write_end)
    assert is_open(read_end)
    keeper.let_go([write_end])
    assert not is_open(read_end)
    keeper.close()
    os.close(read_end)


def test_all_goes_with_the_keeper() -> None:
    keeper = LinkKeeper()
    read_end, write_end = os.pipe()
    keeper.hold(write_end)
    os.close(write_end)
    keeper.close()
    assert not is_open(read_end)
    os.close(read_end)


def test_it_holds_nothing_that_it_was_not_given() -> None:
    read_end, write_end = os.pipe()
    keeper = LinkKeeper()
    os.close(write_end)
    os.set_blocking(read_end, False)
    # Its first answer comes after it has closed what it inherited.
    other_read, other_write = os.pipe()
    keeper.hold(other_write)
    keeper.let_go([other_write])
    assert os.read(read_end, 1) == b""
    keeper.close()
    for descriptor in (read_end, other_read, other_write):
        os.close(descriptor)


def test_it_does_meanwhile_what_it_was_made_with() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: received.append(number))
    keeper = LinkKeeper(lambda: os.kill(os.getppid(), signal.SIGUSR1), 0.05)
    try:
        for _ in range(2):
            received.clear()
            deadline = time.monotonic() + 10
            while not received and time.monotonic() < deadline:
                time.sleep(0.01)
            assert received
            # It still does what it is asked to.
            read_end, write_end = os.pipe()
            keeper.hold(write_end)
            os.close(write_end)
            keeper.let_go([write_end])
            assert not is_open(read_end)
            os.close(read_end)
    finally:
        keeper.close()
        signal.signal(signal.SIGUSR1, before)
