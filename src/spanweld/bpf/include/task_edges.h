/*
 * What caused a request that a connection driver sends: a task that reads and writes for others, as
 * hyper's does. For BPF programs, for code inside the target, and for tests on the host, included like
 * spans_in_progress.h. The rules first; then the records that they are about, behind what handed_on.h has in
 * the target's own map.
 *
 * A driver is woken by whoever hands it a request; but also by those whose request is done with (a body
 * that was read, a connection given back), perhaps after the next one has been handed over, and sometimes
 * it writes a request before its sender's wake comes. So wakes are counted, since the last response was read
 * to its end, by context: by the request that the waking task works for, and by the span that is active
 * there; tasks that work for no request are one context too.
 * The previous exchange's cause is one request, if it was known; else it is one of those that woke the driver
 * until its response was read. The cause of the next request out is
 *
 *  - the one request that woke the driver beside those, if none of them did so twice;
 *  - of those, the one that woke it, if only one did and no other request: also once, if the previous
 *    exchange's cause is known and its response had no body, whose reader could wake the driver late; else at
 *    least twice;
 *  - unknown in all other cases.
 *
 * Its parent is the span that was active in all these wakes but those by the previous exchange's own span,
 * if that is one; the previous exchange's, if there were no others.
 */
#ifndef SPANWELD_TASK_EDGES_H
#define SPANWELD_TASK_EDGES_H

#include "handed_on.h"

#define WAKE_CONTEXTS 8 /* more of them say nothing */
#define WAKE_BY_NOBODY                                                                                            \
	1 /* server span id of a task that works for no request; those of requests have the top bit */

struct wake_context {
	struct span_frame server;
	struct span_frame active;
	__u32 wakes;
	__u32 pad;
};

/* The server span of an exchange's cause, and what was active there. */
struct exchange_cause {
	__u64 server_span_id;
	__u64 active_span_id;
};

#define PREVIOUS_MAX 4

/*
 * What wakes_cause() has added up. In memory, about which the verifier of BPF knows nothing: of variables
 * it would follow each value that they can have.
 */
struct wake_tally {
	__u64 other; /* a request, and how many of them, one after the other */
	__u64 previous;
	__u64 span;
	__u64 same_span;
	__u32 others;
	__u32 previouses;
	__u32 spans;
	__u32 same_spans;
	__u32 repeated; /* a request of the previous exchange woke the driver twice */
	__u32 wakes;
	__s32 chosen;
	__s32 same;
};

/* Who woke a task since the last response that it read, and what the exchange before was for. */
struct wake_record {
	struct wake_context contexts[WAKE_CONTEXTS];
	struct exchange_cause previous[PREVIOUS_MAX]; /* one of these caused the previous exchange */
	__u32 nr_previous;
	__u32 is_unknown; /* which of them: whoever wakes the task until the response was read is another */
	__u32 is_open; /* it may be none of them */
	__u32 is_full; /* there were more contexts than have room */
	__u32 is_complete; /* no wake was missed */
	__u32 had_body; /* the last response */
	__u32 is_driver; /* it has sent a request, or read a response */
	__u32 missed; /* wakes that could not be noted, in all: somebody else was at the record */
	__u32 missed_before; /* … of those, how many are past */
	__u32 sequence; /* odd: somebody is at it */
	struct wake_tally tally;
};

_Static_assert(sizeof(struct wake_context) == 88, "no hidden padding");
_Static_assert(sizeof(struct wake_record) == 872, "no hidden padding");

enum cause {
	CAUSE_NONE = 1, /* nothing of which is known that it is a request's */
	CAUSE_FOUND,
	CAUSE_UNKNOWN, /* some request's, but not whose */
	CAUSE_NOBODY, /* of a task that works for no request: CAUSE_NONE, and certain */
};

SPANS_INLINE __u32 wakes_missed(const struct wake_record *record)
{
	return *(const volatile __u32 *)&record->missed;
}

/* Counts a wake. */
SPANS_INLINE void wakes_note(struct wake_record *record, const struct span_frame *server,
			     const struct span_frame *active)
{
	for (int i = 0; i < WAKE_CONTEXTS; i++) {
		struct wake_context *context = &record->contexts[i];

		if (!context->wakes) {
			context->server = *server;
			context->active = *active;
			context->wakes = 1;
			return;
		}
		if (context->server.span_id == server->span_id && context->active.span_id == active->span_id) {
			context->wakes++;
			return;
		}
	}
	record->is_full = 1;
}

SPANS_INLINE void wakes_add_previous(struct wake_record *record, const struct wake_context *context)
{
	for (int i = 0; i < PREVIOUS_MAX; i++) {
		if ((__u32)i >= record->nr_previous) {
			record->previous[i].server_span_id = context->server.span_id;
			record->previous[i].active_span_id = context->active.span_id;
			record->nr_previous = i + 1;
			return;
		}
		if (record->previous[i].server_span_id == context->server.span_id &&
		    record->previous[i].active_span_id == context->active.span_id)
			return;
	}
	record->is_open = 1;
}

/* Forgets the wakes until now; of an exchange whose cause is unknown, they say whose it can be. */
SPANS_INLINE void wakes_forget(struct wake_record *record)
{
	for (int i = 0; i < WAKE_CONTEXTS; i++) {
		if (record->is_unknown && record->contexts[i].wakes)
			wakes_add_previous(record, &record->contexts[i]);
		record->contexts[i].wakes = 0;
	}
	if (record->is_unknown && record->is_full)
		record->is_open = 1;
	record->is_full = 0;
}

/*
 * A response was read to its end: all wakes that follow are seen, and count. `missed`: how many could not be noted
 * before the record was entered for this.
 */
SPANS_INLINE void wakes_reset(struct wake_record *record, bool had_body, __u32 missed)
{
	wakes_forget(record);
	record->is_complete = 1;
	record->had_body = had_body;
	record->missed_before = missed;
}

/* Whether a context can be that of the previous exchange. */
SPANS_INLINE bool wakes_is_previous(const struct wake_record *record, const struct wake_context *context)
{
	if (record->is_open)
		return true;
	for (int i = 0; i < PREVIOUS_MAX; i++)
		if ((__u32)i < record->nr_previous &&
		    record->previous[i].server_span_id == context->server.span_id)
			return true;
	return false;
}

SPANS_INLINE bool wakes_is_previous_span(const struct wake_record *record, const struct wake_context *context)
{
	for (int i = 0; i < PREVIOUS_MAX; i++)
		if ((__u32)i < record->nr_previous &&
		    record->previous[i].active_span_id == context->active.span_id)
			return true;
	return false;
}

/* How often a request woke the driver, in all. */
SPANS_INLINE __u32 wakes_of(struct wake_record *record, __u64 server_span_id)
{
	volatile struct wake_tally *tally = &record->tally;

	tally->wakes = 0;
	for (int i = 0; i < WAKE_CONTEXTS; i++)
		if (record->contexts[i].server.span_id == server_span_id)
			tally->wakes += record->contexts[i].wakes;
	return tally->wakes;
}

/* Which requests woke the driver: beside the previous exchange's, and of those. */
SPANS_INLINE void wakes_tally_requests(struct wake_record *record)
{
	volatile struct wake_tally *tally = &record->tally;

	tally->other = tally->previous = 0;
	tally->others = tally->previouses = tally->repeated = 0;
	for (int i = 0; i < WAKE_CONTEXTS; i++) {
		struct wake_context *context = &record->contexts[i];
		__u64 request = context->server.span_id;

		if (!context->wakes)
			continue;
		if (wakes_is_previous(record, context)) {
			if (tally->previous != request)
				tally->previouses++;
			if (wakes_of(record, request) > 1)
				tally->repeated = 1;
			tally->previous = request;
		} else {
			if (tally->other != request)
				tally->others++;
			tally->other = request;
		}
	}
}

/* Which spans were active when that request woke the driver: beside the previous exchange's, and that. */
SPANS_INLINE void wakes_tally_spans(struct wake_record *record, __u64 request)
{
	volatile struct wake_tally *tally = &record->tally;

	tally->span = tally->same_span = 0;
	tally->spans = tally->same_spans = 0;
	tally->chosen = tally->same = 0;
	for (int i = 0; i < WAKE_CONTEXTS; i++) {
		struct wake_context *context = &record->contexts[i];
		__u64 span = context->active.span_id;

		if (!context->wakes || context->server.span_id != request)
			continue;
		if (wakes_is_previous_span(record, context)) {
			if (tally->same_span != span)
				tally->same_spans++;
			tally->same_span = span;
			tally->same = i;
		} else {
			if (tally->span != span)
				tally->spans++;
			tally->span = span;
			tally->chosen = i;
		}
	}
}

SPANS_INLINE bool wakes_knows_previous(const struct wake_record *record)
{
	return !record->is_open && record->nr_previous == 1 && !record->had_body;
}

/* Index of the context that caused what is sent now, or minus an enum cause. */
SPANS_INLINE int wakes_cause(struct wake_record *record)
{
	volatile struct wake_tally *tally = &record->tally;

	if (record->is_full || !record->is_complete || wakes_missed(record) != record->missed_before)
		return -CAUSE_UNKNOWN;
	wakes_tally_requests(record);
	if (tally->others > 1)
		return -CAUSE_UNKNOWN;
	if (!tally->others && !tally->previouses)
		return -CAUSE_NONE;
	if (tally->others && tally->repeated)
		return -CAUSE_UNKNOWN;
	if (!tally->others && (tally->previouses > 1 || !(tally->repeated || wakes_knows_previous(record))))
		return -CAUSE_UNKNOWN;
	wakes_tally_spans(record, tally->others ? tally->other : tally->previous);
	if (tally->spans > 1 || (!tally->spans && tally->same_spans > 1))
		return -CAUSE_UNKNOWN;
	return tally->spans ? tally->chosen : tally->same;
}

/* A request is sent by that cause, which is the previous one from now on; it uses up the wakes. */
SPANS_INLINE void wakes_use(struct wake_record *record, int cause)
{
	record->is_unknown = cause < 0;
	record->is_open = !record->is_complete;
	record->nr_previous = 0;
	if (cause >= 0)
		wakes_add_previous(record, &record->contexts[cause & (WAKE_CONTEXTS - 1)]);
	wakes_forget(record);
}

/*
 * ---- records, in buckets of four by the hash of their task's key. Who is at one has made its sequence number odd
 * by compare-and-swap, and makes it even again; who cannot within WAKES_TRIES counts in `missed` that a wake was,
 * and until the next response nothing is concluded. One is added under the bucket's sequence number, so there
 * are no two of a task. Those of drivers are the last to be given to another task. Whose record was, has
 * an id, as all up to it, of which a new record does not say that it is complete.
 */

#define WAKE_BUCKET 4
#define WAKES_TRIES 8

struct wake_bucket {
	__u64 keys[WAKE_BUCKET]; /* 0: free */
	__u64 doubtful; /* of tasks up to this one, wakes may have been forgotten */
	__u32 sequence; /* odd: a record is being added */
	__u32 next; /* where the oldest is */
	struct wake_record records[WAKE_BUCKET];
};

_Static_assert(sizeof(struct wake_bucket) <= sizeof(struct span_bucket), "it fits an element of the map");

/* How wakes_enter() is to find a record, and did. */
struct wakes_entry {
	__u32 adds; /* in: one that is not there is made */
	__u32 is_followed; /* in: of a task that cannot have been woken before, by what the caller knows */
	__u32 missed; /* out: how many wakes could not be noted, before the record was entered */
	__u32 pad;
};

enum wakes_entered {
	WAKES_ABSENT = -1, /* there is none */
	WAKES_BUSY = -2, /* somebody else is at it, or was added in its place */
};

SPANS_INLINE __u32 wake_bucket_of(__u64 task_key)
{
	return spans_hash(task_key, WAKE_BUCKETS_LOG2);
}

SPANS_INLINE int wakes_find(const struct wake_bucket *bucket, __u64 task_key)
{
	for (int i = 0; i < WAKE_BUCKET; i++)
		if (*(const volatile __u64 *)&bucket->keys[i] == task_key)
			return i;
	return WAKES_ABSENT;
}

SPANS_INLINE bool wakes_lock(__u32 *sequence)
{
	for (int i = 0; i < WAKES_TRIES; i++) {
		__u32 before = *(volatile __u32 *)sequence;

		if (!(before & 1) && __sync_val_compare_and_swap(sequence, before, before + 1) == before)
			return true;
	}
	return false;
}

SPANS_INLINE void wakes_unlock(__u32 *sequence)
{
	__sync_fetch_and_add(sequence, 1);
}

SPANS_INLINE __u64 wakes_doubtful(const struct wake_bucket *bucket)
{
	return *(const volatile __u64 *)&bucket->doubtful;
}

/* Wakes of that task are lost. */
SPANS_INLINE void wakes_doubt(struct wake_bucket *bucket, __u64 task_key)
{
	for (int i = 0; i < WAKES_TRIES; i++) {
		__u64 before = wakes_doubtful(bucket);

		if (before >= task_key ||
		    __sync_val_compare_and_swap(&bucket->doubtful, before, task_key) == before)
			return;
	}
	*(volatile __u64 *)&bucket->doubtful = ~0ULL;
}

/* A record that nobody else is at, for another task: a free one, else the oldest, and a driver's last. */
SPANS_INLINE int wakes_make_room(struct wake_bucket *bucket)
{
	__u32 first = bucket->next;

	for (__u32 i = 0; i < 3 * WAKE_BUCKET; i++) {
		__u32 at = (first + i) % WAKE_BUCKET;
		__u64 key = *(volatile __u64 *)&bucket->keys[at];

		if (i < WAKE_BUCKET && key)
			continue;
		if (i < 2 * WAKE_BUCKET && *(volatile __u32 *)&bucket->records[at].is_driver && key)
			continue;
		if (!wakes_lock(&bucket->records[at].sequence))
			continue;
		if (bucket->keys[at])
			wakes_doubt(bucket, bucket->keys[at]);
		*(volatile __u64 *)&bucket->keys[at] = 0;
		bucket->next = at + 1;
		return at;
	}
	return WAKES_BUSY;
}

/* Makes a task's record: its number, and nobody else is at it; or WAKES_BUSY. Under the bucket's lock. */
SPANS_INLINE int wakes_make(struct wake_bucket *bucket, __u64 task_key, const struct wakes_entry *entry)
{
	struct wake_record *record;
	int at = wakes_make_room(bucket);

	if (at < 0)
		return at;
	record = &bucket->records[at & (WAKE_BUCKET - 1)];
	for (int i = 0; i < WAKE_CONTEXTS; i++)
		record->contexts[i].wakes = 0;
	record->nr_previous = record->is_unknown = record->is_full = record->had_body = record->is_driver = 0;
	record->missed_before = wakes_missed(record);
	record->is_complete = entry->is_followed && task_key > wakes_doubtful(bucket);
	record->is_open = !record->is_complete;
	__asm__ volatile("" ::: "memory");
	*(volatile __u64 *)&bucket->keys[at & (WAKE_BUCKET - 1)] = task_key;
	return at;
}

/* The same, for who does not have the lock; WAKES_ABSENT: others add one. Whoever fails has said so before. */
SPANS_INLINE int wakes_add(struct wake_bucket *bucket, __u64 task_key, struct wakes_entry *entry)
{
	int at = WAKES_ABSENT;

	if (!wakes_lock(&bucket->sequence)) {
		wakes_doubt(bucket, task_key);
		return WAKES_ABSENT;
	}
	if (wakes_find(bucket, task_key) < 0)
		at = wakes_make(bucket, task_key, entry);
	wakes_unlock(&bucket->sequence);
	if (at == WAKES_BUSY)
		wakes_doubt(bucket, task_key);
	if (at < 0)
		return at;
	entry->missed = bucket->records[at & (WAKE_BUCKET - 1)].missed_before;
	/* Somebody could not add it in the meantime. */
	if (wakes_doubtful(bucket) >= task_key)
		bucket->records[at & (WAKE_BUCKET - 1)].is_complete = 0;
	return at;
}

/*
 * Enters a task's record: its number, until wakes_unlock() nobody else is at it; or enum wakes_entered. One
 * that could not be entered knows that it lacks something, unless there is none.
 */
SPANS_INLINE int wakes_enter(struct wake_bucket *bucket, __u64 task_key, struct wakes_entry *entry)
{
	struct wake_record *record;
	int at = wakes_find(bucket, task_key);

	if (at < 0 && !entry->adds)
		return WAKES_ABSENT;
	if (at < 0) {
		at = wakes_add(bucket, task_key, entry);
		if (at != WAKES_ABSENT)
			return at;
		at = wakes_find(bucket, task_key);
		if (at < 0)
			return WAKES_BUSY;
	}
	record = &bucket->records[at & (WAKE_BUCKET - 1)];
	entry->missed = wakes_missed(record);
	if (!wakes_lock(&record->sequence)) {
		__sync_fetch_and_add(&record->missed, 1);
		return WAKES_BUSY;
	}
	if (*(volatile __u64 *)&bucket->keys[at & (WAKE_BUCKET - 1)] == task_key)
		return at;
	/* Given to another task since it was found. */
	wakes_unlock(&record->sequence);
	wakes_doubt(bucket, task_key);
	return WAKES_BUSY;
}

/* A driver's connection is gone, and its record with it. */
SPANS_INLINE void wakes_remove(struct wake_bucket *bucket, __u64 task_key)
{
	struct wakes_entry entry = {};
	int at = wakes_enter(bucket, task_key, &entry);

	if (at < 0)
		return;
	wakes_doubt(bucket, task_key);
	*(volatile __u64 *)&bucket->keys[at & (WAKE_BUCKET - 1)] = 0;
	wakes_unlock(&bucket->records[at & (WAKE_BUCKET - 1)].sequence);
}

/*
 * ---- tasks and threads that have waited for events themselves, as a runtime's workers do: whom they wake is the
 * events' choice. Written by the kernel's programs alone; forgotten by age.
 */

#define EVENT_DRIVERS_BUCKET 8
#define EVENT_DRIVERS_LOG2 6

struct event_drivers {
	__u64 keys[1 << EVENT_DRIVERS_LOG2][EVENT_DRIVERS_BUCKET];
	__u32 next[1 << EVENT_DRIVERS_LOG2];
};

_Static_assert(sizeof(struct event_drivers) <= sizeof(struct span_bucket), "they fit an element of the map");

SPANS_INLINE bool event_drivers_have(const struct event_drivers *all, __u64 task_key)
{
	const __u64 *keys = all->keys[spans_hash(task_key, EVENT_DRIVERS_LOG2)];

	for (int i = 0; i < EVENT_DRIVERS_BUCKET; i++)
		if (*(const volatile __u64 *)&keys[i] == task_key)
			return true;
	return false;
}

SPANS_INLINE void event_drivers_add(struct event_drivers *all, __u64 task_key)
{
	__u32 bucket = spans_hash(task_key, EVENT_DRIVERS_LOG2);
	__u32 at = __sync_fetch_and_add(&all->next[bucket], 1);

	/* For the verifier of BPF: bounded where it is used. */
	__asm__ volatile("" : "+r"(at));
	*(volatile __u64 *)&all->keys[bucket][at % EVENT_DRIVERS_BUCKET] = task_key;
}

#endif
