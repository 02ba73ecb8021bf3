/* What the stress tests share: threads' sums, random numbers, and slots in a few buckets that all tasks share. */
#ifndef HOSTBPF_STRESS_H
#define HOSTBPF_STRESS_H

#include <linux/types.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "spans_in_progress.h"

static __attribute__((noreturn)) void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", __BASE_FILE__, what);
	_Exit(1);
}

static __u64 mix(__u64 number)
{
	number ^= number >> 31;
	number *= 0x7fb5d329728ea185ULL;
	number ^= number >> 27;
	return number * 0x81dadef4bc2dd44dULL | 1;
}

static void add(__u64 *sum, __u64 number)
{
	__atomic_fetch_add(sum, number, __ATOMIC_RELAXED);
}

#ifndef STRESS_WITHOUT_SLOTS

#define BUCKETS 2

static struct span_bucket buckets[BUCKETS];

static struct span_bucket *bucket_of(__u64 key)
{
	return &buckets[spans_bucket_of(key) % BUCKETS];
}

static struct span_slot *find_slot(__u64 key)
{
	struct span_bucket *bucket = bucket_of(key);

	for (int i = 0; i < SPANS_BUCKET_SLOTS; i++)
		if (__atomic_load_n(&bucket->slots[i].key, __ATOMIC_RELAXED) == key)
			return &bucket->slots[i];
	return NULL;
}

/* A place of its own, for tsan.supp. */
static bool exchange_key(struct span_slot *slot, __u64 old, __u64 new)
{
	return __sync_val_compare_and_swap(&slot->key, old, new) == old;
}

#endif

#endif
