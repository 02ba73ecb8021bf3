/* What a program knows of a target; written by the agent before anything is attached. */
#ifndef SPANWELD_TARGET_H
#define SPANWELD_TARGET_H

enum adopt_mode {
	ADOPT_ACTIVE = 0, /* a root's parent is the innermost active span */
	ADOPT_SERVER = 1, /* always the server span */
};

enum write_mode {
	WRITE_OFF = 0,
	WRITE_KERNEL = 1,
	WRITE_STOP = 2,
	WRITE_INLINE = 3, /* the SDK's probes run inside the target */
};

/*
 * Where the adoption of a target stands. Only moves forward: by compare-and-swap, and from
 * ADOPTION_LEARNING by the agent, which puts the whole entry anew.
 */
enum adoption {
	ADOPTION_NONE = 0, /* no SDK, or none that is known */
	ADOPTION_UNVERIFIED = 1, /* waits for the first root, whose ids must be where the layout says */
	ADOPTION_VERIFIED = 2,
	ADOPTION_MISMATCH = 3, /* they were not: nothing is written, ever */
	ADOPTION_LEARNING = 4, /* the layout is not known yet: samples of spans are sent, nothing else is done */
};

/*
 * Where opentelemetry_sdk keeps what the programs read, in bytes.
 * opentelemetry_sdk src/trace/span.rs (Span, SpanData), opentelemetry src/trace/span_context.rs.
 */
struct sdk_layout {
	__u16 context_trace_id; /* in SpanContext */
	__u16 context_span_id;
	__u16 context_is_remote; /* LAYOUT_ABSENT, as what lies below may be, in layouts that were learned */
	__u16 context_flags;
	__u16 span_context; /* in Span, as are all below */
	__u16 span_data;
	__u16 span_parent_id;
	__u16 span_parent_is_remote; /* LAYOUT_ABSENT before 0.31 */
	__u16 span_name_pointer; /* of a borrowed name, which the u64 at span_name_tag says; */
	__u16 span_name_length;
	__u16 span_name_owned_pointer; /* … of an owned one */
	__u16 span_name_owned_length;
	__u16 span_name_tag; /* LAYOUT_ABSENT: both lie in the same places */
	__u16 span_kind;
	__u16 span_start_seconds;
	__u16 span_start_nanos;
	__u16 span_status;
	__u16 span_data_size; /* bytes of the integer at span_data, 1 to 8; 0: span_data is not known, or always there */
	__u16 span_status_size; /* 0: not known */
	/* Of an end time that is handed on by address. */
	__u16 end_argument_seconds;
	__u16 end_argument_nanos;
	__u16 end_argument_tag;
	__u32 pad;
	__u64 span_data_none; /* the integer at span_data that says `data: None` */
	__u64 span_name_borrowed; /* the u64 at span_name_tag */
	__u64 status_unset; /* the integer at span_status that says Status::Unset; */
	__u64 status_ok; /* … Status::Ok; anything else is Status::Error */
	__u64 end_argument_tag_none; /* the u64 at end_argument_tag that says `None` */
	__u32 end_argument_none_nanos; /* the nanoseconds that say `None`; LAYOUT_BY_ADDRESS: by address */
	__u32 pad_end;
};

#define TOKIO_TAG_SOME 1

#define TARGETS_MAX 1024
#define TARGET_SET 8
#define TARGET_SETS (TARGETS_MAX / TARGET_SET)

/* target_sets: value. */
struct target_set {
	__u32 pids[TARGET_SET]; /* 0: free */
};

#define LAYOUT_ABSENT 0xffff
#define LAYOUT_BY_ADDRESS 0 /* no `None`: nobody says that by a moment that there is */

/*
 * targets: value. `adoption`, the arguments, `parent_proven`, and the counts from `ends_seen` to `wants_wakes` are
 * changed by programs, all else is constant while attached.
 */
struct target {
	__u64 tokio_task_id; /* offset from the thread pointer, two's complement; 0: no tokio */
	__u64 tokio_task_tag; /* likewise; the id counts only where the u64 there is TOKIO_TAG_SOME; 0: no tag */
	__u64 sample_below; /* a root is sampled if (low half of its trace id >> 1) < this */
	__u32 adoption; /* enum adoption */
	__u32 adopt_mode;
	__u32 write_mode;
	__u32 tracer; /* process id of the stop writer's tracer, 0: none */
	__u32 parent_based;
	__u32 wants_manual_spans; /* an exporter shows them */
	/* Spans get their ids when they start, and are built when they end (tracing-opentelemetry before 0.32). */
	__u32 builds_late;
	/*
	 * In which arguments build_recording_span gets the new span's context and the parent's (1: rsi … 5: r9).
	 * 0: its code does not tell; found at the first root.
	 */
	__u32 context_argument;
	__u32 parent_argument;
	__u32 parent_is_id; /* the parent's span id itself is passed, not the address of its context */
	__u16 parent_proven; /* layout.span_parent_id is certain, or a known parent was found there */
	__u16 ends_seen; /* a known span was found at its end: span_context and span_data are right */
	__u32 strangers; /* spans that were to prove the layout, and did not; counted by otel_sdk */
	__u32 samples; /* spans that were built while the layout is learned; counted by otel_sdk */
	/* Of spans that ended in a row unknown, while a known one lay beside: how many, and how far. */
	__u32 astray_distance;
	__u32 ends_astray;
	__u32 wants_wakes; /* EVENT_WAKES_WANTED was sent */
	__u32 inject; /* requests out get headers */
	__u32 said_old_connection; /* 1: that a connection is older than the agent; set by programs */
	struct sdk_layout layout;
};

#endif
