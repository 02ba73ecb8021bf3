/* Connections of targets, and what their programs share: http_server.bpf.c, http_client.bpf.h */
#ifndef SPANWELD_HTTP_CONNECTION_BPF_H
#define SPANWELD_HTTP_CONNECTION_BPF_H

#include "maps.bpf.h"
#include "task_edges.bpf.h"
#include "http_server.h"
#include "propagation.h"

#define LINE_MAX 448 /* what is kept of a line */
#define LINE_STEP 64 /* bytes looked at in one step */
#define WINDOW 512 /* bytes read of the target at a time: each read costs as much as three steps */
#define EXCLUDED_LENGTH 64

enum parse_state {
	START_LINE = 0,
	HEADERS,
	BODY_COUNTED,
	CHUNK_SIZE,
	CHUNK_DATA,
	TRAILERS,
	BODY_UNTIL_CLOSE,
	OPAQUE,
};

/* One way of a connection: what has been seen of the message under way. */
struct direction {
	__u64 body_left; /* BODY_COUNTED, CHUNK_DATA: bytes until the next state */
	__u64 started; /* time of the message's first byte */
	__u64 content_length;
	__u32 head_length;
	__u32 line_length; /* of the line under way; what exceeds LINE_MAX is not kept */
	__u8 state;
	__u8 has_length;
	__u8 chunked;
	__u8 upgrade;
	__u16 status;
	__u8 skips; /* the line under way is of no interest, and not kept */
	__u8 pad;
	struct remote_headers remote;
	char line[LINE_MAX + LINE_STEP];
};

/* How far the parser is with the bytes of one system call. */
struct transfer {
	__u64 vector; /* address of the next struct iovec, 0: none */
	__u64 base;
	__u64 in_buffer; /* bytes left in this buffer */
	__u64 left; /* bytes left of the system call */
	__u64 now; /* CLOCK_MONOTONIC, ns: when this system call returned, or whatever else ends spans happened */
	__u32 is_out; /* as a server sees it */
	__u32 is_file; /* its bytes are nowhere in the target's memory */
};

/* connection.busy: who comes while BUSY is set leaves word for the thread that set it, and goes. */
enum {
	BUSY = 1,
	MISSED_IN = 2,
	MISSED_OUT = 4,
	CLOSED = 8,
};

/* connection.requests_open: how far the exchange of requests[active] has come. */
enum {
	NO_REQUEST = 0,
	REQUEST_OPEN, /* its span is open: of a server until the response is complete, of a client until its head is */
	RESPONSE_UNDER_WAY, /* its client span has ended, and the response's body is still to come */
};

/* Of a request that goes out: what it is called, and what caused it. See begin_request_out(). */
struct request_out {
	__u64 started; /* CLOCK_MONOTONIC, ns */
	__u64 trace_id_low;
	__u64 trace_id_high;
	__u64 span_id;
	__u64 parent_span_id; /* 0: none, it begins a trace */
	__u64 server_span_id; /* of the request that is its cause, 0: none is known */
	__u64 task_key; /* the task whose stack holds the span, 0: none does */
	__u8 flags; /* W3C trace flags */
	__u8 cause; /* enum cause; CAUSE_UNKNOWN: some request caused it, and nothing is to be injected */
	__u8 pad[6];
};

/*
 * `in` and `out` are what a server sees: requests come in, responses go out. The parser knows no
 * other view. On a connection of a client requests are written and responses read: traffic() swaps.
 */
struct connection {
	__u32 busy;
	__u32 pid;
	__u32 references; /* descriptors */
	__u8 requests_open;
	__u8 active; /* index in requests; the other one is being read */
	__u8 said_opaque;
	__u8 role; /* enum connection_role */
	/* The rest of this line is of a client's connection. */
	__u8 speaks_http; /* a request line went out on it */
	__u8 out_prepared; /* request_out is that of the next request; else, of the one before */
	__u8 is_shared; /* tasks other than `user` have read or written it, too */
	__u8 write_failure; /* enum http_end, of a request that could not be written; its response may come all the same */
	__u8 has_sent; /* a request went out on it, for another task if a driver sent it */
	__u8 injected; /* the next request got a header of ours */
	__u8 pad[2];
	__u64 connected_by; /* key of the task that connected it; 0: it is older than the agent */
	__u64 user; /* key of the first task that read or wrote it, 0: none has yet */
	struct request_out request_out;
	__u64 random; /* state of next_random() */
	__u32 sent; /* bytes that the target was told to have written, modulo 2^32 */
	__u32 pad_sent;
	struct active_spans cause; /* scratch of begin_request_out(): the stack is small */
	__u32 queue_head; /* numbers of pipelined requests in `queued_requests` */
	__u32 queue_tail;
	struct http_addresses addresses;
	struct direction in;
	struct direction out;
	struct server_span_event requests[2];
	/*
	 * Of the system call under way: bytes read ahead, of which window_left from window_at on are
	 * still to be looked at. Here and not on the stack also for the verifier's sake, which follows
	 * each value there and none of a map. Past WINDOW is only slack.
	 */
	struct transfer transfer;
	__u32 window_at;
	__u32 window_left;
	char window[WINDOW + LINE_STEP];
};

struct connection_key {
	__u64 socket; /* struct sock; */
	__u64 inode; /* its inode number, since addresses come back */
	__u32 pid;
	__u32 pad;
};

/* Made at accept, at connect, or at the first request line; deleted at close, and by the agent with the target. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 32768);
	__type(key, struct connection_key);
	__type(value, struct connection);
} connections SEC(".maps");

/* A path is meant if, under the mask, it equals a pattern; a zero mask ends a list of them. */
struct excluded_path {
	__u64 pattern[EXCLUDED_LENGTH / 8];
	__u64 mask[EXCLUDED_LENGTH / 8];
};

#ifndef load64
#define load64(pointer) (*(const __u64 *)(pointer))
#define store64(pointer, value) (*(__u64 *)(pointer) = (value))
#endif

#define LOWER 0x2020202020202020ULL
#define FIRST_BYTES(n) ((1ULL << (8 * (n))) - 1)
#define TEXT8(a, b, c, d, e, f, g, h)                                                                             \
	((__u64)(a) | (__u64)(b) << 8 | (__u64)(c) << 16 | (__u64)(d) << 24 | (__u64)(e) << 32 |                  \
	 (__u64)(f) << 40 | (__u64)(g) << 48 | (__u64)(h) << 56)

/* A request's target against one pattern. */
static __always_inline bool path_matches(const volatile struct excluded_path *path,
					 const struct server_span_event *request)
{
	__u64 differs = 0;

	for (int i = 0; i < EXCLUDED_LENGTH / 8; i++) {
		__u64 mask = path->mask[i];

		if (!mask)
			break;
		differs |= (load64(&request->target[8 * i]) ^ path->pattern[i]) & mask;
	}
	return !differs;
}

static __always_inline __u64 random64(void)
{
	return (__u64)bpf_get_prandom_u32() << 32 | bpf_get_prandom_u32();
}

/*
 * The next of a connection's own random numbers, which begin anywhere: no call for each. By itself one is as good as its
 * 64 bits of state; what is to be unique beyond that needs another source as well.
 * Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators (2014)
 */
static __always_inline __u64 next_random(struct connection *c)
{
	__u64 number = c->random += 0x9E3779B97F4A7C15ULL;

	number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9ULL;
	number = (number ^ number >> 27) * 0x94D049BB133111EBULL;
	return number ^ number >> 31;
}

/* Never 0, and none that a task without a request is known by (WAKE_BY_NOBODY). */
static __always_inline __u64 new_span_id(void)
{
	return random64() | 1ULL << 63;
}

/* What the agent's sampler decides of a trace, as W3C trace flags. */
static __always_inline __u8 sample(const struct target *target, __u64 trace_id_low)
{
	return (trace_id_low >> 1) < target->sample_below ? TRACE_FLAG_SAMPLED : 0;
}

#endif
