/*
 * Requests that go out: what caused one, what it is called, and whether it is traced at all.
 *
 * Called by the parser (http_server.bpf.c) once a request line has been written, and by who wants to know
 * the context before the request is on its way.
 */
#ifndef SPANWELD_HTTP_CLIENT_BPF_H
#define SPANWELD_HTTP_CLIENT_BPF_H

#include "http_connection.bpf.h"
#include "http_client.h"
#include "http_inject.bpf.h"

struct own_exports {
	struct excluded_path paths[EXPORT_PATHS_MAX];
};

/*
 * Where the target's own exporter sends to, as its environment says: paths by port; no path for gRPC.
 * Written and deleted by the agent.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, struct own_export_key);
	__type(value, struct own_exports);
} own_exports SEC(".maps");

static __always_inline struct own_exports *own_exports_at(const struct connection *c)
{
	struct own_export_key key = {.pid = c->pid, .port = c->addresses.peer_port};

	return bpf_map_lookup_elem(&own_exports, &key);
}

static __always_inline bool ends_path(char c)
{
	return !c || c == '?' || c == ' ';
}

/* OTLP's own paths, https://opentelemetry.io/docs/specs/otlp/#otlphttp-request. 16 bytes are looked at. */
static __always_inline bool is_otlp_path(const char *path)
{
	__u64 w0 = load64(path), w1 = load64(path + 8);

	if (w0 == TEXT8('/', 'v', '1', '/', 't', 'r', 'a', 'c'))
		return (w1 & FIRST_BYTES(2)) == TEXT8('e', 's', 0, 0, 0, 0, 0, 0) && ends_path(w1 >> 16);
	if (w0 == TEXT8('/', 'v', '1', '/', 'm', 'e', 't', 'r'))
		return (w1 & FIRST_BYTES(3)) == TEXT8('i', 'c', 's', 0, 0, 0, 0, 0) && ends_path(w1 >> 24);
	return w0 == TEXT8('/', 'v', '1', '/', 'l', 'o', 'g', 's') && ends_path(w1);
}

/* Whether a request out carries the target's own telemetry. */
static __always_inline bool is_own_export(const struct connection *c, const struct server_span_event *request)
{
	struct own_exports *exports;

	if (request->method != METHOD_POST)
		return false;
	if (is_otlp_path(request->target))
		return true;
	exports = own_exports_at(c);
	for (int i = 0; exports && i < EXPORT_PATHS_MAX; i++) {
		if (!exports->paths[i].mask[0])
			break;
		if (path_matches(&exports->paths[i], request))
			return true;
	}
	return false;
}

/* A task that reads and writes for others: it did not connect the socket, and nobody else uses it. */
static __always_inline bool is_connection_driver(const struct connection *c, __u64 task_key)
{
	return !c->is_shared && c->connected_by != task_key && (!c->user || c->user == task_key);
}

static __always_inline __u32 sender_of(const struct connection *c, __u64 task_key)
{
	if (!is_connection_driver(c, task_key))
		return SENDER_ITSELF;
	/* What went out on a connection that is older than the agent is not known. */
	return c->has_sent || !c->connected_by ? SENDER_DRIVER : SENDER_DRIVER_FIRST;
}

static __always_inline void note_user(struct connection *c, const struct target *target)
{
	__u64 key;

	if (c->is_shared)
		return;
	key = current_task_key(target);
	if (!c->user)
		c->user = key;
	else if (c->user != key)
		c->is_shared = 1;
}

/*
 * Decides what caused the next request that the task `task_key` sends on a client's connection, and
 * makes its span's context, in c->request_out. Once a request: until its head has been seen to go
 * out whole (or forget_request_out()), the decision stands, whoever asks. The cause is, in this order:
 *
 *  1. what is active on the sending task's own stack. Then the span goes onto that stack itself;
 *  2. if it drives the connection for others, what its wakes say;
 *  3. what is active in its spawner, but never for a driver after the first request;
 *  4. none: the request begins a trace. So does one whose cause is unknown, but nobody is to be told of that.
 *
 * Requests that are under way at once in one task do not cause each other: they are siblings.
 */
GLOBAL int begin_request_out(struct connection *c, struct target *target, __u32 pid, __u64 task_key)
{
	struct span_frame frame = {};
	struct active_spans *found;
	struct request_out *request;
	__u32 sender, cause;

	if (!c || !target || c->out_prepared)
		return 0;
	request = &c->request_out;
	found = &c->cause;
	sender = sender_of(c, task_key);
	c->has_sent = 1;
	frame.kind = FRAME_CLIENT;
	frame.span_id = new_span_id();
	cause = CAUSE_FOUND;
	/* Who has spans of its own sends for itself, also on a connection of which nobody saw who connected it. */
	if (find_active(pid, task_key, found))
		sender = SENDER_ITSELF;
	else
		cause = cause_by_tasks(pid, task_key, sender, found);
	if (cause == CAUSE_FOUND) {
		frame.trace_id_low = found->active.trace_id_low;
		frame.trace_id_high = found->active.trace_id_high;
		/* A manual span, of which the SDK knows no more than whether it is sampled, may be between. */
		frame.flags = found->active.flags | (found->server.flags & TRACE_FLAG_RANDOM);
		frame.remote_parent =
			found->active.kind == FRAME_CLIENT ? found->active.remote_parent : found->active.span_id;
		request->server_span_id = found->server.span_id;
		request->task_key = sender == SENDER_ITSELF ? task_key : 0;
		if (sender == SENDER_ITSELF)
			push_upon(pid, task_key, &frame, found);
	} else {
		frame.trace_id_low = random64() | 1; /* never 0 */
		frame.trace_id_high = random64();
		frame.flags = sample(target, frame.trace_id_low);
		request->server_span_id = 0;
		request->task_key = 0;
	}
	request->cause = cause;
	request->started = bpf_ktime_get_ns();
	request->trace_id_low = frame.trace_id_low;
	request->trace_id_high = frame.trace_id_high;
	request->span_id = frame.span_id;
	request->parent_span_id = frame.remote_parent;
	request->flags = frame.flags;
	c->out_prepared = 1;
	return 0;
}

/* The request that was begun is not one, or is not to be traced. */
GLOBAL int forget_request_out(struct connection *c)
{
	if (!c || !c->out_prepared)
		return 0;
	c->out_prepared = 0;
	if (c->request_out.task_key)
		end_span(c->pid, c->request_out.task_key, c->request_out.span_id);
	return 0;
}

/* A request line went out. */
static __always_inline int request_line_out(struct connection *c, struct target *target,
					    struct server_span_event *request)
{
	if (!c || !target || !request)
		return 0;
	c->speaks_http = 1;
	request->excluded = is_own_export(c, request);
	if (request->excluded)
		forget_request_out(c);
	else
		begin_request_out(c, target, c->pid, current_task_key(target));
	return 0;
}

/*
 * The head of a request went out whole: it gets the context that was made for it. A `traceparent` of the
 * application's own says what caused it where nothing else does.
 */
GLOBAL int request_head_out(struct connection *c, struct target *target, struct server_span_event *request)
{
	struct request_out *out;

	if (!c || !target || !request || request->excluded)
		return 0;
	if (!c->out_prepared) { /* forgotten, by another thread that shuts the connection */
		request->excluded = 1;
		return 0;
	}
	c->out_prepared = 0;
	note_whether_injected(c, target, request);
	out = &c->request_out;
	if (out->started < request->start)
		request->start = out->started;
	request->addresses = c->addresses;
	request->task_key = out->task_key;
	request->span_id = out->span_id;
	request->server_span_id = out->server_span_id;
	if (!out->parent_span_id && request->parent_span_id) {
		if (!target->parent_based)
			request->flags = sample(target, request->trace_id_low);
		return 0;
	}
	request->trace_id_low = out->trace_id_low;
	request->trace_id_high = out->trace_id_high;
	request->parent_span_id = out->parent_span_id;
	request->flags = out->flags;
	return 0;
}

/*
 * Whether to say that a client's connection cannot be followed: of what never spoke HTTP, a database's say,
 * there is nothing to be told, nor of the target's own exporter by gRPC.
 */
static __always_inline bool is_worth_telling(const struct connection *c, __u32 reason)
{
	if (reason == OPAQUE_TLS)
		return true;
	if (reason == OPAQUE_HTTP2)
		return !own_exports_at(c);
	return c->speaks_http;
}

#endif
