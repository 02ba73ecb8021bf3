/* What the parser tells about requests that go out without a header of ours; see http_inject.bpf.c. */
#ifndef SPANWELD_HTTP_INJECT_BPF_H
#define SPANWELD_HTTP_INJECT_BPF_H

#include "http_connection.bpf.h"
#include "http_inject.h"

/* The head of a request of the target went out whole. */
static __always_inline void note_whether_injected(struct connection *c, struct target *target,
						  const struct server_span_event *request)
{
	struct inject_event event = {};
	bool injected = c->injected;

	c->injected = 0;
	if (!target->inject || injected || request->traceparents)
		return;
	if (c->request_out.cause != CAUSE_UNKNOWN) /* which is counted as such */
		count(COUNT_REQUESTS_BARE);
	if (c->connected_by || __sync_lock_test_and_set(&target->said_old_connection, 1))
		return;
	event.head.kind = EVENT_INJECT;
	event.head.pid = c->pid;
	event.head.at = bpf_ktime_get_ns();
	event.notice = INJECT_OLD_CONNECTION;
	emit(&event, sizeof(event));
}

#endif
