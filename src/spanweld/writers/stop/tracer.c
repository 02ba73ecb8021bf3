/*
 * The stop writer's tracer: carries out what a probe asks of its own thread.
 *
 *	spanweld-tracer AGENT_PID TARGET_PID REQUESTS_MAP_FD [--expect-exec]
 *
 * A probe puts a struct stop_request into the map, under its thread's id, and sends that thread
 * SIGURG. The thread then stops here, behind the probed instruction; the request is taken and
 * carried out, and the thread goes on without the signal.
 *
 * To the target all else must be as if nobody traced it:
 *  - Threads are seized and never interrupted or detached: either makes a system call fail with
 *    EINTR. The kernel lets all go when this process exits, which does not.
 *  - A stop is looked at with WNOWAIT, never consumed: the kernel then still holds the signal, and
 *    delivers it if this process is killed before it has said how to go on.
 *  - A traced thread is woken by signals that it ignores. What that breaks is mended, see
 *    mend_interrupted().
 *
 * Lines on standard output: "ready THREADS", "other-tracer PID", "exec", "gone", "failed REASON",
 * "note TEXT" and, last, "counts KEY=NUMBER ...". SIGTERM means: the probes are off, serve what is
 * under way and exit.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/close_range.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../bpf/include/stop_request.h"
#include "../seized.h"

enum exit_code {
	EXIT_OK = 0,
	EXIT_USAGE = 2,
	EXIT_OTHER_TRACER = 3,
	EXIT_NOT_SEIZED = 4,
};

#define INSTRUCTION_MAX 15
/* What one instruction may take from the stack: `sub rsp, N` of a function's frame. */
#define FRAME_MAX (1UL << 20)
#define SEIZE_OPTIONS (PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC)
#define DRAIN_TICK_US 2000
#define DRAIN_TICKS_MAX 50
#define DRAIN_TICKS_QUIET 2

struct thread {
	struct thread *next;
	pid_t tid;
	enum { RUNNING, GROUP_STOPPED, CONTINUED } state;
	bool returns_checked;
	bool returns_refused;
};

#define THREAD_BUCKETS 4096
static struct thread *threads[THREAD_BUCKETS];
static unsigned int nr_threads;

static pid_t target;
static int requests_fd;
static bool expect_exec;
static volatile sig_atomic_t draining;
static volatile sig_atomic_t drain_ticks;

static struct {
	unsigned long threads; /* ever followed */
	unsigned long requests; /* taken from the map */
	unsigned long served; /* carried out in full */
	unsigned long early; /* of these: at the stop of another signal, which came first */
	unsigned long stale; /* dropped: the thread had moved on */
	unsigned long failed; /* dropped: memory or registers could not be written */
	unsigned long refused; /* dropped: shadow stacks */
	unsigned long coalesced; /* shared their SIGURG with a genuine one, which was delivered */
	unsigned long signals; /* delivered to the target */
	unsigned long restarted; /* system calls that an ignored signal had interrupted */
} counts;

/* One line in one write; lost when the agent does not read, so that the target never waits. */
__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
	char line[512];
	va_list args;
	int length;

	va_start(args, format);
	length = vsnprintf(line, sizeof(line) - 1, format, args);
	va_end(args);
	if (length < 0)
		return;
	if ((size_t)length > sizeof(line) - 2)
		length = sizeof(line) - 2;
	line[length++] = '\n';
	if (write(STDOUT_FILENO, line, length) < 0)
		return;
}

static struct thread *find_thread(pid_t tid)
{
	struct thread *thread = threads[tid % THREAD_BUCKETS];

	while (thread && thread->tid != tid)
		thread = thread->next;
	return thread;
}

static struct thread *add_thread(pid_t tid)
{
	struct thread *thread = calloc(1, sizeof(*thread));

	if (!thread) {
		say("failed out of memory");
		exit(EXIT_NOT_SEIZED);
	}
	thread->tid = tid;
	thread->next = threads[tid % THREAD_BUCKETS];
	threads[tid % THREAD_BUCKETS] = thread;
	nr_threads++;
	counts.threads++;
	return thread;
}

static void remove_thread(pid_t tid)
{
	struct thread **link = &threads[tid % THREAD_BUCKETS];

	while (*link && (*link)->tid != tid)
		link = &(*link)->next;
	if (*link) {
		struct thread *thread = *link;

		*link = thread->next;
		free(thread);
		nr_threads--;
	}
}

static void remove_other_threads(pid_t tid)
{
	for (int bucket = 0; bucket < THREAD_BUCKETS; bucket++) {
		struct thread *next;

		for (struct thread *thread = threads[bucket]; thread; thread = next) {
			next = thread->next;
			if (thread->tid != tid)
				remove_thread(thread->tid);
		}
	}
}

static int bpf(enum bpf_cmd cmd, union bpf_attr *attr)
{
	return syscall(SYS_bpf, cmd, attr, sizeof(*attr));
}

static bool requests_map_fits(void)
{
	struct bpf_map_info info = {};
	union bpf_attr attr = {};

	attr.info.bpf_fd = requests_fd;
	attr.info.info_len = sizeof(info);
	attr.info.info = (uintptr_t)&info;
	return !bpf(BPF_OBJ_GET_INFO_BY_FD, &attr) && info.type == BPF_MAP_TYPE_HASH &&
	       info.key_size == sizeof(__u32) && info.value_size == sizeof(struct stop_request);
}

static bool take_request(pid_t tid, struct stop_request *request)
{
	__u32 key = tid;
	union bpf_attr attr = {};

	attr.map_fd = requests_fd;
	attr.key = (uintptr_t)&key;
	attr.value = (uintptr_t)request;
	return !bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &attr);
}

static void put_request(pid_t tid, const struct stop_request *request)
{
	__u32 key = tid;
	union bpf_attr attr = {};

	attr.map_fd = requests_fd;
	attr.key = (uintptr_t)&key;
	attr.value = (uintptr_t)request;
	bpf(BPF_MAP_UPDATE_ELEM, &attr);
}

/* Thread ids are reused: what a thread left must not be found under its successor's. */
static void drop_request(pid_t tid)
{
	__u32 key = tid;
	union bpf_attr attr = {};

	attr.map_fd = requests_fd;
	attr.key = (uintptr_t)&key;
	bpf(BPF_MAP_DELETE_ELEM, &attr);
}

static bool requests_wait(void)
{
	__u32 key;
	union bpf_attr attr = {};

	attr.map_fd = requests_fd;
	attr.next_key = (uintptr_t)&key;
	return !bpf(BPF_MAP_GET_NEXT_KEY, &attr);
}

/* A shadow stack still holds the return address that a made-up return takes off the stack. */
static bool has_shadow_stack(pid_t tid)
{
	char value[256];

	return read_status(target, tid, "x86_Thread_features", value, sizeof(value)) && strstr(value, "shstk");
}

static bool is_thread_of_target(pid_t tid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task/%d", target, tid);
	return !access(path, F_OK);
}

static bool read_target(pid_t tid, uint64_t address, void *to, size_t size)
{
	struct iovec local = {to, size};
	struct iovec remote = {(void *)address, size};

	return process_vm_readv(tid, &local, 1, &remote, 1, 0) == (ssize_t)size;
}

/*
 * Whether a direct jump at `ip` leads to `rip`. Its first byte is hidden by the breakpoint, so each
 * form is tried: jmp/jcc rel8, jmp rel32, jcc rel32.
 */
static bool is_jump_to(pid_t tid, uint64_t ip, uint64_t rip)
{
	uint8_t code[6];
	int32_t near_jump, near_condition;

	if (!read_target(tid, ip, code, sizeof(code)))
		return false;
	memcpy(&near_jump, code + 1, sizeof(near_jump));
	memcpy(&near_condition, code + 2, sizeof(near_condition));
	return rip == ip + 2 + (int8_t)code[1] || rip == ip + 5 + near_jump ||
	       ((code[1] & 0xf0) == 0x80 && rip == ip + 6 + near_condition);
}

/*
 * Whether the thread stands where the request's probe left it: behind the probed instruction, or
 * still before it (one that faulted is run again). Everything else has moved on, and a write or
 * a return would hit another call: such a thread is never touched.
 */
static bool still_fits(pid_t tid, const struct stop_request *request, const struct user_regs_struct *regs)
{
	uint64_t taken = request->sp - regs->rsp;
	uint64_t given = regs->rsp - request->sp;
	uint64_t run = regs->rip - request->ip;
	uint64_t word;

	if (!run)
		return !taken;
	if (run <= INSTRUCTION_MAX && (taken <= FRAME_MAX || (given <= FRAME_MAX && !request->returns)))
		return true;
	if (!taken)
		return is_jump_to(tid, request->ip, regs->rip);
	/*
	 * A call left the address behind itself; so does the one that the kernel (6.18) makes of a
	 * nop of five bytes, whose trampoline has pushed three registers more.
	 */
	if (taken == sizeof(word) || taken == 4 * sizeof(word))
		return read_target(tid, request->sp - sizeof(word), &word, sizeof(word)) && word > request->ip &&
		       word - request->ip <= INSTRUCTION_MAX;
	if (given == sizeof(word)) /* a ret */
		return read_target(tid, request->sp, &word, sizeof(word)) && word == regs->rip;
	return false;
}

/*
 * In order. Adjacent ones are one range: the kernel takes up each range by itself, and gives up
 * before the next if this process is killed meanwhile, so that half a trace id would be written.
 */
static bool write_memory(pid_t tid, struct stop_request *request)
{
	struct iovec local[STOP_WRITES_MAX], remote[STOP_WRITES_MAX];
	ssize_t size = 0, written;
	unsigned int ranges = 0;

	errno = EINVAL;
	if (request->nr_writes > STOP_WRITES_MAX)
		return false;
	for (__u32 i = 0; i < request->nr_writes; i++) {
		struct stop_write *write = &request->writes[i];

		if (!write->size || write->size > sizeof(write->value))
			return false;
		local[i] = (struct iovec){&write->value, write->size};
		size += write->size;
		if (ranges && (uint64_t)remote[ranges - 1].iov_base + remote[ranges - 1].iov_len == write->address)
			remote[ranges - 1].iov_len += write->size;
		else
			remote[ranges++] = (struct iovec){(void *)write->address, write->size};
	}
	written = process_vm_writev(tid, local, request->nr_writes, remote, ranges, 0);
	if (written >= 0)
		errno = EFAULT; /* if it stopped in the middle */
	return written == size;
}

static bool may_return_early(struct thread *thread)
{
	static bool said;

	if (!thread->returns_checked) {
		thread->returns_checked = true;
		thread->returns_refused = has_shadow_stack(thread->tid);
	}
	if (thread->returns_refused && !said) {
		said = true;
		say("note the target uses shadow stacks: no function is made to return early");
	}
	return !thread->returns_refused;
}

static void carry_out(struct thread *thread, struct stop_request *request, struct user_regs_struct *regs)
{
	static bool said;
	uint64_t return_address;

	if (!still_fits(thread->tid, request, regs)) {
		counts.stale++;
		return;
	}
	if (request->returns && !may_return_early(thread)) {
		counts.refused++;
		return;
	}
	if (request->returns && !read_target(thread->tid, request->sp, &return_address, sizeof(return_address)))
		goto failed;
	if (request->nr_writes && !write_memory(thread->tid, request))
		goto failed;
	if (request->returns) {
		regs->rax = request->return_low;
		regs->rdx = request->return_high;
		regs->rip = return_address;
		regs->rsp = request->sp + sizeof(return_address);
		regs->orig_rax = -1; /* no system call: nothing is to be restarted */
		if (!set_registers(thread->tid, regs))
			goto failed;
	}
	counts.served++;
	return;
failed:
	counts.failed++;
	if (!said && errno != ESRCH) { /* killed meanwhile */
		said = true;
		say("note a request of thread %d could not be carried out: %s", thread->tid, strerror(errno));
	}
}

/* Whether a SIGURG waits in the thread's own queue (not in the process's), and which. */
static bool is_sigurg_queued(pid_t tid, siginfo_t *info)
{
	struct __ptrace_peeksiginfo_args args = {.nr = 1};

	for (args.off = 0; ptrace(PTRACE_PEEKSIGINFO, tid, &args, info) == 1; args.off++)
		if (info->si_signo == SIGURG)
			return true;
	return false;
}

static bool stops_the_process(int signal)
{
	return signal == SIGSTOP || signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU;
}

/*
 * A thread that nobody traces sleeps on when a signal comes that it ignores; a traced one is woken
 * to stop here. Most system calls are then restarted by the kernel, but some (epoll_wait first of
 * all) have already given up with EINTR. That result is turned into the one by which the kernel
 * repeats the call if no handler runs, and returns EINTR if one does. So no disposition needs to
 * be known here, and a second signal, with a handler, that comes meanwhile is safe too.
 */
static void mend_interrupted(struct thread *thread, struct user_regs_struct *regs)
{
	if (!is_interrupted(regs))
		return;
	regs->rax = -ERESTARTNOHAND;
	if (set_registers(thread->tid, regs))
		counts.restarted++;
}

static bool is_for_nothing(const struct stop_request *request)
{
	return !request->nr_writes && !request->returns;
}

/*
 * At the stop of SIGURG, of a thread with a request. The probe's says SI_KERNEL. With any other
 * code a genuine one was pending when the probe sent its own, and the kernel made one of both.
 */
static bool is_own_sigurg(pid_t tid, const struct stop_request *request)
{
	siginfo_t info;

	return !ptrace(PTRACE_GETSIGINFO, tid, 0, &info) && info.si_code == SI_KERNEL && !request->merged;
}

/*
 * At the stop of a signal that came before the probe's. While that one waits, the thread has run
 * nothing behind the probed instruction. If it is gone (the kernel forgets pending signals when
 * their handler is set to ignore), the thread may be anywhere. A request for nothing stays in the
 * map, so that the signal is known when it comes; it may be blocked by a handler until then.
 */
static void carry_out_early(struct thread *thread, struct stop_request *request, struct user_regs_struct *regs)
{
	struct stop_request nothing = {.merged = request->merged};
	unsigned long served = counts.served;
	siginfo_t info;

	if (!is_sigurg_queued(thread->tid, &info)) {
		counts.stale += !is_for_nothing(request);
		return;
	}
	put_request(thread->tid, &nothing);
	if (is_for_nothing(request))
		return;
	carry_out(thread, request, regs);
	counts.early += counts.served - served;
}

/* Signal-delivery-stop: returns the signal that the thread goes on with. */
static int handle_signal(struct thread *thread, int signal)
{
	struct stop_request request;
	struct user_regs_struct regs;
	bool asked = take_request(thread->tid, &request);
	bool ours = false;

	if (!get_registers(thread->tid, &regs))
		return signal; /* killed meanwhile */
	if (asked && !is_for_nothing(&request))
		counts.requests++;
	if (asked && signal == SIGURG) {
		if (!is_for_nothing(&request))
			carry_out(thread, &request, &regs);
		ours = is_own_sigurg(thread->tid, &request);
		counts.coalesced += !ours;
	} else if (asked) {
		carry_out_early(thread, &request, &regs);
	}
	/* A stopped and continued process sees EINTR, traced or not. */
	if (!stops_the_process(signal) && !((signal == SIGCONT || ours) && thread->state == CONTINUED))
		mend_interrupted(thread, &regs);
	if (ours)
		return 0;
	thread->state = RUNNING;
	counts.signals++;
	return signal;
}

/* The end of a group stop, or SIGCONT outside one, which makes every seized thread trap. */
static void handle_trap(struct thread *thread)
{
	struct user_regs_struct regs;

	if (thread->state == GROUP_STOPPED)
		thread->state = CONTINUED;
	else if (get_registers(thread->tid, &regs))
		mend_interrupted(thread, &regs);
}

/* Returns false when tracing is over. `code` is signal | event << 8, as waitid() has it. */
static bool handle_stop(pid_t tid, int code)
{
	struct thread *thread = find_thread(tid);
	int signal = code & 0xff;
	int event = code >> 8;

	if (!thread) {
		/* A clone: a thread, or a process with an exit signal of its own. */
		if (!is_thread_of_target(tid)) {
			ptrace(PTRACE_DETACH, tid, 0, 0);
			return true;
		}
		thread = add_thread(tid);
	}
	switch (event) {
	case 0:
		signal = handle_signal(thread, signal);
		ptrace(PTRACE_CONT, tid, 0, (long)signal);
		return true;
	case PTRACE_EVENT_STOP:
		if (stops_the_process(signal)) {
			thread->state = GROUP_STOPPED;
			ptrace(PTRACE_LISTEN, tid, 0, 0);
			return true;
		}
		handle_trap(thread);
		break;
	case PTRACE_EVENT_EXEC:
		if (!expect_exec) {
			say("exec");
			return false;
		}
		expect_exec = false;
		remove_other_threads(tid);
		thread->returns_checked = false;
		break;
	}
	ptrace(PTRACE_CONT, tid, 0, 0);
	return true;
}

/* Reaped here first; the real parent of the process then gets its status as ever. */
static bool handle_exit(pid_t tid)
{
	waitpid(tid, NULL, __WALL | WNOHANG);
	drop_request(tid);
	remove_thread(tid);
	if (tid != target && nr_threads)
		return true;
	say("gone");
	return false;
}

/*
 * Whether all that was under way is served. A probe that ran while it was taken off may put its
 * request a moment later, so the map must stay empty for some ticks.
 */
static bool is_drained(void)
{
	static sig_atomic_t busy_tick;

	if (requests_wait())
		busy_tick = drain_ticks;
	return drain_ticks >= DRAIN_TICKS_MAX || drain_ticks - busy_tick >= DRAIN_TICKS_QUIET;
}

static void serve(void)
{
	for (;;) {
		siginfo_t info = {};

		if (draining && is_drained())
			return;
		if (waitid(P_ALL, 0, &info, WEXITED | WSTOPPED | WNOWAIT | __WALL)) {
			if (errno == EINTR)
				continue;
			say("gone");
			return;
		}
		if (info.si_code == CLD_TRAPPED || info.si_code == CLD_STOPPED) {
			if (!handle_stop(info.si_pid, info.si_status))
				return;
		} else if (!handle_exit(info.si_pid)) {
			return;
		}
	}
}

static void yield_to(pid_t tracer)
{
	say("other-tracer %d", tracer);
	exit(EXIT_OTHER_TRACER);
}

/* Returns whether the thread is one that was not known before. */
static bool seize(pid_t tid)
{
	pid_t tracer;
	int error;

	if (find_thread(tid))
		return false;
	if (!ptrace(PTRACE_SEIZE, tid, 0, SEIZE_OPTIONS)) {
		add_thread(tid);
		return true;
	}
	error = errno;
	/* Its creator was seized in between, so it is ours already; its first stop adds it. */
	tracer = tracer_of(target, tid);
	if (tracer == getpid() || error == ESRCH || is_zombie(target, tid))
		return false;
	if (tracer)
		yield_to(tracer);
	say("failed thread %d cannot be traced: %s", tid, strerror(error));
	exit(EXIT_NOT_SEIZED);
}

/* Calls `visit` for each thread of the target; returns how often it was true, -1 if it is gone. */
static int for_each_thread(bool (*visit)(pid_t tid))
{
	char path[32];
	struct dirent *entry;
	int nr = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", target);
	dir = opendir(path);
	if (!dir)
		return -1;
	while ((entry = readdir(dir)))
		if (entry->d_name[0] != '.')
			nr += visit(atoi(entry->d_name));
	closedir(dir);
	return nr;
}

static bool yield_if_traced(pid_t tid)
{
	pid_t tracer = tracer_of(target, tid);

	if (tracer)
		yield_to(tracer);
	return false;
}

/* A signal ends a waitid(), but may come just before one begins: so it is followed by ticks. */
static void on_sigterm(int signal)
{
	struct itimerval tick = {{0, DRAIN_TICK_US}, {0, DRAIN_TICK_US}};

	(void)signal;
	draining = 1;
	setitimer(ITIMER_REAL, &tick, NULL);
}

static void on_tick(int signal)
{
	(void)signal;
	drain_ticks++;
}

static void set_up_signals(void)
{
	struct sigaction term = {.sa_handler = on_sigterm};
	struct sigaction tick = {.sa_handler = on_tick};
	/* waitid() wakes without it, and a signal for each stop would cost. */
	struct sigaction child = {.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDSTOP};
	sigset_t none;

	sigaction(SIGTERM, &term, NULL);
	sigaction(SIGALRM, &tick, NULL);
	sigaction(SIGCHLD, &child, NULL);
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/*
 * A thread of the target waits for each of our wake-ups, on a busy host for a time slice and more:
 * milliseconds. Niceness does not help where autogroups are on: it counts within a session only.
 */
static void run_first(void)
{
	struct sched_param lowest = {.sched_priority = 1}, none = {};

	if (!sched_setscheduler(0, SCHED_FIFO, &lowest))
		return;
	/* The agent may be one that has only what nobody else wants. */
	sched_setscheduler(0, SCHED_OTHER, &none);
	setpriority(PRIO_PROCESS, 0, -20);
}

static void close_inherited(void)
{
	if (requests_fd > STDERR_FILENO + 1)
		close_range(STDERR_FILENO + 1, requests_fd - 1, 0);
	close_range(requests_fd + 1, ~0U, 0);
}

int main(int argc, char **argv)
{
	int found;

	if (argc < 4 || argc > 5 || (argc == 5 && strcmp(argv[4], "--expect-exec"))) {
		fprintf(stderr, "usage: %s AGENT_PID TARGET_PID REQUESTS_MAP_FD [--expect-exec]\n", argv[0]);
		return EXIT_USAGE;
	}
	target = atoi(argv[2]);
	requests_fd = atoi(argv[3]);
	expect_exec = argc == 5;

	set_up_signals();
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != atoi(argv[1]))
		return EXIT_OK; /* the agent died before it could have been noticed */
	close_inherited();
	fcntl(STDOUT_FILENO, F_SETFL, fcntl(STDOUT_FILENO, F_GETFL) | O_NONBLOCK);
	if (!requests_map_fits()) {
		say("failed descriptor %d is no map of requests", requests_fd);
		return EXIT_USAGE;
	}
	run_first();

	/* A thread that is not listed yet was created by one that is not seized yet. */
	found = for_each_thread(yield_if_traced);
	while (found >= 0 && (found = for_each_thread(seize)) > 0)
		;
	if (found < 0 || !nr_threads) {
		say("gone");
	} else {
		say("ready %u", nr_threads);
		serve();
	}
	say("counts threads=%lu requests=%lu served=%lu early=%lu stale=%lu failed=%lu refused=%lu "
	    "coalesced=%lu signals=%lu restarted=%lu",
	    counts.threads, counts.requests, counts.served, counts.early, counts.stale, counts.failed,
	    counts.refused, counts.coalesced, counts.signals, counts.restarted);
	return EXIT_OK;
}
