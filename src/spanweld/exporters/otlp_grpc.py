"""OTLP over gRPC. Source: the OTLP specification, "OTLP/gRPC"."""

from __future__ import annotations

import math
from pathlib import Path
from urllib.parse import urlsplit

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from spanweld import __version__
from spanweld.errors import UsageError
from spanweld.exporters.otlp import Reply
from spanweld.exporters.rpc_status import RpcStatus, RpcStatusParser
from spanweld.settings import OtlpSettings

_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_STATUS_DETAILS = "grpc-status-details-bin"
_RETRYABLE = frozenset(
    (
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    )
)
_OPTIONS = (
    ("grpc.primary_user_agent", f"spanweld-OTLP-Exporter-Python/{__version__}"),
    # The exporter retries by OTLP's rules; the channel only has to come back soon after the endpoint.
    ("grpc.enable_retries", 0),
    ("grpc.max_reconnect_backoff_ms", 5000),
)


class GrpcTransport:
    """Calls ``TraceService/Export`` over one channel, made with the first request.

    Raises UsageError when a certificate or key cannot be read.
    """

    def __init__(self, settings: OtlpSettings) -> None:
        self._target = grpc_target(settings.endpoint)
        self._metadata = tuple((name.lower(), value) for name, value in settings.headers.items())
        self._compression = grpc.Compression.Gzip if settings.gzip else grpc.Compression.NoCompression
        self._credentials = None if settings.insecure else _credentials(settings)
        self._channel: grpc.Channel | None = None
        self._statuses = RpcStatusParser()

    def send(self, request: bytes, timeout: float) -> Reply:
        """One call; RESOURCE_EXHAUSTED may be tried again only where the endpoint says when."""
        # No channel before it is needed: gRPC's own threads do not survive a fork.
        if self._channel is None:
            self._channel = self._open()
        export = self._channel.unary_unary(
            _METHOD,
            request_serializer=None,  # the request is serialized already
            response_deserializer=ExportTraceServiceResponse.FromString,
        )
        try:
            response = export(
                request,
                timeout=None if math.isinf(timeout) else timeout,
                metadata=self._metadata,
                compression=self._compression,
            )
        except grpc.RpcError as error:
            return self._failure(error)
        partial = response.partial_success
        return Reply(rejected=partial.rejected_spans, warning=partial.error_message)

    def close(self) -> None:
        """Closes the channel; a call that is under way is cancelled."""
        if self._channel is not None:
            self._channel.close()

    def _open(self) -> grpc.Channel:
        if self._credentials is None:
            return grpc.insecure_channel(self._target, options=_OPTIONS)
        return grpc.secure_channel(self._target, self._credentials, options=_OPTIONS)

    def _failure(self, error: grpc.RpcError) -> Reply:
        # grpcio documents that what a blocking call raises is a Call as well.
        assert isinstance(error, grpc.Call)
        code = error.code()
        status = self._status(error)
        retry_delay = status.retry_delay if status else None
        throttled = code is grpc.StatusCode.RESOURCE_EXHAUSTED and retry_delay is not None
        return Reply(
            error=f"gRPC {code.name}: {error.details()}",
            retry=code in _RETRYABLE or throttled,
            retry_after=retry_delay,
        )

    def _status(self, error: grpc.Call) -> RpcStatus | None:
        for key, value in error.trailing_metadata() or ():
            if key == _STATUS_DETAILS and isinstance(value, bytes):
                return self._statuses.parse(value)
        return None


def grpc_target(endpoint: str) -> str:
    """The endpoint in gRPC's own form: host and port of an http(s) URL, anything else as it is.

    A URL without a port gets the port of its scheme, as URLs do; gRPC would take 443 for both.
    """
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https"):
        return endpoint
    host = url.netloc.rpartition("@")[2]
    if url.port is None:
        host = f"{host.rstrip(':')}:{443 if url.scheme == 'https' else 80}"
    return host


def _credentials(settings: OtlpSettings) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=_read(settings.certificate, "CERTIFICATE"),
        private_key=_read(settings.client_key, "CLIENT_KEY"),
        certificate_chain=_read(settings.client_certificate, "CLIENT_CERTIFICATE"),
    )


def _read(path: Path | None, variable: str) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"OTEL_EXPORTER_OTLP_{variable}: {path} cannot be read: {error.strerror}", "name a PEM file"
        ) from error
