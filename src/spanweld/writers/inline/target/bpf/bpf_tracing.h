/* Stands in for libbpf's header of the same name: the programs need nothing of it. */
#ifndef INLINE_BPF_TRACING_H
#define INLINE_BPF_TRACING_H

#endif
