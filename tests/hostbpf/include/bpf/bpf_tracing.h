/*
 * Stands in for libbpf's header of the same name: the programs name the registers of struct
 * pt_regs themselves, and so need nothing of it.
 */
#ifndef HOST_BPF_TRACING_H
#define HOST_BPF_TRACING_H

#endif
