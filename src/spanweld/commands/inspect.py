"""``spanweld inspect``: what is in an executable and what would be attached to it. Never runs it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from spanweld import layouts
from spanweld.agent import plan_for
from spanweld.image import (
    FoundBy,
    Image,
    ImageFacts,
    Language,
    examine,
    find_returns,
    first_instruction,
    locate,
)
from spanweld.layouts import SdkLayout
from spanweld.model import FileOffset
from spanweld.probes import REGISTRY, otel_sdk
from spanweld.probes.declaration import Instrumentation, Place, Probe, Release, release_of

JSON_SCHEMA = 1
"""What ``--json`` writes; raised when a field goes or changes its meaning (inspect.schema.json)."""

_SDK = "opentelemetry_sdk"
# Whose versions say how the service works; names as on crates.io.
_CRATES_OF_INTEREST = (
    "actix-web",
    "async-std",
    "axum",
    "glommio",
    "hyper",
    "hyper-util",
    "monoio",
    "reqwest",
    "rocket",
    "smol",
    "tokio",
    "tonic",
    "tower",
    "tower-http",
    "tracing",
    "warp",
)
_PREFIXES_OF_INTEREST = ("opentelemetry", "tracing-opentelemetry")


@dataclass(frozen=True, slots=True)
class AttachPoint:
    """One place where a probe goes; ``instruction`` is the text of the instruction there."""

    function: str
    file_offset: FileOffset
    instruction: str | None
    found_by: FoundBy


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """A probe with its attach points or, when there are none, the reason.

    A tracepoint has neither: it needs nothing of the image.
    """

    group: str
    probe: Probe
    points: tuple[AttachPoint, ...]
    reason: str | None


class Verdict(Enum):
    """What can be had of an executable."""

    JOINED = "joined"
    AUTOMATIC_ONLY = "automatic only"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Report:
    """All that ``inspect`` shows. ``layout`` is a sentence where there is none."""

    facts: ImageFacts
    sdk_versions: tuple[str, ...]
    sdk_found_by: tuple[str, ...]
    plans: tuple[ProbePlan, ...]
    layout: SdkLayout | str
    verdict: Verdict
    verdict_reason: str


@click.command("inspect")
@click.argument("binary", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Write JSON (docs/images.md describes it).")
def inspect(binary: Path, as_json: bool) -> None:
    """Show what is in BINARY, which probes would attach, and why others would not."""
    report = make_report(binary)
    if as_json:
        click.echo(json.dumps(to_json(report), indent=2))
    else:
        print_report(report, Console(highlight=False, soft_wrap=True))


def make_report(path: Path) -> Report:
    """Everything about an executable, with one plan for each probe of the registry."""
    with Image.open(path) as image:
        facts = examine(image)
        plans = tuple(plan for instrumentation in REGISTRY for plan in _plan(image, facts, instrumentation))
        verdict, reason = _decide(image, facts)
    versions = otel_sdk.sdk_versions(facts.crates)
    found_by = []
    ways = {point.found_by for plan in plans for point in plan.points}
    if FoundBy.SYMBOL in ways:
        found_by.append("symbols")
    if FoundBy.CODE in ways:
        found_by.append("code")
    if versions:
        found_by.append("crate versions")
    layout = _layout(facts, versions, is_present=bool(found_by))
    return Report(facts, versions, tuple(found_by), plans, layout, verdict, reason)


def _plan(image: Image, facts: ImageFacts, instrumentation: Instrumentation) -> list[ProbePlan]:
    versions = otel_sdk.sdk_versions(facts.crates)
    # What is not known is taken for the newest.
    release = (release_of(versions[0]) if len(versions) == 1 else None) or Release(sys.maxsize, 0)
    probes = [probe for probe in instrumentation.probes if probe.fits(release)]
    functions = locate(image, {probe.symbol for probe in probes if probe.symbol is not None})
    plans = []
    for probe in probes:
        points: list[AttachPoint] = []
        reason = None
        if probe.symbol is not None:
            found = functions[probe.symbol]
            for function in found if not isinstance(found, str) else ():
                if probe.place is Place.ENTRY:
                    first = first_instruction(image, function)
                    text = first.text if first is not None else None
                    points.append(AttachPoint(function.name, function.file_offset, text, function.found_by))
                else:
                    points += [
                        AttachPoint(function.name, offset, "ret", function.found_by)
                        for offset in find_returns(image, function)
                    ]
            if isinstance(found, str):
                reason = _why_missing(facts) or found
            elif not points:
                reason = "the function does not return by a ret"
        plans.append(ProbePlan(instrumentation.name, probe, tuple(points), reason))
    return plans


def _why_missing(facts: ImageFacts) -> str | None:
    """The reason that says more than that a function was not found."""
    if facts.language is not Language.RUST:
        return "not a Rust program"
    if not otel_sdk.sdk_versions(facts.crates):
        return f"{_SDK} is not in the image"
    return None


def _layout(facts: ImageFacts, versions: tuple[str, ...], *, is_present: bool) -> SdkLayout | str:
    if not is_present:
        return f"{_SDK} is not in the image"
    if not versions:
        return f"the image does not tell which version of {_SDK} it holds"
    if len(versions) > 1:
        return f"the image holds several versions of {_SDK}: {', '.join(versions)}"
    return layouts.lookup(versions[0], facts.rustc, facts.target)


def _decide(image: Image, facts: ImageFacts) -> tuple[Verdict, str]:
    """What the agent would do with the executable: its own plan decides, so that the two agree."""
    if facts.language is not Language.RUST:
        what = "a Go program" if facts.language is Language.GO else "no sign of rustc in it"
        return Verdict.NOTHING, what
    plan = plan_for(image, facts)
    if plan.why_no_adoption:
        return Verdict.AUTOMATIC_ONLY, plan.why_no_adoption
    if facts.task_id is None:
        return Verdict.JOINED, f"by thread, since {facts.task_id_reason}"
    return Verdict.JOINED, "by tokio task"


def crates_of_interest(facts: ImageFacts) -> dict[str, tuple[str, ...]]:
    """The crates whose versions matter for tracing."""
    return {
        name: versions
        for name, versions in facts.crates.items()
        if name in _CRATES_OF_INTEREST or name.startswith(_PREFIXES_OF_INTEREST)
    }


def to_json(report: Report) -> dict[str, Any]:
    """The document of ``--json``; inspect.schema.json describes it."""
    facts = report.facts
    task_id = None
    if facts.task_id is not None:
        task_id = {
            "offset_from_fs": facts.task_id.offset_from_fs,
            "source": facts.task_id.source,
            "confirmed": facts.task_id.confirmed,
        }
    layout: dict[str, Any] | None = None
    if isinstance(report.layout, SdkLayout):
        layout = {field.name: getattr(report.layout, field.name) for field in fields(SdkLayout)}
        for name in ("span_data_none", "status_unset", "status_ok"):
            # Beyond 2**53, where many readers of JSON round.
            layout[name] = hex(layout[name])
        layout["span_kinds"] = {kind.name: value for value, kind in report.layout.span_kinds.items()}
    return {
        "schema": JSON_SCHEMA,
        "path": click.format_filename(facts.path),
        "size": facts.size,
        "build_id": facts.build_id,
        "language": facts.language.value,
        "target": facts.target,
        "position_independent": facts.is_pie,
        "static": facts.is_static,
        "symbols": facts.has_symbols,
        "rustc": {"version": facts.rustc, "commit": facts.rustc_hash},
        "crates": {name: list(versions) for name, versions in facts.crates.items()},
        "sdk": {"versions": list(report.sdk_versions), "found_by": list(report.sdk_found_by)},
        "tokio": {
            "versions": list(facts.crates.get("tokio", ())),
            "task_id": task_id,
            "reason": facts.task_id_reason or None,
        },
        "probes": [
            {
                "name": plan.probe.program,
                "group": plan.group,
                "place": plan.probe.place.value,
                "symbol": plan.probe.symbol,
                "attach_points": [
                    {
                        "function": point.function,
                        "file_offset": point.file_offset,
                        "instruction": point.instruction,
                        "found_by": point.found_by.value,
                    }
                    for point in plan.points
                ],
                "reason": plan.reason,
            }
            for plan in report.plans
        ],
        "layout": layout,
        "layout_reason": report.layout if isinstance(report.layout, str) else None,
        "verdict": {"spans": report.verdict.value, "reason": report.verdict_reason},
    }


_VERDICTS = {
    Verdict.JOINED: ("green", "automatic and manual spans, joined"),
    Verdict.AUTOMATIC_ONLY: ("yellow", "automatic spans only"),
    Verdict.NOTHING: ("red", "cannot be traced"),
}


def print_report(report: Report, console: Console) -> None:
    """Show a report to a reader; colours only where ``console`` is a terminal."""
    facts = report.facts

    def line(label: str, text: str, style: str = "") -> None:
        console.print(Text.assemble((f"{label:<10}", "bold"), (text, style)))

    kind = "position-independent" if facts.is_pie else "at a fixed address"
    linking = "static" if facts.is_static else "dynamic"
    symbols = "with symbols" if facts.has_symbols else "stripped"
    name = click.format_filename(facts.path)
    path = "".join(character if character.isprintable() else "?" for character in name)
    line("image", f"{path} ({facts.size / 1e6:.1f} MB, {facts.target}, {kind}, {linking}, {symbols})")
    line("build id", facts.build_id or "none")
    line("language", _language(facts))
    crates = crates_of_interest(facts)
    if crates:
        line("crates", ", ".join(f"{name} {'/'.join(versions)}" for name, versions in crates.items()))
    if report.sdk_found_by:
        versions = "/".join(report.sdk_versions) or "of unknown version"
        line("SDK", f"{_SDK} {versions}, found by {' and '.join(report.sdk_found_by)}")
    else:
        line("SDK", "none found")
    if facts.task_id is not None:
        certainty = "" if facts.task_id.confirmed else ", by this one source only"
        place = f"fs:{facts.task_id.offset_from_fs:#x}"
        line("task id", f"{place}, from {facts.task_id.source}{certainty}")
    else:
        line("task id", f"not known: {facts.task_id_reason}")
    if isinstance(report.layout, SdkLayout):
        line("layout", f"from the {report.layout.source}, {report.layout.confidence}")
    else:
        line("layout", f"none: {report.layout}")
    line("probes", "")
    groups = dict.fromkeys(plan.group for plan in report.plans)
    for group in groups:
        plans = [plan for plan in report.plans if plan.group == group]
        tracepoints = sum(plan.probe.place is Place.TRACEPOINT for plan in plans)
        if tracepoints:
            console.print(Text.assemble(f"  {group:<32}", (f"{tracepoints} tracepoints", "green")))
        for plan in plans:
            _print_plan(plan, console)
    style, text = _VERDICTS[report.verdict]
    line("verdict", f"{text} ({report.verdict_reason})", style)


def _language(facts: ImageFacts) -> str:
    if facts.language is not Language.RUST:
        return str(facts.language.value)
    commit = f" ({facts.rustc_hash[:9]})" if facts.rustc_hash else ""
    return f"Rust, rustc {facts.rustc or 'of unknown version'}{commit}"


def _print_plan(plan: ProbePlan, console: Console) -> None:
    name = f"  {plan.probe.program:<32}"
    if plan.reason is not None:
        console.print(Text.assemble(name, (f"no: {plan.reason}", "yellow")))
    for point in plan.points:
        place = f"{plan.probe.place.value} at {point.file_offset:#x}"
        place += ", by its code" if point.found_by is FoundBy.CODE else ""
        console.print(Text.assemble(name, (place, "green"), f"  {point.function}"))
