"""Builds and drives what the stop writer's tests need: the tracer, a target, a BPF program."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from spanweld.model import Pid
from spanweld.writers.stop import StopTracer

TARGETS = Path(__file__).parent / "targets"
TRACER_SOURCE = Path(__file__).parents[2] / "src/spanweld/writers/stop/tracer.c"
C_FLAGS = ["-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]

ASK_RETURN, ASK_WRITES, ASK_BAD_ADDRESS, ASK_WITHOUT_SIGNAL = 1, 2, 4, 8
EXIT_QUIT = 42
# in the order of stop_target.c
FUNCTIONS = (
    "at_push",
    "at_push_r15",
    "at_sub",
    "at_big_sub",
    "at_mov",
    "at_endbr64",
    "at_load",
    "at_jump",
    "at_short_jump",
    "at_branch",
    "at_call",
    "at_nop5",
    "at_ret",
)


@dataclass(frozen=True, slots=True)
class Built:
    """Paths of the compiled tracer, target, probe and other tracer."""

    tracer: Path
    target: Path
    probe: Path
    holder: Path


def build(folder: Path) -> Built:
    """Compile everything into ``folder``."""
    built = Built(folder / "tracer", folder / "stop_target", folder / "stop_probe.bpf.o", folder / "holder")
    for program, *sources in (
        (built.tracer, TRACER_SOURCE),
        (built.target, TARGETS / "stop_target.c", TARGETS / "stop_functions.S"),
        (built.holder, TARGETS / "stop_holder.c"),
    ):
        subprocess.run(["gcc", *C_FLAGS, *sources, "-o", program], check=True)
    subprocess.run(
        [
            *("clang-19", "-O2", "-g", "-target", "bpf", "-Wall", "-Wextra", "-Werror"),
            *("-I/usr/include/x86_64-linux-gnu", "-c", TARGETS / "stop_probe.bpf.c", "-o", built.probe),
        ],
        check=True,
    )
    return built


def function_offsets(image: Path) -> dict[str, int]:
    """File offset of each of FUNCTIONS."""
    with image.open("rb") as file:
        elf = ELFFile(file)
        table = elf.get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        symbols = {s.name: int(s["st_value"]) for s in table.iter_symbols()}
        loads = [s for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"]
        return {
            name: symbols[name] - int(load["p_vaddr"]) + int(load["p_offset"])
            for name in FUNCTIONS
            for load in loads
            if load["p_vaddr"] <= symbols[name] < load["p_vaddr"] + load["p_memsz"]
        }


class Probe:
    """The loaded BPF program, through the system's libbpf."""

    COUNTS = ("asked", "blocked", "untraced", "full", "no_signal")

    def __init__(self, built: Built) -> None:
        self._lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
        for name in (
            "bpf_object__open_file",
            "bpf_object__find_program_by_name",
            "bpf_program__attach_uprobe",
            "bpf_program__attach",
        ):
            getattr(self._lib, name).restype = ctypes.c_void_p
        self._image = built.target
        self._object = ctypes.c_void_p(self._lib.bpf_object__open_file(str(built.probe).encode(), None))
        if self._lib.bpf_object__load(self._object):
            raise OSError(ctypes.get_errno(), "the test's program does not load")
        self._program = ctypes.c_void_p(self._lib.bpf_object__find_program_by_name(self._object, b"ask"))
        self._links: list[ctypes.c_void_p] = []

    def map_fd(self, name: str) -> int:
        """Descriptor of a map; owned by the object."""
        fd = int(self._lib.bpf_object__find_map_fd_by_name(self._object, name.encode()))
        assert fd >= 0
        return fd

    def attach(self, tracer: int, functions: Sequence[str] = FUNCTIONS) -> None:
        """Probe the functions; ask in threads that ``tracer`` traces."""
        self._set_tracer(tracer)
        self._links += [self._guard(b"interrupted"), self._guard(b"merged")]
        offsets = function_offsets(self._image)
        for offset in (offsets[name] for name in functions):
            link = self._lib.bpf_program__attach_uprobe(
                self._program, False, -1, str(self._image).encode(), ctypes.c_size_t(offset)
            )
            assert link, os.strerror(ctypes.get_errno())
            self._links.append(ctypes.c_void_p(link))

    def _guard(self, name: bytes) -> ctypes.c_void_p:
        program = ctypes.c_void_p(self._lib.bpf_object__find_program_by_name(self._object, name))
        link = self._lib.bpf_program__attach(program)
        assert link, os.strerror(ctypes.get_errno())
        return ctypes.c_void_p(link)

    def detach(self) -> None:
        """Take all probes off, what was attached last first."""
        while self._links:
            self._lib.bpf_link__destroy(self._links.pop())

    def close(self) -> None:
        """Detach and free everything."""
        self.detach()
        self._lib.bpf_object__close(self._object)

    def _set_tracer(self, tracer: int) -> None:
        """Change whose threads are asked."""
        value = struct.pack("<Q", tracer)
        assert not self._lib.bpf_map_update_elem(self.map_fd("tracer"), struct.pack("<I", 0), value, 0)

    def counts(self) -> dict[str, int]:
        """What the program counted."""
        values = {}
        for index, name in enumerate(self.COUNTS):
            value = ctypes.c_uint64()
            self._lib.bpf_map_lookup_elem(
                self.map_fd("probe_counts"), struct.pack("<I", index), ctypes.byref(value)
            )
            values[name] = value.value
        return values

    def pending(self) -> int:
        """Number of requests in the map."""
        keys, key, nr = ctypes.c_uint32(), None, 0
        while not self._lib.bpf_map_get_next_key(self.map_fd("stop_requests"), key, ctypes.byref(keys)):
            key = ctypes.byref(ctypes.c_uint32(keys.value))
            nr += 1
        return nr


class Target:
    """A running stop_target."""

    def __init__(self, built: Built, options: Sequence[str]) -> None:
        # A group of its own, with a parent outside: the kernel ignores SIGTSTP and its like in a group
        # that nobody could continue, such as that of tests which run without a terminal's session.
        self._process = subprocess.Popen(
            [built.target, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            process_group=0,
        )
        self._rest = b""
        self.threads: dict[str, int] = {}
        while (words := self._line().split())[0] != "ready":
            self.threads[words[1]] = int(words[2])
        self.pid = Pid(self._process.pid)

    def _line(self, timeout: float = 20.0) -> str:
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            assert select.select([self._process.stdout], [], [], max(left, 0))[0], "the target is silent"
            data = os.read(self._process.stdout.fileno(), 65536)
            assert data, f"the target ended with {self._process.wait()}"
            self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        return line.decode()

    def command(self, command: str) -> None:
        """Send a command without waiting for an answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")

    def report(self, command: str = "report") -> Mapping[str, int]:
        """The target's counters, now."""
        self.command(command)
        while True:
            kind, _, text = self._line().partition(" ")
            if kind == "report":
                return {k: int(v) for k, v in (item.split("=") for item in text.split())}
            name, tid = text.split()
            self.threads[name] = int(tid)

    def wait_for(
        self, condition: Callable[[Mapping[str, int]], bool], timeout: float = 20.0
    ) -> Mapping[str, int]:
        """Report until the condition holds."""
        deadline = time.monotonic() + timeout
        while not condition(counters := self.report()):
            assert time.monotonic() < deadline, counters
            time.sleep(0.001)
        return counters

    def wait_ready(self) -> None:
        """Wait for the program that was executed to say that it is ready."""
        while self._line() != "ready":
            pass

    def quit(self) -> Mapping[str, int]:
        """Last counters; the exit status must reach the real parent."""
        counters = self.report("quit")
        assert self._process.wait(10) == EXIT_QUIT
        return counters

    def wait(self) -> int:
        """Exit status."""
        return self._process.wait(10)

    def close(self) -> None:
        """Kill it if it still runs."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


@contextmanager
def running(built: Built, *options: str) -> Iterator[Target]:
    """A target, killed at the end."""
    target = Target(built, options)
    try:
        yield target
    finally:
        target.close()


@dataclass(frozen=True, slots=True)
class Traced:
    """A target with probes attached and the tracer in place."""

    target: Target
    tracer: StopTracer
    probe: Probe


@contextmanager
def traced(built: Built, *options: str, functions: Sequence[str] = FUNCTIONS) -> Iterator[Traced]:
    """A target that is asked; detached and killed at the end."""
    with running(built, *options) as target:
        probe = Probe(built)
        tracer = StopTracer.start(target.pid, probe.map_fd("stop_requests"), tracer=built.tracer)
        try:
            tracer.wait_ready()
            probe.attach(tracer.pid, functions)
            yield Traced(target, tracer, probe)
        finally:
            probe.detach()
            tracer.close()
            probe.close()


def tgkill(pid: int, tid: int, number: signal.Signals) -> None:
    """Send a signal to one thread."""
    if ctypes.CDLL(None, use_errno=True).syscall(234, pid, tid, int(number)):
        raise OSError(ctypes.get_errno(), "tgkill")


def sigqueue(pid: int, number: int, value: int) -> bool:
    """Queue a real-time signal; False when the queue is full."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not libc.sigqueue(pid, number, ctypes.c_void_p(value)):
        return True
    if ctypes.get_errno() != 11:  # EAGAIN
        raise OSError(ctypes.get_errno(), "sigqueue")
    return False


def tracer_pid(pid: int) -> int:
    """TracerPid of a thread."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("TracerPid:"):
            return int(line.split()[1])
    raise AssertionError(line)
