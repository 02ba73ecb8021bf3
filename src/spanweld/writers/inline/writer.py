"""The inline writer, as the agent sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spanweld.bpf.events import (
    INLINE_HEAD,
    INLINE_PATCH,
    Counter,
    InlineOperation,
    InlinePatch,
    InlinePlace,
    InlineSize,
)
from spanweld.errors import TargetError
from spanweld.image import Entry
from spanweld.image.entry import JUMP_SIZE, jump, relocate
from spanweld.model import Pid, VirtAddr
from spanweld.process.memory import MemoryRange, load_bias, memory_ranges, read_memory
from spanweld.settings import WriteMode
from spanweld.writers.inline.area import NAME, Area, read_patches
from spanweld.writers.inline.patcher import PATCHER, Patcher, make_order

CODE = PATCHER.parent / "inline.elf"
PLACES_WITHIN = 64
"""So many places of one program can there be within functions."""
PLACES_AT_ENTRIES: int = InlineSize.STUBS
"""… and so many functions of one program that are entered by a jump, but for generators."""


@dataclass(frozen=True, slots=True)
class _Stubs:
    """Of one program: their name in stubs.S, how many there are, and bytes for what each one displaces.

    ``is_within``: that is an instruction within a function, which runs before the probe.
    """

    name: str
    count: int = PLACES_AT_ENTRIES
    room: int = 64
    is_within: bool = False


_STUBS = {
    "otel_new_trace_id": _Stubs("new_trace_id", InlineSize.GENERATORS),
    "otel_build_recording_span": _Stubs("build_recording_span"),
    "otel_ensure_ended_and_exported": _Stubs("ensure_ended"),
    "tokio_wake": _Stubs("wake"),
    "tokio_task_spawned": _Stubs("task_spawned", PLACES_WITHIN, 32, is_within=True),
}
_PAGE = 4096
_REACH = 1 << 31
# Between what is mapped for the probes and the executable, whose data may grow.
_DISTANCE = 16 << 20
_SEARCH_STEP = 64 << 20
_SIGTRAP = 5
_REMEDY = "use --probes uprobe"


@dataclass(frozen=True, slots=True)
class InlineProbe:
    """A program that runs inside the target, and where it is entered; ``cookie`` as of a uprobe there.

    ``callers``, of a generator: where the calls of the function return that are meant; none: all are.
    """

    program: str
    entry: Entry
    cookie: int = 0
    callers: tuple[VirtAddr, ...] = ()


def serves(program: str) -> bool:
    """Whether a BPF program at a function's entry has its like inside the target."""
    return program in _STUBS and not _STUBS[program].is_within


@dataclass(frozen=True, slots=True)
class _Code:
    """The linked code: its bytes from 0 on, and what its symbols are."""

    content: bytes
    symbols: Mapping[str, int]


class InlineWriter:
    """Probes of one target that are entered by a jump, and write by themselves.

    ``start`` refuses what cannot be; ``attach`` patches, once the target's entry is known. With
    ``expect_exec`` the target is a child that waits to exec, which it must have been let do before
    ``attach``: it is patched before its first instruction.
    """

    mode = WriteMode.INLINE
    tracer: Pid | None = None

    def __init__(
        self,
        target: Pid,
        probes: Sequence[InlineProbe],
        spans_fd: int,
        spans_size: int,
        *,
        expect_exec: bool,
    ) -> None:
        self._target = target
        self._probes = probes
        self._spans_fd = spans_fd
        self._spans_size = -(-spans_size // _PAGE) * _PAGE
        self._expect_exec = expect_exec
        self._area: Area | None = None
        self._patcher: Patcher | None = None
        self._base = 0
        self._patches: list[bytes] = []
        self.held_ns = 0
        """For how long a thread was held at most while the jumps were put in."""

    def start(self) -> None:
        """Looks whether the target can be patched, and cleans up behind an agent that was killed."""
        self._refuse()
        clean_up(self._target)
        self._area = Area()
        self._area.hold()
        if self._expect_exec:
            self._patcher = Patcher(self._target, self._area.fd, self._spans_fd, expect_exec=True)

    def attach(self, entry: bytes) -> None:
        """Puts the jumps in. ``entry`` is the target's struct target."""
        assert self._area is not None, "start() comes first"
        if self._patcher is not None:
            self._patcher.wait_for_exec()
            self._refuse()
        code = _read_code()
        ranges = memory_ranges(self._target)
        size = InlinePlace.SPANS + self._spans_size
        bias = self._bias()
        base = _find_room(ranges, size, [bias + probe.entry.address for probe in self._probes])
        patches, content = self._place(code, base, bias)
        callers = [
            [bias + address for address in probe.callers]
            for probe in self._probes
            if probe.program == "otel_new_trace_id"
        ]
        self._area.describe(
            base=base,
            size=size,
            pid=self._target,
            own_pid=int(_status(self._target)["NSpid"].split()[-1]),
            patches=patches,
            callers=callers,
            target=entry,
        )
        order = make_order(
            InlineOperation.ATTACH,
            patches=len(patches),
            base=base,
            size=size,
            spans_size=self._spans_size,
            system_call=_find_system_call(self._target, ranges),
            code_size=len(content),
        )
        patcher = self._patcher or Patcher(self._target, self._area.fd, self._spans_fd)
        self._patcher = None
        self.held_ns = patcher.carry_out(order, patches, content)
        self._base, self._patches = base, patches

    def _bias(self) -> int:
        function = self._probes[0].entry.function
        return load_bias(self._target, offset=function.file_offset, address=function.address)

    def _place(self, code: _Code, base: int, bias: int) -> tuple[list[bytes], bytes]:
        """The patches, and the code with the displaced instructions in it."""
        content = bytearray(code.content)
        patches = []
        used: dict[str, int] = {}
        for probe in self._probes:
            stubs = _STUBS[probe.program]
            number = used[stubs.name] = used.get(stubs.name, -1) + 1
            if number >= stubs.count:
                raise TargetError(f"there are too many functions for {probe.program}", _REMEDY)
            which = f"{stubs.name}_{number}"
            if len(probe.callers) > InlineSize.CALLERS:
                raise TargetError(f"there are too many calls of {probe.entry.function.name}", _REMEDY)
            address = probe.entry.address + bias
            at = code.symbols[f"displaced_{which}"]
            behind = base + code.symbols[f"behind_{which}"] if stubs.is_within else None
            try:
                displaced = relocate(probe.entry, bias, base + at, behind)
                to_stub = jump(address, base + code.symbols[f"stub_{which}"])
                if stubs.is_within:
                    back, cookie = code.symbols[f"back_{which}"], code.symbols[f"cookie_{which}"]
                    content[back : back + JUMP_SIZE] = jump(base + back, address + len(probe.entry.code))
                    content[cookie : cookie + 4] = probe.cookie.to_bytes(4, "little")
            except ValueError as error:
                raise TargetError(
                    f"{probe.entry.function.name} cannot be patched: {error}", _REMEDY
                ) from None
            if len(displaced) > stubs.room:
                raise TargetError(f"{probe.entry.function.name} begins with too much to move", _REMEDY)
            content[at : at + len(displaced)] = displaced
            before = probe.entry.code
            patch = InlinePatch(
                address, base + at, before.ljust(24, b"\0"), to_stub.ljust(8, b"\0"), len(before), 0
            )
            patches.append(INLINE_PATCH.pack(*patch))
        return patches, bytes(content)

    def _refuse(self) -> None:
        """Raises TargetError for a process in which system calls, or breakpoints, might do harm."""
        status = _status(self._target)
        if status.get("Seccomp", "0") != "0":
            raise TargetError(
                f"process {self._target} has a seccomp filter, which may end it for unknown calls",
                _REMEDY,
            )
        if "shstk" in status.get("x86_Thread_features", "") and any(
            probe.entry.ends_in_call for probe in self._probes
        ):
            raise TargetError(f"process {self._target} has a shadow stack", _REMEDY)
        if self._expect_exec:
            return  # it has one thread, which the patcher holds
        if status["State"][0] in "Tt":
            raise TargetError(f"process {self._target} is stopped", "let it go on (SIGCONT)")
        # For a breakpoint in a thread that blocks or ignores it, the kernel forgets what is done at SIGTRAP.
        if (int(status["SigCgt"], 16) | int(status["SigIgn"], 16)) >> (_SIGTRAP - 1) & 1:
            raise TargetError(f"process {self._target} handles or ignores SIGTRAP", _REMEDY)

    def runs_at(self, address: VirtAddr) -> bool:
        """Whether a probe is, or will be, inside the target at an address of its image."""
        return any(probe.entry.address == address for probe in self._probes)

    def fileno(self) -> int | None:
        """None: what the probes have to say is in ``events``."""
        return None

    def poll(self) -> list[str]:
        """Nothing."""
        return []

    def events(self, limit: int | None = None) -> Iterator[bytes]:
        """What the probes have sent since, or the first ``limit`` of it."""
        return self._area.drain(limit) if self._area else iter(())

    def counters(self) -> Mapping[Counter, int]:
        """What the probes have counted."""
        return self._area.counters() if self._area else {}

    def stop(self) -> str:
        """Takes the jumps out and unmaps all; what could not be is returned."""
        said = ""
        self._probes = ()
        if self._patcher is not None:
            self._patcher.close()
            self._patcher = None
        if self._area is None:
            return said
        self._area.let_go()
        if self._base:
            try:
                clean_up(self._target)
            except TargetError as error:
                said = error.message if Path(f"/proc/{self._target}/maps").exists() else ""
            self._base = 0
        return said

    def close(self) -> None:
        """Lets the shared memory go; ``events`` and ``counters`` have nothing any more."""
        if self._area is not None:
            self._area.close()
            self._area = None


def why_not() -> str:
    """Why the inline writer cannot work, or empty."""
    missing = next((path for path in (PATCHER, CODE) if not path.exists()), None)
    return f"{missing} is missing: build it with `make build`" if missing else ""


def clean_up(pid: Pid) -> bool:
    """Takes out of a process what an agent put there that is no more, or is done; returns whether it did.

    A process that has executed another program since has nothing of it. TargetError where it cannot be done.
    """
    ranges = memory_ranges(pid)
    area = next((r for r in ranges if r.path.startswith(f"/memfd:{NAME} ") and r.offset == 0), None)
    if area is None:
        return False
    head = read_memory(pid, area.start, INLINE_HEAD.size)
    patches = read_memory(
        pid, VirtAddr(area.start + InlinePlace.PATCHES), INLINE_PATCH.size * InlineSize.PATCHES
    )
    left = read_patches(head, patches) if head and patches else None
    if left is None:
        return False
    found, changed = left
    order = make_order(
        InlineOperation.DETACH,
        patches=len(changed),
        base=found.base,
        size=found.size,
        spans_size=0,
        system_call=_find_system_call(pid, ranges),
        code_size=0,
    )
    Patcher(pid, -1, -1).carry_out(order, [INLINE_PATCH.pack(*patch) for patch in changed])
    return True


def _status(pid: Pid) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        raise TargetError(f"process {pid} has ended") from None
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _read_code() -> _Code:
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    with CODE.open("rb") as file:
        elf = ELFFile(file)
        text, table = elf.get_section_by_name(".text"), elf.get_section_by_name(".symtab")
        assert text is not None
        assert isinstance(table, SymbolTableSection)
        assert text["sh_addr"] == 0
        return _Code(text.data(), {symbol.name: symbol["st_value"] for symbol in table.iter_symbols()})


def _find_room(ranges: Sequence[MemoryRange], size: int, addresses: Sequence[int]) -> int:
    """Where the range goes: below the executable, else above it, in reach of a jump from each address."""
    low, high = max(addresses) + size - _REACH, min(addresses) - size + _REACH
    image = next(r for r in ranges if r.start <= addresses[0] < r.end)
    own = [r for r in ranges if r.path == image.path]
    below = (min(r.start for r in own) - size - _DISTANCE) // _PAGE * _PAGE
    # The heap grows upwards behind the executable: from far above it downwards.
    candidates: list[int] = [
        below,
        *range(high // _PAGE * _PAGE - size, max(r.end for r in own), -_SEARCH_STEP),
    ]
    for base in candidates:
        if base < max(_DISTANCE, low) or base > high:
            continue
        if all(r.end + _DISTANCE <= base or r.start >= base + size + _PAGE for r in ranges):
            return base
    raise TargetError("there is no room within reach of its code", _REMEDY)


def _find_system_call(pid: Pid, ranges: Sequence[MemoryRange]) -> int:
    """A ``syscall`` instruction of the process's own, in the kernel's page if it has one, else anywhere."""
    for r in sorted(ranges, key=lambda r: r.path != "[vdso]"):
        if not r.is_executable or r.path == "[vsyscall]":
            continue
        at = (read_memory(pid, r.start, r.end - r.start) or b"").find(b"\x0f\x05")
        if at >= 0:
            return r.start + at
    raise TargetError(f"process {pid} has no system call instruction", _REMEDY)
