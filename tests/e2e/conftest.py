"""End-to-end tests: the agent on real services. They need root, and fail where they do not have it."""

from __future__ import annotations

import os

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that could not be run is not a test that passed: so no skip."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.fail("this test loads BPF programs: run pytest as root", pytrace=False)
