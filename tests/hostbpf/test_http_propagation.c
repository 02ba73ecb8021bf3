/*
 * What requests bring along, from the head to the end of their server spans; what is well-formed is
 * test_propagation.py's.
 */
#include "http.h"
#include "testing.h"

#include "carried.h"

#include <stdlib.h>
#include <string.h>

#define OK "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
#define PARENT "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"
#define UNSAMPLED "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00\r\n"
#define BRINGS(parent, state, baggage)                                                                            \
	"GET /a HTTP/1.1\r\n" parent "tracestate: " state "\r\nbaggage: " baggage "\r\n\r\n"
#define REQUEST BRINGS(PARENT, "a=1", "b=2")

static const struct propagation with_baggage = {
	.place = {[PROPAGATOR_TRACECONTEXT] = 1, [PROPAGATOR_BAGGAGE] = 2},
	.tells_baggage = 1,
};

/* What the active request of the running thread has brought. */
static const struct carried *brought(void)
{
	struct active_spans found;

	CHECK(host_is_active(PID, thread_task_key(TID), &found));
	return host_carried(PID, found.server.span_id);
}

static void check_texts(int line, const struct carried *texts, const char *tracestate, const char *baggage)
{
	if (!texts)
		test_fail(__FILE__, line, "nothing was brought");
	check_text(__FILE__, line, texts->tracestate, texts->tracestate_length, tracestate);
	check_text(__FILE__, line, texts->baggage, texts->baggage_length, baggage);
}
#define CHECK_TEXTS(texts, tracestate, baggage) check_texts(__LINE__, texts, tracestate, baggage)

/* EVENT_CARRIED number `index`, zero behind what was sent; NULL if there is none. */
static const struct carried *told(__u32 index)
{
	static struct carried event;

	for (__u32 i = 0; i < host_events(); i++) {
		struct host_event sent = host_event(i);

		if (((const struct event_head *)sent.bytes)->kind != EVENT_CARRIED || index--)
			continue;
		CHECK(sent.size <= sizeof(event));
		memset(&event, 0, sizeof(event));
		memcpy(&event, sent.bytes, sent.size);
		/* Its length is said, whether or not it is sent. */
		if (sent.size <= offsetof(struct carried, baggage))
			event.baggage_length = 0;
		return &event;
	}
	return NULL;
}

TEST(carried_while_the_span_lasts)
{
	http_start_connected();
	in(REQUEST);
	CHECK_TEXTS(brought(), "a=1", "b=2");
	CHECK_EQUAL(host_carried_count(PID), 1);
	out("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
	CHECK_EQUAL(host_carried_count(PID), 1);
	out("ok");
	CHECK_EQUAL(host_carried_count(PID), 0);
	/* The next one on the connection brings nothing. */
	in("GET / HTTP/1.1\r\n" PARENT "\r\n");
	CHECK(!brought());
	out(OK);
	in(REQUEST);
	CHECK_TEXTS(brought(), "a=1", "b=2");
	sys_close(FD);
	CHECK_CLEAN();
	CHECK_NO_DROPS();
}

TEST(carried_of_pipelined_requests)
{
	http_start_connected();
	in(BRINGS(PARENT, "a=1", "") BRINGS(PARENT, "a=2", "") "GET / HTTP/1.1\r\n\r\n" BRINGS("", "a=4", "b=4"));
	CHECK_EQUAL(host_carried_count(PID), 3);
	CHECK_TEXTS(brought(), "a=1", "");
	out(OK);
	CHECK_TEXTS(brought(), "a=2", "");
	out(OK);
	CHECK(!brought());
	out(OK);
	CHECK_TEXTS(brought(), "", "b=4");
	CHECK_EQUAL(host_carried_count(PID), 1);
	out(OK);
	CHECK_EQUAL(host_carried_count(PID), 0);
	/* Some that are never answered, and a head that never ends. */
	in(REQUEST REQUEST REQUEST "GET / HTTP/1.1\r\n" PARENT "tracestate: a=5\r\n");
	CHECK_EQUAL(host_carried_count(PID), 4);
	sys_close(FD);
	CHECK_CLEAN();
	CHECK_NO_DROPS();
}

TEST(carried_goes_wherever_the_request_ends)
{
	static const char *const ends[] = {
		"", /* close */
		"HTTP/1.1 101 Switching Protocols\r\n\r\n",
		"nonsense\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
		"HTTP/1.1 200 OK\r\n\r\nuntil close",
	};

	for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
		test_case("%s", ends[i]);
		http_start_connected();
		in(REQUEST);
		CHECK(brought());
		out(ends[i]);
		sys_close(FD);
		CHECK_CLEAN();
	}
	http_start_connected();
	in(REQUEST);
	sys_shutdown(FD, 1);
	CHECK_EQUAL(host_carried_count(PID), 0);
}

/* Heads that turn out to be no heads. */
TEST(carried_goes_with_a_head_that_cannot_be_read)
{
	static const char *const heads[] = {
		"GET / HTTP/1.1\r\nbaggage: a=1\r\n folded\r\n\r\n",
		"GET / HTTP/1.1\r\nbaggage: a=1\r\nContent-Length: x\r\n\r\n",
		"GET / HTTP/1.1\r\nbaggage: a=1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
		"GET / HTTP/1.1\r\nbaggage: a=1",
		"GET / HTTP/1.1\r\nbaggage: a=1\r",
		"GET / HTTP/1.1\r\nbaggage: a=1\r\n",
	};

	for (size_t i = 0; i < sizeof(heads) / sizeof(heads[0]); i++) {
		test_case("%s", heads[i]);
		http_start_connected();
		in(heads[i]);
		sys_close(FD);
		CHECK_CLEAN();
	}
}

TEST(carried_line_longer_than_any_head)
{
	static char text[20000];

	memset(text, 'v', sizeof(text) - 1);
	memcpy(text, "GET / HTTP/1.1\r\nbaggage: a=", 27);
	http_start_connected();
	in(text);
	CHECK_EQUAL(opaque_reason(), OPAQUE_HEAD_TOO_LONG);
	sys_close(FD);
	CHECK_CLEAN();
}

TEST(carried_of_requests_that_are_left_alone)
{
	http_start_connected();
	host_exclude_path(0, "/a", false);
	in(REQUEST);
	CHECK_EQUAL(host_carried_count(PID), 0);
	out(OK);
	sys_close(FD);
	CHECK_CLEAN();
	/* One that is not sampled passes on what it brought, and tells nobody. */
	http_start_connected();
	host_propagation(&with_baggage);
	in(BRINGS(UNSAMPLED, "a=1", "b=2"));
	CHECK_TEXTS(brought(), "a=1", "b=2");
	out(OK);
	CHECK_EQUAL(host_events(), 0);
	sys_close(FD);
	CHECK_CLEAN();
}

/* Nothing is kept of what is not well-formed, and no entry is made for what is empty. */
TEST(carried_nothing)
{
	static const char *const requests[] = {
		BRINGS(PARENT, "", ""),
		BRINGS(PARENT, " , ", ",,"),
		BRINGS(PARENT, "A=1", "a b"),
		BRINGS("", "a=1", "b"),
	};

	for (size_t i = 0; i < sizeof(requests) / sizeof(requests[0]); i++) {
		test_case("%s", requests[i]);
		http_start_connected();
		in(requests[i]);
		CHECK(!brought());
		CHECK_EQUAL(host_carried_count(PID), 0);
		out(OK);
		CHECK_EQUAL(host_events(), 1);
		sys_close(FD);
		CHECK_CLEAN();
		CHECK_NO_DROPS();
	}
}

TEST(carried_map_full)
{
	http_start();
	host_carried_limit(PID, 1);
	for (int i = 0; i < 3; i++) {
		sys_accept(FD + i, &host_tcp);
		host_thread(PID, TID + (__u32)i);
		in_at(FD + i, REQUEST, sizeof(REQUEST) - 1);
	}
	/* Counted once a request, though each has two headers. */
	CHECK_EQUAL(host_count(COUNT_CARRIED_FULL), 2);
	CHECK_EQUAL(host_carried_count(PID), 1);
	host_thread(PID, TID);
	CHECK_TEXTS(brought(), "a=1", "b=2");
	for (int i = 0; i < 3; i++) {
		out_at(FD + i, OK, sizeof(OK) - 1);
		sys_close(FD + i);
	}
	CHECK_EQUAL(span_events(), 3);
	/* Their parents are theirs all the same. */
	for (__u32 i = 0; i < 3; i++)
		CHECK_EQUAL(span_event(i).parent_span_id, 0xb7ad6b7169203331);
	CHECK_CLEAN();
}

TEST(carried_is_told_as_far_as_it_is_asked_for)
{
	http_start_connected();
	in(REQUEST);
	CHECK_TEXTS(told(0), "a=1", "");
	CHECK_EQUAL(host_event(0).size, offsetof(struct carried, tracestate) + 3);
	out(OK);
	CHECK_EQUAL(host_events(), 2);
	CHECK_EQUAL(told(0)->span_id, span_event(0).span_id);
	CHECK_EQUAL(told(0)->head.pid, PID);
	in(BRINGS("", "", "b=2"));
	CHECK_EQUAL(host_events(), 2);
	out(OK);

	host_propagation(&with_baggage);
	in(BRINGS("", "", "b=2"));
	CHECK_TEXTS(told(1), "", "b=2");
	out(OK);
	in(BRINGS(PARENT, "a=1", ""));
	CHECK_TEXTS(told(2), "a=1", "");
	out(OK);
	in(REQUEST);
	CHECK_TEXTS(told(3), "a=1", "b=2");
	out(OK);
	sys_close(FD);
	CHECK_CLEAN();
}

/* Two requests at once on two connections, in pieces: nothing gets mixed up. */
TEST(carried_of_two_connections_in_turn)
{
	static const char first[] = BRINGS(PARENT, "a=1,first=1", "b=2,first=2");
	static const char second[] = BRINGS(PARENT, "a=3,other=1", "b=4,other=2");

	for (size_t step = 1; step < 70; step++) {
		const struct carried *carried;
		struct active_spans found;

		test_case("steps of %zu", step);
		http_start_connected();
		sys_accept(FD + 1, &host_tcp);
		for (size_t at = 0; at < sizeof(first) - 1; at += step) {
			size_t size = sizeof(first) - 1 - at < step ? sizeof(first) - 1 - at : step;

			host_thread(PID, TID);
			in_at(FD, first + at, size);
			host_thread(PID, TID + 1);
			in_at(FD + 1, second + at, size);
		}
		CHECK(host_is_active(PID, thread_task_key(TID + 1), &found));
		carried = host_carried(PID, found.server.span_id);
		CHECK_TEXTS(carried, "a=3,other=1", "b=4,other=2");
		host_thread(PID, TID);
		CHECK_TEXTS(brought(), "a=1,first=1", "b=2,first=2");
		sys_close(FD);
		sys_close(FD + 1);
		CHECK_CLEAN();
	}
}

/* A decision of the caller's counts as a parent's does. */
TEST(carried_decisions_and_the_agents_sampler)
{
	static const struct propagation b3 = {.place = {[PROPAGATOR_B3] = 1}};
	static const struct {
		const char *header;
		bool by_ratio, by_caller; /* with a sampler of ratio 0: not parent-based, parent-based */
	} cases[] = {
		{"b3: 0\r\n", false, false},
		{"b3: 1\r\n", false, true},
		{"b3: d\r\n", false, true},
		{"X-B3-Flags: 1\r\n", false, true},
		{"b3: 0af7651916cd43dd-b7ad6b7169203331-1\r\n", false, true},
		{"b3: 0af7651916cd43dd-b7ad6b7169203331\r\n", false, false},
		{"b3: 0af7651916cd43dd-b7ad6b7169203331-0\r\n", false, false},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		for (__u32 parent_based = 0; parent_based < 2; parent_based++) {
			struct target target = {.sample_below = 0, .parent_based = parent_based};
			char head[200];

			test_case("%s, parent-based: %u", cases[i].header, parent_based);
			host_reset();
			host_propagation(&b3);
			host_target(PID, &target);
			host_thread(PID, TID);
			sys_accept(FD, &host_tcp);
			snprintf(head, sizeof(head), "GET / HTTP/1.1\r\n%s\r\n", cases[i].header);
			in(head);
			out(OK);
			CHECK_EQUAL(span_events(), parent_based ? cases[i].by_caller : cases[i].by_ratio);
		}
	}
}
