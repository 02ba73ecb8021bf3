/*
 * Which of a request's headers make its remote parent, and what it brings along. Included by
 * http_server.bpf.c, whose lines it reads.
 */
#ifndef SPANWELD_PROPAGATION_BPF_H
#define SPANWELD_PROPAGATION_BPF_H

#include "carried.bpf.h"

const volatile struct propagation propagation = {
	.place = {[PROPAGATOR_TRACECONTEXT] = 1, [PROPAGATOR_BAGGAGE] = 2},
};

static const struct carried nothing_carried = {};

/* ---- members of tracestate and baggage, byte by byte */

enum carry_state {
	MALFORMED = 0,
	/* https://www.w3.org/TR/trace-context-2/#tracestate-header-field-values */
	STATE_START,
	STATE_KEY,
	STATE_VALUE_START, /* nothing of it but blanks, which are its own */
	STATE_VALUE,
	STATE_VALUE_BLANK, /* it may be over, or go on */
	STATE_TAIL,
	STATE_SKIPPED, /* well-formed so far, but there is no room for it */
	/* https://www.w3.org/TR/baggage/#definition */
	BAGGAGE_START,
	BAGGAGE_KEY,
	BAGGAGE_KEY_TAIL,
	BAGGAGE_VALUE_START, /* it may be empty */
	BAGGAGE_VALUE,
	BAGGAGE_VALUE_TAIL,
	BAGGAGE_PROPERTY_START,
	BAGGAGE_PROPERTY_KEY,
	BAGGAGE_PROPERTY_KEY_TAIL,
};

#define WHOLE_MEMBER                                                                                              \
	(1u << STATE_VALUE | 1u << STATE_VALUE_BLANK | 1u << STATE_TAIL | 1u << BAGGAGE_VALUE_START |             \
	 1u << BAGGAGE_VALUE | 1u << BAGGAGE_VALUE_TAIL | 1u << BAGGAGE_PROPERTY_KEY |                            \
	 1u << BAGGAGE_PROPERTY_KEY_TAIL)

/* What a byte can be, in either header. */
enum byte_class {
	BYTE_BAD = 0,
	BYTE_TAB, /* also what ends a line */
	BYTE_SPACE,
	BYTE_EQUALS,
	BYTE_SEMICOLON,
	BYTE_LOWER, /* or a digit */
	BYTE_KEY, /* in keys of either */
	BYTE_STATE_KEY, /* in keys of tracestate only */
	BYTE_TOKEN, /* in keys of baggage only */
	BYTE_VALUE, /* in values only */
	BYTE_STATE_VALUE, /* in values of tracestate only */
	BYTE_COMMA,
};

static const __u8 byte_classes[256] = {
	['!'] = BYTE_TOKEN, ['"'] = BYTE_STATE_VALUE,  ['#' ... '\''] = BYTE_TOKEN, ['('] = BYTE_VALUE,
	[')'] = BYTE_VALUE, ['*'] = BYTE_KEY,	       ['+'] = BYTE_TOKEN,	    [','] = BYTE_COMMA,
	['-'] = BYTE_KEY,   ['.'] = BYTE_TOKEN,	       ['/'] = BYTE_STATE_KEY,	    ['0' ... '9'] = BYTE_LOWER,
	[':'] = BYTE_VALUE, [';'] = BYTE_SEMICOLON,    ['<'] = BYTE_VALUE,	    ['='] = BYTE_EQUALS,
	['>'] = BYTE_VALUE, ['?'] = BYTE_VALUE,	       ['@'] = BYTE_STATE_KEY,	    ['A' ... 'Z'] = BYTE_TOKEN,
	['['] = BYTE_VALUE, ['\\'] = BYTE_STATE_VALUE, [']'] = BYTE_VALUE,	    ['^'] = BYTE_TOKEN,
	['_'] = BYTE_KEY,   ['`'] = BYTE_TOKEN,	       ['a' ... 'z'] = BYTE_LOWER,  ['{'] = BYTE_VALUE,
	['|'] = BYTE_TOKEN, ['}'] = BYTE_VALUE,	       ['~'] = BYTE_TOKEN,	    [' '] = BYTE_SPACE,
	['\t'] = BYTE_TAB,  ['\r'] = BYTE_TAB,	       ['\n'] = BYTE_TAB,
};

/* What a step does, besides the state that it leads to. */
#define TAKE 0x40 /* the byte belongs to the member, */
#define SOLID 0x80 /* and all before it does too */
#define STATE_BITS 31

#define BLANKS(state) [BYTE_TAB] = (state), [BYTE_SPACE] = (state)
#define TOKENS(state) [BYTE_LOWER] = (state), [BYTE_KEY] = (state), [BYTE_TOKEN] = (state)
#define OCTETS(state) TOKENS(state), [BYTE_STATE_KEY] = (state), [BYTE_VALUE] = (state), [BYTE_EQUALS] = (state)
#define STATE_VALUES(state)                                                                                       \
	TOKENS(state), [BYTE_STATE_KEY] = (state), [BYTE_VALUE] = (state), [BYTE_SEMICOLON] = (state),            \
		       [BYTE_STATE_VALUE] = (state)

/* What is not here is MALFORMED. */
static const __u8 carry_steps[32][16] = {
	[STATE_START] = {BLANKS(STATE_START), [BYTE_LOWER] = STATE_KEY | TAKE},
	[STATE_KEY] = {[BYTE_LOWER] = STATE_KEY | TAKE,
		       [BYTE_KEY] = STATE_KEY | TAKE,
		       [BYTE_STATE_KEY] = STATE_KEY | TAKE,
		       [BYTE_EQUALS] = STATE_VALUE_START | TAKE},
	[STATE_VALUE_START] = {[BYTE_SPACE] = STATE_VALUE_START | TAKE, STATE_VALUES(STATE_VALUE | TAKE | SOLID)},
	[STATE_VALUE] = {[BYTE_SPACE] = STATE_VALUE_BLANK | TAKE,
			 [BYTE_TAB] = STATE_TAIL,
			 STATE_VALUES(STATE_VALUE | TAKE | SOLID)},
	[STATE_VALUE_BLANK] = {[BYTE_SPACE] = STATE_VALUE_BLANK | TAKE,
			       [BYTE_TAB] = STATE_TAIL,
			       STATE_VALUES(STATE_VALUE | TAKE | SOLID)},
	[STATE_TAIL] = {BLANKS(STATE_TAIL)},
	[STATE_SKIPPED] = {BLANKS(STATE_SKIPPED), STATE_VALUES(STATE_SKIPPED), [BYTE_EQUALS] = STATE_SKIPPED},
	[BAGGAGE_START] = {BLANKS(BAGGAGE_START), TOKENS(BAGGAGE_KEY | TAKE)},
	[BAGGAGE_KEY] = {BLANKS(BAGGAGE_KEY_TAIL),
			 TOKENS(BAGGAGE_KEY | TAKE), [BYTE_EQUALS] = BAGGAGE_VALUE_START | TAKE | SOLID},
	[BAGGAGE_KEY_TAIL] = {BLANKS(BAGGAGE_KEY_TAIL), [BYTE_EQUALS] = BAGGAGE_VALUE_START | TAKE | SOLID},
	[BAGGAGE_VALUE_START] =
		{BLANKS(BAGGAGE_VALUE_START),
		 OCTETS(BAGGAGE_VALUE | TAKE | SOLID), [BYTE_SEMICOLON] = BAGGAGE_PROPERTY_START | TAKE},
	[BAGGAGE_VALUE] = {BLANKS(BAGGAGE_VALUE_TAIL),
			   OCTETS(BAGGAGE_VALUE | TAKE | SOLID), [BYTE_SEMICOLON] = BAGGAGE_PROPERTY_START | TAKE},
	[BAGGAGE_VALUE_TAIL] = {BLANKS(BAGGAGE_VALUE_TAIL), [BYTE_SEMICOLON] = BAGGAGE_PROPERTY_START | TAKE},
	[BAGGAGE_PROPERTY_START] = {BLANKS(BAGGAGE_PROPERTY_START), TOKENS(BAGGAGE_PROPERTY_KEY | TAKE | SOLID)},
	[BAGGAGE_PROPERTY_KEY] =
		{BLANKS(BAGGAGE_PROPERTY_KEY_TAIL),
		 TOKENS(BAGGAGE_PROPERTY_KEY | TAKE | SOLID), [BYTE_EQUALS] = BAGGAGE_VALUE_START | TAKE | SOLID,
		 [BYTE_SEMICOLON] = BAGGAGE_PROPERTY_START | TAKE},
	[BAGGAGE_PROPERTY_KEY_TAIL] =
		{BLANKS(BAGGAGE_PROPERTY_KEY_TAIL), [BYTE_EQUALS] = BAGGAGE_VALUE_START | TAKE | SOLID,
		 [BYTE_SEMICOLON] = BAGGAGE_PROPERTY_START | TAKE},
};

#define STATE_PART_MAX 256 /* a tracestate's key, and its value */

/* A stretch of a header's line on its way into the text. */
struct carrying {
	struct direction *d;
	struct carried *to;
	__u32 from;
	__u32 is_baggage;
};

static __always_inline void put_byte(struct carrying *s, __u32 at, char byte)
{
	__u32 offset =
		at + (s->is_baggage ? offsetof(struct carried, baggage) : offsetof(struct carried, tracestate));

	/* `at` is within its text, which the verifier does not know. */
	asm volatile("" : "+r"(offset));
	if (offset < sizeof(struct carried))
		((char *)s->to)[offset] = byte;
}

static __always_inline void begin_member(struct carrying *s)
{
	struct carried *c = s->to;
	__u32 length = s->is_baggage ? c->baggage_length : c->tracestate_length;

	c->state = s->is_baggage ? BAGGAGE_START : STATE_START;
	c->part = 0;
	c->at = c->end = length ? length + 1 : 0;
}

/* A comma, or the end of the line. */
static __always_inline void end_member(struct carrying *s)
{
	struct carried *c = s->to;
	__u32 length = s->is_baggage ? c->baggage_length : c->tracestate_length;

	if (1u << (c->state & STATE_BITS) & WHOLE_MEMBER) {
		if (length)
			put_byte(s, length, ',');
		if (s->is_baggage)
			c->baggage_length = c->end;
		else if (c->members++ < TRACESTATE_MEMBERS_MAX)
			c->tracestate_length = c->end;
		else
			c->tracestate_invalid = 1;
	} else if (!s->is_baggage && c->state != STATE_START && c->state != STATE_SKIPPED) {
		c->tracestate_invalid = 1;
	}
	begin_member(s);
}

static long carry_byte(__u32 index, void *context)
{
	struct carrying *s = context;
	struct carried *c = s->to;
	char byte = line_char(s->d, s->from + index);
	__u8 class = byte_classes[(__u8)byte], step;

	if (class == BYTE_COMMA) {
		end_member(s);
		return 0;
	}
	step = carry_steps[c->state & STATE_BITS][class & 15];
	if (step & TAKE) {
		__u32 at = c->at;

		if (at >= (s->is_baggage ? BAGGAGE_MAX : TRACESTATE_MAX)) {
			step = s->is_baggage ? MALFORMED : STATE_SKIPPED;
		} else {
			put_byte(s, at, byte);
			c->at = at + 1;
			if (step & SOLID)
				c->end = at + 1;
		}
	}
	if (!s->is_baggage && class == BYTE_EQUALS)
		c->part = 0;
	else if (step & TAKE && ++c->part > STATE_PART_MAX &&
		 ((step & STATE_BITS) == STATE_KEY || (step & STATE_BITS) == STATE_VALUE))
		step = MALFORMED;
	c->state = step & STATE_BITS;
	return 0;
}

enum {
	LINE_BEGINS = 1,
	LINE_ENDS = 2,
	IS_BAGGAGE = 4,
};

/* Bytes `from` to `to` of the line are of a tracestate or of baggage. */
GLOBAL int carry(struct direction *d, struct server_span_event *request, __u32 from, __u32 to, __u32 how)
{
	struct carrying s = {};
	__u32 pid = bpf_get_current_pid_tgid() >> 32;

	if (!d || !request || from > to || to > LINE_MAX + LINE_STEP)
		return 0;
	if (!request->span_id)
		request->span_id = new_span_id();
	if (!(request->remote & (REMOTE_CARRIED | REMOTE_UNCARRIED))) {
		void *texts = bpf_map_lookup_elem(&carried, &pid);
		__u64 key = request->span_id;

		if (!texts || bpf_map_update_elem(texts, &key, &nothing_carried, BPF_ANY)) {
			request->remote |= REMOTE_UNCARRIED;
			count(COUNT_CARRIED_FULL);
			return 0;
		}
		request->remote |= REMOTE_CARRIED;
	}
	s.d = d;
	s.to = find_carried(pid, request->span_id);
	if (!s.to)
		return 0;
	s.from = from;
	s.is_baggage = how & IS_BAGGAGE;
	if (how & LINE_BEGINS)
		begin_member(&s);
	bpf_loop(to - from, carry_byte, &s, 0);
	if (how & LINE_ENDS)
		end_member(&s);
	return 0;
}

static __always_inline void drop_carried(__u32 pid, struct server_span_event *request)
{
	void *texts;
	__u64 key = request->span_id;

	if (!(request->remote & REMOTE_CARRIED))
		return;
	request->remote &= ~REMOTE_CARRIED;
	texts = bpf_map_lookup_elem(&carried, &pid);
	if (texts)
		bpf_map_delete_elem(texts, &key);
}

/* ---- span contexts of B3 and Jaeger */

/* Hexadecimal digits of either case at `from`: how many there are, 33 for more than a trace id has. */
GLOBAL int read_hex(struct direction *d, __u32 from, struct hex_number *number)
{
	__u64 high = 0, low = 0;
	int digits = 0;

	if (!d || !number)
		return 0;
	for (int i = 0; i < 33; i++) {
		__u8 digit = hex_digits[(__u8)line_char(d, from + i)];

		if (!(digit & HEX))
			break;
		high = high << 4 | low >> 60;
		low = low << 4 | (digit & 15);
		digits++;
	}
	number->high = high;
	number->low = low;
	return digits;
}

static __always_inline __u8 b3_sampling(char c)
{
	return c == '0' ? SAMPLING_NO : c == '1' || c == 'd' ? SAMPLING_YES : SAMPLING_UNKNOWN;
}

/* https://github.com/openzipkin/b3-propagation#single-header */
GLOBAL int parse_b3(struct direction *d)
{
	struct hex_number trace = {}, span = {}, parent = {};
	__u32 from, end, digits;
	__u8 sampling = SAMPLING_UNKNOWN;

	if (!d || d->remote.seen & SEEN_B3)
		return 0;
	d->remote.seen |= SEEN_B3;
	from = value_start(d, 3);
	end = trimmed(d, from);
	if (end == from + 1) {
		d->remote.b3_sampling = b3_sampling(line_char(d, from));
		return 0;
	}
	digits = read_hex(d, from, &trace);
	if ((digits != 16 && digits != 32) || line_char(d, from + digits) != '-')
		return 0;
	from += digits + 1;
	if (read_hex(d, from, &span) != 16)
		return 0;
	from += 16;
	if (from != end) {
		if (line_char(d, from) != '-')
			return 0;
		sampling = b3_sampling(line_char(d, from + 1));
		if (sampling == SAMPLING_UNKNOWN)
			return 0;
		from += 2;
	}
	if (from != end && (line_char(d, from) != '-' || read_hex(d, from + 1, &parent) != 16 || from + 17 != end))
		return 0;
	d->remote.b3_sampling = sampling;
	d->remote.b3.trace_id = trace;
	d->remote.b3.span_id = span.low;
	if ((trace.high | trace.low) && span.low)
		d->remote.seen |= B3_IS_WHOLE;
	return 0;
}

/* https://github.com/openzipkin/b3-propagation#multiple-headers */
GLOBAL int parse_b3_multi(struct direction *d)
{
	struct hex_number number = {};
	__u64 group, name;
	__u32 from, end, digits;

	if (!d)
		return 0;
	/* x-b3-GRPNAME: */
	group = (load64(d->line) | LOWER) >> 40;
	name = load64(&d->line[8]) | LOWER;
	if (group == TEXT8('t', 'r', 'a', 0, 0, 0, 0, 0) &&
	    (name & FIRST_BYTES(5)) == TEXT8('c', 'e', 'i', 'd', ':', 0, 0, 0)) {
		from = value_start(d, 13);
		end = trimmed(d, from);
		digits = read_hex(d, from, &number);
		if (d->remote.seen & SEEN_B3_TRACE_ID)
			return 0;
		d->remote.seen |= SEEN_B3_TRACE_ID;
		d->remote.b3_multi.trace_id.high = d->remote.b3_multi.trace_id.low = 0;
		if ((digits == 16 || digits == 32) && from + digits == end)
			d->remote.b3_multi.trace_id = number;
	} else if (group == TEXT8('s', 'p', 'a', 0, 0, 0, 0, 0) &&
		   (name & FIRST_BYTES(4)) == TEXT8('n', 'i', 'd', ':', 0, 0, 0, 0)) {
		from = value_start(d, 12);
		end = trimmed(d, from);
		digits = read_hex(d, from, &number);
		if (d->remote.seen & SEEN_B3_SPAN_ID)
			return 0;
		d->remote.seen |= SEEN_B3_SPAN_ID;
		d->remote.b3_multi.span_id = digits == 16 && from + 16 == end ? number.low : 0;
	} else if (group == TEXT8('s', 'a', 'm', 0, 0, 0, 0, 0) &&
		   (name & FIRST_BYTES(5)) == TEXT8('p', 'l', 'e', 'd', ':', 0, 0, 0)) {
		from = value_start(d, 13);
		end = trimmed(d, from);
		if (d->remote.b3_multi_sampling != SAMPLING_UNKNOWN || from > 64)
			return 0;
		if (end == from + 1)
			d->remote.b3_multi_sampling = b3_sampling(line_char(d, from));
		/* What tracers wrote before there was a specification. */
		else if (end == from + 4 && ((__u32)load64(&d->line[from]) | (__u32)LOWER) ==
						    (__u32)TEXT8('t', 'r', 'u', 'e', 0, 0, 0, 0))
			d->remote.b3_multi_sampling = SAMPLING_YES;
		else if (end == from + 5 && ((load64(&d->line[from]) | LOWER) & FIRST_BYTES(5)) ==
						    TEXT8('f', 'a', 'l', 's', 'e', 0, 0, 0))
			d->remote.b3_multi_sampling = SAMPLING_NO;
	} else if (group == TEXT8('f', 'l', 'a', 0, 0, 0, 0, 0) &&
		   (name & FIRST_BYTES(3)) == TEXT8('g', 's', ':', 0, 0, 0, 0, 0)) {
		from = value_start(d, 11);
		/* Debug, which means that it is sampled whatever else is said. */
		if (trimmed(d, from) == from + 1 && line_char(d, from) == '1')
			d->remote.seen |= B3_IS_DEBUG;
	}
	return 0;
}

/* The length of a colon, which may be percent-encoded; 0: there is none. */
static __always_inline __u32 colon(struct direction *d, __u32 at)
{
	char c = line_char(d, at);

	if (c == ':')
		return 1;
	if (c == '%' && line_char(d, at + 1) == '3' && (line_char(d, at + 2) | 0x20) == 'a')
		return 3;
	return 0;
}

/* https://www.jaegertracing.io/docs/1.76/client-libraries/#propagation-format */
GLOBAL int parse_jaeger(struct direction *d)
{
	struct hex_number trace = {}, span = {}, number = {};
	__u32 from, digits, separator;

	if (!d || d->remote.seen & SEEN_JAEGER)
		return 0;
	d->remote.seen |= SEEN_JAEGER;
	from = value_start(d, 14);
	digits = read_hex(d, from, &trace);
	separator = colon(d, from + digits);
	if (!digits || digits > 32 || !separator)
		return 0;
	from += digits + separator;
	digits = read_hex(d, from, &span);
	separator = colon(d, from + digits);
	if (!digits || digits > 16 || !separator)
		return 0;
	from += digits + separator;
	digits = read_hex(d, from, &number);
	separator = colon(d, from + digits);
	if (!digits || digits > 16 || !separator)
		return 0;
	from += digits + separator;
	digits = read_hex(d, from, &number);
	if (!digits || digits > 2 || from + digits != trimmed(d, from))
		return 0;
	d->remote.jaeger_sampling = number.low & 1 ? SAMPLING_YES : SAMPLING_NO;
	d->remote.jaeger.trace_id = trace;
	d->remote.jaeger.span_id = span.low;
	if ((trace.high | trace.low) && span.low)
		d->remote.seen |= JAEGER_IS_WHOLE;
	return 0;
}

/* ---- where they come together */

#define TRACESTATE_NAME 11 /* with its colon */
#define BAGGAGE_NAME 8

/* How a text of this line is carried; -1: the line is of none. */
static __always_inline int carried_kind(struct direction *d)
{
	__u64 w0 = load64(d->line) | LOWER;

	if (propagation.place[PROPAGATOR_BAGGAGE] && w0 == TEXT8('b', 'a', 'g', 'g', 'a', 'g', 'e', ':'))
		return IS_BAGGAGE;
	if (propagation.place[PROPAGATOR_TRACECONTEXT] && w0 == TEXT8('t', 'r', 'a', 'c', 'e', 's', 't', 'a') &&
	    ((load64(&d->line[8]) | LOWER) & FIRST_BYTES(3)) == TEXT8('t', 'e', ':', 0, 0, 0, 0, 0))
		return 0;
	return -1;
}

/* The next `count` bytes of a line: if with them it is longer than what is kept of one, they are carried. */
GLOBAL int carry_long_line(struct direction *d, struct server_span_event *request, __u32 count)
{
	__u32 from = LINE_MAX, to = LINE_MAX + count, length;
	int kind;

	if (!d || !request || d->line_length + count <= LINE_MAX)
		return 0;
	kind = carried_kind(d);
	if (kind < 0)
		return 0;
	length = d->line_length;
	if (length <= LINE_MAX) {
		from = kind ? BAGGAGE_NAME : TRACESTATE_NAME;
		to = length + count;
		kind |= LINE_BEGINS;
	}
	return carry(d, request, from, to, kind);
}

/* A whole line of a request's head, of which the first letter says that it may be one of these. */
static __always_inline bool is_traceparent(__u64 w0, __u64 w1)
{
	return w0 == TEXT8('t', 'r', 'a', 'c', 'e', 'p', 'a', 'r') &&
	       (w1 & FIRST_BYTES(4)) == TEXT8('e', 'n', 't', ':', 0, 0, 0, 0);
}

GLOBAL int parse_propagation_header(struct direction *d, struct server_span_event *request)
{
	__u64 w0, w1;
	int kind;

	if (!d || !request)
		return 0;
	w0 = load64(d->line) | LOWER;
	w1 = load64(&d->line[8]) | LOWER;
	if (is_traceparent(w0, w1)) {
		if (propagation.place[PROPAGATOR_TRACECONTEXT])
			parse_traceparent(d, request);
		return 0;
	}
	if (propagation.place[PROPAGATOR_B3]) {
		if ((w0 & FIRST_BYTES(3)) == TEXT8('b', '3', ':', 0, 0, 0, 0, 0))
			return parse_b3(d);
		if ((w0 & FIRST_BYTES(5)) == TEXT8('x', '-', 'b', '3', '-', 0, 0, 0))
			return parse_b3_multi(d);
	}
	if (propagation.place[PROPAGATOR_JAEGER] && w0 == TEXT8('u', 'b', 'e', 'r', '-', 't', 'r', 'a') &&
	    (w1 & FIRST_BYTES(6)) == TEXT8('c', 'e', '-', 'i', 'd', ':', 0, 0))
		return parse_jaeger(d);
	kind = carried_kind(d);
	if (kind < 0)
		return 0;
	/* What is longer has been carried already. */
	if (d->line_length > LINE_MAX)
		return carry(d, request, 0, 0, kind | LINE_ENDS);
	return carry(d, request, kind ? BAGGAGE_NAME : TRACESTATE_NAME, d->line_length,
		     kind | LINE_BEGINS | LINE_ENDS);
}

static __always_inline void take_remote(struct server_span_event *request, const struct remote_context *context,
					__u32 sampling)
{
	request->trace_id_high = context->trace_id.high;
	request->trace_id_low = context->trace_id.low;
	request->parent_span_id = context->span_id;
	request->flags = sampling == SAMPLING_YES ? TRACE_FLAG_SAMPLED : 0;
	request->remote =
		(request->remote & ~REMOTE_DECIDED) | (sampling == SAMPLING_UNKNOWN ? 0 : REMOTE_DECIDED);
}

/*
 * The head is complete: as a composite propagator does, the last of OTEL_PROPAGATORS that found a span
 * context wins. traceparent's is in the request already.
 */
GLOBAL int settle_remote(struct direction *d, struct server_span_event *request)
{
	__u32 place = 0, b3_sampling, b3_multi_sampling;
	struct remote_headers *remote;
	struct carried *c;

	if (!d || !request)
		return 0;
	remote = &d->remote;
	if (request->parent_span_id) {
		place = propagation.place[PROPAGATOR_TRACECONTEXT];
		request->remote |= REMOTE_DECIDED;
	}
	if (!remote->seen && !remote->b3_multi_sampling && !(request->remote & REMOTE_CARRIED))
		return 0;
	b3_sampling = remote->b3_sampling;
	b3_multi_sampling = remote->seen & B3_IS_DEBUG ? SAMPLING_YES : remote->b3_multi_sampling;
	if (propagation.place[PROPAGATOR_B3] > place) {
		if (remote->seen & B3_IS_WHOLE) {
			take_remote(request, &remote->b3, b3_sampling);
			place = propagation.place[PROPAGATOR_B3];
		} else if ((remote->seen & (SEEN_B3_TRACE_ID | SEEN_B3_SPAN_ID)) ==
				   (SEEN_B3_TRACE_ID | SEEN_B3_SPAN_ID) &&
			   remote->b3_multi.span_id &&
			   (remote->b3_multi.trace_id.high | remote->b3_multi.trace_id.low)) {
			take_remote(request, &remote->b3_multi, b3_multi_sampling);
			place = propagation.place[PROPAGATOR_B3];
		}
	}
	if (propagation.place[PROPAGATOR_JAEGER] > place && remote->seen & JAEGER_IS_WHOLE) {
		take_remote(request, &remote->jaeger, remote->jaeger_sampling);
		place = propagation.place[PROPAGATOR_JAEGER];
	}
	/* A decision without a span context. */
	if (!place) {
		if (b3_sampling == SAMPLING_UNKNOWN)
			b3_sampling = b3_multi_sampling;
		if (b3_sampling != SAMPLING_UNKNOWN)
			request->remote |= REMOTE_DECIDED;
		request->flags = b3_sampling == SAMPLING_YES ? TRACE_FLAG_SAMPLED : 0;
	}
	if (!(request->remote & REMOTE_CARRIED))
		return 0;
	c = find_carried(bpf_get_current_pid_tgid() >> 32, request->span_id);
	if (!c)
		return 0;
	c->span_id = request->span_id;
	if (c->tracestate_invalid || !place || place != propagation.place[PROPAGATOR_TRACECONTEXT])
		c->tracestate_length = 0;
	if (!c->tracestate_length && !c->baggage_length)
		drop_carried(bpf_get_current_pid_tgid() >> 32, request);
	return 0;
}

/* A sampled request's span begins: what it brought goes to the agent, as far as that is asked for. */
GLOBAL int tell_carried(struct server_span_event *request)
{
	__u32 pid = bpf_get_current_pid_tgid() >> 32;
	struct carried *c;
	__u64 size = 0;

	if (!request)
		return 0;
	c = find_carried(pid, request->span_id);
	if (!c)
		return 0;
	if (c->tracestate_length)
		size = offsetof(struct carried, tracestate) + c->tracestate_length;
	if (propagation.tells_baggage && c->baggage_length)
		size = offsetof(struct carried, baggage) + c->baggage_length;
	if (!size || size > sizeof(struct carried))
		return 0;
	c->head.kind = EVENT_CARRIED;
	c->head.pid = pid;
	c->head.at = bpf_ktime_get_ns();
	emit(c, size);
	return 0;
}

#endif
