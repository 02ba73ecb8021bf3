"""Functions that probes name: by their symbols, or by their code in an image that has no symbols."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from weakref import WeakKeyDictionary

from spanweld.image.elf import Image
from spanweld.image.stripped import ExportedData, SdkFunctions, find_sdk_functions, find_span_processors
from spanweld.image.symbols import Function, find_many, has_symbols

_CRATE = "opentelemetry"
_ON_END = "on_end"
_BY_CODE = frozenset(field.name for field in fields(SdkFunctions))
# To find them takes a pass over all code, which probes and layouts ask for.
_found_by_code: WeakKeyDictionary[Image, SdkFunctions] = WeakKeyDictionary()


def locate(
    image: Image, patterns: Iterable[str], exported: ExportedData | None = None
) -> dict[str, list[Function] | str]:
    """For each pattern (see ``symbols``) the functions, by address, or a sentence why there is none.

    Without symbols, a pattern is taken for one of the SDK's functions by its last part, and finds one
    function or none; ``on_end`` those of all span processors. Where ``exported`` is not
    known, it is not found so.
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
        if _CRATE in pattern and name == _ON_END and exported is not None:
            processors = find_span_processors(image, exported)
            if isinstance(processors, str):
                result[pattern] = f"it has no symbols, and {name} was not found by its code: {processors}"
            else:
                result[pattern] = [replace(function, name=pattern) for function in processors]
            continue
        if _CRATE not in pattern or name not in _BY_CODE:
            result[pattern] = f"it has no symbols, and {pattern} is not known by its code"
            continue
        if image not in _found_by_code:
            _found_by_code[image] = find_sdk_functions(image)
        found: Function | str = getattr(_found_by_code[image], name)
        if isinstance(found, str):
            result[pattern] = f"it has no symbols, and {name} was not found by its code: {found}"
        else:
            result[pattern] = [replace(found, name=pattern)]
    return result
