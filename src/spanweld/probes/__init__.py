"""Instrumentations, one each in NAME.py (declaration, decoders), NAME.bpf.c and NAME.h."""

from spanweld.probes import http_client, http_inject, http_server, otel_sdk, tokio_tasks
from spanweld.probes.declaration import Instrumentation

REGISTRY: tuple[Instrumentation, ...] = (
    http_server.INSTRUMENTATION,
    http_client.INSTRUMENTATION,
    http_inject.INSTRUMENTATION,
    otel_sdk.INSTRUMENTATION,
    tokio_tasks.INSTRUMENTATION,
    tokio_tasks.WAKES,
)
