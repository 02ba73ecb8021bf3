"""What server and client spans of HTTP have in common: the event's request, and how conventions write it.

Names and attributes: OpenTelemetry semantic conventions, HTTP spans, stable.
"""

from __future__ import annotations

import socket
from ipaddress import IPv6Address
from urllib.parse import unquote_plus

from spanweld.bpf.events import SERVER_SPAN_EVENT, HttpMethod, ServerSpanEvent
from spanweld.model import AttributeValue

_METHODS = {int(method): method.name for method in HttpMethod}
_PAD = bytes(SERVER_SPAN_EVENT.size)

# url.query and url.full: the values of these keys are credentials by the semantic conventions.
_REDACTED_KEYS = frozenset({"AWSAccessKeyId", "Signature", "sig", "X-Goog-Signature"})


def unpack_request(data: bytes) -> ServerSpanEvent:
    """EVENT_SERVER_SPAN or EVENT_CLIENT_SPAN, which end with the request target."""
    return ServerSpanEvent._make(SERVER_SPAN_EVENT.unpack(data + _PAD[len(data) :]))


def add_method(attributes: dict[str, AttributeValue], event: ServerSpanEvent) -> str:
    """Adds the request's method; returns the span's name."""
    if event.method == HttpMethod.OTHER:
        original = event.method_name.partition(b"\0")[0].decode("utf-8", "replace")
        attributes["http.request.method_original"] = original
        attributes["http.request.method"] = "_OTHER"
        return "HTTP"
    method = _METHODS[event.method]
    attributes["http.request.method"] = method
    return method


def redacted(query: str) -> str:
    """A query without the values that are credentials."""
    if not any(key in query for key in _REDACTED_KEYS):
        return query
    parts = (part.partition("=") for part in query.split("&"))
    return "&".join(
        f"{key}=REDACTED" if unquote_plus(key) in _REDACTED_KEYS else key + equals + value
        for key, equals, value in parts
    )


def add_host(attributes: dict[str, AttributeValue], host: str) -> None:
    """Adds the server as ``host`` or ``host:port`` names it."""
    name, colon, port = host.rpartition(":")
    if colon and port.isdecimal() and (not name.count(":") or name.endswith("]")):
        attributes["server.port"] = int(port)
    else:
        name = host
    attributes["server.address"] = name.removeprefix("[").removesuffix("]")


def address_text(family: int, data: bytes) -> str:
    """An address of struct http_addresses; empty for a Unix socket."""
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, data[:4])
    if family == socket.AF_INET6:
        address = IPv6Address(data)
        return str(address.ipv4_mapped or address)
    return ""


def authority(address: str, port: int) -> str:
    """``address:port`` as in a URL."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
