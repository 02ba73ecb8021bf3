/* Each call that can fail is made to fail, one at a time: nothing is left behind, nothing invented. */
#include "http.h"
#include "testing.h"

#include <string.h>

#define OK "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

/* Ends with all that it opened closed. */
static void busy_day(void)
{
	static const char request[] = "POST /a HTTP/1.1\r\nHost: a\r\nUser-Agent: b\r\n"
				      "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"
				      "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n\r\n";
	static const char response[] = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
	const struct host_piece in_pieces[] = {{request, 30}, {NULL, 0}, {request + 30, sizeof(request) - 31}};
	const struct host_piece out_pieces[] = {{response, 10}, {response + 10, sizeof(response) - 11}};

	sys_accept(FD, &host_tcp);
	sys_transfer(CALL_READV, FD, in_pieces, 3, -1, 0);
	sys_transfer(CALL_WRITEV, FD, out_pieces, 2, -1, 0);
	sys_transfer(CALL_RECVMSG, FD, in_pieces, 3, -1, 0);
	sys_transfer(CALL_SENDMSG, FD, out_pieces, 2, -1, 0);
	in("GET /b HTTP/1.1\r\n\r\nLOCK /c HTTP/1.1\r\n\r\nGET /d HTTP/1.1\r\n");
	out(OK);
	sys_dup(FD, 20);
	out("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n");
	sys_sendfile(FD, 7);
	sys_close(FD);
	in_at(20, "Host: a\r\n\r\n", 11);
	/* One more, discovered, in the same task. */
	host_open(FD + 1, &host_tcp);
	in_at(FD + 1, "GET /e HTTP/1.1\r\n\r\n", 19);
	sys_close(FD + 1);
	out_at(20, "HTTP/1.1 200 OK\r\n\r\nuntil close", 30);
	sys_close(20);
	sys_epoll_wait(0);
}

static void start(void)
{
	static const __u32 port[2] = {PID, 8080};

	http_start_tokio(17);
	host_map_update("listening", port, &(__u8){1});
}

static void check_day(void)
{
	for (__u32 i = 0; i < span_events(); i++) {
		struct server_span_event span = span_event(i);

		CHECK(span.target_length == 2 && span.target[0] == '/' && span.target[1] >= 'a' &&
		      span.target[1] <= 'e');
		CHECK(span.status == 200 || span.status == 0);
		for (__u32 j = 0; j < i; j++)
			CHECK(span_event(j).span_id != span.span_id);
	}
	CHECK(span_events() <= 6);
}

TEST(day_without_faults)
{
	start();
	busy_day();
	check_day();
	CHECK_EQUAL(span_events(), 7 - 1);
	CHECK_CLEAN();
	CHECK_NO_DROPS();
}

/* Target memory that cannot be read: the connection is opaque from there on. */
TEST(every_read_of_target_memory_fails_once)
{
	__u64 reads;

	start();
	busy_day();
	reads = host.reads_user;
	CHECK(reads > 20);
	for (__u64 i = 1; i <= reads; i++) {
		test_case("read %llu of %llu", i, reads);
		start();
		host.fail_read_user = i;
		busy_day();
		check_day();
		CHECK_CLEAN();
		CHECK(host_count(COUNT_READ_FAULT) <= 1);
	}
}

TEST(transfer_that_cannot_be_read)
{
	static const struct host_piece piece = {OK, sizeof(OK) - 1};

	for (enum host_call call = 0; call < CALL_MAX; call++) {
		bool flat = call % CALLS_IN < CALL_READV, message = call % CALLS_IN == CALL_RECVMSG;

		for (int unmap = UNMAP_BUFFERS; unmap <= (message ? UNMAP_MESSAGE
							  : flat  ? UNMAP_BUFFERS
								  : UNMAP_VECTOR);
		     unmap++) {
			test_case("call %u, %d", call, unmap);
			http_start_connected();
			in("GET / HTTP/1.1\r\n\r\n");
			host.unmap = unmap;
			sys_transfer(call, FD, &piece, 1, -1, 0);
			host.unmap = UNMAP_NOTHING;
			CHECK_EQUAL(host_count(COUNT_READ_FAULT), 1);
			CHECK_EQUAL(opaque_reason(), OPAQUE_FRAMING);
			out(OK);
			CHECK_EQUAL(span_event(0).ended_by, call >= CALLS_IN ? END_UNFRAMED : END_RESPONSE);
			sys_close(FD);
			CHECK_EQUAL(span_events(), 1);
			CHECK_CLEAN();
		}
	}
}

TEST(discovery_that_cannot_be_read)
{
	static const struct host_piece piece = {"GET / HTTP/1.1\r\n\r\n", 18};

	for (enum host_call call = 0; call < CALLS_IN; call++) {
		for (int unmap = UNMAP_BUFFERS; unmap <= UNMAP_MESSAGE; unmap++) {
			if (unmap > UNMAP_BUFFERS && call < CALL_READV)
				continue;
			if (unmap == UNMAP_MESSAGE && call != CALL_RECVMSG)
				continue;
			test_case("call %u, %d", call, unmap);
			start();
			host_open(FD, &host_tcp);
			host.unmap = unmap;
			sys_transfer(call, FD, &piece, 1, -1, 0);
			CHECK_EQUAL(host_map_count("connections"), 0);
			CHECK_EQUAL(host_events(), 0);
		}
	}
}

/* Cannot happen with memory that is there; a program must stay whole all the same. */
TEST(every_read_of_kernel_memory_fails_once)
{
	__u64 reads;

	start();
	busy_day();
	reads = host.reads_kernel;
	CHECK(reads > 100);
	for (__u64 i = 1; i <= reads; i++) {
		test_case("read %llu of %llu", i, reads);
		start();
		host.fail_read_kernel = i;
		busy_day();
		/* A close or a duplicate that could not be seen leaves its connection to the agent. */
		CHECK(host_map_count("connections") <= 1);
		CHECK(span_events() <= 7);
	}
}

TEST(every_update_of_a_map_fails_once)
{
	__u64 updates;

	start();
	busy_day();
	updates = host.updates;
	CHECK(updates >= 3);
	for (__u64 i = 1; i <= updates; i++) {
		test_case("update %llu of %llu", i, updates);
		start();
		host.fail_update = i;
		busy_day();
		check_day();
		CHECK(host_count(COUNT_CONNECTIONS_FULL) + host_count(COUNT_QUEUE_FULL) +
			      host_count(COUNT_TASKS_FULL) ==
		      1);
		CHECK_CLEAN();
	}
}

TEST(every_event_is_lost_once)
{
	__u64 events;

	start();
	busy_day();
	events = host.rings;
	for (__u64 i = 1; i <= events; i++) {
		test_case("event %llu of %llu", i, events);
		start();
		host.fail_ring = i;
		busy_day();
		check_day();
		CHECK_EQUAL(host_events(), events - 1);
		CHECK_EQUAL(host_count(COUNT_EVENT_LOST), 1);
		CHECK_CLEAN();
	}
}
