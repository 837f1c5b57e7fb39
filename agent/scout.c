/*
 * scout.c - asks every other server whether it takes writes
 *
 * SPDX-License-Identifier: ISC
 *
 * All are asked at once, each over a connection of its own, so that neither one that hangs nor a second way to the present server
 * keeps another one from being found. It is libpq that asks each whether it takes writes.
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

struct scout;

/* One server of the list. */
struct candidate {
	struct scout *scout;
	unsigned server;
	struct connection *connection;
};

struct scout {
	struct event *ended; /* by time; or soon, as no callback of a connection may free it */
	const char *question, *present;
	unsigned found;
	unsigned left; /* that have not said anything yet */
	unsigned count;
	scout_done *done;
	void *arg;
	struct candidate candidates[TARGET_SERVERS_MAX];
};

static void end(struct scout *scout, unsigned found)
{
	if (scout->found == TARGET_NONE)
		scout->found = found;
	if (--scout->left == 0 || found != TARGET_NONE)
		event_active(scout->ended, EV_TIMEOUT, 0);
}

/* Two names, or two addresses of one name, can lead to one server; that which cannot be told counts as the present one, too. */
static void on_told(struct unit *unit, enum unit_end unit_end, void *arg)
{
	const struct candidate *candidate = arg;
	const PGresult *result = unit_result(unit, 0);

	if (unit_end == UNIT_LOST)
		return; /* so is the connection */
	if (unit_end == UNIT_DONE && PQntuples(result) == 1 &&
	    strcmp(PQgetvalue(result, 0, 0), candidate->scout->present) != 0)
		end(candidate->scout, candidate->server);
	else
		end(candidate->scout, TARGET_NONE);
}

static void on_opened(struct connection *connection, void *arg)
{
	const struct candidate *candidate = arg;
	struct unit *unit = unit_new(on_told, arg);

	unit_add(unit, candidate->scout->question, 0);
	connection_run(connection, unit);
}

static void on_lost(struct connection *connection, const char *message, void *arg)
{
	const struct candidate *candidate = arg;

	(void)connection;
	(void)message;
	end(candidate->scout, TARGET_NONE);
}

static void on_ended(evutil_socket_t fd, short what, void *arg)
{
	struct scout *scout = arg;

	(void)fd;
	(void)what;
	scout->done(scout->found, scout->arg);
}

static void add(struct scout *scout, struct event_base *base, struct target *target,
		unsigned server)
{
	static const struct connection_events events = {.opened = on_opened, .lost = on_lost};
	struct candidate *candidate = &scout->candidates[scout->count++];
	const char *const *keywords, *const *values;

	scout->left++;
	candidate->scout = scout;
	candidate->server = server;
	target_one(target, server, &keywords, &values);
	candidate->connection =
		connection_open(base, "scout", keywords, values, SCOUT_SECONDS * INT64_C(1000000),
				&events, candidate);
}

struct scout *scout_start(struct event_base *base, struct target *target,
			  const struct connection *present, const char *question,
			  const char *answer, scout_done *done, void *arg)
{
	const unsigned count = target_choice(target);
	const char *host, *address, *port;
	struct scout *scout;
	unsigned server;

	connection_peer(present, &host, &address, &port);
	server = target_find(target, host, address, port);
	if (count < 2 || server == TARGET_NONE)
		return NULL;
	scout = memory_new(1, sizeof(*scout));
	scout->question = question;
	scout->present = answer;
	scout->found = TARGET_NONE;
	scout->done = done;
	scout->arg = arg;
	scout->ended = evtimer_new(base, on_ended, scout);
	event_add(scout->ended, &(struct timeval){.tv_sec = SCOUT_SECONDS});
	for (unsigned i = 0; i < count; i++) {
		if (i != server)
			add(scout, base, target, i);
	}
	return scout;
}

void scout_free(struct scout *scout)
{
	if (scout == NULL)
		return;
	for (unsigned i = 0; i < scout->count; i++)
		connection_free(scout->candidates[i].connection);
	event_free(scout->ended);
	free(scout);
}
