/*
 * database.h - the connections to Postgres as one unit
 *
 * SPDX-License-Identifier: ISC
 *
 * Three connections: *control* listens, loads and reads, and shows by a regular query that the server answers;
 * *write* carries the group commits; the *lane* takes what may have to wait for a lock. If control or write breaks, everything is
 * begun anew, so that nothing is ever half connected. The lane is opened when first needed, and lost by itself.
 */
#ifndef AGENT_DATABASE_H
#define AGENT_DATABASE_H

#include <stdbool.h>
#include <stdint.h>

/* The schema this agent was built for: the number of the last migration. */
#define CBSHM_SCHEMA_VERSION 13

struct agent;
struct connection;
struct database;

enum database_state {
	DATABASE_DISCONNECTED,
	DATABASE_CONNECTING,
	DATABASE_CHECKING, /* settings, schema, clock */
	DATABASE_LOADING,  /* the mirror's first load */
	DATABASE_LIVE,
};

/* Begins to connect as soon as the loop runs; agent's mirror, recovery, writer and outbox must be there then. */
struct database *database_new(struct agent *agent);

/* Closes the connections for good; the modules are told of what was under way. NULL is fine, as for free. */
void database_stop(struct database *database);
void database_free(struct database *database);

/* Connects anew, with the settings of agent->config as it is now. */
void database_reconfigure(struct database *database);

enum database_state database_state(const struct database *database);

/*
 * Is it worth to wait? True while live, and for a moment after start and after the loss of a live
 * database, since most losses are over at once.
 */
bool database_expected(const struct database *database);

/* Why the database is away, for people; "" if it is not known. */
const char *database_trouble(const struct database *database);

/* Why there is no lane although it was asked for; "" if there is one, or nobody knows yet. */
const char *database_lane_trouble(const struct database *database);

/* The connections. Only while live; the lane may be NULL: it is being opened, writer and recovery are told. */
struct connection *database_control(struct database *database);
struct connection *database_write(struct database *database);
struct connection *database_lane(struct database *database);

/*
 * Which run of which server this is: equal as long as a transaction id means the same transaction. ""
 * if the server does not say. Valid until the next reconnect.
 */
const char *database_incarnation(const struct database *database);

/* LISTEN does not reach us, as behind a pooler: the mirror has to ask often. */
bool database_is_deaf(const struct database *database);

/* The database's clock, as far as it is known here: microseconds since the Unix epoch. Once it has been live. */
int64_t database_clock(const struct database *database);

struct database_counters {
	uint64_t connects; /* times it became live */
	uint64_t losses;   /* times it ceased to be */
	uint64_t failures; /* attempts that did not get so far */
};

/* Valid until database_free(). */
const struct database_counters *database_counters(const struct database *database);

/* The mirror's word that its first load is complete. */
void database_loaded(struct database *database);

/* Something is so wrong that only a new connection helps. Takes effect when the loop turns. */
void database_break(struct database *database, const char *reason);

#endif /* AGENT_DATABASE_H */
