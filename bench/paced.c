/*
 * Requests at a fixed rate, and how long each took from the moment at which it was due: one that waits
 * because others are late counts as late itself.
 *
 *	paced ADDRESS PORT METHOD TARGET RATE SECONDS CONNECTIONS
 *
 * Prints "NAME MICROSECONDS" lines: median, p99, most. Ends with 1 if a request failed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CONNECTIONS_MAX 256
#define RESPONSE_MAX 16384
#define DRAIN_NS 2000000000ULL

struct connection {
	uint64_t due; /* of the request under way; 0: none is */
	size_t received;
	char response[RESPONSE_MAX + 1];
};

static struct connection connections[CONNECTIONS_MAX];
static struct pollfd polled[CONNECTIONS_MAX];

static uint64_t now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000ULL + at.tv_nsec;
}

static void fail(const char *what)
{
	fprintf(stderr, "paced: %s\n", what);
	exit(1);
}

static int connect_to(const char *address, const char *port)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), yes = 1;

	if (fd < 0 || inet_pton(AF_INET, address, &to.sin_addr) != 1 || connect(fd, (void *)&to, sizeof(to)))
		fail("no connection");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
	return fd;
}

/* Whether the response is whole. */
static bool is_answered(const struct connection *c)
{
	const char *end = strstr(c->response, "\r\n\r\n"),
		   *length = strcasestr(c->response, "\r\ncontent-length:");

	if (!end)
		return false;
	if (strncmp(c->response, "HTTP/1.1 2", 10) || !length || length > end)
		fail("an answer that was not expected");
	return c->received >= (size_t)(end + 4 - c->response) + strtoul(length + 17, NULL, 10);
}

static int compare(const void *a, const void *b)
{
	uint64_t one = *(const uint64_t *)a, other = *(const uint64_t *)b;

	return one < other ? -1 : one > other;
}

int main(int argc, char **argv)
{
	uint64_t number, sent = 0, answered = 0, began, *took;
	double interval;
	char request[1024];
	int count, size;

	if (argc != 8)
		fail("usage: paced ADDRESS PORT METHOD TARGET RATE SECONDS CONNECTIONS");
	interval = 1e9 / atof(argv[5]);
	number = atof(argv[6]) * 1e9 / interval;
	count = atoi(argv[7]);
	if (number < 100 || count < 1 || count > CONNECTIONS_MAX)
		fail("too few requests, or too many connections");
	took = calloc(number, sizeof(*took));
	size = snprintf(request, sizeof(request), "%s %s HTTP/1.1\r\nHost: bench\r\nContent-Length: 0\r\n\r\n",
			argv[3], argv[4]);
	if (!took || size >= (int)sizeof(request))
		fail("no room");
	for (int i = 0; i < count; i++)
		polled[i] = (struct pollfd){.fd = connect_to(argv[1], argv[2]), .events = POLLIN};
	began = now() + 10000000;
	while (answered < number) {
		uint64_t at = now(), due = began + (uint64_t)(sent * interval);
		struct timespec wait = {.tv_sec = 1};

		if (at > began + (uint64_t)(number * interval) + DRAIN_NS)
			fail("requests were not answered");
		for (int i = 0; i < count && sent < number && due <= at; i++) {
			if (connections[i].due)
				continue;
			connections[i].due = due;
			connections[i].received = 0;
			if (send(polled[i].fd, request, size, MSG_NOSIGNAL) != size)
				fail("a request could not be sent");
			sent++;
			due = began + (uint64_t)(sent * interval);
		}
		/* With no connection free, the next answer is waited for. */
		if (sent < number && due > at)
			wait = (struct timespec){.tv_sec = (due - at) / 1000000000,
						 .tv_nsec = (due - at) % 1000000000};
		if (ppoll(polled, count, &wait, NULL) <= 0)
			continue;
		for (int i = 0; i < count; i++) {
			struct connection *c = &connections[i];
			ssize_t got;

			if (!polled[i].revents)
				continue;
			got = recv(polled[i].fd, c->response + c->received, RESPONSE_MAX - c->received,
				   MSG_DONTWAIT);
			if (got <= 0 || !c->due)
				fail("a connection was closed");
			c->received += got;
			c->response[c->received] = 0;
			if (!is_answered(c))
				continue;
			took[answered++] = now() - c->due;
			c->due = 0;
		}
	}
	qsort(took, number, sizeof(*took), compare);
	printf("median %.1f\np99 %.1f\nmost %.1f\n", took[number / 2] / 1e3, took[number * 99 / 100] / 1e3,
	       took[number - 1] / 1e3);
	return 0;
}
