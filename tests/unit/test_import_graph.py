"""Who may import whom: the layers of docs/design.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src/spanweld"

# Part of the package -> parts that it may import besides itself. `errors` and `model` are for all.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "model": set(),
    "settings": set(),
    "join": set(),
    "messages": set(),
    "resource": {"settings"},
    "image": set(),
    "process": set(),
    "layouts": {"image"},
    "bpf": {"process"},
    "probes": {"bpf"},
    "writers": {"bpf", "settings", "image", "process"},
    "exporters": {"settings"},
    "plan": {"image", "layouts", "probes"},
    "injection": {"bpf"},
    "agent": {
        *("settings", "join", "resource", "image", "process", "layouts", "plan"),
        *("bpf", "probes", "writers", "exporters", "injection"),
    },
    "commands": {
        *("settings", "messages", "resource", "image", "process", "layouts"),
        *("bpf", "probes", "writers", "plan", "agent", "injection"),
    },
    "__main__": {"commands"},
    "__init__": set(),
}
FOR_ALL = {"errors", "model", "__init__"}


def part_of(path: Path) -> str:
    """First folder, or the module's own name."""
    relative = path.relative_to(SOURCE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports_of(path: Path) -> Iterator[str]:
    """Parts of the package that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "spanweld":
                names = [f"spanweld.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "spanweld" and len(parts) > 1:
                yield parts[1]


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def test_every_part_has_its_line() -> None:
    assert {part_of(path) for path in modules()} == set(ALLOWED)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_only_what_its_layer_may(path: Path) -> None:
    part = part_of(path)
    foreign = {name for name in imports_of(path) if name not in FOR_ALL and not name.startswith("__")}
    assert foreign - {part} <= ALLOWED[part]


@pytest.mark.parametrize("part", ["image", "process", "layouts", "join", "model"])
def test_is_free_of_bpf_through_all_that_it_imports(part: str) -> None:
    seen: set[str] = set()
    waiting = [part]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += ALLOWED[current]
    assert "bpf" not in seen
