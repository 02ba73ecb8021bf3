/*
 * What caused a request that a connection driver sends: a task that reads and writes for others, as
 * hyper's does. Pure rules, for BPF programs and for tests on the host, included like spans_in_progress.h.
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

#include "spans_in_progress.h"

#define WAKE_CONTEXTS 8 /* more of them say nothing */
#define WAKE_BY_NOBODY                                                                                            \
	1 /* server span id of a task that works for no request; those of requests have the top bit */
#define WAKE_BEING_NOTED (1U << 31) /* in `wakes`: the frames are not there yet */

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
	__u32 being_noted;
	__u32 wakes;
	__s32 chosen;
	__s32 same;
	__u32 pad;
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
	struct wake_tally tally;
};

_Static_assert(sizeof(struct wake_context) == 88, "no hidden padding");
_Static_assert(sizeof(struct wake_record) == 864, "no hidden padding");

enum cause {
	CAUSE_NONE = 1, /* nothing of which is known that it is a request's */
	CAUSE_FOUND,
	CAUSE_UNKNOWN, /* some request's, but not whose */
	CAUSE_NOBODY, /* of a task that works for no request: CAUSE_NONE, and certain */
};

/* Counts a wake. Threads may do so at once; one context may then have two entries. */
SPANS_INLINE void wakes_note(struct wake_record *record, const struct span_frame *server,
			     const struct span_frame *active)
{
	for (int i = 0; i < WAKE_CONTEXTS; i++) {
		struct wake_context *context = &record->contexts[i];

		if (!__sync_val_compare_and_swap(&context->wakes, 0, WAKE_BEING_NOTED)) {
			context->server = *server;
			context->active = *active;
			__asm__ volatile("" ::: "memory");
			*(volatile __u32 *)&context->wakes = 1;
			return;
		}
		if (*(volatile __u32 *)&context->wakes == WAKE_BEING_NOTED)
			continue;
		if (context->server.span_id == server->span_id && context->active.span_id == active->span_id) {
			__sync_fetch_and_add(&context->wakes, 1);
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

/* A response was read to its end: all wakes that follow are seen, and count. */
SPANS_INLINE void wakes_reset(struct wake_record *record, bool had_body)
{
	wakes_forget(record);
	record->is_complete = 1;
	record->had_body = had_body;
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
	tally->others = tally->previouses = tally->repeated = tally->being_noted = 0;
	for (int i = 0; i < WAKE_CONTEXTS; i++) {
		struct wake_context *context = &record->contexts[i];
		__u64 request = context->server.span_id;

		if (!context->wakes)
			continue;
		if (context->wakes == WAKE_BEING_NOTED) {
			tally->being_noted = 1;
		} else if (wakes_is_previous(record, context)) {
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

	if (record->is_full || !record->is_complete)
		return -CAUSE_UNKNOWN;
	wakes_tally_requests(record);
	if (tally->being_noted || tally->others > 1)
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

#endif
