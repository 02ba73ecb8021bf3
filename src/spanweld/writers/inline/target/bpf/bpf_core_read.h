/* Stands in for libbpf's header of the same name: see bpf_helpers.h. */
#ifndef INLINE_BPF_CORE_READ_H
#define INLINE_BPF_CORE_READ_H

#include "bpf_helpers.h"

/* Of the kernel's structures, code in the target knows one field of its own thread. */
#define BPF_CORE_READ(source, ...) ((void)(source), inline_core_read(#__VA_ARGS__))

static inline __attribute__((always_inline)) unsigned long inline_core_read(const char *fields)
{
	return fields[0] == 't' && fields[7] == 'f' ? inline_thread_pointer() : 0; /* thread.fsbase */
}

#endif
