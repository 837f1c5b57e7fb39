/*
 * connection.c - libpq, without blocking, on the event loop
 *
 * SPDX-License-Identifier: ISC
 *
 * The connection is in pipeline mode all its life. Only one unit is with the server at a time, so that a failed transaction can
 * be rolled back before anything else runs: what makes a pipeline worthwhile is that a unit is one round trip.
 * Not here: when to connect and reconnect (database.c).
 */
#include <config.h>

#include <assert.h>
#include <event2/event.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "agent/connection.h"
#include "agent/log.h"
#include "agent/text.h"

#define PREPARED_MAX 32

struct statement {
	const char *sql;
	int count;
	char *values[UNIT_VALUES_MAX];
	int lengths[UNIT_VALUES_MAX]; /* of values in binary */
	int formats[UNIT_VALUES_MAX]; /* 1 = binary */
	bool binary;                  /* the result is to be */
	bool prepared;
	bool streamed;
	bool flushed;
};

struct unit {
	struct statement statements[UNIT_STATEMENTS_MAX];
	PGresult *results[UNIT_STATEMENTS_MAX];
	unsigned count;
	int failed;   /* the statement, -1 = none */
	bool flushed; /* one of the statements is */
	bool bare;    /* goes without the settings */
	bool heard_all;
	unit_row *row;
	unit_done *done;
	void *arg;
	int64_t sent_at;
	int64_t ended_at;
	struct unit *next;
};

/* What libpq was given and has not yet answered, in order. */
struct expected {
	int statement; /* of the active unit */
	int prepares;  /* the number of the prepared statement that this makes; or one of these */
};

#define IS_STATEMENT (-1)
#define IS_SETTINGS  (-2)

struct connection {
	struct event_base *base;
	const char *name;
	PGconn *pg;
	struct connection_events events;
	void *arg;
	struct event *readable;
	struct event *writable;
	struct event *timeout; /* of the attempt to connect */
	struct event *lost;    /* calls events.lost from the loop itself */
	bool open;
	bool broken;
	bool direct; /* a Unix socket whose other end is a postgres */
	bool ended;  /* the other end has closed it, and all that it sent has been read */
	char message[512];
	char server[128];

	struct unit *active;
	struct unit *first; /* waiting */
	struct unit **last;
	struct expected expected[1 + 2 * UNIT_STATEMENTS_MAX];
	unsigned expected_count;
	unsigned position;

	const char *settings; /* NULL = none */
	const char *settings_values[2];
	bool may_prepare;
	const char *prepared[PREPARED_MAX]; /* the text; statement i is called "cbshm_<i>" */
	int64_t heard_at;                   /* CLOCK_MONOTONIC */
	int64_t asked_at;
};

int64_t clock_microseconds(int clock)
{
	struct timespec now;

	clock_gettime((clockid_t)clock, &now);
	return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* ---- units ---- */

struct unit *unit_new(unit_done *done, void *arg)
{
	struct unit *unit = memory_new(1, sizeof(*unit));

	unit->failed = -1;
	unit->done = done;
	unit->arg = arg;
	return unit;
}

unsigned unit_add(struct unit *unit, const char *sql, int count, ...)
{
	struct statement *statement = &unit->statements[unit->count];
	va_list values;

	assert(unit->count < UNIT_STATEMENTS_MAX && count <= UNIT_VALUES_MAX);
	statement->sql = sql;
	statement->count = count;
	va_start(values, count);
	for (int i = 0; i < count; i++)
		statement->values[i] = va_arg(values, char *);
	va_end(values);
	return unit->count++;
}

unsigned unit_add_binary(struct unit *unit, const char *sql, int count, const struct text *values)
{
	struct statement *statement = &unit->statements[unit->count];

	assert(unit->count < UNIT_STATEMENTS_MAX && count <= UNIT_VALUES_MAX);
	statement->sql = sql;
	statement->count = count;
	for (int i = 0; i < count; i++) {
		statement->values[i] = values[i].data;
		statement->lengths[i] = (int)values[i].length;
		statement->formats[i] = 1;
	}
	return unit->count++;
}

void unit_binary(struct unit *unit)
{
	unit->statements[unit->count - 1].binary = true;
}

void unit_asynchronous(struct unit *unit)
{
	unit_add(unit, "SELECT pg_catalog.set_config('synchronous_commit', 'off', true)", 0);
}

void unit_impatient(struct unit *unit)
{
	unit_add(unit,
		 "SELECT pg_catalog.set_config('synchronous_commit', 'off', true),"
		 " pg_catalog.set_config('lock_timeout', '50ms', true)",
		 0);
}

void unit_prepared(struct unit *unit)
{
	unit->statements[unit->count - 1].prepared = true;
}

void unit_streamed(struct unit *unit, unit_row *row)
{
	unit->statements[unit->count - 1].streamed = true;
	unit->row = row;
}

void unit_flushed(struct unit *unit)
{
	unit->statements[unit->count - 1].flushed = unit->flushed = true;
}

const PGresult *unit_result(const struct unit *unit, unsigned statement)
{
	return unit->results[statement];
}

PGresult *unit_take_result(struct unit *unit, unsigned statement)
{
	PGresult *taken = unit->results[statement];

	unit->results[statement] = NULL;
	return taken;
}

const PGresult *unit_error(const struct unit *unit)
{
	return unit->failed < 0 ? NULL : unit->results[unit->failed];
}

bool unit_heard_all(const struct unit *unit)
{
	return unit->heard_all;
}

int64_t unit_sent_at(const struct unit *unit)
{
	return unit->sent_at;
}

int64_t unit_ended_at(const struct unit *unit)
{
	return unit->ended_at;
}

static void unit_end(struct unit *unit, enum unit_end end)
{
	unit->ended_at = clock_microseconds(CLOCK_BOOTTIME);
	unit->done(unit, end, unit->arg);
	for (unsigned i = 0; i < unit->count; i++) {
		for (int j = 0; j < unit->statements[i].count; j++)
			free(unit->statements[i].values[j]);
		PQclear(unit->results[i]);
	}
	free(unit);
}

/* ---- the end of a connection ---- */

static void free_event(struct event **event)
{
	if (*event != NULL)
		event_free(*event);
	*event = NULL;
}

/*
 * libpq closes the socket as soon as it has seen its end. Its number is somebody else's before long, and as long as the loop
 * knows it as ours, it would hear nothing of the other one.
 */
static void forget_socket(struct connection *connection)
{
	free_event(&connection->readable);
	free_event(&connection->writable);
}

/* Reads what there is; 0 at the end. */
static int consume(struct connection *connection)
{
	const int alive = PQconsumeInput(connection->pg);

	if (PQsocket(connection->pg) < 0)
		forget_socket(connection);
	connection->ended = !alive && PQstatus(connection->pg) == CONNECTION_BAD;
	return alive;
}

static void lose(struct connection *connection, const char *message)
{
	if (connection->broken)
		return;
	connection->broken = true;
	snprintf(connection->message, sizeof(connection->message), "%s",
		 message != NULL && *message != '\0' ? message : "connection lost");
	for (char *p = connection->message + strlen(connection->message) - 1;
	     p > connection->message && *p == '\n'; p--)
		*p = '\0';
	forget_socket(connection);
	event_del(connection->timeout);
	event_active(connection->lost, EV_TIMEOUT, 0);
}

static void on_lost(evutil_socket_t fd, short what, void *arg)
{
	struct connection *connection = arg;

	(void)fd;
	(void)what;
	connection->events.lost(connection, connection->message, connection->arg);
}

static void take_results(struct connection *connection);

/*
 * Gives up a connection whose other end is alive, at a point that both sides know: from the shutdown on the server can
 * send nothing over a Unix socket, and a server that cannot send ends before its next statement; what it sent before is
 * read here.
 */
static void cut_off(struct connection *connection)
{
	int alive = 1;

	connection->open = false; /* nothing more goes out */
	if (shutdown(PQsocket(connection->pg), SHUT_RD) != 0)
		return;
	while (alive && connection->active != NULL && !connection->broken) {
		alive = consume(connection);
		take_results(connection);
	}
}

void connection_free(struct connection *connection)
{
	struct unit *unit;

	if (connection == NULL)
		return;
	if (connection->direct && !connection->broken && connection->active != NULL &&
	    connection->active->flushed)
		cut_off(connection);
	connection->broken = true;
	forget_socket(connection);
	free_event(&connection->timeout);
	free_event(&connection->lost);
	if (connection->active != NULL) {
		connection->active->heard_all = connection->direct && connection->ended;
		unit_end(connection->active, UNIT_LOST);
	}
	while ((unit = connection->first) != NULL) {
		connection->first = unit->next;
		unit->heard_all = true;
		unit_end(unit, UNIT_LOST);
	}
	PQfinish(connection->pg);
	free(connection);
}

/* ---- sending ---- */

static void watch(struct connection *connection, short what);

static void flush(struct connection *connection)
{
	const int left = PQflush(connection->pg);

	if (PQsocket(connection->pg) < 0)
		lose(connection, PQerrorMessage(connection->pg));
	else if (left > 0)
		event_add(connection->writable, NULL);
	/* left < 0: the reading side says what is wrong, after what the server has still sent. */
}

static void expect(struct connection *connection, int statement, int prepares)
{
	assert(connection->expected_count <
	       sizeof(connection->expected) / sizeof(*connection->expected));
	connection->expected[connection->expected_count++] =
		(struct expected){.statement = statement, .prepares = prepares};
}

/* Which prepared statement stands for it; *missing: it has yet to be made. -1: none. */
static int find_prepared(const struct connection *connection, const char *sql, bool *missing)
{
	*missing = false;
	for (int i = 0; connection->may_prepare && i < PREPARED_MAX; i++) {
		if (connection->prepared[i] == sql)
			return i;
		if (connection->prepared[i] == NULL) {
			*missing = true;
			return i;
		}
	}
	return -1;
}

static bool send_statement(struct connection *connection, int number)
{
	const struct statement *statement = &connection->active->statements[number];
	const char *const *values = (const char *const *)statement->values;
	const int binary = statement->binary ? 1 : 0;
	char name[32];
	bool missing = false, sent;
	int prepared = -1;

	if (statement->prepared)
		prepared = find_prepared(connection, statement->sql, &missing);
	snprintf(name, sizeof(name), "cbshm_%d", prepared);
	if (missing) {
		if (!PQsendPrepare(connection->pg, name, statement->sql, 0, NULL))
			return false;
		expect(connection, number, prepared);
		/* Marked now, so that the next one takes another number; unmarked if it fails. */
		connection->prepared[prepared] = statement->sql;
	}
	if (prepared >= 0)
		sent = PQsendQueryPrepared(connection->pg, name, statement->count, values,
					   statement->lengths, statement->formats, binary);
	else
		sent = PQsendQueryParams(connection->pg, statement->sql, statement->count, NULL,
					 values, statement->lengths, statement->formats, binary);
	if (!sent)
		return false;
	expect(connection, number, IS_STATEMENT);
	return !statement->flushed || PQsendFlushRequest(connection->pg);
}

/* In the same implicit transaction as what follows, so that a pooler gives both to the same session. */
static bool send_settings(struct connection *connection)
{
	if (connection->settings == NULL || connection->may_prepare || connection->active->bare)
		return true;
	expect(connection, 0, IS_SETTINGS);
	return PQsendQueryParams(connection->pg, connection->settings, 2, NULL,
				 connection->settings_values, NULL, NULL, 0);
}

/* Before the results of the next statement are taken. */
static void begin_results(struct connection *connection)
{
	const struct expected *next = &connection->expected[connection->position];

	if (connection->position < connection->expected_count && next->prepares == IS_STATEMENT &&
	    connection->active->statements[next->statement].streamed)
		PQsetSingleRowMode(connection->pg);
}

static void send_next(struct connection *connection)
{
	struct unit *unit = connection->first;

	if (unit == NULL || connection->active != NULL || !connection->open || connection->broken)
		return;
	connection->first = unit->next;
	if (connection->first == NULL)
		connection->last = &connection->first;
	connection->active = unit;
	connection->expected_count = connection->position = 0;
	connection->asked_at = clock_microseconds(CLOCK_MONOTONIC);
	unit->sent_at = clock_microseconds(CLOCK_BOOTTIME);
	bool sent = send_settings(connection);
	for (unsigned i = 0; sent && i < unit->count; i++)
		sent = send_statement(connection, (int)i);
	if (!sent || !PQpipelineSync(connection->pg)) {
		lose(connection, PQerrorMessage(connection->pg));
		return;
	}
	begin_results(connection);
	flush(connection);
}

void connection_run(struct connection *connection, struct unit *unit)
{
	*connection->last = unit;
	connection->last = &unit->next;
	send_next(connection);
}

static void rolled_back(struct unit *unit, enum unit_end end, void *arg)
{
	(void)unit;
	(void)end;
	(void)arg;
}

/* A transaction that a failed unit left open ends before the next unit begins. */
static void roll_back(struct connection *connection)
{
	struct unit *unit = unit_new(rolled_back, NULL);

	unit_add(unit, "ROLLBACK", 0);
	unit->bare = true;
	unit->next = connection->first;
	if (connection->first == NULL)
		connection->last = &unit->next;
	connection->first = unit;
}

/* ---- receiving ---- */

/* The server has forgotten a prepared statement, as behind a pooler, or it does not fit any more. */
static void distrust_prepared(struct connection *connection, const PGresult *result)
{
	const char *state = PQresultErrorField(result, PG_DIAG_SQLSTATE);

	if (state == NULL || (strcmp(state, "26000") != 0 && strcmp(state, "0A000") != 0 &&
			      strcmp(state, "42P05") != 0))
		return;
	log_problem(
		LOG_LEVEL_WARNING, "prepared_statements_off",
		"a pooler in between has lost a statement, so each is parsed anew: connect to the "
		"server itself, or let the pooler keep them (max_prepared_statements)",
		"connection=%s sqlstate=%s", connection->name, state);
	connection->may_prepare = false;
}

static void take_failure(struct connection *connection, const struct expected *expected,
			 PGresult *result)
{
	struct unit *unit = connection->active;

	if (expected->prepares >= 0)
		connection->prepared[expected->prepares] = NULL;
	if (PQresultStatus(result) == PGRES_PIPELINE_ABORTED || unit->failed >= 0) {
		PQclear(result);
		return;
	}
	/* libpq's own words, not the server's: nobody knows what the server has done. */
	if (PQresultErrorField(result, PG_DIAG_SQLSTATE) == NULL) {
		lose(connection, PQresultErrorMessage(result));
		PQclear(result);
		return;
	}
	distrust_prepared(connection, result);
	unit->failed = expected->statement;
	PQclear(unit->results[expected->statement]);
	unit->results[expected->statement] = result;
}

static void take_result(struct connection *connection, PGresult *result)
{
	struct unit *unit = connection->active;
	const struct expected *expected = &connection->expected[connection->position];

	switch (PQresultStatus(result)) {
	case PGRES_SINGLE_TUPLE:
		unit->row(result, unit->arg);
		PQclear(result);
		break;
	case PGRES_TUPLES_OK:
	case PGRES_COMMAND_OK:
		if (expected->prepares != IS_STATEMENT) {
			PQclear(result);
		} else {
			PQclear(unit->results[expected->statement]);
			unit->results[expected->statement] = result;
		}
		break;
	default:
		take_failure(connection, expected, result);
		break;
	}
}

static void finish_active(struct connection *connection)
{
	struct unit *unit = connection->active;

	connection->active = NULL;
	if (PQtransactionStatus(connection->pg) != PQTRANS_IDLE)
		roll_back(connection);
	unit_end(unit, unit->failed < 0 ? UNIT_DONE : UNIT_FAILED);
	send_next(connection);
}

/*
 * Behind the results of all statements. An error: the commit that ends a unit without a transaction of its own has failed. Anything
 * else, the server's FATAL or libpq's own words, is about the connection alone: what the results say has happened.
 */
static void take_late_failure(struct connection *connection, PGresult *result)
{
	struct unit *unit = connection->active;
	const struct expected last = {.statement = (int)unit->count - 1, .prepares = IS_STATEMENT};
	const char *severity = PQresultErrorField(result, PG_DIAG_SEVERITY_NONLOCALIZED);

	if (severity != NULL && strcmp(severity, "ERROR") == 0) {
		take_failure(connection, &last, result);
	} else {
		lose(connection, PQresultErrorMessage(result));
		PQclear(result);
	}
}

static void take_results(struct connection *connection)
{
	PGresult *result;

	while (!connection->broken && connection->active != NULL && !PQisBusy(connection->pg)) {
		result = PQgetResult(connection->pg);
		if (result == NULL) {
			connection->position++;
			begin_results(connection);
		} else if (PQresultStatus(result) == PGRES_PIPELINE_SYNC) {
			PQclear(result);
			finish_active(connection);
		} else if (connection->position >= connection->expected_count) {
			take_late_failure(connection, result);
			if (PQstatus(connection->pg) == CONNECTION_BAD)
				break;
		} else {
			take_result(connection, result);
			if (PQstatus(connection->pg) == CONNECTION_BAD)
				break;
		}
	}
}

static void take_notifications(struct connection *connection)
{
	PGnotify *notify;

	while ((notify = PQnotifies(connection->pg)) != NULL) {
		if (connection->events.notified != NULL)
			connection->events.notified(notify->relname, notify->extra,
						    connection->arg);
		PQfreemem(notify);
	}
}

static void on_ready(evutil_socket_t fd, short what, void *arg)
{
	struct connection *connection = arg;
	int alive = 1;

	(void)fd;
	if (connection->broken)
		return;
	if ((what & EV_READ) != 0) {
		connection->heard_at = clock_microseconds(CLOCK_MONOTONIC);
		alive = consume(connection);
	}
	/* Also after a failure: what the server sent before it is still there. */
	take_notifications(connection);
	take_results(connection);
	take_notifications(connection);
	if (!alive || PQstatus(connection->pg) == CONNECTION_BAD)
		lose(connection, PQerrorMessage(connection->pg));
	else if ((what & EV_WRITE) != 0)
		flush(connection);
}

/* ---- connecting ---- */

static void on_notice(void *arg, const PGresult *result)
{
	const struct connection *connection = arg;
	const char *text = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);

	log_event(LOG_LEVEL_DEBUG, "server_notice", "connection=%s message=%s", connection->name,
		  LOG_VALUE(text));
}

/* Is it the server itself that has the other end of a Unix socket, and no pooler? */
static bool is_direct(int socket)
{
	struct ucred peer;
	socklen_t size = sizeof(peer);
	char path[64], name[32] = "";
	FILE *file;

	if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || peer.pid <= 0)
		return false;
	snprintf(path, sizeof(path), "/proc/%d/comm", (int)peer.pid);
	file = fopen(path, "re");
	if (file == NULL)
		return false;
	if (fgets(name, sizeof(name), file) == NULL)
		*name = '\0';
	fclose(file);
	return strcmp(name, "postgres\n") == 0 || strcmp(name, "postmaster\n") == 0;
}

static void opened(struct connection *connection)
{
	const int socket = PQsocket(connection->pg);

	event_del(connection->timeout);
	if (PQsetnonblocking(connection->pg, 1) != 0 || !PQenterPipelineMode(connection->pg)) {
		lose(connection, PQerrorMessage(connection->pg));
		return;
	}
	PQsetNoticeReceiver(connection->pg, on_notice, connection);
	forget_socket(connection);
	connection->readable =
		event_new(connection->base, socket, EV_READ | EV_PERSIST, on_ready, connection);
	connection->writable = event_new(connection->base, socket, EV_WRITE, on_ready, connection);
	event_add(connection->readable, NULL);
	connection->open = true;
	connection->direct = is_direct(socket);
	connection->heard_at = clock_microseconds(CLOCK_MONOTONIC);
	snprintf(connection->server, sizeof(connection->server), "%s:%s", PQhost(connection->pg),
		 PQport(connection->pg));
	connection->events.opened(connection, connection->arg);
	send_next(connection);
}

static void on_connecting(evutil_socket_t fd, short what, void *arg)
{
	struct connection *connection = arg;

	(void)fd;
	(void)what;
	if (connection->broken)
		return;
	switch (PQconnectPoll(connection->pg)) {
	case PGRES_POLLING_READING:
		watch(connection, EV_READ);
		break;
	case PGRES_POLLING_WRITING:
		watch(connection, EV_WRITE);
		break;
	case PGRES_POLLING_OK:
		opened(connection);
		break;
	default:
		lose(connection, PQerrorMessage(connection->pg));
		break;
	}
}

/* libpq changes the socket as it tries one address after another, so the event is made anew. */
static void watch(struct connection *connection, short what)
{
	free_event(&connection->readable);
	connection->readable = event_new(connection->base, PQsocket(connection->pg), what,
					 on_connecting, connection);
	event_add(connection->readable, NULL);
}

static void on_timeout(evutil_socket_t fd, short what, void *arg)
{
	(void)fd;
	(void)what;
	lose(arg, "the server did not answer in time");
}

struct connection *connection_open(struct event_base *base, const char *name,
				   const char *const *keywords, const char *const *values,
				   int64_t timeout, const struct connection_events *events,
				   void *arg)
{
	const struct timeval limit = {.tv_sec = timeout / 1000000, .tv_usec = timeout % 1000000};
	struct connection *connection = memory_new(1, sizeof(*connection));

	connection->base = base;
	connection->name = name;
	connection->events = *events;
	connection->arg = arg;
	connection->last = &connection->first;
	connection->timeout = evtimer_new(base, on_timeout, connection);
	connection->lost = evtimer_new(base, on_lost, connection);
	event_add(connection->timeout, &limit);
	connection->pg = PQconnectStartParams(keywords, values, 0);
	if (PQstatus(connection->pg) == CONNECTION_BAD)
		lose(connection, PQerrorMessage(connection->pg));
	else
		watch(connection, EV_WRITE);
	return connection;
}

/* ---- questions ---- */

void connection_allow_prepare(struct connection *connection, bool allow)
{
	connection->may_prepare = allow;
}

void connection_settings(struct connection *connection, const char *sql, const char *first,
			 const char *second)
{
	connection->settings = sql;
	connection->settings_values[0] = first;
	connection->settings_values[1] = second;
}

int64_t connection_silence(const struct connection *connection)
{
	const int64_t since = connection->heard_at > connection->asked_at ? connection->heard_at
									  : connection->asked_at;

	return connection->active == NULL ? 0 : clock_microseconds(CLOCK_MONOTONIC) - since;
}

const char *connection_server(const struct connection *connection)
{
	return connection->server;
}

int connection_backend(const struct connection *connection)
{
	return PQbackendPID(connection->pg);
}

static const char *or_nothing(const char *text)
{
	return text != NULL ? text : "";
}

void connection_peer(const struct connection *connection, const char **host, const char **address,
		     const char **port)
{
	*host = or_nothing(PQhost(connection->pg));
	*address = or_nothing(PQhostaddr(connection->pg));
	*port = or_nothing(PQport(connection->pg));
}
