#!/usr/bin/env python3
"""Fuzzes the HTTP programs on the host, under sanitizers.

    python tests/hostbpf/fuzz.py --seconds 600

Needs clang with libFuzzer (Debian: libclang-rt-19-dev). A finding is a file; give it back as argument to
see it again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from tests.hostbpf.build import BuildError, build  # noqa: E402

SOURCES = ("host.c", "programs.c", "http.c", "fuzz_http.c")

# As in fuzz_http.c.
IN, OUT, IN_VECTOR, OUT_VECTOR, SENDFILE, CONTROL = range(6)
REOPEN, SHUTDOWN, DUP, DUP2, WAIT, THREAD, TASK, FAULT = range(8)
WITH_TASKS, WITH_DISCOVERY, WITH_SMALL_MAPS, WITH_FAULTS, AS_CLIENT, WITH_PROPAGATORS = 1, 2, 4, 8, 16, 32

_GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nA: b\r\n\r\n"

_CONTEXT = (
    b"GET / HTTP/1.1\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"
    b"tracestate: a=1 , b@c=2,,\r\nbaggage: k=v;p=q, l = %20\r\ntracestate: d=3\r\n\r\n"
)
_OTHER_CONTEXT = (
    b"GET / HTTP/1.1\r\nb3: 0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1\r\nX-B3-Sampled: 1\r\n"
    b"X-B3-TraceId: 0af7651916cd43dd\r\nX-B3-SpanId: b7ad6b7169203331\r\nX-B3-Flags: 1\r\n"
    b"uber-trace-id: 0af7651916cd43dd%3Ab7ad6b71:0:1\r\n\r\n"
)

Step = tuple[int, bytes]

CONVERSATIONS: tuple[tuple[Step, ...], ...] = (
    ((IN, _GET), (OUT, _OK), (IN, _GET), (OUT, _OK)),
    ((IN, _GET * 3), (OUT, _OK * 2), (OUT, _OK)),
    ((IN, b"POST /u HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"), (OUT, _OK)),
    ((IN, b"PUT /u HTTP/1.1\r\n" + _CHUNKED), (OUT, b"HTTP/1.1 200 OK\r\n" + _CHUNKED)),
    ((IN, b"HEAD / HTTP/1.0\r\n\r\n"), (OUT, b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n")),
    ((IN, _GET), (OUT, b"HTTP/1.1 204 No\r\n\r\n"), (IN, _GET), (OUT, b"HTTP/1.1 304 No\r\n\r\n")),
    ((IN, _GET), (OUT, b"HTTP/1.1 100 Continue\r\n\r\n"), (OUT, _OK)),
    (
        (IN, b"GET / HTTP/1.1\r\nUpgrade: ws\r\n\r\n"),
        (OUT, b"HTTP/1.1 101 Up\r\n\r\n\x81\x02ok"),
        (IN, b"\x81"),
    ),
    ((IN, b"CONNECT a:1 HTTP/1.1\r\n\r\n"), (OUT, b"HTTP/1.1 200 OK\r\n\r\nany"), (IN, b"thing")),
    ((IN, _GET), (OUT, b"HTTP/1.1 200 OK\r\n\r\nuntil close")),
    ((IN, _GET), (OUT, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"), (SENDFILE, b"\x09"), (IN, _GET)),
    (
        (
            IN,
            b"GET / HTTP/1.1\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n",
        ),
        (OUT, _OK),
    ),
    ((IN, _CONTEXT), (OUT, _OK), (IN, _OTHER_CONTEXT), (OUT, _OK)),
    ((IN, _CONTEXT * 2), (OUT, _OK), (OUT, _OK)),
    (
        (IN, b"GET / HTTP/1.1\r\nbaggage: " + b"k=v," * 150 + b"\r\ntracestate: a=" + b"1" * 500),
        (IN, b"\r\n\r\n"),
    ),
    ((IN, b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"), (OUT, _OK)),
    ((IN, b"\x16\x03\x01\x02\x00\x01"), (OUT, b"\x16\x03\x03\x00")),
    ((IN, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),),
    ((IN_VECTOR, _GET), (OUT_VECTOR, _OK), (IN_VECTOR, _GET)),
    ((IN, b"\r\nGET /" + b"x" * 100 + b" HTTP/1.1\r\nUser-Agent: " + b"y" * 90 + b"\r\n\r\n"), (OUT, _OK)),
)

WORDS = (
    *(b"GET ", b"POST ", b"HEAD ", b"CONNECT ", b"OPTIONS * ", b"PRI * HTTP/2.0\r\n\r\n", b" HTTP/1.1\r\n"),
    *(b" HTTP/1.0\r\n", b"HTTP/1.1 ", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 \r\n\r\n", b"HTTP/1.1 101 \r\n"),
    *(b"HTTP/1.1 204 \r\n", b"HTTP/1.1 304 \r\n", b"Content-Length: ", b"Transfer-Encoding: chunked\r\n"),
    *(
        b"Host: ",
        b"User-Agent: ",
        b"traceparent: ",
        b"tracestate: ",
        b"baggage: ",
        b"b3: ",
        b"X-B3-TraceId: ",
        b"X-B3-SpanId: ",
        b"uber-trace-id: ",
        b"key=value;property,",
        b":b7ad6b7169203331%3A0:1",
        b"Upgrade: ",
        b"\r\n",
        b"\r\n\r\n",
        b"\n\n",
        b"0\r\n\r\n",
    ),
    *(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", b"gzip, chunked", b"\r\n ", b"5;a\r\n"),
)


def encode(settings: int, steps: Sequence[Step], piece: int, connection: int = 0) -> bytes:
    """A conversation in the harness's form, its transfers in pieces of at most ``piece`` bytes."""
    made = bytearray([settings])
    for operation, data in steps:
        if operation in (SENDFILE, CONTROL):
            made += bytes([operation | connection << 3]) + data
            continue
        for at in range(0, len(data), piece):
            part = data[at : at + piece]
            made += bytes([operation | connection << 3, len(part)]) + part
    return bytes(made)


def seeds() -> Iterator[bytes]:
    """Each conversation whole and in pieces, under each setting, and with something in its middle."""
    for steps in CONVERSATIONS:
        for piece in (255, 24, 1):
            yield encode(0, steps, piece)
            yield encode(AS_CLIENT, steps, piece)
        for settings in (WITH_TASKS, WITH_DISCOVERY, WITH_SMALL_MAPS, WITH_FAULTS, WITH_PROPAGATORS):
            yield encode(settings, steps, 255)
            yield encode(settings | AS_CLIENT, steps, 255)
        for kind in range(8):
            yield _with_control(encode(WITH_FAULTS | WITH_PROPAGATORS, steps, 60), kind, 3)
            # Of SHUTDOWN: a read that ends or fails, in five ways.
            yield _with_control(encode(AS_CLIENT, steps, 60), SHUTDOWN, 128 | kind << 3)


def _with_control(whole: bytes, kind: int, argument: int) -> bytes:
    """The same with something between the first transfer and the second."""
    first = 1 + 2 + whole[2]
    return whole[:first] + bytes([CONTROL | kind << 5, argument]) + whole[first:]


def fuzz(
    folder: Path, seconds: int, corpus: Path | None = None, inputs: Sequence[Path] = ()
) -> tuple[int, str]:
    """Builds the harness in ``folder`` and runs it: its exit code, 0 for no finding, and what it said.

    ``corpus`` is read and grows; findings are written beside it, without one to ``folder``.
    """
    binary = build(SOURCES, "fuzzer,address,undefined", folder / "fuzz_http")
    if inputs:
        command = [str(binary), *map(str, inputs)]
    else:
        made = folder / "seeds"
        made.mkdir()
        for number, seed in enumerate(seeds()):
            (made / f"{number:03}").write_bytes(seed)
        dictionary = folder / "words"
        dictionary.write_text("".join(f'"{_escaped(word)}"\n' for word in WORDS))
        corpus = corpus or folder / "corpus"
        corpus.mkdir(exist_ok=True, parents=True)
        command = [
            str(binary),
            f"-max_total_time={seconds}",
            "-max_len=2048",
            f"-dict={dictionary}",
            f"-artifact_prefix={corpus.parent}/",
            "-print_final_stats=1",
            "-timeout=10",
            str(corpus),
            str(made),
        ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.returncode, done.stdout.decode(errors="replace")


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Fuzz the HTTP server programs on the host.")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="folder of inputs to begin with and to add to")
    parser.add_argument("inputs", nargs="*", type=Path, help="run these inputs once, and nothing else")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="spanweld-fuzz-") as folder:
        corpus = arguments.corpus or ROOT / "build/fuzz-http/corpus"
        try:
            code, output = fuzz(Path(folder), arguments.seconds, corpus, arguments.inputs)
        except BuildError as error:
            print(error, file=sys.stderr)
            return 2
    print("\n".join(output.splitlines()[-40:]))
    return 1 if code else 0


if __name__ == "__main__":
    sys.exit(main())
