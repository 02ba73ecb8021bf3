/* What tasks and threads start with, how long that holds, and whose request a connection driver sends. */
#include "http.h"
#include "testing.h"

#include <string.h>

#include "counters.h"
#include "handed_on.h"
#include "task_edges.h"

#define GET "GET / HTTP/1.1\r\n\r\n"
#define OK "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
#define HANDLER 17
#define CHILD 18

enum { ITSELF, DRIVER_FIRST, DRIVER };

static void start(void)
{
	http_start_tokio(HANDLER);
	sys_accept(FD, &host_tcp);
}

static struct span_frame server_of(__u64 task)
{
	struct active_spans found = {};

	CHECK(host_is_active(PID, task, &found));
	return found.server;
}

static bool has_context(__u64 task)
{
	struct active_spans found = {};

	return host_finds_context(PID, task, &found);
}

static struct active_spans context_of(__u64 task)
{
	struct active_spans found = {};

	CHECK(host_finds_context(PID, task, &found));
	return found;
}

/* ---- edges */

TEST(a_task_starts_with_its_spawners_request)
{
	struct active_spans found;

	start();
	host_spawns(16); /* before the request */
	in(GET);
	host_spawns(CHILD);
	found = context_of(CHILD);
	CHECK_EQUAL(found.server.span_id, server_of(HANDLER).span_id);
	CHECK_EQUAL(found.active.span_id, server_of(HANDLER).span_id);
	CHECK_EQUAL(found.servers, 0);
	CHECK(!has_context(16));
	CHECK_EQUAL(host_live_slots(PID), 1); /* a slot is made by a push */
	out(OK);
	CHECK(!has_context(CHILD));
	CHECK_EQUAL(host_handed_on(PID).open, 0);
}

TEST(a_task_starts_with_the_span_that_is_active_then)
{
	struct span_frame manual = {.trace_id_low = 1, .span_id = 0x77, .flags = 1, .kind = FRAME_MANUAL};

	start();
	in(GET);
	host_push_span(PID, HANDLER, &manual);
	host_spawns(CHILD);
	host_end_span(PID, HANDLER, 0x77);
	host_spawns(19);
	CHECK_EQUAL(context_of(CHILD).active.span_id, 0x77);
	CHECK_EQUAL(context_of(CHILD).server.span_id, server_of(HANDLER).span_id);
	CHECK_EQUAL(context_of(19).active.span_id, server_of(HANDLER).span_id);
}

TEST(what_a_spawned_task_spawns)
{
	__u64 server;

	start();
	in(GET);
	server = server_of(HANDLER).span_id;
	host_spawns(CHILD);
	host_tokio_task(CHILD);
	host_spawns(19);
	CHECK_EQUAL(context_of(19).server.span_id, server);
	host_tokio_task(HANDLER);
	out(OK);
	/* One that outlives its request hands nothing on. */
	host_tokio_task(CHILD);
	host_spawns(20);
	CHECK(!has_context(20));
	CHECK(!has_context(19));
}

/* ---- open requests */

TEST(an_id_can_be_made_for_each_bucket)
{
	for (__u32 bucket = 0; bucket < 1 << OPEN_BUCKETS_LOG2; bucket++) {
		__u64 id = open_id_in(bucket, ~0ULL - bucket * 0x0123456789abcdefULL);

		CHECK_EQUAL(open_bucket_of(id), bucket);
		CHECK(id >> 63);
		CHECK(id != open_id_in(bucket, bucket * 0x0123456789abcdefULL));
	}
}

TEST(a_processors_requests_are_near_each_other_while_there_is_room)
{
	enum { OPEN = 60, REQUESTS = 12000 };
	__u32 near = 0;

	http_start();
	host.processor = 3;
	for (int i = 0; i < OPEN; i++) {
		host_thread(PID, 100 + i % 10);
		sys_accept(i, &host_tcp);
		in_at(i, GET, sizeof(GET) - 1);
	}
	CHECK_EQUAL(host_handed_on(PID).open, OPEN);
	for (int i = 0; i < REQUESTS; i++) {
		host_thread(PID, 100 + i % OPEN % 10);
		out_at(i % OPEN, OK, sizeof(OK) - 1);
		near += open_bucket_of(span_event(0).span_id) / OPEN_BUCKETS_NEAR == host.processor;
		host_forget_events();
		in_at(i % OPEN, GET, sizeof(GET) - 1);
	}
	/* Those that find no room there are put elsewhere, and find some. */
	CHECK(near > REQUESTS / 4 && near < REQUESTS);
	CHECK_EQUAL(host_count(COUNT_TASKS_FULL), 0);
	CHECK_EQUAL(host_handed_on(PID).open, OPEN);
	for (int i = 0; i < OPEN; i++)
		sys_close(i);
	CHECK_EQUAL(host_handed_on(PID).open, 0);
}

TEST(the_next_request_of_a_connection_is_another)
{
	start();
	in(GET);
	host_spawns(CHILD);
	out(OK);
	in(GET);
	CHECK(has_context(HANDLER));
	CHECK(!has_context(CHILD));
	host_spawns(19);
	CHECK_EQUAL(context_of(19).server.span_id, server_of(HANDLER).span_id);
}

TEST(a_connection_that_is_closed_ends_it_too)
{
	start();
	in(GET);
	host_spawns(CHILD);
	sys_close(FD);
	CHECK(!has_context(CHILD));
	CHECK_EQUAL(host_handed_on(PID).open, 0);
}

TEST(a_task_with_two_requests_hands_none_on)
{
	start();
	sys_accept(FD + 1, &host_tcp);
	in(GET);
	in_at(FD + 1, GET, strlen(GET));
	host_spawns(CHILD);
	CHECK(!has_context(CHILD));
}

TEST(own_requests_come_before_the_spawners)
{
	start();
	in(GET);
	host_spawns(CHILD);
	host_tokio_task(CHILD);
	sys_accept(FD + 1, &host_tcp);
	in_at(FD + 1, GET, strlen(GET));
	CHECK_EQUAL(context_of(CHILD).servers, 1);
	sys_accept(FD + 2, &host_tcp);
	in_at(FD + 2, GET, strlen(GET));
	CHECK(!has_context(CHILD)); /* two of its own: not even the spawner's */
	out_at(FD + 1, OK, strlen(OK));
	out_at(FD + 2, OK, strlen(OK));
	CHECK_EQUAL(context_of(CHILD).servers, 0);
}

TEST(a_request_that_is_not_sampled_is_handed_on_as_such)
{
	start();
	host_find_target(PID)->sample_below = 0;
	in(GET);
	host_spawns(CHILD);
	CHECK_EQUAL(context_of(CHILD).server.flags & TRACE_FLAG_SAMPLED, 0);
}

TEST(no_room_for_open_requests)
{
	start();
	for (__u32 i = SHARED_OPEN; i < SHARED_LISTED; i++)
		memset(host_shared_element(PID, i), 0xff, sizeof(struct open_buckets));
	in(GET);
	host_spawns(CHILD);
	CHECK(!has_context(CHILD));
	out(OK);
	CHECK_EQUAL(span_events(), 1);
}

/* ---- the table of edges */

static struct edge_bucket *bucket_of(__u64 task)
{
	struct edge_buckets *element =
		host_shared_element(PID, SHARED_EDGES + edge_bucket_of(task) / EDGE_BUCKETS_EACH);

	return &element->buckets[edge_bucket_of(task) % EDGE_BUCKETS_EACH];
}

/* The next task whose edge is in the bucket of the first. */
static __u64 next_beside(__u64 first, __u64 task)
{
	do
		task++;
	while (edge_bucket_of(task) != edge_bucket_of(first));
	return task;
}

TEST(edges_of_requests_that_are_over_make_room_first)
{
	__u64 first = 1000, task = first;

	start();
	in(GET);
	host_spawns(first);
	host_tokio_task(21);
	sys_accept(FD + 1, &host_tcp);
	for (int request = 0; request < 20; request++) {
		__u32 kept = host_handed_on(PID).edges;

		in_at(FD + 1, GET, strlen(GET));
		task = next_beside(first, task);
		host_spawns(task);
		CHECK(has_context(task));
		out_at(FD + 1, OK, strlen(OK));
		CHECK(!has_context(task));
		CHECK_EQUAL(host_handed_on(PID).edges, kept + (request < HANDED_BUCKET - 1));
	}
	CHECK_EQUAL(context_of(first).server.span_id, server_of(HANDLER).span_id);
	CHECK_EQUAL(host_count(COUNT_EDGES_FULL), 0);
}

TEST(more_edges_than_have_room)
{
	__u64 first = 1000, tasks[2 * HANDED_BUCKET];

	start();
	in(GET);
	for (int i = 0; i < 2 * HANDED_BUCKET; i++) {
		tasks[i] = i ? next_beside(first, tasks[i - 1]) : first;
		host_spawns(tasks[i]);
		CHECK_EQUAL(host_count(COUNT_EDGES_FULL), i < HANDED_BUCKET ? 0 : i - HANDED_BUCKET + 1);
		CHECK(has_context(tasks[i]));
	}
	for (int i = 0; i < 2 * HANDED_BUCKET; i++) /* the oldest have gone */
		CHECK_EQUAL(has_context(tasks[i]), i >= HANDED_BUCKET);
}

TEST(an_edge_that_is_being_written_is_none)
{
	struct edge_bucket *bucket;

	start();
	in(GET);
	host_spawns(CHILD);
	bucket = bucket_of(CHILD);
	bucket->edges[edge_find(bucket, CHILD)].sequence++;
	CHECK(!has_context(CHILD));
	host_spawns(next_beside(CHILD, CHILD)); /* goes elsewhere */
	CHECK(has_context(next_beside(CHILD, CHILD)));
	bucket->edges[edge_find(bucket, CHILD)].sequence++;
	CHECK(has_context(CHILD));
	CHECK_EQUAL(host_count(COUNT_EDGES_FULL), 0);
}

/* ---- threads */

TEST(a_thread_starts_with_its_starters_request)
{
	start();
	in(GET);
	host_starts_thread(200);
	host_starts_process(201);
	CHECK_EQUAL(context_of(thread_task_key(200)).server.span_id, server_of(HANDLER).span_id);
	CHECK(!has_context(thread_task_key(201)));
	host_thread(PID, 200);
	host_starts_thread(202);
	CHECK(has_context(thread_task_key(202)));
	host_thread(PID, TID);
	out(OK);
	CHECK(!has_context(thread_task_key(200)));
}

TEST(a_thread_that_ends_leaves_nothing_to_the_next_one_of_its_number)
{
	start();
	in(GET);
	host_starts_thread(200);
	host_thread(PID, 200);
	sys_thread_exit();
	CHECK(!has_context(thread_task_key(200)));
	CHECK_EQUAL(host_handed_on(PID).edges, 0);
}

TEST(a_thread_whose_end_was_missed)
{
	start();
	in(GET);
	host_starts_thread(200);
	host_thread(PID, 102); /* in no request */
	host_starts_thread(200);
	CHECK(!has_context(thread_task_key(200)));
}

TEST(a_thread_that_waits_for_events_is_on_its_own)
{
	for (int number = 0; number < 3; number++) {
		start();
		in(GET);
		host_starts_thread(200);
		host_thread(PID, 200);
		sys_epoll_wait(number);
		CHECK(!has_context(thread_task_key(200)));
	}
}

TEST(a_thread_that_runs_tasks_is_on_its_own)
{
	start();
	in(GET);
	host_starts_thread(200);
	host_thread(PID, 200);
	host_tokio_task(40);
	host_spawns(41);
	host_tokio_task(0);
	CHECK(!has_context(thread_task_key(200)));
	CHECK(!has_context(41));
}

TEST(ids_that_are_none)
{
	start();
	in(GET);
	host_spawns(0);
	host_spawns(TASK_KEY_THREAD | 5);
	CHECK_EQUAL(host_handed_on(PID).edges, 0);
}

/* ---- wakes */

/* tokio's task header, and its vtable, as the programs read them. */
struct task_vtable {
	__u64 functions[7];
	__u64 trailer, scheduler, id;
};

struct task_header {
	__u64 state, next;
	const struct task_vtable *vtable;
	__u64 owner, scheduler, id;
};

static const struct task_vtable vtable = {.trailer = 0x100, .scheduler = 0x20, .id = 0x28};

static void wake(__u64 waker, __u64 woken)
{
	struct task_header header = {.vtable = &vtable, .id = woken};

	host_map_memory(&header, sizeof(header));
	host_tokio_task(waker);
	host_wakes(&header);
	host_unmap_memory(&header);
}

static unsigned int wake_records(void)
{
	unsigned int found = 0;

	for (__u32 i = 0; i < 1 << WAKE_BUCKETS_LOG2; i++) {
		const struct wake_bucket *bucket = host_shared_element(PID, SHARED_WAKE_BUCKETS + i);

		for (int j = 0; j < WAKE_BUCKET; j++)
			found += bucket->keys[j] != 0;
	}
	return found;
}

static void follow_wakes(__u64 since)
{
	host_map_memory(&vtable, sizeof(vtable));
	((struct wakes_followed *)host_shared_element(PID, SHARED_WAKES))->first = since ? since : WAKES_NONE_YET;
}

/* A task that handles a request at a descriptor of its own. */
static __u64 request_in(__u64 task, int fd)
{
	host_tokio_task(task);
	sys_accept(fd, &host_tcp);
	in_at(fd, GET, strlen(GET));
	return server_of(task).span_id;
}

TEST(whose_request_a_driver_sends)
{
	struct active_spans found = {};
	__u64 a, b, driver = 50;

	start();
	follow_wakes(0);
	a = request_in(21, FD + 1);
	b = request_in(22, FD + 2);
	host_tokio_task(21);
	host_spawns(driver);
	wake(21, driver);
	wake(driver, driver); /* its own say nothing */
	CHECK_EQUAL(host_cause_by_tasks(PID, driver, DRIVER_FIRST, &found), CAUSE_FOUND);
	CHECK_EQUAL(found.server.span_id, a);
	CHECK_EQUAL(found.servers, 0);
	/* They are used up. */
	CHECK_EQUAL(host_cause_by_tasks(PID, driver, DRIVER, &found), CAUSE_UNKNOWN);
	CHECK_EQUAL(host_count(COUNT_CAUSE_UNKNOWN), 1);

	wake(21, driver); /* of the exchange that ends now */
	host_reset_wakes(PID, driver);
	wake(21, driver); /* late */
	wake(22, driver);
	CHECK_EQUAL(host_cause_by_tasks(PID, driver, DRIVER, &found), CAUSE_FOUND);
	CHECK_EQUAL(found.server.span_id, b);
}

TEST(a_driver_that_sends_for_nobody)
{
	struct active_spans found = {};
	__u64 driver = 50;

	start();
	follow_wakes(0);
	request_in(21, FD + 1);
	host_spawns(driver);
	/* The connection that a request has begun is first used by a task that works for none. */
	wake(99, driver);
	CHECK_EQUAL(host_cause_by_tasks(PID, driver, DRIVER_FIRST, &found), CAUSE_NONE);
	host_reset_wakes(PID, driver);
	wake(21, driver);
	wake(99, driver);
	CHECK_EQUAL(host_cause_by_tasks(PID, driver, DRIVER, &found), CAUSE_FOUND);
	host_reset_wakes(PID, driver);
	wake(21, driver); /* late */
	wake(99, driver);
	CHECK_EQUAL(host_cause_by_tasks(PID, driver, DRIVER, &found), CAUSE_NONE);
	CHECK_EQUAL(host_count(COUNT_CAUSE_UNKNOWN), 0);
	/* What such a task wakes is no driver, as long as nothing else says so. */
	CHECK_EQUAL(wake_records(), 1);
	wake(99, driver + 1);
	CHECK_EQUAL(wake_records(), 1);
}

TEST(drivers_are_not_forgotten_for_other_tasks_that_are_woken)
{
	struct active_spans found = {};
	__u64 a, driver = 50;

	start();
	follow_wakes(0);
	a = request_in(21, FD + 1);
	host_spawns(driver);
	wake(21, driver);
	CHECK_EQUAL(host_cause_by_tasks(PID, driver, DRIVER_FIRST, &found), CAUSE_FOUND);
	for (__u64 task = 1000; task < 7000; task++)
		wake(21, task);
	host_reset_wakes(PID, driver);
	wake(21, driver);
	CHECK_EQUAL(host_cause_by_tasks(PID, driver, DRIVER, &found), CAUSE_FOUND);
	CHECK_EQUAL(found.server.span_id, a);
}

TEST(wakes_say_nothing_before_all_are_followed)
{
	struct active_spans found = {};
	__u64 driver = 50;

	start();
	request_in(21, FD + 1);
	wake(21, driver);
	CHECK_EQUAL(wake_records(), 0);
	follow_wakes(0);
	wake(21, driver); /* older than that: others may have woken it before */
	CHECK_EQUAL(host_cause_by_tasks(PID, driver, DRIVER, &found), CAUSE_UNKNOWN);
	/* With a response's head it begins anew; whoever woke it before that may do so once more. */
	host_reset_wakes(PID, driver);
	wake(21, driver);
	CHECK_EQUAL(host_cause_by_tasks(PID, driver, DRIVER, &found), CAUSE_UNKNOWN);
	host_reset_wakes(PID, driver);
	wake(21, driver);
	wake(21, driver);
	CHECK_EQUAL(host_cause_by_tasks(PID, driver, DRIVER, &found), CAUSE_FOUND);
}

TEST(wakes_are_asked_for_once)
{
	struct active_spans found = {};
	__u32 before;

	start();
	before = host_events();
	for (int i = 0; i < 3; i++)
		CHECK_EQUAL(host_cause_by_tasks(PID, 50, DRIVER, &found), CAUSE_NONE);
	CHECK_EQUAL(host_events(), before + 1);
	CHECK_EQUAL(((const struct event_head *)host_event(before).bytes)->kind, EVENT_WAKES_WANTED);
	CHECK_EQUAL(host.ring_wakeups, 1);
}

TEST(a_new_connections_driver_works_for_who_spawned_it_first)
{
	struct active_spans found = {};
	__u64 a, driver = 50;

	start();
	a = request_in(21, FD + 1);
	host_spawns(driver);
	CHECK_EQUAL(host_cause_by_tasks(PID, driver, DRIVER_FIRST, &found), CAUSE_FOUND);
	CHECK_EQUAL(found.server.span_id, a);
	CHECK_EQUAL(host_cause_by_tasks(PID, driver, DRIVER, &found), CAUSE_UNKNOWN);
	/* With another request open, it could be that one's, unless wakes tell. */
	request_in(22, FD + 2);
	CHECK_EQUAL(host_cause_by_tasks(PID, driver, DRIVER_FIRST, &found), CAUSE_UNKNOWN);
	follow_wakes(0);
	CHECK_EQUAL(host_cause_by_tasks(PID, driver, DRIVER_FIRST, &found), CAUSE_FOUND);
}

TEST(who_sends_for_itself)
{
	struct active_spans found = {};

	start();
	in(GET);
	host_spawns(CHILD);
	CHECK_EQUAL(host_cause_by_tasks(PID, CHILD, ITSELF, &found), CAUSE_FOUND);
	CHECK_EQUAL(found.server.span_id, server_of(HANDLER).span_id);
	CHECK_EQUAL(host_cause_by_tasks(PID, 99, ITSELF, &found), CAUSE_NONE);
	out(OK);
	CHECK_EQUAL(host_cause_by_tasks(PID, CHILD, ITSELF, &found), CAUSE_NONE);
	CHECK_EQUAL(host_count(COUNT_CAUSE_UNKNOWN), 0);
}

TEST(a_driver_that_nobody_woke_while_no_request_is_open)
{
	struct active_spans found = {};

	start();
	follow_wakes(0);
	CHECK_EQUAL(host_cause_by_tasks(PID, 50, DRIVER, &found), CAUSE_NONE);
	in(GET);
	CHECK_EQUAL(host_cause_by_tasks(PID, 50, DRIVER, &found), CAUSE_UNKNOWN);
	out(OK);
	CHECK_EQUAL(host_cause_by_tasks(PID, 50, DRIVER, &found), CAUSE_NONE);
}

TEST(a_worker_thread_that_was_started_in_a_request_wakes_by_events)
{
	__u64 worker = 60, driver = 50;

	start();
	follow_wakes(0);
	request_in(21, FD + 1);
	host_spawns(worker);
	wake(worker, driver);
	CHECK_EQUAL(wake_records(), 1);
	host_tokio_task(worker);
	sys_epoll_wait(0);
	wake(worker, driver + 1);
	CHECK_EQUAL(wake_records(), 1);
}

TEST(what_is_woken_must_look_like_a_task)
{
	static const struct task_vtable strange[] = {
		{.trailer = 0x100, .scheduler = 0x10, .id = 0x28},
		{.trailer = 0x100, .scheduler = 0x30, .id = 0x28},
		{.trailer = 0x100, .scheduler = 0x20, .id = 0x100},
		{.trailer = 0x28, .scheduler = 0x20, .id = 0x28},
	};
	struct task_header header = {.id = 50};

	start();
	follow_wakes(0);
	request_in(21, FD + 1);
	host_map_memory(&header, sizeof(header));
	host_map_memory(strange, sizeof(strange));
	for (int i = 0; i < 4; i++) {
		header.vtable = &strange[i];
		host_wakes(&header);
	}
	header.vtable = &vtable;
	header.id = 0;
	host_wakes(&header);
	header.id = TASK_KEY_THREAD | 4;
	host_wakes(&header);
	header.vtable = NULL;
	host_wakes(&header);
	CHECK_EQUAL(wake_records(), 0);
	CHECK_EQUAL(host_count(COUNT_READ_FAULT), 1);
}

/* ---- the rule, for all wakes that three requests with two spans each can make */

#define KINDS 6 /* of contexts: request 1 to 3, each with span 1 or 2 */
#define MOST 3 /* wakes of a kind */

/* The rule in other words. `previous` are the kinds that can be the previous exchange's, one bit each. */
static int expected_cause(const int *wakes, int previous, bool is_open)
{
	int by[4] = {0}, suspects = 0, others = 0, chosen = 0, spans = 0, span = -1, same = -1, sames = 0;
	bool is_suspect[4] = {false}, repeated = false;

	for (int i = 0; i < KINDS; i++) {
		by[1 + i / 2] += wakes[i];
		if (previous & 1 << i || is_open)
			is_suspect[1 + i / 2] = true;
	}
	for (int request = 1; request <= 3; request++) {
		if (!by[request])
			continue;
		if (is_suspect[request]) {
			suspects++;
			repeated |= by[request] > 1;
		} else {
			others++;
		}
	}
	if (!others && !suspects)
		return -CAUSE_NONE;
	if (others > 1 || (others && repeated) || (!others && suspects > 1))
		return -CAUSE_UNKNOWN;
	/* A single wake by one of several that it can have been may be a late one. */
	if (!others && !repeated && (is_open || __builtin_popcount(previous) != 1))
		return -CAUSE_UNKNOWN;
	for (int request = 1; request <= 3; request++)
		if (by[request] && is_suspect[request] == !others)
			chosen = request;
	for (int i = 2 * (chosen - 1); i < 2 * chosen; i++) {
		if (wakes[i] && previous & 1 << i) {
			same = i;
			sames++;
		} else if (wakes[i]) {
			spans++;
			span = i;
		}
	}
	if (spans > 1 || (!spans && sames > 1))
		return -CAUSE_UNKNOWN;
	return spans ? span : same;
}

static struct span_frame kind_server(int kind)
{
	return (struct span_frame){.span_id = 100 + kind / 2, .kind = FRAME_SERVER};
}

static struct span_frame kind_active(int kind)
{
	return (struct span_frame){.span_id = 1000 + kind, .kind = FRAME_MANUAL};
}

static void wake_record_by(struct wake_record *record, const int *wakes, bool backwards)
{
	for (int i = 0; i < KINDS; i++) {
		int kind = backwards ? KINDS - 1 - i : i;
		struct span_frame server = kind_server(kind), active = kind_active(kind);

		for (int j = 0; j < wakes[kind]; j++)
			wakes_note(record, &server, &active);
	}
}

static void check_rule(const int *wakes, int previous, bool is_open, bool backwards)
{
	int expected = expected_cause(wakes, previous, is_open), found;
	struct wake_record record = {.is_complete = 1};
	int before[KINDS];

	/* The exchange before is unknown, or known, by those that woke the driver. */
	for (int i = 0; i < KINDS; i++)
		before[i] = previous >> i & 1;
	wake_record_by(&record, before, backwards);
	wakes_use(&record, -CAUSE_UNKNOWN);
	wakes_reset(&record, false, 0);
	record.is_open = is_open;
	wake_record_by(&record, wakes, backwards);
	found = wakes_cause(&record);
	if (expected < 0) {
		CHECK_EQUAL(found, expected);
	} else {
		CHECK(found >= 0);
		CHECK_EQUAL(record.contexts[found].active.span_id, kind_active(expected).span_id);
		CHECK_EQUAL(record.contexts[found].server.span_id, kind_server(expected).span_id);
	}
	wakes_use(&record, found);
	CHECK_EQUAL(record.nr_previous <= PREVIOUS_MAX, 1);
	if (found >= 0)
		CHECK_EQUAL(record.previous[0].active_span_id, kind_active(expected).span_id);
	CHECK_EQUAL(wakes_cause(&record), -CAUSE_NONE);
}

TEST(the_rule_for_all_wakes)
{
	int wakes[KINDS] = {0}, at = 0;

	for (;;) {
		for (int previous = 0; previous < 1 << KINDS; previous++) {
			if (__builtin_popcount(previous) > PREVIOUS_MAX)
				continue;
			check_rule(wakes, previous, false, false);
			check_rule(wakes, previous, false, true);
		}
		check_rule(wakes, 0, true, false);
		for (at = 0; at < KINDS && ++wakes[at] > MOST; at++)
			wakes[at] = 0;
		if (at == KINDS)
			break;
	}
}

TEST(a_response_with_a_body_leaves_wakes_behind)
{
	struct span_frame a = {.span_id = 1};
	struct wake_record record = {.is_complete = 1};

	wakes_note(&record, &a, &a);
	wakes_use(&record, wakes_cause(&record));
	wakes_reset(&record, true, 0);
	wakes_note(&record, &a, &a); /* may be a late one, by who reads the body */
	CHECK_EQUAL(wakes_cause(&record), -CAUSE_UNKNOWN);
	wakes_note(&record, &a, &a);
	CHECK(wakes_cause(&record) >= 0);
}

TEST(wakes_after_an_unknown_request_say_whose_it_can_have_been)
{
	struct span_frame a = {.span_id = 1}, b = {.span_id = 2}, c = {.span_id = 3};
	struct wake_record record = {.is_complete = 1};

	wakes_note(&record, &a, &a);
	wakes_note(&record, &b, &b);
	wakes_use(&record, wakes_cause(&record));
	CHECK_EQUAL(record.is_unknown, 1);
	wakes_reset(&record, false, 0);
	wakes_note(&record, &a, &a); /* one of the two, late */
	CHECK_EQUAL(wakes_cause(&record), -CAUSE_UNKNOWN);
	wakes_note(&record, &c, &c);
	CHECK_EQUAL(record.contexts[wakes_cause(&record)].server.span_id, 3);
}

TEST(more_than_can_be_kept_of_a_previous_exchange)
{
	struct span_frame x = {.span_id = 99};
	struct wake_record record = {.is_complete = 1};

	for (int i = 0; i <= PREVIOUS_MAX; i++) {
		struct span_frame frame = {.span_id = 1 + i};

		wakes_note(&record, &frame, &frame);
	}
	wakes_use(&record, wakes_cause(&record));
	CHECK_EQUAL(record.is_open, 1);
	wakes_reset(&record, false, 0);
	wakes_note(&record, &x, &x);
	CHECK_EQUAL(wakes_cause(&record), -CAUSE_UNKNOWN);
	wakes_note(&record, &x, &x);
	CHECK_EQUAL(record.contexts[wakes_cause(&record)].server.span_id, 99);
}

TEST(more_contexts_than_are_kept_say_nothing)
{
	struct wake_record record = {};

	wakes_reset(&record, false, 0);
	for (int i = 0; i <= WAKE_CONTEXTS; i++) {
		struct span_frame server = {.span_id = 1}, active = {.span_id = 10 + i};

		wakes_note(&record, &server, &active);
	}
	CHECK_EQUAL(wakes_cause(&record), -CAUSE_UNKNOWN);
	wakes_reset(&record, false, 0);
	CHECK_EQUAL(wakes_cause(&record), -CAUSE_NONE);
}

/* ---- the records */

static struct wake_bucket bucket;

static int enter(__u64 task, bool adds, bool is_followed, struct wakes_entry *entry)
{
	*entry = (struct wakes_entry){.adds = adds, .is_followed = is_followed};
	return wakes_enter(&bucket, task, entry);
}

static struct wake_record *entered(__u64 task, bool is_followed)
{
	struct wakes_entry entry;
	int at = enter(task, true, is_followed, &entry);

	CHECK(at >= 0);
	CHECK_EQUAL(bucket.keys[at], task);
	CHECK_EQUAL(bucket.records[at].sequence & 1, 1);
	return &bucket.records[at];
}

static struct wake_record *left(__u64 task, bool is_followed)
{
	struct wake_record *record = entered(task, is_followed);

	wakes_unlock(&record->sequence);
	CHECK_EQUAL(record->sequence & 1, 0);
	return record;
}

TEST(a_record_is_made_once)
{
	struct wakes_entry entry;
	struct wake_record *record;

	bucket = (struct wake_bucket){};
	CHECK_EQUAL(enter(5, false, true, &entry), WAKES_ABSENT);
	record = left(5, true);
	CHECK_EQUAL(record->is_complete, 1);
	CHECK_EQUAL(record->is_open, 0);
	CHECK(left(5, false) == record);
	CHECK_EQUAL(record->is_complete, 1);
	CHECK_EQUAL(left(6, false)->is_complete, 0);
	CHECK_EQUAL(left(6, false)->is_open, 1);
}

TEST(a_driver_is_the_last_whose_record_goes_to_another_task)
{
	struct wakes_entry entry;

	bucket = (struct wake_bucket){};
	left(10, true)->is_driver = 1;
	for (__u64 task = 11; task < 40; task++)
		CHECK_EQUAL(left(task, true)->is_complete, 1);
	CHECK(enter(10, false, false, &entry) >= 0);
	wakes_unlock(&bucket.records[wakes_find(&bucket, 10)].sequence);
	/* Of a task up to the last that was forgotten, nobody knows whether it was, too. */
	CHECK_EQUAL(bucket.doubtful, 36);
	CHECK_EQUAL(left(36, true)->is_complete, 0);
	for (int i = 0; i < WAKE_BUCKET; i++)
		bucket.records[i].is_driver = 1;
	CHECK_EQUAL(left(40, true)->is_complete, 1);
}

TEST(a_wake_that_finds_somebody_at_the_record_is_known_to_be_missed)
{
	struct span_frame frame = {.span_id = 1};
	struct wake_record *record;
	struct wakes_entry entry;

	bucket = (struct wake_bucket){};
	record = entered(5, true);
	wakes_note(record, &frame, &frame);
	CHECK(wakes_cause(record) >= 0);
	CHECK_EQUAL(enter(5, true, true, &entry), WAKES_BUSY);
	CHECK_EQUAL(wakes_cause(record), -CAUSE_UNKNOWN);
	wakes_unlock(&record->sequence);
	/* That is over with the response, but for those that come while it is looked at. */
	CHECK(enter(5, false, false, &entry) >= 0);
	wakes_reset(record, false, entry.missed);
	wakes_unlock(&record->sequence);
	CHECK_EQUAL(wakes_cause(record), -CAUSE_NONE);
	CHECK(enter(5, false, false, &entry) >= 0);
	record->missed++;
	wakes_reset(record, false, entry.missed);
	wakes_unlock(&record->sequence);
	CHECK_EQUAL(wakes_cause(record), -CAUSE_UNKNOWN);
}

TEST(a_wake_that_finds_no_room_is_known_to_be_missed)
{
	struct wakes_entry entry;

	bucket = (struct wake_bucket){};
	for (__u64 task = 1; task <= WAKE_BUCKET; task++)
		entered(task, true);
	CHECK_EQUAL(enter(9, true, true, &entry), WAKES_BUSY);
	for (int i = 0; i < WAKE_BUCKET; i++)
		wakes_unlock(&bucket.records[i].sequence);
	CHECK_EQUAL(left(9, true)->is_complete, 0);
	CHECK_EQUAL(left(10, true)->is_complete, 1);

	bucket.sequence++; /* somebody adds one */
	CHECK_EQUAL(enter(20, true, true, &entry), WAKES_BUSY);
	bucket.sequence++;
	CHECK_EQUAL(left(20, true)->is_complete, 0);
	CHECK_EQUAL(left(21, true)->is_complete, 1);
}

TEST(a_record_is_removed_with_its_connection)
{
	bucket = (struct wake_bucket){};
	left(5, true);
	left(6, true);
	wakes_remove(&bucket, 5);
	wakes_remove(&bucket, 7);
	CHECK_EQUAL(wakes_find(&bucket, 5), WAKES_ABSENT);
	CHECK(wakes_find(&bucket, 6) >= 0);
	CHECK_EQUAL(left(5, true)->is_complete, 0);
}

TEST(who_waits_for_events_is_forgotten_by_age)
{
	static struct event_drivers all;
	unsigned int kept = 0;

	for (__u64 key = 1; key <= 10000; key++) {
		event_drivers_add(&all, key);
		CHECK(event_drivers_have(&all, key));
	}
	for (__u64 key = 1; key <= 10000; key++)
		kept += event_drivers_have(&all, key);
	CHECK_EQUAL(kept, sizeof(all.keys) / sizeof(__u64));
}
