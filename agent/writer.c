/*
 * writer.c - queues requests, carries them out, and finds out what became of them
 *
 * SPDX-License-Identifier: ISC
 *
 * A request goes one of three ways. Writes wait in the queue while a transaction is under way and
 * all become the next one. A write whose row somebody else holds locked, and a change of policy, go to
 * the breaker's lane, where waiting hurts nobody else; later writes to the same breaker line up there. Reads
 * that ask the database are query.c's.
 *
 * Nothing is answered before its outcome is certain; if it cannot become certain, that is the answer.
 */
#include <config.h>

#include <assert.h>
#include <event2/event.h>
#include <inttypes.h>
#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <time.h>

#include "agent/agent.h"
#include "agent/batch.h"
#include "agent/config.h"
#include "agent/connection.h"
#include "agent/database.h"
#include "agent/failure.h"
#include "agent/fleet.h"
#include "agent/log.h"
#include "agent/mirror.h"
#include "agent/query.h"
#include "agent/segment_writer.h"
#include "agent/tally.h"
#include "agent/text.h"
#include "agent/writer.h"

/* Microseconds. */
#define SWEEP_EVERY    20000
#define UNANSWERED_MAX 1000000 /* past its deadline, before what is under way is called unknown */
/* Milliseconds that one breaker may wait for its lock, alone and while others wait in their lanes. */
#define PATIENCE_ALONE  500
#define PATIENCE_SHARED 50

/* Requests in order. */
struct tickets {
	struct ticket *first;
	struct ticket **last;
};

/* The writes to one breaker that have to wait for its row; "" = the fleet's policy. */
struct lane {
	char *name;
	struct tickets tickets;
	unsigned batches;   /* under way, or lost and being looked up */
	int64_t not_before; /* CLOCK_MONOTONIC; 0 = its last try did not clash */
	TAILQ_ENTRY(lane) link;
};

struct writer {
	struct agent *agent;
	struct tickets queue;
	struct batch *active; /* over the write connection */
	struct batch *lane_active;
	struct batch *lost;       /* outcome not known yet */
	struct batch *loading;    /* committed, waiting for the mirror */
	TAILQ_HEAD(, lane) lanes; /* the first one is served next */
	void *lanes_by_name;
	struct event *kick;
	struct event *sweep;
	struct tally tally;
};

static const char sql_xact_status[] = "SELECT pg_catalog.pg_xact_status($1::pg_catalog.xid8)";
/*
 * Its commit waits, as every later one does, until a synchronous standby has all that was committed before: whoever was
 * ended while it waited itself has committed for this server only.
 */
static const char sql_settled[] = "SELECT pg_catalog.pg_logical_emit_message(true, 'cbshm', '')";

static void finish(struct batch *batch);
static void run_queue(struct writer *writer);

/* ---- tickets ---- */

static void tickets_init(struct tickets *tickets)
{
	tickets->first = NULL;
	tickets->last = &tickets->first;
}

static void tickets_append(struct tickets *tickets, struct ticket *ticket)
{
	ticket->next = NULL;
	*tickets->last = ticket;
	tickets->last = &ticket->next;
}

static void tickets_prepend(struct tickets *tickets, struct ticket *ticket)
{
	ticket->next = tickets->first;
	tickets->first = ticket;
	if (ticket->next == NULL)
		tickets->last = &ticket->next;
}

static struct ticket *tickets_take(struct tickets *tickets)
{
	struct ticket *ticket = tickets->first;

	tickets->first = ticket->next;
	if (tickets->first == NULL)
		tickets->last = &tickets->first;
	return ticket;
}

static const char unknown_text[] = "the connection to Postgres was lost during the commit; "
				   "whether it was applied is not known";

/* Says that nothing was applied; which is true of what was sent last, but not of what was sent before that. */
static bool is_refusal(enum answer_status status)
{
	return status == ANSWER_DATABASE_UNAVAILABLE || status == ANSWER_BUSY ||
	       status == ANSWER_TIMEOUT || status == ANSWER_LIMIT ||
	       status == ANSWER_DATABASE_ERROR;
}

static void answer(struct ticket *ticket, const struct answer *answer)
{
	static const struct answer unknown = {.status = ANSWER_OUTCOME_UNKNOWN,
					      .message = unknown_text};
	struct request *request = ticket->request;

	ticket->request = NULL;
	ticket->finished = true;
	if (request != NULL)
		request->done(request,
			      ticket->uncertain && is_refusal(answer->status) ? &unknown : answer);
}

static void answer_status(struct ticket *ticket, enum answer_status status, const char *message)
{
	answer(ticket, &(struct answer){.status = status, .message = message});
}

static const char *away(const char *trouble, char room[640])
{
	snprintf(room, 640, "Postgres cannot be written to, nothing was applied: %s",
		 *trouble != '\0' ? trouble : "the agent is not connected");
	return room;
}

static const char timeout_text[] =
	"the deadline passed before Postgres was asked, nothing was applied";
static const char busy_text[] = "somebody else holds the breaker's row locked, nothing was applied";
static const char clash_text[] =
	"it clashed with what others do at the same time, again and again; "
	"nothing was applied";

/* ---- lanes ---- */

static int lane_by_name(const void *a, const void *b)
{
	return strcmp(((const struct lane *)a)->name, ((const struct lane *)b)->name);
}

static const char *lane_key(const struct request *request)
{
	return request->name != NULL ? request->name : "";
}

static struct lane *lane_find(struct writer *writer, const struct request *request)
{
	struct lane key = {.name = (char *)(uintptr_t)lane_key(request)};
	void *found;

	if (writer->lanes_by_name == NULL)
		return NULL;
	found = tfind(&key, &writer->lanes_by_name, lane_by_name);
	return found == NULL ? NULL : *(struct lane **)found;
}

/* Why its requests are still waiting. */
static const char *lane_excuse(const struct lane *lane)
{
	return lane->not_before != 0 ? clash_text : busy_text;
}

static struct lane *lane_make(struct writer *writer, const struct request *request)
{
	struct lane *lane = lane_find(writer, request);

	if (lane != NULL)
		return lane;
	lane = memory_new(1, sizeof(*lane));
	lane->name = memory_copy(lane_key(request));
	tickets_init(&lane->tickets);
	if (tsearch(lane, &writer->lanes_by_name, lane_by_name) == NULL)
		abort();
	TAILQ_INSERT_TAIL(&writer->lanes, lane, link);
	return lane;
}

/* Its turn is over: away with it if nobody waits, else behind the others. */
static void lane_done(struct writer *writer, struct lane *lane)
{
	TAILQ_REMOVE(&writer->lanes, lane, link);
	if (lane->tickets.first != NULL || lane->batches > 0) {
		TAILQ_INSERT_TAIL(&writer->lanes, lane, link);
		return;
	}
	tdelete(lane, &writer->lanes_by_name, lane_by_name);
	free(lane->name);
	free(lane);
}

/* ---- what becomes of a transaction ---- */

/* Puts the unanswered requests of a batch back in front, in their order. */
static void put_back(struct batch *batch)
{
	struct tickets *queue = batch->lane != NULL ? &batch->lane->tickets : &batch->writer->queue;

	for (unsigned i = batch->count; i-- > 0;) {
		struct ticket *ticket = batch->tickets[i];

		if (ticket->finished)
			continue;
		tickets_prepend(queue, ticket);
		batch->tickets[i] = NULL;
	}
}

/* Those with a request id are sent again: they are applied once, and answered as they were the first time. */
static unsigned answer_unknown(struct batch *batch)
{
	unsigned repeated = 0;

	for (unsigned i = 0; i < batch->count; i++) {
		struct ticket *ticket = batch->tickets[i];

		if (ticket->finished)
			continue;
		ticket->uncertain = ticket->request->request_id != NULL;
		if (!ticket->uncertain)
			answer_status(ticket, ANSWER_OUTCOME_UNKNOWN, unknown_text);
		repeated += ticket->uncertain;
	}
	return repeated;
}

static void answer_all(struct batch *batch, const struct answer *given)
{
	for (unsigned i = 0; i < batch->count; i++) {
		if (!batch->tickets[i]->finished)
			answer(batch->tickets[i], given);
	}
}

/* Requests whose rows are locked line up in their lanes, before any that have come after them. */
static void line_up_locked(struct batch *batch)
{
	struct answer found;

	batch_find_answers(batch);
	for (unsigned i = 0; i < batch->count; i++) {
		struct ticket *ticket = batch->tickets[i];

		if (ticket->finished || batch_answer(batch, i, &found))
			continue;
		tickets_append(&lane_make(batch->writer, ticket->request)->tickets, ticket);
		batch->tickets[i] = NULL;
	}
}

/* No longer under way. */
static void withdraw(struct batch *batch)
{
	struct writer *writer = batch->writer;

	if (writer->active == batch)
		writer->active = NULL;
	if (writer->lane_active == batch)
		writer->lane_active = NULL;
}

/* Tells the clients of a committed batch, while the server is at the next one. */
static void answer_committed(struct batch *batch)
{
	struct writer *writer = batch->writer;
	const bool free_to_go =
		writer->active == batch && database_state(writer->agent->database) == DATABASE_LIVE;
	struct answer found;

	line_up_locked(batch);
	withdraw(batch);
	if (free_to_go)
		run_queue(writer);
	for (unsigned i = 0; i < batch->count; i++) {
		struct ticket *ticket = batch->tickets[i];

		if (ticket == NULL || ticket->finished)
			continue;
		(void)batch_answer(batch, i, &found);
		tally_answer(&writer->tally, ticket->request, &found);
		answer(ticket, &found);
	}
}

static void unlink_batch(struct batch **list, struct batch *batch)
{
	while (*list != NULL && *list != batch)
		list = &(*list)->next;
	if (*list != NULL)
		*list = batch->next;
}

static void on_loaded(void *arg)
{
	struct batch *batch = arg;

	unlink_batch(&batch->writer->loading, batch);
	answer_committed(batch);
	finish(batch);
}

/* It is committed: first the segment shows it, then the clients are told. */
static void committed(struct batch *batch)
{
	struct writer *writer = batch->writer;

	if (batch->report_result != NULL)
		mirror_apply(writer->agent->mirror, batch->report_result, batch->moment);
	if (batch->rows_result != NULL)
		mirror_apply(writer->agent->mirror, batch->rows_result, batch->moment);
	batch_note_counts(batch, writer->agent->counts);
	if (batch->policy && batch->tickets[0]->request != NULL &&
	    batch->tickets[0]->request->name == NULL) {
		batch->next = writer->loading;
		writer->loading = batch;
		mirror_reload(writer->agent->mirror, on_loaded, batch);
		return;
	}
	answer_committed(batch);
	finish(batch);
}

/* The batch has been dealt with; tickets that are not finished have moved on. */
static void finish(struct batch *batch)
{
	struct writer *writer = batch->writer;
	struct lane *lane = batch->lane;

	withdraw(batch);
	batch_free(batch);
	if (lane != NULL) {
		lane->batches--;
		lane_done(writer, lane);
	}
	event_active(writer->kick, EV_TIMEOUT, 0);
}

static void answer_failure(struct batch *batch, const PGresult *error)
{
	const char *sqlstate = PQresultErrorField(error, PG_DIAG_SQLSTATE);
	struct answer failure = {
		.status = ANSWER_DATABASE_ERROR,
		.sqlstate = sqlstate != NULL ? sqlstate : "XX000",
		.message = PQresultErrorField(error, PG_DIAG_MESSAGE_PRIMARY),
	};

	if (batch->policy && strcmp(failure.sqlstate, "22023") == 0) {
		failure.status = ANSWER_INVALID;
		failure.field = PQresultErrorField(error, PG_DIAG_MESSAGE_DETAIL);
	} else {
		log_problem(LOG_LEVEL_WARNING, "request_failed",
			    "Postgres refused it, and the client knows: the server's log says more",
			    "sqlstate=%s message=%s", failure.sqlstate, LOG_VALUE(failure.message));
	}
	answer_all(batch, &failure);
}

/* One bad request must not take the others with it: the halves are tried, and their halves, until it is alone. */
static void split(struct batch *batch)
{
	batch->tickets[(batch->count - 1) / 2]->boundary = true;
	batch->tickets[batch->count - 1]->boundary = true;
	put_back(batch);
}

/*
 * The only request of a batch goes where it delays nobody but its own breaker: somebody is creating the row and has
 * not committed, or it was a deadlock, a serialization failure or the like, and is tried again after a pause.
 */
static void step_aside(struct batch *batch, enum failure failure)
{
	struct ticket *ticket = batch->tickets[0];
	struct lane *lane = batch->lane;

	if (lane == NULL && ticket->finished)
		return;
	if (lane == NULL) {
		lane = lane_make(batch->writer, ticket->request);
		tickets_append(&lane->tickets, ticket);
		batch->tickets[0] = NULL;
	} else {
		put_back(batch);
	}
	if (failure == FAILURE_TRANSIENT)
		lane->not_before = clock_microseconds(CLOCK_MONOTONIC) + CLASH_PAUSE;
}

static void failed(struct batch *batch, const PGresult *error)
{
	const char *sqlstate = PQresultErrorField(error, PG_DIAG_SQLSTATE);
	const enum failure failure = failure_classify(error);

	log_event(LOG_LEVEL_DEBUG, "batch_failed", "requests=%u sqlstate=%s message=%s",
		  batch->count, sqlstate != NULL ? sqlstate : "",
		  LOG_VALUE(PQresultErrorField(error, PG_DIAG_MESSAGE_PRIMARY)));
	if (failure == FAILURE_SERVER) {
		database_break(batch->writer->agent->database, PQresultErrorMessage(error));
		put_back(batch);
	} else if (failure == FAILURE_LOCK && batch->lane != NULL) {
		put_back(batch);
	} else if (batch->count > 1) {
		split(batch);
	} else if (failure == FAILURE_LOCK || failure == FAILURE_TRANSIENT) {
		step_aside(batch, failure);
	} else {
		answer_failure(batch, error);
	}
	finish(batch);
}

/* ---- transactions that were lost with their connection ---- */

enum fate { FATE_COMMITTED, FATE_ABORTED, FATE_UNKNOWN };

static void settle(struct batch *batch, enum fate fate)
{
	static const char *const names[] = {"committed", "aborted", "unknown"};
	unsigned repeated = 0;

	unlink_batch(&batch->writer->lost, batch);
	if (fate == FATE_UNKNOWN)
		repeated = answer_unknown(batch);
	log_problem(
		fate == FATE_UNKNOWN ? LOG_LEVEL_WARNING : LOG_LEVEL_INFO, "lost_commit",
		"clients know what became of it; where that is unknown, cbctl log shows what was "
		"applied, and what carries a request id is repeated",
		"requests=%u outcome=%s repeated=%u", batch->count, names[fate], repeated);
	if (fate == FATE_COMMITTED) {
		committed(batch);
		return;
	}
	put_back(batch);
	finish(batch);
}

/* Same server, same timeline; *same_run: and it has not crashed since. */
static bool same_server(const struct batch *batch, bool *same_run)
{
	const char *now = database_incarnation(batch->writer->agent->database);
	const char *run = strrchr(now, '/');

	*same_run = strcmp(now, batch->incarnation) == 0;
	return run != NULL && strncmp(now, batch->incarnation, (size_t)(run - now)) == 0;
}

static void on_status(struct unit *unit, enum unit_end end, void *arg)
{
	struct batch *batch = arg;
	const PGresult *result = unit_result(unit, 0);
	const char *status;
	bool same_run;

	batch->asked = false;
	if (end == UNIT_LOST)
		return;
	(void)same_server(batch, &same_run);
	if (end == UNIT_FAILED) {
		/* An id that the server has not given out yet: it died before anything of it was on disk. */
		status = PQresultErrorField(unit_error(unit), PG_DIAG_SQLSTATE);
		settle(batch, status != NULL && strcmp(status, "22023") == 0 ? FATE_ABORTED
									     : FATE_UNKNOWN);
		return;
	}
	status = PQgetvalue(result, 0, 0);
	if (strcmp(status, "in progress") == 0)
		return; /* the sweep asks again */
	if (strcmp(status, "aborted") == 0)
		settle(batch, FATE_ABORTED);
	else if (strcmp(status, "committed") == 0 && same_run)
		settle(batch, FATE_COMMITTED);
	else
		/* After a crash the id may have been given to another transaction, and that one has committed. */
		settle(batch, FATE_UNKNOWN);
}

static void look_up(struct batch *batch, bool live)
{
	struct text xid = {0};
	struct unit *unit;
	bool same_run;

	if (batch->asked)
		return;
	if (!batch->xid_heard) {
		/* The server sends the id before it begins to commit. */
		settle(batch, batch->heard_all ? FATE_ABORTED : FATE_UNKNOWN);
	} else if (!live) {
		return;
	} else if (batch->xid_value == 0) {
		settle(batch, FATE_COMMITTED); /* it changed nothing */
	} else if (!same_server(batch, &same_run)) {
		settle(batch, FATE_UNKNOWN);
	} else {
		batch->asked = true;
		text_format(&xid, "%" PRIu64, batch->xid_value);
		unit = unit_new(on_status, batch);
		unit_add(unit, sql_xact_status, 1, text_take(&xid));
		unit_add(unit, sql_settled, 0);
		connection_run(database_write(batch->writer->agent->database), unit);
	}
}

static void look_up_all(struct writer *writer, bool live)
{
	struct batch *next;

	for (struct batch *batch = writer->lost; batch != NULL; batch = next) {
		next = batch->next;
		look_up(batch, live);
	}
}

/* The unit is gone with its connection. */
static void lost(struct batch *batch)
{
	struct writer *writer = batch->writer;

	withdraw(batch);
	batch->next = writer->lost;
	writer->lost = batch;
	event_active(writer->kick, EV_TIMEOUT, 0);
}

static void on_batch(struct unit *unit, enum unit_end end, void *arg)
{
	struct batch *batch = arg;
	const PGresult *error = unit_error(unit);
	const PGresult *commit = unit_result(unit, batch->commit);

	/* A server that ends says so in the place of the next result: what comes after it was not carried out. */
	if (error != NULL) {
		failed(batch, error);
		return;
	}
	assert(commit != NULL || end == UNIT_LOST);
	batch_keep_results(batch, unit);
	if (commit == NULL) {
		batch->heard_all = unit_heard_all(unit);
		lost(batch);
		return;
	}
	/* Its word counts, even if the connection ended right after it; but no other goes over that. */
	if (end == UNIT_LOST)
		withdraw(batch);
	if (strcmp(PQcmdStatus((PGresult *)(uintptr_t)commit), "COMMIT") != 0) {
		put_back(batch);
		finish(batch);
		return;
	}
	tally_commit(&batch->writer->tally, batch->count, unit_ended_at(unit) - unit_sent_at(unit));
	committed(batch);
}

static void send_batch(struct batch *batch, struct connection *connection, int patience)
{
	struct database *database = batch->writer->agent->database;

	snprintf(batch->incarnation, sizeof(batch->incarnation), "%s",
		 database_incarnation(database));
	batch->moment = mirror_moment(batch->writer->agent->mirror);
	connection_run(connection, batch_unit(batch, batch->writer->agent, patience, on_batch));
}

/* ---- from the queue ---- */

/* True if its time is over: then it is answered, and gone. */
static bool is_late(struct tickets *tickets, int64_t now, enum answer_status status,
		    const char *message)
{
	if (tickets->first->request->deadline > now)
		return false;
	answer_status(tickets->first, status, message);
	free(tickets_take(tickets));
	return true;
}

/* Room in the segment for this name, if `fresh` others of the batch are new? */
static bool has_room(struct writer *writer, const struct request *request, unsigned *fresh)
{
	struct segment_writer *segment = writer->agent->segment;

	if (segment_writer_version(segment, request->name) != 0)
		return true;
	if (!segment_writer_reserve(segment, *fresh + 1))
		return false;
	++*fresh;
	return true;
}

/* Where the first request of the queue belongs. False: the batch ends before it. */
static bool place(struct writer *writer, struct batch *batch, unsigned *fresh)
{
	struct request *request = writer->queue.first->request;
	struct ticket *ticket;
	struct lane *lane;

	/* A change of policy must not overtake what came before it. */
	if (request->kind == REQUEST_SET_POLICY && batch->count > 0)
		return false;
	if (request->kind != REQUEST_SET_POLICY && !has_room(writer, request, fresh)) {
		if (batch->count > 0)
			return false; /* those before it may be the ones that fill it */
		answer_status(writer->queue.first, ANSWER_LIMIT,
			      segment_writer_has_room(writer->agent->segment)
				      ? "the file system of the segment is full: there is no room "
					"for another breaker"
				      : "the segment has no room for another breaker: raise "
					"capacity in [segment] of the agent's configuration");
		free(tickets_take(&writer->queue));
		return true;
	}
	ticket = tickets_take(&writer->queue);
	lane = request->kind == REQUEST_SET_POLICY ? lane_make(writer, request)
						   : lane_find(writer, request);
	if (lane != NULL)
		tickets_append(&lane->tickets, ticket);
	else
		batch->tickets[batch->count++] = ticket;
	return true;
}

/*
 * Is it still open what became of an earlier transaction? If it was aborted, its requests come again, and before those that
 * have arrived since.
 */
static bool order_is_open(const struct writer *writer)
{
	for (const struct batch *batch = writer->lost; batch != NULL; batch = batch->next) {
		for (unsigned i = 0; batch->lane == NULL && i < batch->count; i++) {
			if (!batch->tickets[i]->finished)
				return true;
		}
	}
	return false;
}

static void run_queue(struct writer *writer)
{
	const int64_t now = clock_microseconds(CLOCK_MONOTONIC);
	struct batch *batch;
	unsigned fresh = 0;
	bool boundary;

	if (writer->active != NULL || writer->queue.first == NULL || order_is_open(writer))
		return;
	batch = batch_new(writer, BATCH_MAX);
	while (writer->queue.first != NULL && batch->count < BATCH_MAX) {
		if (is_late(&writer->queue, now, ANSWER_TIMEOUT, timeout_text))
			continue;
		boundary = writer->queue.first->boundary;
		writer->queue.first->boundary = false;
		if (!place(writer, batch, &fresh))
			break;
		if (boundary && batch->count > 0)
			break;
	}
	if (batch->count == 0) {
		batch_free(batch);
		return;
	}
	writer->active = batch;
	send_batch(batch, database_write(writer->agent->database), 0);
}

/* ---- from the lanes ---- */

static int patience(const struct writer *writer, const struct batch *batch)
{
	const struct lane *first = TAILQ_FIRST(&writer->lanes);
	const int64_t now = clock_microseconds(CLOCK_MONOTONIC);
	int64_t most = TAILQ_NEXT(first, link) == NULL ? PATIENCE_ALONE : PATIENCE_SHARED;

	for (unsigned i = 0; i < batch->count; i++) {
		const int64_t left = (batch->tickets[i]->request->deadline - now) / 1000;

		if (left < most)
			most = left;
	}
	return most > 1 ? (int)most : 1;
}

/* What of a lane goes into its next transaction: a change of policy goes alone. */
static void fill_from_lane(struct batch *batch, struct lane *lane)
{
	const int64_t now = clock_microseconds(CLOCK_MONOTONIC);
	struct ticket *ticket;
	bool last = false;

	while (!last && lane->tickets.first != NULL && batch->count < BATCH_MAX) {
		if (is_late(&lane->tickets, now, ANSWER_BUSY, lane_excuse(lane)))
			continue;
		ticket = lane->tickets.first;
		if (ticket->request->kind == REQUEST_SET_POLICY) {
			if (batch->count > 0)
				return;
			batch->policy = last = true;
		}
		last = last || ticket->boundary;
		ticket->boundary = false;
		batch->tickets[batch->count++] = tickets_take(&lane->tickets);
	}
}

static void run_lane(struct writer *writer)
{
	const int64_t now = clock_microseconds(CLOCK_MONOTONIC);
	struct connection *connection;
	struct batch *batch;
	struct lane *lane;

	/* One that pauses is looked at again by the sweep. */
	TAILQ_FOREACH(lane, &writer->lanes, link)
	{
		if (lane->batches == 0 && lane->tickets.first != NULL && lane->not_before <= now)
			break;
	}
	if (writer->lane_active != NULL || lane == NULL)
		return;
	connection = database_lane(writer->agent->database);
	if (connection == NULL)
		return; /* told when it has opened; the sweep asks as well */
	batch = batch_new(writer, BATCH_MAX);
	batch->lane = lane;
	lane->batches++;
	fill_from_lane(batch, lane);
	lane->not_before = 0;
	if (batch->count == 0) {
		finish(batch);
		return;
	}
	writer->lane_active = batch;
	send_batch(batch, connection, patience(writer, batch));
}

/* ---- deadlines ---- */

/* Answers the waiting requests whose time is over, or all of them. */
static void expire_tickets(struct tickets *tickets, int64_t now, enum answer_status status,
			   const char *message)
{
	struct tickets kept;
	struct ticket *ticket;

	tickets_init(&kept);
	while (tickets->first != NULL) {
		ticket = tickets_take(tickets);
		if (ticket->request->deadline > now) {
			tickets_append(&kept, ticket);
			continue;
		}
		answer_status(ticket, status, message);
		free(ticket);
	}
	if (kept.first == NULL)
		return;
	*tickets = kept;
}

/* message NULL: whatever holds up the lane. */
static void expire_lanes(struct writer *writer, int64_t now, enum answer_status status,
			 const char *message)
{
	struct lane *lane, *next;

	for (lane = TAILQ_FIRST(&writer->lanes); lane != NULL; lane = next) {
		next = TAILQ_NEXT(lane, link);
		expire_tickets(&lane->tickets, now, status,
			       message != NULL ? message : lane_excuse(lane));
		if (lane->tickets.first == NULL && lane->batches == 0)
			lane_done(writer, lane);
	}
}

/* What was sent is not known to have failed: after its deadline nothing can be said but that. */
static void expire_batch(struct batch *batch, int64_t now)
{
	for (unsigned i = 0; batch != NULL && i < batch->count; i++) {
		struct ticket *ticket = batch->tickets[i];

		if (ticket != NULL && !ticket->finished && ticket->request->deadline <= now)
			answer_status(
				ticket, ANSWER_OUTCOME_UNKNOWN,
				"Postgres has not answered; whether it was applied is not known");
	}
}

static void expire(struct writer *writer)
{
	const int64_t now = clock_microseconds(CLOCK_MONOTONIC);
	const char *lane_trouble = database_lane_trouble(writer->agent->database);
	char message[640];

	expire_tickets(&writer->queue, now, ANSWER_TIMEOUT, timeout_text);
	if (*lane_trouble != '\0')
		expire_lanes(writer, now, ANSWER_DATABASE_UNAVAILABLE, away(lane_trouble, message));
	else
		expire_lanes(writer, now, ANSWER_BUSY, NULL);
	expire_batch(writer->active, now - UNANSWERED_MAX);
	expire_batch(writer->lane_active, now - UNANSWERED_MAX);
	for (struct batch *batch = writer->lost; batch != NULL; batch = batch->next)
		expire_batch(batch, now);
}

/* The database is away, and not for a moment only: nothing is kept that may be lost silently. */
static void refuse_waiting(struct writer *writer)
{
	char message[640];

	away(database_trouble(writer->agent->database), message);
	expire_tickets(&writer->queue, INT64_MAX, ANSWER_DATABASE_UNAVAILABLE, message);
	expire_lanes(writer, INT64_MAX, ANSWER_DATABASE_UNAVAILABLE, message);
}

/* ---- the turn of the loop ---- */

bool writer_is_idle(const struct writer *writer)
{
	return writer->queue.first == NULL && writer->active == NULL &&
	       writer->lane_active == NULL && writer->lost == NULL && writer->loading == NULL &&
	       TAILQ_EMPTY(&writer->lanes);
}

static void dispatch(struct writer *writer)
{
	const bool live = database_state(writer->agent->database) == DATABASE_LIVE;

	look_up_all(writer, live);
	if (live) {
		run_queue(writer);
		run_lane(writer);
	} else if (!database_expected(writer->agent->database)) {
		refuse_waiting(writer);
	}
	if (!writer_is_idle(writer) && !event_pending(writer->sweep, EV_TIMEOUT, NULL))
		event_add(writer->sweep, &(struct timeval){.tv_usec = SWEEP_EVERY});
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

void writer_database_changed(struct writer *writer)
{
	event_active(writer->kick, EV_TIMEOUT, 0);
}

void writer_submit(struct writer *writer, struct request *request)
{
	struct ticket *ticket;

	if (query_answers(request->kind)) {
		queries_submit(writer->agent->queries, request);
		return;
	}
	if (request->kind == REQUEST_WAIT_FLEET) {
		fleet_wait(writer->agent->fleet, request);
		return;
	}
	ticket = memory_new(1, sizeof(*ticket));
	ticket->request = request;
	tickets_append(&writer->queue, ticket);
	/* Whatever else this turn of the loop brings goes into the same transaction. */
	event_active(writer->kick, EV_TIMEOUT, 0);
}

const struct tally *writer_tally(const struct writer *writer)
{
	return &writer->tally;
}

int writer_new(struct agent *agent, struct writer **writer)
{
	struct writer *made = memory_new(1, sizeof(*made));

	made->agent = agent;
	tally_init(&made->tally);
	tickets_init(&made->queue);
	TAILQ_INIT(&made->lanes);
	made->kick = evtimer_new(agent->base, on_kick, made);
	made->sweep = evtimer_new(agent->base, on_sweep, made);
	*writer = made;
	return 0;
}

void writer_stop(struct writer *writer)
{
	struct batch *batch;

	/* The connections are closed: what was under way is among the lost. */
	while ((batch = writer->lost) != NULL)
		settle(batch, !batch->xid_heard && batch->heard_all ? FATE_ABORTED : FATE_UNKNOWN);
	/* An answer may bring the next request. */
	while (!writer_is_idle(writer))
		refuse_waiting(writer);
}

void writer_free(struct writer *writer)
{
	if (writer == NULL)
		return;
	writer_stop(writer);
	event_free(writer->kick);
	event_free(writer->sweep);
	free(writer);
}
