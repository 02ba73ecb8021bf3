/*
 * What a task or a thread starts with: the span that was active where it was spawned, as long as that
 * request is open (handed_on.h). And who woke a task, for the requests that it sends for others (task_edges.h).
 *
 * Ids of tasks never come back; those of threads do, so what hangs on one goes when the thread ends.
 */
#ifndef SPANWELD_TASK_EDGES_BPF_H
#define SPANWELD_TASK_EDGES_BPF_H

#include "maps.bpf.h"
#include "task_edges.h"

static __always_inline struct handed_on *find_handed_on(void *tasks)
{
	return element_of(tasks, SHARED_HANDED_ON);
}

/* Since which task the target's wakes are followed; 0: they are not. */
static __always_inline __u64 wakes_followed_since(__u32 pid)
{
	struct wakes_followed *followed = shared_element(pid, SHARED_WAKES);

	return followed ? *(volatile __u64 *)&followed->first : 0;
}

static __always_inline struct wake_bucket *find_wake_bucket(__u32 pid, __u64 task_key)
{
	return shared_element(pid, SHARED_WAKE_BUCKETS + wake_bucket_of(task_key));
}

static __always_inline struct edge_bucket *find_edge_bucket(__u32 pid, __u64 task_key)
{
	__u32 number = edge_bucket_of(task_key);
	struct edge_buckets *element = shared_element(pid, SHARED_EDGES + number / EDGE_BUCKETS_EACH);

	return element ? &element->buckets[number % EDGE_BUCKETS_EACH] : NULL;
}

static __always_inline struct open_bucket *find_open_bucket(void *tasks, __u64 server_span_id)
{
	__u32 number = open_bucket_of(server_span_id);
	struct open_buckets *element = element_of(tasks, SHARED_OPEN + number / OPEN_BUCKETS_EACH);

	return element ? &element->buckets[number % OPEN_BUCKETS_EACH] : NULL;
}

static __always_inline struct listed_bucket *find_listed_bucket(__u32 pid, __u64 server_span_id, __u32 slot)
{
	__u32 number = listed_bucket_of(server_span_id, slot);
	struct listed_buckets *element = shared_element(pid, SHARED_LISTED + number / LISTED_BUCKETS_EACH);

	return element ? &element->buckets[number % LISTED_BUCKETS_EACH] : NULL;
}

static __always_inline bool is_open_request(__u32 pid, __u64 server_span_id)
{
	struct open_bucket *bucket = find_open_bucket(shared_map(pid), server_span_id);

	return server_span_id && bucket && open_find(bucket, server_span_id) >= 0;
}

/* Whether the request's server span is open. */
GLOBAL int is_open(__u32 pid, __u64 server_span_id)
{
	return is_open_request(pid, server_span_id);
}

/* False if there is no room. */
static __always_inline bool open_request(void *tasks, __u64 server_span_id, int places)
{
	struct open_bucket *bucket = find_open_bucket(tasks, server_span_id);
	struct handed_on *all = find_handed_on(tasks);

	if (!bucket || !all)
		return true;
	if (!open_add(bucket, server_span_id, places))
		return false;
	__sync_fetch_and_add(&all->open, 1);
	return true;
}

static __always_inline __s64 count_open(__u32 pid)
{
	struct handed_on *all = find_handed_on(shared_map(pid));

	return all ? *(volatile __s64 *)&all->open : 0;
}

static __always_inline void end_unframed(__u32 pid, __u64 task_key)
{
	struct span_slot *slot = find_slot(pid, task_key);

	if (slot && spans_end_unframed(slot, task_key) == SPANS_BUSY)
		count(COUNT_SLOT_BUSY);
}

struct listed_of {
	__u64 server_span_id;
	__u32 pid;
	__u32 pad;
};

/* A step for each place of a bucket: at this depth no more may be called than once. */
static long release_listed(__u32 index, void *context)
{
	struct listed_of *listed = context;
	__u64 id = listed->server_span_id, task_key;
	struct listed_bucket *bucket = find_listed_bucket(listed->pid, id, index / HANDED_BUCKET);

	if (!bucket)
		return 1;
	task_key = listed_take(&bucket->slots[index % HANDED_BUCKET], id, 0);
	if (task_key)
		end_unframed(listed->pid, task_key);
	return 0;
}

/* A request's server span ends: with it goes what other tasks have pushed for it. */
GLOBAL int close_request(__u32 pid, __u64 server_span_id)
{
	void *tasks = shared_map(pid);
	struct open_bucket *bucket = find_open_bucket(tasks, server_span_id);
	struct handed_on *all = find_handed_on(tasks);
	struct listed_of listed = {};
	int slots;

	if (!bucket || !all)
		return 0;
	/* Who pushes from now on sees that it is too late, and takes it back: push_upon. */
	slots = open_close(bucket, server_span_id);
	if (slots < 0)
		return 0;
	__sync_fetch_and_add(&all->open, -1);
	listed.server_span_id = server_span_id;
	listed.pid = pid;
	if (slots)
		bpf_loop(slots * HANDED_BUCKET, release_listed, &listed, 0);
	return 0;
}

GLOBAL int bucket_write_edge(struct edge_bucket *bucket, __u32 at, __u64 task_key, struct active_spans *from)
{
	return bucket && from && edge_write(bucket, at, task_key, from);
}

/*
 * What a task has from its spawner: the request that this one worked for, and what was active there
 * then, while that request is open. `servers` is 0 in what is found so, since it is not on the task's stack.
 */
GLOBAL int spawner_context(__u32 pid, __u64 task_key, struct active_spans *found)
{
	struct edge_bucket *bucket = find_edge_bucket(pid, task_key);

	/* Called at a depth at which nothing more may be called. */
	if (!found || !bucket || !edge_read(bucket, task_key, found) ||
	    !is_open_request(pid, found->server.span_id))
		return 0;
	found->servers = 0;
	found->is_set = 1;
	return 1;
}

/*
 * A task or thread begins with a context. Its edge takes the place of one whose request is over or, if there
 * is none, of the oldest.
 */
GLOBAL int put_edge(__u32 pid, __u64 task_key, struct active_spans *from)
{
	struct edge_bucket *bucket = find_edge_bucket(pid, task_key);
	__u32 first;

	if (!bucket || !from)
		return 0;
	first = __sync_fetch_and_add(&bucket->next, 1);
	for (__u32 i = 0; i < HANDED_BUCKET; i++) {
		__u32 at = (first + i) % HANDED_BUCKET;

		if (bucket->keys[at] && is_open(pid, bucket->edges[at].server.span_id))
			continue;
		if (bucket_write_edge(bucket, at, task_key, from))
			return 1;
	}
	count(COUNT_EDGES_FULL);
	return bucket_write_edge(bucket, first, task_key, from);
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

enum listing {
	LISTED_NOT = 0, /* it may not push */
	LISTED_BEFORE,
	LISTED_NOW,
};

/* The running task, which has the request from its spawner, pushes: its slot goes with that request. */
GLOBAL int list_slot(__u32 pid, __u64 task_key, __u64 server_span_id)
{
	struct edge_bucket *edges = find_edge_bucket(pid, task_key);
	struct open_bucket *requests = find_open_bucket(shared_map(pid), server_span_id);
	struct listed_bucket *slots;
	int at, number;

	if (!edges || !requests)
		return LISTED_NOT;
	at = edge_find(edges, task_key);
	if (at < 0)
		return LISTED_NOT;
	if (edges->edges[at % HANDED_BUCKET].listed == task_key)
		return LISTED_BEFORE;
	number = open_take_number(requests, server_span_id);
	slots = number < 0 ? NULL : find_listed_bucket(pid, server_span_id, number);
	if (!slots || !listed_add(slots, server_span_id, task_key)) {
		count(COUNT_TASKS_FULL);
		return LISTED_NOT;
	}
	edges->edges[at % HANDED_BUCKET].listed = task_key;
	return LISTED_NOW + number;
}

/* The request has ended while the running task listed its slot and pushed. */
GLOBAL int take_back(__u32 pid, __u64 task_key, __u64 server_span_id, int listing)
{
	struct listed_bucket *slots = find_listed_bucket(pid, server_span_id, listing - LISTED_NOW);

	for (int i = 0; listing >= LISTED_NOW && slots && i < HANDED_BUCKET; i++)
		listed_take(&slots->slots[i], server_span_id, task_key);
	end_unframed(pid, task_key);
	return 0;
}

/* Pushes upon what was found by find_context(). The stack of its callers is nearly full: no deeper calls. */
static __always_inline void push_upon(__u32 pid, __u64 task_key, struct span_frame *frame,
				      const struct active_spans *found)
{
	__u64 spawner = found->servers ? 0 : found->server.span_id;
	int listing = spawner ? list_slot(pid, task_key, spawner) : LISTED_NOT;

	if (spawner && listing == LISTED_NOT)
		return;
	push_span(shared_map(pid), task_key, frame);
	if (spawner && !is_open(pid, spawner))
		take_back(pid, task_key, spawner, listing);
}

GLOBAL int forget_edge(__u32 pid, __u64 task_key)
{
	struct edge_bucket *bucket = find_edge_bucket(pid, task_key);

	if (bucket)
		edge_forget(bucket, task_key);
	return 0;
}

/* How many edges of threads the target ever had. */
static __always_inline __u32 count_thread_edges(__u32 pid)
{
	struct handed_on *all = find_handed_on(shared_map(pid));

	return all ? *(volatile __u32 *)&all->thread_edges : 0;
}

/* A thread that runs tasks is a runtime's: what it does between them is nobody's. */
static __always_inline void note_task_on_thread(__u32 pid, __u64 task_key)
{
	__u32 edges = task_key & TASK_KEY_THREAD ? 0 : count_thread_edges(pid);

	if (edges && !is_known_to_run_tasks(edges))
		forget_edge(pid, thread_key());
}

/* The running thread waits for events. */
static __always_inline void note_wait(const struct target *target, __u32 pid)
{
	struct event_drivers *all;
	__u64 key;

	if (count_thread_edges(pid))
		forget_edge(pid, thread_key());
	if (!wakes_followed_since(pid))
		return;
	all = shared_element(pid, SHARED_EVENT_DRIVERS);
	key = current_task_key(target);
	if (all && !event_drivers_have(all, key))
		event_drivers_add(all, key);
}

static __always_inline bool drives_events(__u32 pid, __u64 task_key)
{
	const struct event_drivers *all = shared_element(pid, SHARED_EVENT_DRIVERS);

	return all && event_drivers_have(all, task_key);
}

static __always_inline bool has_edge(__u32 pid, __u64 task_key)
{
	struct edge_bucket *bucket = find_edge_bucket(pid, task_key);

	return bucket && edge_find(bucket, task_key) >= 0;
}

/* Whether a task was spawned after its wakes were followed; none was before WAKES_NONE_YET. */
static __always_inline bool is_followed(__u64 first, __u64 task_key)
{
	return task_key >= first && !(task_key & TASK_KEY_THREAD);
}

GLOBAL int bucket_enter_wakes(struct wake_bucket *bucket, __u64 task_key, struct wakes_entry *entry)
{
	return bucket && entry ? wakes_enter(bucket, task_key, entry) : WAKES_ABSENT;
}

/*
 * A task is woken by another one: in a context, or, with WAKE_BY_NOBODY as its server span, by one that works for
 * no request, which counts too as soon as the task is known to be woken in others.
 * Wakes only ever tell the cause of a driver's requests; no manual root is adopted by them.
 */
GLOBAL int note_wake(__u32 pid, __u64 woken, struct active_spans *waker)
{
	__u64 first = wakes_followed_since(pid);
	struct wake_bucket *bucket = find_wake_bucket(pid, woken);
	struct wakes_entry entry = {};
	struct wake_record *record;
	int at;

	if (!first || !waker || !bucket)
		return 0;
	/* Of a task that a request has spawned, it would be missed. */
	entry.adds = waker->server.span_id != WAKE_BY_NOBODY || has_edge(pid, woken);
	entry.is_followed = is_followed(first, woken);
	at = bucket_enter_wakes(bucket, woken, &entry);
	if (at < 0)
		return 0;
	record = &bucket->records[at & (WAKE_BUCKET - 1)];
	wakes_note(record, &waker->server, &waker->active);
	wakes_unlock(&record->sequence);
	return 0;
}

/* A response was read to its end on the connection that a task drives: only wakes from now on count. */
GLOBAL int reset_wakes(__u32 pid, __u64 driver, __u32 had_body)
{
	struct wake_bucket *bucket = find_wake_bucket(pid, driver);
	struct wakes_entry entry = {.adds = 1}; /* what came before is not known */
	struct wake_record *record;
	int at;

	if (!bucket || !wakes_followed_since(pid))
		return 0;
	at = bucket_enter_wakes(bucket, driver, &entry);
	if (at < 0)
		return 0;
	record = &bucket->records[at & (WAKE_BUCKET - 1)];
	record->is_driver = 1;
	wakes_reset(record, had_body, entry.missed);
	wakes_unlock(&record->sequence);
	return 0;
}

/* The connection that a task drives is closed. */
GLOBAL int forget_wakes(__u32 pid, __u64 driver)
{
	struct wake_bucket *bucket = find_wake_bucket(pid, driver);

	if (bucket && wakes_followed_since(pid))
		wakes_remove(bucket, driver);
	return 0;
}

/* Whose request a driver sends, by its wakes, which that uses up: enum cause. */
GLOBAL int take_wake_cause(__u32 pid, __u64 driver, struct active_spans *found)
{
	struct wake_bucket *bucket = find_wake_bucket(pid, driver);
	struct wakes_entry entry = {};
	struct wake_record *record;
	int at, cause;

	if (!bucket || !found || !wakes_followed_since(pid))
		return CAUSE_NONE;
	at = bucket_enter_wakes(bucket, driver, &entry);
	if (at < 0)
		return at == WAKES_ABSENT ? CAUSE_NONE : CAUSE_UNKNOWN;
	record = &bucket->records[at & (WAKE_BUCKET - 1)];
	record->is_driver = 1;
	cause = wakes_cause(record);
	if (cause >= 0 && cause < WAKE_CONTEXTS) {
		found->server = record->contexts[cause & (WAKE_CONTEXTS - 1)].server;
		found->active = record->contexts[cause & (WAKE_CONTEXTS - 1)].active;
		found->servers = 0;
		found->is_set = 1;
	}
	wakes_use(record, cause);
	wakes_unlock(&record->sequence);
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
	struct wake_bucket *bucket = find_wake_bucket(pid, driver);
	struct wakes_entry entry = {.adds = 1, .is_followed = 1};
	struct wake_context context = {};
	struct wake_record *record;
	int at;

	if (!bucket || !found || !wakes_followed_since(pid))
		return 0;
	at = bucket_enter_wakes(bucket, driver, &entry);
	if (at < 0)
		return 0;
	context.server = found->server;
	context.active = found->active;
	record = &bucket->records[at & (WAKE_BUCKET - 1)];
	record->is_driver = 1;
	record->is_unknown = 0;
	record->nr_previous = 0;
	wakes_add_previous(record, &context);
	wakes_unlock(&record->sequence);
	return 0;
}

/*
 * What caused a request out, where nothing is active on the sending task's own stack with a request
 * of its own: rules 2 to 4 of docs/design.md. CAUSE_FOUND: `found` is set; CAUSE_UNKNOWN is counted.
 */
GLOBAL int cause_by_tasks(__u32 pid, __u64 task_key, __u32 sender, struct active_spans *found)
{
	bool followed = wakes_followed_since(pid);
	struct event_head event = {};
	struct target *target;
	int cause = CAUSE_NONE;

	if (!found)
		return CAUSE_NONE;
	if (sender == SENDER_ITSELF)
		return find_context(pid, task_key, found) ? CAUSE_FOUND : CAUSE_NONE;
	target = find_target(pid);
	if (target && !__sync_val_compare_and_swap(&target->wants_wakes, 0, 1)) {
		event.kind = EVENT_WAKES_WANTED;
		event.pid = pid;
		event.at = bpf_ktime_get_ns();
		emit_at_once(&event, sizeof(event));
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
