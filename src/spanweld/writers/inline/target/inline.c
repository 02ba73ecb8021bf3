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

/* ---- manual_spans: buckets of entries, each owned by who made its id BUSY by compare-and-swap */

struct open_span {
	__u64 span_id; /* 0: free */
	__u64 since; /* by the processor's clock: the oldest of a full bucket is forgotten, as of an LRU map */
	struct manual_span span;
};

#define OPEN_SPANS_BUCKET 8
#define OPEN_SPANS_BUCKETS 8192

_Static_assert(sizeof(struct open_span) == 64, "an open span is a cache line");
_Static_assert(INLINE_PLACE_AREA + INLINE_PLACE_MANUAL_SPANS +
			       sizeof(struct open_span) * OPEN_SPANS_BUCKET * OPEN_SPANS_BUCKETS ==
		       INLINE_PLACE_SPANS,
	       "the area is full");
_Static_assert(sizeof(struct target) <= INLINE_PLACE_COUNTERS - INLINE_PLACE_TARGET, "the target fits");

static __always_inline struct open_span *open_spans_of(__u64 span_id)
{
	struct open_span *all = (struct open_span *)(inline_area + INLINE_PLACE_MANUAL_SPANS);

	return &all[(span_id % OPEN_SPANS_BUCKETS) * OPEN_SPANS_BUCKET];
}

static __attribute__((noinline)) struct open_span *find_open_span(__u64 span_id)
{
	struct open_span *bucket = open_spans_of(span_id);

	for (int i = 0; i < OPEN_SPANS_BUCKET; i++)
		if (*(volatile __u64 *)&bucket[i].span_id == span_id)
			return span_id && span_id != BUSY ? &bucket[i] : NULL;
	return NULL;
}

static __attribute__((noinline)) long put_open_span(__u64 span_id, const struct manual_span *span)
{
	struct open_span *bucket = open_spans_of(span_id), *entry = find_open_span(span_id), *oldest = bucket;

	if (entry) {
		entry->span = *span;
		return 0;
	}
	for (int i = 0; i < OPEN_SPANS_BUCKET && !entry; i++) {
		if (!__sync_val_compare_and_swap(&bucket[i].span_id, 0, BUSY))
			entry = &bucket[i];
		else if (bucket[i].since < oldest->since)
			oldest = &bucket[i];
	}
	if (!entry) {
		__u64 forgotten = *(volatile __u64 *)&oldest->span_id;

		if (forgotten == BUSY ||
		    __sync_val_compare_and_swap(&oldest->span_id, forgotten, BUSY) != forgotten)
			return -1;
		entry = oldest;
	}
	entry->since = __builtin_ia32_rdtsc();
	entry->span = *span;
	__atomic_store_n(&entry->span_id, span_id, __ATOMIC_RELEASE);
	return 0;
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

/* ---- what the names in the programs mean */

static __always_inline void *inline_lookup(enum inline_map map, const void *key)
{
	struct shared_start *start;
	struct open_span *open;

	switch (map) {
	case INLINE_MAP_TARGETS:
		return inline_area + INLINE_PLACE_TARGET;
	case INLINE_MAP_COUNTERS:
		return inline_area + INLINE_PLACE_COUNTERS + *(const __u32 *)key * sizeof(__u64);
	case INLINE_MAP_SPANS:
		return inline_spans;
	case INLINE_MAP_TASKS:
		return inline_spans + *(const __u32 *)key * sizeof(struct span_bucket);
	case INLINE_MAP_ROOT_STARTS:
		start = own_start(false);
		return start ? &start->start : NULL;
	case INLINE_MAP_MANUAL_SPANS:
		open = find_open_span(((const struct manual_span_key *)key)->span_id);
		return open ? &open->span : NULL;
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
	struct open_span *open;

	if (map == INLINE_MAP_MANUAL_SPANS) {
		open = find_open_span(((const struct manual_span_key *)key)->span_id);
		if (open)
			__atomic_store_n(&open->span_id, 0, __ATOMIC_RELEASE);
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

int inline_new_trace_id(struct pt_regs *registers)
{
	return otel_new_trace_id(registers);
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
