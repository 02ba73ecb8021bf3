/*
 * A model of what the kernel gives to BPF programs and of the target that they watch, small enough
 * to be controlled whole: maps, target memory, threads, descriptors, clock, and each failure.
 *
 * Included by the tests, with the C library, and by programs.c, with the kernel's types instead.
 */
#ifndef HOSTBPF_HOST_H
#define HOSTBPF_HOST_H

#ifndef __VMLINUX_H__
#include <linux/types.h>
#include <stdbool.h>
#include <stddef.h>
#else
typedef __SIZE_TYPE__ size_t;
#endif

/* ---- what is under control; all zero after host_reset(), but for `now` and `random` */

struct host {
	__u64 now; /* CLOCK_MONOTONIC; each look at it adds 1 */
	__u64 random; /* state of the generator */
	__u64 ring_fill; /* what bpf_ringbuf_query answers */
	__u32 processor; /* that runs everything */
	__u64 cookie; /* of the probe that a program runs for */

	/* Which call fails, counted from 1 since host_reset(); 0: none. */
	__u64 fail_read_user;
	__u64 fail_read_kernel;
	__u64 fail_update;
	__u64 fail_ring;
	bool fail_every_ring;
	bool fail_signal;
	bool fail_setsockopt;
	__u64 fail_message; /* of bpf_msg_pull_data, bpf_msg_push_data and bpf_msg_pop_data */
	__u64 fail_message_too;
	bool fail_write_user;

	/* As if another thread had unmapped it just now: what of a transfer cannot be read. */
	enum { UNMAP_NOTHING, UNMAP_BUFFERS, UNMAP_VECTOR, UNMAP_MESSAGE } unmap;

	/* How many calls there were. */
	__u64 reads_user;
	__u64 reads_kernel;
	__u64 updates;
	__u64 rings;
	__u64 ring_wakeups; /* of them, with BPF_RB_FORCE_WAKEUP */
	__u64 signals;
	__u32 last_signal;
	__u64 steps; /* of bpf_loop */
	__u64 messages; /* pulls, pushes and pops */

	/* Runs instead of the read of target memory number `hook_at`, just before it. */
	void (*hook)(void);
	__u64 hook_at;
};

extern struct host host;

/* A kernel without anything in it; the memory of whatever was there before is freed. */
void host_reset(void);

/* ---- maps, by the name of their variable */

void host_map_add(const char *name, void *address, __u32 type, __u32 max_entries, __u32 key_size,
		  __u32 value_size);
void host_map_limit(const char *name, __u32 max_entries);
__u32 host_map_count(const char *name);
void *host_map_lookup(const char *name, const void *key);
void host_map_update(const char *name, const void *key, const void *value);
void host_map_delete(const char *name, const void *key);
__u64 host_count(__u32 cause); /* of the map `counters` */

/* Makes a process a target: its entry in `targets` and its own maps. */
struct target;
struct target *host_target(__u32 pid, const struct target *target);
struct target *host_find_target(__u32 pid);
/* It is none for a while; shown again, it has the maps that it had. */
void host_hide_target(__u32 pid);
void host_show_target(__u32 pid, const struct target *target);

struct active_spans;
struct span_bucket;
struct span_bucket *host_bucket(__u32 pid, __u64 key);
__u32 host_live_slots(__u32 pid);
__u32 host_live_frames(__u32 pid);

/* What its requests have handed on: handed_on.h. */
struct handed_on_counts {
	__s64 open; /* requests */
	__u32 listed; /* slots */
	__u32 edges;
};

struct handed_on_counts host_handed_on(__u32 pid);
void *host_shared_element(__u32 pid, __u32 number);
bool host_is_active(__u32 pid, __u64 key, struct active_spans *found);

/* What a target's requests under way have brought, by server span id. */
struct carried;
__u32 host_carried_count(__u32 pid);
struct carried *host_carried(__u32 pid, __u64 span_id);
void host_carried_limit(__u32 pid, __u32 max_entries);

/* The operations on spans in progress, as the programs call them. */
struct span_frame;
void host_push_span(__u32 pid, __u64 key, struct span_frame *frame);
void host_end_span(__u32 pid, __u64 key, __u64 span_id);

/* Whether that task reads and writes the running process's connection for others. */
bool host_is_driver(int fd, __u64 task_key);

/* Sets a `const volatile` setting of the programs, as libbpf does before it loads them. */
void host_set_constant(const volatile void *address, const void *value, size_t size);

/* ---- memory of the target: what is not registered faults */

void host_map_memory(const void *address, size_t size);
void host_unmap_memory(const void *address);

/* ---- events that went through the ring buffer */

struct host_event {
	__u32 size;
	const void *bytes;
};

__u32 host_events(void);
struct host_event host_event(__u32 index);
void host_forget_events(void);

/* ---- threads of the target */

/* Makes this the running thread; it is made when first named. */
void host_thread(__u32 pid, __u32 tid);
__u32 host_pid(void);
__u32 host_tid(void);
/* tokio's current task id in the running thread's thread-local, and its tag; HOST_TOKIO_…OFFSET is where. */
#define HOST_TOKIO_OFFSET 8
#define HOST_TOKIO_TAG_OFFSET 16
void host_tokio_task(__u64 id);
void host_tokio_tag(__u64 tag);
void host_thread_local_readable(bool readable);
void host_block_signal(unsigned number);
void host_traced_by(__u32 tracer); /* 0: by nobody */

/* ---- its system calls: the model does what the kernel does, then runs the program */

#define FAMILY_UNIX 1
#define FAMILY_INET 2
#define FAMILY_INET6 10

enum host_call {
	CALL_READ,
	CALL_RECVFROM,
	CALL_READV,
	CALL_RECVMSG,
	CALL_WRITE,
	CALL_SENDTO,
	CALL_WRITEV,
	CALL_SENDMSG,
	CALL_MAX,
};
#define CALLS_IN 4 /* the first of them */
#define FLAG_PEEK 2

struct host_piece {
	const void *base;
	size_t size;
};

/* What a new socket is. */
struct host_socket {
	__u16 family;
	__u16 type;
	__u16 local_port;
	__u16 peer_port;
	__u8 local[16];
	__u8 peer[16];
};

extern const struct host_socket host_tcp; /* 127.0.0.1:8080 from 10.0.0.7:40000 */

struct host_event;

/* A descriptor that is no news to the programs: open before they came, or made by socket(2). */
void host_open(int fd, const struct host_socket *socket);
void host_open_file(int fd);
/* The next socket gets the address of the last one that was freed, and a new inode number. */
void host_reuse_address(void);
bool host_is_open(int fd);

void sys_accept(int fd, const struct host_socket *socket);
void sys_accept_old(int fd, const struct host_socket *socket); /* accept(2) */
/* connect(2) of a new socket, which becomes `socket`; with its result, that of one that is open. */
void sys_connect(int fd, const struct host_socket *socket, long result);
/* connect(2) of a socket of TCP, in the callbacks that it has besides. */
void sys_connect_tcp(int fd, const struct host_socket *socket);
#define SEND_ALL (~0UL)
#define SEND_DROPPED (-13L)
/*
 * sendmsg(2) on it, of one message. The kernel keeps its bytes in pieces, of which the first has `first`; the
 * socket takes `room` bytes of what becomes of it, the rest is given up. Returns what the target is told; what
 * the peer gets is added to host_wire().
 */
long sys_send_tcp(int fd, const void *bytes, size_t size, size_t first, size_t room);
struct host_event host_wire(int fd);
/* The state of the socket. */
void host_send_buffer(int fd, int size, int queued, __u32 lowat);
void host_skip_sequence(int fd, __u32 bytes); /* bytes went out by a call that nobody follows */
void sys_close(int fd);
void sys_shutdown(int fd, int how);
void sys_dup(int fd, int to);
void sys_dup2(int fd, int to);
void sys_dup3(int fd, int to);
void sys_fcntl_dup(int fd, int to, bool close_on_exec);
void sys_fcntl_getfl(int fd);
void sys_sendfile(int fd, long size);
void sys_epoll_wait(int number); /* 0: epoll_wait, 1: epoll_pwait, 2: epoll_pwait2 */
void sys_thread_exit(void);

/*
 * `result` bytes of the pieces were transferred; < 0: all of them. Flat calls take one piece. What
 * the pieces hold is readable to the programs for the call's time, and nothing else is.
 */
void sys_transfer(enum host_call call, int fd, const struct host_piece *pieces, size_t nr, long result, int flags);
/* Nothing was: `result` is minus an error, or 0. */
void sys_transfer_fails(enum host_call call, int fd, long result);

/* ---- its probed functions */

struct host_registers {
	__u64 ax, dx, cx, si, di, sp, ip;
};

enum host_probe {
	PROBE_NEW_TRACE_ID,
	PROBE_NEW_TRACE_ID_RETURNS,
	PROBE_NEW_SPAN_ID_RETURNS,
	PROBE_BUILD_RECORDING_SPAN,
	PROBE_BUILD_WITH_CONTEXT,
	PROBE_BUILD_WITH_CONTEXT_RETURNS,
	PROBE_ENSURE_ENDED,
	PROBE_ON_END,
};

void host_probe(enum host_probe probe, const struct host_registers *registers);

/* epoll_wait (0) or epoll_pwait (1) returns; a signal is generated for a thread, or its process. */
void sys_epoll_wait_returns(int number, long result);
void host_signal_generated(int signal, __u32 pid, __u32 tid, bool is_for_process, int result);

/* The running task or thread begins a task, a thread, a process; it wakes the task with this header. */
void host_spawns(__u64 id);
void host_starts_thread(__u32 tid);
void host_starts_process(__u32 pid);
void host_wakes(const void *header);

/* What the programs ask of each other. */
int host_cause_by_tasks(__u32 pid, __u64 task_key, __u32 sender, struct active_spans *found);
void host_reset_wakes(__u32 pid, __u64 driver);
bool host_finds_context(__u32 pid, __u64 task_key, struct active_spans *found);

/* The programs' settings. */
void host_exclude_path(unsigned index, const char *path, bool prefix);
void host_kernel_writes(bool allowed);
struct propagation;
void host_propagation(const struct propagation *settings); /* host_reset() sets the default's */

/* ---- between host.c and programs.c */

void host_register_maps(void);
void host_reset_kernel(void);
void host_enter(void);
void host_leave(void);
void *host_allocate(size_t size);
void host_free(void *memory);
void host_fail(const char *what) __attribute__((noreturn));

#endif
