"""Sources that the tests compile, and the types of the fixtures that do it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

RustBuilder = Callable[..., Path]
ServiceBuilder = Callable[[str, str], Path]

# A crate of tokio's name with what is looked for of tokio: the thread-local, the guard, the
# functions that set it, and tasks with their vtables. Fields before and after the id make the offset no
# accident.
FAKE_TOKIO = """
pub mod runtime {
    pub mod context {
        use std::cell::{Cell, RefCell};
        use crate::runtime::task::Id;
        pub struct Context {
            pub before: [Cell<u64>; 5],
            pub current_task_id: Cell<Option<Id>>,
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
        pub fn set_current_task_id(id: Option<Id>) -> Option<Id> {
            CONTEXT.try_with(|ctx| ctx.current_task_id.replace(id)).unwrap_or(None)
        }
        pub fn places() -> [usize; 2] {
            CONTEXT.with(|ctx| {
                let option = ctx.current_task_id.as_ptr();
                [unsafe { (*option).as_ref().unwrap() as *const Id as usize }, option as usize]
            })
        }
    }
    pub mod task {
        pub type Id = std::num::NonZeroU64;
        pub mod core {
            use crate::runtime::{context, task::Id};
            pub struct TaskIdGuard { parent_task_id: Option<Id> }
            impl TaskIdGuard {
                #[inline(never)]
                pub fn enter(id: Id) -> Self {
                    TaskIdGuard { parent_task_id: context::set_current_task_id(Some(id)) }
                }
            }
            impl Drop for TaskIdGuard {
                #[inline(never)]
                fn drop(&mut self) { context::set_current_task_id(self.parent_task_id); }
            }
        }
        pub mod raw {
            use crate::runtime::task::{Id, core::TaskIdGuard};
            use std::{hint::black_box, mem::offset_of};
            #[repr(C)]
            pub struct Vtable {
                pub poll: unsafe fn(*mut Header),
                pub schedule: unsafe fn(*mut Header),
                pub dealloc: unsafe fn(*mut Header),
                pub try_read_output: unsafe fn(*mut Header),
                pub drop_join_handle_slow: unsafe fn(*mut Header),
                pub drop_abort_handle: unsafe fn(*mut Header),
                pub shutdown: unsafe fn(*mut Header),
                pub distances: [usize; 3],
            }
            #[repr(C)]
            pub struct Header {
                pub state: u64,
                pub queue_next: u64,
                pub vtable: &'static Vtable,
                pub owner: u64,
            }
            #[repr(C)]
            pub struct Task<T> {
                pub header: Header,
                pub scheduler: u64,
                pub id: Id,
                pub stage: T,
                pub trailer: u64,
            }
            #[inline(never)]
            unsafe fn poll<T>(header: *mut Header) {
                (*header).state |= 1;
                let task = header as *mut Task<T>;
                let _guard = TaskIdGuard::enter((*task).id);
                black_box(&mut (*task).stage);
            }
            #[inline(never)]
            unsafe fn drop_join_handle_slow<T>(header: *mut Header) {
                let task = header as *mut Task<T>;
                if (*header).state & 2 != 0 {
                    let _guard = TaskIdGuard::enter((*task).id);
                    black_box(&mut (*task).trailer);
                }
            }
            #[inline(never)]
            unsafe fn shutdown<T>(header: *mut Header) {
                (*header).state += 1;
                let task = header as *mut Task<T>;
                let _guard = TaskIdGuard::enter((*task).id);
                black_box(&mut (*task).trailer);
                black_box(&mut (*task).stage);
            }
            #[inline(never)]
            unsafe fn other<T>(header: *mut Header) { black_box(header); }
            pub trait Vtables { const VTABLE: &'static Vtable; }
            impl<T> Vtables for Task<T> {
                const VTABLE: &'static Vtable = &Vtable {
                    poll: poll::<T>,
                    schedule: other::<T>,
                    dealloc: other::<T>,
                    try_read_output: other::<T>,
                    drop_join_handle_slow: drop_join_handle_slow::<T>,
                    drop_abort_handle: other::<T>,
                    shutdown: shutdown::<T>,
                    distances: [
                        offset_of!(Task<T>, trailer), offset_of!(Task<T>, scheduler), offset_of!(Task<T>, id)
                    ],
                };
            }
        }
    }
}
"""
# As before tokio 1.40: an Option of it has a tag.
FAKE_OLD_TOKIO = FAKE_TOKIO.replace("pub type Id = std::num::NonZeroU64;", "pub type Id = u64;")


def inlined(tokio: str) -> str:
    """A fake tokio of whose functions only those in the vtables are left."""
    for function in ("pub fn set_current_task_id", "pub fn enter", "fn drop(&mut self)"):
        start = tokio.rindex("#[inline(never)]", 0, tokio.index(function))
        tokio = tokio[:start] + "#[inline(always)]" + tokio[start + len("#[inline(never)]") :]
    return tokio


# Prints where the id and the Option around it lie relative to fs:0.
USES_TOKIO = """
fn main() {
    let count = std::env::args().count() as u64;
    let guard = tokio::runtime::task::core::TaskIdGuard::enter(count.try_into().unwrap());
    let fs: usize;
    unsafe { std::arch::asm!("mov {}, fs:0", out(reg) fs) };
    let [id, option] = tokio::runtime::context::places();
    println!("{} {}", id as isize - fs as isize, option as isize - fs as isize);
    drop(guard);
}
"""
# The same with a task.
RUNS_TASKS = USES_TOKIO.replace(
    "    drop(guard);",
    """    use tokio::runtime::task::raw::{Header, Task, Vtables};
    let mut task = Task {
        header: Header { state: count, queue_next: 0, vtable: Task::<[u64; 9]>::VTABLE, owner: 0 },
        scheduler: 0,
        id: (count + 1).try_into().unwrap(),
        stage: [0u64; 9],
        trailer: 0,
    };
    let task = std::hint::black_box(&raw mut task.header);
    unsafe { ((*task).vtable.poll)(task) };
    drop(guard);""",
)
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
