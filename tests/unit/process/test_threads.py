from __future__ import annotations

import os
import signal
import threading

import pytest

from spanweld.errors import TargetError
from spanweld.model import Pid
from spanweld.process.threads import threads


def test_threads_with_their_blocked_signals() -> None:
    blocked, end = threading.Event(), threading.Event()

    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGURG])
        blocked.set()
        end.wait()

    thread = threading.Thread(target=block)
    thread.start()
    blocked.wait()
    try:
        found = {t.tid: t for t in threads(Pid(os.getpid()))}
        assert found[thread.native_id].blocks(signal.SIGURG)  # type: ignore[index]
        assert not found[thread.native_id].blocks(signal.SIGUSR1)  # type: ignore[index]
        main = found[os.getpid()]  # type: ignore[index]
        assert not main.blocks(signal.SIGURG)
        assert main.name
    finally:
        end.set()
        thread.join()


def test_process_that_is_gone() -> None:
    with pytest.raises(TargetError, match="has ended"):
        threads(Pid(2**22 + 1))
