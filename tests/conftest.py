"""For all tests: in CI a skipped one is a failed one, and some folders are for who asks for them."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Hours, or a virtual machine: `pytest tests/vm`, not `pytest`.
ONLY_IF_NAMED = (HERE / "vm", HERE / "profiles")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves those folders out unless an argument names one or something in it."""
    named = [config.invocation_params.dir / argument.partition("::")[0] for argument in config.args]
    for folder in ONLY_IF_NAMED:
        if folder in (collection_path, *collection_path.parents):
            return None if any(folder in (path, *path.parents) for path in named) else True
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turns a skip into a failure that names its reason: what was not run must not look green."""
    report = yield
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and CI expects none: {report.longrepr}"
    return report
