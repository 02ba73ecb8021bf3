/*
 * Fuzzes the HTTP server programs: the input is a list of what happens on three descriptors.
 *
 *     settings, then any number of: operation, argument, bytes of a transfer
 *
 * settings: WITH_TASKS | WITH_DISCOVERY | WITH_SMALL_MAPS | WITH_FAULTS | AS_CLIENT | WITH_PROPAGATORS
 * operation: bits 0-2 enum operation, bits 3-4 connection, bits 5-7 variety
 * argument: length of the transfer, or what the operation makes of it
 *
 * As a client the target connects instead of accepting, and what goes in goes out and the other way round.
 *
 * fuzz.py makes the seeds in this form. Invariants, besides what the sanitizers find: when all is
 * closed nothing is left; no more spans than requests, no more answered ones than responses; texts
 * that are carried could go out as a header's value; and the same comes out when the same bytes arrive one by one.
 */
#include "http.h"
#include "testing.h"

#include "carried.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define CONNECTIONS 3
#define LENGTH_MAX 4096
#define SPANS_MAX 1024
#define SOCKETS_MAX (LENGTH_MAX / 2 + CONNECTIONS)

enum {
	WITH_TASKS = 1,
	WITH_DISCOVERY = 2,
	WITH_SMALL_MAPS = 4,
	WITH_FAULTS = 8,
	AS_CLIENT = 16,
	WITH_PROPAGATORS = 32, /* all of them, and all is told */
};

enum operation {
	FUZZ_IN,
	FUZZ_OUT,
	FUZZ_IN_VECTOR,
	FUZZ_OUT_VECTOR,
	FUZZ_SENDFILE,
	FUZZ_CONTROL,
	FUZZ_IN_AGAIN, /* as FUZZ_IN: what matters most comes more often */
	FUZZ_OUT_AGAIN,
};

enum control {
	CONTROL_REOPEN,
	CONTROL_SHUTDOWN,
	CONTROL_DUP,
	CONTROL_DUP2,
	CONTROL_WAIT,
	CONTROL_THREAD,
	CONTROL_TASK,
	CONTROL_FAULT,
};

/* What a connection has seen, with the requests in, by a far simpler reckoning than the programs'. */
struct traffic {
	__u32 heads; /* empty lines */
	__u32 responses; /* "HTTP/1." */
	char last[3]; /* bytes in */
	__u32 matched; /* bytes out, of "HTTP/1." */
};

static struct traffic traffics[SOCKETS_MAX];
static __u32 sockets, socket_of[CONNECTIONS];

static struct server_span_event spans[SPANS_MAX];
/* What was told of carried texts: how many events, and a sum over their bytes. */
static __u64 carried_events, carried_sum;

void test_fail(const char *file, int line, const char *format, ...)
{
	va_list arguments;

	fprintf(stderr, "%s:%d: ", file, line);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	abort();
}

void test_case(const char *format, ...)
{
	(void)format;
}

static void reckon(struct traffic *traffic, bool is_out, const uint8_t *bytes, size_t size)
{
	static const char version[] = "HTTP/1.";

	for (size_t i = 0; i < size; i++) {
		char c = (char)bytes[i];

		if (is_out) {
			traffic->matched = c == version[traffic->matched] ? traffic->matched + 1 : c == 'H';
			if (version[traffic->matched])
				continue;
			traffic->responses++;
			traffic->matched = 0;
		} else {
			if (c == '\n' &&
			    (traffic->last[2] == '\n' || (traffic->last[2] == '\r' && traffic->last[1] == '\n')))
				traffic->heads++;
			traffic->last[1] = traffic->last[2];
			traffic->last[2] = c;
		}
	}
}

static void transfer(enum host_call call, int fd, const uint8_t *bytes, size_t size, bool as_vector)
{
	struct host_piece pieces[3] = {{bytes, size}};

	if (as_vector && size) {
		pieces[0].size = bytes[0] % size;
		pieces[1] = (struct host_piece){bytes, 0};
		pieces[2] = (struct host_piece){bytes + pieces[0].size, size - pieces[0].size};
	}
	sys_transfer(call, fd, pieces, as_vector && size ? 3 : 1, -1, 0);
}

static void open_connection(int fd, __u32 settings)
{
	if (settings & AS_CLIENT)
		sys_connect(fd, &host_tcp, 0);
	else
		sys_accept(fd, &host_tcp);
}

static void control(enum control kind, int connection, __u8 argument, __u32 settings)
{
	static const long failures[] = {0, -104, -110, -32, -11};
	int fd = FD + connection;

	switch (kind) {
	case CONTROL_REOPEN:
		sys_close(fd);
		if (argument & 1)
			host_reuse_address();
		if (argument & 2 && settings & WITH_DISCOVERY)
			host_open(fd, &host_tcp);
		else
			open_connection(fd, settings);
		socket_of[connection] = sockets++;
		break;
	case CONTROL_SHUTDOWN:
		if (argument & 128)
			sys_transfer_fails(argument % CALL_MAX, fd, failures[argument / 8 % 5]);
		else
			sys_shutdown(fd, argument % 3);
		break;
	case CONTROL_DUP:
		if (host_is_open(fd + CONNECTIONS))
			sys_close(fd + CONNECTIONS);
		else
			sys_dup(fd, fd + CONNECTIONS);
		break;
	case CONTROL_DUP2:
		if (argument & 1)
			sys_dup2(fd, FD + argument / 2 % CONNECTIONS);
		else
			sys_dup3(fd, FD + argument / 2 % CONNECTIONS);
		socket_of[argument / 2 % CONNECTIONS] = socket_of[connection];
		break;
	case CONTROL_WAIT:
		sys_epoll_wait(argument % 3);
		break;
	case CONTROL_THREAD:
		host_thread(PID, TID + argument % 3);
		break;
	case CONTROL_TASK:
		host_tokio_task(argument % 5);
		break;
	case CONTROL_FAULT:
		host.fail_read_user = host.reads_user + 1 + argument;
		break;
	}
}

/* Members without blanks around them, and nothing that could end a line. */
static void check_carried_text(const char *text, __u32 length)
{
	for (__u32 i = 0; i < length; i++) {
		CHECK(text[i] >= ' ' && text[i] < 0x7f);
		if (text[i] == ',')
			CHECK(i && i + 1 < length && text[i - 1] != ' ' && text[i - 1] != ',');
		carried_sum = carried_sum * 31 + (__u8)text[i];
	}
	if (length)
		CHECK(text[0] != ' ' && text[length - 1] != ' ' && text[0] != ',');
}

static __u32 events_of(enum event_kind kind)
{
	__u32 number = 0;

	for (__u32 i = 0; i < host_events(); i++)
		number += ((const struct event_head *)host_event(i).bytes)->kind == kind;
	return number;
}

static void check_carried(void)
{
	carried_events = carried_sum = 0;
	for (__u32 i = 0; i < host_events(); i++) {
		struct host_event event = host_event(i);
		const struct carried *carried = event.bytes;

		if (carried->head.kind != EVENT_CARRIED)
			continue;
		carried_events++;
		CHECK(carried->tracestate_length <= TRACESTATE_MAX && carried->baggage_length <= BAGGAGE_MAX);
		CHECK(carried->tracestate_length || carried->baggage_length);
		check_carried_text(carried->tracestate, carried->tracestate_length);
		if (event.size <= offsetof(struct carried, baggage))
			CHECK_EQUAL(event.size, offsetof(struct carried, tracestate) + carried->tracestate_length);
		else
			check_carried_text(carried->baggage, carried->baggage_length);
	}
}

/* Plays the input and closes all; the number of spans that came, which are in `spans`. */
static __u32 play(const uint8_t *input, size_t size, bool one_by_one)
{
	struct span_frame served = {
		.kind = FRAME_SERVER, .span_id = 1, .trace_id_low = 1, .flags = TRACE_FLAG_SAMPLED};
	__u32 settings = input[0], heads = 0, responses = 0, answered = 0, others, nr;

	memset(traffics, 0, sizeof(traffics));
	sockets = 0;
	if (settings & WITH_TASKS)
		http_start_tokio(1);
	else
		http_start();
	if (settings & WITH_DISCOVERY && !(settings & AS_CLIENT))
		host_map_update("listening", (__u32[]){PID, 8080}, &(__u8){1});
	if (settings & WITH_PROPAGATORS)
		host_propagation(&(struct propagation){.place = {1, 2, 3, 4}, .tells_baggage = 1});
	if (settings & WITH_SMALL_MAPS) {
		host_carried_limit(PID, 1);
		host_map_limit("connections", 2);
		host_map_limit("queued_requests", 3);
	}
	for (int i = 0; i < CONNECTIONS; i++) {
		open_connection(FD + i, settings);
		socket_of[i] = sockets++;
	}
	/* Something that requests out can be caused by. */
	if (settings & AS_CLIENT)
		host_push_span(PID, settings & WITH_TASKS ? 1 : thread_task_key(TID), &served);

	for (size_t at = 1; at + 2 <= size;) {
		enum operation operation = input[at] & 7;
		int connection = (input[at] >> 3) % 4 % CONNECTIONS, variety = input[at] >> 5;
		bool is_response = operation % 2, is_out = is_response != !!(settings & AS_CLIENT);
		__u8 argument = input[at + 1];
		size_t length = argument;

		at += 2;
		if (operation == FUZZ_SENDFILE) {
			sys_sendfile(FD + connection, argument);
			continue;
		}
		if (operation == FUZZ_CONTROL) {
			if (variety != CONTROL_FAULT || settings & WITH_FAULTS)
				control((enum control)variety, connection, argument, settings);
			continue;
		}
		if (length > size - at)
			length = size - at;
		reckon(&traffics[socket_of[connection]], is_response, input + at, length);
		for (size_t i = 0; one_by_one && i < length; i++)
			transfer(is_out ? CALL_WRITE : CALL_READ, FD + connection, input + at + i, 1, false);
		/* Of nothing there is one piece, too: the end of the file. */
		if (one_by_one && !length)
			transfer(is_out ? CALL_WRITE : CALL_READ, FD + connection, input + at, 0, false);
		if (!one_by_one && (operation == FUZZ_IN_VECTOR || operation == FUZZ_OUT_VECTOR))
			transfer((is_out ? CALL_WRITEV : CALL_READV) + variety % 2, FD + connection, input + at,
				 length, true);
		else if (!one_by_one)
			transfer((is_out ? CALL_WRITE : CALL_READ) + variety % 4, FD + connection, input + at,
				 length, false);
		at += length;
	}
	for (int i = 0; i < 2 * CONNECTIONS; i++)
		if (host_is_open(FD + i))
			sys_close(FD + i);

	CHECK_EQUAL(host_map_count("connections"), 0);
	CHECK_EQUAL(host_map_count("queued_requests"), 0);
	CHECK_EQUAL(host_carried_count(PID), 0);
	if (settings & AS_CLIENT) {
		CHECK(host_live_frames(PID) <= 1);
		host_end_span(PID, settings & WITH_TASKS ? 1 : thread_task_key(TID), served.span_id);
	}
	CHECK_EQUAL(host_live_slots(PID), 0);
	CHECK_EQUAL(host_count(COUNT_SLOT_BUSY), 0);
	CHECK_EQUAL(host_count(COUNT_CONNECTION_BUSY), 0);
	for (__u32 i = 0; i < sockets; i++) {
		heads += traffics[i].heads;
		responses += traffics[i].responses;
	}
	nr = settings & AS_CLIENT ? client_events() : span_events();
	check_carried();
	for (__u32 i = 0; i < nr; i++) {
		spans[i % SPANS_MAX] = settings & AS_CLIENT ? client_event(i) : span_event(i);
		answered += spans[i % SPANS_MAX].status != 0;
		if (spans[i % SPANS_MAX].ended_by == END_RESPONSE || spans[i % SPANS_MAX].ended_by == END_UPGRADED)
			CHECK(spans[i % SPANS_MAX].status >= 100);
	}
	CHECK(nr <= heads);
	CHECK(answered <= responses);
	CHECK_EQUAL(nr, host_count(settings & AS_CLIENT ? COUNT_CLIENT_SPANS : COUNT_SERVER_SPANS));
	/* A socket that had no place at first is discovered when there is one, and a request out makes it a client's. */
	others = events_of(settings & AS_CLIENT ? EVENT_SERVER_SPAN : EVENT_CLIENT_SPAN);
	CHECK_EQUAL(host_count(settings & AS_CLIENT ? COUNT_SERVER_SPANS : COUNT_CLIENT_SPANS), others);
	CHECK(!others || settings & WITH_SMALL_MAPS);
	/* A connection is said to be opaque once, unless it was closed and discovered anew. */
	if (!(settings & WITH_DISCOVERY))
		CHECK(events_of(EVENT_CONNECTION_OPAQUE) <= sockets);
	/* A task of which nothing could be read is another, for which requests are sent then: that is asked for once. */
	CHECK(events_of(EVENT_WAKES_WANTED) <= 1);
	CHECK_EQUAL(host_events(), nr + others + carried_events + events_of(EVENT_CONNECTION_OPAQUE) +
					   events_of(EVENT_WAKES_WANTED));
	return nr;
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
	static struct server_span_event whole[SPANS_MAX];
	__u64 events, sum;
	__u32 nr, tls;

	if (size < 3 || size > LENGTH_MAX)
		return 0;
	nr = play(input, size, false);
	tls = (__u32)host_count(COUNT_TLS);
	/*
	 * Discovery, also of what had no place in a small map, and TLS are told by the first bytes of one call; faults
	 * strike by the call's number.
	 */
	if (input[0] & (WITH_DISCOVERY | WITH_SMALL_MAPS | WITH_FAULTS) || tls || nr > SPANS_MAX)
		return 0;
	memcpy(whole, spans, sizeof(whole));
	events = carried_events;
	sum = carried_sum;
	CHECK_EQUAL(play(input, size, true), nr);
	CHECK_EQUAL(carried_events, events);
	CHECK_EQUAL(carried_sum, sum);
	for (__u32 i = 0; i < nr; i++) {
		whole[i].head.at = spans[i].head.at;
		whole[i].start = spans[i].start;
		/* Beyond their lengths are bytes of the request before, which nobody looks at. */
		CHECK(!memcmp(&whole[i], &spans[i], offsetof(struct server_span_event, host)));
		CHECK(!memcmp(whole[i].host, spans[i].host, spans[i].host_length));
		CHECK(!memcmp(whole[i].user_agent, spans[i].user_agent, spans[i].user_agent_length));
		CHECK(!memcmp(whole[i].target, spans[i].target, spans[i].target_length));
	}
	return 0;
}
