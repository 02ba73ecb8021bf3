/* What a request brought besides its parent, and what is to be done with it. */
#ifndef SPANWELD_CARRIED_H
#define SPANWELD_CARRIED_H

#include "event.h"

#define TRACESTATE_MAX 2048
#define TRACESTATE_MEMBERS_MAX 32
#define BAGGAGE_MAX 8192
#define CARRIED_MAX 4096 /* requests of a target at once that brought any of it */

/* Of OTEL_PROPAGATORS. b3 and b3multi read the same headers. */
enum propagator {
	PROPAGATOR_TRACECONTEXT = 0,
	PROPAGATOR_BAGGAGE,
	PROPAGATOR_B3,
	PROPAGATOR_JAEGER,
	PROPAGATOR_MAX,
};

/* By enum propagator: its place in OTEL_PROPAGATORS, from 1; 0: it is not used. */
struct propagation {
	__u8 place[PROPAGATOR_MAX];
	__u8 tells_baggage; /* the agent makes attributes of it */
};

/*
 * The texts of one request, as they are to go out again: its header lines combined, without blanks
 * and empty members, and of the baggage without malformed members. Also EVENT_CARRIED: sent up to the
 * end of the last text that the agent wants, when a sampled request's span begins.
 */
struct carried {
	struct event_head head;
	__u64 span_id; /* of the server span; it is the key, too */
	__u16 tracestate_length;
	__u16 baggage_length;
	/* While the head is read: of the member under way, */
	__u16 at; /* where its next byte goes */
	__u16 end; /* where it ends, without trailing blanks */
	__u16 part; /* the length of its key, or of its value, so far */
	__u8 state; /* enum carry_state */
	__u8 members; /* of the tracestate */
	__u8 tracestate_invalid;
	__u8 pad[3];
	char tracestate[TRACESTATE_MAX];
	char baggage[BAGGAGE_MAX];
};

_Static_assert(sizeof(struct carried) == 40 + TRACESTATE_MAX + BAGGAGE_MAX, "no hidden padding");

#endif
