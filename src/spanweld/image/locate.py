"""Functions that probes name: by their symbols, or by their code in an image that has no symbols."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from weakref import WeakKeyDictionary

from spanweld.image.elf import Image
from spanweld.image.stripped import ExportedData, SdkFunctions, find_sdk_functions, find_span_processors
from spanweld.image.symbols import Function, find_many, has_symbols

_CRATE = "opentelemetry"
_ON_END = "on_end"
_OF_GENERATORS = ("new_trace_id", "new_span_id")
_BY_CODE = frozenset(
    (*_OF_GENERATORS, "build_with_context", "build_recording_span", "ensure_ended_and_exported")
)
# To find them takes a pass over all code, which probes and layouts ask for.
_found_by_code: WeakKeyDictionary[Image, SdkFunctions] = WeakKeyDictionary()


def locate(
    image: Image,
    patterns: Iterable[str],
    exported: ExportedData | None = None,
) -> dict[str, list[Function] | str]:
    """For each pattern (see ``symbols``) the functions, by address, or a sentence why there is none.

    Without symbols, a pattern is taken for one of the SDK's functions by its last part. It finds one or none,
    of generators also what may be another's (``called_from``), and ``on_end`` of all processors, if it is
    known what is ``exported``.
    """
    wanted = list(patterns)
    if has_symbols(image):
        return {
            pattern: functions or f"it has no function {pattern}"
            for pattern, functions in find_many(image, wanted).items()
        }
    result: dict[str, list[Function] | str] = {}
    for pattern in wanted:
        name = pattern.rpartition("::")[2]
        found: list[Function] | str
        if _CRATE in pattern and name == _ON_END and exported is not None:
            found = find_span_processors(image, exported)
        elif _CRATE in pattern and name in _BY_CODE:
            found = _by_code(sdk_functions(image), name)
        else:
            result[pattern] = f"it has no symbols, and {pattern} is not known by its code"
            continue
        if isinstance(found, str):
            result[pattern] = f"it has no symbols, and {name} was not found by its code: {found}"
        else:
            result[pattern] = [replace(function, name=pattern) for function in found]
    return result


def sdk_functions(image: Image) -> SdkFunctions:
    """What ``find_sdk_functions`` finds in an image, looked for once."""
    if image not in _found_by_code:
        _found_by_code[image] = find_sdk_functions(image)
    return _found_by_code[image]


def _by_code(known: SdkFunctions, name: str) -> list[Function] | str:
    found: Function | str = getattr(known, name)
    if isinstance(found, str):
        return found
    functions = [found]
    if name in _OF_GENERATORS:
        others = known.other_generators or ()
        functions += [methods[_OF_GENERATORS.index(name)] for methods in others]
    return sorted(functions, key=lambda function: function.address)
