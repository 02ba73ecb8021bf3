/*
 * Records of wakes, under real threads: wakers of tasks, and for each task one that looks at its record as
 * a driver does. Few buckets for all, so that records change hands all the time.
 *
 *     stress_wakes SECONDS
 *
 * Invariants: a context is read whole; a record that says that it is complete has every wake of its task since the
 * last response, or since the task began; a task has one record at most; in the end nobody is at one.
 */
#include <linux/types.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* Functions with names, for tsan.supp. */
#define SPANS_INLINE static __attribute__((noinline, unused))
#include "task_edges.h"
#define STRESS_WITHOUT_SLOTS
#include "stress.h"

#define WAKERS 4
#define DRIVERS 2
#define TASKS 6 /* of each driver, at a time */

static struct wake_bucket records[2];

/* A task: wakers hold `lives` to read, who looks at its record or makes it another task to write. */
struct task {
	pthread_rwlock_t lives;
	__u64 key;
	__u64 wakes; /* since the last response */
};

static struct task tasks[DRIVERS][TASKS];
static __u64 last_key;
static bool stop;
static __u64 woken, busy, complete, doubted, absent;

static struct wake_bucket *records_of(__u64 key)
{
	return &records[wake_bucket_of(key) % 2];
}

static struct span_frame frame_of(__u64 span_id)
{
	return (struct span_frame){
		.trace_id_low = mix(span_id), .trace_id_high = mix(span_id + 1), .span_id = span_id};
}

static void *wake(void *argument)
{
	__u64 random = mix((__u64)argument);

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		struct wakes_entry entry = {.adds = 1, .is_followed = 1};
		struct task *task;
		int at;

		random = mix(random + 1);
		task = &tasks[random >> 8 & (DRIVERS - 1)][(random >> 16) % TASKS];
		pthread_rwlock_rdlock(&task->lives);
		__atomic_fetch_add(&task->wakes, 1, __ATOMIC_RELAXED);
		at = wakes_enter(records_of(task->key), task->key, &entry);
		if (at >= 0) {
			struct wake_record *record = &records_of(task->key)->records[at];
			struct span_frame server = frame_of(1 + (random >> 24) % 3),
					  active = frame_of(server.span_id * 8);

			wakes_note(record, &server, &active);
			if (random >> 60 == 0)
				sched_yield(); /* so that others find it so */
			wakes_unlock(&record->sequence);
		} else {
			add(&busy, 1);
		}
		pthread_rwlock_unlock(&task->lives);
		add(&woken, 1);
	}
	return NULL;
}

static void check(struct task *task, const struct wake_record *record)
{
	__u64 noted = 0;

	for (int i = 0; i < WAKE_CONTEXTS; i++) {
		const struct wake_context *context = &record->contexts[i];
		struct span_frame server = frame_of(context->server.span_id);

		if (!context->wakes)
			continue;
		if (context->server.trace_id_low != server.trace_id_low ||
		    context->server.trace_id_high != server.trace_id_high ||
		    context->active.span_id != server.span_id * 8 ||
		    context->active.trace_id_high != mix(server.span_id * 8 + 1))
			fail("a context that is torn");
		noted += context->wakes;
	}
	if (!record->is_complete || wakes_missed(record) != record->missed_before || record->is_full) {
		add(&doubted, 1);
		return;
	}
	if (noted != task->wakes)
		fail("a record that says it is complete, and is not");
	add(&complete, 1);
}

static void begin(struct task *task)
{
	task->key = __atomic_add_fetch(&last_key, 1, __ATOMIC_RELAXED);
	task->wakes = 0;
}

static void *drive(void *argument)
{
	struct task *own = argument;
	__u64 random = mix((__u64)(own - tasks[0]) + 77);

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		struct wakes_entry entry = {};
		struct wake_bucket *bucket;
		struct task *task;
		int at;

		random = mix(random + 1);
		task = &own[(random >> 8) % TASKS];
		pthread_rwlock_wrlock(&task->lives);
		bucket = records_of(task->key);
		at = wakes_enter(bucket, task->key, &entry);
		if (at >= 0) {
			struct wake_record *record = &bucket->records[at];

			check(task, record);
			record->is_driver = random >> 20 & 1;
			wakes_reset(record, false, entry.missed);
			wakes_unlock(&record->sequence);
			task->wakes = 0;
			/* Some go with their connection, and live on. */
			if (random >> 32 & 1)
				wakes_remove(bucket, task->key);
		} else {
			add(&absent, 1);
		}
		if ((random >> 40) % 3 == 0)
			begin(task);
		pthread_rwlock_unlock(&task->lives);
		if (random >> 62)
			sched_yield();
	}
	return NULL;
}

int main(int argc, char **argv)
{
	struct timespec length = {.tv_sec = argc > 1 ? atoi(argv[1]) : 1};
	pthread_t threads[WAKERS + DRIVERS];

	for (int i = 0; i < DRIVERS * TASKS; i++) {
		struct task *task = &tasks[i / TASKS][i % TASKS];

		pthread_rwlock_init(&task->lives, NULL);
		begin(task);
	}
	for (__u64 i = 0; i < WAKERS; i++)
		pthread_create(&threads[i], NULL, wake, (void *)i);
	for (int i = 0; i < DRIVERS; i++)
		pthread_create(&threads[WAKERS + i], NULL, drive, tasks[i]);
	nanosleep(&length, NULL);
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	for (int i = 0; i < WAKERS + DRIVERS; i++)
		pthread_join(threads[i], NULL);
	for (int i = 0; i < 2; i++) {
		if (records[i].sequence & 1)
			fail("a bucket that somebody is at");
		for (int j = 0; j < WAKE_BUCKET; j++) {
			if (records[i].records[j].sequence & 1)
				fail("a record that somebody is at");
			for (int k = 0; k < j; k++)
				if (records[i].keys[j] && records[i].keys[j] == records[i].keys[k])
					fail("two records of one task");
		}
	}
	printf("%llu wakes, %llu not noted; records: %llu complete, %llu not, %llu absent\n", woken, busy,
	       complete, doubted, absent);
	if (!woken || !busy || complete < 100 || doubted < 100 || absent < 100)
		fail("not all that can be was");
	return 0;
}
