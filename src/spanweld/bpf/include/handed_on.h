/*
 * What requests hand on to tasks and threads: behind the buckets of spans_in_progress, in the same
 * memory, for BPF programs, for code inside the target, and for tests on the host. Like
 * spans_in_progress.h, it includes nothing but that.
 *
 * Three tables of buckets of eight, each bucket by the hash of what is looked for:
 *
 *   open requests   a server span's id, while that is open. Claimed by compare-and-swap 0 -> id, and closed by
 *                   compare-and-swap id -> HANDED_BUSY, then 0: both by the kernel's programs alone. Others only look,
 *                   and take numbers (`slots`).
 *   listed slots    keys of tasks that have a slot in spans_in_progress for spans of a request which is another
 *                   task's, by that request and a number of it. Claimed by compare-and-swap 0 -> HANDED_BUSY, then
 *                   filled, then the request's id stored; taken by compare-and-swap id -> HANDED_BUSY. Who closes
 *                   a request takes what is listed under all its numbers. Who lists one looks, after it has
 *                   pushed onto that slot, whether the request is still open, and else takes both back: each of
 *                   the two does an atomic operation between what it writes and what it reads, so one of them
 *                   sees the other.
 *   edges           what a task or thread starts with. Who writes one first makes its sequence number odd
 *                   by compare-and-swap, and even again afterwards; who cannot takes another place. Readers
 *                   compare the number, and the key, before and after, and see no edge if either changed. So an
 *                   edge is read whole or not at all. It is worth something only while its request is open; one
 *                   of which that is not so is overwritten first, then, and that is counted, the oldest.
 *
 * Ids of requests and of tasks never come back; those of threads do, so a thread's edge is forgotten
 * with it.
 */
#ifndef SPANWELD_HANDED_ON_H
#define SPANWELD_HANDED_ON_H

#include "spans_in_progress.h"

#define HANDED_BUCKET 8
#define HANDED_BUSY 1 /* no server span has this id: theirs have the top bit */
#define OPEN_BUCKETS_LOG2 10
/*
 * A processor opens requests in a few buckets, and there in the first places, which are one cache line: the others are left
 * to ids that fall there by chance. What finds no room so is put anywhere.
 */
#define OPEN_BUCKETS_NEAR 8
#define OPEN_PLACES_NEAR 4
#define LISTED_BUCKETS_LOG2 11
#define EDGE_BUCKETS_LOG2 10
#define WAKE_BUCKETS_LOG2 9
#define REQUEST_SLOTS_MAX 256 /* slots of one request */

struct open_request {
	__u64 server_span_id; /* 0: free */
	__u32 slots; /* how many numbers were given out; a late one may be left for the next in this place */
	__u32 pad;
};

struct open_bucket {
	struct open_request requests[HANDED_BUCKET];
};

struct listed_slot {
	__u64 server_span_id; /* 0: free */
	__u64 task_key;
};

struct listed_bucket {
	struct listed_slot slots[HANDED_BUCKET];
};

struct task_edge {
	__u32 sequence; /* odd: being written */
	__u32 pad;
	__u64 listed; /* its own key: it has a listed slot; anything else: it has none */
	struct span_frame server; /* the request that the spawner worked for */
	struct span_frame active; /* what was active there, `server` itself if nothing else */
};

struct edge_bucket {
	__u64 keys[HANDED_BUCKET]; /* 0: free */
	__u32 next; /* edges that were written, in all: where the oldest is */
	__u32 pad[15];
	struct task_edge edges[HANDED_BUCKET];
};

_Static_assert(sizeof(struct open_bucket) == 128, "two cache lines");
_Static_assert(sizeof(struct listed_bucket) == 128, "two cache lines");
_Static_assert(sizeof(struct edge_bucket) == 896, "whole cache lines");

/* Of the whole table: one for each target. */
struct handed_on {
	__s64 open; /* open requests */
	__u32 thread_edges; /* edges of threads that were written, in all */
	__u32 pad;
};

/* Written as a whole by the agent, when probes on all wakes are attached and when they are taken off. */
struct wakes_followed {
	/* The first task that was spawned after that; WAKES_NONE_YET: none yet; 0: wakes are not followed. */
	__u64 first;
};

#define WAKES_NONE_YET (~0ULL)

/* What fits an element of the map. */
#define OPEN_BUCKETS_EACH 32
#define LISTED_BUCKETS_EACH 32
#define EDGE_BUCKETS_EACH 4

struct open_buckets {
	struct open_bucket buckets[OPEN_BUCKETS_EACH];
};

struct listed_buckets {
	struct listed_bucket buckets[LISTED_BUCKETS_EACH];
};

struct edge_buckets {
	struct edge_bucket buckets[EDGE_BUCKETS_EACH];
};

_Static_assert(sizeof(struct open_buckets) <= sizeof(struct span_bucket), "they fit");
_Static_assert(sizeof(struct listed_buckets) <= sizeof(struct span_bucket), "they fit");
_Static_assert(sizeof(struct edge_buckets) <= sizeof(struct span_bucket), "they fit");

/* Where in a target's own map what lies, by the number of the element. */
enum shared_place {
	SHARED_BUCKETS = 0, /* struct span_bucket, by spans_bucket_of() */
	SHARED_STARTS = SPANS_BUCKETS, /* roots that start, for probes inside the target: otel_sdk */
	SHARED_HANDED_ON = SHARED_STARTS + 32, /* struct handed_on */
	SHARED_WAKES, /* struct wakes_followed */
	SHARED_OPEN, /* struct open_buckets */
	SHARED_LISTED = SHARED_OPEN + (1 << OPEN_BUCKETS_LOG2) / OPEN_BUCKETS_EACH, /* struct listed_buckets */
	SHARED_EDGES = SHARED_LISTED + (1 << LISTED_BUCKETS_LOG2) / LISTED_BUCKETS_EACH, /* struct edge_buckets */
	/* Of task_edges.h: */
	SHARED_WAKE_BUCKETS = SHARED_EDGES + (1 << EDGE_BUCKETS_LOG2) / EDGE_BUCKETS_EACH, /* struct wake_bucket */
	SHARED_EVENT_DRIVERS = SHARED_WAKE_BUCKETS + (1 << WAKE_BUCKETS_LOG2), /* struct event_drivers */
	SHARED_ELEMENTS,
};

/* Without the id's top bit, which is always set. */
SPANS_INLINE __u32 open_bucket_of(__u64 server_span_id)
{
	return spans_hash(server_span_id << 1, OPEN_BUCKETS_LOG2);
}

/*
 * Ids of server spans are made here, so one can be made for a bucket: the other way round from what the hash comes
 * to. Requests of one processor are kept together so, in its cache; anywhere in the table, each would wait
 * for a line that another processor had last, which takes as long as parsing it.
 */
SPANS_INLINE __u64 open_id_in(__u32 bucket, __u64 random)
{
	return ((__u64)bucket << (63 - OPEN_BUCKETS_LOG2) | random >> (1 + OPEN_BUCKETS_LOG2)) *
		       SPANS_HASH_INVERSE |
	       1ULL << 63;
}

SPANS_INLINE __u32 listed_bucket_of(__u64 server_span_id, __u32 number)
{
	return spans_hash(server_span_id + number, LISTED_BUCKETS_LOG2);
}

SPANS_INLINE __u32 edge_bucket_of(__u64 task_key)
{
	return spans_hash(task_key, EDGE_BUCKETS_LOG2);
}

/* ---- open requests */

/* The request's place in its bucket, or -1: it is not open. */
SPANS_INLINE int open_find(const struct open_bucket *bucket, __u64 server_span_id)
{
	for (int i = 0; i < HANDED_BUCKET; i++)
		if (*(const volatile __u64 *)&bucket->requests[i].server_span_id == server_span_id)
			return i;
	return -1;
}

/* False if there is no room in the first `places`. */
SPANS_INLINE bool open_add(struct open_bucket *bucket, __u64 server_span_id, int places)
{
	for (int i = 0; i < places; i++) {
		__u64 *place = &bucket->requests[i].server_span_id;

		if (!*(volatile __u64 *)place && !__sync_val_compare_and_swap(place, 0, server_span_id))
			return true;
	}
	return false;
}

/* How many numbers of its slots were given out, or -1: it was not open. */
SPANS_INLINE int open_close(struct open_bucket *bucket, __u64 server_span_id)
{
	int at = open_find(bucket, server_span_id);
	struct open_request *request;
	__u32 slots;

	if (at < 0)
		return -1;
	request = &bucket->requests[at & (HANDED_BUCKET - 1)];
	if (__sync_val_compare_and_swap(&request->server_span_id, server_span_id, HANDED_BUSY) != server_span_id)
		return -1;
	slots = *(volatile __u32 *)&request->slots;
	*(volatile __u32 *)&request->slots = 0;
	__asm__ volatile("" ::: "memory");
	*(volatile __u64 *)&request->server_span_id = 0;
	return slots < REQUEST_SLOTS_MAX ? slots : REQUEST_SLOTS_MAX;
}

/* A number for a slot of the request, or -1: it is not open, or has too many. */
SPANS_INLINE int open_take_number(struct open_bucket *bucket, __u64 server_span_id)
{
	int at = open_find(bucket, server_span_id);
	__u32 number;

	if (at < 0)
		return -1;
	number = __sync_fetch_and_add(&bucket->requests[at & (HANDED_BUCKET - 1)].slots, 1);
	return number < REQUEST_SLOTS_MAX ? (int)number : -1;
}

/* ---- listed slots */

/* False if there is no room. */
SPANS_INLINE bool listed_add(struct listed_bucket *bucket, __u64 server_span_id, __u64 task_key)
{
	for (int i = 0; i < HANDED_BUCKET; i++) {
		struct listed_slot *slot = &bucket->slots[i];

		if (__sync_val_compare_and_swap(&slot->server_span_id, 0, HANDED_BUSY))
			continue;
		*(volatile __u64 *)&slot->task_key = task_key;
		__asm__ volatile("" ::: "memory");
		*(volatile __u64 *)&slot->server_span_id = server_span_id;
		return true;
	}
	return false;
}

/* Takes out what is listed in one place for a request, or of it for one task; 0 if nothing is. */
SPANS_INLINE __u64 listed_take(struct listed_slot *slot, __u64 server_span_id, __u64 task_key)
{
	__u64 key;

	if (*(volatile __u64 *)&slot->server_span_id != server_span_id ||
	    (task_key && *(volatile __u64 *)&slot->task_key != task_key))
		return 0;
	if (__sync_val_compare_and_swap(&slot->server_span_id, server_span_id, HANDED_BUSY) != server_span_id)
		return 0;
	key = *(volatile __u64 *)&slot->task_key;
	__asm__ volatile("" ::: "memory");
	*(volatile __u64 *)&slot->server_span_id = 0;
	return key;
}

/* ---- edges */

/* The place of a task's edge in its bucket, or -1. */
SPANS_INLINE int edge_find(const struct edge_bucket *bucket, __u64 task_key)
{
	for (int i = 0; i < HANDED_BUCKET; i++)
		if (*(const volatile __u64 *)&bucket->keys[i] == task_key)
			return i;
	return -1;
}

/*
 * Reads a task's edge: whole, or not at all (false). What is found says no more than that, and nothing of
 * whether its request is open; `servers` and `is_set` are left alone.
 */
SPANS_INLINE bool edge_read(const struct edge_bucket *bucket, __u64 task_key, struct active_spans *found)
{
	int at = edge_find(bucket, task_key);
	const struct task_edge *edge;
	__u32 before;

	if (at < 0)
		return false;
	edge = &bucket->edges[at & (HANDED_BUCKET - 1)];
	before = *(const volatile __u32 *)&edge->sequence;
	if (before & 1 || *(const volatile __u64 *)&bucket->keys[at & (HANDED_BUCKET - 1)] != task_key)
		return false; /* overwritten, or about to be */
	/* x86-64 keeps loads in order: only the compiler must. */
	__asm__ volatile("" ::: "memory");
	found->server = edge->server;
	found->active = edge->active;
	__asm__ volatile("" ::: "memory");
	return *(const volatile __u32 *)&edge->sequence == before &&
	       *(const volatile __u64 *)&bucket->keys[at & (HANDED_BUCKET - 1)] == task_key;
}

SPANS_INLINE bool edge_lock(struct task_edge *edge)
{
	__u32 sequence = *(volatile __u32 *)&edge->sequence;

	return !(sequence & 1) && __sync_val_compare_and_swap(&edge->sequence, sequence, sequence + 1) == sequence;
}

/* Writes an edge over whatever is in that place; false if somebody else is about it. */
SPANS_INLINE bool edge_write(struct edge_bucket *bucket, __u32 at, __u64 task_key, const struct active_spans *from)
{
	struct task_edge *edge = &bucket->edges[at & (HANDED_BUCKET - 1)];

	if (!edge_lock(edge))
		return false;
	*(volatile __u64 *)&bucket->keys[at & (HANDED_BUCKET - 1)] = 0;
	__asm__ volatile("" ::: "memory");
	edge->listed = 0;
	edge->server = from->server;
	edge->active = from->active;
	__asm__ volatile("" ::: "memory");
	*(volatile __u64 *)&bucket->keys[at & (HANDED_BUCKET - 1)] = task_key;
	__sync_fetch_and_add(&edge->sequence, 1);
	return true;
}

/* Without the number: a reader looks at the key once more, and a writer stores its own whatever is there. */
SPANS_INLINE void edge_forget(struct edge_bucket *bucket, __u64 task_key)
{
	int at = edge_find(bucket, task_key);

	if (at >= 0)
		__sync_val_compare_and_swap(&bucket->keys[at & (HANDED_BUCKET - 1)], task_key, 0);
}

#endif
