"""The judge itself: it sees each way in which a span can be wrong, and takes none of them for joined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.matrix.cells import Cell, all_cells, select, versions
from tests.matrix.judge import ExportedSpan, Judgement, Verdict, judge

REQUESTS = 2
WHY = ["it has no symbols"]
Spans = dict[str, ExportedSpan]


def span(name: str, trace: int, number: int, parent: ExportedSpan | None = None) -> ExportedSpan:
    parent_id = "" if parent is None else parent.span_id
    unique = f"{hash((name, number)) & (1 << 64) - 1:016x}"
    return ExportedSpan(name, f"{trace:032x}", unique, parent_id, number)


def request(number: int, *, adopted: bool) -> Spans:
    """All spans of one request to ``tracing`` as they should be; by name, the server span as ``GET``."""
    server = span("GET", number, number)
    spans = {"GET": server}

    def root(name: str) -> None:
        trace = number if adopted else hash((name, number)) & (1 << 127) - 1 | 1 << 100
        spans[name] = span(name, trace, number, server if adopted else None)

    def child(name: str, parent: str) -> None:
        spans[name] = span(name, int(spans[parent].trace_id, 16), number, spans[parent])

    for name in ("root", "scope", "entered", "outer", "inner", "last"):
        root(name)
    for name, parent in (
        ("child", "root"),
        ("grandchild", "child"),
        ("spawned", "root"),
        ("scope-child", "scope"),
    ):
        child(name, parent)
    return spans


def judged(change: Callable[[Spans], object] = lambda _: None, *, adopted: bool = True) -> Judgement:
    """The judgement on requests, of which the first was changed."""
    numbers = range(1, REQUESTS + 1)
    requests = [request(number, adopted=adopted) for number in numbers]
    change(requests[0])
    spans = [span for request in requests for span in request.values()]
    servers = [span for span in spans if span.name == "GET"]
    manual = [span for span in spans if span.name != "GET"]
    return judge("tracing", False, servers, manual, numbers)


def test_all_is_right() -> None:
    judgement = judged()
    assert (judgement.adopted, judgement.left_alone) == (6 * REQUESTS, 0)
    assert judgement.verdict([]) == (Verdict.JOINED, "12 roots")
    assert judgement.verdict(["what"]) == (Verdict.JOINED, "12 roots; what")


def test_nothing_is_adopted() -> None:
    judgement = judged(adopted=False)
    assert (judgement.adopted, judgement.left_alone) == (0, 6 * REQUESTS)
    assert judgement.verdict(WHY) == (Verdict.AUTOMATIC_ONLY, WHY[0])
    assert judgement.verdict([])[0] is Verdict.FAILED


def test_one_root_is_left_alone() -> None:
    def change(spans: Spans) -> None:
        spans["last"] = replace(spans["last"], trace_id="f" * 32, parent_span_id="")

    judgement = judged(change)
    assert judgement.verdict(WHY) == (Verdict.FAILED, "1 of 12 roots were left alone")


@pytest.mark.parametrize("adopted", [True, False])
@pytest.mark.parametrize(
    ("name", "changed", "kind"),
    [
        ("last", {"trace_id": f"{1:032x}", "parent_span_id": ""}, "roots without a parent"),
        ("last", {"trace_id": f"{1:032x}", "parent_span_id": "1" * 16}, "roots with a wrong parent"),
        ("last", {"trace_id": f"{2:032x}"}, "roots in the trace of another request"),
        (
            "last",
            {"trace_id": "e" * 32, "parent_span_id": "1" * 16},
            "roots with a parent and not in the trace",
        ),
        ("child", {"parent_span_id": "1" * 16}, "children that left their parent"),
        ("child", {"trace_id": f"{2:032x}"}, "children that left their parent"),
        ("last", {"name": "what"}, "manual spans of no request"),
        ("last", {"number": None}, "manual spans of no request"),
        ("last", {"span_id": f"{hash(('root', 1)) & (1 << 64) - 1:016x}"}, "span ids that came twice"),
        ("GET", {"number": 7}, "server spans of no request"),
        ("GET", {"parent_span_id": "1" * 16}, "server spans with a parent"),
    ],
)
def test_a_wrong_span(name: str, changed: dict[str, str | int | None], kind: str, adopted: bool) -> None:
    def change(spans: Spans) -> None:
        spans[name] = replace(spans[name], **changed)  # type: ignore[arg-type]

    judgement = judged(change, adopted=adopted)
    assert kind in judgement.problems
    assert judgement.verdict(WHY)[0] is Verdict.FAILED


@pytest.mark.parametrize("name", ["GET", "root", "grandchild"])
def test_a_span_is_missing(name: str) -> None:
    judgement = judged(lambda spans: spans.pop(name))
    assert judgement.problems == {"requests without all their spans": 1}


def test_cells_are_chosen_by_pattern() -> None:
    assert select(["0.24/raw/*"]) == [
        Cell("0.24", "raw", profile) for profile in ("release", "fatlto", "stripped")
    ]
    assert select(["*"]) == all_cells()
    with pytest.raises(ValueError, match=r"9\.9"):
        select(["*", "9.9/*"])


def test_every_version_is_locked() -> None:
    for cell in all_cells():
        exact = versions(cell.sdk)
        assert exact.sdk.startswith(f"{cell.sdk}.")
