/*
 * scout.c - asks every other server whether it takes writes, until one does
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

/* Microseconds: what hangs is given up, and who has said no is asked again. */
#define ANSWER_MAX 1000000
#define ASK_AGAIN  500000

/* One server of the list. */
struct candidate {
	struct scout *scout;
	unsigned server;
	struct connection *connection;
	struct event *again;
};

struct scout {
	struct event_base *base;
	struct target *target;
	struct event *ended;           /* no callback of a connection may free it */
	const char *question, *answer; /* what the present server answers */
	unsigned found;
	unsigned count;
	scout_done *done;
	void *arg;
	struct candidate candidates[TARGET_SERVERS_MAX];
};

static void ask_again(struct candidate *candidate)
{
	event_add(candidate->again, &(struct timeval){.tv_usec = ASK_AGAIN});
}

/* Two names, or two addresses of one name, can lead to one server; that which cannot be told counts as the present one, too. */
static void on_told(struct unit *unit, enum unit_end end, void *arg)
{
	struct candidate *candidate = arg;
	struct scout *scout = candidate->scout;
	const PGresult *result = unit_result(unit, 0);

	if (end == UNIT_LOST)
		return; /* so is the connection */
	if (end == UNIT_DONE && PQntuples(result) == 1 &&
	    strcmp(PQgetvalue(result, 0, 0), scout->answer) != 0) {
		scout->found = candidate->server;
		event_active(scout->ended, EV_TIMEOUT, 0);
	} else {
		ask_again(candidate);
	}
}

/* One that has let us in and then hangs is given up, too. */
static void on_opened(struct connection *connection, void *arg)
{
	const struct candidate *candidate = arg;
	struct unit *unit = unit_new(on_told, arg);

	unit_add(unit, candidate->scout->question, 0);
	connection_run(connection, unit);
	event_add(candidate->again, &(struct timeval){.tv_sec = ANSWER_MAX / 1000000});
}

static void on_lost(struct connection *connection, const char *message, void *arg)
{
	(void)connection;
	(void)message;
	ask_again(arg);
}

static void on_ended(evutil_socket_t fd, short what, void *arg)
{
	struct scout *scout = arg;

	(void)fd;
	(void)what;
	scout->done(scout->found, scout->arg);
}

static void ask(struct candidate *candidate)
{
	static const struct connection_events events = {.opened = on_opened, .lost = on_lost};
	struct scout *scout = candidate->scout;
	const char *const *keywords, *const *values;

	connection_free(candidate->connection);
	target_one(scout->target, candidate->server, &keywords, &values);
	candidate->connection = connection_open(scout->base, "scout", keywords, values, ANSWER_MAX,
						&events, candidate);
}

static void on_again(evutil_socket_t fd, short what, void *arg)
{
	(void)fd;
	(void)what;
	ask(arg);
}

static void add(struct scout *scout, unsigned server, bool at_once)
{
	struct candidate *candidate = &scout->candidates[scout->count++];

	candidate->scout = scout;
	candidate->server = server;
	candidate->again = evtimer_new(scout->base, on_again, candidate);
	if (at_once)
		ask(candidate);
	else
		ask_again(candidate);
}

static unsigned server_of(const struct target *target, const struct connection *connection)
{
	const char *host, *address, *port;

	connection_peer(connection, &host, &address, &port);
	return target_find(target, host, address, port);
}

struct scout *scout_start(struct event_base *base, struct target *target,
			  const struct connection *present, const char *question,
			  const char *answer, bool at_once, scout_done *done, void *arg)
{
	const unsigned count = target_choice(target);
	const unsigned server = present != NULL ? server_of(target, present) : TARGET_NONE;
	struct scout *scout;

	if (count < 2 || (present != NULL && server == TARGET_NONE))
		return NULL;
	scout = memory_new(1, sizeof(*scout));
	scout->base = base;
	scout->target = target;
	scout->question = question;
	scout->answer = answer;
	scout->done = done;
	scout->arg = arg;
	scout->ended = evtimer_new(base, on_ended, scout);
	for (unsigned i = 0; i < count; i++) {
		if (i != server)
			add(scout, i, at_once);
	}
	return scout;
}

void scout_free(struct scout *scout)
{
	if (scout == NULL)
		return;
	for (unsigned i = 0; i < scout->count; i++) {
		connection_free(scout->candidates[i].connection);
		event_free(scout->candidates[i].again);
	}
	event_free(scout->ended);
	free(scout);
}
