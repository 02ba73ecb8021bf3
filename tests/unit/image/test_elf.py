"""What is and what is not an executable, and files that lie about themselves."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import pytest

from spanweld.errors import ImageError
from spanweld.image import Image, Language, analyse, examine
from spanweld.image.elf import ThreadLocalBlock
from spanweld.model import VirtAddr
from tests.unit.image.samples import FAKE_TOKIO, PLAIN, USES_TOKIO, RustBuilder


def test_facts_of_a_rust_program(rust: RustBuilder) -> None:
    with Image.open(rust(PLAIN, "-O")) as image:
        assert image.is_pie
        assert not image.is_static
        assert image.section(".text") is not None
        assert image.build_id is None or set(image.build_id) <= set("0123456789abcdef")
        facts = examine(image)
    assert facts.language is Language.RUST
    assert facts.has_symbols
    assert facts.rustc is not None
    assert facts.rustc_hash is not None
    assert facts.task_id is None
    assert "tokio" in facts.task_id_reason


def test_fixed_address_and_static(rust: RustBuilder) -> None:
    with Image.open(rust(PLAIN, "-O", "-Crelocation-model=static", "-Ctarget-feature=+crt-static")) as image:
        assert not image.is_pie
        assert image.is_static


def test_address_to_file_offset_agrees_with_the_bytes(rust: RustBuilder) -> None:
    path = rust(PLAIN, "-O")
    content = path.read_bytes()
    with Image.open(path) as image:
        text = image.section(".text")
        assert text is not None
        offset = image.file_offset(text.address)
        assert offset == text.offset
        assert image.read_memory(text.address, 32) == content[offset : offset + 32]
        assert image.is_executable(text.address)
        assert image.file_offset(1 << 60) is None
        assert image.read_memory(1 << 60, 1) is None


def test_thread_local_block_ends_at_the_thread_pointer() -> None:
    block = ThreadLocalBlock(address=VirtAddr(0), file_size=0, memory_size=0x181, alignment=64)
    assert block.offset_from_fs(0) == -0x1C0
    assert block.offset_from_fs(0x30) == -0x190


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file") as error:
        analyse(tmp_path / "nothing")
    assert error.value.remedy


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"#!/bin/sh\nexec ./service\n", "script .for /bin/sh"),
        (b"#!\x1b[31m\n", "script .for an interpreter"),
        (b"MZ" + bytes(100), "not an ELF executable"),
        (b"\x7fELF", "ends inside its header"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, 62), "ends inside its header"),
        (b"\x7fELF\x01\x01\x01" + bytes(9) + struct.pack("<HH", 2, 3) + bytes(32), "32-bit"),
        (b"\x7fELF\x01\x01\x01" + bytes(9) + struct.pack("<HH", 2, 62) + bytes(32), "32-bit"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, 183) + bytes(44), "AArch64"),
        (b"\x7fELF\x02\x02\x01" + bytes(9) + struct.pack(">HH", 2, 22) + bytes(44), "s390x"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, 999) + bytes(44), "machine 999"),
        (b"\x7fELF\x09\x01\x01" + bytes(9) + struct.pack("<HH", 2, 62) + bytes(44), "class 9"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 1, 62) + bytes(44), "an object file"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 4, 62) + bytes(44), "a core dump"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, 62) + bytes(44), "0 program headers"),
    ],
)
def test_other_kinds_of_file(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=words) as error:
        analyse(path)
    assert error.value.remedy
    assert str(path) in error.value.message


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/zero")):
        with pytest.raises(ImageError, match="not a regular file"):
            analyse(path)


def test_go_and_c(go_program: Path, c_program: Path) -> None:
    go = analyse(go_program)
    assert go.language is Language.GO
    with pytest.raises(ImageError, match="Go program"):
        go.require_rust()
    c = analyse(c_program)
    assert c.language is Language.OTHER
    with pytest.raises(ImageError, match="no sign of rustc"):
        c.require_rust()


def test_stripped(stripped: Path) -> None:
    facts = analyse(stripped)
    facts.require_rust()
    assert not facts.has_symbols
    assert facts.task_id is None
    assert facts.rustc_hash is not None


def test_without_section_headers(rust: RustBuilder, tmp_path: Path) -> None:
    content = bytearray(rust(PLAIN, "-O").read_bytes())
    struct.pack_into("<Q", content, 40, 0)
    path = tmp_path / "file"
    path.write_bytes(content)
    facts = analyse(path)
    assert facts.language is Language.RUST
    assert facts.rustc is None
    assert facts.rustc_hash is not None


def test_truncated_at_many_lengths(rust: RustBuilder, tmp_path: Path) -> None:
    content = rust(PLAIN, "-O").read_bytes()
    path = tmp_path / "file"
    with Image.open(rust(PLAIN, "-O")) as image:
        end = max(segment.offset + segment.file_size for segment in image.loads)
    lengths = {*range(0, 200, 3), *range(200, len(content), max(1, len(content) // 60))}
    for length in sorted(lengths):
        path.write_bytes(content[:length])
        if length < end:
            with pytest.raises(ImageError) as error:
                analyse(path)
            assert error.value.remedy
        else:
            # Only what a process does not need has been cut off.
            assert not analyse(path).has_symbols


def test_corrupted_files(rust: RustBuilder, tmp_path: Path) -> None:
    """Whatever bytes are changed, the answer is facts or an ImageError."""
    source = rust(USES_TOKIO, "-O", libraries={"tokio": FAKE_TOKIO}).read_bytes()
    headers = struct.unpack_from("<Q", source, 40)[0]
    generator = random.Random(20)
    path = tmp_path / "file"
    failed = 0
    for turn in range(300):
        content = bytearray(source)
        first, last = ((0, 900), (headers, len(source)), (0, len(source)))[turn % 3]
        for _ in range(generator.choice((1, 4, 40))):
            value = generator.choice((0, 1, 0x7F, 0x80, 0xFF, generator.randrange(256)))
            content[generator.randrange(first, last)] = value
        path.write_bytes(content)
        try:
            analyse(path)
        except ImageError:
            failed += 1
    assert 0 < failed < 300


def test_a_huge_sparse_file(rust: RustBuilder, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(rust(PLAIN, "-O").read_bytes())
    os.truncate(path, 1 << 40)
    assert analyse(path).language is Language.RUST


def test_a_file_that_shrinks_while_it_is_read(rust: RustBuilder, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(rust(PLAIN, "-O").read_bytes())
    with Image.open(path) as image:
        os.truncate(path, 4096)
        with pytest.raises(ImageError, match="became shorter"):
            examine(image)
