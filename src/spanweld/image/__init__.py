"""Bytes of an executable in, facts out: nothing here runs the file, traces it or knows of BPF."""

from spanweld.image.code import FirstInstruction, find_returns, first_instruction
from spanweld.image.elf import Image, Section, Segment
from spanweld.image.entry import Entry, find_entry, find_increment
from spanweld.image.facts import ImageFacts, analyse, examine
from spanweld.image.language import Language
from spanweld.image.locate import locate, sdk_functions
from spanweld.image.stripped import SpanArguments, find_span_arguments
from spanweld.image.symbols import FoundBy, Function, find_functions, find_many
from spanweld.image.tasks import IdPlace, find_new_task_ids, find_wakers
from spanweld.image.tls import TaskIdOffset, find_task_id_offset

__all__ = [
    "Entry",
    "FirstInstruction",
    "FoundBy",
    "Function",
    "IdPlace",
    "Image",
    "ImageFacts",
    "Language",
    "Section",
    "Segment",
    "SpanArguments",
    "TaskIdOffset",
    "analyse",
    "examine",
    "find_entry",
    "find_functions",
    "find_increment",
    "find_many",
    "find_new_task_ids",
    "find_returns",
    "find_span_arguments",
    "find_task_id_offset",
    "find_wakers",
    "first_instruction",
    "locate",
    "sdk_functions",
]
