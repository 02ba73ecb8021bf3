/*
 * The OpenTelemetry SDK programs, with a small SDK that does what opentelemetry_sdk does around the
 * probed functions, and a tracer that does what the stop writer's does. What counts is what is in
 * the target's memory in the end.
 */
#include "http.h"
#include "testing.h"

#include <stdlib.h>
#include <string.h>

#include "otel_sdk.h"
#include "stop_request.h"

#define TRACER 900
#define GET "GET / HTTP/1.1\r\n\r\n"
#define OK "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
#define GET_WITH_PARENT                                                                                           \
	"GET / HTTP/1.1\r\ntraceparent: 00-00000000000000aa00000000000000bb-00000000000000cc-01\r\n\r\n"
#define REMOTE_HIGH 0xaa
#define REMOTE_LOW 0xbb
#define REMOTE_PARENT 0xcc
#define DATA_SOME 1
#define DATA_NONE 0x8000000000000000ULL
#define END_NONE 1000000000
#define NAME "process_business_logic"

/* ---- the SDK */

/* In an order of its own, so that no offset is right by chance. */
struct sdk_context {
	__u64 pad;
	__u64 trace_id_low;
	__u64 trace_id_high;
	__u64 span_id;
	__u8 flags;
	__u8 is_remote;
	__u8 more_pad[6];
};

/* What the application reads of GET_WITH_PARENT. */
static const struct sdk_context remote = {
	.trace_id_low = REMOTE_LOW,
	.trace_id_high = REMOTE_HIGH,
	.span_id = REMOTE_PARENT,
	.flags = 1,
	.is_remote = 1,
};

struct sdk_span {
	__u64 name_length;
	const char *name;
	struct sdk_context context;
	__u64 status;
	__u64 parent_span_id;
	__u32 start_nanos;
	__u8 kind;
	__u8 parent_is_remote;
	__u64 start_seconds;
	__u64 data;
	__u64 pad;
};

static const struct target sdk_target = {
	.tokio_task_id = HOST_TOKIO_OFFSET,
	.sample_below = ~0ULL,
	.parent_based = 1,
	.adoption = ADOPTION_VERIFIED,
	.adopt_mode = ADOPT_ACTIVE,
	.write_mode = WRITE_STOP,
	.tracer = TRACER,
	.wants_manual_spans = 1,
	.parent_proven = 1,
	.context_argument = 3,
	.parent_argument = 2,
	.layout =
		{
			.context_trace_id = offsetof(struct sdk_context, trace_id_low),
			.context_span_id = offsetof(struct sdk_context, span_id),
			.context_is_remote = offsetof(struct sdk_context, is_remote),
			.context_flags = offsetof(struct sdk_context, flags),
			.span_context = offsetof(struct sdk_span, context),
			.span_data = offsetof(struct sdk_span, data),
			.span_parent_id = offsetof(struct sdk_span, parent_span_id),
			.span_parent_is_remote = offsetof(struct sdk_span, parent_is_remote),
			.span_name_pointer = offsetof(struct sdk_span, name),
			.span_name_length = offsetof(struct sdk_span, name_length),
			.span_kind = offsetof(struct sdk_span, kind),
			.span_start_seconds = offsetof(struct sdk_span, start_seconds),
			.span_start_nanos = offsetof(struct sdk_span, start_nanos),
			.span_status = offsetof(struct sdk_span, status),
			.span_data_none = DATA_NONE,
			.status_unset = 10,
			.status_ok = 11,
			.end_argument_none_nanos = END_NONE,
			.span_name_tag = LAYOUT_ABSENT,
			.span_data_size = 8,
			.span_status_size = 8,
		},
};

static struct target *target;
static __u64 next_id;
static __u64 stops; /* how often the tracer found a request */
static __u64 stack_pointer; /* of the function that is probed */

static void start_with(const struct target *settings)
{
	host_reset();
	target = host_target(PID, settings);
	host_thread(PID, TID);
	host_traced_by(TRACER);
	host_tokio_task(17);
	next_id = 0x1000;
	stops = 0;
	stack_pointer = 0x7000;
	sys_accept(FD, &host_tcp);
}

static void start(void)
{
	start_with(&sdk_target);
}

static void *sdk_allocate(size_t size)
{
	void *memory = host_allocate(size);

	host_map_memory(memory, size);
	return memory;
}

/* What the tracer does when the thread stops; whether the function is to return at once. */
static bool tracer_serves(struct host_registers *registers)
{
	const struct stop_request *request;
	__u32 tid = (__u32)host_tid();
	bool returns;

	request = host_map_lookup("stop_requests", &tid);
	if (!request)
		return false;
	stops++;
	CHECK_EQUAL(host.last_signal, 23);
	CHECK_EQUAL(host.signals, stops);
	CHECK_EQUAL(request->sp, registers->sp);
	CHECK_EQUAL(request->ip, registers->ip);
	CHECK(request->nr_writes <= STOP_WRITES_MAX);
	for (__u32 i = 0; i < request->nr_writes; i++) {
		const struct stop_write *write = &request->writes[i];

		CHECK(write->size >= 1 && write->size <= 8);
		memcpy((void *)write->address, &write->value, write->size);
	}
	returns = request->returns;
	CHECK(returns || request->nr_writes);
	registers->ax = request->return_low;
	registers->dx = request->return_high;
	host_map_delete("stop_requests", &tid);
	return returns;
}

static struct host_registers probe(enum host_probe which, struct host_registers registers, bool *returned)
{
	bool early;

	registers.sp = stack_pointer;
	registers.ip = 0x400000 + which;
	host_probe(which, &registers);
	early = tracer_serves(&registers);
	if (returned)
		*returned = early;
	return registers;
}

static __u64 new_span_id(void)
{
	__u64 id = ++next_id;

	probe(PROBE_NEW_SPAN_ID_RETURNS, (struct host_registers){.ax = id}, NULL);
	return id;
}

static void new_trace_id(struct sdk_context *context)
{
	struct host_registers registers;
	bool returned;

	registers = probe(PROBE_NEW_TRACE_ID, (struct host_registers){}, &returned);
	if (!returned) {
		registers.ax = ++next_id;
		registers.dx = ++next_id;
		probe(PROBE_NEW_TRACE_ID_RETURNS, registers, NULL);
	}
	context->trace_id_low = registers.ax;
	context->trace_id_high = registers.dx;
}

static void fill_span(struct sdk_span *span, const struct sdk_context *parent, const struct sdk_context *own)
{
	span->context = *own;
	span->parent_span_id = parent->span_id;
	span->parent_is_remote = parent->is_remote;
	span->name = sdk_allocate(sizeof(NAME));
	memcpy((void *)span->name, NAME, sizeof(NAME));
	span->name_length = sizeof(NAME) - 1;
	span->status = 10;
	span->kind = 2;
	span->start_seconds = 1700000000;
	span->start_nanos = 5;
	span->data = DATA_SOME;
}

static struct sdk_span *build(const struct sdk_context *parent, const struct sdk_context *own)
{
	struct sdk_context *psc = sdk_allocate(sizeof(*psc)), *sc = sdk_allocate(sizeof(*sc));
	struct sdk_span *span = sdk_allocate(sizeof(*span));
	struct sdk_context parent_before = {};

	if (parent)
		parent_before = *parent;
	*psc = parent_before;
	*sc = *own;
	probe(PROBE_BUILD_RECORDING_SPAN, (struct host_registers){.dx = (__u64)psc, .cx = (__u64)sc}, NULL);
	/* The parent's context is often shared by all: it must never be written. */
	CHECK(!memcmp(psc, &parent_before, sizeof(*psc)));
	CHECK_EQUAL(sc->span_id, own->span_id);
	CHECK_EQUAL(sc->flags, own->flags);
	fill_span(span, psc, sc);
	return span;
}

/* tracer.start(name), with a parent or, by NULL, as a root. */
static struct sdk_span *start_span(const struct sdk_context *parent)
{
	struct sdk_context own = {.flags = 1};

	own.span_id = new_span_id();
	if (parent) {
		own.trace_id_low = parent->trace_id_low;
		own.trace_id_high = parent->trace_id_high;
	} else {
		new_trace_id(&own);
	}
	return build(parent, &own);
}

static void end_at(struct sdk_span *span, __u64 seconds, __u32 nanos)
{
	probe(PROBE_ENSURE_ENDED, (struct host_registers){.di = (__u64)span, .si = seconds, .dx = nanos}, NULL);
	/* It is exported as it is now; then its data is taken out. */
	span->data = DATA_NONE;
}

static void end(struct sdk_span *span)
{
	end_at(span, 0xdeadbeef, END_NONE);
}

/* Where build_with_context is all that can be seen, and only its returned Span shows the ids. */
static struct sdk_span *old_start_span(const struct sdk_context *parent)
{
	/* It is a part of something larger, as a stack is, when it is sampled. */
	struct sdk_span *span = sdk_allocate(SPAN_SAMPLE_SIZE);
	struct sdk_context own = {.flags = 1}, none = {};

	probe(PROBE_BUILD_WITH_CONTEXT, (struct host_registers){.di = (__u64)span}, NULL);
	own.span_id = new_span_id();
	if (parent) {
		own.trace_id_low = parent->trace_id_low;
		own.trace_id_high = parent->trace_id_high;
	} else {
		new_trace_id(&own);
	}
	fill_span(span, parent ? parent : &none, &own);
	probe(PROBE_BUILD_WITH_CONTEXT_RETURNS, (struct host_registers){.ax = 1}, NULL);
	return span;
}

/* A span of tracing-opentelemetry before 0.32: its ids now, the SDK's span when it closes. */
static struct sdk_context late_start(const struct sdk_context *parent)
{
	struct sdk_context own = {.flags = 1};

	own.span_id = new_span_id();
	if (parent) {
		own.trace_id_low = parent->trace_id_low;
		own.trace_id_high = parent->trace_id_high;
	} else {
		new_trace_id(&own);
	}
	return own;
}

static struct sdk_span *late_close(const struct sdk_context *parent, const struct sdk_context *own)
{
	struct sdk_span *span = build(parent, own);

	end(span);
	return span;
}

/* The same before 0.31. */
static struct sdk_span *old_late_close(const struct sdk_context *parent, const struct sdk_context *own)
{
	struct sdk_span *span = sdk_allocate(sizeof(*span));
	struct sdk_context none = {};

	probe(PROBE_BUILD_WITH_CONTEXT, (struct host_registers){.di = (__u64)span}, NULL);
	fill_span(span, parent ? parent : &none, own);
	probe(PROBE_BUILD_WITH_CONTEXT_RETURNS, (struct host_registers){}, NULL);
	end(span);
	return span;
}

/* ---- what came of it */

static struct span_frame active_of(__u64 task)
{
	struct active_spans found;

	CHECK(host_is_active(PID, task, &found));
	return found.active;
}

static struct span_frame server_of(__u64 task)
{
	struct active_spans found;

	CHECK(host_is_active(PID, task, &found));
	return found.server;
}

static const void *event_of_kind(__u32 kind, __u32 index)
{
	for (__u32 i = 0; i < host_events(); i++) {
		const struct event_head *head = host_event(i).bytes;

		if (head->kind == kind && !index--)
			return head;
	}
	return NULL;
}

static __u32 events_of_kind(__u32 kind)
{
	__u32 events = 0;

	while (event_of_kind(kind, events))
		events++;
	return events;
}

static struct manual_span_event manual_event(__u32 index)
{
	struct manual_span_event event = {};
	const void *bytes = event_of_kind(EVENT_MANUAL_SPAN, index);

	CHECK(bytes);
	for (__u32 i = 0; i < host_events(); i++)
		if (host_event(i).bytes == bytes)
			memcpy(&event, bytes, host_event(i).size);
	return event;
}

#define CHECK_IN_TRACE(span, server)                                                                              \
	do {                                                                                                      \
		CHECK_EQUAL((span)->context.trace_id_low, (server).trace_id_low);                                 \
		CHECK_EQUAL((span)->context.trace_id_high, (server).trace_id_high);                               \
	} while (0)

/* ---- roots */

TEST(first_root_verifies_the_layout_and_is_adopted)
{
	struct target settings = sdk_target;
	const struct adoption_event *adoption;
	struct span_frame server;
	struct sdk_span *root;

	settings.adoption = ADOPTION_UNVERIFIED;
	start_with(&settings);
	in(GET);
	server = server_of(17);
	root = start_span(NULL);
	CHECK_EQUAL(target->adoption, ADOPTION_VERIFIED);
	adoption = event_of_kind(EVENT_ADOPTION, 0);
	CHECK(adoption);
	CHECK_EQUAL(adoption->adoption, ADOPTION_VERIFIED);
	CHECK_EQUAL(stops, 1); /* at build_recording_span alone */
	CHECK_IN_TRACE(root, server);
	CHECK_EQUAL(active_of(17).span_id, root->context.span_id);
	end(root);
	CHECK_EQUAL(root->parent_span_id, server.span_id);
	CHECK_EQUAL(manual_event(0).relation, MANUAL_ADOPTED);
	CHECK_EQUAL(host_count(COUNT_ROOTS_ADOPTED), 1);
	CHECK_EQUAL(active_of(17).span_id, server.span_id);
	out(OK);
	CHECK_EQUAL(host_live_slots(PID), 0);
	CHECK_EQUAL(host_map_count("root_starts"), 0);
	CHECK_EQUAL(host_map_count("manual_spans"), 0);
	CHECK_EQUAL(events_of_kind(EVENT_ADOPTION), 1);
}

TEST(arguments_are_found_at_the_first_root)
{
	struct target settings = sdk_target;
	struct span_frame server;
	struct sdk_span *root;

	settings.adoption = ADOPTION_UNVERIFIED;
	settings.context_argument = settings.parent_argument = 0;
	start_with(&settings);
	in(GET);
	server = server_of(17);
	start_span(&(struct sdk_context){.trace_id_low = 5, .trace_id_high = 6, .span_id = 7, .flags = 1});
	CHECK_EQUAL(target->context_argument, 0);
	root = start_span(NULL);
	CHECK_EQUAL(target->context_argument, 3);
	CHECK_EQUAL(target->parent_argument, 2);
	CHECK_EQUAL(target->parent_is_id, 0);
	CHECK_EQUAL(target->adoption, ADOPTION_VERIFIED);
	CHECK_IN_TRACE(root, server);
}

TEST(arguments_that_are_not_found)
{
	const struct adoption_event *adoption;
	struct target settings = sdk_target;
	struct sdk_span *root;

	settings.adoption = ADOPTION_UNVERIFIED;
	settings.context_argument = settings.parent_argument = 0;
	settings.layout.context_span_id = offsetof(struct sdk_context, trace_id_low);
	start_with(&settings);
	in(GET);
	for (int roots = 0; roots < 1000; roots++) {
		root = start_span(NULL);
		CHECK_EQUAL(target->adoption, ADOPTION_UNVERIFIED);
	}
	root = start_span(NULL);
	adoption = event_of_kind(EVENT_ADOPTION, 0);
	CHECK(adoption && adoption->what == CHECK_ARGUMENTS && adoption->adoption == ADOPTION_MISMATCH);
	end(root);
	CHECK_EQUAL(root->parent_span_id, 0);
	CHECK_EQUAL(stops, 0);
}

TEST(old_sdk_roots_and_children)
{
	struct target settings = sdk_target;
	struct sdk_span *root, *child, *second;
	struct span_frame server;

	settings.adoption = ADOPTION_UNVERIFIED;
	start_with(&settings);
	in(GET);
	server = server_of(17);
	for (int i = 0; i < 2; i++) {
		root = old_start_span(NULL);
		CHECK_EQUAL(target->adoption, ADOPTION_VERIFIED);
		CHECK_IN_TRACE(root, server);
		CHECK_EQUAL(active_of(17).span_id, root->context.span_id);
		child = old_start_span(&root->context);
		CHECK_EQUAL(active_of(17).span_id, child->context.span_id);
		second = old_start_span(NULL);
		end(second);
		CHECK_EQUAL(second->parent_span_id, child->context.span_id);
		end(child);
		CHECK_EQUAL(child->parent_span_id, root->context.span_id);
		end(root);
		CHECK_EQUAL(root->parent_span_id, server.span_id);
	}
	out(OK);
	CHECK_EQUAL(host_live_slots(PID), 0);
	CHECK_EQUAL(host_map_count("builds"), 0);
	CHECK_EQUAL(host_map_count("manual_spans"), 0);
	CHECK_EQUAL(host_count(COUNT_ROOTS_ADOPTED), 4);
}

/* ---- layouts that are learned */

TEST(while_the_layout_is_learned_samples_are_sent_and_nothing_else_is_done)
{
	struct target settings = sdk_target;
	const struct span_sample_event *sample;
	struct sdk_span *root, *child;

	settings.adoption = ADOPTION_LEARNING;
	memset(&settings.layout, 0xff, sizeof(settings.layout));
	start_with(&settings);
	in(GET);
	new_span_id(); /* of no span */
	root = old_start_span(NULL);
	child = old_start_span(&root->context);
	end(child);
	end(root);
	CHECK_EQUAL(host_events(), 2);
	sample = event_of_kind(EVENT_SPAN_SAMPLE, 0);
	CHECK_EQUAL(sample->number, 0);
	CHECK(sample->began && sample->trace_noted && sample->span_noted);
	CHECK_EQUAL(sample->trace_id_low, root->context.trace_id_low);
	CHECK_EQUAL(sample->trace_id_high, root->context.trace_id_high);
	CHECK_EQUAL(sample->span_id, root->context.span_id);
	CHECK(!memcmp(sample->memory, root, offsetof(struct sdk_span, data)));
	sample = event_of_kind(EVENT_SPAN_SAMPLE, 1);
	CHECK_EQUAL(sample->number, 1);
	CHECK(!sample->began && !sample->trace_noted && sample->span_noted);
	CHECK_EQUAL(sample->span_id, child->context.span_id);
	CHECK_EQUAL(root->parent_span_id, 0);
	CHECK_EQUAL(stops, 0);
	CHECK_EQUAL(target->adoption, ADOPTION_LEARNING);
	CHECK_EQUAL(active_of(17).span_id, server_of(17).span_id);
	CHECK_EQUAL(host_map_count("root_starts"), 0);
	CHECK_EQUAL(host_map_count("builds"), 0);
	for (int i = 2; i < SPAN_SAMPLES_MAX + 10; i++) {
		host_unmap_memory(root);
		host_free(root);
		root = old_start_span(NULL);
	}
	CHECK_EQUAL(events_of_kind(EVENT_SPAN_SAMPLE), SPAN_SAMPLES_MAX);
}

TEST(a_span_that_cannot_be_read_whole_is_no_sample)
{
	struct target settings = sdk_target;

	settings.adoption = ADOPTION_LEARNING;
	start_with(&settings);
	host.fail_read_user = 2; /* the first is of the task */
	old_start_span(NULL);
	CHECK_EQUAL(host_events(), 0);
	CHECK_EQUAL(host_count(COUNT_READ_FAULT), 1);
	host.fail_every_ring = true;
	old_start_span(NULL);
	CHECK_EQUAL(host_count(COUNT_EVENT_LOST), 1);
	CHECK_EQUAL(host_map_count("root_starts"), 0);
}

/* What layouts/learned.py knows in the end. */
static struct target learned_target(void)
{
	struct target settings = sdk_target;

	settings.adoption = ADOPTION_UNVERIFIED;
	settings.wants_manual_spans = 0;
	memset(&settings.layout, 0xff, sizeof(settings.layout));
	settings.layout.span_context = 0;
	settings.layout.context_trace_id = offsetof(struct sdk_span, context.trace_id_low);
	settings.layout.context_span_id = offsetof(struct sdk_span, context.span_id);
	settings.layout.context_flags = offsetof(struct sdk_span, context.flags);
	settings.layout.span_parent_id = offsetof(struct sdk_span, parent_span_id);
	settings.layout.span_start_seconds = offsetof(struct sdk_span, start_seconds);
	settings.layout.span_start_nanos = offsetof(struct sdk_span, start_nanos);
	settings.layout.span_data_size = 0;
	settings.layout.span_status_size = 0;
	return settings;
}

TEST(with_a_layout_that_was_learned)
{
	struct target settings = learned_target();
	struct sdk_span *root, *child, *other;
	struct span_frame server;

	start_with(&settings);
	in(GET);
	server = server_of(17);
	for (int i = 0; i < 2; i++) {
		root = old_start_span(NULL);
		CHECK_EQUAL(target->adoption, ADOPTION_VERIFIED);
		CHECK_IN_TRACE(root, server);
		CHECK_EQUAL(active_of(17).span_id, root->context.span_id);
		child = old_start_span(&root->context);
		CHECK_EQUAL(active_of(17).span_id, child->context.span_id);
		end(child);
		CHECK_EQUAL(child->parent_span_id, root->context.span_id);
		end(root);
		CHECK_EQUAL(root->parent_span_id, server.span_id);
		/* What has ended is not seen to have: it is not known any more. */
		root->parent_span_id = 0;
		end(root);
		CHECK_EQUAL(root->parent_span_id, 0);
		CHECK_EQUAL(active_of(17).span_id, server.span_id);
	}
	CHECK_EQUAL(host_count(COUNT_ROOTS_ADOPTED), 2);
	CHECK_EQUAL(host_count(COUNT_READ_FAULT), 0);
	other = sdk_allocate(SPAN_SAMPLE_SIZE); /* of no request */
	end(other);
	out(OK);
	CHECK_EQUAL(host_live_slots(PID), 0);
	CHECK_EQUAL(host_map_count("manual_spans"), 0);
	CHECK_EQUAL(events_of_kind(EVENT_MANUAL_SPAN), 0);
}

/* Of a span that does not record, only the ids are there: what lies where its parent would be may be anything. */
TEST(with_a_layout_that_was_learned_what_is_not_sampled_is_left_alone)
{
	struct target settings = learned_target();
	struct sdk_context own = {}, none = {.span_id = 0x77};
	struct sdk_span *span;

	settings.adoption = ADOPTION_VERIFIED;
	settings.write_mode = WRITE_KERNEL;
	start_with(&settings);
	host_kernel_writes(true);
	in(GET);
	span = sdk_allocate(SPAN_SAMPLE_SIZE);
	probe(PROBE_BUILD_WITH_CONTEXT, (struct host_registers){.di = (__u64)span}, NULL);
	own.span_id = new_span_id();
	new_trace_id(&own);
	fill_span(span, &none, &own);
	probe(PROBE_BUILD_WITH_CONTEXT_RETURNS, (struct host_registers){.ax = 1}, NULL);
	CHECK_EQUAL(target->adoption, ADOPTION_VERIFIED);
	CHECK_EQUAL(span->context.trace_id_low, own.trace_id_low);
	CHECK_EQUAL(active_of(17).span_id, server_of(17).span_id);
	end(span);
	CHECK_EQUAL(span->parent_span_id, 0x77);
}

/* A processor's on_start is user code within build_with_context, and may start spans of its own. */
TEST(old_sdk_span_within_a_span)
{
	struct sdk_span *outer, *inner;
	struct sdk_context own = {.flags = 1}, none = {};

	start();
	in(GET);
	outer = sdk_allocate(sizeof(*outer));
	probe(PROBE_BUILD_WITH_CONTEXT, (struct host_registers){.di = (__u64)outer}, NULL);
	own.span_id = new_span_id();
	new_trace_id(&own);
	fill_span(outer, &none, &own);
	stack_pointer = 0x6000;
	inner = old_start_span(NULL);
	end(inner);
	stack_pointer = 0x7000;
	probe(PROBE_BUILD_WITH_CONTEXT_RETURNS, (struct host_registers){}, NULL);
	CHECK_EQUAL(host_map_count("builds"), 0);
	end(outer);
	CHECK_EQUAL(inner->parent_span_id, server_of(17).span_id);
	CHECK_IN_TRACE(outer, server_of(17));
}

TEST(old_sdk_parent_is_not_where_the_layout_says)
{
	struct target settings = sdk_target;
	struct sdk_span *root, *child;

	/* A place that is always 0: a child seems to have no parent. */
	settings.layout.span_parent_id = offsetof(struct sdk_span, pad);
	start_with(&settings);
	in(GET);
	root = old_start_span(NULL);
	child = old_start_span(&root->context);
	CHECK_EQUAL(target->adoption, ADOPTION_MISMATCH);
	end(child);
	end(root);
	CHECK_EQUAL(root->pad, 0);
	CHECK_EQUAL(root->parent_span_id, 0);
	/* One that is never 0: a root seems to have one. */
	settings.layout.span_parent_id = offsetof(struct sdk_span, start_seconds);
	start_with(&settings);
	in(GET);
	root = old_start_span(NULL);
	CHECK_EQUAL(target->adoption, ADOPTION_MISMATCH);
	end(root);
	CHECK_EQUAL(root->start_seconds, 1700000000);
}

/* A root that is sampled records. */
TEST(old_sdk_data_is_not_where_the_layout_says)
{
	const struct adoption_event *adoption;
	struct target settings = sdk_target;
	struct sdk_span *root;

	for (int late = 0; late < 2; late++) {
		settings.adoption = ADOPTION_UNVERIFIED;
		settings.builds_late = late;
		settings.layout.span_data = offsetof(struct sdk_span, pad);
		settings.layout.span_data_none = 0;
		start_with(&settings);
		in(GET);
		if (late) {
			struct sdk_context own = late_start(NULL);

			root = old_late_close(NULL, &own);
		} else {
			root = old_start_span(NULL);
		}
		adoption = event_of_kind(EVENT_ADOPTION, 0);
		CHECK(adoption && adoption->what == CHECK_DATA && adoption->adoption == ADOPTION_MISMATCH);
		CHECK_EQUAL(root->parent_span_id, 0);
	}
	/* Its ids are not there either. */
	settings.builds_late = 0;
	settings.layout.span_context = offsetof(struct sdk_span, name);
	start_with(&settings);
	in(GET);
	old_start_span(NULL);
	adoption = event_of_kind(EVENT_ADOPTION, 0);
	CHECK(adoption && adoption->what == CHECK_TRACE_ID && adoption->adoption == ADOPTION_MISMATCH);
}

/* One that the sampler drops has the ids that were made for it, and says nothing else. */
TEST(old_sdk_dropped_root_does_not_verify)
{
	struct target settings = sdk_target;
	struct sdk_context own = {};
	struct sdk_span *span;

	settings.adoption = ADOPTION_UNVERIFIED;
	start_with(&settings);
	in(GET);
	span = sdk_allocate(sizeof(*span));
	probe(PROBE_BUILD_WITH_CONTEXT, (struct host_registers){.di = (__u64)span}, NULL);
	own.span_id = new_span_id();
	new_trace_id(&own);
	span->context = own;
	span->data = DATA_NONE;
	probe(PROBE_BUILD_WITH_CONTEXT_RETURNS, (struct host_registers){}, NULL);
	CHECK_EQUAL(target->adoption, ADOPTION_UNVERIFIED);
}

/* What it had noted on its thread is not the next span's. */
TEST(old_sdk_root_that_is_dropped_or_panics)
{
	struct sdk_span *root, *child, *dropped;

	for (int panics = 0; panics < 2; panics++) {
		struct sdk_context own = {};

		start();
		in(GET);
		root = old_start_span(NULL);
		dropped = sdk_allocate(sizeof(*dropped));
		stack_pointer = 0x6000;
		probe(PROBE_BUILD_WITH_CONTEXT, (struct host_registers){.di = (__u64)dropped}, NULL);
		new_trace_id(&own);
		dropped->data = DATA_NONE;
		if (!panics)
			probe(PROBE_BUILD_WITH_CONTEXT_RETURNS, (struct host_registers){}, NULL);
		stack_pointer = 0x7000;
		child = old_start_span(&root->context);
		CHECK_EQUAL(target->adoption, ADOPTION_VERIFIED);
		end(child);
		end(root);
		CHECK_EQUAL(root->parent_span_id, server_of(17).span_id);
	}
}

TEST(old_sdk_span_that_does_not_record)
{
	struct sdk_span *span = NULL;

	start();
	in(GET);
	span = sdk_allocate(sizeof(*span));
	probe(PROBE_BUILD_WITH_CONTEXT, (struct host_registers){.di = (__u64)span}, NULL);
	new_span_id();
	span->data = DATA_NONE;
	probe(PROBE_BUILD_WITH_CONTEXT_RETURNS, (struct host_registers){}, NULL);
	CHECK_EQUAL(active_of(17).span_id, server_of(17).span_id);
	/* A return whose entry was not seen. */
	probe(PROBE_BUILD_WITH_CONTEXT_RETURNS, (struct host_registers){}, NULL);
	CHECK_EQUAL(host_map_count("manual_spans"), 0);
}

TEST(late_spans_join_from_the_first_on)
{
	struct target settings = sdk_target;
	struct sdk_context root, child, grandchild;
	struct sdk_span *built;
	struct span_frame server;

	settings.adoption = ADOPTION_UNVERIFIED;
	settings.builds_late = 1;
	start_with(&settings);
	in(GET);
	server = server_of(17);
	for (int i = 0; i < 2; i++) {
		root = late_start(NULL);
		CHECK_EQUAL(root.trace_id_low, server.trace_id_low);
		child = late_start(&root);
		grandchild = late_start(&child);
		late_close(&child, &grandchild);
		CHECK_EQUAL(target->adoption, i ? ADOPTION_VERIFIED : ADOPTION_UNVERIFIED);
		built = late_close(&root, &child);
		CHECK_EQUAL(built->parent_span_id, root.span_id);
		CHECK_EQUAL(target->adoption, ADOPTION_VERIFIED);
		built = late_close(NULL, &root);
		CHECK_IN_TRACE(built, server);
		CHECK_EQUAL(built->parent_span_id, server.span_id);
		CHECK_EQUAL(active_of(17).span_id, server.span_id);
	}
	out(OK);
	CHECK_EQUAL(host_live_slots(PID), 0);
	CHECK_EQUAL(host_map_count("manual_spans"), 0);
	CHECK_EQUAL(host_count(COUNT_ROOTS_ADOPTED), 2);
}

/* It closes when its request is over, or in another task: what it was given at its start holds. */
TEST(late_root_outlives_its_request)
{
	struct target settings = sdk_target;
	struct sdk_context root;
	struct span_frame server;
	struct sdk_span *built;

	settings.builds_late = 1;
	start_with(&settings);
	in(GET);
	server = server_of(17);
	root = late_start(NULL);
	out(OK);
	host_tokio_task(18);
	built = late_close(NULL, &root);
	CHECK_IN_TRACE(built, server);
	CHECK_EQUAL(built->parent_span_id, server.span_id);
	CHECK_EQUAL(host_live_slots(PID), 0);
}

TEST(late_roots_that_are_left_alone)
{
	struct sdk_context by_hand = {.trace_id_low = 5, .trace_id_high = 6, .span_id = 7, .flags = 1};
	struct target settings = sdk_target;
	struct sdk_context root;
	struct sdk_span *built;

	settings.builds_late = 1;
	start_with(&settings);
	root = late_start(NULL); /* before any request */
	in(GET);
	built = late_close(NULL, &root);
	CHECK_EQUAL(built->context.trace_id_low, root.trace_id_low);
	CHECK_EQUAL(built->parent_span_id, 0);
	built = late_close(NULL, &by_hand);
	CHECK_EQUAL(built->context.trace_id_low, 5);
	CHECK_EQUAL(built->parent_span_id, 0);
	CHECK_EQUAL(stops, 0);
	host_block_signal(23);
	root = late_start(NULL);
	CHECK(root.trace_id_low != server_of(17).trace_id_low);
	late_close(NULL, &root);
	CHECK_EQUAL(stops, 0);
	CHECK_EQUAL(host_count(COUNT_ROOTS_SIGNAL_BLOCKED), 1);
}

TEST(late_layout_mismatch)
{
	struct target settings = sdk_target;
	struct sdk_context root;
	struct sdk_span *built;

	settings.builds_late = 1;
	settings.adoption = ADOPTION_UNVERIFIED;
	settings.layout.context_trace_id = offsetof(struct sdk_context, pad);
	start_with(&settings);
	in(GET);
	root = late_start(NULL);
	built = late_close(NULL, &root);
	CHECK_EQUAL(target->adoption, ADOPTION_MISMATCH);
	CHECK_EQUAL(built->parent_span_id, 0);
	/* Where nothing is ever found, that is said in the end. */
	settings.layout = sdk_target.layout;
	settings.layout.context_span_id = offsetof(struct sdk_context, pad);
	start_with(&settings);
	in(GET);
	for (int i = 0; i < 2000 && target->adoption == ADOPTION_UNVERIFIED; i++) {
		root = late_start(NULL);
		built = late_close(NULL, &root);
		CHECK_EQUAL(built->parent_span_id, 0);
	}
	CHECK_EQUAL(target->adoption, ADOPTION_MISMATCH);
	CHECK_EQUAL(events_of_kind(EVENT_ADOPTION), 1);
}

/* A child's parent is right, its own id is not: that is no proof. */
TEST(late_span_id_is_not_where_the_layout_says)
{
	struct target settings = sdk_target;
	struct sdk_context root, child;
	struct sdk_span *built;

	settings.builds_late = 1;
	settings.adoption = ADOPTION_UNVERIFIED;
	settings.layout.context_span_id = offsetof(struct sdk_context, trace_id_high);
	start_with(&settings);
	in(GET);
	root = late_start(NULL);
	child = late_start(&root);
	built = old_late_close(&root, &child);
	CHECK_EQUAL(target->adoption, ADOPTION_UNVERIFIED);
	built = old_late_close(NULL, &root);
	CHECK_EQUAL(built->parent_span_id, 0);
	CHECK_EQUAL(target->adoption, ADOPTION_UNVERIFIED);
}

TEST(late_parent_is_not_where_the_layout_says)
{
	struct target settings = sdk_target;
	struct sdk_context root;
	struct sdk_span *built;

	settings.builds_late = 1;
	settings.layout.span_parent_id = offsetof(struct sdk_span, start_seconds);
	start_with(&settings);
	in(GET);
	root = late_start(NULL);
	built = old_late_close(NULL, &root);
	CHECK_EQUAL(target->adoption, ADOPTION_MISMATCH);
	CHECK_EQUAL(built->start_seconds, 1700000000);
	/* Where it seems to be 0 for each span, that is said in the end. */
	settings.parent_proven = 0;
	settings.layout.span_parent_id = offsetof(struct sdk_span, pad);
	start_with(&settings);
	in(GET);
	for (int i = 0; i < 2000 && target->adoption == ADOPTION_VERIFIED; i++) {
		root = late_start(NULL);
		built = old_late_close(NULL, &root);
		CHECK_EQUAL(built->pad, 0);
	}
	CHECK_EQUAL(target->adoption, ADOPTION_MISMATCH);
}

TEST(late_spans_with_nothing_written)
{
	struct target settings = sdk_target;
	struct sdk_context root;

	settings.builds_late = 1;
	settings.write_mode = WRITE_OFF;
	start_with(&settings);
	in(GET);
	root = late_start(NULL);
	late_close(NULL, &root);
	CHECK_EQUAL(events_of_kind(EVENT_MANUAL_ROOT), 1);
	settings.write_mode = WRITE_KERNEL;
	start_with(&settings);
	in(GET);
	root = late_start(NULL);
	late_close(NULL, &root);
	CHECK_EQUAL(stops, 0);
}

/* What an image shows in which building and ending a span are inlined: ids, and what processors are given. */
static struct sdk_span *export_span(const struct sdk_context *parent, const struct sdk_context *own)
{
	struct sdk_context none = {};
	struct sdk_span *data = sdk_allocate(sizeof(*data));

	fill_span(data, parent ? parent : &none, own);
	probe(PROBE_ON_END, (struct host_registers){.si = (__u64)data}, NULL);
	return data;
}

static void start_exported(enum adoption adoption)
{
	struct target settings = sdk_target;

	settings.adoption = adoption;
	settings.builds_late = 1;
	start_with(&settings);
}

TEST(exported_spans_join)
{
	struct sdk_context root, child;
	struct span_frame server;
	struct sdk_span *data;

	start_exported(ADOPTION_UNVERIFIED);
	in(GET);
	server = server_of(17);
	root = late_start(NULL);
	child = late_start(&root);
	data = export_span(&root, &child);
	CHECK_EQUAL(target->adoption, ADOPTION_VERIFIED);
	CHECK_EQUAL(data->parent_span_id, root.span_id);
	data = export_span(NULL, &root);
	CHECK_IN_TRACE(data, server);
	CHECK_EQUAL(data->parent_span_id, server.span_id);
	CHECK_EQUAL(host_count(COUNT_ROOTS_ADOPTED), 1);
	CHECK_EQUAL(events_of_kind(EVENT_MANUAL_SPAN), 2);
	/* A second processor has a copy of its own; one that hands on what it was given has not. */
	data = export_span(NULL, &root);
	CHECK_EQUAL(data->parent_span_id, server.span_id);
	probe(PROBE_ON_END, (struct host_registers){.si = (__u64)data}, NULL);
	CHECK_EQUAL(data->parent_span_id, server.span_id);
	export_span(&root, &child);
	CHECK_EQUAL(stops, 1 + 2); /* the id, and each copy of the root */
	CHECK_EQUAL(host_count(COUNT_ROOTS_ADOPTED), 1);
	CHECK_EQUAL(host_count(COUNT_MANUAL_SPANS), 2);
	CHECK_EQUAL(events_of_kind(EVENT_MANUAL_SPAN), 2);
	CHECK_EQUAL(host_live_frames(PID), 1);
}

TEST(exported_span_with_the_remote_parent)
{
	struct sdk_context remote = {}, own;
	struct span_frame server;
	struct sdk_span *data;

	start_exported(ADOPTION_VERIFIED);
	in(GET_WITH_PARENT);
	server = server_of(17);
	remote.trace_id_low = server.trace_id_low;
	remote.trace_id_high = server.trace_id_high;
	remote.span_id = REMOTE_PARENT;
	remote.is_remote = 1;
	own = late_start(&remote);
	data = export_span(&remote, &own);
	CHECK_EQUAL(data->parent_span_id, server.span_id);
	CHECK_EQUAL(data->parent_is_remote, 0);
	CHECK_EQUAL(host_count(COUNT_REMOTE_ADOPTED), 1);
}

TEST(exported_spans_that_are_left_alone)
{
	struct sdk_context by_hand = {.trace_id_low = 5, .trace_id_high = 6, .span_id = 7, .flags = 1};
	struct sdk_span *data;

	start_exported(ADOPTION_VERIFIED);
	data = export_span(NULL, &by_hand);
	in(GET);
	data = export_span(NULL, &by_hand);
	CHECK_EQUAL(data->parent_span_id, 0);
	CHECK_EQUAL(data->context.trace_id_low, 5);
	CHECK_EQUAL(stops, 0);
}

TEST(exported_root_that_is_not_where_the_layout_says)
{
	struct target settings = sdk_target;
	struct sdk_context root;
	struct sdk_span *data;

	settings.builds_late = 1;
	settings.layout.span_start_seconds = offsetof(struct sdk_span, pad);
	start_with(&settings);
	in(GET);
	root = late_start(NULL);
	data = export_span(NULL, &root);
	CHECK_EQUAL(target->adoption, ADOPTION_MISMATCH);
	CHECK_EQUAL(data->parent_span_id, 0);
	settings.write_mode = WRITE_OFF;
	settings.layout = sdk_target.layout;
	start_with(&settings);
	in(GET);
	root = late_start(NULL);
	data = export_span(NULL, &root);
	CHECK_EQUAL(events_of_kind(EVENT_MANUAL_ROOT), 1);
	CHECK_EQUAL(stops, 0);
}

TEST(layout_is_verified_outside_of_a_request_too)
{
	struct target settings = sdk_target;
	struct sdk_span *root;

	settings.adoption = ADOPTION_UNVERIFIED;
	start_with(&settings);
	root = start_span(NULL);
	CHECK_EQUAL(target->adoption, ADOPTION_VERIFIED);
	CHECK_EQUAL(stops, 0);
	CHECK(root->context.trace_id_low);
	end(root);
	CHECK_EQUAL(root->parent_span_id, 0);
	CHECK_EQUAL(manual_event(0).relation, MANUAL_OTHER);
}

/* Nothing is verified by a child, nor by a root of which not both ids were noted. */
TEST(layout_is_not_verified_by_less_than_a_root)
{
	struct sdk_context parent = {.trace_id_low = 5, .trace_id_high = 6, .span_id = 7, .flags = 1};
	struct sdk_context own = {.span_id = 8, .flags = 1};
	struct target settings = sdk_target;

	settings.adoption = ADOPTION_UNVERIFIED;
	start_with(&settings);
	in(GET);
	start_span(&parent);
	new_trace_id(&own);
	build(NULL, &own);
	CHECK_EQUAL(target->adoption, ADOPTION_UNVERIFIED);
	CHECK_EQUAL(stops, 0);
	CHECK_EQUAL(events_of_kind(EVENT_ADOPTION), 0);
	CHECK_EQUAL(host_live_frames(PID), 1);
}

static void check_mismatch(const struct target *settings, __u32 what)
{
	const struct adoption_event *adoption;
	struct sdk_span *root;

	start_with(settings);
	in(GET);
	root = start_span(NULL);
	CHECK_EQUAL(target->adoption, ADOPTION_MISMATCH);
	adoption = event_of_kind(EVENT_ADOPTION, 0);
	CHECK(adoption);
	CHECK_EQUAL(adoption->adoption, ADOPTION_MISMATCH);
	CHECK_EQUAL(adoption->what, what);
	CHECK(adoption->expected != adoption->found);
	end(root);
	root = start_span(NULL);
	end(root);
	CHECK_EQUAL(root->parent_span_id, 0);
	CHECK_EQUAL(stops, 0);
	CHECK_EQUAL(host_live_frames(PID), 1);
	out(OK);
	CHECK_EQUAL(span_events(), 1);
	CHECK_EQUAL(events_of_kind(EVENT_MANUAL_SPAN), 0);
	CHECK_EQUAL(events_of_kind(EVENT_ADOPTION), 1);
}

TEST(layout_mismatch_switches_adoption_off)
{
	struct target settings = sdk_target;

	settings.adoption = ADOPTION_UNVERIFIED;
	settings.layout.context_trace_id = offsetof(struct sdk_context, trace_id_high);
	check_mismatch(&settings, CHECK_TRACE_ID);
	settings = sdk_target;
	settings.adoption = ADOPTION_UNVERIFIED;
	settings.layout.context_trace_id = offsetof(struct sdk_context, pad);
	check_mismatch(&settings, CHECK_TRACE_ID);
	settings = sdk_target;
	settings.adoption = ADOPTION_UNVERIFIED;
	settings.layout.context_span_id = offsetof(struct sdk_context, pad);
	check_mismatch(&settings, CHECK_SPAN_ID);
}

TEST(no_sdk_no_reads)
{
	struct target settings = sdk_target;

	for (int i = 0; i < 2; i++) {
		settings.adoption = i ? ADOPTION_NONE : ADOPTION_MISMATCH;
		start_with(&settings);
		in(GET);
		host.reads_user = 0;
		end(start_span(NULL));
		CHECK_EQUAL(host.reads_user, 0);
		CHECK_EQUAL(stops, 0);
		CHECK_EQUAL(host_events(), 0);
	}
}

TEST(process_that_is_no_target)
{
	start();
	host_hide_target(PID);
	end(start_span(NULL));
	CHECK_EQUAL(stops, 0);
	CHECK_EQUAL(host_events(), 0);
}

TEST(trace_id_is_fixed_at_its_source)
{
	struct sdk_context own = {.flags = 1};
	struct span_frame server;
	struct sdk_span *root;

	start();
	in(GET);
	server = server_of(17);
	own.span_id = new_span_id();
	new_trace_id(&own);
	CHECK_EQUAL(stops, 1);
	CHECK_EQUAL(own.trace_id_low, server.trace_id_low);
	CHECK_EQUAL(own.trace_id_high, server.trace_id_high);
	root = build(NULL, &own);
	CHECK_EQUAL(stops, 1); /* nothing is left to write */
	end(root);
	CHECK_EQUAL(stops, 2);
	CHECK_EQUAL(root->parent_span_id, server.span_id);
	CHECK_EQUAL(host_count(COUNT_ROOTS_ADOPTED), 1);
}

TEST(root_outside_of_any_request)
{
	struct sdk_span *root;

	start();
	root = start_span(NULL);
	end(root);
	CHECK_EQUAL(root->parent_span_id, 0);
	CHECK_EQUAL(stops, 0);
	CHECK_EQUAL(manual_event(0).relation, MANUAL_OTHER);
	CHECK_EQUAL(manual_event(0).trace_id_low, root->context.trace_id_low);
}

TEST(root_with_two_requests_open)
{
	struct sdk_span *root;

	start();
	in(GET);
	sys_accept(FD + 1, &host_tcp);
	in_at(FD + 1, GET, sizeof(GET) - 1);
	root = start_span(NULL);
	end(root);
	CHECK_EQUAL(stops, 0);
	CHECK_EQUAL(root->parent_span_id, 0);
}

TEST(several_roots_of_a_request)
{
	struct span_frame server;
	struct sdk_span *roots[3];

	start();
	in(GET);
	server = server_of(17);
	for (int i = 0; i < 3; i++) {
		roots[i] = start_span(NULL);
		end(roots[i]);
		CHECK_IN_TRACE(roots[i], server);
		CHECK_EQUAL(roots[i]->parent_span_id, server.span_id);
	}
	CHECK_EQUAL(host_count(COUNT_ROOTS_ADOPTED), 3);
}

/* As the branches of a join!: a root that starts while another is open. */
TEST(root_within_a_root)
{
	for (__u32 mode = ADOPT_ACTIVE; mode <= ADOPT_SERVER; mode++) {
		struct target settings = sdk_target;
		struct sdk_span *outer, *inner;
		struct span_frame server;

		settings.adopt_mode = mode;
		start_with(&settings);
		in(GET);
		server = server_of(17);
		outer = start_span(NULL);
		inner = start_span(NULL);
		end(outer); /* in the wrong order */
		end(inner);
		CHECK_IN_TRACE(inner, server);
		CHECK_EQUAL(outer->parent_span_id, server.span_id);
		CHECK_EQUAL(inner->parent_span_id, mode == ADOPT_SERVER ? server.span_id : outer->context.span_id);
		CHECK_EQUAL(active_of(17).span_id, server.span_id);
	}
}

TEST(sampler_drops_a_root)
{
	struct sdk_context dropped = {};
	struct span_frame server;
	struct sdk_span *root;

	start();
	in(GET);
	server = server_of(17);
	dropped.span_id = new_span_id();
	new_trace_id(&dropped); /* and nothing is built */
	CHECK_EQUAL(host_live_frames(PID), 1);
	root = start_span(NULL);
	CHECK_EQUAL(active_of(17).span_id, root->context.span_id);
	end(root);
	CHECK_EQUAL(root->parent_span_id, server.span_id);
}

/* A trace id that the SDK did not make is the application's own choice. */
TEST(root_with_an_id_of_the_applications)
{
	struct sdk_context own = {.trace_id_low = 5, .trace_id_high = 6, .span_id = 7, .flags = 1};
	struct sdk_span *root;

	start();
	in(GET);
	root = build(NULL, &own);
	CHECK_EQUAL(root->context.trace_id_low, 5);
	end(root);
	CHECK_EQUAL(root->parent_span_id, 0);
	CHECK_EQUAL(stops, 0);
	CHECK_EQUAL(host_count(COUNT_ROOTS_OWN_ID), 1);
	CHECK_EQUAL(manual_event(0).relation, MANUAL_OTHER);
}

/* A function that may be a generator's is one where the SDK calls it, which the return address tells. */
TEST(functions_that_may_be_a_generators)
{
	struct sdk_context own = {};
	__u64 *stack;

	start();
	in(GET);
	stack = sdk_allocate(sizeof(*stack));
	stack_pointer = (__u64)stack;
	host.cookie = 0x500;
	*stack = 0x400000 + PROBE_NEW_TRACE_ID + 0x400;
	new_trace_id(&own);
	CHECK(own.trace_id_low != server_of(17).trace_id_low);
	CHECK_EQUAL(stops, 0);
	CHECK_EQUAL(host_map_count("root_starts"), 0);
	*stack += 0x100;
	new_trace_id(&own);
	CHECK_EQUAL(own.trace_id_low, server_of(17).trace_id_low);
	/* Of another function, in front of the code that calls it; and not to be read. */
	host.cookie = -0x500ULL;
	*stack -= 0xa00;
	new_trace_id(&own);
	CHECK_EQUAL(stops, 2);
	stack_pointer = 0x7000;
	new_trace_id(&own);
	CHECK_EQUAL(stops, 2);
}

TEST(unsampled_request_adopts_nothing)
{
	struct target settings = sdk_target;
	struct sdk_span *root;

	settings.sample_below = 0;
	start_with(&settings);
	in(GET);
	root = start_span(NULL);
	end(root);
	CHECK_EQUAL(stops, 0);
	CHECK_EQUAL(root->parent_span_id, 0);
	CHECK_EQUAL(host_count(COUNT_ROOTS_UNSAMPLED), 1);
	CHECK_EQUAL(manual_event(0).relation, MANUAL_OTHER);
}

/* A root that begins, and that the service's sampler drops: no span is built. */
static struct sdk_context drop_root(void)
{
	struct sdk_context own = {};

	own.span_id = new_span_id();
	new_trace_id(&own);
	return own;
}

/* An id by hand, right after a root on that thread that the service's sampler dropped: the id of that was ours. */
TEST(root_with_an_id_of_the_applications_after_a_dropped_one)
{
	struct sdk_context own = {.trace_id_low = 5, .trace_id_high = 6, .span_id = 7, .flags = 1};
	struct sdk_span *root;

	start();
	in(GET);
	drop_root();
	root = build(NULL, &own);
	end(root);
	CHECK_EQUAL(root->context.trace_id_low, 5);
	CHECK_EQUAL(root->parent_span_id, 0);
	CHECK_EQUAL(stops, 1);
	CHECK_EQUAL(host_count(COUNT_ROOTS_OWN_ID), 1);
	CHECK_EQUAL(host_count(COUNT_ROOTS_DROPPED), 1);
	/* What comes then is a root as ever. */
	root = start_span(NULL);
	end(root);
	CHECK_EQUAL(root->context.trace_id_low, server_of(17).trace_id_low);
	CHECK_EQUAL(root->parent_span_id, server_of(17).span_id);
	CHECK_EQUAL(host_count(COUNT_ROOTS_DROPPED), 1);
}

TEST(roots_that_the_service_drops_are_counted)
{
	struct sdk_span *root, *only_recorded;
	struct sdk_context dropped, own = {};

	start();
	drop_root();
	CHECK_EQUAL(host_count(COUNT_ROOTS_DROPPED), 0); /* of no request */
	in(GET);
	root = start_span(NULL);
	CHECK_EQUAL(host_count(COUNT_ROOTS_DROPPED), 0);

	dropped = drop_root();
	CHECK_EQUAL(dropped.trace_id_low, server_of(17).trace_id_low);
	CHECK_EQUAL(host_count(COUNT_ROOTS_DROPPED), 1);
	/* Spans with a parent are not that root, be it the dropped one. */
	end(start_span(&root->context));
	drop_root();
	end(start_span(&dropped));
	end(root);
	CHECK_EQUAL(host_count(COUNT_ROOTS_DROPPED), 2);

	/* Two in a row on one thread, then one on another. */
	drop_root();
	drop_root();
	host_thread(PID, TID + 1);
	host_traced_by(TRACER);
	host_tokio_task(17);
	drop_root();
	end(start_span(NULL));
	host_thread(PID, TID);
	end(start_span(NULL));
	CHECK_EQUAL(host_count(COUNT_ROOTS_DROPPED), 5);

	/* RecordOnly: a span like any other. Whether it is exported is a processor's choice. */
	own.span_id = new_span_id();
	new_trace_id(&own);
	only_recorded = build(NULL, &own);
	CHECK_EQUAL(active_of(17).span_id, only_recorded->context.span_id);
	end(only_recorded);
	CHECK_EQUAL(only_recorded->parent_span_id, server_of(17).span_id);
	CHECK_EQUAL(host_count(COUNT_ROOTS_DROPPED), 5);
	out(OK);
	drop_root();
	CHECK_EQUAL(host_count(COUNT_ROOTS_DROPPED), 5);
}

TEST(dropped_roots_are_counted_whatever_is_written)
{
	static const __u32 modes[] = {WRITE_STOP, WRITE_KERNEL, WRITE_OFF};
	struct target settings = sdk_target;

	for (__u32 i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
		settings.write_mode = modes[i];
		settings.adoption = ADOPTION_UNVERIFIED;
		start_with(&settings);
		host_kernel_writes(true);
		in(GET);
		drop_root();
		CHECK_EQUAL(target->adoption, ADOPTION_UNVERIFIED);
		end(start_span(NULL));
		CHECK_EQUAL(target->adoption, ADOPTION_VERIFIED);
		drop_root();
		end(start_span(NULL));
		CHECK_EQUAL(host_count(COUNT_ROOTS_DROPPED), 2);
	}
}

TEST(dropped_roots_of_an_unsampled_request_are_not_counted_twice)
{
	struct target settings = sdk_target;

	settings.sample_below = 0;
	start_with(&settings);
	in(GET);
	drop_root();
	end(start_span(NULL));
	CHECK_EQUAL(host_count(COUNT_ROOTS_UNSAMPLED), 2);
	CHECK_EQUAL(host_count(COUNT_ROOTS_DROPPED), 0);
}

TEST(old_sdk_counts_the_roots_that_it_drops)
{
	struct sdk_span *span;

	start();
	in(GET);
	span = sdk_allocate(sizeof(*span));
	probe(PROBE_BUILD_WITH_CONTEXT, (struct host_registers){.di = (__u64)span}, NULL);
	drop_root();
	span->data = DATA_NONE;
	probe(PROBE_BUILD_WITH_CONTEXT_RETURNS, (struct host_registers){}, NULL);
	end(old_start_span(NULL));
	CHECK_EQUAL(host_count(COUNT_ROOTS_DROPPED), 1);
}

/* Much may come between ids and span: nothing tells a root that was dropped from one that is open. */
TEST(roots_that_are_built_late_are_not_counted_as_dropped)
{
	struct target settings = sdk_target;
	struct sdk_context root;

	settings.builds_late = 1;
	start_with(&settings);
	in(GET);
	root = late_start(NULL);
	late_start(NULL);
	late_close(NULL, &root);
	CHECK_EQUAL(host_count(COUNT_ROOTS_DROPPED), 0);
}

/* ---- spans with a parent */

TEST(local_parent_is_left_alone)
{
	struct sdk_span *root, *child, *grandchild;

	start();
	in(GET);
	root = start_span(NULL);
	child = start_span(&root->context);
	grandchild = start_span(&child->context);
	CHECK_EQUAL(active_of(17).span_id, grandchild->context.span_id);
	end(grandchild);
	CHECK_EQUAL(active_of(17).span_id, child->context.span_id);
	end(child);
	CHECK_EQUAL(active_of(17).span_id, root->context.span_id);
	CHECK_EQUAL(stops, 1);
	end(root);
	CHECK_EQUAL(stops, 2);
	CHECK_EQUAL(child->parent_span_id, root->context.span_id);
	CHECK_EQUAL(grandchild->parent_span_id, child->context.span_id);
	CHECK_EQUAL(manual_event(0).relation, MANUAL_CHILD);
	CHECK_EQUAL(manual_event(1).relation, MANUAL_CHILD);
	CHECK_EQUAL(manual_event(2).relation, MANUAL_ADOPTED);
}

/* The application extracted the traceparent itself: its span comes under the server span. */
TEST(span_with_the_remote_parent_verifies_the_layout)
{
	struct sdk_context other = remote;
	struct target settings = sdk_target;
	struct sdk_span *span;

	settings.adoption = ADOPTION_UNVERIFIED;
	start_with(&settings);
	in(GET_WITH_PARENT);
	other.span_id++;
	span = start_span(&other);
	CHECK_EQUAL(target->adoption, ADOPTION_UNVERIFIED);
	end(span);
	span = start_span(&remote);
	CHECK_EQUAL(target->adoption, ADOPTION_VERIFIED);
	CHECK_EQUAL(active_of(17).span_id, span->context.span_id);
	end(span);
	CHECK_EQUAL(span->parent_span_id, server_of(17).span_id);
}

TEST(remote_parent_of_the_request)
{
	struct target settings = sdk_target;

	for (int i = 0; i < 3; i++) {
		struct span_frame server;
		struct sdk_span *span;

		if (i == 1)
			settings.layout.span_parent_is_remote = LAYOUT_ABSENT;
		if (i == 2)
			settings.adopt_mode = ADOPT_SERVER;
		start_with(&settings);
		in(GET_WITH_PARENT);
		server = server_of(17);
		CHECK_EQUAL(server.remote_parent, REMOTE_PARENT);
		span = start_span(&remote);
		CHECK_EQUAL(stops, 0);
		CHECK_EQUAL(active_of(17).span_id, span->context.span_id);
		end(span);
		CHECK_EQUAL(stops, 1);
		CHECK_EQUAL(span->parent_span_id, server.span_id);
		CHECK_EQUAL(span->parent_is_remote, i ? 1 : 0);
		CHECK_EQUAL(manual_event(0).relation, MANUAL_ADOPTED);
		CHECK_EQUAL(manual_event(0).parent_span_id, server.span_id);
		CHECK_EQUAL(host_count(COUNT_REMOTE_ADOPTED), 1);
		CHECK_EQUAL(host_count(COUNT_ROOTS_ADOPTED), 0);
	}
}

TEST(other_remote_parents_are_left_alone)
{
	const struct sdk_context parents[] = {
		/* of another trace */
		{.trace_id_low = 1, .trace_id_high = 2, .span_id = REMOTE_PARENT, .flags = 1, .is_remote = 1},
		{.trace_id_low = REMOTE_LOW, .trace_id_high = 2, .span_id = REMOTE_PARENT, .is_remote = 1},
		/* of this trace, but another span */
		{.trace_id_low = REMOTE_LOW, .trace_id_high = REMOTE_HIGH, .span_id = 3, .is_remote = 1},
		/* the same id, but local */
		{.trace_id_low = REMOTE_LOW, .trace_id_high = REMOTE_HIGH, .span_id = REMOTE_PARENT},
	};

	for (int i = 0; i < 4; i++) {
		struct sdk_span *span;

		start();
		in(GET_WITH_PARENT);
		span = start_span(&parents[i]);
		CHECK_EQUAL(host_live_frames(PID), i < 2 ? 1 : 2);
		end(span);
		CHECK_EQUAL(stops, 0);
		CHECK_EQUAL(span->parent_span_id, parents[i].span_id);
		CHECK_EQUAL(span->parent_is_remote, parents[i].is_remote);
		CHECK_EQUAL(manual_event(0).relation, i < 2 ? MANUAL_OTHER : MANUAL_CHILD);
		CHECK_EQUAL(host_live_frames(PID), 1);
	}
}

/* ---- how spans end */

TEST(second_end_does_nothing)
{
	struct sdk_span *root;

	start();
	in(GET);
	root = start_span(NULL);
	end(root);
	host_forget_events();
	end(root);
	end_at(root, 5, 6);
	CHECK_EQUAL(stops, 2);
	CHECK_EQUAL(host_events(), 0);
	CHECK_EQUAL(host_count(COUNT_MANUAL_SPANS), 1);
	CHECK_EQUAL(host_live_frames(PID), 1);
}

TEST(ended_in_another_task)
{
	struct span_frame server;
	struct sdk_span *root;

	start();
	in(GET);
	server = server_of(17);
	root = start_span(NULL);
	host_thread(PID, TID + 1);
	host_traced_by(TRACER);
	host_tokio_task(18);
	end(root);
	CHECK_EQUAL(root->parent_span_id, server.span_id);
	CHECK_EQUAL(active_of(17).span_id, server.span_id);
	CHECK_EQUAL(host_live_frames(PID), 1);
}

TEST(outlives_its_request)
{
	struct span_frame server;
	struct sdk_span *root;

	start();
	in(GET);
	server = server_of(17);
	root = start_span(NULL);
	out(OK);
	CHECK_EQUAL(host_live_slots(PID), 0);
	end(root);
	CHECK_EQUAL(root->parent_span_id, server.span_id);
	CHECK_EQUAL(manual_event(0).relation, MANUAL_ADOPTED);
	CHECK_EQUAL(host_live_slots(PID), 0);
}

TEST(never_ends)
{
	struct span_frame next;
	struct sdk_span *root;

	start();
	in(GET);
	start_span(NULL);
	out(OK);
	in(GET);
	next = server_of(17);
	root = start_span(NULL);
	end(root);
	CHECK_IN_TRACE(root, next);
	CHECK_EQUAL(root->parent_span_id, next.span_id);
}

TEST(stack_overflows)
{
	struct sdk_span *spans[SPANS_DEPTH + 5];
	struct span_frame server;

	start();
	in(GET);
	server = server_of(17);
	spans[0] = start_span(NULL);
	for (int i = 1; i < SPANS_DEPTH + 5; i++)
		spans[i] = start_span(&spans[i - 1]->context);
	CHECK_EQUAL(host_count(COUNT_STACK_FULL), 6);
	for (int i = SPANS_DEPTH + 4; i >= 0; i--) {
		end(spans[i]);
		CHECK_EQUAL(spans[i]->parent_span_id, i ? spans[i - 1]->context.span_id : server.span_id);
	}
	CHECK_EQUAL(host_live_frames(PID), 1);
	CHECK_EQUAL(events_of_kind(EVENT_MANUAL_SPAN), SPANS_DEPTH + 5);
}

/* A span that has been forgotten is not touched at its end. */
TEST(more_spans_than_are_remembered)
{
	struct sdk_span *spans[5];
	struct span_frame server;

	start();
	host_map_limit("manual_spans", 3);
	in(GET);
	server = server_of(17);
	for (int i = 0; i < 5; i++)
		spans[i] = start_span(NULL);
	for (int i = 0; i < 5; i++)
		end(spans[i]);
	CHECK_EQUAL(manual_event(0).relation, MANUAL_OTHER);
	CHECK_EQUAL(manual_event(1).relation, MANUAL_OTHER);
	for (__u32 i = 2; i < 5; i++)
		CHECK_EQUAL(manual_event(i).relation, MANUAL_ADOPTED);
	CHECK_EQUAL(spans[0]->parent_span_id, 0);
	CHECK_EQUAL(spans[4]->parent_span_id, spans[3]->context.span_id);
	CHECK_IN_TRACE(spans[0], server);
	out(OK);
	CHECK_EQUAL(host_live_slots(PID), 0);
}

/* What is found where the parent should be is not what the SDK put there: never write. */
TEST(parent_is_not_where_the_layout_says)
{
	const struct adoption_event *adoption;
	struct sdk_span *root, *child;

	start();
	in(GET);
	root = start_span(NULL);
	root->parent_span_id = 77;
	end(root);
	CHECK_EQUAL(root->parent_span_id, 77);
	CHECK_EQUAL(stops, 1);
	adoption = event_of_kind(EVENT_ADOPTION, 0);
	CHECK(adoption && adoption->what == CHECK_PLAUSIBLE && adoption->adoption == ADOPTION_MISMATCH);
	CHECK_EQUAL(manual_event(0).relation, MANUAL_UNWRITTEN);
	CHECK_EQUAL(host_count(COUNT_PARENTS_UNWRITTEN), 1);

	start();
	in(GET);
	root = start_span(NULL);
	child = start_span(&root->context);
	child->parent_span_id = 77;
	end(child);
	adoption = event_of_kind(EVENT_ADOPTION, 0);
	CHECK(adoption && adoption->what == CHECK_PARENT_ID);
	CHECK_EQUAL(target->adoption, ADOPTION_MISMATCH);
	end(root);
	CHECK_EQUAL(stops, 1);

	for (int i = 0; i < 3; i++) {
		start();
		in(GET);
		root = start_span(NULL);
		if (i == 0)
			root->start_seconds = 0;
		else if (i == 1)
			root->start_seconds = 1ULL << 40;
		else
			root->start_nanos = 1000000000;
		end(root);
		CHECK_EQUAL(root->parent_span_id, 0);
		CHECK_EQUAL(target->adoption, ADOPTION_MISMATCH);
		out(OK);
		CHECK_EQUAL(host_live_slots(PID), 0);
	}
}

/* A root's parent is 0, which is also found elsewhere: a child must have shown the place. */
TEST(parent_is_not_written_before_its_place_is_proven)
{
	struct target settings = sdk_target;
	struct sdk_span *root, *child;

	settings.parent_proven = 0;
	settings.layout.span_parent_id = offsetof(struct sdk_span, pad);
	start_with(&settings);
	in(GET);
	root = start_span(NULL);
	end(root);
	CHECK_EQUAL(root->pad, 0);
	CHECK_EQUAL(manual_event(0).relation, MANUAL_UNWRITTEN);
	CHECK_EQUAL(host_count(COUNT_PARENTS_UNWRITTEN), 1);
	CHECK_EQUAL(target->adoption, ADOPTION_VERIFIED);
	root = start_span(NULL);
	child = start_span(&root->context);
	end(child);
	CHECK_EQUAL(target->adoption, ADOPTION_MISMATCH);
	end(root);
	CHECK_EQUAL(root->pad, 0);
	CHECK_EQUAL(child->pad, 0);

	settings.layout = sdk_target.layout;
	for (int old = 0; old < 2; old++) {
		start_with(&settings);
		in(GET);
		root = old ? old_start_span(NULL) : start_span(NULL);
		end(root);
		CHECK_EQUAL(root->parent_span_id, 0);
		root = old ? old_start_span(NULL) : start_span(NULL);
		child = old ? old_start_span(&root->context) : start_span(&root->context);
		CHECK_EQUAL(target->parent_proven, 0);
		end(child);
		CHECK_EQUAL(target->parent_proven, 1);
		end(root);
		CHECK_EQUAL(root->parent_span_id, server_of(17).span_id);
	}
}

/* Its own id, found where its parent's should be, proves nothing. */
TEST(parent_is_not_proven_by_the_span_itself)
{
	struct target settings = sdk_target;
	struct sdk_span *root;

	settings.parent_proven = 0;
	settings.layout.span_parent_id =
		offsetof(struct sdk_span, context) + offsetof(struct sdk_context, span_id);
	start_with(&settings);
	in(GET);
	root = start_span(NULL);
	end(root);
	CHECK_EQUAL(target->parent_proven, 0);
	CHECK_EQUAL(target->adoption, ADOPTION_MISMATCH);
}

TEST(context_is_not_where_the_layout_says)
{
	const struct adoption_event *adoption;
	struct target settings = sdk_target;
	struct sdk_span *root, *other;

	settings.layout.span_context = offsetof(struct sdk_span, name);
	start_with(&settings);
	other = start_span(NULL); /* of no request: nobody knows it */
	in(GET);
	end(other);
	CHECK_EQUAL(target->adoption, ADOPTION_VERIFIED);
	for (int spans = 1; spans <= 4; spans++) {
		CHECK_EQUAL(events_of_kind(EVENT_ADOPTION), 0);
		root = start_span(NULL);
		end(root);
		end(root); /* the same one says nothing new */
		CHECK_EQUAL(root->parent_span_id, 0);
	}
	adoption = event_of_kind(EVENT_ADOPTION, 0);
	CHECK(adoption && adoption->what == CHECK_CONTEXT && adoption->adoption == ADOPTION_MISMATCH);
}

/* A span from before the agent's time ends, and a known one lies beside it: by chance, again and again. */
TEST(known_context_beside_a_span_that_is_not_known)
{
	struct sdk_span *root, *beside;
	__u32 found = 0;

	start();
	beside = sdk_allocate(3 * sizeof(*beside));
	in(GET);
	for (int spans = 0; spans < 8; spans++) {
		root = start_span(NULL);
		memset(beside, 0, 3 * sizeof(*beside));
		beside[0] = *root;
		beside[0].context.span_id += 1;
		beside[1 + spans % 2].context = root->context;
		end(&beside[0]);
		CHECK(target->astray_distance != found);
		found = target->astray_distance;
		CHECK_EQUAL(target->adoption, ADOPTION_VERIFIED);
	}
	end(root);
	CHECK(root->parent_span_id);
	CHECK_EQUAL(target->adoption, ADOPTION_VERIFIED);
}

/* A known span that seems to have ended before it did. */
TEST(data_is_not_where_the_layout_says)
{
	const struct adoption_event *adoption;
	struct target settings = sdk_target;
	struct sdk_span *root;

	settings.layout.span_data = offsetof(struct sdk_span, pad);
	settings.layout.span_data_none = 0;
	start_with(&settings);
	in(GET);
	root = start_span(NULL);
	end(root);
	adoption = event_of_kind(EVENT_ADOPTION, 0);
	CHECK(adoption && adoption->what == CHECK_DATA && adoption->adoption == ADOPTION_MISMATCH);
	CHECK_EQUAL(root->parent_span_id, 0);
}

/* It has ended all the same: the next root must not come under it, nor is its drop a contradiction. */
TEST(end_of_a_span_that_cannot_be_read)
{
	struct target settings = sdk_target;
	struct span_frame server;
	struct sdk_span *root;

	settings.layout.span_status_size = 9;
	start_with(&settings);
	in(GET);
	server = server_of(17);
	root = start_span(NULL);
	end(root);
	end(root);
	CHECK_EQUAL(host_count(COUNT_READ_FAULT), 1);
	CHECK_EQUAL(events_of_kind(EVENT_MANUAL_SPAN), 0);
	CHECK_EQUAL(root->parent_span_id, 0);
	CHECK_EQUAL(active_of(17).span_id, server.span_id);
	CHECK_EQUAL(target->adoption, ADOPTION_VERIFIED);
}

/* It is only shown. */
TEST(name_that_cannot_be_read)
{
	struct sdk_span *root;

	start();
	in(GET);
	root = start_span(NULL);
	root->name = (const char *)0x1000;
	end(root);
	CHECK_EQUAL(host_count(COUNT_READ_FAULT), 1);
	CHECK_EQUAL(manual_event(0).name_length, 0);
	CHECK_EQUAL(root->parent_span_id, server_of(17).span_id);
}

/* ---- the event */

TEST(fields_of_a_manual_span)
{
	struct manual_span_event event;
	struct sdk_span *root;

	start();
	in(GET);
	root = start_span(NULL);
	host.now = 7000000;
	end(root);
	event = manual_event(0);
	CHECK_EQUAL(event.head.pid, PID);
	CHECK(event.head.at >= 7000000);
	CHECK_EQUAL(event.start_seconds, 1700000000);
	CHECK_EQUAL(event.start_nanos, 5);
	CHECK_EQUAL(event.end_seconds, 0);
	CHECK_EQUAL(event.end_nanos, 0);
	CHECK_EQUAL(event.trace_id_low, root->context.trace_id_low);
	CHECK_EQUAL(event.trace_id_high, root->context.trace_id_high);
	CHECK_EQUAL(event.span_id, root->context.span_id);
	CHECK_EQUAL(event.parent_span_id, root->parent_span_id);
	CHECK_EQUAL(event.flags, 1);
	CHECK_EQUAL(event.status, MANUAL_STATUS_UNSET);
	CHECK_EQUAL(event.kind, 2);
	CHECK_EQUAL(event.name_length, sizeof(NAME) - 1);
	CHECK(!memcmp(event.name, NAME, sizeof(NAME) - 1));

	root = start_span(NULL);
	root->status = 11;
	end_at(root, 1700000009, 999999999);
	event = manual_event(1);
	CHECK_EQUAL(event.end_seconds, 1700000009);
	CHECK_EQUAL(event.end_nanos, 999999999);
	CHECK_EQUAL(event.status, MANUAL_STATUS_OK);

	root = start_span(NULL);
	root->status = 0x55aa;
	end(root);
	CHECK_EQUAL(manual_event(2).status, MANUAL_STATUS_ERROR);
}

TEST(names_of_every_length)
{
	char *name;

	start();
	name = sdk_allocate(300);
	memset(name, 'n', 300);
	for (__u32 length = 0; length < 300; length++) {
		struct sdk_span *span = start_span(NULL);
		struct manual_span_event event;

		span->name = length ? name : NULL;
		span->name_length = length;
		end(span);
		event = manual_event(length);
		CHECK_EQUAL(event.name_length, length < SPAN_NAME_MAX ? length : SPAN_NAME_MAX);
		for (__u32 i = 0; i < event.name_length; i++)
			CHECK_EQUAL(event.name[i], 'n');
	}
}

TEST(manual_spans_that_nobody_shows)
{
	struct target settings = sdk_target;
	struct span_frame server;
	struct sdk_span *root;

	settings.wants_manual_spans = 0;
	start_with(&settings);
	in(GET);
	server = server_of(17);
	root = start_span(NULL);
	end(root);
	CHECK_EQUAL(root->parent_span_id, server.span_id);
	CHECK_EQUAL(host_events(), 0);
	CHECK_EQUAL(host_count(COUNT_MANUAL_SPANS), 1);
}

/* ---- writers */

TEST(write_off_says_roots)
{
	const struct manual_root_event *event;
	struct target settings = sdk_target;
	struct sdk_span *root, *child;
	struct span_frame server;

	settings.write_mode = WRITE_OFF;
	start_with(&settings);
	in(GET);
	server = server_of(17);
	root = start_span(NULL);
	child = start_span(&root->context);
	end(child);
	end(root);
	CHECK_EQUAL(stops, 0);
	CHECK_EQUAL(root->parent_span_id, 0);
	CHECK_EQUAL(events_of_kind(EVENT_MANUAL_ROOT), 1);
	event = event_of_kind(EVENT_MANUAL_ROOT, 0);
	CHECK_EQUAL(event->server_span_id, server.span_id);
	CHECK_EQUAL(event->trace_id_low, root->context.trace_id_low);
	CHECK_EQUAL(event->trace_id_high, root->context.trace_id_high);
	CHECK_EQUAL(event->span_id, root->context.span_id);
	CHECK_EQUAL(event->flags, 1);
	CHECK_EQUAL(manual_event(0).relation, MANUAL_OTHER);
	/* Outside of a request there is nothing to say. */
	out(OK);
	end(start_span(NULL));
	CHECK_EQUAL(events_of_kind(EVENT_MANUAL_ROOT), 1);
}

TEST(write_off_and_the_remote_parent_of_the_request)
{
	struct target settings = sdk_target;
	struct sdk_span *span;

	settings.write_mode = WRITE_OFF;
	start_with(&settings);
	in(GET_WITH_PARENT);
	span = start_span(&remote);
	end(span);
	CHECK_EQUAL(span->parent_span_id, REMOTE_PARENT);
	CHECK_EQUAL(span->parent_is_remote, 1);
	CHECK_EQUAL(stops, 0);
	CHECK_EQUAL(host_live_frames(PID), 1);
}

TEST(kernel_writer)
{
	struct target settings = sdk_target;
	struct span_frame server;
	struct sdk_span *root, *extracted;

	settings.write_mode = WRITE_KERNEL;
	settings.adoption = ADOPTION_UNVERIFIED;
	start_with(&settings);
	host_kernel_writes(true);
	in(GET_WITH_PARENT);
	server = server_of(17);
	root = start_span(NULL);
	CHECK_IN_TRACE(root, server);
	extracted = start_span(&remote);
	end(extracted);
	end(root);
	CHECK_EQUAL(root->parent_span_id, server.span_id);
	CHECK_EQUAL(extracted->parent_span_id, server.span_id);
	CHECK_EQUAL(extracted->parent_is_remote, 0);
	CHECK_EQUAL(host.signals, 0);
	CHECK_EQUAL(host_count(COUNT_ROOTS_ADOPTED), 1);
	CHECK_EQUAL(host_count(COUNT_REMOTE_ADOPTED), 1);
}

static void check_left_alone(struct sdk_span *root, __u32 cause)
{
	struct span_frame server = server_of(17);

	CHECK(root->context.trace_id_low != server.trace_id_low);
	CHECK_EQUAL(server.span_id, active_of(17).span_id);
	end(root);
	CHECK_EQUAL(root->parent_span_id, 0);
	CHECK_EQUAL(manual_event(0).relation, MANUAL_OTHER);
	for (__u32 i = COUNT_ROOTS_UNSAMPLED; i <= COUNT_ROOTS_UNWRITTEN; i++)
		CHECK_EQUAL(host_count(i), i == cause);
	CHECK_EQUAL(host_count(COUNT_ROOTS_ADOPTED), 0);
	CHECK_EQUAL(host_map_count("stop_requests"), 0);
	out(OK);
	CHECK_EQUAL(span_events(), 1);
	CHECK_EQUAL(host_live_slots(PID), 0);
}

TEST(kernel_writer_that_cannot_write)
{
	struct target settings = sdk_target;
	struct sdk_span *root;

	settings.write_mode = WRITE_KERNEL;
	start_with(&settings);
	in(GET);
	check_left_alone(start_span(NULL), COUNT_ROOTS_UNWRITTEN); /* kernel_writes is not set */
	start_with(&settings);
	host_kernel_writes(true);
	host.fail_write_user = true;
	in(GET);
	check_left_alone(start_span(NULL), COUNT_ROOTS_UNWRITTEN);

	/* The trace id could be written, the parent cannot: rather a trace without this edge. */
	start_with(&settings);
	host_kernel_writes(true);
	in(GET);
	root = start_span(NULL);
	host.fail_write_user = true;
	end(root);
	CHECK_EQUAL(root->parent_span_id, 0);
	CHECK_EQUAL(manual_event(0).relation, MANUAL_UNWRITTEN);
	CHECK_EQUAL(manual_event(0).parent_span_id, 0);
	CHECK_EQUAL(host_count(COUNT_PARENTS_UNWRITTEN), 1);
}

TEST(thread_that_blocks_the_signal)
{
	start();
	host_block_signal(23);
	in(GET);
	check_left_alone(start_span(NULL), COUNT_ROOTS_SIGNAL_BLOCKED);
	/* Other signals do not matter. */
	start();
	host_block_signal(22);
	host_block_signal(24);
	in(GET);
	end(start_span(NULL));
	CHECK_EQUAL(host_count(COUNT_ROOTS_ADOPTED), 1);
}

TEST(thread_without_the_tracer)
{
	for (__u32 tracer = 0; tracer < 2; tracer++) {
		start();
		host_traced_by(tracer); /* 1: by another */
		in(GET);
		check_left_alone(start_span(NULL), COUNT_ROOTS_NO_TRACER);
		CHECK_EQUAL(host.signals, 0);
	}
}

TEST(tracer_is_gone_before_the_end)
{
	struct sdk_span *root;

	start();
	in(GET);
	root = start_span(NULL);
	host_traced_by(0);
	end(root);
	CHECK_EQUAL(root->parent_span_id, 0);
	CHECK_EQUAL(manual_event(0).relation, MANUAL_UNWRITTEN);
	CHECK_EQUAL(host_count(COUNT_PARENTS_UNWRITTEN), 1);
	CHECK_EQUAL(host_live_frames(PID), 1);
}

TEST(signal_that_cannot_be_sent)
{
	start();
	host.fail_signal = true;
	in(GET);
	check_left_alone(start_span(NULL), COUNT_ROOTS_UNWRITTEN);
}

TEST(stop_requests_full)
{
	start();
	host_map_limit("stop_requests", 0);
	in(GET);
	check_left_alone(start_span(NULL), COUNT_ROOTS_UNWRITTEN);
	CHECK_EQUAL(host.signals, 0);
}

/* The tracer died between signal and stop: the id in memory is the SDK's own. */
TEST(write_that_was_asked_for_and_did_not_happen)
{
	struct sdk_context own = {.trace_id_low = 5, .trace_id_high = 6, .flags = 1};
	struct sdk_context *psc, *sc;
	struct sdk_span *span;

	start();
	in(GET);
	own.span_id = new_span_id();
	host_traced_by(0);
	host_probe(PROBE_NEW_TRACE_ID, &(struct host_registers){});
	host_traced_by(TRACER);
	psc = sdk_allocate(sizeof(*psc));
	sc = sdk_allocate(sizeof(*sc));
	*sc = own;
	host_probe(PROBE_BUILD_RECORDING_SPAN, &(struct host_registers){.dx = (__u64)psc, .cx = (__u64)sc});
	host_map_delete("stop_requests", &(__u32){TID});
	span = sdk_allocate(sizeof(*span));
	span->context = own;
	span->data = DATA_SOME;
	span->start_seconds = 1700000000;
	host_probe(PROBE_ENSURE_ENDED, &(struct host_registers){.di = (__u64)span, .dx = END_NONE});
	CHECK_EQUAL(host_map_count("stop_requests"), 0);
	CHECK_EQUAL(manual_event(0).relation, MANUAL_UNWRITTEN);
	CHECK_EQUAL(manual_event(0).trace_id_low, 5);
	CHECK_EQUAL(host_count(COUNT_ROOTS_UNWRITTEN), 1);
	CHECK_EQUAL(host_live_frames(PID), 1);
}

/* The same of a trace id that was to be handed out: what the root has then could be the application's own. */
TEST(trace_id_that_was_to_be_handed_out)
{
	struct sdk_context own = {.trace_id_low = 5, .trace_id_high = 6, .flags = 1};
	struct sdk_span *root;

	start();
	in(GET);
	own.span_id = new_span_id();
	host_probe(PROBE_NEW_TRACE_ID, &(struct host_registers){});
	host_map_delete("stop_requests", &(__u32){TID});
	root = build(NULL, &own);
	end(root);
	CHECK_EQUAL(root->context.trace_id_low, 5);
	CHECK_EQUAL(root->parent_span_id, 0);
	CHECK_EQUAL(manual_event(0).relation, MANUAL_OTHER);
	CHECK_EQUAL(host_count(COUNT_ROOTS_OWN_ID), 1);
	CHECK_EQUAL(host_live_frames(PID), 1);
}

/* ---- faults */

static struct sdk_span *days_spans[4];

static void day(void)
{
	in(GET_WITH_PARENT);
	days_spans[0] = start_span(NULL);
	days_spans[1] = start_span(&days_spans[0]->context);
	days_spans[2] = start_span(&remote);
	days_spans[3] = start_span(NULL);
	for (int i = 3; i >= 0; i--)
		end(days_spans[i]);
	out(OK);
	sys_close(FD);
}

/* Whatever fails: each span is either whole as the SDK made it, or whole as it should be. */
static void check_the_day(__u64 server, bool is_known)
{
	for (int i = 0; i < 4; i++) {
		const struct sdk_span *span = days_spans[i];
		bool in_trace =
			span->context.trace_id_low == REMOTE_LOW && span->context.trace_id_high == REMOTE_HIGH;

		CHECK(in_trace || (span->context.trace_id_low > 0x1000 && span->context.trace_id_high > 0x1000 &&
				   span->context.trace_id_low < 0x2000 && span->context.trace_id_high < 0x2000));
		CHECK_EQUAL(span->context.flags, 1);
		CHECK_EQUAL(span->start_seconds, 1700000000);
		CHECK_EQUAL(span->name_length, sizeof(NAME) - 1);
		CHECK(!memcmp(span->name, NAME, sizeof(NAME)));
	}
	CHECK(!days_spans[0]->parent_span_id || !is_known || days_spans[0]->parent_span_id == server);
	CHECK_EQUAL(days_spans[1]->parent_span_id, days_spans[0]->context.span_id);
	CHECK(days_spans[2]->parent_span_id == REMOTE_PARENT || !is_known ||
	      days_spans[2]->parent_span_id == server);
	CHECK_EQUAL(days_spans[2]->parent_is_remote, days_spans[2]->parent_span_id == REMOTE_PARENT);
	/* The last root came under whatever was active; never under itself, never under what is not there. */
	CHECK(!days_spans[3]->parent_span_id || !is_known || days_spans[3]->parent_span_id == server ||
	      days_spans[3]->parent_span_id == days_spans[0]->context.span_id ||
	      days_spans[3]->parent_span_id == days_spans[1]->context.span_id ||
	      days_spans[3]->parent_span_id == days_spans[2]->context.span_id);
	CHECK_CLEAN();
}

TEST(every_read_of_the_sdk_fails_once)
{
	for (int mode = 0; mode < 2; mode++) {
		struct target settings = sdk_target;
		__u64 reads;

		settings.adoption = mode ? ADOPTION_UNVERIFIED : ADOPTION_VERIFIED;
		start_with(&settings);
		day();
		reads = host.reads_user;
		CHECK_EQUAL(host_count(COUNT_ROOTS_ADOPTED), 2);
		CHECK_EQUAL(host_count(COUNT_REMOTE_ADOPTED), 1);
		check_the_day(span_event(0).span_id, true);
		for (__u64 i = 1; i <= reads; i++) {
			test_case("read %llu of %llu", i, reads);
			start_with(&settings);
			host.fail_read_user = i;
			day();
			check_the_day(span_events() ? span_event(0).span_id : 0, span_events() != 0);
			CHECK(host_count(COUNT_READ_FAULT) <= 1);
		}
	}
}

TEST(every_update_of_the_sdk_fails_once)
{
	__u64 updates;

	start();
	day();
	updates = host.updates;
	for (__u64 i = 1; i <= updates; i++) {
		test_case("update %llu of %llu", i, updates);
		start();
		host.fail_update = i + 1; /* the first is of the connection */
		day();
		check_the_day(span_events() ? span_event(0).span_id : 0, span_events() != 0);
	}
}

TEST(every_read_of_kernel_memory_by_the_sdk_fails_once)
{
	__u64 reads;

	start();
	day();
	reads = host.reads_kernel;
	for (__u64 i = 1; i <= reads; i++) {
		test_case("read %llu of %llu", i, reads);
		start();
		host.fail_read_kernel = i;
		day();
		CHECK(days_spans[1]->parent_span_id == days_spans[0]->context.span_id);
	}
}

/* ---- the stop writer's guards */

TEST(interrupted_wait_asks_for_a_stop)
{
	for (int i = 0; i < 2; i++) {
		const struct stop_request *request;
		__u32 tid = TID;

		start();
		sys_epoll_wait_returns(i, 0);
		sys_epoll_wait_returns(i, 3);
		sys_epoll_wait_returns(i, -22);
		CHECK_EQUAL(host.signals, 0);
		sys_epoll_wait_returns(i, -4);
		CHECK_EQUAL(host.signals, 1);
		request = host_map_lookup("stop_requests", &tid);
		CHECK(request && !request->nr_writes && !request->returns);

		start();
		host_traced_by(0);
		sys_epoll_wait_returns(i, -4);
		host_traced_by(1);
		sys_epoll_wait_returns(i, -4);
		host_traced_by(TRACER);
		host_block_signal(23);
		sys_epoll_wait_returns(i, -4);
		CHECK_EQUAL(host.signals, 0);

		start();
		host.fail_signal = true;
		sys_epoll_wait_returns(i, -4);
		CHECK_EQUAL(host_map_count("stop_requests"), 0);
	}
}

TEST(merged_signal_is_told_to_the_tracer)
{
	struct stop_request request = {}, *told;
	__u32 tid = TID;

	start();
	host_map_update("stop_requests", &tid, &request);
	told = host_map_lookup("stop_requests", &tid);
	host_signal_generated(23, PID, TID, false, 0);
	host_signal_generated(23, PID, TID, true, 2);
	host_signal_generated(22, PID, TID, false, 2);
	host_signal_generated(23, PID, TID + 1, false, 2);
	CHECK_EQUAL(told->merged, 0);
	host_signal_generated(23, PID, TID, false, 2);
	CHECK_EQUAL(told->merged, 1);
	CHECK_EQUAL(host_map_count("stop_requests"), 1);
}

/* ---- roots in tasks and threads that a request has spawned */

TEST(a_root_in_a_spawned_task_is_adopted_under_the_spawners_span)
{
	struct sdk_span *outer, *inner, *child, *next;

	start();
	in(GET);
	outer = start_span(NULL);
	host_spawns(18);
	end(outer);
	host_tokio_task(18);
	inner = start_span(NULL);
	CHECK_IN_TRACE(inner, server_of(17));
	CHECK_EQUAL(host_live_slots(PID), 2);
	child = start_span(&inner->context);
	end(child);
	next = start_span(NULL);
	end(next);
	CHECK_EQUAL(next->parent_span_id, inner->context.span_id);
	end(inner);
	CHECK_EQUAL(inner->parent_span_id, outer->context.span_id);
	CHECK_EQUAL(child->parent_span_id, inner->context.span_id);
	CHECK_EQUAL(host_live_slots(PID), 1); /* the task keeps none without a span */
	host_tokio_task(17);
	out(OK);
	CHECK_EQUAL(host_live_slots(PID), 0);
	CHECK_EQUAL(host_handed_on(PID).listed, 0);
}

TEST(always_the_server_span_in_a_spawned_task)
{
	struct sdk_span *outer, *inner;

	start();
	target->adopt_mode = ADOPT_SERVER;
	in(GET);
	outer = start_span(NULL);
	host_spawns(18);
	host_tokio_task(18);
	inner = start_span(NULL);
	end(inner);
	CHECK_EQUAL(inner->parent_span_id, server_of(17).span_id);
	end(outer);
}

TEST(a_root_that_its_task_never_ends_goes_with_the_request)
{
	struct sdk_span *root, *later;

	start();
	in(GET);
	host_spawns(18);
	host_tokio_task(18);
	root = start_span(NULL);
	CHECK_EQUAL(host_live_slots(PID), 2);
	host_tokio_task(17);
	out(OK);
	CHECK_EQUAL(host_live_slots(PID), 0);
	CHECK_EQUAL(host_live_frames(PID), 0);
	/* A task that outlives its request begins traces of its own, though a root of the request is open. */
	host_tokio_task(18);
	later = start_span(NULL);
	CHECK(later->context.trace_id_low != root->context.trace_id_low);
	end(later);
	CHECK_EQUAL(later->parent_span_id, 0);
	/* Which still gets its parent when it ends. */
	end(root);
	CHECK(root->parent_span_id);
	CHECK_EQUAL(host_live_slots(PID), 0);
}

TEST(a_root_in_a_task_that_the_request_did_not_spawn_is_left_alone)
{
	struct sdk_span *root;

	start();
	host_spawns(18);
	in(GET);
	host_tokio_task(18);
	root = start_span(NULL);
	end(root);
	CHECK_EQUAL(root->parent_span_id, 0);
	CHECK_EQUAL(host_count(COUNT_ROOTS_ADOPTED), 0);
}

TEST(a_root_in_a_thread_that_a_request_has_started)
{
	struct sdk_span *root;

	start();
	in(GET);
	host_starts_thread(200);
	host_thread(PID, 200);
	host_traced_by(TRACER);
	root = start_span(NULL);
	end(root);
	CHECK_EQUAL(root->parent_span_id, server_of(17).span_id);
	sys_thread_exit();
	CHECK_EQUAL(host_live_slots(PID), 1);
}

TEST(many_tasks_of_one_request)
{
	__u32 before;

	start();
	in(GET);
	for (__u64 task = 1000; task < 1300; task++) {
		host_tokio_task(17);
		host_spawns(task);
		host_tokio_task(task);
		start_span(NULL);
		start_span(NULL);
	}
	before = host_live_slots(PID);
	CHECK_EQUAL(before, 1 + 256);
	CHECK_EQUAL(host_count(COUNT_TASKS_FULL), 2 * (300 - 256));
	host_tokio_task(17);
	out(OK);
	CHECK_EQUAL(host_live_slots(PID), 0);
	CHECK_EQUAL(host_handed_on(PID).listed, 0);
}
