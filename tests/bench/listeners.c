/*
 * listeners.c - as many sessions that LISTEN as are asked for, doing nothing with what they hear
 *
 * SPDX-License-Identifier: ISC
 *
 *	listeners CONNINFO COUNT [EVERY]
 *
 * What a fleet of agents is to the server. Prints a line when all of them listen, another one each time EVERY notifications have
 * been read (nanoseconds of CLOCK_MONOTONIC), and ends with its standard input; then it says how many it was sent.
 */
#include "config.h"

#include <libpq-fe.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static PGconn *listener(const char *conninfo)
{
	PGconn *connection = PQconnectdb(conninfo);
	PGresult *result = PQexec(connection, "LISTEN cbshm");

	if (PQresultStatus(result) != PGRES_COMMAND_OK) {
		fprintf(stderr, "listeners: %s", PQerrorMessage(connection));
		exit(1);
	}
	PQclear(result);
	return connection;
}

static long drain(PGconn *connection)
{
	PGnotify *notification;
	long count = 0;

	PQconsumeInput(connection);
	while ((notification = PQnotifies(connection)) != NULL) {
		PQfreemem(notification);
		count++;
	}
	return count;
}

static void tell_time(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	printf("%lld\n", (long long)now.tv_sec * 1000000000 + now.tv_nsec);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	const int count = argc >= 3 ? atoi(argv[2]) : 0;
	const long every = argc == 4 ? atol(argv[3]) : 0;
	struct pollfd *ready = calloc((size_t)count + 1, sizeof(*ready));
	PGconn **connections = calloc((size_t)count + 1, sizeof(*connections));
	long heard = 0, told = 0;

	if (argc < 3 || argc > 4) {
		fprintf(stderr, "usage: listeners CONNINFO COUNT [EVERY]\n");
		return 2;
	}
	for (int i = 0; i < count; i++) {
		connections[i] = listener(argv[1]);
		ready[i] = (struct pollfd){.fd = PQsocket(connections[i]), .events = POLLIN};
	}
	ready[count] = (struct pollfd){.fd = 0, .events = POLLIN};
	printf("listening\n");
	fflush(stdout);
	while (ready[count].revents == 0) {
		if (poll(ready, (nfds_t)count + 1, -1) < 0)
			break;
		for (int i = 0; i < count; i++)
			if (ready[i].revents != 0)
				heard += drain(connections[i]);
		for (; every > 0 && heard - told >= every; told += every)
			tell_time();
	}
	printf("%ld\n", heard);
	for (int i = 0; i < count; i++)
		PQfinish(connections[i]);
	free(connections);
	free(ready);
	return 0;
}
