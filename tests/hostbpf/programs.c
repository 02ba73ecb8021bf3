/*
 * The BPF programs, compiled for the host as they are, and what they see of the kernel: threads,
 * descriptors, sockets. The C library's headers stay out, for they name the same things as
 * kernel_types.bpf.h. See host.h.
 */

/* The programs read words at any address; on the host this is said so that UBSan agrees. */
static inline unsigned long long host_load64(const void *from)
{
	unsigned long long word;

	__builtin_memcpy(&word, from, sizeof(word));
	return word;
}

static inline void host_store64(void *to, unsigned long long word)
{
	__builtin_memcpy(to, &word, sizeof(word));
}

#define load64(pointer) host_load64(pointer)
#define store64(pointer, value) host_store64(pointer, value)

#include "http_inject.bpf.c"
#include "http_server.bpf.c"
#include "otel_sdk.bpf.c"
#include "tokio_tasks.bpf.c"

#include "host.h"

/* ---- maps: one line each, as declared in the programs */

#define ELEMENTS(pointer) (sizeof(*(pointer)) / sizeof(int))
#define MAP(map)                                                                                                  \
	host_map_add(#map, &map, ELEMENTS(map.type), ELEMENTS(map.max_entries), sizeof(*map.key),                 \
		     sizeof(*map.value))

void host_register_maps(void)
{
	MAP(target_sets);
	MAP(targets);
	MAP(counters);
	MAP(connections);
	MAP(queued_requests);
	MAP(listening);
	MAP(inject_sockets);
	MAP(own_exports);
	MAP(root_starts);
	MAP(manual_spans);
	MAP(late_ids);
	MAP(builds);
	MAP(stop_requests);
	host_map_add("events", &events, ELEMENTS(events.type), ELEMENTS(events.max_entries), 0, 0);
	host_map_add("spans_in_progress", &spans_in_progress, ELEMENTS(spans_in_progress.type),
		     ELEMENTS(spans_in_progress.max_entries), sizeof(__u32), sizeof(void *));
	host_map_add("carried", &carried, ELEMENTS(carried.type), ELEMENTS(carried.max_entries), sizeof(__u32),
		     sizeof(void *));
}

/* ---- threads and descriptors */

#define PROCESSES_MAX 4
#define THREADS_MAX 16
#define DESCRIPTORS_MAX 64

/* An open file and what hangs on it, until its last descriptor is closed. */
struct open_file {
	struct file file;
	struct socket_alloc alloc;
	struct sock *sock; /* of TCP: a whole struct tcp_sock */
	int descriptors;
	struct inject_state inject;
	bool has_inject;
	char *wire;
	size_t on_wire;
};

struct process {
	__u32 pid;
	struct fdtable table;
	struct files_struct files;
	struct file *descriptors[DESCRIPTORS_MAX];
};

struct thread {
	struct task_struct task;
	struct task_struct parent;
	struct pt_regs registers;
	__u64 thread_local[4];
	bool readable;
};

static struct net net = {.ipv4 = {.sysctl_tcp_notsent_lowat = ~0U}};
static const struct propagation default_propagation = {
	.place = {[PROPAGATOR_TRACECONTEXT] = 1, [PROPAGATOR_BAGGAGE] = 2},
};

static struct process processes[PROCESSES_MAX];
static struct thread threads[THREADS_MAX];
static int nr_processes, nr_threads;
static struct thread *running;
static unsigned long next_inode;
static struct sock *sock_to_reuse;
static bool reuse;

const struct host_socket host_tcp = {
	.family = AF_INET,
	.type = SOCK_STREAM,
	.local_port = 8080,
	.peer_port = 40000,
	.local = {127, 0, 0, 1},
	.peer = {10, 0, 0, 7},
};

void host_reset_kernel(void)
{
	static const struct excluded_path none[EXCLUDED_MAX];

	if (excluded_paths[0].mask[0])
		host_set_constant(excluded_paths, none, sizeof(none));
	if (kernel_writes)
		host_kernel_writes(false);
	if (__builtin_memcmp((void *)&propagation, &default_propagation, sizeof(propagation)))
		host_propagation(&default_propagation);
	__builtin_memset(processes, 0, sizeof(processes));
	__builtin_memset(threads, 0, sizeof(threads));
	nr_processes = nr_threads = 0;
	running = NULL;
	next_inode = 1000;
	sock_to_reuse = NULL;
	reuse = false;
}

static struct process *process_of(__u32 pid)
{
	struct process *process;

	for (int i = 0; i < nr_processes; i++)
		if (processes[i].pid == pid)
			return &processes[i];
	if (nr_processes == PROCESSES_MAX)
		host_fail("too many processes");
	process = &processes[nr_processes++];
	process->pid = pid;
	process->table.max_fds = DESCRIPTORS_MAX;
	process->table.fd = process->descriptors;
	process->files.fdt = &process->table;
	return process;
}

void host_thread(__u32 pid, __u32 tid)
{
	for (int i = 0; i < nr_threads; i++) {
		running = &threads[i];
		if (running->task.pid == (int)tid && running->task.tgid == (int)pid)
			return;
	}
	if (nr_threads == THREADS_MAX)
		host_fail("too many threads");
	running = &threads[nr_threads++];
	running->task.pid = tid;
	running->task.tgid = pid;
	running->task.files = &process_of(pid)->files;
	running->task.parent = &running->parent;
	running->task.thread.fsbase = (unsigned long)running->thread_local;
	host_thread_local_readable(true);
}

__u32 host_pid(void)
{
	return running->task.tgid;
}

__u32 host_tid(void)
{
	return running->task.pid;
}

void host_tokio_task(__u64 id)
{
	running->thread_local[HOST_TOKIO_OFFSET / 8] = id;
}

void host_tokio_tag(__u64 tag)
{
	running->thread_local[HOST_TOKIO_TAG_OFFSET / 8] = tag;
}

void host_thread_local_readable(bool readable)
{
	if (readable && !running->readable)
		host_map_memory(running->thread_local, sizeof(running->thread_local));
	if (!readable && running->readable)
		host_unmap_memory(running->thread_local);
	running->readable = readable;
}

void host_block_signal(unsigned number)
{
	running->task.blocked.sig[0] |= 1UL << (number - 1);
}

void host_traced_by(__u32 tracer)
{
	running->task.ptrace = tracer != 0;
	running->parent.tgid = tracer;
}

unsigned long long bpf_get_current_pid_tgid(void)
{
	return (__u64)(__u32)running->task.tgid << 32 | (__u32)running->task.pid;
}

unsigned long long bpf_get_attach_cookie(void *ctx)
{
	(void)ctx;
	return host.cookie;
}

unsigned long long bpf_get_current_task(void)
{
	return (__u64)&running->task;
}

struct task_struct *bpf_get_current_task_btf(void)
{
	return &running->task;
}

long bpf_task_pt_regs(struct task_struct *task)
{
	(void)task;
	return (long)&running->registers;
}

static struct file **descriptor(int fd)
{
	if (fd < 0 || fd >= DESCRIPTORS_MAX)
		host_fail("descriptor out of the model's range");
	return &process_of(host_pid())->descriptors[fd];
}

bool host_is_open(int fd)
{
	return *descriptor(fd) != NULL;
}

static struct open_file *new_file(int fd)
{
	struct open_file *file = host_allocate(sizeof(*file));

	if (*descriptor(fd))
		host_fail("descriptor in use");
	file->alloc.vfs_inode.i_ino = next_inode++;
	file->descriptors = 1;
	*descriptor(fd) = &file->file;
	return file;
}

void host_open_file(int fd)
{
	new_file(fd);
}

void host_reuse_address(void)
{
	reuse = true;
}

void host_open(int fd, const struct host_socket *socket)
{
	struct open_file *file = new_file(fd);
	struct sock_common *common;

	if (reuse && sock_to_reuse) {
		file->sock = sock_to_reuse;
		sock_to_reuse = NULL;
		reuse = false;
	} else {
		file->sock = host_allocate(sizeof(struct tcp_sock));
	}
	file->file.private_data = &file->alloc.socket;
	file->alloc.socket.sk = file->sock;
	file->alloc.socket.file = &file->file;
	file->file.f_flags = O_NONBLOCK;
	file->sock->sk_type = socket->type;
	file->sock->sk_socket = &file->alloc.socket;
	file->sock->sk_sndbuf = 87040;
	file->sock->__sk_common.skc_net.net = &net;
	((struct tcp_sock *)file->sock)->write_seq = 0xfffffff0;
	common = &file->sock->__sk_common;
	common->skc_family = socket->family;
	common->skc_num = socket->local_port;
	common->skc_dport = __builtin_bswap16(socket->peer_port);
	if (socket->family == AF_INET) {
		__builtin_memcpy(&common->skc_rcv_saddr, socket->local, 4);
		__builtin_memcpy(&common->skc_daddr, socket->peer, 4);
	} else if (socket->family == AF_INET6) {
		__builtin_memcpy(&common->skc_v6_rcv_saddr, socket->local, 16);
		__builtin_memcpy(&common->skc_v6_daddr, socket->peer, 16);
	}
}

static void let_go(int fd)
{
	struct open_file *file = (struct open_file *)*descriptor(fd);

	*descriptor(fd) = NULL;
	if (!file || --file->descriptors)
		return;
	sock_to_reuse = file->sock;
	if (file->wire)
		host_free(file->wire);
	host_free(file);
}

static void take(int fd, int to)
{
	struct open_file *file = (struct open_file *)*descriptor(fd);

	if (*descriptor(to))
		host_fail("descriptor in use");
	*descriptor(to) = &file->file;
	file->descriptors++;
}

/* ---- system calls */

static void arguments(__u64 first, __u64 second, __u64 third, __u64 fourth)
{
	/* What an earlier call left in the other registers is there in a real one, too. */
	__builtin_memset(&running->registers, 0xa5, sizeof(running->registers));
	running->registers.di = first;
	running->registers.si = second;
	running->registers.dx = third;
	running->registers.r10 = fourth;
}

static void enter_call(int nr)
{
	running->registers.orig_ax = nr;
	host_enter();
	http_closing(NULL);
	host_leave();
}

static void leave_call(int nr, long result)
{
	__u64 context[2] = {(__u64)&running->registers, result};

	running->registers.orig_ax = nr;
	host_enter();
	http_sys_exit(context);
	host_leave();
	host_enter();
	otel_wait_interrupted(context);
	host_leave();
}

void sys_accept(int fd, const struct host_socket *socket)
{
	host_open(fd, socket);
	arguments(3, 0, 0, 0);
	leave_call(NR_ACCEPT4, fd);
}

void sys_accept_old(int fd, const struct host_socket *socket)
{
	host_open(fd, socket);
	arguments(3, 0, 0, 0);
	leave_call(NR_ACCEPT, fd);
}

void sys_connect(int fd, const struct host_socket *socket, long result)
{
	if (!host_is_open(fd))
		host_open(fd, socket);
	arguments(fd, 0, 0, 0);
	leave_call(NR_CONNECT, result);
}

/* ---- sockets of TCP, and what they send */

#define MESSAGE_PIECES_MAX 16

struct piece {
	char *bytes;
	size_t size;
};

struct message {
	struct sk_msg_md md; /* first: what programs get */
	int nr;
	struct piece pieces[MESSAGE_PIECES_MAX];
};

static struct open_file *file_of_sock(const void *sock)
{
	for (int i = 0; i < nr_processes; i++)
		for (int fd = 0; fd < DESCRIPTORS_MAX; fd++) {
			struct open_file *file = (struct open_file *)processes[i].descriptors[fd];

			if (file && file->sock == sock)
				return file;
		}
	host_fail("no such socket");
}

void *bpf_sk_storage_get(void *map, struct bpf_sock *sock, void *value, unsigned long long flags)
{
	struct open_file *file = file_of_sock(sock);

	if (map != &inject_states || value)
		host_fail("not that storage");
	if (!file->has_inject && !(flags & BPF_SK_STORAGE_GET_F_CREATE))
		return NULL;
	file->has_inject = true;
	return &file->inject;
}

struct tcp_sock *bpf_skc_to_tcp_sock(struct bpf_sock *sock)
{
	return (struct tcp_sock *)sock;
}

unsigned long long bpf_get_socket_cookie(struct bpf_sock_ops *ops)
{
	return file_of_sock(ops->sk)->alloc.vfs_inode.i_ino;
}

long bpf_setsockopt(struct bpf_sock_ops *ops, int level, int name, void *value, int size)
{
	(void)ops;
	if (level != IPPROTO_TCP || name != TCP_NODELAY || size != sizeof(int) || *(int *)value != 1)
		host_fail("not that option");
	return host.fail_setsockopt ? -22 : 0;
}

long bpf_sock_hash_update(struct bpf_sock_ops *ops, void *map, void *key, unsigned long long flags)
{
	__u64 value = (__u64)ops->sk;

	return bpf_map_update_elem(map, key, &value, flags);
}

static size_t message_size(const struct message *message)
{
	size_t size = 0;

	for (int i = 0; i < message->nr; i++)
		size += message->pieces[i].size;
	return size;
}

/* What programs see: the first piece. */
static void show_message(struct message *message)
{
	message->md.data = message->pieces[0].bytes;
	message->md.data_end = message->pieces[0].bytes + message->pieces[0].size;
	message->md.size = message_size(message);
}

static bool message_call_fails(void)
{
	host.messages++;
	return host.messages == host.fail_message || host.messages == host.fail_message_too;
}

static void insert_piece(struct message *message, int at, size_t size)
{
	if (message->nr == MESSAGE_PIECES_MAX)
		host_fail("too many pieces");
	for (int i = message->nr++; i > at; i--)
		message->pieces[i] = message->pieces[i - 1];
	message->pieces[at].bytes = host_allocate(size);
	message->pieces[at].size = size;
	__builtin_memset(message->pieces[at].bytes, 0xa5, size);
}

/* One piece more begins at an offset; its number. */
static int cut_message(struct message *message, size_t offset)
{
	int i = 0;

	while (i < message->nr && offset >= message->pieces[i].size)
		offset -= message->pieces[i++].size;
	if (offset) {
		struct piece *piece = &message->pieces[i];
		size_t rest = piece->size - offset;

		insert_piece(message, i + 1, rest);
		__builtin_memcpy(message->pieces[i + 1].bytes, piece->bytes + offset, rest);
		piece->size = offset;
		i++;
	}
	return i;
}

long bpf_msg_pull_data(struct sk_msg_md *md, unsigned start, unsigned end, unsigned long long flags)
{
	struct message *message = (struct message *)md;
	size_t offset = 0, size = 0, done = 0;
	int first = 0, last;

	if (flags || end <= start || end > message_size(message))
		return -22;
	if (message_call_fails())
		return -12;
	while (start >= offset + message->pieces[first].size)
		offset += message->pieces[first++].size;
	for (last = first; offset + size < end; last++)
		size += message->pieces[last].size;
	if (last - first > 1) {
		insert_piece(message, first, size);
		for (int i = first + 1; i <= last; i++) {
			__builtin_memcpy(message->pieces[first].bytes + done, message->pieces[i].bytes,
					 message->pieces[i].size);
			done += message->pieces[i].size;
			host_free(message->pieces[i].bytes);
		}
		for (int i = last + 1; i < message->nr; i++)
			message->pieces[i - (last - first)] = message->pieces[i];
		message->nr -= last - first;
	}
	show_message(message);
	md->data = message->pieces[first].bytes + (start - offset);
	md->data_end = (char *)md->data + (end - start);
	return 0;
}

long bpf_msg_push_data(struct sk_msg_md *md, unsigned start, unsigned length, unsigned long long flags)
{
	struct message *message = (struct message *)md;

	if (flags || !length || start > message_size(message))
		return -22;
	if (message_call_fails())
		return -12;
	insert_piece(message, cut_message(message, start), length);
	show_message(message);
	return 0;
}

long bpf_msg_pop_data(struct sk_msg_md *md, unsigned start, unsigned length, unsigned long long flags)
{
	struct message *message = (struct message *)md;
	int first, last;

	if (flags || start + length > message_size(message))
		return -22;
	if (message_call_fails())
		return -12;
	first = cut_message(message, start);
	last = cut_message(message, start + length);
	for (int i = first; i < last; i++)
		host_free(message->pieces[i].bytes);
	for (int i = last; i < message->nr; i++)
		message->pieces[i - (last - first)] = message->pieces[i];
	message->nr -= last - first;
	show_message(message);
	return 0;
}

void sys_connect_tcp(int fd, const struct host_socket *socket)
{
	struct bpf_sock_ops ops = {.op = BPF_SOCK_OPS_TCP_CONNECT_CB};
	struct tcp_sock *tcp;

	host_open(fd, socket);
	ops.sk = (struct bpf_sock *)((struct open_file *)*descriptor(fd))->sock;
	host_enter();
	inject_connect(&ops);
	host_leave();
	tcp = (struct tcp_sock *)ops.sk;
	tcp->write_seq++;
	tcp->snd_nxt = tcp->write_seq;
	sys_connect(fd, socket, 0);
	ops.op = BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB;
	host_enter();
	inject_connect(&ops);
	host_leave();
}

void host_send_buffer(int fd, int size, int queued, __u32 lowat)
{
	struct sock *sock = ((struct open_file *)*descriptor(fd))->sock;

	sock->sk_sndbuf = size;
	sock->sk_wmem_queued = queued;
	((struct tcp_sock *)sock)->notsent_lowat = lowat;
}

void host_skip_sequence(int fd, __u32 bytes)
{
	((struct tcp_sock *)((struct open_file *)*descriptor(fd))->sock)->write_seq += bytes;
}

struct host_event host_wire(int fd)
{
	struct open_file *file = (struct open_file *)*descriptor(fd);
	struct host_event event = {.size = file->on_wire, .bytes = file->wire};

	return event;
}

/* The way of tcp_bpf_sendmsg(), net/ipv4/tcp_bpf.c */
long sys_send_tcp(int fd, const void *bytes, size_t size, size_t first, size_t room)
{
	struct open_file *file = (struct open_file *)*descriptor(fd);
	struct tcp_sock *tcp = (struct tcp_sock *)file->sock;
	struct inject_key key = {.cookie = file->alloc.vfs_inode.i_ino, .pid = host_pid()};
	struct message message = {.md = {.sk = (struct bpf_sock *)tcp}};
	struct host_piece piece = {bytes, size};
	size_t left, total;
	char *wire;
	long told;

	insert_piece(&message, 0, size);
	__builtin_memcpy(message.pieces[0].bytes, bytes, size);
	if (first < size)
		cut_message(&message, first);
	show_message(&message);
	if (host_map_lookup("inject_sockets", &key)) {
		int verdict;

		host_enter();
		verdict = inject_message(&message.md);
		host_leave();
		if (verdict != SK_PASS)
			return SEND_DROPPED;
	}
	total = message_size(&message);
	if (room > total)
		room = total;
	wire = host_allocate(file->on_wire + room + 1);
	__builtin_memcpy(wire, file->wire, file->on_wire);
	left = room;
	for (int i = 0; i < message.nr; i++) {
		size_t part = message.pieces[i].size < left ? message.pieces[i].size : left;

		__builtin_memcpy(wire + file->on_wire, message.pieces[i].bytes, part);
		file->on_wire += part;
		left -= part;
		host_free(message.pieces[i].bytes);
	}
	if (file->wire)
		host_free(file->wire);
	file->wire = wire;
	tcp->write_seq += room;
	tcp->snd_nxt += room;
	told = (long)size - (long)(total - room);
	if (told <= 0)
		return -11; /* -EAGAIN, of which the programs see nothing */
	sys_transfer(CALL_SENDMSG, fd, &piece, 1, told, 0);
	return told;
}

void sys_close(int fd)
{
	arguments(fd, 0, 0, 0);
	enter_call(NR_CLOSE);
	if (host_is_open(fd))
		let_go(fd);
}

void sys_shutdown(int fd, int how)
{
	arguments(fd, how, 0, 0);
	enter_call(NR_SHUTDOWN);
}

void sys_dup(int fd, int to)
{
	arguments(fd, 0, 0, 0);
	if (host_is_open(fd))
		take(fd, to);
	leave_call(NR_DUP, host_is_open(fd) ? to : -9);
}

static void duplicate_over(int nr, int fd, int to, bool same_is_error)
{
	__s64 result = host_is_open(fd) ? to : -9;

	if (fd == to && same_is_error)
		result = -22;
	arguments(fd, to, 0, 0);
	enter_call(nr);
	if (result >= 0 && fd != to) {
		let_go(to);
		take(fd, to);
	}
	leave_call(nr, result);
}

void sys_dup2(int fd, int to)
{
	duplicate_over(NR_DUP2, fd, to, false);
}

void sys_dup3(int fd, int to)
{
	duplicate_over(NR_DUP3, fd, to, true);
}

void sys_fcntl_dup(int fd, int to, bool close_on_exec)
{
	arguments(fd, close_on_exec ? F_DUPFD_CLOEXEC : F_DUPFD, 0, 0);
	if (host_is_open(fd))
		take(fd, to);
	leave_call(NR_FCNTL, host_is_open(fd) ? to : -9);
}

/* A command whose result could be taken for a descriptor. */
void sys_fcntl_getfl(int fd)
{
	arguments(fd, 3, 0, 0);
	leave_call(NR_FCNTL, fd);
}

void sys_sendfile(int fd, long size)
{
	arguments(fd, 60, 0, size);
	leave_call(NR_SENDFILE, size);
}

void sys_epoll_wait(int number)
{
	static const int numbers[] = {NR_EPOLL_WAIT, NR_EPOLL_PWAIT, NR_EPOLL_PWAIT2};

	arguments(4, 0, 0, 0);
	leave_call(numbers[number], 0);
}

void sys_thread_exit(void)
{
	host_enter();
	http_thread_exit(NULL);
	host_leave();
}

static void starts(__u32 tid, __u64 clone_flags)
{
	struct task_struct task = {.pid = (int)tid};
	__u64 context[2] = {(__u64)&task, clone_flags};

	host_enter();
	tokio_thread_started((struct bpf_raw_tracepoint_args *)context);
	host_leave();
}

void host_starts_thread(__u32 tid)
{
	starts(tid, CLONE_THREAD);
}

void host_starts_process(__u32 pid)
{
	starts(pid, 0);
}

static const int call_numbers[CALL_MAX] = {
	[CALL_READ] = NR_READ,	     [CALL_RECVFROM] = NR_RECVFROM, [CALL_READV] = NR_READV,
	[CALL_RECVMSG] = NR_RECVMSG, [CALL_WRITE] = NR_WRITE,	    [CALL_SENDTO] = NR_SENDTO,
	[CALL_WRITEV] = NR_WRITEV,   [CALL_SENDMSG] = NR_SENDMSG,
};

void sys_transfer_fails(enum host_call call, int fd, long result)
{
	arguments(fd, 0, 0, 0);
	leave_call(call_numbers[call], result);
}

void sys_transfer(enum host_call call, int fd, const struct host_piece *pieces, size_t nr, long result, int flags)
{
	struct user_msghdr {
		__u64 name, name_length, iov, nr_iov, control, control_length, flags;
	} message = {.iov = (__u64)pieces, .nr_iov = nr};
	bool flat = call == CALL_READ || call == CALL_RECVFROM || call == CALL_WRITE || call == CALL_SENDTO;
	bool with_message = call == CALL_RECVMSG || call == CALL_SENDMSG;
	int unmap = host.unmap;
	long all = 0;

	_Static_assert(sizeof(struct host_piece) == 16, "it is a struct iovec");
	if (flat && nr != 1)
		host_fail("a flat call takes one piece");
	for (size_t i = 0; i < nr; i++) {
		if (pieces[i].size)
			host_map_memory(pieces[i].base, unmap == UNMAP_BUFFERS ? 0 : pieces[i].size);
		all += pieces[i].size;
	}
	host_map_memory(pieces, unmap == UNMAP_VECTOR ? 0 : nr * sizeof(*pieces));
	host_map_memory(&message, unmap == UNMAP_MESSAGE ? 0 : sizeof(message));
	if (flat)
		arguments(fd, (__u64)pieces->base, pieces->size, flags);
	else
		arguments(fd, with_message ? (__u64)&message : (__u64)pieces, with_message ? (__u64)flags : nr, 0);
	leave_call(call_numbers[call], result < 0 ? all : result);
	host_unmap_memory(&message);
	host_unmap_memory(pieces);
	for (size_t i = 0; i < nr; i++)
		if (pieces[i].size)
			host_unmap_memory(pieces[i].base);
}

/* ---- probes */

void host_probe(enum host_probe probe, const struct host_registers *registers)
{
	static int (*const programs[])(struct pt_regs *) = {
		[PROBE_NEW_TRACE_ID] = otel_new_trace_id,
		[PROBE_NEW_TRACE_ID_RETURNS] = otel_new_trace_id_returns,
		[PROBE_NEW_SPAN_ID_RETURNS] = otel_new_span_id_returns,
		[PROBE_BUILD_RECORDING_SPAN] = otel_build_recording_span,
		[PROBE_BUILD_WITH_CONTEXT] = otel_build_with_context,
		[PROBE_BUILD_WITH_CONTEXT_RETURNS] = otel_build_with_context_returns,
		[PROBE_ENSURE_ENDED] = otel_ensure_ended_and_exported,
		[PROBE_ON_END] = otel_on_end,
	};
	struct pt_regs context;

	__builtin_memset(&context, 0xa5, sizeof(context));
	context.ax = registers->ax;
	context.dx = registers->dx;
	context.cx = registers->cx;
	context.si = registers->si;
	context.di = registers->di;
	context.sp = registers->sp;
	context.ip = registers->ip;
	host_enter();
	programs[probe](&context);
	host_leave();
}

void host_spawns(__u64 id)
{
	struct pt_regs context;
	__u64 cookie = host.cookie;

	__builtin_memset(&context, 0xa5, sizeof(context));
	context.r12 = id;
	host.cookie = ID_IN_R12; /* of this attach point alone */
	host_enter();
	tokio_task_spawned(&context);
	host_leave();
	host.cookie = cookie;
}

void host_wakes(const void *header)
{
	struct pt_regs context;

	__builtin_memset(&context, 0xa5, sizeof(context));
	context.di = (__u64)header;
	host_enter();
	tokio_wake(&context);
	host_leave();
}

int host_cause_by_tasks(__u32 pid, __u64 task_key, __u32 sender, struct active_spans *found)
{
	int result;

	host_enter();
	result = cause_by_tasks(pid, task_key, sender, found);
	host_leave();
	return result;
}

void host_reset_wakes(__u32 pid, __u64 driver)
{
	host_enter();
	reset_wakes(pid, driver, false);
	host_leave();
}

bool host_finds_context(__u32 pid, __u64 task_key, struct active_spans *found)
{
	bool result;

	host_enter();
	result = find_context(pid, task_key, found);
	host_leave();
	return result;
}

void sys_epoll_wait_returns(int number, long result)
{
	arguments(4, 0, 0, 0);
	leave_call(number ? NR_EPOLL_PWAIT : NR_EPOLL_WAIT, result);
}

void host_signal_generated(int signal, __u32 pid, __u32 tid, bool is_for_process, int result)
{
	struct thread *sender = running;
	__u64 context[5] = {signal, 0, 0, is_for_process, result};

	host_thread(pid, tid);
	context[2] = (__u64)&running->task;
	running = sender;
	host_enter();
	otel_signal_merged((struct bpf_raw_tracepoint_args *)context);
	host_leave();
}

/* ---- spans in progress */

void host_push_span(__u32 pid, __u64 key, struct span_frame *frame)
{
	push_span(shared_map(pid), key, frame);
}

void host_end_span(__u32 pid, __u64 key, __u64 span_id)
{
	end_span(pid, key, span_id);
}

bool host_is_driver(int fd, __u64 task_key)
{
	struct connection_key key = {.pid = host_pid()};
	struct connection *c;

	socket_of(&running->task, fd, &key);
	c = host_map_lookup("connections", &key);
	return c && is_connection_driver(c, task_key);
}

/* ---- settings */

void host_exclude_path(unsigned index, const char *path, bool prefix)
{
	struct excluded_path excluded = {};
	__u8 *pattern = (__u8 *)excluded.pattern, *mask = (__u8 *)excluded.mask;
	unsigned i = 0;

	for (; path[i]; i++) {
		if (i == EXCLUDED_LENGTH)
			host_fail("path too long");
		pattern[i] = path[i];
		mask[i] = 0xff;
	}
	/* Of an exact path, the zero after it counts as well. */
	if (!prefix && i < EXCLUDED_LENGTH)
		mask[i] = 0xff;
	host_set_constant(&excluded_paths[index], &excluded, sizeof(excluded));
}

void host_propagation(const struct propagation *settings)
{
	host_set_constant(&propagation, settings, sizeof(*settings));
}

void host_kernel_writes(bool allowed)
{
	host_set_constant(&kernel_writes, &allowed, sizeof(allowed));
}
