/*
 * spans_in_progress: task -> stack of its active span contexts.
 *
 * The one definition of the map's layout and of the operations on it, for BPF programs, for code
 * inside the target, and for tests on the host. It includes nothing: who includes it has
 * __u8 … __u64 and bool already, and defines SPANS_INLINE if `static inline` will not do, and
 * SPANS_FUNCTION, for what is tried several times, if that is to be a function of its own.
 *
 * The map is an array of buckets (BPF_F_MMAPABLE), one map for each target. A task's slot is in
 * the bucket that its key hashes to, claimed by compare-and-swap 0 -> key (by the task itself,
 * which runs on one thread at a time: no two claims of one key) and released by storing 0. Whoever changes a slot first makes its sequence number odd by compare-and-swap, and
 * even again afterwards; who cannot within SPANS_TRIES gives up, and says so. Readers compare
 * the sequence number before and after, and after SPANS_TRIES see no span.
 *
 * A frame's span id 0 says that the span has ended. It may be stored (by compare-and-swap from
 * the id itself) without the slot's lock, so a span can always be ended, whoever holds the slot;
 * span ids never come back, so the wrong frame cannot be met.
 */
#ifndef SPANWELD_SPANS_IN_PROGRESS_H
#define SPANWELD_SPANS_IN_PROGRESS_H

#ifndef SPANS_INLINE
#define SPANS_INLINE static inline __attribute__((always_inline))
#endif
#ifndef SPANS_FUNCTION
#define SPANS_FUNCTION SPANS_INLINE
#endif

#define SPANS_DEPTH 16 /* frames of a slot */
#define SPANS_BUCKET_SLOTS 8
#define SPANS_BUCKETS_LOG2 10
#define SPANS_BUCKETS (1 << SPANS_BUCKETS_LOG2)
#define SPANS_TRIES 4

/* A key with this bit is a thread's (its id in the low bits), else it is tokio's task id. */
#define TASK_KEY_THREAD (1ULL << 63)

enum span_frame_kind {
	FRAME_SERVER = 1, /* automatic, a request that the target serves */
	FRAME_MANUAL = 2, /* made by the target with the OpenTelemetry SDK */
	FRAME_CLIENT = 3, /* automatic, a request that the task has sent, until the response's head */
};

#define TRACE_FLAG_SAMPLED 1
#define TRACE_FLAG_RANDOM 2 /* of the trace id; level 2 of Trace Context has it passed on */

/* trace_id: the two halves of the 128-bit number, so in memory just as Rust's u128. */
struct span_frame {
	__u64 trace_id_low;
	__u64 trace_id_high;
	__u64 span_id; /* 0: the span has ended */
	__u64 remote_parent; /* of a server span: the parent that came in the request, or 0; of a client span: its parent */
	__u8 flags; /* W3C trace flags */
	__u8 kind; /* enum span_frame_kind */
	__u8 pad[6];
};

struct span_slot {
	__u64 key; /* 0: free */
	__u32 sequence; /* odd: being changed */
	__u32 depth;
	struct span_frame frames[SPANS_DEPTH];
};

struct span_bucket {
	struct span_slot slots[SPANS_BUCKET_SLOTS];
};

_Static_assert(sizeof(struct span_frame) == 40, "no hidden padding");
_Static_assert(sizeof(struct span_slot) == 656, "no hidden padding");

enum spans_result {
	SPANS_OK = 0,
	SPANS_ABSENT, /* no such task, or no such span in its stack */
	SPANS_BUSY, /* somebody else changed the slot all the while */
	SPANS_OVERFLOW, /* the stack has no room */
	SPANS_UNFRAMED, /* open spans, and no request: it is that of the task's spawner */
	SPANS_AGAIN, /* the slot was being changed: to be looked at once more */
};

#define SPANS_HASH_FACTOR 0x9E3779B97F4A7C15ULL
#define SPANS_HASH_INVERSE 0xF1DE83E19937733DULL

_Static_assert(1 == SPANS_HASH_FACTOR * SPANS_HASH_INVERSE, "inverse modulo 2^64");

/* Fibonacci hashing, to so many bits: task ids are consecutive, their buckets should not be. */
SPANS_INLINE __u32 spans_hash(__u64 key, int bits)
{
	return (__u32)((key * SPANS_HASH_FACTOR) >> (64 - bits));
}

SPANS_INLINE __u32 spans_bucket_of(__u64 key)
{
	return spans_hash(key, SPANS_BUCKETS_LOG2);
}

SPANS_INLINE bool spans_lock(struct span_slot *slot, __u64 key)
{
	for (int i = 0; i < SPANS_TRIES; i++) {
		__u32 sequence = *(volatile __u32 *)&slot->sequence;

		if (sequence & 1)
			continue;
		if (__sync_val_compare_and_swap(&slot->sequence, sequence, sequence + 1) != sequence)
			continue;
		if (*(volatile __u64 *)&slot->key == key)
			return true;
		/* Released and claimed by another task since it was found. */
		__sync_fetch_and_add(&slot->sequence, 1);
		return false;
	}
	return false;
}

/* What was pushed since a request goes with that request: up to the next one. */
SPANS_INLINE void spans_cut_after_ended_servers(struct span_slot *slot)
{
	bool gone = false;

	for (int i = 0; i < SPANS_DEPTH; i++) {
		if ((__u32)i >= slot->depth)
			break;
		if (slot->frames[i].kind == FRAME_SERVER)
			gone = !slot->frames[i].span_id;
		else if (gone)
			slot->frames[i].span_id = 0;
	}
}

/* Drops what has ended from the top, and lets an empty slot go; whether it is empty. */
SPANS_INLINE bool spans_settle(struct span_slot *slot)
{
	__u32 depth = slot->depth;

	for (int i = 0; i < SPANS_DEPTH; i++) {
		if (depth == 0 || depth > SPANS_DEPTH)
			break;
		if (slot->frames[(depth - 1) & (SPANS_DEPTH - 1)].span_id)
			break;
		depth--;
	}
	if (depth > SPANS_DEPTH)
		depth = 0;
	slot->depth = depth;
	if (!depth)
		*(volatile __u64 *)&slot->key = 0;
	return !depth;
}

/* Whether there is anything for the two above to do. */
SPANS_INLINE bool spans_is_unsettled(struct span_slot *slot)
{
	__u32 depth = *(volatile __u32 *)&slot->depth;
	bool gone = false, unsettled = false;

	for (int i = 0; i < SPANS_DEPTH; i++) {
		bool ended = !*(volatile __u64 *)&slot->frames[i].span_id;

		if ((__u32)i >= depth)
			break;
		if (slot->frames[i].kind == FRAME_SERVER)
			gone = ended;
		unsettled = ended ? (__u32)i + 1 == depth : gone;
		if (unsettled)
			break;
	}
	return unsettled;
}

/*
 * Unlocks. Who ended a frame in the meantime and could not get the lock has left it to its holder
 * to see to the stack, so the holder looks once more when others can get it again: 0, if there was nothing
 * to see to, else it has the lock again.
 */
SPANS_FUNCTION int spans_unlock(struct span_slot *slot, __u64 key)
{
	bool empty;

	if (!slot) /* never: for the verifier of BPF */
		return 0;
	empty = spans_settle(slot);
	__sync_fetch_and_add(&slot->sequence, 1);
	if (empty || !spans_is_unsettled(slot) || !spans_lock(slot, key))
		return 0;
	spans_cut_after_ended_servers(slot);
	return 1;
}

SPANS_INLINE void spans_settle_and_unlock(struct span_slot *slot, __u64 key)
{
	for (int i = 0; i < SPANS_TRIES; i++)
		if (!spans_unlock(slot, key))
			return;
	spans_settle(slot);
	__sync_fetch_and_add(&slot->sequence, 1);
}

/*
 * Pushes onto a claimed slot. An ended frame in the middle keeps its place until all above it
 * have ended too: the bound is on open spans and these gaps together.
 */
SPANS_INLINE enum spans_result spans_push(struct span_slot *slot, __u64 key, const struct span_frame *frame)
{
	enum spans_result result = SPANS_OVERFLOW;
	__u32 depth;

	if (!spans_lock(slot, key))
		return SPANS_BUSY;
	depth = slot->depth;
	if (depth < SPANS_DEPTH) {
		slot->frames[depth & (SPANS_DEPTH - 1)] = *frame;
		slot->depth = depth + 1;
		result = SPANS_OK;
	}
	spans_settle_and_unlock(slot, key);
	return result;
}

/* Marks a span as ended, without the lock; whether it was there. */
SPANS_INLINE bool spans_mark_ended(struct span_slot *slot, __u64 span_id)
{
	bool found = false;

	for (int i = 0; i < SPANS_DEPTH; i++)
		if (*(volatile __u64 *)&slot->frames[i].span_id == span_id)
			if (__sync_val_compare_and_swap(&slot->frames[i].span_id, span_id, 0) == span_id)
				found = true;
	return found;
}

/*
 * Ends a span, wherever in the stack it is and whichever thread calls. With a server span goes
 * all that was pushed since.
 */
SPANS_INLINE enum spans_result spans_end(struct span_slot *slot, __u64 key, __u64 span_id)
{
	if (!spans_mark_ended(slot, span_id))
		return SPANS_ABSENT;
	/* Who holds the lock drops the frame if this caller can't. */
	if (!spans_lock(slot, key))
		return SPANS_OK;
	spans_cut_after_ended_servers(slot);
	spans_settle_and_unlock(slot, key);
	return SPANS_OK;
}

/* Lets the whole stack go. */
SPANS_INLINE enum spans_result spans_clear(struct span_slot *slot, __u64 key)
{
	if (!spans_lock(slot, key))
		return SPANS_BUSY;
	for (int i = 0; i < SPANS_DEPTH; i++)
		slot->frames[i].span_id = 0;
	slot->depth = 0;
	spans_settle_and_unlock(slot, key);
	return SPANS_OK;
}

/* Ends what was pushed before any request of the task's own: the request that it belongs to has ended. */
SPANS_INLINE enum spans_result spans_end_unframed(struct span_slot *slot, __u64 key)
{
	if (!spans_lock(slot, key))
		return SPANS_BUSY;
	for (int i = 0; i < SPANS_DEPTH; i++) {
		if ((__u32)i >= slot->depth || slot->frames[i].kind == FRAME_SERVER)
			break;
		slot->frames[i].span_id = 0;
	}
	spans_settle_and_unlock(slot, key);
	return SPANS_OK;
}

/* What spans_active finds. */
struct active_spans {
	struct span_frame server; /* the request that is being handled */
	struct span_frame active; /* its innermost open span, `server` itself if there is no other */
	/*
	 * How many requests are open, and whether `active` is set. Volatile, so that the verifier of
	 * BPF, to which memory is unknown, does not follow each of their values on its own.
	 */
	volatile __u32 servers;
	volatile __u32 is_set;
};

/* One look for spans_active: what that returns, or SPANS_AGAIN. */
SPANS_FUNCTION int spans_look(struct span_slot *slot, __u64 key, struct active_spans *found)
{
	bool framed = false;
	__u32 before, depth;

	if (!slot || !found) /* never: for the verifier of BPF */
		return SPANS_ABSENT;
	before = *(volatile __u32 *)&slot->sequence;
	if (before & 1)
		return SPANS_AGAIN;
	if (*(volatile __u64 *)&slot->key != key)
		return SPANS_ABSENT;
	__asm__ volatile("" ::: "memory");
	found->servers = 0;
	found->is_set = 0;
	depth = slot->depth;
	for (int i = 0; i < SPANS_DEPTH; i++) {
		struct span_frame *frame = &slot->frames[i];

		if ((__u32)i >= depth)
			break;
		/* What follows a request that has ended went with it. */
		if (frame->kind == FRAME_SERVER) {
			found->is_set = 0;
			framed = true;
		}
		if (!frame->span_id)
			continue;
		if (frame->kind == FRAME_SERVER) {
			found->servers++;
			found->is_set = 1;
			found->server = *frame;
		}
		if (found->is_set || !framed) {
			found->is_set = 1;
			found->active = *frame;
		}
	}
	/* x86-64 keeps loads in order: only the compiler must. */
	__asm__ volatile("" ::: "memory");
	if (*(volatile __u32 *)&slot->sequence != before)
		return SPANS_AGAIN;
	if (!found->servers && found->is_set)
		return found->active.span_id ? SPANS_UNFRAMED : SPANS_ABSENT;
	if (found->servers != 1 || !found->is_set)
		return SPANS_ABSENT;
	if (!found->server.span_id || !found->active.span_id)
		return SPANS_AGAIN; /* ended without the lock, between the two looks */
	return SPANS_OK;
}

/*
 * The active span context of a task. A task with two open requests has none, since nothing tells
 * which of them the code at hand belongs to. SPANS_UNFRAMED: only `active` is set.
 */
SPANS_INLINE enum spans_result spans_active(struct span_slot *slot, __u64 key, struct active_spans *found)
{
	for (int i = 0; i < SPANS_TRIES; i++) {
		int result = spans_look(slot, key, found);

		if (result != SPANS_AGAIN)
			return (enum spans_result)result;
	}
	return SPANS_BUSY;
}

#endif
