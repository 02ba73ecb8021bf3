"""The exact check: under load, each manual root has trace id and parent of its own request.

``users`` puts the request's number into the path and into each manual span. By itself:

    python -m tests.support.exactness --profile release --requests 10000 --connections 64 --write stop

prints one line and ends with 0 if nothing was wrong and nothing was missing, else with 1.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.agent import attach, run
from tests.support.client import load
from tests.support.otlp_receiver import OtlpReceiver, ReceivedSpan
from tests.support.services import Service, binary
from tests.support.traces import manual_spans, server_spans

ROOT = "process_business_logic"
CHILDREN = ("validate_input", "save_to_database")


@dataclass(frozen=True, slots=True)
class Exactness:
    """How many of ``requests`` are right, and what is not: counts by kind, with an example of each."""

    requests: int
    seconds: float
    joined: int
    problems: Counter[str]
    examples: tuple[str, ...]
    messages: str

    @property
    def ok(self) -> bool:
        """Whether every request was answered and is right."""
        return self.joined == self.requests and not self.problems

    def __str__(self) -> str:
        problems = ", ".join(f"{count} {kind}" for kind, count in sorted(self.problems.items())) or "none"
        rate = self.requests / self.seconds if self.seconds else 0
        return (
            f"exactness: {'ok' if self.ok else 'FAILED'}; {self.requests} requests at {rate:.0f}/s, "
            f"{self.joined} joined, wrong or missing: {problems}"
        )


def judge(spans: Sequence[ReceivedSpan], numbers: Sequence[int]) -> tuple[int, Counter[str], tuple[str, ...]]:
    """How many requests are right; what is wrong by kind; an example of each kind.

    Right: one server span, one root in its trace with it as its parent, and the two children of that
    root. Spans of numbers that were never sent are wrong as well.
    """
    examples: dict[str, str] = {}
    problems: Counter[str] = Counter()

    def problem(kind: str, example: object) -> None:
        problems[kind] += 1
        examples.setdefault(kind, f"{kind}: {example}")

    servers: dict[int, list[ReceivedSpan]] = defaultdict(list)
    manual: dict[int, dict[str, list[ReceivedSpan]]] = defaultdict(lambda: defaultdict(list))
    sent = set(numbers)
    for span in server_spans(spans):
        last = str(span.attributes["url.path"]).rpartition("/")[2]
        if last.isdecimal() and int(last) in sent:
            servers[int(last)].append(span)
        else:
            problem("server span of no request", span)
    of_requests = {span.trace_id: number for number, found in servers.items() for span in found}
    for span in manual_spans(spans):
        number = span.attributes.get("request.number")
        if number in sent and span.name in (ROOT, *CHILDREN):
            manual[number][span.name].append(span)
        else:
            problem("manual span of no request", span)

    joined = 0
    for number in numbers:
        found = manual[number]
        if len(servers[number]) != 1 or any(len(found[name]) != 1 for name in (ROOT, *CHILDREN)):
            counts = {name: len(found[name]) for name in (ROOT, *CHILDREN)}
            problem("without all their spans", f"{number}: {len(servers[number])} server spans, {counts}")
            continue
        server, root = servers[number][0], found[ROOT][0]
        if root.trace_id != server.trace_id:
            other = of_requests.get(root.trace_id)
            kind = "roots left alone" if other is None else "roots in the trace of another request"
            problem(kind, f"{number}: {root}")
        elif root.parent_span_id != server.span_id:
            problem("roots with a wrong parent" if root.parent_span_id else "roots without a parent", root)
        elif any(
            (child.trace_id, child.parent_span_id) != (root.trace_id, root.span_id)
            for name in CHILDREN
            for child in found[name]
        ):
            problem("children that left their root", f"{number}: {dict(found)}")
        else:
            joined += 1
    return joined, problems, tuple(examples.values())


def check(
    *,
    requests: int,
    connections: int = 64,
    profile: str = "release",
    write: str = "stop",
    how: str = "run",
    binaries: Path | None = None,
) -> Exactness:
    """Starts store, users, agent and receiver, sends the requests, and looks at what came."""
    users, store = (binaries / name if binaries else binary(name, profile) for name in ("users", "store"))
    numbers = range(1, requests + 1)
    options = ("--export", "otlp", "--write", write)
    with contextlib.ExitStack() as stack:
        receiver = stack.enter_context(OtlpReceiver())
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint,
            # The service's exporter must not be what loses spans.
            "OTEL_BSP_MAX_QUEUE_SIZE": "200000",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }
        downstream = stack.enter_context(Service(store))
        arguments = ["--store", downstream.url]
        service: Service | None = None
        if how == "attach":
            service = stack.enter_context(Service(users, arguments, environ))
            agent = stack.enter_context(attach(service.pid, *options, environ=environ))
            address = service.address
        else:
            agent = stack.enter_context(run([str(users), *arguments], *options, environ=environ))
            address = agent.service_address
        result = load(
            address,
            numbers,
            connections,
            lambda number: f"/api/users/{number}",
            method="POST",
            body=b'{"name": "somebody"}',
            status=201,
        )
        # Both send what they have left when they end.
        code = agent.stop(timeout=30)
        if service is not None:
            service.stop()
        joined, problems, examples = judge(receiver.spans, numbers)
        messages = agent.messages.join()
    if result.failures:
        problems["requests that failed"] = len(result.failures)
        examples += result.failures[:3]
    if code:
        problems[f"exit code {code} of the agent"] = 1
    return Exactness(requests, result.seconds, joined, problems, examples, messages)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="every manual root has trace id and parent of its request")
    parser.add_argument("--profile", choices=("debug", "release"), default="release")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--write", default="auto")
    parser.add_argument("--how", choices=("run", "attach"), default="run")
    parser.add_argument("--binaries", type=Path, help="folder of services that are built already")
    arguments = parser.parse_args()
    result = check(**vars(arguments))
    print(result)
    if not result.ok:
        print(*result.examples, result.messages, sep="\n", file=sys.stderr)
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main())
