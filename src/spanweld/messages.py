"""What the agent says to its user: on standard error, the target keeps its own output."""

from __future__ import annotations

import contextlib

import click

from spanweld.errors import SpanweldError


def say(text: str) -> None:
    """One message, with the program's name before it; never raises."""
    with contextlib.suppress(OSError):
        click.echo(f"{click.style('spanweld:', dim=True)} {text}", err=True)


def warn(text: str, remedy: str) -> None:
    """Something that was set and is left out of account, with what to do about it."""
    say(f"{text}: not used" + (f" ({remedy})" if remedy else ""))


def say_error(error: SpanweldError) -> None:
    """What cannot be done and, below it, what to do about it."""
    with contextlib.suppress(OSError):
        click.echo(f"{click.style('spanweld:', fg='red')} {error.message}", err=True)
        if error.remedy:
            for line in error.remedy.splitlines():
                click.echo(f"  {line}", err=True)
