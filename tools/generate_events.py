"""Generates src/spanweld/bpf/events.py from the BTF of the compiled BPF object.

    python tools/generate_events.py            write it
    python tools/generate_events.py --check    fail if it differs (CI)

The C headers are the only definition of what passes between kernel and agent.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OBJECT = ROOT / "src/spanweld/bpf/objects/spanweld.bpf.o"
OUTPUT = ROOT / "src/spanweld/bpf/events.py"

STRUCTS = (
    "event_head",
    "server_span_event",
    "connection_opaque_event",
    "manual_span_event",
    "manual_root_event",
    "adoption_event",
    "span_sample_event",
    "carried",
    "target",
    "connection_key",
    "listening_key",
    "own_export_key",
    "inject_key",
    "inject_event",
    "inline_head",
    "inline_patch",
    "inline_ring",
    "inline_record",
    "inline_order",
)
ENUMS = (
    "event_kind",
    "counter",
    "adoption",
    "adopt_mode",
    "write_mode",
    "span_frame_kind",
    "shared_place",
    "http_method",
    "http_end",
    "connection_role",
    "opaque_reason",
    "inject_notice",
    "propagator",
    "manual_relation",
    "manual_status",
    "layout_check",
    "inline_place",
    "inline_size",
    "inline_operation",
)
INTEGERS = {
    (1, False): "B",
    (2, False): "H",
    (4, False): "I",
    (8, False): "Q",
    (4, True): "i",
    (8, True): "q",
}

Type = dict[str, Any]


def read_types() -> dict[int, Type]:
    """The object's BTF types by their ids."""
    dump = subprocess.run(
        ["bpftool", "-j", "btf", "dump", "file", str(OBJECT)], check=True, capture_output=True, text=True
    ).stdout
    return {entry["id"]: entry for entry in json.loads(dump)["types"]}


def resolve(types: dict[int, Type], type_id: int) -> Type:
    """The type without typedefs and qualifiers."""
    found = types[type_id]
    while found["kind"] in ("TYPEDEF", "CONST", "VOLATILE"):
        found = types[found["type_id"]]
    return found


def fields_of(types: dict[int, Type], struct: Type, prefix: str = "") -> list[tuple[str, str]]:
    """(name, struct format) of each field, nested structs flattened as outer_inner."""
    result: list[tuple[str, str]] = []
    for member in struct["members"]:
        name = prefix + member["name"]
        kind = resolve(types, member["type_id"])
        if kind["kind"] == "STRUCT":
            result += fields_of(types, kind, f"{name}_")
        elif kind["kind"] == "ARRAY":
            element = resolve(types, kind["type_id"])
            if element["kind"] != "INT" or element["size"] != 1:
                raise SystemExit(f"{name}: only arrays of bytes are known")
            result.append((name, f"{kind['nr_elems']}s"))
        else:
            signed = kind.get("encoding") == "SIGNED"
            result.append((name, INTEGERS[kind["size"], signed]))
    return result


def camel(name: str) -> str:
    """snake_case -> CamelCase"""
    return "".join(part.capitalize() for part in name.split("_"))


def generate(types: dict[int, Type]) -> str:
    """The module's text."""
    named = {(t["kind"], t.get("name")): t for t in types.values()}
    lines = [
        '"""What passes between the BPF programs and the agent.',
        "",
        "Generated from the BTF of the BPF object by tools/generate_events.py: change the C headers instead.",
        "Each structure has its little-endian layout, in which all padding is a field, in a constant of its",
        "name in capitals; ``Name._make(NAME.unpack(data))`` decodes one.",
        '"""',
        "",
        "from __future__ import annotations",
        "",
        "from enum import IntEnum",
        "from struct import Struct",
        "from typing import NamedTuple",
        "",
    ]
    for name in ENUMS:
        enum = named["ENUM", name]
        values = enum["values"]
        words = [value["name"].split("_") for value in values]
        # What all names of an enumeration begin with says the enumeration's name again.
        common = 0
        while all(len(w) > common + 1 and w[common] == words[0][common] for w in words):
            common += 1
        lines += ["", f"class {camel(name)}(IntEnum):", f'    """enum {name}"""', ""]
        lines += [f"    {'_'.join(w[common:])} = {v['val']}" for w, v in zip(words, values, strict=True)]
        lines.append("")
    for name in STRUCTS:
        struct = named["STRUCT", name]
        fields = fields_of(types, struct)
        lines += [
            "",
            f"class {camel(name)}(NamedTuple):",
            f'    """struct {name}, {struct["size"]} bytes"""',
            "",
        ]
        lines += [f"    {f}: {'bytes' if form.endswith('s') else 'int'}" for f, form in fields]
        form = "<" + "".join(form for _, form in fields)
        lines += ["", "", f'{name.upper()} = Struct("{form}")', ""]
    return "\n".join(lines)


def main() -> int:
    """Writes or checks; returns the exit code."""
    text = generate(read_types())
    text = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(OUTPUT), "-"],
        input=text, check=True, capture_output=True, text=True, cwd=ROOT,
    ).stdout  # fmt: skip
    if "--check" in sys.argv[1:]:
        if OUTPUT.read_text() == text:
            return 0
        print(f"{OUTPUT.relative_to(ROOT)} is not what the BPF object says: run tools/generate_events.py")
        return 1
    OUTPUT.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
