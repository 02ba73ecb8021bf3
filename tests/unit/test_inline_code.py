"""The code that is put into targets, run here: a root is handed its trace id and gets its parent."""

from __future__ import annotations

from pathlib import Path

from bench.inline_cost import measure


def test_an_adoption_by_the_code_itself(tmp_path: Path) -> None:
    # Raises if one of 200,000 came out wrong.
    assert set(measure(1, tmp_path)) == {"no_agent", "no_request", "adoption"}
