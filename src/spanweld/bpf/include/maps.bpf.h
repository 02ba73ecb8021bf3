/* Maps and helpers that every program shares. */
#ifndef SPANWELD_MAPS_BPF_H
#define SPANWELD_MAPS_BPF_H

#include "kernel_types.bpf.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

/* The same source is compiled for inside the target: writers/inline/target/bpf/bpf_helpers.h. */
#ifndef IN_TARGET
#define IN_TARGET 0
/* Reads what the address of was read itself. */
#define read_far(to, size, from) bpf_probe_read_user(to, size, from)
/* Of one of tokio's tasks. */
#define read_task(to, size, from, is_proven) ((void)(is_proven), bpf_probe_read_user(to, size, from))
/* Of the running thread. */
#define thread_pointer() ((__u64)bpf_get_current_task_btf()->thread.fsbase)
#define thread_id() ((__u32)bpf_get_current_pid_tgid())
/* The thread id is at hand: nothing to be spared. */
#define is_known_to_run_tasks(thread_edges) false
#endif

/*
 * Global functions are verified once, alone, whoever calls them: what is long and called from
 * several places is one, so that the verifier's work stays small.
 */
#define GLOBAL __attribute__((noinline))
#define SPANS_FUNCTION GLOBAL

#include "counters.h"
#include "event.h"
#include "handed_on.h"
#include "inline_area.h"
#include "spans_in_progress.h"
#include "target.h"

/* A type that only the agent uses: gets it into the object's BTF, from which events.py is made. */
#define FOR_THE_AGENT(type, name) const type *for_the_agent_##name __attribute__((unused))

FOR_THE_AGENT(enum event_kind, event_kind);
FOR_THE_AGENT(enum counter, counter);
FOR_THE_AGENT(enum adoption, adoption);
FOR_THE_AGENT(enum adopt_mode, adopt_mode);
FOR_THE_AGENT(enum write_mode, write_mode);
FOR_THE_AGENT(enum span_frame_kind, span_frame_kind);
FOR_THE_AGENT(enum shared_place, shared_place);
FOR_THE_AGENT(enum inline_place, inline_place);
FOR_THE_AGENT(enum inline_size, inline_size);
FOR_THE_AGENT(enum inline_operation, inline_operation);
FOR_THE_AGENT(struct inline_head, inline_head);
FOR_THE_AGENT(struct inline_patch, inline_patch);
FOR_THE_AGENT(struct inline_ring, inline_ring);
FOR_THE_AGENT(struct inline_record, inline_record);
FOR_THE_AGENT(struct inline_order, inline_order);

/*
 * Which place in `targets` and `spans_in_progress` is which process's: it is one of TARGET_SET, by the process id. For every
 * process on the machine something is looked up here at each of its reads and writes, so these are arrays,
 * which cost a few instructions, where a hash costs calls. Written by the agent: after the places when a process becomes
 * a target, and before them when it is let go; a place is taken again once no program runs that found it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TARGET_SETS);
	__type(key, __u32);
	__type(value, struct target_set);
} target_sets SEC(".maps");

/* key: a process's place. Written by the agent; adoption, and what struct target says: by programs, too. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TARGETS_MAX);
	__type(key, __u32);
	__type(value, struct target);
} targets SEC(".maps");

/*
 * key: a process's place; value: that target's own map, pinned, made and deleted by the agent.
 * Inner maps: key: enum shared_place; written by http_server, otel_sdk and tokio_tasks, and by code inside the target.
 */
struct spans_in_progress_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SHARED_ELEMENTS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct span_bucket);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, TARGETS_MAX);
	__type(key, __u32);
	__array(values, struct spans_in_progress_map);
} spans_in_progress SEC(".maps");

/* Events for the agent. Every program writes; nobody is woken for a single one. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 16 << 20);
} events SEC(".maps");

/* key: enum counter. Written by every program, read by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNT_MAX);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/* Atomic, since a uprobe program may be preempted by another one. */
static __always_inline void add_to_count(enum counter cause, __s64 number)
{
	__u32 key = cause;
	__u64 *cell = bpf_map_lookup_elem(&counters, &key);

	if (cell)
		__sync_fetch_and_add(cell, number);
}

static __always_inline void count(enum counter cause)
{
	add_to_count(cause, 1);
}

/* Takes back what was counted before, perhaps on another processor: only the sum of all is right. */
static __always_inline void uncount(enum counter cause)
{
	add_to_count(cause, -1);
}

/*
 * The agent drains the ring on a timer. It is woken when the ring fills faster than that, once a
 * mebibyte: a wakeup is an interrupt to this processor, which costs microseconds in a virtual machine.
 */
#define WAKEUP_ABOVE (4ULL << 20)
#define WAKEUP_EACH (1ULL << 20)

static __always_inline void emit(void *event, __u64 size)
{
	__u64 waiting = bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA);
	__u64 flags = BPF_RB_NO_WAKEUP;

	if (waiting > WAKEUP_ABOVE && (waiting & (WAKEUP_EACH - 1)) < size)
		flags = BPF_RB_FORCE_WAKEUP;
	if (bpf_ringbuf_output(&events, event, size, flags))
		count(COUNT_EVENT_LOST);
}

/* What the agent is to act upon. */
static __always_inline void emit_at_once(void *event, __u64 size)
{
	if (bpf_ringbuf_output(&events, event, size, BPF_RB_FORCE_WAKEUP))
		count(COUNT_EVENT_LOST);
}

/* The verifier wants each register read at a place of its own, which the compiler would make one. */
#define READ_REGISTER(ctx, name)                                                                                  \
	({                                                                                                        \
		__u64 value = (ctx)->name;                                                                        \
                                                                                                                  \
		asm volatile("" : "+r"(value));                                                                   \
		value;                                                                                            \
	})

/* A process's place; NO_PLACE: it is no target. */
#define NO_PLACE TARGETS_MAX

static __always_inline __u32 place_of(__u32 pid)
{
#if IN_TARGET
	(void)pid; /* there is but one */
	return 0;
#else
	__u32 key = pid % TARGET_SETS, found = 0;
	const struct target_set *set = bpf_map_lookup_elem(&target_sets, &key);

	if (!set || !pid)
		return NO_PLACE;
	/* Without a branch for each: the verifier would follow them all wherever this is. */
	for (__u32 i = 0; i < TARGET_SET; i++)
		found += (i + 1) * (__u32)(((__u64)(set->pids[i] ^ pid) - 1) >> 63);
	return found ? key * TARGET_SET + found - 1 : NO_PLACE;
#endif
}

static __always_inline struct target *find_target(__u32 pid)
{
	__u32 place = place_of(pid);

	return bpf_map_lookup_elem(&targets, &place);
}

static __always_inline struct target *current_target(__u32 *pid)
{
	*pid = bpf_get_current_pid_tgid() >> 32;
	return find_target(*pid);
}

static __always_inline __u64 thread_key(void)
{
	return TASK_KEY_THREAD | thread_id();
}

/*
 * The task key of the running thread: tokio's current task id, read from its thread-local
 * (tokio src/runtime/context.rs, CONTEXT.current_task_id), or the thread id where that is 0 or, before tokio 1.40, tagged `None`.
 */
static __always_inline __u64 current_task_key(const struct target *target)
{
	__u64 id = 0, tag = TOKIO_TAG_SOME, thread;

	if (!target->tokio_task_id)
		return thread_key();
	thread = thread_pointer();
	if (bpf_probe_read_user(&id, sizeof(id), (void *)(thread + target->tokio_task_id)) ||
	    (target->tokio_task_tag &&
	     bpf_probe_read_user(&tag, sizeof(tag), (void *)(thread + target->tokio_task_tag)))) {
		count(COUNT_READ_FAULT);
		return thread_key();
	}
	return tag == TOKIO_TAG_SOME && id && !(id & TASK_KEY_THREAD) ? id : thread_key();
}

/* The target's own map; NULL if it has none. */
static __always_inline void *shared_map(__u32 pid)
{
	__u32 place = place_of(pid);

	return bpf_map_lookup_elem(&spans_in_progress, &place);
}

static __always_inline void *element_of(void *tasks, __u32 index)
{
	return tasks ? bpf_map_lookup_elem(tasks, &index) : NULL;
}

static __always_inline void *shared_element(__u32 pid, __u32 index)
{
	return element_of(shared_map(pid), index);
}

static __always_inline struct span_bucket *task_bucket(void *tasks, __u64 key)
{
	return element_of(tasks, SHARED_BUCKETS + spans_bucket_of(key));
}

/* Number of the key's slot in its bucket, or -1. */
GLOBAL int bucket_find(struct span_bucket *bucket, __u64 key)
{
	for (int i = 0; bucket && i < SPANS_BUCKET_SLOTS; i++)
		if (*(volatile __u64 *)&bucket->slots[i].key == key)
			return i;
	return -1;
}

GLOBAL int slot_push(struct span_slot *slot, __u64 key, struct span_frame *frame)
{
	return slot && frame ? spans_push(slot, key, frame) : SPANS_ABSENT;
}

GLOBAL int slot_end(struct span_slot *slot, __u64 key, __u64 span_id)
{
	return slot ? spans_end(slot, key, span_id) : SPANS_ABSENT;
}

GLOBAL int slot_clear(struct span_slot *slot, __u64 key)
{
	return slot ? spans_clear(slot, key) : SPANS_ABSENT;
}

GLOBAL int bucket_claim(struct span_bucket *bucket, __u64 key)
{
	for (int i = 0; bucket && i < SPANS_BUCKET_SLOTS; i++)
		if (!__sync_val_compare_and_swap(&bucket->slots[i].key, 0, key))
			return i;
	return -1;
}

/* The slot of a task; NULL if it has none. */
static __always_inline struct span_slot *find_slot(__u32 pid, __u64 key)
{
	struct span_bucket *bucket = task_bucket(shared_map(pid), key);
	int slot = bucket ? bucket_find(bucket, key) : -1;

	return slot < 0 ? NULL : &bucket->slots[slot & (SPANS_BUCKET_SLOTS - 1)];
}

static __always_inline bool find_active(__u32 pid, __u64 key, struct active_spans *found)
{
	struct span_slot *slot = find_slot(pid, key);

	return slot && spans_active(slot, key, found) == SPANS_OK;
}

/* Makes a slot if the task, which is the running one, has none. */
static __always_inline void push_span(void *tasks, __u64 key, struct span_frame *frame)
{
	struct span_bucket *bucket = task_bucket(tasks, key);
	bool claimed = false;
	int slot, result;

	if (!bucket)
		return;
	slot = bucket_find(bucket, key);
	if (slot < 0) {
		slot = bucket_claim(bucket, key);
		claimed = true;
	}
	if (slot < 0) {
		count(COUNT_TASKS_FULL);
		return;
	}
	result = slot_push(&bucket->slots[slot & (SPANS_BUCKET_SLOTS - 1)], key, frame);
	if (!result)
		return;
	count(result == SPANS_OVERFLOW ? COUNT_STACK_FULL : COUNT_SLOT_BUSY);
	/* Nobody else would ever let an empty slot go. */
	if (claimed)
		__sync_val_compare_and_swap(&bucket->slots[slot & (SPANS_BUCKET_SLOTS - 1)].key, key, 0);
}

static __always_inline void end_span(__u32 pid, __u64 key, __u64 span_id)
{
	struct span_slot *slot = find_slot(pid, key);

	if (slot)
		slot_end(slot, key, span_id);
}

#endif
