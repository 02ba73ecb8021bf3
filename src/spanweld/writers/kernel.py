"""The kernel writer: the BPF programs write, with bpf_probe_write_user."""

from __future__ import annotations

from spanweld.bpf.host import Host
from spanweld.model import Pid
from spanweld.settings import WriteMode


class PassiveWriter:
    """A writer with nothing to start in user space: ``kernel``, and ``off``, which writes nothing."""

    tracer: Pid | None = None

    def __init__(self, mode: WriteMode) -> None:
        self.mode = mode

    def start(self) -> None:
        """Nothing: the programs do it all."""

    def fileno(self) -> int | None:
        """None: there is nothing to wait for."""
        return None

    def poll(self) -> list[str]:
        """Nothing."""
        return []

    def stop(self) -> str:
        """Nothing."""
        return ""


def why_not(host: Host) -> str:
    """Why the kernel writer cannot work on this host, or empty."""
    if host.lockdown in ("integrity", "confidentiality"):
        return f"the kernel is locked down ({host.lockdown}), which forbids bpf_probe_write_user"
    return ""
