/*
 * mirror.h - brings what the database says into the segment
 *
 * SPDX-License-Identifier: ISC
 *
 * By a full load after every connect, by notification and by asking for changed rows, by the rows that the agent's
 * own transactions return, and by a periodic comparison that finds whatever those missed.
 */
#ifndef AGENT_MIRROR_H
#define AGENT_MIRROR_H

#include <libpq-fe.h>
#include <stdbool.h>
#include <stdint.h>

#include "agent/histogram.h"

struct agent;
struct mirror;
struct connection;

/* Selects what mirror_apply() takes, in the order it expects; the result must be asked for in binary. */
#define MIRROR_SELECT                                                                      \
	"SELECT name, version, disabled, disabled_by, disabled_reason, opened_at,"         \
	" disabled_until, incident_id, consecutive_failures, last_failure_at, updated_at," \
	" drift_threshold, failure_threshold, schema_error_threshold, default_ttl_us,"     \
	" auto_recover FROM cbshm.mirror"
#define MIRROR_COLUMNS      16
#define MIRROR_SELECT_NAMES MIRROR_SELECT " WHERE name = ANY ($1::pg_catalog.text[])"

/* How many microseconds Postgres' epoch, 2000-01-01, is after the Unix epoch. */
#define POSTGRES_EPOCH INT64_C(946684800000000)

struct mirror *mirror_new(struct agent *agent);
void mirror_free(struct mirror *mirror);

/* The first load of a new connection; database_loaded() is called when it stands in the segment. */
void mirror_connected(struct mirror *mirror, struct connection *control);

/* The connections are about to go: what was under way is forgotten. */
void mirror_disconnected(struct mirror *mirror);

/* The payload of a notification on the channel cbshm. */
void mirror_notified(struct mirror *mirror, const char *payload);

/* Once a second while live. */
void mirror_tick(struct mirror *mirror);

/*
 * Puts committed rows into the segment and publishes them. `moment` is what mirror_moment() said before they were asked
 * for: if the fleet's settings have been loaded since, the rows may show a policy of before that.
 */
unsigned mirror_moment(const struct mirror *mirror);
void mirror_apply(struct mirror *mirror, const PGresult *rows, unsigned moment);

/* The name has no row any more, as a committed transaction of ours has seen. */
void mirror_gone(struct mirror *mirror, const char *name);

/* The fleet's settings have changed: loads everything; `done` (may be NULL) is called after it, or when it cannot be. */
void mirror_reload(struct mirror *mirror, void (*done)(void *arg), void *arg);

/* How a row came into the segment. */
enum mirror_source {
	MIRROR_OWN,      /* returned by a transaction of this agent */
	MIRROR_NOTIFIED, /* somebody else has changed it */
	MIRROR_COUNTERS, /* likewise, but only its counters: these wait for the next tick */
	MIRROR_LOAD,     /* a full load */
};

struct mirror_counters {
	struct histogram lag[MIRROR_LOAD]; /* seconds from a row's updated_at, by mirror_source */
	uint64_t loads;                    /* of everything */
	uint64_t behind;                   /* comparisons that have found what nobody had told of */
};

/* Valid until mirror_free(). */
const struct mirror_counters *mirror_counters(const struct mirror *mirror);

/* Breakers are missing from the segment for want of room. */
bool mirror_is_incomplete(const struct mirror *mirror);

/* Nothing is known to be newer than the segment. */
bool mirror_is_current(const struct mirror *mirror);

/* The highest version that was put: for people, to see who is behind. */
uint64_t mirror_applied(const struct mirror *mirror);

#endif /* AGENT_MIRROR_H */
