"""Instrumentations, one each in NAME.py (declaration, decoders), NAME.bpf.c and NAME.h."""

from spanweld.probes import http_client, http_server, otel_sdk
from spanweld.probes.declaration import Instrumentation

REGISTRY: tuple[Instrumentation, ...] = (
    http_server.INSTRUMENTATION,
    http_client.INSTRUMENTATION,
    otel_sdk.INSTRUMENTATION,
)
