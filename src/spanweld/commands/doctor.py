"""``spanweld doctor``: what this host allows, which write mode follows, what each probe costs here."""

from __future__ import annotations

import ctypes
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from spanweld.agent import load_programs
from spanweld.bpf.host import Host, look_at_host
from spanweld.bpf.libbpf import BpfObject, detach_all
from spanweld.bpf.targets import TargetPlaces
from spanweld.errors import HostError, SpanweldError
from spanweld.injection import Injection
from spanweld.model import FileOffset, Pid
from spanweld.probes import http_server
from spanweld.process.memory import memory_ranges
from spanweld.settings import ProbesMode, Settings, WriteMode
from spanweld.writers import choose
from spanweld.writers import kernel as kernel_writer
from spanweld.writers.inline import writer as inline_writer
from spanweld.writers.stop import writer as stop_writer

JSON_SCHEMA = 1
_ROUNDS = 5
_CALLS = 20_000


@dataclass(frozen=True, slots=True)
class Report:
    """All that is found out; ``problem`` is empty where automatic spans work.

    ``writers`` says of each write mode ``works`` or why not; ``auto`` is the one that is taken. ``inject``
    says the same of headers in requests out; empty where the programs could not be loaded.
    ``load_seconds`` is how long the programs take to load; costs are nanoseconds a hit, None where
    they could not be measured. ``uprobe_ns`` is for a function that begins with a push, which the
    kernel emulates, as nearly all functions of optimised builds do; ``uprobe_stepped_ns`` for one
    whose first instruction has to be single-stepped.
    """

    host: Host
    problem: str
    remedy: str
    libbpf: str
    load_seconds: float | None
    writers: dict[str, str]
    auto: str
    inject: str
    tracepoint_ns: float | None
    uprobe_ns: float | None
    uprobe_stepped_ns: float | None


@click.command(short_help="Show what this host allows.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> int:
    """Shows what this host allows, how spans would be written, and what each probe costs here.

    Ends with 0 if services can be traced here, else with 3.
    """
    report = examine_host()
    if as_json:
        click.echo(json.dumps({"schema": JSON_SCHEMA, **asdict(report)}, indent=2))
    else:
        _print(report)
    return HostError.exit_code if report.problem else 0


def examine_host() -> Report:
    """Tries what the agent will need; loads the programs and takes them out again."""
    host = look_at_host(mount=True)
    problem = remedy = libbpf = inject = ""
    load_seconds = tracepoint = uprobe = stepped = None
    kernel_refused = kernel_writer.why_not(host)
    try:
        host.require()
        began = time.monotonic()
        bpf, choice = load_programs(Settings(), host)
        load_seconds = round(time.monotonic() - began, 3)
        with bpf:
            libbpf = bpf.library.version
            inject = try_injection(bpf)
            tracepoint = measure_tracepoint(bpf)
            libc = ctypes.CDLL(None)
            uprobe = measure_uprobe(bpf, libc.wctob)
            stepped = measure_uprobe(bpf, libc.abs)
    except SpanweldError as error:
        problem, remedy = error.message, error.remedy
        choice = choose(
            WriteMode.AUTO,
            ProbesMode.AUTO,
            kernel_refused=kernel_refused or "see above",
            inline_refused=inline_writer.why_not(),
            stop_refused=stop_writer.why_not(),
        )
    modes = (WriteMode.KERNEL, WriteMode.INLINE, WriteMode.STOP, WriteMode.OFF)
    return Report(
        host=host,
        problem=problem,
        remedy=remedy,
        libbpf=libbpf,
        load_seconds=load_seconds,
        writers={mode.value: choice.refused.get(mode, "works") for mode in modes},
        auto=choice.mode.value,
        inject=inject,
        tracepoint_ns=tracepoint,
        uprobe_ns=uprobe,
        uprobe_stepped_ns=stepped,
    )


def try_injection(bpf: BpfObject) -> str:
    """``works``, or why requests out get no headers here."""
    link = bpf.attach("http_sys_exit")
    try:
        injection = Injection(bpf, TargetPlaces(bpf))
        try:
            return injection.why_not() or "works"
        finally:
            injection.close()
    except HostError as error:
        return error.message
    finally:
        link.detach()


def measure_tracepoint(bpf: BpfObject) -> float | None:
    """Nanoseconds that a system call of a process that is no target takes longer, median of rounds."""

    def attach() -> Callable[[], None]:
        probes = http_server.INSTRUMENTATION.probes
        links = [link for probe in probes for link in probe.attach_tracepoint(bpf)]
        return lambda: detach_all(links)

    with Path("/dev/null").open("rb", buffering=0) as null:
        return _difference(attach, lambda: os.read(null.fileno(), 1))


def measure_uprobe(bpf: BpfObject, function: Any) -> float | None:
    """Nanoseconds that a uprobe on a function of this very process costs, median of rounds."""
    address = ctypes.cast(function, ctypes.c_void_p).value or 0
    own = Pid(os.getpid())
    found = next((r for r in memory_ranges(own) if r.start <= address < r.end), None)
    if found is None:
        return None
    image, offset = Path(found.path), FileOffset(address - found.start + found.offset)
    return _difference(
        lambda: next(bpf.attach_uprobes("otel_new_trace_id", own, image, [(offset, 0)])).detach,
        lambda: function(1),
    )


def _difference(attach: Callable[[], Callable[[], None]], call: Callable[[], object]) -> float:
    def once() -> float:
        began = time.perf_counter_ns()
        for _ in range(_CALLS):
            call()
        return (time.perf_counter_ns() - began) / _CALLS

    differences = []
    for _ in range(_ROUNDS):
        bare = once()
        detach = attach()
        try:
            differences.append(once() - bare)
        finally:
            detach()
    return round(sorted(differences)[_ROUNDS // 2], 1)


def _print(report: Report) -> None:
    host = report.host
    console = Console(highlight=False)
    table = Table.grid(padding=(0, 2))

    def yes(good: bool, remedy: str) -> str:
        return "[green]yes[/]" if good else f"[red]no[/] ({remedy})"

    table.add_row("kernel", f"{host.kernel} {host.machine}")
    table.add_row("root", yes(host.is_root, "use sudo"))
    table.add_row("BTF", yes(host.has_btf, "CONFIG_DEBUG_INFO_BTF"))
    table.add_row("uprobes", yes(host.has_uprobes, "CONFIG_UPROBE_EVENTS"))
    table.add_row("tracefs", yes(host.has_tracefs, "mount it at /sys/kernel/tracing"))
    table.add_row("bpffs", yes(host.has_bpffs, "mount it at /sys/fs/bpf"))
    table.add_row("lockdown", host.lockdown or "unknown (securityfs is not mounted)")
    if report.libbpf:
        table.add_row("libbpf", report.libbpf)
    if report.load_seconds is not None:
        table.add_row("programs", f"load in {report.load_seconds:.1f} s")
    for mode, state in report.writers.items():
        chosen = "  [bold](auto takes it)[/]" if mode == report.auto and not report.problem else ""
        table.add_row(f"write {mode}", ("[green]works[/]" if state == "works" else state) + chosen)
    if report.inject:
        table.add_row("inject", "[green]works[/]" if report.inject == "works" else report.inject)
    if report.tracepoint_ns is not None:
        table.add_row("cost", f"{report.tracepoint_ns:.0f} ns a read or write of any process on this host")
    if report.uprobe_ns is not None:
        table.add_row("", f"{report.uprobe_ns:.0f} ns a probe in an optimised service")
    if report.uprobe_stepped_ns is not None:
        table.add_row(
            "",
            f"{report.uprobe_stepped_ns:.0f} ns where its first instruction is single-stepped (debug builds)",
        )
    console.print(table)
    if report.problem:
        console.print(f"[red]services cannot be traced here:[/] {report.problem}")
        if report.remedy:
            console.print(f"  {report.remedy}")
    else:
        console.print("[green]services can be traced here[/]")
