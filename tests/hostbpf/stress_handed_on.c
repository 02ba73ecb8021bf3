/*
 * What requests hand on, under real threads: requests that begin, spawn and end, tasks that look at their edge
 * and push, and readers of any edge. Few buckets for all, so that all places change hands all the time.
 *
 *     stress_handed_on SECONDS
 *
 * Invariants: an edge is read whole and is that of its key, or not at all; what a task has pushed for a request
 * is gone when both are done with it; in the end nothing is open, listed or claimed.
 */
#include <linux/types.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Functions with names, for tsan.supp. */
#define SPANS_INLINE static __attribute__((noinline, unused))
#include "handed_on.h"
#include "stress.h"

#define REQUESTERS 3
#define WORKERS 3
#define READERS 2
#define TASKS 6 /* of each request */

static struct open_bucket opens[2];
static struct listed_bucket listed[4];
static struct edge_bucket edges[2];

/* A task for some worker to run. */
struct spawned {
	__u64 key; /* 0: none; written last, taken by compare-and-swap */
};

static struct spawned spawned[REQUESTERS][TASKS];
static bool stop, requesters_done;
static __u64 requests, read_whole, read_not, pushed, late, evicted, looks;

/* A task's key is its request's number and its own; all of its edge follows from that. */
static __u64 request_of(__u64 key)
{
	return (key >> 8) | 1ULL << 63;
}

static struct active_spans edge_of(__u64 key)
{
	__u64 request = request_of(key);
	struct active_spans edge = {
		.server = {.trace_id_low = mix(request),
			   .trace_id_high = mix(request + 1),
			   .span_id = request,
			   .remote_parent = mix(request + 2),
			   .kind = FRAME_SERVER},
		.active = {.trace_id_low = mix(request),
			   .trace_id_high = mix(key),
			   .span_id = mix(key + 1),
			   .remote_parent = mix(key + 2),
			   .kind = FRAME_MANUAL},
	};

	return edge;
}

static struct open_bucket *open_at(__u64 request)
{
	return &opens[open_bucket_of(request) % 2];
}

static bool is_open(__u64 request)
{
	return open_find(open_at(request), request) >= 0;
}

static struct edge_bucket *edges_at(__u64 key)
{
	return &edges[edge_bucket_of(key) % 2];
}

static struct listed_bucket *listed_at(__u64 request, __u32 number)
{
	return &listed[listed_bucket_of(request, number) % 4];
}

static bool read_edge(__u64 key, struct active_spans *found)
{
	struct active_spans right = edge_of(key);

	if (!edge_read(edges_at(key), key, found)) {
		add(&read_not, 1);
		return false;
	}
	if (memcmp(&found->server, &right.server, sizeof(right.server)) ||
	    memcmp(&found->active, &right.active, sizeof(right.active)))
		fail("an edge that is torn, or another's");
	add(&read_whole, 1);
	return true;
}

/* A place of its own, for tsan.supp. */
static bool is_in_use(struct edge_bucket *bucket, __u32 at)
{
	return __atomic_load_n(&bucket->keys[at], __ATOMIC_RELAXED) &&
	       is_open(__atomic_load_n(&bucket->edges[at].server.span_id, __ATOMIC_RELAXED));
}

/* As put_edge in task_edges.bpf.h does. */
static void put_edge(__u64 key)
{
	struct edge_bucket *bucket = edges_at(key);
	struct active_spans edge = edge_of(key);
	__u32 first = __sync_fetch_and_add(&bucket->next, 1);

	for (__u32 i = 0; i < HANDED_BUCKET; i++) {
		__u32 at = (first + i) % HANDED_BUCKET;

		if (is_in_use(bucket, at))
			continue;
		if (edge_write(bucket, at, key, &edge))
			return;
	}
	add(&evicted, 1);
	edge_write(bucket, first, key, &edge);
}

static void end_unframed(__u64 key)
{
	struct span_slot *slot;

	while ((slot = find_slot(key)) && spans_end_unframed(slot, key) == SPANS_BUSY)
		sched_yield();
}

static void *request(void *argument)
{
	struct spawned *own = argument;
	__u64 thread = (__u64)(own - spawned[0]) / TASKS + 1;

	for (__u64 number = 1; !__atomic_load_n(&stop, __ATOMIC_RELAXED); number++) {
		__u64 id = thread << 40 | number;
		int slots;

		if (!open_add(open_at(request_of(id << 8)), request_of(id << 8), HANDED_BUCKET))
			fail("no room for a request");
		for (__u64 task = 1; task <= TASKS; task++) {
			put_edge(id << 8 | task);
			__atomic_store_n(&own[task - 1].key, id << 8 | task, __ATOMIC_RELEASE);
		}
		if (number % 3)
			sched_yield();
		slots = open_close(open_at(request_of(id << 8)), request_of(id << 8));
		if (slots < 0)
			fail("a request that was not open");
		for (int i = 0; i < slots; i++) {
			struct listed_bucket *bucket = listed_at(request_of(id << 8), i);

			for (int j = 0; j < HANDED_BUCKET; j++) {
				__u64 key = listed_take(&bucket->slots[j], request_of(id << 8), 0);

				if (key)
					end_unframed(key);
			}
		}
		for (int task = 0; task < TASKS; task++)
			while (__atomic_load_n(&own[task].key, __ATOMIC_ACQUIRE))
				sched_yield();
		/* Whoever pushed in time was ended above; who came too late has taken it back. */
		for (__u64 task = 1; task <= TASKS; task++)
			if (find_slot(id << 8 | task))
				fail("a slot is left of a request that is over");
		add(&requests, 1);
	}
	return NULL;
}

/* As push_upon in task_edges.bpf.h does. */
static void push(__u64 key, __u64 server)
{
	struct span_frame frame = edge_of(key).active;
	int number = open_take_number(open_at(server), server);
	struct span_slot *slot = NULL;

	if (number < 0 || !listed_add(listed_at(server, number), server, key))
		return;
	if (key & 1)
		sched_yield(); /* so that some come too late */
	for (int i = 0; !slot && i < SPANS_BUCKET_SLOTS; i++)
		if (exchange_key(&bucket_of(key)->slots[i], 0, key))
			slot = &bucket_of(key)->slots[i];
	if (slot && spans_push(slot, key, &frame) != SPANS_OK)
		exchange_key(slot, key, 0);
	add(&pushed, 1);
	if (is_open(server))
		return;
	add(&late, 1);
	for (int i = 0; i < HANDED_BUCKET; i++)
		listed_take(&listed_at(server, number)->slots[i], server, key);
	end_unframed(key);
}

static void *work(void *argument)
{
	__u64 at = (__u64)argument;

	while (!__atomic_load_n(&requesters_done, __ATOMIC_RELAXED)) {
		struct spawned *task = &spawned[at / TASKS % REQUESTERS][at % TASKS];
		__u64 key = __atomic_load_n(&task->key, __ATOMIC_ACQUIRE);
		struct active_spans found;

		at++;
		if (!key || key == ~0ULL ||
		    !__atomic_compare_exchange_n(&task->key, &key, ~0ULL, false, __ATOMIC_ACQUIRE,
						 __ATOMIC_RELAXED)) {
			sched_yield();
			continue;
		}
		if (read_edge(key, &found) && is_open(found.server.span_id))
			push(key, found.server.span_id);
		__atomic_store_n(&task->key, 0, __ATOMIC_RELEASE);
	}
	return NULL;
}

static void *watch(void *argument)
{
	__u64 random = mix((__u64)argument);

	while (!__atomic_load_n(&requesters_done, __ATOMIC_RELAXED)) {
		struct active_spans found;
		__u64 key;

		random = mix(random);
		key = __atomic_load_n(&edges[random >> 40 & 1].keys[random >> 30 & 7], __ATOMIC_RELAXED);
		if (key && read_edge(key, &found))
			add(&looks, 1);
		if (key && (random >> 20 & 63) == 0)
			edge_forget(edges_at(key), key);
	}
	return NULL;
}

int main(int nr_arguments, char **arguments)
{
	struct timespec time = {.tv_sec = nr_arguments == 2 ? atoi(arguments[1]) : 5};
	pthread_t requesters[REQUESTERS], others[WORKERS + READERS];

	for (long i = 0; i < REQUESTERS; i++)
		pthread_create(&requesters[i], NULL, request, spawned[i]);
	for (long i = 0; i < WORKERS; i++)
		pthread_create(&others[i], NULL, work, (void *)(i * 7));
	for (long i = 0; i < READERS; i++)
		pthread_create(&others[WORKERS + i], NULL, watch, (void *)i);
	nanosleep(&time, NULL);
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	for (int i = 0; i < REQUESTERS; i++)
		pthread_join(requesters[i], NULL);
	__atomic_store_n(&requesters_done, true, __ATOMIC_RELAXED);
	for (int i = 0; i < WORKERS + READERS; i++)
		pthread_join(others[i], NULL);

	for (int i = 0; i < 2; i++)
		for (int j = 0; j < HANDED_BUCKET; j++)
			if (opens[i].requests[j].server_span_id || buckets[i].slots[j].key ||
			    edges[i].edges[j].sequence & 1)
				fail("something is left");
	for (int i = 0; i < 4; i++)
		for (int j = 0; j < HANDED_BUCKET; j++)
			if (listed[i].slots[j].server_span_id)
				fail("a listed slot is left");
	fprintf(stderr,
		"%llu requests, %llu edges read, %llu not, %llu looks, %llu pushed, %llu late, %llu evicted\n",
		requests, read_whole, read_not, looks, pushed, late, evicted);
	if (!requests || !read_whole || !read_not || !looks || !pushed || !late)
		fail("nothing happened");
	return 0;
}
