"""Life of a target, from found to let go; the only module that knows probes, writers and exporters."""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from spanweld import injection
from spanweld.bpf import events
from spanweld.bpf.clock import Clock
from spanweld.bpf.host import Host, look_at_host
from spanweld.bpf.keeper import LinkKeeper
from spanweld.bpf.libbpf import BpfMap, BpfObject, Libbpf, Link, detach_all
from spanweld.bpf.pins import PinFolder, remove_stale
from spanweld.bpf.ring import RingReader
from spanweld.bpf.targets import TargetPlaces
from spanweld.errors import HostError, SpanweldError, TargetError, UsageError
from spanweld.exporters import Exporter, make_exporters
from spanweld.image import Image, SpanArguments, find_entry, find_increment
from spanweld.join import CarriedContexts, RootLinks
from spanweld.layouts import SdkLayout
from spanweld.layouts.learned import LearnedLayout, Learner, Sample
from spanweld.model import Origin, Pid, Resource, Span, SpanKind
from spanweld.plan import AttachPoint, Plan
from spanweld.probes import REGISTRY, tokio_tasks
from spanweld.probes.declaration import (
    AdoptionChanged,
    ConnectionOpaque,
    Decoder,
    Instrumentation,
    ManualRoot,
    OldConnection,
    Place,
    Probe,
    RequestCarried,
    Seen,
    SocketLetGo,
    SpanSample,
    WakesWanted,
)
from spanweld.probes.http_client import own_exports
from spanweld.process.find import is_running
from spanweld.process.listening import listening_ports
from spanweld.process.priority import LOOKS_EACH, SparePriority, StarvationWatch
from spanweld.resource import make_resource, read_host, read_process
from spanweld.settings import AdoptMode, InjectMode, Priority, ProbesMode, Propagator, Settings, WriteMode
from spanweld.writers import Choice, Writer, choose, choose_instead
from spanweld.writers import kernel as kernel_writer
from spanweld.writers.inline import writer as inline_writer
from spanweld.writers.stop import writer as stop_writer

BPF_OBJECT = Path(__file__).parent / "bpf/objects/spanweld.bpf.o"
DRAIN_INTERVAL = 0.1
PASS_LIMIT = 5000
"""Events in a pass, between which nothing else is looked at: a quarter of a second's work."""
CLOSE_TIMEOUT = 3.0
SETTLING = 60.0
"""Seconds for which a service that makes no spans by itself is waited for with all speed."""
WAKES_UNASKED = 60.0
"""Seconds for which wakes are followed in a service that may send requests, and has sent none yet."""

_WRITE_NUMBERS = {
    WriteMode.OFF: events.WriteMode.OFF,
    WriteMode.KERNEL: events.WriteMode.KERNEL,
    WriteMode.STOP: events.WriteMode.STOP,
    WriteMode.INLINE: events.WriteMode.INLINE,
}

_PROPAGATOR_NUMBERS = {
    Propagator.TRACECONTEXT: events.Propagator.TRACECONTEXT,
    Propagator.BAGGAGE: events.Propagator.BAGGAGE,
    Propagator.B3: events.Propagator.B3,
    Propagator.B3_MULTI: events.Propagator.B3,
    Propagator.JAEGER: events.Propagator.JAEGER,
}

# What the counters say when the agent ends; those not here are no reason for a message.
_COUNTER_TEXTS = {
    events.Counter.EVENT_LOST: "events were lost: the ring buffer was full",
    events.Counter.READ_FAULT: "reads of the service's memory failed",
    events.Counter.TASKS_FULL: "requests had no room in spans_in_progress",
    events.Counter.EDGES_FULL: "tasks may not be joined to their request: too many were spawned in open ones",
    events.Counter.STACK_FULL: "spans were nested too deep to be followed",
    events.Counter.SLOT_BUSY: "spans were not followed: their task's entry was being changed",
    events.Counter.CONNECTIONS_FULL: "connections were not followed: there were too many",
    events.Counter.CONNECTION_BUSY: "connections were used by two threads at once",
    events.Counter.QUEUE_FULL: "connections had too many pipelined requests",
    events.Counter.FRAMING_ERROR: "connections were not well-formed HTTP/1.1",
    events.Counter.HEAD_TOO_LONG: "connections had a head of more than 16 KiB",
    events.Counter.SCAN_LIMIT: "connections had too many lines in one system call",
    events.Counter.RESPONSE_WITHOUT_REQUEST: "connections had a response without a request",
    events.Counter.TLS: "connections spoke TLS",
    events.Counter.HTTP2: "connections spoke HTTP/2",
    events.Counter.REQUESTS_BARE: "requests out got no headers: on an older or blocking connection, or cut",
    events.Counter.INJECT_REFUSED: "connections out could not be given headers: the kernel refused them",
    events.Counter.CARRIED_FULL: "requests' tracestate and baggage were left behind: there were too many",
    events.Counter.ROOTS_UNSAMPLED: "manual roots were left alone: their request is not sampled",
    events.Counter.ROOTS_SIGNAL_BLOCKED: "manual roots were left alone: their thread blocks SIGURG",
    events.Counter.ROOTS_NO_TRACER: "manual roots were left alone: their thread was not traced",
    events.Counter.ROOTS_UNWRITTEN: "manual roots were left alone: their trace id could not be written",
    events.Counter.PARENTS_UNWRITTEN: "adopted roots kept no parent: it could not be written",
    events.Counter.CAUSE_UNKNOWN: "requests out have no parent: more than one request may have caused them",
    events.Counter.ROOTS_DROPPED: "manual roots were not sampled by the service: their request is",
}

_LOST_WITHOUT = {
    tokio_tasks.INSTRUMENTATION.name: "what a request hands on to other tasks is not joined to it",
    tokio_tasks.WAKES.name: "requests out on connections that are used again have no parent",
}


@dataclass(slots=True)
class Target:
    """A process with everything attached."""

    pid: Pid
    plan: Plan
    resource: Resource
    writer: Writer
    pins: PinFolder
    image: Path
    spans: BpfMap
    carried_fd: int
    choice: Choice
    span_kinds: Mapping[int, int]
    why_not_inline: str = ""
    learner: Learner | None = None
    links: list[tuple[Probe, Link]] = field(default_factory=list)
    task_links: list[Link] = field(default_factory=list)
    wake_links: list[Link] = field(default_factory=list)
    follows_wakes: bool = False
    wakes_until: float = math.inf
    settles_by: float = -math.inf
    """Until then it is to be found out whether its layout is right, which some probes are there for alone."""
    pidfd: int = -1
    ended: bool = False


def load_programs(settings: Settings, host: Host) -> tuple[BpfObject, Choice]:
    """Loads every BPF program, with bpf_probe_write_user where it is wanted and allowed.

    What the kernel refuses for the sake of those that inject alone is left out, and says so (``left_out``).
    HostError if the programs are refused, or the write mode that is wanted cannot be had.
    """
    if not BPF_OBJECT.exists():
        raise HostError(f"the BPF programs are missing at {BPF_OBJECT}", "build them with `make build`")
    refused = kernel_writer.why_not(host)
    library = Libbpf()
    loaded: BpfObject | None = None
    may_write = settings.write in (WriteMode.AUTO, WriteMode.KERNEL)
    if may_write and settings.probes is not ProbesMode.INLINE and not refused:
        try:
            loaded = _load_object(library, settings, host, kernel_writes=True)
        except HostError as error:
            refused = f"the kernel refused bpf_probe_write_user ({error.message})"
    choice = choose(
        settings.write,
        settings.probes,
        kernel_refused=refused,
        inline_refused=inline_writer.why_not(),
        stop_refused=stop_writer.why_not(),
    )
    return loaded or _load_object(library, settings, host, kernel_writes=False), choice


def _load_object(library: Libbpf, settings: Settings, host: Host, *, kernel_writes: bool) -> BpfObject:
    if settings.inject is InjectMode.OFF:
        return _load_without(library, settings, host, kernel_writes, "it is off")
    try:
        return _load_without(library, settings, host, kernel_writes, "")
    except HostError as error:
        refusal = error
    try:
        return _load_without(
            library, settings, host, kernel_writes, f"the kernel refused the programs ({refusal.message})"
        )
    except HostError:
        raise refusal from None


def _load_without(
    library: Libbpf, settings: Settings, host: Host, kernel_writes: bool, no_injection: str
) -> BpfObject:
    bpf = BpfObject(library, BPF_OBJECT, many_uprobes_at_once=host.many_uprobes_at_once)
    try:
        if no_injection:
            bpf.leave_out(injection.PROGRAMS, injection.MAPS, no_injection)
        bpf.set_constant("kernel_writes", bytes([kernel_writes]))
        bpf.set_constant("excluded_paths", encode_excluded(settings.exclude_paths))
        bpf.set_constant("propagation", encode_propagation(settings))
        bpf.expect_inner_maps("spans_in_progress")
        bpf.expect_inner_maps("carried")
        bpf.load()
    except BaseException:
        bpf.close()
        raise
    return bpf


class Agent:
    """Traces any number of targets until they end or it is told to stop.

    ``open``, then ``add`` for each target, then ``run``, and ``close`` in any case. All by one thread.
    """

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._say = say
        self._said: set[str] = set()
        self._targets: dict[int, Target] = {}
        self._selector = selectors.DefaultSelector()
        self._clock = Clock()
        self._links: list[Link] = []
        self._exporters: list[Exporter] = []
        self._root_links = RootLinks()
        self._carried = CarriedContexts(settings.baggage_attributes)
        self._object: BpfObject | None = None
        self._target_places: TargetPlaces | None = None
        self._ring: RingReader | None = None
        self._keeper: LinkKeeper | None = None
        self._injection: injection.Injection | None = None
        self._guards_stops = False
        self._inline_counts: Counter[events.Counter] = Counter()
        self._host_facts = read_host()
        self._decoders: dict[int, Decoder] = {
            int(kind): decoder
            for instrumentation in REGISTRY
            for kind, decoder in instrumentation.decoders.items()
        }

    def open(self) -> Choice:
        """Loads the programs and attaches what needs no target; returns how will be written.

        Raises HostError if this host cannot do it, UsageError for exports that cannot be opened.
        """
        host = look_at_host(mount=True)
        host.require()
        self._exporters = make_exporters(self._settings, sys.stdout, self._say)
        remove_stale()
        gives_way = self._settings.priority is Priority.IDLE
        self._keeper = LinkKeeper(StarvationWatch(os.getpid()).look if gives_way else None, LOOKS_EACH)
        self._object, choice = load_programs(self._settings, host)
        self._object.keeper = self._keeper
        self._target_places = TargetPlaces(self._object)
        self._attach_tracepoints(for_stop_writer=False)
        ring = self._bpf.map("events")
        self._ring = RingReader(ring.fd, ring.max_entries)
        self._selector.register(ring.fd, selectors.EVENT_READ)
        self._start_injection()
        return choice

    def _start_injection(self) -> None:
        """Where the user left it to us, a kernel that is not fit for it is no error."""
        mode = self._settings.inject
        if mode is InjectMode.OFF or Propagator.TRACECONTEXT not in self._settings.propagators:
            return
        why_not = ""
        try:
            self._injection = injection.Injection(self._bpf, self._places)
            if mode is InjectMode.AUTO:
                why_not = self._injection.why_not()
        except HostError as error:
            why_not = error.message
        if not why_not:
            return
        if self._injection:
            self._injection.close()
            self._injection = None
        text = f"requests out get no headers: {why_not}"
        if mode is InjectMode.ON:
            raise HostError(text, "use --inject off")
        self._say(text)

    def _attach_tracepoints(self, *, for_stop_writer: bool) -> None:
        for instrumentation in REGISTRY:
            for probe in instrumentation.probes:
                if probe.place is not Place.TRACEPOINT or probe.for_stop_writer is not for_stop_writer:
                    continue
                self._links.extend(probe.attach_tracepoint(self._bpf))

    @property
    def _bpf(self) -> BpfObject:
        assert self._object is not None, "open() comes first"
        return self._object

    @property
    def _places(self) -> TargetPlaces:
        assert self._target_places is not None, "open() comes first"
        return self._target_places

    def add(self, pid: Pid, plan: Plan, image: Path, choice: Choice, *, starting: bool = False) -> Target:
        """Attaches everything to a process. ``starting``: it is a child that waits to be executed.

        Raises TargetError if that is not possible; then nothing is left behind.
        """
        process = read_process(pid, plan.facts.rustc)
        if starting:
            environ = {k: v for k, v in os.environ.items() if k.startswith("OTEL_")}
            process = replace(process, executable=plan.facts.path, environ=environ)
        pins = PinFolder(pid)
        pins.create()
        spans = self._bpf.create_inner_map("spans_in_progress")
        carried = self._bpf.create_inner_map("carried")
        layout = plan.adopted_layout
        target = Target(
            pid=pid,
            plan=plan,
            resource=make_resource(self._settings, process, self._host_facts),
            writer=kernel_writer.PassiveWriter(WriteMode.OFF),
            pins=pins,
            image=image,
            spans=spans,
            carried_fd=carried.fd,
            choice=choice,
            span_kinds={raw: int(kind) for raw, kind in layout.span_kinds.items()} if layout else {},
            learner=Learner() if plan.learns else None,
        )
        self._targets[pid] = target
        try:
            self._bpf.pin(spans, pins.path / "spans_in_progress")
            self._places.reserve(pid, spans)
            self._bpf.pin(carried, pins.path / "carried")
            self._bpf.map("carried").set(_u32(pid), _u32(carried.fd))
            self._start_writer(target, starting=starting)
            self._put_target(target, layout)
            for port, paths in own_exports(process.environ).items():
                key = events.OWN_EXPORT_KEY.pack(pid, port)
                self._bpf.map("own_exports").set(key, encode_own_exports(paths))
            if not starting:
                listening = self._bpf.map("listening")
                for port in listening_ports(pid):
                    listening.set(events.LISTENING_KEY.pack(pid, port), b"\1")
            self._follow(target, tokio_tasks.INSTRUMENTATION, target.task_links)
            if plan.has_http_client:
                # Whether it needs them is not known, but the first request out would be too late.
                self._follow_wakes(target)
                target.wakes_until = time.monotonic() + WAKES_UNASKED
            self._attach_probes(target, starting=starting)
            target.pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self.remove(target)
            raise TargetError(f"process {pid} has ended") from None
        except BaseException:
            self.remove(target)
            raise
        self._selector.register(target.pidfd, selectors.EVENT_READ, target)
        descriptor = target.writer.fileno()
        if descriptor is not None:
            self._selector.register(descriptor, selectors.EVENT_READ, target)
        return target

    def _follow(self, target: Target, group: Instrumentation, links: list[Link]) -> None:
        """Attaches a group of what follows the tasks of a target, or says what is lost without it."""
        why_not = target.plan.why_not(group)
        if why_not and target.plan.facts.task_id is not None:
            self._say(f"pid {target.pid}: {_LOST_WITHOUT[group.name]}: {why_not}")
        self._attach_group(target, group, links)

    def _attach_group(self, target: Target, group: Instrumentation, links: list[Link]) -> None:
        """What runs inside the target is attached with its writer."""
        writer = target.writer if isinstance(target.writer, inline_writer.InlineWriter) else None
        points = [
            point
            for point in target.plan.points_of(group)
            if writer is None or not writer.runs_at(point.address)
        ]
        for _, link in self._attach(target, points):
            links.append(link)

    def _follow_from_outside(self, target: Target) -> None:
        """Uprobes in place of what followed tasks inside the target."""
        detach_all(target.task_links)
        self._attach_group(target, tokio_tasks.INSTRUMENTATION, target.task_links)
        if target.follows_wakes:
            until = target.wakes_until
            self._leave_wakes(target)
            self._follow_wakes(target)
            target.wakes_until = until

    def _attach(self, target: Target, points: Sequence[AttachPoint]) -> Iterator[tuple[Probe, Link]]:
        """Attaches programs one after the other, each to all of its points."""
        for probe, group in groupby(points, key=lambda point: point.probe):
            places = [(point.offset, point.cookie) for point in group]
            for link in self._bpf.attach_uprobes(probe.program, target.pid, target.image, places):
                yield probe, link

    def _follow_wakes(self, target: Target) -> None:
        if target.follows_wakes:
            return
        try:
            self._follow(target, tokio_tasks.WAKES, target.wake_links)
        except HostError as error:
            detach_all(target.wake_links)
            if is_running(target.pid):
                self._say(f"pid {target.pid}: {_LOST_WITHOUT[tokio_tasks.WAKES.name]}: {error.message}")
            return
        if target.plan.points_of(tokio_tasks.WAKES):
            # Only now: of what was missed before, nothing is concluded.
            _forget_wakes(target.spans)
            _say_wakes_are_followed(target.spans, since=_WAKES_NONE_YET)
            target.follows_wakes = True

    def _leave_wakes(self, target: Target) -> None:
        target.wakes_until = math.inf
        target.follows_wakes = False
        _say_wakes_are_followed(target.spans, since=0)
        detach_all(target.wake_links)

    def started(self, target: Target) -> None:
        """Finishes what ``add`` of a starting process left for when it has executed its program."""
        if isinstance(target.writer, inline_writer.InlineWriter):
            self._attach_inline(target, target.writer)

    def _attach_probes(self, target: Target, *, starting: bool) -> None:
        writer = target.writer
        inline = isinstance(writer, inline_writer.InlineWriter)
        # What sees a span begin comes last, and goes first: none begins that is not seen to be built.
        points = [
            point
            for point in reversed(target.plan.points)
            # Code inside the target needs to be told of span ids alone.
            if not inline
            or not (
                inline_writer.serves(point.probe.program)
                or point.probe.program == "otel_new_trace_id_returns"
            )
        ]
        for attached in self._attach(target, points):
            target.links.insert(0, attached)
        if any(probe.until_verified for probe, _ in target.links):
            target.settles_by = time.monotonic() + SETTLING
        if isinstance(writer, inline_writer.InlineWriter) and not starting:
            self._attach_inline(target, writer)

    def _attach_inline(self, target: Target, writer: inline_writer.InlineWriter) -> None:
        """Puts the probes into the process or, where the writer was left to us, uprobes in their place."""
        try:
            writer.attach(self._encode_target(target, target.plan.adopted_layout))
        except TargetError as error:
            self._give_up_inline(target, error)
            self._detach(target, lambda _: True)
            self._use(target, choose_instead(WriteMode.INLINE, target.choice), starting=False)
            self._put_target(target, target.plan.adopted_layout)
            self._follow_from_outside(target)
            self._attach_probes(target, starting=False)

    def _give_up_inline(self, target: Target, error: TargetError) -> None:
        target.writer.stop()
        if self._wants_inline or not is_running(target.pid):
            raise error
        target.why_not_inline = error.message

    @property
    def _wants_inline(self) -> bool:
        return self._settings.write is WriteMode.INLINE

    def _mode_for(self, plan: Plan, choice: Choice) -> WriteMode:
        """How this target is written to: only ``stop`` reaches ids before spans that are built late."""
        if plan.why_no_adoption:
            return WriteMode.OFF
        may_choose = self._settings.write is WriteMode.AUTO and WriteMode.STOP not in choice.refused
        if plan.seen_late and choice.mode is WriteMode.KERNEL and may_choose:
            return WriteMode.STOP
        return choice.mode

    def _start_writer(self, target: Target, *, starting: bool) -> None:
        """Starts the writer for the target; where the user left the mode to us, the first that works."""
        mode = self._mode_for(target.plan, target.choice)
        if mode is WriteMode.INLINE:
            try:
                probes = _inline_probes(target.plan, target.image)
                writer = inline_writer.InlineWriter(
                    target.pid,
                    probes,
                    target.spans.fd,
                    target.spans.max_entries * target.spans.value_size,
                    expect_exec=starting,
                )
                target.writer = writer
                writer.start()
                return
            except TargetError as error:
                self._give_up_inline(target, error)
            mode = choose_instead(mode, target.choice)
        self._use(target, mode, starting=starting)

    def _use(self, target: Target, mode: WriteMode, *, starting: bool) -> None:
        """Starts a writer of uprobes; one process that cannot be written to is no error where we chose."""
        if mode is not WriteMode.STOP:
            target.writer = kernel_writer.PassiveWriter(mode)
            return
        if not self._guards_stops:
            self._guards_stops = True
            self._attach_tracepoints(for_stop_writer=True)
        requests = self._bpf.map("stop_requests")
        target.writer = stop_writer.StopWriter(target.pid, requests.fd, expect_exec=starting)
        try:
            target.writer.start()
        except TargetError as error:
            if self._settings.write is not WriteMode.AUTO or not is_running(target.pid):
                raise
            self._say(f"{error.message}: automatic spans go on, manual ones are linked, not adopted")
            target.writer = kernel_writer.PassiveWriter(WriteMode.OFF)

    def _put_target(self, target: Target, layout: SdkLayout | LearnedLayout | None) -> None:
        self._places.put(target.pid, self._encode_target(target, layout))

    def _encode_target(self, target: Target, layout: SdkLayout | LearnedLayout | None) -> bytes:
        settings = self._settings
        task_id, arguments = target.plan.facts.task_id, target.plan.arguments
        shows_spans = isinstance(layout, SdkLayout) and layout.shows_spans
        values = dict.fromkeys(events.Target._fields, 0)
        values.update(
            tokio_task_id=task_id.offset_from_fs & (1 << 64) - 1 if task_id else 0,
            tokio_task_tag=(task_id.tag_offset_from_fs or 0) & (1 << 64) - 1 if task_id else 0,
            sample_below=int(settings.sampler.ratio * (1 << 63)),
            adoption=events.Adoption.UNVERIFIED
            if layout
            else events.Adoption.LEARNING
            if target.learner
            else events.Adoption.NONE,
            adopt_mode=events.AdoptMode.SERVER
            if settings.adopt is AdoptMode.SERVER
            else events.AdoptMode.ACTIVE,
            write_mode=_WRITE_NUMBERS[target.writer.mode],
            tracer=target.writer.tracer or 0,
            parent_based=int(settings.sampler.parent_based),
            inject=int(self._injection is not None),
            wants_manual_spans=int("console" in settings.exports and shows_spans),
            builds_late=int(target.plan.seen_late),
            context_argument=arguments.context if arguments else 0,
            parent_argument=arguments.parent if arguments else 0,
            parent_is_id=int(arguments.parent_is_id) if arguments else 0,
            parent_proven=int(layout is not None and _parent_is_certain(layout, arguments)),
        )
        if layout:
            for name in values:
                if name.startswith("layout_") and not name.startswith("layout_pad"):
                    # One that was learned, or read from code, may have no more than what adoption needs.
                    value = getattr(layout, name.removeprefix("layout_"), None)
                    values[name] = _LAYOUT_ABSENT.get(name, 0xFFFF) if value is None else value
            if not shows_spans:
                values["layout_span_status_size"] = 0
        return events.TARGET.pack(*values.values())

    def remove(self, target: Target) -> None:
        """Lets a target go; it runs on as it was."""
        self._detach(target, lambda _: True)
        self._leave_wakes(target)
        detach_all(target.task_links)
        self._forget(target.writer.fileno())
        self._say_report(target, target.writer.stop())
        self._places.hide(target.pid)
        if self._injection:
            self._injection.let_go(target.pid)
        # What was under way is not followed any more; what had ended before must not be lost.
        self._drain()
        self._places.free(target.pid)
        self._bpf.map("carried").delete(_u32(target.pid))
        _delete_of_pid(self._bpf.map("connections"), target.pid, events.CONNECTION_KEY.unpack, 2)
        _delete_of_pid(self._bpf.map("listening"), target.pid, events.LISTENING_KEY.unpack, 0)
        _delete_of_pid(self._bpf.map("own_exports"), target.pid, events.OWN_EXPORT_KEY.unpack, 0)
        if isinstance(target.writer, inline_writer.InlineWriter):
            self._inline_counts.update(target.writer.counters())
            target.writer.close()
        for descriptor in (target.spans.fd, target.carried_fd):
            os.close(descriptor)
        target.pins.remove()
        if target.pidfd >= 0:
            self._forget(target.pidfd)
            os.close(target.pidfd)
            target.pidfd = -1
        self._targets.pop(target.pid, None)

    def _say_report(self, target: Target, report: str) -> None:
        if report:
            self._say(f"pid {target.pid}: {report}")

    def _forget(self, descriptor: int | None) -> None:
        if descriptor is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(descriptor)

    def run(self, stop: Callable[[], bool], wake: Iterable[int] = ()) -> None:
        """Traces until ``stop`` says so or no target is left.

        ``stop`` is asked after each pass, and a pass begins at once when one of ``wake`` is readable.
        """
        for descriptor in wake:
            self._selector.register(descriptor, selectors.EVENT_READ)
        with SparePriority(wanted=self._settings.priority is Priority.IDLE) as priority:
            self._follow_targets(stop, priority)

    def _follow_targets(self, stop: Callable[[], bool], priority: SparePriority) -> None:
        due = time.monotonic()
        while self._targets:
            ready = self._selector.select(max(0.0, due - time.monotonic()))
            for key, _ in ready:
                target = key.data
                if not isinstance(target, Target):
                    continue
                if key.fd == target.pidfd:
                    target.ended = True
                else:
                    self._poll_writer(target)
            if stop():
                return
            now = time.monotonic()
            if now >= due or ready:
                self._drain(PASS_LIMIT)
                due = now + DRAIN_INTERVAL
                for exporter in self._exporters:
                    exporter.poll(now)
            for target in self._targets.values():
                if now >= target.wakes_until:
                    self._leave_wakes(target)
            for target in [target for target in self._targets.values() if target.ended]:
                self.remove(target)
            priority.pass_ends(in_a_hurry=any(now < target.settles_by for target in self._targets.values()))

    def _poll_writer(self, target: Target) -> None:
        for text in target.writer.poll():
            if text:
                self._say(f"pid {target.pid}: {text}")
                continue
            # No adoption any more: the probes would only cost.
            self._forget(target.writer.fileno())
            self._detach(target, lambda _: True)

    def _detach(self, target: Target, which: Callable[[Probe], bool]) -> None:
        """Program by program, in their order."""
        for _, group in groupby(target.links, key=lambda item: item[0].program):
            detach_all([link for probe, link in group if which(probe)])
        target.links = [(probe, link) for probe, link in target.links if not which(probe)]

    def _drain(self, limit: int | None = None) -> None:
        if self._ring is None:
            return
        self._clock.refresh()
        spans: dict[int, list[Span]] = defaultdict(list)
        for record in self._records(limit):
            head = events.EventHead._make(events.EVENT_HEAD.unpack_from(record))
            target = self._targets.get(head.pid)
            if target is None:
                continue
            decoded = self._decoders[head.kind](record, self._clock, target.span_kinds)
            if isinstance(decoded, Span):
                if decoded.origin is Origin.AUTOMATIC and decoded.kind is SpanKind.SERVER:
                    decoded = self._root_links.link(decoded)
                decoded = self._carried.apply(decoded)
                spans[head.pid].append(decoded)
            elif isinstance(decoded, RequestCarried):
                self._carried.add(decoded.server_span_id, decoded.trace_state, decoded.baggage)
            elif isinstance(decoded, ManualRoot):
                self._root_links.add(decoded.server_span_id, decoded.context)
            elif isinstance(decoded, ConnectionOpaque):
                self._say_opaque(decoded)
            elif isinstance(decoded, AdoptionChanged):
                self._adoption_changed(target, decoded)
            elif isinstance(decoded, WakesWanted):
                target.wakes_until = math.inf
                self._follow_wakes(target)
            elif isinstance(decoded, SpanSample):
                self._learn(target, decoded)
            elif isinstance(decoded, SocketLetGo):
                if self._injection:
                    self._injection.let_socket_go(target.pid, decoded.cookie)
            elif isinstance(decoded, OldConnection):
                self._say(
                    f"pid {target.pid}: requests on connections that it opened before spanweld came "
                    "carry no headers"
                )
        for pid, batch in spans.items():
            for exporter in self._exporters:
                exporter.export(self._targets[pid].resource, batch)

    def _records(self, limit: int | None) -> Iterator[bytes]:
        """Events of the BPF programs, then of the code in each target; of each no more than ``limit``."""
        if self._ring is not None:
            yield from self._ring.drain(limit)
        for target in list(self._targets.values()):
            if isinstance(target.writer, inline_writer.InlineWriter):
                yield from target.writer.events(limit)

    def _say_opaque(self, connection: ConnectionOpaque) -> None:
        text = f"a connection with {connection.peer} {connection.reason}: it is not traced"
        if text not in self._said and len(self._said) < 1000:
            self._said.add(text)
            self._say(text)

    def _adoption_changed(self, target: Target, change: AdoptionChanged) -> None:
        target.settles_by = -math.inf
        if change.mismatch:
            self._say(
                f"pid {target.pid}: {change.mismatch}: manual spans are left alone; automatic spans go on"
            )
            self._detach(target, lambda _: True)
            if isinstance(target.writer, inline_writer.InlineWriter):
                self._say_report(target, target.writer.stop())
                self._follow_from_outside(target)
        elif not target.plan.seen_late:
            self._detach(target, lambda probe: probe.until_verified)

    def _learn(self, target: Target, span: SpanSample) -> None:
        if target.learner is None:
            return
        found = target.learner.add(
            Sample(span.root, span.trace_id, span.span_id, span.unix_ns // 1_000_000_000, span.memory)
        )
        if found is None:
            return
        samples, target.learner = span.number + 1, None
        if isinstance(found, str):
            self._put_target(target, None)
            self._adoption_changed(target, AdoptionChanged(f"the layout could not be learned: {found}"))
            return
        # A program sees either that it is being learned, or the layout. It is verified as any.
        self._put_target(target, found)
        done = "linked" if target.writer.mode is WriteMode.OFF else "adopted"
        shown = "" if "console" not in self._settings.exports else "; they are not shown in trees"
        self._say(
            f"pid {target.pid}: the layout was learned from {samples} spans ({found}): "
            f"manual spans are {done}{shown}"
        )

    def counters(self) -> dict[events.Counter, int]:
        """The kernel's counters, summed over CPUs: one cell alone may be below zero; and the targets' own."""
        counters = self._bpf.map("counters")
        result = Counter(self._inline_counts)
        for target in self._targets.values():
            if isinstance(target.writer, inline_writer.InlineWriter):
                result.update(target.writer.counters())
        for counter in events.Counter:
            if counter is not events.Counter.MAX:
                result[counter] += counters.sum(_u32(counter))
        return result

    def close(self) -> None:
        """Lets every target go, flushes the exporters and says what was lost; within seconds."""
        for target in list(self._targets.values()):
            self.remove(target)
        if self._injection is not None:
            self._injection.close()
            self._injection = None
        detach_all(self._links)
        self._drain()
        deadline = time.monotonic() + CLOSE_TIMEOUT
        for exporter in self._exporters:
            exporter.close(max(0.1, deadline - time.monotonic()))
        for exporter in self._exporters:
            counts = exporter.counts()
            if counts.dropped:
                because = f" ({counts.last_error})" if counts.last_error else ""
                self._say(f"{counts.dropped} spans could not be exported{because}")
        if self._root_links.lost:
            self._say(f"{self._root_links.lost} manual roots got no link: their server spans did not end")
        if self._object is not None:
            for counter, number in self.counters().items():
                if number and counter in _COUNTER_TEXTS:
                    self._say(f"{number} {_COUNTER_TEXTS[counter]}")
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        if self._object is not None:
            self._object.close()
            self._object = None
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None
        self._selector.close()


def _inline_probes(plan: Plan, image: Path) -> list[inline_writer.InlineProbe]:
    """What is patched in the image; TargetError, with the reason, where not all of it can be."""
    if plan.seen is not Seen.BUILT or plan.learns:
        raise TargetError("spans are seen at returns, where no jump has room", _UPROBE_INSTEAD)
    if plan.seen_late:
        raise TargetError("spans get their ids at returns, where no jump has room", _UPROBE_INSTEAD)
    # A uprobe is put once for each call that is meant; a jump, once.
    entered = {
        (point.probe.program, point.function.address): point.function
        for point in plan.points
        if inline_writer.serves(point.probe.program)
    }
    probes = []
    with Image.open(image) as file:
        for (program, _), function in entered.items():
            entry = find_entry(file, function)
            if isinstance(entry, str):
                raise TargetError(entry, _UPROBE_INSTEAD)
            probes.append(inline_writer.InlineProbe(program, entry, callers=function.called_from))
        # These may as well be uprobes, each by itself.
        for point in plan.points_of(tokio_tasks.INSTRUMENTATION)[: inline_writer.PLACES_WITHIN]:
            taken = find_increment(file, point.function, point.taken) if point.taken is not None else ""
            if not isinstance(taken, str):
                probes.append(inline_writer.InlineProbe(point.probe.program, taken, point.cookie))
        for point in plan.points_of(tokio_tasks.WAKES)[: inline_writer.PLACES_AT_ENTRIES]:
            entry = find_entry(file, point.function)
            if not isinstance(entry, str):
                probes.append(inline_writer.InlineProbe(point.probe.program, entry))
    return probes


_UPROBE_INSTEAD = "use --probes uprobe"

# What says in struct sdk_layout that a field of SdkLayout is None, where it is not LAYOUT_ABSENT.
_LAYOUT_ABSENT = {
    "layout_span_data_size": 0,
    "layout_span_data_none": 0,
    "layout_span_status_size": 0,
    "layout_status_unset": 0,
    "layout_status_ok": 0,
    "layout_end_argument_none_nanos": 0,
    "layout_end_argument_tag_none": 0,
    "layout_span_name_borrowed": 0,
}


def encode_excluded(paths: Iterable[str]) -> bytes:
    """--exclude-path as the programs take it: ``excluded_paths`` of http_server.bpf.c.

    A path is meant exactly (with any query), or, ending in ``*``, as a prefix.
    """
    patterns: list[bytes] = []
    for path in paths:
        text = path.removesuffix("*").encode()
        if not path.startswith("/") or b"*" in text:
            raise UsageError(
                f"--exclude-path {path!r} is not a path", "write /healthz, or /internal/* for a prefix"
            )
        if len(text) > _EXCLUDED_LENGTH - 1:
            raise UsageError(f"--exclude-path {path!r} is longer than {_EXCLUDED_LENGTH - 1} bytes")
        patterns += [text] if path.endswith("*") else _exact(text)
    if len(patterns) > _EXCLUDED_MAX:
        raise UsageError("--exclude-path: too many paths", "use prefixes that end in *")
    return _encode_patterns(patterns, _EXCLUDED_MAX)


def encode_own_exports(paths: Iterable[str]) -> bytes:
    """The target's own export as the programs take it: ``own_exports`` of http_client.bpf.h.

    Of a path that is too long its beginning counts.
    """
    patterns: list[bytes] = []
    for path in dict.fromkeys(paths):
        text = path.encode()
        patterns += [text[:_EXCLUDED_LENGTH]] if len(text) >= _EXCLUDED_LENGTH else _exact(text)
    return _encode_patterns(patterns[:_OWN_EXPORTS_MAX], _OWN_EXPORTS_MAX)


def _exact(path: bytes) -> list[bytes]:
    """A path with what ends it in a request target: its end, or the query."""
    return [path + b"\0", path + b"?"]


def _encode_patterns(patterns: list[bytes], room: int) -> bytes:
    """struct excluded_path, ``room`` times."""
    return b"".join(
        pattern.ljust(_EXCLUDED_LENGTH, b"\0") + (b"\xff" * len(pattern)).ljust(_EXCLUDED_LENGTH, b"\0")
        for pattern in patterns
    ).ljust(room * 2 * _EXCLUDED_LENGTH, b"\0")


def encode_propagation(settings: Settings) -> bytes:
    """OTEL_PROPAGATORS as the programs take it: ``propagation`` of propagation.bpf.h."""
    places = [0] * events.Propagator.MAX
    for place, propagator in enumerate(settings.propagators, start=1):
        places[_PROPAGATOR_NUMBERS[propagator]] = place
    return bytes([*places, bool(settings.baggage_attributes)])


def _parent_is_certain(layout: SdkLayout | LearnedLayout, arguments: SpanArguments | None) -> bool:
    """Whether a root's parent may be written before a child has shown where parents are kept."""
    if isinstance(layout, LearnedLayout):
        return True  # children have
    said_by_code = arguments is not None and arguments.parent_offset == layout.span_parent_id
    return said_by_code or layout.confidence.startswith("certain")


_WAKES_NONE_YET = (1 << 64) - 1
_EXCLUDED_MAX = 16
_EXCLUDED_LENGTH = 64
_OWN_EXPORTS_MAX = 16


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def _say_wakes_are_followed(spans: BpfMap, *, since: int) -> None:
    """struct wakes_followed of a target: tokio_tasks puts in the first task that is spawned from then on."""
    spans.set(_u32(events.SharedPlace.WAKES), since.to_bytes(8, "little").ljust(spans.value_size, b"\0"))


def _forget_wakes(spans: BpfMap) -> None:
    """Of wakes that were followed before, and not since."""
    for element in range(events.SharedPlace.WAKE_BUCKETS, events.SharedPlace.ELEMENTS):
        spans.set(_u32(element), bytes(spans.value_size))


def _delete_of_pid(bpf_map: BpfMap, pid: Pid, unpack: Callable[[bytes], tuple[int, ...]], index: int) -> None:
    for key in [key for key in bpf_map.keys() if unpack(key)[index] == pid]:  # noqa: SIM118
        bpf_map.delete(key)


__all__ = ["Agent", "SpanweldError", "Target"]
