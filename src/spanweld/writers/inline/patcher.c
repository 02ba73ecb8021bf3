/*
 * Puts jumps into the code of a running target, and takes them out again.
 *
 *	spanweld-patcher AGENT_PID TARGET_PID AREA_FD SPANS_FD [--expect-exec]
 *
 * Reads one order (struct inline_order, inline_area.h) from standard input, carries it out, says how it went
 * and exits. Nothing is prepared here: what is written where was decided by the agent.
 *
 * To the target it must be as if nothing had happened:
 *  - Threads are seized; the kernel lets them go when this process exits.
 *  - A thread that sleeps in a system call is not woken, but for one, which maps and unmaps: one whose call
 *    the kernel repeats by itself, or that can be made so (seized.h). Those that run are stopped one after
 *    the other, each for as long as it takes to look at its registers.
 *  - An entry is first made a breakpoint, which is one byte. Who comes to it then stops here, and goes on
 *    when the whole jump is there. So no thread ever runs half of it, whether it slept, ran or is new.
 *
 * Lines on standard output: with --expect-exec "seized THREADS" and then "exec", after which the order is
 * read; last "done NANOSECONDS" (for how long at most a thread was held) or "failed REASON", or "gone" where
 * the target has ended.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/kcmp.h>
#include <linux/types.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../bpf/include/inline_area.h"
#include "../seized.h"

enum exit_code {
	EXIT_OK = 0,
	EXIT_USAGE = 2,
	EXIT_FAILED = 4,
};

#define BREAKPOINT 0xcc
#define SEIZE_OPTIONS (PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXEC)
#define THREADS_MAX 4096
#define PATIENCE_NS 5000000000ULL
#define STEPS_MAX 64
#define STEPS_OUT_MAX 4096
#define PAGE 4096UL
#define TICK_US 20000
/* So much of a stack is looked through for addresses of ours: what a signal handler interrupted. */
#define STACK_SCAN (64UL << 10)

struct thread {
	pid_t tid;
	bool stopped; /* for us; it goes on when we say so */
	bool waits; /* at a breakpoint of ours */
	bool outside; /* of our code, and nothing leads back there */
	bool blocks_trap; /* SIGTRAP, which the kernel unblocks for a breakpoint */
	int signal; /* that it goes on with */
	int event; /* PTRACE_EVENT_…, where that is what it stopped for */
	uint64_t since;
};

static struct thread threads[THREADS_MAX];
static unsigned int nr_threads;

static pid_t agent, target;
static int memory = -1;
static struct inline_order order;
static struct inline_patch patches[INLINE_SIZE_PATCHES];
static uint8_t code[INLINE_PLACE_GUARD];
static uint64_t longest;
static bool stepping;
static bool executed; /* another program: nothing that was prepared is true any more */

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vdprintf(STDOUT_FILENO, format, args);
	va_end(args);
}

static uint64_t now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000ULL + at.tv_nsec;
}

static bool read_memory(uint64_t address, void *to, size_t size)
{
	return pread(memory, to, size, address) == (ssize_t)size;
}

static bool write_memory(uint64_t address, const void *from, size_t size)
{
	return pwrite(memory, from, size, address) == (ssize_t)size;
}

/* ---- threads */

static struct thread *find_thread(pid_t tid)
{
	for (unsigned int i = 0; i < nr_threads; i++)
		if (threads[i].tid == tid)
			return &threads[i];
	return NULL;
}

static struct thread *add_thread(pid_t tid)
{
	if (nr_threads == THREADS_MAX)
		return NULL;
	threads[nr_threads] = (struct thread){.tid = tid};
	return &threads[nr_threads++];
}

static void remove_thread(pid_t tid)
{
	struct thread *thread = find_thread(tid);

	if (thread)
		*thread = threads[--nr_threads];
}

static void go_on(struct thread *thread)
{
	uint64_t held = now() - thread->since;

	if (held > longest)
		longest = held;
	thread->stopped = false;
	ptrace(PTRACE_CONT, thread->tid, 0, (long)thread->signal);
	thread->signal = 0;
}

/* Lets a thread go on that was interrupted, as if it had not been. */
static void resume(struct thread *thread)
{
	struct user_regs_struct regs;

	if (thread->waits)
		return; /* that comes later */
	if (get_registers(thread->tid, &regs) && is_interrupted(&regs)) {
		regs.rax = -ERESTARTNOHAND;
		set_registers(thread->tid, &regs);
	}
	go_on(thread);
}

/* Where, of the functions that are changed, a thread has just run into our breakpoint; 0: nowhere. */
static uint64_t breakpoint_before(uint64_t rip)
{
	for (unsigned int i = 0; i < order.nr_patches; i++)
		if (rip == patches[i].address + 1)
			return patches[i].address;
	return 0;
}

static bool is_group_stop(int signal)
{
	return signal == SIGSTOP || signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU;
}

static bool is_child(pid_t tid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task/%d", target, tid);
	return access(path, F_OK);
}

/*
 * A process that the target is just forking has our breakpoints in its code, and nobody who would take them:
 * it gets back what was there before us. One that shares the target's memory (vfork) has nothing of its own.
 */
static void mend_child(pid_t child)
{
	char path[32];
	int its_memory;

	if (!is_child(child) || !syscall(SYS_kcmp, target, child, KCMP_VM, 0, 0))
		return;
	snprintf(path, sizeof(path), "/proc/%d/mem", child);
	its_memory = open(path, O_RDWR | O_CLOEXEC);
	if (its_memory < 0)
		return;
	for (unsigned int i = 0; i < order.nr_patches; i++)
		if (pwrite(its_memory, patches[i].before, INLINE_JUMP_SIZE, patches[i].address) < 0)
			break; /* it has ended */
	close(its_memory);
}

/*
 * One stop, of any thread. A thread that is wanted stays stopped, as one at a breakpoint does; all others
 * go on as they would without us.
 */
static void handle_stop(pid_t tid, int status, pid_t wanted)
{
	struct thread *thread = find_thread(tid);
	int signal = WSTOPSIG(status), event = status >> 16;
	struct user_regs_struct regs;
	unsigned long child;
	siginfo_t info;

	if (!thread && is_child(tid)) {
		mend_child(tid);
		ptrace(PTRACE_DETACH, tid, 0, 0);
		return;
	}
	if (!thread)
		thread = add_thread(tid);
	if (!thread) {
		ptrace(PTRACE_CONT, tid, 0, 0);
		return;
	}
	thread->since = now();
	thread->stopped = true;
	thread->event = event;
	if (event == PTRACE_EVENT_STOP && is_group_stop(signal)) {
		if (tid != wanted) {
			thread->stopped = false;
			ptrace(PTRACE_LISTEN, tid, 0, 0);
		}
		return;
	}
	if (event) {
		/* A new thread's first stop, or an interruption of ours that came late, or one of these. */
		if (event == PTRACE_EVENT_EXEC)
			executed = true;
		/* Its own stop, which comes before or after this, we may not be there to see. */
		if ((event == PTRACE_EVENT_FORK || event == PTRACE_EVENT_CLONE) &&
		    !ptrace(PTRACE_GETEVENTMSG, tid, 0, &child))
			mend_child(child);
		if (tid != wanted)
			resume(thread);
		return;
	}
	if (signal == SIGTRAP && !ptrace(PTRACE_GETSIGINFO, tid, 0, &info) && info.si_code > 0 &&
	    get_registers(tid, &regs)) {
		uint64_t address = breakpoint_before(regs.rip);

		if (info.si_code == SI_KERNEL && address) {
			regs.rip = address;
			set_registers(tid, &regs);
			thread->waits = true;
			return;
		}
		/* The end of a step; the second, of one that was a system call. */
		if (tid == wanted && stepping && (info.si_code == TRAP_TRACE || info.si_code == TRAP_BRKPT))
			return;
	}
	thread->signal = signal;
	if (tid == wanted)
		return;
	/* A stopped and continued process sees EINTR, traced or not; a signal that it ignores must not show. */
	if (is_group_stop(signal))
		go_on(thread);
	else
		resume(thread);
}

/* Takes stops until this thread has one; false if it ended, or nothing came of it. */
static bool wait_for(pid_t tid)
{
	uint64_t deadline = now() + PATIENCE_NS;
	struct thread *thread;

	while ((thread = find_thread(tid)) && !thread->stopped) {
		int status;
		/* Not WNOHANG: who looks again and again keeps the thread from its processor. */
		pid_t who = waitpid(-1, &status, __WALL);

		if (who < 0) {
			if (errno == ECHILD || now() > deadline)
				return false;
		} else if (WIFSTOPPED(status)) {
			handle_stop(who, status, tid);
		} else {
			remove_thread(who);
		}
	}
	return thread;
}

/* One instruction of a stopped thread. */
static bool step(pid_t tid)
{
	struct thread *thread = find_thread(tid);
	bool stopped;

	if (!thread)
		return false;
	thread->stopped = false;
	if (ptrace(PTRACE_SINGLESTEP, tid, 0, 0))
		return false;
	stepping = true;
	stopped = wait_for(tid);
	stepping = false;
	return stopped;
}

static void take_stops(void)
{
	int status;
	pid_t who;

	while ((who = waitpid(-1, &status, __WALL | WNOHANG)) > 0) {
		if (WIFSTOPPED(status))
			handle_stop(who, status, 0);
		else
			remove_thread(who);
	}
}

static int seize(pid_t tid)
{
	if (find_thread(tid))
		return 0;
	if (ptrace(PTRACE_SEIZE, tid, 0, SEIZE_OPTIONS))
		/* Gone, or the child of one that is seized: then it is ours already, and its stop adds it. */
		return errno == ESRCH || tracer_of(target, tid) == getpid() || is_zombie(target, tid) ? 0 : -1;
	return add_thread(tid) ? 1 : -1;
}

/* Until no new one appears: one that is not listed yet was made by one that was not seized yet. */
static bool seize_all(void)
{
	char path[32];
	int found;

	snprintf(path, sizeof(path), "/proc/%d/task", target);
	do {
		struct dirent *entry;
		DIR *dir = opendir(path);

		if (!dir)
			return false;
		found = 0;
		while ((entry = readdir(dir))) {
			int result = entry->d_name[0] == '.' ? 0 : seize(atoi(entry->d_name));

			if (result < 0) {
				closedir(dir);
				return false;
			}
			found += result;
		}
		closedir(dir);
		take_stops();
	} while (found);
	return nr_threads;
}

/* Where a thread is that sleeps in a system call, which; false if it runs. */
static bool is_asleep(pid_t tid, long *call, uint64_t *sp, uint64_t *pc, unsigned long arguments[6])
{
	char path[64], line[256];
	ssize_t length;
	int file;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/syscall", target, tid);
	file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return false;
	length = read(file, line, sizeof(line) - 1);
	close(file);
	if (length <= 0)
		return false;
	line[length] = 0;
	*call = -1;
	if (sscanf(line, "-1 %lx %lx", sp, pc) == 2)
		return true; /* stopped, outside of any call */
	return sscanf(line, "%ld %lx %lx %lx %lx %lx %lx %lx %lx", call, &arguments[0], &arguments[1],
		      &arguments[2], &arguments[3], &arguments[4], &arguments[5], sp, pc) == 9;
}

static bool interrupt(pid_t tid)
{
	struct thread *thread = find_thread(tid);

	if (!thread)
		return false;
	return thread->stopped || (!ptrace(PTRACE_INTERRUPT, tid, 0, 0) && wait_for(tid));
}

/* ---- system calls of the target's own, made by one of its threads */

static struct {
	pid_t tid;
	struct user_regs_struct before;
	uint64_t mask; /* of blocked signals: meanwhile all are, but for that of our steps */
} borrowed;

/* How much a thread minds being woken: less is better. */
static int reluctance(pid_t tid)
{
	unsigned long arguments[6] = {};
	struct user_regs_struct regs = {};
	uint64_t sp, pc;
	long call;

	if (!is_asleep(tid, &call, &sp, &pc, arguments))
		return 1; /* it runs */
	regs.orig_rax = call;
	regs.rdx = arguments[2];
	regs.r10 = arguments[3];
	regs.r8 = arguments[4];
	if (call == SYS_futex)
		return 0; /* the kernel repeats it, with a time limit or without */
	return is_repeatable(&regs) ? 2 : 3;
}

static bool borrow_thread(void)
{
	const uint64_t mask = ~(1ULL << (SIGTRAP - 1));
	struct thread *thread;
	int least = 4;
	pid_t tid = 0;

	for (unsigned int i = 0; i < nr_threads; i++) {
		int now_least = threads[i].stopped ? 0 : reluctance(threads[i].tid);

		if (now_least < least) {
			least = now_least;
			tid = threads[i].tid;
		}
	}
	if (!tid)
		return false;
	/*
	 * One that was met as it got a signal takes that first. One that has just forked has not got the result
	 * yet, which would be lost.
	 */
	do {
		if (!interrupt(tid) || !(thread = find_thread(tid)))
			return false;
		if (thread->signal || (thread->event != PTRACE_EVENT_STOP && thread->event != PTRACE_EVENT_EXEC))
			resume(thread);
	} while (!thread->stopped);
	if (!get_registers(tid, &borrowed.before) || borrowed.before.cs != USER_CS_64 ||
	    ptrace(PTRACE_GETSIGMASK, tid, sizeof(borrowed.mask), &borrowed.mask) ||
	    ptrace(PTRACE_SETSIGMASK, tid, sizeof(mask), &mask)) {
		resume(thread);
		return false;
	}
	borrowed.tid = tid;
	return true;
}

static long call_in_target(long number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
	struct user_regs_struct wanted = borrowed.before, regs;

	wanted.rip = order.system_call;
	wanted.rax = number;
	wanted.orig_rax = -1;
	wanted.rdi = a;
	wanted.rsi = b;
	wanted.rdx = c;
	wanted.r10 = d;
	wanted.r8 = e;
	wanted.r9 = f;
	/* The first step may only be the end of the call that the thread was in. */
	for (int i = 0; i < STEPS_MAX; i++) {
		if (executed || !set_registers(borrowed.tid, &wanted) || !step(borrowed.tid) ||
		    !get_registers(borrowed.tid, &regs))
			return -ESRCH;
		if (regs.rip != order.system_call)
			return regs.rax;
	}
	return -EINTR;
}

static void give_back_thread(void)
{
	struct thread *thread = find_thread(borrowed.tid);

	if (!thread || executed || !set_registers(borrowed.tid, &borrowed.before))
		return;
	ptrace(PTRACE_SETSIGMASK, borrowed.tid, sizeof(borrowed.mask), &borrowed.mask);
	resume(thread);
	borrowed.tid = 0;
}

/* ---- what is mapped */

struct message {
	struct iovec piece;
	struct msghdr head;
	char byte[8];
	uint64_t control[(CMSG_SPACE(2 * sizeof(int)) + 7) / 8];
};

/* Sends both descriptors into one end of a pair of sockets of the target's. */
static bool send_descriptors(int socket, const int descriptors[2])
{
	struct message message = {};
	struct cmsghdr *control;

	message.piece = (struct iovec){message.byte, 1};
	message.head.msg_iov = &message.piece;
	message.head.msg_iovlen = 1;
	message.head.msg_control = message.control;
	message.head.msg_controllen = sizeof(message.control);
	control = CMSG_FIRSTHDR(&message.head);
	control->cmsg_level = SOL_SOCKET;
	control->cmsg_type = SCM_RIGHTS;
	control->cmsg_len = CMSG_LEN(2 * sizeof(int));
	memcpy(CMSG_DATA(control), descriptors, 2 * sizeof(int));
	return sendmsg(socket, &message.head, MSG_NOSIGNAL) == 1;
}

static int take_descriptor(int of_target)
{
	int process = syscall(SYS_pidfd_open, target, 0), taken;

	if (process < 0)
		return -1;
	taken = syscall(SYS_pidfd_getfd, process, of_target, 0);
	close(process);
	return taken;
}

/* Gives the target both descriptors, by a pair of sockets that it makes itself: no name, no namespace. */
static const char *pass_descriptors(const int descriptors[2], int given[2])
{
	uint64_t scratch = order.base + INLINE_PLACE_GUARD;
	struct message message = {};
	int pair[2], socket;
	long result;
	bool sent;

	if (call_in_target(SYS_socketpair, AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, scratch, 0, 0) ||
	    !read_memory(scratch, pair, sizeof(pair)))
		return "it could make no pair of sockets";
	socket = take_descriptor(pair[0]);
	sent = socket >= 0 && send_descriptors(socket, descriptors);
	if (socket >= 0)
		close(socket);
	message.piece = (struct iovec){(void *)(scratch + offsetof(struct message, byte)), 1};
	message.head.msg_iov = (void *)(scratch + offsetof(struct message, piece));
	message.head.msg_iovlen = 1;
	message.head.msg_control = (void *)(scratch + offsetof(struct message, control));
	message.head.msg_controllen = sizeof(message.control);
	result = -1;
	if (sent && write_memory(scratch, &message, sizeof(message)))
		result = call_in_target(SYS_recvmsg, pair[1], scratch + offsetof(struct message, head),
					MSG_CMSG_CLOEXEC | MSG_DONTWAIT, 0, 0, 0);
	call_in_target(SYS_close, pair[0], 0, 0, 0, 0, 0);
	call_in_target(SYS_close, pair[1], 0, 0, 0, 0, 0);
	if (result != 1 || !read_memory(scratch, &message, sizeof(message)) ||
	    message.head.msg_controllen < CMSG_LEN(2 * sizeof(int)))
		return "it did not get the descriptors";
	memcpy(given, (char *)message.control + CMSG_LEN(0), 2 * sizeof(int));
	return NULL;
}

static bool map_in_target(uint64_t at, uint64_t size, int protection, int flags, int fd)
{
	return call_in_target(SYS_mmap, at, size, protection, flags, fd, 0) == (long)at;
}

static const char *map_all(const int descriptors[2])
{
	static const char nothing[sizeof(struct message)];
	uint64_t guard = order.base + INLINE_PLACE_GUARD, area = order.base + INLINE_PLACE_AREA,
		 spans = order.base + INLINE_PLACE_SPANS;
	int given[2];
	uint32_t one = 1;
	const char *failure;

	if (!map_in_target(order.base, order.size, PROT_NONE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1))
		return "no room could be mapped near its code";
	if (!map_in_target(order.base, INLINE_PLACE_AREA, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1) ||
	    call_in_target(SYS_madvise, guard, PAGE, MADV_WIPEONFORK, 0, 0, 0))
		return "no memory could be mapped";
	failure = pass_descriptors(descriptors, given);
	if (failure)
		return failure;
	if (!map_in_target(area, INLINE_PLACE_SPANS - INLINE_PLACE_AREA, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_FIXED, given[0]) ||
	    !map_in_target(spans, order.spans_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, given[1]))
		failure = "the shared memory could not be mapped";
	call_in_target(SYS_close, given[0], 0, 0, 0, 0, 0);
	call_in_target(SYS_close, given[1], 0, 0, 0, 0, 0);
	if (failure)
		return failure;
	/* A forked child has no business there. */
	call_in_target(SYS_madvise, area, order.base + order.size - area, MADV_DONTFORK, 0, 0, 0);
	if (!write_memory(guard, nothing, sizeof(nothing)) || !write_memory(order.base, code, order.code_size) ||
	    call_in_target(SYS_mprotect, order.base, INLINE_PLACE_GUARD, PROT_READ | PROT_EXEC, 0, 0, 0))
		return "its system allows no code to be added (SELinux execmem?)";
	return write_memory(guard, &one, sizeof(one)) ? NULL : "its memory could not be written";
}

static void unmap_all(void)
{
	call_in_target(SYS_munmap, order.base, order.size, 0, 0, 0, 0);
}

/* ---- what is patched */

static bool write_breakpoints(unsigned int number)
{
	const uint8_t breakpoint = BREAKPOINT;

	for (unsigned int i = 0; i < number; i++)
		if (!write_memory(patches[i].address, &breakpoint, 1))
			return false;
	return true;
}

/* The bytes behind the breakpoints, then, instead of these, the first ones. */
static bool write_entries(bool jumps)
{
	bool done = true;

	for (unsigned int pass = 0; pass < 2; pass++)
		for (unsigned int i = 0; i < order.nr_patches; i++) {
			const uint8_t *bytes = jumps ? patches[i].jump : patches[i].before;

			done &= pass ? write_memory(patches[i].address, bytes, 1)
				     : write_memory(patches[i].address + 1, bytes + 1, INLINE_JUMP_SIZE - 1);
		}
	return done;
}

static bool stands_in_patch(uint64_t rip)
{
	for (unsigned int i = 0; i < order.nr_patches; i++)
		if (rip > patches[i].address && rip < patches[i].address + INLINE_JUMP_SIZE)
			return true;
	return false;
}

static bool is_ours(uint64_t address)
{
	return address >= order.base && address < order.base + INLINE_PLACE_GUARD;
}

/*
 * Whether a signal handler that is running, or about to be left, goes back to such a place. Where it does, the
 * frame that the kernel made (struct rt_sigframe) has that address, the flags, and then the segments that
 * user code has. A mere address tells nothing: stacks are full of what was there before.
 */
static bool leads_back(uint64_t sp, bool (*to)(uint64_t))
{
	static uint64_t words[STACK_SCAN / sizeof(uint64_t)];
	size_t size = STACK_SCAN;

	/* Stacks end at a page: less and less of it, until it can be read. */
	while (size >= PAGE && !read_memory(sp, words, size))
		size = size > 2 * PAGE ? size / 2 : (size > PAGE ? PAGE : 0);
	if (size < PAGE) {
		size = PAGE - sp % PAGE;
		if (!read_memory(sp, words, size))
			return false;
	}
	for (size_t i = 0; i + 2 < size / sizeof(*words); i++)
		if (to(words[i]) && (words[i + 2] & 0xffff) == USER_CS_64)
			return true;
	return false;
}

/* Rust's own handlers, of stack overflows, interrupt nothing that goes on. */
static bool handles_signals(void)
{
	const uint64_t own = 1ULL << (SIGSEGV - 1) | 1ULL << (SIGBUS - 1);
	char value[64];

	return !read_status(target, target, "SigCgt", value, sizeof(value)) || strtoull(value, NULL, 16) & ~own;
}

/* Lets a stopped thread run on, instruction by instruction, until it is past the bytes. */
static bool move_out(pid_t tid)
{
	struct user_regs_struct regs;

	for (int i = 0; i < STEPS_MAX; i++) {
		struct thread *thread = find_thread(tid);

		if (!thread || !get_registers(tid, &regs))
			return true; /* it has ended */
		if (thread->waits || !stands_in_patch(regs.rip))
			return true;
		if (!step(tid))
			return !find_thread(tid);
	}
	return false;
}

/*
 * Whether a thread is neither on its way through the first bytes of a patched function, nor about to tell of
 * a breakpoint that it met, nor copying the memory that has them. One that sleeps in any other system call
 * is not, and comes by the entries as they are when it wakes.
 */
static bool is_elsewhere(pid_t tid)
{
	unsigned long arguments[6] = {};
	uint64_t sp, pc, flags;
	long call;

	if (!is_asleep(tid, &call, &sp, &pc, arguments) || stands_in_patch(pc))
		return false;
	if (call == SYS_fork)
		return false;
	if (call == SYS_clone)
		return arguments[0] & CLONE_VM;
	if (call == SYS_clone3)
		return read_memory(arguments[0], &flags, sizeof(flags)) && flags & CLONE_VM;
	return true;
}

/*
 * Who has met a breakpoint and could not tell yet does so now: without us the signal would end the target.
 * Likewise who is just forking.
 */
static void collect_waiting(void)
{
	take_stops();
	for (unsigned int i = 0; i < nr_threads; i++) {
		pid_t tid = threads[i].tid;
		struct user_regs_struct regs;
		struct thread *thread;

		if (threads[i].waits || is_elsewhere(tid))
			continue;
		interrupt(tid);
		thread = find_thread(tid);
		if (thread && thread->stopped && !thread->waits && get_registers(tid, &regs) &&
		    breakpoint_before(regs.rip)) {
			go_on(thread);
			wait_for(tid);
			thread = find_thread(tid);
		}
		if (thread && thread->stopped)
			resume(thread);
		if (i >= nr_threads || threads[i].tid != tid)
			i = -1U; /* it has ended, and others have moved in the table */
	}
}

/* With the breakpoints in place nobody new comes to the bytes behind them; who is there now moves on. */
static bool clear_entries(void)
{
	bool handlers = handles_signals();

	for (unsigned int i = 0; i < nr_threads; i++) {
		unsigned long arguments[6];
		struct user_regs_struct regs;
		pid_t tid = threads[i].tid;
		struct thread *thread;
		bool clear = true;
		uint64_t sp, pc;
		long call;

		if (threads[i].waits)
			continue;
		if (is_elsewhere(tid)) {
			if (handlers && is_asleep(tid, &call, &sp, &pc, arguments) &&
			    leads_back(sp, stands_in_patch))
				return false;
			continue;
		}
		if (!interrupt(tid)) {
			if (find_thread(tid))
				return false;
			i = -1U; /* it has ended, and others have moved in the table */
			continue;
		}
		thread = find_thread(tid);
		if (thread && !thread->waits && get_registers(tid, &regs))
			clear = (!stands_in_patch(regs.rip) || move_out(tid)) &&
				(!handlers || !leads_back(regs.rsp, stands_in_patch));
		thread = find_thread(tid);
		if (thread && thread->stopped)
			resume(thread);
		if (!clear)
			return false;
	}
	return true;
}

static void note_blocked(void)
{
	char value[64];

	for (unsigned int i = 0; i < nr_threads; i++)
		threads[i].blocks_trap = read_status(target, threads[i].tid, "SigBlk", value, sizeof(value)) &&
					 strtoull(value, NULL, 16) & 1ULL << (SIGTRAP - 1);
}

static void release_waiting(void)
{
	collect_waiting();
	for (unsigned int i = 0; i < nr_threads; i++) {
		uint64_t mask;

		if (!threads[i].waits)
			continue;
		threads[i].waits = false;
		if (threads[i].blocks_trap && !ptrace(PTRACE_GETSIGMASK, threads[i].tid, sizeof(mask), &mask)) {
			mask |= 1ULL << (SIGTRAP - 1);
			ptrace(PTRACE_SETSIGMASK, threads[i].tid, sizeof(mask), &mask);
		}
		go_on(&threads[i]);
	}
}

static const char *patch_all(void)
{
	bool clear;

	for (unsigned int i = 0; i < order.nr_patches; i++) {
		uint8_t now_there[sizeof(patches[i].before)];

		if (patches[i].size > sizeof(now_there) ||
		    !read_memory(patches[i].address, now_there, patches[i].size) ||
		    memcmp(now_there, patches[i].before, patches[i].size))
			return "its code is not as in its file: somebody else has changed it";
	}
	/* Whose fork was under way before it was seized has a child that we would not be told of. */
	collect_waiting();
	note_blocked();
	if (!write_breakpoints(order.nr_patches)) {
		write_entries(false);
		return "its code cannot be written";
	}
	clear = clear_entries();
	if (!write_entries(clear) && clear)
		write_entries(false);
	release_waiting();
	return clear ? NULL : "a thread stood in the bytes to be patched and could not be moved";
}

static void unpatch_all(void)
{
	uint8_t there[INLINE_JUMP_SIZE];
	unsigned int nr = 0;

	/* What is not our jump is not ours to restore. */
	for (unsigned int i = 0; i < order.nr_patches; i++) {
		struct inline_patch *patch = &patches[i];

		if (read_memory(patch->address, there, sizeof(there)) &&
		    (!memcmp(there, patch->jump, sizeof(there)) ||
		     (there[0] == BREAKPOINT && (!memcmp(there + 1, patch->jump + 1, sizeof(there) - 1) ||
						 !memcmp(there + 1, patch->before + 1, sizeof(there) - 1)))))
			patches[nr++] = *patch;
	}
	order.nr_patches = nr;
	collect_waiting();
	note_blocked();
	write_breakpoints(nr);
	write_entries(false);
	release_waiting();
}

/* ---- who is still inside */

static bool calls_in_flight(void)
{
	static uint32_t cells[INLINE_SIZE_CELLS][16];

	if (!read_memory(order.base + INLINE_PLACE_AREA + INLINE_PLACE_IN_FLIGHT, cells, sizeof(cells)))
		return false;
	for (unsigned int i = 0; i < INLINE_SIZE_CELLS; i++)
		if (cells[i][0])
			return true;
	return false;
}

/* Lets a stopped thread run on until it is out of our code; false if that takes too long, or it ended. */
static bool step_out(pid_t tid, struct user_regs_struct *regs)
{
	for (int i = 0; is_ours(regs->rip); i++)
		if (i == STEPS_OUT_MAX || !step(tid) || !get_registers(tid, regs))
			return false;
	return true;
}

/* With the entries restored nobody comes in any more: a thread that was seen outside stays there. */
static bool is_outside(pid_t tid)
{
	unsigned long arguments[6];
	struct user_regs_struct regs;
	struct thread *thread;
	uint64_t sp, pc;
	long call;
	bool outside;

	if (is_asleep(tid, &call, &sp, &pc, arguments))
		return !is_ours(pc) && !leads_back(sp, is_ours);
	if (!interrupt(tid) || !get_registers(tid, &regs))
		return !find_thread(tid);
	outside = step_out(tid, &regs) && !leads_back(regs.rsp, is_ours);
	thread = find_thread(tid);
	if (thread && thread->stopped)
		resume(thread);
	return outside || !thread;
}

static bool wait_until_nobody_is_inside(void)
{
	uint64_t deadline = now() + PATIENCE_NS;
	bool somebody;

	do {
		take_stops();
		somebody = false;
		for (unsigned int i = 0; i < nr_threads; i++) {
			pid_t tid = threads[i].tid;
			bool outside = threads[i].outside || is_outside(tid);

			if (i < nr_threads && threads[i].tid == tid)
				threads[i].outside = outside;
			else
				outside = false; /* others have moved in the table */
			somebody |= !outside;
		}
		if (!somebody && !calls_in_flight())
			return true;
		usleep(2000);
	} while (now() < deadline);
	return false;
}

/* ---- orders */

static bool read_all(void *to, size_t size)
{
	char *at = to;

	while (size) {
		ssize_t got = read(STDIN_FILENO, at, size);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return false;
		at += got;
		size -= got;
	}
	return true;
}

static bool read_order(void)
{
	return read_all(&order, sizeof(order)) && order.nr_patches <= INLINE_SIZE_PATCHES &&
	       order.code_size <= sizeof(code) && read_all(patches, order.nr_patches * sizeof(*patches)) &&
	       read_all(code, order.code_size);
}

static const char *attach(const int descriptors[2])
{
	const char *failure;

	if (!borrow_thread())
		return "none of its threads could be stopped";
	failure = map_all(descriptors);
	if (executed)
		return "it has just executed another program";
	if (failure)
		unmap_all();
	give_back_thread();
	if (failure)
		return failure;
	longest = 0;
	failure = patch_all();
	if (failure && borrow_thread()) {
		unmap_all();
		give_back_thread();
	}
	return failure;
}

static const char *detach(void)
{
	unpatch_all();
	if (!wait_until_nobody_is_inside())
		return "a thread is still in the code that was added: it stays mapped, unused";
	if (!borrow_thread())
		return "none of its threads could be stopped: the code that was added stays mapped, unused";
	unmap_all();
	give_back_thread();
	return NULL;
}

/* The child that waits to be executed: at the stop of its exec it has no thread but one, and nothing has run. */
static bool wait_for_exec(void)
{
	for (;;) {
		int status;
		pid_t who = waitpid(-1, &status, __WALL);

		if (who < 0 && errno == EINTR && getppid() == agent)
			continue;
		if (who < 0)
			return false;
		if (!WIFSTOPPED(status)) {
			if (who == target)
				return false;
			remove_thread(who);
			continue;
		}
		if (status >> 16 == PTRACE_EVENT_EXEC) {
			nr_threads = 0;
			add_thread(target)->stopped = true;
			threads[0].event = PTRACE_EVENT_EXEC;
			threads[0].since = now();
			return true;
		}
		handle_stop(who, status, 0);
	}
}

/* As the stop writer's tracer: the target waits for us. */
static void run_first(void)
{
	struct sched_param lowest = {.sched_priority = 1}, none = {};

	if (!sched_setscheduler(0, SCHED_FIFO, &lowest))
		return;
	/* The agent may be one that has only what nobody else wants. */
	sched_setscheduler(0, SCHED_OTHER, &none);
	setpriority(PRIO_PROCESS, 0, -20);
}

/* Ticks, so that no wait is for ever. */
static void on_tick(int number)
{
	(void)number;
}

static void set_up_signals(void)
{
	struct sigaction tick = {.sa_handler = on_tick};
	struct itimerval interval = {{0, TICK_US}, {0, TICK_US}};

	signal(SIGPIPE, SIG_IGN);
	sigaction(SIGALRM, &tick, NULL);
	setitimer(ITIMER_REAL, &interval, NULL);
}

int main(int argc, char **argv)
{
	char path[32];
	const char *failure;
	int descriptors[2];
	bool expect_exec;
	pid_t tracer;

	if (argc < 5 || argc > 6 || (argc == 6 && strcmp(argv[5], "--expect-exec"))) {
		fprintf(stderr, "usage: %s AGENT_PID TARGET_PID AREA_FD SPANS_FD [--expect-exec]\n", argv[0]);
		return EXIT_USAGE;
	}
	agent = atoi(argv[1]);
	target = atoi(argv[2]);
	descriptors[0] = atoi(argv[3]);
	descriptors[1] = atoi(argv[4]);
	expect_exec = argc == 6;
	set_up_signals();
	run_first();

	snprintf(path, sizeof(path), "/proc/%d/mem", target);
	/* The less time between seizing and the end, the less there is to be noticed. */
	if (!expect_exec && !read_order()) {
		say("failed no order came\n");
		return EXIT_FAILED;
	}
	tracer = tracer_of(target, target);
	if (tracer) {
		say("failed process %d traces it\n", tracer);
		return EXIT_FAILED;
	}
	if (!seize_all()) {
		say(nr_threads ? "failed not all of its threads can be traced\n" : "gone\n");
		return EXIT_FAILED;
	}
	if (expect_exec) {
		say("seized %u\n", nr_threads);
		if (!wait_for_exec()) {
			say("gone\n");
			return EXIT_FAILED;
		}
		say("exec\n");
		if (!read_order()) {
			say("failed no order came\n");
			return EXIT_FAILED;
		}
	}
	memory = open(path, O_RDWR | O_CLOEXEC);
	if (memory < 0) {
		say("failed its memory cannot be opened\n");
		return EXIT_FAILED;
	}
	failure = order.operation == INLINE_OPERATION_ATTACH ? attach(descriptors) : detach();
	take_stops();
	if (failure)
		say("failed %s\n", failure);
	else
		say("done %lu\n", longest);
	return failure ? EXIT_FAILED : EXIT_OK;
}
