/*
 * A target for the stop writer's tests. Its threads call functions that are probed, each beginning
 * with another kind of instruction, and check what comes back.
 *
 *	stop_target [OPTION]...
 *
 * Says "ready" and "thread NAME TID" lines, then takes commands from standard input: "report"
 * prints a line of counters, "quit" prints one and ends with status 42, "exec" runs the program
 * anew without options, "leave" ends the main thread only. Commands are awaited in epoll_wait() by
 * the main thread.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "stop_target.h"

#define EXIT_QUIT 42
#define LATENCIES_MAX (1 << 18)

/* stop_functions.S */
typedef void probed(void);
extern probed at_push, at_push_r15, at_sub, at_big_sub, at_mov, at_endbr64, at_load, at_jump, at_short_jump,
	at_branch, at_call, at_nop5, at_ret;
int call_checked(probed *function, uint64_t seq, uint64_t flags, void *slot, uint64_t value[2]);

static probed *const functions[] = {
	at_push, at_push_r15,	at_sub,	   at_big_sub, at_mov,	at_endbr64, at_load,
	at_jump, at_short_jump, at_branch, at_call,    at_nop5, at_ret,
};
#define NR_FUNCTIONS (sizeof(functions) / sizeof(functions[0]))

static struct {
	atomic_ulong calls;
	atomic_ulong served; /* the function's value or memory was replaced as asked */
	atomic_ulong own; /* it was left as it is */
	atomic_ulong half; /* carried out up to a point where a tracer may be killed */
	atomic_ulong wrong; /* anything else */
	atomic_ulong harmed; /* callee-saved registers */
	atomic_ulong created; /* threads by --churn */
	atomic_ulong children; /* of --fork that ended as they should */
	atomic_ulong bad_children;
	atomic_ulong eintr; /* by epoll_wait(-1) in the main thread */
	atomic_ulong sleepers_eintr; /* by the calls of --sleepers */
	atomic_ulong urg;
	atomic_ulong term;
	atomic_ulong rt;
	atomic_ulong rt_sum; /* of the values that came with them */
	atomic_ulong continued;
} counters;

static unsigned long only_function = NR_FUNCTIONS;
static uint64_t flags = ASK_RETURN | ASK_WRITES;
static unsigned int interval_us;
static atomic_uint *latencies;
static atomic_ulong nr_latencies;

/* The first two are written as one; aligned, so that they do not lie on two pages. */
struct slot {
	_Alignas(32) uint64_t seq;
	uint64_t inverse;
	uint64_t gap;
	uint64_t low16;
};

static uint64_t now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000UL + time.tv_nsec;
}

static void call_one(unsigned long which, uint64_t seq, uint64_t asked)
{
	struct slot slot = {};
	uint64_t value[2];
	bool written, untouched, half, returned, own;
	uint64_t start = latencies ? now_ns() : 0;

	counters.harmed += call_checked(functions[which], seq, asked, &slot, value);
	if (latencies) {
		unsigned long index = nr_latencies++;

		if (index < LATENCIES_MAX)
			latencies[index] = now_ns() - start;
	}
	counters.calls++;
	written = slot.seq == seq && slot.low16 == (seq & 0xffff) && slot.inverse == ~seq && !slot.gap;
	half = slot.seq == seq && slot.inverse == ~seq && !slot.low16 && !slot.gap && (seq & 0xffff);
	untouched = !slot.seq && !slot.low16 && !slot.inverse && !slot.gap;
	returned = value[0] == ASKED_LOW(seq) && value[1] == ASKED_HIGH(seq);
	own = value[0] == OWN_LOW(seq) && value[1] == OWN_HIGH;
	if (functions[which] == at_ret) {
		/* No value of its own; a return is asked for after it has returned already. */
		own = true;
		returned = asked & ASK_RETURN ? returned : written;
	}
	if (returned && (asked & ASK_RETURN) && (asked & ASK_WRITES ? written : untouched))
		counters.served++;
	else if (!(asked & ASK_RETURN) && written && (asked & ASK_WRITES))
		counters.served++;
	else if (own && (untouched || (asked & ASK_BAD_ADDRESS)))
		counters.own++;
	else if (own && (half || (written && (asked & ASK_RETURN))))
		counters.half++;
	else
		counters.wrong++;
}

static void *call_probed(void *blocks)
{
	static atomic_ulong first_seq = 1;
	uint64_t seq = (first_seq += 1UL << 32);

	if (blocks) {
		sigset_t set;

		sigemptyset(&set);
		sigaddset(&set, SIGURG);
		pthread_sigmask(SIG_BLOCK, &set, NULL);
	}
	for (;; seq++) {
		call_one(only_function < NR_FUNCTIONS ? only_function : seq % NR_FUNCTIONS, seq, flags);
		if (interval_us)
			usleep(interval_us);
	}
	return NULL;
}

static void *call_some(void *unused)
{
	for (uint64_t seq = 1; seq <= 20; seq++)
		call_one(seq % NR_FUNCTIONS, seq, flags);
	return unused;
}

static void *create_threads(void *unused)
{
	for (;;) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, call_some, NULL))
			continue;
		pthread_join(thread, NULL);
		counters.created++;
	}
	return unused;
}

/* What a child that nobody traces must see: its functions' own values, and no signal. */
static void run_child(void)
{
	counters.wrong = counters.served = counters.own = 0;
	for (uint64_t seq = 1; seq <= 20; seq++)
		call_one(seq % NR_FUNCTIONS, seq, flags);
	_exit(counters.wrong || counters.served || counters.own != 20 ? 1 : EXIT_QUIT);
}

static void *fork_children(void *unused)
{
	for (unsigned int nr = 0;; nr++) {
		/* A clone with an exit signal of its own looks like a new thread to a tracer. */
		pid_t child = nr % 2 ? fork() : syscall(SYS_clone, 0, NULL, NULL, NULL, 0);
		int status = 0;

		if (!child)
			run_child();
		waitpid(child, &status, __WALL);
		if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_QUIT)
			counters.children++;
		else
			counters.bad_children++;
	}
	return unused;
}

static void say_thread(const char *name)
{
	printf("thread %s %ld\n", name, syscall(SYS_gettid));
}

/* Calls that the kernel ends with a plain EINTR, even for a signal without a handler. */
static void *sleep_in_epoll_pwait(void *unused)
{
	int epoll = epoll_create1(0);
	struct epoll_event event;
	sigset_t mask;

	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1);
	say_thread("epoll_pwait");
	for (;;)
		if (epoll_pwait(epoll, &event, 1, -1, &mask) < 0 && errno == EINTR)
			counters.sleepers_eintr++;
	return unused;
}

static void *sleep_in_recv(void *unused)
{
	struct timeval timeout = {3600, 0};
	int pair[2];
	char byte;

	socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
	setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	say_thread("recv");
	for (;;)
		if (recv(pair[0], &byte, 1, 0) < 0 && errno == EINTR)
			counters.sleepers_eintr++;
	return unused;
}

static void *sleep_in_sigwaitinfo(void *unused)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	say_thread("sigwaitinfo");
	for (;;)
		if (sigwaitinfo(&set, NULL) < 0 && errno == EINTR)
			counters.sleepers_eintr++;
	return unused;
}

/* Calls that the kernel restarts itself, with the time that was left. */
static void *sleep_in_nanosleep(void *unused)
{
	say_thread("nanosleep");
	for (;;) {
		struct timespec second = {1, 0};
		uint64_t start = now_ns();

		if (nanosleep(&second, NULL) || now_ns() - start > 1500000000UL)
			counters.sleepers_eintr++;
	}
	return unused;
}

static void on_urg(int signal)
{
	(void)signal;
	counters.urg++;
}

static void on_cont(int signal)
{
	(void)signal;
	counters.continued++;
}

static void on_rt(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	counters.rt++;
	counters.rt_sum += info->si_value.sival_int;
}

/* A handler that calls a probed function itself, with SIGURG blocked, and one with it open. */
static void on_term(int signal)
{
	(void)signal;
	counters.term++;
	call_one(counters.term % NR_FUNCTIONS, counters.term, flags);
}

static void handle(int signal, void (*handler)(int), int blocked)
{
	struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};

	if (blocked)
		sigaddset(&action.sa_mask, blocked);
	sigaction(signal, &action, NULL);
}

static void handle_with_info(int signal, void (*handler)(int, siginfo_t *, void *))
{
	struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_RESTART | SA_SIGINFO};

	sigaction(signal, &action, NULL);
}

static int compare(const void *a, const void *b)
{
	unsigned int x = *(const unsigned int *)a, y = *(const unsigned int *)b;

	return x < y ? -1 : x > y;
}

static void report(void)
{
	unsigned long nr = nr_latencies < LATENCIES_MAX ? nr_latencies : LATENCIES_MAX;
	static unsigned int sorted[LATENCIES_MAX];

	if (nr) {
		memcpy(sorted, (void *)latencies, nr * sizeof(sorted[0]));
		qsort(sorted, nr, sizeof(sorted[0]), compare);
		nr_latencies = 0;
	}
	printf("report calls=%lu served=%lu own=%lu half=%lu wrong=%lu harmed=%lu created=%lu children=%lu "
	       "bad_children=%lu eintr=%lu sleepers_eintr=%lu urg=%lu term=%lu rt=%lu rt_sum=%lu "
	       "continued=%lu p50=%u p90=%u p99=%u p999=%u max=%u\n",
	       counters.calls, counters.served, counters.own, counters.half, counters.wrong, counters.harmed,
	       counters.created, counters.children, counters.bad_children, counters.eintr, counters.sleepers_eintr,
	       counters.urg, counters.term, counters.rt, counters.rt_sum, counters.continued, sorted[nr / 2],
	       sorted[nr * 9 / 10], sorted[nr * 99 / 100], sorted[nr * 999 / 1000], sorted[nr ? nr - 1 : 0]);
}

static void start(void *(*run)(void *), void *argument)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, run, argument)) {
		perror("pthread_create");
		exit(1);
	}
}

static void take_option(const char *option)
{
	unsigned long number = 0;
	char name[32] = "";

	sscanf(option, "--%31[a-z_-]=%lu", name, &number);
	if (!strcmp(name, "threads"))
		for (; number; number--)
			start(call_probed, NULL);
	else if (!strcmp(name, "blocking-thread"))
		start(call_probed, (void *)1);
	else if (!strcmp(name, "flags"))
		flags = number;
	else if (!strcmp(name, "function"))
		only_function = number;
	else if (!strcmp(name, "interval"))
		interval_us = number;
	else if (!strcmp(name, "latencies"))
		latencies = calloc(LATENCIES_MAX, sizeof(*latencies));
	else if (!strcmp(name, "churn"))
		start(create_threads, NULL);
	else if (!strcmp(name, "fork"))
		start(fork_children, NULL);
	else if (!strcmp(name, "handle-urg"))
		handle(SIGURG, on_urg, 0);
	else if (!strcmp(name, "handle-cont"))
		handle(SIGCONT, on_cont, 0);
	else if (!strcmp(name, "handle-term"))
		handle(SIGTERM, on_term, number ? SIGURG : 0);
	else if (!strcmp(name, "handle-rt"))
		handle_with_info(SIGRTMIN, on_rt);
	else if (!strcmp(name, "sleepers")) {
		start(sleep_in_epoll_pwait, NULL);
		start(sleep_in_recv, NULL);
		start(sleep_in_sigwaitinfo, NULL);
		start(sleep_in_nanosleep, NULL);
	} else {
		fprintf(stderr, "unknown option %s\n", option);
		exit(1);
	}
}

int main(int argc, char **argv)
{
	struct epoll_event event = {.events = EPOLLIN};
	int epoll = epoll_create1(EPOLL_CLOEXEC);

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int i = 1; i < argc; i++)
		take_option(argv[i]);
	epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event);
	printf("ready\n");
	for (;;) {
		char command[64];
		ssize_t size;

		if (epoll_wait(epoll, &event, 1, -1) < 0) {
			counters.eintr += errno == EINTR;
			continue;
		}
		size = read(STDIN_FILENO, command, sizeof(command));
		if (size <= 0)
			return 1;
		if (command[0] == 'r')
			report();
		if (command[0] == 'l')
			pthread_exit(NULL);
		if (command[0] == 'e')
			execl("/proc/self/exe", argv[0], NULL);
		if (command[0] == 'q') {
			report();
			return EXIT_QUIT;
		}
	}
}
