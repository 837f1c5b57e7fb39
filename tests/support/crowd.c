/*
 * crowd.c - one process in which many threads report at once
 *
 * SPDX-License-Identifier: ISC
 *
 *	crowd wait CALLS TIMEOUT_MS NAME...   each NAME has a thread that reports CALLS times and waits for each answer; a line
 *	                                      "NAME ok N unknown N timeout N other N slowest_ms N" when it ends, at the end "connections N"
 *	crowd async COUNT PAUSE_US NAME...    each NAME has a thread that queues COUNT reports with a pause before each, and flushes after the
 *	                                      half of them; at the end the counts, after a flush of a minute at most
 *	crowd loop COUNT PAUSE_US NAME...     the same, and another thread runs an event loop
 *
 * It ends with the script that started it.
 */
#include "config.h"

#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "cbshm.h"

#define SCORE 0.9 /* a failure under any policy with the default threshold */

static struct cbshm *client;
static int calls, pause_us, timeout_ms;
static _Atomic bool done;

static int64_t now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void *wait_for_each(void *arg)
{
	const char *name = arg;
	int ok = 0, unknown = 0, timeout = 0, other = 0;
	int64_t slowest = 0;

	for (int i = 0; i < calls; i++) {
		struct cbshm_call call = {.timeout_ms = timeout_ms};
		const int64_t begun = now_us();
		const int error = cbshm_report_drift(client, name, SCORE, 1, NULL, &call, NULL);
		const int64_t took = now_us() - begun;

		slowest = took > slowest ? took : slowest;
		ok += error == 0;
		unknown += error == CBSHM_ERR_UNKNOWN;
		timeout += error == CBSHM_ERR_TIMEOUT || error == CBSHM_ERR_BUSY;
		if (error != 0 && error != CBSHM_ERR_UNKNOWN && error != CBSHM_ERR_TIMEOUT &&
		    error != CBSHM_ERR_BUSY && other++ == 0)
			fprintf(stderr, "%s: %d %s\n", name, error, call.message);
	}
	printf("%s ok %d unknown %d timeout %d other %d slowest_ms %" PRId64 "\n", name, ok,
	       unknown, timeout, other, slowest / 1000);
	fflush(stdout);
	return NULL;
}

static void *wait_for_none(void *arg)
{
	for (int i = 0; i < calls; i++) {
		if (pause_us > 0)
			usleep((useconds_t)pause_us);
		/* A full buffer is counted by the library. */
		if (cbshm_report_drift_async(client, arg, SCORE, 1, NULL) == CBSHM_ERR_INVALID)
			abort();
		if (i == calls / 2) {
			struct cbshm_call call = {.timeout_ms = 1000};

			if (cbshm_flush(client, &call, NULL) == CBSHM_ERR_INVALID)
				abort();
		}
	}
	return NULL;
}

static void *loop(void *arg)
{
	struct pollfd poll_fd = {.fd = cbshm_fd(client), .events = POLLIN};

	while (!done) {
		if (poll(&poll_fd, 1, 20) > 0)
			cbshm_dispatch(client);
	}
	return arg;
}

/* Stream sockets of this process, which opens no others. */
static int connections(void)
{
	int count = 0;

	for (int fd = 3; fd < 1024; fd++) {
		int type;
		socklen_t size = sizeof(type);

		count += getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0;
	}
	return count;
}

static int count_reports(void)
{
	struct cbshm_report_stats stats = {.size = sizeof(stats)};
	struct cbshm_call call = {.timeout_ms = 60000};
	uint64_t failed = 0;
	const int error = cbshm_flush(client, &call, &failed);

	if (cbshm_get_report_stats(client, &stats) != 0)
		return 1;
	printf("flush %d queued %" PRIu64 " acknowledged %" PRIu64 " failed %" PRIu64
	       " unknown %" PRIu64 " pending %" PRIu64 " dropped %" PRIu64 " sent %" PRIu64 "\n",
	       error, stats.queued, stats.acknowledged, stats.failed, stats.unknown, stats.pending,
	       stats.dropped, stats.sent);
	return 0;
}

static void run_threads(int count, char **names, void *(*run)(void *))
{
	pthread_t *threads = calloc((size_t)count, sizeof(*threads));

	for (int i = 0; i < count; i++) {
		if (pthread_create(&threads[i], NULL, run, names[i]) != 0)
			abort();
	}
	for (int i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	free(threads);
}

int main(int argc, char **argv)
{
	pthread_t looper;
	int status = 0;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (argc < 5 || cbshm_open(NULL, &client) != 0)
		return 2;
	calls = atoi(argv[2]);
	timeout_ms = pause_us = atoi(argv[3]);
	if (strcmp(argv[1], "wait") == 0) {
		run_threads(argc - 4, argv + 4, wait_for_each);
		printf("connections %d\n", connections());
	} else {
		const bool looping = strcmp(argv[1], "loop") == 0;

		if (looping && pthread_create(&looper, NULL, loop, NULL) != 0)
			return 2;
		run_threads(argc - 4, argv + 4, wait_for_none);
		status = count_reports();
		done = true;
		if (looping)
			pthread_join(looper, NULL);
	}
	cbshm_close(client);
	return status;
}
