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
	struct task_edge_key key = {};
	struct active_spans found = {};
	struct task_edge edge = {};

	if (!find_context(pid, spawner, &found))
		return;
	key.task_key = spawned;
	key.pid = pid;
	edge.server = found.server;
	edge.active = found.active;
	bpf_map_update_elem(&task_edges, &key, &edge, BPF_ANY);
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

/* Where a new task has just got its id, which no other ever had. */
SEC("uprobe")
int tokio_task_spawned(struct pt_regs *ctx)
{
	__u64 id = new_task_id(ctx, bpf_get_attach_cookie(ctx)), key, *first;
	__u32 pid;
	struct target *target = current_target(&pid);

	if (!target || !id || id & TASK_KEY_THREAD)
		return 0;
	first = bpf_map_lookup_elem(&wakes_followed, &pid);
	if (first && !*first)
		__sync_val_compare_and_swap(first, 0, id);
	key = current_task_key(target);
	note_task_on_thread(target, pid, key);
	note_spawn(pid, key, id);
	return 0;
}

/* The id of a task, 0 if what is at an address does not look like one. */
static __always_inline __u64 task_id_at(__u64 header)
{
	__u64 vtable, distances[3], id; /* of trailer, scheduler, id */

	if (bpf_probe_read_user(&vtable, sizeof(vtable), (void *)(header + HEADER_VTABLE)) ||
	    bpf_probe_read_user(distances, sizeof(distances), (void *)(vtable + VTABLE_DISTANCES))) {
		count(COUNT_READ_FAULT);
		return 0;
	}
	if (distances[1] < DISTANCE_MIN || distances[1] > distances[2] || distances[2] >= DISTANCE_MAX ||
	    distances[2] >= distances[0])
		return 0;
	if (bpf_probe_read_user(&id, sizeof(id), (void *)(header + distances[2]))) {
		count(COUNT_READ_FAULT);
		return 0;
	}
	return id & TASK_KEY_THREAD ? 0 : id;
}

/* rdi = the header of the task that is woken. */
SEC("uprobe")
int tokio_wake(struct pt_regs *ctx)
{
	struct active_spans found = {};
	__u64 header = ctx->di, key, woken;
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
	woken = task_id_at(header);
	if (woken && woken != key)
		note_wake(pid, woken, &found);
	return 0;
}

/*
 * A thread starts as a task does. What had its id before it is long gone. Runs in the thread that starts the new
 * one. include/trace/events/task.h: task, clone_flags
 */
SEC("raw_tp/task_newtask")
int tokio_thread_started(struct bpf_raw_tracepoint_args *ctx)
{
	struct active_spans found = {};
	__u64 spawned;
	__u32 pid;
	struct target *target = current_target(&pid);

	if (!target || !(ctx->args[1] & CLONE_THREAD))
		return 0;
	spawned = TASK_KEY_THREAD | (__u32)BPF_CORE_READ((struct task_struct *)ctx->args[0], pid);
	if (target->has_thread_edges)
		forget_edge(pid, spawned);
	else if (find_context(pid, current_task_key(target), &found))
		target->has_thread_edges = 1;
	if (target->has_thread_edges)
		note_spawn(pid, current_task_key(target), spawned);
	return 0;
}

SEC("raw_tp/sched_process_exit")
int tokio_thread_ends(void *ctx)
{
	__u32 pid;
	struct target *target = current_target(&pid);

	(void)ctx;
	if (target && target->has_thread_edges)
		forget_edge(pid, thread_key());
	return 0;
}
