"""Automatic spans to an OTLP endpoint, by gRPC or by HTTP with protobuf bodies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from spanweld.errors import UsageError
from spanweld.exporters import ExportCounts, Say
from spanweld.exporters.batching import Backoff, BatchWorker, Outcome, exportable
from spanweld.exporters.encode import Encoder
from spanweld.model import Resource, Span
from spanweld.settings import BatchSettings, OtlpProtocol, OtlpSettings

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")


@dataclass(frozen=True, slots=True)
class Reply:
    """An endpoint's answer to one request.

    ``error`` is empty on success; with ``retry`` the same request may succeed later, after at least
    ``retry_after`` seconds where the endpoint says so. ``rejected`` spans of a success were not
    taken, for the reason in ``warning`` (OTLP's partial success).
    """

    error: str = ""
    retry: bool = False
    retry_after: float | None = None
    rejected: int = 0
    warning: str = ""


class Transport(Protocol):
    """One way to send a serialized ExportTraceServiceRequest."""

    def send(self, request: bytes, timeout: float) -> Reply:
        """Sends once; blocks for at most ``timeout`` seconds (``inf``: no limit)."""

    def close(self) -> None:
        """Lets go of the connection; from any thread."""


class OtlpExporter:
    """Sends spans in batches, keeps them while the endpoint is away, and says so once.

    What may be sent again is what the OTLP specification lists ("Failures"); it is sent until it
    arrives, or until ``close``. Meanwhile spans are kept up to ``batch.max_queue_size`` and newer
    ones are dropped and counted.
    """

    def __init__(
        self, settings: OtlpSettings, batch: BatchSettings, say: Say, backoff: Backoff | None = None
    ) -> None:
        self._endpoint = settings.endpoint
        self._timeout = min(settings.timeout, batch.export_timeout)
        self._kept = batch.max_queue_size
        self._say = say
        self._remedy = _remedy(settings)
        self._encoder = Encoder()
        self._transport = _make_transport(settings)
        self._worker = BatchWorker("spanweld-otlp", self._send, batch, say, backoff)
        self._trouble_said = False
        self._warning_said = False
        self._dropped_before = 0

    def export(self, resource: Resource, spans: Sequence[Span]) -> None:
        """Queues the automatic spans."""
        self._worker.put(exportable(resource, spans))

    def poll(self, now: float) -> None:
        """Nothing is due by time: the worker has its own thread."""

    def close(self, timeout: float) -> None:
        """Flushes within ``timeout`` seconds."""
        self._worker.close(timeout)
        self._transport.close()

    def counts(self) -> ExportCounts:
        """The state of the counters now."""
        return self._worker.counts()

    def _send(self, batch: Sequence[tuple[Resource, Span]], time_left: float) -> Outcome:
        reply = self._transport.send(self._encoder.request(batch), min(self._timeout, time_left))
        if reply.error:
            self._say_trouble(reply, len(batch))
            return Outcome(error=reply.error, retry=reply.retry, retry_after=reply.retry_after)
        self._say_success(reply, len(batch))
        rejected = min(max(reply.rejected, 0), len(batch))
        return Outcome(delivered=len(batch) - rejected, error=reply.warning)

    def _say_trouble(self, reply: Reply, size: int) -> None:
        if self._trouble_said:
            return
        self._trouble_said = True
        self._dropped_before = self._worker.counts().dropped
        if reply.retry:
            self._say(
                f"no spans can be sent to {self._endpoint}: {reply.error}\n"
                f"  up to {self._kept} spans are kept and sent again; {self._remedy}"
            )
        else:
            self._say(
                f"{self._endpoint} refused {size} spans, which are dropped: {reply.error}\n  {self._remedy}"
            )

    def _say_success(self, reply: Reply, size: int) -> None:
        if self._trouble_said:
            self._trouble_said = False
            dropped = self._worker.counts().dropped - self._dropped_before
            lost = f"; {dropped} were dropped meanwhile" if dropped else ""
            self._say(f"spans are sent to {self._endpoint} again{lost}")
        if (reply.rejected or reply.warning) and not self._warning_said:
            self._warning_said = True
            why = reply.warning or "no reason given"
            self._say(f"{self._endpoint} rejected {reply.rejected} of {size} spans: {why}")


def _make_transport(settings: OtlpSettings) -> Transport:
    _check_headers(settings.headers)
    if settings.protocol is OtlpProtocol.GRPC:
        from spanweld.exporters.otlp_grpc import GrpcTransport

        return GrpcTransport(settings)
    from spanweld.exporters.otlp_http import HttpTransport

    return HttpTransport(settings)


def _check_headers(headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        # The value is left out of the message: it may be a token.
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise UsageError(
                f"OTEL_EXPORTER_OTLP_HEADERS: {name!r} and its value cannot be a header",
                "use letters, digits and dashes in the name, and printable ASCII in the value",
            )


def _remedy(settings: OtlpSettings) -> str:
    other = "grpc" if settings.protocol is OtlpProtocol.HTTP_PROTOBUF else "http/protobuf"
    usual = ":4317" if other == "grpc" else ":4318"
    if usual in settings.endpoint:
        return f"port {usual[1:]} is usually {other}: set OTEL_EXPORTER_OTLP_PROTOCOL={other}"
    return "is a receiver running there? see OTEL_EXPORTER_OTLP_ENDPOINT"
