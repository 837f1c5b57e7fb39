/*
 * query.c - asks the database on behalf of a client, again if the connection is lost, until the deadline
 *
 * SPDX-License-Identifier: ISC
 *
 * One statement a kind of request, whose only value is the answer's JSON.
 */
#include <config.h>

#include <event2/event.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <time.h>

#include "agent/agent.h"
#include "agent/connection.h"
#include "agent/database.h"
#include "agent/failure.h"
#include "agent/log.h"
#include "agent/query.h"
#include "agent/text.h"

#define SWEEP_EVERY 20000 /* microseconds */

/* A question to the database. */
struct query {
	struct queries *queries;
	struct request *request; /* NULL once answered */
	bool sent;
	int64_t not_before; /* CLOCK_MONOTONIC */
	TAILQ_ENTRY(query) link;
};

struct queries {
	struct agent *agent;
	TAILQ_HEAD(, query) list;
	unsigned sent; /* under way */
	struct event *kick;
	struct event *sweep;
};

/* What else the control connection has to do does not wait for more of them, nor for one longer than that. */
#define SENT_MAX 2

static const char sql_limit[] = "SELECT pg_catalog.set_config('statement_timeout', $1, true)";

/* ---- the statements ---- */

static char *number_text(uint32_t number)
{
	struct text text = {0};

	text_format(&text, "%" PRIu32, number);
	return text_take(&text);
}

static void add_state(struct unit *unit, const struct request *request)
{
	unit_add(unit, "SELECT cbshm.state_json($1)", 1, memory_copy(request->name));
}

static void add_incidents(struct unit *unit, const struct request *request)
{
	unit_add(unit, "SELECT cbshm.incidents_json($1, $2::pg_catalog.bool, $3::pg_catalog.int4)",
		 3, memory_copy(request->name),
		 memory_copy(request->include_resolved ? "true" : "false"),
		 number_text(request->limit));
}

static void add_agents(struct unit *unit, const struct request *request)
{
	unit_add(unit, "SELECT cbshm.agents_json($1::pg_catalog.int4)", 1,
		 number_text(request->limit));
}

static void add_log(struct unit *unit, const struct request *request)
{
	unit_add(unit, "SELECT cbshm.log_json($1, $2::pg_catalog.timestamptz, $3::pg_catalog.int4)",
		 3, memory_copy(request->name), memory_copy(request->since),
		 number_text(request->limit));
}

static void add_alerts(struct unit *unit, const struct request *request)
{
	unit_add(unit, "SELECT cbshm.alerts_json($1::pg_catalog.bool, $2::pg_catalog.int4)", 2,
		 memory_copy(request->include_sent ? "true" : "false"),
		 number_text(request->limit));
}

static void add_retry(struct unit *unit, const struct request *request)
{
	(void)request;
	unit_add(unit, "SELECT cbshm.alerts_retry()", 0);
}

static void add_purge(struct unit *unit, const struct request *request)
{
	(void)request;
	unit_add(unit, "SELECT cbshm.alerts_purge()", 0);
}

/* By kind of request; NULL: none of ours. */
static void (*const statements[REQUEST_KINDS])(struct unit *unit, const struct request *request) = {
	[REQUEST_GET_STATE] = add_state,    [REQUEST_GET_INCIDENTS] = add_incidents,
	[REQUEST_GET_AGENTS] = add_agents,  [REQUEST_GET_LOG] = add_log,
	[REQUEST_GET_ALERTS] = add_alerts,  [REQUEST_RETRY_ALERTS] = add_retry,
	[REQUEST_PURGE_ALERTS] = add_purge,
};

bool query_answers(enum request_kind kind)
{
	return statements[kind] != NULL;
}

/* ---- one query ---- */

static void query_free(struct query *query)
{
	TAILQ_REMOVE(&query->queries->list, query, link);
	free(query);
}

static void answer(struct query *query, const struct answer *answer)
{
	struct request *request = query->request;

	query->request = NULL;
	if (request != NULL)
		request->done(request, answer);
}

static bool changes_alerts(const struct request *request)
{
	return request->kind == REQUEST_RETRY_ALERTS || request->kind == REQUEST_PURGE_ALERTS;
}

/*
 * Asked again within its deadline: a question does no harm. What has failed has changed nothing either; but what was too much for
 * the limit would be again.
 */
static bool may_repeat(const struct query *query, enum unit_end end, const PGresult *error)
{
	if (query->request == NULL)
		return false;
	return (end == UNIT_LOST && !changes_alerts(query->request)) ||
	       (error != NULL && failure_classify(error) == FAILURE_TRANSIENT &&
		strcmp(PQresultErrorField(error, PG_DIAG_SQLSTATE), "57014") != 0);
}

static void on_answer(struct unit *unit, enum unit_end end, void *arg)
{
	struct query *query = arg;
	const PGresult *error = unit_error(unit);
	const PGresult *result = unit_result(unit, 1);
	struct answer found = {.status = ANSWER_OK};

	query->sent = false;
	query->queries->sent--;
	event_active(query->queries->kick, EV_TIMEOUT, 0);
	if (may_repeat(query, end, error)) {
		/* By the sweep; or by whoever tells that the database is there again. */
		if (error != NULL)
			query->not_before = clock_microseconds(CLOCK_MONOTONIC) + CLASH_PAUSE;
		return;
	}
	if (end == UNIT_LOST) {
		found.status = ANSWER_OUTCOME_UNKNOWN;
	} else if (error != NULL) {
		found.status = ANSWER_DATABASE_ERROR;
		found.sqlstate = PQresultErrorField(error, PG_DIAG_SQLSTATE);
		found.message = PQresultErrorField(error, PG_DIAG_MESSAGE_PRIMARY);
	} else if (end == UNIT_DONE && PQgetisnull(result, 0, 0)) {
		found.status = ANSWER_NOT_FOUND;
	} else if (end == UNIT_DONE) {
		found.json = PQgetvalue(result, 0, 0);
	}
	if (end == UNIT_DONE && query->request != NULL && changes_alerts(query->request))
		log_event(LOG_LEVEL_INFO,
			  query->request->kind == REQUEST_RETRY_ALERTS ? "alerts_retried"
								       : "alerts_purged",
			  "count=%s user=%s uid=%ju", found.json,
			  LOG_VALUE(query->request->peer.user),
			  (uintmax_t)query->request->peer.uid);
	answer(query, &found);
	query_free(query);
}

static void send_query(struct query *query)
{
	struct unit *unit = unit_new(on_answer, query);

	unit_add(unit, sql_limit, 1, memory_copy(changes_alerts(query->request) ? "0" : "1000"));
	unit_prepared(unit);
	statements[query->request->kind](unit, query->request);
	unit_prepared(unit);
	query->sent = true;
	query->queries->sent++;
	connection_run(database_control(query->queries->agent->database), unit);
}

/* ---- all of them ---- */

static void expire(struct queries *queries, int64_t now, enum answer_status status,
		   const char *message)
{
	const struct answer given = {.status = status, .message = message};
	struct query *query, *next;

	for (query = TAILQ_FIRST(&queries->list); query != NULL; query = next) {
		next = TAILQ_NEXT(query, link);
		if (query->request == NULL ||
		    (query->request->deadline > now &&
		     (!query->request->abandoned || changes_alerts(query->request))))
			continue;
		answer(query, &given);
		if (!query->sent)
			query_free(query);
	}
}

static void send_all(struct queries *queries)
{
	const int64_t now = clock_microseconds(CLOCK_MONOTONIC);
	struct query *query;

	TAILQ_FOREACH(query, &queries->list, link)
	{
		if (queries->sent < SENT_MAX && !query->sent && query->request != NULL &&
		    query->not_before <= now)
			send_query(query);
	}
}

/* The database is away, and not for a moment only. */
static void refuse_all(struct queries *queries)
{
	const char *trouble = database_trouble(queries->agent->database);
	char message[640];

	snprintf(message, sizeof(message), "Postgres cannot be asked: %s",
		 *trouble != '\0' ? trouble : "the agent is not connected");
	expire(queries, INT64_MAX, ANSWER_DATABASE_UNAVAILABLE, message);
}

static void dispatch(struct queries *queries)
{
	if (database_state(queries->agent->database) == DATABASE_LIVE)
		send_all(queries);
	else if (!database_expected(queries->agent->database))
		refuse_all(queries);
	if (!TAILQ_EMPTY(&queries->list) && !event_pending(queries->sweep, EV_TIMEOUT, NULL))
		event_add(queries->sweep, &(struct timeval){.tv_usec = SWEEP_EVERY});
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
	expire(arg, clock_microseconds(CLOCK_MONOTONIC), ANSWER_TIMEOUT,
	       "the deadline passed before Postgres answered");
	dispatch(arg);
}

void queries_database_changed(struct queries *queries)
{
	event_active(queries->kick, EV_TIMEOUT, 0);
}

void queries_submit(struct queries *queries, struct request *request)
{
	struct query *query = memory_new(1, sizeof(*query));

	query->queries = queries;
	query->request = request;
	TAILQ_INSERT_TAIL(&queries->list, query, link);
	event_active(queries->kick, EV_TIMEOUT, 0);
}

struct queries *queries_new(struct agent *agent)
{
	struct queries *queries = memory_new(1, sizeof(*queries));

	queries->agent = agent;
	TAILQ_INIT(&queries->list);
	queries->kick = evtimer_new(agent->base, on_kick, queries);
	queries->sweep = evtimer_new(agent->base, on_sweep, queries);
	return queries;
}

void queries_stop(struct queries *queries)
{
	/* An answer may bring the next request. */
	while (!TAILQ_EMPTY(&queries->list))
		refuse_all(queries);
}

void queries_free(struct queries *queries)
{
	if (queries == NULL)
		return;
	queries_stop(queries);
	event_free(queries->kick);
	event_free(queries->sweep);
	free(queries);
}
