/*
 * writes.c - many clients that report to one agent, for tests/bench/writes.py
 *
 * SPDX-License-Identifier: ISC
 *
 * Speaks just as much Varlink as that takes, so that what is measured is the agent. Each client sends so many reports at once,
 * waits for all the replies, and sends the next, as redis-benchmark -P does. Prints one JSON object; every
 * report is one that counts as a failure, so that the breaker's counter tells how many were applied.
 *
 *     writes SOCKET CLIENTS PIPELINE MILLISECONDS BREAKERS [DETAILS]
 */
#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define SAMPLES_MAX (1u << 22) /* times that are kept; a power of two */

struct client {
	int fd;
	char *burst; /* what it sends, again and again */
	size_t size;
	unsigned awaited; /* replies */
	size_t position;  /* in the reply that is being read */
	int64_t sent_at;
};

static uint64_t answered, refused, samples;
static uint32_t *times; /* of bursts, in microseconds */

static void fail(const char *what)
{
	fprintf(stderr, "writes: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (int64_t)time.tv_sec * 1000000 + time.tv_nsec / 1000;
}

static int connect_to(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	const int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0)
		fail(path);
	return fd;
}

/* The breakers are called hot, hot1, hot2, ...; the clients' reports go round. */
static void make_burst(struct client *client, unsigned first, unsigned pipeline, unsigned breakers,
		       const char *details)
{
	FILE *out = open_memstream(&client->burst, &client->size);
	unsigned breaker;

	if (out == NULL)
		fail("memory");
	for (unsigned i = 0; i < pipeline; i++) {
		breaker = (first + i) % breakers;
		fputs("{\"method\":\"io.cbshm.ReportDrift\",\"parameters\":{\"name\":\"hot", out);
		if (breaker > 0)
			fprintf(out, "%u", breaker);
		fputs("\",\"drift_score\":0.9137,\"sample_count\":500", out);
		if (details != NULL)
			fprintf(out, ",\"details\":%s", details);
		fputs("}}", out);
		fputc('\0', out);
	}
	if (fclose(out) != 0)
		fail("memory");
}

static void send_burst(struct client *client, unsigned pipeline)
{
	size_t sent = 0;
	ssize_t n;

	client->awaited = pipeline;
	client->sent_at = now();
	while (sent < client->size) {
		n = write(client->fd, client->burst + sent, client->size - sent);
		if (n < 0)
			fail("write");
		sent += (size_t)n;
	}
}

/* The replies that are there. An error begins with {"error". */
static void receive(struct client *client)
{
	static char room[1 << 16];
	const ssize_t n = read(client->fd, room, sizeof(room));

	if (n <= 0)
		fail("read");
	for (const char *p = room, *end = room + n; p < end;) {
		const char *stop = memchr(p, '\0', (size_t)(end - p));
		const size_t size = (size_t)((stop != NULL ? stop : end) - p);

		if (client->position <= 2 && client->position + size > 2 &&
		    p[2 - client->position] == 'e')
			refused++;
		client->position += size;
		p += size + 1;
		if (stop == NULL)
			break;
		client->position = 0;
		client->awaited--;
		answered++;
	}
	if (client->awaited == 0)
		times[samples++ % SAMPLES_MAX] = (uint32_t)(now() - client->sent_at);
}

static int by_size(const void *a, const void *b)
{
	const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static uint32_t percentile(double part)
{
	const uint64_t kept = samples < SAMPLES_MAX ? samples : SAMPLES_MAX;

	return kept == 0 ? 0 : times[(uint64_t)(part * (double)(kept - 1))];
}

static void run(struct client *clients, unsigned count, unsigned pipeline, int64_t end)
{
	struct epoll_event events[64];
	const int poll = epoll_create1(0);
	unsigned busy = count;

	for (unsigned i = 0; i < count; i++) {
		struct epoll_event event = {.events = EPOLLIN, .data.ptr = &clients[i]};

		if (epoll_ctl(poll, EPOLL_CTL_ADD, clients[i].fd, &event) != 0)
			fail("epoll");
		send_burst(&clients[i], pipeline);
	}
	while (busy > 0) {
		const int n = epoll_wait(poll, events, 64, -1);

		for (int i = 0; i < n; i++) {
			struct client *client = events[i].data.ptr;

			receive(client);
			if (client->awaited > 0)
				continue;
			if (now() < end)
				send_burst(client, pipeline);
			else
				busy--;
		}
	}
	close(poll);
}

int main(int argc, char **argv)
{
	struct client *clients;
	unsigned count, pipeline, breakers;
	int64_t begin, duration, took;

	if (argc < 6) {
		fputs("usage: writes SOCKET CLIENTS PIPELINE MILLISECONDS BREAKERS [DETAILS]\n",
		      stderr);
		return 2;
	}
	count = (unsigned)atoi(argv[2]);
	pipeline = (unsigned)atoi(argv[3]);
	duration = atoll(argv[4]) * 1000;
	breakers = (unsigned)atoi(argv[5]);
	clients = calloc(count, sizeof(*clients));
	times = malloc(SAMPLES_MAX * sizeof(*times));
	if (clients == NULL || times == NULL || pipeline < 1 || breakers < 1)
		fail("arguments");
	for (unsigned i = 0; i < count; i++) {
		clients[i].fd = connect_to(argv[1]);
		make_burst(&clients[i], i * pipeline, pipeline, breakers,
			   argc > 6 ? argv[6] : NULL);
	}
	begin = now();
	run(clients, count, pipeline, begin + duration);
	took = now() - begin;
	qsort(times, samples < SAMPLES_MAX ? samples : SAMPLES_MAX, sizeof(*times), by_size);
	printf("{\"answered\": %" PRIu64 ", \"refused\": %" PRIu64 ", \"per_second\": %.1f, "
	       "\"p50_us\": %" PRIu32 ", \"p99_us\": %" PRIu32 ", \"max_us\": %" PRIu32 "}\n",
	       answered, refused, (double)answered * 1e6 / (double)took, percentile(0.5),
	       percentile(0.99), percentile(1));
	for (unsigned i = 0; i < count; i++) {
		close(clients[i].fd);
		free(clients[i].burst);
	}
	free(clients);
	free(times);
	return 0;
}
