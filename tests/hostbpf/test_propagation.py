"""What the BPF programs make of headers that propagate.

Against models by the letter of the specifications, and against OpenTelemetry's own propagators for Python.
"""

from __future__ import annotations

import itertools
import random
import re
import struct
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from opentelemetry import baggage as otel_baggage
from opentelemetry import trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.b3 import B3MultiFormat
from opentelemetry.propagators.jaeger import JaegerPropagator
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from spanweld.agent import encode_propagation
from spanweld.join import baggage_attributes
from spanweld.settings import Propagator, Settings, propagators_from_environment
from tests.hostbpf.build import MODEL, build, compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs clang")

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, RANDOM = 1, 2
TRACEPARENT = ("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-01")
W3C = (Propagator.TRACECONTEXT, Propagator.BAGGAGE)
NO_PARENT = "0" * 16

Header = tuple[str, str]


class Case(NamedTuple):
    """One request: its headers in their order, and who reads them."""

    headers: Sequence[Header]
    propagators: tuple[Propagator, ...] = W3C
    piece: int = 20000


class Made(NamedTuple):
    """What became of it."""

    trace_id: str
    parent: str
    flags: int
    tracestate: str
    baggage: str


class Programs:
    """The programs on the host; any number of requests in one go."""

    def __init__(self, binary: Path) -> None:
        self._binary = binary

    def play(self, cases: Iterable[Case]) -> list[Made]:
        given = bytearray()
        for case in cases:
            lines = "".join(f"{name}: {value}\r\n" for name, value in case.headers).encode("latin-1")
            given += encode_propagation(Settings(propagators=case.propagators))
            given += struct.pack("<II", case.piece, len(lines)) + lines
        done = subprocess.run(
            [self._binary], input=bytes(given), capture_output=True, timeout=600, check=False
        )
        assert not done.returncode, done.stderr.decode()
        found = re.findall(
            r"^(\w{32}) (\w{16}) (\d) \[(.*)\] \[(.*)\]$", done.stdout.decode("latin-1"), re.MULTILINE
        )
        return [Made(one[0], one[1], int(one[2]), one[3], one[4]) for one in found]

    def one(self, *headers: Header, propagators: str = "", piece: int = 20000) -> Made:
        chosen = propagators_from_environment({"OTEL_PROPAGATORS": propagators})
        return self.play([Case(headers, chosen, piece)])[0]


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    folder = tmp_path_factory.mktemp("propagate")
    sources = (*(source for source in MODEL if source != "testing.c"), "propagate.c")
    return Programs(build(sources, "address,undefined", folder / "propagate"))


# ---- models, by the grammars

# https://www.w3.org/TR/trace-context-2/#tracestate-header-field-values
_STATE_MEMBER = re.compile(
    r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
# https://www.w3.org/TR/baggage/#definition
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_VALUE = r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*"
_BLANKS = r"[ \t]*"
_MEMBER = re.compile(
    rf"{_TOKEN}{_BLANKS}={_BLANKS}{_VALUE}"
    rf"(?:{_BLANKS};{_BLANKS}(?:{_TOKEN}{_BLANKS}={_BLANKS}{_VALUE}|{_TOKEN}))*"
)


def tracestate_of(values: Sequence[str]) -> str:
    """What is to be passed on of these tracestate headers."""
    kept: list[str] = []
    members = [member.strip(" \t") for member in ",".join(values).split(",")]
    members = [member for member in members if member]
    if any(not _STATE_MEMBER.fullmatch(member) for member in members) or len(members) > 32:
        return ""
    for member in members:
        if len(",".join([*kept, member])) <= 2048:
            kept.append(member)
    return ",".join(kept)


def baggage_of(values: Sequence[str]) -> str:
    """What is to be passed on of these baggage headers."""
    kept: list[str] = []
    for text in ",".join(values).split(","):
        member = text.strip(" \t")
        short = member.replace(" ", "").replace("\t", "")
        if _MEMBER.fullmatch(member) and len(",".join([*kept, short])) <= 8192:
            kept.append(short)
    return ",".join(kept)


def check_texts(programs: Programs, lists: Sequence[Sequence[str]], piece: int = 20000) -> None:
    """Each list of values is sent in tracestate headers, and in baggage headers."""
    cases = [
        Case(
            [TRACEPARENT, *((name, value) for name in ("tracestate", "baggage") for value in values)],
            W3C,
            piece,
        )
        for values in lists
    ]
    for values, made in zip(lists, programs.play(cases), strict=True):
        assert (made.trace_id, made.parent) == (TRACE_ID, SPAN_ID)
        assert made.tracestate == tracestate_of(values), values
        assert made.baggage == baggage_of(values), values


def test_every_short_text(programs: Programs) -> None:
    """All texts of up to five bytes, one for each kind of byte."""
    kinds = 'a_/A("=;, \t\x7f'
    check_texts(
        programs, [["".join(text)] for length in range(5) for text in itertools.product(kinds, repeat=length)]
    )
    check_texts(programs, [["a=" + "".join(text)] for text in itertools.product(kinds, repeat=3)])
    check_texts(programs, [["a=b;" + "".join(text)] for text in itertools.product('a=;, "', repeat=5)])


def test_every_byte_in_every_place(programs: Programs) -> None:
    lists = []
    for byte in range(1, 256):
        if chr(byte) in "\r\n":
            continue
        lists += [
            [template.replace("?", chr(byte))]
            for template in (
                "?=1",
                "a?=1",
                "a=?",
                "a=1?",
                "a=1?2",
                "a=1;?",
                "a=1;b?",
                "a=1;b=?",
                "x=y,a?=1,z=1",
            )
        ]
    check_texts(programs, lists)


def test_limits_of_members(programs: Programs) -> None:
    lists = [
        *(["a" * length + "=1"] for length in (255, 256, 257)),
        *(["a" * length + "@b=1"] for length in (241, 242, 254, 255)),
        *(["a=" + "1" * length] for length in (255, 256, 257)),
        *(["a=" + " " * length + "1"] for length in (254, 255, 256)),
        *(["a=" + "1" * length + " " * 300] for length in (255, 256, 257)),
        *([",".join(f"k{number}=v" for number in range(length))] for length in (31, 32, 33, 64, 180, 400)),
        *([f"k{number}=v" for number in range(length)] for length in (31, 32, 33)),
        [",".join(f"k{number}=v" for number in range(32)) + ",,  ,"],
        *([",".join("k" * 200 + f"{number:02}=v" for number in range(length))] for length in (9, 10, 11, 32)),
        # Room for a short one after a long one that had none.
        [",".join("k" * 200 + f"{number:02}=v" for number in range(10)) + ",short=1"],
        [",".join("k" * 200 + f"{number:02}=v" for number in range(10)) + ",sh rt=1"],
    ]
    for piece in (20000, 1000, 64, 7):
        check_texts(programs, lists, piece)


@pytest.mark.parametrize("length", [8191, 8192, 8193])
def test_the_length_of_baggage(programs: Programs, length: int) -> None:
    text = "first=1," + "k=" + "v" * (length - 8 - 2)
    assert len(text) == length
    made = programs.one(("baggage", text))
    assert made.baggage == (text if length <= 8192 else "first=1")
    blanks = text.replace(",", " \t,  ")
    assert programs.one(("baggage", blanks)).baggage == made.baggage
    members = ",".join(f"k{number}=" + "v" * 119 for number in range(64))
    assert programs.one(("baggage", members)).baggage == members


def test_lines_end_anywhere_in_a_piece(programs: Programs) -> None:
    """Long lines come in stretches, which end where the system calls and the reader's steps say."""
    texts = [["a=" + "1" * (length - 2)] for length in range(420, 600)]
    texts += [["a=1," * 100 + "b=" + "2" * (length % 200)] for length in range(0, 200, 7)]
    for piece in (20000, 513, 64, 63, 1):
        check_texts(programs, texts, piece)


def random_text(rng: random.Random) -> str:
    """Something like a list of members, now and then damaged."""
    keys = (
        "a",
        "rojo",
        "tenant@vendor",
        "k1",
        "Upper",
        "x.y",
        "0d",
        "@",
        "a b",
        "",
        "k" * rng.choice((3, 250, 256)),
    )
    values = (
        "1",
        "t61rcWkgMzE",
        "%20%C3%A4",
        "a=b",
        " x ",
        "",
        '"q"',
        "v" * rng.choice((5, 256, 257)),
        "p;q=r",
        "p;;",
    )
    members = []
    for _ in range(rng.choice((1, 2, 3, 31, 33))):
        weights = (8, 8, 2, 8, 1, 1, 1, 0.2, 0.2, 0.2, 1)
        key = rng.choices(keys, weights)[0]
        value = rng.choices(values, (9, 9, 3, 1, 1, 0.3, 0.5, 1, 1, 0.3))[0]
        members.append(f"{key}={value}")
    text = rng.choice((",", ", ", " ,", ",,", " \t,\t ")).join(members)
    if rng.random() < 0.2:
        at = rng.randrange(len(text))
        text = text[:at] + chr(rng.choice((0x20, 0x22, 0x3D, 0x2C, 0x7F, 0x80, 0xFF, 9, 1))) + text[at + 1 :]
    return text


def test_random_texts(programs: Programs) -> None:
    rng = random.Random(5)
    check_texts(programs, [[random_text(rng) for _ in range(rng.choice((1, 1, 2, 3)))] for _ in range(4000)])
    check_texts(programs, [[random_text(rng), random_text(rng)] for _ in range(500)], piece=11)


# ---- OpenTelemetry's own


def extracted(propagator: TextMapPropagator, headers: Sequence[Header]) -> Context:
    """What a propagator for Python finds."""
    carrier: dict[str, list[str]] = {}
    for name, value in headers:
        carrier.setdefault(name.lower(), []).append(value)
    return propagator.extract(carrier, Context())


def span_context(propagator: TextMapPropagator, headers: Sequence[Header]) -> trace.SpanContext:
    """The span context of it; an invalid one if there is none."""
    return trace.get_current_span(extracted(propagator, headers)).get_span_context()


def test_tracestate_as_opentelemetry_reads_it(programs: Programs) -> None:
    """Where level 1 of the specification and level 2 agree, and no key comes twice."""
    rng = random.Random(6)
    lists = [[random_text(rng)] for _ in range(3000)]
    lists = [
        values
        for values in lists
        if not re.search(r"@|(?:^|,)\s*\d", values[0])
        and len(values[0]) <= 2048
        and len(keys := re.findall(r"(?:^|,)\s*([^=,]*)=", values[0])) == len(set(keys))
    ]
    lists += [[""], ["a=1,,b=2"], [" a=1\t"], ["a=1", "b=2"], ["a=1", ""], ["", "a=1"], ["a =1"], ["a= 1"]]
    cases = [Case([TRACEPARENT, *(("tracestate", value) for value in values)]) for values in lists]
    for case, made in zip(cases, programs.play(cases), strict=True):
        theirs = span_context(TraceContextTextMapPropagator(), case.headers).trace_state
        assert made.tracestate == theirs.to_header(), case.headers
    assert sum(bool(tracestate_of(values)) for values in lists) > 300


def test_baggage_as_opentelemetry_reads_it(programs: Programs) -> None:
    """Theirs decodes keys too, a plus as a blank, strips what it decoded, and keeps properties."""
    rng = random.Random(7)
    texts = [random_text(rng) for _ in range(2000)]
    texts = [text for text in texts if ";" not in text and "+" not in text and len(text) <= 4000]
    texts += ["a=1,a=2", "a", "a=", "=1", "a=1,b", "a = 1", "key=v%C3%A4lue", "a=%2C%3D", ",", "a=1 2"]
    cases = [Case([("baggage", text)]) for text in texts]
    for text, made in zip(texts, programs.play(cases), strict=True):
        theirs = otel_baggage.get_all(extracted(W3CBaggagePropagator(), [("baggage", text)]))
        ours = baggage_attributes(made.baggage, frozenset("*"))
        assert {key: value.strip() for key, value in ours.items()} == dict(theirs), text


def test_traceparent_as_opentelemetry_reads_it(programs: Programs) -> None:
    rng = random.Random(8)
    texts = [
        f"{version}-{TRACE_ID}-{SPAN_ID}-{flags}"
        for version in ("00", "01", "cc", "ff")
        for flags in ("00", "01", "03")
    ]
    for _ in range(2000):
        text = rng.choice(texts[:12])
        at = rng.randrange(len(text))
        texts.append(text[:at] + rng.choice("0fgA- .") + text[at + rng.choice((0, 1)) :])
    for made, text in zip(programs.play(Case([("traceparent", text)]) for text in texts), texts, strict=True):
        theirs = span_context(TraceContextTextMapPropagator(), [("traceparent", text)])
        assert (made.parent != NO_PARENT) == theirs.is_valid, text
        if theirs.is_valid:
            assert made == Made(
                f"{theirs.trace_id:032x}",
                f"{theirs.span_id:016x}",
                theirs.trace_flags & (SAMPLED | RANDOM),
                "",
                "",
            )


# ---- B3

B3 = (Propagator.B3,)
SHORT = TRACE_ID[16:]
OTHER_TRACE, OTHER_SPAN = "a" * 32, "b" * 16


@pytest.mark.parametrize(
    ("text", "trace_id", "flags"),
    [
        (f"{TRACE_ID}-{SPAN_ID}-1", TRACE_ID, 1),
        (f"{TRACE_ID}-{SPAN_ID}-d", TRACE_ID, 1),
        (f"{TRACE_ID}-{SPAN_ID}-0", TRACE_ID, 0),
        (f"{TRACE_ID}-{SPAN_ID}-1-{OTHER_SPAN}", TRACE_ID, 1),
        (f"{TRACE_ID}-{SPAN_ID}-0-{OTHER_SPAN}", TRACE_ID, 0),
        # The sampler decides: here all are sampled.
        (f"{TRACE_ID}-{SPAN_ID}", TRACE_ID, 1),
        (f"{SHORT}-{SPAN_ID}-1", "0" * 16 + SHORT, 1),
        (f"{TRACE_ID.upper()}-{SPAN_ID.upper()}-1", TRACE_ID, 1),
        (f" \t{TRACE_ID}-{SPAN_ID}-1 ", TRACE_ID, 1),
    ],
)
def test_b3(programs: Programs, text: str, trace_id: str, flags: int) -> None:
    for name in ("b3", "B3"):
        for propagators in ("b3", "b3multi", "tracecontext,b3", "b3,jaeger"):
            assert programs.one((name, text), propagators=propagators) == Made(
                trace_id, SPAN_ID, flags, "", ""
            )
    assert programs.one(("b3", text)).parent == NO_PARENT  # nobody asked for it


@pytest.mark.parametrize(
    "text",
    [
        *("", "1", "d", "2", "x", "-", "11", "true", f"{TRACE_ID}", f"{TRACE_ID}-", f"-{SPAN_ID}-1"),
        *(
            f"{TRACE_ID}-{SPAN_ID}-",
            f"{TRACE_ID}-{SPAN_ID}-2",
            f"{TRACE_ID}-{SPAN_ID}-D",
            f"{TRACE_ID}-{SPAN_ID}1",
        ),
        *(f"{TRACE_ID}-{SPAN_ID}-1-", f"{TRACE_ID}-{SPAN_ID}-1-{OTHER_SPAN}-", f"{TRACE_ID}-{SPAN_ID}-11"),
        *(f"{TRACE_ID}-{SPAN_ID}-1-{OTHER_SPAN[1:]}", f"{TRACE_ID}-{SPAN_ID}-1-{OTHER_SPAN}b"),
        *(f"{TRACE_ID}0-{SPAN_ID}-1", f"{TRACE_ID[1:]}-{SPAN_ID}-1", f"{SHORT[1:]}-{SPAN_ID}-1"),
        *(f"{TRACE_ID}-{SPAN_ID[1:]}-1", f"{TRACE_ID}-{SPAN_ID}0-1", f"{'0' * 32}-{SPAN_ID}-1"),
        *(f"{TRACE_ID}-{'0' * 16}-1", f"{TRACE_ID[:-1]}g-{SPAN_ID}-1", f"{TRACE_ID} -{SPAN_ID}-1"),
        *(f"{TRACE_ID}_{SPAN_ID}-1", f"{TRACE_ID}-{SPAN_ID}-1,", "x" * 500, f"{'0' * 500}-{SPAN_ID}-1"),
    ],
)
def test_what_is_no_b3(programs: Programs, text: str) -> None:
    made = programs.one(("b3", text), propagators="b3")
    assert made.parent == NO_PARENT
    assert made.trace_id not in (TRACE_ID, "0" * 32)
    assert made.flags == 1
    # The other format is tried then.
    multi = (("X-B3-TraceId", OTHER_TRACE), ("X-B3-SpanId", OTHER_SPAN), ("X-B3-Sampled", "0"))
    made = programs.one(("b3", text), *multi, propagators="b3")
    assert (made.trace_id, made.parent, made.flags) == (OTHER_TRACE, OTHER_SPAN, 0)


@pytest.mark.parametrize(
    ("sampled", "debug", "flags"),
    [
        *(
            ("1", None, 1),
            ("0", None, 0),
            ("true", None, 1),
            ("false", None, 0),
            ("True", None, 1),
            ("d", None, 1),
        ),
        *(
            (None, None, 1),
            (None, "1", 1),
            ("0", "1", 1),
            (None, "0", 1),
            ("0", "0", 0),
            ("", None, 1),
            ("2", None, 1),
        ),
    ],
)
def test_b3_multi(programs: Programs, sampled: str | None, debug: str | None, flags: int) -> None:
    headers = [("X-B3-TraceId", TRACE_ID), ("x-b3-spanid", SPAN_ID), ("X-B3-PARENTSPANID", OTHER_SPAN)]
    if sampled is not None:
        headers.append(("X-B3-Sampled", sampled))
    if debug is not None:
        headers.append(("x-b3-flags", debug))
    for order in (headers, headers[::-1]):
        made = programs.one(*order, propagators="b3multi")
        assert made == Made(TRACE_ID, SPAN_ID, flags, "", "")
    # Without a span context it is only a decision.
    made = programs.one(*headers[2:], propagators="b3")
    assert made.parent == NO_PARENT
    assert made.flags == flags


@pytest.mark.parametrize(
    "trace_id", ["", "0" * 32, "0" * 16, TRACE_ID[1:], TRACE_ID + "0", SHORT[1:], "g" * 32, "x" * 500]
)
def test_what_is_no_b3_multi(programs: Programs, trace_id: str) -> None:
    for headers in (
        (("X-B3-TraceId", trace_id), ("X-B3-SpanId", SPAN_ID)),
        (
            ("X-B3-TraceId", TRACE_ID),
            ("X-B3-SpanId", trace_id if len(trace_id) != 16 or "1" not in trace_id else ""),
        ),
        (("X-B3-TraceId", TRACE_ID),),
        (("X-B3-SpanId", SPAN_ID),),
        (("X-B3-TraceIds", TRACE_ID), ("X-B3-SpanId", SPAN_ID)),
        (("X-B3-TraceId", TRACE_ID), ("X-B4-SpanId", SPAN_ID)),
    ):
        assert programs.one(*headers, propagators="b3").parent == NO_PARENT


def test_the_single_header_goes_before_the_others(programs: Programs) -> None:
    single = ("b3", f"{TRACE_ID}-{SPAN_ID}-0")
    multi = (("X-B3-TraceId", OTHER_TRACE), ("X-B3-SpanId", OTHER_SPAN), ("X-B3-Sampled", "1"))
    for headers in ((single, *multi), (*multi, single)):
        assert programs.one(*headers, propagators="b3multi") == Made(TRACE_ID, SPAN_ID, 0, "", "")


def test_of_one_b3_header_the_first_counts(programs: Programs) -> None:
    other = f"{OTHER_TRACE}-{OTHER_SPAN}-1"
    assert (
        programs.one(("b3", f"{TRACE_ID}-{SPAN_ID}-1"), ("b3", other), propagators="b3").trace_id == TRACE_ID
    )
    headers = (("X-B3-TraceId", TRACE_ID), ("X-B3-SpanId", SPAN_ID))
    again = (("X-B3-TraceId", OTHER_TRACE), ("X-B3-SpanId", OTHER_SPAN))
    assert programs.one(*headers, *again, propagators="b3").trace_id == TRACE_ID


def test_a_decision_alone(programs: Programs) -> None:
    assert programs.one(("b3", "0"), propagators="b3").flags == 0
    assert programs.one(("b3", "0"), TRACEPARENT, propagators="b3,tracecontext") == Made(
        TRACE_ID, SPAN_ID, 1, "", ""
    )
    assert programs.one(("b3", "0"), TRACEPARENT, propagators="tracecontext,b3") == Made(
        TRACE_ID, SPAN_ID, 1, "", ""
    )
    assert programs.one(("b3", "0"), ("uber-trace-id", "a:b:0:1"), propagators="jaeger,b3").flags == 1
    assert programs.one(("b3", "0")).flags == 1


def test_b3_as_opentelemetry_reads_it(programs: Programs) -> None:
    """Theirs does not look at what follows the sampling state, and takes it if it is unknown for "no"."""
    rng = random.Random(9)
    cases = []
    for _ in range(3000):
        fields = [
            rng.choice((TRACE_ID, SHORT, TRACE_ID.upper(), TRACE_ID[3:], "0" * 16, TRACE_ID + "1", "g" * 16)),
            rng.choice((SPAN_ID, SPAN_ID, SPAN_ID.upper(), SPAN_ID[1:], "0" * 16, SPAN_ID + "1", "-")),
            rng.choice(("0", "1", "d")),
        ]
        if rng.random() < 0.5:
            headers: list[Header] = [("b3", "-".join(fields[: rng.choice((2, 3))]))]
        else:
            names = ("X-B3-TraceId", "X-B3-SpanId", "X-B3-Sampled")
            headers = list(zip(names, fields, strict=True))
            rng.shuffle(headers)
        cases.append(Case(headers, B3))
    valid = 0
    for case, made in zip(cases, programs.play(cases), strict=True):
        theirs = span_context(B3MultiFormat(), case.headers)
        assert (made.parent != NO_PARENT) == theirs.is_valid, case.headers
        if theirs.is_valid:
            valid += 1
            expected = Made(
                f"{theirs.trace_id:032x}", f"{theirs.span_id:016x}", int(theirs.trace_flags), "", ""
            )
            assert made == expected, case.headers
    assert valid > 500


# ---- Jaeger


@pytest.mark.parametrize(
    ("text", "trace_id", "parent", "flags"),
    [
        (f"{TRACE_ID}:{SPAN_ID}:0:1", TRACE_ID, SPAN_ID, 1),
        (f"{TRACE_ID}:{SPAN_ID}:0:0", TRACE_ID, SPAN_ID, 0),
        (f"{TRACE_ID}:{SPAN_ID}:{OTHER_SPAN}:01", TRACE_ID, SPAN_ID, 1),
        (f"{TRACE_ID}:{SPAN_ID}:0:3", TRACE_ID, SPAN_ID, 1),
        (f"{TRACE_ID}:{SPAN_ID}:0:2", TRACE_ID, SPAN_ID, 0),
        (f"{TRACE_ID}:{SPAN_ID}:0:ff", TRACE_ID, SPAN_ID, 1),
        (f"{TRACE_ID}%3A{SPAN_ID}%3a0%3A1", TRACE_ID, SPAN_ID, 1),
        (f"{TRACE_ID.upper()}:{SPAN_ID}:0:1", TRACE_ID, SPAN_ID, 1),
        (" a:b:0:1 ", "a".zfill(32), "b".zfill(16), 1),
        (f"{SHORT}:1:0:1", SHORT.zfill(32), "1".zfill(16), 1),
        (f"{TRACE_ID[5:]}:{SPAN_ID[3:]}:0:1", TRACE_ID[5:].zfill(32), SPAN_ID[3:].zfill(16), 1),
    ],
)
def test_jaeger(programs: Programs, text: str, trace_id: str, parent: str, flags: int) -> None:
    for name in ("uber-trace-id", "Uber-Trace-Id"):
        for propagators in ("jaeger", "tracecontext,jaeger", "b3,jaeger", "jaeger,b3"):
            made = programs.one((name, text), propagators=propagators)
            assert made == Made(trace_id, parent, flags, "", "")
    assert programs.one(("uber-trace-id", text)).parent == NO_PARENT


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ":",
            ":::",
            "0:b:0:1",
            "a:0:0:1",
            f"{'0' * 32}:b:0:1",
            "a:b:0",
            "a:b:0:",
            "a:b::1",
            "a::0:1",
            ":b:0:1",
        ),
        *("a:b:0:1:", "a:b:0:1:2", "a:b:0:111", "a:b:0:x", "a:b:0:1x", "g:b:0:1", "a:g:0:1", "a:b:g:1"),
        *(
            f"{TRACE_ID}1:b:0:1",
            f"a:{SPAN_ID}1:0:1",
            f"a:b:{SPAN_ID}1:1",
            "a b:0:1",
            "a%3b%3a",
            "a%3Ab%3A0%3",
            "x" * 500,
        ),
    ],
)
def test_what_is_no_jaeger(programs: Programs, text: str) -> None:
    made = programs.one(("uber-trace-id", text), propagators="jaeger")
    assert made.parent == NO_PARENT
    assert made.flags == 1


def test_jaeger_as_opentelemetry_reads_it(programs: Programs) -> None:
    """Theirs takes fields of any length, since it reads numbers, and does not decode colons."""
    rng = random.Random(10)
    cases = []
    for _ in range(2000):
        fields = [
            rng.choice((TRACE_ID, SHORT, TRACE_ID[3:], "0", "1", "g", "", TRACE_ID.upper())),
            rng.choice((SPAN_ID, SPAN_ID[4:], "0", "1", "", "x")),
            rng.choice(("0", OTHER_SPAN, "1")),
            rng.choice(("0", "1", "2", "3", "01", "", "x")),
        ]
        text = ":".join(fields[: rng.choice((3, 4, 4, 4, 4))] + [""] * (rng.random() < 0.05))
        cases.append(Case([("uber-trace-id", text)], (Propagator.JAEGER,)))
    valid = 0
    for case, made in zip(cases, programs.play(cases), strict=True):
        theirs = span_context(JaegerPropagator(), case.headers)
        assert (made.parent != NO_PARENT) == theirs.is_valid, case.headers
        if theirs.is_valid:
            valid += 1
            expected = Made(
                f"{theirs.trace_id:032x}", f"{theirs.span_id:016x}", int(theirs.trace_flags), "", ""
            )
            assert made == expected, case.headers
    assert valid > 200


# ---- several at once


def test_the_last_that_finds_a_context_wins(programs: Programs) -> None:
    """As a composite propagator of OpenTelemetry does, whatever the order of the headers."""
    headers: dict[str, tuple[Header, str]] = {
        "tracecontext": (TRACEPARENT, TRACE_ID),
        "b3": (("b3", f"{'b' * 32}-{OTHER_SPAN}-1"), "b" * 32),
        "jaeger": (("uber-trace-id", f"{'c' * 32}:c:0:1"), "c" * 32),
    }
    bad: dict[str, Header] = {
        "tracecontext": ("traceparent", "00-bad"),
        "b3": ("b3", "bad"),
        "jaeger": ("uber-trace-id", "bad"),
    }
    some_broken = [set(), *({name} for name in headers), *(set(headers) - {name} for name in headers)]
    cases, expected = [], []
    for order, sent, broken in itertools.product(
        itertools.permutations(headers), itertools.permutations(headers), some_broken
    ):
        lines = [bad[name] if name in broken else headers[name][0] for name in sent]
        propagators = tuple(Propagator(name) for name in (*order, "baggage"))
        cases.append(Case([*lines, ("tracestate", "a=1")], propagators))
        expected.append(next(name for name in reversed(order) if name not in broken))
    for case, winner, made in zip(cases, expected, programs.play(cases), strict=True):
        assert made.trace_id == headers[winner][1], case
        # It belongs to traceparent, and goes where that goes.
        assert made.tracestate == ("a=1" if winner == "tracecontext" else "")


def test_nobody_is_asked(programs: Programs) -> None:
    headers = (
        *(TRACEPARENT, ("tracestate", "a=1"), ("baggage", "a=1"), ("b3", f"{TRACE_ID}-{SPAN_ID}-0")),
        *(("uber-trace-id", "a:b:0:0"), ("X-B3-Sampled", "0")),
    )
    made = programs.one(*headers, propagators="none")
    assert (made.parent, made.flags, made.tracestate, made.baggage) == (NO_PARENT, 1, "", "")
    made = programs.one(*headers, propagators="baggage")
    assert (made.parent, made.flags, made.tracestate, made.baggage) == (NO_PARENT, 1, "", "a=1")
    made = programs.one(*headers, propagators="tracecontext")
    assert (made.parent, made.flags, made.tracestate, made.baggage) == (SPAN_ID, 1, "a=1", "")


@pytest.mark.parametrize(
    "parent",
    [
        (),
        (("traceparent", "00-bad"),),
        (TRACEPARENT, TRACEPARENT),
        (("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-01-x"),),
    ],
)
def test_tracestate_needs_a_parent_and_baggage_does_not(
    programs: Programs, parent: tuple[Header, ...]
) -> None:
    texts = (("tracestate", "a=1"), ("baggage", "b=2"))
    for headers in ((*parent, *texts), (*texts, *parent)):
        made = programs.one(*headers)
        assert (made.parent, made.tracestate, made.baggage) == (NO_PARENT, "", "b=2")


def test_header_names_have_no_case(programs: Programs) -> None:
    for change in (str.upper, str.title, str.lower):
        made = programs.one(
            (change(TRACEPARENT[0]), TRACEPARENT[1]),
            (change("tracestate"), "a=1"),
            (change("baggage"), "b=2"),
        )
        assert made == Made(TRACE_ID, SPAN_ID, 1, "a=1", "b=2")
    for name in ("trace-state", "trace.state", "tracestates", "baggages", "baggag", "x-baggage"):
        made = programs.one(TRACEPARENT, (name, "a=1"))
        assert made == Made(TRACE_ID, SPAN_ID, 1, "", "")
