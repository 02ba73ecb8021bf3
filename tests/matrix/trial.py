"""One cell tried: its service under the agent, real requests, and the spans that both exported."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.matrix.cells import Cell
from tests.matrix.judge import ExportedSpan, Verdict, judge
from tests.support.agent import run
from tests.support.client import load

REQUESTS = 200
CONNECTIONS = 8
_NO_SPAN = "0" * 16
# Of the ready line; where spans are adopted it says "; manual spans of opentelemetry_sdk 0.31.0 are adopted".
_NOT_ADOPTED = "; manual spans are "


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of a cell: the verdict with its reason, and what helps to understand another than joined."""

    verdict: Verdict
    reason: str
    examples: tuple[str, ...]
    messages: str


def try_cell(cell: Cell, executable: Path, *, write: str = "stop", requests: int = REQUESTS) -> Trial:
    """Starts the service under ``spanweld run``, sends the requests, ends both, and judges.

    Whatever breaks on the way makes the trial a failed one.
    """
    numbers = range(1, requests + 1)
    with tempfile.TemporaryDirectory(prefix="matrix-") as temporary:
        automatic, manual = Path(temporary) / "automatic.jsonl", Path(temporary) / "manual.jsonl"
        # Neither exporter may be what loses spans.
        environ = {
            "MATRIX_SPANS": str(manual),
            "OTEL_BSP_MAX_QUEUE_SIZE": "100000",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }
        try:
            with run([str(executable)], "--write", write, environ=environ, export=automatic) as agent:
                address = agent.service_address
                result = load(address, numbers, CONNECTIONS, lambda number: f"/work/{number}")
                code = agent.stop()
                messages = agent.messages.join()
            judgement = judge(
                cell.api,
                cell.ids_by_hand,
                list(_automatic(automatic)),
                list(exported_spans(manual)),
                numbers,
            )
        except (AssertionError, OSError, ValueError, KeyError) as error:
            # The first line says what was waited for, say, and the last one why it did not come.
            lines = str(error).splitlines() or [type(error).__name__]
            return Trial(Verdict.FAILED, " ".join(dict.fromkeys((lines[0], lines[-1]))), (), str(error))
    judgement.problems.update(
        Counter({"requests that failed": len(result.failures), f"exit code {code}": int(code != 0)})
        - Counter()
    )
    verdict, reason = judgement.verdict(_reasons(messages))
    return Trial(verdict, reason, (*judgement.examples, *result.failures[:3]), messages)


def _reasons(messages: str) -> list[str]:
    """What the agent said besides that it is ready; of the ready line, why it leaves spans alone."""
    reasons = []
    for line in messages.splitlines():
        if not line.startswith("spanweld: "):
            continue
        said = line.removeprefix("spanweld: ")
        if " ready (pid " not in line:
            reasons.append(said)
        elif _NOT_ADOPTED in said:
            reasons.append(said.partition("; ")[2].removesuffix(")"))
    return reasons


def _automatic(path: Path) -> Iterator[ExportedSpan]:
    """The agent's spans, from its ``json:FILE``."""
    for line in path.read_text().splitlines():
        for resource in json.loads(line)["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                for span in scope["spans"]:
                    yield ExportedSpan(
                        name=span["name"],
                        trace_id=span["traceId"],
                        span_id=span["spanId"],
                        parent_span_id=span.get("parentSpanId", ""),
                        number=_number_in_path(span["attributes"]),
                    )


def _number_in_path(attributes: list[dict[str, Any]]) -> int | None:
    for attribute in attributes:
        if attribute["key"] == "url.path":
            last = str(attribute["value"]["stringValue"]).rpartition("/")[2]
            return int(last) if last.isdecimal() else None
    return None


def exported_spans(path: Path, position: int = 0) -> Iterator[ExportedSpan]:
    """The service's spans, as ``services/matrix/src/export.rs`` writes them, from a place in its file on."""
    with path.open() as lines:
        lines.seek(position)
        for line in lines:
            if not line.endswith("\n"):
                break  # it is being written
            span = json.loads(line)
            parent = span["parent_span_id"]
            yield ExportedSpan(
                name=span["name"],
                trace_id=span["trace_id"],
                span_id=span["span_id"],
                parent_span_id="" if parent == _NO_SPAN else parent,
                number=span["number"],
                start_ns=span["start_ns"],
                end_ns=span["end_ns"],
            )
