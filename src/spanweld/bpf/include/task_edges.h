/*
 * What caused a request that a connection driver sends: a task that reads and writes for others, as
 * hyper's does. Pure rules, for BPF programs and for tests on the host, included like spans_in_progress.h.
 *
 * A driver is woken by whoever hands it a request; but also by those whose request is done with (a body
 * that was read, a connection given back), perhaps after the next one has been handed over, and sometimes
 * it writes a request before its sender's wake comes. So wakes are counted, since the last head of a
 * response, by context: by the request that the waking task works for, and by the span that is active there.
 * The cause of the next request out is
 *
 *  - the one request that woke the driver beside the one that caused the previous exchange, if that
 *    woke it at most once;
 *  - the previous one, if no other woke the driver, and it did so at least twice;
 *  - unknown in all other cases.
 *
 * Its parent is the span that was active in all these wakes but those by the previous exchange's own span,
 * if that is one; the previous exchange's, if there were no others.
 */
#ifndef SPANWELD_TASK_EDGES_H
#define SPANWELD_TASK_EDGES_H

#include "spans_in_progress.h"

#define WAKE_CONTEXTS 8 /* more of them say nothing */
#define WAKE_BEING_NOTED (1U << 31) /* in `wakes`: the frames are not there yet */

struct wake_context {
	struct span_frame server;
	struct span_frame active;
	__u32 wakes;
	__u32 pad;
};

/* Who woke a task since the last head of a response that it read. */
struct wake_record {
	struct wake_context contexts[WAKE_CONTEXTS];
	__u32 is_full; /* there were more contexts than have room */
	__u32 is_complete; /* no wake was missed since then */
};

_Static_assert(sizeof(struct wake_context) == 88, "no hidden padding");
_Static_assert(sizeof(struct wake_record) == 712, "no hidden padding");

/* The server span, and the active one, of an exchange; 0: there was none, or it is unknown. */
struct exchange_cause {
	__u64 server_span_id;
	__u64 active_span_id;
};

enum cause {
	CAUSE_NONE = 1, /* nothing of which is known that it is a request's */
	CAUSE_FOUND,
	CAUSE_UNKNOWN, /* some request's, but not whose */
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

/* Forgets all wakes; those that follow are all that count. */
SPANS_INLINE void wakes_reset(struct wake_record *record)
{
	for (int i = 0; i < WAKE_CONTEXTS; i++)
		record->contexts[i].wakes = 0;
	record->is_full = 0;
	record->is_complete = 1;
}

/* Index of the context that caused what is sent now, or minus an enum cause. Changes nothing. */
SPANS_INLINE int wakes_cause(const struct wake_record *record, const struct exchange_cause *previous)
{
	__u32 by_previous = 0, candidates = 0;
	__u64 other = 0, candidate = 0;
	int same = -1, chosen = -1;

	if (record->is_full || !record->is_complete)
		return -CAUSE_UNKNOWN;
	for (int i = 0; i < WAKE_CONTEXTS; i++) {
		const struct wake_context *context = &record->contexts[i];

		if (!context->wakes)
			break;
		if (context->wakes == WAKE_BEING_NOTED)
			return -CAUSE_UNKNOWN;
		if (context->server.span_id == previous->server_span_id)
			by_previous += context->wakes;
		else if (other && other != context->server.span_id)
			return -CAUSE_UNKNOWN;
		else
			other = context->server.span_id;
	}
	if (!other && !by_previous)
		return -CAUSE_NONE;
	if (other ? by_previous > 1 : by_previous < 2)
		return -CAUSE_UNKNOWN;
	if (!other)
		other = previous->server_span_id;
	for (int i = 0; i < WAKE_CONTEXTS; i++) {
		const struct wake_context *context = &record->contexts[i];

		if (!context->wakes)
			break;
		if (context->server.span_id != other)
			continue;
		if (context->active.span_id == previous->active_span_id) {
			same = i;
		} else if (context->active.span_id != candidate) {
			candidate = context->active.span_id;
			chosen = i;
			candidates++;
		}
	}
	if (candidates > 1)
		return -CAUSE_UNKNOWN;
	return candidates ? chosen : same;
}

#endif
