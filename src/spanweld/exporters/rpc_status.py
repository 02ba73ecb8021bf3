"""``google.rpc.Status`` and ``google.rpc.RetryInfo``, in which an OTLP receiver says what went wrong.

Described here, field by field as in google/rpc/status.proto and error_details.proto, since the one
package that holds the generated messages holds a hundred others with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, duration_pb2, message_factory
from google.protobuf.message import DecodeError

_FILE = "spanweld/rpc_status.proto"
_Field = descriptor_pb2.FieldDescriptorProto


@dataclass(frozen=True, slots=True)
class RpcStatus:
    """What a receiver says; ``retry_delay`` in seconds is None where it holds no RetryInfo."""

    message: str
    retry_delay: float | None


class RpcStatusParser:
    """Parses serialized ``google.rpc.Status`` messages."""

    def __init__(self) -> None:
        # A pool of its own: the default one may get the genuine messages from another package.
        pool = descriptor_pool.DescriptorPool()
        for module in (any_pb2, duration_pb2):
            pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
        pool.AddSerializedFile(_file().SerializeToString())
        self._status: Any = message_factory.GetMessageClass(pool.FindMessageTypeByName("spanweld.Status"))
        self._retry_info: Any = message_factory.GetMessageClass(
            pool.FindMessageTypeByName("spanweld.RetryInfo")
        )

    def parse(self, data: bytes) -> RpcStatus | None:
        """The status, or None when the bytes are none."""
        try:
            status = self._status.FromString(data)
            retry_delay = None
            for detail in status.details:
                if detail.type_url.endswith("/google.rpc.RetryInfo"):
                    delay = self._retry_info.FromString(detail.value).retry_delay
                    retry_delay = max(0.0, delay.seconds + delay.nanos / 1e9)
            return RpcStatus(status.message, retry_delay)
        except DecodeError:
            return None


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name=_FILE,
        package="spanweld",
        syntax="proto3",
        dependency=[any_pb2.DESCRIPTOR.name, duration_pb2.DESCRIPTOR.name],
    )
    status = file.message_type.add(name="Status")
    status.field.add(name="code", number=1, type=_Field.TYPE_INT32, label=_Field.LABEL_OPTIONAL)
    status.field.add(name="message", number=2, type=_Field.TYPE_STRING, label=_Field.LABEL_OPTIONAL)
    status.field.add(
        name="details",
        number=3,
        type=_Field.TYPE_MESSAGE,
        type_name=".google.protobuf.Any",
        label=_Field.LABEL_REPEATED,
    )
    retry_info = file.message_type.add(name="RetryInfo")
    retry_info.field.add(
        name="retry_delay",
        number=1,
        type=_Field.TYPE_MESSAGE,
        type_name=".google.protobuf.Duration",
        label=_Field.LABEL_OPTIONAL,
    )
    return file
