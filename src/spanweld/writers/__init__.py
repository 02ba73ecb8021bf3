"""How an adoption reaches the target's memory: one interface, chosen by what the host allows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from spanweld.errors import HostError
from spanweld.model import Pid
from spanweld.settings import ProbesMode, WriteMode


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


def choose(
    wanted: WriteMode,
    probes: ProbesMode,
    *,
    kernel_refused: str = "",
    inline_refused: str = "",
    stop_refused: str = "",
) -> Choice:
    """The mode for what the user wants. The texts say why a mode cannot be had, or are empty.

    ``auto`` takes the first of kernel, inline and stop that works, and ``off`` if none does; where one
    target cannot be patched, ``choose_instead`` says what follows. Any other mode is meant: HostError if
    it cannot be had. Probes inside the target write there themselves, and no others do: ``inline`` of the
    one is ``inline`` of the other.
    """
    if probes is ProbesMode.UPROBE:
        inline_refused = inline_refused or "--probes uprobe puts no code into the service"
    elif probes is ProbesMode.INLINE:
        if wanted not in (WriteMode.AUTO, WriteMode.INLINE):
            raise HostError(
                f"--probes inline cannot be had with --write {wanted.value}", "leave one of them out"
            )
        wanted = WriteMode.INLINE
    refused = {
        mode: reason
        for mode, reason in (
            (WriteMode.KERNEL, kernel_refused),
            (WriteMode.INLINE, inline_refused),
            (WriteMode.STOP, stop_refused),
        )
        if reason
    }
    if wanted is not WriteMode.AUTO:
        if wanted in refused:
            raise HostError(
                f"--write {wanted.value} cannot be had: {refused[wanted]}", "use --write auto, or off"
            )
        return Choice(wanted, refused)
    return Choice(next(mode for mode in _ORDER if mode not in refused), refused)


_ORDER = (WriteMode.KERNEL, WriteMode.INLINE, WriteMode.STOP, WriteMode.OFF)


def choose_instead(refused_mode: WriteMode, choice: Choice) -> WriteMode:
    """The mode of one target for which the chosen one cannot be had."""
    behind = _ORDER[_ORDER.index(refused_mode) + 1 :]
    return next(mode for mode in behind if mode not in choice.refused)
