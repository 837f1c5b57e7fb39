/*
 * database.c - connects, checks, watches and reconnects
 *
 * SPDX-License-Identifier: ISC
 *
 * One state machine, changed in change_state() only. What is sent over the connections is the business of
 * mirror, recovery, writer and outbox; here are only the statements that make a connection usable, and the heartbeat.
 */
#include <config.h>

#include <assert.h>
#include <event2/event.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "agent/agent.h"
#include "agent/config.h"
#include "agent/connection.h"
#include "agent/counts.h"
#include "agent/database.h"
#include "agent/failure.h"
#include "agent/fleet.h"
#include "agent/log.h"
#include "agent/mirror.h"
#include "agent/notify.h"
#include "agent/outbox.h"
#include "agent/query.h"
#include "agent/recovery.h"
#include "agent/resolver.h"
#include "agent/scout.h"
#include "agent/segment_writer.h"
#include "agent/target.h"
#include "agent/text.h"
#include "agent/writer.h"

/* Microseconds. */
#define BACKOFF_FIRST 50000
#define BACKOFF_LAST \
	500000 /* a server that is back is found within 2 s: this, the connect and the load */
#define BACKOFF_SCHEMA  5000000
#define BACKOFF_LANE    500000
#define EXPECTED_WITHIN 1000000 /* how long after a loss callers are kept waiting */
#define SILENCE_MAX     5000000 /* a server that answers nothing for so long is dead */
#define SILENCE_LOOK    750000  /* and after so long already if another one takes writes */
#define LISTEN_WITHIN   2000000
#define PROBES_POOLED   3
#define HEARTBEAT_EVERY 2 /* ticks of a second */
#define TOLERANCE_MIN   5000
#define CLOCK_SAMPLES   8
#define REPEAT_LOG      60000000

/*
 * Text results never depend on settings of the database or the role, a lock or a lost client never holds
 * anything up for long, and what is answered is on disk.
 */
static const char sql_settings[] =
	"SELECT pg_catalog.set_config('TimeZone', 'UTC', false),"
	" pg_catalog.set_config('DateStyle', 'ISO', false),"
	" pg_catalog.set_config('IntervalStyle', 'postgres', false),"
	" pg_catalog.set_config('extra_float_digits', '1', false),"
	" pg_catalog.set_config('bytea_output', 'hex', false),"
	" pg_catalog.set_config('search_path', 'pg_catalog', false),"
	" pg_catalog.set_config('jit', 'off', false),"
	" pg_catalog.set_config('default_transaction_isolation', 'read committed', false),"
	" pg_catalog.set_config('synchronous_commit',"
	"  CASE pg_catalog.current_setting('synchronous_commit')"
	"   WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false),"
	" pg_catalog.set_config('statement_timeout', $2, false),"
	" pg_catalog.set_config('lock_timeout', $1, false),"
	" pg_catalog.set_config('idle_in_transaction_session_timeout', '5s', false),"
	/* Those that not every version has. */
	" CASE WHEN pg_catalog.current_setting('idle_session_timeout', true) IS NOT NULL"
	"  THEN pg_catalog.set_config('idle_session_timeout', '0', false) END,"
	" CASE WHEN pg_catalog.current_setting('transaction_timeout', true) IS NOT NULL"
	"  THEN pg_catalog.set_config('transaction_timeout', '0', false) END";
static const char sql_version[] =
	"SELECT pg_catalog.max(version), pg_catalog.pg_backend_pid() FROM cbshm.schema_version";
static const char sql_listen[] = "LISTEN cbshm";
static const char sql_listen_probe[] = "LISTEN cbshm_probe";
static const char sql_unlisten_probe[] = "UNLISTEN cbshm_probe";
static const char sql_probe[] = "SELECT pg_catalog.pg_notify('cbshm_probe', $1)";
/* After a crash the ids of transactions that never reached the disk are given out again; the statistics are
 * discarded then, so their reset tells of it. */
static const char sql_incarnation[] =
	"SELECT (pg_catalog.pg_control_system()).system_identifier || '/' ||"
	" (pg_catalog.pg_control_checkpoint()).timeline_id || '/' ||"
	" pg_catalog.to_char(stats_reset AT TIME ZONE 'UTC', 'J.SSSS.US') FROM "
	"pg_catalog.pg_stat_bgwriter";
/*
 * Which of two server processes wait for a synchronous standby: as long as there is none, no commit ends. A pooler has numbers of
 * its own for them: behind it, one of any agent's may be meant that has waited for so long.
 */
static const char sql_waiting[] =
	"SELECT coalesce(pg_catalog.bool_or(pid = $1::pg_catalog.int4 OR any_of_ours), false),"
	" coalesce(pg_catalog.bool_or(pid = $2::pg_catalog.int4 OR any_of_ours), false)"
	" FROM (SELECT pid, $3::pg_catalog.bool AND usename = SESSION_USER"
	"  AND datname = pg_catalog.current_database()"
	"  AND state_change < pg_catalog.clock_timestamp() - interval '5 s' AS any_of_ours"
	"  FROM pg_catalog.pg_stat_activity WHERE wait_event = 'SyncRep') waiting";
static const char sql_heartbeat[] = "SELECT cbshm.heartbeat($1, $2, $3, $4::pg_catalog.int8)";
static const char sql_clock[] = "SELECT pg_catalog.clock_timestamp()";

struct clock_sample {
	int64_t offset; /* database's clock - CLOCK_BOOTTIME */
	int64_t round_trip;
};

struct database {
	struct agent *agent;
	enum database_state state;
	int64_t lost_at; /* CLOCK_MONOTONIC */
	bool was_live;   /* then; or the first attempt is not over */
	bool ever_live;
	struct target *target;
	struct resolver *resolver;
	struct scout *scout; /* while the present server is silent, or none is found */
	unsigned first_server;
	unsigned failures; /* in a row */

	struct connection *control;
	struct connection *write;
	struct connection *lane;
	unsigned opened;    /* of control and write */
	bool beaten;        /* control is checked, and the first heartbeat is answered */
	bool write_checked; /* write likewise */
	bool lane_ready;
	int64_t lane_retry_at;
	char lane_trouble[512]; /* "": none, or it is not known yet */
	char incarnation[96];
	char write_incarnation[96];

	struct event *connect; /* timer */
	struct event *reset;   /* the deferred end */
	struct event *tick;
	unsigned ticks;
	bool heartbeat_pending;
	bool row_locked;      /* told: by somebody else, since the last heartbeat */
	bool asking_why;      /* a commit does not end */
	bool standby_awaited; /* as it was the last time; the log has it */
	char trouble[512];
	char logged[512]; /* the trouble told last */
	int64_t logged_at;
	bool schema_trouble;

	char probe[24];  /* what we call to ourselves; "": the next one is to be sent */
	unsigned probes; /* that are still to be heard */
	int64_t probe_at; /* INT64_MAX until the server has it: before it on the connection may be what waits for a standby */
	bool heard; /* and heard it */
	bool deaf;

	struct clock_sample samples[CLOCK_SAMPLES];
	unsigned sample_count;
	int64_t offset; /* as told to the segment */
	bool offset_known;
	struct database_counters counters;
};

static struct timeval to_timeval(int64_t microseconds)
{
	return (struct timeval){.tv_sec = microseconds / 1000000,
				.tv_usec = microseconds % 1000000};
}

/* ---- the state machine ---- */

static const char *const state_names[] = {
	[DATABASE_DISCONNECTED] = "disconnected",
	[DATABASE_CONNECTING] = "connecting",
	[DATABASE_CHECKING] = "checking",
	[DATABASE_LOADING] = "loading",
	[DATABASE_LIVE] = "live",
};

static void change_state(struct database *database, enum database_state to)
{
	const enum database_state from = database->state;

	/* One step forward at a time, and back to the start from anywhere. */
	assert(to == from + 1 || to == DATABASE_DISCONNECTED);
	if (from == to)
		return;
	database->state = to;
	log_event(to == DATABASE_LIVE ? LOG_LEVEL_INFO : LOG_LEVEL_DEBUG, "database",
		  "state=%s was=%s server=%s", state_names[to], state_names[from],
		  LOG_VALUE(database->control != NULL ? connection_server(database->control) : ""));
	if (to == DATABASE_LIVE) {
		segment_writer_set_state(database->agent->segment, CBSHM_SEGMENT_LIVE);
		notify_status(database->agent->notify, "Mirrors %" PRIu32 " breakers from %s",
			      segment_writer_breakers(database->agent->segment),
			      connection_server(database->control));
	}
	if (to == DATABASE_DISCONNECTED)
		segment_writer_set_state(database->agent->segment, CBSHM_SEGMENT_DISCONNECTED);
	database->counters.connects += to == DATABASE_LIVE;
	database->counters.losses += from == DATABASE_LIVE;
	if (from == DATABASE_LIVE) {
		database->was_live = database->ever_live = true;
		database->lost_at = clock_microseconds(CLOCK_MONOTONIC);
	}
}

enum database_state database_state(const struct database *database)
{
	return database->state;
}

bool database_expected(const struct database *database)
{
	if (database->state == DATABASE_LIVE)
		return true;
	return database->was_live &&
	       clock_microseconds(CLOCK_MONOTONIC) - database->lost_at < EXPECTED_WITHIN;
}

const char *database_trouble(const struct database *database)
{
	return database->trouble;
}

const char *database_lane_trouble(const struct database *database)
{
	return database->lane_trouble;
}

struct connection *database_control(struct database *database)
{
	return database->control;
}

struct connection *database_write(struct database *database)
{
	return database->write;
}

const char *database_incarnation(const struct database *database)
{
	return database->incarnation;
}

bool database_is_deaf(const struct database *database)
{
	return database->deaf;
}

int64_t database_clock(const struct database *database)
{
	return clock_microseconds(CLOCK_BOOTTIME) + database->offset;
}

const struct database_counters *database_counters(const struct database *database)
{
	return &database->counters;
}

/* ---- the end of a connection, and the next attempt ---- */

static int64_t random_below(int64_t limit)
{
	uint64_t random = 0;

	if (getrandom(&random, sizeof(random), GRND_NONBLOCK) != (ssize_t)sizeof(random))
		random = (uint64_t)clock_microseconds(CLOCK_MONOTONIC);
	return (int64_t)(random % (uint64_t)limit);
}

/* Full jitter: after a restart of the server not every agent of the fleet comes at the same moment. */
static int64_t backoff(const struct database *database)
{
	const unsigned doublings = database->failures < 16 ? database->failures : 16;
	int64_t limit = (int64_t)BACKOFF_FIRST << doublings;

	if (database->schema_trouble)
		return BACKOFF_SCHEMA;
	if (limit > BACKOFF_LAST)
		limit = BACKOFF_LAST;
	return 1000 + random_below(limit);
}

/* The same trouble is told once a minute, not at every attempt. */
static void log_trouble(struct database *database)
{
	const int64_t now = clock_microseconds(CLOCK_MONOTONIC);

	if (strcmp(database->trouble, database->logged) == 0 &&
	    now - database->logged_at < REPEAT_LOG)
		return;
	log_problem(
		LOG_LEVEL_WARNING, "database_unavailable",
		database->schema_trouble
			? "readers go on; do what the reason says; the schema and the rights of "
			  "the agent's role are in cbshm-sql(7)"
			: "readers go on; see that the server of conninfo in [postgres] is up, "
			  "takes writes and lets this user in",
		"state=%s reason=%s", state_names[database->state], LOG_VALUE(database->trouble));
	notify_status(database->agent->notify,
		      "No database, readers go on with what was last known: %s", database->trouble);
	memcpy(database->logged, database->trouble, sizeof(database->logged));
	database->logged_at = now;
}

static void end_scout(struct database *database)
{
	scout_free(database->scout);
	database->scout = NULL;
}

static void close_all(struct database *database)
{
	struct connection *lane = database->lane, *write = database->write;
	struct connection *control = database->control;

	resolver_free(database->resolver);
	database->resolver = NULL;
	end_scout(database);
	/* Nobody may send anything over what is about to go. */
	database->lane = database->write = database->control = NULL;
	database->opened = 0;
	database->lane_ready = false;
	database->lane_trouble[0] = '\0';
	database->heartbeat_pending = database->asking_why = database->standby_awaited = false;
	database->deaf = database->heard = false;
	mirror_disconnected(database->agent->mirror);
	connection_free(write);
	connection_free(lane);
	connection_free(control);
}

static void on_reset(evutil_socket_t fd, short what, void *arg)
{
	struct database *database = arg;
	const bool was_live = database->state == DATABASE_LIVE;
	struct timeval delay;

	(void)fd;
	(void)what;
	log_trouble(database);
	if (!was_live) {
		database->first_server++;
		database->failures++;
		database->counters.failures++;
	}
	change_state(database, DATABASE_DISCONNECTED);
	close_all(database);
	delay = to_timeval(was_live ? 1000 : backoff(database));
	event_add(database->connect, &delay);
	/* An attempt has failed: nothing is to be expected soon, unless the loss is a moment ago. */
	if (!was_live && database->failures > 0 && !database->ever_live)
		database->was_live = false;
	counts_disconnected(database->agent->counts);
	queries_database_changed(database->agent->queries);
	fleet_database_changed(database->agent->fleet);
	writer_database_changed(database->agent->writer);
}

static void set_trouble(char trouble[512], const char *reason)
{
	snprintf(trouble, 512, "%s", reason);
	for (char *p = trouble; *p != '\0'; p++) {
		if (*p == '\n' || *p == '\t')
			*p = ' ';
	}
}

static void give_up(struct database *database, const char *reason, bool schema)
{
	/* The first reason is the cause, the others are its consequences. */
	if (event_pending(database->reset, EV_TIMEOUT, NULL) ||
	    database->state == DATABASE_DISCONNECTED)
		return;
	set_trouble(database->trouble, reason);
	database->schema_trouble = schema;
	event_add(database->reset, &(struct timeval){0});
}

void database_break(struct database *database, const char *reason)
{
	give_up(database, reason, false);
}

void database_reconfigure(struct database *database)
{
	database->first_server = 0;
	if (database->state == DATABASE_DISCONNECTED)
		event_add(database->connect, &(struct timeval){0});
	else
		give_up(database, "the configuration has changed", false);
}

static void on_lost(struct connection *connection, const char *message, void *arg)
{
	struct database *database = arg;

	(void)connection;
	give_up(database, message, false);
}

/* ---- the clock ---- */

/* The best of the last samples: the one whose answer took the least time. */
static const struct clock_sample *best_sample(const struct database *database)
{
	const struct clock_sample *best = &database->samples[0];
	const unsigned known =
		database->sample_count < CLOCK_SAMPLES ? database->sample_count : CLOCK_SAMPLES;

	for (unsigned i = 1; i < known; i++) {
		if (database->samples[i].round_trip < best->round_trip)
			best = &database->samples[i];
	}
	return best;
}

static void take_clock(struct database *database, int64_t time, int64_t sent, int64_t received)
{
	const struct clock_sample sample = {
		.offset = time - (sent + (received - sent) / 2),
		.round_trip = received - sent,
	};
	const struct clock_sample *best = best_sample(database);
	int64_t difference = llabs(sample.offset - best->offset);
	int64_t tolerance;

	/* Two samples that cannot both be right: the server's clock was set, the old ones are worth nothing. */
	if (difference > (sample.round_trip + best->round_trip) / 2 + TOLERANCE_MIN)
		database->sample_count = 0;
	database->samples[database->sample_count++ % CLOCK_SAMPLES] = sample;
	best = best_sample(database);
	tolerance = best->round_trip > TOLERANCE_MIN ? best->round_trip : TOLERANCE_MIN;
	difference = llabs(best->offset - database->offset);
	segment_writer_set_clock(database->agent->segment, best->offset, tolerance);
	if (!database->offset_known || difference > tolerance) {
		database->offset = best->offset;
		database->offset_known = true;
		recovery_clock_changed(database->agent->recovery);
	}
}

/* ---- the heartbeat ---- */

static void proceed(struct database *database);

static int64_t result_time(const PGresult *result)
{
	uint64_t value;

	memcpy(&value, PQgetvalue(result, 0, 0), sizeof(value));
	return (int64_t)be64toh(value) + POSTGRES_EPOCH;
}

/* `statement` of the unit tells the server's clock. */
static void take_beat(struct database *database, const struct unit *unit, unsigned statement)
{
	take_clock(database, result_time(unit_result(unit, statement)), unit_sent_at(unit),
		   unit_ended_at(unit));
	if (database->state == DATABASE_CHECKING) {
		database->beaten = true;
		proceed(database);
	} else if (database->state == DATABASE_LIVE && !database->deaf &&
		   mirror_is_current(database->agent->mirror)) {
		segment_writer_database_confirmed(database->agent->segment);
	}
}

static void on_clock(struct unit *unit, enum unit_end end, void *arg)
{
	struct database *database = arg;

	database->heartbeat_pending = false;
	if (end == UNIT_DONE)
		take_beat(database, unit, 0);
	else if (end == UNIT_FAILED)
		database_break(database, PQresultErrorMessage(unit_error(unit)));
}

/* Somebody keeps the agents' rows locked: this host is not seen, and goes on without. */
static void beat_without_row(struct database *database, const PGresult *error)
{
	struct unit *unit = unit_new(on_clock, database);

	if (!database->row_locked)
		log_problem(LOG_LEVEL_WARNING, "agent_locked",
			    "end the transaction that keeps rows of cbshm.agent locked: until then "
			    "this host seems to be gone",
			    "reason=%s",
			    LOG_VALUE(PQresultErrorField(error, PG_DIAG_MESSAGE_PRIMARY)));
	database->row_locked = true;
	unit_add(unit, sql_clock, 0);
	unit_binary(unit);
	database->heartbeat_pending = true;
	connection_run(database->control, unit);
}

static void on_heartbeat(struct unit *unit, enum unit_end end, void *arg)
{
	struct database *database = arg;
	const PGresult *error = unit_error(unit);

	database->heartbeat_pending = false;
	if (end == UNIT_FAILED && failure_classify(error) == FAILURE_LOCK) {
		beat_without_row(database, error);
	} else if (end == UNIT_FAILED) {
		database_break(database, PQresultErrorMessage(error));
	} else if (end == UNIT_DONE) {
		/* There may have been no row to acknowledge in. */
		if (database->row_locked && database->state == DATABASE_LIVE)
			fleet_row_is_back(database->agent->fleet);
		database->row_locked = false;
		take_beat(database, unit, 1);
	}
}

static void send_heartbeat(struct database *database)
{
	const struct config *config = database->agent->config;
	struct unit *unit = unit_new(on_heartbeat, database);
	struct text applied = {0};

	text_format(&applied, "%" PRIu64, mirror_applied(database->agent->mirror));
	unit_impatient(unit);
	unit_add(unit, sql_heartbeat, 4, memory_copy(config->host), memory_copy(config->instance),
		 memory_copy(PACKAGE_VERSION), text_take(&applied));
	unit_binary(unit);
	unit_prepared(unit);
	database->heartbeat_pending = true;
	connection_run(database->control, unit);
}

static void send_probe(struct database *database);

static void check_listen(struct database *database)
{
	if (database->heard || database->deaf)
		return;
	if (database->probe[0] == '\0') {
		send_probe(database);
		return;
	}
	if (clock_microseconds(CLOCK_MONOTONIC) - database->probe_at < LISTEN_WITHIN)
		return;
	database->deaf = true;
	log_problem(LOG_LEVEL_WARNING, "listen_does_not_work",
		    "notifications do not arrive, as behind a connection pooler: the mirror asks "
		    "every second instead; connect to the server itself",
		    "server=%s", LOG_VALUE(connection_server(database->control)));
}

static void on_lane_lost(struct connection *connection, const char *message, void *arg);

/* A server process that answers nothing, while another one of the same server does. */
static bool is_stuck(const struct connection *connection)
{
	return connection != NULL && connection_silence(connection) > 2 * SILENCE_MAX;
}

static void await_standby(struct database *database, bool awaited)
{
	if (awaited && !database->standby_awaited)
		log_problem(LOG_LEVEL_WARNING, "commit_waits_for_standby",
			    "bring a standby of synchronous_standby_names back, or take it out of "
			    "that setting: until then no write ends",
			    "server=%s", LOG_VALUE(connection_server(database->control)));
	database->standby_awaited = awaited;
}

/* A new connection gets no further if it is a standby that is missing, and the old server process would stay. */
static void on_why(struct unit *unit, enum unit_end end, void *arg)
{
	struct database *database = arg;
	const PGresult *result = unit_result(unit, 0);

	database->asking_why = false;
	if (end != UNIT_DONE || database->state != DATABASE_LIVE)
		return;
	const bool write_waits = *PQgetvalue(result, 0, 0) == 't';
	const bool lane_waits = *PQgetvalue(result, 0, 1) == 't';
	await_standby(database, write_waits || lane_waits);
	if (is_stuck(database->write) && !write_waits)
		database_break(database, "the server has not answered a write for 10 s");
	else if (is_stuck(database->lane) && !lane_waits)
		on_lane_lost(database->lane, "the server has not answered for 10 s", database);
}

/* Recovery and all that waits for a lock would otherwise hang with one server process for ever. */
static void watch_stuck(struct database *database)
{
	const struct connection *both[] = {database->write, database->lane};
	struct unit *unit;
	char *pids[2];

	if (!is_stuck(database->write) && !is_stuck(database->lane)) {
		await_standby(database, false);
		return;
	}
	if (database->asking_why)
		return;
	database->asking_why = true;
	for (int i = 0; i < 2; i++) {
		struct text pid = {0};

		text_format(&pid, "%d", both[i] != NULL ? connection_backend(both[i]) : 0);
		pids[i] = text_take(&pid);
	}
	unit = unit_new(on_why, database);
	unit_add(unit, sql_waiting, 3, pids[0], pids[1],
		 memory_copy(database->deaf ? "true" : "false"));
	connection_run(database->control, unit);
}

static bool is_silent(const struct database *database)
{
	return connection_silence(database->control) > SILENCE_LOOK ||
	       connection_silence(database->write) > SILENCE_LOOK;
}

static void open_connections(struct database *database);

static void on_scouted(unsigned server, void *arg)
{
	struct database *database = arg;

	end_scout(database);
	if (database->state == DATABASE_CONNECTING && database->opened == 0 &&
	    !event_pending(database->reset, EV_TIMEOUT, NULL)) {
		database->first_server = server;
		connection_free(database->write);
		connection_free(database->control);
		database->write = NULL;
		open_connections(database);
	} else if (database->state == DATABASE_LIVE && is_silent(database)) {
		database->first_server = server;
		database_break(database, "the server is silent, and another one takes writes");
	}
}

/* It may be slow, or waits for a standby that has been promoted. */
static void look_elsewhere(struct database *database)
{
	if (!is_silent(database)) {
		end_scout(database);
	} else if (database->scout == NULL) {
		database->scout = scout_start(database->agent->base, database->target,
					      database->control, sql_incarnation,
					      database->incarnation, true, on_scouted, database);
	}
}

static void on_tick(evutil_socket_t fd, short what, void *arg)
{
	struct database *database = arg;

	(void)fd;
	(void)what;
	segment_writer_heartbeat(database->agent->segment);
	database->ticks++;
	if (database->state < DATABASE_CHECKING)
		return;
	if (connection_silence(database->control) > SILENCE_MAX) {
		database_break(database, "the server has not answered for 5 s");
		return;
	}
	if (database->state != DATABASE_LIVE)
		return;
	look_elsewhere(database);
	watch_stuck(database);
	check_listen(database);
	if (database->ticks % HEARTBEAT_EVERY == 0 && !database->heartbeat_pending &&
	    !fleet_is_leaving(database->agent->fleet))
		send_heartbeat(database);
	mirror_tick(database->agent->mirror);
	counts_tick(database->agent->counts);
}

/* ---- checking ---- */

/* A check that did not pass: NULL, or why. */
static const char *failed_check(const struct unit *unit, char *room, size_t size)
{
	const PGresult *error = unit_error(unit);
	const char *state = PQresultErrorField(error, PG_DIAG_SQLSTATE);

	if (state != NULL && (strcmp(state, "42P01") == 0 || strcmp(state, "3F000") == 0))
		snprintf(room, size, "the database has no schema cbshm: run cbctl migrate");
	else if (state != NULL && strcmp(state, "42501") == 0)
		snprintf(room, size,
			 "%s; the agent's database user must be a member of cbshm_agent",
			 PQresultErrorField(error, PG_DIAG_MESSAGE_PRIMARY));
	else
		snprintf(room, size, "%s", PQresultErrorMessage(error));
	return room;
}

static bool is_version(const struct unit *unit, char *room, size_t size)
{
	const PGresult *result = unit_result(unit, 2);
	const char *found = PQgetvalue(result, 0, 0);

	if (atoi(found) == CBSHM_SCHEMA_VERSION)
		return true;
	if (atoi(found) < CBSHM_SCHEMA_VERSION)
		snprintf(room, size,
			 "schema cbshm has version %d, this agent needs %d: run cbctl migrate",
			 atoi(found), CBSHM_SCHEMA_VERSION);
	else
		snprintf(
			room, size,
			"schema cbshm has version %d, this agent knows %d: install a newer cbagent",
			atoi(found), CBSHM_SCHEMA_VERSION);
	return false;
}

/*
 * A pooler that hands out server connections by the transaction passes a notification on if we happen to have that very one
 * at the moment. So what comes through one counts only if it comes again and again.
 */
static unsigned probes_needed(const struct database *database, const struct unit *unit)
{
	const int pid = atoi(PQgetvalue(unit_result(unit, 2), 0, 1));

	return pid == connection_backend(database->control) ? 1 : PROBES_POOLED;
}

static void on_checked(struct unit *unit, enum unit_end end, void *arg)
{
	struct database *database = arg;
	char reason[512];

	if (end == UNIT_LOST)
		return;
	if (end == UNIT_FAILED) {
		give_up(database, failed_check(unit, reason, sizeof(reason)), true);
	} else if (!is_version(unit, reason, sizeof(reason))) {
		give_up(database, reason, true);
	} else {
		database->probes = probes_needed(database, unit);
		send_heartbeat(database);
	}
}

static void on_settings(struct unit *unit, enum unit_end end, void *arg)
{
	if (end == UNIT_FAILED)
		database_break(arg, PQresultErrorMessage(unit_error(unit)));
}

static void on_incarnation(struct unit *unit, enum unit_end end, void *arg)
{
	char *room = arg;

	*room = '\0';
	if (end == UNIT_DONE && PQntuples(unit_result(unit, 0)) == 1)
		snprintf(room, sizeof(((struct database *)NULL)->incarnation), "%s",
			 PQgetvalue(unit_result(unit, 0), 0, 0));
}

static void on_write_incarnation(struct unit *unit, enum unit_end end, void *arg)
{
	struct database *database = arg;

	on_incarnation(unit, end, database->write_incarnation);
	if (end == UNIT_LOST)
		return;
	database->write_checked = true;
	proceed(database);
}

/* The unit makes the settings; where a pooler is between, every unit after it makes them again. */
static void add_settings(struct unit *unit, struct connection *connection, const char *lock_timeout,
			 const char *statement_timeout)
{
	unit_add(unit, sql_settings, 2, memory_copy(lock_timeout), memory_copy(statement_timeout));
	connection_settings(connection, sql_settings, lock_timeout, statement_timeout);
}

static void check(struct database *database)
{
	struct unit *unit = unit_new(on_settings, database);

	change_state(database, DATABASE_CHECKING);
	end_scout(database);
	/*
	 * Locked rows are left to the lane; but whoever is creating a row is waited for, by all others too. A statement
	 * timeout would end the wait for a synchronous standby, and the server then calls it a success.
	 */
	add_settings(unit, database->write, "100ms", "0");
	connection_run(database->write, unit);
	unit = unit_new(on_write_incarnation, database);
	unit_add(unit, sql_incarnation, 0);
	connection_run(database->write, unit);

	unit = unit_new(on_incarnation, database->incarnation);
	unit_add(unit, sql_incarnation, 0);
	connection_run(database->control, unit);
	unit = unit_new(on_checked, database);
	add_settings(unit, database->control, "1s", "60s");
	unit_add(unit, sql_listen, 0);
	unit_add(unit, sql_version, 0);
	unit_add(unit, sql_listen_probe, 0);
	connection_run(database->control, unit);
}

/* Both connections are usable and the clock is known. */
static void proceed(struct database *database)
{
	if (!database->beaten || !database->write_checked)
		return;
	if (strcmp(database->incarnation, database->write_incarnation) != 0) {
		database_break(database, "the two connections lead to different servers");
		return;
	}
	change_state(database, DATABASE_LOADING);
	mirror_connected(database->agent->mirror, database->control);
}

/* Whoever commits a notification waits for those who do so already: with the patience of this connection, then anew. */
static void on_probe_sent(struct unit *unit, enum unit_end end, void *arg)
{
	struct database *database = arg;

	(void)unit;
	if (end == UNIT_DONE)
		database->probe_at = clock_microseconds(CLOCK_MONOTONIC);
	else if (end == UNIT_FAILED)
		database->probe[0] = '\0';
}

static void on_unlistened(struct unit *unit, enum unit_end end, void *arg)
{
	(void)unit;
	(void)end;
	(void)arg;
}

/* Sent over the other connection: a pooler hands it to whoever uses that server connection at the moment. */
static void send_probe(struct database *database)
{
	struct unit *unit = unit_new(on_probe_sent, database);

	snprintf(database->probe, sizeof(database->probe), "%016" PRIx64,
		 (uint64_t)random_below(INT64_MAX));
	database->probe_at = INT64_MAX;
	unit_asynchronous(unit);
	unit_add(unit, sql_probe, 1, memory_copy(database->probe));
	connection_run(database->write, unit);
}

/* Where the list begins from now on: with the one that was good. */
static unsigned present_server(const struct database *database)
{
	const char *host, *address, *port;
	unsigned found;

	connection_peer(database->control, &host, &address, &port);
	found = target_find(database->target, host, address, port);
	return found != TARGET_NONE ? found : database->first_server;
}

void database_loaded(struct database *database)
{
	if (database->state != DATABASE_LOADING)
		return;
	database->failures = 0;
	database->first_server = present_server(database);
	database->schema_trouble = false;
	database->trouble[0] = database->logged[0] = '\0';
	change_state(database, DATABASE_LIVE);
	segment_writer_database_confirmed(database->agent->segment);
	send_probe(database);
	queries_database_changed(database->agent->queries);
	fleet_database_changed(database->agent->fleet);
	writer_database_changed(database->agent->writer);
	recovery_ready(database->agent->recovery);
	outbox_ready(database->agent->outbox);
}

static void hear_probe(struct database *database, const char *payload)
{
	struct unit *unit;

	if (database->heard || database->probe[0] == '\0' || strcmp(payload, database->probe) != 0)
		return;
	database->probe[0] = '\0';
	if (--database->probes > 0)
		return;
	if (database->deaf)
		log_event(LOG_LEVEL_INFO, "listen_works", "channel=cbshm_probe");
	database->heard = true;
	database->deaf = false;
	/* No pooler that mixes clients is between: what is prepared stays prepared. */
	connection_allow_prepare(database->control, true);
	connection_allow_prepare(database->write, true);
	if (database->lane != NULL)
		connection_allow_prepare(database->lane, true);
	unit = unit_new(on_unlistened, NULL);
	unit_add(unit, sql_unlisten_probe, 0);
	connection_run(database->control, unit);
}

static void on_change(struct database *database, const char *payload)
{
	mirror_notified(database->agent->mirror, payload);
	outbox_notified(database->agent->outbox, payload);
}

static void on_notified(const char *channel, const char *payload, void *arg)
{
	struct database *database = arg;

	if (strcmp(channel, "cbshm") == 0)
		on_change(database, payload);
	else if (strcmp(channel, "cbshm_probe") == 0)
		hear_probe(database, payload);
}

/* ---- the lane ---- */

static void on_lane_settings(struct unit *unit, enum unit_end end, void *arg)
{
	struct database *database = arg;

	if (end == UNIT_FAILED)
		database_break(database, PQresultErrorMessage(unit_error(unit)));
	if (end != UNIT_DONE)
		return;
	database->lane_ready = true;
	database->lane_trouble[0] = '\0';
	connection_allow_prepare(database->lane, database->heard);
	writer_database_changed(database->agent->writer);
	recovery_ready(database->agent->recovery);
}

static void on_lane_opened(struct connection *connection, void *arg)
{
	struct unit *unit = unit_new(on_lane_settings, arg);

	add_settings(unit, connection, "1s", "0");
	connection_run(connection, unit);
}

static void on_lane_lost(struct connection *connection, const char *message, void *arg)
{
	struct database *database = arg;

	log_problem(LOG_LEVEL_WARNING, "database_lane_lost",
		    "it is opened again when a row is locked; if this repeats, see max_connections "
		    "and the time-outs of the server",
		    "reason=%s", LOG_VALUE(message));
	set_trouble(database->lane_trouble, message);
	database->lane = NULL;
	database->lane_ready = false;
	database->lane_retry_at = clock_microseconds(CLOCK_MONOTONIC) + BACKOFF_LANE;
	connection_free(connection);
}

struct connection *database_lane(struct database *database)
{
	static const struct connection_events events = {
		.opened = on_lane_opened,
		.lost = on_lane_lost,
	};
	const char *const *keywords, *const *values;

	if (database->lane_ready)
		return database->lane;
	if (database->state != DATABASE_LIVE || database->lane != NULL ||
	    clock_microseconds(CLOCK_MONOTONIC) < database->lane_retry_at)
		return NULL;
	target_settings(database->target, database->first_server, &keywords, &values);
	database->lane = connection_open(database->agent->base, "lane", keywords, values,
					 target_timeout(database->target, database->failures),
					 &events, database);
	return NULL;
}

/* ---- connecting ---- */

static void on_opened(struct connection *connection, void *arg);

static struct connection *open_connection(struct database *database, const char *name,
					  const struct connection_events *events)
{
	const char *const *keywords, *const *values;

	target_settings(database->target, database->first_server, &keywords, &values);
	return connection_open(database->agent->base, name, keywords, values,
			       target_timeout(database->target, database->failures), events,
			       database);
}

static void open_write(struct database *database)
{
	static const struct connection_events events = {.opened = on_opened, .lost = on_lost};

	database->write = open_connection(database, "write", &events);
}

static void on_opened(struct connection *connection, void *arg)
{
	struct database *database = arg;

	(void)connection;
	if (++database->opened == 2)
		check(database);
	else if (database->write == NULL)
		open_write(database);
}

/* To find out whether a server is back one connection of these is enough. */
static void open_connections(struct database *database)
{
	static const struct connection_events events = {
		.opened = on_opened,
		.lost = on_lost,
		.notified = on_notified,
	};

	database->control = open_connection(database, "control", &events);
	if (database->failures == 0)
		open_write(database);
}

/*
 * libpq goes from server to server, and one that hangs takes all the time there is. So if this lasts, or did not help the last time,
 * all are asked at once, too.
 */
static void search(struct database *database)
{
	open_connections(database);
	database->scout =
		scout_start(database->agent->base, database->target, NULL, sql_incarnation, "",
			    database->failures > 0, on_scouted, database);
}

static void on_resolved(const struct resolution *resolutions, unsigned count, void *arg)
{
	struct database *database = arg;
	char reason[512];

	for (unsigned i = 0; i < count; i++) {
		if (resolutions[i].count == 0) {
			snprintf(reason, sizeof(reason), "cannot look up the host %.200s: %s",
				 resolutions[i].host, resolutions[i].error);
			log_event(LOG_LEVEL_DEBUG, "lookup_failed", "reason=%s", LOG_VALUE(reason));
		}
	}
	if (target_resolve(database->target, resolutions, count) == 0)
		give_up(database, reason, false);
	else
		search(database);
}

static void connect_now(struct database *database)
{
	const char *names[TARGET_SERVERS_MAX];
	unsigned count;

	change_state(database, DATABASE_CONNECTING);
	database->beaten = database->write_checked = false;
	database->sample_count = 0;
	target_free(database->target);
	database->target = target_new(database->agent->config->conninfo);
	if (database->target == NULL) {
		give_up(database, "the conninfo cannot be parsed", false);
		return;
	}
	count = target_names(database->target, names);
	if (count == 0) {
		search(database);
		return;
	}
	database->resolver =
		resolver_start(database->agent->base, names, count, on_resolved, database);
	if (database->resolver == NULL)
		give_up(database, "no thread could be started to look up the host", false);
}

static void on_connect(evutil_socket_t fd, short what, void *arg)
{
	struct database *database = arg;

	(void)fd;
	(void)what;
	if (database->state == DATABASE_DISCONNECTED)
		connect_now(database);
}

struct database *database_new(struct agent *agent)
{
	struct database *database = memory_new(1, sizeof(*database));

	database->agent = agent;
	database->was_live = true;
	database->lost_at = clock_microseconds(CLOCK_MONOTONIC);
	database->connect = evtimer_new(agent->base, on_connect, database);
	database->reset = evtimer_new(agent->base, on_reset, database);
	database->tick = event_new(agent->base, -1, EV_PERSIST, on_tick, database);
	event_add(database->connect, &(struct timeval){0});
	event_add(database->tick, &(struct timeval){.tv_sec = 1});
	segment_writer_heartbeat(agent->segment);
	return database;
}

void database_stop(struct database *database)
{
	if (database == NULL)
		return;
	snprintf(database->trouble, sizeof(database->trouble), "the agent is stopping");
	event_del(database->connect);
	event_del(database->reset);
	change_state(database, DATABASE_DISCONNECTED);
	database->was_live = false;
	close_all(database);
}

void database_free(struct database *database)
{
	if (database == NULL)
		return;
	target_free(database->target);
	event_free(database->connect);
	event_free(database->reset);
	event_free(database->tick);
	free(database);
}
