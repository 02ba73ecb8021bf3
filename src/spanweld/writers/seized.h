/* What both tracers, of the stop writer and of the inline writer, know of a seized thread. */
#ifndef SPANWELD_SEIZED_H
#define SPANWELD_SEIZED_H

#include <elf.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>

/* Kernel-internal result of a system call: "restart it, unless a handler runs". */
#define ERESTARTNOHAND 514
#define USER_CS_64 0x33

/* The text behind "NAME:" in the thread's status; false if it is gone or has no such line. */
static bool read_status(pid_t target, pid_t tid, const char *name, char *value, size_t size)
{
	char path[64], line[512];
	bool found = false;
	size_t length = strlen(name);
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/status", target, tid);
	file = fopen(path, "re");
	if (!file)
		return false;
	while (!found && fgets(line, sizeof(line), file)) {
		if (strncmp(line, name, length) || line[length] != ':')
			continue;
		snprintf(value, size, "%s", line + length + 1);
		found = true;
	}
	fclose(file);
	return found;
}

static pid_t tracer_of(pid_t target, pid_t tid)
{
	char value[64];

	return read_status(target, tid, "TracerPid", value, sizeof(value)) ? atoi(value) : 0;
}

static bool is_zombie(pid_t target, pid_t tid)
{
	char value[64];

	return !read_status(target, tid, "State", value, sizeof(value)) || strpbrk(value, "ZX");
}

static bool get_registers(pid_t tid, struct user_regs_struct *regs)
{
	struct iovec vec = {regs, sizeof(*regs)};

	return !ptrace(PTRACE_GETREGSET, tid, NT_PRSTATUS, &vec) && vec.iov_len == sizeof(*regs);
}

static bool set_registers(pid_t tid, struct user_regs_struct *regs)
{
	struct iovec vec = {regs, sizeof(*regs)};

	return !ptrace(PTRACE_SETREGSET, tid, NT_PRSTATUS, &vec);
}

/*
 * Whether the system call, interrupted before it did anything, is the same when it is run once
 * more. Those that wait for a limited time are not, since that time would begin anew: event loops
 * compute it for their next timer, which would then be late, and they expect EINTR. The time
 * limit of a socket (SO_RCVTIMEO) is of another kind: there a caller's answer to EINTR is to
 * repeat the call, which is what is done here.
 */
static bool is_repeatable(const struct user_regs_struct *regs)
{
	switch (regs->orig_rax) {
	case SYS_epoll_wait:
	case SYS_epoll_pwait:
		return (int)regs->r10 < 0;
	case SYS_epoll_pwait2:
	case SYS_semtimedop:
		return !regs->r10;
	case SYS_rt_sigtimedwait:
		return !regs->rdx;
	case SYS_io_getevents:
	case SYS_io_pgetevents:
		return !regs->r8;
	case SYS_io_uring_enter:
		return !(regs->r10 & (1 << 3)); /* IORING_ENTER_EXT_ARG: may hold a time */
	case SYS_semop:
	case SYS_read:
	case SYS_readv:
	case SYS_recvfrom:
	case SYS_recvmsg:
	case SYS_write:
	case SYS_writev:
	case SYS_sendto:
	case SYS_sendmsg:
	case SYS_accept:
	case SYS_accept4:
	case SYS_connect:
		return true;
	default:
		return false;
	}
}

/* Whether a stopped thread was woken out of a system call that it should go on with: result ERESTARTNOHAND. */
static bool is_interrupted(const struct user_regs_struct *regs)
{
	return (long long)regs->rax == -EINTR && (long long)regs->orig_rax >= 0 && regs->cs == USER_CS_64 &&
	       is_repeatable(regs);
}

#endif
