/* Descriptors, connections, threads: what belongs together, and when it ends. */
#include "http.h"
#include "testing.h"

#include <string.h>

#define GET "GET / HTTP/1.1\r\n\r\n"
#define OK "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

static void serve_at(int fd)
{
	in_at(fd, GET, sizeof(GET) - 1);
	out_at(fd, OK, sizeof(OK) - 1);
}

static bool is_active(__u64 key)
{
	struct active_spans found;

	return host_is_active(PID, key, &found);
}

/* ---- whose traffic is looked at */

TEST(both_accepts)
{
	http_start();
	sys_accept(FD, &host_tcp);
	sys_accept_old(FD + 1, &host_tcp);
	serve_at(FD);
	serve_at(FD + 1);
	CHECK_EQUAL(span_events(), 2);
}

TEST(process_that_is_no_target)
{
	http_start();
	host_thread(PID + 1, TID + 1);
	sys_accept(FD, &host_tcp);
	serve_at(FD);
	sys_dup(FD, FD + 1);
	sys_shutdown(FD, 1);
	sys_sendfile(FD, 5);
	sys_epoll_wait(0);
	sys_thread_exit();
	sys_close(FD);
	CHECK_EQUAL(host_events(), 0);
	CHECK_EQUAL(host_map_count("connections"), 0);
	CHECK_EQUAL(host.updates, 0);
}

TEST(older_connections_on_which_no_request_begins)
{
	http_start();
	host_open(FD, &host_tcp);
	in_at(FD, GET, sizeof(GET) - 1); /* nothing listens at its port */
	out_at(FD, OK, sizeof(OK) - 1);
	CHECK_EQUAL(host_events(), 0);
	CHECK_EQUAL(host_map_count("connections"), 0);
}

TEST(what_is_no_stream_socket)
{
	static const struct host_socket datagram = {.family = FAMILY_INET, .type = 2, .local_port = 8080};
	static const struct host_socket netlink = {.family = 16, .type = 1};

	http_start();
	host_open_file(3);
	in_at(3, GET, sizeof(GET) - 1);
	out_at(3, OK, sizeof(OK) - 1);
	sys_sendfile(3, 10);
	sys_close(3);
	sys_accept(4, &datagram);
	serve_at(4);
	sys_accept(5, &netlink);
	serve_at(5);
	in_at(6, GET, sizeof(GET) - 1); /* not open at all */
	sys_close(6);
	CHECK_EQUAL(host_map_count("connections"), 0);
	CHECK_EQUAL(host_events(), 0);
}

TEST(nothing_is_read_of_a_failed_call)
{
	static const struct host_piece piece = {GET, sizeof(GET) - 1};

	http_start_connected();
	for (enum host_call call = 0; call < CALL_MAX; call++)
		sys_transfer(call, FD, &piece, 1, 0, 0);
	sys_sendfile(FD, -11);
	sys_sendfile(FD, 0);
	CHECK_EQUAL(host.reads_user, 0);
	CHECK_EQUAL(host_events(), 0);
}

TEST(descriptors_out_of_range)
{
	static const struct host_piece piece = {GET, sizeof(GET) - 1};

	http_start();
	sys_transfer(CALL_READ, -1, &piece, 1, -1, 0);
	sys_transfer(CALL_READ, 64, &piece, 1, -1, 0);
	sys_transfer(CALL_READ, 0x7fffffff, &piece, 1, -1, 0);
	CHECK_EQUAL(host_events(), 0);
}

/* ---- calls */

TEST(peeked_bytes_are_not_read_twice)
{
	static const struct host_piece peeked = {GET, 12};
	static const struct host_piece whole = {GET, sizeof(GET) - 1};

	http_start_connected();
	sys_transfer(CALL_RECVFROM, FD, &peeked, 1, -1, FLAG_PEEK);
	sys_transfer(CALL_RECVMSG, FD, &peeked, 1, -1, FLAG_PEEK);
	sys_transfer(CALL_RECVFROM, FD, &whole, 1, -1, 0);
	out(OK);
	CHECK_EQUAL(span_events(), 1);
	CHECK_NO_DROPS();
}

/* axum's server reads 24 bytes, to tell HTTP/2 from HTTP/1, and then the rest. */
TEST(first_24_bytes_then_the_rest)
{
	static const char head[] = "GET /api/users/17 HTTP/1.1\r\nHost: a\r\n\r\n";

	http_start_connected();
	in_at(FD, head, 24);
	in_at(FD, head + 24, sizeof(head) - 1 - 24);
	out(OK);
	CHECK_TARGET(span_event(0), "/api/users/17");
	CHECK_NO_DROPS();
}

/* A call may fill or empty less than its buffers: the rest of them is not of it. */
TEST(calls_that_transfer_less_than_their_buffers)
{
#define JUNK "JUNK\n\n\n\n"
	const struct host_piece request[] = {{GET, 10}, {GET JUNK, 0}, {&GET[10], sizeof(GET) - 11}, {JUNK, 8}};
	const struct host_piece response[] = {{OK JUNK, sizeof(OK JUNK) - 1}, {JUNK, 8}};

	http_start_connected();
	sys_transfer(CALL_READV, FD, request, 4, sizeof(GET) - 1, 0);
	sys_transfer(CALL_SENDMSG, FD, response, 2, sizeof(OK) - 1, 0);
	CHECK_EQUAL(span_events(), 1);
	sys_transfer(CALL_RECVMSG, FD, request, 4, 4, 0);
	sys_transfer(CALL_RECVFROM, FD, &(struct host_piece){&GET[4], sizeof(GET)}, 1, sizeof(GET) - 5, 0);
	sys_transfer(CALL_WRITEV, FD, response, 2, sizeof(OK) - 1, 0);
	CHECK_EQUAL(span_events(), 2);
	CHECK_NO_DROPS();
}

TEST(vector_of_single_bytes)
{
	struct host_piece pieces[sizeof(GET) * 2];
	size_t nr = 0;

	for (size_t i = 0; i < sizeof(GET) - 1; i++) {
		pieces[nr++] = (struct host_piece){&GET[i], 0};
		pieces[nr++] = (struct host_piece){&GET[i], 1};
	}
	http_start_connected();
	sys_transfer(CALL_READV, FD, pieces, nr, -1, 0);
	out(OK);
	CHECK_EQUAL(span_events(), 1);
	CHECK_NO_DROPS();
}

/* ---- sendfile */

#define HEAD_OF_5 "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"

TEST(sendfile_of_a_counted_body)
{
	http_start_connected();
	in(GET GET);
	out(HEAD_OF_5);
	sys_sendfile(FD, 3);
	CHECK_EQUAL(span_events(), 0);
	sys_sendfile(FD, 2);
	CHECK_EQUAL(span_event(0).status, 200);
	CHECK_EQUAL(span_event(0).ended_by, END_RESPONSE);
	CHECK(is_active(thread_task_key(TID)));
	out(HEAD_OF_5 "he");
	sys_sendfile(FD, 3);
	CHECK_EQUAL(span_events(), 2);
	CHECK_NO_DROPS();
	sys_close(FD);
	CHECK_CLEAN();
}

TEST(sendfile_of_a_chunk)
{
	http_start_connected();
	in(GET);
	out("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n");
	sys_sendfile(FD, 5);
	out("\r\n5\r\n");
	sys_sendfile(FD, 5);
	out("\r\n0\r\n\r\n");
	CHECK_EQUAL(span_event(0).ended_by, END_RESPONSE);
	CHECK_NO_DROPS();
}

TEST(sendfile_until_close)
{
	http_start_connected();
	in(GET);
	out("HTTP/1.1 200 OK\r\n\r\n");
	sys_sendfile(FD, 100000);
	sys_close(FD);
	CHECK_EQUAL(span_event(0).ended_by, END_RESPONSE);
	CHECK_NO_DROPS();
}

TEST(sendfile_of_more_than_the_body)
{
	http_start_connected();
	in(GET);
	out(HEAD_OF_5);
	sys_sendfile(FD, 6);
	CHECK_EQUAL(span_event(0).ended_by, END_RESPONSE); /* it was whole before the sixth */
	CHECK_EQUAL(opaque_reason(), OPAQUE_FRAMING);
	sys_sendfile(FD, 6);
	sys_close(FD);
	CHECK_EQUAL(span_events(), 1);
	CHECK_CLEAN();
}

TEST(sendfile_of_a_head)
{
	http_start_connected();
	in(GET);
	sys_sendfile(FD, 100);
	CHECK_EQUAL(span_event(0).ended_by, END_UNFRAMED);
	CHECK_EQUAL(span_event(0).status, 0);
	sys_close(FD);
	CHECK_CLEAN();
}

/* ---- descriptors */

TEST(duplicate_keeps_the_connection)
{
	http_start_connected();
	in(GET);
	sys_dup(FD, 20);
	sys_fcntl_dup(20, 21, false);
	sys_fcntl_dup(20, 22, true);
	sys_dup2(22, 23);
	sys_dup3(FD, 24);
	sys_close(FD);
	sys_close(21);
	sys_close(22);
	sys_close(24);
	sys_close(20);
	CHECK_EQUAL(span_events(), 0);
	out_at(23, OK, sizeof(OK) - 1);
	CHECK_EQUAL(span_event(0).status, 200);
	serve_at(23);
	CHECK_EQUAL(span_events(), 2);
	sys_close(23);
	CHECK_CLEAN();
	CHECK_NO_DROPS();
}

TEST(duplicates_that_fail)
{
	http_start_connected();
	sys_dup(30, 31); /* not open */
	sys_dup2(30, 31);
	sys_dup3(30, 31);
	sys_fcntl_dup(30, 31, false);
	sys_fcntl_getfl(FD);
	serve_at(FD);
	sys_close(FD);
	CHECK_EQUAL(span_events(), 1);
	CHECK_CLEAN();
}

TEST(dup2_closes_what_it_takes)
{
	http_start_connected();
	sys_accept(FD + 1, &host_tcp);
	in(GET);
	sys_dup2(FD + 1, FD);
	CHECK_EQUAL(span_event(0).ended_by, END_CLOSED);
	CHECK_EQUAL(host_map_count("connections"), 1);
	serve_at(FD);
	sys_close(FD + 1);
	serve_at(FD);
	sys_close(FD);
	CHECK_EQUAL(span_events(), 3);
	CHECK_CLEAN();
}

TEST(dup3_closes_what_it_takes)
{
	http_start_connected();
	host_open_file(FD + 1);
	in(GET);
	sys_dup3(FD + 1, FD);
	CHECK_EQUAL(span_event(0).ended_by, END_CLOSED);
	CHECK_CLEAN();
}

/* dup2 of a descriptor to itself does nothing at all, dup3 refuses. */
TEST(dup_to_itself)
{
	http_start_connected();
	in(GET);
	sys_dup2(FD, FD);
	sys_dup3(FD, FD);
	CHECK_EQUAL(span_events(), 0);
	out(OK);
	CHECK_EQUAL(span_event(0).ended_by, END_RESPONSE);
	sys_close(FD);
	CHECK_CLEAN();
}

/* dup2 of a descriptor that is not open closes nothing. */
TEST(dup_of_nothing_over_a_connection)
{
	http_start_connected();
	in(GET);
	sys_dup2(30, FD);
	sys_dup3(30, FD);
	CHECK_EQUAL(span_events(), 0);
	out(OK);
	CHECK_EQUAL(span_event(0).ended_by, END_RESPONSE);
	sys_close(FD);
	CHECK_CLEAN();
}

TEST(dup2_to_another_descriptor_of_the_same_connection)
{
	http_start_connected();
	in(GET);
	sys_dup(FD, 20);
	sys_dup2(FD, 20);
	sys_close(FD);
	CHECK_EQUAL(span_events(), 0);
	out_at(20, OK, sizeof(OK) - 1);
	sys_close(20);
	CHECK_EQUAL(span_event(0).ended_by, END_RESPONSE);
	CHECK_CLEAN();
}

TEST(number_is_used_again)
{
	http_start_connected();
	in("POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\nhalf a body");
	sys_close(FD);
	CHECK_EQUAL(span_event(0).ended_by, END_CLOSED);
	sys_accept(FD, &host_tcp);
	serve_at(FD);
	CHECK_EQUAL(span_event(1).status, 200);
	sys_close(FD);
	CHECK_CLEAN();
}

/* Even the socket's address comes back; its inode number does not. */
TEST(number_and_address_are_used_again)
{
	http_start_connected();
	in("GET / HTTP/1.1\r\nHo");
	sys_close(FD);
	host_reuse_address();
	sys_accept(FD, &host_tcp);
	serve_at(FD);
	CHECK_EQUAL(span_event(0).status, 200);
	sys_close(FD);
	/* A close that nobody saw: of the process's end, of close_range(2). */
	sys_accept(FD, &host_tcp);
	in("GET / HTTP/1.1\r\nHo");
	host_hide_target(PID);
	sys_close(FD);
	host_show_target(PID, &(struct target){.sample_below = ~0ULL});
	host_reuse_address();
	sys_accept(FD, &host_tcp);
	serve_at(FD);
	CHECK_EQUAL(span_event(1).status, 200);
	/* And the next to have the address is one that the target opened itself. */
	in(GET);
	host_hide_target(PID);
	sys_close(FD);
	host_show_target(PID, &(struct target){.sample_below = ~0ULL});
	host_reuse_address();
	host_open(FD, &host_tcp);
	out(OK);
	CHECK_EQUAL(span_events(), 2);
}

TEST(number_is_used_again_for_a_file)
{
	http_start_connected();
	in(GET);
	sys_close(FD);
	host_open_file(FD);
	out(OK);
	in(GET);
	CHECK_EQUAL(span_events(), 1);
	CHECK_EQUAL(span_event(0).ended_by, END_CLOSED);
	CHECK_CLEAN();
}

/* ---- shutdown */

TEST(shutdown_ends_a_response_until_close)
{
	for (int how = 1; how < 3; how++) {
		http_start_connected();
		in(GET);
		out("HTTP/1.1 200 OK\r\n\r\nsome");
		sys_shutdown(FD, how);
		CHECK_EQUAL(span_event(0).ended_by, END_RESPONSE);
		sys_close(FD);
		CHECK_EQUAL(span_events(), 1);
		CHECK_CLEAN();
	}
}

TEST(shutdown_before_the_response)
{
	http_start_connected();
	in(GET GET);
	sys_shutdown(FD, 1);
	CHECK_EQUAL(span_event(0).ended_by, END_CLOSED);
	sys_shutdown(FD, 1);
	in(GET);
	sys_close(FD);
	CHECK_EQUAL(span_events(), 1);
	CHECK_CLEAN();
}

TEST(shutdown_after_the_response)
{
	http_start_connected();
	in(GET);
	out(OK);
	sys_shutdown(FD, 1);
	sys_close(FD);
	CHECK_EQUAL(span_events(), 1);
	CHECK_NO_DROPS();
	CHECK_CLEAN();
}

TEST(shutdown_of_the_way_in)
{
	http_start_connected();
	in(GET);
	sys_shutdown(FD, 0);
	out(OK);
	CHECK_EQUAL(span_event(0).ended_by, END_RESPONSE);
	CHECK_EQUAL(span_event(0).status, 200);
}

/* ---- tasks and threads */

TEST(active_while_it_is_handled)
{
	struct active_spans found;

	http_start_connected();
	in("GET / HTTP/1.1\r\n");
	CHECK(!is_active(thread_task_key(TID)));
	in("\r\n");
	CHECK(host_is_active(PID, thread_task_key(TID), &found));
	out("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no");
	CHECK(is_active(thread_task_key(TID)));
	out("k");
	CHECK(!is_active(thread_task_key(TID)));
	CHECK_EQUAL(span_event(0).span_id, found.active.span_id);
	CHECK_EQUAL(span_event(0).trace_id_low, found.active.trace_id_low);
	CHECK_EQUAL(span_event(0).trace_id_high, found.active.trace_id_high);
	CHECK_EQUAL(found.server.kind, FRAME_SERVER);
	CHECK_EQUAL(host_live_slots(PID), 0);
}

TEST(two_requests_of_a_thread_hide_each_other)
{
	http_start_connected();
	sys_accept(FD + 1, &host_tcp);
	in(GET);
	CHECK(is_active(thread_task_key(TID)));
	in_at(FD + 1, GET, sizeof(GET) - 1);
	CHECK(!is_active(thread_task_key(TID)));
	out(OK);
	CHECK(is_active(thread_task_key(TID)));
	out_at(FD + 1, OK, sizeof(OK) - 1);
	CHECK_EQUAL(span_events(), 2);
	sys_close(FD);
	sys_close(FD + 1);
	CHECK_CLEAN();
	CHECK_NO_DROPS();
}

TEST(many_connections_of_a_thread)
{
	http_start();
	for (int fd = 10; fd < 40; fd++) {
		sys_accept(fd, &host_tcp);
		in_at(fd, GET, sizeof(GET) - 1);
	}
	CHECK(!is_active(thread_task_key(TID)));
	/* Beyond SPANS_DEPTH they are counted; their spans come all the same. */
	CHECK_EQUAL(host_count(COUNT_STACK_FULL), 30 - SPANS_DEPTH);
	for (int fd = 10; fd < 40; fd++)
		out_at(fd, OK, sizeof(OK) - 1);
	CHECK_EQUAL(span_events(), 30);
	for (int fd = 10; fd < 40; fd++)
		sys_close(fd);
	CHECK_CLEAN();
}

TEST(answered_and_closed_by_other_threads)
{
	http_start_connected();
	in(GET);
	host_thread(PID, TID + 1);
	CHECK(!is_active(thread_task_key(TID + 1)));
	out(OK);
	CHECK_EQUAL(span_event(0).task_key, thread_task_key(TID));
	CHECK(!is_active(thread_task_key(TID)));
	in(GET);
	CHECK(is_active(thread_task_key(TID + 1)));
	host_thread(PID, TID + 2);
	sys_close(FD);
	CHECK_EQUAL(span_event(1).ended_by, END_CLOSED);
	CHECK_CLEAN();
}

TEST(task_keeps_its_key_on_every_thread)
{
	http_start_tokio(17);
	sys_accept(FD, &host_tcp);
	in(GET);
	CHECK(is_active(17));
	CHECK(!is_active(thread_task_key(TID)));
	host_tokio_task(0);
	/* The worker goes back to its loop: the task's span stays. */
	sys_epoll_wait(0);
	CHECK(is_active(17));
	host_thread(PID, TID + 1);
	host_tokio_task(17);
	out(OK);
	CHECK_EQUAL(span_event(0).task_key, 17);
	CHECK_EQUAL(host_live_slots(PID), 0);
}

TEST(requests_of_two_tasks_of_a_thread)
{
	struct active_spans first, second;

	http_start_tokio(17);
	sys_accept(FD, &host_tcp);
	sys_accept(FD + 1, &host_tcp);
	in(GET);
	host_tokio_task(18);
	in_at(FD + 1, GET, sizeof(GET) - 1);
	CHECK(host_is_active(PID, 17, &first));
	CHECK(host_is_active(PID, 18, &second));
	CHECK(first.active.span_id != second.active.span_id);
	CHECK(first.active.trace_id_low != second.active.trace_id_low);
	out_at(FD + 1, OK, sizeof(OK) - 1);
	CHECK(is_active(17));
	CHECK(!is_active(18));
	host_tokio_task(17);
	out(OK);
	CHECK_EQUAL(host_live_slots(PID), 0);
}

TEST(pipelined_request_is_of_the_task_that_answered_the_one_before)
{
	struct active_spans found;

	http_start_tokio(17);
	sys_accept(FD, &host_tcp);
	in("GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n");
	CHECK(host_is_active(PID, 17, &found));
	host_tokio_task(18);
	out(OK);
	CHECK(!is_active(17));
	CHECK(is_active(18));
	out(OK);
	CHECK_EQUAL(span_event(0).span_id, found.active.span_id);
	CHECK_TARGET(span_event(1), "/b");
	CHECK_EQUAL(span_event(1).task_key, 18);
	CHECK_EQUAL(host_live_slots(PID), 0);
}

TEST(no_task_is_running)
{
	http_start_tokio(0);
	sys_accept(FD, &host_tcp);
	in(GET);
	CHECK(is_active(thread_task_key(TID)));
}

/* What could be taken for a thread's key is not believed. */
TEST(task_id_with_the_thread_bit)
{
	http_start_tokio(TASK_KEY_THREAD | 5);
	sys_accept(FD, &host_tcp);
	in(GET);
	CHECK(is_active(thread_task_key(TID)));
	CHECK(!is_active(TASK_KEY_THREAD | 5));
}

/* What a task that is gone left beside the tag is no task id. */
TEST(task_id_counts_as_its_tag_says)
{
	static const __u64 none[] = {0, 2, 1ULL << 32, 1ULL << 32 | 1};

	http_start_tokio_tagged(17, 1);
	sys_accept(FD, &host_tcp);
	in(GET);
	CHECK(is_active(17));
	CHECK(!is_active(thread_task_key(TID)));
	for (unsigned i = 0; i < sizeof(none) / sizeof(none[0]); i++) {
		http_start_tokio_tagged(17, none[i]);
		sys_accept(FD, &host_tcp);
		in(GET);
		CHECK(!is_active(17));
		CHECK(is_active(thread_task_key(TID)));
	}
	http_start_tokio_tagged(0, 1);
	sys_accept(FD, &host_tcp);
	in(GET);
	CHECK(is_active(thread_task_key(TID)));
}

TEST(unreadable_task_id)
{
	http_start_tokio(17);
	sys_accept(FD, &host_tcp);
	host_thread_local_readable(false);
	in(GET);
	CHECK(is_active(thread_task_key(TID)));
	CHECK_EQUAL(host_count(COUNT_READ_FAULT), 1);
	out(OK);
	CHECK_EQUAL(span_events(), 1);
	CHECK_EQUAL(host_live_slots(PID), 0);
}

/* A thread that waits has nothing in hand; the request goes on without being active. */
TEST(waiting_thread_has_nothing_active)
{
	for (int i = 0; i < 4; i++) {
		http_start_connected();
		in(GET);
		if (i < 3)
			sys_epoll_wait(i);
		else
			sys_thread_exit();
		CHECK(!is_active(thread_task_key(TID)));
		CHECK_EQUAL(host_live_slots(PID), 0);
		out(OK);
		CHECK_EQUAL(span_event(0).status, 200);
		sys_close(FD);
		CHECK_CLEAN();
		CHECK_NO_DROPS();
	}
}

/* ---- pipelining */

#define QUEUE_MAX 16

TEST(queue_at_its_limit)
{
	http_start_connected();
	for (int i = 0; i <= QUEUE_MAX; i++) {
		char head[100];

		snprintf(head, sizeof(head), "GET /%d HTTP/1.1\r\n\r\n", i);
		in(head);
		CHECK_EQUAL(host_live_frames(PID), 1);
	}
	CHECK_EQUAL(host_map_count("queued_requests"), QUEUE_MAX);
	for (int i = 0; i <= QUEUE_MAX; i++) {
		char target[100];

		out(OK);
		snprintf(target, sizeof(target), "/%d", i);
		CHECK_TARGET(span_event((__u32)i), target);
	}
	CHECK_EQUAL(host_map_count("queued_requests"), 0);
	CHECK_NO_DROPS();
	serve_at(FD);
	CHECK_EQUAL(span_events(), QUEUE_MAX + 2);
	sys_close(FD);
	CHECK_CLEAN();
}

TEST(queue_over_its_limit)
{
	http_start_connected();
	for (int i = 0; i < QUEUE_MAX + 5; i++)
		in(GET);
	CHECK_EQUAL(opaque_reason(), OPAQUE_QUEUE_FULL);
	CHECK_EQUAL(host_count(COUNT_QUEUE_FULL), 1);
	for (int i = 0; i < QUEUE_MAX + 5; i++)
		out(OK);
	/* Those that were kept are answered in order; then nobody knows whose response it is. */
	CHECK_EQUAL(span_events(), QUEUE_MAX + 1);
	sys_close(FD);
	CHECK_CLEAN();
}

TEST(map_of_queued_requests_full)
{
	http_start_connected();
	host_map_limit("queued_requests", 1);
	in(GET GET GET);
	out(OK OK OK);
	CHECK_EQUAL(opaque_reason(), OPAQUE_QUEUE_FULL);
	CHECK_EQUAL(span_events(), 2);
	sys_close(FD);
	CHECK_CLEAN();
}

TEST(queue_is_dropped_at_close)
{
	http_start_connected();
	for (int i = 0; i < 10; i++)
		serve_at(FD);
	in(GET GET GET GET);
	out(OK);
	sys_close(FD);
	CHECK_EQUAL(span_events(), 12);
	CHECK_CLEAN();
}

TEST(queues_of_two_connections)
{
	http_start_connected();
	sys_accept(FD + 1, &host_tcp);
	in("GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n");
	in_at(FD + 1, "GET /c HTTP/1.1\r\n\r\nGET /d HTTP/1.1\r\n\r\n", 38);
	out(OK OK);
	out_at(FD + 1, OK OK, 2 * (sizeof(OK) - 1));
	CHECK_TARGET(span_event(0), "/a");
	CHECK_TARGET(span_event(1), "/b");
	CHECK_TARGET(span_event(2), "/c");
	CHECK_TARGET(span_event(3), "/d");
	sys_close(FD);
	sys_close(FD + 1);
	CHECK_CLEAN();
}

/* ---- limits */

TEST(connections_full)
{
	http_start();
	host_map_limit("connections", 1);
	sys_accept(FD, &host_tcp);
	sys_accept(FD + 1, &host_tcp);
	CHECK_EQUAL(host_count(COUNT_CONNECTIONS_FULL), 1);
	serve_at(FD + 1);
	CHECK_EQUAL(span_events(), 0);
	serve_at(FD);
	CHECK_EQUAL(span_events(), 1);
	sys_close(FD + 1);
	sys_close(FD);
	CHECK_CLEAN();
	sys_accept(FD, &host_tcp);
	serve_at(FD);
	CHECK_EQUAL(span_events(), 2);
}

TEST(ring_buffer_full)
{
	http_start_connected();
	host.fail_every_ring = true;
	serve_at(FD);
	serve_at(FD);
	out(OK); /* a response without a request is said, or would be */
	CHECK_EQUAL(host_events(), 0);
	CHECK_EQUAL(host_count(COUNT_EVENT_LOST), 3);
	sys_close(FD);
	CHECK_CLEAN();
}

TEST(agent_is_woken_when_the_ring_fills)
{
	http_start_connected();
	serve_at(FD);
	CHECK_EQUAL(host.ring_wakeups, 0);
	host.ring_fill = 5 << 20;
	serve_at(FD);
	CHECK_EQUAL(host.ring_wakeups, 1);
	CHECK_EQUAL(span_events(), 2);
}

/* A bucket of spans_in_progress is full: the span comes, it only is not active. */
TEST(tasks_full)
{
	__u32 nr = 0;

	http_start_tokio(1);
	for (__u64 task = 2; nr < SPANS_BUCKET_SLOTS; task++) {
		if (spans_bucket_of(task) != spans_bucket_of(1))
			continue;
		host_tokio_task(task);
		sys_accept(10 + (int)nr, &host_tcp);
		in_at(10 + (int)nr++, GET, sizeof(GET) - 1);
		CHECK(is_active(task));
	}
	host_tokio_task(1);
	sys_accept(FD, &host_tcp);
	in(GET);
	CHECK(!is_active(1));
	CHECK_EQUAL(host_count(COUNT_TASKS_FULL), 1);
	out(OK);
	CHECK_EQUAL(span_events(), 1);
	for (__u32 i = 0; i < nr; i++)
		sys_close(10 + (int)i);
	sys_close(FD);
	CHECK_CLEAN();
}

TEST(target_without_its_map)
{
	http_start_connected();
	host_map_delete("spans_in_progress", &(__u32){PID});
	serve_at(FD);
	sys_epoll_wait(0);
	CHECK_EQUAL(span_events(), 1);
}

/* ---- TLS */

#define CLIENT_HELLO "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\n\n"

TEST(tls)
{
	http_start_connected();
	in(CLIENT_HELLO);
	out_at(FD, "\x16\x03\x03\n\n", 5);
	in("\x17\x03\x03\n\n");
	CHECK_EQUAL(opaque_reason(), OPAQUE_TLS);
	CHECK_EQUAL(host_count(COUNT_TLS), 1);
	sys_close(FD);
	CHECK_EQUAL(host_events(), 1);
	CHECK_CLEAN();
}

/* ---- connections that were open before */

static void listen_on(__u32 pid, __u32 port)
{
	__u32 key[2] = {pid, port};

	host_map_update("listening", key, &(__u8){1});
}

static void start_open(void)
{
	http_start();
	listen_on(PID, host_tcp.local_port);
	host_open(FD, &host_tcp);
}

TEST(discovered_by_each_call)
{
	for (enum host_call call = 0; call < CALLS_IN; call++) {
		static const struct host_piece piece = {GET, sizeof(GET) - 1};

		start_open();
		sys_transfer(call, FD, &piece, 1, -1, 0);
		out(OK);
		CHECK_EQUAL(span_event(0).status, 200);
		CHECK_EQUAL(span_event(0).addresses.peer_port, 40000);
		sys_close(FD);
		CHECK_CLEAN();
		CHECK_NO_DROPS();
	}
}

TEST(discovered_by_each_method)
{
	static const char *const methods[] = {"GET",	"POST",	   "PUT",   "HEAD",    "PATCH",
					      "DELETE", "OPTIONS", "TRACE", "CONNECT", "LOCK"};

	for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
		char head[100];

		test_case("%s", methods[i]);
		start_open();
		snprintf(head, sizeof(head), "%s / HTTP/1.1\r\n\r\n", methods[i]);
		in(head);
		out("HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n");
		CHECK_EQUAL(span_events(), 1);
	}
}

TEST(discovered_in_the_middle_of_a_body)
{
	static const char *const bodies[] = {
		"{\"user\": \"GET / HTTP/1.1\"}",
		"name=POST &x=y&z=GET /",
		"\x16\x03\x01\x02\x00\x01\x00\x01",
		"\x80\x81\x82\x83\x84\x85\x86\x87\x88",
		"GETTINGUP / HTTP/1.1\r\n",
		"ge / HTTP/1.1\r\n\r\n",
		"AB CDEFGHIJK",
		"        GET / HTTP/1.1",
		"\r\nGET / HTTP/1.1\r\n\r\n",
		"HTTP/1.1 200 OK\r\n\r\n",
	};

	for (size_t i = 0; i < sizeof(bodies) / sizeof(bodies[0]); i++) {
		test_case("%s", bodies[i]);
		start_open();
		in(bodies[i]);
		CHECK_EQUAL(host_map_count("connections"), 0);
		/* It is one from its next request on. */
		in(GET);
		out(OK);
		CHECK_EQUAL(span_events(), 1);
		CHECK_EQUAL(opaque_reason(), 0);
	}
}

TEST(not_discovered)
{
	static const struct host_piece piece = {GET, sizeof(GET) - 1};
	static const struct host_socket datagram = {.family = FAMILY_INET, .type = 2, .local_port = 8080};
	static const struct host_socket other_port = {.family = FAMILY_INET, .type = 1, .local_port = 8081};

	start_open();
	sys_transfer(CALL_RECVFROM, FD, &piece, 1, -1, FLAG_PEEK);
	CHECK_EQUAL(host_map_count("connections"), 0);
	out(GET);
	CHECK_EQUAL(host_map_count("connections"), 0);
	in_at(FD, GET, 7);
	CHECK_EQUAL(host_map_count("connections"), 0);
	host_open(FD + 1, &datagram);
	in_at(FD + 1, GET, sizeof(GET) - 1);
	CHECK_EQUAL(host_map_count("connections"), 0);
	host_open(FD + 2, &other_port);
	in_at(FD + 2, GET, sizeof(GET) - 1);
	CHECK_EQUAL(host_map_count("connections"), 0);
	/* Another target listens on that port. */
	listen_on(PID + 1, 8081);
	in_at(FD + 2, GET, sizeof(GET) - 1);
	CHECK_EQUAL(host_map_count("connections"), 0);
	CHECK_EQUAL(host_events(), 0);
}

TEST(discovered_with_connections_full)
{
	start_open();
	host_map_limit("connections", 0);
	in(GET);
	out(OK);
	CHECK_EQUAL(host_count(COUNT_CONNECTIONS_FULL), 1);
	CHECK_EQUAL(host_events(), 0);
}

/* Its descriptors were not counted: the first close ends what is open, and no event is invented. */
TEST(discovered_with_an_unknown_duplicate)
{
	http_start();
	host_open(FD, &host_tcp);
	host_hide_target(PID);
	sys_dup(FD, 20);
	host_show_target(PID, &(struct target){.sample_below = ~0ULL});
	listen_on(PID, 8080);
	in(GET);
	sys_close(20);
	CHECK_EQUAL(span_event(0).ended_by, END_CLOSED);
	out(OK);
	CHECK_EQUAL(span_events(), 1);
	in(GET);
	out(OK);
	CHECK_EQUAL(span_events(), 2);
	sys_close(FD);
	CHECK_CLEAN();
}

/* ---- two threads in one connection at once */

static void (*meanwhile)(void);

static void on_another_thread(void)
{
	host_thread(PID, TID + 1);
	meanwhile();
	host_thread(PID, TID);
}

/* One call with many small buffers, each of which is two reads of target memory. */
static void transfer_in_buffers(enum host_call call, const char *text)
{
	struct host_piece pieces[40];
	size_t nr = 0;

	for (size_t size = strlen(text), at = 0; at < size; at += 5)
		pieces[nr++] = (struct host_piece){text + at, size - at < 5 ? size - at : 5};
	sys_transfer(call, FD, pieces, nr, -1, 0);
}

static void hook_at(__u64 read, void (*what)(void))
{
	meanwhile = what;
	host.hook = on_another_thread;
	host.hook_at = host.reads_user + read;
}

static void respond(void)
{
	out(OK);
}

static void respond_by_sendfile(void)
{
	sys_sendfile(FD, 5);
}

static void request(void)
{
	in(GET);
}

static void close_it(void)
{
	sys_close(FD);
}

static void shut_it(void)
{
	sys_shutdown(FD, 1);
}

static void duplicate_it(void)
{
	sys_dup(FD, 20);
	sys_close(20);
}

/* The response is lost, so nothing on this connection can be told any more. */
TEST(response_while_the_request_body_is_read)
{
	for (__u64 read = 1; read < 8; read++) {
		test_case("at read %llu", read);
		http_start_connected();
		in("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
		hook_at(read, respond);
		transfer_in_buffers(CALL_READV, "5\r\nhello\r\n5\r\nhello\r\n0\r\n\r\n");
		CHECK_EQUAL(host.hook_at, 0);
		CHECK_EQUAL(host_count(COUNT_CONNECTION_BUSY), 1);
		in(GET);
		out(OK);
		CHECK_EQUAL(span_events(), 1);
		CHECK_EQUAL(span_event(0).ended_by, END_UNFRAMED);
		CHECK_EQUAL(span_event(0).status, 0);
		CHECK_EQUAL(opaque_reason(), OPAQUE_BUSY);
		sys_close(FD);
		CHECK_CLEAN();
	}
}

/* A request is lost: what was known before goes on, what comes after is not guessed at. */
TEST(request_while_the_response_is_written)
{
	for (__u64 read = 1; read < 8; read++) {
		test_case("at read %llu", read);
		http_start_connected();
		in(GET);
		hook_at(read, request);
		transfer_in_buffers(CALL_WRITEV, OK);
		CHECK_EQUAL(host.hook_at, 0);
		CHECK_EQUAL(host_count(COUNT_CONNECTION_BUSY), 1);
		in(GET);
		out(OK);
		in(GET);
		out(OK);
		CHECK_EQUAL(span_events(), 1);
		CHECK_EQUAL(span_event(0).ended_by, END_RESPONSE);
		CHECK_EQUAL(opaque_reason(), OPAQUE_BUSY);
		sys_close(FD);
		CHECK_CLEAN();
	}
}

TEST(sendfile_while_a_request_is_read)
{
	for (__u64 read = 1; read < 8; read++) {
		test_case("at read %llu", read);
		http_start_connected();
		in(GET);
		out(HEAD_OF_5);
		hook_at(read, respond_by_sendfile);
		transfer_in_buffers(CALL_READV, GET);
		CHECK_EQUAL(host.hook_at, 0);
		CHECK_EQUAL(opaque_reason(), OPAQUE_BUSY);
		CHECK_EQUAL(span_events(), 1);
		CHECK_EQUAL(span_event(0).ended_by, END_UNFRAMED);
		sys_close(FD);
		CHECK_EQUAL(span_events(), 1);
		CHECK_CLEAN();
	}
}

/* Close is never lost, whatever another thread is in the middle of. */
TEST(close_while_a_request_is_read)
{
	for (__u64 read = 1; read < 8; read++) {
		test_case("at read %llu", read);
		http_start_connected();
		in(GET);
		hook_at(read, close_it);
		transfer_in_buffers(CALL_READV, GET GET GET);
		CHECK_EQUAL(host.hook_at, 0);
		CHECK_EQUAL(span_events(), 1);
		CHECK_EQUAL(span_event(0).ended_by, END_CLOSED);
		CHECK_CLEAN();
	}
}

TEST(close_while_a_response_is_written)
{
	for (__u64 read = 1; read < 8; read++) {
		test_case("at read %llu", read);
		http_start_connected();
		in(GET GET GET);
		hook_at(read, close_it);
		transfer_in_buffers(CALL_WRITEV, OK);
		CHECK_EQUAL(host.hook_at, 0);
		CHECK_EQUAL(span_events(), 2);
		CHECK_EQUAL(span_event(1).ended_by, END_CLOSED);
		CHECK_CLEAN();
	}
}

TEST(shutdown_and_dup_while_a_response_is_written)
{
	for (__u64 read = 1; read < 8; read++) {
		test_case("at read %llu", read);
		http_start_connected();
		in(GET);
		hook_at(read, shut_it);
		transfer_in_buffers(CALL_WRITEV, OK);
		sys_close(FD);
		CHECK_EQUAL(span_events(), 1);
		CHECK_CLEAN();

		http_start_connected();
		in(GET);
		hook_at(read, duplicate_it);
		transfer_in_buffers(CALL_WRITEV, OK);
		sys_close(FD);
		CHECK_EQUAL(span_event(0).ended_by, END_RESPONSE);
		CHECK_CLEAN();
	}
}
