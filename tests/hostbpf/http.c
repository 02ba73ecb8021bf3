#include "http.h"

#include <stdlib.h>
#include <string.h>

#include "testing.h"

static const struct target plain_target = {
	.sample_below = ~0ULL,
	.parent_based = 1,
};

void http_start(void)
{
	host_reset();
	host_target(PID, &plain_target);
	host_thread(PID, TID);
}

static void start_tokio(__u64 task, __u64 tag_offset)
{
	struct target target = plain_target;

	host_reset();
	target.tokio_task_id = HOST_TOKIO_OFFSET;
	target.tokio_task_tag = tag_offset;
	host_target(PID, &target);
	host_thread(PID, TID);
	host_tokio_task(task);
}

void http_start_tokio(__u64 task)
{
	start_tokio(task, 0);
}

void http_start_tokio_tagged(__u64 task, __u64 tag)
{
	start_tokio(task, HOST_TOKIO_TAG_OFFSET);
	host_tokio_tag(tag);
}

void http_start_connected(void)
{
	http_start();
	sys_accept(FD, &host_tcp);
}

/* A copy of its own size, so that AddressSanitizer sees a read past the end. */
static void transfer(enum host_call call, int fd, const void *bytes, size_t size)
{
	void *copy = malloc(size ? size : 1);
	struct host_piece piece = {copy, size};

	memcpy(copy, bytes, size);
	sys_transfer(call, fd, &piece, 1, -1, 0);
	free(copy);
}

void in_at(int fd, const void *bytes, size_t size)
{
	transfer(CALL_RECVFROM, fd, bytes, size);
}

void out_at(int fd, const void *bytes, size_t size)
{
	transfer(CALL_WRITEV, fd, bytes, size);
}

void in(const char *text)
{
	in_at(FD, text, strlen(text));
}

void out(const char *text)
{
	out_at(FD, text, strlen(text));
}

void in_steps(int fd, const void *bytes, size_t size, size_t step)
{
	for (size_t at = 0; at < size; at += step)
		in_at(fd, (const char *)bytes + at, size - at < step ? size - at : step);
}

void out_steps(int fd, const void *bytes, size_t size, size_t step)
{
	for (size_t at = 0; at < size; at += step)
		out_at(fd, (const char *)bytes + at, size - at < step ? size - at : step);
}

static const struct event_head *head_of(__u32 index)
{
	struct host_event event = host_event(index);

	if (event.size < sizeof(struct event_head))
		host_fail("an event without a head");
	return event.bytes;
}

static struct server_span_event event_of(__u32 kind, __u32 index)
{
	struct server_span_event span = {};

	for (__u32 i = 0; i < host_events(); i++) {
		struct host_event event = host_event(i);

		if (head_of(i)->kind != kind || index--)
			continue;
		if (event.size > sizeof(span))
			host_fail("a span event that is too long");
		memcpy(&span, event.bytes, event.size);
		CHECK_EQUAL(event.size, offsetof(struct server_span_event, target) + span.target_length);
		CHECK_EQUAL(span.head.pid, host_pid());
		CHECK(span.start <= span.head.at); /* equal: within one system call */
		CHECK(span.host_length <= HTTP_HOST_MAX);
		CHECK(span.user_agent_length <= HTTP_USER_AGENT_MAX);
		CHECK(span.span_id);
		CHECK(span.trace_id_low || span.trace_id_high);
		return span;
	}
	test_fail(__FILE__, __LINE__, "there is no such span event");
}

static __u32 events_of(__u32 kind)
{
	__u32 spans = 0;

	for (__u32 i = 0; i < host_events(); i++)
		spans += head_of(i)->kind == kind;
	return spans;
}

struct server_span_event span_event(__u32 index)
{
	return event_of(EVENT_SERVER_SPAN, index);
}

__u32 span_events(void)
{
	return events_of(EVENT_SERVER_SPAN);
}

struct server_span_event client_event(__u32 index)
{
	return event_of(EVENT_CLIENT_SPAN, index);
}

__u32 client_events(void)
{
	return events_of(EVENT_CLIENT_SPAN);
}

__u32 opaque_reason(void)
{
	const struct connection_opaque_event *event;
	__u32 reason = 0;

	for (__u32 i = 0; i < host_events(); i++) {
		if (head_of(i)->kind != EVENT_CONNECTION_OPAQUE)
			continue;
		CHECK(!reason);
		event = (const struct connection_opaque_event *)head_of(i);
		CHECK_EQUAL(host_event(i).size, sizeof(*event));
		reason = event->reason;
	}
	return reason;
}

void check_text(const char *file, int line, const char *bytes, size_t size, const char *expected)
{
	if (size != strlen(expected) || memcmp(bytes, expected, size) != 0)
		test_fail(file, line, "is \"%.*s\", expected \"%s\"", (int)size, bytes, expected);
}

void check_clean(const char *file, int line)
{
	if (host_map_count("connections"))
		test_fail(file, line, "%u connections are left", host_map_count("connections"));
	if (host_map_count("queued_requests"))
		test_fail(file, line, "%u queued requests are left", host_map_count("queued_requests"));
	if (host_carried_count(PID))
		test_fail(file, line, "what %u requests brought is left", host_carried_count(PID));
	if (host_live_slots(PID))
		test_fail(file, line, "%u slots are left", host_live_slots(PID));
}

void check_no_drops(const char *file, int line)
{
	for (__u32 cause = 0; cause < COUNT_EXCLUDED; cause++)
		if (host_count(cause))
			test_fail(file, line, "counter %u is %llu", cause, host_count(cause));
}

__u64 thread_task_key(__u32 tid)
{
	return TASK_KEY_THREAD | tid;
}

/* ---- conversations */

struct delivery {
	size_t step; /* which one is cut in two */
	size_t cut; /* where; 0: nowhere */
	bool as_vector; /* the two parts are buffers of one call, not two calls */
	size_t piece; /* all steps go in pieces of this size; 0: whole */
	enum host_call in, out;
};

static void deliver(const struct delivery *delivery, const struct step *step, size_t index)
{
	enum host_call call = step->is_out ? delivery->out : delivery->in;
	size_t piece = delivery->piece ? delivery->piece : step->size;

	if (delivery->cut && delivery->step == index && delivery->as_vector) {
		struct host_piece pieces[] = {
			{NULL, 0},	  {step->bytes, delivery->cut},
			{step->bytes, 0}, {step->bytes + delivery->cut, step->size - delivery->cut},
			{NULL, 0},
		};

		sys_transfer(call, FD, pieces, 5, -1, 0);
	} else if (delivery->cut && delivery->step == index) {
		transfer(call, FD, step->bytes, delivery->cut);
		transfer(call, FD, step->bytes + delivery->cut, step->size - delivery->cut);
	} else {
		for (size_t at = 0; at < step->size; at += piece)
			transfer(call, FD, step->bytes + at, step->size - at < piece ? step->size - at : piece);
	}
}

static const char *const call_names[CALL_MAX] = {
	"read", "recvfrom", "readv", "recvmsg", "write", "sendto", "writev", "sendmsg",
};

struct conversation {
	const char *file;
	int line;
	bool is_client;
	const struct step *steps;
	size_t nr_steps;
	const struct want *wanted;
	size_t nr_wanted;
	__u32 reason;
};

static void play(const struct conversation *c, const struct delivery *delivery)
{
	test_case("step %zu cut at %zu%s, pieces of %zu, %s and %s", delivery->step, delivery->cut,
		  delivery->as_vector ? " as a vector" : "", delivery->piece, call_names[delivery->in],
		  call_names[delivery->out]);
	http_start();
	if (c->is_client)
		sys_connect(FD, &host_tcp, 0);
	else
		sys_accept(FD, &host_tcp);
	for (size_t i = 0; i < c->nr_steps; i++)
		deliver(delivery, &c->steps[i], i);
	sys_close(FD);
	check_clean(c->file, c->line);
	if (span_events() != (c->is_client ? 0 : c->nr_wanted) ||
	    client_events() != (c->is_client ? c->nr_wanted : 0))
		test_fail(c->file, c->line, "%u server spans, %u client spans, expected %zu", span_events(),
			  client_events(), c->nr_wanted);
	if (opaque_reason() != c->reason)
		test_fail(c->file, c->line, "opaque for %u, expected %u", opaque_reason(), c->reason);
	if (!c->reason)
		check_no_drops(c->file, c->line);
	for (__u32 i = 0; i < c->nr_wanted; i++) {
		struct server_span_event span = c->is_client ? client_event(i) : span_event(i);
		const struct want *want = &c->wanted[i];

		check_text(c->file, c->line, span.target, span.target_length, want->target);
		if (span.method != want->method || span.status != want->status || span.ended_by != want->ended_by)
			test_fail(c->file, c->line,
				  "span %u: method %u, status %u, ended by %u; expected %u, %u, %u", i,
				  span.method, span.status, span.ended_by, want->method, want->status,
				  want->ended_by);
	}
}

void check_conversation(const char *file, int line, bool is_client, const struct step *steps, size_t nr_steps,
			const struct want *wanted, size_t nr_wanted, __u32 reason)
{
	static const size_t pieces[] = {1, 2, 7, 24, 63, 64, 65};
	struct conversation c = {file, line, is_client, steps, nr_steps, wanted, nr_wanted, reason};
	struct delivery delivery = {.in = CALL_RECVFROM, .out = CALL_WRITEV};

	play(&c, &delivery);
	for (size_t i = 0; i < nr_steps; i++) {
		for (size_t cut = 1; cut < steps[i].size; cut++) {
			delivery = (struct delivery){i, cut, false, 0, CALL_RECVFROM, CALL_WRITEV};
			play(&c, &delivery);
			delivery = (struct delivery){i, cut, true, 0, CALL_READV, CALL_WRITEV};
			play(&c, &delivery);
			delivery = (struct delivery){i, cut, true, 0, CALL_RECVMSG, CALL_SENDMSG};
			play(&c, &delivery);
		}
	}
	for (size_t i = 0; i < sizeof(pieces) / sizeof(pieces[0]); i++) {
		delivery = (struct delivery){0, 0, false, pieces[i], CALL_RECVFROM, CALL_WRITEV};
		play(&c, &delivery);
	}
	for (enum host_call call = 0; call < CALLS_IN; call++) {
		delivery = (struct delivery){0, 0, false, 0, call, call + CALLS_IN};
		play(&c, &delivery);
	}
	test_case("all deliveries done");
}
