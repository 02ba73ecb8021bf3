/*
 * What a task or a thread starts with: the span that was active where it was spawned, as long as that
 * request is open. And who woke a task, for the requests that it sends for others (task_edges.h).
 *
 * Ids of tasks never come back; those of threads do, so what hangs on one goes when the thread ends.
 */
#ifndef SPANWELD_TASK_EDGES_BPF_H
#define SPANWELD_TASK_EDGES_BPF_H

#include "maps.bpf.h"
#include "task_edges.h"

struct task_edge_key {
	__u64 task_key;
	__u32 pid;
	__u32 pad;
};

struct task_edge {
	struct span_frame server; /* the request that the spawner worked for */
	struct span_frame active; /* what was active there, `server` itself if nothing else */
	__u32 has_slot; /* it is in `request_slots` */
	__u32 pad;
};

/*
 * Written by tokio_tasks when a task is spawned, or a thread started, where a span is active; a thread's
 * deleted when it ends, waits for events, or is seen to run tasks. LRU: all else is forgotten by age.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, struct task_edge_key);
	__type(value, struct task_edge);
} task_edges SEC(".maps");

struct open_request_key {
	__u64 server_span_id;
	__u32 pid;
	__u32 pad;
};

struct open_request {
	__u32 slots; /* how many numbers of `request_slots` were given out */
	__u32 is_closing;
};

/* Requests whose server span is open. Written and deleted by http_server; with the target by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__type(key, struct open_request_key);
	__type(value, struct open_request);
} open_requests SEC(".maps");

/* key: process id; value: how many of `open_requests` are its. Written by http_server, deleted by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __s64);
} open_counts SEC(".maps");

struct request_slot_key {
	__u64 server_span_id;
	__u32 pid;
	__u32 number;
};

#define REQUEST_SLOTS_MAX 256

/*
 * Keys of the tasks that have a slot in spans_in_progress for spans of a request which is another
 * task's, numbered by request. Written when such a task pushes for the first time, deleted with the request.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct request_slot_key);
	__type(value, __u64);
} request_slots SEC(".maps");

struct wake_record_key {
	__u64 task_key;
	__u32 pid;
	__u32 pad;
};

/*
 * Written by tokio_tasks for each task that is woken where a span is active, while wakes are followed: any may
 * turn out to be a driver.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct wake_record_key);
	__type(value, struct wake_record);
} wake_records SEC(".maps");

/* The same of those that drive a connection: written here when they first send, or have read a response. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct wake_record_key);
	__type(value, struct wake_record);
} driver_wakes SEC(".maps");

/*
 * Tasks and threads that have waited for events themselves, as a runtime's workers do: whom they wake is the
 * events' choice. Written while wakes are followed; forgotten by age.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct task_edge_key);
	__type(value, __u8);
} event_drivers SEC(".maps");

/*
 * key: process id; value: the first task that was spawned after its wakes were followed, 0: none yet. Written by
 * the agent once probes on all wakes are attached, and by tokio_tasks; deleted by the agent.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u64);
} wakes_followed SEC(".maps");

static __always_inline struct task_edge *find_edge(__u32 pid, __u64 task_key)
{
	struct task_edge_key key = {};

	key.task_key = task_key;
	key.pid = pid;
	return bpf_map_lookup_elem(&task_edges, &key);
}

static __always_inline struct open_request *find_open_request(__u32 pid, __u64 server_span_id)
{
	struct open_request_key key = {};
	struct open_request *request;

	key.server_span_id = server_span_id;
	key.pid = pid;
	request = bpf_map_lookup_elem(&open_requests, &key);
	return request && !*(volatile __u32 *)&request->is_closing ? request : NULL;
}

static __always_inline void open_request(__u32 pid, __u64 server_span_id)
{
	struct open_request_key key = {};
	struct open_request request = {};
	__s64 none = 0, *number;

	key.server_span_id = server_span_id;
	key.pid = pid;
	if (!bpf_map_lookup_elem(&open_counts, &pid))
		bpf_map_update_elem(&open_counts, &pid, &none, BPF_NOEXIST);
	number = bpf_map_lookup_elem(&open_counts, &pid);
	if (!number || bpf_map_update_elem(&open_requests, &key, &request, BPF_ANY)) {
		count(COUNT_TASKS_FULL);
		return;
	}
	__sync_fetch_and_add(number, 1);
}

static __always_inline __s64 count_open(__u32 pid)
{
	__s64 *number = bpf_map_lookup_elem(&open_counts, &pid);

	return number ? *(volatile __s64 *)number : 0;
}

static __always_inline void end_unframed(__u32 pid, __u64 task_key)
{
	struct span_slot *slot = find_slot(pid, task_key);

	if (slot && spans_end_unframed(slot, task_key) == SPANS_BUSY)
		count(COUNT_SLOT_BUSY);
}

static long release_request_slot(__u32 index, void *context)
{
	struct request_slot_key *key = context;
	__u64 *task_key = bpf_map_lookup_elem(&request_slots, key);

	(void)index;
	if (task_key) {
		end_unframed(key->pid, *task_key);
		bpf_map_delete_elem(&request_slots, key);
	}
	key->number++;
	return 0;
}

/* A request's server span ends: with it goes what other tasks have pushed for it. */
GLOBAL int close_request(__u32 pid, __u64 server_span_id)
{
	struct request_slot_key slot = {};
	struct open_request_key key = {};
	struct open_request *request;
	__s64 *number;
	__u32 slots;

	key.server_span_id = server_span_id;
	key.pid = pid;
	request = bpf_map_lookup_elem(&open_requests, &key);
	if (!request)
		return 0;
	/* Who pushes from now on sees that it is too late, and takes it back: push_spawned. */
	__sync_fetch_and_add(&request->is_closing, 1);
	slots = *(volatile __u32 *)&request->slots;
	bpf_map_delete_elem(&open_requests, &key);
	number = bpf_map_lookup_elem(&open_counts, &pid);
	if (number)
		__sync_fetch_and_add(number, -1);
	if (slots > REQUEST_SLOTS_MAX)
		slots = REQUEST_SLOTS_MAX;
	slot.server_span_id = server_span_id;
	slot.pid = pid;
	if (slots)
		bpf_loop(slots, release_request_slot, &slot, 0);
	return 0;
}

/*
 * What a task has from its spawner: the request that this one worked for, and what was active there
 * then, while that request is open. `servers` is 0 in what is found so, since it is not on the task's stack.
 */
GLOBAL int spawner_context(__u32 pid, __u64 task_key, struct active_spans *found)
{
	struct task_edge *edge = find_edge(pid, task_key);

	if (!edge || !found || !find_open_request(pid, edge->server.span_id))
		return 0;
	found->server = edge->server;
	found->active = edge->active;
	found->servers = 0;
	found->is_set = 1;
	return 1;
}

/*
 * The active span context of a task: of its own stack, or its spawner's, upon which lies what it
 * has pushed itself. A task in which two requests are open has none.
 */
GLOBAL int find_context(__u32 pid, __u64 task_key, struct active_spans *found)
{
	struct span_slot *slot = find_slot(pid, task_key);
	struct span_frame pushed = {};

	if (!found)
		return 0;
	if (slot) {
		int result = spans_active(slot, task_key, found);

		if (result == SPANS_OK)
			return 1;
		if (result == SPANS_BUSY || found->servers)
			return 0;
		if (result == SPANS_UNFRAMED)
			pushed = found->active;
	}
	if (!spawner_context(pid, task_key, found))
		return 0;
	if (pushed.span_id)
		found->active = pushed;
	return 1;
}

/* The running task, which has the request from its spawner, pushes: its slot goes with that request. */
GLOBAL int list_slot(__u32 pid, __u64 task_key, __u64 server_span_id)
{
	struct open_request *request = find_open_request(pid, server_span_id);
	struct task_edge *edge = find_edge(pid, task_key);
	struct request_slot_key key = {};

	if (!request || !edge)
		return 0;
	if (edge->has_slot)
		return 1;
	key.server_span_id = server_span_id;
	key.pid = pid;
	key.number = __sync_fetch_and_add(&request->slots, 1);
	if (key.number >= REQUEST_SLOTS_MAX || bpf_map_update_elem(&request_slots, &key, &task_key, BPF_ANY)) {
		count(COUNT_TASKS_FULL);
		return 0;
	}
	edge->has_slot = 1;
	return 1;
}

/* Pushes upon what was found by find_context(). The stack of its callers is nearly full: no deeper calls. */
static __always_inline void push_upon(__u32 pid, __u64 task_key, struct span_frame *frame,
				      const struct active_spans *found)
{
	__u64 spawner = found->servers ? 0 : found->server.span_id;

	if (spawner && !list_slot(pid, task_key, spawner))
		return;
	push_span(pid, task_key, frame);
	if (spawner && !find_open_request(pid, spawner))
		end_unframed(pid, task_key);
}

static __always_inline void forget_edge(__u32 pid, __u64 task_key)
{
	struct task_edge_key key = {};

	key.task_key = task_key;
	key.pid = pid;
	bpf_map_delete_elem(&task_edges, &key);
}

/* A thread that runs tasks is a runtime's: what it does between them is nobody's. */
static __always_inline void note_task_on_thread(const struct target *target, __u32 pid, __u64 task_key)
{
	if (target->has_thread_edges && !(task_key & TASK_KEY_THREAD))
		forget_edge(pid, thread_key());
}

/* The running thread waits for events. */
static __always_inline void note_wait(const struct target *target, __u32 pid)
{
	struct task_edge_key key = {};
	__u8 yes = 1;

	if (target->has_thread_edges)
		forget_edge(pid, thread_key());
	if (!bpf_map_lookup_elem(&wakes_followed, &pid))
		return;
	key.task_key = current_task_key(target);
	key.pid = pid;
	if (!bpf_map_lookup_elem(&event_drivers, &key))
		bpf_map_update_elem(&event_drivers, &key, &yes, BPF_ANY);
}

static __always_inline bool drives_events(__u32 pid, __u64 task_key)
{
	struct task_edge_key key = {};

	key.task_key = task_key;
	key.pid = pid;
	return bpf_map_lookup_elem(&event_drivers, &key) != NULL;
}

static __always_inline struct wake_record *find_wakes(__u32 pid, __u64 task_key)
{
	struct wake_record_key key = {};
	struct wake_record *record;

	key.task_key = task_key;
	key.pid = pid;
	record = bpf_map_lookup_elem(&driver_wakes, &key);
	return record ? record : bpf_map_lookup_elem(&wake_records, &key);
}

/* The record of a task that drives a connection; NULL if it has none. */
static __always_inline struct wake_record *find_driver_wakes(__u32 pid, __u64 task_key)
{
	struct wake_record_key key = {};
	struct wake_record *record;

	key.task_key = task_key;
	key.pid = pid;
	record = bpf_map_lookup_elem(&driver_wakes, &key);
	if (record)
		return record;
	record = bpf_map_lookup_elem(&wake_records, &key);
	if (!record || bpf_map_update_elem(&driver_wakes, &key, record, BPF_ANY))
		return NULL;
	bpf_map_delete_elem(&wake_records, &key);
	return bpf_map_lookup_elem(&driver_wakes, &key);
}

/* A record that has nothing in it. `is_open`: what came before it is not known. */
static __always_inline struct wake_record *begin_wakes(void *map, struct wake_record_key *key, bool is_complete,
						       bool is_open)
{
	static const struct wake_record empty;
	struct wake_record *record;

	bpf_map_update_elem(map, key, &empty, BPF_NOEXIST);
	record = bpf_map_lookup_elem(map, key);
	if (record) {
		record->is_complete = is_complete;
		record->is_open = is_open;
	}
	return record;
}

/* Whether a task was spawned after its wakes were followed. */
static __always_inline bool is_followed(__u64 first, __u64 task_key)
{
	return first && task_key >= first && !(task_key & TASK_KEY_THREAD);
}

/*
 * A task is woken by another one: in a context, or, with `waker` 0 as its server span, by one that works for
 * nobody, which counts too as soon as the task is known to be woken in others.
 * Wakes only ever tell the cause of a driver's requests; no manual root is adopted by them.
 */
GLOBAL int note_wake(__u32 pid, __u64 woken, struct active_spans *waker)
{
	__u64 *first = bpf_map_lookup_elem(&wakes_followed, &pid);
	struct wake_record_key key = {};
	struct wake_record *record;
	bool followed;

	if (!first || !waker)
		return 0;
	record = find_wakes(pid, woken);
	if (!record) {
		/* Of a task that a request has spawned, it would be missed. */
		if (waker->server.span_id == WAKE_BY_NOBODY && !find_edge(pid, woken))
			return 0;
		key.task_key = woken;
		key.pid = pid;
		followed = is_followed(*first, woken);
		record = begin_wakes(&wake_records, &key, followed, !followed);
	}
	if (record)
		wakes_note(record, &waker->server, &waker->active);
	return 0;
}

/* A response was read to its end on the connection that a task drives: only wakes from now on count. */
GLOBAL int reset_wakes(__u32 pid, __u64 driver, __u32 had_body)
{
	struct wake_record_key key = {};
	struct wake_record *record;

	if (!bpf_map_lookup_elem(&wakes_followed, &pid))
		return 0;
	record = find_driver_wakes(pid, driver);
	if (record) {
		wakes_reset(record, had_body);
		return 0;
	}
	key.task_key = driver;
	key.pid = pid;
	begin_wakes(&driver_wakes, &key, true, true);
	return 0;
}

/* Whose request a driver sends, by its wakes, which that uses up: enum cause. */
GLOBAL int take_wake_cause(__u32 pid, __u64 driver, struct active_spans *found)
{
	struct wake_record *record = find_driver_wakes(pid, driver);
	int cause;

	if (!record || !found)
		return CAUSE_NONE;
	cause = wakes_cause(record);
	if (cause >= 0 && cause < WAKE_CONTEXTS) {
		found->server = record->contexts[cause & (WAKE_CONTEXTS - 1)].server;
		found->active = record->contexts[cause & (WAKE_CONTEXTS - 1)].active;
		found->servers = 0;
		found->is_set = 1;
	}
	wakes_use(record, cause);
	if (cause >= 0 && found->server.span_id == WAKE_BY_NOBODY)
		return CAUSE_NOBODY;
	return cause >= 0 ? CAUSE_FOUND : -cause;
}

/* What a task that sends a request is to the connection. */
enum sender {
	SENDER_ITSELF = 0, /* it sends for itself */
	SENDER_DRIVER_FIRST, /* it drives the connection for others, and this is the first request on it */
	SENDER_DRIVER, /* … a later one */
};

/* A driver sends what its spawner caused. */
GLOBAL int note_first_cause(__u32 pid, __u64 driver, struct active_spans *found)
{
	struct wake_context context = {};
	struct wake_record_key key = {};
	struct wake_record *record;

	if (!found || !bpf_map_lookup_elem(&wakes_followed, &pid))
		return 0;
	record = find_driver_wakes(pid, driver);
	if (!record) {
		key.task_key = driver;
		key.pid = pid;
		record = begin_wakes(&driver_wakes, &key, true, false);
	}
	if (!record)
		return 0;
	context.server = found->server;
	context.active = found->active;
	record->is_unknown = 0;
	record->nr_previous = 0;
	wakes_add_previous(record, &context);
	return 0;
}

/*
 * What caused a request out, where nothing is active on the sending task's own stack with a request
 * of its own: rules 2 to 4 of docs/design.md. CAUSE_FOUND: `found` is set; CAUSE_UNKNOWN is counted.
 */
GLOBAL int cause_by_tasks(__u32 pid, __u64 task_key, __u32 sender, struct active_spans *found)
{
	bool followed = bpf_map_lookup_elem(&wakes_followed, &pid) != NULL;
	struct event_head event = {};
	struct target *target;
	int cause = CAUSE_NONE;

	if (!found)
		return CAUSE_NONE;
	if (sender == SENDER_ITSELF)
		return find_context(pid, task_key, found) ? CAUSE_FOUND : CAUSE_NONE;
	target = bpf_map_lookup_elem(&targets, &pid);
	if (target && !__sync_val_compare_and_swap(&target->wants_wakes, 0, 1)) {
		event.kind = EVENT_WAKES_WANTED;
		event.pid = pid;
		event.at = bpf_ktime_get_ns();
		bpf_ringbuf_output(&events, &event, sizeof(event), BPF_RB_FORCE_WAKEUP);
	}
	cause = take_wake_cause(pid, task_key, found);
	if (cause == CAUSE_NONE && sender == SENDER_DRIVER_FIRST) {
		if (spawner_context(pid, task_key, found))
			cause = CAUSE_FOUND;
		/* One request may begin a connection that another is the first to use. */
		if (cause == CAUSE_FOUND && !followed && count_open(pid) > 1)
			cause = CAUSE_UNKNOWN;
		if (cause == CAUSE_FOUND)
			note_first_cause(pid, task_key, found);
	} else if (cause == CAUSE_NONE && count_open(pid) > 0) {
		/* Whoever hands over a request may wake the driver after it has written that. */
		cause = CAUSE_UNKNOWN;
	} else if (cause == CAUSE_NOBODY) {
		cause = CAUSE_NONE;
	}
	if (cause == CAUSE_UNKNOWN)
		count(COUNT_CAUSE_UNKNOWN);
	return cause;
}

#endif
