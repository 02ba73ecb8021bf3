"""What a target is, as OpenTelemetry resource attributes.

Which attributes, and why:

- ``telemetry.sdk.name`` is ``spanweld``, since the convention keeps ``opentelemetry`` for the
  project's own SDKs and wants a name of its own from any other; ``telemetry.sdk.language`` is
  ``rust``, the target's language and not the agent's; ``telemetry.distro.*`` name the agent once
  more. OpenTelemetry's eBPF instrumentation (OBI) sets all of them so; its agent for Go only
  language and distro.
- No ``process.command_args`` nor ``process.command_line``: secrets are passed on command lines, and
  the executable's name and path are enough for the convention.
- ``service.instance.id`` is a UUID of version 5 from boot and process, with the namespace
  that the convention names for it, so that an agent that comes back finds the same instance.
- A target's own OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES count where the agent's environment
  has none (an agent under sudo has none): both kinds of span of a trace are then of one service.
"""

from __future__ import annotations

import os
import platform
import pwd
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from spanweld import __version__
from spanweld.errors import TargetError, UsageError
from spanweld.model import AttributeValue, Pid, Resource
from spanweld.settings import Settings, parse_key_values

AGENT_NAME = "spanweld"

# Semantic conventions, service.instance.id: the namespace for UUIDs made from an inherent id.
_INSTANCE_NAMESPACE = uuid.UUID("4d63009a-8d0f-11ee-aad7-4c796ed8e320")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_TARGET_VARIABLES = (
    *("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    *(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT" for signal in ("TRACES", "LOGS", "METRICS")),
)


@dataclass(frozen=True, slots=True)
class HostFacts:
    """The host's part; a fact that is not known is None. ``os_release`` is /etc/os-release."""

    name: str
    machine: str
    kernel: str
    machine_id: str | None = None
    boot_id: str | None = None
    os_release: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """A target's part. ``start_ticks`` (clock ticks since boot) tells it from others of its pid.

    ``rustc_version`` is the compiler's version from the image; ``environ`` holds at least the
    target's OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES and endpoints of OTLP where it has them.
    """

    pid: Pid
    executable: Path
    parent_pid: Pid | None = None
    owner: str | None = None
    start_ticks: int | None = None
    rustc_version: str | None = None
    environ: Mapping[str, str] = field(default_factory=dict)


def make_resource(settings: Settings, process: ProcessFacts, host: HostFacts) -> Resource:
    """The resource of one target.

    Later wins: what is found out, the target's environment, the agent's OTEL_RESOURCE_ATTRIBUTES,
    its OTEL_SERVICE_NAME (so the specification orders the two, and environment over detection).
    """
    attributes: dict[str, AttributeValue] = {
        "service.name": process.executable.name,
        "service.instance.id": _instance_id(process, host),
        **_process(process),
        **_host(host),
        "telemetry.sdk.name": AGENT_NAME,
        "telemetry.sdk.language": "rust",
        "telemetry.sdk.version": __version__,
        "telemetry.distro.name": AGENT_NAME,
        "telemetry.distro.version": __version__,
    }
    attributes.update(_target_attributes(process.environ))
    attributes.update(settings.resource_attributes)
    if settings.service_name:
        attributes["service.name"] = settings.service_name
    return Resource(attributes)


def read_process(pid: Pid, rustc_version: str | None = None) -> ProcessFacts:
    """What /proc says of a live process; raises TargetError when it is gone or not to be read."""
    folder = Path("/proc") / str(pid)
    try:
        status = _pairs((folder / "status").read_text(errors="replace"), ":")
        executable = (folder / "exe").readlink()
        environ = (folder / "environ").read_bytes()
        # The command's name is in parentheses and may hold anything; the fields follow the last one.
        start_ticks = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except OSError as error:
        raise TargetError(f"process {pid} cannot be read: {error.strerror}") from error
    return ProcessFacts(
        pid=pid,
        executable=Path(str(executable).removesuffix(" (deleted)")),
        parent_pid=Pid(int(status["PPid"])),
        owner=_user_name(int(status["Uid"].split()[0])),
        start_ticks=int(start_ticks),
        rustc_version=rustc_version,
        environ={
            name: value
            for name, separator, value in (
                item.decode("utf-8", "replace").partition("=") for item in environ.split(b"\0")
            )
            if separator and name in _TARGET_VARIABLES
        },
    )


def read_host() -> HostFacts:
    """What the system says of this host."""
    system = os.uname()
    try:
        os_release: Mapping[str, str] = platform.freedesktop_os_release()
    except OSError:
        os_release = {}
    return HostFacts(
        name=system.nodename,
        machine=system.machine,
        kernel=system.release,
        machine_id=_first_line(Path("/etc/machine-id")),
        boot_id=_first_line(Path("/proc/sys/kernel/random/boot_id")),
        os_release=os_release,
    )


def _instance_id(process: ProcessFacts, host: HostFacts) -> str:
    if host.boot_id is None or process.start_ticks is None:
        return str(uuid.uuid4())
    return str(uuid.uuid5(_INSTANCE_NAMESPACE, f"{host.boot_id}/{process.pid}/{process.start_ticks}"))


def _process(process: ProcessFacts) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "process.pid": process.pid,
        "process.executable.name": process.executable.name,
        "process.executable.path": str(process.executable),
    }
    if process.parent_pid:
        attributes["process.parent_pid"] = process.parent_pid
    if process.owner is not None:
        attributes["process.owner"] = process.owner
    if process.rustc_version is not None:
        # The convention names none for Rust; the detector in opentelemetry-rust-contrib writes the same.
        attributes["process.runtime.name"] = "rustc"
        attributes["process.runtime.version"] = process.rustc_version
    return attributes


def _host(host: HostFacts) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "host.name": host.name,
        "host.arch": _ARCHITECTURES.get(host.machine, host.machine),
        "os.type": "linux",
        "os.description": f"{host.os_release.get('PRETTY_NAME', 'Linux')} (kernel {host.kernel})",
    }
    if host.machine_id:
        attributes["host.id"] = host.machine_id
    if "NAME" in host.os_release:
        attributes["os.name"] = host.os_release["NAME"]
    if "VERSION_ID" in host.os_release:
        attributes["os.version"] = host.os_release["VERSION_ID"]
    return attributes


def _target_attributes(environ: Mapping[str, str]) -> dict[str, AttributeValue]:
    try:
        attributes: dict[str, AttributeValue] = {
            **parse_key_values(environ.get("OTEL_RESOURCE_ATTRIBUTES", ""), "OTEL_RESOURCE_ATTRIBUTES")
        }
    except UsageError:
        # The target's SDK discards it as well; it is not the agent's user who has to mend it.
        attributes = {}
    if environ.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = environ["OTEL_SERVICE_NAME"]
    return attributes


def _pairs(text: str, separator: str) -> dict[str, str]:
    split = (line.partition(separator) for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in split}


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None
