"""The virtual machine is for who asks for it: `pytest tests/vm`, not `pytest`."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves this folder out unless an argument names it or something in it."""
    named = [config.invocation_params.dir / argument.partition("::")[0] for argument in config.args]
    asked_for = any(path == HERE or HERE in path.parents for path in named)
    return None if asked_for or HERE not in (collection_path, *collection_path.parents) else True
