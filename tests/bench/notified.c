/*
 * notified.c - how long after a commit another host knows of it: its segment, beside a bare listener
 *
 * SPDX-License-Identifier: ISC
 *
 *	notified CONNINFO BREAKER COMMITS WARMUP PAUSE_US LOOK_US
 *
 * One thread commits changes of a breaker. Another one does what the simplest listener does: it LISTENs with libpq, sleeps in
 * poll(2), and is done when the notification is read. An agent hears of the commit in the same way; how long it takes until its
 * segment (CBSHM_SEGMENT) shows it is seen by a third thread that checks the breaker every LOOK_US. If that is 0, it does so over
 * and over, on a core that has nothing else to do: it has the lowest scheduling class. (Where all cores are busy it would still hold
 * up the others, by hundreds of milliseconds.) A fourth one is an engine that sleeps in cbshm_wait(), and has to be woken in its
 * turn. All of that follows from the same commit. Prints JSON: microseconds from sending the COMMIT to each of them, and to
 * the answer of the commit itself.
 */
#include "config.h"

#include <inttypes.h>
#include <libpq-fe.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cbshm.h"

#define GIVE_UP 2000000 /* microseconds */

static const char *conninfo, *breaker_name;
static struct cbshm *client;
static useconds_t look_every;
static _Atomic int64_t heard_at, shown_at, seen_at;
static _Atomic uint32_t heard, shown, seen; /* how many commits each of them knows of */
static atomic_bool stop;

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void die(const char *what, const char *why)
{
	fprintf(stderr, "notified: %s: %s\n", what, why);
	exit(1);
}

static PGconn *connect_to(const char *sql)
{
	PGconn *connection = PQconnectdb(conninfo);
	PGresult *result = PQexec(connection, sql);

	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		die(sql, PQerrorMessage(connection));
	PQclear(result);
	return connection;
}

/* The bare listener. */
static void *listen_for_it(void *arg)
{
	PGconn *connection = connect_to("LISTEN cbshm");
	PGnotify *notification;

	(void)arg;
	while (!stop) {
		struct pollfd ready = {.fd = PQsocket(connection), .events = POLLIN};

		poll(&ready, 1, 100);
		PQconsumeInput(connection);
		while ((notification = PQnotifies(connection)) != NULL) {
			if (strchr("cr", notification->extra[0]) != NULL &&
			    strstr(notification->extra, breaker_name) != NULL) {
				heard_at = now_ns();
				heard++;
			}
			PQfreemem(notification);
		}
	}
	PQfinish(connection);
	return NULL;
}

/* When the segment shows it. */
static void *look_for_it(void *arg)
{
	const struct sched_param none = {0};
	struct cbshm_breaker *breaker = arg;
	uint32_t epoch = cbshm_check(breaker).epoch;

	if (look_every == 0)
		pthread_setschedparam(pthread_self(), SCHED_IDLE, &none);
	while (!stop) {
		uint32_t now;

		if (look_every != 0)
			usleep(look_every);
		now = cbshm_check(breaker).epoch;
		if (now != epoch) {
			shown_at = now_ns();
			shown += now - epoch;
			epoch = now;
		}
	}
	return NULL;
}

/* An engine that sleeps until its breaker changes. */
static void *wait_for_it(void *arg)
{
	struct cbshm_breaker *breaker = arg;
	uint32_t epoch = cbshm_check(breaker).epoch;
	uint64_t token = 0;

	while (!stop) {
		const int error = cbshm_wait(client, &breaker, 1, &token, 100);
		const uint32_t now = cbshm_check(breaker).epoch;

		if (error != 0 && error != CBSHM_ERR_TIMEOUT)
			die("cbshm_wait", cbshm_strerror(error));
		if (now != epoch) {
			seen_at = now_ns();
			seen += now - epoch;
			epoch = now;
		}
	}
	return NULL;
}

static bool wait_until(_Atomic uint32_t *count, uint32_t wanted)
{
	const int64_t end = now_ns() + GIVE_UP * INT64_C(1000);

	while (*count < wanted) {
		if (now_ns() > end)
			return false;
		usleep(100);
	}
	return true;
}

static void run(PGconn *connection, const char *sql)
{
	PGresult *result = PQexec(connection, sql);

	if (PQresultStatus(result) != PGRES_COMMAND_OK && PQresultStatus(result) != PGRES_TUPLES_OK)
		die(sql, PQerrorMessage(connection));
	PQclear(result);
}

static void commit_once(PGconn *connection, int number, int64_t times[4])
{
	char change[512];
	int64_t sent;

	snprintf(change, sizeof(change),
		 "UPDATE cbshm.breaker SET disabled = %s, disabled_reason = %s, disabled_by = %s "
		 "WHERE name = '%s'",
		 number % 2 ? "true" : "false", number % 2 ? "'a reason'" : "NULL",
		 number % 2 ? "'somebody'" : "NULL", breaker_name);
	run(connection, "BEGIN");
	run(connection, change);
	sent = now_ns();
	run(connection, "COMMIT");
	times[0] = now_ns() - sent;
	if (!wait_until(&heard, (uint32_t)number) || !wait_until(&shown, (uint32_t)number) ||
	    !wait_until(&seen, (uint32_t)number))
		die("commit", "nobody has heard of it");
	times[1] = heard_at - sent;
	times[2] = shown_at - sent;
	times[3] = seen_at - sent;
}

static void print(const char *name, const int64_t (*times)[4], int column, int first, int count)
{
	printf("\"%s\": [", name);
	for (int i = first; i < count; i++)
		printf("%s%.1f", i > first ? "," : "", (double)times[i][column] / 1000);
	printf("]");
}

int main(int argc, char **argv)
{
	struct cbshm_breaker *breaker = NULL;
	pthread_t threads[3];
	PGconn *connection;
	int count, warmup;

	if (argc != 7) {
		fprintf(stderr,
			"usage: notified CONNINFO BREAKER COMMITS WARMUP PAUSE_US LOOK_US\n");
		return 2;
	}
	conninfo = argv[1];
	breaker_name = argv[2];
	warmup = atoi(argv[4]);
	look_every = (useconds_t)atoi(argv[6]);
	count = atoi(argv[3]) + warmup;
	if (cbshm_open(NULL, &client) != 0 ||
	    cbshm_breaker_open(client, breaker_name, &breaker) != 0)
		die(breaker_name, "no such breaker");
	connection = connect_to("SET application_name = 'notified'");
	pthread_create(&threads[0], NULL, listen_for_it, NULL);
	pthread_create(&threads[1], NULL, look_for_it, breaker);
	pthread_create(&threads[2], NULL, wait_for_it, breaker);
	usleep(300000);

	int64_t(*times)[4] = calloc((size_t)count, sizeof(*times));
	for (int i = 0; i < count; i++) {
		commit_once(connection, i + 1, times[i]);
		usleep((useconds_t)atoi(argv[5]));
	}
	stop = true;
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	printf("{");
	print("answered", (const int64_t(*)[4])times, 0, warmup, count);
	printf(", ");
	print("heard", (const int64_t(*)[4])times, 1, warmup, count);
	printf(", ");
	print("shown", (const int64_t(*)[4])times, 2, warmup, count);
	printf(", ");
	print("seen", (const int64_t(*)[4])times, 3, warmup, count);
	printf("}\n");
	free(times);
	PQfinish(connection);
	cbshm_breaker_close(breaker);
	cbshm_close(client);
	return 0;
}
