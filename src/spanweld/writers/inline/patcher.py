"""Runs the patcher: a small C program that puts jumps into a running target, or takes them out."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from spanweld.bpf.events import INLINE_ORDER, InlineOperation, InlineOrder
from spanweld.errors import HostError, TargetError
from spanweld.model import Pid

PATCHER = Path(__file__).parent.parent / "bin" / "spanweld-patcher"
_TIMEOUT = 30.0


class Patcher:
    """One run of the patcher, which waits for its order.

    ``expect_exec``: the target is a child that waits to exec its program; it is stopped there. Raises
    TargetError where the target cannot be patched; then it is as it was.
    """

    def __init__(self, target: Pid, area_fd: int, spans_fd: int, *, expect_exec: bool = False) -> None:
        descriptors = tuple(fd for fd in (area_fd, spans_fd) if fd >= 0)
        command = [str(PATCHER), *map(str, (os.getpid(), target, area_fd, spans_fd))]
        if expect_exec:
            command.append("--expect-exec")
        self._target = target
        self._rest = b""
        self._begun = False
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=descriptors,
                start_new_session=True,  # a terminal's Ctrl-C is not for it
                cwd="/",
                env={},
            )
        except OSError as error:
            raise HostError(
                f"the patcher {PATCHER} cannot be started: {error.strerror}", "build it with `make build`"
            ) from error
        if not expect_exec:
            return
        try:
            self._expect("seized")
        except BaseException:
            self.close()
            raise

    def wait_for_exec(self) -> None:
        """Until the program is there, and nothing of it has run."""
        self._expect("exec")

    def carry_out(self, order: InlineOrder, patches: Sequence[bytes], code: bytes = b"") -> int:
        """Gives the order; returns for how many nanoseconds a thread was held at most."""
        assert self._process.stdin is not None
        self._begun = True
        try:
            self._process.stdin.write(INLINE_ORDER.pack(*order) + b"".join(patches) + code)
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it says why
        try:
            return int(self._expect("done"))
        finally:
            self.close()

    def close(self) -> None:
        """Waits for its end. One that has begun is never killed: it might leave half of it."""
        if not self._begun:
            self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None and not stream.closed:
                stream.close()
        self._process.wait()

    def _expect(self, word: str) -> str:
        """The text behind the word, in the next line."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + _TIMEOUT
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._rest:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(descriptor, 4096) if ready else b""
            if not data:
                raise TargetError(f"process {self._target} could not be patched: no answer came", _REMEDY)
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        first, _, text = line.decode(errors="replace").partition(" ")
        if first == word:
            return text
        reason = "it has ended" if first == "gone" else text
        raise TargetError(f"process {self._target} cannot be patched: {reason}", _REMEDY)


_REMEDY = "use --probes uprobe"


def make_order(
    operation: InlineOperation,
    *,
    patches: int,
    base: int,
    size: int,
    spans_size: int,
    system_call: int,
    code_size: int,
) -> InlineOrder:
    """What the patcher is told, ahead of patches and code."""
    return InlineOrder(operation, patches, base, size, spans_size, system_call, code_size, 0)
