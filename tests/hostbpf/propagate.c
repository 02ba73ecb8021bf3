/*
 * What the programs make of request headers, for test_propagation.py: from standard input any number of
 *
 *     settings (struct propagation), u32 bytes in a piece, u32 length, that many bytes of header lines
 *
 * to standard output, for each, a line: trace id, parent, flags, tracestate, baggage; the texts in brackets.
 */
#include "http.h"
#include "testing.h"

#include "carried.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define LENGTH_MAX 20000

static char about[256];

void test_case(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(about, sizeof(about), format, arguments);
	va_end(arguments);
}

void test_fail(const char *file, int line, const char *format, ...)
{
	va_list arguments;

	fprintf(stderr, "%s:%d: %s: ", file, line, about);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	exit(1);
}

static void play(const struct propagation *settings, const char *headers, __u32 length, __u32 piece)
{
	static const char begin[] = "GET / HTTP/1.1\r\n";
	static char head[LENGTH_MAX + 100];
	const struct carried *carried;
	struct active_spans found;
	size_t size = sizeof(begin) - 1;

	memcpy(head, begin, size);
	memcpy(head + size, headers, length);
	size += length;
	memcpy(head + size, "\r\n", 2);
	size += 2;
	http_start_connected();
	host_propagation(settings);
	in_steps(FD, head, size, piece);
	if (!host_is_active(PID, thread_task_key(TID), &found))
		test_fail(__FILE__, __LINE__, "no span is active");
	carried = host_carried(PID, found.server.span_id);
	printf("%016llx%016llx %016llx %u ", found.server.trace_id_high, found.server.trace_id_low,
	       found.server.remote_parent, found.server.flags);
	printf("[%.*s] [%.*s]\n", carried ? carried->tracestate_length : 0, carried ? carried->tracestate : "",
	       carried ? carried->baggage_length : 0, carried ? carried->baggage : "");
	if (carried)
		CHECK_EQUAL(carried->span_id, found.server.span_id);
	out("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
	sys_close(FD);
	CHECK_CLEAN();
	CHECK_NO_DROPS();
}

int main(void)
{
	static char headers[LENGTH_MAX];
	struct propagation settings;
	__u32 numbers[2];

	for (int number = 0; fread(&settings, sizeof(settings), 1, stdin) == 1; number++) {
		test_case("number %d", number);
		if (fread(numbers, sizeof(numbers), 1, stdin) != 1 || numbers[1] > sizeof(headers) ||
		    fread(headers, 1, numbers[1], stdin) != numbers[1])
			return 2;
		play(&settings, headers, numbers[1], numbers[0]);
	}
	return 0;
}
