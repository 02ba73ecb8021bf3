/* Connections that the target connected: client spans, what causes them, and what is no client span. */
#include "http.h"
#include "http_client.h"
#include "testing.h"

#include <string.h>

#define HEAD "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
#define OK "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
#define EMPTY "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
#define ONE_GET {METHOD_GET, 200, "/", END_RESPONSE}
#define SERVER_FD 20
#define TASK 7

#define SYS_ECONNRESET (-104)
#define SYS_EPIPE (-32)
#define SYS_ETIMEDOUT (-110)
#define SYS_EAGAIN (-11)
#define SYS_EINPROGRESS (-115)
#define SYS_ECONNREFUSED (-111)

/* ---- conversations, delivered in every way */

TEST(client_request)
{
	static const struct step steps[] = {
		OUT("GET /store?id=7 HTTP/1.1\r\nHost: localhost:8080\r\n\r\n"),
		IN("HTTP/1.1 201 Created\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nhello"),
	};
	static const struct want wanted[] = {{METHOD_GET, 201, "/store?id=7", END_RESPONSE}};

	CHECK_CLIENT_CONVERSATION(steps, wanted, 0);
}

TEST(client_keep_alive)
{
	static const struct step steps[] = {
		OUT("GET /a HTTP/1.1\r\n\r\n"),
		IN(OK),
		OUT("POST /b HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody"),
		IN("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"),
		OUT("PUT /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
		IN("HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nno\n\r\n0\r\n\r\n"),
		OUT("GET /d HTTP/1.1\r\n\r\n"),
		IN(OK),
	};
	static const struct want wanted[] = {
		{METHOD_GET, 200, "/a", END_RESPONSE},
		{METHOD_POST, 500, "/b", END_RESPONSE},
		{METHOD_PUT, 404, "/c", END_RESPONSE},
		{METHOD_GET, 200, "/d", END_RESPONSE},
	};

	CHECK_CLIENT_CONVERSATION(steps, wanted, 0);
}

TEST(client_pipelined)
{
	static const struct step steps[] = {
		OUT("GET /a HTTP/1.1\r\n\r\nPOST /b HTTP/1.1\r\nContent-Length: 4\r\n\r\nbodyGET /c "
		    "HTTP/1.1\r\n\r\nGE"),
		IN("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 201 OK\r\nContent-Le"),
		OUT("T /d HTTP/1.1\r\n\r\n"),
		IN("ngth: 0\r\n\r\nHTTP/1.1 202 OK\r\nContent-Length: 1\r\n\r\n."),
		IN("HTTP/1.1 204 No\r\n\r\n"),
	};
	static const struct want wanted[] = {
		{METHOD_GET, 200, "/a", END_RESPONSE},
		{METHOD_POST, 201, "/b", END_RESPONSE},
		{METHOD_GET, 202, "/c", END_RESPONSE},
		{METHOD_GET, 204, "/d", END_RESPONSE},
	};

	CHECK_CLIENT_CONVERSATION(steps, wanted, 0);
}

/* The next request may be sent while the body of the response before is still coming. */
TEST(client_request_in_the_response_body)
{
	static const struct step steps[] = {
		OUT("GET /a HTTP/1.1\r\n\r\n"),
		IN("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbo"),
		OUT("GET /b HTTP/1.1\r\n\r\n"),
		IN("dyHTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"),
	};
	static const struct want wanted[] = {
		{METHOD_GET, 200, "/a", END_RESPONSE},
		{METHOD_GET, 503, "/b", END_RESPONSE},
	};

	CHECK_CLIENT_CONVERSATION(steps, wanted, 0);
}

TEST(client_responses_without_a_body)
{
	static const struct step steps[] = {
		OUT("HEAD / HTTP/1.1\r\n\r\n"), IN("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"),
		OUT("GET / HTTP/1.1\r\n\r\n"),	IN("HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n"),
		OUT("GET / HTTP/1.1\r\n\r\n"),	IN("HTTP/1.1 204 No\r\n\r\n"),
	};
	static const struct want wanted[] = {
		{METHOD_HEAD, 200, "/", END_RESPONSE},
		{METHOD_GET, 304, "/", END_RESPONSE},
		{METHOD_GET, 204, "/", END_RESPONSE},
	};

	CHECK_CLIENT_CONVERSATION(steps, wanted, 0);
}

TEST(client_interim_responses)
{
	static const struct step steps[] = {
		OUT("POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"),
		IN("HTTP/1.1 100 Continue\r\n\r\n"),
		OUT("ok"),
		IN("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" OK),
	};
	static const struct want wanted[] = {{METHOD_POST, 200, "/", END_RESPONSE}};

	CHECK_CLIENT_CONVERSATION(steps, wanted, 0);
}

TEST(client_response_until_close)
{
	static const struct step steps[] = {OUT(HEAD), IN("HTTP/1.0 200 OK\r\n\r\nHTTP/1.1 500 No\r\n\r\n")};
	static const struct want wanted[] = {ONE_GET};

	CHECK_CLIENT_CONVERSATION(steps, wanted, 0);
}

TEST(client_response_before_the_request_body_has_ended)
{
	static const struct step steps[] = {
		OUT("POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nhello"),
		IN("HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n"),
		OUT("there" HEAD),
		IN(OK),
	};
	static const struct want wanted[] = {{METHOD_POST, 413, "/", END_RESPONSE}, ONE_GET};

	CHECK_CLIENT_CONVERSATION(steps, wanted, 0);
}

TEST(client_upgrade)
{
	static const struct step steps[] = {
		OUT("GET /ws HTTP/1.1\r\nUpgrade: websocket\r\n\r\n"),
		IN("HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x02ok"),
		OUT("\x81\x02ok" HEAD),
		IN(OK),
	};
	static const struct want wanted[] = {{METHOD_GET, 101, "/ws", END_UPGRADED}};

	CHECK_CLIENT_CONVERSATION(steps, wanted, 0);
}

TEST(client_of_a_proxy)
{
	static const struct step steps[] = {
		OUT("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"),
		IN("HTTP/1.1 200 OK\r\n\r\n\x16\x03\x03"),
		OUT("\x16\x03\x01\x02"),
	};
	static const struct want wanted[] = {{METHOD_CONNECT, 200, "a:443", END_UPGRADED}};

	CHECK_CLIENT_CONVERSATION(steps, wanted, 0);
}

TEST(client_closed_before_the_response)
{
	static const struct step steps[] = {OUT(HEAD)};
	static const struct want wanted[] = {{METHOD_GET, 0, "/", END_CLOSED}};

	CHECK_CLIENT_CONVERSATION(steps, wanted, 0);
}

TEST(client_closed_in_the_response_head)
{
	static const struct step steps[] = {OUT(HEAD), IN("HTTP/1.1 200 OK\r\nContent-Le")};
	static const struct want wanted[] = {{METHOD_GET, 200, "/", END_CLOSED}};

	CHECK_CLIENT_CONVERSATION(steps, wanted, 0);
}

/* Its status is known then. */
TEST(client_closed_in_the_response_body)
{
	static const struct step steps[] = {OUT(HEAD), IN("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhell")};
	static const struct want wanted[] = {ONE_GET};

	CHECK_CLIENT_CONVERSATION(steps, wanted, 0);
}

TEST(client_closed_in_the_request_head)
{
	static const struct step steps[] = {OUT("GET / HTTP/1.1\r\nHost: a\r\n")};

	CHECK_NO_CLIENT_SPANS(steps, 0);
}

/* Sent ahead, never answered: each of them failed. */
TEST(client_closed_with_requests_in_the_queue)
{
	static const struct step steps[] = {OUT("GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n" HEAD), IN(OK)};
	static const struct want wanted[] = {
		{METHOD_GET, 200, "/a", END_RESPONSE},
		{METHOD_GET, 0, "/b", END_CLOSED},
		{METHOD_GET, 0, "/", END_CLOSED},
	};

	CHECK_CLIENT_CONVERSATION(steps, wanted, 0);
}

TEST(client_response_malformed)
{
	static const struct step steps[] = {OUT(HEAD), IN("HTTP/1.1 two hundred\r\n\r\n")};
	static const struct want wanted[] = {{METHOD_GET, 0, "/", END_UNFRAMED}};

	CHECK_CLIENT_CONVERSATION(steps, wanted, OPAQUE_FRAMING);
}

TEST(client_second_request_malformed)
{
	static const struct step steps[] = {OUT(HEAD), IN(OK), OUT("GET / HTTP/1.1\r\n folded\r\n"), IN("x\r\n")};
	static const struct want wanted[] = {ONE_GET};

	CHECK_CLIENT_CONVERSATION(steps, wanted, OPAQUE_FRAMING);
}

/* ---- other protocols: nothing to be told of */

TEST(client_of_a_database)
{
	static const struct step steps[] = {
		OUT("\0\0\0\x08\x04\xd2\x16/"),
		IN("N"),
		OUT("\0\0\0&\0\3\0\0user\0postgres\0\0"),
		IN("R\0\0\0\x08\0\0\0\0\n\n\nHTTP/1.1 200 OK\r\n\r\n"),
		OUT(HEAD),
	};

	CHECK_NO_CLIENT_SPANS(steps, 0);
}

TEST(client_of_a_line_protocol)
{
	static const struct step steps[] = {OUT("PING\r\nSELECT 1\r\n"), IN("+PONG\r\n"), OUT(HEAD), IN(OK)};

	CHECK_NO_CLIENT_SPANS(steps, 0);
}

TEST(client_that_is_greeted)
{
	static const struct step steps[] = {IN("220 mail ESMTP\r\n"), OUT("EHLO a\r\n"), IN("250 ok\r\n")};

	CHECK_NO_CLIENT_SPANS(steps, 0);
}

TEST(client_tls)
{
	http_start();
	sys_connect(FD, &host_tcp, 0);
	out_at(FD, "\x16\x03\x01\x02\x00\x01", 6);
	in_at(FD, "\x16\x03\x03\x00", 4);
	CHECK_EQUAL(client_events(), 0);
	CHECK_EQUAL(opaque_reason(), OPAQUE_TLS);
}

TEST(client_http_2)
{
	struct own_export_key key = {PID, host_tcp.peer_port};
	__u64 no_paths[EXPORT_PATHS_MAX * 16] = {};

	http_start();
	sys_connect(FD, &host_tcp, 0);
	out("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
	in_at(FD, "\0\0\0\4\0\0\0\0\0\n\n", 11);
	CHECK_EQUAL(opaque_reason(), OPAQUE_HTTP2);

	/* The target's own exporter may speak gRPC. */
	http_start();
	host_map_update("own_exports", &key, no_paths);
	sys_connect(FD, &host_tcp, 0);
	out("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
	CHECK_EQUAL(host_events(), 0);
}

/* ---- which sockets */

TEST(client_connects_in_the_background)
{
	http_start();
	sys_connect(FD, &host_tcp, SYS_EINPROGRESS);
	sys_connect(FD, &host_tcp, 0);
	out(HEAD);
	in(OK);
	CHECK_EQUAL(client_events(), 1);
	CHECK_EQUAL(client_event(0).addresses.peer_port, host_tcp.peer_port);
	sys_close(FD);
	CHECK_CLEAN();
}

TEST(client_that_could_not_connect)
{
	http_start();
	sys_connect(FD, &host_tcp, SYS_ECONNREFUSED);
	CHECK_EQUAL(host_map_count("connections"), 0);
}

TEST(client_of_what_is_no_stream)
{
	static const struct host_socket datagram = {.family = FAMILY_INET, .type = 2, .peer_port = 53};

	http_start();
	sys_connect(FD, &datagram, 0);
	host_thread(PID + 1, TID + 1);
	sys_connect(FD, &host_tcp, 0);
	CHECK_EQUAL(host_map_count("connections"), 0);
}

TEST(client_of_a_unix_socket)
{
	static const struct host_socket local = {.family = FAMILY_UNIX, .type = 1};

	http_start();
	sys_connect(FD, &local, 0);
	out(HEAD);
	in(OK);
	CHECK_EQUAL(client_events(), 1);
	CHECK_EQUAL(client_event(0).addresses.family, FAMILY_UNIX);
}

TEST(client_older_than_the_agent)
{
	static const struct host_socket local = {.family = FAMILY_UNIX, .type = 1};

	http_start();
	host_open(FD, &host_tcp);
	host_open(FD + 1, &local);
	for (int fd = FD; fd < FD + 2; fd++) {
		in_at(fd, OK, sizeof(OK) - 1); /* of a request that nobody has seen */
		out_at(fd, HEAD, sizeof(HEAD) - 1);
		in_at(fd, OK, sizeof(OK) - 1);
	}
	CHECK_EQUAL(client_events(), 2);
	CHECK_NO_DROPS();
}

/* Of a port that listens every connection was accepted. */
TEST(older_connections_of_a_server_are_no_clients)
{
	http_start();
	host_map_update("listening", (__u32[]){PID, 8080}, &(__u8){1});
	host_open(FD, &host_tcp);
	out(HEAD);
	CHECK_EQUAL(host_map_count("connections"), 0);
}

TEST(duplicates_of_a_client_socket)
{
	http_start();
	sys_connect(FD, &host_tcp, 0);
	sys_dup(FD, FD + 1);
	sys_close(FD);
	out_at(FD + 1, HEAD, sizeof(HEAD) - 1);
	in_at(FD + 1, OK, sizeof(OK) - 1);
	CHECK_EQUAL(client_events(), 1);
	sys_close(FD + 1);
	CHECK_CLEAN();
}

TEST(client_sends_a_file)
{
	http_start();
	sys_connect(FD, &host_tcp, 0);
	out("POST /up HTTP/1.1\r\nContent-Length: 8\r\n\r\n");
	sys_sendfile(FD, 8);
	out(HEAD);
	in(EMPTY OK);
	CHECK_EQUAL(client_events(), 2);
	CHECK_NO_DROPS();
}

/* ---- failures */

static void failed_with(enum host_call call, long result, __u32 ended_by)
{
	test_case("call %u, result %ld", call, result);
	http_start();
	sys_connect(FD, &host_tcp, 0);
	out(HEAD);
	sys_transfer_fails(call, FD, result);
	CHECK_EQUAL(client_events(), call < CALLS_IN);
	sys_close(FD);
	CHECK_EQUAL(client_events(), 1);
	CHECK_EQUAL(client_event(0).status, 0);
	CHECK_EQUAL(client_event(0).ended_by, ended_by);
	CHECK_CLEAN();
}

TEST(client_failures)
{
	for (enum host_call call = 0; call < CALLS_IN; call++) {
		failed_with(call, 0, END_CLOSED);
		failed_with(call, SYS_ECONNRESET, END_RESET);
		failed_with(call, SYS_ETIMEDOUT, END_TIMED_OUT);
		failed_with(call + CALLS_IN, SYS_ECONNRESET, END_RESET);
		failed_with(call + CALLS_IN, SYS_EPIPE, END_CLOSED);
	}
}

TEST(client_that_waits)
{
	http_start();
	sys_connect(FD, &host_tcp, 0);
	out(HEAD);
	sys_transfer_fails(CALL_READ, FD, SYS_EAGAIN);
	sys_transfer_fails(CALL_WRITE, FD, 0);
	sys_shutdown(FD, 1);
	CHECK_EQUAL(client_events(), 0);
	in(OK);
	CHECK_EQUAL(client_event(0).status, 200);
	CHECK_EQUAL(client_event(0).ended_by, END_RESPONSE);
}

/* What was answered is answered, though its body could not be sent to its end. */
TEST(client_is_answered_before_its_write_fails)
{
	http_start();
	sys_connect(FD, &host_tcp, 0);
	out("POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nhello");
	sys_transfer_fails(CALL_WRITE, FD, SYS_EPIPE);
	in("HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n");
	sys_close(FD);
	CHECK_EQUAL(client_events(), 1);
	CHECK_EQUAL(client_event(0).status, 413);
	CHECK_EQUAL(client_event(0).ended_by, END_RESPONSE);
}

TEST(client_shuts_both_ways)
{
	http_start();
	sys_connect(FD, &host_tcp, 0);
	out(HEAD);
	sys_shutdown(FD, 2);
	CHECK_EQUAL(client_event(0).ended_by, END_CLOSED);
	sys_close(FD);
	CHECK_CLEAN();
}

/* ---- cause */

/* A request in, in the task TASK, and a connection of its own. */
static void serving(__u64 sample_below)
{
	struct target *target;

	http_start_tokio(TASK);
	target = host_find_target(PID);
	target->sample_below = sample_below;
	sys_accept(SERVER_FD, &host_tcp);
	in_at(SERVER_FD, HEAD, sizeof(HEAD) - 1);
	sys_connect(FD, &host_tcp, 0);
}

static void served(void)
{
	out_at(SERVER_FD, EMPTY, sizeof(EMPTY) - 1);
}

static void check_parent(const struct server_span_event *child, const struct server_span_event *parent)
{
	CHECK_EQUAL(child->trace_id_low, parent->trace_id_low);
	CHECK_EQUAL(child->trace_id_high, parent->trace_id_high);
	CHECK_EQUAL(child->parent_span_id, parent->span_id);
}

/* For what that request brought: the agent gives it to its client spans, too. */
TEST(a_client_span_says_whose_request_it_belongs_to)
{
	struct server_span_event client;

	serving(~0ULL);
	out(HEAD);
	in(EMPTY);
	served();
	client = client_event(0);
	CHECK_EQUAL(client.server_span_id, span_event(0).span_id);
	CHECK_EQUAL(span_event(0).server_span_id, 0);
	out(HEAD);
	in(EMPTY);
	client = client_event(1);
	CHECK_EQUAL(client.server_span_id, 0);
}

TEST(the_own_stack_is_the_cause)
{
	struct server_span_event server, client;
	struct active_spans found;

	serving(~0ULL);
	out(HEAD);
	CHECK(host_is_active(PID, TASK, &found));
	CHECK_EQUAL(found.active.kind, FRAME_CLIENT);
	in("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
	CHECK(host_is_active(PID, TASK, &found));
	CHECK_EQUAL(found.active.kind, FRAME_SERVER);
	in("hello");
	served();
	server = span_event(0);
	client = client_event(0);
	check_parent(&client, &server);
	CHECK_EQUAL(client.flags, TRACE_FLAG_SAMPLED);
	CHECK(client.start > server.start);
	CHECK(client.head.at < server.head.at);
}

/* Who connected it, nobody knows; the task that handles a request sends for itself. */
TEST(the_own_stack_is_the_cause_on_an_older_connection)
{
	struct server_span_event server, client;

	serving(~0ULL);
	host_open(FD + 1, &host_tcp);
	out_at(FD + 1, HEAD, sizeof(HEAD) - 1);
	CHECK_EQUAL(host_live_frames(PID), 2);
	in_at(FD + 1, OK, sizeof(OK) - 1);
	CHECK_EQUAL(host_live_frames(PID), 1);
	served();
	server = span_event(0);
	client = client_event(0);
	check_parent(&client, &server);
}

TEST(what_is_done_meanwhile_is_under_the_client_span)
{
	struct span_frame manual = {.kind = FRAME_MANUAL, .span_id = 77, .flags = TRACE_FLAG_SAMPLED};
	struct active_spans found;

	serving(~0ULL);
	CHECK(host_is_active(PID, TASK, &found));
	manual.trace_id_low = found.server.trace_id_low;
	manual.trace_id_high = found.server.trace_id_high;
	host_push_span(PID, TASK, &manual);
	out(HEAD);
	in(OK);
	CHECK_EQUAL(client_event(0).parent_span_id, 77);
	CHECK(host_is_active(PID, TASK, &found));
	CHECK_EQUAL(found.active.span_id, 77);
}

TEST(requests_at_once_of_one_task_are_siblings)
{
	struct server_span_event server, first, second;

	serving(~0ULL);
	sys_connect(FD + 1, &host_tcp, 0);
	out(HEAD);
	out_at(FD + 1, HEAD, sizeof(HEAD) - 1);
	in_at(FD, OK, sizeof(OK) - 1);
	in_at(FD + 1, OK, sizeof(OK) - 1);
	served();
	server = span_event(0);
	first = client_event(0);
	second = client_event(1);
	check_parent(&first, &server);
	check_parent(&second, &server);
	CHECK(first.span_id != second.span_id);
	CHECK_EQUAL(host_live_slots(PID), 0);
}

TEST(another_task_is_not_the_cause)
{
	struct server_span_event server, client;

	serving(~0ULL);
	host_tokio_task(TASK + 1);
	out(HEAD);
	in(OK);
	CHECK_EQUAL(host_live_frames(PID), 1);
	host_tokio_task(TASK);
	served();
	server = span_event(0);
	client = client_event(0);
	CHECK_EQUAL(client.parent_span_id, 0);
	CHECK(client.trace_id_low != server.trace_id_low);
	CHECK_EQUAL(client.flags, TRACE_FLAG_SAMPLED);
}

TEST(the_answer_may_be_read_by_another_task)
{
	struct server_span_event server, client;

	serving(~0ULL);
	out(HEAD);
	host_tokio_task(TASK + 1);
	in(OK);
	CHECK_EQUAL(host_live_frames(PID), 1);
	host_tokio_task(TASK);
	served();
	server = span_event(0);
	client = client_event(0);
	check_parent(&client, &server);
}

TEST(a_client_span_is_sampled_as_its_cause)
{
	serving(0);
	out(HEAD);
	CHECK_EQUAL(host_live_frames(PID), 2);
	in(OK);
	CHECK_EQUAL(host_live_frames(PID), 1);
	served();
	CHECK_EQUAL(host_events(), 0);
}

TEST(a_client_span_without_a_cause_is_sampled_as_a_root)
{
	serving(0);
	served();
	out(HEAD);
	in(OK);
	CHECK_EQUAL(host_events(), 0);
}

#define TRACEPARENT "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"

/* The application says it, where nothing else does. */
TEST(a_traceparent_of_the_applications_own)
{
	struct server_span_event client;

	serving(~0ULL);
	host_tokio_task(TASK + 1);
	out("GET / HTTP/1.1\r\n" TRACEPARENT "\r\n");
	in(OK);
	client = client_event(0);
	CHECK_EQUAL(client.parent_span_id, 0xb7ad6b7169203331);
	CHECK_EQUAL(client.trace_id_high, 0x0af7651916cd43dd);

	host_tokio_task(TASK);
	out("GET / HTTP/1.1\r\n" TRACEPARENT "\r\n");
	in(OK);
	served();
	client = client_event(1);
	CHECK_EQUAL(client.parent_span_id, span_event(0).span_id);
	CHECK_EQUAL(client.trace_id_high, span_event(0).trace_id_high);
}

TEST(a_head_that_never_ends_leaves_no_frame)
{
	serving(~0ULL);
	out("GET / HTTP/1.1\r\nHost: a\r\n");
	CHECK_EQUAL(host_live_frames(PID), 2);
	sys_close(FD);
	CHECK_EQUAL(host_live_frames(PID), 1);

	sys_connect(FD, &host_tcp, 0);
	out("GET / HTTP/1.1\r\n");
	CHECK_EQUAL(host_live_frames(PID), 2);
	out(" folded\r\n");
	CHECK_EQUAL(host_live_frames(PID), 1);
	CHECK_EQUAL(client_events(), 0);
}

TEST(queued_requests_leave_no_frames)
{
	serving(~0ULL);
	out(HEAD HEAD HEAD);
	CHECK_EQUAL(host_live_frames(PID), 4);
	sys_close(FD);
	CHECK_EQUAL(host_live_frames(PID), 1);
	CHECK_EQUAL(client_events(), 3);
	served();
	for (__u32 i = 0; i < 3; i++)
		CHECK_EQUAL(client_event(i).parent_span_id, span_event(0).span_id);
}

TEST(requests_beyond_the_queue_leave_no_frames)
{
	serving(~0ULL);
	host_map_limit("queued_requests", 3);
	out(HEAD HEAD HEAD HEAD HEAD);
	CHECK_EQUAL(opaque_reason(), OPAQUE_QUEUE_FULL);
	CHECK_EQUAL(client_events(), 1);
	CHECK_EQUAL(client_event(0).ended_by, END_UNFRAMED);
	CHECK_EQUAL(host_live_frames(PID), 5);
	for (__u32 i = 1; i < 5; i++) {
		in(EMPTY);
		CHECK_EQUAL(host_live_frames(PID), 5 - i);
	}
	CHECK_EQUAL(client_events(), 5);
	sys_close(FD);
	CHECK_EQUAL(client_events(), 5);
}

/* ---- drivers */

TEST(a_driver_did_not_connect_and_is_alone)
{
	serving(~0ULL);
	CHECK(!host_is_driver(FD, TASK));
	CHECK(host_is_driver(FD, TASK + 1)); /* as far as is known until somebody uses it */
	host_tokio_task(TASK + 1);
	out(HEAD);
	CHECK(host_is_driver(FD, TASK + 1));
	CHECK(!host_is_driver(FD, TASK + 2));
	in(OK);
	CHECK(host_is_driver(FD, TASK + 1));
	host_tokio_task(TASK + 2);
	out(HEAD);
	CHECK(!host_is_driver(FD, TASK + 1));
	CHECK(!host_is_driver(FD, TASK + 2));
}

/* ---- the target's own telemetry */

static __u32 spans_of(const char *request)
{
	__u32 before = client_events();

	test_case("%s", request);
	out(request);
	CHECK_EQUAL(host_live_frames(PID) > 1, client_events() == before && !strstr(request, "quiet"));
	in(EMPTY);
	CHECK_EQUAL(host_live_frames(PID), 1);
	return client_events() - before;
}

TEST(own_exports_are_not_traced)
{
	struct own_export_key key = {PID, host_tcp.peer_port};
	/* /api/otlp, exactly */
	__u64 paths[EXPORT_PATHS_MAX * 16] = {};

	serving(~0ULL);
	CHECK_EQUAL(spans_of("POST /v1/traces HTTP/1.1\r\nquiet: 1\r\n\r\n"), 0);
	CHECK_EQUAL(spans_of("POST /v1/logs HTTP/1.1\r\nquiet: 1\r\n\r\n"), 0);
	CHECK_EQUAL(spans_of("POST /v1/metrics?x=y HTTP/1.1\r\nquiet: 1\r\n\r\n"), 0);
	CHECK_EQUAL(spans_of("GET /v1/traces HTTP/1.1\r\n\r\n"), 1);
	CHECK_EQUAL(spans_of("POST /v1/tracesy HTTP/1.1\r\n\r\n"), 1);
	CHECK_EQUAL(spans_of("POST /v1/log HTTP/1.1\r\n\r\n"), 1);
	CHECK_EQUAL(spans_of("POST /api/otlp HTTP/1.1\r\n\r\n"), 1);

	memcpy(paths, "/api/otlp", 10);
	memset(paths + 8, 0xff, 10);
	host_map_update("own_exports", &key, paths);
	CHECK_EQUAL(spans_of("POST /api/otlp HTTP/1.1\r\nquiet: 1\r\n\r\n"), 0);
	CHECK_EQUAL(spans_of("POST /api/otlp/more HTTP/1.1\r\n\r\n"), 1);
	served();
	CHECK_NO_DROPS();
}

/* --exclude-path is about what is served. */
TEST(excluded_paths_are_those_of_requests_in)
{
	serving(~0ULL);
	host_exclude_path(0, "/healthz", false);
	out("GET /healthz HTTP/1.1\r\n\r\n");
	in(OK);
	CHECK_EQUAL(client_events(), 1);
	CHECK_EQUAL(host_count(COUNT_EXCLUDED), 0);
}
