"""Every setting in one place: flags over environment over defaults.

The commands read flags and ``SPANWELD_…`` variables; what OpenTelemetry has a variable for is read
here from that variable, by the OpenTelemetry specification's rules (an empty value is no value).

The environment is the target's as well, and what its own SDK understands need not be understood
here. So what a variable must not hold goes to a ``Problem``: ``refuse`` raises it as a UsageError,
while a function that only says it gets what the specification asks for, a warning and the default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from urllib.parse import unquote, urlsplit

from spanweld.errors import UsageError

Problem = Callable[[str, str], None]
"""Takes what is wrong with a variable, and the remedy (or an empty text)."""


class WriteMode(Enum):
    """How an adoption reaches the target's memory."""

    AUTO = "auto"
    KERNEL = "kernel"
    INLINE = "inline"
    STOP = "stop"
    OFF = "off"


class ProbesMode(Enum):
    """How the SDK's functions are probed: by kernel uprobes, or by code inside the target."""

    AUTO = "auto"
    UPROBE = "uprobe"
    INLINE = "inline"


class AdoptMode(Enum):
    """Which active span becomes a root's parent: the innermost one, or always the server span."""

    ACTIVE = "active"
    SERVER = "server"


class InjectMode(Enum):
    """Whether requests out get headers; AUTO: where this kernel was tried and found fit for it."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class Priority(Enum):
    """Whether the agent has the processors only while nobody else wants them."""

    IDLE = "idle"
    NORMAL = "normal"


class OtlpProtocol(Enum):
    """Values of OTEL_EXPORTER_OTLP_PROTOCOL that are spoken."""

    GRPC = "grpc"
    HTTP_PROTOBUF = "http/protobuf"


class Propagator(Enum):
    """Values of OTEL_PROPAGATORS that are known; ``b3`` and ``b3multi`` read the same headers."""

    TRACECONTEXT = "tracecontext"
    BAGGAGE = "baggage"
    B3 = "b3"
    B3_MULTI = "b3multi"
    JAEGER = "jaeger"


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
    """OTEL_BSP_*: how finished spans are batched. Times in seconds, ``inf`` for no limit.

    The defaults of delay and queue are not the specification's (5 s and 2048), which are made for
    one service's own spans: an agent's user waits for the spans, and its rates are higher.
    """

    schedule_delay: float = 1.0
    export_timeout: float = 30.0
    max_queue_size: int = 65536
    max_export_batch_size: int = 512


@dataclass(frozen=True, slots=True)
class OtlpSettings:
    """OTEL_EXPORTER_OTLP_*, the ``TRACES`` form of each before the generic one.

    ``endpoint`` is final: for HTTP it already ends in ``/v1/traces`` where the specification adds it;
    for gRPC it is an http(s) URL or anything that gRPC takes for a target. ``timeout`` is in seconds
    for one send, ``inf`` for no limit.
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
    """All that a run of the agent is told. ``exports`` holds ``console``, ``otlp`` or ``json:FILE``.

    ``propagators`` are in the order in which they are asked: the last that finds a span context wins.
    ``baggage_attributes`` are keys of baggage, or ``*`` for all.
    """

    exports: tuple[str, ...] = ("console",)
    write: WriteMode = WriteMode.AUTO
    probes: ProbesMode = ProbesMode.AUTO
    adopt: AdoptMode = AdoptMode.ACTIVE
    inject: InjectMode = InjectMode.AUTO
    priority: Priority = Priority.IDLE
    exclude_paths: tuple[str, ...] = ()
    service_name: str | None = None
    resource_attributes: Mapping[str, str] = field(default_factory=dict)
    sampler: SamplerSettings = SamplerSettings()
    propagators: tuple[Propagator, ...] = (Propagator.TRACECONTEXT, Propagator.BAGGAGE)
    baggage_attributes: frozenset[str] = frozenset()
    batch: BatchSettings = BatchSettings()
    otlp: OtlpSettings = OtlpSettings()


def otlp_endpoint_is_set(environ: Mapping[str, str]) -> bool:
    """Whether the environment names an OTLP endpoint, so that ``otlp`` is the default export."""
    return bool(
        environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    )


def refuse(message: str, remedy: str = "") -> None:
    """The ``Problem`` that ends a command."""
    raise UsageError(message, remedy)


def parse_key_values(text: str, variable: str, problem: Problem = refuse) -> dict[str, str]:
    """``key=value,key=value``, percent-encoded; ``variable`` is for the problem.

    One wrong item discards all, as the specification's "Specifying resource information via an
    environment variable" asks: half of what was meant is worse to find than nothing of it. The item
    is not part of the message, since headers hold tokens.
    """
    result: dict[str, str] = {}
    for number, item in enumerate(text.split(","), start=1):
        if not item.strip():
            continue
        key, separator, value = item.partition("=")
        try:
            decoded = unquote(key.strip(), errors="strict"), unquote(value.strip(), errors="strict")
        except UnicodeDecodeError:
            decoded = "", ""
        if not separator or not decoded[0]:
            problem(
                f"{variable}: item {number} is not of the form key=value",
                "separate items by commas; write a comma in a value as %2C",
            )
            return {}
        result[decoded[0]] = decoded[1]
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


def propagators_from_environment(environ: Mapping[str, str]) -> tuple[Propagator, ...]:
    """OTEL_PROPAGATORS, each once; an unknown one is an error: a trace that ends here would be found late."""
    names = [name.strip() for name in environ.get("OTEL_PROPAGATORS", "").split(",")]
    names = [name for name in names if name]
    if not names:
        return Settings().propagators
    if names == ["none"]:
        return ()
    known = [propagator.value for propagator in Propagator]
    for name in names:
        if name == "none":
            raise UsageError(
                "OTEL_PROPAGATORS: 'none' is not alone", "use none by itself, or leave it out of the list"
            )
        if name not in known:
            raise UsageError(f"OTEL_PROPAGATORS: {name!r} is not known", f"use {', '.join(known)}, or none")
    return tuple(Propagator(name) for name in dict.fromkeys(names))


def parse_baggage_attributes(text: str) -> frozenset[str]:
    """``--baggage-attributes``: keys of baggage, separated by commas, or ``*`` for all."""
    keys = frozenset(key.strip() for key in text.split(",") if key.strip())
    if "*" in keys and len(keys) > 1:
        raise UsageError("--baggage-attributes: '*' is not alone", "use * by itself, or name the keys")
    return keys


def batch_from_environment(environ: Mapping[str, str], problem: Problem = refuse) -> BatchSettings:
    """OTEL_BSP_*; the variables' times are milliseconds."""
    default = BatchSettings()
    queue = _whole_number(environ, "OTEL_BSP_MAX_QUEUE_SIZE", 1, problem)
    size = _whole_number(environ, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 1, problem)
    delay = _whole_number(environ, "OTEL_BSP_SCHEDULE_DELAY", 0, problem)
    timeout = _timeout(environ, "OTEL_BSP_EXPORT_TIMEOUT", problem)
    max_queue_size = default.max_queue_size if queue is None else queue
    return BatchSettings(
        schedule_delay=default.schedule_delay if delay is None else delay / 1000,
        export_timeout=default.export_timeout if timeout is None else timeout,
        max_queue_size=max_queue_size,
        # A batch must fit the queue, by the specification.
        max_export_batch_size=min(max_queue_size, default.max_export_batch_size if size is None else size),
    )


def otlp_from_environment(environ: Mapping[str, str], problem: Problem = refuse) -> OtlpSettings:
    """OTEL_EXPORTER_OTLP_* by the specification of the OTLP exporter."""

    def name(suffix: str) -> str:
        """The variable that speaks: the one for traces where it is set."""
        specific = f"OTEL_EXPORTER_OTLP_TRACES_{suffix}"
        return specific if environ.get(specific) else f"OTEL_EXPORTER_OTLP_{suffix}"

    def value(suffix: str) -> str:
        return environ.get(name(suffix), "").strip()

    def file(suffix: str) -> Path | None:
        return Path(value(suffix)) if value(suffix) else None

    protocol = OtlpProtocol.HTTP_PROTOBUF
    if value("PROTOCOL"):
        try:
            protocol = OtlpProtocol(value("PROTOCOL").lower())
        except ValueError:
            problem(
                f"{name('PROTOCOL')}: {value('PROTOCOL')!r} is not spoken",
                f"use grpc or http/protobuf; without it, {protocol.value} is used",
            )
    compression = value("COMPRESSION").lower()
    if compression not in ("", "none", "gzip"):
        problem(f"{name('COMPRESSION')}: {value('COMPRESSION')!r} is not known", "use gzip or none")
    timeout = _timeout(environ, name("TIMEOUT"), problem)
    endpoint = _endpoint(environ, name("ENDPOINT"), protocol, problem)
    scheme = _scheme(endpoint)
    return OtlpSettings(
        endpoint=endpoint,
        protocol=protocol,
        headers=parse_key_values(value("HEADERS"), name("HEADERS"), problem),
        timeout=OtlpSettings().timeout if timeout is None else timeout,
        gzip=compression == "gzip",
        certificate=file("CERTIFICATE"),
        client_key=file("CLIENT_KEY"),
        client_certificate=file("CLIENT_CERTIFICATE"),
        # A scheme decides; the variable speaks only for a gRPC endpoint without one.
        insecure=scheme == "http" or (scheme != "https" and value("INSECURE").lower() == "true"),
    )


def _endpoint(environ: Mapping[str, str], name: str, protocol: OtlpProtocol, problem: Problem) -> str:
    endpoint = environ.get(name, "").strip()
    grpc = protocol is OtlpProtocol.GRPC
    if endpoint and not _is_endpoint(endpoint, grpc):
        problem(
            f"{name}: {endpoint!r} is not an endpoint for {protocol.value}",
            "write http://HOST:PORT or https://HOST:PORT",
        )
        endpoint = ""
    if grpc:
        return endpoint or "http://localhost:4317"
    if endpoint and name == "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT":
        return endpoint
    # Only the generic endpoint is a base to which the signal's path is added.
    return (endpoint or "http://localhost:4318").rstrip("/") + "/v1/traces"


def _is_endpoint(text: str, grpc: bool) -> bool:
    if grpc and _scheme(text) not in ("http", "https"):
        return not text.isspace()
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        return False


def _scheme(endpoint: str) -> str:
    """``http`` or ``https`` of a URL; what it is of ``host:port`` or ``unix:path`` means nothing here."""
    return endpoint.partition("://")[0].lower() if "://" in endpoint else ""


def _whole_number(environ: Mapping[str, str], name: str, least: int, problem: Problem) -> int | None:
    """The variable's number, or None when it has none or a problem."""
    text = environ.get(name, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdecimal()) or int(text) < least:
        problem(f"{name}: {text!r} is not a whole number from {least}", "")
        return None
    return int(text)


def _timeout(environ: Mapping[str, str], name: str, problem: Problem) -> float | None:
    """The variable's milliseconds in seconds; 0 is no limit, by the specification."""
    milliseconds = _whole_number(environ, name, 0, problem)
    if milliseconds is None:
        return None
    return milliseconds / 1000 if milliseconds else math.inf
