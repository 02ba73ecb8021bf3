"""OTLP over HTTP with protobuf bodies. Source: the OTLP specification, "OTLP/HTTP"."""

from __future__ import annotations

import gzip
import math
import ssl
import time
from email.utils import parsedate_to_datetime

import urllib3
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from urllib3.exceptions import HTTPError

from spanweld import __version__
from spanweld.errors import UsageError
from spanweld.exporters.otlp import Reply
from spanweld.exporters.rpc_status import RpcStatusParser
from spanweld.settings import OtlpSettings

_RETRYABLE = frozenset((429, 502, 503, 504))
_CONTENT_TYPE = "application/x-protobuf"
_MOST_ANSWER_BYTES = 64 * 1024
_GZIP_LEVEL = 6


class HttpTransport:
    """Posts requests over one kept connection; follows no redirect.

    Raises UsageError when a certificate or key cannot be loaded or the endpoint is no URL.
    """

    def __init__(self, settings: OtlpSettings) -> None:
        self._endpoint = settings.endpoint
        self._gzip = settings.gzip
        self._headers = {
            **settings.headers,
            "Content-Type": _CONTENT_TYPE,
            "User-Agent": f"spanweld-OTLP-Exporter-Python/{__version__}",
        }
        if settings.gzip:
            self._headers["Content-Encoding"] = "gzip"
        try:
            secure = urllib3.util.parse_url(settings.endpoint).scheme == "https"
        except HTTPError as error:
            raise UsageError(f"OTEL_EXPORTER_OTLP_ENDPOINT: {settings.endpoint!r} is no URL") from error
        self._pool = urllib3.PoolManager(
            num_pools=1, retries=False, ssl_context=_ssl_context(settings) if secure else None
        )
        self._statuses = RpcStatusParser()

    def send(self, request: bytes, timeout: float) -> Reply:
        """One POST; an answer that is not HTTP, or none in time, may be tried again."""
        body = gzip.compress(request, _GZIP_LEVEL, mtime=0) if self._gzip else request
        limit = None if math.isinf(timeout) else max(timeout, 0.001)
        try:
            response = self._pool.request(
                "POST",
                self._endpoint,
                body=body,
                headers=self._headers,
                timeout=urllib3.Timeout(total=limit),
                preload_content=False,
                redirect=False,
            )
            try:
                # Bounded: an endpoint must not be able to fill the agent's memory.
                answer = response.read(_MOST_ANSWER_BYTES)
            finally:
                if not response.closed:
                    response.close()
                response.release_conn()
        except HTTPError as error:
            return Reply(error=_reason(error), retry=True)
        return self._reply(response, answer)

    def close(self) -> None:
        """Closes the kept connection."""
        self._pool.clear()

    def _reply(self, response: urllib3.BaseHTTPResponse, answer: bytes) -> Reply:
        is_protobuf = response.headers.get("Content-Type", "").partition(";")[0].strip() == _CONTENT_TYPE
        if 200 <= response.status < 300:
            try:
                accepted = ExportTraceServiceResponse.FromString(answer if is_protobuf else b"")
            except DecodeError:
                return Reply(warning="the answer is not an ExportTraceServiceResponse")
            partial = accepted.partial_success
            return Reply(rejected=partial.rejected_spans, warning=partial.error_message)
        status = self._statuses.parse(answer) if is_protobuf else None
        said = f" ({status.message})" if status and status.message else ""
        return Reply(
            error=f"HTTP {response.status} {response.reason or ''}".rstrip() + said,
            retry=response.status in _RETRYABLE,
            retry_after=_retry_after(response.headers.get("Retry-After")),
        )


def _ssl_context(settings: OtlpSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.certificate)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"OTEL_EXPORTER_OTLP_CERTIFICATE: {settings.certificate} cannot be loaded: {error}",
            "name a file of PEM certificates",
        ) from error
    if settings.client_certificate is not None:
        try:
            context.load_cert_chain(settings.client_certificate, settings.client_key)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE: {settings.client_certificate} with key "
                f"{settings.client_key} cannot be loaded: {error}",
                "name PEM files of a certificate and its key",
            ) from error
    return context


def _retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header: a number, or an HTTP date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _reason(error: HTTPError) -> str:
    """The cause in the system's words where there is one: urllib3's own name an object or repeat the URL."""
    cause: BaseException = error
    while not (isinstance(cause, OSError) and cause.strerror) and (
        inner := cause.__cause__ or cause.__context__
    ):
        cause = inner
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(error) or type(error).__name__
