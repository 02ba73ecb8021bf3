/*
 * spans_in_progress under real threads: tasks that push and end, others that end what the tasks
 * pushed, and readers. Two buckets for all, so that slots change hands all the time.
 *
 *     stress_spans SECONDS
 *
 * Invariants: a look at a task's active span shows spans of that task only, each as it was pushed,
 * never a mixture; a task's own look never shows what it has ended; in the end every slot is free.
 */
#include <linux/types.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "stress.h"

#define OWNERS 4
#define ENDERS 2
#define READERS 2
#define MAILBOXES 8 /* of each owner: spans for others to end */

struct mailbox {
	__u64 key; /* 0: empty; written last, cleared last */
	__u64 span_id;
};

static struct mailbox mailboxes[OWNERS][MAILBOXES];
static bool stop, owners_done;
static __u64 tasks_done, seen_by_readers, seen_by_owners, busy, full, ended_by_others;

static __u32 random_below(__u64 *state, __u32 limit)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return (__u32)(*state >> 32) % limit;
}

/* The frame that belongs to a task and a span id: all else follows from these two. */
static struct span_frame frame_of(__u64 key, __u64 span_id, bool is_server)
{
	struct span_frame frame = {
		.trace_id_low = mix(key),
		.trace_id_high = mix(span_id),
		.span_id = span_id,
		.remote_parent = mix(span_id + 1),
		.flags = (__u8)mix(span_id + 2),
		.kind = is_server ? FRAME_SERVER : FRAME_MANUAL,
	};

	return frame;
}

static void check_frame(__u64 key, const struct span_frame *frame)
{
	struct span_frame right = frame_of(key, frame->span_id, frame->kind == FRAME_SERVER);

	if (frame->trace_id_low != right.trace_id_low)
		fail("a span of another task");
	if (memcmp(frame, &right, sizeof(right)) != 0)
		fail("a torn frame");
}

/* As push_span in maps.bpf.h does. */
static bool push(__u64 key, const struct span_frame *frame)
{
	struct span_slot *slot = find_slot(key);
	struct span_bucket *bucket = bucket_of(key);
	enum spans_result result;
	bool claimed = false;

	for (int i = 0; !slot && i < SPANS_BUCKET_SLOTS; i++) {
		if (!exchange_key(&bucket->slots[i], 0, key))
			continue;
		slot = &bucket->slots[i];
		claimed = true;
	}
	if (!slot) {
		add(&full, 1);
		return false;
	}
	result = spans_push(slot, key, frame);
	if (result == SPANS_OK)
		return true;
	add(&busy, 1);
	if (claimed)
		exchange_key(slot, key, 0);
	return false;
}

static void end(__u64 key, __u64 span_id)
{
	struct span_slot *slot = find_slot(key);

	if (slot)
		spans_end(slot, key, span_id);
}

/* Lets another thread end a span, and waits until one has taken it. */
static void have_ended(struct mailbox *mailbox, __u64 key, __u64 span_id)
{
	mailbox->span_id = span_id;
	__atomic_store_n(&mailbox->key, key, __ATOMIC_RELEASE);
}

static void look(__u64 key, const __u64 *open, __u32 nr_open)
{
	struct span_slot *slot = find_slot(key);
	struct active_spans found;
	bool is_open = false;

	if (!slot || spans_active(slot, key, &found) != SPANS_OK)
		return;
	add(&seen_by_owners, 1);
	check_frame(key, &found.server);
	check_frame(key, &found.active);
	for (__u32 i = 0; i < nr_open; i++)
		is_open = is_open || found.active.span_id == open[i];
	if (!is_open)
		fail("a task sees a span that it has ended");
}

static void *own(void *argument)
{
	struct mailbox *own_mailboxes = argument;
	__u64 number = (__u64)(own_mailboxes - mailboxes[0]) / MAILBOXES + 1;
	__u64 random = mix(number), counter = 0;

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		__u64 key = number << 32 | ++counter, open[SPANS_DEPTH];
		__u32 nr_open = 0, nr_given = 0;
		struct span_frame frame = frame_of(key, key << 8 | 1, true);

		open[nr_open++] = frame.span_id;
		if (!push(key, &frame)) {
			sched_yield();
			continue;
		}
		for (__u32 i = 0; i < 10; i++) {
			__u32 what = random_below(&random, 10);

			if (what < 4) {
				frame = frame_of(key, key << 8 | (i + 2), false);
				if (push(key, &frame))
					open[nr_open++] = frame.span_id;
			} else if (what < 6 && nr_open > 1) {
				end(key, open[--nr_open]);
			} else if (what < 8 && nr_open > 1 && nr_given < MAILBOXES - 1) {
				/* It may go now or later, and until then is to be seen. */
				have_ended(&own_mailboxes[nr_given++], key,
					   open[1 + random_below(&random, nr_open - 1)]);
			}
			look(key, open, nr_open);
		}
		/* The request's end is now the task's own doing, now another's; or the thread waits. */
		switch (random_below(&random, 3)) {
		case 0:
			end(key, open[0]);
			look(key, NULL, 0);
			break;
		case 1:
			have_ended(&own_mailboxes[nr_given++], key, open[0]);
			break;
		default:
			if (find_slot(key) && spans_clear(find_slot(key), key) != SPANS_OK)
				end(key, open[0]);
			look(key, NULL, 0);
			break;
		}
		for (__u32 i = 0; i < nr_given; i++)
			while (__atomic_load_n(&own_mailboxes[i].key, __ATOMIC_ACQUIRE))
				sched_yield();
		add(&tasks_done, 1);
	}
	return NULL;
}

static void *end_for_others(void *argument)
{
	__u64 random = mix((__u64)argument + 77);

	while (!__atomic_load_n(&owners_done, __ATOMIC_RELAXED)) {
		struct mailbox *mailbox =
			&mailboxes[random_below(&random, OWNERS)][random_below(&random, MAILBOXES)];
		__u64 key = __atomic_load_n(&mailbox->key, __ATOMIC_ACQUIRE);

		/* The two enders may take the same one: a second end does nothing. */
		if (!key ||
		    !__atomic_compare_exchange_n(&mailbox->key, &key, ~0ULL, false, __ATOMIC_ACQUIRE,
						 __ATOMIC_RELAXED) ||
		    key == ~0ULL) {
			sched_yield();
			continue;
		}
		end(key, mailbox->span_id);
		add(&ended_by_others, 1);
		__atomic_store_n(&mailbox->key, 0, __ATOMIC_RELEASE);
	}
	return NULL;
}

static void *watch(void *argument)
{
	__u64 random = mix((__u64)argument + 99);

	while (!__atomic_load_n(&owners_done, __ATOMIC_RELAXED)) {
		struct span_slot *slot =
			&buckets[random_below(&random, BUCKETS)].slots[random_below(&random, SPANS_BUCKET_SLOTS)];
		__u64 key = __atomic_load_n(&slot->key, __ATOMIC_RELAXED);
		struct active_spans found;

		if (random_below(&random, 64) == 0)
			sched_yield();
		if (!key || spans_active(slot, key, &found) != SPANS_OK)
			continue;
		add(&seen_by_readers, 1);
		check_frame(key, &found.server);
		check_frame(key, &found.active);
		if (found.server.kind != FRAME_SERVER)
			fail("a server span that is none");
	}
	return NULL;
}

int main(int nr_arguments, char **arguments)
{
	pthread_t owners[OWNERS], others[ENDERS + READERS];
	struct timespec time = {.tv_sec = nr_arguments == 2 ? atoi(arguments[1]) : 5};
	__u32 left = 0;

	for (long i = 0; i < OWNERS; i++)
		pthread_create(&owners[i], NULL, own, mailboxes[i]);
	for (long i = 0; i < ENDERS; i++)
		pthread_create(&others[i], NULL, end_for_others, (void *)i);
	for (long i = 0; i < READERS; i++)
		pthread_create(&others[ENDERS + i], NULL, watch, (void *)i);
	nanosleep(&time, NULL);
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	for (int i = 0; i < OWNERS; i++)
		pthread_join(owners[i], NULL);
	__atomic_store_n(&owners_done, true, __ATOMIC_RELAXED);
	for (int i = 0; i < ENDERS + READERS; i++)
		pthread_join(others[i], NULL);

	for (int i = 0; i < BUCKETS; i++) {
		for (int j = 0; j < SPANS_BUCKET_SLOTS; j++) {
			const struct span_slot *slot = &buckets[i].slots[j];

			left += slot->key != 0;
			if (slot->sequence & 1)
				fail("a slot is left locked");
			if (slot->depth > SPANS_DEPTH)
				fail("a stack deeper than there is room for");
		}
	}
	fprintf(stderr,
		"%llu tasks, %llu spans ended by others, %llu and %llu looks, %llu busy, %llu full, %u slots "
		"left\n",
		tasks_done, ended_by_others, seen_by_owners, seen_by_readers, busy, full, left);
	if (left)
		fail("slots are left that belong to nobody");
	if (!tasks_done || !ended_by_others || !seen_by_owners || !seen_by_readers)
		fail("nothing happened");
	return 0;
}
