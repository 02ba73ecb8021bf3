/*
 * Stands in for libbpf's header of the same name. Each step of a chain is one read of kernel
 * memory: as in the kernel, a read that fails leaves zeros and the chain goes on from there.
 */
#ifndef HOST_BPF_CORE_READ_H
#define HOST_BPF_CORE_READ_H

#include "bpf_helpers.h"

/* Not `&(source)->field`: the source may be NULL, which only the read itself may find out. */
#define HOST_FIELD(source, field)                                                                                 \
	((const void *)((unsigned long)(source) + __builtin_offsetof(typeof(*(source)), field)))

#define HOST_READ_1(source, a)                                                                                    \
	({                                                                                                        \
		typeof((source)->a) host_value_;                                                                  \
		bpf_probe_read_kernel((void *)&host_value_, sizeof(host_value_), HOST_FIELD(source, a));          \
		host_value_;                                                                                      \
	})
#define HOST_READ_2(source, a, b)                                                                                 \
	({                                                                                                        \
		typeof((source)->a) host_first_ = HOST_READ_1(source, a);                                         \
		HOST_READ_1(host_first_, b);                                                                      \
	})
#define HOST_READ_3(source, a, b, c)                                                                              \
	({                                                                                                        \
		typeof((source)->a) host_outer_ = HOST_READ_1(source, a);                                         \
		HOST_READ_2(host_outer_, b, c);                                                                   \
	})

#define HOST_READ_CHOOSE(_1, _2, _3, name, ...) name
#define BPF_CORE_READ(source, ...)                                                                                \
	HOST_READ_CHOOSE(__VA_ARGS__, HOST_READ_3, HOST_READ_2, HOST_READ_1)(source, __VA_ARGS__)
#define bpf_core_type_id_kernel(type) 0
#define bpf_core_field_offset(type, field) __builtin_offsetof(type, field)
#define BPF_CORE_READ_INTO(to, source, field)                                                                     \
	bpf_probe_read_kernel((void *)(to), sizeof(*(to)), HOST_FIELD(source, field))

#endif
