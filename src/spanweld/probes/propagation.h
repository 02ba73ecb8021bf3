/* What the headers of a request under way say of its remote parent, besides traceparent. */
#ifndef SPANWELD_PROPAGATION_H
#define SPANWELD_PROPAGATION_H

struct hex_number {
	__u64 high;
	__u64 low;
};

struct remote_context {
	struct hex_number trace_id;
	__u64 span_id;
};

enum sampling {
	SAMPLING_UNKNOWN = 0, /* the receiver is to decide */
	SAMPLING_NO,
	SAMPLING_YES,
};

/* remote_headers.seen: of each header, the first one counts. */
enum {
	SEEN_B3 = 1,
	B3_IS_WHOLE = 2,
	SEEN_B3_TRACE_ID = 4,
	SEEN_B3_SPAN_ID = 8,
	B3_IS_DEBUG = 16, /* X-B3-Flags: 1 */
	SEEN_JAEGER = 32,
	JAEGER_IS_WHOLE = 64,
};

struct remote_headers {
	/* Zero where a message begins; the rest counts only where `seen` says so. */
	__u8 seen;
	__u8 b3_sampling; /* enum sampling */
	__u8 b3_multi_sampling;
	__u8 jaeger_sampling;
	__u32 pad;
	struct remote_context b3;
	struct remote_context b3_multi;
	struct remote_context jaeger;
};

_Static_assert(sizeof(struct remote_headers) == 80, "no hidden padding");

#endif
