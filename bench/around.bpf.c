/*
 * How long the programs take that are attached to the tracepoints of system calls between these: the
 * tracepoint runs them in the order in which they were attached, on one processor.
 */
#include "kernel_types.bpf.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#define CALLS 512

const volatile __u32 watched; /* process id */

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} started SEC(".maps");

/* key: number of the system call, plus CALLS for its beginning; value: nanoseconds */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2 * CALLS);
	__type(key, __u32);
	__type(value, __u64);
} spent SEC(".maps");

static __always_inline int begin(__u32 which)
{
	__u64 *cell = bpf_map_lookup_elem(&started, &which);

	if (cell)
		*cell = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int end(__u32 which, __u64 nr)
{
	__u64 now = bpf_ktime_get_ns(), *cell = bpf_map_lookup_elem(&started, &which), *sum;
	__u32 key = which * CALLS + nr;

	if (bpf_get_current_pid_tgid() >> 32 != watched || nr >= CALLS || !cell)
		return 0;
	sum = bpf_map_lookup_elem(&spent, &key);
	if (sum)
		*sum += now - *cell;
	return 0;
}

SEC("raw_tp/sys_exit")
int before_exit(void *ctx)
{
	(void)ctx;
	return begin(0);
}

SEC("raw_tp/sys_exit")
int after_exit(struct bpf_raw_tracepoint_args *ctx)
{
	return end(0, BPF_CORE_READ((struct pt_regs *)ctx->args[0], orig_ax));
}

SEC("raw_tp/sys_enter")
int before_enter(void *ctx)
{
	(void)ctx;
	return begin(1);
}

SEC("raw_tp/sys_enter")
int after_enter(struct bpf_raw_tracepoint_args *ctx)
{
	return end(1, ctx->args[1]);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
