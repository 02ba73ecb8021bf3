"""The BPF programs, compiled for the host under sanitizers: each TEST() of the C files is a case here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.hostbpf.build import HERE, MODEL, build, compiler
from tests.hostbpf.fuzz import fuzz, seeds

_TEST = re.compile(r"^(?:TEST|BAD_\w+)\((\w+)[,)]", re.MULTILINE)
_FILES = sorted(path.name for path in HERE.glob("test_*.c"))
_TESTS = [
    pytest.param(name, id=f"{Path(file).stem.removeprefix('test_')}-{name}")
    for file in _FILES
    for name in _TEST.findall((HERE / file).read_text())
]

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs clang")


@pytest.fixture(scope="session")
def tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostbpf")
    return build((*MODEL, *_FILES), "address,undefined", folder / "tests")


@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
@pytest.mark.parametrize("table", ["spans", "handed_on", "wakes"])
def test_shared_tables_under_threads(tmp_path: Path, sanitizers: str, table: str) -> None:
    """Those who write, those who take away what is another's, and readers, three seconds long."""
    stress = build((f"stress_{table}.c",), sanitizers, tmp_path / "stress")
    # By name: an llvm-symbolizer that is older than the compiler finds none, and nothing is suppressed.
    symbolizer = f"external_symbolizer_path={shutil.which('addr2line')}"
    options = f"suppressions={HERE / 'tsan.supp'}:halt_on_error=1:{symbolizer}"
    done = subprocess.run(
        [stress, "3"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "TSAN_OPTIONS": options},
    )
    assert not done.returncode, done.stderr


@pytest.mark.slow
def test_fuzzing_finds_nothing(tmp_path: Path) -> None:
    """Twenty seconds from the seeds; `fuzz.py --seconds N` goes on where it left off."""
    code, output = fuzz(tmp_path, 20)
    assert not code, output


def test_seeds_are_well() -> None:
    assert len(set(seeds())) > 100


@pytest.mark.parametrize("name", _TESTS)
def test_programs(tests: Path, name: str) -> None:
    done = subprocess.run([tests, name], capture_output=True, text=True, timeout=300, check=False)
    assert not done.returncode, done.stderr
