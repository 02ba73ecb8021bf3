"""A few of the cases that `make fuzz-inspect` has ten thousand of, and what is too rare to come by chance."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from tests.fuzz.inspect_run import Run, examine, prepared
from tests.support import services
from tests.support.corrupt import KINDS, Damage, Sample, damage

CASES = 200


def test_damaged_executables() -> None:
    with prepared() as paths:
        run = Run(first=1_000_000, cases=CASES, seed=1, paths=paths)
        run.go(jobs=2)
    assert not run.findings, "\n".join(f"case {finding.case}: {finding.what}" for finding in run.findings)
    assert sum(run.outcomes.values()) == CASES
    # Most damage leaves something to report, and some of it leaves no executable.
    assert {"joined", "automatic only", "refused"} <= set(run.outcomes)


def test_damage_is_the_same_again_and_is_taken_back(tmp_path: Path) -> None:
    executable = services.binary("sockets", "release")
    sample = Sample(executable, tmp_path / "copy")
    for number in range(len(KINDS)):
        done = damage(sample, random.Random(number))
        assert done == damage(sample, random.Random(number))
        with sample.damaged(done) as path:
            changed = path.stat().st_size != len(sample.content) or path.read_bytes() != sample.content
            assert changed or not any(data for _, data in done.writes)
        assert sample.path.read_bytes() == sample.content


def _resized(sample: Sample, length: int, *names: str) -> Damage:
    """The file at a new length, and sections that reach up to its end."""
    writes = []
    for index, section in enumerate(sample.sections):
        if section.name in names:
            at = sample.section_headers + 64 * index + 32
            writes.append((at, struct.pack("<Q", length - section.offset)))
    return Damage(length=length, writes=writes)


@pytest.fixture
def users(tmp_path: Path) -> Sample:
    return Sample(services.binary("users", "release"), tmp_path / "users")


def test_a_sparse_file_of_terabytes(users: Sample) -> None:
    done = _resized(users, 1 << 42, ".rodata", ".symtab", ".strtab", ".rela.dyn", ".eh_frame", ".text")
    with users.damaged(done) as path:
        examine(path)


@pytest.mark.parametrize(
    "name", [b"_ZN3raw4poll", b"3raw4poll\0", b"_R20build_recording_span", b"4poll", b"TaskIdGuard\0_ZN"]
)
def test_names_that_are_looked_for_all_over(users: Sample, name: bytes) -> None:
    # A table of its own at the end of the file, thirty times the one that was there.
    start, size = len(users.content), 1 << 26
    index = next(index for index, section in enumerate(users.sections) if section.name == ".strtab")
    header = (users.section_headers + 64 * index + 24, struct.pack("<QQ", start, size))
    with users.damaged(Damage(writes=[header], length=start + size)) as path:
        with path.open("r+b") as file:
            file.seek(start)
            file.write((name * (size // len(name) + 1))[:size])
        examine(path)


def test_every_symbol_has_the_name_of_a_probed_function(users: Sample) -> None:
    table, names = users.symbols, users.strings
    assert table is not None
    assert names is not None
    place = users.content.index(b"20build_recording_span", names.offset)
    start = users.content.rindex(b"\0", 0, place) + 1 - names.offset
    symbols = bytearray(users.content[table.offset : table.offset + table.size])
    for at, byte in enumerate(struct.pack("<I", start)):
        symbols[at::24] = bytes([byte]) * (len(symbols) // 24)
    with users.damaged(Damage(writes=[(table.offset, bytes(symbols))])) as path:
        examine(path)


def test_versions_without_end(users: Sample) -> None:
    constants = next(section for section in users.sections if section.name == ".rodata")
    text = b"".join(b"/tokio-1.2.%d/src/" % number for number in range(constants.size // 24))
    with users.damaged(Damage(writes=[(constants.offset, text[: constants.size])])) as path:
        examine(path)
