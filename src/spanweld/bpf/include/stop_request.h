/* What a probe asks of the stop writer's tracer: shared by BPF programs and the tracer. */
#ifndef SPANWELD_STOP_REQUEST_H
#define SPANWELD_STOP_REQUEST_H

#ifndef __VMLINUX_H__
#include <linux/types.h>
#endif

#define STOP_WRITES_MAX 3

/* `size` low bytes of `value` (1 to 8) go to `address` in the target. */
struct stop_write {
	__u64 address;
	__u64 value;
	__u32 size;
	__u32 pad;
};

/*
 * One for each stopped thread, in the hash map `stop_requests`, key: __u32 thread id.
 * Written by the program just before it sends SIGURG to its own thread; taken (looked up and
 * deleted) by the tracer when that thread stops. One without a write and a return asks for no more
 * than that the signal be taken back (stop_guard.bpf.h).
 *
 * The writes come first, in their order, then the return. A tracer that is killed in between leaves
 * the rest undone, but never a part of adjacent writes: what must be whole is asked for so.
 */
struct stop_request {
	__u64 sp; /* stack pointer at the probed instruction, before it ran */
	__u64 ip; /* address of the probed instruction */
	/*
	 * If `returns` is set, the probed function (the probe is on its first instruction) returns
	 * at once: rax = return_low, rdx = return_high, rip = [sp], rsp = sp + 8.
	 */
	__u64 return_low;
	__u64 return_high;
	struct stop_write writes[STOP_WRITES_MAX];
	__u32 nr_writes;
	__u32 returns;
	__u32 merged; /* set by stop_guard_merged(): the thread was sent a SIGURG besides ours */
	__u32 pad;
};

_Static_assert(sizeof(struct stop_write) == 24, "stop_write has no hidden padding");
_Static_assert(sizeof(struct stop_request) == 120, "stop_request has no hidden padding");

#endif
