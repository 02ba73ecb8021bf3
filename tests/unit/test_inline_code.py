"""The code that is put into targets, run here.

A root is handed its trace id and gets its parent, but not where another call of the generator is meant; a
spawned task gets its edge, and the function that spawns finds registers, flags and red zone as they were.
"""

from __future__ import annotations

from pathlib import Path

from bench.inline_cost import measure


def test_the_code_itself(tmp_path: Path) -> None:
    # Raises if one of 200,000 came out wrong.
    assert set(measure(1, tmp_path)) == {"no_agent", "no_request", "adoption", "spawn"}
