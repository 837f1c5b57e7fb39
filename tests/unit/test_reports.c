/*
 * test_reports.c - reports that nobody waits for, against a server that misbehaves on command
 *
 * SPDX-License-Identifier: ISC
 *
 * Every case ends with the same sum: what was queued is acknowledged, failed, unknown or pending, and nothing twice.
 */
#include "config.h"

#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "cbshm.h"
#include "libcbshm/report_ring.h"
#include "tests/support/child.h"
#include "tests/support/fake_agent.h"
#include "tests/support/tap.h"

#define BUSY    "{\"error\":\"io.cbshm.Busy\",\"parameters\":{\"message\":\"locked\"}}"
#define UNSURE  "{\"error\":\"io.cbshm.OutcomeUnknown\",\"parameters\":{\"message\":\"?\"}}"
#define LIMITED "{\"error\":\"io.cbshm.LimitExceeded\",\"parameters\":{\"message\":\"full\"}}"
#define TRIPPED "{\"parameters\":{\"incident\":" INCIDENT "}}"

static struct cbshm *open_client_with(size_t report_buffer)
{
	struct cbshm_options options = {.size = sizeof(options),
					.segment = server.segment,
					.socket = server.path,
					.report_buffer = report_buffer};
	struct cbshm *client = NULL;

	CU_ASSERT_EQUAL_FATAL(cbshm_open(&options, &client), 0);
	return client;
}

static struct cbshm *open_client(void)
{
	return open_client_with(CBSHM_REPORT_BUFFER_MIN);
}

static struct cbshm_report_stats stats_of(struct cbshm *client)
{
	struct cbshm_report_stats stats = {.size = sizeof(stats)};

	CU_ASSERT_EQUAL(cbshm_get_report_stats(client, &stats), 0);
	CU_ASSERT_EQUAL(stats.queued,
			stats.acknowledged + stats.failed + stats.unknown + stats.pending);
	return stats;
}

/* The number, which tells it from the others, goes along as the samples. */
static int report(struct cbshm *client, int number)
{
	return cbshm_report_drift_async(client, "b", 0.5, number, NULL);
}

static int flush(struct cbshm *client, int timeout_ms, uint64_t *failed)
{
	struct cbshm_call call = {.timeout_ms = timeout_ms};
	const int error = cbshm_flush(client, &call, failed);

	CU_ASSERT_EQUAL(call.message[0] == '\0', error == 0);
	return error;
}

static int number_of(int message)
{
	cJSON *root = cJSON_Parse(server.messages[message]);
	const cJSON *parameters = cJSON_GetObjectItem(root, "parameters");
	const cJSON *number = cJSON_GetObjectItem(parameters, "sample_count");
	const int value = cJSON_IsNumber(number) ? number->valueint : -1;

	cJSON_Delete(root);
	return value;
}

/* Each at most once, and those of a connection in their order. */
static void expect_once(void)
{
	int last = 0;

	for (int i = 0; i < server.received; i++) {
		const int number = number_of(i);

		CU_ASSERT_TRUE(number > last);
		last = number;
	}
}

/* ---- what is sent, and what it comes to ------------------------------------------------- */

static void test_messages(void)
{
	SERVE({REPLY, NO_INCIDENT});
	struct cbshm *client = open_client();
	const double score = nextafter(0.2, 1);
	uint64_t failed = 7;

	CU_ASSERT_EQUAL(cbshm_report_drift_async(client, "a \"b\\\u00e9", score,
						 INT64_C(9007199254740991), " {\"a\": [1]}\n"),
			0);
	CU_ASSERT_EQUAL(cbshm_report_schema_error_async(client, "b", 0, NULL), 0);
	CU_ASSERT_EQUAL(flush(client, 5000, &failed), 0);
	CU_ASSERT_EQUAL(failed, 0);
	CU_ASSERT_EQUAL_FATAL(server.received, 2);
	CU_ASSERT_STRING_EQUAL(
		server.messages[0],
		"{\"method\":\"io.cbshm.ReportDrift\",\"parameters\":{\"name\":\"a "
		"\\\"b\\\\\u00e9\","
		"\"drift_score\":0.20000000000000004,\"sample_count\":9007199254740991,"
		"\"details\": {\"a\": [1]}\n,\"timeout_ms\":5000}}");
	CU_ASSERT_STRING_EQUAL(server.messages[1], "{\"method\":\"io.cbshm.ReportSchemaError\","
						   "\"parameters\":{\"name\":\"b\",\"count\":0,"
						   "\"timeout_ms\":5000}}");
	cbshm_close(client);
	server_end();
}

static void test_invalid(void)
{
	static char large[40000], name[130];
	struct cbshm_options options = {.size = sizeof(options), .report_buffer = 1};
	struct cbshm_report_stats none = {0};
	struct cbshm *client = open_client();

#define REFUSED(report) CU_ASSERT_EQUAL(report, CBSHM_ERR_INVALID)
	memset(name, 'n', 129);
	memset(large, ' ', sizeof(large) - 1);
	large[0] = '{';
	large[32768] = '}';
	large[32769] = '\0';
	REFUSED(cbshm_report_drift_async(NULL, "b", 0.5, 1, NULL));
	REFUSED(cbshm_report_drift_async(client, NULL, 0.5, 1, NULL));
	REFUSED(cbshm_report_drift_async(client, "", 0.5, 1, NULL));
	REFUSED(cbshm_report_drift_async(client, name, 0.5, 1, NULL));
	REFUSED(cbshm_report_drift_async(client, "a\nb", 0.5, 1, NULL));
	REFUSED(cbshm_report_drift_async(client, "b", NAN, 1, NULL));
	REFUSED(cbshm_report_drift_async(client, "b", -0.1, 1, NULL));
	REFUSED(cbshm_report_drift_async(client, "b", 1.1, 1, NULL));
	REFUSED(cbshm_report_drift_async(client, "b", 0.5, 0, NULL));
	REFUSED(cbshm_report_drift_async(client, "b", 0.5, INT64_MAX, NULL));
	REFUSED(cbshm_report_drift_async(client, "b", 0.5, 1, "[]"));
	REFUSED(cbshm_report_drift_async(client, "b", 0.5, 1, "{"));
	REFUSED(cbshm_report_drift_async(client, "b", 0.5, 1, large));
	REFUSED(cbshm_report_schema_error_async(client, "b", -1, NULL));
	REFUSED(cbshm_report_schema_error_async(client, "b", 1, ""));
	REFUSED(cbshm_get_report_stats(client, &none));
	REFUSED(cbshm_fd(NULL));
	CU_ASSERT_EQUAL(flush(client, -1, NULL), CBSHM_ERR_INVALID);
	CU_ASSERT_EQUAL(stats_of(client).queued, 0);
	cbshm_close(client);
	REFUSED(cbshm_open(&options, &client));
}

static void test_outcomes(void)
{
	SERVE({REPLY, NO_INCIDENT}, {REPLY, TRIPPED}, {REPLY, BUSY}, {REPLY, UNSURE},
	      {REPLY, NO_INCIDENT});
	struct cbshm *client = open_client();
	struct cbshm_report_stats stats;
	uint64_t failed = 7;

	for (int i = 1; i <= 10; i++)
		CU_ASSERT_EQUAL(report(client, i), 0);
	CU_ASSERT_EQUAL(flush(client, 5000, &failed), 0);
	CU_ASSERT_EQUAL(failed, 2);
	CU_ASSERT_EQUAL(flush(client, 5000, &failed), 0);
	CU_ASSERT_EQUAL(failed, 0);
	stats = stats_of(client);
	CU_ASSERT_EQUAL(stats.acknowledged, 8);
	CU_ASSERT_EQUAL(stats.failed, 1);
	CU_ASSERT_EQUAL(stats.unknown, 1);
	CU_ASSERT_EQUAL(stats.sent, 10);
	CU_ASSERT_EQUAL(stats.last_error, CBSHM_ERR_UNKNOWN);
	CU_ASSERT_EQUAL(server.accepted, 1);
	expect_once();
	cbshm_close(client);
	server_end();
}

/* Nobody flushes and nobody loops: the calls themselves send, all but perhaps the last. */
static void test_in_passing(void)
{
	SERVE({REPLY, NO_INCIDENT});
	struct cbshm *client = open_client();

	for (int i = 1; i <= 1000; i++) {
		CU_ASSERT_EQUAL(report(client, i), 0);
		if (i == 1)
			poll(NULL, 0, 50); /* for the first answer */
	}
	for (int i = 0; i < 1000 && stats_of(client).acknowledged < 1000; i++) {
		CU_ASSERT_EQUAL(cbshm_dispatch(client), 0);
		poll(NULL, 0, 10);
	}
	CU_ASSERT_EQUAL(stats_of(client).acknowledged, 1000);
	expect_once();
	cbshm_close(client);
	server_end();
}

/* ---- no agent, no room ------------------------------------------------------------------ */

static void test_full(void)
{
	static const struct step script[] = {{REPLY, NO_INCIDENT}};
	struct cbshm *client = open_client();
	struct cbshm_report_stats stats;
	uint64_t queued = 0, failed = 7;
	int error = 0;

	while (queued < MESSAGES && (error = report(client, (int)queued + 1)) == 0)
		queued++;
	CU_ASSERT_EQUAL(error, CBSHM_ERR_FULL);
	CU_ASSERT_EQUAL(report(client, 1), CBSHM_ERR_FULL);
	stats = stats_of(client);
	CU_ASSERT_EQUAL(stats.queued, queued);
	CU_ASSERT_EQUAL(stats.pending, queued);
	CU_ASSERT_EQUAL(stats.dropped, 2);
	CU_ASSERT_EQUAL(stats.last_error, CBSHM_ERR_AGENT_DOWN);
	CU_ASSERT_EQUAL(cbshm_dispatch(client), CBSHM_ERR_AGENT_DOWN);
	CU_ASSERT_EQUAL(flush(client, 20, &failed), CBSHM_ERR_TIMEOUT);
	CU_ASSERT_EQUAL(failed, 0);
	server_begin(script, 1);
	CU_ASSERT_EQUAL(flush(client, 10000, NULL), 0);
	CU_ASSERT_EQUAL(stats_of(client).acknowledged, queued);
	CU_ASSERT_EQUAL((uint64_t)server.received, queued);
	expect_once();
	cbshm_close(client);
	server_end();
}

/* Reports of all sizes, many times round the buffer. */
static void test_round_and_round(void)
{
	static char details[32000];
	SERVE({REPLY, NO_INCIDENT});
	struct cbshm *client = open_client();

	for (int i = 1; i <= 500; i++) {
		const int length = i * 7919 % 31000;

		snprintf(details, sizeof(details), "{\"a\":\"%0*d\"}", length + 1, i);
		while (cbshm_report_drift_async(client, "b", 0.5, i, details) == CBSHM_ERR_FULL)
			CU_ASSERT_EQUAL(flush(client, 5000, NULL), 0);
	}
	CU_ASSERT_EQUAL(flush(client, 5000, NULL), 0);
	CU_ASSERT_EQUAL(stats_of(client).acknowledged, 500);
	CU_ASSERT_EQUAL(server.received, 500);
	expect_once();
	cbshm_close(client);
	server_end();
}

/* ---- lost connections ------------------------------------------------------------------- */

static void test_lost(void)
{
	SERVE({REPLY, NO_INCIDENT}, {SILENCE, NULL}, {SILENCE, NULL}, {CLOSE, NULL},
	      {REPLY, NO_INCIDENT});
	struct cbshm *client = open_client();
	struct cbshm_report_stats stats;
	uint64_t failed = 7;

	CU_ASSERT_EQUAL(report(client, 1), 0);
	CU_ASSERT_EQUAL(flush(client, 5000, NULL), 0);
	for (int i = 2; i <= 4; i++)
		CU_ASSERT_EQUAL(report(client, i), 0);
	CU_ASSERT_EQUAL(flush(client, 5000, &failed), 0);
	CU_ASSERT_EQUAL(failed, 3);
	for (int i = 5; i <= 9; i++)
		CU_ASSERT_EQUAL(report(client, i), 0);
	CU_ASSERT_EQUAL(flush(client, 5000, &failed), 0);
	CU_ASSERT_EQUAL(failed, 0);
	stats = stats_of(client);
	CU_ASSERT_EQUAL(stats.unknown, 3);
	CU_ASSERT_EQUAL(stats.acknowledged, 6);
	CU_ASSERT_EQUAL(server.received, 9);
	CU_ASSERT_EQUAL(server.accepted, 2);
	expect_once();
	cbshm_close(client);
	server_end();
}

/* Whole ones, in a socket that nobody has read. */
static uint64_t messages_in(int fd)
{
	uint64_t count = 0;
	char text[4096];
	ssize_t n;

	while ((n = recv(fd, text, sizeof(text), MSG_DONTWAIT)) > 0) {
		for (ssize_t i = 0; i < n; i++)
			count += text[i] == '\0';
	}
	return count;
}

/* The agent does not read: what does not fit into the socket waits, and goes out on the next connection. */
static void test_half_sent(void)
{
	static char details[32000];
	static const struct step script[] = {{REPLY, NO_INCIDENT}};
	const int listener = listen_at(server.path);
	struct cbshm *client = open_client_with(1000000);
	struct cbshm_report_stats stats;
	int fd, queued = 0, small = 8192;

	memset(details, ' ', sizeof(details) - 1);
	details[0] = '{';
	details[sizeof(details) - 2] = '}';
	CU_ASSERT_EQUAL(report(client, ++queued), 0);
	/* Smaller than a message, so that one goes in parts. */
	CU_ASSERT_EQUAL(setsockopt(server_peer(), SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), 0);
	fd = accept(listener, NULL, NULL);
	CU_ASSERT_EQUAL(send(fd, NO_INCIDENT, sizeof(NO_INCIDENT), 0), sizeof(NO_INCIDENT));
	while (stats_of(client).pending < 3 || stats_of(client).sent == stats_of(client).queued) {
		CU_ASSERT_EQUAL_FATAL(
			cbshm_report_drift_async(client, "b", 0.5, queued + 1, details), 0);
		queued++;
		CU_ASSERT_TRUE_FATAL(queued < 100);
	}
	stats = stats_of(client);
	CU_ASSERT_EQUAL(messages_in(fd), stats.sent);
	close(fd);
	close(listener);
	server_begin(script, 1);
	CU_ASSERT_EQUAL(flush(client, 5000, NULL), 0);
	CU_ASSERT_EQUAL(stats_of(client).unknown, stats.sent - 1);
	CU_ASSERT_EQUAL(stats_of(client).acknowledged, 1 + stats.queued - stats.sent);
	CU_ASSERT_EQUAL((uint64_t)server.received, stats.queued - stats.sent);
	expect_once();
	cbshm_close(client);
	server_end();
}

/* An agent that is full costs at most one report an attempt, and none is in doubt. */
static void test_turned_away(void)
{
	SERVE({GREET_AND_CLOSE, LIMITED}, {GREET_AND_CLOSE, LIMITED}, {CLOSE_AT_DOOR, NULL},
	      {REPLY, NO_INCIDENT});
	struct cbshm *client = open_client();
	struct cbshm_report_stats stats;

	for (int i = 1; i <= 100; i++)
		CU_ASSERT_EQUAL(report(client, i), 0);
	CU_ASSERT_EQUAL(flush(client, 5000, NULL), 0);
	stats = stats_of(client);
	CU_ASSERT_TRUE(stats.failed <= 2);
	CU_ASSERT_TRUE(stats.unknown <= 1); /* closed without a word */
	CU_ASSERT_EQUAL(server.accepted, 4);
	CU_ASSERT_EQUAL((uint64_t)server.received, stats.acknowledged);
	expect_once();
	cbshm_close(client);
	server_end();
}

static void test_silence(void)
{
	SERVE({SILENCE, NULL});
	struct cbshm *client = open_client();
	struct timespec begun, ended;

	CU_ASSERT_EQUAL(report(client, 1), 0);
	clock_gettime(CLOCK_MONOTONIC, &begun);
	CU_ASSERT_EQUAL(flush(client, 100, NULL), CBSHM_ERR_TIMEOUT);
	clock_gettime(CLOCK_MONOTONIC, &ended);
	CU_ASSERT_TRUE(ended.tv_sec - begun.tv_sec < 3);
	CU_ASSERT_EQUAL(stats_of(client).pending, 1);
	cbshm_close(client);
	server_end();
}

/* ---- event loops ------------------------------------------------------------------------ */

/* What a program does; 0 when the descriptor was quiet for `quiet_ms`. */
static int loop(struct cbshm *client, int fd, int quiet_ms, int turns)
{
	struct pollfd poll_fd = {.fd = fd, .events = POLLIN};

	while (turns-- > 0 && poll(&poll_fd, 1, quiet_ms) > 0)
		cbshm_dispatch(client);
	return turns < 0;
}

/* The same until that many reports are settled; false: the descriptor was silent for ten seconds before. */
static bool loop_until(struct cbshm *client, int fd, uint64_t settled)
{
	struct pollfd poll_fd = {.fd = fd, .events = POLLIN};

	while (stats_of(client).queued - stats_of(client).pending < settled) {
		if (poll(&poll_fd, 1, 10000) <= 0)
			return false;
		cbshm_dispatch(client);
	}
	return true;
}

static void test_loop(void)
{
	SERVE({REPLY, NO_INCIDENT});
	struct cbshm *client = open_client();
	const int fd = cbshm_fd(client);

	CU_ASSERT_TRUE_FATAL(fd >= 0);
	CU_ASSERT_EQUAL(loop(client, fd, 50, 1000), 0);
	for (int i = 1; i <= 2000; i++)
		CU_ASSERT_EQUAL(report(client, i), 0);
	/* The calls sent nothing by themselves. */
	CU_ASSERT_EQUAL(stats_of(client).sent, 0);
	CU_ASSERT_TRUE(loop_until(client, fd, 2000));
	CU_ASSERT_EQUAL(stats_of(client).acknowledged, 2000);
	CU_ASSERT_EQUAL(cbshm_fd(client), fd);
	/* When there is nothing to do, it is quiet; a report wakes it. */
	CU_ASSERT_EQUAL(loop(client, fd, 20, 1000), 0);
	CU_ASSERT_EQUAL(report(client, 2001), 0);
	CU_ASSERT_TRUE(loop_until(client, fd, 2001));
	CU_ASSERT_EQUAL(stats_of(client).acknowledged, 2001);
	expect_once();
	cbshm_close(client);
	server_end();
}

/* The agent comes late, goes, and comes again: the loop needs nothing but the descriptor. */
static void test_loop_reconnects(void)
{
	static const struct step script[] = {{REPLY_AND_CLOSE, NO_INCIDENT}};
	struct cbshm *client = open_client();

	const int fd = cbshm_fd(client);

	CU_ASSERT_TRUE_FATAL(fd >= 0);
	for (int i = 1; i <= 5; i++)
		CU_ASSERT_EQUAL(report(client, i), 0);
	CU_ASSERT_EQUAL(loop(client, fd, 20, 1000), 0);
	CU_ASSERT_EQUAL(cbshm_dispatch(client), CBSHM_ERR_AGENT_DOWN);
	server_begin(script, 1);
	CU_ASSERT_TRUE(loop_until(client, fd, 5));
	CU_ASSERT_TRUE(stats_of(client).acknowledged >= 1);
	CU_ASSERT_EQUAL(stats_of(client).pending, 0); /* the rest came too late, or was not sent */
	CU_ASSERT_EQUAL(stats_of(client).acknowledged, (uint64_t)server.received);
	cbshm_close(client);
	server_end();
}

static _Atomic bool loop_ends;

static void *run_loop(void *arg)
{
	const int fd = cbshm_fd(arg);

	while (!loop_ends)
		loop(arg, fd, 10, 100000);
	return NULL;
}

#define THREADS    8
#define PER_THREAD 500

struct producer {
	struct cbshm *client;
	int index, error;
	pthread_t thread;
};

static void *produce(void *arg)
{
	struct producer *producer = arg;
	struct cbshm_call call = {.timeout_ms = 20000};
	char name[] = "b0";

	name[1] = (char)('0' + producer->index);
	for (int i = 1; i <= PER_THREAD; i++) {
		while (cbshm_report_drift_async(producer->client, name, 0.5, i, NULL) != 0)
			poll(NULL, 0, 1);
		if (i % 100 == 0)
			producer->error |= cbshm_report_drift(producer->client, "x", 0.5, 1, NULL,
							      &call, NULL);
		if (producer->error != 0) {
			tap_note("%s", call.message);
			return NULL;
		}
	}
	return NULL;
}

/* Of each breaker, and so of each thread, every report once and in its order. */
static void expect_each_in_order(int waited)
{
	int last[THREADS] = {0}, others = 0;

	for (int i = 0; i < server.received; i++) {
		const char *name = strstr(server.messages[i], "\"name\":\"b");

		if (name == NULL) {
			others++;
			continue;
		}
		CU_ASSERT_EQUAL(number_of(i), last[name[9] - '0'] + 1);
		last[name[9] - '0']++;
	}
	for (int i = 0; i < THREADS; i++)
		CU_ASSERT_EQUAL(last[i], PER_THREAD);
	CU_ASSERT_EQUAL(others, waited);
}

static void threads_with(bool looping)
{
	SERVE({REPLY, NO_INCIDENT});
	struct cbshm *client = open_client();
	struct producer producers[THREADS];
	pthread_t looper;

	loop_ends = false;
	if (looping)
		CU_ASSERT_EQUAL_FATAL(pthread_create(&looper, NULL, run_loop, client), 0);
	for (int i = 0; i < THREADS; i++) {
		producers[i] = (struct producer){.client = client, .index = i};
		CU_ASSERT_EQUAL_FATAL(
			pthread_create(&producers[i].thread, NULL, produce, &producers[i]), 0);
	}
	for (int i = 0; i < THREADS; i++) {
		pthread_join(producers[i].thread, NULL);
		CU_ASSERT_EQUAL(producers[i].error, 0);
	}
	CU_ASSERT_EQUAL(flush(client, 10000, NULL), 0);
	loop_ends = true;
	if (looping)
		pthread_join(looper, NULL);
	CU_ASSERT_EQUAL(stats_of(client).acknowledged, THREADS * PER_THREAD);
	expect_each_in_order(THREADS * PER_THREAD / 100);
	cbshm_close(client);
	server_end();
}

static void test_threads(void)
{
	threads_with(false);
}

static void test_threads_and_loop(void)
{
	threads_with(true);
}

/* ---- processes and descriptors ---------------------------------------------------------- */

static void test_fork(void)
{
	SERVE({REPLY, NO_INCIDENT});
	struct cbshm *client = open_client();
	int status = -1;
	pid_t pid;

	const int fd = cbshm_fd(client);

	for (int i = 1; i <= 10; i++)
		CU_ASSERT_EQUAL(report(client, i), 0);
	pid = child_fork();
	if (pid == 0) {
		struct cbshm_report_stats stats = {.size = sizeof(stats)};
		int wrong = 0;

		wrong |= cbshm_get_report_stats(client, &stats) != 0 || stats.queued != 0;
		for (int i = 11; i <= 20; i++)
			wrong |= report(client, i) != 0;
		wrong |= cbshm_flush(client, NULL, NULL) != 0;
		wrong |= cbshm_get_report_stats(client, &stats) != 0 || stats.acknowledged != 10;
		wrong |= cbshm_fd(client) < 0;
		cbshm_close(client);
		_exit(wrong);
	}
	waitpid(pid, &status, 0);
	CU_ASSERT_EQUAL(status, 0);
	CU_ASSERT_EQUAL(server.received, 10);
	CU_ASSERT_EQUAL(stats_of(client).pending, 10);
	CU_ASSERT_EQUAL(cbshm_fd(client), fd);
	CU_ASSERT_TRUE(loop_until(client, fd, 10));
	CU_ASSERT_EQUAL(stats_of(client).acknowledged, 10);
	CU_ASSERT_EQUAL(server.received, 20);
	cbshm_close(client);
	server_end();
}

static bool is_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
}

/* The descriptors from 3 on that are there now and were not before. */
static int new_descriptors(const bool before[256], int found[8])
{
	int count = 0;

	for (int fd = 3; fd < 256 && count < 8; fd++) {
		if (!before[fd] && is_open(fd))
			found[count++] = fd;
	}
	return count;
}

static void test_overwritten(void)
{
	SERVE({REPLY, NO_INCIDENT});
	struct cbshm *client = open_client();
	struct pollfd poll_fd = {.events = POLLIN};
	int ends[2], fds[8], count;
	bool before[256];

	CU_ASSERT_EQUAL_FATAL(pipe(ends), 0);
	poll_fd.fd = ends[0];
	for (int fd = 3; fd < 256; fd++)
		before[fd] = is_open(fd);
	CU_ASSERT_TRUE_FATAL(cbshm_fd(client) >= 0);
	CU_ASSERT_EQUAL(report(client, 1), 0);
	CU_ASSERT_EQUAL(flush(client, 5000, NULL), 0);
	poll(NULL, 0, 50); /* the server's end is one of the new ones, too */
	count = new_descriptors(before, fds);
	CU_ASSERT_EQUAL(count, 4);
	for (int i = 0; i < count; i++) {
		struct sockaddr_un address;
		socklen_t size = sizeof(address);

		if (getpeername(fds[i], (struct sockaddr *)&address, &size) == 0 &&
		    size == sizeof(sa_family_t))
			fds[i] = -1; /* the server's */
		else
			CU_ASSERT_EQUAL(dup2(ends[1], fds[i]), fds[i]);
	}
	/* The loop is gone, so the calls send by themselves; nothing goes into the pipe. */
	for (int i = 2; i <= 5; i++)
		CU_ASSERT_EQUAL(report(client, i), 0);
	CU_ASSERT_EQUAL(flush(client, 5000, NULL), 0);
	CU_ASSERT_EQUAL(stats_of(client).acknowledged, 5);
	CU_ASSERT_TRUE(cbshm_fd(client) >= 0);
	CU_ASSERT_EQUAL(report(client, 6), 0);
	CU_ASSERT_TRUE(loop_until(client, cbshm_fd(client), 6));
	CU_ASSERT_EQUAL(stats_of(client).acknowledged, 6);
	cbshm_close(client);
	CU_ASSERT_EQUAL(poll(&poll_fd, 1, 0), 0);
	for (int i = 0; i < count; i++) {
		if (fds[i] >= 0)
			CU_ASSERT_EQUAL(write(fds[i], "x", 1), 1);
		if (fds[i] >= 0)
			close(fds[i]);
	}
	close(ends[0]);
	close(ends[1]);
	server_end();
}

/* ---- the ring by itself ----------------------------------------------------------------- */

#define PUSHERS      4
#define PUSHES       20000
#define DETAILS_ROOM 3000

static struct report_ring *ring;

/* Texts of its own letter, of all lengths, with its number in the score. */
static void *push(void *arg)
{
	const int index = *(const int *)arg;
	char text[DETAILS_ROOM];

	memset(text, 'a' + index, sizeof(text));
	for (int i = 1; i <= PUSHES; i++) {
		const size_t length = (size_t)i * 7919 % DETAILS_ROOM;
		struct report report = {.kind = REPORT_DRIFT,
					.score = index,
					.number = i,
					.name = text,
					.name_length = 1 + length % CBSHM_NAME_MAX,
					.details = i % 3 == 0 ? NULL : text,
					.details_length = i % 3 == 0 ? 0 : length};

		while (!report_ring_push(ring, &report))
			sched_yield();
		if (i % 1024 >
		    512) /* by turns the ring is full, and what is taken has just been pushed */
			usleep(1);
	}
	return NULL;
}

static bool is_all(const char *text, size_t length, char letter)
{
	for (size_t i = 0; i < length; i++) {
		if (text[i] != letter)
			return false;
	}
	return true;
}

/* Whole, and the next of its thread. */
static bool is_right(const struct report *report, int last[PUSHERS])
{
	const int index = report->score >= 0 && report->score < PUSHERS ? (int)report->score : 0;
	const int number = ++last[index];

	return report->number == number && is_all(report->name, report->name_length, 'a' + index) &&
	       (report->details == NULL) == (number % 3 == 0) &&
	       is_all(report->details, report->details_length, 'a' + index);
}

static void test_ring(void)
{
	pthread_t threads[PUSHERS];
	int indices[PUSHERS], last[PUSHERS] = {0}, taken = 0, wrong = 0;
	uint64_t position = 0, next;
	struct report report;

	ring = report_ring_new(CBSHM_REPORT_BUFFER_MIN);
	CU_ASSERT_PTR_NOT_NULL_FATAL(ring);
	for (int i = 0; i < PUSHERS; i++) {
		indices[i] = i;
		CU_ASSERT_EQUAL_FATAL(pthread_create(&threads[i], NULL, push, &indices[i]), 0);
	}
	while (taken < PUSHERS * PUSHES) {
		if (!report_ring_look(ring, &position, &report, &next)) {
			report_ring_release(ring, position);
			sched_yield();
			continue;
		}
		wrong += !is_right(&report, last);
		position = next;
		if (++taken % 17 == 0) /* the others stay in for a while */
			report_ring_release(ring, position);
	}
	for (int i = 0; i < PUSHERS; i++)
		pthread_join(threads[i], NULL);
	CU_ASSERT_EQUAL(wrong, 0);
	CU_ASSERT_EQUAL(report_ring_end(ring), position);
	report_ring_free(ring);
}

static const CU_TestInfo tests[] = {
	{"messages carry what was given", test_messages},
	{"bad arguments are refused, and nothing is queued", test_invalid},
	{"acknowledged, failed and unknown are counted", test_outcomes},
	{"without a loop, the calls themselves send", test_in_passing},
	{"a full buffer drops, and keeps what it has for the agent", test_full},
	{"many times round the buffer", test_round_and_round},
	{"what is lost with a connection is unknown, and not repeated", test_lost},
	{"what was not sent to the last byte goes out again", test_half_sent},
	{"turned away at the door", test_turned_away},
	{"a flush keeps its deadline", test_silence},
	{"an event loop", test_loop},
	{"an event loop whose agent comes and goes", test_loop_reconnects},
	{"threads without a loop", test_threads},
	{"threads and a loop", test_threads_and_loop},
	{"a child begins with nothing, and leaves the parent's reports alone", test_fork},
	{"descriptors that the application overwrites", test_overwritten},
	{"the ring: many push, nothing is torn, lost or out of order", test_ring},
	CU_TEST_INFO_NULL,
};

int main(void)
{
	return server_run_tests("reports", tests);
}
