"""Four cells of the matrix, which cover its groups; `make matrix` runs all of them."""

from __future__ import annotations

import pytest

from tests.matrix.cells import REPRESENTATIVE, Cell, build
from tests.matrix.judge import Verdict
from tests.matrix.trial import try_cell


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("cell", REPRESENTATIVE, ids=str)
def test_a_cell_is_joined(cell: Cell) -> None:
    trial = try_cell(cell, build(cell))
    assert trial.verdict is Verdict.JOINED, "\n".join((trial.reason, *trial.examples, trial.messages))
