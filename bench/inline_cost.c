/*
 * What the probes inside a target cost, measured without a target: the very code is mapped here as the
 * patcher maps it there, with an open request, and called as the SDK's functions would be.
 *
 *	inline_cost CODE ROUNDS STUB_NEW_TRACE_ID DISPLACED STUB_BUILD DISPLACED STUB_END DISPLACED
 *
 * CODE is the flat code; addresses are offsets in it. Prints "NAME NANOSECONDS" lines, medians of rounds, and
 * ends with 1 if an adoption came out wrong.
 */
#define _GNU_SOURCE
#include <linux/types.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "inline_area.h"
#include "spans_in_progress.h"
#include "target.h"

#define CALLS 200000
#define SPANS_SIZE (4096UL * 2048)
#define RETURN 0xc3
#define TASK 7
#define TRACE_LOW 0x1111222233334444ULL
#define TRACE_HIGH 0x5555666677778888ULL
#define SERVER_SPAN 0x99
#define NO_DATA (1ULL << 63)

typedef unsigned __int128 new_trace_id(void *generator);
typedef void build_recording_span(void *place, void *tracer, void *parent, void *context);
typedef void ensure_ended(void *span, uint64_t seconds, uint32_t nanoseconds);

/* opentelemetry_sdk 0.31 */
struct context {
	uint64_t state[4];
	uint64_t trace_id[2];
	uint64_t span_id;
	uint8_t remote, flags;
};

static __thread uint64_t task_id = TASK;
static uint8_t *base;
static uint8_t span[0x180];
static struct context context, parent;
static unsigned int wrong;

static uint64_t now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000ULL + at.tv_nsec;
}

static void map_all(const char *path)
{
	FILE *file = fopen(path, "rb");

	base = mmap(NULL, INLINE_PLACE_SPANS + SPANS_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!file || base == MAP_FAILED || !fread(base, 1, INLINE_PLACE_GUARD, file)) {
		perror(path);
		exit(2);
	}
	fclose(file);
}

static void make_target(void)
{
	struct inline_head *head = (struct inline_head *)(base + INLINE_PLACE_AREA);
	struct target *target = (struct target *)(base + INLINE_PLACE_AREA + INLINE_PLACE_TARGET);
	uint64_t thread;

	__asm__("mov %%fs:0, %0" : "=r"(thread));
	head->pid = head->own_pid = getpid();
	head->trusted = 1;
	*target = (struct target){
		.tokio_task_id = (uint64_t)&task_id - thread,
		.adoption = ADOPTION_VERIFIED,
		.write_mode = WRITE_INLINE,
		.context_argument = 3,
		.parent_argument = 2,
		.parent_proven = 1,
		.ends_seen = 1,
		.layout =
			{
				.context_trace_id = 0x20,
				.context_span_id = 0x30,
				.context_is_remote = 0x38,
				.context_flags = 0x39,
				.span_data = 0xa8,
				.span_parent_id = 0x150,
				.span_parent_is_remote = LAYOUT_ABSENT,
				.span_name_tag = LAYOUT_ABSENT,
				.span_start_seconds = 0x100,
				.span_start_nanos = 0x108,
				.span_kind = 0x110,
				.span_data_size = 8,
				.span_data_none = NO_DATA,
			},
	};
	*(uint64_t *)(span + 0x100) = 1700000000;
}

static void open_request(void)
{
	struct span_bucket *buckets = (struct span_bucket *)(base + INLINE_PLACE_SPANS);
	struct span_slot *slot = &buckets[spans_bucket_of(TASK)].slots[0];
	struct span_frame frame = {TRACE_LOW, TRACE_HIGH, SERVER_SPAN, 0, TRACE_FLAG_SAMPLED, FRAME_SERVER, {0}};

	slot->key = TASK;
	spans_push(slot, TASK, &frame);
}

/* One root from its begin to its end. */
static void adopt(new_trace_id *begin, build_recording_span *build, ensure_ended *end, uint64_t number)
{
	unsigned __int128 trace_id = begin(NULL);

	context.trace_id[0] = trace_id;
	context.trace_id[1] = trace_id >> 64;
	context.span_id = number * 0x9e3779b97f4a7c15ULL | 1;
	context.flags = 1;
	build(span, NULL, &parent, &context);
	memcpy(span, &context, sizeof(context));
	*(uint64_t *)(span + 0x150) = 0;
	end(span, 0, ~0U);
	wrong += trace_id != ((unsigned __int128)TRACE_HIGH << 64 | TRACE_LOW) ||
		 *(uint64_t *)(span + 0x150) != SERVER_SPAN;
}

static int compare(const void *a, const void *b)
{
	return *(const double *)a < *(const double *)b ? -1 : *(const double *)a > *(const double *)b;
}

static double median(double *values, int count)
{
	qsort(values, count, sizeof(*values), compare);
	return values[count / 2];
}

int main(int argc, char **argv)
{
	uint64_t at[8];
	int rounds;
	double bare[64], dead[64], idle[64], adoption[64];
	uint32_t *owner;
	new_trace_id *begin, *displaced;

	if (argc != 9) {
		fprintf(stderr, "usage: inline_cost CODE ROUNDS and six addresses\n");
		return 2;
	}
	map_all(argv[1]);
	rounds = atoi(argv[2]);
	if (rounds < 1 || rounds > 64)
		return 2;
	for (int i = 3; i < 9; i++)
		at[i - 3] = strtoull(argv[i], NULL, 0);
	for (int i = 1; i < 6; i += 2)
		base[at[i]] = RETURN;
	begin = (new_trace_id *)(base + at[0]);
	displaced = (new_trace_id *)(base + at[1]);
	owner = (uint32_t *)(base + INLINE_PLACE_AREA);
	*(uint32_t *)(base + INLINE_PLACE_GUARD) = 1;
	make_target();
	open_request();
	for (int round = 0; round < rounds; round++) {
		uint64_t t[5];

		*owner = 0;
		t[0] = now();
		for (int i = 0; i < CALLS; i++)
			displaced(NULL);
		t[1] = now();
		for (int i = 0; i < CALLS; i++)
			begin(NULL);
		t[2] = now();
		*owner = 1;
		task_id = TASK + 1; /* no request */
		for (int i = 0; i < CALLS; i++)
			begin(NULL);
		t[3] = now();
		task_id = TASK;
		for (int i = 0; i < CALLS; i++)
			adopt(begin, (build_recording_span *)(base + at[2]), (ensure_ended *)(base + at[4]),
			      (uint64_t)round * CALLS + i + 1);
		t[4] = now();
		bare[round] = (double)(t[1] - t[0]) / CALLS;
		dead[round] = (double)(t[2] - t[1]) / CALLS - bare[round];
		idle[round] = (double)(t[3] - t[2]) / CALLS - bare[round];
		adoption[round] = (double)(t[4] - t[3]) / CALLS;
	}
	printf("no_agent %.1f\nno_request %.1f\nadoption %.1f\n", median(dead, rounds), median(idle, rounds),
	       median(adoption, rounds));
	if (wrong)
		fprintf(stderr, "%u adoptions came out wrong\n", wrong);
	return wrong != 0;
}
