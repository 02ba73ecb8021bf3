/* What is counted instead of being traced: one cause, one cell of the map `counters`. */
#ifndef SPANWELD_COUNTERS_H
#define SPANWELD_COUNTERS_H

enum counter {
	COUNT_EVENT_LOST = 0, /* no room in the ring buffer */
	COUNT_READ_FAULT, /* target memory could not be read */
	COUNT_TASKS_FULL, /* spans_in_progress: bucket full */
	COUNT_EDGES_FULL, /* a task's edge took the place of another one whose request is open */
	COUNT_STACK_FULL, /* spans_in_progress: stack full */
	COUNT_SLOT_BUSY, /* spans_in_progress: somebody else held the slot */
	COUNT_CONNECTIONS_FULL, /* map `connections` full */
	COUNT_CONNECTION_BUSY, /* two threads in one connection at once */
	COUNT_QUEUE_FULL, /* more pipelined requests than are kept */
	COUNT_FRAMING_ERROR, /* connection made opaque: not well-formed HTTP/1.1 */
	COUNT_HEAD_TOO_LONG, /* connection made opaque: head over 16 KiB */
	COUNT_SCAN_LIMIT, /* connection made opaque: one system call held too many lines */
	COUNT_RESPONSE_WITHOUT_REQUEST, /* connection made opaque */
	COUNT_TLS, /* connection made opaque: TLS */
	COUNT_HTTP2, /* connection made opaque: HTTP/2 */
	COUNT_CARRIED_FULL, /* map `carried` full: what a request brought was left behind */
	COUNT_EXCLUDED, /* request left out by --exclude-path */
	COUNT_UNSAMPLED, /* request not sampled */
	COUNT_SERVER_SPANS,
	COUNT_ROOTS_ADOPTED,
	COUNT_REMOTE_ADOPTED, /* spans whose remote parent was the server span's own */
	COUNT_ROOTS_UNSAMPLED, /* roots left alone: the active span is not sampled */
	COUNT_ROOTS_SIGNAL_BLOCKED, /* roots left alone: the thread blocks SIGURG */
	COUNT_ROOTS_NO_TRACER, /* roots left alone: the tracer does not trace this thread */
	COUNT_ROOTS_OWN_ID, /* roots left alone: the service chose their trace id */
	COUNT_ROOTS_UNWRITTEN, /* roots left alone: a write was asked for and did not happen */
	COUNT_PARENTS_UNWRITTEN, /* adopted roots whose parent could not be written */
	COUNT_ROOTS_DROPPED, /* roots in a sampled request of which the service built no span */
	COUNT_MANUAL_SPANS, /* manual spans seen to end */
	COUNT_CLIENT_SPANS,
	COUNT_CAUSE_UNKNOWN, /* requests out without a parent: more than one request may have caused them */
	COUNT_REQUESTS_INJECTED, /* requests out that got a header of ours */
	COUNT_REQUESTS_OWN, /* … that had one of the application's own */
	COUNT_REQUESTS_BARE, /* … that carry none, though their cause is not unknown */
	COUNT_INJECT_REFUSED, /* connections that the kernel did not let into inject_sockets */
	COUNT_MAX,
};

#endif
