/* The stop writer's tests: asks in the functions of stop_target.c what their arguments say. */
#include "../../../src/spanweld/bpf/include/kernel_types.bpf.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "../../../src/spanweld/bpf/include/stop_request.h"
#include "stop_target.h"

#define SIGURG 23

/* Key: thread id. Written by the program, deleted by the tracer. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct stop_request);
} stop_requests SEC(".maps");

#include "../../../src/spanweld/bpf/include/stop_guard.bpf.h"

/* Key: 0. Value: process id of the tracer. Written by the test. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} tracer SEC(".maps");

/* Key: enum stop_probe_count. Written by the program. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NR_STOP_PROBE_COUNTS);
	__type(key, __u32);
	__type(value, __u64);
} probe_counts SEC(".maps");

static __always_inline int count(__u32 what)
{
	__u64 *value = bpf_map_lookup_elem(&probe_counts, &what);

	if (value)
		__sync_fetch_and_add(value, 1);
	return 0;
}

SEC("uprobe")
int ask(struct pt_regs *regs)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 seq = BPF_CORE_READ(regs, di);
	__u64 flags = BPF_CORE_READ(regs, si);
	__u64 slot = BPF_CORE_READ(regs, dx);
	__u32 tid = bpf_get_current_pid_tgid();
	struct stop_request request = {};
	__u64 *tgid;
	__u32 key = 0;

	if (!flags)
		return 0;
	tgid = bpf_map_lookup_elem(&tracer, &key);
	if (!tgid || !BPF_CORE_READ(task, ptrace) || (__u64)BPF_CORE_READ(task, parent, tgid) != *tgid)
		return count(STOP_PROBE_UNTRACED);
	if (BPF_CORE_READ(task, blocked.sig[0]) & (1UL << (SIGURG - 1)))
		return count(STOP_PROBE_BLOCKED);

	request.sp = BPF_CORE_READ(regs, sp);
	request.ip = BPF_CORE_READ(regs, ip);
	if (flags & ASK_RETURN) {
		request.returns = 1;
		request.return_low = ASKED_LOW(seq);
		request.return_high = ASKED_HIGH(seq);
	}
	if (flags & ASK_WRITES) {
		request.nr_writes = 3;
		request.writes[0] = (struct stop_write){slot, seq, 8, 0};
		request.writes[1] = (struct stop_write){slot + 8, ~seq, 8, 0};
		request.writes[2] = (struct stop_write){slot + 24, seq, 2, 0};
	}
	if (flags & ASK_BAD_ADDRESS)
		request.writes[1].address = 8;
	if (bpf_map_update_elem(&stop_requests, &tid, &request, BPF_ANY))
		return count(STOP_PROBE_FULL);
	if (flags & ASK_WITHOUT_SIGNAL)
		return 0;
	if (bpf_send_signal_thread(SIGURG)) {
		bpf_map_delete_elem(&stop_requests, &tid);
		return count(STOP_PROBE_NO_SIGNAL);
	}
	return count(STOP_PROBE_ASKED);
}

SEC("raw_tp/sys_exit")
int interrupted(__u64 *args)
{
	__u32 key = 0;
	__u64 *tgid = bpf_map_lookup_elem(&tracer, &key);

	return tgid ? stop_guard_interrupted(args[1], *tgid) : 0;
}

/* signal, info, task, whether it is for the process, result */
SEC("raw_tp/signal_generate")
int merged(__u64 *args)
{
	return stop_guard_merged(args[0], (struct task_struct *)args[2], args[3], args[4]);
}

char LICENSE[] SEC("license") = "GPL";
