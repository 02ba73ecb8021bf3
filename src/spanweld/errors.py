"""The one root of the errors that a user is meant to read."""

from __future__ import annotations


class SpanweldError(Exception):
    """Something that cannot be done, with what the user can do about it.

    ``message`` says what is wrong and names what it is about (a process, an image, a symbol);
    ``remedy`` says what to do, or is empty when nothing can be done. ``exit_code`` is what a
    command that ends because of it returns.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  {self.remedy}" if self.remedy else self.message


class UsageError(SpanweldError):
    """A flag, a variable or a path that cannot be meant; exit code 2, as for every wrong call."""

    exit_code = 2


class HostError(SpanweldError):
    """The host does not offer what is needed (root, BTF, bpffs, libbpf)."""

    exit_code = 3


class ImageError(SpanweldError):
    """An executable that cannot be read or is of a kind that cannot be traced."""

    exit_code = 4


class TargetError(SpanweldError):
    """A process that does not exist, is gone, or cannot be attached to."""

    exit_code = 5
