"""The console's trees, character by character."""

from __future__ import annotations

import io
import itertools
import os
import random
import threading
from collections.abc import Sequence

import pytest

from spanweld.exporters import console as console_module
from spanweld.exporters.console import (
    AGE_SECONDS,
    LINES_PER_TREE,
    MOST_WAITING,
    SETTLE_SECONDS,
    TREES_PER_SECOND,
    ConsoleExporter,
)
from spanweld.model import Origin, Span, SpanKind, StatusCode
from tests.unit.exporters.support import RESOURCE, Messages, server_span, span, wait_until

EXAMPLE = """\
HTTP POST /api/users (auto)                      12.4 ms   201
└── process_business_logic (manual)              11.9 ms
    ├── validate_input (manual)                   0.2 ms
    └── save_to_database (manual)                 9.8 ms
"""

AUTOMATIC = Origin.AUTOMATIC


def example(trace_id: int = 1) -> list[Span]:
    return [
        span(3, "validate_input", trace_id=trace_id, parent=2, start_ms=0.3, ms=0.2),
        span(4, "save_to_database", trace_id=trace_id, parent=2, start_ms=0.6, ms=9.8),
        span(2, "process_business_logic", trace_id=trace_id, parent=1, start_ms=0.2, ms=11.9),
        server_span(1, trace_id=trace_id),
    ]


class Terminal(io.StringIO):
    """An output that knows whether it is a terminal, and what it can show."""

    def __init__(self, is_terminal: bool = False, encoding: str = "utf-8") -> None:
        super().__init__()
        self._is_terminal = is_terminal
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return self._is_terminal

    def write(self, text: str) -> int:
        text.encode(self._encoding)
        return super().write(text)


def printed(*batches: Sequence[Span], terminal: Terminal | None = None) -> str:
    """What is printed for batches that come a settling time after one another."""
    terminal = terminal or Terminal()
    messages = Messages()
    exporter = ConsoleExporter(terminal, messages)
    now = 100.0
    for spans in batches:
        exporter.export(RESOURCE, spans)
        exporter.poll(now)
        now += SETTLE_SECONDS
        exporter.poll(now)
    exporter.close(5.0)
    assert messages.said == []
    return terminal.getvalue()


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_the_example_in_any_order(order: tuple[int, ...]) -> None:
    spans = example()
    assert printed([spans[index] for index in order]) == EXAMPLE


def test_a_trace_is_printed_when_it_has_settled_and_not_before() -> None:
    terminal = Terminal()
    exporter = ConsoleExporter(terminal, Messages())
    *manual, server = example()
    exporter.poll(10.0)
    exporter.export(RESOURCE, manual[:2])
    exporter.poll(20.0)
    exporter.export(RESOURCE, [server])
    exporter.poll(30.0)
    exporter.export(RESOURCE, manual[2:])
    exporter.poll(30.0 + SETTLE_SECONDS - 0.01)
    assert exporter.counts().exported == 0
    exporter.poll(30.0 + SETTLE_SECONDS)
    wait_until(lambda: exporter.counts().exported == 4)
    assert terminal.getvalue() == EXAMPLE
    exporter.close(5.0)
    assert terminal.getvalue() == EXAMPLE


def test_a_late_span_is_printed_by_itself_with_what_is_below_it() -> None:
    spans = example()
    assert printed([spans[3]], spans[:3]).splitlines() == [
        "HTTP POST /api/users (auto)                      12.4 ms   201",
        "process_business_logic (manual) (late)           11.9 ms",
        "├── validate_input (manual)                       0.2 ms",
        "└── save_to_database (manual)                     9.8 ms",
    ]


def test_a_span_below_a_late_one_is_late_as_well() -> None:
    spans = example()
    lines = printed([spans[3]], [spans[2]], [spans[0]]).splitlines()
    assert [line.partition("   ")[0] for line in lines] == [
        "HTTP POST /api/users (auto)",
        "process_business_logic (manual) (late)",
        "validate_input (manual) (late)",
    ]


def test_a_manual_trace_without_request_is_printed_by_itself() -> None:
    assert printed([span(2, "step", parent=1, ms=1), span(1, "nightly job", ms=1234.56)]) == (
        "nightly job (manual)                           1234.6 ms\n"
        "└── step (manual)                                 1.0 ms\n"
    )


def test_spans_whose_parent_never_comes_are_printed_by_age_and_at_the_end() -> None:
    terminal = Terminal()
    exporter = ConsoleExporter(terminal, Messages())
    exporter.poll(10.0)
    exporter.export(RESOURCE, [span(2, "consume", parent=1), span(3, "step", parent=2, ms=0.5)])
    exporter.poll(10.0 + AGE_SECONDS - 0.1)
    assert exporter.counts().exported == 0
    exporter.poll(10.0 + AGE_SECONDS)
    wait_until(lambda: exporter.counts().exported == 2)
    exporter.export(RESOURCE, [span(4, "other", parent=1)])
    exporter.close(5.0)
    assert [line.split("  ")[0] for line in terminal.getvalue().splitlines()] == [
        "consume (manual)",
        "└── step (manual)",
        "other (manual)",
    ]


def test_requests_of_one_trace_are_trees_of_their_own() -> None:
    """A load generator may send one traceparent with all its requests."""
    spans = [
        server_span(number, parent=0xABC, remote=True, ms=number, start_ms=number) for number in range(1, 4)
    ]
    children = [span(number + 10, "step", parent=number) for number in range(1, 4)]
    lines = printed([*children, *spans]).splitlines()
    assert len(lines) == 6
    assert [line.startswith("HTTP") for line in lines] == [True, False] * 3
    assert lines[0].endswith("   continues trace 4bf92f3577b34da6a3ce929d0e0e4736")


def test_a_service_that_calls_itself_is_one_tree() -> None:
    outer = server_span(1, ms=30)
    client = span(
        2,
        "GET",
        parent=1,
        kind=SpanKind.CLIENT,
        origin=AUTOMATIC,
        ms=20,
        attributes={
            "http.request.method": "GET",
            "url.full": "http://user:password@127.0.0.1:8080/inner?token=secret",
            "http.response.status_code": 404,
        },
        status=StatusCode.ERROR,
    )
    inner = server_span(3, parent=2, remote=True, ms=10, start_ms=5)
    lines = printed([inner, client], [outer]).splitlines()
    assert lines == [
        "HTTP POST /api/users (auto)                        30.0 ms   201",
        "└── HTTP GET http://127.0.0.1:8080/inner (auto)    20.0 ms   404",
        "    └── HTTP POST /api/users (auto)                10.0 ms   201",
    ]


@pytest.mark.parametrize(
    ("given", "end"),
    [
        (server_span(1, attributes={"http.request.method": "GET", "error.type": "timeout"}), "ms   timeout"),
        (
            server_span(
                1,
                attributes={
                    "http.request.method": "GET",
                    "http.response.status_code": 500,
                    "error.type": "500",
                },
                status=StatusCode.ERROR,
            ),
            "ms   500",
        ),
        (
            server_span(
                1,
                attributes={
                    "http.request.method": "GET",
                    "http.response.status_code": 200,
                    "error.type": "connection_reset",
                },
            ),
            "ms   200 connection_reset",
        ),
        (span(1, status=StatusCode.ERROR), "ms   error"),
        (span(1, status=StatusCode.ERROR, message="no such row"), "ms   error: no such row"),
        (span(1, status=StatusCode.OK), "ms"),
        (span(1, ms=-1), "0.0 ms"),
    ],
)
def test_the_last_column(given: Span, end: str) -> None:
    assert printed([given]).endswith(f"{end}\n")


@pytest.mark.parametrize(
    ("given", "label"),
    [
        (server_span(1, attributes={}), "POST (auto)"),
        (
            server_span(
                1,
                attributes={
                    "http.request.method": "_OTHER",
                    "http.request.method_original": "PURGE",
                    "url.path": "/",
                },
            ),
            "HTTP PURGE / (auto)",
        ),
        (
            span(
                1,
                kind=SpanKind.CLIENT,
                origin=AUTOMATIC,
                attributes={"http.request.method": "GET", "url.full": "http://[", "server.address": "store"},
            ),
            "HTTP GET store (auto)",
        ),
        (span(1, "with (parentheses)"), "with (parentheses) (manual)"),
    ],
)
def test_labels(given: Span, label: str) -> None:
    assert printed([given]).partition("  ")[0] == label


def test_strangers_cannot_steer_the_terminal() -> None:
    text = printed(
        [
            server_span(
                1, attributes={"http.request.method": "GET", "url.path": "/\x1b[2J\x07\u202e[bold]x\udc80\n"}
            ),
            span(2, "a\x1b]0;b\x07", parent=1, status=StatusCode.ERROR, message="\r\x1b[1m"),
        ]
    )
    assert text.partition("  ")[0] == "HTTP GET /\\x1b[2J\\x07\\u202e[bold]x\\udc80\\n (auto)"
    assert "a\\x1b]0;b\\x07 (manual)" in text
    assert text.endswith("error: \\r\\x1b[1m\n")


def test_long_and_wide_labels_keep_the_columns() -> None:
    lines = printed(
        [
            server_span(1, attributes={"http.request.method": "GET", "url.path": "/" + "x" * 500}),
            span(2, "挨拶する", parent=1),
        ]
    ).splitlines()
    assert "…" in lines[0]
    # A wide character takes two columns.
    assert lines[0].index("12.4 ms") == lines[1].index(" 1.0 ms") + 4


def test_colours_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[" not in printed(example())
    coloured = printed(example(), terminal=Terminal(is_terminal=True))
    assert "\x1b[32m201" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in printed(example(), terminal=Terminal(is_terminal=True))


def test_an_output_without_lines_gets_ascii() -> None:
    text = printed([server_span(1), span(2, "grüße", parent=1)], terminal=Terminal(encoding="ascii"))
    assert text.splitlines()[1].startswith("`-- gr\\xfc\\xdfe (manual)")


def test_the_rate_is_bounded_and_the_rest_counted() -> None:
    terminal = Terminal()
    exporter = ConsoleExporter(terminal, Messages())
    for trace_id in range(1, 1285):
        exporter.export(RESOURCE, example(trace_id))
    exporter.poll(10.0)
    exporter.poll(10.0 + SETTLE_SECONDS)
    exporter.export(RESOURCE, [span(9, "late", trace_id=trace, parent=1) for trace in (1, 1000)])
    exporter.poll(11.0)
    exporter.poll(12.0)
    exporter.close(5.0)
    lines = terminal.getvalue().splitlines()
    assert sum(line.startswith("HTTP") for line in lines) == TREES_PER_SECOND
    assert lines[TREES_PER_SECOND * 4] == f"… {1284 - TREES_PER_SECOND} more traces"
    # Late for a trace that was printed; what is late for one that was left out is left out as well.
    assert [line.partition("  ")[0] for line in lines[TREES_PER_SECOND * 4 + 1 :]] == ["late (manual) (late)"]
    counts = exporter.counts()
    assert (counts.exported, counts.dropped) == (TREES_PER_SECOND * 4 + 1, (1284 - TREES_PER_SECOND) * 4 + 1)


def test_what_is_held_is_bounded() -> None:
    exporter = ConsoleExporter(Terminal(), Messages())
    numbers = random.Random(1)
    for turn in range(100):
        exporter.export(
            RESOURCE,
            [
                span(number, "orphan", trace_id=numbers.getrandbits(128), parent=numbers.getrandbits(63) + 1)
                for number in range(turn * 1000 + 1, turn * 1000 + 1001)
            ],
        )
        exporter.poll(turn / 10)
    assert len(exporter._waiting) <= MOST_WAITING
    assert len(exporter._children) <= MOST_WAITING
    assert len(exporter._gone) <= console_module._REMEMBERED
    exporter.close(5.0)
    assert not exporter._waiting
    assert not exporter._children
    counts = exporter.counts()
    assert counts.exported + counts.dropped == 100_000


def test_a_very_large_trace_is_cut() -> None:
    lines = printed(
        [server_span(1), *(span(number, "step", parent=number - 1) for number in range(2, 1001))]
    ).splitlines()
    assert len(lines) == LINES_PER_TREE + 1
    assert lines[-1] == f"… {1000 - LINES_PER_TREE} more spans"


def test_circles_of_parents_end() -> None:
    text = printed([span(1, "self", parent=1), span(2, "a", parent=3), span(3, "b", parent=2)])
    assert sorted(line.strip("└─ ").partition(" ")[0] for line in text.splitlines()) == ["a", "b", "self"]


def test_the_same_span_twice_is_printed_once() -> None:
    spans = example()
    assert printed([*spans, *spans], spans) == EXAMPLE


def test_a_reader_that_is_gone_is_said_once(messages: Messages) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as terminal:
        exporter = ConsoleExporter(terminal, messages)
        for trace_id in (1, 2):
            exporter.export(RESOURCE, example(trace_id))
            exporter.poll(trace_id)
            exporter.poll(trace_id + SETTLE_SECONDS)
            wait_until(lambda seen=trace_id: exporter.counts().dropped == seen * 4)  # type: ignore[misc]
        exporter.close(5.0)
        assert exporter.counts().last_error
        with pytest.raises(BrokenPipeError):
            terminal.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), writing)
    assert len(messages.said) == 1
    assert "Broken pipe" in messages.said[0]


def test_a_terminal_that_is_stopped_stops_nobody(messages: Messages) -> None:
    go_on = threading.Event()

    class Stopped(Terminal):
        def write(self, text: str) -> int:
            go_on.wait(20.0)
            return super().write(text)

    exporter = ConsoleExporter(Stopped(), messages)
    for second in range(100):
        for trace_id in range(40):
            exporter.export(RESOURCE, example(second * 100 + trace_id))
        exporter.poll(second)
        exporter.poll(second + SETTLE_SECONDS)
    exporter.close(0.1)
    go_on.set()
    counts = exporter.counts()
    assert counts.exported == 0
    assert counts.dropped == 100 * 40 * 4
