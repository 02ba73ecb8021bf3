/*
 * Stands in for libbpf's header of the same name, so that a probe's source compiles, as it is, to code
 * that runs inside the target: each helper that it calls, as a few instructions there.
 *
 * No function of the target is called. System calls are made where memory is read that may not be
 * there, for a thread id, and for the time of an event.
 */
#ifndef INLINE_BPF_HELPERS_H
#define INLINE_BPF_HELPERS_H

#define IN_TARGET 1
#define read_far(to, size, from) inline_read_carefully(to, size, from)
#define read_task(to, size, from, is_proven) inline_read_task(to, size, from, is_proven)
#define is_known_to_run_tasks(thread_edges) inline_is_known_to_run_tasks(thread_edges)
#define thread_id() inline_thread_id()

#define SEC(name)
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name
#define __array(name, val) typeof(val) *name[]

#undef __always_inline
#define __always_inline inline __attribute__((always_inline))

#include "inline_area.h"

/* By the linker's script, at their distance from the code. */
extern char inline_area[] __attribute__((visibility("hidden")));
extern char inline_spans[] __attribute__((visibility("hidden")));

#define INLINE_HEAD ((struct inline_head *)inline_area)

enum inline_system_call {
	INLINE_GETTID = 186,
	INLINE_CLOCK_GETTIME = 228,
	INLINE_PROCESS_VM_READV = 310,
};

static __always_inline long inline_system_call(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

/* By the ABI of x86-64, the first word of a thread's block is the block's address. */
static __always_inline unsigned long inline_thread_pointer(void)
{
	unsigned long pointer;

	__asm__("mov %%fs:0, %0" : "=r"(pointer));
	return pointer;
}

/*
 * In a process id namespace of its own the target's thread ids are not those that BPF programs see:
 * there, no task key is made of them (current_task_key in otel_sdk.bpf.c finds none under this id).
 */
#define INLINE_NO_TID 0xffffffffU

/* Not volatile: where the id is not used, it is not asked for. */
static __always_inline unsigned int inline_tid(void)
{
	unsigned long tid;

	if (INLINE_HEAD->pid != INLINE_HEAD->own_pid)
		return INLINE_NO_TID;
	__asm__("syscall" : "=a"(tid) : "a"((unsigned long)INLINE_GETTID) : "rcx", "r11");
	return tid;
}

/*
 * Spares the thread id where the running thread was told to run tasks before, and no thread has got an
 * edge since, so not one that has this one's place either. One word says both.
 */
static __always_inline int inline_is_known_to_run_tasks(unsigned int thread_edges)
{
	unsigned long thread = inline_thread_pointer() >> 6;
	unsigned long word = thread << 22 | (thread_edges & 0x3fffff);
	volatile unsigned long *known = (volatile unsigned long *)(inline_area + INLINE_PLACE_THREADS) +
					(thread * 0x9E3779B97F4A7C15UL >> 32) % INLINE_SIZE_THREADS;

	if (*known == word)
		return 1;
	*known = word;
	return 0;
}

static __always_inline unsigned long long bpf_get_current_pid_tgid(void)
{
	return (unsigned long long)INLINE_HEAD->pid << 32 | inline_tid();
}

static __attribute__((noinline)) long inline_read_carefully(void *to, unsigned long size, const void *from);

/* Where glibc keeps a thread's id, from the thread pointer on, and how often it is looked for there: nptl/descr.h */
#define GLIBC_THREAD_ID 0x2d0
#define IDS_PROVE 64
#define ID_IS_ELSEWHERE (~0U)

/* The kernel is asked until it has said as often what stands there, and always where it ever was another. */
static __attribute__((noinline)) unsigned int inline_thread_id(void)
{
	volatile unsigned int *found = &INLINE_HEAD->thread_ids_found;
	const unsigned int *place = (const unsigned int *)(inline_thread_pointer() + GLIBC_THREAD_ID);
	unsigned int seen = *found, there, tid;

	if (INLINE_HEAD->pid != INLINE_HEAD->own_pid)
		return INLINE_NO_TID;
	if (seen >= IDS_PROVE && seen != ID_IS_ELSEWHERE)
		return *(volatile const unsigned int *)place;
	tid = inline_tid();
	if (seen == ID_IS_ELSEWHERE)
		return tid;
	if (inline_read_carefully(&there, sizeof(there), place) || there != tid)
		*found = ID_IS_ELSEWHERE;
	else
		__sync_val_compare_and_swap(found, seen, seen + 1);
	return tid;
}

/* Of the kernel's structures, nothing is within reach. */
static __always_inline struct task_struct *bpf_get_current_task_btf(void)
{
	return 0;
}

#define thread_pointer() ((__u64)inline_thread_pointer())

static __always_inline unsigned long long bpf_ktime_get_ns(void)
{
	struct {
		long seconds, nanoseconds;
	} now = {0, 0};

	inline_system_call(INLINE_CLOCK_GETTIME, 1 /* CLOCK_MONOTONIC */, (long)&now, 0, 0, 0, 0);
	return now.seconds * 1000000000ULL + now.nanoseconds;
}

/* ---- memory of the target */

static __attribute__((noinline)) long inline_read_carefully(void *to, unsigned long size, const void *from)
{
	struct {
		void *base;
		unsigned long length;
	} local = {to, size}, remote = {(void *)from, size};

	return inline_system_call(INLINE_PROCESS_VM_READV, INLINE_HEAD->own_pid, (long)&local, 1, (long)&remote, 1,
				  0) == (long)size
		       ? 0
		       : -1;
}

static __always_inline void inline_copy(void *to, const void *from, unsigned long size)
{
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
}

/*
 * Until all places were found to be right, and for text whose address was itself read, the kernel is
 * asked: an address that is not there is then an error, not the service's end.
 */
static __always_inline long bpf_probe_read_user(void *to, unsigned int size, const void *from)
{
	if (!INLINE_HEAD->trusted || size > 16)
		return inline_read_carefully(to, size, from);
	if (__builtin_constant_p(size))
		__builtin_memcpy(to, from, size);
	else
		inline_copy(to, from, size);
	return 0;
}

/* What a function of tokio's is given as a task may be read without the kernel once it has been one often. */
static __always_inline long inline_read_task(void *to, unsigned int size, const void *from, int is_proven)
{
	if (!is_proven)
		return inline_read_carefully(to, size, from);
	__builtin_memcpy(to, from, size);
	return 0;
}

static __always_inline long bpf_probe_write_user(void *to, const void *from, unsigned int size)
{
	if (size == 16) { /* a trace id: each half in one store */
		((volatile unsigned long *)to)[0] = ((const unsigned long *)from)[0];
		((volatile unsigned long *)to)[1] = ((const unsigned long *)from)[1];
	} else if (size == 8) {
		*(volatile unsigned long *)to = *(const unsigned long *)from;
	} else {
		*(volatile unsigned char *)to = *(const unsigned char *)from;
	}
	return 0;
}

/* ---- events: a record is reserved, filled, and made ready; who finds no room counts that */

static __always_inline unsigned long long bpf_ringbuf_query(void *ring, unsigned long long flags)
{
	(void)ring, (void)flags;
	return 0; /* the agent drains on a timer */
}

static __always_inline long bpf_ringbuf_output(void *ring, void *data, unsigned long long size,
					       unsigned long long flags)
{
	struct inline_ring *positions = (struct inline_ring *)(inline_area + INLINE_PLACE_RING);
	struct inline_record *records = (struct inline_record *)(inline_area + INLINE_PLACE_RECORDS);
	struct inline_record *record;
	unsigned long long position;

	(void)ring, (void)flags;
	if (size > sizeof(record->data))
		return -1;
	do {
		position = *(volatile unsigned long long *)&positions->produced;
		if (position - *(volatile unsigned long long *)&positions->consumed >= INLINE_SIZE_RECORDS)
			return -1;
	} while (__sync_val_compare_and_swap(&positions->produced, position, position + 1) != position);
	record = &records[position % INLINE_SIZE_RECORDS];
	inline_copy(record->data, data, size);
	record->size = size;
	__atomic_store_n(&record->ready, 1, __ATOMIC_RELEASE);
	return 0;
}

/* Where a layout is learned, nothing is inline. */
static __always_inline void *bpf_ringbuf_reserve(void *ring, unsigned long long size, unsigned long long flags)
{
	(void)ring, (void)size, (void)flags;
	return 0;
}

static __always_inline void bpf_ringbuf_submit(void *data, unsigned long long flags)
{
	(void)data, (void)flags;
}

static __always_inline void bpf_ringbuf_discard(void *data, unsigned long long flags)
{
	(void)data, (void)flags;
}

static __always_inline long bpf_loop(unsigned int count, long (*step)(unsigned int, void *), void *context,
				     unsigned long long flags)
{
	unsigned int at = 0;

	(void)flags;
	while (at < count && !step(at, context))
		at++;
	return at;
}

/* What a cookie says of a call is known before (inline.c). */
static __always_inline unsigned long long bpf_get_attach_cookie(void *registers)
{
	(void)registers;
	return 0;
}

static __always_inline long bpf_send_signal_thread(unsigned int signal)
{
	(void)signal;
	return -1;
}

/*
 * ---- maps, told by the names that they have where they are used; inline.c has what is behind each.
 * The names are constants, so that one call remains of each.
 */

enum inline_map {
	INLINE_MAP_NONE,
	INLINE_MAP_TARGETS,
	INLINE_MAP_COUNTERS,
	INLINE_MAP_SPANS,
	INLINE_MAP_TASKS, /* the target's own map of spans in progress, as its bucket's number is looked up */
	INLINE_MAP_ROOT_STARTS,
	INLINE_MAP_MANUAL_SPANS,
};

static __always_inline enum inline_map inline_map_named(const char *name)
{
	if (name[0] == 't' && name[1] == 'a')
		return INLINE_MAP_TASKS;
	if (name[0] != '&')
		return INLINE_MAP_NONE;
	switch (name[1]) {
	case 't':
		return name[3] == 'r' ? INLINE_MAP_TARGETS : INLINE_MAP_NONE;
	case 'c':
		return name[3] == 'u' ? INLINE_MAP_COUNTERS : INLINE_MAP_NONE;
	case 's':
		return name[2] == 'p' ? INLINE_MAP_SPANS : INLINE_MAP_NONE;
	case 'r':
		return name[2] == 'o' ? INLINE_MAP_ROOT_STARTS : INLINE_MAP_NONE;
	case 'm':
		return INLINE_MAP_MANUAL_SPANS;
	default:
		return INLINE_MAP_NONE;
	}
}

static void *inline_lookup(enum inline_map map, const void *key);
static long inline_update(enum inline_map map, const void *key, const void *value);
static long inline_delete(enum inline_map map, const void *key);

#define bpf_map_lookup_elem(map, key) ((void)(map), inline_lookup(inline_map_named(#map), key))
#define bpf_map_update_elem(map, key, value, flags)                                                               \
	((void)(map), inline_update(inline_map_named(#map), key, value))
#define bpf_map_delete_elem(map, key) ((void)(map), inline_delete(inline_map_named(#map), key))

#endif
