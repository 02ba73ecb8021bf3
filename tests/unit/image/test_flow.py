"""What is read of the code of small functions, whatever the level of optimisation."""

from __future__ import annotations

import pytest

from spanweld.image import Image, find_functions
from spanweld.image.flow import (
    Access,
    Bits,
    Called,
    Flow,
    Loaded,
    Number,
    Pointer,
    follow,
    follow_all,
    options,
)
from spanweld.image.pointers import Pointers
from tests.unit.image.samples import RustBuilder

SOURCE = """
#[repr(C)] pub struct Inner { pub words: [u64; 4] }
#[repr(C)] pub struct Outer { pub inner: *const Inner, pub count: u64, pub made: u64, pub half: u32 }
pub trait Shape { fn one(&self) -> u64; fn two(&self) -> u64; }
struct Flat;
impl Shape for Flat { fn one(&self) -> u64 { 1 } fn two(&self) -> u64 { 2 } }
#[inline(never)]
pub fn fill(out: &mut Outer, from: &Outer, limit: u32, shape: &dyn Shape) {
    if limit == 1_000_000_000 { return; }
    out.count = from.count;
    out.half = 77;
    out.inner = unsafe { (*from.inner).words[2] as *const Inner };
    out.made = shape.two();
}
fn main() {
    let n = std::env::args().count() as u64;
    let inner = Inner { words: [n, n + 1, n + 2, n + 3] };
    let from = Outer { inner: &inner, count: n, made: n, half: 1 };
    let mut out = Outer { inner: std::ptr::null(), count: 0, made: 0, half: 0 };
    let shape: Box<dyn Shape> = if n > 5 { Box::new(Flat) } else { std::hint::black_box(Box::new(Flat)) };
    // A function whose address is taken keeps its arguments as they are declared.
    let pointer: fn(&mut Outer, &Outer, u32, &dyn Shape) = std::hint::black_box(fill);
    pointer(&mut out, &from, n as u32, &*shape);
    println!("{} {} {} {:?} {}", out.count, out.made, out.half, out.inner, shape.one());
}
"""
OUT, FROM, LIMIT, SHAPE = (Pointer(number, 0) for number in range(4))


def _flow(rust: RustBuilder, *flags: str) -> Flow:
    with Image.open(rust(SOURCE, *flags)) as image:
        [function] = find_functions(image, "sample::fill")
        return follow(image, function, Pointers(image).word)


@pytest.mark.parametrize("flags", [(), ("-Cforce-frame-pointers=yes",), ("-Crelocation-model=static",)])
@pytest.mark.parametrize("level", ["1", "2", "3", "s", "z"])
def test_fields_and_calls(rust: RustBuilder, level: str, flags: tuple[str, ...]) -> None:
    flow = _flow(rust, f"-Copt-level={level}", *flags)
    assert (LIMIT, 1_000_000_000) in flow.compares
    [call] = [call for call in flow.calls if call.slot is not None]
    # The vtable is the reference's second half, in the next argument.
    assert call.slot == Loaded(Pointer(4, 0), 0x20, 8)
    assert call.arguments[0] == SHAPE
    written = {(access.offset, access.size): access.value for access in flow.writes if access.base == OUT}
    assert written == {
        (0x00, 8): Loaded(Loaded(FROM, 0, 8), 0x10, 8),
        (0x08, 8): Loaded(FROM, 8, 8),
        (0x10, 8): Called(call.address, 0),
        (0x18, 4): Number(77),
    }
    assert Access(FROM, 8, 8) in flow.reads
    assert not flow.increments_shared


CHOICES = """
#[repr(C)] pub struct Made { pub id: u64, pub kind: u8, pub flags: u8, pub fixed: u8 }
pub trait Source { fn next(&self) -> u64; }
struct Counter;
impl Source for Counter { fn next(&self) -> u64 { std::process::id() as u64 } }
#[inline(never)]
pub fn receive(made: &Made) { println!("{} {} {} {}", made.id, made.kind, made.flags, made.fixed); }
#[inline(never)]
pub fn make(from: &Made, source: &dyn Source, flags: u8) {
    let id = if from.id == 0 { source.next() } else { from.id };
    let kind = if from.kind == 9 { 4 } else { from.kind };
    receive(&Made { id, kind, flags: flags | 1, fixed: 0 });
}
fn main() {
    let n = std::env::args().count() as u64;
    let from = Made { id: n - 1, kind: n as u8, flags: 0, fixed: 0 };
    let pointer: fn(&Made, &dyn Source, u8) = std::hint::black_box(make);
    let source: Box<dyn Source> = std::hint::black_box(Box::new(Counter));
    pointer(&from, &*source, n as u8);
    let receiver: fn(&Made) = std::hint::black_box(receive);
    receiver(&from);
}
"""


@pytest.mark.parametrize("level", ["1", "2", "3", "s", "z"])
def test_all_that_may_be_handed_on(rust: RustBuilder, level: str) -> None:
    """What comes by one way or by another, and what is made of it; ``follow`` keeps what is certain."""
    with Image.open(rust(CHOICES, f"-Copt-level={level}", "-Cpanic=abort")) as image:
        [function] = find_functions(image, "sample::make")
        [receiver] = find_functions(image, "sample::receive")
        word = Pointers(image).word
        certain, flow = follow(image, function, word), follow_all(image, function, word)
    [asked] = [call for call in flow.calls if call.slot is not None]
    [call] = [call for call in flow.calls if call.target == receiver.address]
    handed = {access.offset: access.value for access in call.pointed if access.base == Pointer(0, 0)}
    assert options(handed[0]) == {Called(asked.address, 0), Loaded(Pointer(0, 0), 0, 8)}
    kinds = options(handed[8])
    assert Number(4) in kinds
    assert any(isinstance(kind, Loaded) and kind.offset == 8 for kind in kinds)
    assert handed[9] == Bits(ones=1, zeros=0)
    assert handed[10] == Number(0)
    assert not any(call.pointed for call in certain.calls)
