"""The agent's sampler and the service's: which traces are whole, which are not, and what is said of it.

docs/sampling.md says what holds; here it is held against some hundreds of requests for each pair.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import pytest

from tests.support.client import Connection
from tests.support.otlp_receiver import ReceivedSpan
from tests.support.traced import ROOTS_DROPPED, ROOTS_UNSAMPLED, How, Traced
from tests.support.traces import assert_child, assert_left_alone, manual_spans, server_spans

pytestmark = [pytest.mark.root]

REQUESTS = 240

Shape = Literal["whole", "server alone", "manual alone", "absent"]


@dataclass(frozen=True, slots=True)
class Sampler:
    """What OTEL_TRACES_SAMPLER means, to the SDK and to the agent, by the specification."""

    name: str
    ratio: float = 1.0

    @property
    def environ(self) -> dict[str, str]:
        return {"OTEL_TRACES_SAMPLER": self.name, "OTEL_TRACES_SAMPLER_ARG": str(self.ratio)}

    def keeps(self, trace_id: str, remote: bool | None = None) -> bool:
        """``remote``: whether the remote parent is sampled, None if there is none."""
        if remote is not None and self.name.startswith("parentbased_"):
            return remote
        ratio = {"always_on": 1.0, "always_off": 0.0}.get(self.name.removeprefix("parentbased_"), self.ratio)
        return int(trace_id[16:], 16) >> 1 < int(ratio * 2**63)


ON, OFF = Sampler("always_on"), Sampler("always_off")
DEFAULT = Sampler("parentbased_always_on")


def ratio(share: float) -> Sampler:
    return Sampler("traceidratio", share)


def parent_ratio(share: float) -> Sampler:
    return Sampler("parentbased_traceidratio", share)


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was answered; of its caller's trace id and decision, where it had a ``traceparent``."""

    number: int
    trace_id: str | None
    sampled: bool | None

    @property
    def has_caller(self) -> bool:
        return self.trace_id is not None


def send(traced: Traced, path: str, count: int = REQUESTS) -> list[Request]:
    """A third of the requests without ``traceparent``, a third sampled by their callers, a third not."""
    chance = random.Random(count)
    requests = []
    with Connection(traced.address) as connection:
        for index in range(count):
            number = traced.next_number()
            request = Request(number, None, None)
            headers = {}
            if index % 3:
                request = Request(number, f"{chance.getrandbits(128):032x}", index % 3 == 1)
                headers["traceparent"] = f"00-{request.trace_id}-{number:016x}-{int(index % 3 == 1):02}"
            assert connection.request("GET", f"/{path}/{number}", headers).status == 200
            requests.append(request)
    return requests


def wait_until_verified(traced: Traced) -> None:
    """The first root that the service builds verifies the layout, and no sampler saw its final trace id."""
    since = time.time_ns()
    traced.receiver.wait_for(
        lambda spans: any(
            span.attributes.get("scenario") == "background" and span.start_ns > since for span in spans
        )
    )


def said(messages: str, text: str) -> int:
    """The number before a text in what the agent said; 0 if it did not say it."""
    lines = [line for line in messages.splitlines() if line.endswith(text)]
    return int(lines[0].split()[1]) if lines else 0


@dataclass(frozen=True, slots=True)
class Came:
    """What came of one request: ``manual`` from the root on."""

    server: ReceivedSpan | None
    manual: Sequence[ReceivedSpan]

    @property
    def shape(self) -> Shape:
        if self.server:
            return "whole" if self.manual else "server alone"
        return "manual alone" if self.manual else "absent"


def came(spans: Sequence[ReceivedSpan], request: Request, path: str, names: Sequence[str]) -> Came:
    """AssertionError for a part of the manual spans, or what is not below its own parent."""
    servers = server_spans(spans, f"/{path}/{request.number}")
    manual = {span.name: span for span in manual_spans(spans, request.number)}
    assert len(servers) <= 1
    assert sorted(manual) in ([], sorted(names)), manual
    chain = [manual[name] for name in names] if manual else []
    for parent, child in itertools.pairwise(chain):
        assert_child(child, parent)
    return Came(servers[0] if servers else None, chain)


@dataclass(frozen=True, slots=True)
class Pair:
    """The two samplers; ``says``: what the agent says in the end; ``shapes``: what comes of requests."""

    agent: Sampler
    service: Sampler
    shapes: frozenset[Shape]
    says: tuple[str, ...]

    @property
    def how(self) -> How:
        """In ``run`` one variable is for both."""
        return "run" if self.agent == self.service else "attach"


PAIRS = {
    "equal ratios": Pair(
        ratio(0.5), ratio(0.5), frozenset({"whole", "manual alone", "absent"}), (ROOTS_UNSAMPLED,)
    ),
    "equal ratios, parent-based": Pair(
        parent_ratio(0.5),
        parent_ratio(0.5),
        frozenset({"whole", "server alone", "manual alone", "absent"}),
        (ROOTS_UNSAMPLED, ROOTS_DROPPED),
    ),
    "the agent's is greater": Pair(
        ratio(0.75),
        ratio(0.25),
        frozenset({"whole", "server alone", "manual alone", "absent"}),
        (ROOTS_UNSAMPLED, ROOTS_DROPPED),
    ),
    "the agent's is smaller": Pair(
        ratio(0.25), ratio(0.75), frozenset({"whole", "manual alone", "absent"}), (ROOTS_UNSAMPLED,)
    ),
    "equal ratios, the service parent-based": Pair(
        ratio(0.5), parent_ratio(0.5), frozenset({"whole", "manual alone", "absent"}), (ROOTS_UNSAMPLED,)
    ),
    "the agent follows the caller, the service has a ratio": Pair(
        DEFAULT,
        ratio(0.5),
        frozenset({"whole", "server alone", "manual alone", "absent"}),
        (ROOTS_UNSAMPLED, ROOTS_DROPPED),
    ),
    "the service keeps all": Pair(
        ratio(0.5), DEFAULT, frozenset({"whole", "manual alone"}), (ROOTS_UNSAMPLED,)
    ),
    "the service keeps nothing": Pair(
        ratio(0.5),
        OFF,
        frozenset({"server alone", "absent"}),
        (ROOTS_UNSAMPLED, ROOTS_DROPPED),
    ),
    "the service's is off": Pair(ON, OFF, frozenset({"server alone"}), (ROOTS_DROPPED,)),
    "the agent's is off": Pair(OFF, ON, frozenset({"manual alone"}), (ROOTS_UNSAMPLED,)),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_roots(pair: Pair) -> None:
    """The service makes a root for each request, and does not look at ``traceparent``."""
    path, names = "in-span", ("root", "child", "grandchild")
    with Traced(
        "lab",
        how=pair.how,
        environ=pair.service.environ,
        agent_environ=pair.agent.environ,
        says=pair.says,
    ) as traced:
        if pair.service is not OFF:
            wait_until_verified(traced)
        requests = send(traced, path)
        messages = traced.finish()

    shapes: Counter[Shape] = Counter()
    for request in requests:
        found = came(traced.spans, request, path, names)
        shapes[found.shape] += 1
        if request.trace_id is not None:
            assert (found.server is not None) is pair.agent.keeps(request.trace_id, request.sampled)
        if found.server is not None:
            trace_id = found.server.trace_id
            assert pair.agent.keeps(trace_id, request.sampled)
            assert request.trace_id in (None, trace_id)
            assert bool(found.manual) is pair.service.keeps(trace_id)
            if found.manual:
                assert_child(found.manual[0], found.server)
        elif found.manual:
            assert_left_alone(found.manual[0], traced.spans)
            assert found.manual[0].trace_id != request.trace_id
            assert pair.service.keeps(found.manual[0].trace_id)
    assert set(shapes) == pair.shapes, shapes
    assert said(messages, ROOTS_DROPPED) == shapes["server alone"]
    assert said(messages, ROOTS_UNSAMPLED) == shapes["manual alone"] + shapes["absent"]


def expect_remote(
    agent: Sampler, service: Sampler, how: Callable[[Request, Came], None], *says: str
) -> tuple[Counter[Shape], str]:
    """Requests to the endpoint that continues ``traceparent``, each looked at by ``how``."""
    path, names = "remote-parent", ("server", "child")
    with Traced(
        "lab", how="attach", environ=service.environ, agent_environ=agent.environ, says=says
    ) as traced:
        wait_until_verified(traced)
        requests = send(traced, path)
        messages = traced.finish()
    shapes: Counter[Shape] = Counter()
    for request in requests:
        found = came(traced.spans, request, path, names)
        shapes[found.shape] += 1
        how(request, found)
    return shapes, messages


def test_both_follow_the_caller() -> None:
    """Both parent-based: the caller decides for both, and a trace that begins here is whole."""

    def check(request: Request, found: Came) -> None:
        assert found.shape == ("absent" if request.sampled is False else "whole")
        if found.server is not None:
            assert request.trace_id in (None, found.server.trace_id)
            assert_child(found.manual[0], found.server)

    shapes, _ = expect_remote(DEFAULT, DEFAULT, check)
    assert shapes == {"whole": REQUESTS * 2 // 3, "absent": REQUESTS // 3}


def test_only_the_service_follows_the_caller() -> None:
    """The agent decides by the trace id, the service as the caller did."""
    agent = ratio(0.5)

    def check(request: Request, found: Came) -> None:
        if request.trace_id is None:
            # A root: adopted, or left alone.
            assert found.shape in ("whole", "manual alone")
            return
        assert (found.server is not None) is agent.keeps(request.trace_id)
        assert bool(found.manual) is request.sampled
        if found.server is not None and found.manual:
            assert_child(found.manual[0], found.server)
        elif found.manual:
            # As without the agent: below the caller's span.
            assert found.manual[0].trace_id == request.trace_id
            assert found.manual[0].parent_span_id == f"{request.number:016x}"

    roots_alone = 0

    def count(request: Request, found: Came) -> None:
        nonlocal roots_alone
        check(request, found)
        roots_alone += not request.has_caller and found.server is None

    shapes, messages = expect_remote(agent, DEFAULT, count, ROOTS_UNSAMPLED)
    assert set(shapes) == {"whole", "server alone", "manual alone", "absent"}
    # Spans that continue a caller's trace are no roots.
    assert said(messages, ROOTS_UNSAMPLED) == roots_alone
    assert said(messages, ROOTS_DROPPED) == 0


@pytest.mark.parametrize(
    ("agent", "service", "says"),
    [
        (DEFAULT, ratio(0.5), (ROOTS_DROPPED,)),
        (DEFAULT, ON, ()),
        (ratio(0.5), ratio(0.5), (ROOTS_UNSAMPLED,)),
        (ratio(0.25), ratio(0.75), (ROOTS_UNSAMPLED,)),
    ],
    ids=["the service has a ratio", "the service keeps all", "equal ratios", "the agent's is smaller"],
)
def test_the_service_does_not_follow_the_caller(
    agent: Sampler, service: Sampler, says: tuple[str, ...]
) -> None:
    """It continues the caller's trace, and decides by its id."""

    def check(request: Request, found: Came) -> None:
        if request.trace_id is None:
            if found.server is not None:
                assert bool(found.manual) is service.keeps(found.server.trace_id)
            return
        assert (found.server is not None) is agent.keeps(request.trace_id, request.sampled)
        assert bool(found.manual) is service.keeps(request.trace_id, request.sampled)
        if found.manual:
            assert found.manual[0].trace_id == request.trace_id
        if found.server is not None and found.manual:
            assert_child(found.manual[0], found.server)
        elif found.manual:
            assert found.manual[0].parent_span_id == f"{request.number:016x}"

    expect_remote(agent, service, check, *says)


def test_a_sampler_of_the_services_own_in_requests_that_are_not_sampled() -> None:
    """Its decisions are those that it makes without the agent, and each root is counted."""
    names = ("kept", "below-kept", "below-dropped", "below-recorded")
    with Traced("lab", "--simple", agent_environ=OFF.environ, how="attach", says=[ROOTS_UNSAMPLED]) as traced:
        with Connection(traced.address) as connection:
            for _ in range(5):
                number = traced.next_number()
                assert connection.request("GET", f"/by-name/{number}").status == 200
                manual = traced.expect_manual_only(number, f"/by-name/{number}", *names)
                assert_left_alone(manual["kept"], traced.spans)
                assert_child(manual["below-kept"], manual["kept"])
        messages = traced.finish()
    assert said(messages, ROOTS_UNSAMPLED) == 5 * 3


def test_a_sampler_of_the_services_own() -> None:
    """It drops one root, and samples the span below it; only records another, and samples that below it.

    ``--simple``: the SDK's batch processor exports what is only recorded.
    """
    with Traced("lab", "--simple") as traced:
        wait_until_verified(traced)
        names = ("kept", "below-kept", "below-dropped", "below-recorded")
        for _ in range(20):
            traced.expect_dropped_roots(1)
            seen = traced.see("/by-name/{n}", *names)
            assert_child(seen.manual["kept"], seen.server)
            assert_child(seen.manual["below-kept"], seen.manual["kept"])
            for name in ("below-dropped", "below-recorded"):
                # In the trace, with the parent that the service gave it, which nobody exports.
                span = seen.manual[name]
                assert span.trace_id == seen.server.trace_id
                assert span.parent_span_id not in ("", *(other.span_id for other in traced.spans))


def test_ids_by_hand_right_after_a_root_that_was_dropped() -> None:
    """The trace id that the dropped root was given tells the two apart."""
    with Traced("lab") as traced:
        wait_until_verified(traced)
        for _ in range(20):
            traced.expect_dropped_roots(2)
            seen = traced.see("/by-hand/{n}", "a", "b")
            for name, span in seen.manual.items():
                assert_left_alone(span, traced.spans)
                assert span.span_id.startswith(4 * name)
                assert span.trace_id == span.span_id.rjust(32, "0")
