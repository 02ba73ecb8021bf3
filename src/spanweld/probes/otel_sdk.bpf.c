/*
 * OpenTelemetry SDK: manual spans. Roots that start in a task with an active span are adopted.
 *
 * opentelemetry_sdk (0.17: opentelemetry), src/trace/tracer.rs, span.rs, id_generator/mod.rs:
 *   IdGenerator::new_trace_id(&self) -> TraceId                a root starts on this thread
 *   SdkTracer::build_recording_span(&self, psc: &SpanContext, sc: SpanContext, …) -> Span    since 0.22
 *   Tracer::build_with_context(&self, SpanBuilder, &Context) -> Span           where that is not to be had
 *   Span::ensure_ended_and_exported(&mut self, Option<SystemTime>)
 * Entries, and `ret` instructions as such: no frame of the target's is changed, so a panic passes as
 * it would without us. Until the first root has shown that ids lie where the layout says, probes on
 * the `ret` instructions of new_trace_id and new_span_id note what the SDK generated.
 *
 * tracing-opentelemetry before 0.32 gives a span its ids when it starts, and has the SDK build it, with
 * these ids, when it ends, children first. So the trace id of such a root can only be fixed at its source,
 * and what its parent is to be is kept under its span id until then (target.builds_late).
 *
 * Where nobody knows the layout, spans that were just built are sent to the agent, with the ids that were
 * generated for them, until it has learned where those lie (layouts/learned.py).
 *
 * Uprobe programs may be preempted: no per-CPU scratch here.
 */
#include "maps.bpf.h"
#include "task_edges.bpf.h"
#include "otel_sdk.h"

#define SIGURG_NUMBER 23
#define NANOSECONDS 1000000000
/* Seconds since 1970: 1973 to 2106. What somebody sets by hand, and no pointer, size or small count. */
#define ERA_BEGINS 100000000ULL
#define ERA_ENDS (1ULL << 32)
#define SPAN_KINDS 5

#include "stop_request.h"

/* Set before load where the host allows bpf_probe_write_user: elsewhere the verifier, which does not
 * know the helper there, must never come to the call. */
const volatile bool kernel_writes = false;

/* A root that is starting on a thread. key: thread id. Written and deleted here. */
struct root_start {
	__u64 trace_id_low; /* noted when new_trace_id returned, or handed out in its place */
	__u64 trace_id_high;
	__u64 span_id; /* noted when new_span_id returned */
	__u64 sp; /* at the entry of new_trace_id */
	__u8 began; /* new_trace_id was entered */
	__u8 trace_noted;
	__u8 span_noted;
	__u8 counted; /* as dropped: taken back when its span is built */
	__u8 handed; /* the stop writer makes new_trace_id return this trace id */
	__u8 pad[3];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct root_start);
} root_starts SEC(".maps");

/*
 * The same where the probes are inside the target: in the target's own map, behind its buckets, so that the
 * probe on new_span_id, which stays a uprobe, can note there what they look for. Each entry is its
 * thread's alone; a line of them is searched. thread: the thread pointer, 0: free.
 */
struct shared_start {
	__u64 thread;
	struct root_start start;
};

#define SHARED_LINE 8
#define SHARED_LINES 8
#define SHARED_START_ELEMENTS (SHARED_HANDED_ON - SHARED_STARTS)

struct shared_starts {
	struct shared_start entries[SHARED_LINES * SHARED_LINE];
};

_Static_assert(sizeof(struct shared_starts) <= sizeof(struct span_bucket), "they fit a value of the map");
_Static_assert(SHARED_START_ELEMENTS *SHARED_LINES <= SPANS_BUCKETS, "the hash has bits enough");

static __always_inline __u32 shared_index(__u64 thread)
{
	return SHARED_STARTS + spans_bucket_of(thread) % SHARED_START_ELEMENTS;
}

static __always_inline struct shared_start *shared_line(struct shared_starts *starts, __u64 thread)
{
	return &starts->entries[spans_bucket_of(thread) / SHARED_START_ELEMENTS % SHARED_LINES * SHARED_LINE];
}

struct manual_span_key {
	__u64 span_id;
	__u32 pid;
	__u32 pad;
};

/*
 * A recording manual span that a request's task started; where spans are built late, also a root that
 * was given its ids and is not built yet.
 */
struct manual_span {
	__u64 task_key; /* whose stack holds it */
	__u64 trace_id_low;
	__u64 trace_id_high;
	__u64 parent; /* what its parent is to be, or, of a child, already is */
	__u64 parent_before; /* of an adopted one: what the SDK has in that place */
	__u8 adopted;
	__u8 remote; /* its remote parent was the server span's own */
	__u8 ended; /* on_end was called for it, and may be again for another processor */
	__u8 built; /* it was seen when it was built, recording */
	__u8 astray; /* it was found beside the place where the layout says that a span which ends has its context */
	__u8 pad[3];
};

/* LRU: a span that never ends is forgotten in the end. Written and deleted here. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct manual_span_key);
	__type(value, struct manual_span);
} manual_spans SEC(".maps");

/* A root's ids as they were generated, or handed out by us: kept until the layout is verified. */
struct trace_id {
	__u64 low;
	__u64 high;
};

/* key: a span id that was generated. 0: a child's, or a root's that has no trace id yet. Written here,
 * where spans are built late; forgotten by age. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct manual_span_key);
	__type(value, struct trace_id);
} late_ids SEC(".maps");

/* Where a call of build_with_context will leave its Span. The frame tells apart a processor's own. */
struct build_key {
	__u64 sp; /* of the return address */
	__u32 tid;
	__u32 pad;
};

struct build {
	__u64 address;
	/*
	 * What this thread had noted before: of a build around this one, or left behind by one whose sampler
	 * panicked or dropped its root. None of this build's business.
	 */
	struct root_start around;
};

/* Written at the entry, deleted at the return; what panicked is forgotten by age. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct build_key);
	__type(value, struct build);
} builds SEC(".maps");

/* key: thread id. Written here, taken by the stop writer's tracer. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct stop_request);
} stop_requests SEC(".maps");

#include "stop_guard.bpf.h"

/* What is read of a SpanContext. */
struct span_context {
	__u64 trace_id_low;
	__u64 trace_id_high;
	__u64 span_id;
	__u8 is_remote;
	__u8 flags;
	__u8 pad[6];
};

static __always_inline bool read_u64(__u64 *value, __u64 address)
{
	return !bpf_probe_read_user(value, sizeof(*value), (void *)address);
}

/* An integer of 1 to 8 bytes. */
static __always_inline bool read_integer(__u64 *value, __u64 address, __u32 size)
{
	*value = 0;
	if (size > sizeof(*value))
		return false;
	/* Two comparisons: of `size - 1`, into which clang makes them, Linux 6.1 does not infer the size. */
	asm volatile("" : "+r"(size));
	return size && !bpf_probe_read_user(value, size, (void *)address);
}

static __always_inline bool read_span_context(struct span_context *context, const struct sdk_layout *layout,
					      __u64 address)
{
	context->is_remote = 0;
	if (bpf_probe_read_user(&context->trace_id_low, 16, (void *)(address + layout->context_trace_id)) ||
	    !read_u64(&context->span_id, address + layout->context_span_id) ||
	    (layout->context_is_remote != LAYOUT_ABSENT &&
	     bpf_probe_read_user(&context->is_remote, 1, (void *)(address + layout->context_is_remote))) ||
	    bpf_probe_read_user(&context->flags, 1, (void *)(address + layout->context_flags))) {
		count(COUNT_READ_FAULT);
		return false;
	}
	return true;
}

/* Whether the Span at an address has ended or never recorded; false where that cannot be told by itself. */
static __always_inline bool has_no_data(const struct sdk_layout *layout, __u64 span)
{
	__u64 data;

	if (!layout->span_data_size)
		return false;
	if (!read_integer(&data, span + layout->span_data, layout->span_data_size)) {
		count(COUNT_READ_FAULT);
		return true;
	}
	return data == layout->span_data_none;
}

static __always_inline bool may_adopt(const struct target *target)
{
	return target && target->adoption != ADOPTION_NONE && target->adoption != ADOPTION_MISMATCH;
}

/* Whether generated ids are noted, to be compared with the span that is built. */
static __always_inline bool notes_ids(const struct target *target)
{
	return target && (target->adoption == ADOPTION_UNVERIFIED || target->adoption == ADOPTION_LEARNING ||
			  target->builds_late);
}

static __always_inline void change_adoption(struct target *target, __u32 pid, __u32 from, __u32 to, __u32 what,
					    __u64 expected, __u64 found)
{
	struct adoption_event event = {};

	if (__sync_val_compare_and_swap(&target->adoption, from, to) != from)
		return;
	event.head.kind = EVENT_ADOPTION;
	event.head.pid = pid;
	event.head.at = bpf_ktime_get_ns();
	event.adoption = to;
	event.what = what;
	event.expected = expected;
	event.found = found;
	emit(&event, sizeof(event));
}

/* Why the tracer cannot stop this thread here, as the counter that says so; COUNT_MAX: it can. */
static __always_inline __u32 why_no_stop(const struct target *target)
{
	const struct task_struct *task;

	if (IN_TARGET)
		return COUNT_MAX; /* it needs none */
	task = bpf_get_current_task_btf();
	if (task->blocked.sig[0] & 1UL << (SIGURG_NUMBER - 1))
		return COUNT_ROOTS_SIGNAL_BLOCKED;
	/* A tracer that has died leaves no one who would take the signal away again. */
	if (!task->ptrace || (__u32)task->parent->tgid != target->tracer)
		return COUNT_ROOTS_NO_TRACER;
	return COUNT_MAX;
}

static __always_inline bool ask_to_stop(struct stop_request *request, struct pt_regs *ctx)
{
	__u32 tid = bpf_get_current_pid_tgid();

	request->sp = ctx->sp;
	request->ip = ctx->ip;
	if (bpf_map_update_elem(&stop_requests, &tid, request, BPF_ANY))
		return false;
	if (bpf_send_signal_thread(SIGURG_NUMBER)) {
		bpf_map_delete_elem(&stop_requests, &tid);
		return false;
	}
	return true;
}

/* Whether a program writes to the target's memory itself, with bpf_probe_write_user. */
static __always_inline bool writes_itself(const struct target *target)
{
	return IN_TARGET || (kernel_writes && target->write_mode == WRITE_KERNEL);
}

static __always_inline __u64 parent_for(const struct target *target, const struct active_spans *found)
{
	return target->adopt_mode == ADOPT_SERVER ? found->server.span_id : found->active.span_id;
}

/* Keeps what is known of a root that will be built late; false if there is no room. */
static __always_inline bool keep_late_root(const struct target *target, __u32 pid, __u64 key, __u64 span_id,
					   const struct active_spans *found)
{
	struct manual_span_key span_key = {};
	struct manual_span span = {};

	span_key.span_id = span_id;
	span_key.pid = pid;
	span.task_key = key;
	span.trace_id_low = found->server.trace_id_low;
	span.trace_id_high = found->server.trace_id_high;
	span.parent = parent_for(target, found);
	span.adopted = 1;
	return !bpf_map_update_elem(&manual_spans, &span_key, &span, BPF_ANY);
}

static __always_inline void note_late_id(__u32 pid, __u64 span_id, __u64 low, __u64 high)
{
	struct manual_span_key key = {};
	struct trace_id trace_id = {};

	key.span_id = span_id;
	key.pid = pid;
	trace_id.low = low;
	trace_id.high = high;
	bpf_map_update_elem(&late_ids, &key, &trace_id, BPF_ANY);
}

/*
 * Whether the call of a generator's method is the SDK's. A cookie says how far behind the probe that call
 * returns, where it is not known what else the function may be; 0: it is a generator's. Read where the return
 * address is on top of the stack.
 */
static __always_inline bool is_called_by_sdk(struct pt_regs *ctx)
{
	__u64 distance = bpf_get_attach_cookie(ctx), returns_to;

	return !distance || (read_u64(&returns_to, ctx->sp) && returns_to == ctx->ip + distance);
}

/*
 * A root starts on this thread: its trace id is fixed here, at its source. That needs no layout, but
 * waits for one that is verified, so that what is begun can be finished; except where spans are
 * built late, whose children would be exported before.
 */
SEC("uprobe")
int otel_new_trace_id(struct pt_regs *ctx)
{
	__u32 pid, tid = bpf_get_current_pid_tgid();
	struct stop_request request = {};
	struct root_start start = {}, *before;
	struct active_spans found = {};
	struct target *target = current_target(&pid);
	bool has_span_id, is_active, sampled;
	__u64 key;

	if (!may_adopt(target) || !is_called_by_sdk(ctx))
		return 0;
	before = bpf_map_lookup_elem(&root_starts, &tid);
	if (before)
		start = *before;
	key = current_task_key(target);
	note_task_on_thread(pid, key);
	is_active = target->adoption != ADOPTION_LEARNING && find_context(pid, key, &found);
	sampled = is_active && (found.server.flags & TRACE_FLAG_SAMPLED);
	has_span_id = start.span_noted;
	start.began = 1;
	start.trace_noted = 0;
	start.handed = 0;
	start.sp = ctx->sp;
	/* Only the sampler comes between here and the span; where spans are built late, much does. */
	start.counted = sampled && !target->builds_late;
	/* Handed out here, it never comes to a `ret`. */
	if (IN_TARGET && sampled) {
		start.trace_id_low = found.server.trace_id_low;
		start.trace_id_high = found.server.trace_id_high;
		start.trace_noted = 1;
		start.handed = 1;
	}
	bpf_map_update_elem(&root_starts, &tid, &start, BPF_ANY);
	if (start.counted)
		count(COUNT_ROOTS_DROPPED);
	if (!sampled) {
		if (is_active)
			count(COUNT_ROOTS_UNSAMPLED);
		return 0;
	}
	if (target->write_mode != WRITE_STOP && !IN_TARGET)
		return 0;
	if (target->builds_late) {
		__u32 cause = has_span_id ? why_no_stop(target) : COUNT_ROOTS_UNWRITTEN;

		if (cause == COUNT_MAX && !keep_late_root(target, pid, key, start.span_id, &found))
			cause = COUNT_ROOTS_UNWRITTEN;
		if (cause != COUNT_MAX) {
			count(cause);
			return 0;
		}
		if (target->adoption == ADOPTION_UNVERIFIED)
			note_late_id(pid, start.span_id, found.server.trace_id_low, found.server.trace_id_high);
	} else if (!IN_TARGET && (target->adoption != ADOPTION_VERIFIED || why_no_stop(target) != COUNT_MAX)) {
		/* What cannot be stopped is counted once, when its span is built. */
		return 0;
	}
	if (IN_TARGET) {
		ctx->ax = found.server.trace_id_low;
		ctx->dx = found.server.trace_id_high;
		return 1; /* at once, with these */
	}
	request.returns = 1;
	request.return_low = found.server.trace_id_low;
	request.return_high = found.server.trace_id_high;
	if (!ask_to_stop(&request, ctx) || target->builds_late)
		return 0;
	before = bpf_map_lookup_elem(&root_starts, &tid);
	if (before) {
		before->trace_id_low = request.return_low;
		before->trace_id_high = request.return_high;
		before->handed = 1;
	}
	return 0;
}

/* On each `ret` of new_trace_id, while the layout is not verified: rdx:rax is what it generated. */
SEC("uprobe")
int otel_new_trace_id_returns(struct pt_regs *ctx)
{
	__u32 pid, tid = bpf_get_current_pid_tgid();
	struct root_start *start;
	struct target *target = current_target(&pid);

	if (!notes_ids(target) || !is_called_by_sdk(ctx))
		return 0;
	start = bpf_map_lookup_elem(&root_starts, &tid);
	/* Where the function leaves by a jump, the `ret` is another's, which others may call too. */
	if (!start || start->sp != ctx->sp)
		return 0;
	start->trace_id_low = ctx->ax;
	start->trace_id_high = ctx->dx;
	start->trace_noted = 1;
	if (target->builds_late && start->span_noted)
		note_late_id(pid, start->span_id, ctx->ax, ctx->dx);
	return 0;
}

/* For the probes inside the target; without room, the next root will do. */
static __always_inline void share_span_id(__u32 pid, __u64 span_id)
{
	__u64 thread = thread_pointer();
	struct shared_starts *starts = shared_element(pid, shared_index(thread));
	struct shared_start *line, *entry = NULL;

	if (!starts || !thread)
		return;
	line = shared_line(starts, thread);
	for (int i = 0; i < SHARED_LINE && !entry; i++)
		if (*(volatile __u64 *)&line[i].thread == thread)
			entry = &line[i];
	for (int i = 0; i < SHARED_LINE && !entry; i++)
		if (!__sync_val_compare_and_swap(&line[i].thread, 0, thread))
			entry = &line[i];
	if (!entry)
		return;
	entry->start.span_id = span_id;
	entry->start.span_noted = 1;
	entry->start.began = 0;
	entry->start.trace_noted = 0;
	entry->start.counted = 0;
	entry->start.handed = 0;
}

/* On each `ret` of new_span_id, which comes before new_trace_id, also where spans are built late. */
SEC("uprobe")
int otel_new_span_id_returns(struct pt_regs *ctx)
{
	__u32 pid, tid = bpf_get_current_pid_tgid();
	struct root_start start = {};
	struct target *target = current_target(&pid);

	if (!notes_ids(target) || !is_called_by_sdk(ctx))
		return 0;
	if (target->write_mode == WRITE_INLINE) {
		share_span_id(pid, ctx->ax);
		return 0;
	}
	start.span_id = ctx->ax;
	start.span_noted = 1;
	bpf_map_update_elem(&root_starts, &tid, &start, BPF_ANY);
	if (target->builds_late && target->adoption == ADOPTION_UNVERIFIED)
		note_late_id(pid, ctx->ax, 0, 0);
	return 0;
}

/* What the SDK has just built, or is about to. */
struct built_span {
	struct span_context context;
	__u64 context_address; /* where that may still be written */
	__u64 parent_span_id;
	bool parent_is_local; /* false: remote, or not known */
	bool from_span; /* the parent was read of the finished Span, where only the layout says that it is */
};

/*
 * A span that continues the request's remote parent shows it too: the trace id that came with the request, and
 * the span id that the SDK has just generated.
 */
static __always_inline void verify_by_remote_parent(struct target *target, __u32 pid,
						    const struct root_start *start, const struct built_span *built,
						    struct active_spans *found)
{
	if (start->span_noted && start->span_id == built->context.span_id &&
	    find_context(pid, current_task_key(target), found) &&
	    found->server.remote_parent == built->parent_span_id &&
	    found->server.trace_id_low == built->context.trace_id_low &&
	    found->server.trace_id_high == built->context.trace_id_high)
		change_adoption(target, pid, ADOPTION_UNVERIFIED, ADOPTION_VERIFIED, 0, 0, 0);
}

/*
 * The ids that the SDK has just generated must be what the layout finds in the new span context.
 * Only a root of which both were noted since the last span was built can tell.
 */
static __always_inline void verify_layout(struct target *target, __u32 pid, const struct root_start *start,
					  const struct span_context *context)
{
	if (!start->trace_noted || !start->span_noted)
		return;
	if (start->trace_id_low != context->trace_id_low || start->trace_id_high != context->trace_id_high)
		change_adoption(target, pid, ADOPTION_UNVERIFIED, ADOPTION_MISMATCH, CHECK_TRACE_ID,
				start->trace_id_low, context->trace_id_low);
	else if (start->span_id != context->span_id)
		change_adoption(target, pid, ADOPTION_UNVERIFIED, ADOPTION_MISMATCH, CHECK_SPAN_ID, start->span_id,
				context->span_id);
	else
		change_adoption(target, pid, ADOPTION_UNVERIFIED, ADOPTION_VERIFIED, 0, 0, 0);
}

static __always_inline const struct trace_id *find_late_id(__u32 pid, __u64 span_id)
{
	struct manual_span_key key = {};

	key.span_id = span_id;
	key.pid = pid;
	return bpf_map_lookup_elem(&late_ids, &key);
}

static __always_inline const struct trace_id *if_root(const struct trace_id *trace_id)
{
	return trace_id && (trace_id->low || trace_id->high) ? trace_id : NULL;
}

static __always_inline const struct trace_id *find_late_root(__u32 pid, __u64 span_id)
{
	return if_root(find_late_id(pid, span_id));
}

/*
 * A parent that was read of a finished Span must agree with what is known otherwise: new_trace_id is
 * called for a root, and for nothing else.
 */
static __always_inline bool contradicts(const struct target *target, const struct built_span *built, bool began,
					bool ours)
{
	if (!built->from_span || target->builds_late)
		return false;
	return began ? built->parent_span_id != 0 : ours && !built->parent_span_id;
}

/*
 * Where spans are built late, much comes between ids and span, and children come first. A root tells by
 * itself, its child by both of them. Ids that were never generated (somebody's own, or another place) tell
 * nothing; too many of them are a mismatch.
 */
#define LATE_STRANGERS_MAX 1000

static __always_inline bool is_one_too_many(struct target *target)
{
	return __sync_fetch_and_add(&target->strangers, 1) >= LATE_STRANGERS_MAX;
}

static __always_inline void verify_late(struct target *target, __u32 pid, const struct built_span *built)
{
	const struct trace_id *own = find_late_id(pid, built->context.span_id);
	const struct trace_id *root = if_root(own);

	if (!root && built->parent_span_id)
		root = find_late_root(pid, built->parent_span_id);
	if (root && (root->low != built->context.trace_id_low || root->high != built->context.trace_id_high))
		change_adoption(target, pid, ADOPTION_UNVERIFIED, ADOPTION_MISMATCH, CHECK_TRACE_ID, root->low,
				built->context.trace_id_low);
	else if (root && own)
		change_adoption(target, pid, ADOPTION_UNVERIFIED, ADOPTION_VERIFIED, 0, 0, 0);
	else if (!own && is_one_too_many(target))
		change_adoption(target, pid, ADOPTION_UNVERIFIED, ADOPTION_MISMATCH, CHECK_SPAN_ID, 0,
				built->context.span_id);
}

/*
 * Writes the active span's trace id into the span context at an address.
 * Returns COUNT_MAX, or the counter of why it cannot.
 */
static __always_inline __u32 write_trace_id(const struct target *target, struct pt_regs *ctx,
					    __u64 context_address, const struct span_frame *server)
{
	__u64 address = context_address + target->layout.context_trace_id;

	if (writes_itself(target)) {
		__u64 trace_id[2] = {server->trace_id_low, server->trace_id_high};

		return bpf_probe_write_user((void *)address, trace_id, sizeof(trace_id)) ? COUNT_ROOTS_UNWRITTEN
											 : COUNT_MAX;
	}
	if (target->write_mode == WRITE_STOP) {
		struct stop_request request = {};
		__u32 cause = why_no_stop(target);

		if (cause != COUNT_MAX)
			return cause;

		request.nr_writes = 2;
		request.writes[0].address = address;
		request.writes[0].value = server->trace_id_low;
		request.writes[0].size = 8;
		request.writes[1].address = address + 8;
		request.writes[1].value = server->trace_id_high;
		request.writes[1].size = 8;
		return ask_to_stop(&request, ctx) ? COUNT_MAX : COUNT_ROOTS_UNWRITTEN;
	}
	return COUNT_ROOTS_UNWRITTEN;
}

static __always_inline void say_root(__u32 pid, const struct span_frame *server,
				     const struct span_context *context)
{
	struct manual_root_event event = {};

	event.head.kind = EVENT_MANUAL_ROOT;
	event.head.pid = pid;
	event.head.at = bpf_ktime_get_ns();
	event.server_span_id = server->span_id;
	event.trace_id_low = context->trace_id_low;
	event.trace_id_high = context->trace_id_high;
	event.span_id = context->span_id;
	event.flags = context->flags;
	emit(&event, sizeof(event));
}

static __always_inline void push_manual_span(__u32 pid, __u64 key, const struct span_context *context,
					     const struct active_spans *found)
{
	struct span_frame frame = {};

	frame.trace_id_low = found->server.trace_id_low;
	frame.trace_id_high = found->server.trace_id_high;
	frame.span_id = context->span_id;
	frame.flags = context->flags;
	frame.kind = FRAME_MANUAL;
	push_upon(pid, key, &frame, found);
}

/* A recording span is built: a root is adopted, what belongs to the request is pushed. */
static __always_inline int adopt_or_follow(struct target *target, __u32 pid, struct pt_regs *ctx,
					   const struct built_span *built)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct manual_span_key span_key = {};
	struct root_start start = {}, *noted;
	struct active_spans found = {};
	struct manual_span span = {}, *known;
	bool is_active, ours;
	__u64 key;

	noted = bpf_map_lookup_elem(&root_starts, &tid);
	if (noted) {
		/* With another trace id than it got, this is not the root that began: the sampler dropped that. */
		if (noted->handed && (noted->trace_id_low != built->context.trace_id_low ||
				      noted->trace_id_high != built->context.trace_id_high))
			noted->began = noted->counted = 0;
		start = *noted;
		bpf_map_delete_elem(&root_starts, &tid);
	}
	/* A span with a parent is not the root that began. */
	if (start.counted && !built->parent_span_id)
		uncount(COUNT_ROOTS_DROPPED);
	if (target->adoption == ADOPTION_UNVERIFIED) {
		if (target->builds_late)
			verify_late(target, pid, built);
		else if (built->parent_span_id && !start.trace_noted)
			verify_by_remote_parent(target, pid, &start, built, &found);
		else
			verify_layout(target, pid, &start, &built->context);
	}
	if (target->adoption != ADOPTION_VERIFIED)
		return 0;

	key = current_task_key(target);
	is_active = find_context(pid, key, &found) && (found.server.flags & TRACE_FLAG_SAMPLED);
	ours = is_active && built->context.trace_id_low == found.server.trace_id_low &&
	       built->context.trace_id_high == found.server.trace_id_high;
	span_key.span_id = built->context.span_id;
	span_key.pid = pid;
	if (target->builds_late) {
		known = bpf_map_lookup_elem(&manual_spans, &span_key);
		if (known && !built->parent_span_id && known->trace_id_low == built->context.trace_id_low &&
		    known->trace_id_high == built->context.trace_id_high) {
			/* All was decided when it got its ids, in whatever task that was. */
			known->task_key = key;
			known->built = 1;
			if (ours)
				push_manual_span(pid, key, &built->context, &found);
			return 0;
		}
		if (known) {
			/* A root has no parent. */
			if (known->adopted && built->parent_span_id)
				change_adoption(target, pid, ADOPTION_VERIFIED, ADOPTION_MISMATCH, CHECK_PARENT_ID,
						0, built->parent_span_id);
			bpf_map_delete_elem(&manual_spans, &span_key);
			if (target->adoption != ADOPTION_VERIFIED)
				return 0;
		}
	}
	if (contradicts(target, built, start.began, ours)) {
		change_adoption(target, pid, ADOPTION_VERIFIED, ADOPTION_MISMATCH, CHECK_PARENT_ID, start.began,
				built->parent_span_id);
		return 0;
	}
	if (!is_active)
		return 0;
	if (!built->parent_span_id) {
		/* Without new_trace_id, the id is the application's own choice. */
		if (target->builds_late)
			start.began = find_late_root(pid, built->context.span_id) != NULL;
		if (target->write_mode == WRITE_OFF) {
			if (start.began)
				say_root(pid, &found.server, &built->context);
			return 0;
		}
		/* Too late: children that were built before have the old trace id. */
		if (target->builds_late) {
			if (start.began && target->write_mode == WRITE_KERNEL)
				count(COUNT_ROOTS_UNWRITTEN);
			return 0;
		}
		if (!ours && !start.began) {
			count(COUNT_ROOTS_OWN_ID);
			return 0;
		}
		if (!ours) {
			__u32 cause = write_trace_id(target, ctx, built->context_address, &found.server);

			if (cause != COUNT_MAX) {
				count(cause);
				return 0;
			}
		}
		span.adopted = 1;
		span.parent = parent_for(target, &found);
	} else if (!ours) {
		return 0; /* a trace of its own */
	} else if (!built->parent_is_local && built->parent_span_id == found.server.remote_parent &&
		   target->write_mode != WRITE_OFF) {
		span.adopted = 1;
		span.remote = 1;
		span.parent_before = built->parent_span_id;
		span.parent = found.server.span_id;
	} else {
		span.parent = built->parent_span_id;
	}

	span.task_key = key;
	span.trace_id_low = found.server.trace_id_low;
	span.trace_id_high = found.server.trace_id_high;
	span.built = 1;
	bpf_map_update_elem(&manual_spans, &span_key, &span, BPF_ANY);
	push_manual_span(pid, key, &built->context, &found);
	return 0;
}

static __always_inline __u64 argument(const struct pt_regs *ctx, __u32 number)
{
	if (number == 1)
		return READ_REGISTER(ctx, si);
	if (number == 2)
		return READ_REGISTER(ctx, dx);
	if (number == 3)
		return READ_REGISTER(ctx, cx);
	if (number == 4)
		return READ_REGISTER(ctx, r8);
	return number == 5 ? READ_REGISTER(ctx, r9) : 0;
}

/* Whether an argument is the address of the context with the ids that were generated for this root. */
static __always_inline bool is_new_context(const struct target *target, __u32 pid, const struct pt_regs *ctx,
					   __u32 number)
{
	__u64 address = argument(ctx, number) + target->layout.context_trace_id;
	__u64 span_id_address = argument(ctx, number) + target->layout.context_span_id;
	__u32 tid = bpf_get_current_pid_tgid();
	const struct root_start *start;
	const struct trace_id *late;
	struct trace_id trace_id;
	__u64 span_id;

	if (bpf_probe_read_user(&trace_id, sizeof(trace_id), (void *)address) ||
	    !read_u64(&span_id, span_id_address))
		return false;
	if (target->builds_late) {
		late = find_late_id(pid, span_id);
		return late && late->low == trace_id.low && late->high == trace_id.high;
	}
	start = bpf_map_lookup_elem(&root_starts, &tid);
	return start && start->trace_noted && start->span_noted && start->span_id == span_id &&
	       start->trace_id_low == trace_id.low && start->trace_id_high == trace_id.high;
}

/*
 * Where the code did not tell in which arguments the contexts are, the first root does: as they are
 * declared, or one further on, where the compiler passes the tracer in two. A parent's context that is
 * passed by its id is 0 of a root.
 */
#define CONTEXT_AS_DECLARED 3

static __always_inline bool find_arguments(struct target *target, __u32 pid, const struct pt_regs *ctx)
{
	__u32 tid = bpf_get_current_pid_tgid(), number = CONTEXT_AS_DECLARED;
	const struct root_start *start;

	if (!is_new_context(target, pid, ctx, number) && !is_new_context(target, pid, ctx, ++number)) {
		/* A child on a thread whose last root was dropped looks the same, but not for long. */
		start = bpf_map_lookup_elem(&root_starts, &tid);
		if (start && start->trace_noted && start->span_noted && is_one_too_many(target))
			change_adoption(target, pid, ADOPTION_UNVERIFIED, ADOPTION_MISMATCH, CHECK_ARGUMENTS,
					start->span_id, 0);
		return false;
	}
	target->parent_is_id = !argument(ctx, number - 1);
	target->parent_argument = number - 1;
	target->context_argument = number;
	return true;
}

/* psc: the parent's span context, or its span id; sc: the new span's own context. */
SEC("uprobe")
int otel_build_recording_span(struct pt_regs *ctx)
{
	struct span_context parent = {};
	struct built_span built = {};
	__u32 pid;
	struct target *target = current_target(&pid);
	__u64 psc, sc;

	if (!may_adopt(target))
		return 0;
	if (!target->context_argument && !find_arguments(target, pid, ctx))
		return 0;
	psc = argument(ctx, target->parent_argument);
	sc = argument(ctx, target->context_argument);
	if (target->parent_is_id)
		parent.span_id = psc;
	if (!read_span_context(&built.context, &target->layout, sc) ||
	    (!target->parent_is_id && !read_span_context(&parent, &target->layout, psc))) {
		change_adoption(target, pid, ADOPTION_UNVERIFIED, ADOPTION_MISMATCH, CHECK_ARGUMENTS, sc, psc);
		return 0;
	}
	built.context_address = sc;
	built.parent_span_id = parent.span_id;
	built.parent_is_local = !target->parent_is_id && !parent.is_remote;
	return adopt_or_follow(target, pid, ctx, &built);
}

/* For the agent to learn the layout by. */
static __always_inline void send_sample(struct target *target, __u32 pid, __u32 tid, __u64 span)
{
	struct root_start *start = bpf_map_lookup_elem(&root_starts, &tid);
	struct span_sample_event *event;
	__u32 number = __sync_fetch_and_add(&target->samples, 1);

	if (number >= SPAN_SAMPLES_MAX)
		return;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		count(COUNT_EVENT_LOST);
		return;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->head.kind = EVENT_SPAN_SAMPLE;
	event->head.pid = pid;
	event->head.at = bpf_ktime_get_ns();
	event->number = number;
	if (start) {
		event->trace_id_low = start->trace_id_low;
		event->trace_id_high = start->trace_id_high;
		event->span_id = start->span_id;
		event->began = start->began;
		event->trace_noted = start->trace_noted;
		event->span_noted = start->span_noted;
	}
	if (bpf_probe_read_user(event->memory, sizeof(event->memory), (void *)span)) {
		count(COUNT_READ_FAULT);
		bpf_ringbuf_discard(event, BPF_RB_NO_WAKEUP);
		return;
	}
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
}

/* rdi = the place of the Span that is returned. */
SEC("uprobe")
int otel_build_with_context(struct pt_regs *ctx)
{
	__u32 pid, tid = bpf_get_current_pid_tgid();
	struct build_key key = {};
	struct target *target = current_target(&pid);
	struct build build = {};
	struct root_start *noted;

	if (!may_adopt(target))
		return 0;
	build.address = ctx->di;
	noted = bpf_map_lookup_elem(&root_starts, &tid);
	if (noted) {
		build.around = *noted;
		bpf_map_delete_elem(&root_starts, &tid);
	}
	key.sp = ctx->sp;
	key.tid = tid;
	bpf_map_update_elem(&builds, &key, &build, BPF_ANY);
	return 0;
}

/* A Span that seems not to record has the ids all the same that were generated for it, and is not sampled. */
static __always_inline void verify_not_recording(struct target *target, __u32 pid,
						 const struct span_context *context)
{
	__u32 tid = bpf_get_current_pid_tgid(), what = CHECK_DATA;
	const struct root_start *start;
	const struct trace_id *late;

	if (target->adoption != ADOPTION_UNVERIFIED)
		return;
	if (target->builds_late) {
		late = find_late_id(pid, context->span_id);
		if (!late && !is_one_too_many(target))
			return;
		if (!late)
			what = CHECK_SPAN_ID;
	} else {
		start = bpf_map_lookup_elem(&root_starts, &tid);
		if (!start || !start->span_noted || !start->trace_noted)
			return;
		if (start->trace_id_low != context->trace_id_low ||
		    start->trace_id_high != context->trace_id_high || start->span_id != context->span_id)
			what = CHECK_TRACE_ID;
	}
	if (what != CHECK_DATA || context->flags & TRACE_FLAG_SAMPLED)
		change_adoption(target, pid, ADOPTION_UNVERIFIED, ADOPTION_MISMATCH, what, 0, context->span_id);
}

static __always_inline int built_with_context(struct target *target, __u32 pid, struct pt_regs *ctx, __u64 span)
{
	struct built_span built = {};

	built.from_span = true;
	built.context_address = span + target->layout.span_context;
	if (!read_span_context(&built.context, &target->layout, built.context_address))
		return 0;
	if (has_no_data(&target->layout, span)) {
		verify_not_recording(target, pid, &built.context);
		return 0;
	}
	/* Where span_data is not known: a sampled span is recording, of others that cannot be told. */
	if (!target->layout.span_data_size && !(built.context.flags & TRACE_FLAG_SAMPLED))
		return 0;
	if (!read_u64(&built.parent_span_id, span + target->layout.span_parent_id)) {
		count(COUNT_READ_FAULT);
		return 0;
	}
	return adopt_or_follow(target, pid, ctx, &built);
}

/* On each `ret` of build_with_context: the Span is whole, and nobody has a copy of its ids yet. */
SEC("uprobe")
int otel_build_with_context_returns(struct pt_regs *ctx)
{
	__u32 pid, tid = bpf_get_current_pid_tgid();
	struct build_key key = {};
	struct build *begun;
	__u64 address;
	struct target *target = current_target(&pid);

	if (!may_adopt(target))
		return 0;
	key.sp = ctx->sp;
	key.tid = tid;
	begun = bpf_map_lookup_elem(&builds, &key);
	if (!begun)
		return 0; /* it was entered before the probe was there */
	address = begun->address;
	if (target->adoption == ADOPTION_LEARNING)
		send_sample(target, pid, tid, address);
	else
		built_with_context(target, pid, ctx, address);
	begun = bpf_map_lookup_elem(&builds, &key);
	if (begun && begun->around.began && !target->builds_late)
		bpf_map_update_elem(&root_starts, &tid, &begun->around, BPF_ANY);
	else
		bpf_map_delete_elem(&root_starts, &tid);
	bpf_map_delete_elem(&builds, &key);
	return 0;
}

static __always_inline struct manual_span *find_manual_span(__u32 pid, __u64 span_id)
{
	struct manual_span_key key = {};

	key.span_id = span_id;
	key.pid = pid;
	return bpf_map_lookup_elem(&manual_spans, &key);
}

/*
 * A root says nothing of where its parent is kept: 0 is found in many places. A child does, if the
 * layout finds a span there that is open.
 */
static __always_inline void prove_parent(struct target *target, __u32 pid, __u64 parent_span_id, __u64 own_span_id)
{
	if (!target->parent_proven && parent_span_id && parent_span_id != own_span_id &&
	    find_manual_span(pid, parent_span_id))
		target->parent_proven = 1;
}

/* More than any Span has. */
#define SPAN_WORDS_MAX 64

/*
 * Returns 1 + how many words beyond `address` the layout would find the context of an open span that is
 * known, and was not found so before; 0 if there is none.
 */
GLOBAL int find_astray_context(const struct target *target, __u32 pid, __u64 address)
{
	struct span_context context = {};
	struct manual_span *known;

	if (!target)
		return 0;
	for (__u32 word = 0; word < SPAN_WORDS_MAX; word++) {
		__u64 place = address + word * 8;

		if (bpf_probe_read_user(&context.trace_id_low, 16,
					(void *)(place + target->layout.context_trace_id)) ||
		    !read_u64(&context.span_id, place + target->layout.context_span_id))
			return 0;
		known = find_manual_span(pid, context.span_id);
		if (known && !known->astray && known->trace_id_low == context.trace_id_low &&
		    known->trace_id_high == context.trace_id_high) {
			known->astray = 1;
			return word + 1;
		}
	}
	return 0;
}

/*
 * Whether it is certain that spans have their context elsewhere than the layout says: of several that end
 * in a row, each another known one lies at one and the same distance from that place. Once says nothing: a
 * span that started before we came has neighbours, and its stack what others left there.
 */
#define ASTRAY_CERTAIN 4

static __always_inline bool ends_astray(struct target *target, __u32 pid, __u64 address)
{
	__u16 distance = find_astray_context(target, pid, address);

	if (!distance)
		return false;
	if (target->astray_distance != distance) {
		target->astray_distance = distance;
		target->ends_astray = 0;
	}
	return __sync_fetch_and_add(&target->ends_astray, 1) >= ASTRAY_CERTAIN - 1;
}

/*
 * Whether what the layout finds in the Span can be a span's that is about to get its parent: a start
 * time of this era, one of the five kinds, and the flag of a remote parent only where there is one.
 */
static __always_inline bool is_plausible(const struct target *target, const struct manual_span_event *event,
					 __u64 span, bool remote)
{
	__u8 flag = remote;

	if (target->layout.span_parent_is_remote != LAYOUT_ABSENT &&
	    bpf_probe_read_user(&flag, sizeof(flag), (void *)(span + target->layout.span_parent_is_remote)))
		return false;
	return event->start_seconds > ERA_BEGINS && event->start_seconds < ERA_ENDS &&
	       event->start_nanos < NANOSECONDS && event->kind < SPAN_KINDS && flag == remote;
}

/* Puts the parent into the Span, or exported data, that is about to be handed on. */
static __always_inline bool write_parent(const struct target *target, struct pt_regs *ctx, __u64 span,
					 __u64 parent, bool remote)
{
	__u64 address = span + target->layout.span_parent_id;
	__u64 flag = span + target->layout.span_parent_is_remote;

	remote = remote && target->layout.span_parent_is_remote != LAYOUT_ABSENT;
	if (writes_itself(target)) {
		__u8 local = 0;

		if (bpf_probe_write_user((void *)address, &parent, sizeof(parent)))
			return false;
		return !remote || !bpf_probe_write_user((void *)flag, &local, sizeof(local));
	}
	if (target->write_mode == WRITE_STOP && why_no_stop(target) == COUNT_MAX) {
		struct stop_request request = {};

		request.nr_writes = remote ? 2 : 1;
		request.writes[0].address = address;
		request.writes[0].value = parent;
		request.writes[0].size = 8;
		if (remote) {
			request.writes[1].address = flag;
			request.writes[1].size = 1;
		}
		return ask_to_stop(&request, ctx);
	}
	return false;
}

/* Reads of the Span at `address` what its event says; all that is only shown, only if it is. */
static __always_inline bool read_span(struct manual_span_event *event, const struct target *target, __u64 address)
{
	const struct sdk_layout *layout = &target->layout;
	__u64 name_pointer = address + layout->span_name_pointer;
	__u64 name_length = address + layout->span_name_length;
	__u64 name = 0, length = 0, status = 0, tag = 0;

	if (layout->span_name_tag != LAYOUT_ABSENT) {
		if (!read_u64(&tag, address + layout->span_name_tag))
			return false;
		if (tag != layout->span_name_borrowed) {
			name_pointer = address + layout->span_name_owned_pointer;
			name_length = address + layout->span_name_owned_length;
		}
	}

	if (!read_u64(&event->parent_span_id, address + layout->span_parent_id) ||
	    !read_u64(&event->start_seconds, address + layout->span_start_seconds) ||
	    bpf_probe_read_user(&event->start_nanos, 4, (void *)(address + layout->span_start_nanos)))
		return false;
	/* Of a layout that was learned, no more is known. */
	if (!layout->span_status_size)
		return true;
	if (!read_u64(&name, name_pointer) || !read_u64(&length, name_length) ||
	    !read_integer(&status, address + layout->span_status, layout->span_status_size) ||
	    bpf_probe_read_user(&event->kind, 1, (void *)(address + layout->span_kind)))
		return false;
	event->status = status == layout->status_unset ? MANUAL_STATUS_UNSET
			: status == layout->status_ok  ? MANUAL_STATUS_OK
						       : MANUAL_STATUS_ERROR;
	if (length > SPAN_NAME_MAX)
		length = SPAN_NAME_MAX;
	if (!target->wants_manual_spans)
		length = 0;
	if (length && read_far(event->name, length, (void *)name)) {
		/* It is only shown. */
		count(COUNT_READ_FAULT);
		length = 0;
	}
	event->name_length = length;
	return true;
}

/* The end time that was given by hand, if one was: rsi, edx, or in memory at rsi. */
static __always_inline void read_end_time(struct manual_span_event *event, const struct sdk_layout *layout,
					  struct pt_regs *ctx)
{
	__u64 tag = 0, seconds = 0;
	__u32 nanos = NANOSECONDS;

	if (layout->end_argument_none_nanos != LAYOUT_BY_ADDRESS) {
		seconds = ctx->si;
		nanos = ctx->dx;
	} else if (read_u64(&tag, ctx->si + layout->end_argument_tag) && tag != layout->end_argument_tag_none) {
		if (!read_u64(&seconds, ctx->si + layout->end_argument_seconds) ||
		    bpf_probe_read_user(&nanos, sizeof(nanos), (void *)(ctx->si + layout->end_argument_nanos)))
			nanos = NANOSECONDS;
	}
	if (nanos < NANOSECONDS) {
		event->end_seconds = seconds;
		event->end_nanos = nanos;
	}
}

/* Gives an adopted span, at its end, its parent; returns how the span stands then (enum manual_relation). */
static __always_inline __u8 finish_adoption(struct target *target, __u32 pid, struct pt_regs *ctx, __u64 address,
					    const struct span_context *context, const struct manual_span *known,
					    const struct manual_span_event *event)
{
	if (context->trace_id_low != known->trace_id_low || context->trace_id_high != known->trace_id_high) {
		count(COUNT_ROOTS_UNWRITTEN);
		return MANUAL_UNWRITTEN;
	}
	if (event->parent_span_id != known->parent_before ||
	    !is_plausible(target, event, address, known->remote)) {
		/* Not the place where the SDK keeps it: nothing is written there. */
		count(COUNT_PARENTS_UNWRITTEN);
		change_adoption(target, pid, ADOPTION_VERIFIED, ADOPTION_MISMATCH, CHECK_PLAUSIBLE,
				known->parent_before, event->parent_span_id);
		return MANUAL_UNWRITTEN;
	}
	/* A remote parent is no 0, and was found there. */
	if (!known->remote && !target->parent_proven) {
		count(COUNT_PARENTS_UNWRITTEN);
		if (is_one_too_many(target))
			change_adoption(target, pid, ADOPTION_VERIFIED, ADOPTION_MISMATCH, CHECK_PARENT_ID, 0, 0);
		return MANUAL_UNWRITTEN;
	}
	if (!write_parent(target, ctx, address, known->parent, known->remote)) {
		count(COUNT_PARENTS_UNWRITTEN);
		return MANUAL_UNWRITTEN;
	}
	count(known->remote ? COUNT_REMOTE_ADOPTED : COUNT_ROOTS_ADOPTED);
	return MANUAL_ADOPTED;
}

static __always_inline void say_ended(struct manual_span_event *event, __u32 pid,
				      const struct span_context *context)
{
	__u64 length = event->name_length;

	event->head.kind = EVENT_MANUAL_SPAN;
	event->head.pid = pid;
	event->head.at = bpf_ktime_get_ns();
	event->trace_id_low = context->trace_id_low;
	event->trace_id_high = context->trace_id_high;
	event->span_id = context->span_id;
	event->flags = context->flags;
	if (length > SPAN_NAME_MAX)
		length = SPAN_NAME_MAX;
	emit(event, offsetof(struct manual_span_event, name) + length);
}

/* rdi = the Span, still whole. */
SEC("uprobe")
int otel_ensure_ended_and_exported(struct pt_regs *ctx)
{
	struct manual_span_event event = {};
	struct manual_span_key span_key = {};
	struct span_context context = {};
	struct manual_span *known;
	__u64 span = ctx->di;
	__u32 pid;
	struct target *target = current_target(&pid);

	if (!target || target->adoption != ADOPTION_VERIFIED)
		return 0;
	if (!read_span_context(&context, &target->layout, span + target->layout.span_context))
		return 0;
	span_key.span_id = context.span_id;
	span_key.pid = pid;
	known = bpf_map_lookup_elem(&manual_spans, &span_key);
	if (has_no_data(&target->layout, span)) {
		/* It has ended before, or never recorded; so it is none that was built and did not end. */
		if (known && known->built)
			change_adoption(target, pid, ADOPTION_VERIFIED, ADOPTION_MISMATCH, CHECK_DATA, 0,
					context.span_id);
		return 0;
	}
	if (known) {
		if (!target->ends_seen)
			target->ends_seen = 1;
		/* It has ended, whatever else can be read of it. */
		end_span(pid, known->task_key, context.span_id);
	} else if (!target->layout.span_data_size) {
		return 0; /* of another trace, or ended before: that cannot be told */
	} else if (!target->ends_seen && ends_astray(target, pid, span)) {
		change_adoption(target, pid, ADOPTION_VERIFIED, ADOPTION_MISMATCH, CHECK_CONTEXT, 0,
				context.span_id);
		return 0;
	}
	if (!read_span(&event, target, span)) {
		count(COUNT_READ_FAULT);
		bpf_map_delete_elem(&manual_spans, &span_key);
		return 0;
	}
	prove_parent(target, pid, event.parent_span_id, context.span_id);
	count(COUNT_MANUAL_SPANS);
	if (known) {
		if (known->adopted) {
			event.relation = finish_adoption(target, pid, ctx, span, &context, known, &event);
			if (event.relation == MANUAL_ADOPTED)
				event.parent_span_id = known->parent;
		} else {
			event.relation = MANUAL_CHILD;
			if (event.parent_span_id != known->parent)
				change_adoption(target, pid, ADOPTION_VERIFIED, ADOPTION_MISMATCH, CHECK_PARENT_ID,
						known->parent, event.parent_span_id);
		}
		bpf_map_delete_elem(&manual_spans, &span_key);
	}
	if (!target->wants_manual_spans)
		return 0;
	read_end_time(&event, &target->layout, ctx);
	say_ended(&event, pid, &context);
	return 0;
}

/* What on_end is handed that was not known by its ids: a span that continues the request's remote parent. */
static __always_inline void know_exported(const struct target *target, __u32 pid,
					  const struct manual_span_key *span_key,
					  const struct span_context *context, __u64 parent_span_id)
{
	struct active_spans found = {};
	struct manual_span span = {};
	bool ours = find_context(pid, current_task_key(target), &found) &&
		    (found.server.flags & TRACE_FLAG_SAMPLED) &&
		    context->trace_id_low == found.server.trace_id_low &&
		    context->trace_id_high == found.server.trace_id_high;

	span.trace_id_low = context->trace_id_low;
	span.trace_id_high = context->trace_id_high;
	span.parent = parent_span_id;
	if (ours && parent_span_id && parent_span_id == found.server.remote_parent &&
	    target->write_mode != WRITE_OFF) {
		span.adopted = 1;
		span.remote = 1;
		span.parent_before = parent_span_id;
		span.parent = found.server.span_id;
	}
	bpf_map_update_elem(&manual_spans, span_key, &span, BPF_ANY);
}

/* With nothing written, what on_end is handed is a root that began in a request: the server span links to it. */
static __always_inline void say_exported_root(const struct target *target, __u32 pid,
					      const struct span_context *context)
{
	struct active_spans found = {};

	if (find_late_root(pid, context->span_id) && find_context(pid, current_task_key(target), &found))
		say_root(pid, &found.server, context);
}

/* The span that on_end is handed ends, `known` by its ids; once for all processors. */
static __always_inline void end_exported(struct target *target, __u32 pid, struct pt_regs *ctx, __u64 address,
					 const struct built_span *built, struct manual_span *known)
{
	struct manual_span_event event = {};

	if (!read_span(&event, target, address)) {
		count(COUNT_READ_FAULT);
		return;
	}
	count(COUNT_MANUAL_SPANS);
	if (known->adopted) {
		event.relation = finish_adoption(target, pid, ctx, address, &built->context, known, &event);
		if (event.relation == MANUAL_ADOPTED)
			event.parent_span_id = known->parent;
		else
			known->adopted = 0;
	}
	if (target->wants_manual_spans)
		say_ended(&event, pid, &built->context);
}

/*
 * SpanProcessor::on_end(&self, SpanData), of each processor. rsi = the data, which is this processor's own.
 * For images in which the functions that build and end a span are no functions of their own: what is
 * known of a span then are its ids, and what it is at its end.
 */
SEC("uprobe")
int otel_on_end(struct pt_regs *ctx)
{
	struct manual_span_key span_key = {};
	struct built_span built = {};
	struct manual_span *known;
	__u64 address = ctx->si;
	__u32 pid;
	struct target *target = current_target(&pid);

	if (!may_adopt(target))
		return 0;
	if (!read_span_context(&built.context, &target->layout, address + target->layout.span_context))
		return 0;
	if (!read_u64(&built.parent_span_id, address + target->layout.span_parent_id)) {
		count(COUNT_READ_FAULT);
		return 0;
	}
	if (target->adoption == ADOPTION_UNVERIFIED)
		verify_late(target, pid, &built);
	if (target->adoption != ADOPTION_VERIFIED)
		return 0;
	prove_parent(target, pid, built.parent_span_id, built.context.span_id);
	span_key.span_id = built.context.span_id;
	span_key.pid = pid;
	known = bpf_map_lookup_elem(&manual_spans, &span_key);
	if (!known) {
		know_exported(target, pid, &span_key, &built.context, built.parent_span_id);
		known = bpf_map_lookup_elem(&manual_spans, &span_key);
		if (!known)
			return 0;
	}
	if (known->ended) {
		/* Another processor's copy; one that a processor only hands on is written already. */
		if (known->adopted && built.parent_span_id == known->parent_before)
			write_parent(target, ctx, address, known->parent, known->remote);
		return 0;
	}
	known->ended = 1;
	if (!built.parent_span_id && target->write_mode == WRITE_OFF)
		say_exported_root(target, pid, &built.context);
	end_exported(target, pid, ctx, address, &built, known);
	return 0;
}

/* The stop writer must not show in the target's system calls and signals: stop_guard.bpf.h */
SEC("tp_btf/sys_exit")
int otel_wait_interrupted(__u64 *ctx)
{
	const struct pt_regs *regs = (const struct pt_regs *)ctx[0];
	__s64 result = ctx[1];
	struct target *target;
	__u32 pid;

	if (result != -STOP_GUARD_EINTR)
		return 0;
	target = current_target(&pid);
	if (!target || (regs->orig_ax != NR_EPOLL_WAIT && regs->orig_ax != NR_EPOLL_PWAIT))
		return 0;
	return stop_guard_interrupted(result, target->tracer);
}

/* include/trace/events/signal.h: sig, info, task, group, result */
SEC("raw_tp/signal_generate")
int otel_signal_merged(struct bpf_raw_tracepoint_args *ctx)
{
	return stop_guard_merged(ctx->args[0], (struct task_struct *)ctx->args[2], ctx->args[3], ctx->args[4]);
}

FOR_THE_AGENT(struct manual_span_event, manual_span_event);
FOR_THE_AGENT(struct manual_root_event, manual_root_event);
FOR_THE_AGENT(struct adoption_event, adoption_event);
FOR_THE_AGENT(struct span_sample_event, span_sample_event);
FOR_THE_AGENT(enum manual_relation, manual_relation);
FOR_THE_AGENT(enum manual_status, manual_status);
FOR_THE_AGENT(enum layout_check, layout_check);
