/* Events of the OpenTelemetry SDK probe. */
#ifndef SPANWELD_OTEL_SDK_H
#define SPANWELD_OTEL_SDK_H

#include "event.h"

#define SPAN_NAME_MAX 96
#define SPAN_SAMPLE_SIZE 448
#define SPAN_SAMPLES_MAX 4000

/* How the SDK's span stands to the agent's. */
enum manual_relation {
	MANUAL_OTHER = 0, /* outside any request, or of a trace of its own */
	MANUAL_CHILD, /* its parent is a local span */
	MANUAL_ADOPTED, /* trace id and parent are those of the active span, by us */
	MANUAL_UNWRITTEN, /* should have been adopted; the write did not happen */
};

enum manual_status {
	MANUAL_STATUS_UNSET = 0,
	MANUAL_STATUS_OK,
	MANUAL_STATUS_ERROR,
};

/* EVENT_MANUAL_SPAN: a span of the SDK has ended. Sent up to the end of `name` that is in use. */
struct manual_span_event {
	struct event_head head;
	__u64 start_seconds; /* since the epoch, as the span has it */
	__u64 end_seconds; /* 0: ended now, at head.at */
	__u64 trace_id_low;
	__u64 trace_id_high;
	__u64 span_id;
	__u64 parent_span_id;
	__u32 start_nanos;
	__u32 end_nanos;
	__u8 flags;
	__u8 relation; /* enum manual_relation */
	__u8 status; /* enum manual_status */
	__u8 kind; /* as the layout has it */
	__u16 name_length;
	__u16 pad;
	char name[SPAN_NAME_MAX];
};

/* EVENT_MANUAL_ROOT: with nothing written, a root that began in a request: the server span links to it. */
struct manual_root_event {
	struct event_head head;
	__u64 server_span_id;
	__u64 trace_id_low;
	__u64 trace_id_high;
	__u64 span_id;
	__u64 flags;
};

/* EVENT_ADOPTION: the layout was verified, or was found not to be the target's. */
struct adoption_event {
	struct event_head head;
	__u32 adoption; /* enum adoption */
	__u32 what; /* enum layout_check: what did not fit */
	__u64 expected;
	__u64 found;
};

/* EVENT_SPAN_SAMPLE: a Span that was just built, and what was generated for it within that call. */
struct span_sample_event {
	struct event_head head;
	__u64 trace_id_low; /* if trace_noted */
	__u64 trace_id_high;
	__u64 span_id; /* if span_noted */
	__u32 number; /* of the target's samples, from 0 */
	__u8 began; /* new_trace_id was called: it is a root */
	__u8 trace_noted;
	__u8 span_noted;
	__u8 pad;
	__u8 memory[SPAN_SAMPLE_SIZE]; /* from the Span's address on; what lies behind it, too */
};

enum layout_check {
	CHECK_TRACE_ID = 1, /* of the span context that is handed to build_recording_span */
	CHECK_SPAN_ID,
	CHECK_PARENT_ID, /* in Span, of a child whose parent is known */
	CHECK_PLAUSIBLE, /* in Span: times, name */
	CHECK_CONTEXT, /* in Span: of one that is known */
	CHECK_DATA, /* in Span: of one that has not ended, and is said to have */
	CHECK_ARGUMENTS, /* of build_recording_span: not where they should be */
};

_Static_assert(sizeof(struct manual_span_event) == 16 + 6 * 8 + 8 + 8 + SPAN_NAME_MAX, "no hidden padding");
_Static_assert(sizeof(struct manual_root_event) == 56, "no hidden padding");
_Static_assert(sizeof(struct adoption_event) == 40, "no hidden padding");
_Static_assert(sizeof(struct span_sample_event) == 16 + 3 * 8 + 8 + SPAN_SAMPLE_SIZE, "no hidden padding");

#endif
