/*
 * tokio's tasks, and threads: what they start with, and who wakes them (task_edges.bpf.h).
 *
 * tokio 1.22 to 1.54, src/runtime/task/{id,waker,raw,core}.rs:
 *   Id::next() -> Id                    every way to spawn takes the new task's id from one counter, right before
 *                                       the task is made (image/tasks.py says where, as it is always inlined)
 *   unsafe fn wake_by_val(*const Header), wake_by_ref(*const Header)          of the one RawWakerVTable
 */
#include "maps.bpf.h"
#include "task_edges.bpf.h"
#include "tokio_tasks.h"

/* Header: state, queue_next, vtable, owner_id (src/runtime/task/core.rs) */
#define HEADER_VTABLE 16
/* Vtable: seven functions, then the distances of trailer, scheduler and id (src/runtime/task/raw.rs, since 1.23) */
#define VTABLE_DISTANCES 56
#define DISTANCE_MIN 0x20
#define DISTANCE_MAX 0x100

#define CLONE_THREAD 0x10000

/* The running task, or thread, begins another one. */
static __always_inline void note_spawn(__u32 pid, __u64 spawner, __u64 spawned)
{
	struct active_spans found = {};

	if (find_context(pid, spawner, &found))
		put_edge(pid, spawned, &found);
}

static __always_inline __u64 new_task_id(const struct pt_regs *ctx, __u64 where)
{
	switch (where) {
	case ID_IN_AX:
		return READ_REGISTER(ctx, ax);
	case ID_IN_BX:
		return READ_REGISTER(ctx, bx);
	case ID_IN_CX:
		return READ_REGISTER(ctx, cx);
	case ID_IN_DX:
		return READ_REGISTER(ctx, dx);
	case ID_IN_SI:
		return READ_REGISTER(ctx, si);
	case ID_IN_DI:
		return READ_REGISTER(ctx, di);
	case ID_IN_BP:
		return READ_REGISTER(ctx, bp);
	case ID_IN_R8:
		return READ_REGISTER(ctx, r8);
	case ID_IN_R9:
		return READ_REGISTER(ctx, r9);
	case ID_IN_R10:
		return READ_REGISTER(ctx, r10);
	case ID_IN_R11:
		return READ_REGISTER(ctx, r11);
	case ID_IN_R12:
		return READ_REGISTER(ctx, r12);
	case ID_IN_R13:
		return READ_REGISTER(ctx, r13);
	case ID_IN_R14:
		return READ_REGISTER(ctx, r14);
	case ID_IN_R15:
		return READ_REGISTER(ctx, r15);
	}
	return 0;
}

/* Where a new task has just got its id, which no other ever had. The cookie says in which register. */
static __always_inline int task_spawned(const struct pt_regs *ctx, __u64 cookie)
{
	__u64 id = new_task_id(ctx, cookie), key;
	struct wakes_followed *followed;
	__u32 pid;
	struct target *target = current_target(&pid);

	if (!target || !id || id & TASK_KEY_THREAD)
		return 0;
	followed = shared_element(pid, SHARED_WAKES);
	if (followed && *(volatile __u64 *)&followed->first == WAKES_NONE_YET)
		__sync_val_compare_and_swap(&followed->first, WAKES_NONE_YET, id);
	key = current_task_key(target);
	note_task_on_thread(pid, key);
	note_spawn(pid, key, id);
	return 0;
}

SEC("uprobe")
int tokio_task_spawned(struct pt_regs *ctx)
{
	return task_spawned(ctx, bpf_get_attach_cookie(ctx));
}

/* The id of a task, 0 if what is at an address does not look like one. `is_proven`: such have always been there. */
static __always_inline __u64 task_id_at(__u64 header, bool is_proven)
{
	__u64 vtable, distances[3], id; /* of trailer, scheduler, id */

	if (read_task(&vtable, sizeof(vtable), (void *)(header + HEADER_VTABLE), is_proven) ||
	    read_task(distances, sizeof(distances), (void *)(vtable + VTABLE_DISTANCES), is_proven)) {
		count(COUNT_READ_FAULT);
		return 0;
	}
	if (distances[1] < DISTANCE_MIN || distances[1] > distances[2] || distances[2] >= DISTANCE_MAX ||
	    distances[2] >= distances[0])
		return 0;
	if (read_task(&id, sizeof(id), (void *)(header + distances[2]), is_proven)) {
		count(COUNT_READ_FAULT);
		return 0;
	}
	return id & TASK_KEY_THREAD ? 0 : id;
}

/* rdi = the header of the task that is woken. */
static __always_inline int task_woken(const struct pt_regs *ctx, bool is_proven)
{
	__u64 header = READ_REGISTER(ctx, di), key, woken;
	struct active_spans found = {};
	__u32 pid;
	struct target *target = current_target(&pid);

	if (!target)
		return 0;
	key = current_task_key(target);
	if (!find_context(pid, key, &found) || !found.servers) {
		if (drives_events(pid, key))
			return 0;
		if (!found.is_set)
			found.server.span_id = found.active.span_id = WAKE_BY_NOBODY;
	}
	woken = task_id_at(header, is_proven);
	if (woken && woken != key)
		note_wake(pid, woken, &found);
	return 0;
}

SEC("uprobe")
int tokio_wake(struct pt_regs *ctx)
{
	return task_woken(ctx, false);
}

/*
 * A thread starts as a task does. What had its id before it is long gone. Runs in the thread that starts the new
 * one. include/trace/events/task.h: task, clone_flags
 */
SEC("raw_tp/task_newtask")
int tokio_thread_started(struct bpf_raw_tracepoint_args *ctx)
{
	struct active_spans found = {};
	struct handed_on *all;
	__u64 spawned;
	__u32 pid;
	struct target *target = current_target(&pid);

	if (!target || !(ctx->args[1] & CLONE_THREAD))
		return 0;
	all = find_handed_on(shared_map(pid));
	if (!all)
		return 0;
	spawned = TASK_KEY_THREAD | (__u32)BPF_CORE_READ((struct task_struct *)ctx->args[0], pid);
	if (all->thread_edges)
		forget_edge(pid, spawned);
	if (!find_context(pid, current_task_key(target), &found))
		return 0;
	__sync_fetch_and_add(&all->thread_edges, 1);
	put_edge(pid, spawned, &found);
	return 0;
}
