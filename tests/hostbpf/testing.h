/*
 * TEST(name) { … } defines a test; CHECK and CHECK_EQUAL end it where they fail. One process runs
 * one test, so a test can leave behind what it likes. test_hostbpf.py finds the names by
 * `TEST(` at the beginning of a line.
 */
#ifndef HOSTBPF_TESTING_H
#define HOSTBPF_TESTING_H

#include <stdio.h>

struct test {
	const char *name;
	void (*run)(void);
	struct test *next;
};

void test_add(struct test *test);
/* What a failure says it was about, in loops over many cases. */
void test_case(const char *format, ...) __attribute__((format(printf, 1, 2)));
void test_fail(const char *file, int line, const char *format, ...)
	__attribute__((format(printf, 3, 4), noreturn));

#define TEST(name)                                                                                                \
	static void name(void);                                                                                   \
	__attribute__((constructor)) static void add_##name(void)                                                 \
	{                                                                                                         \
		static struct test test = {#name, name, NULL};                                                    \
		test_add(&test);                                                                                  \
	}                                                                                                         \
	static void name(void)

#define CHECK(condition)                                                                                          \
	do {                                                                                                      \
		if (!(condition))                                                                                 \
			test_fail(__FILE__, __LINE__, "not so: %s", #condition);                                  \
	} while (0)

#define CHECK_EQUAL(value, expected)                                                                              \
	do {                                                                                                      \
		unsigned long long value_ = (unsigned long long)(value);                                          \
		unsigned long long expected_ = (unsigned long long)(expected);                                    \
		if (value_ != expected_)                                                                          \
			test_fail(__FILE__, __LINE__, "%s is %llu (%#llx), expected %llu (%#llx)", #value,        \
				  value_, value_, expected_, expected_);                                          \
	} while (0)

#endif
