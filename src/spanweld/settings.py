"""Every setting in one place: flags over environment over defaults.

The commands read flags and ``SPANWELD_…`` variables; what OpenTelemetry has a variable for is read
here from that variable, by the OpenTelemetry specification's rules (an empty value is no value).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from urllib.parse import unquote

from spanweld.errors import UsageError


class WriteMode(Enum):
    """How an adoption reaches the target's memory."""

    AUTO = "auto"
    KERNEL = "kernel"
    INLINE = "inline"
    STOP = "stop"
    OFF = "off"


class AdoptMode(Enum):
    """Which active span becomes a root's parent: the innermost one, or always the server span."""

    ACTIVE = "active"
    SERVER = "server"


class OtlpProtocol(Enum):
    """Values of OTEL_EXPORTER_OTLP_PROTOCOL that are spoken."""

    GRPC = "grpc"
    HTTP_PROTOBUF = "http/protobuf"


@dataclass(frozen=True, slots=True)
class SamplerSettings:
    """OTEL_TRACES_SAMPLER: ``root`` decides for requests without a remote parent.

    ``ratio`` (0 to 1) is what share of roots is sampled; ``parent_based`` lets a remote parent's
    sampled flag decide where there is one.
    """

    ratio: float = 1.0
    parent_based: bool = True


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """OTEL_BSP_*: how finished spans are batched. Times in seconds."""

    schedule_delay: float = 1.0
    export_timeout: float = 30.0
    max_queue_size: int = 65536
    max_export_batch_size: int = 512


@dataclass(frozen=True, slots=True)
class OtlpSettings:
    """OTEL_EXPORTER_OTLP_*, the ``TRACES`` form of each before the generic one.

    ``endpoint`` is final: for HTTP it already ends in ``/v1/traces`` where the specification adds it.
    """

    endpoint: str = "http://localhost:4318/v1/traces"
    protocol: OtlpProtocol = OtlpProtocol.HTTP_PROTOBUF
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 10.0
    gzip: bool = False
    certificate: Path | None = None
    client_key: Path | None = None
    client_certificate: Path | None = None
    insecure: bool = True


@dataclass(frozen=True, slots=True)
class Settings:
    """All that a run of the agent is told. ``exports`` holds ``console``, ``otlp`` or ``json:FILE``."""

    exports: tuple[str, ...] = ("console",)
    write: WriteMode = WriteMode.AUTO
    adopt: AdoptMode = AdoptMode.ACTIVE
    exclude_paths: tuple[str, ...] = ()
    service_name: str | None = None
    resource_attributes: Mapping[str, str] = field(default_factory=dict)
    sampler: SamplerSettings = SamplerSettings()
    batch: BatchSettings = BatchSettings()
    otlp: OtlpSettings = OtlpSettings()


def otlp_endpoint_is_set(environ: Mapping[str, str]) -> bool:
    """Whether the environment names an OTLP endpoint, so that ``otlp`` is the default export."""
    return bool(
        environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    )


def parse_key_values(text: str, variable: str) -> dict[str, str]:
    """``key=value,key=value`` with percent-encoded values (W3C baggage form); ``variable`` is for the error."""
    result: dict[str, str] = {}
    for item in text.split(","):
        if not item.strip():
            continue
        key, separator, value = item.partition("=")
        if not separator or not key.strip():
            raise UsageError(f"{variable}: {item.strip()!r} is not of the form key=value")
        result[key.strip()] = unquote(value.strip())
    return result


def sampler_from_environment(environ: Mapping[str, str]) -> SamplerSettings:
    """OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG; an unknown sampler is an error, not a default."""
    name = environ.get("OTEL_TRACES_SAMPLER") or "parentbased_always_on"
    base = name.removeprefix("parentbased_")
    if base == "always_on":
        ratio = 1.0
    elif base == "always_off":
        ratio = 0.0
    elif base == "traceidratio":
        text = environ.get("OTEL_TRACES_SAMPLER_ARG") or "1.0"
        try:
            ratio = float(text)
        except ValueError:
            ratio = -1.0
        if not 0.0 <= ratio <= 1.0:
            raise UsageError(f"OTEL_TRACES_SAMPLER_ARG: {text!r} is not a number from 0 to 1")
    else:
        raise UsageError(
            f"OTEL_TRACES_SAMPLER: {name!r} is not known",
            "use always_on, always_off, traceidratio, or one of these with parentbased_ before it",
        )
    return SamplerSettings(ratio=ratio, parent_based=base != name)


def batch_from_environment(environ: Mapping[str, str]) -> BatchSettings:
    """OTEL_BSP_*; the variables' times are milliseconds."""
    default = BatchSettings()
    queue = _whole_number(environ, "OTEL_BSP_MAX_QUEUE_SIZE", default.max_queue_size)
    return BatchSettings(
        schedule_delay=_whole_number(environ, "OTEL_BSP_SCHEDULE_DELAY", int(default.schedule_delay * 1000))
        / 1000,
        export_timeout=_whole_number(environ, "OTEL_BSP_EXPORT_TIMEOUT", int(default.export_timeout * 1000))
        / 1000,
        max_queue_size=queue,
        max_export_batch_size=min(
            queue, _whole_number(environ, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", default.max_export_batch_size)
        ),
    )


def otlp_from_environment(environ: Mapping[str, str]) -> OtlpSettings:
    """OTEL_EXPORTER_OTLP_* by the specification of the OTLP exporter."""

    def value(name: str) -> str | None:
        return environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or environ.get(f"OTEL_EXPORTER_OTLP_{name}")

    protocol_text = value("PROTOCOL") or OtlpProtocol.HTTP_PROTOBUF.value
    try:
        protocol = OtlpProtocol(protocol_text)
    except ValueError:
        raise UsageError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL: {protocol_text!r} is not spoken", "use grpc or http/protobuf"
        ) from None
    endpoint = value("ENDPOINT")
    if protocol is OtlpProtocol.GRPC:
        endpoint = endpoint or "http://localhost:4317"
    elif not environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        # Only the generic endpoint is a base to which the signal's path is added.
        endpoint = (endpoint or "http://localhost:4318").rstrip("/") + "/v1/traces"
    assert endpoint is not None
    if "://" in endpoint and not endpoint.startswith(("http://", "https://")):
        raise UsageError(f"OTEL_EXPORTER_OTLP_ENDPOINT: {endpoint!r} is neither http:// nor https://")
    if protocol is OtlpProtocol.HTTP_PROTOBUF and "://" not in endpoint:
        raise UsageError(
            f"OTEL_EXPORTER_OTLP_ENDPOINT: {endpoint!r} has no scheme", f"write http://{endpoint}"
        )
    compression = value("COMPRESSION") or "none"
    if compression not in ("none", "gzip"):
        raise UsageError(f"OTEL_EXPORTER_OTLP_COMPRESSION: {compression!r} is not known", "use gzip or none")
    timeout_name = (
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"
        if environ.get("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT")
        else "OTEL_EXPORTER_OTLP_TIMEOUT"
    )

    def file(name: str) -> Path | None:
        text = value(name)
        return Path(text) if text else None

    insecure_text = (value("INSECURE") or "").lower()
    return OtlpSettings(
        endpoint=endpoint,
        protocol=protocol,
        headers=parse_key_values(value("HEADERS") or "", "OTEL_EXPORTER_OTLP_HEADERS"),
        timeout=_whole_number(environ, timeout_name, 10_000) / 1000,
        gzip=compression == "gzip",
        certificate=file("CERTIFICATE"),
        client_key=file("CLIENT_KEY"),
        client_certificate=file("CLIENT_CERTIFICATE"),
        # A scheme decides; the variable speaks only for a gRPC endpoint without one.
        insecure=endpoint.startswith("http://") or ("://" not in endpoint and insecure_text == "true"),
    )


def _whole_number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name)
    if not text:
        return default
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number <= 0:
        raise UsageError(f"{name}: {text!r} is not a whole number above 0")
    return number
