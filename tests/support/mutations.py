"""A service under an agent whose layout is wrong: what comes of it must be right, or as without the agent.

The agent's programs are loaded once, and the one service is attached to and let go for each wrong layout.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from spanweld import layouts
from spanweld.agent import Agent
from spanweld.bpf.events import Counter as BpfCounter
from spanweld.layouts import SdkLayout
from spanweld.model import Pid
from spanweld.plan import make_plan
from spanweld.settings import BatchSettings, Settings, WriteMode
from tests.support.services import PATIENCE

SHIFT = 8
_NO_OFFSETS = ("span_kinds", "span_data_none", "span_name_borrowed", "status_unset", "status_ok")
_SIZES = ("span_size", "context_size", "span_data_size", "span_status_size")
_PATIENCE = 60 * PATIENCE
_LEFT_ALONE = "manual spans are left alone"


def offsets(layout: SdkLayout) -> list[str]:
    """The fields that programs are given as places, of those that this layout has."""
    fields = [
        name
        for name in SdkLayout.__dataclass_fields__
        if name.startswith(("context_", "span_", "end_argument_"))
        and not name.startswith("span_end")
        and not name.endswith(("_none", "_none_nanos"))
        and name not in (*_NO_OFFSETS, *_SIZES)
    ]
    return [name for name in fields if getattr(layout, name) is not None]


def shifted(layout: SdkLayout, field: str) -> list[SdkLayout]:
    """The layout with one offset moved by 8 bytes, up and, where that can be, down."""
    offset = getattr(layout, field)
    return [_uncertain(replace(layout, **{field: offset + by})) for by in (SHIFT, -SHIFT) if offset + by >= 0]


def neighbours(layout: SdkLayout) -> list[SdkLayout]:
    """The other layouts that the database has, each once; of exported data if the given one is such."""
    seen = {_bare(layout): layout}
    exported = not layout.span_data_size
    for entry in layouts.database():
        other = layouts.make_layout(
            entry.values, sdk=entry.sdk, rustc=entry.rustc, target=entry.target, source="", confidence=""
        )
        alike = other.of_exported_data() if exported else other
        if alike:
            seen.setdefault(_bare(alike), _uncertain(alike))
    return list(seen.values())[1:]


def _bare(layout: SdkLayout) -> str:
    """What tells apart layouts of spans."""
    return f"{replace(layout, sdk=None, rustc=None, source='', confidence='', exported=None)}"


def _uncertain(layout: SdkLayout) -> SdkLayout:
    return replace(layout, confidence="low: it is wrong")


@dataclass(frozen=True, slots=True)
class Told:
    """What an agent said and counted, and its server spans: trace id and span id by path."""

    said: tuple[str, ...]
    mismatch: str
    counters: Mapping[BpfCounter, int]
    servers: Mapping[str, tuple[str, str]]


class MutantAgent:
    """The agent of one service, for the time of a ``with`` block.

    In a process of its own: it has to fork before it has threads, and a receiver of spans has threads.
    """

    def __init__(self, pid: int, image: Path, export: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, pid, image, export))
        self._theirs = theirs

    def __enter__(self) -> Self:
        self._process.start()
        self._theirs.close()
        try:
            self.layout: SdkLayout = self._answer()
        except BaseException:
            self._process.join(_PATIENCE)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ours.close()
        self._process.join(_PATIENCE)
        assert self._process.exitcode == 0 or error is not None

    def trace(self, layout: SdkLayout, work: Callable[[], Sequence[str]]) -> Told:
        """Attaches with a layout, does ``work``, and lets go of the service.

        ``work`` returns the paths of its requests, whose server spans are waited for.
        """
        self._ours.send(layout)
        self._answer()
        paths: Sequence[str] = ()
        try:
            paths = work()
        finally:
            self._ours.send(paths)
            told: Told = self._answer()
        return told

    def _answer(self) -> Any:
        assert self._ours.poll(_PATIENCE), "the agent does not answer"
        answer = self._ours.recv()
        assert not isinstance(answer, str), answer
        return answer


def _serve(asked: Connection, pid: int, image: Path, export: Path) -> None:
    """The agent's process: sends the right layout, then serves ``trace``; a text says what failed."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            _trace_on_demand(asked, Pid(pid), image, export)
        except EOFError:
            return
        except Exception:
            asked.send(traceback.format_exc())


def _trace_on_demand(asked: Connection, pid: Pid, image: Path, export: Path) -> None:
    plan = make_plan(image)
    assert plan.adopted_layout, plan.why_no_adoption
    settings = Settings(
        # The console has the programs read all of a span.
        exports=(f"json:{export}", "console"),
        write=WriteMode.STOP,
        batch=BatchSettings(schedule_delay=0.02),
    )
    said: list[str] = []
    agent = Agent(settings, said.append)
    try:
        choice = agent.open()
        asked.send(plan.adopted_layout)
        while True:
            layout = asked.recv()
            said.clear()
            before = agent.counters()
            position = export.stat().st_size
            target = agent.add(pid, replace(plan, layout=layout), image, choice)
            asked.send(None)
            agent.run(asked.poll)
            paths = asked.recv()
            servers: dict[str, tuple[str, str]] = {}
            deadline = time.monotonic() + _PATIENCE / 2

            def all_came(
                paths: Sequence[str] = paths,
                servers: dict[str, tuple[str, str]] = servers,
                position: int = position,
                deadline: float = deadline,
            ) -> bool:
                servers.update(_server_spans(export, position))
                return time.monotonic() > deadline or all(path in servers for path in paths)

            agent.run(all_came)
            agent.remove(target)
            counters = {key: number - before.get(key, 0) for key, number in agent.counters().items()}
            mismatch = next((text for text in said if _LEFT_ALONE in text), "")
            asked.send(Told(tuple(said), mismatch, counters, servers))
    finally:
        agent.close()


def _server_spans(path: Path, position: int) -> dict[str, tuple[str, str]]:
    result = {}
    with path.open() as lines:
        lines.seek(position)
        for line in lines:
            if not line.endswith("\n"):
                break
            for resource in json.loads(line)["resourceSpans"]:
                for scope in resource["scopeSpans"]:
                    for span in scope["spans"]:
                        for attribute in span["attributes"]:
                            if attribute["key"] == "url.path":
                                name = attribute["value"]["stringValue"]
                                result[name] = span["traceId"], span["spanId"]
    return result
