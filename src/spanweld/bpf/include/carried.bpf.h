/* The map of what requests brought: tracestate and baggage. */
#ifndef SPANWELD_CARRIED_BPF_H
#define SPANWELD_CARRIED_BPF_H

#include "maps.bpf.h"
#include "carried.h"

/*
 * key: process id; value: that target's own map, pinned, made and deleted by the agent.
 * Inner maps: key: server span id. Written by http_server when the request's head is read, deleted by it
 * when the span ends. An element may be reused at once: who reads on another thread than the request's
 * copies, and then looks whether span_id is still the one.
 */
struct carried_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CARRIED_MAX);
	__type(key, __u64);
	__type(value, struct carried);
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__array(values, struct carried_map);
} carried SEC(".maps");

/* What the request of a server span brought; NULL: nothing. */
static __always_inline struct carried *find_carried(__u32 pid, __u64 span_id)
{
	void *texts = bpf_map_lookup_elem(&carried, &pid);

	return texts ? bpf_map_lookup_elem(texts, &span_id) : NULL;
}

#endif
