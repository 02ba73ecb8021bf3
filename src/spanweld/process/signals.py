"""Signals as something to read, with who sent them."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from struct import Struct

_SI_KERNEL = 0x80
_INFO = Struct("<IiiI112x")  # struct signalfd_siginfo: ssi_signo, ssi_errno, ssi_code, ssi_pid
_SFD_CLOEXEC = 0o2000000
_SFD_NONBLOCK = 0o4000


@dataclass(frozen=True, slots=True)
class Received:
    """A signal; ``from_terminal`` tells one that the kernel sent to the whole foreground group."""

    number: signal.Signals
    from_terminal: bool


class SignalReader:
    """Blocks signals in this thread (and all it starts) and reads them instead of being interrupted."""

    def __init__(self, signals: Iterable[signal.Signals]) -> None:
        chosen = set(signals)
        self.blocked_before = {
            signal.Signals(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, chosen)
        }
        mask = sum(1 << (number - 1) for number in chosen)
        libc = ctypes.CDLL(None, use_errno=True)
        # glibc's sigset_t has 128 bytes, of which the kernel reads the first 8.
        buffer = ctypes.create_string_buffer(mask.to_bytes(8, "little"), 128)
        self._fd = libc.signalfd(-1, buffer, _SFD_CLOEXEC | _SFD_NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "signalfd")

    def fileno(self) -> int:
        """Readable when a signal has come."""
        return int(self._fd)

    def read(self) -> list[Received]:
        """The signals that have come."""
        try:
            data = os.read(self._fd, _INFO.size * 16)
        except BlockingIOError:
            return []
        return [
            Received(signal.Signals(number), code == _SI_KERNEL and not self._is_for_leader(number))
            for number, _, code, _ in _INFO.iter_unpack(data)
        ]

    @staticmethod
    def _is_for_leader(number: int) -> bool:
        """A terminal that is closed tells its session's leader alone (tty_signal_session_leader)."""
        return number == signal.SIGHUP and os.getsid(0) == os.getpid()

    def close(self) -> None:
        """Takes signals as before."""
        os.close(self._fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.blocked_before)
