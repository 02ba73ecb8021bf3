"""Services with a version of the SDK that nobody has seen; their code may not tell their layout."""

from __future__ import annotations

from pathlib import Path

from spanweld.image import Image, find_functions

_VERSION, _UNKNOWN = b"opentelemetry_sdk-0.31.0/", b"opentelemetry_sdk-0.99.0/"
_BUILDER = "<opentelemetry_sdk::trace::tracer::SdkTracer as *>::build_with_context"
# or al, 1 → mov al, 1: of a new root's flags there is no other bit that is set.
_OLD, _NEW = b"\x0c\x01", b"\xb0\x01"


def of_unknown_version(path: Path, output: Path, *, tells: bool = True) -> Path:
    """A copy of a service with another version of the SDK in its paths.

    Without ``tells`` its code does what it did, in a way that the layout cannot be read from.
    """
    content = path.read_bytes()
    assert _VERSION in content
    if not tells:
        with Image.open(path) as image:
            [function] = find_functions(image, _BUILDER)
        begin, end = function.file_offset, function.file_offset + function.size
        code = content[begin:end]
        assert code.count(_OLD) == 1
        content = content[:begin] + code.replace(_OLD, _NEW) + content[end:]
    output.write_bytes(content.replace(_VERSION, _UNKNOWN))
    output.chmod(0o755)
    return output
