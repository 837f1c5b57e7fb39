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
#include <string.h>

#include "agent/connection.h"
#include "agent/scout.h"
#include "agent/target.h"
#include "agent/text.h"

/* For all of them together: one that hangs is not waited for, there will be another look. */
#define SCOUT_SECONDS 1

struct scout {
	const struct target *target;
	struct connection *connection;
	struct event *ended; /* by time; or soon, as no callback of a connection may free it */
	const char *question, *present;
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

/* Two names, or two addresses of one name, can lead to one server; that which cannot be told counts as the present one, too. */
static void on_told(struct unit *unit, enum unit_end end, void *arg)
{
	struct scout *scout = arg;
	const PGresult *result = unit_result(unit, 0);

	if (end == UNIT_DONE && PQntuples(result) == 1 &&
	    strcmp(PQgetvalue(result, 0, 0), scout->present) != 0)
		scout->server = server_of(scout->target, scout->connection);
	event_active(scout->ended, EV_TIMEOUT, 0);
}

static void on_opened(struct connection *connection, void *arg)
{
	const struct scout *scout = arg;
	struct unit *unit = unit_new(on_told, arg);

	unit_add(unit, scout->question, 0);
	connection_run(connection, unit);
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
			  const struct connection *present, const char *question,
			  const char *answer, scout_done *done, void *arg)
{
	static const struct connection_events events = {.opened = on_opened, .lost = on_lost};
	const unsigned server = server_of(target, present);
	const char *const *keywords, *const *values;
	struct scout *scout;

	if (server == TARGET_NONE || !target_others(target, server, &keywords, &values))
		return NULL;
	scout = memory_new(1, sizeof(*scout));
	scout->target = target;
	scout->question = question;
	scout->present = answer;
	scout->server = TARGET_NONE;
	scout->done = done;
	scout->arg = arg;
	scout->ended = evtimer_new(base, on_ended, scout);
	event_add(scout->ended, &(struct timeval){.tv_sec = SCOUT_SECONDS});
	scout->connection = connection_open(base, "scout", keywords, values,
					    SCOUT_SECONDS * INT64_C(1000000), &events, scout);
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
