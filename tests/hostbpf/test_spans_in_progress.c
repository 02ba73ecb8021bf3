/* spans_in_progress: random operations, compared after each with a model that is plain to see. */
#include "http.h"
#include "testing.h"

#include <string.h>

#define KEYS 24
#define OPERATIONS 400000

struct model_frame {
	__u64 span_id; /* 0: ended */
	__u64 remote_parent;
	bool is_server;
};

/* A task without frames has no slot. */
struct model_task {
	__u64 key;
	__u32 depth;
	struct model_frame frames[SPANS_DEPTH];
};

static struct model_task tasks[KEYS];
static __u64 tasks_full, stack_full, next_id;

static __u32 random_below(__u32 limit)
{
	static __u64 state = 88172645463325252ULL;

	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (__u32)(state >> 32) % limit;
}

/* Half of the keys share one bucket, more than it has slots; among them are threads. */
static void make_keys(void)
{
	__u64 key = 1;

	for (int i = 0; i < KEYS; i++, key++) {
		__u64 kind = i % 3 == 0 ? TASK_KEY_THREAD : 0;

		if (i < KEYS / 2)
			while (spans_bucket_of(key | kind) != 5)
				key++;
		tasks[i] = (struct model_task){.key = key | kind};
	}
}

static void settle(struct model_task *task)
{
	while (task->depth && !task->frames[task->depth - 1].span_id)
		task->depth--;
}

static void model_push(struct model_task *task, const struct span_frame *frame)
{
	__u32 in_bucket = 0;

	for (int i = 0; i < KEYS; i++)
		in_bucket += tasks[i].depth && spans_bucket_of(tasks[i].key) == spans_bucket_of(task->key);
	if (!task->depth && in_bucket == SPANS_BUCKET_SLOTS) {
		tasks_full++;
		return;
	}
	if (task->depth == SPANS_DEPTH) {
		stack_full++;
		return;
	}
	task->frames[task->depth++] = (struct model_frame){
		frame->span_id,
		frame->remote_parent,
		frame->kind == FRAME_SERVER,
	};
}

/* With a server span goes what was pushed since, up to the next server span. */
static void model_end(struct model_task *task, __u64 span_id)
{
	bool gone = false;

	for (__u32 i = 0; i < task->depth; i++) {
		struct model_frame *frame = &task->frames[i];

		if (frame->span_id == span_id && span_id) {
			frame->span_id = 0;
			gone = frame->is_server;
		} else if (frame->is_server) {
			gone = false;
		} else if (gone) {
			frame->span_id = 0;
		}
	}
	settle(task);
}

static bool model_active(const struct model_task *task, __u64 *server, __u64 *active)
{
	__u32 servers = 0;
	bool within = false;

	for (__u32 i = 0; i < task->depth; i++) {
		const struct model_frame *frame = &task->frames[i];

		if (frame->is_server) {
			within = frame->span_id != 0;
			servers += within;
			if (within)
				*server = *active = frame->span_id;
		} else if (within && frame->span_id) {
			*active = frame->span_id;
		}
	}
	/* Within a request that has ended, nothing is active, though another may be open below it. */
	return servers == 1 && within;
}

static void compare(const struct model_task *task)
{
	const struct span_bucket *bucket = host_bucket(PID, task->key);
	const struct span_slot *slot = NULL;
	__u64 server = 0, active = 0;
	struct active_spans found;
	bool is_active;

	for (int i = 0; i < SPANS_BUCKET_SLOTS; i++) {
		if (bucket->slots[i].key != task->key)
			continue;
		CHECK(!slot);
		slot = &bucket->slots[i];
	}
	CHECK_EQUAL(slot != NULL, task->depth != 0);
	if (slot) {
		CHECK_EQUAL(slot->depth, task->depth);
		for (__u32 i = 0; i < task->depth; i++)
			CHECK_EQUAL(slot->frames[i].span_id, task->frames[i].span_id);
		for (__u32 i = task->depth; i < SPANS_DEPTH; i++)
			CHECK_EQUAL(slot->frames[i].span_id, 0);
	}
	is_active = model_active(task, &server, &active);
	CHECK_EQUAL(host_is_active(PID, task->key, &found), is_active);
	if (is_active) {
		CHECK_EQUAL(found.server.span_id, server);
		CHECK_EQUAL(found.active.span_id, active);
		CHECK_EQUAL(found.active.trace_id_high, active * 3);
		CHECK_EQUAL(found.active.trace_id_low, task->key);
		CHECK_EQUAL(found.active.flags, active & 1);
	}
}

static struct span_frame new_frame(__u64 key, bool is_server)
{
	__u64 id = ++next_id;
	struct span_frame frame = {
		.trace_id_low = key,
		.span_id = id,
		.trace_id_high = id * 3,
		.remote_parent = is_server ? id * 5 : 0,
		.flags = id & 1,
		.kind = is_server ? FRAME_SERVER : FRAME_MANUAL,
	};

	return frame;
}

static __u64 some_span_of(const struct model_task *task)
{
	return task->depth ? task->frames[random_below(task->depth)].span_id : 0;
}

TEST(random_operations_against_a_model)
{
	__u64 wakes = 0;

	http_start();
	make_keys();
	for (int i = 0; i < OPERATIONS; i++) {
		struct model_task *task = &tasks[random_below(KEYS)];
		__u32 operation = random_below(100);
		/* In phases, stacks grow or shrink, so that full and empty ones are both met. */
		__u32 pushes = i / 5000 % 2 ? 60 : 35;

		test_case("operation %d", i);
		if (operation < pushes) {
			struct span_frame frame = new_frame(task->key, random_below(4) == 0);

			host_push_span(PID, task->key, &frame);
			model_push(task, &frame);
		} else if (operation < 95) {
			__u64 span_id = some_span_of(task);

			if (!span_id)
				continue;
			host_end_span(PID, task->key, span_id);
			model_end(task, span_id);
		} else if (operation < 97) {
			/* Of a span that is not there, or that has ended already: nothing. */
			host_end_span(PID, task->key, next_id + 1000);
			host_end_span(PID, task->key, some_span_of(&tasks[random_below(KEYS)]) ^ 1ULL << 60);
		} else if (task->key & TASK_KEY_THREAD) {
			host_thread(PID, (__u32)task->key);
			sys_epoll_wait(0);
			task->depth = 0;
			wakes++;
		}
		compare(task);
		CHECK_EQUAL(host_count(COUNT_TASKS_FULL), tasks_full);
		CHECK_EQUAL(host_count(COUNT_STACK_FULL), stack_full);
		CHECK_EQUAL(host_count(COUNT_SLOT_BUSY), 0);
		if (i % 1000 == 0) {
			__u32 slots = 0;

			for (int j = 0; j < KEYS; j++) {
				compare(&tasks[j]);
				slots += tasks[j].depth != 0;
			}
			CHECK_EQUAL(host_live_slots(PID), slots);
		}
	}
	CHECK(tasks_full > 100 && stack_full > 100 && wakes > 100);
	for (int i = 0; i < KEYS; i++)
		for (__u32 j = 0; j < SPANS_DEPTH; j++)
			host_end_span(PID, tasks[i].key, tasks[i].frames[j].span_id);
	CHECK_EQUAL(host_live_slots(PID), 0);
}

/* ---- corners that are worth a name */

static struct span_frame push(__u64 key, bool is_server)
{
	struct span_frame frame = new_frame(key, is_server);

	host_push_span(PID, key, &frame);
	return frame;
}

static struct span_slot *slot_of(__u64 key)
{
	struct span_bucket *bucket = host_bucket(PID, key);

	for (int i = 0; i < SPANS_BUCKET_SLOTS; i++)
		if (bucket->slots[i].key == key)
			return &bucket->slots[i];
	return NULL;
}

TEST(ended_in_any_order)
{
	struct active_spans found;
	struct span_frame server, first, second;

	http_start();
	server = push(9, true);
	first = push(9, false);
	second = push(9, false);
	host_end_span(PID, 9, first.span_id);
	CHECK(host_is_active(PID, 9, &found));
	CHECK_EQUAL(found.active.span_id, second.span_id);
	host_end_span(PID, 9, second.span_id);
	CHECK(host_is_active(PID, 9, &found));
	CHECK_EQUAL(found.active.span_id, server.span_id);
	host_end_span(PID, 9, second.span_id); /* a second time */
	host_end_span(PID, 9, server.span_id);
	CHECK(!slot_of(9));
}

TEST(what_a_request_left_open_goes_with_it)
{
	struct span_frame server, next;
	struct active_spans found;

	http_start();
	server = push(9, true);
	push(9, false);
	push(9, false);
	next = push(9, true);
	host_end_span(PID, 9, server.span_id);
	CHECK(host_is_active(PID, 9, &found));
	CHECK_EQUAL(found.active.span_id, next.span_id);
	CHECK_EQUAL(host_live_frames(PID), 1);
	host_end_span(PID, 9, next.span_id);
	CHECK(!slot_of(9));
}

TEST(full_stack_recovers)
{
	struct span_frame frames[SPANS_DEPTH];

	http_start();
	for (int i = 0; i < SPANS_DEPTH; i++)
		frames[i] = push(9, i == 0);
	push(9, false);
	CHECK_EQUAL(host_count(COUNT_STACK_FULL), 1);
	CHECK_EQUAL(slot_of(9)->depth, SPANS_DEPTH);
	host_end_span(PID, 9, frames[SPANS_DEPTH - 1].span_id);
	push(9, false);
	CHECK_EQUAL(host_count(COUNT_STACK_FULL), 1);
	host_end_span(PID, 9, frames[0].span_id);
	CHECK(!slot_of(9));
}

/* Whoever holds a slot that is free, as its last owner does for a moment, keeps the next one out. */
TEST(push_that_finds_its_slot_held_leaves_nothing)
{
	struct span_bucket *bucket;
	struct active_spans found;

	http_start();
	bucket = host_bucket(PID, 9);
	bucket->slots[0].sequence = 1;
	push(9, true);
	CHECK_EQUAL(host_count(COUNT_SLOT_BUSY), 1);
	CHECK(!host_is_active(PID, 9, &found));
	bucket->slots[0].sequence = 2;
	CHECK_EQUAL(host_live_slots(PID), 0);
	push(9, true);
	CHECK(host_is_active(PID, 9, &found));
}

/* A span that ends while another thread holds the slot is gone at once, and dropped by the holder. */
TEST(end_that_finds_its_slot_held)
{
	struct span_frame server, manual;
	struct active_spans found;

	http_start();
	server = push(9, true);
	manual = push(9, false);
	slot_of(9)->sequence++;
	host_end_span(PID, 9, manual.span_id);
	CHECK(!host_is_active(PID, 9, &found)); /* somebody is at it */
	slot_of(9)->sequence++;
	CHECK(host_is_active(PID, 9, &found));
	CHECK_EQUAL(found.active.span_id, server.span_id);
	slot_of(9)->sequence++;
	host_end_span(PID, 9, server.span_id);
	slot_of(9)->sequence++;
	CHECK(!host_is_active(PID, 9, &found));
	CHECK_EQUAL(host_live_frames(PID), 0);
	/* What the next one of this task does clears it away. */
	server = push(9, true);
	CHECK(host_is_active(PID, 9, &found));
	host_end_span(PID, 9, server.span_id);
	CHECK(!slot_of(9));
}
