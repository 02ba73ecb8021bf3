"""libbpf through ctypes: objects, maps, programs, links.

Only what the agent uses, with errors as exceptions. Needs libbpf.so.1 of version 1.0 or newer
(https://libbpf.readthedocs.io/en/latest/api.html).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import POINTER, c_bool, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from spanweld.bpf.keeper import LinkKeeper
from spanweld.errors import HostError
from spanweld.model import FileOffset, Pid

BPF_SK_MSG_VERDICT = 7

_PRINT = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)


_DETACHING_AT_ONCE = 32


class _MapCreateOptions(ctypes.Structure):
    """struct bpf_map_create_opts"""

    _fields_ = (
        ("sz", c_size_t),
        ("btf_fd", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("inner_map_fd", c_uint32),
        ("map_flags", c_uint32),
        ("map_extra", c_uint64),
        ("numa_node", c_uint32),
        ("map_ifindex", c_uint32),
    )


class _UprobeOptions(ctypes.Structure):
    """struct bpf_uprobe_opts, as far as it is used"""

    _fields_ = (
        ("sz", c_size_t),
        ("ref_ctr_offset", c_size_t),
        ("bpf_cookie", c_uint64),
        ("retprobe", c_bool),
        ("func_name", c_char_p),
    )


class _LinkCreateMulti(ctypes.Structure):
    """union bpf_attr of BPF_LINK_CREATE for uprobe_multi, include/uapi/linux/bpf.h"""

    _fields_ = (
        ("prog_fd", c_uint32),
        ("target_fd", c_uint32),
        ("attach_type", c_uint32),
        ("flags", c_uint32),
        ("path", c_char_p),
        ("offsets", POINTER(c_uint64)),
        ("ref_ctr_offsets", POINTER(c_uint64)),
        ("cookies", POINTER(c_uint64)),
        ("cnt", c_uint32),
        ("multi_flags", c_uint32),
        ("pid", c_uint32),
        ("pad", c_uint32),
    )


_PERCPU_ARRAY = 6
_SYS_BPF = 321
_BPF_LINK_CREATE = 28
_BPF_TRACE_UPROBE_MULTI = 48

_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "bpf_object__open_file": (c_void_p, (c_char_p, c_void_p)),
    "bpf_object__load": (c_int, (c_void_p,)),
    "bpf_object__close": (None, (c_void_p,)),
    "bpf_object__find_map_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_object__find_program_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_object__next_program": (c_void_p, (c_void_p, c_void_p)),
    "bpf_object__btf_fd": (c_int, (c_void_p,)),
    "bpf_map__fd": (c_int, (c_void_p,)),
    "bpf_map__max_entries": (c_uint32, (c_void_p,)),
    "bpf_map__key_size": (c_uint32, (c_void_p,)),
    "bpf_map__type": (c_int, (c_void_p,)),
    "bpf_map__map_flags": (c_uint32, (c_void_p,)),
    "bpf_map__btf_key_type_id": (c_uint32, (c_void_p,)),
    "bpf_map__btf_value_type_id": (c_uint32, (c_void_p,)),
    "bpf_map__value_size": (c_uint32, (c_void_p,)),
    "bpf_map__inner_map": (c_void_p, (c_void_p,)),
    "bpf_map__initial_value": (c_void_p, (c_void_p, POINTER(c_size_t))),
    "bpf_map_create": (
        c_int,
        (c_int, c_char_p, c_uint32, c_uint32, c_uint32, POINTER(_MapCreateOptions)),
    ),
    "bpf_map_lookup_elem": (c_int, (c_int, c_void_p, c_void_p)),
    "bpf_map_update_elem": (c_int, (c_int, c_void_p, c_void_p, c_uint64)),
    "bpf_map_delete_elem": (c_int, (c_int, c_void_p)),
    "bpf_map_get_next_key": (c_int, (c_int, c_void_p, c_void_p)),
    "bpf_obj_pin": (c_int, (c_int, c_char_p)),
    "bpf_map__set_autocreate": (c_int, (c_void_p, c_bool)),
    "bpf_prog_attach": (c_int, (c_int, c_int, c_int, c_uint32)),
    "bpf_program__fd": (c_int, (c_void_p,)),
    "bpf_program__set_autoload": (c_int, (c_void_p, c_bool)),
    "bpf_program__section_name": (c_char_p, (c_void_p,)),
    "bpf_program__set_expected_attach_type": (c_int, (c_void_p, c_int)),
    "bpf_program__attach_cgroup": (c_void_p, (c_void_p, c_int)),
    "bpf_program__name": (c_char_p, (c_void_p,)),
    "bpf_program__attach": (c_void_p, (c_void_p,)),
    "bpf_program__attach_tracepoint": (c_void_p, (c_void_p, c_char_p, c_char_p)),
    "bpf_program__attach_uprobe_opts": (
        c_void_p,
        (c_void_p, c_int, c_char_p, c_size_t, POINTER(_UprobeOptions)),
    ),
    "bpf_link__destroy": (c_int, (c_void_p,)),
    "bpf_link__fd": (c_int, (c_void_p,)),
    "libbpf_set_print": (c_void_p, (_PRINT,)),
    "libbpf_num_possible_cpus": (c_int, ()),
    "libbpf_major_version": (c_uint32, ()),
    "libbpf_minor_version": (c_uint32, ()),
}


class Libbpf:
    """The loaded library; what it prints (verifier logs) is kept for the next error message."""

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL("libbpf.so.1", use_errno=True)
        except OSError as error:
            raise HostError(
                f"libbpf cannot be loaded: {error}", "install libbpf 1.0 or newer; on Debian: libbpf1"
            ) from None
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype = result
            function.argtypes = arguments
        self._library = library
        self._printed: list[str] = []
        # va_list is passed on to vsnprintf; its x86-64 form is a pointer.
        libc = ctypes.CDLL(None, use_errno=True)
        libc.vsnprintf.argtypes = (c_char_p, c_size_t, c_char_p, c_void_p)
        self._bpf = libc.syscall
        self._bpf.restype = ctypes.c_long
        self._bpf.argtypes = (ctypes.c_long, ctypes.c_long, c_void_p, ctypes.c_long)

        def keep(level: int, text: bytes, arguments: int) -> int:
            if level <= 1:  # LIBBPF_WARN, LIBBPF_INFO
                buffer = ctypes.create_string_buffer(65536)
                libc.vsnprintf(buffer, len(buffer), text, arguments)
                self._printed.append(buffer.value.decode(errors="replace"))
            return 0

        # Referenced for as long as the library may call it.
        self._print = _PRINT(keep)
        library.libbpf_set_print(self._print)

    @property
    def version(self) -> str:
        """``major.minor`` of the library."""
        return f"{self._library.libbpf_major_version()}.{self._library.libbpf_minor_version()}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def take_printed(self) -> str:
        """What libbpf has printed since the last call."""
        text = "".join(self._printed)
        self._printed.clear()
        return text

    def bpf(self, command: int, attributes: ctypes.Structure) -> int:
        """bpf(2), for what libbpf has no function for: its result, or minus errno."""
        result = int(self._bpf(_SYS_BPF, command, ctypes.byref(attributes), ctypes.sizeof(attributes)))
        return result if result >= 0 else -ctypes.get_errno()

    def check(self, result: int, what: str) -> int:
        """``result`` if it is no error; raises HostError, with what libbpf printed, if it is."""
        if result >= 0:
            return result
        raise self.error(what, -result)

    def check_pointer(self, result: int | None, what: str) -> int:
        """The same for a pointer, where NULL is the error and errno its number."""
        if result:
            return result
        raise self.error(what, ctypes.get_errno())

    def error(self, what: str, number: int) -> HostError:
        """The exception for a failed call."""
        detail = "".join(line + "\n" for line in self.take_printed().splitlines()[-20:])
        return HostError(f"{what}: {os.strerror(number)}", detail.rstrip())


@dataclass(frozen=True, slots=True)
class BpfMap:
    """A map: keys and values are bytes of the sizes that the map has."""

    library: Libbpf
    name: str
    fd: int
    key_size: int
    value_size: int
    max_entries: int
    is_per_cpu: bool = False

    def get(self, key: bytes) -> bytes | None:
        """The value, or None. Of a per-CPU map, the values of all possible CPUs one after the other."""
        cells = self.library.libbpf_num_possible_cpus() if self.is_per_cpu else 1
        value = ctypes.create_string_buffer(-(-self.value_size // 8) * 8 * cells)
        if self.library.bpf_map_lookup_elem(self.fd, key, value):
            return None
        return value.raw if self.is_per_cpu else value.raw[: self.value_size]

    def sum(self, key: bytes) -> int:
        """Of a per-CPU map of 64-bit numbers: all cells together, of which one may be below zero; 0: none."""
        cells = self.get(key) or b""
        return sum(
            int.from_bytes(cells[at : at + 8], "little", signed=True) for at in range(0, len(cells), 8)
        )

    def set(self, key: bytes, value: bytes) -> None:
        """Stores; HostError if the map is full."""
        assert len(key) == self.key_size
        assert len(value) == self.value_size
        self.library.check(
            self.library.bpf_map_update_elem(self.fd, key, value, 0), f"cannot store in BPF map {self.name}"
        )

    def delete(self, key: bytes) -> None:
        """Removes the key, if it is there."""
        self.library.bpf_map_delete_elem(self.fd, key)

    def keys(self) -> Iterator[bytes]:
        """All keys; what is added or removed meanwhile may be missed or met twice."""
        key: Any = None
        following = ctypes.create_string_buffer(self.key_size)
        for _ in range(2 * self.max_entries):
            if self.library.bpf_map_get_next_key(self.fd, key, following):
                return
            key = following.raw
            yield key


@dataclass(frozen=True, slots=True)
class _InnerMap:
    """What the inner maps of a map of maps are; the types are ids in the object's BTF."""

    form: BpfMap
    map_type: int
    flags: int
    key_type: int
    value_type: int


class Link:
    """An attached program; ``detach`` or the end of the process takes it off.

    With a keeper, the end of the process and of the keeper.
    """

    def __init__(
        self, library: Libbpf, descriptor: int, pointer: int | None = None, keeper: LinkKeeper | None = None
    ) -> None:
        """``pointer``: libbpf's own of it, which has the descriptor, if it has one."""
        self._library = library
        self._fd: int | None = descriptor
        self._pointer = pointer
        self.keeper = keeper
        if keeper:
            keeper.hold(descriptor)

    def detach(self) -> None:
        """Takes the program off; a second call does nothing."""
        detach_all([self])

    def destroy(self) -> int | None:
        """Lets go here, not in the keeper; returns the descriptor that it holds, None if it holds none."""
        descriptor, self._fd = self._fd, None
        if descriptor is None:
            return None
        if self._pointer is None:
            os.close(descriptor)
        else:
            self._library.bpf_link__destroy(self._pointer)
        return descriptor if self.keeper else None


def detach_all(links: list[Link]) -> None:
    """Takes programs off, all at once: for each one the kernel waits until nobody runs it, 0.1 s or so.

    The list is empty then.
    """
    with ThreadPoolExecutor(_DETACHING_AT_ONCE) as threads:
        held = list(threads.map(Link.destroy, links))
    keepers = {link.keeper for link in links if link.keeper}
    for keeper in keepers:
        keeper.let_go(
            [fd for fd, link in zip(held, links, strict=True) if fd is not None and link.keeper is keeper]
        )
    links.clear()


class BpfObject:
    """A BPF object file, opened, then (after constants were set) loaded into the kernel.

    ``keeper`` holds, too, what is attached from when it is set on. ``many_uprobes_at_once``: those of a
    program are one link (uprobe_multi), which the kernel takes off in one go, where each one alone costs a
    tenth of a second.
    """

    def __init__(self, library: Libbpf, path: Path, *, many_uprobes_at_once: bool = False) -> None:
        self.library = library
        self._path = path
        self._object = library.check_pointer(
            library.bpf_object__open_file(str(path).encode(), None), f"cannot open {path.name}"
        )
        self._inner_maps: dict[str, _InnerMap] = {}
        self.keeper: LinkKeeper | None = None
        self.left_out = ""
        self.many_uprobes_at_once = many_uprobes_at_once
        if many_uprobes_at_once:
            for name in self.programs():
                program = self._program(name)
                if library.bpf_program__section_name(program) == b"uprobe":
                    library.bpf_program__set_expected_attach_type(program, _BPF_TRACE_UPROBE_MULTI)

    def __enter__(self) -> BpfObject:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets maps and programs go; pinned ones stay."""
        if self._object:
            self.library.bpf_object__close(self._object)
            self._object = 0

    def set_constant(self, name: str, value: bytes) -> None:
        """Sets a ``const volatile`` variable of the object; only before ``load``."""
        offset, size = _rodata_variable(self._path, name)
        if len(value) != size:
            raise ValueError(f"{name} has {size} bytes, not {len(value)}")
        length = c_size_t()
        rodata = self.library.bpf_object__find_map_by_name(self._object, b".rodata")
        start = self.library.bpf_map__initial_value(rodata, ctypes.byref(length))
        ctypes.memmove(start + offset, value, size)

    def expect_inner_maps(self, outer: str) -> None:
        """Notes of what kind the inner maps of ``outer`` are: libbpf forgets it at ``load``."""
        library = self.library
        outer_map = library.bpf_object__find_map_by_name(self._object, outer.encode())
        inner = library.bpf_map__inner_map(outer_map)
        self._inner_maps[outer] = _InnerMap(
            form=self._describe(outer, inner, closed=True),
            map_type=library.bpf_map__type(inner),
            flags=library.bpf_map__map_flags(inner),
            key_type=library.bpf_map__btf_key_type_id(inner),
            value_type=library.bpf_map__btf_value_type_id(inner),
        )

    def leave_out(self, programs: Iterable[str], maps: Iterable[str], why: str) -> None:
        """Does without programs, and maps that only they use; ``left_out`` says why. Only before ``load``."""
        for name in programs:
            self.library.bpf_program__set_autoload(self._program(name), False)
        for name in maps:
            found = self.library.bpf_object__find_map_by_name(self._object, name.encode())
            self.library.bpf_map__set_autocreate(found, False)
        self.left_out = why

    def load(self) -> None:
        """Loads every program; HostError with the verifier's last lines if one is refused."""
        self.library.check(self.library.bpf_object__load(self._object), "the kernel refused the BPF programs")

    def map(self, name: str) -> BpfMap:
        """A map by its name."""
        return self._describe(
            name,
            self.library.check_pointer(
                self.library.bpf_object__find_map_by_name(self._object, name.encode()), f"no BPF map {name}"
            ),
        )

    def create_inner_map(self, outer: str) -> BpfMap:
        """A new map of the kind that the map of maps ``outer`` takes, with BTF types for bpftool."""
        library = self.library
        inner = self._inner_maps[outer]
        options = _MapCreateOptions(
            sz=ctypes.sizeof(_MapCreateOptions),
            btf_fd=library.bpf_object__btf_fd(self._object),
            btf_key_type_id=inner.key_type,
            btf_value_type_id=inner.value_type,
            map_flags=inner.flags,
        )
        form = inner.form
        fd = library.check(
            library.bpf_map_create(
                inner.map_type,
                outer[:15].encode(),
                form.key_size,
                form.value_size,
                form.max_entries,
                ctypes.byref(options),
            ),
            f"cannot make a BPF map {outer}",
        )
        return BpfMap(library, outer, fd, form.key_size, form.value_size, form.max_entries)

    def pin(self, bpf_map: BpfMap, path: Path) -> None:
        """Pins a map at a path below a bpffs."""
        self.library.check(self.library.bpf_obj_pin(bpf_map.fd, str(path).encode()), f"cannot pin {path}")

    def attach(self, program: str) -> Link:
        """Attaches a program where its section says."""
        pointer = self.library.bpf_program__attach(self._program(program))
        return self._link(pointer, f"cannot attach {program}")

    def attach_entry(self, program: str, system_call: str) -> Link:
        """Attaches a program to the tracepoint of one system call's entry."""
        pointer = self.library.bpf_program__attach_tracepoint(
            self._program(program), b"syscalls", f"sys_enter_{system_call}".encode()
        )
        return self._link(pointer, f"cannot attach {program} to the entries of {system_call}")

    def attach_cgroup(self, program: str, cgroup: Path) -> Link:
        """Attaches a program to a cgroup and all below it, beside those of others."""
        descriptor = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            pointer = self.library.bpf_program__attach_cgroup(self._program(program), descriptor)
            return self._link(pointer, f"cannot attach {program} to {cgroup}")
        finally:
            os.close(descriptor)

    def attach_to_sockets(self, program: str, sockets: BpfMap) -> None:
        """Attaches a program to what is sent by the sockets of a map; it goes with the map."""
        program_fd = self.library.bpf_program__fd(self._program(program))
        self.library.check(
            self.library.bpf_prog_attach(program_fd, sockets.fd, BPF_SK_MSG_VERDICT, 0),
            f"cannot attach {program} to {sockets.name}",
        )

    def attach_uprobes(
        self, program: str, pid: Pid, image: Path, points: Sequence[tuple[FileOffset, int]]
    ) -> Iterator[Link]:
        """Attaches a program to instructions of an image, in one process: all together where the kernel can.

        To each offset there is a cookie for the program, which may ask for it; as 64 bits, whatever its sign.
        """
        if self.many_uprobes_at_once:
            yield self._attach_together(program, pid, image, points)
            return
        for offset, cookie in points:
            options = _UprobeOptions(sz=ctypes.sizeof(_UprobeOptions), bpf_cookie=cookie)
            pointer = self.library.bpf_program__attach_uprobe_opts(
                self._program(program), pid, str(image).encode(), offset, ctypes.byref(options)
            )
            yield self._link(pointer, f"cannot attach {program} at {image}+{offset:#x} in process {pid}")

    def _attach_together(
        self, program: str, pid: Pid, image: Path, points: Sequence[tuple[FileOffset, int]]
    ) -> Link:
        numbers = c_uint64 * len(points)
        attributes = _LinkCreateMulti(
            prog_fd=self.library.bpf_program__fd(self._program(program)),
            attach_type=_BPF_TRACE_UPROBE_MULTI,
            path=str(image).encode(),
            offsets=numbers(*(offset for offset, _ in points)),
            cookies=numbers(*(cookie for _, cookie in points)),
            cnt=len(points),
            pid=pid,
        )
        descriptor = self.library.bpf(_BPF_LINK_CREATE, attributes)
        places = ", ".join(f"{offset:#x}" for offset, _ in points)
        self.library.check(descriptor, f"cannot attach {program} at {image}+{places} in process {pid}")
        return Link(self.library, descriptor, keeper=self.keeper)

    def programs(self) -> list[str]:
        """Names of all programs."""
        names: list[str] = []
        program = self.library.bpf_object__next_program(self._object, None)
        while program:
            names.append(self.library.bpf_program__name(program).decode())
            program = self.library.bpf_object__next_program(self._object, program)
        return names

    def _link(self, pointer: int, what: str) -> Link:
        self.library.check_pointer(pointer, what)
        return Link(self.library, int(self.library.bpf_link__fd(pointer)), pointer, self.keeper)

    def _program(self, name: str) -> int:
        return self.library.check_pointer(
            self.library.bpf_object__find_program_by_name(self._object, name.encode()), f"no program {name}"
        )

    def _describe(self, name: str, pointer: int, closed: bool = False) -> BpfMap:
        library = self.library
        return BpfMap(
            library,
            name,
            -1 if closed else library.bpf_map__fd(pointer),
            library.bpf_map__key_size(pointer),
            library.bpf_map__value_size(pointer),
            library.bpf_map__max_entries(pointer),
            library.bpf_map__type(pointer) == _PERCPU_ARRAY,
        )


def _rodata_variable(path: Path, name: str) -> tuple[int, int]:
    """Offset in .rodata and size of a constant, in bytes."""
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    with path.open("rb") as file:
        elf = ELFFile(file)
        table = elf.get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        symbols = table.get_symbol_by_name(name)
        if not symbols:
            raise ValueError(f"no constant {name} in {path.name}")
        return symbols[0]["st_value"], symbols[0]["st_size"]
