/*
 * fleet.c - barriers: announced for who waits here, acknowledged for who waits elsewhere
 *
 * SPDX-License-Identifier: ISC
 *
 * Who waits announces a barrier and then asks, less and less often, who has acknowledged it. A wait costs the database
 * one notification, one update of a row for each agent, and some ten looks at the table of agents. Acknowledgements
 * are not announced: each would wake every agent's server process.
 *
 * A wait is idle - announcing - pausing - asking - pausing ..., changed in change_state() only.
 */
#include <config.h>

#include <assert.h>
#include <event2/event.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/queue.h>
#include <time.h>
#include <unistd.h>

#include "agent/agent.h"
#include "agent/config.h"
#include "agent/connection.h"
#include "agent/database.h"
#include "agent/failure.h"
#include "agent/fleet.h"
#include "agent/log.h"
#include "agent/text.h"

/* Microseconds. */
#define PAUSE_FIRST  1000
#define PAUSE_LAST   200000
#define LAST_LOOK    20000 /* so long before the deadline */
#define SWEEP_EVERY  20000
#define AGAIN_AFTER  200000
#define LEAVE_WITHIN 1000000

#define WAITS_MAX      64
#define WAITS_PER_USER 16 /* but root's and the agent's own */

enum wait_state { WAIT_IDLE, WAIT_ANNOUNCING, WAIT_PAUSING, WAIT_ASKING };

struct wait {
	struct fleet *fleet;
	struct request *request; /* NULL once answered */
	enum wait_state state;
	bool excess;   /* its user has as many as it may */
	char *barrier; /* as the database has named them */
	char *moment;
	char *found; /* by the last look: JSON, NULL if there was none */
	int64_t pause;
	struct event *timer;
	TAILQ_ENTRY(wait) link;
};

struct fleet {
	struct agent *agent;
	int64_t applied; /* the barrier reached last */
	int64_t acknowledged;
	bool acknowledging;
	TAILQ_HEAD(waits, wait) waits;
	unsigned count;
	struct event *again; /* acknowledges */
	struct event *kick;
	struct event *sweep;
	struct event *leave; /* ends the patience with the database */
	void (*left)(void *arg);
	void *left_arg;
	bool leaving;
};

static const char sql_acknowledge[] =
	"SELECT cbshm.acknowledge_barrier($1, $2, $3::pg_catalog.int8)";
static const char sql_announce[] = "SELECT barrier, moment FROM cbshm.announce_barrier()";
/* Where nobody is seen, not even this agent, nothing is known. */
static const char sql_look[] = "SELECT f, f -> 'hosts' = f -> 'in_force' AND f -> 'hosts' <> '0'"
			       " FROM cbshm.fleet_json("
			       "$1::pg_catalog.int8, $2::pg_catalog.timestamptz) f";
static const char sql_remove[] = "SELECT cbshm.remove_agent($1, $2)";

static struct timeval to_timeval(int64_t microseconds)
{
	return (struct timeval){.tv_sec = microseconds / 1000000,
				.tv_usec = microseconds % 1000000};
}

static void run_unit(struct fleet *fleet, struct unit *unit)
{
	connection_run(database_control(fleet->agent->database), unit);
}

/* ---- acknowledging ---- */

static void acknowledge(struct fleet *fleet);

static void on_acknowledged(struct unit *unit, enum unit_end end, void *arg)
{
	struct fleet *fleet = arg;

	fleet->acknowledging = false;
	if (end == UNIT_FAILED && failure_classify(unit_error(unit)) == FAILURE_LOCK)
		/* Somebody keeps the agents' rows locked. */
		event_add(fleet->again, &(struct timeval){.tv_usec = AGAIN_AFTER});
	else if (end == UNIT_FAILED)
		/* As for the heartbeat; the load after it reads the barrier. */
		database_break(fleet->agent->database, PQresultErrorMessage(unit_error(unit)));
	else if (end == UNIT_DONE && fleet->applied != fleet->acknowledged)
		acknowledge(fleet);
}

static void acknowledge(struct fleet *fleet)
{
	const struct config *config = fleet->agent->config;
	struct unit *unit = unit_new(on_acknowledged, fleet);
	struct text number = {0};

	text_format(&number, "%" PRId64, fleet->applied);
	/* Nothing of a wait is worth one for the disk: it is asked for anew after a crash. */
	unit_impatient(unit);
	unit_add(unit, sql_acknowledge, 3, memory_copy(config->host), memory_copy(config->instance),
		 text_take(&number));
	unit_prepared(unit);
	fleet->acknowledging = true;
	fleet->acknowledged = fleet->applied;
	run_unit(fleet, unit);
}

/* Unless it is under way, or this agent is about to go. */
static void acknowledge_now(struct fleet *fleet)
{
	if (!fleet->acknowledging && !fleet->leaving)
		acknowledge(fleet);
}

static void on_again(evutil_socket_t fd, short what, void *arg)
{
	struct fleet *fleet = arg;

	(void)fd;
	(void)what;
	if (database_state(fleet->agent->database) == DATABASE_LIVE)
		acknowledge_now(fleet);
}

void fleet_row_is_back(struct fleet *fleet)
{
	if (fleet->applied != 0)
		acknowledge_now(fleet);
}

void fleet_applied(struct fleet *fleet, int64_t barrier)
{
	log_event(LOG_LEVEL_DEBUG, "barrier", "applied=%" PRId64, barrier);
	fleet->applied = barrier;
	acknowledge_now(fleet);
}

/* ---- one who waits ---- */

static void change_state(struct wait *wait, enum wait_state to)
{
	const enum wait_state from = wait->state;

	/* Forward, from asking to the next pause, and back to the start from anywhere. */
	assert(to == WAIT_IDLE || to == from + 1 || (from == WAIT_ASKING && to == WAIT_PAUSING));
	wait->state = to;
}

static bool is_under_way(const struct wait *wait)
{
	return wait->state == WAIT_ANNOUNCING || wait->state == WAIT_ASKING;
}

static void wait_free(struct wait *wait)
{
	TAILQ_REMOVE(&wait->fleet->waits, wait, link);
	wait->fleet->count--;
	event_free(wait->timer);
	free(wait->barrier);
	free(wait->moment);
	free(wait->found);
	free(wait);
}

/* Whoever has a unit under way is freed at its end. */
static void answer(struct wait *wait, const struct answer *answer)
{
	struct request *request = wait->request;

	wait->request = NULL;
	if (request != NULL)
		request->done(request, answer);
	if (!is_under_way(wait))
		wait_free(wait);
}

/* What it was told at last; that not everybody has got there is for the client to see. */
static void answer_found(struct wait *wait)
{
	answer(wait, &(struct answer){.status = ANSWER_OK, .json = wait->found});
}

/* Begins anew when there is a connection again. */
static void wait_lost(struct wait *wait)
{
	change_state(wait, WAIT_IDLE);
	if (wait->request == NULL)
		wait_free(wait);
	else
		event_active(wait->fleet->kick, EV_TIMEOUT, 0);
}

static void wait_failed(struct wait *wait, const PGresult *error)
{
	const struct timeval delay = to_timeval(PAUSE_LAST);

	change_state(wait, WAIT_IDLE);
	if (wait->request != NULL && failure_classify(error) != FAILURE_PERMANENT) {
		/* Somebody commits a notification and waits for the disk, or the like. */
		event_add(wait->timer, &delay);
		return;
	}
	answer(wait,
	       &(struct answer){.status = ANSWER_DATABASE_ERROR,
				.sqlstate = PQresultErrorField(error, PG_DIAG_SQLSTATE),
				.message = PQresultErrorField(error, PG_DIAG_MESSAGE_PRIMARY)});
}

/* What to do with a unit's end before its results are of use; false: nothing is left to do. */
static bool goes_on(struct wait *wait, const struct unit *unit, enum unit_end end)
{
	if (end == UNIT_LOST) {
		wait_lost(wait);
		return false;
	}
	if (end == UNIT_FAILED) {
		wait_failed(wait, unit_error(unit));
		return false;
	}
	change_state(wait, WAIT_PAUSING);
	if (wait->request != NULL)
		return true;
	wait_free(wait);
	return false;
}

static void pause_wait(struct wait *wait)
{
	const int64_t left = wait->request->deadline - clock_microseconds(CLOCK_MONOTONIC);
	struct timeval delay;

	/* The last look is to be fresh. */
	if (left > LAST_LOOK && wait->pause > left - LAST_LOOK)
		wait->pause = left - LAST_LOOK;
	delay = to_timeval(wait->pause);
	event_add(wait->timer, &delay);
	wait->pause = wait->pause * 2 < PAUSE_LAST ? wait->pause * 2 : PAUSE_LAST;
}

static void on_looked(struct unit *unit, enum unit_end end, void *arg)
{
	struct wait *wait = arg;
	const PGresult *result = unit_result(unit, 0);

	if (!goes_on(wait, unit, end))
		return;
	free(wait->found);
	wait->found = memory_copy(PQgetvalue(result, 0, 0));
	if (*PQgetvalue(result, 0, 1) == 't')
		answer_found(wait);
	else
		pause_wait(wait);
}

static void look(struct wait *wait)
{
	struct unit *unit = unit_new(on_looked, wait);

	change_state(wait, WAIT_ASKING);
	unit_add(unit, sql_look, 2, memory_copy(wait->barrier), memory_copy(wait->moment));
	unit_prepared(unit);
	run_unit(wait->fleet, unit);
}

static void on_announced(struct unit *unit, enum unit_end end, void *arg)
{
	struct wait *wait = arg;
	const PGresult *result = unit_result(unit, 1);

	if (!goes_on(wait, unit, end))
		return;
	free(wait->barrier);
	free(wait->moment);
	wait->barrier = memory_copy(PQgetvalue(result, 0, 0));
	wait->moment = memory_copy(PQgetvalue(result, 0, 1));
	wait->pause = PAUSE_FIRST;
	pause_wait(wait);
}

static void announce(struct wait *wait)
{
	struct unit *unit = unit_new(on_announced, wait);

	change_state(wait, WAIT_ANNOUNCING);
	unit_asynchronous(unit);
	unit_add(unit, sql_announce, 0);
	run_unit(wait->fleet, unit);
}

static void step(struct wait *wait)
{
	if (wait->state == WAIT_IDLE)
		announce(wait);
	else if (wait->state == WAIT_PAUSING)
		look(wait);
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
	struct wait *wait = arg;

	(void)fd;
	(void)what;
	if (database_state(wait->fleet->agent->database) == DATABASE_LIVE)
		step(wait);
	else
		event_active(wait->fleet->kick, EV_TIMEOUT, 0);
}

/* ---- all who wait ---- */

/* Not connected any more: what was announced is of the past. */
static void start_anew(struct fleet *fleet)
{
	struct wait *wait;

	TAILQ_FOREACH(wait, &fleet->waits, link)
	{
		if (wait->state == WAIT_PAUSING)
			change_state(wait, WAIT_IDLE);
	}
}

static void announce_all(struct fleet *fleet)
{
	struct wait *wait;

	TAILQ_FOREACH(wait, &fleet->waits, link)
	{
		if (wait->state == WAIT_IDLE && wait->request != NULL &&
		    !event_pending(wait->timer, EV_TIMEOUT, NULL))
			announce(wait);
	}
}

static void refuse_all(struct fleet *fleet)
{
	const char *trouble = database_trouble(fleet->agent->database);
	struct wait *wait, *next;
	char message[640];

	snprintf(message, sizeof(message), "Postgres cannot be asked how far the fleet is: %s",
		 *trouble != '\0' ? trouble : "the agent is not connected");
	for (wait = TAILQ_FIRST(&fleet->waits); wait != NULL; wait = next) {
		next = TAILQ_NEXT(wait, link);
		answer(wait,
		       &(struct answer){.status = ANSWER_DATABASE_UNAVAILABLE, .message = message});
	}
}

static void expire(struct fleet *fleet)
{
	const int64_t now = clock_microseconds(CLOCK_MONOTONIC);
	struct wait *wait, *next;

	for (wait = TAILQ_FIRST(&fleet->waits); wait != NULL; wait = next) {
		next = TAILQ_NEXT(wait, link);
		if (wait->request == NULL ||
		    (wait->request->deadline > now && !wait->request->abandoned))
			continue;
		if (wait->found != NULL)
			answer_found(wait);
		else
			answer(wait,
			       &(struct answer){.status = ANSWER_TIMEOUT,
						.message = "the deadline passed before Postgres "
							   "told how far the fleet is"});
	}
}

static void refuse(struct wait *wait, const char *message)
{
	answer(wait, &(struct answer){.status = ANSWER_LIMIT, .message = message});
}

/* None of these has begun. */
static void refuse_too_many(struct fleet *fleet)
{
	struct wait *wait, *next;

	for (wait = TAILQ_FIRST(&fleet->waits); wait != NULL; wait = next) {
		next = TAILQ_NEXT(wait, link);
		if (wait->excess)
			refuse(wait,
			       "16 clients of this user wait for the fleet already: try again "
			       "when one of them is done");
	}
	while (fleet->count > WAITS_MAX)
		refuse(TAILQ_LAST(&fleet->waits, waits),
		       "64 clients of this agent wait for the fleet already: try again later");
}

static void dispatch(struct fleet *fleet)
{
	refuse_too_many(fleet);
	if (database_state(fleet->agent->database) == DATABASE_LIVE) {
		announce_all(fleet);
	} else {
		start_anew(fleet);
		if (!database_expected(fleet->agent->database))
			refuse_all(fleet);
	}
	if (!TAILQ_EMPTY(&fleet->waits) && !event_pending(fleet->sweep, EV_TIMEOUT, NULL))
		event_add(fleet->sweep, &(struct timeval){.tv_usec = SWEEP_EVERY});
}

static void on_kick(evutil_socket_t fd, short what, void *arg)
{
	(void)fd;
	(void)what;
	dispatch(arg);
}

static void on_sweep(evutil_socket_t fd, short what, void *arg)
{
	(void)fd;
	(void)what;
	expire(arg);
	dispatch(arg);
}

void fleet_database_changed(struct fleet *fleet)
{
	event_active(fleet->kick, EV_TIMEOUT, 0);
}

static bool has_too_many(const struct fleet *fleet, uid_t uid)
{
	const struct wait *wait;
	unsigned count = 0;

	if (uid == 0 || uid == geteuid())
		return false;
	TAILQ_FOREACH(wait, &fleet->waits, link)
	count += wait->request != NULL && wait->request->peer.uid == uid && !wait->excess;
	return count >= WAITS_PER_USER;
}

void fleet_wait(struct fleet *fleet, struct request *request)
{
	struct wait *wait = memory_new(1, sizeof(*wait));

	wait->fleet = fleet;
	wait->request = request;
	wait->excess = has_too_many(fleet, request->peer.uid);
	wait->timer = evtimer_new(fleet->agent->base, on_timer, wait);
	TAILQ_INSERT_TAIL(&fleet->waits, wait, link);
	fleet->count++;
	event_active(fleet->kick, EV_TIMEOUT, 0);
}

/* ---- the end ---- */

static void end_leave(struct fleet *fleet)
{
	void (*left)(void *arg) = fleet->left;

	fleet->left = NULL;
	event_del(fleet->leave);
	if (left != NULL)
		left(fleet->left_arg);
}

static void on_left(struct unit *unit, enum unit_end end, void *arg)
{
	(void)unit;
	(void)end;
	end_leave(arg);
}

static void on_leave_timeout(evutil_socket_t fd, short what, void *arg)
{
	(void)fd;
	(void)what;
	end_leave(arg);
}

void fleet_leave(struct fleet *fleet, void (*done)(void *arg), void *arg)
{
	const struct config *config = fleet->agent->config;
	struct unit *unit;

	fleet->leaving = true;
	fleet->left = done;
	fleet->left_arg = arg;
	if (database_state(fleet->agent->database) != DATABASE_LIVE) {
		end_leave(fleet);
		return;
	}
	event_add(fleet->leave, &(struct timeval){.tv_sec = LEAVE_WITHIN / 1000000});
	unit = unit_new(on_left, fleet);
	unit_impatient(unit);
	unit_add(unit, sql_remove, 2, memory_copy(config->host), memory_copy(config->instance));
	run_unit(fleet, unit);
}

bool fleet_is_leaving(const struct fleet *fleet)
{
	return fleet->leaving;
}

struct fleet *fleet_new(struct agent *agent)
{
	struct fleet *fleet = memory_new(1, sizeof(*fleet));

	fleet->agent = agent;
	TAILQ_INIT(&fleet->waits);
	fleet->again = evtimer_new(agent->base, on_again, fleet);
	fleet->kick = evtimer_new(agent->base, on_kick, fleet);
	fleet->sweep = evtimer_new(agent->base, on_sweep, fleet);
	fleet->leave = evtimer_new(agent->base, on_leave_timeout, fleet);
	return fleet;
}

void fleet_stop(struct fleet *fleet)
{
	refuse_all(fleet);
}

void fleet_free(struct fleet *fleet)
{
	if (fleet == NULL)
		return;
	fleet_stop(fleet);
	event_free(fleet->again);
	event_free(fleet->kick);
	event_free(fleet->sweep);
	event_free(fleet->leave);
	free(fleet);
}
