/* Head of every event in the ring buffer; the probes' own headers define what follows. */
#ifndef SPANWELD_EVENT_H
#define SPANWELD_EVENT_H

enum event_kind {
	EVENT_SERVER_SPAN = 1,
	EVENT_CONNECTION_OPAQUE = 2,
	EVENT_MANUAL_SPAN = 3,
	EVENT_MANUAL_ROOT = 4,
	EVENT_ADOPTION = 5,
	EVENT_SPAN_SAMPLE = 6,
	EVENT_CLIENT_SPAN = 7,
	EVENT_INJECT = 10,
	EVENT_CARRIED = 9,
	EVENT_WAKES_WANTED = 8,
};

struct event_head {
	__u32 kind; /* enum event_kind */
	__u32 pid; /* process id of the target */
	__u64 at; /* CLOCK_MONOTONIC, ns */
};

#endif
