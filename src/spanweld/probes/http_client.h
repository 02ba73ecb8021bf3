/* Events of the HTTP client probe. */
#ifndef SPANWELD_HTTP_CLIENT_H
#define SPANWELD_HTTP_CLIENT_H

/*
 * EVENT_CLIENT_SPAN: a request that the target sent, up to the head of its response. A struct
 * server_span_event: the parser fills in one kind of request, whichever way it goes.
 */
#include "http_server.h"

#define EXPORT_PATHS_MAX 16

/* own_exports: key */
struct own_export_key {
	__u32 pid;
	__u32 port; /* the peer's */
};

#endif
