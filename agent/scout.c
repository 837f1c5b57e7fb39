/*
 * scout.c - one connection to whichever other server takes writes
 *
 * SPDX-License-Identifier: ISC
 *
 * It is libpq that goes from server to server, and that asks each whether it takes writes.
 */
#include <config.h>

#include <event2/event.h>
#include <stdlib.h>

#include "agent/connection.h"
#include "agent/scout.h"
#include "agent/target.h"
#include "agent/text.h"

/* Microseconds for all of them together: one that hangs is not waited for, there will be another look. */
#define SCOUT_WITHIN 1000000

struct scout {
	const struct target *target;
	struct connection *connection;
	struct event *ended; /* neither end of a connection may free it within the call */
	unsigned server;
	scout_done *done;
	void *arg;
};

static unsigned server_of(const struct target *target, const struct connection *connection)
{
	const char *host, *address, *port;

	connection_peer(connection, &host, &address, &port);
	return target_find(target, host, address, port);
}

static void on_opened(struct connection *connection, void *arg)
{
	struct scout *scout = arg;

	scout->server = server_of(scout->target, connection);
	event_active(scout->ended, EV_TIMEOUT, 0);
}

static void on_lost(struct connection *connection, const char *message, void *arg)
{
	struct scout *scout = arg;

	(void)connection;
	(void)message;
	event_active(scout->ended, EV_TIMEOUT, 0);
}

static void on_ended(evutil_socket_t fd, short what, void *arg)
{
	struct scout *scout = arg;

	(void)fd;
	(void)what;
	scout->done(scout->server, scout->arg);
}

struct scout *scout_start(struct event_base *base, struct target *target,
			  const struct connection *present, scout_done *done, void *arg)
{
	static const struct connection_events events = {.opened = on_opened, .lost = on_lost};
	const unsigned server = server_of(target, present);
	const char *const *keywords, *const *values;
	struct scout *scout;

	if (server == TARGET_NONE || !target_others(target, server, &keywords, &values))
		return NULL;
	scout = memory_new(1, sizeof(*scout));
	scout->target = target;
	scout->server = TARGET_NONE;
	scout->done = done;
	scout->arg = arg;
	scout->ended = evtimer_new(base, on_ended, scout);
	scout->connection =
		connection_open(base, "scout", keywords, values, SCOUT_WITHIN, &events, scout);
	return scout;
}

void scout_free(struct scout *scout)
{
	if (scout == NULL)
		return;
	connection_free(scout->connection);
	event_free(scout->ended);
	free(scout);
}
