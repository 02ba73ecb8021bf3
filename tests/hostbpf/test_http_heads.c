/* What a request's head says, and what is made of it: span contexts, sampling, limits. */
#include "http.h"
#include "testing.h"

#include <stdlib.h>
#include <string.h>

#define OK "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
#define TRACE_ID "0af7651916cd43dd8448eb211c80319c"
#define TRACE_ID_HIGH 0x0af7651916cd43ddULL
#define TRACE_ID_LOW 0x8448eb211c80319cULL
#define PARENT "b7ad6b7169203331"
#define PARENT_ID 0xb7ad6b7169203331ULL
#define VALID "00-" TRACE_ID "-" PARENT "-01"

/* One request with these header lines, answered; its span event. */
static struct server_span_event serve(const char *headers)
{
	char head[20000];

	snprintf(head, sizeof(head), "GET / HTTP/1.1\r\n%s\r\n", headers);
	http_start_connected();
	in(head);
	out(OK);
	sys_close(FD);
	CHECK_CLEAN();
	return span_event(0);
}

TEST(fields_of_the_event)
{
	struct server_span_event span;

	http_start_connected();
	host.now = 5000;
	in("POST /api/users HTTP/1.1\r\nHost: shop.example:8080\r\nUser-Agent: curl/8.1\r\n\r\n");
	host.now = 9000;
	out("HTTP/1.0 201 Created\r\nContent-Length: 0\r\n\r\n");
	span = span_event(0);
	CHECK_EQUAL(span.head.kind, EVENT_SERVER_SPAN);
	CHECK_EQUAL(span.head.pid, PID);
	CHECK(span.start >= 5000 && span.start < 6000);
	CHECK(span.head.at >= 9000 && span.head.at < 10000);
	CHECK_EQUAL(span.parent_span_id, 0);
	CHECK_EQUAL(span.task_key, thread_task_key(TID));
	CHECK_EQUAL(span.addresses.family, FAMILY_INET);
	CHECK_EQUAL(span.addresses.local_port, 8080);
	CHECK_EQUAL(span.addresses.peer_port, 40000);
	CHECK(!memcmp(span.addresses.local, host_tcp.local, 4));
	CHECK(!memcmp(span.addresses.peer, host_tcp.peer, 4));
	CHECK_EQUAL(span.status, 201);
	CHECK_EQUAL(span.flags, TRACE_FLAG_SAMPLED);
	CHECK_EQUAL(span.method, METHOD_POST);
	CHECK_EQUAL(span.version_minor, 1);
	CHECK_EQUAL(span.target_cut, 0);
	CHECK_EQUAL(span.method_name[0], 0);
	CHECK_TARGET(span, "/api/users");
	CHECK_HOST(span, "shop.example:8080");
	CHECK_AGENT(span, "curl/8.1");
	CHECK_EQUAL(host_count(COUNT_SERVER_SPANS), 1);
	CHECK_NO_DROPS();
}

/* It begins with the first byte of its first piece. */
TEST(start_is_the_first_byte)
{
	struct server_span_event span;

	http_start_connected();
	host.now = 2000000;
	in("G");
	host.now = 3000000;
	in("ET / HTTP/1.1\r\n");
	host.now = 4000000;
	in("\r\n");
	out(OK);
	span = span_event(0);
	CHECK(span.start >= 2000000 && span.start < 3000000);
	/* A line end that is left over from a body is not of the next request. */
	in("\r\n");
	host.now = 6000000;
	in("GET / HTTP/1.1\r\n\r\n");
	out(OK);
	CHECK(span_event(1).start >= 6000000);
}

TEST(addresses_of_ip6)
{
	struct host_socket socket = {.family = FAMILY_INET6, .type = 1, .local_port = 80, .peer_port = 1234};
	struct server_span_event span;

	for (int i = 0; i < 16; i++) {
		socket.local[i] = (__u8)(i + 1);
		socket.peer[i] = (__u8)(i + 101);
	}
	http_start();
	sys_accept(FD, &socket);
	in("GET / HTTP/1.1\r\n\r\n");
	out(OK);
	span = span_event(0);
	CHECK_EQUAL(span.addresses.family, FAMILY_INET6);
	CHECK_EQUAL(span.addresses.peer_port, 1234);
	CHECK(!memcmp(span.addresses.local, socket.local, 16));
	CHECK(!memcmp(span.addresses.peer, socket.peer, 16));
}

TEST(unix_socket)
{
	static const struct host_socket socket = {.family = FAMILY_UNIX, .type = 1, .local_port = 7};
	struct server_span_event span;

	http_start();
	sys_accept(FD, &socket);
	in("GET / HTTP/1.1\r\n\r\n");
	out(OK);
	span = span_event(0);
	CHECK_EQUAL(span.addresses.family, FAMILY_UNIX);
	CHECK_EQUAL(span.addresses.local_port, 0);
}

TEST(version_1_0_is_said)
{
	http_start_connected();
	in("GET / HTTP/1.0\r\n\r\n");
	out(OK);
	CHECK_EQUAL(span_event(0).version_minor, 0);
}

TEST(method_name_of_other_methods)
{
	struct server_span_event span;

	http_start_connected();
	in("ABCDEFGHIJKLMNO / HTTP/1.1\r\n\r\n");
	out(OK);
	in("LOCK / HTTP/1.1\r\n\r\n");
	out(OK);
	in("GET / HTTP/1.1\r\n\r\n");
	out(OK);
	span = span_event(0);
	CHECK(!strcmp(span.method_name, "ABCDEFGHIJKLMNO"));
	span = span_event(1);
	CHECK(!strcmp(span.method_name, "LOCK"));
	span = span_event(2);
	CHECK(!strcmp(span.method_name, ""));
}

TEST(header_names_in_any_case)
{
	struct server_span_event span = serve("HOST: a\r\nuSeR-aGeNt:b\r\nTRACEPARENT:\t" VALID " \t\r\n");

	CHECK_HOST(span, "a");
	CHECK_AGENT(span, "b");
	CHECK_EQUAL(span.parent_span_id, PARENT_ID);
}

TEST(headers_that_only_look_alike)
{
	struct server_span_event span =
		serve("Hosts: a\r\nX-Host: a\r\nUser-Agents: b\r\ntraceparents: " VALID "\r\n"
		      "content-lengths: 5\r\nx-content-length: 5\r\ntransfer-encodings: chunked\r\nhost\r\n");

	CHECK_EQUAL(span.host_length, 0);
	CHECK_EQUAL(span.user_agent_length, 0);
	CHECK_EQUAL(span.parent_span_id, 0);
}

/* A request is not told what the one before it on this connection said. */
TEST(nothing_is_left_of_the_request_before)
{
	struct server_span_event span;

	http_start_connected();
	in("GET /a/long/path HTTP/1.1\r\nHost: a\r\nUser-Agent: b\r\nTraceparent: " VALID "\r\n\r\n");
	out(OK);
	for (int i = 0; i < 2; i++) {
		in("GET /b HTTP/1.1\r\n\r\n");
		out(OK);
		span = span_event(1 + i);
		CHECK_TARGET(span, "/b");
		CHECK_EQUAL(span.host_length, 0);
		CHECK_EQUAL(span.user_agent_length, 0);
		CHECK_EQUAL(span.parent_span_id, 0);
		CHECK(span.trace_id_high != TRACE_ID_HIGH);
	}
}

static void fill(char *text, const char *before, size_t length, const char *after)
{
	size_t at = strlen(before);

	memcpy(text, before, at);
	memset(text + at, 'x', length);
	strcpy(text + at + length, after);
}

TEST(host_at_its_limit)
{
	struct server_span_event span;
	char line[1000];

	fill(line, "Host: ", HTTP_HOST_MAX, "\r\n");
	span = serve(line);
	CHECK_EQUAL(span.host_length, HTTP_HOST_MAX);
	CHECK(!memcmp(span.host, line + 6, HTTP_HOST_MAX));
	/* Half a host is another host: rather none. */
	fill(line, "Host: ", HTTP_HOST_MAX + 1, "\r\n");
	span = serve(line);
	CHECK_EQUAL(span.host_length, 0);
	span = serve("Host:\r\n");
	CHECK_EQUAL(span.host_length, 0);
	span = serve("Host:     \t  a\r\n");
	CHECK_HOST(span, "a");
}

TEST(user_agent_at_its_limit)
{
	char line[1000];

	for (size_t length = 0; length < 600; length++) {
		struct server_span_event span;

		test_case("%zu bytes", length);
		fill(line, "User-Agent: ", length, "\r\n");
		span = serve(line);
		CHECK_EQUAL(span.user_agent_length, length < HTTP_USER_AGENT_MAX ? length : HTTP_USER_AGENT_MAX);
		CHECK(!memcmp(span.user_agent, line + 12, span.user_agent_length));
	}
}

TEST(targets_of_every_length)
{
	static const size_t steps[] = {1, 64, 100000};
	char head[1200];

	for (size_t length = 1; length < 1000; length++) {
		for (int i = 0; i < 3; i++) {
			struct server_span_event span;

			test_case("%zu bytes in steps of %zu", length, steps[i]);
			fill(head, "GET /", length - 1, " HTTP/1.1\r\nHost: a\r\n\r\n");
			http_start_connected();
			in_steps(FD, head, strlen(head), steps[i]);
			out(OK);
			sys_close(FD);
			span = span_event(0);
			CHECK_EQUAL(span.target_length, length < HTTP_TARGET_MAX ? length : HTTP_TARGET_MAX);
			CHECK_EQUAL(span.target_cut, length > HTTP_TARGET_MAX);
			CHECK(!memcmp(span.target, head + 4, span.target_length));
			CHECK_HOST(span, "a");
			CHECK_NO_DROPS();
		}
	}
}

TEST(header_lines_of_every_length)
{
	char line[1200];

	for (size_t length = 0; length < 600; length++) {
		struct server_span_event span;

		test_case("%zu bytes", length);
		fill(line, "X: ", length, "\r\nHost: a\r\n");
		span = serve(line);
		CHECK_HOST(span, "a");
	}
}

/* ---- size of the head */

/* A head of exactly `size` bytes, with lines of 100. */
static char *head_of_size(size_t size)
{
	static const char begin[] = "GET / HTTP/1.1\r\n", end[] = "\r\n";
	char *head = malloc(size + 1);
	size_t at = sizeof(begin) - 1;

	memcpy(head, begin, at);
	while (at < size - 2) {
		size_t line = size - 2 - at;

		/* Never a rest too short to be a line. */
		if (line > 200)
			line = 100;
		memset(head + at, 'x', line);
		memcpy(head + at, "X: ", 3);
		memcpy(head + at + line - 2, "\r\n", 2);
		at += line;
	}
	memcpy(head + at, end, sizeof(end));
	CHECK_EQUAL(strlen(head), size);
	return head;
}

TEST(head_of_16_kib)
{
	static const size_t steps[] = {1, 24, 64, 1000, 16384};

	for (int i = 0; i < 5; i++) {
		char *head = head_of_size(16384);

		test_case("in steps of %zu", steps[i]);
		http_start_connected();
		in_steps(FD, head, strlen(head), steps[i]);
		out(OK);
		in_steps(FD, head, strlen(head), steps[i]);
		out(OK);
		CHECK_EQUAL(span_events(), 2);
		CHECK_NO_DROPS();
		free(head);
	}
}

TEST(head_above_16_kib)
{
	static const size_t sizes[] = {16387, 16500, 20000, 70000};

	for (int i = 0; i < 8; i++) {
		char *head = head_of_size(sizes[i / 2]);

		test_case("%zu bytes", sizes[i / 2]);
		http_start_connected();
		in_steps(FD, head, strlen(head), i & 1 ? 64 : strlen(head));
		out(OK);
		sys_close(FD);
		CHECK_EQUAL(span_events(), 0);
		CHECK_EQUAL(opaque_reason(), OPAQUE_HEAD_TOO_LONG);
		CHECK_EQUAL(host_count(COUNT_HEAD_TOO_LONG), 1);
		CHECK_CLEAN();
		free(head);
	}
}

TEST(line_without_an_end)
{
	char *line = malloc(20000);

	memset(line, 'x', 20000);
	memcpy(line, "GET /", 5);
	http_start_connected();
	in_steps(FD, line, 20000, 4096);
	sys_close(FD);
	CHECK_EQUAL(opaque_reason(), OPAQUE_HEAD_TOO_LONG);
	CHECK_CLEAN();
	free(line);
}

TEST(response_head_above_16_kib)
{
	char *head = head_of_size(20000);

	memcpy(head, "HTTP/1.1 200 OK", 14);
	http_start_connected();
	in("GET / HTTP/1.1\r\n\r\n");
	out(head);
	CHECK_EQUAL(opaque_reason(), OPAQUE_HEAD_TOO_LONG);
	CHECK_EQUAL(span_event(0).ended_by, END_UNFRAMED);
	sys_close(FD);
	CHECK_CLEAN();
	free(head);
}

/* More lines than one run of the program may look at. */
TEST(too_many_lines_in_one_call)
{
	char head[8000] = "GET / HTTP/1.1\r\n";

	for (int i = 0; i < 1100; i++)
		strcat(head, "a:b\r\n");
	strcat(head, "\r\n");
	http_start_connected();
	in(head);
	out(OK);
	sys_close(FD);
	CHECK_EQUAL(opaque_reason(), OPAQUE_SCAN_LIMIT);
	CHECK_EQUAL(host_count(COUNT_SCAN_LIMIT), 1);
	CHECK_EQUAL(span_events(), 0);
	CHECK_CLEAN();
	/* In two calls it is well. */
	http_start_connected();
	in_steps(FD, head, strlen(head), 4000);
	out(OK);
	CHECK_EQUAL(span_events(), 1);
	CHECK_NO_DROPS();
}

/* ---- traceparent */

TEST(traceparent_valid)
{
	struct server_span_event span = serve("traceparent: " VALID "\r\n");

	CHECK_EQUAL(span.trace_id_high, TRACE_ID_HIGH);
	CHECK_EQUAL(span.trace_id_low, TRACE_ID_LOW);
	CHECK_EQUAL(span.parent_span_id, PARENT_ID);
	CHECK_EQUAL(span.flags, 1);
	CHECK_EQUAL(span.traceparents, 1);
	/* Flags that are not defined yet are not passed on. */
	span = serve("traceparent: 00-" TRACE_ID "-" PARENT "-ff\r\n");
	CHECK_EQUAL(span.parent_span_id, PARENT_ID);
	CHECK_EQUAL(span.flags, 3);
}

TEST(traceparent_of_a_future_version)
{
	static const char *const values[] = {
		"01-" TRACE_ID "-" PARENT "-01",
		"cc-" TRACE_ID "-" PARENT "-01",
		"cc-" TRACE_ID "-" PARENT "-01-what-the-future-will-be-like",
		"cc-" TRACE_ID "-" PARENT "-01-",
	};
	char line[1000];

	for (int i = 0; i < 4; i++) {
		struct server_span_event span;

		test_case("%s", values[i]);
		snprintf(line, sizeof(line), "traceparent: %s\r\n", values[i]);
		span = serve(line);
		CHECK_EQUAL(span.trace_id_low, TRACE_ID_LOW);
		CHECK_EQUAL(span.parent_span_id, PARENT_ID);
	}
	fill(line, "traceparent: 0a-" TRACE_ID "-" PARENT "-01-", 500, "\r\n");
	CHECK_EQUAL(serve(line).parent_span_id, PARENT_ID);
}

/* https://www.w3.org/TR/trace-context/#traceparent-header-field-values */
TEST(traceparent_malformed)
{
	static const char *const values[] = {
		"",
		"00",
		"ff-" TRACE_ID "-" PARENT "-01",
		"FF-" TRACE_ID "-" PARENT "-01",
		"0A-" TRACE_ID "-" PARENT "-01",
		"0g-" TRACE_ID "-" PARENT "-01",
		"0-" TRACE_ID "-" PARENT "-01",
		"000-" TRACE_ID "-" PARENT "-01",
		"00-" TRACE_ID "-" PARENT "-01-more",
		"00-" TRACE_ID "-" PARENT "-01-",
		"00-" TRACE_ID "-" PARENT "-011",
		"cc-" TRACE_ID "-" PARENT "-01.more",
		"cc-" TRACE_ID "-" PARENT "-011",
		"00-" TRACE_ID "-" PARENT "-0",
		"00-" TRACE_ID "-" PARENT "-",
		"00-" TRACE_ID "-" PARENT,
		"00-" TRACE_ID "-" PARENT "-0x",
		"00-" TRACE_ID "-" PARENT "-0A",
		"00-00000000000000000000000000000000-" PARENT "-01",
		"00-" TRACE_ID "-0000000000000000-01",
		"00-0AF7651916CD43DD8448EB211C80319C-" PARENT "-01",
		"00-0af7651916cd43dd8448eb211c80319-" PARENT "-01",
		"00-0af7651916cd43dd8448eb211c80319cc-" PARENT "-01",
		"00-0af7651916cd43dd8448eb211c80319g-" PARENT "-01",
		"00-0af7651916cd43dd 448eb211c80319c-" PARENT "-01",
		"00-" TRACE_ID "-B7AD6B7169203331-01",
		"00-" TRACE_ID "-b7ad6b716920333-01",
		"00-" TRACE_ID "-b7ad6b71692033311-01",
		"00-" TRACE_ID "-b7ad6b716920333z-01",
		"00_" TRACE_ID "-" PARENT "-01",
		"00-" TRACE_ID "_" PARENT "-01",
		"00-" TRACE_ID "-" PARENT "_01",
		"00 " TRACE_ID " " PARENT " 01",
		"\"" VALID "\"",
		VALID "," VALID,
		VALID ", " VALID,
		", " VALID,
	};
	char line[1000];

	for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
		struct server_span_event span;

		test_case("%s", values[i]);
		snprintf(line, sizeof(line), "traceparent: %s\r\nHost: a\r\n", values[i]);
		span = serve(line);
		CHECK_EQUAL(span.parent_span_id, 0);
		CHECK(span.trace_id_low != TRACE_ID_LOW);
		CHECK(span.trace_id_high != TRACE_ID_HIGH);
		CHECK_EQUAL(span.flags, 1);
		CHECK_HOST(span, "a");
	}
}

/* Each byte of a valid one replaced by each other byte: only hexadecimal digits keep it valid. */
TEST(traceparent_with_one_byte_changed)
{
	for (size_t at = 0; at < sizeof(VALID) - 1; at++) {
		for (int byte = 1; byte < 256; byte++) {
			char line[] = "traceparent: " VALID "\r\n";
			bool digit = (byte >= '0' && byte <= '9') || (byte >= 'a' && byte <= 'f');
			bool valid = VALID[at] == '-' ? byte == '-' : digit;
			struct server_span_event span;

			/* Line ends end the value, blanks at its beginning are not of it, ff is no version. */
			if (byte == '\n' || (at == 0 && (byte == ' ' || byte == '\t')))
				continue;
			/* Not sampled: no event would tell. */
			if (at == sizeof(VALID) - 2 && digit && !(byte & 1) == (byte < 'a'))
				continue;
			line[13 + at] = (char)byte;
			test_case("byte %zu is %d", at, byte);
			span = serve(line);
			CHECK_EQUAL(span.parent_span_id != 0, valid);
			if (!valid)
				CHECK(span.trace_id_high != TRACE_ID_HIGH);
		}
	}
}

TEST(traceparent_twice)
{
	struct server_span_event span = serve("traceparent: " VALID "\r\ntraceparent: " VALID "\r\n");

	CHECK_EQUAL(span.parent_span_id, 0);
	CHECK(span.trace_id_low != TRACE_ID_LOW);
	span = serve("traceparent: " VALID "\r\nTraceparent: " VALID "\r\ntraceparent: " VALID "\r\n");
	CHECK_EQUAL(span.parent_span_id, 0);
	CHECK(span.trace_id_low != TRACE_ID_LOW);
	span = serve("traceparent: bad\r\ntraceparent: " VALID "\r\n");
	CHECK_EQUAL(span.parent_span_id, 0);
	CHECK_EQUAL(span.flags, 1);
}

/* ---- sampling */

static void serve_sampled(const char *head, __u64 below, __u32 parent_based)
{
	struct target target = {.sample_below = below, .parent_based = parent_based};

	host_reset();
	host_target(PID, &target);
	host_thread(PID, TID);
	sys_accept(FD, &host_tcp);
	in(head);
}

#define PLAIN "GET / HTTP/1.1\r\n\r\n"
#define WITH_PARENT(flags) "GET / HTTP/1.1\r\ntraceparent: 00-" TRACE_ID "-" PARENT "-" flags "\r\n\r\n"

TEST(unsampled_request_has_a_context_but_no_event)
{
	struct active_spans found;

	serve_sampled(PLAIN, 0, 1);
	CHECK(host_is_active(PID, thread_task_key(TID), &found));
	CHECK_EQUAL(found.server.flags, 0);
	CHECK_EQUAL(found.server.remote_parent, 0);
	out(OK);
	CHECK_EQUAL(host_events(), 0);
	CHECK_EQUAL(host_count(COUNT_UNSAMPLED), 1);
	CHECK_EQUAL(host_count(COUNT_SERVER_SPANS), 0);
	sys_close(FD);
	CHECK_CLEAN();
}

TEST(parent_decides_with_a_parent_based_sampler)
{
	serve_sampled(WITH_PARENT("00"), ~0ULL, 1);
	out(OK);
	CHECK_EQUAL(span_events(), 0);
	serve_sampled(WITH_PARENT("02"), ~0ULL, 1);
	out(OK);
	CHECK_EQUAL(span_events(), 0);
	serve_sampled(WITH_PARENT("01"), 0, 1);
	out(OK);
	CHECK_EQUAL(span_event(0).flags, 1);
	CHECK_EQUAL(span_event(0).parent_span_id, PARENT_ID);
}

TEST(parent_does_not_decide_with_another_sampler)
{
	serve_sampled(WITH_PARENT("00"), ~0ULL, 0);
	out(OK);
	CHECK_EQUAL(span_event(0).flags, 1);
	CHECK_EQUAL(span_event(0).trace_id_low, TRACE_ID_LOW);
	CHECK_EQUAL(span_event(0).parent_span_id, PARENT_ID);
	serve_sampled(WITH_PARENT("01"), 0, 0);
	out(OK);
	CHECK_EQUAL(span_events(), 0);
}

/* As in opentelemetry's TraceIdRatioBased: by the low half of the trace id without its last bit. */
TEST(ratio_is_of_trace_ids)
{
	__u32 sampled = 0;

	serve_sampled(PLAIN, 1ULL << 61, 1);
	out(OK);
	for (int i = 1; i < 1000; i++) {
		in(PLAIN);
		out(OK);
	}
	sampled = span_events();
	CHECK(sampled > 200 && sampled < 300);
	CHECK_EQUAL(host_count(COUNT_UNSAMPLED), 1000 - sampled);
	for (__u32 i = 0; i < sampled; i++)
		CHECK(span_event(i).trace_id_low >> 1 < 1ULL << 61);
	serve_sampled(WITH_PARENT("00"), (TRACE_ID_LOW >> 1) + 1, 0);
	out(OK);
	CHECK_EQUAL(span_events(), 1);
	serve_sampled(WITH_PARENT("00"), TRACE_ID_LOW >> 1, 0);
	out(OK);
	CHECK_EQUAL(span_events(), 0);
}

TEST(ids_are_all_different)
{
	enum { REQUESTS = 200 };

	http_start_connected();
	for (int i = 0; i < REQUESTS; i++) {
		in(PLAIN);
		out(OK);
	}
	for (__u32 i = 0; i < REQUESTS; i++) {
		for (__u32 j = 0; j < i; j++) {
			CHECK(span_event(i).span_id != span_event(j).span_id);
			CHECK(span_event(i).trace_id_low != span_event(j).trace_id_low);
		}
	}
}

/* ---- excluded paths */

static __u32 spans_of_path(const char *target)
{
	char head[600];

	snprintf(head, sizeof(head), "GET %s HTTP/1.1\r\n\r\n", target);
	host_forget_events();
	in(head);
	if (!span_events())
		CHECK(!host_live_frames(PID) || host_live_frames(PID) == 1);
	out(OK);
	CHECK_EQUAL(host_live_frames(PID), 0);
	return span_events();
}

TEST(excluded_paths)
{
	static const char longest[] = "/0123456789012345678901234567890123456789012345678901234567890bc";

	_Static_assert(sizeof(longest) - 1 == 64, "fills a pattern");
	http_start_connected();
	CHECK_EQUAL(spans_of_path("/healthz"), 1);
	host_exclude_path(0, "/healthz", false);
	host_exclude_path(1, "/internal/", true);
	host_exclude_path(2, longest, true);
	CHECK_EQUAL(spans_of_path("/healthz"), 0);
	CHECK_EQUAL(host_count(COUNT_EXCLUDED), 1);
	CHECK_EQUAL(spans_of_path("/health"), 1);
	CHECK_EQUAL(spans_of_path("/healthz2"), 1);
	CHECK_EQUAL(spans_of_path("/healthz/"), 1);
	CHECK_EQUAL(spans_of_path("/Healthz"), 1);
	CHECK_EQUAL(spans_of_path("/"), 1);
	CHECK_EQUAL(spans_of_path("/internal"), 1);
	CHECK_EQUAL(spans_of_path("/internal/"), 0);
	CHECK_EQUAL(spans_of_path("/internal/a/b?c=d"), 0);
	CHECK_EQUAL(spans_of_path(longest), 0);
	CHECK_EQUAL(spans_of_path("/0123456789012345678901234567890123456789012345678901234567890bd"), 1);
	CHECK_EQUAL(host_count(COUNT_EXCLUDED), 4);
	/* A path with any query is two patterns: it and its end, it and a question mark. */
	CHECK_EQUAL(spans_of_path("/healthz?a=b"), 1);
	host_exclude_path(3, "/healthz?", true);
	CHECK_EQUAL(spans_of_path("/healthz?a=b"), 0);
	/* The connection is followed on. */
	CHECK_EQUAL(spans_of_path("/healthz"), 0);
	CHECK_EQUAL(spans_of_path("/a"), 1);
	sys_close(FD);
	CHECK_CLEAN();
}

TEST(excluded_request_is_closed)
{
	http_start_connected();
	host_exclude_path(0, "/healthz", false);
	in("GET /healthz HTTP/1.1\r\n\r\nGET /a HTTP/1.1\r\n\r\n");
	CHECK_EQUAL(host_live_frames(PID), 0);
	out(OK);
	CHECK_EQUAL(host_live_frames(PID), 1);
	out(OK);
	CHECK_EQUAL(span_events(), 1);
	in("GET /healthz HTTP/1.1\r\n\r\n");
	sys_close(FD);
	CHECK_EQUAL(span_events(), 1);
	CHECK_CLEAN();
}
