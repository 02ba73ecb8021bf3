"""Sources that the tests compile, and the types of the fixtures that do it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

RustBuilder = Callable[..., Path]
ServiceBuilder = Callable[[str, str], Path]

# A crate of tokio's name with what is looked for of tokio: the thread-local, the guard, and the
# functions that set it. Fields before and after the id make the offset no accident.
FAKE_TOKIO = """
pub mod runtime {
    pub mod context {
        use std::cell::{Cell, RefCell};
        pub struct Context {
            pub before: [Cell<u64>; 5],
            pub current_task_id: Cell<Option<std::num::NonZeroU64>>,
            pub after: RefCell<Vec<u64>>,
        }
        thread_local! {
            pub static CONTEXT: Context = const { Context {
                before: [const { Cell::new(0) }; 5],
                current_task_id: Cell::new(None),
                after: RefCell::new(Vec::new()),
            } };
        }
        #[inline(never)]
        pub fn set_current_task_id(id: Option<std::num::NonZeroU64>) -> Option<std::num::NonZeroU64> {
            CONTEXT.try_with(|ctx| ctx.current_task_id.replace(id)).unwrap_or(None)
        }
        pub fn place() -> usize {
            CONTEXT.with(|ctx| &raw const ctx.current_task_id as usize)
        }
    }
    pub mod task {
        pub mod core {
            use crate::runtime::context;
            pub struct TaskIdGuard { parent_task_id: Option<std::num::NonZeroU64> }
            impl TaskIdGuard {
                #[inline(never)]
                pub fn enter(id: std::num::NonZeroU64) -> Self {
                    TaskIdGuard { parent_task_id: context::set_current_task_id(Some(id)) }
                }
            }
            impl Drop for TaskIdGuard {
                #[inline(never)]
                fn drop(&mut self) { context::set_current_task_id(self.parent_task_id); }
            }
        }
    }
}
"""
# Prints where the id lies relative to fs:0.
USES_TOKIO = """
fn main() {
    let guard = tokio::runtime::task::core::TaskIdGuard::enter(std::env::args().count().try_into().map(
        |n: u64| std::num::NonZeroU64::new(n).unwrap()).unwrap());
    let fs: usize;
    unsafe { std::arch::asm!("mov {}, fs:0", out(reg) fs) };
    println!("{}", tokio::runtime::context::place() as isize - fs as isize);
    drop(guard);
}
"""
PLAIN = """
pub mod shapes {
    pub trait Area { fn area(&self, by: u64) -> u64; }
    pub struct Square<T>(pub T);
    impl Area for Square<u64> {
        #[inline(never)]
        fn area(&self, by: u64) -> u64 { if by == 7 { return self.0 } self.0 * self.0 + by }
    }
    impl<T: Copy + Into<u64>> Square<T> {
        #[inline(never)]
        pub fn side(&self) -> u64 { std::hint::black_box(self.0.into()) }
    }
}
use shapes::Area;
fn main() {
    let n = std::env::args().count() as u64;
    let boxed: Box<dyn Area> = Box::new(shapes::Square(n));
    println!("{} {}", boxed.area(n), shapes::Square(n as u8).side() + shapes::Square(n as u16).side());
}
"""
