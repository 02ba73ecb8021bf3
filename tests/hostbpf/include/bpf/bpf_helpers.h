/*
 * Stands in for libbpf's header of the same name, so that BPF programs compile for the host. The
 * helpers are functions of host.c; a program's source is the same byte for byte.
 */
#ifndef HOST_BPF_HELPERS_H
#define HOST_BPF_HELPERS_H

/* Sections mean something to libbpf only: here a map is a variable, a program a function. */
#define SEC(name)
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name
#define __array(name, val) typeof(val) *name[]
#define __ksym
#define __weak
#define __kconfig

#ifndef KERNEL_VERSION
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#endif

#undef __always_inline
#define __always_inline inline __attribute__((always_inline))

struct task_struct;

void *bpf_map_lookup_elem(void *map, const void *key);
long bpf_map_update_elem(void *map, const void *key, const void *value, unsigned long long flags);
long bpf_map_delete_elem(void *map, const void *key);

long bpf_probe_read_user(void *to, unsigned size, const void *from);
long bpf_probe_read_kernel(void *to, unsigned size, const void *from);
long bpf_probe_write_user(void *to, const void *from, unsigned size);

long bpf_ringbuf_output(void *ring, void *data, unsigned long long size, unsigned long long flags);
void *bpf_ringbuf_reserve(void *ring, unsigned long long size, unsigned long long flags);
void bpf_ringbuf_submit(void *data, unsigned long long flags);
void bpf_ringbuf_discard(void *data, unsigned long long flags);
unsigned long long bpf_ringbuf_query(void *ring, unsigned long long flags);

long bpf_loop(unsigned count, void *step, void *context, unsigned long long flags);
void *bpf_rdonly_cast(const void *address, unsigned type);
unsigned bpf_get_prandom_u32(void);
unsigned bpf_get_smp_processor_id(void);
unsigned long long bpf_ktime_get_ns(void);
unsigned long long bpf_get_current_pid_tgid(void);
unsigned long long bpf_get_current_task(void);
unsigned long long bpf_get_attach_cookie(void *ctx);
struct task_struct *bpf_get_current_task_btf(void);
long bpf_task_pt_regs(struct task_struct *task);
long bpf_send_signal_thread(unsigned signal);

struct bpf_sock;
struct bpf_sock_ops;
struct sk_msg_md;
struct tcp_sock;

void *bpf_sk_storage_get(void *map, struct bpf_sock *sock, void *value, unsigned long long flags);
struct tcp_sock *bpf_skc_to_tcp_sock(struct bpf_sock *sock);
unsigned long long bpf_get_socket_cookie(struct bpf_sock_ops *ops);
long bpf_setsockopt(struct bpf_sock_ops *ops, int level, int name, void *value, int size);
long bpf_sock_hash_update(struct bpf_sock_ops *ops, void *map, void *key, unsigned long long flags);
long bpf_msg_pull_data(struct sk_msg_md *message, unsigned start, unsigned end, unsigned long long flags);
long bpf_msg_push_data(struct sk_msg_md *message, unsigned start, unsigned length, unsigned long long flags);
long bpf_msg_pop_data(struct sk_msg_md *message, unsigned start, unsigned length, unsigned long long flags);

#endif
