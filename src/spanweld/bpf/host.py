"""What this host allows: privileges, file systems, lockdown, BPF."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from spanweld.errors import HostError

BPFFS = Path("/sys/fs/bpf")
_TRACEFS = Path("/sys/kernel/tracing")
_SECURITYFS = Path("/sys/kernel/security")
_BTF = Path("/sys/kernel/btf/vmlinux")
_UPROBES = Path("/sys/bus/event_source/devices/uprobe/type")


@dataclass(frozen=True, slots=True)
class Host:
    """``lockdown`` is ``none``, ``integrity`` or ``confidentiality``, or empty where it cannot be read."""

    kernel: str
    machine: str
    is_root: bool
    has_btf: bool
    has_bpffs: bool
    has_tracefs: bool
    has_uprobes: bool
    lockdown: str

    @property
    def many_uprobes_at_once(self) -> bool:
        """Whether the kernel's uprobe_multi can be used: before 6.10 it saw one thread of a process only."""
        release = re.match(r"(\d+)\.(\d+)", self.kernel)
        return release is not None and (int(release[1]), int(release[2])) >= (6, 10)

    def require(self) -> None:
        """Raises HostError, with the remedy, for the first thing that is missing."""
        if self.machine != "x86_64":
            raise HostError(f"this is a {self.machine} host: only x86-64 is supported")
        if not self.is_root:
            raise HostError("spanweld loads BPF programs and traces processes, which needs root", "use sudo")
        if not self.has_btf:
            raise HostError(
                f"the kernel {self.kernel} has no type information ({_BTF})",
                "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as those of all large distributions are",
            )
        if not self.has_tracefs:
            raise HostError(
                f"tracefs is not mounted at {_TRACEFS} and cannot be mounted",
                f"mount -t tracefs tracefs {_TRACEFS}",
            )
        if not self.has_uprobes:
            raise HostError(
                f"the kernel {self.kernel} has no uprobes", "use a kernel built with CONFIG_UPROBE_EVENTS=y"
            )
        if not self.has_bpffs:
            raise HostError(
                f"bpffs is not mounted at {BPFFS} and cannot be mounted",
                f"mount -t bpf bpf {BPFFS}; in a container, pass the host's {BPFFS} in",
            )


def look_at_host(*, mount: bool) -> Host:
    """What the host allows; with ``mount``, file systems that are missing are mounted first."""
    if mount and os.geteuid() == 0:
        _mount_missing("bpf", BPFFS)
        _mount_missing("tracefs", _TRACEFS)
        _mount_missing("securityfs", _SECURITYFS)
    return Host(
        kernel=platform.release(),
        machine=platform.machine(),
        is_root=os.geteuid() == 0,
        has_btf=_BTF.exists(),
        has_bpffs=_is_mounted("bpf", BPFFS),
        has_tracefs=_is_mounted("tracefs", _TRACEFS),
        has_uprobes=_UPROBES.exists(),
        lockdown=_lockdown(),
    )


def _lockdown() -> str:
    try:
        text = (_SECURITYFS / "lockdown").read_text()
    except OSError:
        # Without the file the kernel has no lockdown, if securityfs is there to look at.
        return "none" if _is_mounted("securityfs", _SECURITYFS) else ""
    return text.partition("[")[2].partition("]")[0]


def _is_mounted(kind: str, path: Path) -> bool:
    try:
        mounts = Path("/proc/self/mounts").read_text()
    except OSError:
        return False
    return any(fields[1:3] == [str(path), kind] for fields in map(str.split, mounts.splitlines()))


def _mount_missing(kind: str, path: Path) -> None:
    if _is_mounted(kind, path) or not path.is_dir():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    # A refusal shows as still not mounted, and is said with its remedy where it matters.
    libc.mount(kind.encode(), str(path).encode(), kind.encode(), 0, None)
