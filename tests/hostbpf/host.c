/* The model's kernel: maps, helpers, memory of the target, ring buffer. See host.h. */
#include "host.h"

#include <linux/bpf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "carried.h"
#include "counters.h"
#include "handed_on.h"
#include "spans_in_progress.h"
#include "target.h"

#include <bpf/bpf_helpers.h>

#define CHAINS 1024
#define MAPS_MAX 48
#define RANGES_MAX 4096
#define EVENTS_MAX 8192
#define FAULT (-14) /* -EFAULT */
#define FULL (-7) /* -E2BIG */
#define EXISTS (-17)
#define ABSENT (-2)

struct host host;

void host_fail(const char *what)
{
	fprintf(stderr, "hostbpf: %s\n", what);
	abort();
}

/* ---- memory that lasts until host_reset() */

struct block {
	struct block *next, *before;
	__u64 pad[2]; /* what follows is aligned to 16 */
};

static struct block blocks = {&blocks, &blocks, {}};

void *host_allocate(size_t size)
{
	struct block *block = calloc(1, sizeof(*block) + size);

	if (!block)
		host_fail("out of memory");
	block->next = blocks.next;
	block->before = &blocks;
	blocks.next->before = block;
	blocks.next = block;
	return block + 1;
}

void host_free(void *memory)
{
	struct block *block = memory;

	if (!block)
		return;
	block--;
	block->before->next = block->next;
	block->next->before = block->before;
	free(block);
}

/* ---- maps */

struct element {
	struct element *next; /* in its chain */
	__u64 used; /* when last, for LRU */
	struct host_map *map;
	__u8 *value;
	__u8 key[];
};

struct host_map {
	const char *name;
	const void *address;
	__u32 type, max_entries, key_size, value_size, limit, entries;
	struct element *chains[CHAINS];
	__u8 *array;
	/* Of an array: which places were looked at, so that not all must be looked at again. */
	bool *is_touched;
	__u32 *touched;
	__u32 nr_touched;
};

static struct host_map *maps[MAPS_MAX];
static int nr_maps;
static __u64 uses;
static int depth_of_programs;

/*
 * Elements that were deleted while a program ran: as in the kernel, a pointer to one stays good
 * until the program ends. A pointer kept longer is a use after free, which AddressSanitizer sees.
 */
static struct element *graveyard;

static struct host_map *add_map(const char *name, const void *address, __u32 type, __u32 max_entries,
				__u32 key_size, __u32 value_size)
{
	struct host_map *map = calloc(1, sizeof(*map));

	if (!map || nr_maps == MAPS_MAX)
		host_fail("too many maps");
	map->name = name;
	map->address = address ? address : map;
	map->type = type;
	map->max_entries = map->limit = max_entries;
	map->key_size = key_size;
	map->value_size = value_size;
	if (type == BPF_MAP_TYPE_ARRAY || type == BPF_MAP_TYPE_PERCPU_ARRAY) {
		map->array = calloc(max_entries, value_size);
		map->is_touched = calloc(max_entries, sizeof(*map->is_touched));
		map->touched = calloc(max_entries, sizeof(*map->touched));
		if (!map->array || !map->is_touched || !map->touched)
			host_fail("out of memory");
	}
	maps[nr_maps++] = map;
	return map;
}

void host_map_add(const char *name, void *address, __u32 type, __u32 max_entries, __u32 key_size, __u32 value_size)
{
	add_map(name, address, type, max_entries, key_size, value_size);
}

static struct host_map *map_at(const void *address)
{
	for (int i = 0; i < nr_maps; i++)
		if (maps[i]->address == address)
			return maps[i];
	host_fail("a program uses a map that host_register_maps() in programs.c does not know");
}

static struct host_map *map_named(const char *name)
{
	for (int i = 0; i < nr_maps; i++)
		if (!strcmp(maps[i]->name, name))
			return maps[i];
	fprintf(stderr, "hostbpf: no map %s\n", name);
	abort();
}

static __u32 chain_of(const struct host_map *map, const __u8 *key)
{
	__u32 hash = 2166136261U;

	for (__u32 i = 0; i < map->key_size; i++)
		hash = (hash ^ key[i]) * 16777619U;
	return hash % CHAINS;
}

static struct element **find(struct host_map *map, const void *key)
{
	struct element **at = &map->chains[chain_of(map, key)];

	while (*at && memcmp((*at)->key, key, map->key_size) != 0)
		at = &(*at)->next;
	return at;
}

static void bury(struct element *element)
{
	element->next = graveyard;
	graveyard = element;
}

static void empty_graveyard(void)
{
	while (graveyard) {
		struct element *element = graveyard;

		graveyard = element->next;
		free(element->value);
		free(element);
	}
}

static void unlink_element(struct host_map *map, struct element **at)
{
	struct element *element = *at;

	*at = element->next;
	map->entries--;
	bury(element);
}

static void evict(struct host_map *map)
{
	struct element **oldest = NULL;

	for (int i = 0; i < CHAINS; i++)
		for (struct element **at = &map->chains[i]; *at; at = &(*at)->next)
			if (!oldest || (*at)->used < (*oldest)->used)
				oldest = at;
	if (oldest)
		unlink_element(map, oldest);
}

static void *lookup(struct host_map *map, const void *key)
{
	struct element *element;

	if (map->array) {
		__u32 index;

		memcpy(&index, key, sizeof(index));
		if (index >= map->max_entries)
			return NULL;
		if (!map->is_touched[index])
			map->touched[map->nr_touched++] = index;
		map->is_touched[index] = true;
		return map->array + (size_t)index * map->value_size;
	}
	element = *find(map, key);
	if (!element)
		return NULL;
	element->used = ++uses;
	return element->value;
}

static long update(struct host_map *map, const void *key, const void *value, __u64 flags)
{
	struct element **at, *element;

	if (map->array) {
		void *place = lookup(map, key);

		if (!place)
			return FULL;
		memcpy(place, value, map->value_size);
		return 0;
	}
	at = find(map, key);
	if (*at && flags == BPF_NOEXIST)
		return EXISTS;
	/* A new element takes the place of the old one, as in the kernel: old pointers are stale. */
	if (*at)
		unlink_element(map, at);
	if (map->entries >= map->limit) {
		if (map->type != BPF_MAP_TYPE_LRU_HASH)
			return FULL;
		evict(map);
		at = find(map, key);
	}
	element = calloc(1, sizeof(*element) + map->key_size);
	if (!element)
		host_fail("out of memory");
	element->value = malloc(map->value_size);
	if (!element->value)
		host_fail("out of memory");
	element->map = map;
	element->used = ++uses;
	memcpy(element->key, key, map->key_size);
	memcpy(element->value, value, map->value_size);
	element->next = *at;
	*at = element;
	map->entries++;
	return 0;
}

static void clear_map(struct host_map *map)
{
	while (map->nr_touched) {
		__u32 index = map->touched[--map->nr_touched];

		memset(map->array + (size_t)index * map->value_size, 0, map->value_size);
		map->is_touched[index] = false;
	}
	for (int i = 0; map->entries && i < CHAINS; i++)
		while (map->chains[i])
			unlink_element(map, &map->chains[i]);
	map->limit = map->max_entries;
}

void host_map_limit(const char *name, __u32 max_entries)
{
	map_named(name)->limit = max_entries;
}

__u32 host_map_count(const char *name)
{
	return map_named(name)->entries;
}

void *host_map_lookup(const char *name, const void *key)
{
	return lookup(map_named(name), key);
}

void host_map_update(const char *name, const void *key, const void *value)
{
	if (update(map_named(name), key, value, BPF_ANY))
		host_fail("host_map_update failed");
	if (!depth_of_programs)
		empty_graveyard();
}

void host_map_delete(const char *name, const void *key)
{
	struct host_map *map = map_named(name);
	struct element **at = find(map, key);

	if (*at)
		unlink_element(map, at);
	if (!depth_of_programs)
		empty_graveyard();
}

__u64 host_count(__u32 cause)
{
	return *(__u64 *)lookup(map_named("counters"), &cause);
}

void *bpf_map_lookup_elem(void *address, const void *key)
{
	struct host_map *map = map_at(address);
	void *value = lookup(map, key);

	if (value && (map->type == BPF_MAP_TYPE_HASH_OF_MAPS || map->type == BPF_MAP_TYPE_ARRAY_OF_MAPS))
		return *(void **)value;
	return value;
}

long bpf_map_update_elem(void *address, const void *key, const void *value, unsigned long long flags)
{
	if (++host.updates == host.fail_update)
		return FULL;
	return update(map_at(address), key, value, flags);
}

long bpf_map_delete_elem(void *address, const void *key)
{
	struct host_map *map = map_at(address);
	struct element **at = find(map, key);

	if (!*at)
		return ABSENT;
	unlink_element(map, at);
	return 0;
}

void host_enter(void)
{
	depth_of_programs++;
}

void host_leave(void)
{
	if (!--depth_of_programs)
		empty_graveyard();
}

/* ---- targets and their spans in progress */

/* Inner maps are large, so they are used again after host_reset(). */
static struct host_map *inner_maps[4], *carried_maps[4];
static int nr_inner_maps, inner_maps_in_use;

/* The set that a process's place is in, and in *place the number of that among all; NULL: it has none. */
static struct target_set *set_of(__u32 pid, __u32 sought, __u32 *place)
{
	__u32 key = pid % TARGET_SETS;
	struct target_set *set = host_map_lookup("target_sets", &key);

	for (__u32 i = 0; i < TARGET_SET; i++) {
		*place = key * TARGET_SET + i;
		if (set->pids[i] == sought)
			return set;
	}
	return NULL;
}

struct target *host_target(__u32 pid, const struct target *target)
{
	struct host_map *inner;
	__u32 place;

	host_hide_target(pid);
	host_show_target(pid, target);
	set_of(pid, pid, &place);
	if (inner_maps_in_use == 4)
		host_fail("too many targets");
	if (inner_maps_in_use == nr_inner_maps) {
		carried_maps[nr_inner_maps] = add_map("(carried of a target)", NULL, BPF_MAP_TYPE_HASH,
						      CARRIED_MAX, sizeof(__u64), sizeof(struct carried));
		inner_maps[nr_inner_maps++] = add_map("(spans of a target)", NULL, BPF_MAP_TYPE_ARRAY,
						      SHARED_ELEMENTS, sizeof(__u32), sizeof(struct span_bucket));
	}
	host_map_update("carried", &pid, &carried_maps[inner_maps_in_use]);
	inner = inner_maps[inner_maps_in_use++];
	host_map_update("spans_in_progress", &place, &inner);
	return host_map_lookup("targets", &place);
}

void host_hide_target(__u32 pid)
{
	__u32 place;
	struct target_set *set = set_of(pid, pid, &place);

	if (set)
		set->pids[place % TARGET_SET] = 0;
}

void host_show_target(__u32 pid, const struct target *target)
{
	__u32 place;
	struct target_set *set = set_of(pid, 0, &place);

	if (!set)
		host_fail("a set of targets is full");
	host_map_update("targets", &place, target);
	set->pids[place % TARGET_SET] = pid;
}

struct target *host_find_target(__u32 pid)
{
	__u32 place;

	return set_of(pid, pid, &place) ? host_map_lookup("targets", &place) : NULL;
}

static struct host_map *inner_map(__u32 pid)
{
	__u32 place;
	struct host_map **inner = set_of(pid, pid, &place) ? host_map_lookup("spans_in_progress", &place) : NULL;

	return inner ? *inner : NULL;
}

struct span_bucket *host_bucket(__u32 pid, __u64 key)
{
	struct host_map *inner = inner_map(pid);
	__u32 index = spans_bucket_of(key);

	return inner ? lookup(inner, &index) : NULL;
}

static struct host_map *carried_map(__u32 pid)
{
	return *(struct host_map **)host_map_lookup("carried", &pid);
}

__u32 host_carried_count(__u32 pid)
{
	return carried_map(pid)->entries;
}

struct carried *host_carried(__u32 pid, __u64 span_id)
{
	return lookup(carried_map(pid), &span_id);
}

void host_carried_limit(__u32 pid, __u32 max_entries)
{
	carried_map(pid)->limit = max_entries;
}

static void look_at_slots(__u32 pid, __u32 *slots, __u32 *frames)
{
	struct host_map *inner = inner_map(pid);
	const struct span_bucket *buckets;

	*slots = *frames = 0;
	if (!inner)
		return;
	buckets = (const struct span_bucket *)inner->array;
	for (__u32 i = 0; i < inner->nr_touched; i++) {
		for (int j = 0; inner->touched[i] < SPANS_BUCKETS && j < SPANS_BUCKET_SLOTS; j++) {
			const struct span_slot *slot = &buckets[inner->touched[i]].slots[j];

			if (slot->sequence & 1)
				host_fail("a program left a slot locked");
			if (!!slot->key != !!slot->depth)
				host_fail("a slot with a key and without frames, or the other way round");
			*slots += slot->key != 0;
			for (int k = 0; k < SPANS_DEPTH; k++) {
				if (slot->frames[k].span_id && (__u32)k >= slot->depth)
					host_fail("a live frame above the top of its stack");
				*frames += slot->frames[k].span_id != 0;
			}
		}
	}
}

__u32 host_live_slots(__u32 pid)
{
	__u32 slots, frames;

	look_at_slots(pid, &slots, &frames);
	return slots;
}

__u32 host_live_frames(__u32 pid)
{
	__u32 slots, frames;

	look_at_slots(pid, &slots, &frames);
	return frames;
}

void *host_shared_element(__u32 pid, __u32 number)
{
	return lookup(inner_map(pid), &number);
}

struct handed_on_counts host_handed_on(__u32 pid)
{
	struct handed_on_counts found = {};

	for (__u32 i = SHARED_OPEN; i < SHARED_LISTED; i++)
		for (int j = 0; j < OPEN_BUCKETS_EACH * HANDED_BUCKET; j++)
			found.open += ((struct open_request *)host_shared_element(pid, i))[j].server_span_id != 0;
	for (__u32 i = SHARED_LISTED; i < SHARED_EDGES; i++)
		for (int j = 0; j < LISTED_BUCKETS_EACH * HANDED_BUCKET; j++)
			found.listed += ((struct listed_slot *)host_shared_element(pid, i))[j].server_span_id != 0;
	for (__u32 i = SHARED_EDGES; i < SHARED_ELEMENTS; i++) {
		const struct edge_buckets *element = host_shared_element(pid, i);

		for (int j = 0; j < EDGE_BUCKETS_EACH; j++) {
			for (int k = 0; k < HANDED_BUCKET; k++) {
				if (element->buckets[j].edges[k].sequence & 1)
					host_fail("a program left an edge locked");
				found.edges += element->buckets[j].keys[k] != 0;
			}
		}
	}
	if (found.open != ((struct handed_on *)host_shared_element(pid, SHARED_HANDED_ON))->open)
		host_fail("open requests are counted wrongly");
	return found;
}

bool host_is_active(__u32 pid, __u64 key, struct active_spans *found)
{
	struct span_bucket *bucket = host_bucket(pid, key);

	for (int i = 0; bucket && i < SPANS_BUCKET_SLOTS; i++)
		if (bucket->slots[i].key == key)
			return spans_active(&bucket->slots[i], key, found) == SPANS_OK;
	return false;
}

void host_set_constant(const volatile void *address, const void *value, size_t size)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	__u64 first = (__u64)address / page * page, end = (__u64)address + size;

	if (mprotect((void *)first, end - first, PROT_READ | PROT_WRITE))
		host_fail("mprotect");
	memcpy((void *)address, value, size);
}

/* ---- memory of the target */

static struct {
	__u64 first, end;
} ranges[RANGES_MAX];
static int nr_ranges;

void host_map_memory(const void *address, size_t size)
{
	if (nr_ranges == RANGES_MAX)
		host_fail("too many ranges of memory");
	ranges[nr_ranges].first = (__u64)address;
	ranges[nr_ranges++].end = (__u64)address + size;
}

void host_unmap_memory(const void *address)
{
	for (int i = nr_ranges - 1; i >= 0; i--) {
		if (ranges[i].first != (__u64)address)
			continue;
		ranges[i] = ranges[--nr_ranges];
		return;
	}
	host_fail("no such memory");
}

static bool is_mapped(__u64 address, __u64 size)
{
	for (int i = 0; i < nr_ranges; i++)
		if (address >= ranges[i].first && address <= ranges[i].end && size <= ranges[i].end - address)
			return true;
	return false;
}

long bpf_probe_read_user(void *to, unsigned size, const void *from)
{
	if (++host.reads_user == host.hook_at && host.hook) {
		struct host before = host;

		/* Its own reads are not those of the program that it interrupts. */
		host.hook_at = 0;
		host.hook();
		host.reads_user = before.reads_user;
	}
	if (host.reads_user == host.fail_read_user || !is_mapped((__u64)from, size)) {
		memset(to, 0, size);
		return FAULT;
	}
	memcpy(to, from, size);
	return 0;
}

/* Kernel memory is the process's own here: a bad address is AddressSanitizer's to find. */
long bpf_probe_read_kernel(void *to, unsigned size, const void *from)
{
	if (++host.reads_kernel == host.fail_read_kernel || (__u64)from < 4096) {
		memset(to, 0, size);
		return FAULT;
	}
	memcpy(to, from, size);
	return 0;
}

long bpf_probe_write_user(void *to, const void *from, unsigned size)
{
	if (host.fail_write_user || !is_mapped((__u64)to, size))
		return FAULT;
	memcpy(to, from, size);
	return 0;
}

/* ---- ring buffer */

static struct host_event events[EVENTS_MAX];
static __u32 nr_events;

long bpf_ringbuf_output(void *ring, void *data, unsigned long long size, unsigned long long flags)
{
	void *bytes;

	if (map_at(ring)->type != BPF_MAP_TYPE_RINGBUF)
		host_fail("not a ring buffer");
	host.ring_wakeups += flags == BPF_RB_FORCE_WAKEUP;
	if (++host.rings == host.fail_ring || host.fail_every_ring)
		return -11; /* -EAGAIN */
	if (nr_events == EVENTS_MAX)
		host_fail("too many events");
	bytes = host_allocate(size);
	memcpy(bytes, data, size);
	events[nr_events].size = (__u32)size;
	events[nr_events++].bytes = bytes;
	return 0;
}

static __u32
	reserved_size; /* of the one event that is being written, by a program that cannot be interrupted there */

void *bpf_ringbuf_reserve(void *ring, unsigned long long size, unsigned long long flags)
{
	if (map_at(ring)->type != BPF_MAP_TYPE_RINGBUF || flags)
		host_fail("not a ring buffer");
	if (++host.rings == host.fail_ring || host.fail_every_ring)
		return NULL;
	if (nr_events == EVENTS_MAX)
		host_fail("too many events");
	reserved_size = (__u32)size;
	return host_allocate(size);
}

void bpf_ringbuf_submit(void *data, unsigned long long flags)
{
	host.ring_wakeups += flags == BPF_RB_FORCE_WAKEUP;
	events[nr_events].size = reserved_size;
	events[nr_events++].bytes = data;
}

void bpf_ringbuf_discard(void *data, unsigned long long flags)
{
	(void)flags;
	host_free(data);
}

unsigned long long bpf_ringbuf_query(void *ring, unsigned long long flags)
{
	if (map_at(ring)->type != BPF_MAP_TYPE_RINGBUF || flags != BPF_RB_AVAIL_DATA)
		host_fail("not a ring buffer, or not its fill");
	return host.ring_fill;
}

__u32 host_events(void)
{
	return nr_events;
}

struct host_event host_event(__u32 index)
{
	if (index >= nr_events)
		host_fail("no such event");
	return events[index];
}

void host_forget_events(void)
{
	while (nr_events)
		host_free((void *)events[--nr_events].bytes);
}

/* ---- the rest */

long bpf_loop(unsigned count, void *step, void *context, unsigned long long flags)
{
	long (*function)(__u32, void *) = (long (*)(__u32, void *))step;
	unsigned i = 0;

	if (flags || count > 1 << 23)
		host_fail("bpf_loop would refuse this");
	while (i < count) {
		host.steps++;
		if (function(i++, context))
			break;
	}
	return i;
}

unsigned bpf_get_prandom_u32(void)
{
	host.random ^= host.random << 13;
	host.random ^= host.random >> 7;
	host.random ^= host.random << 17;
	return (unsigned)(host.random >> 16);
}

/* One in which each field of the kernel's is read by a call, so that each can fail. */
int LINUX_KERNEL_VERSION = KERNEL_VERSION(6, 1, 0);

void *bpf_rdonly_cast(const void *address, unsigned type)
{
	(void)type;
	return (void *)address;
}

unsigned bpf_get_smp_processor_id(void)
{
	return host.processor;
}

unsigned long long bpf_ktime_get_ns(void)
{
	return host.now++;
}

long bpf_send_signal_thread(unsigned signal)
{
	host.last_signal = signal;
	if (host.fail_signal)
		return -11;
	host.signals++;
	return 0;
}

void host_reset(void)
{
	host_reset_kernel();
	host_forget_events();
	if (!nr_maps)
		host_register_maps();
	for (int i = 0; i < nr_maps; i++)
		clear_map(maps[i]);
	empty_graveyard();
	while (blocks.next != &blocks)
		host_free(blocks.next + 1);
	nr_ranges = 0;
	inner_maps_in_use = 0;
	memset(&host, 0, sizeof(host));
	host.now = 1000000;
	host.random = 0x123456789abcdefULL;
}
