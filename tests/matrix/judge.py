"""What became of the spans of a cell's requests: exactly, or it is wrong.

``services/matrix`` puts the request's number into the path and into each of its spans, whose names
say what must become of them.
"""

from __future__ import annotations

import enum
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SERVER = "the server span"

# Roots by name, and whose child each may become: the innermost active span. A root by `tracing` is
# told to the SDK when it closes (up to 0.31), so that what is open around it is not known then.
ROOTS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "raw": {
        "root": [SERVER],
        "outer": [SERVER],
        "inner": ["outer"],
        "in-span": [SERVER],
        "active": [SERVER],
        "attached": [SERVER],
        "other-provider": [SERVER],
        "last": [SERVER],
    },
    "tracing": {
        "root": [SERVER],
        "scope": [SERVER],
        "entered": [SERVER],
        "outer": [SERVER],
        "inner": [SERVER, "outer"],
        "last": [SERVER],
    },
}
# What has a parent in the service itself keeps it.
CHILDREN: Mapping[str, Mapping[str, str]] = {
    "raw": {
        "child": "root",
        "grandchild": "child",
        "spawned": "root",
        "in-span-child": "in-span",
        "active-child": "active",
        "attached-child": "attached",
    },
    "tracing": {"child": "root", "grandchild": "child", "spawned": "root", "scope-child": "scope"},
}
_BY_HAND, _CHILD_BY_HAND = "by-hand", "by-hand-child"


class Verdict(enum.Enum):
    """What a cell is called in the table."""

    JOINED = "joined"
    AUTOMATIC_ONLY = "automatic only"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ExportedSpan:
    """A span as its exporter wrote it: ids in hexadecimal digits, '' for no parent.

    ``number`` is the request's: for a server span from its path. Times are Unix times in nanoseconds.
    """

    name: str
    trace_id: str
    span_id: str
    parent_span_id: str
    number: int | None
    start_ns: int = 0
    end_ns: int = 0


@dataclass(frozen=True, slots=True)
class Judgement:
    """How many roots were adopted and left alone, and what is wrong: counts by kind, an example of each."""

    adopted: int
    left_alone: int
    problems: Counter[str]
    examples: tuple[str, ...]

    def verdict(self, reasons: Sequence[str]) -> tuple[Verdict, str]:
        """In one word, and in a sentence; ``reasons`` is what the agent said besides that it is ready."""
        roots = self.adopted + self.left_alone
        if self.problems:
            return Verdict.FAILED, ", ".join(
                f"{count} {kind}" for kind, count in sorted(self.problems.items())
            )
        if not self.left_alone:
            return Verdict.JOINED, "; ".join((f"{roots} roots", *reasons))
        if self.adopted:
            return Verdict.FAILED, f"{self.left_alone} of {roots} roots were left alone"
        if not reasons:
            return Verdict.FAILED, "nothing was adopted, and nothing was said about it"
        return Verdict.AUTOMATIC_ONLY, "; ".join(reasons)


def judge(
    api: str,
    ids_by_hand: bool,
    servers: Sequence[ExportedSpan],
    manual: Sequence[ExportedSpan],
    numbers: Sequence[int],
) -> Judgement:
    """Looks at each request's spans, and that there are no others."""
    problems: Counter[str] = Counter()
    examples: dict[str, str] = {}

    def problem(kind: str, example: object) -> None:
        problems[kind] += 1
        examples.setdefault(kind, f"{kind}: {example}")

    roots, children = ROOTS[api], dict(CHILDREN[api])
    if ids_by_hand:
        children[_CHILD_BY_HAND] = _BY_HAND
    names = [*roots, *children, *([_BY_HAND] if ids_by_hand else [])]
    sent = set(numbers)
    server_of: dict[int, list[ExportedSpan]] = defaultdict(list)
    manual_of: dict[int, dict[str, list[ExportedSpan]]] = defaultdict(lambda: defaultdict(list))
    for span in servers:
        if span.number is None or span.number not in sent:
            problem("server spans of no request", span)
        else:
            server_of[span.number].append(span)
    for span in manual:
        if span.number is None or span.number not in sent or span.name not in names:
            problem("manual spans of no request", span)
        else:
            manual_of[span.number][span.name].append(span)
    for span_id, count in Counter(span.span_id for span in (*servers, *manual)).items():
        if count > 1:
            problem("span ids that came twice", span_id)

    automatic_traces = {span.trace_id for span in servers}
    adopted = left_alone = 0
    for number in numbers:
        counts = {name: len(manual_of[number][name]) for name in names}
        if len(server_of[number]) != 1 or set(counts.values()) != {1}:
            counts[SERVER] = len(server_of[number])
            problem("requests without all their spans", f"{number}: {counts}")
            continue
        spans = {name: manual_of[number][name][0] for name in names}
        spans[SERVER] = server = server_of[number][0]
        if server.parent_span_id:
            problem("server spans with a parent", server)
        for name, parents in roots.items():
            span = spans[name]
            if span.trace_id == server.trace_id and span.parent_span_id in {
                spans[parent].span_id for parent in parents
            }:
                adopted += 1
            elif span.trace_id not in automatic_traces and not span.parent_span_id:
                left_alone += 1
            elif span.trace_id == server.trace_id and not span.parent_span_id:
                problem("roots without a parent", span)
            elif span.trace_id == server.trace_id:
                problem("roots with a wrong parent", span)
            elif span.trace_id in automatic_traces:
                problem("roots in the trace of another request", span)
            else:
                problem("roots with a parent and not in the trace", span)
        for name, parent in children.items():
            span, expected = spans[name], spans[parent]
            if (span.trace_id, span.parent_span_id) != (expected.trace_id, expected.span_id):
                problem("children that left their parent", f"{span} and {expected}")
        if ids_by_hand:
            span = spans[_BY_HAND]
            given = (f"{0xABCD << 64 | number:032x}", f"{0xEF << 48 | number:016x}", "")
            if (span.trace_id, span.span_id, span.parent_span_id) != given:
                problem("spans whose ids by hand were changed", span)
    return Judgement(adopted, left_alone, problems, tuple(examples.values()))
