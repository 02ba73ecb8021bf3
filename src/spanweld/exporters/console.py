"""Traces as trees on a terminal: each automatic span over the manual spans that belong to it.

HTTP POST /api/users (auto)                      12.4 ms   201
└── process_business_logic (manual)              11.9 ms
    ├── validate_input (manual)                   0.2 ms
    └── save_to_database (manual)                 9.8 ms
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO
from urllib.parse import urlsplit

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from spanweld.exporters import ExportCounts, Say
from spanweld.exporters.batching import BatchWorker, Outcome
from spanweld.model import Origin, Resource, Span, SpanId, SpanKind, StatusCode, TraceId
from spanweld.settings import BatchSettings

SETTLE_SECONDS = 0.25
"""How long a tree waits, after its root came, for spans that are still on their way."""
AGE_SECONDS = 60.0
"""How long a span waits for the root of its tree."""
MOST_WAITING = 20_000
"""How many spans wait at most; beyond it the oldest tree is printed as far as it is known."""
TREES_PER_SECOND = 50
TREES_AT_CLOSE = 500
LINES_PER_TREE = 200
LABEL_CHARS = 120

_REMEMBERED = 20_000
_LABEL_COLUMN = 46
_DURATION_COLUMN = 10
_PRINTER = BatchSettings(schedule_delay=0.0, max_queue_size=2000, max_export_batch_size=64)

_Key = tuple[TraceId, SpanId]


@dataclass(frozen=True, slots=True)
class _Tree:
    """A span with all that is known below it; ``late``: its parent was printed before it came."""

    root: Span
    children: Mapping[SpanId, Sequence[Span]]
    size: int
    late: bool


@dataclass(frozen=True, slots=True)
class _Suppressed:
    """How many trees were left out since the last that was printed."""

    trees: int


class ConsoleExporter:
    """Collects spans to trees and prints a tree ``SETTLE_SECONDS`` after its root came.

    A root is an automatic server span or a span without a parent. Spans under a parent that never
    comes are printed after ``AGE_SECONDS``. Both origins are shown. At most ``TREES_PER_SECOND``
    are printed, the others counted; what is held is bounded. Layout and output are the work of a
    thread, since a terminal can be stopped (Ctrl-S) for as long as its user likes.
    """

    def __init__(self, terminal: TextIO, say: Say) -> None:
        self._printer = _Printer(terminal, say)
        self._worker = BatchWorker("spanweld-console", self._printer.print, _PRINTER, say)
        self._now = time.monotonic()
        # Spans that were not printed yet, oldest first, with the time of the poll before they came.
        self._waiting: OrderedDict[_Key, tuple[Span, float]] = OrderedDict()
        self._children: dict[_Key, dict[SpanId, Span]] = {}
        self._new_roots: list[_Key] = []
        self._settling: deque[tuple[float, _Key]] = deque()
        # The last spans that left, and whether they were printed (or left out to bound the rate).
        self._gone: OrderedDict[_Key, bool] = OrderedDict()
        self._second = float("-inf")
        self._room = TREES_PER_SECOND
        self._suppressed = 0
        self._dropped = 0

    def export(self, resource: Resource, spans: Sequence[Span]) -> None:  # noqa: ARG002
        """Takes spans of either origin."""
        for span in spans:
            self._take(span)

    def poll(self, now: float) -> None:
        """Prints what is due; the times of all spans are those of the polls around them."""
        self._now = now
        if now - self._second >= 1.0:
            self._second = now
            self._room = TREES_PER_SECOND
            self._tell_suppressed()
        for key in self._new_roots:
            self._settling.append((now + SETTLE_SECONDS, key))
        self._new_roots.clear()
        while self._settling and self._settling[0][0] <= now:
            key = self._settling.popleft()[1]
            # Under a span that waits as well (a service that calls itself) it goes with that one.
            if key in self._waiting and self._top(key) == key:
                self._print(key)
        while self._waiting:
            key, (_, since) = next(iter(self._waiting.items()))
            if len(self._waiting) <= MOST_WAITING and since + AGE_SECONDS > now:
                break
            self._print(self._top(key))

    def close(self, timeout: float) -> None:
        """Prints everything that is left, within ``timeout`` seconds."""
        self._room = TREES_AT_CLOSE
        while self._waiting:
            self._print(self._top(next(iter(self._waiting))))
        self._tell_suppressed()
        for item in self._worker.close(timeout):
            self._dropped += item.size if isinstance(item, _Tree) else 0

    def counts(self) -> ExportCounts:
        """Spans printed, and spans left out to bound the rate or because nothing can be written."""
        return ExportCounts(
            exported=self._printer.printed,
            dropped=self._dropped + self._printer.failed,
            last_error=self._worker.counts().last_error,
        )

    def _take(self, span: Span) -> None:
        key = (span.context.trace_id, span.context.span_id)
        if key in self._waiting or key in self._gone:
            return
        parent = _parent_key(span)
        self._waiting[key] = (span, self._now)
        if parent is not None:
            self._children.setdefault(parent, {})[span.context.span_id] = span
        if parent is None or parent in self._gone or _is_server(span):
            self._new_roots.append(key)

    def _top(self, key: _Key) -> _Key:
        """The farthest ancestor that is waiting."""
        seen = {key}
        while (
            (parent := _parent_key(self._waiting[key][0])) is not None
            and parent in self._waiting
            and parent not in seen
        ):
            seen.add(parent)
            key = parent
        return key

    def _print(self, key: _Key) -> None:
        """Takes the tree under ``key`` from what waits, and prints it or counts it."""
        root = self._waiting[key][0]
        parent = _parent_key(root)
        parent_was_printed = None
        if parent is not None:
            parent_was_printed = self._gone.get(parent)
            siblings = self._children[parent]
            del siblings[key[1]]
            if not siblings:
                del self._children[parent]
        # What is late for a tree that was left out is a part of what was left out.
        shown = parent_was_printed is not False and self._room > 0
        children, size = self._remove(key, shown)
        if shown:
            self._room -= 1
            if not self._worker.put([_Tree(root, children, size, late=parent_was_printed is not None)]):
                self._dropped += size
            return
        self._dropped += size
        if parent_was_printed is None:
            self._suppressed += 1

    def _remove(self, key: _Key, shown: bool) -> tuple[dict[SpanId, list[Span]], int]:
        """Takes the tree from what waits: children by parent, and how many spans it has in all."""
        children: dict[SpanId, list[Span]] = {}
        trace_id = key[0]
        size = 0
        keys = [key]
        while keys:
            key = keys.pop()
            del self._waiting[key]
            size += 1
            self._gone[key] = shown
            # Only what still waits: broken parent ids can form a circle.
            below = [
                span
                for span_id, span in self._children.pop(key, {}).items()
                if (trace_id, span_id) in self._waiting
            ]
            if below:
                children[key[1]] = below
                keys.extend((trace_id, span.context.span_id) for span in below)
        while len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)
        return children, size

    def _tell_suppressed(self) -> None:
        if self._suppressed and self._worker.put([_Suppressed(self._suppressed)]):
            self._suppressed = 0


class _Console(Console):
    """A console that leaves a broken pipe to its user: rich would end the program."""

    def on_broken_pipe(self) -> None:
        """Is called while the error is handled, which goes on."""
        raise  # noqa: PLE0704


class _Printer:
    """Lays trees out and writes them; used by one thread, whose counters others may read."""

    def __init__(self, terminal: TextIO, say: Say) -> None:
        self._say = say
        self._console = _Console(file=terminal, highlight=False, markup=False, emoji=False)
        self._glyphs = _Glyphs.for_encoding(terminal.encoding)
        self._trouble_said = False
        self.printed = 0
        self.failed = 0

    def print(self, items: Sequence[_Tree | _Suppressed], _time_left: float) -> Outcome:
        """Writes the items; a terminal that is gone is said once."""
        size = sum(item.size for item in items if isinstance(item, _Tree))
        texts = [self._text(item) for item in items]
        try:
            for text in texts:
                # Longer lines than the terminal are the terminal's to wrap.
                self._console.print(text, soft_wrap=True, end="")
        except (OSError, ValueError) as error:
            self.failed += size
            if not self._trouble_said:
                self._trouble_said = True
                self._say(f"traces cannot be printed any more: {error}")
            return Outcome(error=str(error))
        self.printed += size
        return Outcome(delivered=len(items))

    def _text(self, item: _Tree | _Suppressed) -> Text:
        if isinstance(item, _Suppressed):
            plural = "" if item.trees == 1 else "s"
            return Text(f"{self._glyphs.more} {item.trees} more trace{plural}\n", style="dim")
        return _tree_text(item, self._glyphs)


@dataclass(frozen=True, slots=True)
class _Glyphs:
    branch: str = "├── "
    last: str = "└── "
    line: str = "│   "
    blank: str = "    "
    more: str = "…"
    ascii_only: bool = False

    @classmethod
    def for_encoding(cls, encoding: str | None) -> _Glyphs:
        """Lines where the output can hold them, else what ASCII has."""
        try:
            "├└│…".encode(encoding or "utf-8")
        except (UnicodeEncodeError, LookupError):
            return cls("|-- ", "`-- ", "|   ", "    ", "...", ascii_only=True)
        return cls()


@dataclass(frozen=True, slots=True)
class _Row:
    guide: str
    name: str
    mark: str
    duration: str
    span: Span

    @property
    def label_cells(self) -> int:
        return cell_len(self.guide) + cell_len(self.name) + len(self.mark)


def _tree_text(tree: _Tree, glyphs: _Glyphs) -> Text:
    """The lines of a tree, siblings by start time, durations under one another."""
    rows = _rows(tree, glyphs)
    label_column = max(_LABEL_COLUMN, 1 + max(row.label_cells for row in rows))
    duration_column = max(_DURATION_COLUMN, *(len(row.duration) for row in rows))
    text = Text()
    for row in rows:
        text.append(row.guide, style="dim")
        text.append(row.name, style="bold" if row.span.origin is Origin.AUTOMATIC else "")
        text.append(row.mark, style="dim")
        text.append(" " * (label_column - row.label_cells))
        text.append(row.duration.rjust(duration_column), style="cyan")
        result, style = _result(row.span)
        if result:
            text.append("   ")
            text.append(_printable(result, glyphs), style=style)
        if row.span is tree.root and row.span.parent_is_remote and not tree.late:
            text.append(f"   continues trace {row.span.context.trace_id:032x}", style="dim")
        text.append("\n")
    if tree.size > len(rows):
        text.append(f"{glyphs.more} {tree.size - len(rows)} more spans\n", style="dim")
    return text


def _rows(tree: _Tree, glyphs: _Glyphs) -> list[_Row]:
    rows: list[_Row] = []
    stack = [("", "", tree.root)]
    while stack and len(rows) < LINES_PER_TREE:
        guide, indent, span = stack.pop()
        name = _printable(_http_name(span) or span.name, glyphs)
        if len(name) > LABEL_CHARS:
            name = name[:LABEL_CHARS] + glyphs.more
        late = " (late)" if tree.late and span is tree.root else ""
        duration = f"{max(span.end_ns - span.start_ns, 0) / 1e6:.1f} ms"
        rows.append(_Row(guide, name, f" ({span.origin.value}){late}", duration, span))
        below = sorted(
            tree.children.get(span.context.span_id, ()), key=lambda child: (child.start_ns, child.end_ns)
        )
        ends = (glyphs.last, glyphs.blank)
        for child in reversed(below):
            stack.append((indent + ends[0], indent + ends[1], child))
            ends = (glyphs.branch, glyphs.line)
    return rows


def _http_name(span: Span) -> str | None:
    """``HTTP POST /api/users`` for an automatic HTTP span; of a request out the URL."""
    if span.origin is not Origin.AUTOMATIC:
        return None
    attributes = span.attributes
    method = attributes.get("http.request.method_original") or attributes.get("http.request.method")
    if method is None:
        return None
    path = str(attributes.get("url.path", ""))
    if span.kind is SpanKind.CLIENT:
        # Without the query, which may hold what is not for a screen.
        try:
            url = urlsplit(str(attributes.get("url.full", "")))
        except ValueError:
            url = urlsplit("")
        server = url.netloc.rpartition("@")[2]
        path = f"{url.scheme}://{server}{url.path}" if server else str(attributes.get("server.address", ""))
    return f"HTTP {method} {path}" if path else f"HTTP {method}"


def _result(span: Span) -> tuple[str, str]:
    """The last column and its style: status code and error of an automatic span, error of a manual one."""
    failed = span.status is StatusCode.ERROR
    if span.origin is Origin.MANUAL:
        if not failed:
            return "", ""
        return (f"error: {span.status_message}" if span.status_message else "error"), "red"
    code = span.attributes.get("http.response.status_code")
    error = span.attributes.get("error.type")
    parts = [str(code)] if code is not None else []
    if error is not None and str(error) not in parts:
        parts.append(str(error))
    if isinstance(code, int) and not failed:
        return " ".join(parts), "green" if code < 400 else "yellow"
    return " ".join(parts), "red" if failed or error is not None else ""


def _printable(text: str, glyphs: _Glyphs) -> str:
    """The text without what could steer a terminal: paths and messages are written by strangers."""
    if text.isprintable() and (text.isascii() or not glyphs.ascii_only):
        return text
    return "".join(
        char
        if char.isprintable() and (char.isascii() or not glyphs.ascii_only)
        else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def _parent_key(span: Span) -> _Key | None:
    return None if span.parent_span_id is None else (span.context.trace_id, span.parent_span_id)


def _is_server(span: Span) -> bool:
    return span.kind is SpanKind.SERVER and span.origin is Origin.AUTOMATIC
