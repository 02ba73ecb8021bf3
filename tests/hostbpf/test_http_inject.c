/* Headers in requests out: where they go, and where none goes. The kernel's part is a model of tcp_bpf_sendmsg(). */
#include "http.h"
#include "http_inject.h"
#include "testing.h"

#include <stdlib.h>
#include <string.h>

#define LINE_LENGTH 70
#define GET "GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
#define OK "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
#define WHOLE ((size_t)-1)

static void start(void)
{
	static const struct target target = {.sample_below = ~0ULL, .parent_based = 1, .inject = 1};

	host_reset();
	host_target(PID, &target);
	host_thread(PID, TID);
	sys_connect_tcp(FD, &host_tcp);
}

/* Sends one message whole. */
static long send_text(const char *text, size_t first)
{
	return sys_send_tcp(FD, text, strlen(text), first, SEND_ALL);
}

static size_t seen;

/* What came out of it since the last look: this text, with a header behind its first line if `injected`. */
static bool came(const char *text, size_t size, bool injected)
{
	struct host_event wire = host_wire(FD);
	const char *bytes = (const char *)wire.bytes + seen;
	const char *end = memchr(text, '\n', size);
	size_t place = end ? (size_t)(end + 1 - text) : size, line = injected ? LINE_LENGTH : 0;

	if (wire.size - seen != size + line)
		return false;
	seen = wire.size;
	if (memcmp(bytes, text, place) || memcmp(bytes + place + line, text + place, size - place))
		return false;
	if (!injected)
		return true;
	bytes += place;
	if (memcmp(bytes, "traceparent: 00-", 16) || memcmp(bytes + 65, "-01\r\n", 5) || bytes[48] != '-')
		return false;
	return strspn(bytes + 16, "0123456789abcdef") == 32 && strspn(bytes + 49, "0123456789abcdef") == 16;
}

#define CHECK_CAME(text, injected) CHECK(came(text, strlen(text), injected))

/* On a connection of its own, in pieces cut anywhere. */
static void check_request(const char *text, bool injected)
{
	size_t size = strlen(text);

	for (size_t first = 1; first <= size; first++) {
		test_case("first piece of %zu bytes: %s", first, text);
		start();
		seen = 0;
		CHECK_EQUAL(send_text(text, first), size);
		CHECK_CAME(text, injected);
		sys_close(FD);
		CHECK_CLEAN();
	}
}

TEST(inject_requests)
{
	check_request(GET, true);
	check_request("POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody", true);
	check_request("X-Y * HTTP/1.0\r\n\r\n", true);
	check_request(
		"GET /?traceparent=1 HTTP/1.1\r\nA: traceparent\r\nX-traceparent: 1\r\ntraceparen: 1\r\n\r\n",
		true);
	check_request("PUT / HTTP/1.1\r\nContent-Length: 32\r\n\r\nGET / HTTP/1.1\r\ntraceparent: 1\r\n\r\n",
		      true);
}

TEST(inject_own_header)
{
	check_request("GET / HTTP/1.1\r\ntraceparent: 1\r\n\r\n", false);
	check_request("GET / HTTP/1.1\r\nHost: a\r\nTraceParent:1\r\nA: b\r\n\r\n", false);
	CHECK_EQUAL(host_count(COUNT_REQUESTS_BARE), 0);
	CHECK_EQUAL(host_count(COUNT_REQUESTS_OWN), 1);
	check_request("GET / HTTP/1.1\r\nHost: a\r\nTRACEPARENT\t: 1\r\n\r\n", false);
}

TEST(inject_what_is_no_request)
{
	check_request("GET / HTTP/2.0\r\n\r\n", false);
	check_request("GET / HTTP/1.2\r\n\r\n", false);
	check_request("GET / HTTP/1.1\nHost: a\n\n", false);
	check_request("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", false);
	check_request("get / HTTP/1.1\r\nHost: a\r\n\r\n", false);
	check_request("\r\nGET / HTTP/1.1\r\n\r\n", false);
	check_request("CONNECT a:1 HTTP/1.1\r\n\r\n", false);
	check_request("POST /v1/traces HTTP/1.1\r\n\r\n", false);
	check_request("\x16\x03\x01 GET / HTTP/1.1\r\n\r\n", false);
	check_request("GET / HTTP/1.1\r\nHost: a\r\n", false);
}

TEST(inject_head_in_messages)
{
	for (size_t cut = 1; cut < strlen(GET); cut++) {
		test_case("cut at %zu", cut);
		start();
		seen = 0;
		sys_send_tcp(FD, GET, cut, WHOLE, SEND_ALL);
		sys_send_tcp(FD, &GET[cut], strlen(GET) - cut, WHOLE, SEND_ALL);
		CHECK_CAME(GET, false);
		in(OK);
		send_text(GET, WHOLE);
		CHECK_CAME(GET, true);
		CHECK_EQUAL(host_count(COUNT_REQUESTS_BARE), 1);
		CHECK_EQUAL(host_count(COUNT_REQUESTS_INJECTED), 1);
	}
}

/* The socket takes less than all: what is left is sent again, as the target is told. */
TEST(inject_with_little_room)
{
	static const char text[] = "POST /a HTTP/1.1\r\nContent-Length: 28\r\n\r\n" GET;
	size_t size = strlen(text), place = strcspn(text, "\n") + 1;

	for (size_t room = 0; room <= size + LINE_LENGTH; room++) {
		long told;

		/* The kernel has more room than for one of ours, or takes nothing: has_room() */
		if (room && room < place + LINE_LENGTH)
			continue;
		test_case("room for %zu", room);
		start();
		seen = 0;
		told = sys_send_tcp(FD, text, size, WHOLE, room);
		CHECK_EQUAL(told, room > LINE_LENGTH ? (long)(room - LINE_LENGTH) : -11);
		if (told < 0)
			told = 0;
		if (told < (long)size)
			send_text(text + told, WHOLE);
		CHECK_CAME(text, true);
		CHECK_EQUAL(host_count(COUNT_REQUESTS_INJECTED), room ? 1 : 2);
		in(OK);
		send_text(GET, WHOLE);
		CHECK_CAME(GET, true);
		in(OK);
		CHECK_EQUAL(host_events(), 2);
		CHECK_NO_DROPS();
	}
}

TEST(inject_only_where_there_is_room)
{
	static const struct {
		int size, queued;
		__u32 lowat;
		bool injected;
	} cases[] = {
		{87040, 0, 0, true},	   {87040, 80000, 0, true}, {87040, 85000, 0, false},
		{87040, 100000, 0, false}, {87040, 0, 16384, true}, {87040, 0, 1000, false},
		{4608, 0, 0, true},	   {2100, 0, 0, false},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		test_case("case %zu", i);
		start();
		seen = 0;
		host_send_buffer(FD, cases[i].size, cases[i].queued, cases[i].lowat);
		send_text(GET, WHOLE);
		CHECK_CAME(GET, cases[i].injected);
	}
}

/* ---- what came in with the request that is the cause */

#define SERVER_FD 20
#define CALL "GET /in HTTP/1.1\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"

/* The request out carries this behind its traceparent. */
static void check_carried(const char *brought, const char *head, const char *carried)
{
	const char *wire, *rest = strchr(head, '\n') + 1;
	size_t place = rest - head;
	char call[16384];

	start();
	sys_accept(SERVER_FD, &host_tcp);
	snprintf(call, sizeof(call), "%s%s\r\n", CALL, brought);
	in_at(SERVER_FD, call, strlen(call));
	send_text(head, WHOLE);
	CHECK_EQUAL(host_wire(FD).size, strlen(head) + LINE_LENGTH + strlen(carried));
	wire = host_wire(FD).bytes;
	CHECK(!memcmp(wire, head, place));
	CHECK(!memcmp(wire + place, "traceparent: 00-0af7651916cd43dd8448eb211c80319c-", 49));
	CHECK(!memcmp(wire + place + LINE_LENGTH, carried, strlen(carried)));
	CHECK(!memcmp(wire + place + LINE_LENGTH + strlen(carried), rest, strlen(rest)));
}

TEST(inject_carried)
{
	check_carried("", GET, "");
	check_carried("tracestate: a=b\r\n", GET, "tracestate: a=b\r\n");
	check_carried("baggage: k=v\r\nBaggage: l=w;p\r\n", GET, "baggage: k=v,l=w;p\r\n");
	check_carried("baggage: k=v\r\ntracestate: a=b\r\n", GET, "tracestate: a=b\r\nbaggage: k=v\r\n");
	check_carried("tracestate: a=b\r\nbaggage: k=v\r\n", "GET / HTTP/1.1\r\nTraceState: x=y\r\n\r\n",
		      "baggage: k=v\r\n");
	check_carried("tracestate: a=b\r\nbaggage: k=v\r\n", "GET / HTTP/1.1\r\nBAGGAGE:x=y\r\n\r\n",
		      "tracestate: a=b\r\n");
	check_carried("tracestate: a=b\r\nbaggage: k=v\r\n",
		      "GET / HTTP/1.1\r\nbaggage-x: 1\r\nx-tracestate: x=y\r\n\r\n",
		      "tracestate: a=b\r\nbaggage: k=v\r\n");
}

TEST(inject_carried_of_any_length)
{
	for (size_t length = 1; length <= 200; length += length < 20 ? 1 : 60) {
		char brought[512], carried[512];

		test_case("values of %zu bytes", length);
		snprintf(brought, sizeof(brought), "tracestate: a=%0*d\r\nbaggage: k=%0*d\r\n", (int)length, 7,
			 (int)length + 3, 7);
		memcpy(carried, brought, sizeof(carried));
		check_carried(brought, GET, carried);
	}
}

/* Too much for the send buffer, as it is: without what was carried it goes. */
TEST(inject_carried_without_room)
{
	static char call[4000];

	start();
	seen = 0;
	sys_accept(SERVER_FD, &host_tcp);
	snprintf(call, sizeof(call), "%sbaggage: k=%0400d\r\n\r\n", CALL, 7);
	in_at(SERVER_FD, call, strlen(call));
	host_send_buffer(FD, 2400, 0, 0);
	send_text(GET, WHOLE);
	CHECK_CAME(GET, true);
}

/* Bytes that no tracepoint saw: from then on, nobody knows where a request begins. */
TEST(inject_after_unseen_bytes)
{
	start();
	seen = 0;
	send_text(GET, WHOLE);
	CHECK_CAME(GET, true);
	in(OK);
	host_skip_sequence(FD, 100);
	send_text(GET, WHOLE);
	CHECK_CAME(GET, false);
}

TEST(inject_helpers_fail)
{
	/* A pull, a push, a pull for writing, a pull at the end; what fails is undone. */
	for (__u64 fails = 1; fails <= 5; fails++) {
		test_case("call %llu fails", (unsigned long long)fails);
		start();
		seen = 0;
		host.fail_message = fails;
		CHECK_EQUAL(send_text(GET, 20), strlen(GET));
		CHECK_CAME(GET, fails >= 4);
		host.fail_message = 0;
		in(OK);
		send_text(GET, WHOLE);
		CHECK_CAME(GET, true);
	}
	/* What cannot be undone does not leave. */
	start();
	host.fail_message = 3;
	host.fail_message_too = 4;
	CHECK_EQUAL(send_text(GET, 20), SEND_DROPPED);
}

TEST(inject_reads_fail)
{
	for (__u64 fails = 1;; fails++) {
		__u64 reads;

		test_case("read %llu fails", (unsigned long long)fails);
		start();
		seen = 0;
		reads = host.reads_kernel;
		host.fail_read_kernel = reads + fails;
		send_text(GET, WHOLE);
		CHECK(came(GET, strlen(GET), true) || came(GET, strlen(GET), false));
		if (host.reads_kernel < reads + fails)
			break;
	}
}

TEST(inject_refused_sockets)
{
	static const struct target target = {.sample_below = ~0ULL, .inject = 1},
				   without = {.sample_below = ~0ULL};

	host_reset();
	host_target(PID, &target);
	host_thread(PID, TID);
	host.fail_setsockopt = true;
	sys_connect_tcp(FD, &host_tcp);
	CHECK_EQUAL(host_map_count("inject_sockets"), 0);
	CHECK_EQUAL(host_count(COUNT_INJECT_REFUSED), 1);
	host_reset();
	host_target(PID, &without);
	host_thread(PID, TID);
	sys_connect_tcp(FD, &host_tcp);
	CHECK_EQUAL(host_map_count("inject_sockets"), 0);
	CHECK_EQUAL(host_count(COUNT_INJECT_REFUSED), 0);
	/* Of a process that is no target. */
	host_thread(PID + 1, TID + 1);
	sys_connect_tcp(FD, &host_tcp);
	CHECK_EQUAL(host_map_count("inject_sockets"), 0);
}

TEST(inject_lets_go_of_what_is_opaque)
{
	struct inject_event event;

	start();
	send_text("\x16\x03\x01 and so on", WHOLE);
	send_text("more", WHOLE);
	send_text("more", WHOLE);
	CHECK_EQUAL(host_events(), 2);
	CHECK_EQUAL(host_event(1).size, sizeof(event));
	memcpy(&event, host_event(1).bytes, sizeof(event));
	CHECK_EQUAL(event.head.kind, EVENT_INJECT);
	CHECK_EQUAL(event.notice, INJECT_LET_GO);
}

TEST(inject_says_once_that_a_connection_is_older)
{
	static const struct target target = {.sample_below = ~0ULL, .inject = 1};
	__u32 notices = 0;

	host_reset();
	host_target(PID, &target);
	host_thread(PID, TID);
	for (int fd = FD; fd < FD + 3; fd++) {
		host_open(fd, &host_tcp);
		out_at(fd, GET, strlen(GET));
		in_at(fd, OK, strlen(OK));
	}
	for (__u32 i = 0; i < host_events(); i++) {
		struct event_head head;

		memcpy(&head, host_event(i).bytes, sizeof(head));
		notices += head.kind == EVENT_INJECT;
	}
	CHECK_EQUAL(notices, 1);
	CHECK_EQUAL(host_count(COUNT_REQUESTS_BARE), 3);
}
