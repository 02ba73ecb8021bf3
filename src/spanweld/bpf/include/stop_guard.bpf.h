/*
 * What keeps the stop writer from showing in a target's signals and system calls, beyond what its
 * tracer can see. The includer declares the map `stop_requests` and calls these from two places:
 *
 *  - sys_exit of epoll_wait and epoll_pwait: stop_guard_interrupted(), result EINTR
 *  - raw tracepoint signal_generate: stop_guard_merged()
 */
#ifndef SPANWELD_STOP_GUARD_BPF_H
#define SPANWELD_STOP_GUARD_BPF_H

#include "stop_request.h"

#define STOP_GUARD_SIGURG 23
#define STOP_GUARD_EINTR 4
/* include/trace/events/signal.h: TRACE_SIGNAL_ALREADY_PENDING */
#define STOP_GUARD_ALREADY_PENDING 2

/*
 * A traced thread is woken even by a signal that the target ignores. When another thread, just
 * stopped for a request of its own, then takes that signal, the woken one returns EINTR and never
 * stops for the tracer to mend it. So an interrupted thread asks for a stop here, with a request
 * for nothing. The tracer makes it an EINTR again if a handler runs.
 */
static __always_inline int stop_guard_interrupted(long result, __u32 tracer)
{
	const struct task_struct *task = bpf_get_current_task_btf();
	__u32 tid = bpf_get_current_pid_tgid();
	struct stop_request nothing = {};

	if (result != -STOP_GUARD_EINTR || !tracer || !task->ptrace || (__u32)task->parent->tgid != tracer ||
	    task->blocked.sig[0] & 1UL << (STOP_GUARD_SIGURG - 1))
		return 0;
	if (!bpf_map_update_elem(&stop_requests, &tid, &nothing, BPF_ANY) &&
	    bpf_send_signal_thread(STOP_GUARD_SIGURG))
		bpf_map_delete_elem(&stop_requests, &tid);
	return 0;
}

/*
 * Of two pending SIGURG of one thread the kernel keeps the first. One that is sent to a thread
 * between its request and its stop would so be swallowed with ours: the tracer is told. Called
 * under the lock of the thread's signals, so it has not stopped yet and its request is there.
 */
static __always_inline int stop_guard_merged(int signal, struct task_struct *task, int is_for_process, int result)
{
	struct stop_request *request;
	__u32 tid;

	if (signal != STOP_GUARD_SIGURG || is_for_process || result != STOP_GUARD_ALREADY_PENDING)
		return 0;
	tid = BPF_CORE_READ(task, pid);
	request = bpf_map_lookup_elem(&stop_requests, &tid);
	if (request)
		request->merged = 1;
	return 0;
}

#endif
