/*
 * The probes as code inside the target: programs of otel_sdk.bpf.c and tokio_tasks.bpf.c, and the maps behind them.
 * Entered from stubs.S with the registers of the probed function; what they return is whether that
 * function returns at once, with the rax and rdx that stand there then.
 *
 * Freestanding, position-independent, without vector registers, and with little stack, since it is the
 * target's. A signal handler may interrupt it anywhere and come here again: nothing waits for a lock.
 */
#include "otel_sdk.bpf.c"
#include "tokio_tasks.bpf.c"

/* The compiler makes calls of these for what is large. */
void *memset(void *to, int byte, unsigned long size)
{
	void *at = to;

	__asm__ volatile("rep stosb" : "+D"(at), "+c"(size) : "a"(byte) : "memory");
	return to;
}

void *memcpy(void *to, const void *from, unsigned long size)
{
	inline_copy(to, from, size);
	return to;
}

#define BUSY (~0ULL) /* no span has this id */

/*
 * ---- manual_spans: buckets of entries, each owned by who made its id BUSY by compare-and-swap. A bucket's ids are one
 * cache line. Nearly always all open spans are in the near buckets, which are few, and so in some cache; those that
 * find no room there are in the far ones.
 */

#define OPEN_SPANS_BUCKET 7
#define OPEN_SPANS_NEAR 128
#define OPEN_SPANS_FAR 8192

struct open_span {
	struct manual_span span;
	__u64 since; /* by the processor's clock: the oldest of a full bucket is forgotten, as of an LRU map */
	__u64 pad;
};

struct open_spans {
	__u64 ids[OPEN_SPANS_BUCKET]; /* 0: free */
	__u64 beyond; /* of a near bucket: how many that belong here are in a far one */
	struct open_span spans[OPEN_SPANS_BUCKET];
};

_Static_assert(sizeof(struct open_span) == 64 && sizeof(struct open_spans) == 512, "whole cache lines");
_Static_assert(INLINE_PLACE_AREA + INLINE_PLACE_MANUAL_SPANS +
			       sizeof(struct open_spans) * (OPEN_SPANS_NEAR + OPEN_SPANS_FAR) ==
		       INLINE_PLACE_SPANS,
	       "the area is full");
_Static_assert(sizeof(struct target) <= INLINE_PLACE_IN_FLIGHT - INLINE_PLACE_TARGET, "the target fits");
_Static_assert((int)COUNT_MAX <= (int)INLINE_SIZE_COUNTERS, "counters fit");

#define OPEN_SPANS ((struct open_spans *)(inline_area + INLINE_PLACE_MANUAL_SPANS))

static __always_inline struct open_spans *near_of(__u64 span_id)
{
	return &OPEN_SPANS[span_id % OPEN_SPANS_NEAR];
}

static __always_inline struct open_spans *far_of(__u64 span_id)
{
	return &OPEN_SPANS[OPEN_SPANS_NEAR + span_id % OPEN_SPANS_FAR];
}

/* Number of a span's entry in a bucket, or -1. */
static __always_inline int find_in(const struct open_spans *bucket, __u64 span_id)
{
	for (int i = 0; i < OPEN_SPANS_BUCKET; i++)
		if (*(const volatile __u64 *)&bucket->ids[i] == span_id)
			return span_id && span_id != BUSY ? i : -1;
	return -1;
}

/* A span's bucket, and in *at the number of its entry, -1 if it has none. */
static __attribute__((noinline)) struct open_spans *find_open_span(__u64 span_id, int *at)
{
	struct open_spans *bucket = near_of(span_id);

	*at = find_in(bucket, span_id);
	if (*at < 0 && *(volatile __u64 *)&bucket->beyond) {
		bucket = far_of(span_id);
		*at = find_in(bucket, span_id);
	}
	return bucket;
}

/* A free entry, which is nobody's but ours then; or -1. */
static __always_inline int claim_free(struct open_spans *bucket)
{
	for (int i = 0; i < OPEN_SPANS_BUCKET; i++)
		if (!__sync_val_compare_and_swap(&bucket->ids[i], 0, BUSY))
			return i;
	return -1;
}

static __always_inline int claim_oldest(struct open_spans *bucket)
{
	int oldest = 0;
	__u64 forgotten;

	for (int i = 1; i < OPEN_SPANS_BUCKET; i++)
		if (bucket->spans[i].since < bucket->spans[oldest].since)
			oldest = i;
	forgotten = *(volatile __u64 *)&bucket->ids[oldest];
	if (!forgotten || forgotten == BUSY ||
	    __sync_val_compare_and_swap(&bucket->ids[oldest], forgotten, BUSY) != forgotten)
		return -1;
	__sync_fetch_and_add(&near_of(forgotten)->beyond, -1);
	return oldest;
}

static __attribute__((noinline)) long put_open_span(__u64 span_id, const struct manual_span *span)
{
	int at;
	struct open_spans *bucket = find_open_span(span_id, &at);

	if (at >= 0) {
		bucket->spans[at].span = *span;
		return 0;
	}
	bucket = near_of(span_id);
	at = claim_free(bucket);
	if (at < 0) {
		bucket = far_of(span_id);
		at = claim_free(bucket);
		if (at < 0)
			at = claim_oldest(bucket);
		if (at < 0)
			return -1;
		__sync_fetch_and_add(&near_of(span_id)->beyond, 1);
	}
	bucket->spans[at].since = __builtin_ia32_rdtsc();
	bucket->spans[at].span = *span;
	__atomic_store_n(&bucket->ids[at], span_id, __ATOMIC_RELEASE);
	return 0;
}

static __always_inline struct manual_span *open_span_of(__u64 span_id)
{
	int at;
	struct open_spans *bucket = find_open_span(span_id, &at);

	return at < 0 ? NULL : &bucket->spans[at].span;
}

static __always_inline void remove_open_span(__u64 span_id)
{
	int at;
	struct open_spans *bucket = find_open_span(span_id, &at);

	if (at < 0 || __sync_val_compare_and_swap(&bucket->ids[at], span_id, 0) != span_id)
		return;
	if (bucket != near_of(span_id))
		__sync_fetch_and_add(&near_of(span_id)->beyond, -1);
}

/* ---- root_starts: in the map that BPF programs share, where one of them notes span ids */

static struct shared_start *own_start(bool claim)
{
	__u64 thread = inline_thread_pointer();
	struct shared_start *line = shared_line(
		(struct shared_starts *)(inline_spans + shared_index(thread) * sizeof(struct span_bucket)),
		thread);

	for (int i = 0; i < SHARED_LINE; i++)
		if (*(volatile __u64 *)&line[i].thread == thread)
			return &line[i];
	for (int i = 0; claim && i < SHARED_LINE; i++)
		if (!__sync_val_compare_and_swap(&line[i].thread, 0, thread))
			return &line[i];
	return NULL;
}

/* By where the stack is, as the stubs choose a cell. */
static __always_inline __u64 *own_counters(void)
{
	__u32 cell = (__u32)((__u64)__builtin_frame_address(0) >> 16) * 0x9E3779B1U /
		     (0x100000000ULL / INLINE_SIZE_CELLS);

	return (__u64 *)(inline_area + INLINE_PLACE_COUNTERS) + cell * INLINE_SIZE_COUNTERS;
}

/* ---- what the names in the programs mean */

static __always_inline void *inline_lookup(enum inline_map map, const void *key)
{
	struct shared_start *start;

	switch (map) {
	case INLINE_MAP_TARGETS:
		return inline_area + INLINE_PLACE_TARGET;
	case INLINE_MAP_COUNTERS:
		return own_counters() + *(const __u32 *)key;
	case INLINE_MAP_SPANS:
		return inline_spans;
	case INLINE_MAP_TASKS:
		return inline_spans + *(const __u32 *)key * sizeof(struct span_bucket);
	case INLINE_MAP_ROOT_STARTS:
		start = own_start(false);
		return start ? &start->start : NULL;
	case INLINE_MAP_MANUAL_SPANS:
		return open_span_of(((const struct manual_span_key *)key)->span_id);
	default:
		return NULL;
	}
}

static __always_inline long inline_update(enum inline_map map, const void *key, const void *value)
{
	struct shared_start *start;

	if (map == INLINE_MAP_MANUAL_SPANS)
		return put_open_span(((const struct manual_span_key *)key)->span_id, value);
	if (map != INLINE_MAP_ROOT_STARTS)
		return -1;
	start = own_start(true);
	if (!start)
		return -1;
	start->start = *(const struct root_start *)value;
	return 0;
}

static __always_inline long inline_delete(enum inline_map map, const void *key)
{
	struct shared_start *start;

	if (map == INLINE_MAP_MANUAL_SPANS) {
		remove_open_span(((const struct manual_span_key *)key)->span_id);
	} else if (map == INLINE_MAP_ROOT_STARTS) {
		start = own_start(false);
		if (start) {
			start->start = (struct root_start){};
			__atomic_store_n(&start->thread, 0, __ATOMIC_RELEASE);
		}
	}
	return 0;
}

/* ---- what the stubs call */

/* Whether a call of what may be a generator's method is the SDK's, by where it returns: here the agent knows addresses. */
static __always_inline bool is_meant(const struct pt_regs *registers, __u32 stub)
{
	const __u64 *callers = (const __u64 *)(inline_area + INLINE_PLACE_CALLERS) +
			       stub % INLINE_SIZE_GENERATORS * INLINE_SIZE_CALLERS;

	if (!callers[0])
		return true;
	for (int i = 0; i < INLINE_SIZE_CALLERS; i++)
		if (callers[i] == *(const __u64 *)registers->sp)
			return true;
	return false;
}

int inline_new_trace_id(struct pt_regs *registers, __u32 stub)
{
	return is_meant(registers, stub) && otel_new_trace_id(registers);
}

int inline_build_recording_span(struct pt_regs *registers)
{
	return otel_build_recording_span(registers);
}

int inline_ensure_ended(struct pt_regs *registers)
{
	const struct target *target = (const struct target *)(inline_area + INLINE_PLACE_TARGET);

	otel_ensure_ended_and_exported(registers);
	if (!INLINE_HEAD->trusted && target->adoption == ADOPTION_VERIFIED && target->ends_seen &&
	    target->parent_proven)
		INLINE_HEAD->trusted = 1;
	return 0;
}

#define TASKS_PROVE 64
#define IS_NO_TASK (~0U)

/*
 * A task is woken, by one of a few functions. That such a function is what it was taken for shows in what it is
 * given: until so many have been tasks the kernel reads them, and if one is none, nobody looks again.
 */
int inline_wake(struct pt_regs *registers, __u32 stub)
{
	__u32 *woken = (__u32 *)(inline_area + INLINE_PLACE_WOKEN) + stub % INLINE_SIZE_STUBS;
	__u32 seen = *(volatile __u32 *)woken;

	if (seen == IS_NO_TASK || !wakes_followed_since(INLINE_HEAD->pid))
		return 0;
	if (seen < TASKS_PROVE) {
		if (!task_id_at(registers->di, false)) {
			*(volatile __u32 *)woken = IS_NO_TASK;
			return 0;
		}
		__sync_val_compare_and_swap(woken, seen, seen + 1);
	}
	return task_woken(registers, seen >= TASKS_PROVE);
}

/* Behind an instruction that took a new task's id; nothing is returned, and all registers stay. */
void inline_task_spawned(struct pt_regs *registers, __u32 cookie)
{
	task_spawned(registers, cookie);
}
