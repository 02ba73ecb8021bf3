"""Four cells of the matrix, which cover its groups; `make matrix` runs all of them."""

from __future__ import annotations

import pytest

from tests.matrix.cells import Cell, build
from tests.matrix.judge import Verdict
from tests.matrix.trial import try_cell


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize(
    "cell",
    [
        Cell("0.21", "tracing", "release"),
        Cell("0.24", "raw", "fatlto"),
        Cell("0.28", "tracing", "stripped"),
        Cell("0.33", "raw", "release"),
    ],
    ids=str,
)
def test_a_cell_is_joined(cell: Cell) -> None:
    trial = try_cell(cell, build(cell))
    assert trial.verdict is Verdict.JOINED, "\n".join((trial.reason, *trial.examples, trial.messages))
