"""``spanweld inspect``: what is in an executable and what would be attached to it. Never runs it."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from spanweld.image import (
    FoundBy,
    Image,
    ImageFacts,
    Language,
    examine,
)
from spanweld.layouts import SdkLayout
from spanweld.plan import NO_OTHER_GENERATORS, Plan, ProbePlan, plan_for
from spanweld.probes.declaration import Place

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


class Verdict(Enum):
    """What can be had of an executable."""

    JOINED = "joined"
    AUTOMATIC_ONLY = "automatic only"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Report:
    """All that ``inspect`` shows."""

    plan: Plan
    sdk_found_by: tuple[str, ...]
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
    """Everything about an executable: what the agent would do with it, by the agent's own plan."""
    with Image.open(path) as image:
        plan = plan_for(image, examine(image))
    ways = {point.function.found_by for probe in plan.probes for point in probe.points}
    found_by = []
    if FoundBy.SYMBOL in ways:
        found_by.append("symbols")
    if FoundBy.CODE in ways:
        found_by.append("code")
    if plan.sdk_versions:
        found_by.append("crate versions")
    return Report(plan, tuple(found_by), *_decide(plan))


def _decide(plan: Plan) -> tuple[Verdict, str]:
    if plan.facts.language is not Language.RUST:
        return Verdict.NOTHING, plan.why_no_adoption
    if plan.why_no_adoption:
        return Verdict.AUTOMATIC_ONLY, plan.why_no_adoption
    limits = ", once the layout is learned" if plan.learns else ""
    if not plan.knows_generators:
        limits += f"; {NO_OTHER_GENERATORS}"
    if plan.facts.task_id is None:
        return Verdict.JOINED, f"by thread, since {plan.facts.task_id_reason}{limits}"
    return Verdict.JOINED, f"by tokio task{limits}"


def crates_of_interest(facts: ImageFacts) -> dict[str, tuple[str, ...]]:
    """The crates whose versions matter for tracing."""
    return {
        name: versions
        for name, versions in facts.crates.items()
        if name in _CRATES_OF_INTEREST or name.startswith(_PREFIXES_OF_INTEREST)
    }


def to_json(report: Report) -> dict[str, Any]:
    """The document of ``--json``; inspect.schema.json describes it."""
    facts = report.plan.facts
    task_id = None
    if facts.task_id is not None:
        task_id = {
            "offset_from_fs": facts.task_id.offset_from_fs,
            "tag_offset_from_fs": facts.task_id.tag_offset_from_fs,
            "source": facts.task_id.source,
            "confirmed": facts.task_id.confirmed,
        }
    layout: dict[str, Any] | None = None
    known = report.plan.layout
    if isinstance(known, SdkLayout):
        layout = {field.name: getattr(known, field.name) for field in fields(SdkLayout)}
        for name in ("span_data_none", "status_unset", "status_ok"):
            # Beyond 2**53, where many readers of JSON round.
            layout[name] = None if layout[name] is None else hex(layout[name])
        layout["read_from"] = {name: list(names) for name, names in known.read_from.items()}
        layout["span_kinds"] = {kind.name: value for value, kind in known.span_kinds.items()}
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
        "sdk": {"versions": list(report.plan.sdk_versions), "found_by": list(report.sdk_found_by)},
        "tokio": {
            "versions": list(facts.crates.get("tokio", ())),
            "task_id": task_id,
            "reason": facts.task_id_reason or None,
        },
        "probes": [
            {
                "name": plan.probe.program,
                "group": plan.instrumentation,
                "place": plan.probe.place.value,
                "symbol": plan.probe.symbol,
                "attach_points": [
                    {
                        "function": point.function.name,
                        "file_offset": point.offset,
                        "instruction": point.instruction,
                        "found_by": point.function.found_by.value,
                    }
                    for point in plan.points
                ],
                "reason": plan.reason,
            }
            for plan in (*report.plan.probes, *report.plan.tasks)
        ],
        "layout": layout,
        "layout_reason": known if isinstance(known, str) else None,
        "layout_is_learned": report.plan.learns,
        "verdict": {"spans": report.verdict.value, "reason": report.verdict_reason},
    }


_VERDICTS = {
    Verdict.JOINED: ("green", "automatic and manual spans, joined"),
    Verdict.AUTOMATIC_ONLY: ("yellow", "automatic spans only"),
    Verdict.NOTHING: ("red", "cannot be traced"),
}


def print_report(report: Report, console: Console) -> None:
    """Show a report to a reader; colours only where ``console`` is a terminal."""
    facts = report.plan.facts

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
        versions = "/".join(report.plan.sdk_versions) or "of unknown version"
        line("SDK", f"{_SDK} {versions}, found by {' and '.join(report.sdk_found_by)}")
    else:
        line("SDK", "none found")
    if facts.task_id is not None:
        certainty = "" if facts.task_id.confirmed else ", by this one source only"
        place = f"fs:{facts.task_id.offset_from_fs:#x}"
        if facts.task_id.tag_offset_from_fs is not None:
            place += f" with a tag at fs:{facts.task_id.tag_offset_from_fs:#x}"
        line("task id", f"{place}, from {facts.task_id.source}{certainty}")
    else:
        line("task id", f"not known: {facts.task_id_reason}")
    layout = report.plan.layout
    if isinstance(layout, SdkLayout):
        line("layout", f"from the {layout.source}, {layout.confidence}")
        for functions, places in _by_functions(layout).items():
            console.print(f"  {functions}: {', '.join(places)}")
    elif report.plan.learns:
        line("layout", f"to be learned in the process: {layout}")
    else:
        line("layout", f"none: {layout}")
    line("probes", "")
    probes = (*report.plan.probes, *report.plan.tasks)
    for group in dict.fromkeys(plan.instrumentation for plan in probes):
        plans = [plan for plan in probes if plan.instrumentation == group]
        tracepoints = sum(plan.probe.place is Place.TRACEPOINT for plan in plans)
        if tracepoints:
            console.print(Text.assemble(f"  {group:<32}", (f"{tracepoints} tracepoints", "green")))
        for plan in plans:
            _print_plan(plan, console)
    style, text = _VERDICTS[report.verdict]
    line("verdict", f"{text} ({report.verdict_reason})", style)


def _by_functions(layout: SdkLayout) -> dict[str, list[str]]:
    """Functions that a layout is read from → the fields that they show, and where."""
    result: dict[str, list[str]] = {}
    for name, functions in layout.read_from.items():
        result.setdefault(", ".join(functions), []).append(f"{name} {getattr(layout, name):#x}")
    return result


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
        place = f"{plan.probe.place.value} at {point.offset:#x}"
        place += ", by its code" if point.function.found_by is FoundBy.CODE else ""
        console.print(Text.assemble(name, (place, "green"), f"  {point.function.name}"))
