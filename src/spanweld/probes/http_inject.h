/* Events and keys of the HTTP inject probe. */
#ifndef SPANWELD_HTTP_INJECT_H
#define SPANWELD_HTTP_INJECT_H

#include "event.h"

/* Key of a socket that requests go out on: inject_sockets. */
struct inject_key {
	__u64 cookie; /* the kernel's number of the socket; it never comes back */
	__u32 pid;
	__u32 pad;
};

enum inject_notice {
	INJECT_LET_GO = 1, /* the socket of `cookie` speaks something else: it needs no program any more */
	INJECT_OLD_CONNECTION, /* a request went out on a connection that is older than the agent */
};

/* EVENT_INJECT */
struct inject_event {
	struct event_head head;
	__u64 cookie;
	__u32 notice; /* enum inject_notice */
	__u32 pad;
};

_Static_assert(sizeof(struct inject_key) == 16, "no hidden padding");
_Static_assert(sizeof(struct inject_event) == 32, "no hidden padding");

#endif
