"""What will be attached to an executable, where, and why not: decided before anything is attached."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from spanweld import layouts
from spanweld.image import (
    Function,
    Image,
    ImageFacts,
    Language,
    SpanArguments,
    examine,
    find_new_task_ids,
    find_returns,
    find_span_arguments,
    find_wakers,
    first_instruction,
    locate,
    sdk_functions,
)
from spanweld.image.symbols import contains_name
from spanweld.layouts import SdkLayout
from spanweld.model import FileOffset, VirtAddr
from spanweld.probes import REGISTRY, otel_sdk, tokio_tasks
from spanweld.probes.declaration import Instrumentation, Place, Probe, Release, Seen, release_of

# Runtimes whose tasks are not followed: what is on a thread is no hint to the request then.
_OTHER_RUNTIMES = ("async-std", "smol", "monoio", "glommio", "tokio-uring", "compio", "async-global-executor")

# What drives connections in tasks of their own.
_HTTP_CLIENTS = ("reqwest", "awc")
_HTTP_CLIENT_NAMES = (b"hyper6client", b"hyper..client", b"hyper_util6client", b"hyper_util..client")

# All but what follows tasks, which manual spans can do without.
_OF_SPANS = tuple(
    group for group in REGISTRY if group not in (tokio_tasks.INSTRUMENTATION, tokio_tasks.WAKES)
)
NO_OTHER_GENERATORS = "roots with ids by another generator than the SDK's are left alone"


@dataclass(frozen=True, slots=True)
class AttachPoint:
    """A probe and the place in the image where its program goes; ``instruction`` is what stands there.

    ``cookie`` is a number that the program is given there: of a task's new id, its register; of a generator,
    how many bytes further on the call returns that is meant, of those of the function (0: every call is).
    ``taken`` is the instruction that took a task's new id, if that is not the function's whole code.
    """

    probe: Probe
    function: Function
    offset: FileOffset
    instruction: str
    cookie: int = 0
    taken: VirtAddr | None = None

    @property
    def address(self) -> VirtAddr:
        """Where in the image a jump would stand in its place."""
        return self.function.address if self.taken is None else self.taken


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """A probe of an instrumentation with its attach points or, where it can have none, the reason.

    A tracepoint has neither: it needs nothing of the image.
    """

    instrumentation: str
    probe: Probe
    points: tuple[AttachPoint, ...]
    reason: str | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be attached to an image.

    ``layout`` is a sentence where there is none. ``why_no_adoption`` is empty if manual spans are adopted.
    ``arguments`` are those of build_recording_span where spans are seen there and its code tells.
    ``seen_late``: what is known of a span before its end are its ids, either since ``tracing`` spans
    are built when they end, or since only what processors are given at its end can be seen. ``learns``: with
    no layout, it is learned in the process, and until then nothing is adopted. ``tasks`` are the probes that
    follow tasks, which is a matter of its own. ``has_http_client``: it may send requests by connections
    that it uses again, if only those of its exporter. ``knows_generators``: id generators
    of the service's own are found as well as the SDK's.
    """

    facts: ImageFacts
    sdk_versions: tuple[str, ...]
    layout: SdkLayout | str
    probes: tuple[ProbePlan, ...]
    seen: Seen
    arguments: SpanArguments | None
    why_no_adoption: str
    seen_late: bool
    learns: bool = False
    tasks: tuple[ProbePlan, ...] = ()
    has_http_client: bool = False
    knows_generators: bool = True

    @property
    def points(self) -> tuple[AttachPoint, ...]:
        """Where programs go in the image; none unless manual spans are adopted."""
        if self.why_no_adoption:
            return ()
        return tuple(point for plan in self.probes for point in plan.points)

    def why_not(self, group: Instrumentation) -> str:
        """Why the probes of a group in ``tasks`` have no place; empty if they have."""
        return _first_reason(plan for plan in self.tasks if plan.instrumentation == group.name)

    def points_of(self, group: Instrumentation) -> tuple[AttachPoint, ...]:
        """Where the programs of a group in ``tasks`` go."""
        if self.why_not(group):
            return ()
        plans = (plan for plan in self.tasks if plan.instrumentation == group.name)
        return tuple(point for plan in plans for point in plan.points)

    @property
    def adopted_layout(self) -> SdkLayout | None:
        """The layout that the programs are given; None unless manual spans are adopted."""
        return self.layout if isinstance(self.layout, SdkLayout) and not self.why_no_adoption else None


def make_plan(path: Path) -> Plan:
    """Looks at an executable; ImageError for one that cannot be traced."""
    with Image.open(path) as image:
        facts = examine(image)
        facts.require_rust()
        return plan_for(image, facts)


def plan_for(image: Image, facts: ImageFacts) -> Plan:
    """The plan for an open image whose facts are known, also where nothing can be attached."""
    versions = layouts.sdk_versions(facts)
    layout = layouts.layout_of(image, facts)
    if not versions and isinstance(layout, SdkLayout) and layout.sdk:
        versions = (layout.sdk,)
    release = release_of(versions[0]) if len(versions) == 1 else None
    why = _why_not_rust(facts) or _why_unknown(versions, release)
    why = why or _why_tasks_are_unknown(image, facts)
    # What is not known is taken for the newest.
    known = None if facts.has_symbols else sdk_functions(image)
    ways = list(_ways(image, release or Release(sys.maxsize, 0), layout))
    why = why or next((way.contradiction for way in ways if way.contradiction), "")
    way = next((way for way in ways if not way.why_not), ways[0])
    seen_late = way.seen is Seen.EXPORTED or otel_sdk.builds_late(facts.crates)
    learns = isinstance(layout, str) and not why
    if learns:
        # A layout is learned of the finished Span.
        way = next(way for way in ways if way.seen is Seen.RETURNED)
        seen_late = otel_sdk.builds_late(facts.crates)
        why = _why_not_learned(facts, seen_late=seen_late)
        why = f"{layout}, and {why}" if why else ""
    return Plan(
        facts=facts,
        sdk_versions=versions,
        layout=way.layout,
        probes=way.probes,
        seen=way.seen,
        arguments=way.arguments,
        why_no_adoption=why or way.why_not,
        seen_late=seen_late,
        learns=learns and not why and not way.why_not,
        tasks=_place_on_tasks(image, facts),
        has_http_client=_has_http_client(image, facts),
        knows_generators=known is None or known.other_generators is not None,
    )


@dataclass(frozen=True, slots=True)
class _Way:
    """One way of seeing spans, and the first reason why it cannot be had.

    ``contradiction``: the code and the layout disagree, so that there is no way at all.
    """

    seen: Seen
    probes: tuple[ProbePlan, ...]
    layout: SdkLayout | str
    arguments: SpanArguments | None
    why_not: str
    contradiction: str = ""


def _ways(image: Image, release: Release, layout: SdkLayout | str) -> Iterator[_Way]:
    functions = locate(image, _symbols(release, (Seen.BUILT, Seen.RETURNED)))
    found = False
    if release >= otel_sdk.BUILDS_APART:
        probes = _place(image, release, Seen.BUILT, functions)
        why_not = _first_reason(probes)
        arguments = None if why_not else _span_arguments(image, probes)
        yield _Way(Seen.BUILT, probes, layout, arguments, why_not, _contradiction(arguments, layout))
        found = not why_not
    probes = _place(image, release, Seen.RETURNED, functions)
    yield _Way(Seen.RETURNED, probes, layout, None, _first_reason(probes))
    if found or not _first_reason(probes):
        return
    # The last way, for which without symbols all vtables are looked at.
    exported = layout.of_exported_data() if isinstance(layout, SdkLayout) else layout
    data = layout.exported_data if isinstance(layout, SdkLayout) else None
    wanted = _symbols(release, (Seen.EXPORTED,)) - functions.keys()
    functions = {**functions, **locate(image, wanted, data)}
    probes = _place(image, release, Seen.EXPORTED, functions)
    why_not = _first_reason(probes) or ("" if exported else "the layout of exported spans is not known")
    yield _Way(Seen.EXPORTED, probes, exported or layout, None, why_not)


def _symbols(release: Release, ways: Iterable[Seen]) -> set[str]:
    return {
        probe.symbol
        for instrumentation in _OF_SPANS
        for probe in instrumentation.probes
        if probe.symbol and any(probe.fits(release, seen) for seen in ways)
    }


def _span_arguments(image: Image, probes: Iterable[ProbePlan]) -> SpanArguments | None:
    """How build_recording_span is called, by its code; where that does not tell, the first root will."""
    functions = [
        point.function
        for plan in probes
        if plan.probe.program == "otel_build_recording_span"
        for point in plan.points
    ]
    found = {find_span_arguments(image, function) for function in functions}
    return found.pop() if len(found) == 1 else None


def _contradiction(arguments: SpanArguments | None, layout: SdkLayout | str) -> str:
    if arguments is None or isinstance(layout, str) or layout.span_parent_id == arguments.parent_offset:
        return ""
    return (
        f"the code of build_recording_span puts the parent's id at {arguments.parent_offset:#x} of a Span, "
        f"and the layout says {layout.span_parent_id:#x}"
    )


def _first_reason(probes: Iterable[ProbePlan]) -> str:
    return next((plan.reason for plan in probes if plan.reason), "")


def _why_not_rust(facts: ImageFacts) -> str:
    if facts.language is Language.RUST:
        return ""
    return "a Go program" if facts.language is Language.GO else "no sign of rustc in it"


def _why_unknown(versions: tuple[str, ...], release: Release | None) -> str:
    if not versions:
        return "the service has no opentelemetry_sdk in it"
    if len(versions) > 1:
        return f"the service has several versions of opentelemetry_sdk in it: {', '.join(versions)}"
    if release is None or release < otel_sdk.OLDEST:
        return f"opentelemetry_sdk {versions[0]} is not known ({otel_sdk.OLDEST} and newer are)"
    return ""


def _why_not_learned(facts: ImageFacts, *, seen_late: bool) -> str:
    if not facts.has_symbols:
        return "it is not learned without symbols"
    return "it is not learned where spans are built when they end" if seen_late else ""


def _why_tasks_are_unknown(image: Image, facts: ImageFacts) -> str:
    for runtime in _OTHER_RUNTIMES:
        if facts.crates.get(runtime):
            return f"the tasks of {runtime} are not followed"
    has_tasks = bool(facts.crates.get("tokio"))
    if facts.has_symbols:
        has_tasks = contains_name(image, b"tokio7runtime4task")
    if facts.task_id is None and has_tasks:
        return f"tokio's task id was not found: {facts.task_id_reason}"
    return ""


def _place(
    image: Image, release: Release, seen: Seen, functions: Mapping[str, list[Function] | str]
) -> tuple[ProbePlan, ...]:
    """Every probe that is needed where spans are seen so, with its places or the reason why not."""
    plans = []
    for instrumentation in _OF_SPANS:
        for probe in instrumentation.probes:
            if not probe.fits(release, seen):
                continue
            points: list[AttachPoint] = []
            found = functions[probe.symbol] if probe.symbol else []
            reason = found if isinstance(found, str) else None
            for function in found if not isinstance(found, str) else ():
                places = _points(image, probe, function)
                if not isinstance(places, str):
                    points += places
                elif not function.called_from:
                    reason = places
            plans.append(ProbePlan(instrumentation.name, probe, () if reason else tuple(points), reason))
    return tuple(plans)


def _place_on_tasks(image: Image, facts: ImageFacts) -> tuple[ProbePlan, ...]:
    """The probes that follow tasks, with their places or the reason why not."""
    group, wakes = tokio_tasks.INSTRUMENTATION, tokio_tasks.WAKES
    why = _why_not_rust(facts)
    if not why and facts.task_id is None:
        why = f"tokio's task id is not known: {facts.task_id_reason}"
    may_be_zero = facts.task_id is not None and facts.task_id.tag_offset_from_fs is not None
    ids = why or find_new_task_ids(image, may_be_zero=may_be_zero)
    points: tuple[AttachPoint, ...] = ()
    if not isinstance(ids, str):
        points = tuple(
            AttachPoint(
                tokio_tasks.TASK_SPAWNED,
                place.function,
                place.offset,
                place.instruction,
                place.register,
                place.taken,
            )
            for place in ids
        )
    plans = [
        ProbePlan(group.name, probe, (), None)
        if probe.place is Place.TRACEPOINT
        else ProbePlan(group.name, probe, points, ids if isinstance(ids, str) else None)
        for probe in group.probes
    ]
    wakers = why or _why_wakes_say_nothing(facts) or find_wakers(image)
    for number, probe in enumerate(wakes.probes):
        places = wakers if isinstance(wakers, str) else _points(image, probe, wakers[number])
        if isinstance(places, str):
            plans.append(ProbePlan(wakes.name, probe, (), places))
        else:
            plans.append(ProbePlan(wakes.name, probe, tuple(places), None))
    return tuple(plans)


def _has_http_client(image: Image, facts: ImageFacts) -> bool:
    if any(facts.crates.get(crate) for crate in _HTTP_CLIENTS):
        return True
    if not facts.has_symbols:
        return bool(facts.crates.get("hyper"))
    return any(contains_name(image, name) for name in _HTTP_CLIENT_NAMES)


def _why_wakes_say_nothing(facts: ImageFacts) -> str:
    releases = [release_of(version) for version in facts.crates.get("tokio", ())]
    if any(release is not None and release < tokio_tasks.OLDEST_WITH_WAKES for release in releases):
        return f"a task of tokio before {tokio_tasks.OLDEST_WITH_WAKES} does not say where its id is"
    return ""


def _points(image: Image, probe: Probe, function: Function) -> list[AttachPoint] | str:
    if probe.place is Place.RETURNS:
        returns = find_returns(image, function)
        if not returns:
            return f"no return was found in the code of {function.name}"
        return [point for place in returns for point in _for_calls(probe, function, place, "ret")]
    first = first_instruction(image, function)
    if (
        first is None
        or first.touches_memory
        or first.wide_nop
        or (probe.returned_early and not first.early_return)
    ):
        code = first.text if first else "nothing that decodes"
        return f"{function.name} begins with {code}, where no probe is put"
    return _for_calls(probe, function, function.file_offset, first.text)


def _for_calls(probe: Probe, function: Function, place: FileOffset, text: str) -> list[AttachPoint]:
    """A place once for each call that is meant."""
    address = function.address + place - function.file_offset
    distances = [returns_to - address for returns_to in function.called_from] or [0]
    return [AttachPoint(probe, function, place, text, distance) for distance in distances]
