/* Events of the HTTP probes: server spans and what client spans (http_client.h) share with them. */
#ifndef SPANWELD_HTTP_SERVER_H
#define SPANWELD_HTTP_SERVER_H

#include "event.h"

#define HTTP_TARGET_MAX 256
#define HTTP_HOST_MAX 64
#define HTTP_USER_AGENT_MAX 128
#define HTTP_METHOD_MAX 16

enum http_method {
	METHOD_OTHER = 0,
	METHOD_GET,
	METHOD_POST,
	METHOD_PUT,
	METHOD_HEAD,
	METHOD_PATCH,
	METHOD_DELETE,
	METHOD_OPTIONS,
	METHOD_TRACE,
	METHOD_CONNECT,
};

/* Why a span ended. A client span's is known by the response's head, a server span's by all of it. */
enum http_end {
	END_RESPONSE = 0, /* its response is complete */
	END_CLOSED, /* the connection was closed before the response was complete */
	END_UPGRADED, /* the connection speaks another protocol from here on */
	END_UNFRAMED, /* the response could not be followed any further */
	END_RESET, /* client: the server reset the connection */
	END_TIMED_OUT, /* client: the kernel gave the server up */
};

/* Which end of a connection the target is. */
enum connection_role {
	ROLE_SERVER = 0, /* it accepted it */
	ROLE_CLIENT, /* it connected it */
};

/* server_span_event.remote */
enum request_remote {
	REMOTE_DECIDED = 1, /* flags: what the caller has decided */
	REMOTE_CARRIED = 2, /* the map `carried` has what it brought */
	REMOTE_UNCARRIED = 4, /* that map had no room */
};

/* Addresses of a connection. IPv4 addresses are in the first four bytes. */
struct http_addresses {
	__u16 family; /* AF_INET, AF_INET6 or AF_UNIX */
	__u16 peer_port;
	__u16 local_port;
	__u16 pad;
	__u8 peer[16];
	__u8 local[16];
};

/* EVENT_SERVER_SPAN: a request and its response. Sent up to the end of `target` that is in use. */
struct server_span_event {
	struct event_head head; /* at: when the span ended */
	__u64 start; /* CLOCK_MONOTONIC, ns: first byte of the request */
	__u64 trace_id_low;
	__u64 trace_id_high;
	__u64 span_id;
	__u64 parent_span_id; /* of a server span the remote parent, of a client span its cause; 0: none */
	__u64 server_span_id; /* of a client span: of the request that is its cause; 0: none is known */
	__u64 task_key; /* the task whose stack holds the span; of a client span 0: none does */
	struct http_addresses addresses;
	__u16 status; /* 0: no response */
	__u16 target_length; /* bytes of `target` in use */
	__u16 host_length;
	__u16 user_agent_length;
	__u8 flags; /* W3C trace flags */
	__u8 method; /* enum http_method */
	__u8 version_minor; /* HTTP/1.x */
	__u8 ended_by; /* enum http_end */
	__u8 excluded;
	__u8 traceparents; /* how many were met in the head */
	__u8 target_cut; /* the request had a longer one */
	__u8 remote; /* enum request_remote */
	char method_name[HTTP_METHOD_MAX];
	char host[HTTP_HOST_MAX];
	char user_agent[HTTP_USER_AGENT_MAX];
	char target[HTTP_TARGET_MAX];
};

/* Why a connection is not followed. */
enum opaque_reason {
	OPAQUE_TLS = 1,
	OPAQUE_HTTP2,
	OPAQUE_FRAMING,
	OPAQUE_HEAD_TOO_LONG,
	OPAQUE_SCAN_LIMIT,
	OPAQUE_RESPONSE_WITHOUT_REQUEST,
	OPAQUE_BUSY,
	OPAQUE_QUEUE_FULL,
};

/* EVENT_CONNECTION_OPAQUE */
struct connection_opaque_event {
	struct event_head head;
	__u32 reason; /* enum opaque_reason */
	__u32 role; /* enum connection_role */
	struct http_addresses addresses;
};

_Static_assert(sizeof(struct http_addresses) == 40, "no hidden padding");
_Static_assert(sizeof(struct server_span_event) == 16 + 56 + 40 + 16 + 16 + 64 + 128 + 256, "no hidden padding");
_Static_assert(sizeof(struct connection_opaque_event) == 64, "no hidden padding");

#endif
