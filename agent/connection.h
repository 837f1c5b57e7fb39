/*
 * connection.h - one asynchronous connection to Postgres and the units of work that go through it
 *
 * SPDX-License-Identifier: ISC
 *
 * Knows libpq and the event loop, and nothing of breakers. A unit is a few statements that go to the server in
 * one pipeline and come back in one round trip; units are carried out one after another.
 */
#ifndef AGENT_CONNECTION_H
#define AGENT_CONNECTION_H

#include <libpq-fe.h>
#include <stdbool.h>
#include <stdint.h>

#include "agent/text.h"

struct event_base;
struct connection;
struct unit;

#define UNIT_STATEMENTS_MAX 7
#define UNIT_VALUES_MAX     12

enum unit_end {
	UNIT_DONE,   /* every statement succeeded */
	UNIT_FAILED, /* a statement failed, nothing after it was carried out */
	UNIT_LOST,   /* the connection ended before the unit did; results may be there */
};

/* Both are called from the event loop and must not free the connection. */
typedef void unit_done(struct unit *unit, enum unit_end end, void *arg);
typedef void unit_row(const PGresult *row, void *arg);

struct unit *unit_new(unit_done *done, void *arg);

/*
 * Adds a statement; its number is the return value. `sql` is static; each of the `count` values (char *, text
 * format, NULL = null) is taken over and freed. The result comes as text.
 */
unsigned unit_add(struct unit *unit, const char *sql, int count, ...);

/*
 * The same with values in binary, for parameters whose types the statement says. `data` of each is taken over; NULL =
 * null.
 */
unsigned unit_add_binary(struct unit *unit, const char *sql, int count, const struct text *values);

/* Adds a statement: the commit waits for neither disk nor standby, and may be lost in a crash. */
void unit_asynchronous(struct unit *unit);

/* The same; and no lock is waited for for longer than 50 ms. Not for what notifies: that waits for others that do. */
void unit_impatient(struct unit *unit);

/* How the statement added last is treated. */
void unit_binary(struct unit *unit);   /* its result comes in binary */
void unit_prepared(struct unit *unit); /* it is often used: worth preparing, if allowed */
void unit_streamed(struct unit *unit,
		   unit_row *); /* each row is given to the function, none kept */
/*
 * The server sends what it has right after it, before it begins with the next one; and it is taken even if the
 * connection is given up from this side.
 */
void unit_flushed(struct unit *unit);

/* For `done`: the result of a statement, NULL if none came. Freed with the unit, after `done`. */
const PGresult *unit_result(const struct unit *unit, unsigned statement);

/* Takes a result out of the unit; PQclear() it. */
PGresult *unit_take_result(struct unit *unit, unsigned statement);

/* The result that says why it failed; NULL unless a statement has. */
const PGresult *unit_error(const struct unit *unit);

/*
 * Of a unit that ended as UNIT_LOST: what the server has sent about it is all here, so that what did not come was not
 * sent. True if the unit itself was not sent yet, and on a Unix socket whose other end is a postgres.
 */
bool unit_heard_all(const struct unit *unit);

/* Microseconds of CLOCK_BOOTTIME when it was sent and when it ended. */
int64_t unit_sent_at(const struct unit *unit);
int64_t unit_ended_at(const struct unit *unit);

struct connection_events {
	void (*opened)(struct connection *connection, void *arg);
	/* It could not be opened, or is broken. Called once, and never from within another call: it may be freed. */
	void (*lost)(struct connection *connection, const char *message, void *arg);
	void (*notified)(const char *channel, const char *payload, void *arg); /* may be NULL */
};

/*
 * Begins to connect. Never fails by itself: `lost` tells. `name` is static, for the log; `timeout` (in
 * microseconds) ends an attempt that hangs.
 */
struct connection *connection_open(struct event_base *base, const char *name,
				   const char *const *keywords, const char *const *values,
				   int64_t timeout, const struct connection_events *events,
				   void *arg);

/* Closes it; units that are not done end as UNIT_LOST, in their order. NULL is fine. */
void connection_free(struct connection *connection);

/* Takes a unit over and carries it out after those before it. */
void connection_run(struct connection *connection, struct unit *unit);

/* Whether statements may be prepared. At first: no. */
void connection_allow_prepare(struct connection *connection, bool allow);

/*
 * A statement with two values that makes the session what the units expect; all of them are static. A pooler may give
 * each unit to another session, and other clients a session that was ours: so it goes in front of every unit, until
 * statements may be prepared, which is to say that there is none.
 */
void connection_settings(struct connection *connection, const char *sql, const char *first,
			 const char *second);

/* Microseconds since the server should have answered and has sent nothing; 0 if nothing is expected. */
int64_t connection_silence(const struct connection *connection);

/* host:port for the log; valid as long as the connection. */
const char *connection_server(const struct connection *connection);

/* Where it leads, as libpq has it: host or directory, address ("" for a socket), port. Once open; valid as long as the connection. */
void connection_peer(const struct connection *connection, const char **host, const char **address,
		     const char **port);

/* The process id of its server process, by the server's word; a pooler has numbers of its own. */
int connection_backend(const struct connection *connection);

/* Microseconds of a clock. */
int64_t clock_microseconds(int clock);

#endif /* AGENT_CONNECTION_H */
