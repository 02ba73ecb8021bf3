/*
 * HTTP: server spans and client spans from the socket traffic of a target, by the tracepoints of system calls,
 * with no symbol of the target. One parser for both: http_connection.bpf.h says how a client's
 * connection is looked at, http_client.bpf.h what becomes of its requests.
 *
 * Bytes are looked at when the system call returns: they are resident then and their count is
 * known. A connection is known by its socket, not by its descriptor, so a duplicate is the same
 * connection and a reused number is another. The programs are not preempted, but two
 * threads can come to one connection at once: `busy` lets one in.
 */
#include "http_client.bpf.h"
#include "http_connection.bpf.h"

#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define MSG_PEEK 2
#define SHUT_RD 0
#define SHUT_RDWR 2
#define F_DUPFD 0
#define F_DUPFD_CLOEXEC 1030

#define HEAD_MAX 16384
#define SCAN_STEPS 1024 /* steps, skipped bodies and buffers of one system call */
#define QUEUE_MAX 16
#define EXCLUDED_MAX 16
#define NOWHERE (~0ULL) /* no address */

struct queue_key {
	struct connection_key connection;
	__u64 number;
};

/* Pipelined requests whose turn has not come. Written and deleted here. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, struct queue_key);
	__type(value, struct server_span_event);
} queued_requests SEC(".maps");

struct listening_key {
	__u32 pid;
	__u32 port;
};

/* Ports that a target listened on when the agent came. Written and deleted by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct listening_key);
	__type(value, __u8);
} listening SEC(".maps");

const volatile struct excluded_path excluded_paths[EXCLUDED_MAX] = {};

/* What a new connection is copied from: too large for the stack. */
static const struct connection new_connection = {.references = 1};

/* What goes with a connection through the buffers of one system call: its struct transfer says how far. */
struct scan {
	struct connection *connection;
	struct connection_key *key;
	struct target *target;
};

static __always_inline char line_char(const struct direction *d, __u32 at)
{
	/* The compiler leaves out a mask that it can prove; the verifier of Linux 6.1 needs it. */
	asm volatile("" : "+r"(at));
	return d->line[at & (LINE_MAX + LINE_STEP - 1)];
}

/* Length of the line that is kept, without its end; `from` where a header's value begins. */
GLOBAL __u32 trimmed(struct direction *d, __u32 from)
{
	__u32 end;

	if (!d)
		return 0;
	end = d->line_length < LINE_MAX ? d->line_length : LINE_MAX;

	for (int i = 0; i < 8; i++) {
		char c;

		if (end <= from)
			break;
		c = line_char(d, end - 1);
		if (c != '\n' && c != '\r' && c != ' ' && c != '\t')
			break;
		end--;
	}
	return end;
}

GLOBAL __u32 value_start(struct direction *d, __u32 from)
{
	if (!d)
		return 0;
	for (int i = 0; i < 8; i++) {
		char c = line_char(d, from);

		if (c != ' ' && c != '\t')
			break;
		from++;
	}
	return from;
}

/* A length of decimal digits and nothing else; false: malformed. */
static __always_inline bool parse_length(struct direction *d, __u32 from, __u64 *length)
{
	__u32 end = trimmed(d, from);
	__u64 number = 0;

	if (end <= from || end - from > 18)
		return false;
	for (int i = 0; i < 18; i++) {
		__u32 digit;

		if (from >= end)
			break;
		digit = (__u32)(__u8)line_char(d, from) - '0';
		if (digit > 9)
			return false;
		number = number * 10 + digit;
		from++;
	}
	*length = number;
	return true;
}

/* HEX and the value of a hexadecimal digit, 0 for other characters. A table: a branch a digit is too much for the verifier. */
#define HEX 0x80
#define HEX6(from)                                                                                                \
	HEX | (from), HEX | (from + 1), HEX | (from + 2), HEX | (from + 3), HEX | (from + 4), HEX | (from + 5)
static const __u8 hex_digits[256] = {
	['0'] = HEX6(0), HEX | 6, HEX | 7, HEX | 8, HEX | 9, ['a'] = HEX6(10), ['A'] = HEX6(10),
};

#define EACH_BYTE(value) (0x0101010101010101ULL * (value))

#define NOT_HEX (1ULL << 32)

/*
 * The number of eight hexadecimal digits, a byte each; NOT_HEX is added if one is none, or of upper case, which the
 * W3C recommendation forbids. A function, since the compiler keeps its constants on the stack.
 */
GLOBAL __u64 parse_hex8(__u64 text)
{
	__u64 letters = (text >> 6) & EACH_BYTE(1), low = text & EACH_BYTE(0x0f), value = low + 9 * letters, bad;

	/* 0x30 to 0x39 and 0x61 to 0x66: no other upper half, no digit above 9, no letter above f and none before a. */
	bad = (text & EACH_BYTE(0xf0)) ^ (EACH_BYTE(0x30) + 0x30 * letters);
	bad |= (low + EACH_BYTE(6) + 3 * letters) & EACH_BYTE(0x10);
	bad |= ~((low | EACH_BYTE(0x10)) - letters) & EACH_BYTE(0x10);
	/* The first digit counts most, and lies lowest. */
	value = (value << 4 | value >> 8) & 0x00ff00ff00ff00ffULL;
	value = (value | value >> 8) & 0x0000ffff0000ffffULL;
	return __builtin_bswap32(value | value >> 16) | (bad ? NOT_HEX : 0);
}

/* Sixteen, in the same way but for what is wrong with them, which is added to *bad. */
static __always_inline __u64 parse_hex16(const char *text, __u64 *bad)
{
	__u64 high = parse_hex8(load64(text)), low = parse_hex8(load64(text + 8));

	*bad |= (high | low) & NOT_HEX;
	return high << 32 | (__u32)low;
}

/* https://www.w3.org/TR/trace-context/#traceparent-header: what is malformed is no parent. */
GLOBAL int parse_traceparent(struct direction *d, struct server_span_event *request)
{
	__u64 version, high, low, parent, flags, bad;
	__u32 from, length;
	const char *text;

	if (!d || !request)
		return 0;
	from = value_start(d, 12);
	length = trimmed(d, from) - from;
	if (request->traceparents < 2)
		request->traceparents++;
	request->trace_id_low = request->trace_id_high = request->parent_span_id = 0;
	if (request->traceparents > 1 || length < 55 || from > 64)
		return 0;
	text = &d->line[from];
	/* With digits of their own, since there are none beside these two. */
	version = parse_hex8(load64(text) << 48 | EACH_BYTE('0') >> 16);
	flags = parse_hex8(load64(text + 47) >> 48 << 48 | EACH_BYTE('0') >> 16);
	bad = (version | flags) & NOT_HEX;
	high = parse_hex16(text + 3, &bad);
	low = parse_hex16(text + 19, &bad);
	parent = parse_hex16(text + 36, &bad);
	if (bad || text[2] != '-' || text[35] != '-' || text[52] != '-' || version == 0xff ||
	    (version == 0 && length != 55) || (length > 55 && text[55] != '-') || !(high | low) || !parent)
		return 0;
	request->trace_id_high = high;
	request->trace_id_low = low;
	request->parent_span_id = parent;
	request->flags = flags & (TRACE_FLAG_SAMPLED | TRACE_FLAG_RANDOM);
	return 0;
}

#include "propagation.bpf.h"

/* Length of a request line's method, which is set; < 0: minus an opaque_reason. */
GLOBAL int parse_method(struct direction *d, struct server_span_event *request)
{
	__u32 length = 0;
	__u64 word;

	if (!d || !request)
		return -OPAQUE_FRAMING;
	word = load64(d->line);
	if ((__u32)word == (__u32)TEXT8('G', 'E', 'T', ' ', 0, 0, 0, 0)) {
		request->method = METHOD_GET;
		return 3;
	}
	if ((word & FIRST_BYTES(5)) == TEXT8('P', 'O', 'S', 'T', ' ', 0, 0, 0)) {
		request->method = METHOD_POST;
		return 4;
	}
	if ((__u32)word == (__u32)TEXT8('P', 'U', 'T', ' ', 0, 0, 0, 0)) {
		request->method = METHOD_PUT;
		return 3;
	}
	if ((word & FIRST_BYTES(5)) == TEXT8('H', 'E', 'A', 'D', ' ', 0, 0, 0)) {
		request->method = METHOD_HEAD;
		return 4;
	}
	if ((word & FIRST_BYTES(6)) == TEXT8('P', 'A', 'T', 'C', 'H', ' ', 0, 0)) {
		request->method = METHOD_PATCH;
		return 5;
	}
	if ((word & FIRST_BYTES(7)) == TEXT8('D', 'E', 'L', 'E', 'T', 'E', ' ', 0)) {
		request->method = METHOD_DELETE;
		return 6;
	}
	if (word == TEXT8('O', 'P', 'T', 'I', 'O', 'N', 'S', ' ')) {
		request->method = METHOD_OPTIONS;
		return 7;
	}
	if ((word & FIRST_BYTES(6)) == TEXT8('T', 'R', 'A', 'C', 'E', ' ', 0, 0)) {
		request->method = METHOD_TRACE;
		return 5;
	}
	if (word == TEXT8('C', 'O', 'N', 'N', 'E', 'C', 'T', ' ')) {
		request->method = METHOD_CONNECT;
		return 7;
	}
	if (word == TEXT8('P', 'R', 'I', ' ', '*', ' ', 'H', 'T'))
		return -OPAQUE_HTTP2;
	request->method = METHOD_OTHER;
	for (int i = 0; i < HTTP_METHOD_MAX; i++) {
		char c = line_char(d, i);

		if (c == ' ')
			break;
		if ((c < 'A' || c > 'Z') && c != '-' && c != '_')
			return -OPAQUE_FRAMING;
		length++;
	}
	if (!length || length >= HTTP_METHOD_MAX)
		return -OPAQUE_FRAMING;
	if (bpf_probe_read_kernel(request->method_name, length, d->line))
		return -OPAQUE_FRAMING;
	request->method_name[length & (HTTP_METHOD_MAX - 1)] = 0;
	return length;
}

/* 0: well-formed, 1: an empty line before the request line, < 0: minus an opaque_reason. */
GLOBAL int parse_request_line(struct direction *d, struct server_span_event *request)
{
	__u32 length, method_length, target_length;
	int result;

	if (!d || !request)
		return -OPAQUE_FRAMING;
	length = trimmed(d, 0);
	if (!length)
		return 1;
	result = parse_method(d, request);
	if (result < 0)
		return result;
	method_length = result;
	request->version_minor = 1;
	if (d->line_length <= LINE_MAX) {
		char minor;

		if (length < method_length + 11)
			return -OPAQUE_FRAMING;
		length -= 9; /* " HTTP/1.1" */
		if (length >= LINE_MAX)
			return -OPAQUE_FRAMING;
		if (load64(&d->line[length]) != TEXT8(' ', 'H', 'T', 'T', 'P', '/', '1', '.'))
			return -OPAQUE_FRAMING;
		minor = line_char(d, length + 8);
		if (minor != '0' && minor != '1')
			return -OPAQUE_FRAMING;
		request->version_minor = minor - '0';
	}
	target_length = length - method_length - 1;
	if (target_length > HTTP_TARGET_MAX || d->line_length > LINE_MAX)
		request->target_cut = 1;
	if (target_length > HTTP_TARGET_MAX)
		target_length = HTTP_TARGET_MAX;
	if (method_length > HTTP_METHOD_MAX)
		return -OPAQUE_FRAMING;
	if (bpf_probe_read_kernel(request->target, target_length, &d->line[method_length + 1]))
		return -OPAQUE_FRAMING;
	request->target_length = target_length;
	return 0;
}

/* Content-Length and Transfer-Encoding, of a request or of a response. 1: was one of them. */
static __always_inline int parse_framing_header(struct direction *d, __u64 w0, __u64 w1)
{
	__u64 length;

	if (w0 == TEXT8('c', 'o', 'n', 't', 'e', 'n', 't', '-') &&
	    (w1 & FIRST_BYTES(7)) == TEXT8('l', 'e', 'n', 'g', 't', 'h', ':', 0)) {
		if (!parse_length(d, value_start(d, 15), &length))
			return -OPAQUE_FRAMING;
		if (d->has_length && d->content_length != length)
			return -OPAQUE_FRAMING;
		d->has_length = 1;
		d->content_length = length;
		return 1;
	}
	if (w0 == TEXT8('t', 'r', 'a', 'n', 's', 'f', 'e', 'r') &&
	    w1 == TEXT8('-', 'e', 'n', 'c', 'o', 'd', 'i', 'n') &&
	    ((load64(&d->line[16]) | LOWER) & FIRST_BYTES(2)) == TEXT8('g', ':', 0, 0, 0, 0, 0, 0)) {
		__u32 end = trimmed(d, 18);
		__u64 word;

		/* The last coding frames the message, and it must be chunked. */
		if (end < 25 || end > LINE_MAX || d->line_length > LINE_MAX || d->chunked)
			return -OPAQUE_FRAMING;
		word = load64(&d->line[end - 8]);
		if (((word | LOWER) >> 8) != (TEXT8('c', 'h', 'u', 'n', 'k', 'e', 'd', 0)))
			return -OPAQUE_FRAMING;
		/* The whole name: after a comma, a blank or the header's colon. */
		word &= 0xff;
		if (word != ',' && word != ' ' && word != '\t' && word != ':')
			return -OPAQUE_FRAMING;
		d->chunked = 1;
		return 1;
	}
	if (w0 == TEXT8('u', 'p', 'g', 'r', 'a', 'd', 'e', ':')) {
		d->upgrade = 1;
		return 1;
	}
	return 0;
}

GLOBAL int parse_request_header(struct direction *d, struct server_span_event *request, __u32 role)
{
	__u64 w0, w1;
	__u32 from, length;
	int result;

	if (!d || !request)
		return -OPAQUE_FRAMING;
	w0 = load64(d->line) | LOWER;
	w1 = load64(&d->line[8]) | LOWER;
	/* A line that goes on from the one before could hide how the body is framed. */
	if (d->line[0] == ' ' || d->line[0] == '\t')
		return -OPAQUE_FRAMING;
	result = parse_framing_header(d, w0, w1);
	if (result)
		return result < 0 ? result : 0;
	if ((w0 & FIRST_BYTES(5)) == TEXT8('h', 'o', 's', 't', ':', 0, 0, 0)) {
		from = value_start(d, 5);
		length = trimmed(d, from) - from;
		if (length > HTTP_HOST_MAX || from > 16)
			return 0;
		if (length && !bpf_probe_read_kernel(request->host, length, &d->line[from]))
			request->host_length = length;
		return 0;
	}
	if (w0 == TEXT8('u', 's', 'e', 'r', '-', 'a', 'g', 'e') &&
	    (w1 & FIRST_BYTES(3)) == TEXT8('n', 't', ':', 0, 0, 0, 0, 0)) {
		from = value_start(d, 11);
		length = trimmed(d, from) - from;
		if (length > HTTP_USER_AGENT_MAX)
			length = HTTP_USER_AGENT_MAX;
		if (from > 24)
			return 0;
		if (length && !bpf_probe_read_kernel(request->user_agent, length, &d->line[from]))
			request->user_agent_length = length;
		return 0;
	}
	switch (w0 & 0xff) {
	case 't':
	case 'b':
	case 'x':
	case 'u':
		/* What the application itself sends on is the next service's to read, but for whose child it is. */
		if (role != ROLE_CLIENT)
			parse_propagation_header(d, request);
		else if (is_traceparent(w0, w1))
			parse_traceparent(d, request);
	}
	return 0;
}

GLOBAL int parse_status_line(struct direction *d)
{
	__u32 status = 0;

	if (!d)
		return -OPAQUE_FRAMING;
	/* 13: "HTTP/1.1 200" and the end of the line; what is behind that end is not of it */
	if ((load64(d->line) & FIRST_BYTES(7)) != TEXT8('H', 'T', 'T', 'P', '/', '1', '.', 0) ||
	    d->line[8] != ' ' || d->line_length < 13)
		return -OPAQUE_FRAMING;
	for (int i = 9; i < 12; i++) {
		__u32 digit = (__u32)(__u8)d->line[i] - '0';

		if (digit > 9)
			return -OPAQUE_FRAMING;
		status = status * 10 + digit;
	}
	/* A fourth digit would be one too many. */
	if (status < 100 || (__u8)d->line[12] > ' ')
		return -OPAQUE_FRAMING;
	d->status = status;
	return 0;
}

GLOBAL int parse_response_header(struct direction *d)
{
	int result;

	if (!d || d->line[0] == ' ' || d->line[0] == '\t')
		return -OPAQUE_FRAMING;
	result = parse_framing_header(d, load64(d->line) | LOWER, load64(&d->line[8]) | LOWER);
	return result < 0 ? result : 0;
}

/* Chunk size line -> bytes until the next one, or the trailers after the last. */
GLOBAL int parse_chunk_size(struct direction *d)
{
	__u64 size = 0;
	int digits = 0;

	if (!d)
		return -OPAQUE_FRAMING;
	for (int i = 0; i < 12; i++) {
		__u8 digit = hex_digits[(__u8)d->line[i]];

		if (!(digit & HEX))
			break;
		size = size << 4 | (digit & 15);
		digits++;
	}
	if (!digits || digits == 12)
		return -OPAQUE_FRAMING;
	/* Blanks, the end of the line, or an extension. */
	if ((__u8)d->line[digits & 15] > ' ' && d->line[digits & 15] != ';')
		return -OPAQUE_FRAMING;
	if (size) {
		d->state = CHUNK_DATA;
		d->body_left = size + 2;
	} else {
		d->state = TRAILERS;
	}
	return 0;
}

static __always_inline void next_message(struct direction *d)
{
	d->state = START_LINE;
	d->line_length = 0;
	d->head_length = 0;
	d->has_length = 0;
	d->content_length = 0;
	d->chunked = 0;
	d->upgrade = 0;
	d->skips = 0;
	d->status = 0;
	d->started = 0;
	d->remote.seen = 0;
	d->remote.b3_sampling = d->remote.b3_multi_sampling = d->remote.jaeger_sampling = SAMPLING_UNKNOWN;
}

static __always_inline bool path_is_excluded(const struct server_span_event *request)
{
	for (int i = 0; i < EXCLUDED_MAX; i++) {
		if (!excluded_paths[i].mask[0])
			break;
		if (path_matches(&excluded_paths[i], request))
			return true;
	}
	return false;
}

/* The request gets its span's id, if it has none yet, and is listed as open; false: there is no room. */
static __always_inline bool list_as_open(void *tasks, struct connection *c, struct server_span_event *request)
{
	__u64 random;
	__u32 near;

	if (request->span_id)
		return open_request(tasks, request->span_id, HANDED_BUCKET);
	random = next_random(c);
	near = bpf_get_smp_processor_id() * OPEN_BUCKETS_NEAR + random % OPEN_BUCKETS_NEAR;
	request->span_id = open_id_in(near % (1 << OPEN_BUCKETS_LOG2), random);
	if (open_request(tasks, request->span_id, OPEN_PLACES_NEAR))
		return true;
	for (int i = 0; i < 3; i++) {
		request->span_id = new_span_id();
		if (open_request(tasks, request->span_id, HANDED_BUCKET))
			return true;
	}
	return false;
}

/*
 * requests[active] begins to be handled by the running task: its span gets its ids here. That of a
 * client has them since it went out.
 */
GLOBAL int activate(struct connection *c, struct target *target, __u64 key)
{
	struct server_span_event *request;
	struct span_frame frame = {};
	void *tasks;

	if (!c || !target)
		return 0;
	request = &c->requests[c->active & 1];
	c->requests_open = REQUEST_OPEN;
	if (c->role == ROLE_CLIENT)
		return 0;
	request->excluded = path_is_excluded(request);
	if (request->excluded) {
		count(COUNT_EXCLUDED);
		drop_carried(c->pid, request);
		return 0;
	}
	if (!request->parent_span_id) {
		request->trace_id_high = random64();
		request->trace_id_low = next_random(c) | 1; /* never 0 */
	}
	if (!(request->remote & REMOTE_DECIDED) || !target->parent_based)
		request->flags = (request->flags & TRACE_FLAG_RANDOM) | sample(target, request->trace_id_low);
	if (!(request->flags & TRACE_FLAG_SAMPLED))
		count(COUNT_UNSAMPLED);
	tasks = shared_map(c->pid);
	if (!list_as_open(tasks, c, request))
		count(COUNT_TASKS_FULL);
	request->task_key = key;
	request->addresses = c->addresses;
	frame.trace_id_low = request->trace_id_low;
	frame.trace_id_high = request->trace_id_high;
	frame.span_id = request->span_id;
	frame.remote_parent = request->parent_span_id;
	frame.flags = request->flags;
	frame.kind = FRAME_SERVER;
	push_span(tasks, key, &frame);
	if (request->remote & REMOTE_CARRIED && request->flags & TRACE_FLAG_SAMPLED)
		tell_carried(request);
	return 0;
}

/* A span leaves its task's stack and goes out. */
GLOBAL int send_span(struct server_span_event *request, struct connection *c, __u32 status, __u32 ended_by)
{
	__u32 role, pid;
	__u64 length;

	if (!request || !c || request->excluded)
		return 0;
	role = c->role;
	pid = c->pid;
	if (request->task_key)
		end_span(pid, request->task_key, request->span_id);
	drop_carried(pid, request);
	if (role == ROLE_SERVER)
		close_request(pid, request->span_id);
	if (!(request->flags & TRACE_FLAG_SAMPLED))
		return 0;
	request->head.kind = role == ROLE_CLIENT ? EVENT_CLIENT_SPAN : EVENT_SERVER_SPAN;
	request->head.pid = pid;
	request->head.at = c->transfer.now;
	request->status = status;
	request->ended_by = ended_by;
	length = request->target_length;
	if (length > HTTP_TARGET_MAX)
		length = HTTP_TARGET_MAX;
	emit(request, offsetof(struct server_span_event, target) + length);
	count(role == ROLE_CLIENT ? COUNT_CLIENT_SPANS : COUNT_SERVER_SPANS);
	return 0;
}

/* The exchange of requests[active] is over, and with it its span, if that is still open. */
GLOBAL int finish(struct connection *c, __u32 status, __u32 ended_by)
{
	bool is_open;

	if (!c)
		return 0;
	is_open = c->requests_open == REQUEST_OPEN;
	c->requests_open = NO_REQUEST;
	return is_open ? send_span(&c->requests[c->active & 1], c, status, ended_by) : 0;
}

static __always_inline void clear_request(struct server_span_event *request)
{
	__builtin_memset(request, 0, offsetof(struct server_span_event, host));
	/* What path_matches() looks at, however long the target is. */
	__builtin_memset(request->target, 0, EXCLUDED_LENGTH);
}

GLOBAL int say_opaque(struct connection *c, __u32 reason)
{
	struct connection_opaque_event event = {};

	if (!c)
		return 0;
	if (c->said_opaque)
		return 0;
	c->said_opaque = 1;
	if (c->role == ROLE_CLIENT && !is_worth_telling(c, reason))
		return 0;
	if (reason == OPAQUE_TLS)
		count(COUNT_TLS);
	else if (reason == OPAQUE_HTTP2)
		count(COUNT_HTTP2);
	else if (reason == OPAQUE_HEAD_TOO_LONG)
		count(COUNT_HEAD_TOO_LONG);
	else if (reason == OPAQUE_SCAN_LIMIT)
		count(COUNT_SCAN_LIMIT);
	else if (reason == OPAQUE_RESPONSE_WITHOUT_REQUEST)
		count(COUNT_RESPONSE_WITHOUT_REQUEST);
	else if (reason == OPAQUE_BUSY)
		count(COUNT_CONNECTION_BUSY);
	else if (reason == OPAQUE_QUEUE_FULL)
		count(COUNT_QUEUE_FULL);
	else
		count(COUNT_FRAMING_ERROR);
	event.head.kind = EVENT_CONNECTION_OPAQUE;
	event.head.pid = c->pid;
	event.head.at = bpf_ktime_get_ns();
	event.reason = reason;
	event.role = c->role;
	event.addresses = c->addresses;
	emit(&event, sizeof(event));
	return 0;
}

/*
 * One way cannot be followed any more. What came in before an unreadable request may still be
 * answered, so only the way out being lost ends the open span.
 */
static __always_inline void make_opaque(struct connection *c, bool is_out, __u32 reason)
{
	say_opaque(c, reason);
	forget_request_out(c);
	c->in.state = OPAQUE;
	if (is_out) {
		c->out.state = OPAQUE;
		finish(c, c->out.status, END_UNFRAMED);
	}
}

/* The head of a request is complete. */
static __always_inline void request_head_done(struct scan *s)
{
	struct connection *c = s->connection;
	struct direction *d = &c->in;
	struct server_span_event *request = &c->requests[(c->active ^ 1) & 1];

	request->start = d->started;
	if (d->has_length && d->chunked) {
		make_opaque(c, false, OPAQUE_FRAMING);
		return;
	}
	if (c->role == ROLE_CLIENT)
		request_head_out(c, s->target, request);
	else
		settle_remote(d, request);
	if (!c->requests_open) {
		c->active ^= 1;
		activate(c, s->target, current_task_key(s->target));
	} else {
		struct queue_key key = {};

		key.connection = *s->key;
		key.number = c->queue_tail;
		if (c->queue_tail - c->queue_head >= QUEUE_MAX ||
		    bpf_map_update_elem(&queued_requests, &key, request, BPF_ANY)) {
			/* A client's is on its way already, and its span on a task's stack. */
			if (c->role == ROLE_CLIENT)
				send_span(request, c, 0, END_UNFRAMED);
			make_opaque(c, false, OPAQUE_QUEUE_FULL);
			return;
		}
		c->queue_tail++;
	}
	if (d->chunked) {
		d->state = CHUNK_SIZE;
		d->line_length = 0;
	} else if (d->content_length) {
		d->state = BODY_COUNTED;
		d->body_left = d->content_length;
	} else {
		next_message(d);
	}
}

/* The response under way is complete: its request ends, and the next pipelined one is handled. */
static __always_inline void response_done(struct scan *s)
{
	struct connection *c = s->connection;
	struct server_span_event *queued;
	struct queue_key key = {};
	bool had_body;

	had_body = c->out.state != HEADERS;
	finish(c, c->out.status, END_RESPONSE);
	next_message(&c->out);
	/* Only now can the connection be handed a request. What woke its driver until here were reads of the body. */
	if (c->role == ROLE_CLIENT && !c->is_shared)
		reset_wakes(c->pid, c->user, had_body);
	if (c->queue_head == c->queue_tail)
		return;
	key.connection = *s->key;
	key.number = c->queue_head++;
	queued = bpf_map_lookup_elem(&queued_requests, &key);
	if (!queued)
		return;
	/* Not to the other place: a request that is being read is there. */
	bpf_probe_read_kernel(&c->requests[c->active & 1], sizeof(*queued), queued);
	bpf_map_delete_elem(&queued_requests, &key);
	activate(c, s->target, current_task_key(s->target));
}

/* The head of a response is complete. RFC 9112, section 6.3 */
static __always_inline void response_head_done(struct scan *s)
{
	struct connection *c = s->connection;
	struct direction *d = &c->out;
	__u8 method;

	if (!c->requests_open) {
		make_opaque(c, true, OPAQUE_RESPONSE_WITHOUT_REQUEST);
		return;
	}
	method = c->requests[c->active & 1].method;
	if (d->status == 101 || (method == METHOD_CONNECT && d->status / 100 == 2)) {
		finish(c, d->status, END_UPGRADED);
		c->in.state = OPAQUE;
		d->state = OPAQUE;
		return;
	}
	if (d->status < 200) { /* the final response is still to come */
		next_message(d);
		return;
	}
	if (c->role == ROLE_CLIENT) {
		finish(c, d->status, END_RESPONSE);
		c->requests_open = RESPONSE_UNDER_WAY;
	}
	if (method == METHOD_HEAD || d->status == 204 || d->status == 304) {
		response_done(s);
	} else if (d->chunked && d->has_length) {
		make_opaque(c, true, OPAQUE_FRAMING);
	} else if (d->chunked) {
		d->state = CHUNK_SIZE;
		d->line_length = 0;
	} else if (!d->has_length) {
		d->state = BODY_UNTIL_CLOSE;
	} else if (d->content_length) {
		d->state = BODY_COUNTED;
		d->body_left = d->content_length;
	} else {
		response_done(s);
	}
}

static __always_inline void message_done(struct scan *s)
{
	if (s->connection->transfer.is_out)
		response_done(s);
	else
		next_message(&s->connection->in);
}

/* A whole line is in d->line. */
static __always_inline void line_done(struct scan *s, struct direction *d)
{
	struct connection *c = s->connection;
	bool is_out = c->transfer.is_out;
	struct server_span_event *request = &c->requests[(c->active ^ 1) & 1];
	bool empty = d->line[0] == '\n' || (d->line[0] == '\r' && d->line[1] == '\n');
	int result = 0;

	switch (d->state) {
	case START_LINE:
		if (is_out) {
			result = parse_status_line(d);
		} else {
			clear_request(request);
			result = parse_request_line(d, request);
			if (!result && c->role == ROLE_CLIENT)
				request_line_out(c, s->target, request);
		}
		if (!result)
			d->state = HEADERS;
		else if (result > 0)
			d->started = 0;
		break;
	case HEADERS:
		if (empty) {
			if (is_out)
				response_head_done(s);
			else
				request_head_done(s);
		} else if (is_out) {
			result = parse_response_header(d);
		} else {
			result = parse_request_header(d, request, c->role);
		}
		break;
	case CHUNK_SIZE:
		result = parse_chunk_size(d);
		break;
	case TRAILERS:
		if (empty)
			message_done(s);
		break;
	}
	d->line_length = 0;
	if (result < 0)
		make_opaque(c, is_out, -result);
}

struct queue_end {
	struct connection *connection;
	struct queue_key key;
	__u32 is_client;
	__u32 ended_by;
};

/* What a client has sent ahead fails with its connection; of a server's requests nobody has begun one. */
static long drop_queued(__u32 index, void *context)
{
	struct queue_end *end = context;
	struct server_span_event *request = bpf_map_lookup_elem(&queued_requests, &end->key);

	(void)index;
	if (request && end->is_client)
		send_span(request, end->connection, 0, end->ended_by);
	else if (request)
		drop_carried(end->key.connection.pid, request);
	bpf_map_delete_elem(&queued_requests, &end->key);
	end->key.number++;
	return 0;
}

/* All that is open on a connection ends, and it is forgotten. */
GLOBAL int end_connection(struct connection *c, struct connection_key *key)
{
	struct queue_end queued = {.connection = c};

	if (!c || !key)
		return 0;
	c->transfer.now = bpf_ktime_get_ns();
	queued.ended_by = c->write_failure ? c->write_failure : END_CLOSED;
	queued.is_client = c->role == ROLE_CLIENT;
	/* A response that lasts until the close is complete now. */
	finish(c, c->out.status, c->out.state == BODY_UNTIL_CLOSE ? END_RESPONSE : queued.ended_by);
	forget_request_out(c);
	if (queued.is_client && c->user && !c->is_shared)
		forget_wakes(c->pid, c->user);
	/* Of a request whose head was never complete. */
	drop_carried(c->pid, &c->requests[(c->active ^ 1) & 1]);
	queued.key.connection = *key;
	if (c->queue_head != c->queue_tail) {
		queued.key.number = c->queue_head;
		bpf_loop(QUEUE_MAX, drop_queued, &queued, 0);
	}
	bpf_map_delete_elem(&connections, &queued.key.connection);
	return 0;
}

static __always_inline bool enter_connection(struct connection *c, bool is_out)
{
	if (!(__sync_fetch_and_or(&c->busy, BUSY) & BUSY)) {
		c->transfer.now = bpf_ktime_get_ns();
		return true;
	}
	__sync_fetch_and_or(&c->busy, is_out ? MISSED_OUT : MISSED_IN);
	return false;
}

/* Bytes went by that nobody looked at: that way cannot be followed any more. */
GLOBAL int heed_missed(struct connection *c)
{
	if (c && c->busy & (MISSED_IN | MISSED_OUT)) {
		c->transfer.now = bpf_ktime_get_ns();
		make_opaque(c, c->busy & MISSED_OUT, OPAQUE_BUSY);
	}
	return 0;
}

static __always_inline void leave_connection(struct connection *c, struct connection_key *key)
{
	heed_missed(c);
	if (__sync_fetch_and_and(&c->busy, ~BUSY) & CLOSED)
		end_connection(c, key);
}

/* Something if there is a newline among eight bytes: of the first one the top bit is set, and none below. */
static __always_inline __u64 newlines_of(__u64 text)
{
	__u64 word = text ^ 0x0a0a0a0a0a0a0a0aULL;

	return (word - 0x0101010101010101ULL) & ~word & 0x8080808080808080ULL;
}

/* Index of the lowest byte whose top bit is set: the bytes below it, counted by a multiplication. */
static __always_inline __u32 first_of(__u64 newlines)
{
	return (((((newlines - 1) & ~newlines) & 0x0101010101010101ULL) * 0x0101010101010101ULL) >> 56) - 1;
}

/*
 * Puts the next bytes of the window behind what there is of the line: LINE_STEP, or up to the first
 * '\n' among them, whose index is returned.
 */
GLOBAL int extend_line(struct connection *c, struct direction *d)
{
	__u32 at, from;

	if (!c || !d)
		return LINE_STEP;
	at = d->line_length;
	if (at > LINE_MAX)
		at = LINE_MAX;
	from = c->window_at & (WINDOW - 1);
	for (int i = 0; i < LINE_STEP; i += 8) {
		__u64 text = load64(&c->window[from + i]), newlines = newlines_of(text);

		store64(&d->line[at + i], text);
		if (newlines)
			return i + first_of(newlines);
	}
	return LINE_STEP;
}

/* Whether a header that begins with these eight bytes is one that some function here looks for. */
static __always_inline bool is_of_interest(__u64 begin)
{
	__u64 name = begin | LOWER;

	switch (name & 0xff) {
	case 'b':
		return name == TEXT8('b', 'a', 'g', 'g', 'a', 'g', 'e', ':') ||
		       (name & FIRST_BYTES(3)) == TEXT8('b', '3', ':', 0, 0, 0, 0, 0);
	case 'c':
		return name == TEXT8('c', 'o', 'n', 't', 'e', 'n', 't', '-');
	case 'h':
		return (name & FIRST_BYTES(5)) == TEXT8('h', 'o', 's', 't', ':', 0, 0, 0);
	case 't':
		return name == TEXT8('t', 'r', 'a', 'n', 's', 'f', 'e', 'r') ||
		       name == TEXT8('t', 'r', 'a', 'c', 'e', 'p', 'a', 'r') ||
		       name == TEXT8('t', 'r', 'a', 'c', 'e', 's', 't', 'a');
	case 'u':
		return name == TEXT8('u', 'p', 'g', 'r', 'a', 'd', 'e', ':') ||
		       name == TEXT8('u', 's', 'e', 'r', '-', 'a', 'g', 'e') ||
		       name == TEXT8('u', 'b', 'e', 'r', '-', 't', 'r', 'a');
	case 'x':
		return (name & FIRST_BYTES(5)) == TEXT8('x', '-', 'b', '3', '-', 0, 0, 0);
	}
	/* The head's end, or a line that goes on from the one before. */
	return (begin & 0xff) <= ' ';
}

/* How many bytes of the window belong to the line under way; whether that ends there: LINE_ENDS_HERE is added. */
#define LINE_ENDS_HERE 0x10000

GLOBAL int rest_of_line(struct connection *c)
{
	__u32 from, left;

	if (!c)
		return 0;
	from = c->window_at & (WINDOW - 1);
	left = c->window_left;
	for (__u32 i = 0; i < WINDOW; i += 8) {
		__u32 at = from + i, found;
		__u64 newlines;

		/* One register, of which the verifier knows the bound. */
		asm volatile("" : "+r"(at));
		if (i >= left || at >= WINDOW)
			break;
		newlines = newlines_of(load64(&c->window[at]));
		if (!newlines)
			continue;
		found = i + first_of(newlines);
		return found < left ? (int)((found + 1) | LINE_ENDS_HERE) : (int)left;
	}
	return left;
}

static __always_inline void advance(struct connection *c, __u64 count)
{
	c->transfer.base += count;
	c->transfer.in_buffer -= count;
	c->transfer.left -= count;
	if (count < c->window_left) {
		c->window_at += count;
		c->window_left -= count;
	} else {
		c->window_left = 0;
	}
}

/* A header that begins here and is not looked for; one that is cut within its first bytes is kept to be looked at. */
static __always_inline bool skips_line(const struct connection *c, const struct direction *d)
{
	return !d->line_length && c->window_left >= 8 &&
	       !is_of_interest(load64(&c->window[c->window_at & (WINDOW - 1)]));
}

/* What the window has of such a line. */
static __always_inline void pass_line(struct connection *c, struct direction *d)
{
	__u32 found = rest_of_line(c), passed = found & (LINE_ENDS_HERE - 1);

	d->skips = !(found & LINE_ENDS_HERE);
	d->head_length += passed;
	advance(c, passed);
}

/* Up to LINE_STEP bytes of a line; false: the connection is followed no more. */
static __always_inline bool take_line(struct scan *s, struct direction *d, bool is_out)
{
	struct connection *c = s->connection;
	__u32 want, found;

	want = c->window_left < LINE_STEP ? c->window_left : LINE_STEP;
	found = extend_line(c, d);
	if (d->state == START_LINE && !d->line_length) {
		/* A TLS record of the handshake: content type 22, version 3.x */
		if (!is_out && want > 2 && d->line[0] == 0x16 && d->line[1] == 3) {
			make_opaque(c, false, OPAQUE_TLS);
			c->out.state = OPAQUE;
			return false;
		}
		/* A method begins so; a server may also be sent empty lines first. */
		if (c->role == ROLE_CLIENT && !is_out && (d->line[0] < 'A' || d->line[0] > 'Z')) {
			make_opaque(c, false, OPAQUE_FRAMING);
			if (!c->requests_open)
				c->out.state = OPAQUE;
			return false;
		}
		if (!d->started)
			d->started = c->transfer.now;
	}
	if (d->line_length + want > LINE_MAX && d->state == HEADERS && !is_out && c->role != ROLE_CLIENT)
		carry_long_line(d, &c->requests[(c->active ^ 1) & 1], found >= want ? want : found + 1);
	if (found >= want) {
		d->line_length += want;
		d->head_length += want;
		advance(c, want);
	} else {
		d->line_length += found + 1;
		d->head_length += found + 1;
		advance(c, found + 1);
		line_done(s, d);
	}
	return true;
}

/* One piece: a buffer to begin, a stretch of body to skip, or up to LINE_STEP bytes of a line. */
static long scan_step(__u32 index, void *context)
{
	struct scan *s = context;
	struct connection *c = s->connection;
	struct transfer *t = &c->transfer;
	bool is_out = t->is_out;
	struct direction *d = is_out ? &c->out : &c->in;
	__u64 here;
	__u32 want;

	(void)index;
	if (!t->left || d->state == OPAQUE || d->state == BODY_UNTIL_CLOSE)
		return 1;
	if (!t->in_buffer) {
		__u64 iov[2];

		if (!t->vector || bpf_probe_read_user(iov, sizeof(iov), (void *)t->vector)) {
			count(COUNT_READ_FAULT);
			make_opaque(c, is_out, OPAQUE_FRAMING);
			return 1;
		}
		t->vector += sizeof(iov);
		t->base = iov[0];
		t->in_buffer = iov[1];
		if (!t->in_buffer)
			return 0;
	}
	here = t->in_buffer < t->left ? t->in_buffer : t->left;
	if (d->state == BODY_COUNTED || d->state == CHUNK_DATA) {
		if (here > d->body_left)
			here = d->body_left;
		d->body_left -= here;
		advance(c, here);
		if (!d->body_left) {
			if (d->state == CHUNK_DATA) {
				d->state = CHUNK_SIZE;
				d->line_length = 0;
			} else {
				message_done(s);
			}
		}
		return !t->left;
	}
	if (t->is_file) {
		make_opaque(c, is_out, OPAQUE_FRAMING);
		return 1;
	}
	if (!c->window_left) {
		want = here < WINDOW ? here : WINDOW;
		if (bpf_probe_read_user(c->window, want, (void *)t->base)) {
			count(COUNT_READ_FAULT);
			make_opaque(c, is_out, OPAQUE_FRAMING);
			return 1;
		}
		c->window_at = 0;
		c->window_left = want;
	}
	if (d->state == HEADERS && (d->skips || skips_line(c, d)))
		pass_line(c, d);
	else if (!take_line(s, d, is_out))
		return 1;
	if (d->head_length > HEAD_MAX && (d->state == HEADERS || d->state == START_LINE)) {
		make_opaque(c, is_out, OPAQUE_HEAD_TOO_LONG);
		return 1;
	}
	/* A chunk's size line counts for itself. */
	if (d->state == CHUNK_SIZE || d->state == CHUNK_DATA)
		d->head_length = 0;
	return !t->left;
}

extern int LINUX_KERNEL_VERSION __kconfig;
extern void *bpf_rdonly_cast(const void *address, __u32 type) __ksym __weak;

/*
 * A field of a structure in the kernel, 0 if it is not there. Since Linux 6.2 the kernel takes our word for what an address
 * is of, and it is a load; before, a call.
 */
#define READ_KERNEL(type, address, field)                                                                         \
	(LINUX_KERNEL_VERSION >= KERNEL_VERSION(6, 2, 0)                                                          \
		 ? ((const type *)bpf_rdonly_cast((address), bpf_core_type_id_kernel(type)))->field               \
		 : BPF_CORE_READ((const type *)(address), field))

static __always_inline struct file *file_of(const struct task_struct *task, __s32 fd)
{
	const struct fdtable *table = task->files->fdt;

	if (fd < 0 || (__u32)fd >= table->max_fds)
		return NULL;
	/* An element of an array of pointers, read as the field of a structure that is one. */
	return READ_KERNEL(struct socket, (void *)&table->fd[fd] - bpf_core_field_offset(struct socket, file),
			   file);
}

/* The socket behind a descriptor of a task; NULL if it is none. */
static __always_inline struct sock *socket_of(const struct task_struct *task, __s32 fd, struct connection_key *key)
{
	struct file *file = file_of(task, fd);
	struct socket_alloc *both;
	struct sock *sock;

	if (!file)
		return NULL;
	/* Of other files this leads anywhere; of a socket's, to what leads back. Each step is a read that counts. */
	both = READ_KERNEL(struct file, file, private_data);
	if (!both || READ_KERNEL(struct socket_alloc, both, socket.file) != file)
		return NULL;
	sock = READ_KERNEL(struct socket_alloc, both, socket.sk);
	if (!sock)
		return NULL;
	key->socket = (__u64)sock;
	key->inode = READ_KERNEL(struct socket_alloc, both, vfs_inode.i_ino);
	return sock;
}

static __always_inline bool is_stream(struct sock *sock)
{
	__u16 family = BPF_CORE_READ(sock, __sk_common.skc_family);

	if (family != AF_INET && family != AF_INET6 && family != AF_UNIX)
		return false;
	return BPF_CORE_READ(sock, sk_type) == SOCK_STREAM;
}

static __always_inline void read_addresses(struct sock *sock, struct http_addresses *addresses)
{
	addresses->family = BPF_CORE_READ(sock, __sk_common.skc_family);
	if (addresses->family == AF_UNIX)
		return;
	addresses->peer_port = __builtin_bswap16(BPF_CORE_READ(sock, __sk_common.skc_dport));
	addresses->local_port = BPF_CORE_READ(sock, __sk_common.skc_num);
	if (addresses->family == AF_INET) {
		*(__u32 *)addresses->peer = BPF_CORE_READ(sock, __sk_common.skc_daddr);
		*(__u32 *)addresses->local = BPF_CORE_READ(sock, __sk_common.skc_rcv_saddr);
	} else {
		BPF_CORE_READ_INTO(&addresses->peer, sock, __sk_common.skc_v6_daddr);
		BPF_CORE_READ_INTO(&addresses->local, sock, __sk_common.skc_v6_rcv_saddr);
	}
}

static __always_inline struct connection *add_connection(struct connection_key *key, struct sock *sock, __u8 role)
{
	struct connection *c;

	if (bpf_map_update_elem(&connections, key, &new_connection, BPF_ANY)) {
		count(COUNT_CONNECTIONS_FULL);
		return NULL;
	}
	c = bpf_map_lookup_elem(&connections, key);
	if (!c)
		return NULL;
	c->pid = key->pid;
	c->role = role;
	c->random = random64();
	read_addresses(sock, &c->addresses);
	return c;
}

/*
 * A socket open before the agent came, on which a request begins: served by the target if its port listens, else
 * connected by it.
 */
static __always_inline struct connection *discover(struct connection_key *key, struct sock *sock, __u64 base,
						   __u64 vector, bool is_out)
{
	struct listening_key port = {.pid = key->pid};
	__u64 word = 0, iov[2];
	bool begins = false;

	port.port = BPF_CORE_READ(sock, __sk_common.skc_num);
	if (is_out == (bpf_map_lookup_elem(&listening, &port) != NULL))
		return NULL;
	if (!base) {
		if (bpf_probe_read_user(iov, sizeof(iov), (void *)vector))
			return NULL;
		base = iov[0];
	}
	if (bpf_probe_read_user(&word, sizeof(word), (void *)base))
		return NULL;
	/* METHOD SP: upper-case letters up to a space. */
	for (int i = 0; i < 8; i++) {
		__u8 c = word >> (8 * i);

		if (c == ' ' && i >= 3) {
			begins = true;
			break;
		}
		if (c < 'A' || c > 'Z')
			return NULL;
	}
	return begins ? add_connection(key, sock, is_out ? ROLE_CLIENT : ROLE_SERVER) : NULL;
}

/*
 * Bytes went in or out at a connection: at `base`, in the vector of buffers at `vector`, or, with neither, of a
 * file, which can only be body and is not in the target's memory. Everything about them is read back from the
 * connection: of values that the verifier knows nothing about, it looks at the parser once for both ways.
 */
static __always_inline int traffic(struct connection *c, struct connection_key *key, struct target *target,
				   __u64 base, __u64 vector, __s64 length, bool is_out)
{
	struct scan scan = {.connection = c, .key = key, .target = target};
	struct direction *d;

	if (c->role == ROLE_CLIENT) /* from here on, as a server would see it */
		is_out = !is_out;
	d = is_out ? &c->out : &c->in;
	if (d->state == OPAQUE || !enter_connection(c, is_out))
		return 0;
	heed_missed(c);
	if (c->role == ROLE_CLIENT) {
		note_user(c, target);
		if (!is_out)
			c->sent += length;
	}
	c->window_left = 0;
	c->transfer.vector = vector;
	c->transfer.base = base;
	c->transfer.in_buffer = vector ? 0 : length;
	c->transfer.left = length;
	c->transfer.is_out = is_out;
	c->transfer.is_file = !base && !vector;
	asm volatile("" ::: "memory");
	bpf_loop(SCAN_STEPS, scan_step, &scan, 0);
	if (c->transfer.left) {
		d = c->transfer.is_out ? &c->out : &c->in;
		if (d->state != OPAQUE && d->state != BODY_UNTIL_CLOSE)
			make_opaque(c, c->transfer.is_out, OPAQUE_SCAN_LIMIT);
	}
	leave_connection(c, key);
	return 0;
}

/* include/uapi/asm-generic/errno.h, include/linux/errno.h */
#define EINTR 4
#define EPIPE 32
#define ECONNRESET 104
#define ETIMEDOUT 110
#define EINPROGRESS 115
#define ERESTARTSYS 512

/* What the result of a transfer says about its connection's end: enum http_end, or 0. */
static __always_inline __u32 end_of(__s64 result, bool is_out)
{
	if (!result)
		return is_out ? 0 : END_CLOSED;
	if (result == -ECONNRESET)
		return END_RESET;
	if (result == -ETIMEDOUT)
		return END_TIMED_OUT;
	return result == -EPIPE ? END_CLOSED : 0;
}

/*
 * No response can come to a client any more. One may have come before, if it was writing that failed: then
 * the close decides. A server goes on with what it has been sent.
 */
GLOBAL int failed(struct connection *c, struct connection_key *key, __u32 ended_by, __u32 is_out)
{
	if (!c || !key || c->role != ROLE_CLIENT || c->out.state == OPAQUE || !enter_connection(c, !is_out))
		return 0;
	forget_request_out(c);
	if (is_out) {
		c->write_failure = ended_by;
	} else {
		finish(c, c->out.status, ended_by);
		c->in.state = OPAQUE;
		c->out.state = OPAQUE;
	}
	leave_connection(c, key);
	return 0;
}

/* What has happened to a descriptor when a system call returns. */
enum happening {
	NOTHING = 0,
	IS_ACCEPTED,
	IS_CONNECTED, /* or is being connected in the background: there the address is known, and what is written will follow */
	IS_DUPLICATE,
	HAS_READ,
	HAS_WRITTEN,
	HAS_WAITED, /* for events; of a descriptor nothing */
};

/* enum happening, by the system call's number and result; nearly all are NOTHING. */
static __always_inline __u32 happening_of(__u64 nr, __s64 result)
{
	switch (nr) {
	case NR_READ:
	case NR_READV:
	case NR_RECVFROM:
	case NR_RECVMSG:
		return result > 0 || end_of(result, false) ? HAS_READ : NOTHING;
	case NR_WRITE:
	case NR_WRITEV:
	case NR_SENDTO:
	case NR_SENDMSG:
		return result > 0 || end_of(result, true) ? HAS_WRITTEN : NOTHING;
	case NR_SENDFILE:
		return result > 0 ? HAS_WRITTEN : NOTHING;
	case NR_ACCEPT:
	case NR_ACCEPT4:
		return result >= 0 ? IS_ACCEPTED : NOTHING;
	case NR_CONNECT:
		return !result || result == -EINPROGRESS || result == -EINTR || result == -ERESTARTSYS
			       ? IS_CONNECTED
			       : NOTHING;
	case NR_DUP:
	case NR_DUP2:
	case NR_DUP3:
	case NR_FCNTL:
		return result >= 0 ? IS_DUPLICATE : NOTHING;
	case NR_EPOLL_WAIT:
	case NR_EPOLL_PWAIT:
	case NR_EPOLL_PWAIT2:
		return HAS_WAITED;
	}
	return NOTHING;
}

/* Whether a call that could duplicate a descriptor did so: dup2 of a number to itself does nothing, and is no error. */
static __always_inline bool duplicates(__u64 nr, const struct pt_regs *regs)
{
	if (nr == NR_FCNTL)
		return regs->si == F_DUPFD || regs->si == F_DUPFD_CLOEXEC;
	return nr != NR_DUP2 || (__s32)regs->di != (__s32)regs->si;
}

/* Where the bytes of a transfer are: at *base, or in the vector at *vector. false: they are only looked at. */
static __always_inline bool find_buffers(__u64 nr, const struct pt_regs *regs, __u64 *base, __u64 *vector)
{
	*base = *vector = 0;
	switch (nr) {
	case NR_READV:
	case NR_WRITEV:
		*vector = regs->si;
		break;
	case NR_RECVMSG:
	case NR_SENDMSG:
		if (nr == NR_RECVMSG && regs->dx & MSG_PEEK)
			return false;
		/* struct user_msghdr: msg_iov is at 16. A read fault is for the connection to say. */
		if (bpf_probe_read_user(vector, sizeof(*vector), (void *)(regs->si + 16)) || !*vector)
			*vector = NOWHERE;
		break;
	case NR_RECVFROM:
		if (regs->r10 & MSG_PEEK)
			return false;
		*base = regs->si;
		break;
	case NR_SENDFILE:
		break;
	default: /* read, write, sendto */
		*base = regs->si;
	}
	return true;
}

/* Of another architecture's system calls the numbers mean something else. */
static __always_inline struct target *calling_target(const struct task_struct *task, __u32 *pid)
{
	struct target *target;

	*pid = task->tgid;
	target = find_target(*pid);
	if (!target || task->thread_info.status & TS_COMPAT)
		return NULL;
	return target;
}

/*
 * A thread that has waited for events is done with what it did before as itself (tasks have keys of
 * their own): what it handles now need not be the same request.
 */
static __always_inline int thread_waits(struct target *target, __u32 pid)
{
	struct span_slot *slot;
	__u64 key = thread_key();

	note_wait(target, pid);
	slot = find_slot(pid, key);
	if (slot)
		slot_clear(slot, key);
	return 0;
}

/*
 * One program for the ends of all system calls: what it calls is verified once, and there is one thing to attach
 * and to let go. ctx: struct pt_regs *, whose arguments are those that the thread entered the kernel with; result
 */
SEC("tp_btf/sys_exit")
int http_sys_exit(__u64 *ctx)
{
	const struct pt_regs *regs = (const struct pt_regs *)ctx[0];
	__u64 nr = regs->orig_ax, base, vector;
	struct connection_key key = {};
	__s64 result = ctx[1];
	__u32 happening = happening_of(nr, result);
	const struct task_struct *task;
	struct connection *c;
	struct target *target;
	struct sock *sock;

	if (happening == NOTHING)
		return 0;
	task = bpf_get_current_task_btf();
	target = calling_target(task, &key.pid);
	if (!target || (happening == IS_DUPLICATE && !duplicates(nr, regs)))
		return 0;
	if (happening == HAS_WAITED)
		return thread_waits(target, key.pid);
	sock = socket_of(task, happening == IS_ACCEPTED || happening == IS_DUPLICATE ? result : (__s32)regs->di,
			 &key);
	if (!sock)
		return 0;
	if (happening == IS_ACCEPTED || happening == IS_CONNECTED) {
		if (!is_stream(sock))
			return 0;
		c = add_connection(&key, sock, happening == IS_CONNECTED ? ROLE_CLIENT : ROLE_SERVER);
		if (c && happening == IS_CONNECTED)
			c->connected_by = current_task_key(target);
		return 0;
	}
	c = bpf_map_lookup_elem(&connections, &key);
	if (happening == IS_DUPLICATE) {
		if (c)
			__sync_fetch_and_add(&c->references, 1);
		return 0;
	}
	if (result <= 0)
		return c ? failed(c, &key, end_of(result, happening == HAS_WRITTEN), happening == HAS_WRITTEN) : 0;
	if (!find_buffers(nr, regs, &base, &vector))
		return 0;
	if (!c) {
		if (result < 8 || nr == NR_SENDFILE || !is_stream(sock))
			return 0;
		c = discover(&key, sock, base, vector, happening == HAS_WRITTEN);
		if (!c)
			return 0;
	}
	return traffic(c, &key, target, base, vector, result, happening == HAS_WRITTEN);
}

/* A descriptor goes; with the last one of a connection, all that is open on it ends. */
static __always_inline void closed(struct connection *c, struct connection_key *key)
{
	if (__sync_fetch_and_add(&c->references, -1) > 1)
		return;
	if (__sync_fetch_and_or(&c->busy, CLOSED) & BUSY)
		return;
	heed_missed(c);
	end_connection(c, key);
}

/*
 * The way out is shut: a response that lasts until then is complete. A client sends no more requests, and
 * may wait for the last response, if it has not shut the way in, too.
 */
static __always_inline void shut(struct connection *c, bool is_all)
{
	if (c->out.state == OPAQUE)
		return;
	heed_missed(c);
	c->transfer.now = bpf_ktime_get_ns();
	forget_request_out(c);
	if (c->role == ROLE_CLIENT && !is_all) {
		c->in.state = OPAQUE;
		return;
	}
	finish(c, c->out.status, c->out.state == BODY_UNTIL_CLOSE ? END_RESPONSE : END_CLOSED);
	c->in.state = OPAQUE;
	c->out.state = OPAQUE;
}

/*
 * Descriptors are looked at before they go: once the kernel has closed one, another thread may be given the same
 * number. At the entries of these system calls alone (http_server.py says which), since a program at all entries would run
 * for every one on the machine.
 */
SEC("tracepoint")
int http_closing(void *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	const struct pt_regs *regs = (const struct pt_regs *)bpf_task_pt_regs(task);
	__s32 first = regs->di, second = regs->si;
	struct connection_key key = {};
	__u64 nr = regs->orig_ax;
	struct connection *c;

	(void)ctx;
	if (!calling_target(task, &key.pid) || (nr == NR_SHUTDOWN && second == SHUT_RD))
		return 0;
	/* These close the number that they take, without a close, unless they are to fail. */
	if ((nr == NR_DUP2 || nr == NR_DUP3) && (first == second || !file_of(task, first)))
		return 0;
	if (!socket_of(task, nr == NR_DUP2 || nr == NR_DUP3 ? second : first, &key))
		return 0;
	c = bpf_map_lookup_elem(&connections, &key);
	if (!c)
		return 0;
	if (nr == NR_SHUTDOWN)
		shut(c, second == SHUT_RDWR);
	else
		closed(c, &key);
	return 0;
}

/* A thread that ends is done with all, as one that waits is, and with what it had from its starter. */
SEC("raw_tp/sched_process_exit")
int http_thread_exit(void *ctx)
{
	__u32 pid;
	struct target *target = current_target(&pid);

	(void)ctx;
	return target ? thread_waits(target, pid) : 0;
}

FOR_THE_AGENT(struct connection_opaque_event, connection_opaque_event);
FOR_THE_AGENT(enum propagator, propagator);
FOR_THE_AGENT(enum http_method, http_method);
FOR_THE_AGENT(enum http_end, http_end);
FOR_THE_AGENT(enum connection_role, connection_role);
FOR_THE_AGENT(enum opaque_reason, opaque_reason);
