/*
 * recovery.c - a timer for each open breaker with a TTL, and the statement that ends it
 *
 * SPDX-License-Identifier: ISC
 *
 * Nothing here decides: cbshm.recover() judges by the database's clock and under the row's lock, so
 * calling it too early or from many agents at once does no harm. It runs in the lane, since the row
 * may be locked.
 */
#include <config.h>

#include <event2/event.h>
#include <search.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "agent/agent.h"
#include "agent/connection.h"
#include "agent/database.h"
#include "agent/log.h"
#include "agent/mirror.h"
#include "agent/recovery.h"
#include "agent/segment_writer.h"
#include "agent/text.h"
#include "cbshm/segment.h"

/* Microseconds. */
#define TIMER_MAX \
	300000000 /* longer waits are cut, since timers do not count the time of a suspend */
#define RETRY_FIRST 10000 /* the database says "not yet": the clocks are that close */
#define RETRY_LAST  1000000
#define RETRY_LANE  100000

#define AT_ONCE_MAX 512

/* An open breaker that will close by itself. */
struct ending {
	char name[CBSHM_NAME_ROOM];
	struct recovery *recovery;
	struct event *timer;
	int64_t until; /* on the database's clock */
	int64_t retry; /* the pause after the next attempt that changes nothing */
	bool due;
	bool asked;
	bool gone;           /* while it was asked for */
	struct ending *next; /* of those that are due */
	struct ending **previous;
};

struct recovery {
	struct agent *agent;
	void *endings; /* a tree by name */
	struct ending *due;
	struct ending **due_last;
	struct ending *asked[AT_ONCE_MAX];
	unsigned asked_count;
	unsigned moment;  /* of the mirror, when they were asked for */
	unsigned at_once; /* how many go into the next transaction */
	uint64_t closed;
	struct event *kick;
};

/* The row of a name that is locked by somebody else is left to the next attempt. */
static const char sql_patience[] = "SELECT pg_catalog.set_config('lock_timeout', '100ms', true)";
/* The names come sorted: locks are taken in the same order by every agent. */
static const char sql_recover[] =
	"SELECT n, cbshm.recover(n) FROM pg_catalog.unnest($1::pg_catalog.text[]) AS n";
static const char sql_rows[] = MIRROR_SELECT_NAMES;

static void run(struct recovery *recovery);

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct ending *)a)->name, ((const struct ending *)b)->name);
}

/* ---- the timers ---- */

static void set_timer(struct ending *ending, int64_t microseconds)
{
	const struct timeval delay = {.tv_sec = microseconds / 1000000,
				      .tv_usec = microseconds % 1000000};

	event_add(ending->timer, &delay);
}

static void make_due(struct ending *ending)
{
	struct recovery *recovery = ending->recovery;

	if (ending->due || ending->asked)
		return;
	ending->due = true;
	ending->next = NULL;
	ending->previous = recovery->due_last;
	*recovery->due_last = ending;
	recovery->due_last = &ending->next;
	event_active(recovery->kick, EV_TIMEOUT, 0);
}

static void take_from_due(struct ending *ending)
{
	if (!ending->due)
		return;
	*ending->previous = ending->next;
	if (ending->next != NULL)
		ending->next->previous = ending->previous;
	else
		ending->recovery->due_last = ending->previous;
	ending->due = false;
}

static int64_t remaining(const struct ending *ending)
{
	const int64_t deadline =
		segment_writer_deadline(ending->recovery->agent->segment, ending->until);
	const int64_t now = clock_microseconds(CLOCK_BOOTTIME);

	/* Rounded up: not yet over is not over. */
	return deadline / 1000 + 1 - now;
}

static void wait_for_end(struct ending *ending)
{
	const int64_t left = remaining(ending);

	if (left <= 0)
		make_due(ending);
	else
		set_timer(ending, left < TIMER_MAX ? left : TIMER_MAX);
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
	(void)fd;
	(void)what;
	wait_for_end(arg);
}

static void ending_free(void *arg)
{
	struct ending *ending = arg;

	event_free(ending->timer);
	free(ending);
}

static struct ending *find(struct recovery *recovery, const char *name)
{
	struct ending key;
	void *found;

	if (strlen(name) >= sizeof(key.name))
		return NULL;
	strcpy(key.name, name);
	found = tfind(&key, &recovery->endings, by_name);
	return found == NULL ? NULL : *(struct ending **)found;
}

void recovery_forget(struct recovery *recovery, const char *name)
{
	struct ending *ending;

	if (recovery->endings == NULL || (ending = find(recovery, name)) == NULL)
		return;
	tdelete(ending, &recovery->endings, by_name);
	take_from_due(ending);
	event_del(ending->timer);
	if (ending->asked)
		ending->gone = true; /* freed when its transaction has ended */
	else
		ending_free(ending);
}

void recovery_note(struct recovery *recovery, const struct breaker_row *row)
{
	struct ending *ending;

	if (!row->disabled || !row->auto_recover || row->disabled_until == INT64_MIN) {
		recovery_forget(recovery, row->name);
		return;
	}
	ending = find(recovery, row->name);
	if (ending == NULL) {
		ending = memory_new(1, sizeof(*ending));
		strncpy(ending->name, row->name, sizeof(ending->name) - 1);
		ending->recovery = recovery;
		ending->timer = evtimer_new(recovery->agent->base, on_timer, ending);
		ending->retry = RETRY_FIRST;
		if (tsearch(ending, &recovery->endings, by_name) == NULL)
			abort();
	} else if (ending->until == row->disabled_until) {
		return;
	}
	ending->until = row->disabled_until;
	ending->retry = RETRY_FIRST;
	take_from_due(ending);
	if (!ending->asked)
		wait_for_end(ending);
}

/* ---- the transaction ---- */

static void try_later(struct ending *ending)
{
	const int64_t left = remaining(ending);

	set_timer(ending, left > ending->retry ? left : ending->retry);
	ending->retry = ending->retry * 2 < RETRY_LAST ? ending->retry * 2 : RETRY_LAST;
}

/* What is still there has not been closed: not yet due, locked, or the transaction has failed. */
static void release_asked(struct recovery *recovery, bool again)
{
	struct ending *ending;

	for (unsigned i = 0; i < recovery->asked_count; i++) {
		ending = recovery->asked[i];
		ending->asked = false;
		if (ending->gone)
			ending_free(ending);
		else if (again)
			make_due(ending);
		else
			try_later(ending);
	}
	recovery->asked_count = 0;
}

static void note_recovered(struct recovery *recovery, const PGresult *result)
{
	for (int i = 0; i < PQntuples(result); i++) {
		if (*PQgetvalue(result, i, 1) != 't')
			continue;
		recovery->closed++;
		log_event(LOG_LEVEL_INFO, "recovered", "breaker=%s",
			  LOG_VALUE(PQgetvalue(result, i, 0)));
	}
}

/* Names that have no row any more. */
static void drop_gone(struct recovery *recovery, const PGresult *rows)
{
	bool found;

	for (unsigned i = 0; i < recovery->asked_count; i++) {
		found = recovery->asked[i]->gone;
		for (int j = 0; !found && j < PQntuples(rows); j++)
			found = strcmp(PQgetvalue(rows, j, 0), recovery->asked[i]->name) == 0;
		if (!found)
			mirror_gone(recovery->agent->mirror, recovery->asked[i]->name);
	}
}

static void on_recovered(struct unit *unit, enum unit_end end, void *arg)
{
	struct recovery *recovery = arg;
	const PGresult *rows;

	switch (end) {
	case UNIT_DONE:
		rows = unit_result(unit, 3);
		note_recovered(recovery, unit_result(unit, 2));
		mirror_apply(recovery->agent->mirror, rows, recovery->moment);
		if (PQntuples(rows) < (int)recovery->asked_count)
			drop_gone(recovery, rows);
		release_asked(recovery, false);
		recovery->at_once =
			recovery->at_once * 2 < AT_ONCE_MAX ? recovery->at_once * 2 : AT_ONCE_MAX;
		break;
	case UNIT_FAILED:
		log_event(LOG_LEVEL_DEBUG, "recovery_failed", "names=%u reason=%s",
			  recovery->asked_count, LOG_VALUE(PQresultErrorMessage(unit_error(unit))));
		/* One locked row fails the whole transaction: smaller ones, until it stands alone. */
		recovery->at_once = recovery->asked_count > 1 ? recovery->asked_count / 2 : 1;
		release_asked(recovery, recovery->asked_count > 1);
		break;
	case UNIT_LOST:
		release_asked(recovery, true);
		break;
	}
	run(recovery);
}

static int by_name_of(const void *a, const void *b)
{
	return by_name(*(struct ending *const *)a, *(struct ending *const *)b);
}

static void take_due(struct recovery *recovery)
{
	while (recovery->due != NULL && recovery->asked_count < recovery->at_once) {
		struct ending *ending = recovery->due;

		take_from_due(ending);
		ending->asked = true;
		recovery->asked[recovery->asked_count++] = ending;
	}
	qsort(recovery->asked, recovery->asked_count, sizeof(*recovery->asked), by_name_of);
}

static void run(struct recovery *recovery)
{
	struct connection *lane;
	struct text names = {0};
	struct unit *unit;
	char *list;

	if (recovery->due == NULL || recovery->asked_count > 0 ||
	    database_state(recovery->agent->database) != DATABASE_LIVE)
		return;
	lane = database_lane(recovery->agent->database);
	if (lane == NULL) {
		event_add(recovery->kick, &(struct timeval){.tv_usec = RETRY_LANE});
		return;
	}
	take_due(recovery);
	for (unsigned i = 0; i < recovery->asked_count; i++)
		text_array_add(&names, recovery->asked[i]->name);
	list = text_array_end(&names);
	unit = unit_new(on_recovered, recovery);
	unit_add(unit, "BEGIN", 0);
	unit_add(unit, sql_patience, 0);
	unit_add(unit, sql_recover, 1, memory_copy(list));
	unit_prepared(unit);
	unit_add(unit, sql_rows, 1, list);
	unit_binary(unit);
	unit_prepared(unit);
	unit_add(unit, "COMMIT", 0);
	recovery->moment = mirror_moment(recovery->agent->mirror);
	connection_run(lane, unit);
}

static void on_kick(evutil_socket_t fd, short what, void *arg)
{
	(void)fd;
	(void)what;
	run(arg);
}

void recovery_ready(struct recovery *recovery)
{
	run(recovery);
}

static void again(const void *node, VISIT visit, void *arg)
{
	struct ending *ending = *(struct ending *const *)node;

	(void)arg;
	if ((visit == preorder || visit == leaf) && !ending->due && !ending->asked)
		wait_for_end(ending);
}

void recovery_clock_changed(struct recovery *recovery)
{
	twalk_r(recovery->endings, again, NULL);
}

uint64_t recovery_closed(const struct recovery *recovery)
{
	return recovery->closed;
}

struct recovery *recovery_new(struct agent *agent)
{
	struct recovery *recovery = memory_new(1, sizeof(*recovery));

	recovery->agent = agent;
	recovery->due_last = &recovery->due;
	recovery->at_once = AT_ONCE_MAX;
	recovery->kick = evtimer_new(agent->base, on_kick, recovery);
	return recovery;
}

void recovery_free(struct recovery *recovery)
{
	if (recovery == NULL)
		return;
	release_asked(recovery, false);
	tdestroy(recovery->endings, ending_free);
	event_free(recovery->kick);
	free(recovery);
}
