"""The patcher: jumps go into a running process and out again, and the process does not notice."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spanweld.bpf.events import TARGET
from spanweld.errors import TargetError
from spanweld.image import Entry, Image, find_entry
from spanweld.image.symbols import Function
from spanweld.model import FileOffset, Pid, VirtAddr
from spanweld.process.memory import image_ranges, memory_ranges
from spanweld.writers.inline.writer import InlineProbe, InlineWriter, clean_up
from tests.e2e import stop_harness
from tests.e2e.stop_harness import Built, function_offsets, running

pytestmark = [pytest.mark.root]

PATCHED = (
    "at_push",
    "at_push_r15",
    "at_sub",
    "at_big_sub",
    "at_mov",
    "at_endbr64",
    "at_load",
    "at_branch",
    "at_call",
    "at_jump",
)
REFUSED = ("at_short_jump", "at_ret")
PROGRAMS = ("otel_new_trace_id", "otel_build_recording_span", "otel_ensure_ended_and_exported")
SPANS_SIZE = 1 << 20


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return stop_harness.build(tmp_path_factory.mktemp("stop"))


def entry_of(image: Image, name: str) -> Entry | str:
    """The harness's functions have no size in the symbol table: up to the next one, or the end."""
    offsets = function_offsets(image.path)
    at = offsets[name]
    size = min((other - at for other in offsets.values() if other > at), default=16)
    load = next(segment for segment in image.loads if segment.executable)
    address = VirtAddr(at - load.offset + load.address)
    return find_entry(image, Function(name, address, size, FileOffset(at)))


def probes_of(built: Built) -> list[InlineProbe]:
    with Image.open(built.target) as image:
        entries = [entry_of(image, name) for name in PATCHED]
    return [
        InlineProbe(PROGRAMS[index % len(PROGRAMS)], entry)
        for index, entry in enumerate(entries)
        if isinstance(entry, Entry)
    ]


@contextmanager
def spans_memory() -> Iterator[int]:
    """In place of the BPF map: of a target that is no target, nothing in it is read."""
    fd = os.memfd_create("spans")
    os.ftruncate(fd, SPANS_SIZE)
    try:
        yield fd
    finally:
        os.close(fd)


def make_writer(built: Built, pid: Pid, spans: int) -> InlineWriter:
    return InlineWriter(pid, probes_of(built), spans, SPANS_SIZE, expect_exec=False)


def assert_untouched(pid: Pid, executable: Path) -> None:
    assert not [r for r in memory_ranges(pid) if "memfd" in r.path]
    code = executable.read_bytes()
    with Path(f"/proc/{pid}/mem").open("rb") as memory:
        for r in image_ranges(pid):
            if r.is_executable:
                memory.seek(r.start)
                size = min(r.end - r.start, len(code) - r.offset)
                assert memory.read(size) == code[r.offset : r.offset + size]


def test_what_can_be_displaced_and_what_cannot(built: Built) -> None:
    with Image.open(built.target) as image:
        for name in PATCHED:
            assert isinstance(entry_of(image, name), Entry), name
        for name in REFUSED:
            assert isinstance(entry_of(image, name), str), name
        behind = entry_of(image, "at_endbr64")
        assert isinstance(behind, Entry)
        assert behind.address == behind.function.address + 4


@pytest.mark.parametrize(
    "options",
    [
        ("--threads=1",),
        ("--interval=10", "--threads=8", "--sleepers"),
        ("--interval=10", "--threads=4", "--churn"),
        ("--interval=10", "--threads=2", "--fork"),
        ("--interval=1000", "--threads=64", "--sleepers"),
    ],
    ids=" ".join,
)
def test_attached_and_detached_again_and_again(built: Built, options: tuple[str, ...]) -> None:
    held = []
    with running(built, *options) as target, spans_memory() as spans:
        for _ in range(10):
            writer = make_writer(built, target.pid, spans)
            writer.start()
            writer.attach(bytes(TARGET.size))
            calls = target.report()["calls"]
            target.wait_for(lambda c, n=calls: c["calls"] > n + 1000)  # type: ignore[misc]
            assert writer.stop() == ""
            writer.close()
            held.append(writer.held_ns)
        assert_untouched(target.pid, built.target)
        report = target.quit()
    assert (report["wrong"], report["harmed"], report["bad_children"]) == (0, 0, 0)
    # Signals that are ignored, as SIGCHLD of children here, can wake a traced thread in vain: docs/safety.md.
    if "--fork" not in options:
        assert (report["eintr"], report["sleepers_eintr"]) == (0, 0)
    assert statistics.median(held) < 5_000_000, held


def test_signals_meanwhile_arrive_once_each(built: Built) -> None:
    with running(built, "--handle-rt", "--threads=4") as target, spans_memory() as spans:
        for _ in range(10):
            rt = target.report()["rt"]
            writer = make_writer(built, target.pid, spans)
            sender = subprocess.Popen([sys.executable, "-c", SENDER, str(target.pid)], env=environment())
            writer.start()
            writer.attach(bytes(TARGET.size))
            assert writer.stop() == ""
            writer.close()
            assert sender.wait() == 0
            target.wait_for(lambda c, n=rt: c["rt"] == n + 2000)  # type: ignore[misc]
        assert_untouched(target.pid, built.target)
        report = target.quit()
    assert report["rt_sum"] == 10 * sum(range(2000))
    assert (report["wrong"], report["harmed"]) == (0, 0)


SENDER = """
import signal, sys, time
from tests.e2e.stop_harness import sigqueue
for value in range(2000):
    while not sigqueue(int(sys.argv[1]), signal.SIGRTMIN, value):
        time.sleep(0.001)
"""

AGENT = """
import sys, time
from pathlib import Path
from spanweld.bpf.events import TARGET
from spanweld.model import Pid
from tests.e2e.stop_harness import Built
from tests.e2e.test_inline_patcher import make_writer, spans_memory
with spans_memory() as spans:
    writer = make_writer(Built(*[Path(path) for path in sys.argv[2:]]), Pid(int(sys.argv[1])), spans)
    writer.start()
    print("start", flush=True)
    writer.attach(bytes(TARGET.size))
    print("attached", flush=True)
    time.sleep(3600)
"""


def environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, f"{root}/src"])}


def test_what_a_killed_agent_leaves_does_nothing_and_is_cleaned_up(built: Built) -> None:
    paths = [str(path) for path in (built.tracer, built.target, built.probe, built.holder)]
    with running(built, "--sleepers", "--threads=4") as target:
        for round_number in range(8):
            command = [sys.executable, "-c", AGENT, str(target.pid), *paths]
            with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as agent:
                assert agent.stdout is not None
                assert agent.stdout.readline() == b"start\n"
                if round_number % 2:
                    assert agent.stdout.readline() == b"attached\n"
                agent.kill()
            wait_without_patcher(target.pid)
            calls = target.report()["calls"]
            target.wait_for(lambda c, n=calls: c["calls"] > n + 1000)  # type: ignore[misc]
            left = clean_up(target.pid)
            assert left or not round_number % 2
            assert_untouched(target.pid, built.target)
        report = target.quit()
    assert (report["wrong"], report["harmed"], report["eintr"], report["sleepers_eintr"]) == (0, 0, 0, 0)


def wait_without_patcher(pid: Pid) -> None:
    """Until a patcher that has lost its agent has ended."""
    deadline = time.monotonic() + 10
    while stop_harness.tracer_pid(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_code_that_somebody_changed_is_left_alone(built: Built) -> None:
    with running(built) as target, spans_memory() as spans:
        writer = make_writer(built, target.pid, spans)
        entry = writer._probes[3].entry
        changed = writer._bias() + entry.address + 2
        with Path(f"/proc/{target.pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(changed)
            own = memory.read(1)
            memory.seek(changed)
            memory.write(bytes([own[0] ^ 1]))
            writer.start()
            with pytest.raises(TargetError, match="somebody else has changed it"):
                writer.attach(bytes(TARGET.size))
            memory.seek(changed)
            memory.write(own)
        assert writer.stop() == ""
        writer.close()
        assert_untouched(target.pid, built.target)
        assert target.quit()["wrong"] == 0


def test_another_tracer_is_named(built: Built) -> None:
    with running(built) as target, spans_memory() as spans:
        holder = subprocess.Popen([built.holder, str(target.pid)], stdout=subprocess.PIPE)
        assert holder.stdout is not None
        holder.stdout.readline()
        writer = make_writer(built, target.pid, spans)
        writer.start()
        with pytest.raises(TargetError, match=f"process {holder.pid} traces it"):
            writer.attach(bytes(TARGET.size))
        writer.close()
        holder.kill()
        holder.wait()
        holder.stdout.close()


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("libc.prctl(38, 1, 0, 0, 0); libc.prctl(22, 2, filter)", "seccomp"),
        ("signal.signal(signal.SIGTRAP, lambda *_: None)", "SIGTRAP"),
        ("signal.signal(signal.SIGTRAP, signal.SIG_IGN)", "SIGTRAP"),
        ("os.kill(os.getpid(), signal.SIGSTOP)", "is stopped"),
    ],
)
def test_processes_that_might_be_harmed_are_refused(statement: str, reason: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", REFUSING.format(statement)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    try:
        if "SIGSTOP" in statement:
            os.waitpid(process.pid, os.WUNTRACED)
        else:
            assert process.stdout.readline() == b"done\n"
        writer = InlineWriter(Pid(process.pid), [], -1, 0, expect_exec=False)
        with pytest.raises(TargetError, match=reason):
            writer.start()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


REFUSING = """
import ctypes, os, signal, struct, time
libc = ctypes.CDLL(None)
program = ctypes.create_string_buffer(struct.pack("<HBBI", 0x06, 0, 0, 0x7fff0000))  # allow
filter = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", 1, ctypes.addressof(program)))
print("ready", flush=True)
{}
print("done", flush=True)
time.sleep(60)
"""
