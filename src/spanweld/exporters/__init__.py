"""Where finished spans go: a terminal, an OTLP endpoint, a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TextIO

from spanweld.errors import UsageError
from spanweld.model import Resource, Span
from spanweld.settings import Settings

Say = Callable[[str], None]
"""Takes a message for the user, without a line end; called from any thread, must not raise."""


@dataclass(frozen=True, slots=True)
class ExportCounts:
    """What an exporter has done since it was made; ``exported`` and ``dropped`` count spans.

    ``dropped`` are spans that were given and will never arrive; ``retried`` counts sends of a
    batch that had failed before; ``last_error`` is empty when there was none.
    """

    exported: int = 0
    dropped: int = 0
    retried: int = 0
    last_error: str = ""


class Exporter(Protocol):
    """Takes finished spans of any origin, and passes on those that are its own to pass on.

    All methods are called by one thread, the agent's loop.
    """

    def export(self, resource: Resource, spans: Sequence[Span]) -> None:
        """Takes spans, in any order; never blocks, never raises; after ``close`` they are dropped."""

    def poll(self, now: float) -> None:
        """Does what is due by time; ``now`` is ``time.monotonic()``; never blocks, never raises."""

    def close(self, timeout: float) -> None:
        """Flushes and lets go of everything within ``timeout`` seconds; what is left then is dropped."""

    def counts(self) -> ExportCounts:
        """The state of the counters now."""


def make_exporters(settings: Settings, terminal: TextIO, say: Say) -> list[Exporter]:
    """The exporters that ``settings.exports`` names, each once.

    ``terminal`` is where ``console`` writes. Raises UsageError for a name that is not known and for
    a file (JSON output, certificate) that cannot be opened. No thread runs before the first span.
    """
    exporters: list[Exporter] = []
    try:
        for name in dict.fromkeys(settings.exports):
            exporters.append(_make_exporter(name, settings, terminal, say))
    except UsageError:
        for exporter in exporters:
            exporter.close(0.0)
        raise
    return exporters


def _make_exporter(name: str, settings: Settings, terminal: TextIO, say: Say) -> Exporter:
    # Imported on demand: gRPC, urllib3 and rich take longer to load than all the rest of the agent.
    if name == "console":
        from spanweld.exporters.console import ConsoleExporter

        return ConsoleExporter(terminal, say)
    if name == "otlp":
        from spanweld.exporters.otlp import OtlpExporter

        return OtlpExporter(settings.otlp, settings.batch, say)
    kind, _, file = name.partition(":")
    if kind == "json" and file:
        from spanweld.exporters.jsonfile import JsonFileExporter

        return JsonFileExporter(Path(file), settings.batch, say)
    raise UsageError(f"--export {name!r} is not known", "use console, otlp, or json:FILE")
