"""Wrong layouts tried on services of the matrix: each offset moved by 8, and the layouts of other SDKs.

    python -m tests.matrix.mutations [PATTERN …]

By default a cell whose spans are seen when build_with_context returns, one whose spans are built when
they end, and one whose spans are seen when they are exported. Whatever the layout: a root is as without the
agent, adopted as it should be, or halfway (in its request's trace, without a parent), and this only as long
as nothing had shown that the layout is wrong, or where a parent is kept. Prints a line for each layout; ends
with 1 if anything is wrong. Needs root.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from spanweld.layouts import SdkLayout
from tests.matrix.cells import Cell, build, select
from tests.matrix.judge import CHILDREN, ROOTS, SERVER, ExportedSpan
from tests.matrix.trial import CONNECTIONS, exported_spans
from tests.support.client import load
from tests.support.mutations import MutantAgent, Told, neighbours, offsets, shifted
from tests.support.services import PATIENCE, Service

DEFAULT = ("0.21/raw/release", "0.24/tracing/release", "0.24/tracing/fatlto")
ROUNDS = 2
# Late spans that fit nowhere are a mismatch by their number: LATE_STRANGERS_MAX of otel_sdk.bpf.c.
REQUESTS = 130
_BY_HAND = {"by-hand": None, "by-hand-child": "by-hand"}

Spans = Mapping[int, Mapping[str, ExportedSpan]]


def main(patterns: Sequence[str]) -> int:
    """Runs it for the cells that match."""
    failed = False
    for cell in select(patterns or DEFAULT):
        for line, problems in try_layouts(cell, build(cell)):
            print(f"{cell} {line}", flush=True)
            for problem in problems:
                print(f"  WRONG {problem}", flush=True)
            failed = failed or bool(problems)
    return int(failed)


def try_layouts(cell: Cell, executable: Path) -> Iterator[tuple[str, list[str]]]:
    """For each layout what came of it, and what is wrong with that."""
    with tempfile.TemporaryDirectory(prefix="mutations-") as temporary:
        manual, automatic = Path(temporary) / "manual.jsonl", Path(temporary) / "automatic.jsonl"
        environ = {
            "MATRIX_SPANS": str(manual),
            "OTEL_BSP_MAX_QUEUE_SIZE": "100000",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }
        with (
            Service(executable, (), environ) as service,
            MutantAgent(service.pid, executable, automatic) as agent,
        ):
            bench = _Bench(cell, service, agent, manual)
            numbers = count(1)
            for what, layout in _layouts(agent.layout):
                rounds = [[next(numbers) for _ in range(REQUESTS)] for _ in range(ROUNDS)]
                yield bench.try_layout(what, layout, rounds)
            code = service.stop()
            yield "end of the service", [f"exit code {code}"] if code else []


def _layouts(right: SdkLayout) -> Iterator[tuple[str, SdkLayout]]:
    yield "right", right
    for field in offsets(right):
        for layout in shifted(right, field):
            yield f"{field} {getattr(layout, field) - getattr(right, field):+}", layout
    for layout in neighbours(right):
        yield f"{layout.sdk} by rustc {layout.rustc}", layout


@dataclass(frozen=True, slots=True)
class _Bench:
    cell: Cell
    service: Service
    agent: MutantAgent
    manual: Path

    def try_layout(
        self, what: str, layout: SdkLayout, rounds: Sequence[Sequence[int]]
    ) -> tuple[str, list[str]]:
        failures: list[str] = []
        began = time.time_ns()
        position = self.manual.stat().st_size

        def work() -> list[str]:
            for sent in rounds:
                failures.extend(load(self.service.address, sent, CONNECTIONS, "/work/{}".format).failures)
            return [f"/work/{number}" for sent in rounds for number in sent]

        told = self.agent.trace(layout, work)
        spans = _wait_for_spans(
            self.cell, self.manual, position, {number for sent in rounds for number in sent}
        )
        problems = failures[:3]
        relations = [Counter[str]() for _ in rounds]
        for sent, counts in zip(rounds, relations, strict=True):
            for number in sent:
                try:
                    _check(self.cell, spans[number], told.servers[f"/work/{number}"], counts)
                except (AssertionError, KeyError) as error:
                    problems.append(f"request {number}: {error!r}")
        problems += _judge(what, told, relations, len(rounds[-1]) if self.cell.ids_by_hand else 0)
        exported = [span for of in spans.values() for span in of.values()]
        late = [span for span in exported if not began < span.start_ns <= span.end_ns < time.time_ns()]
        problems += [f"its times are wrong: {span}" for span in late[:3]]
        if self.service.process.poll() is not None:
            problems.append(f"the service has ended with {self.service.process.poll()}")
        told_so = told.mismatch.partition(": ")[2].partition(":")[0]
        return f"{what}: {told_so or 'goes on'} {[dict(counts) for counts in relations]}", problems[:5]


def _wait_for_spans(cell: Cell, manual: Path, position: int, numbers: set[int]) -> Spans:
    """What the service exported since a position, once there is all of it, or nothing more comes."""
    wanted = len(numbers) * len(_parents(cell))
    deadline = time.monotonic() + 20 * PATIENCE
    while True:
        spans: dict[int, dict[str, ExportedSpan]] = defaultdict(dict)
        for span in exported_spans(manual, position):
            if span.number in numbers:
                spans[span.number][span.name] = span
        if sum(map(len, spans.values())) >= wanted or time.monotonic() > deadline:
            return spans
        time.sleep(0.1)


def _parents(cell: Cell) -> dict[str, str | None]:
    """Whose child each span of a request is without the agent."""
    return {
        **dict.fromkeys(ROOTS[cell.api]),
        **CHILDREN[cell.api],
        **(_BY_HAND if cell.ids_by_hand else {}),
    }


def _check(
    cell: Cell, spans: Mapping[str, ExportedSpan], server: tuple[str, str], counts: Counter[str]
) -> None:
    parents = _parents(cell)
    assert set(spans) == set(parents), f"{sorted(spans)} came, not {sorted(parents)}"
    trace, server_span = server
    for name, native in parents.items():
        span = spans[name]
        if native is not None:
            parent = spans[native]
            assert (span.trace_id, span.parent_span_id) == (parent.trace_id, parent.span_id), (
                f"{span} {parent}"
            )
        elif span.trace_id != trace:
            assert not span.parent_span_id, span
            counts["native"] += 1
        elif not span.parent_span_id:
            assert name != "by-hand", span
            counts["halfway"] += 1
        else:
            may_be = [server_span if own == SERVER else spans[own].span_id for own in ROOTS[cell.api][name]]
            # A root that is halfway may not be known to be open.
            assert span.parent_span_id in (*may_be, server_span), f"{span} {server}"
            counts["adopted"] += 1


def _judge(what: str, told: Told, relations: Sequence[Counter[str]], by_hand: int) -> list[str]:
    """``by_hand``: how many roots of a round are left alone in any case."""
    first, last = relations
    if told.mismatch:
        wrong = last["adopted"] or last["halfway"] or what == "right"
        return [f"{told.mismatch}, and {dict(last)} after that"] if wrong else []
    if last["halfway"] or last["native"] != by_hand or (what == "right" and first["halfway"]):
        return ["roots are not adopted, and nothing was said"]
    return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
