"""Layouts that are learned: spans with fields in any order, sampled with whatever lies around them."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest

from spanweld.layouts.learned import SAMPLES_MAX, SPANS_WANTED, LearnedLayout, Learner, Sample, solve

NOW = 1_800_000_000
SIZE = 448


class Sdk:
    """Makes spans whose fields lie in an order of its own; all else is random, or the same in each."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        words = list(range(SIZE // 8))
        # A SpanContext of 64 bytes, trace id first or not, and its flags beside is_remote.
        context = 8 * self.random.randrange(0, 24)
        trace_id, span_id, flags = self.random.choice([(0, 16, 56), (32, 48, 57), (32, 48, 56), (8, 32, 40)])
        remote = flags - 1 if flags % 2 else flags + 1
        taken = range(context // 8, context // 8 + 8)
        free = [word for word in words[:-1] if word not in taken]
        start = self.random.choice([at for at in free if {at + 1, at + 2, at + 3} <= set(free)])
        free = [word for word in free if not start <= word <= start + 3]
        parent, self.kept, self.stale = self.random.sample(free, 3)
        self.layout = LearnedLayout(
            span_context=0,
            context_trace_id=context + trace_id,
            context_span_id=context + span_id,
            context_flags=context + flags,
            span_parent_id=8 * parent,
            span_start_seconds=8 * start,
            span_start_nanos=8 * start + 8,
        )
        self.remote = context + remote
        self.pointer = self.random.getrandbits(47)

    def id(self, bits: int = 64) -> int:
        return self.random.getrandbits(bits)

    def span(
        self, parent: tuple[int, int] | None = None, *, sampled: bool = True, by_hand: bool = False
    ) -> tuple[Sample, tuple[int, int]]:
        """A root, or a child of (trace id, span id); and its own ids."""
        trace_id, span_id = parent[0] if parent else self.id(128), self.id()
        memory = bytearray(self.random.randbytes(SIZE))
        at = self.layout
        struct.pack_into("<Q", memory, 8 * self.kept, self.pointer)
        struct.pack_into("<QQ", memory, at.context_trace_id, trace_id & (1 << 64) - 1, trace_id >> 64)
        struct.pack_into("<Q", memory, at.context_span_id, span_id)
        memory[at.context_flags], memory[self.remote] = sampled, False
        if sampled:
            struct.pack_into("<Q", memory, at.span_parent_id, parent[1] if parent else 0)
            for place in (at.span_start_seconds, at.span_start_seconds + 16):
                struct.pack_into("<qI", memory, place, NOW, self.random.randrange(1_000_000_000))
        root = not parent and not by_hand
        sample = Sample(
            root, trace_id if root else None, None if by_hand else span_id, NOW + 3, bytes(memory)
        )
        return sample, (trace_id, span_id)

    def spans(self, number: int = 60, *, sampled: bool = True) -> list[Sample]:
        """Traces of a root, its child, and a grandchild; a remote parent's two children; ids by hand."""
        result: list[Sample] = []
        while len(result) < number:
            root, ids = self.span(sampled=sampled)
            child, child_ids = self.span(ids, sampled=sampled)
            result += [root, child, self.span(child_ids, sampled=sampled)[0]]
            remote = (self.id(128), self.id())
            result += [self.span(remote, sampled=sampled)[0], self.span(remote, sampled=sampled)[0]]
            result.append(self.span(by_hand=True, sampled=sampled)[0])
        return result


@pytest.mark.parametrize("seed", range(60))
def test_the_one_layout_is_found(seed: int) -> None:
    sdk = Sdk(seed)
    assert solve(sdk.spans()) == sdk.layout


@pytest.mark.parametrize("seed", range(10))
def test_spans_that_do_not_record_have_only_ids(seed: int) -> None:
    sdk = Sdk(seed)
    samples = sdk.spans(60) + sdk.spans(60, sampled=False)
    sdk.random.shuffle(samples)
    # Parents after their children are unknown parents.
    found = solve(samples)
    assert found == sdk.layout or isinstance(found, str)
    assert solve(sdk.spans(60, sampled=False) + sdk.spans(60)) == sdk.layout


def changed(samples: list[Sample], change: Callable[[bytearray], None]) -> list[Sample]:
    """The same samples with other memory."""
    result = []
    for sample in samples:
        memory = bytearray(sample.memory)
        change(memory)
        result.append(replace(sample, memory=bytes(memory)))
    return result


@pytest.mark.parametrize(
    ("field", "what"),
    [("context_span_id", "the span id"), ("span_parent_id", "the parent")],
)
@pytest.mark.parametrize("seed", range(5))
def test_two_places_are_none(seed: int, field: str, what: str) -> None:
    """What was left in unused memory by a copy cannot be told from the field."""
    sdk = Sdk(seed)
    at = getattr(sdk.layout, field)

    def copy(memory: bytearray) -> None:
        memory[8 * sdk.stale : 8 * sdk.stale + 8] = memory[at : at + 8]

    assert solve(changed(sdk.spans(), copy)) == f"2 places have {what} in every span"


@pytest.mark.parametrize("seed", range(5))
def test_a_copy_that_is_not_always_there_is_none(seed: int) -> None:
    sdk = Sdk(seed)
    samples = sdk.spans()

    def copy(memory: bytearray) -> None:
        for field in ("context_span_id", "span_parent_id"):
            at = getattr(sdk.layout, field)
            memory[8 * sdk.stale : 8 * sdk.stale + 8] = memory[at : at + 8]

    assert solve(changed(samples[:-6], copy) + samples[-6:]) == sdk.layout


def test_flags_that_cannot_be_told() -> None:
    sdk = Sdk(1)
    last = sdk.layout.context_span_id + 8

    def one(memory: bytearray) -> None:
        memory[last : last + 2] = b"\1\0"

    assert "the trace flags" in str(solve(changed(sdk.spans(), one)))
    assert "the trace flags" in str(
        solve(changed(sdk.spans(), lambda memory: memory.__setitem__(sdk.layout.context_flags, 3)))
    )


def test_one_span_that_contradicts_ends_it() -> None:
    sdk = Sdk(2)
    samples = sdk.spans()
    wrong = replace(samples[0], trace_id=sdk.id(128))
    assert solve([*samples, wrong]) == "no places have the trace id in every span"
    wrong = replace(samples[0], span_id=sdk.id())
    assert solve([*samples, wrong]) == "no places have the span id in every span"


def test_too_few_of_a_kind() -> None:
    sdk = Sdk(3)
    assert solve([]) == "0 root spans were seen to get ids, of 0"
    roots = [sdk.span()[0] for _ in range(100)]
    assert solve(roots) == "0 children of local spans were seen, of 100 spans"
    children = [sdk.span((sdk.id(128), sdk.id()))[0] for _ in range(100)]
    assert solve(children) == "0 root spans were seen to get ids, of 100"


def test_times_of_another_day() -> None:
    sdk = Sdk(4)

    def early(memory: bytearray) -> None:
        for place in (sdk.layout.span_start_seconds, sdk.layout.span_start_seconds + 16):
            struct.pack_into("<q", memory, place, 1_000_000_000)

    samples = sdk.spans()
    assert solve(changed(samples, early)) == "no places have the times in every span"
    # Some were set by hand.
    assert solve(changed(samples[:10], early) + samples[10:]) == sdk.layout


def test_the_learner_says_when_it_is_certain_and_when_it_gives_up() -> None:
    sdk = Sdk(5)
    learner = Learner()
    answers = [learner.add(sample) for sample in sdk.spans(90)]
    first = next(number for number, answer in enumerate(answers) if answer)
    assert answers[first] == sdk.layout
    assert 3 * SPANS_WANTED <= first < 80
    learner = Learner()
    one = sdk.span()[0]
    answers = [learner.add(one) for _ in range(SAMPLES_MAX)]
    assert not any(answers[:-1])
    assert "children of local spans" in str(answers[-1])
