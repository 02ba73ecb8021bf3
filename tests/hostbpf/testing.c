/* Runs the test that is named on the command line. */
#include "testing.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static struct test *tests;
static char about[256];

void test_add(struct test *test)
{
	test->next = tests;
	tests = test;
}

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

	fprintf(stderr, "%s:%d: ", file, line);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fprintf(stderr, "%s%s\n", about[0] ? "\n\tcase: " : "", about);
	exit(1);
}

int main(int nr_arguments, char **arguments)
{
	for (struct test *test = tests; test && nr_arguments == 2; test = test->next) {
		if (strcmp(test->name, arguments[1]) != 0)
			continue;
		test->run();
		return 0;
	}
	fprintf(stderr, "usage: %s TEST\n", arguments[0]);
	for (struct test *test = tests; test; test = test->next)
		fprintf(stderr, "  %s\n", test->name);
	return 2;
}
