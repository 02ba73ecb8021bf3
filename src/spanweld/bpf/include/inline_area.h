/*
 * What is mapped into a target for probes without a trap: shared by the code there, the patcher that
 * maps it, and the agent. It includes nothing; who includes it has __u8 … __u64 already.
 *
 * One range of addresses, within 2 GiB of the service's code, in this order:
 *   code        INLINE_CODE_SIZE: the probes' C, and a stub for each patched function; read and execute
 *   guard       a page: its first word is 1, and 0 in a forked child (MADV_WIPEONFORK)
 *   area        a memfd that the agent has mapped too: struct inline_head, then INLINE_PLACE_…
 *   spans       the BPF map spans_in_progress
 */
#ifndef SPANWELD_INLINE_AREA_H
#define SPANWELD_INLINE_AREA_H

#define INLINE_MAGIC 0x646c65776e617073ULL /* "spanweld" */

/* A near jump, and what it may take the place of: instructions of at most 15 bytes. */
#define INLINE_JUMP_SIZE 5
#define INLINE_DISPLACED_MAX 19

/* Offsets from the begin of the range, and from there within the area. */
enum inline_place {
	INLINE_PLACE_GUARD = 0x10000, /* what lies before is code */
	INLINE_PLACE_AREA = 0x11000,
	INLINE_PLACE_SPANS = 0x5ac000,
	INLINE_PLACE_WOKEN =
		0x400, /* in the area: __u32 [INLINE_SIZE_STUBS], how far each has shown what it is given */
	/* __u64 [INLINE_SIZE_GENERATORS][INLINE_SIZE_CALLERS]: where the calls return that are meant; 0: no more, or all */
	INLINE_PLACE_CALLERS = 0x600,
	INLINE_PLACE_TARGET = 0x800, /* struct target */
	INLINE_PLACE_IN_FLIGHT = 0x1000, /* INLINE_CELLS counts of calls under way, a cache line each */
	INLINE_PLACE_RING = 0x2000, /* struct inline_ring */
	INLINE_PLACE_THREADS = 0x2800, /* __u64 [INLINE_SIZE_THREADS], threads that are known to run tasks */
	INLINE_PLACE_PATCHES = 0x3000, /* struct inline_patch [INLINE_SIZE_PATCHES] */
	INLINE_PLACE_RECORDS = 0x5000, /* struct inline_record [INLINE_SIZE_RECORDS] */
	/* __u64 [INLINE_SIZE_CELLS][INLINE_SIZE_COUNTERS]: as in the map `counters`, where the sum counts */
	INLINE_PLACE_COUNTERS = 0x185000,
	INLINE_PLACE_MANUAL_SPANS = 0x18b000, /* the open manual spans, a table of the code's own */
};

enum inline_size {
	INLINE_SIZE_PATCHES = 128,
	INLINE_SIZE_CELLS =
		64, /* threads have their own, mostly: what all write is passed from processor to processor */
	INLINE_SIZE_COUNTERS = 48,
	INLINE_SIZE_RECORDS = 8192,
	INLINE_SIZE_THREADS = 256,
	INLINE_SIZE_STUBS = 4, /* of a program that is entered where functions begin */
	INLINE_SIZE_GENERATORS = 16, /* … where that is new_trace_id, of which there are more */
	INLINE_SIZE_CALLERS = 4, /* of one that is a generator in some calls only */
};

/* The agent's lock and what a later agent needs to clean up behind one that died. */
struct inline_head {
	/*
	 * A robust pthread mutex that the agent holds for as long as the probes are wanted. Its first word
	 * is the holder's thread id: the kernel clears that when the holder dies, however it dies.
	 */
	__u8 owner[40];
	__u64 magic;
	__u64 base; /* address of the range in the target */
	__u64 size; /* of the range */
	__u32 version; /* of what this file says: area.py */
	__u32 nr_patches;
	__u32 pid; /* process id, as the agent sees it */
	__u32 own_pid; /* … and as the target sees it */
	/* Set by the code in the target: all places that it reads were found to be right. */
	__u32 trusted;
	/* Set there, too: how often a thread's id was found where glibc keeps it; UINT32_MAX: once it was not. */
	__u32 thread_ids_found;
};

/* A function's entry, or an instruction within a function. */
struct inline_patch {
	__u64 address;
	__u64 displaced; /* where the instructions that stood there are now */
	__u8 before[24]; /* what stood there, `size` bytes of whole instructions */
	__u8 jump[8]; /* what stands there now, in the first INLINE_JUMP_SIZE of them */
	__u32 size;
	__u32 pad;
};

/* Positions count records, and only grow. */
struct inline_ring {
	__u64 produced;
	__u8 pad_produced[56];
	__u64 consumed;
	__u8 pad_consumed[56];
};

struct inline_record {
	__u32 ready;
	__u32 size;
	__u8 data[184];
};

/* What the patcher is told, on its standard input. */
enum inline_operation {
	INLINE_OPERATION_ATTACH = 1,
	INLINE_OPERATION_DETACH = 2,
};

/* Followed by `nr_patches` of struct inline_patch and, to attach, by `code_size` bytes of code. */
struct inline_order {
	__u32 operation;
	__u32 nr_patches;
	__u64 base;
	__u64 size; /* of the range */
	__u64 spans_size;
	__u64 system_call; /* address of a `syscall` instruction in the target */
	__u32 code_size;
	__u32 pad;
};

_Static_assert(sizeof(struct inline_head) == 88, "inline_head has no hidden padding");
_Static_assert(sizeof(struct inline_patch) == 56, "inline_patch has no hidden padding");
_Static_assert(sizeof(struct inline_record) == 192, "inline_record has no hidden padding");
_Static_assert(sizeof(struct inline_order) == 48, "inline_order has no hidden padding");
_Static_assert(INLINE_PLACE_CALLERS + INLINE_SIZE_GENERATORS * INLINE_SIZE_CALLERS * sizeof(__u64) <=
		       INLINE_PLACE_TARGET,
	       "callers fit");
_Static_assert(INLINE_PLACE_PATCHES + INLINE_SIZE_PATCHES * sizeof(struct inline_patch) <= INLINE_PLACE_RECORDS,
	       "patches fit");
_Static_assert(INLINE_PLACE_RECORDS + INLINE_SIZE_RECORDS * sizeof(struct inline_record) == INLINE_PLACE_COUNTERS,
	       "records fit");
_Static_assert(INLINE_PLACE_COUNTERS + INLINE_SIZE_CELLS * INLINE_SIZE_COUNTERS * sizeof(__u64) ==
		       INLINE_PLACE_MANUAL_SPANS,
	       "counters fit");

#endif
