"""What will be attached to an executable, where, and why not: decided before anything is attached."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from spanweld import layouts
from spanweld.image import (
    Function,
    Image,
    ImageFacts,
    Language,
    examine,
    find_returns,
    first_instruction,
    locate,
)
from spanweld.image.symbols import contains_name
from spanweld.layouts import SdkLayout
from spanweld.model import FileOffset
from spanweld.probes import REGISTRY, otel_sdk
from spanweld.probes.declaration import Instrumentation, Place, Probe, Release, release_of

# Runtimes whose tasks are not followed: what is on a thread is no hint to the request then.
_OTHER_RUNTIMES = ("async-std", "smol", "monoio", "glommio", "tokio-uring", "compio", "async-global-executor")


@dataclass(frozen=True, slots=True)
class AttachPoint:
    """A probe and the place in the image where its program goes; ``instruction`` is what stands there."""

    probe: Probe
    function: Function
    offset: FileOffset
    instruction: str


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
    ``seen_late``: what is known of a span before its end are its ids, either since ``tracing`` spans
    are built when they end, or since only what processors are given at its end can be seen.
    """

    facts: ImageFacts
    sdk_versions: tuple[str, ...]
    layout: SdkLayout | str
    probes: tuple[ProbePlan, ...]
    why_no_adoption: str
    seen_late: bool

    @property
    def points(self) -> tuple[AttachPoint, ...]:
        """Where programs go in the image; none unless manual spans are adopted."""
        if self.why_no_adoption:
            return ()
        return tuple(point for plan in self.probes for point in plan.points)

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
    seen_late = otel_sdk.builds_late(facts.crates)
    # What is not known is taken for the newest.
    probes, why_no_place = _place(image, REGISTRY, release or Release(sys.maxsize, 0), exported=False)
    why = _why_not_rust(facts) or _why_unknown(versions, release)
    if not why and isinstance(layout, str):
        why = layout
    why = why or _why_tasks_are_unknown(image, facts)
    if why_no_place and not why and release and isinstance(layout, SdkLayout):
        exported = layout.of_exported_data()
        others, why_not_exported = _place(image, REGISTRY, release, exported=True)
        if exported and not why_not_exported:
            layout, probes, why_no_place, seen_late = exported, others, "", True
    return Plan(facts, versions, layout, probes, why or why_no_place, seen_late)


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
    image: Image, registry: Iterable[Instrumentation], release: Release, *, exported: bool
) -> tuple[tuple[ProbePlan, ...], str]:
    """Every probe with its places, and the first reason why one that needs a place has none."""
    chosen = [
        (instrumentation.name, probe)
        for instrumentation in registry
        for probe in (instrumentation.exported if exported else ()) or instrumentation.probes
        if probe.fits(release)
    ]
    functions = locate(image, {probe.symbol for _, probe in chosen if probe.symbol})
    plans = []
    for name, probe in chosen:
        points: list[AttachPoint] = []
        reason = None
        found = functions[probe.symbol] if probe.symbol else []
        if isinstance(found, str):
            reason = found
        else:
            for function in found:
                places = _points(image, probe, function)
                if isinstance(places, str):
                    reason = places
                else:
                    points += places
        plans.append(ProbePlan(name, probe, () if reason else tuple(points), reason))
    return tuple(plans), next((plan.reason for plan in plans if plan.reason), "")


def _points(image: Image, probe: Probe, function: Function) -> list[AttachPoint] | str:
    if probe.place is Place.RETURNS:
        places = find_returns(image, function)
        if not places:
            return f"no return was found in the code of {function.name}"
        return [AttachPoint(probe, function, place, "ret") for place in places]
    first = first_instruction(image, function)
    if (
        first is None
        or first.touches_memory
        or first.wide_nop
        or (probe.returned_early and not first.early_return)
    ):
        code = first.text if first else "nothing that decodes"
        return f"{function.name} begins with {code}, where no probe is put"
    return [AttachPoint(probe, function, function.file_offset, first.text)]
