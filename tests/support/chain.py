"""The chain check: three services call each other, and every span's parent is that of their own record.

``front`` (axum, reqwest) calls ``middle`` (actix-web, hyper's client), which calls ``back`` (axum). Their
handlers spawn, join, select, cancel and call at random; what should be whose parent stands in attributes
and paths, as ``services/README.md`` says. Everything is compared with that. By itself, as ``make chain``
runs it:

    python -m tests.support.chain --requests 5000 --connections 32

prints a table and ends with 0 if no parent was wrong, nothing was missing, and at most 1 % of the spans
of each kind had no parent where the record knows one; else with 1.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from tests.support.agent import AgentProcess, attach, run
from tests.support.client import load
from tests.support.otlp_receiver import OtlpReceiver, ReceivedSpan
from tests.support.services import Service, binary
from tests.support.traces import SERVER_KIND, is_automatic

How = Literal["run", "attach"]
Middle = Literal["plain", "propagating", "relay", "bare-relay"]
Sort = Literal["wrong", "unknown", "missing"]
MIDDLES: tuple[Middle, ...] = ("plain", "propagating", "relay", "bare-relay")

NONE = "none"
FIRST = "f"
"""The key of a user's request to ``front``."""
BODY = 20_000
"""Bytes: several reads long, and several wakes of who reads it."""
MOST_UNKNOWN = 0.01
RELAYED = "-r"
"""What ends the key of a call that ``relay`` makes."""


@dataclass(frozen=True, slots=True)
class Call:
    """What the path of a request says of it."""

    key: str
    caller: str
    carries: str
    number: int


def call_of(span: ReceivedSpan) -> Call | None:
    """The call that an automatic span, of either side, stands for; None if it is another request."""
    attributes = span.attributes
    path = attributes.get("url.path") or urlsplit(str(attributes.get("url.full", ""))).path
    match str(path).split("/"):
        case ["", key, caller, ("wire" | "own") as carries, number] if number.isdecimal():
            return Call(key, caller, carries, int(number))
    return None


@dataclass(slots=True)
class Verdict:
    """Counts by kind of span (manual, client, server); ``examples`` has one of each problem."""

    spans: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def most_unknown(self) -> float:
        """The largest part of a kind's spans that have no parent though the record knows one."""
        return max((self.unknown[kind] / count for kind, count in self.spans.items()), default=0.0)

    @property
    def ok(self) -> bool:
        """Nothing wrong, nothing missing; for what is unknown see ``most_unknown``."""
        return bool(self.spans) and not self.wrong and not self.missing

    def table(self) -> str:
        """Lines for people."""
        lines = [f"{'spans':<8} {'in all':>7} {'right':>7} {'wrong':>7} {'unknown':>7}"]
        for kind in ("server", "client", "manual"):
            counts = (self.spans, self.right, self.wrong, self.unknown)
            lines.append(f"{kind:<8} " + " ".join(f"{count[kind]:7}" for count in counts))
        lines += [f"missing: {count} {what}" for what, count in sorted(self.missing.items())]
        return "\n".join(lines)


class _Judge:
    def __init__(self, spans: Sequence[ReceivedSpan], numbers: Collection[int], relay_is_bare: bool) -> None:
        self.relay_is_bare = relay_is_bare
        self.verdict = Verdict()
        self.manual: dict[tuple[int, str], list[ReceivedSpan]] = defaultdict(list)
        self.servers: dict[tuple[int, str], list[ReceivedSpan]] = defaultdict(list)
        self.clients: dict[tuple[int, str], list[ReceivedSpan]] = defaultdict(list)
        self.calls: list[tuple[ReceivedSpan, Call]] = []
        self.automatic_traces: set[str] = set()
        for span in spans:
            self._sort(span, numbers)

    def _sort(self, span: ReceivedSpan, numbers: Collection[int]) -> None:
        if is_automatic(span):
            self.automatic_traces.add(span.trace_id)
            call = call_of(span)
            if call is None or call.number not in numbers:
                self._problem("wrong", "span of no request", span)
                return
            self.calls.append((span, call))
            where = self.servers if span.kind == SERVER_KIND else self.clients
            where[call.number, call.key].append(span)
            return
        number, key = span.attributes.get("request.number"), span.attributes.get("key")
        if not isinstance(number, int) or number not in numbers or key is None:
            self._problem("wrong", "span of no request", span)
            return
        self.manual[number, str(key)].append(span)

    def judge(self, numbers: Collection[int]) -> Verdict:
        for (number, _), spans in self.manual.items():
            for span in spans:
                self._manual(span, number)
        for span, call in self.calls:
            if span.kind == SERVER_KIND:
                self._server(span, call)
            else:
                self._client(span, call)
        for (number, key), spans in self.manual.items():
            if len(spans) > 1:
                self._problem("wrong", "span that came twice", f"{number} {key}: {spans}")
        for number in numbers:
            if len(self.servers.get((number, FIRST), [])) != 1:
                self._problem("missing", "server spans of users' requests", number)
        return self.verdict

    def _manual(self, span: ReceivedSpan, number: int) -> None:
        expected = str(span.attributes["expected.parent"])
        if expected == NONE and not span.parent_span_id and span.trace_id in self.automatic_traces:
            self._wrong("manual", span, "is in the trace of a request")
            return
        self._compare("manual", span, expected, self._active(number, expected))

    def _client(self, span: ReceivedSpan, call: Call) -> None:
        self._compare("client", span, call.caller, self._active(call.number, call.caller))
        answered = "http.response.status_code" in span.attributes
        if answered and not self.relay_is_bare and (call.number, call.key) not in self.servers:
            self._problem("missing", "server spans of answered calls", span)

    def _server(self, span: ReceivedSpan, call: Call) -> None:
        bare = self.relay_is_bare and call.key.endswith(RELAYED)
        if call.key == FIRST or bare:
            self._compare("server", span, NONE, [])
            return
        clients = self.clients.get((call.number, call.key), [])
        if not clients:
            self._problem("missing", "client spans of calls that came", span)
        if call.carries == "own":
            self._compare("server", span, call.caller, self.manual.get((call.number, call.caller), []))
        else:
            self._compare("server", span, call.key, clients)

    def _active(self, number: int, key: str) -> list[ReceivedSpan]:
        return self.manual.get((number, key)) or self.servers.get((number, key), [])

    def _compare(
        self, kind: str, span: ReceivedSpan, expected: str, candidates: Sequence[ReceivedSpan]
    ) -> None:
        """``candidates`` are the spans that ``expected`` names: several only where a call was repeated."""
        if expected == NONE:
            if span.parent_span_id:
                self._wrong(kind, span, "has a parent and should have none")
            else:
                self._right(kind)
        elif not span.parent_span_id:
            self.verdict.spans[kind] += 1
            self._problem("unknown", kind, span)
        elif any((span.trace_id, span.parent_span_id) == (c.trace_id, c.span_id) for c in candidates):
            self._right(kind)
        elif candidates:
            self._wrong(kind, span, f"is not a child of {expected}: {candidates}")
        else:
            self.verdict.spans[kind] += 1
            self._problem("missing", f"parents of {kind} spans", span)

    def _right(self, kind: str) -> None:
        self.verdict.spans[kind] += 1
        self.verdict.right[kind] += 1

    def _wrong(self, kind: str, span: ReceivedSpan, why: str) -> None:
        self.verdict.spans[kind] += 1
        self._problem("wrong", kind, f"{span} {why}")

    def _problem(self, sort: Sort, what: str, example: object) -> None:
        counters = {
            "wrong": self.verdict.wrong,
            "unknown": self.verdict.unknown,
            "missing": self.verdict.missing,
        }
        counters[sort][what] += 1
        self.verdict.examples.setdefault(f"{sort} {what}", str(example))


def judge(spans: Sequence[ReceivedSpan], numbers: Collection[int], *, relay_is_bare: bool = False) -> Verdict:
    """Compares every span's parent with the services' record. ``numbers`` are those of users' requests.

    Wrong: another parent than the record's, or one where it has none; a span of a request that was never
    sent, or that came twice. Unknown: no parent where the record has one. Missing: a server span of a
    user's request; either side's span of a call that was answered; a parent that never came.
    """
    return _Judge(spans, numbers, relay_is_bare).judge(numbers)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run; ``messages`` are the agents' own, by service."""

    requests: int
    seconds: float
    verdict: Verdict
    failures: tuple[str, ...]
    messages: Mapping[str, str]

    @property
    def ok(self) -> bool:
        """As ``Verdict.ok``, and every request was answered."""
        return self.verdict.ok and not self.failures

    def __str__(self) -> str:
        rate = self.requests / self.seconds if self.seconds else 0
        return "\n".join(
            (
                f"chain: {self.requests} requests at {rate:.0f}/s, {len(self.failures)} failed",
                self.verdict.table(),
                f"unknown: at most {self.verdict.most_unknown:.2%} of a kind",
            )
        )

    def report(self) -> str:
        """All there is to say of what went wrong."""
        examples = (f"{what}: {example}" for what, example in self.verdict.examples.items())
        said = (
            f"{service} | {line}" for service, text in self.messages.items() for line in text.splitlines()
        )
        return "\n".join((str(self), *examples, *self.failures[:3], *said))


class Chain:
    """The services of a chain, each traced; ends with the ``with`` block. ``address`` is where it begins."""

    def __init__(
        self,
        *,
        how: How = "run",
        middle: Middle = "plain",
        profile: str = "release",
        options: Sequence[str] = ("--write", "stop"),
        binaries: Path | None = None,
    ) -> None:
        self._binaries = binaries
        self._how = how
        self._middle = middle
        self._profile = profile
        self._options = ("--export", "otlp", *options)
        self._stack = contextlib.ExitStack()
        self._services: dict[str, Service] = {}
        self.agents: dict[str, AgentProcess] = {}
        self.receiver = OtlpReceiver()
        self.address = ""

    def __enter__(self) -> Chain:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.receiver)
            back = self._start(stack, "back")
            if self._middle in ("plain", "propagating"):
                propagate = ["--propagate"] if self._middle == "propagating" else []
                next_service = self._start(stack, "middle", "--next", back, *propagate)
                self.address = self._start(stack, "front", "--next", next_service)
            else:
                relay = self._start(stack, "relay")
                self.address = self._start(stack, "front", "--next", back, "--through", relay)
            self.address = self.address.removeprefix("http://")
            if self._how == "attach":
                pids = [service.pid for name, service in self._services.items() if self._is_traced(name)]
                more = [option for pid in pids[1:] for option in ("--pid", str(pid))]
                agent = attach(pids[0], *self._options, *more, environ=self._environ())
                self.agents["all"] = stack.enter_context(agent)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _is_traced(self, name: str) -> bool:
        return not (name == "relay" and self._middle == "bare-relay")

    def _environ(self) -> dict[str, str]:
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.receiver.http_endpoint,
            # No exporter's queue may be what loses spans.
            "OTEL_BSP_MAX_QUEUE_SIZE": "1000000",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }

    def _start(self, stack: contextlib.ExitStack, name: str, *arguments: str) -> str:
        executable = self._binaries / name if self._binaries else binary(name, self._profile)
        if self._how == "attach" or not self._is_traced(name):
            service = stack.enter_context(Service(executable, arguments, self._environ()))
            self._services[name] = service
            return service.url
        environ = {**self._environ(), "OTEL_SERVICE_NAME": name}
        agent = stack.enter_context(run([str(executable), *arguments], *self._options, environ=environ))
        self.agents[name] = agent
        return f"http://{agent.service_address}"

    def finish(self) -> dict[str, str]:
        """Ends all, callers first, so that every span is sent; returns what the agents said."""
        for agent in reversed(self.agents.values()):
            code = agent.stop(timeout=60)
            assert code == 0, agent.messages.join()
        for service in reversed(self._services.values()):
            service.stop()
        return {name: agent.messages.join() for name, agent in self.agents.items()}


def target(number: int, seed: int, unread: int, body: int) -> str:
    """What a user asks ``front`` for."""
    seed = seed * 1_000_003 + number
    return f"/{FIRST}/{NONE}/wire/{number}?seed={seed}&unread={unread}&body={body}"


def check(
    *,
    requests: int,
    connections: int = 32,
    seed: int = 1,
    unread: int = 0,
    body: int = BODY,
    how: How = "run",
    middle: Middle = "plain",
    profile: str = "release",
    options: Sequence[str] = ("--write", "stop"),
    binaries: Path | None = None,
) -> Outcome:
    """Starts the chain and one receiver, sends the requests, and judges what came.

    ``unread``: of 100 answers, so many are left unread by who called. ``body``: the largest body, in bytes.
    ``binaries``: folder of services that are built already.
    """
    numbers = range(1, requests + 1)
    with Chain(how=how, middle=middle, profile=profile, options=options, binaries=binaries) as chain:
        result = load(chain.address, numbers, connections, lambda number: target(number, seed, unread, body))
        messages = chain.finish()
        verdict = judge(chain.receiver.spans, numbers, relay_is_bare=middle == "bare-relay")
    return Outcome(requests, result.seconds, verdict, result.failures, messages)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="every span's parent is that of the services' own record")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1, help="decides what the handlers do")
    parser.add_argument("--unread", type=int, default=0, help="of 100 answers, so many stay unread")
    parser.add_argument("--body", type=int, default=BODY, help="the largest body, in bytes")
    parser.add_argument("--how", choices=("run", "attach"), default="run")
    parser.add_argument("--middle", choices=MIDDLES, default="plain")
    parser.add_argument("--profile", choices=("debug", "release"), default="release")
    parser.add_argument("--write", default="auto")
    arguments = vars(parser.parse_args())
    options = ("--write", arguments.pop("write"))
    outcome = check(**arguments, options=options)
    enough_known = outcome.verdict.most_unknown <= MOST_UNKNOWN
    if outcome.ok and enough_known:
        print(outcome)
        return 0
    print(outcome.report())
    return 1


if __name__ == "__main__":
    sys.exit(main())
