/* What the tests of the HTTP programs share. */
#ifndef HOSTBPF_HTTP_H
#define HOSTBPF_HTTP_H

#include "host.h"

#include "counters.h"
#include "http_server.h"
#include "spans_in_progress.h"
#include "target.h"

#define PID 100
#define TID 101
#define FD 7

/* A fresh kernel with the process PID as target, its thread TID running, without tokio. */
void http_start(void);
/* The same with tokio's task id known; the task is `task`. */
void http_start_tokio(__u64 task);
/* The same with a tag beside the task id; the tag is `tag`. */
void http_start_tokio_tagged(__u64 task, __u64 tag);
/* http_start() and a connection accepted at FD. */
void http_start_connected(void);

/* Bytes in and out at FD or elsewhere, in one piece, by recvfrom and by writev as hyper does. */
void in(const char *text);
void out(const char *text);
void in_at(int fd, const void *bytes, size_t size);
void out_at(int fd, const void *bytes, size_t size);
/* In pieces of at most `step` bytes. */
void in_steps(int fd, const void *bytes, size_t size, size_t step);
void out_steps(int fd, const void *bytes, size_t size, size_t step);

/* The server span event number `index`, zero after what was sent of it; fails if it is none. */
struct server_span_event span_event(__u32 index);
__u32 span_events(void);
/* The same of client span events. */
struct server_span_event client_event(__u32 index);
__u32 client_events(void);
/* The reason of the one connection_opaque_event; 0 if there is none. */
__u32 opaque_reason(void);

void check_text(const char *file, int line, const char *bytes, size_t size, const char *expected);
#define CHECK_TARGET(event, text) check_text(__FILE__, __LINE__, (event).target, (event).target_length, text)
#define CHECK_HOST(event, text) check_text(__FILE__, __LINE__, (event).host, (event).host_length, text)
#define CHECK_AGENT(event, text)                                                                                  \
	check_text(__FILE__, __LINE__, (event).user_agent, (event).user_agent_length, text)

/* After all is closed: nothing open, nothing queued, nobody's stack. */
void check_clean(const char *file, int line);
#define CHECK_CLEAN() check_clean(__FILE__, __LINE__)

/* No counter says that something was dropped. */
void check_no_drops(const char *file, int line);
#define CHECK_NO_DROPS() check_no_drops(__FILE__, __LINE__)

__u64 thread_task_key(__u32 tid);

/* ---- whole conversations, which must come out the same however their bytes are delivered */

struct step {
	bool is_out;
	const char *bytes;
	size_t size;
};

#define IN(text) {false, text, sizeof(text) - 1}
#define OUT(text) {true, text, sizeof(text) - 1}

struct want {
	__u8 method; /* enum http_method */
	__u16 status;
	const char *target;
	__u8 ended_by; /* enum http_end */
};

/*
 * Plays the steps on a fresh connection, accepted or connected, and closes it: whole, with each step cut in two at each
 * byte (two calls, two buffers with empty ones around), in equal small pieces, and by each system call. Each
 * time exactly the wanted spans must come, in order, and the wanted opaque_reason or 0.
 */
void check_conversation(const char *file, int line, bool is_client, const struct step *steps, size_t nr_steps,
			const struct want *wanted, size_t nr_wanted, __u32 reason);
#define CHECK_CONVERSATION(steps, wanted, reason)                                                                 \
	check_conversation(__FILE__, __LINE__, false, steps, sizeof(steps) / sizeof((steps)[0]), wanted,          \
			   sizeof(wanted) / sizeof((wanted)[0]), reason)
#define CHECK_NO_SPANS(steps, reason)                                                                             \
	check_conversation(__FILE__, __LINE__, false, steps, sizeof(steps) / sizeof((steps)[0]), NULL, 0, reason)
#define CHECK_CLIENT_CONVERSATION(steps, wanted, reason)                                                          \
	check_conversation(__FILE__, __LINE__, true, steps, sizeof(steps) / sizeof((steps)[0]), wanted,           \
			   sizeof(wanted) / sizeof((wanted)[0]), reason)
#define CHECK_NO_CLIENT_SPANS(steps, reason)                                                                      \
	check_conversation(__FILE__, __LINE__, true, steps, sizeof(steps) / sizeof((steps)[0]), NULL, 0, reason)

#endif
