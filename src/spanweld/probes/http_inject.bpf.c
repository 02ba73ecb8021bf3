/*
 * HTTP inject: the context of a request out is put into its head as it leaves, as a `traceparent` header behind
 * the request line, and `tracestate` and `baggage` as they came in with the request that is its cause.
 *
 * inject_connect notes the sockets that a target connects, and gives those of TCP to inject_message,
 * which runs in the thread that sends, under the socket's lock, before the bytes are in its send buffer.
 * What is a head is not decided here: the parser (http_server.bpf.c) is at the beginning of a request, and the
 * bytes that it has seen are all that were accepted of the target's, by TCP's own count. So where anything was
 * missed, be it a system call that nobody follows, nothing is changed. The head is looked through here once
 * more, and must be in this one message as a whole, so that a header of the application's own is found.
 */
#include "http_client.bpf.h"
#include "http_inject.bpf.h"
#include "carried.bpf.h"

#define IPPROTO_TCP 6
#define TCP_NODELAY 1
#define O_NONBLOCK 04000

#define HEAD_STEPS 1024 /* lines, and pieces of LINE_STEP bytes, of one head */
#define HEAD_PULLED 16384 /* bytes of a message that are made contiguous to find the end of a head */
#define TEXT_MAX 16384 /* more than what is ever put into a head */
#define PIECES_MAX 7
#define WRITE_STEPS (TEXT_MAX / 8 + 2 * PIECES_MAX)
#define ROOM_FOR_SEGMENT 2048 /* what the kernel counts for a segment besides its bytes */

/* http_server.bpf.c */
int extend_line(struct connection *c, struct direction *d);
int parse_request_line(struct direction *d, struct server_span_event *request);
static __always_inline void clear_request(struct server_span_event *request);
static __always_inline void leave_connection(struct connection *c, struct connection_key *key);

/* The target's sockets. Written by inject_connect; deleted by the kernel at close, and by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 65536);
	__type(key, struct inject_key);
	__type(value, __u64);
} inject_sockets SEC(".maps");

enum own_header {
	OWN_TRACEPARENT = 1,
	OWN_TRACESTATE = 2,
	OWN_BAGGAGE = 4,
};

/* connection.window while a header is put in: our texts, each with slack behind it. */
enum {
	TRACEPARENT_AT = 0,
	TRACEPARENT_LENGTH = 70, /* "traceparent: 00-", 32 digits, '-', 16, '-', 2, CR LF */
	LINE_END_AT = 68,
	LINE_END_LENGTH = 2,
	TRACESTATE_NAME_AT = 80,
	TRACESTATE_NAME_LENGTH = 12,
	BAGGAGE_NAME_AT = 96,
	BAGGAGE_NAME_LENGTH = 9,
};

/* What is to be written, one after the other. */
struct text_piece {
	__u64 from;
	__u64 length;
};

struct inject_state {
	struct connection_key key;
	__u64 cookie;
	__u32 first; /* TCP's sequence number of the first byte */
	__u32 pushed; /* bytes of ours among those that were sent */
	__u32 last_pushed; /* of them, what the last message got; */
	__u32 last_pushed_at; /* … and the number of that message's first byte */
	__u32 let_go;
	/* Of the message under way: here and not on the stack, of which the verifier follows each value. */
	__u32 left; /* bytes to look at, or to write */
	__u64 from; /* where they are */
	__u32 at; /* where the line under way begins, or the next byte is to be written */
	__u32 place; /* where the header goes: behind the request line */
	__u32 whole; /* the head is, and ends here */
	__u32 own; /* enum own_header of those met, as bits */
	__u32 piece; /* the next one to write, */
	__u32 pieces; /* of so many */
	__u32 length; /* of all of them */
	struct text_piece texts[8];
};

/* Made at connect by inject_connect, goes with the socket; changed by inject_message. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct inject_state);
} inject_states SEC(".maps");

/*
 * A socket with an sk_msg program has another recvmsg (tcp_bpf_recvmsg), which waits once and returns EAGAIN for
 * whatever else wakes it: a signal, a reset. To a socket that does not block that is no news; a service that
 * reads from one that does is not prepared for it.
 */
static __always_inline bool blocks(struct sock *sock)
{
	return !(BPF_CORE_READ(sock, sk_socket, file, f_flags) & O_NONBLOCK);
}

static __always_inline int connecting(struct bpf_sock_ops *ops)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct inject_state *state;
	struct socket_alloc *file;
	struct target *target;
	struct bpf_sock *sk;
	struct tcp_sock *tcp;
	struct sock *sock;
	__u32 pid;

	pid = BPF_CORE_READ(task, tgid);
	target = find_target(pid);
	if (!target || !target->inject)
		return 1;
	sk = ops->sk;
	if (!sk)
		return 1;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return 1;
	sock = (struct sock *)tcp;
	file = (struct socket_alloc *)BPF_CORE_READ(sock, sk_socket);
	if (!file || blocks(sock)) /* without a file: the kernel's own */
		return 1;
	state = bpf_sk_storage_get(&inject_states, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!state)
		return 1;
	/* It may have been connected before, and let go again. */
	state->pushed = 0;
	state->last_pushed = 0;
	state->let_go = 0;
	state->key.socket = (__u64)tcp;
	state->key.inode = BPF_CORE_READ(file, vfs_inode.i_ino);
	state->key.pid = pid;
	state->cookie = bpf_get_socket_cookie(ops);
	/* The SYN has a number too. Bytes that go with it (TCP Fast Open) are then some that nobody has seen. */
	state->first = BPF_CORE_READ(tcp, write_seq) + 1;
	return 1;
}

static __always_inline int connected(struct bpf_sock_ops *ops)
{
	struct inject_state *state;
	struct inject_key key = {};
	struct bpf_sock *sk;
	int on = 1;

	sk = ops->sk;
	if (!sk)
		return 1;
	state = bpf_sk_storage_get(&inject_states, sk, NULL, 0);
	if (!state)
		return 1;
	key.cookie = state->cookie;
	key.pid = state->key.pid;
	/*
	 * On its way through inject_message the kernel cuts a message where its pages end, and each piece may leave as
	 * a small segment. Nagle's algorithm would hold the next one until the peer acknowledges it, 40 ms later.
	 */
	if (bpf_setsockopt(ops, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) ||
	    bpf_sock_hash_update(ops, &inject_sockets, &key, BPF_ANY))
		count(COUNT_INJECT_REFUSED);
	return 1;
}

/* The callback at connect runs in the thread that connects, the other one in whatever an answer interrupts. */
SEC("sockops")
int inject_connect(struct bpf_sock_ops *ops)
{
	switch (ops->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		return connecting(ops);
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		return connected(ops);
	}
	return 1;
}

struct head_scan {
	struct connection *connection;
	struct inject_state *state;
};

/* A line of the head is in d->line; d->line_length is its length. 1: no more lines are of interest. */
static __always_inline int head_line(struct inject_state *state, struct direction *d)
{
	__u32 length = d->line_length;
	__u64 w0, w1;

	d->line_length = 0;
	state->at += length;
	if (!state->place) {
		state->place = state->at;
		return 0;
	}
	w0 = load64(d->line);
	if ((w0 & 0xff) == '\n' || (w0 & 0xffff) == ('\r' | '\n' << 8)) {
		state->whole = state->at;
		return 1;
	}
	/* Also with a blank before the colon, which must not be. */
	w0 |= LOWER;
	w1 = load64(&d->line[8]) | LOWER;
	if (w0 == TEXT8('t', 'r', 'a', 'c', 'e', 'p', 'a', 'r') &&
	    (w1 & FIRST_BYTES(3)) == TEXT8('e', 'n', 't', 0, 0, 0, 0, 0))
		state->own |= OWN_TRACEPARENT;
	else if (w0 == TEXT8('t', 'r', 'a', 'c', 'e', 's', 't', 'a') &&
		 (w1 & FIRST_BYTES(2)) == TEXT8('t', 'e', 0, 0, 0, 0, 0, 0))
		state->own |= OWN_TRACESTATE;
	else if ((w0 & FIRST_BYTES(7)) == TEXT8('b', 'a', 'g', 'g', 'a', 'g', 'e', 0) && w0 >> 56 != '-')
		state->own |= OWN_BAGGAGE;
	return 0;
}

/* Up to LINE_STEP bytes of a line of the head. */
static long head_step(__u32 index, void *context)
{
	struct head_scan *s = context;
	struct connection *c = s->connection;
	struct inject_state *state = s->state;
	struct direction *d = &c->in;
	struct server_span_event *request;
	__u32 want, found;

	(void)index;
	if (!c->window_left) {
		__u64 size = state->left;

		/* The compiler would copy 32 bits, of which the verifier of Linux 6.1 then knows nothing. */
		asm volatile("" : "+r"(size));
		if (size > WINDOW)
			size = WINDOW;
		if (!size || bpf_probe_read_kernel(c->window, size, (void *)state->from))
			return 1;
		state->from += size;
		state->left -= size;
		c->window_at = 0;
		c->window_left = size;
	}
	want = c->window_left < LINE_STEP ? c->window_left : LINE_STEP;
	found = extend_line(c, d);
	if (found < want)
		want = found + 1;
	d->line_length += want;
	c->window_at += want;
	c->window_left -= want;
	if (d->line_length + state->at > HEAD_PULLED)
		return 1;
	if (found >= want)
		return 0;
	if (!state->place) {
		request = &c->requests[(c->active ^ 1) & 1];
		clear_request(request);
		if (parse_request_line(d, request) || request->method == METHOD_CONNECT ||
		    is_own_export(c, request))
			return 1;
	}
	return head_line(state, d);
}

/* Looks through the first bytes of the message, those in one piece, for a head; state->whole: there is one. */
static __always_inline void scan_head(struct sk_msg_md *msg, struct connection *c, struct inject_state *state)
{
	struct head_scan scan = {.connection = c, .state = state};

	state->from = (__u64)msg->data;
	state->left = (__u64)msg->data_end - (__u64)msg->data;
	state->at = 0;
	state->place = 0;
	state->whole = 0;
	state->own = 0;
	c->window_left = 0;
	c->in.line_length = 0;
	bpf_loop(HEAD_STEPS, head_step, &scan, 0);
	/* As the parser left it, and will find it. */
	c->window_left = 0;
	c->in.line_length = 0;
}

/* " HTTP/1.1" and the end of the line, as nearly all write it: not " HTTP/1.1 ", and no bare line feed. */
static __always_inline bool is_plain_request_line(__u64 end)
{
	struct {
		__u64 version;
		__u16 rest;
		__u16 pad[3];
	} text = {};

	if (bpf_probe_read_kernel(&text, 10, (void *)(end - 10)))
		return false;
	return (text.version & ~0ULL >> 8) == TEXT8('H', 'T', 'T', 'P', '/', '1', '.', 0) &&
	       (text.version >> 56 == '0' || text.version >> 56 == '1') && text.rest == ('\r' | '\n' << 8);
}

/*
 * Whether the socket's send buffer takes so many bytes for sure: if it took only some of ours, and the
 * application were told that none of its own had been taken, it would send those again.
 */
static __always_inline bool has_room(const struct inject_state *state, __u32 bytes)
{
	struct tcp_sock *tcp = (struct tcp_sock *)state->key.socket;
	struct sock *sock = (struct sock *)tcp;
	__u32 lowat, unsent;
	__s64 room;

	room = (__s64)BPF_CORE_READ(sock, sk_sndbuf) - BPF_CORE_READ(sock, sk_wmem_queued);
	if (room < (__s64)bytes + ROOM_FOR_SEGMENT)
		return false;
	/* TCP_NOTSENT_LOWAT: another limit, of what waits to be sent for the first time */
	lowat = BPF_CORE_READ(tcp, notsent_lowat);
	if (!lowat)
		lowat = BPF_CORE_READ(sock, __sk_common.skc_net.net, ipv4.sysctl_tcp_notsent_lowat);
	unsent = BPF_CORE_READ(tcp, write_seq) - BPF_CORE_READ(tcp, snd_nxt);
	return (__s64)lowat - unsent >= (__s64)bytes + ROOM_FOR_SEGMENT;
}

/* Eight hexadecimal digits, the highest first. */
static __always_inline __u64 hex8(__u32 number)
{
	__u64 digits = 0, above_nine;

	for (int i = 0; i < 8; i++)
		digits |= (__u64)(number >> (28 - 4 * i) & 15) << (8 * i);
	above_nine = (digits + 0x0606060606060606ULL) >> 4 & 0x0101010101010101ULL;
	return digits + 0x3030303030303030ULL + above_nine * ('a' - '0' - 10);
}

/* Our texts, into c->window. https://www.w3.org/TR/trace-context/#traceparent-header */
GLOBAL int format_texts(struct connection *c)
{
	const struct request_out *out;
	char *text;

	if (!c)
		return 0;
	out = &c->request_out;
	text = c->window;
	store64(text, TEXT8('t', 'r', 'a', 'c', 'e', 'p', 'a', 'r'));
	store64(text + 8, TEXT8('e', 'n', 't', ':', ' ', '0', '0', '-'));
	store64(text + 16, hex8(out->trace_id_high >> 32));
	store64(text + 24, hex8(out->trace_id_high));
	store64(text + 32, hex8(out->trace_id_low >> 32));
	store64(text + 40, hex8(out->trace_id_low));
	text[48] = '-';
	store64(text + 49, hex8(out->span_id >> 32));
	store64(text + 57, hex8(out->span_id));
	store64(text + 65, TEXT8('-', '0', '0' | (out->flags & (TRACE_FLAG_SAMPLED | TRACE_FLAG_RANDOM)), '\r',
				 '\n', 0, 0, 0));
	store64(text + TRACESTATE_NAME_AT, TEXT8('t', 'r', 'a', 'c', 'e', 's', 't', 'a'));
	store64(text + TRACESTATE_NAME_AT + 8, TEXT8('t', 'e', ':', ' ', 0, 0, 0, 0));
	store64(text + BAGGAGE_NAME_AT, TEXT8('b', 'a', 'g', 'g', 'a', 'g', 'e', ':'));
	store64(text + BAGGAGE_NAME_AT + 8, TEXT8(' ', 0, 0, 0, 0, 0, 0, 0));
	return 0;
}

static __always_inline void add_piece(struct inject_state *state, __u64 from, __u32 length)
{
	struct text_piece *piece = &state->texts[state->pieces & 7];

	piece->from = from;
	piece->length = length;
	state->pieces++;
	state->length += length;
}

/* A header line with a text of what came in. */
static __always_inline void add_line(struct inject_state *state, __u64 window, __u32 name_at, __u32 name_length,
				     __u64 text, __u32 length)
{
	add_piece(state, window + name_at, name_length);
	add_piece(state, text, length);
	add_piece(state, window + LINE_END_AT, LINE_END_LENGTH);
}

/* Which texts are to be written: what was carried, too, if it is there. */
static __always_inline void choose_texts(struct connection *c, struct inject_state *state,
					 const struct carried *carried)
{
	__u64 window = (__u64)c->window;
	__u32 length;

	format_texts(c);
	state->pieces = 0;
	state->length = 0;
	add_piece(state, window + TRACEPARENT_AT, TRACEPARENT_LENGTH);
	if (!carried)
		return;
	length = carried->tracestate_length;
	if (length && length <= TRACESTATE_MAX && !(state->own & OWN_TRACESTATE))
		add_line(state, window, TRACESTATE_NAME_AT, TRACESTATE_NAME_LENGTH, (__u64)carried->tracestate,
			 length);
	length = carried->baggage_length;
	if (length && length <= BAGGAGE_MAX && !(state->own & OWN_BAGGAGE))
		add_line(state, window, BAGGAGE_NAME_AT, BAGGAGE_NAME_LENGTH, (__u64)carried->baggage, length);
}

struct writing {
	struct sk_msg_md *msg;
	struct inject_state *state;
};

/* Eight bytes, or the last few, of a text into the message. */
static long write_step(__u32 index, void *context)
{
	struct writing *w = context;
	struct inject_state *state = w->state;
	__u32 at = state->at, left = state->left, size;
	__u64 words[2] = {}, word;
	char *data, *end;

	(void)index;
	if (!left) {
		struct text_piece *piece = &state->texts[state->piece & 7];

		if (state->piece >= state->pieces)
			return 1;
		state->piece++;
		state->from = piece->from;
		state->left = piece->length;
		return 0;
	}
	size = left < 8 ? left : 8;
	/* The compiler leaves out a mask that it can prove; the verifier of Linux 6.1 needs it. */
	asm volatile("" : "+r"(size));
	if (at > TEXT_MAX || bpf_probe_read_kernel(words, size & 15, (void *)state->from))
		return 1;
	word = words[0];
	data = w->msg->data;
	end = w->msg->data_end;
	data += at;
	if (left >= 8) {
		if (data + 8 > end)
			return 1;
		store64(data, word);
		state->from += 8;
		state->at += 8;
		state->left -= 8;
		return 0;
	}
	for (__u32 i = 0; i < 7; i++) {
		if (i >= left)
			break;
		if (data + i + 1 > end)
			return 1;
		data[i] = word >> (8 * i);
	}
	state->at += left;
	state->left = 0;
	return 0;
}

enum push_result {
	PUSHED,
	NOT_PUSHED,
	PUSH_STUCK, /* what is in the message must not leave */
};

/* What was pushed is taken out again. */
static __always_inline enum push_result unpush(struct sk_msg_md *msg, const struct inject_state *state)
{
	return bpf_msg_pop_data(msg, state->place, state->length, 0) ? PUSH_STUCK : NOT_PUSHED;
}

/* The chosen texts go to their place in the message. */
static __always_inline enum push_result push_texts(struct sk_msg_md *msg, struct inject_state *state)
{
	struct writing writing = {.msg = msg, .state = state};
	__u32 place = state->place, length = state->length;

	if (bpf_msg_push_data(msg, place, length, 0))
		return NOT_PUSHED;
	state->left = 0;
	state->at = 0;
	state->piece = 0;
	if (!bpf_msg_pull_data(msg, place, place + length, 0))
		bpf_loop(WRITE_STEPS, write_step, &writing, 0);
	/* What is there instead is of others' memory. */
	return state->at == length ? PUSHED : unpush(msg, state);
}

/* The message may begin with a head, and nobody else is at the connection. */
static __always_inline int inject(struct sk_msg_md *msg, struct connection *c, struct inject_state *state,
				  struct target *target)
{
	const struct carried *carried = NULL;
	enum push_result result;

	scan_head(msg, c, state);
	if (!state->whole && (__u64)msg->data_end - (__u64)msg->data < msg->size && state->at < HEAD_PULLED) {
		/* The kernel cuts messages where its pages end. */
		if (bpf_msg_pull_data(msg, 0, msg->size < HEAD_PULLED ? msg->size : HEAD_PULLED, 0))
			return SK_PASS;
		scan_head(msg, c, state);
	}
	if (!state->whole || !is_plain_request_line((__u64)msg->data + state->place))
		return SK_PASS;
	if (state->own & OWN_TRACEPARENT) {
		count(COUNT_REQUESTS_OWN);
		return SK_PASS;
	}
	begin_request_out(c, target, state->key.pid, current_task_key(target));
	if (!c->out_prepared || c->request_out.cause == CAUSE_UNKNOWN)
		return SK_PASS;
	if (c->request_out.server_span_id)
		carried = find_carried(state->key.pid, c->request_out.server_span_id);
	choose_texts(c, state, carried);
	if (carried && !has_room(state, state->place + state->length)) {
		carried = NULL;
		choose_texts(c, state, NULL);
	}
	if (!has_room(state, state->place + state->length))
		return SK_PASS;
	result = push_texts(msg, state);
	/* The request that brought it has ended meanwhile, and it may be another's. */
	if (result == PUSHED && carried && carried->span_id != c->request_out.server_span_id) {
		result = unpush(msg, state);
		choose_texts(c, state, NULL);
		if (result == NOT_PUSHED)
			result = push_texts(msg, state);
	}
	if (result == PUSH_STUCK)
		return SK_DROP;
	if (result == NOT_PUSHED)
		return SK_PASS;
	/*
	 * In one piece again, as the head was: each piece would be a segment of its own. If there is no
	 * memory for it, be it so.
	 */
	bpf_msg_pull_data(msg, 0, state->place + state->length + 1, 0);
	state->pushed += state->length;
	state->last_pushed = state->length;
	c->injected = 1;
	count(COUNT_REQUESTS_INJECTED);
	return SK_PASS;
}

static __always_inline void let_socket_go(struct inject_state *state)
{
	struct inject_event event = {};

	state->let_go = 1;
	event.head.kind = EVENT_INJECT;
	event.head.pid = state->key.pid;
	event.head.at = bpf_ktime_get_ns();
	event.cookie = state->cookie;
	event.notice = INJECT_LET_GO;
	emit_at_once(&event, sizeof(event));
}

SEC("sk_msg")
int inject_message(struct sk_msg_md *msg)
{
	struct connection_key key = {};
	struct inject_state *state;
	struct connection *c;
	struct target *target;
	struct tcp_sock *tcp;
	__u32 here;
	int verdict;

	state = bpf_sk_storage_get(&inject_states, msg->sk, NULL, 0);
	if (!state || state->let_go || state->key.pid != bpf_get_current_pid_tgid() >> 32)
		return SK_PASS;
	key = state->key;
	c = bpf_map_lookup_elem(&connections, &key);
	if (!c)
		return SK_PASS;
	/* One may have been connected with a time limit, as the standard library does, and block from then on. */
	if (c->in.state == OPAQUE || blocks((struct sock *)key.socket)) {
		let_socket_go(state);
		return SK_PASS;
	}
	if (c->in.state != START_LINE || c->in.line_length)
		return SK_PASS;
	target = find_target(key.pid);
	if (!target || __sync_fetch_and_or(&c->busy, BUSY) & BUSY)
		return SK_PASS;
	tcp = (struct tcp_sock *)key.socket;
	here = BPF_CORE_READ(tcp, write_seq);
	/* Nothing of the message before was accepted. */
	if (state->last_pushed && here == state->last_pushed_at)
		state->pushed -= state->last_pushed;
	state->last_pushed = 0;
	state->last_pushed_at = here;
	verdict = SK_PASS;
	if (c->in.state == START_LINE && !c->in.line_length && here - state->first - state->pushed == c->sent)
		verdict = inject(msg, c, state, target);
	leave_connection(c, &key);
	return verdict;
}

FOR_THE_AGENT(struct inject_key, inject_key);
FOR_THE_AGENT(struct inject_event, inject_event);
FOR_THE_AGENT(enum inject_notice, inject_notice);
