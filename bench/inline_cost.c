/*
 * What the probes inside a target cost, measured without a target: the very code is mapped here as the
 * patcher maps it there, with an open request, and called as the SDK's functions would be.
 *
 *	inline_cost CODE ROUNDS STUB_NEW_TRACE_ID DISPLACED STUB_BUILD DISPLACED STUB_END DISPLACED BEHIND_SPAWN BACK COOKIE
 *
 * CODE is the flat code; addresses are offsets in it. Prints "NAME NANOSECONDS" lines, medians of rounds, and
 * ends with 1 if an adoption came out wrong, also of many spans that are open at once, a call that is not meant began a
 * root, or a register, a flag or the red zone was not left as it was where a task is spawned.
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

#include "handed_on.h"
#include "inline_area.h"
#include "spans_in_progress.h"
#include "target.h"
#include "tokio_tasks.h"

#define CALLS 200000
#define MANY 20000 /* not divided by 7 */
#define SPANS_SIZE (SHARED_ELEMENTS * sizeof(struct span_bucket))
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

/*
 * Goes where a displaced instruction within a function would, with all registers, the flags and the red
 * zone filled, and notes what they are when it comes back.
 */
#define REGISTERS 15
#define ARITHMETIC_FLAGS 0x8d5

void check_within(void *behind);
extern char within_back[];
uint64_t registers_after[REGISTERS + 3], within_sp, within_behind;

__asm__("	.text\n"
	"check_within:\n"
	"	pushq %rbx\n	pushq %rbp\n	pushq %r12\n	pushq %r13\n	pushq %r14\n	pushq %r15\n"
	"	movq %rsp, within_sp(%rip)\n"
	"	movq %rdi, within_behind(%rip)\n"
	"	subq $264, %rsp\n"
	"	pushq $0x8d5\n"
	"	popfq\n"
	"	movabsq $0x1, %rax\n"
	"	movabsq $0x1111111111111113, %rbx\n"
	"	movabsq $0x2222222222222225, %rcx\n"
	"	movabsq $0x3333333333333337, %rdx\n"
	"	movabsq $0x4444444444444449, %rsi\n"
	"	movabsq $0x555555555555555b, %rdi\n"
	"	movabsq $0x666666666666666d, %rbp\n"
	"	movabsq $0x777777777777777f, %r8\n"
	"	movabsq $0x8888888888888891, %r9\n"
	"	movabsq $0x99999999999999a3, %r10\n"
	"	movabsq $0xaaaaaaaaaaaaaab5, %r11\n"
	"	movabsq $0xbbbbbbbbbbbbbbc7, %r12\n"
	"	movabsq $0xccccccccccccccd9, %r13\n"
	"	movabsq $0xddddddddddddddeb, %r14\n"
	"	movabsq $0xeeeeeeeeeeeeeefd, %r15\n"
	"	movq %rax, -8(%rsp)\n"
	"	movq %r15, -128(%rsp)\n"
	"	jmp *within_behind(%rip)\n"
	"	.globl within_back\n"
	"within_back:\n"
	"	movq %rax, registers_after+0(%rip)\n"
	"	movq %rbx, registers_after+8(%rip)\n"
	"	movq %rcx, registers_after+16(%rip)\n"
	"	movq %rdx, registers_after+24(%rip)\n"
	"	movq %rsi, registers_after+32(%rip)\n"
	"	movq %rdi, registers_after+40(%rip)\n"
	"	movq %rbp, registers_after+48(%rip)\n"
	"	movq %r8, registers_after+56(%rip)\n"
	"	movq %r9, registers_after+64(%rip)\n"
	"	movq %r10, registers_after+72(%rip)\n"
	"	movq %r11, registers_after+80(%rip)\n"
	"	movq %r12, registers_after+88(%rip)\n"
	"	movq %r13, registers_after+96(%rip)\n"
	"	movq %r14, registers_after+104(%rip)\n"
	"	movq %r15, registers_after+112(%rip)\n"
	"	movq -8(%rsp), %rax\n"
	"	movq %rax, registers_after+120(%rip)\n"
	"	movq -128(%rsp), %rax\n"
	"	movq %rax, registers_after+128(%rip)\n"
	"	pushfq\n"
	"	popq registers_after+136(%rip)\n"
	"	addq $264, %rsp\n"
	"	cmpq %rsp, within_sp(%rip)\n"
	"	je 1f\n"
	"	ud2\n"
	"1:	popq %r15\n	popq %r14\n	popq %r13\n	popq %r12\n	popq %rbp\n	popq %rbx\n"
	"	ret\n");

static bool leaves_all(void *behind)
{
	bool same = true;

	check_within(behind);
	for (uint64_t i = 0; i < REGISTERS; i++)
		same &= registers_after[i] == 0x1111111111111111ULL * i + i + 1;
	return same && registers_after[REGISTERS] == registers_after[0] &&
	       registers_after[REGISTERS + 1] == registers_after[REGISTERS - 1] &&
	       (registers_after[REGISTERS + 2] & ARITHMETIC_FLAGS) == ARITHMETIC_FLAGS;
}

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
	uint32_t number = open_bucket_of(SERVER_SPAN);
	struct open_buckets *open = (struct open_buckets *)&buckets[SHARED_OPEN + number / OPEN_BUCKETS_EACH];

	slot->key = TASK;
	spans_push(slot, TASK, &frame);
	open_add(&open->buckets[number % OPEN_BUCKETS_EACH], SERVER_SPAN, HANDED_BUCKET);
}

/* What the spawned task starts with. */
static bool has_edge(uint64_t task)
{
	struct span_bucket *elements = (struct span_bucket *)(base + INLINE_PLACE_SPANS);
	uint32_t number = edge_bucket_of(task);
	struct edge_buckets *edges = (struct edge_buckets *)&elements[SHARED_EDGES + number / EDGE_BUCKETS_EACH];
	struct active_spans found = {};

	return edge_read(&edges->buckets[number % EDGE_BUCKETS_EACH], task, &found) &&
	       found.server.span_id == SERVER_SPAN;
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

/*
 * More open spans than the near part of their table has room for, whose ends come in another order. A task's stack has
 * no room for all of them, so each is to be the server span's child.
 */
static void adopt_many(new_trace_id *begin, build_recording_span *build, ensure_ended *end)
{
	static struct context open[MANY];
	struct target *target = (struct target *)(base + INLINE_PLACE_AREA + INLINE_PLACE_TARGET);

	target->adopt_mode = ADOPT_SERVER;
	for (uint64_t i = 0; i < MANY; i++) {
		unsigned __int128 trace_id = begin(NULL);

		open[i] = (struct context){.trace_id = {trace_id, trace_id >> 64}, .flags = 1};
		open[i].span_id = ~i * 0x9e3779b97f4a7c15ULL | 1;
		build(span, NULL, &parent, &open[i]);
	}
	for (uint64_t i = 0; i < MANY; i++) {
		memcpy(span, &open[i * 7 % MANY], sizeof(context));
		*(uint64_t *)(span + 0x150) = 0;
		end(span, 0, ~0U);
		wrong += *(uint64_t *)(span + 0x150) != SERVER_SPAN;
	}
}

/*
 * What a call of the generator returns, where the function itself would return 0; in *returns_to, where that call
 * does, which is one and the same place each time.
 */
static __attribute__((noinline)) unsigned __int128 call_generator(new_trace_id *begin, uint64_t *returns_to)
{
	register new_trace_id *generator __asm__("r13") = begin;
	uint64_t low, high;

	__asm__ volatile("movq %%rsp, %%rbx\n"
			 "leaq -128(%%rsp), %%rsp\n"
			 "andq $-16, %%rsp\n"
			 "leaq 1f(%%rip), %%r12\n"
			 "xorl %%eax, %%eax\n"
			 "xorl %%edx, %%edx\n"
			 "call *%[begin]\n"
			 "1:	movq %%rbx, %%rsp\n"
			 "movq %%r12, %[returns_to]\n"
			 : "=&a"(low), "=&d"(high), [returns_to] "=m"(*returns_to)
			 : [begin] "r"(generator)
			 : "rbx", "rcx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "memory", "cc");
	return (unsigned __int128)high << 64 | low;
}

/* Only the calls that are meant begin a root, where not all are. */
static bool heeds_callers(new_trace_id *begin)
{
	uint64_t *callers = (uint64_t *)(base + INLINE_PLACE_AREA + INLINE_PLACE_CALLERS);
	unsigned __int128 trace_id = (unsigned __int128)TRACE_HIGH << 64 | TRACE_LOW;
	uint64_t here;
	bool right = call_generator(begin, &here) == trace_id;

	callers[0] = 1;
	right &= call_generator(begin, &here) == 0;
	callers[INLINE_SIZE_CALLERS - 1] = here;
	right &= call_generator(begin, &here) == trace_id;
	memset(callers, 0, INLINE_SIZE_CALLERS * sizeof(*callers));
	return right;
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
	uint64_t at[9];
	int rounds;
	double bare[64], dead[64], idle[64], adoption[64], spawn[64];
	void (*spawned)(uint64_t, uint64_t, uint64_t id);
	uint8_t *back;
	uint32_t *owner;
	new_trace_id *begin, *displaced;

	if (argc != 12) {
		fprintf(stderr, "usage: inline_cost CODE ROUNDS and nine addresses\n");
		return 2;
	}
	map_all(argv[1]);
	rounds = atoi(argv[2]);
	if (rounds < 1 || rounds > 64)
		return 2;
	for (int i = 3; i < 12; i++)
		at[i - 3] = strtoull(argv[i], NULL, 0);
	for (int i = 1; i < 6; i += 2)
		base[at[i]] = RETURN;
	begin = (new_trace_id *)(base + at[0]);
	displaced = (new_trace_id *)(base + at[1]);
	owner = (uint32_t *)(base + INLINE_PLACE_AREA);
	*(uint32_t *)(base + INLINE_PLACE_GUARD) = 1;
	make_target();
	open_request();
	/* Back by a jump to wherever it is, over what follows; then by a return, as a call. The id is in rdx. */
	spawned = (void (*)(uint64_t, uint64_t, uint64_t))(base + at[6]);
	back = base + at[7];
	memcpy(back, "\xff\x25\0\0\0\0", 6);
	memcpy(back + 6, &(void *){within_back}, 8);
	memcpy(base + at[8], &(uint32_t){ID_IN_DX}, 4);
	wrong += !leaves_all(base + at[6]);
	*owner = 1;
	wrong += !leaves_all(base + at[6]);
	wrong += !heeds_callers(begin);
	back[0] = RETURN;
	for (int round = 0; round < rounds; round++) {
		uint64_t t[6];

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
		for (uint64_t i = 1; i <= CALLS; i++)
			spawned(0, 0, (uint64_t)round * CALLS + i + TASK);
		t[5] = now();
		wrong += !has_edge((uint64_t)round * CALLS + CALLS + TASK);
		spawn[round] = (double)(t[5] - t[4]) / CALLS;
		bare[round] = (double)(t[1] - t[0]) / CALLS;
		dead[round] = (double)(t[2] - t[1]) / CALLS - bare[round];
		idle[round] = (double)(t[3] - t[2]) / CALLS - bare[round];
		adoption[round] = (double)(t[4] - t[3]) / CALLS;
	}
	adopt_many(begin, (build_recording_span *)(base + at[2]), (ensure_ended *)(base + at[4]));
	printf("no_agent %.1f\nno_request %.1f\nadoption %.1f\nspawn %.1f\n", median(dead, rounds),
	       median(idle, rounds), median(adoption, rounds), median(spawn, rounds));
	if (wrong)
		fprintf(stderr, "%u adoptions came out wrong\n", wrong);
	return wrong != 0;
}
