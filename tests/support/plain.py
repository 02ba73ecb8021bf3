"""The program of tests/e2e/targets/plain.rs, and how it was started."""

from __future__ import annotations

import functools
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "e2e/targets/plain.rs"


@functools.cache
def plain() -> Path:
    """Compiles it, once, where every user may execute it."""
    folder = Path(tempfile.mkdtemp(prefix="spanweld-plain-"))
    folder.chmod(0o755)
    program = folder / "plain"
    subprocess.run(["rustc", "--edition", "2024", "-O", str(SOURCE), "-o", str(program)], check=True)
    return program
