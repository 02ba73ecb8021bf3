"""How an adoption reaches the target's memory: one interface, chosen by what the host allows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from spanweld.errors import HostError
from spanweld.model import Pid
from spanweld.settings import WriteMode


class Writer(Protocol):
    """The writer of one target.

    ``start`` is called before a probe is attached, ``stop`` after the last one was taken off.
    """

    mode: WriteMode

    def start(self) -> None:
        """Makes ready to write; raises TargetError if this target cannot be written to."""

    @property
    def tracer(self) -> Pid | None:
        """The process that traces the target, where the writer needs one."""

    def fileno(self) -> int | None:
        """A descriptor that is readable when ``poll`` has something to say."""

    def poll(self) -> list[str]:
        """What the user should know since the last call; an empty text says that the writer has ended."""

    def stop(self) -> str:
        """Lets the target go; returns what was done, for the last report."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The mode that will be used, and why each other one will not."""

    mode: WriteMode
    refused: dict[WriteMode, str] = field(default_factory=dict)


def choose(wanted: WriteMode, kernel_can_write: str, tracer_is_there: str) -> Choice:
    """The mode for what the user wants. The two texts say why a mode cannot be had, or are empty.

    ``auto`` takes the first of kernel, inline, stop that works, and ``off`` if none does; any other
    mode is meant: HostError if it cannot be had.
    """
    refused = {
        mode: reason
        for mode, reason in (
            (WriteMode.KERNEL, kernel_can_write),
            (WriteMode.INLINE, "the inline writer is not built yet"),
            (WriteMode.STOP, tracer_is_there),
        )
        if reason
    }
    if wanted is not WriteMode.AUTO:
        if wanted in refused:
            raise HostError(
                f"--write {wanted.value} cannot be had: {refused[wanted]}", "use --write auto, or off"
            )
        return Choice(wanted, refused)
    order = (WriteMode.KERNEL, WriteMode.INLINE, WriteMode.STOP, WriteMode.OFF)
    return Choice(next(mode for mode in order if mode not in refused), refused)
