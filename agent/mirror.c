/*
 * mirror.c - rows of cbshm.mirror, from the database to the segment
 *
 * SPDX-License-Identifier: ISC
 *
 * Everything is asked over the control connection, one question after the other, and a notification that
 * comes while a question is under way leads to another one: what the last answer did not show, the next does.
 * The agent's own transactions bring their rows over other connections, so an answer may be older than the segment;
 * versions decide then, and a row that is missing from an answer is only removed if nobody has put it since the question.
 *
 * A barrier (see sql/0006_fleet.sql) has been reached when all that was heard before it is in the segment. What is
 * heard is counted; of a changed name and of a wanted load it is known when they were first heard of.
 */
#include <config.h>

#include <endian.h>
#include <errno.h>
#include <event2/event.h>
#include <inttypes.h>
#include <search.h>
#include <stdlib.h>
#include <string.h>

#include "agent/agent.h"
#include "agent/announcement.h"
#include "agent/connection.h"
#include "agent/database.h"
#include "agent/fleet.h"
#include "agent/log.h"
#include "agent/mirror.h"
#include "agent/recovery.h"
#include "agent/segment_writer.h"
#include "agent/text.h"
#include "cbshm/segment.h"

#define COMPARE_EVERY 60   /* seconds */
#define PUBLISH_EVERY 4096 /* rows of a load */
#define NAMES_AT_ONCE 4096
#define FULL_LOG      60000000 /* microseconds between two complaints about a full segment */

/* Bytes of the columns that have a fixed size; 0: text. */
static const int column_sizes[] = {0, 8, 1, 0, 0, 8, 8, 16, 4, 8, 8, 8, 4, 4, 8, 1};

_Static_assert(sizeof(column_sizes) / sizeof(*column_sizes) == MIRROR_COLUMNS,
	       "the columns of cbshm.mirror");

static const char sql_all[] = MIRROR_SELECT;
static const char sql_names[] = MIRROR_SELECT_NAMES;
static const char sql_barrier[] = "SELECT cbshm.last_barrier()";
/* News of what has changed a moment ago may still be on their way. */
static const char sql_versions[] =
	"SELECT name, version, updated_at < pg_catalog.now() - interval '5 s' FROM cbshm.mirror";
/* The fleet's settings as one text: all that is asked is whether it is still the same. Their version, and a key. */
static const char sql_settings[] =
	"SELECT cbshm.set_policy_json(NULL, '{}', 'cbagent', NULL), cbshm.settings_version(),"
	" cbshm.announcement_key()";

/* A name that has changed. */
struct change {
	char name[CBSHM_NAME_ROOM];
	uint64_t version; /* at least */
	uint64_t put;     /* what the segment had when the question was sent */
	uint64_t heard;   /* when, see struct mirror */
	bool deleted;
	bool counter; /* only a counter: had to wait for the tick */
};

/* All that was heard up to a moment must be in the segment before it is acknowledged. */
struct barrier {
	int64_t number; /* 0: none */
	uint64_t heard;
};

/* Names to ask for: a tree by name. */
struct changes {
	void *tree;
	unsigned count;
};

/* Somebody waits for a load that begins from now on. */
struct waiter {
	void (*done)(void *arg);
	void *arg;
	struct waiter *next;
};

struct mirror {
	struct agent *agent;
	struct connection *control; /* NULL = disconnected */
	bool busy;                  /* a question is under way */
	bool loading;               /* namely a load; */
	bool first;                 /* the first one, */
	bool settings;              /* or because the settings have changed */
	unsigned loaded;
	unsigned loads;              /* begun because the settings have changed */
	bool reload;                 /* wanted next */
	uint64_t heard;              /* counts what was heard of */
	uint64_t load_heard;         /* when the load under way was wanted */
	uint64_t reload_heard;       /* and the next */
	struct barrier barrier;      /* waited for */
	struct barrier next_barrier; /* and the greatest that came after it */
	int64_t reached;             /* the greatest of this connection that was acknowledged */
	bool compare;
	uint64_t compare_matches;
	uint64_t compare_rows;
	uint64_t compare_behind; /* nobody has told of these, though there was time */
	unsigned ticks;
	struct changes urgent;
	struct changes counters;
	struct changes asked;
	char *names_sent;
	char *settings_text;
	uint64_t settings_version; /* as loaded */
	struct announcement_key key;
	struct waiter *waiting; /* for the next load */
	struct waiter *served;  /* by the one under way */
	struct event *kick;
	uint64_t applied;
	bool left_out; /* a row has found no room */
	struct mirror_counters counted;
	int64_t full_logged_at;
};

static void ask(struct mirror *mirror);

/* ---- rows ---- */

static int64_t get_int8(const PGresult *rows, int row, int column)
{
	uint64_t value;

	memcpy(&value, PQgetvalue(rows, row, column), sizeof(value));
	return (int64_t)be64toh(value);
}

static uint32_t get_int4(const PGresult *rows, int row, int column)
{
	uint32_t value;

	memcpy(&value, PQgetvalue(rows, row, column), sizeof(value));
	return be32toh(value);
}

static double get_float8(const PGresult *rows, int row, int column)
{
	const int64_t bits = get_int8(rows, row, column);
	double value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

/*
 * INT64_MIN for null, for "infinity", and for the last moments that the server knows, which do not fit: all mean the same to a
 * reader, no time.
 */
static int64_t get_time(const PGresult *rows, int row, int column)
{
	int64_t value;

	if (PQgetisnull(rows, row, column))
		return INT64_MIN;
	value = get_int8(rows, row, column);
	return value == INT64_MIN || value > INT64_MAX - POSTGRES_EPOCH ? INT64_MIN
									: value + POSTGRES_EPOCH;
}

/* The strings stay in `rows`; libpq ends values with a NUL in binary results, too. */
static bool get_row(const PGresult *rows, int row, struct breaker_row *breaker)
{
	if (PQnfields(rows) < MIRROR_COLUMNS || PQfformat(rows, 1) != 1)
		return false;
	for (int i = 0; i < MIRROR_COLUMNS; i++) {
		if (column_sizes[i] != 0 && !PQgetisnull(rows, row, i) &&
		    PQgetlength(rows, row, i) != column_sizes[i])
			return false;
	}
	*breaker = (struct breaker_row){
		.name = PQgetvalue(rows, row, 0),
		.version = (uint64_t)get_int8(rows, row, 1),
		.disabled = *PQgetvalue(rows, row, 2) != 0,
		.disabled_by = PQgetvalue(rows, row, 3),
		.disabled_reason = PQgetvalue(rows, row, 4),
		.opened_at = get_time(rows, row, 5),
		.disabled_until = get_time(rows, row, 6),
		.consecutive_failures = get_int4(rows, row, 8),
		.last_failure_at = get_time(rows, row, 9),
		.updated_at = get_time(rows, row, 10),
		.drift_threshold = get_float8(rows, row, 11),
		.failure_threshold = get_int4(rows, row, 12),
		.schema_error_threshold = get_int4(rows, row, 13),
		.default_ttl = get_int8(rows, row, 14),
		.auto_recover = *PQgetvalue(rows, row, 15) != 0,
	};
	if (!PQgetisnull(rows, row, 7))
		memcpy(breaker->incident_id, PQgetvalue(rows, row, 7), 16);
	return true;
}

static void put_failed(struct mirror *mirror, const char *name, int error)
{
	const int64_t now = clock_microseconds(CLOCK_MONOTONIC);

	mirror->left_out = mirror->left_out || error == -ENOSPC;
	if (mirror->full_logged_at != 0 && now - mirror->full_logged_at < FULL_LOG)
		return;
	mirror->full_logged_at = now;
	log_problem(LOG_LEVEL_ERROR, "mirror_incomplete",
		    error == -ENOSPC ? "the segment or its file system is full: raise capacity in "
				       "[segment], or make /dev/shm larger"
				     : "mend the row, or delete it",
		    "breaker=%s error=%s breakers=%" PRIu32, LOG_VALUE(name),
		    LOG_VALUE(strerror(-error)), segment_writer_breakers(mirror->agent->segment));
}

/* From the change to here. Clocks are only so exact: nothing comes before it was committed. */
static void note_lag(struct mirror *mirror, enum mirror_source source, int64_t updated_at)
{
	const int64_t lag = database_clock(mirror->agent->database) - updated_at;

	histogram_add(&mirror->counted.lag[source], lag > 0 ? (double)lag / 1000000 : 0);
}

static void put_row(struct mirror *mirror, const struct breaker_row *breaker,
		    enum mirror_source source, bool force)
{
	struct segment_writer *segment = mirror->agent->segment;
	const int rc = segment_writer_put(segment, breaker, force);

	if (rc < 0) {
		put_failed(mirror, breaker->name, rc);
		return;
	}
	if (breaker->version > mirror->applied)
		mirror->applied = breaker->version;
	if (rc == 1 && source != MIRROR_LOAD)
		note_lag(mirror, source, breaker->updated_at);
	/* Timers follow what stands in the segment, not an older row that it has refused. */
	if (rc == 1 || segment_writer_version(segment, breaker->name) == breaker->version)
		recovery_note(mirror->agent->recovery, breaker);
}

static void put(struct mirror *mirror, const PGresult *rows, int row, enum mirror_source source,
		bool force, bool force_if_equal)
{
	struct breaker_row breaker;

	if (!get_row(rows, row, &breaker)) {
		database_break(mirror->agent->database,
			       "cbshm.mirror has columns of another kind than this agent expects");
		return;
	}
	if (force_if_equal)
		force = segment_writer_version(mirror->agent->segment, breaker.name) ==
			breaker.version;
	put_row(mirror, &breaker, source, force);
}

/* Breakers have gone: whoever was left out before them is looked for now, not a minute later. */
static void look_for_left_out(struct mirror *mirror)
{
	if (!mirror->left_out || !segment_writer_has_room(mirror->agent->segment))
		return;
	mirror->left_out = false;
	mirror->compare = true;
	event_active(mirror->kick, EV_TIMEOUT, 0);
}

void mirror_gone(struct mirror *mirror, const char *name)
{
	recovery_forget(mirror->agent->recovery, name);
	segment_writer_remove(mirror->agent->segment, name);
	segment_writer_publish(mirror->agent->segment);
	look_for_left_out(mirror);
}

/* ---- the sets of changed names ---- */

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct change *)a)->name, ((const struct change *)b)->name);
}

static void changes_clear(struct changes *changes)
{
	tdestroy(changes->tree, free);
	*changes = (struct changes){0};
}

static struct change *changes_find(struct changes *changes, const char *name)
{
	struct change key;
	void *found;

	strcpy(key.name, name);
	found = tfind(&key, &changes->tree, by_name);
	return found == NULL ? NULL : *(struct change **)found;
}

static struct change *changes_add(struct changes *changes, const char *name)
{
	struct change *change = changes_find(changes, name);

	if (change != NULL)
		return change;
	change = memory_new(1, sizeof(*change));
	strcpy(change->name, name);
	change->heard = UINT64_MAX;
	if (tsearch(change, &changes->tree, by_name) == NULL)
		abort();
	changes->count++;
	return change;
}

/* The first time counts. */
static void note_heard(struct mirror *mirror, struct changes *changes, const char *name,
		       uint64_t version, bool deleted, uint64_t heard)
{
	struct change *change;

	if (strlen(name) >= CBSHM_NAME_ROOM || *name == '\0')
		return;
	change = changes_add(changes, name);
	if (heard < change->heard)
		change->heard = heard;
	if (version > change->version)
		change->version = version;
	change->deleted = change->deleted || deleted;
	if (changes == &mirror->urgent)
		event_active(mirror->kick, EV_TIMEOUT, 0);
}

static void note_change(struct mirror *mirror, struct changes *changes, const char *name,
			uint64_t version, bool deleted)
{
	note_heard(mirror, changes, name, version, deleted, ++mirror->heard);
}

static void want_reload(struct mirror *mirror)
{
	if (!mirror->reload)
		mirror->reload_heard = ++mirror->heard;
	mirror->reload = true;
}

/* ---- barriers ---- */

static void find_first(const void *node, VISIT visit, void *arg)
{
	const struct change *change = *(struct change *const *)node;
	uint64_t *first = arg;

	if ((visit == preorder || visit == leaf) && change->heard < *first)
		*first = change->heard;
}

/* Is everything in the segment that was heard up to then? What it has no room for is not. */
static bool has_applied(const struct mirror *mirror, uint64_t heard)
{
	uint64_t first = UINT64_MAX;

	if (mirror->control == NULL || mirror->left_out ||
	    (mirror->loading && (mirror->first || mirror->load_heard <= heard)) ||
	    (mirror->reload && mirror->reload_heard <= heard))
		return false;
	twalk_r(mirror->urgent.tree, find_first, &first);
	twalk_r(mirror->asked.tree, find_first, &first);
	return first > heard;
}

/* After whatever may have brought the segment further. */
static void check_barriers(struct mirror *mirror)
{
	while (mirror->barrier.number != 0 && has_applied(mirror, mirror->barrier.heard)) {
		mirror->reached = mirror->barrier.number;
		fleet_applied(mirror->agent->fleet, mirror->reached);
		mirror->barrier = mirror->next_barrier;
		mirror->next_barrier = (struct barrier){0};
	}
}

/*
 * The one that is waited for stays: newer ones could put off its acknowledgement for ever. One that was reached is old news, which
 * anybody may repeat: acknowledged again, it would take back what was acknowledged since.
 */
static void hear_barrier(struct mirror *mirror, int64_t number)
{
	struct barrier *place =
		mirror->barrier.number == 0 ? &mirror->barrier : &mirror->next_barrier;

	if (number <= mirror->reached || number <= mirror->barrier.number ||
	    number <= place->number)
		return;
	*place = (struct barrier){.number = number, .heard = mirror->heard};
	check_barriers(mirror);
}

unsigned mirror_moment(const struct mirror *mirror)
{
	return mirror->loads;
}

void mirror_apply(struct mirror *mirror, const PGresult *rows, unsigned moment)
{
	const char *name;

	/*
	 * A name that the segment does not have: if its row was deleted after our commit, we may have heard of that
	 * before we came here, and would not again. So it is asked for.
	 */
	for (int i = 0; i < PQntuples(rows); i++) {
		name = PQgetvalue(rows, i, 0);
		if (!PQgetisnull(rows, i, 0) &&
		    segment_writer_version(mirror->agent->segment, name) == 0 &&
		    PQnfields(rows) >= MIRROR_COLUMNS)
			note_change(mirror, &mirror->urgent, name, (uint64_t)get_int8(rows, i, 1),
				    true);
	}
	for (int i = 0; i < PQntuples(rows); i++) {
		if (!PQgetisnull(rows, i, 0))
			put(mirror, rows, i, MIRROR_OWN, false, false);
	}
	segment_writer_publish(mirror->agent->segment);
	/* Their version does not tell: no later row would put the policy right. */
	if (moment != mirror->loads)
		mirror_reload(mirror, NULL, NULL);
}

/* ---- the end of a question ---- */

static void serve_waiters(struct waiter **waiters)
{
	struct waiter *waiter;

	while ((waiter = *waiters) != NULL) {
		*waiters = waiter->next;
		waiter->done(waiter->arg);
		free(waiter);
	}
}

/* True if the answer can be used; else the connection is not worth anything any more. */
static bool answered(struct mirror *mirror, const struct unit *unit, enum unit_end end)
{
	mirror->busy = false;
	if (end == UNIT_DONE)
		return true;
	if (end == UNIT_FAILED)
		database_break(mirror->agent->database, PQresultErrorMessage(unit_error(unit)));
	return false;
}

/* ---- loads ---- */

/* Of a question that has asked for it before anything else. */
static int64_t get_barrier(const struct unit *unit)
{
	return atoll(PQgetvalue(unit_result(unit, 0), 0, 0));
}

static void on_load_row(const PGresult *row, void *arg)
{
	struct mirror *mirror = arg;

	put(mirror, row, 0, MIRROR_LOAD, mirror->first, mirror->settings);
	/* Nobody waits for the rest of a million rows to see the first. */
	if (++mirror->loaded % PUBLISH_EVERY == 0)
		segment_writer_publish(mirror->agent->segment);
}

static void take_settings(struct mirror *mirror, const PGresult *result)
{
	free(mirror->settings_text);
	mirror->settings_text = memory_copy(PQgetvalue(result, 0, 0));
	mirror->settings_version = strtoull(PQgetvalue(result, 0, 1), NULL, 10);
	announcement_key_set(&mirror->key, PQgetvalue(result, 0, 2));
}

static void on_loaded(struct unit *unit, enum unit_end end, void *arg)
{
	struct mirror *mirror = arg;
	const bool first = mirror->first;

	mirror->loading = mirror->first = mirror->settings = false;
	if (!answered(mirror, unit, end)) {
		segment_writer_load_abort(mirror->agent->segment);
		segment_writer_publish(mirror->agent->segment);
		serve_waiters(&mirror->served);
		return;
	}
	take_settings(mirror, unit_result(unit, 1));
	segment_writer_load_end(mirror->agent->segment);
	segment_writer_publish(mirror->agent->segment);
	look_for_left_out(mirror);
	mirror->counted.loads++;
	log_event(first ? LOG_LEVEL_INFO : LOG_LEVEL_DEBUG, "loaded",
		  "breakers=%u milliseconds=%" PRId64, mirror->loaded,
		  (unit_ended_at(unit) - unit_sent_at(unit)) / 1000);
	if (first)
		database_loaded(mirror->agent->database);
	serve_waiters(&mirror->served);
	hear_barrier(mirror, get_barrier(unit));
	check_barriers(mirror);
	ask(mirror);
}

static void load(struct mirror *mirror, bool first)
{
	struct unit *unit = unit_new(on_loaded, mirror);

	mirror->busy = mirror->loading = true;
	mirror->first = first;
	mirror->settings = !first;
	mirror->loads += !first;
	mirror->load_heard = mirror->reload_heard;
	mirror->reload = false;
	mirror->loaded = 0;
	mirror->served = mirror->waiting;
	mirror->waiting = NULL;
	segment_writer_load_begin(mirror->agent->segment);
	/* The barrier first: what it is about is in the rows. The settings: a change after them is seen by a comparison. */
	unit_add(unit, sql_barrier, 0);
	unit_add(unit, sql_settings, 0);
	unit_add(unit, sql_all, 0);
	unit_binary(unit);
	unit_streamed(unit, on_load_row);
	connection_run(mirror->control, unit);
}

void mirror_reload(struct mirror *mirror, void (*done)(void *arg), void *arg)
{
	struct waiter *waiter;

	if (mirror->control == NULL) {
		if (done != NULL)
			done(arg);
		return;
	}
	if (done != NULL) {
		waiter = memory_new(1, sizeof(*waiter));
		*waiter = (struct waiter){.done = done, .arg = arg, .next = mirror->waiting};
		mirror->waiting = waiter;
	}
	want_reload(mirror);
	event_active(mirror->kick, EV_TIMEOUT, 0);
}

/* ---- changed rows ---- */

/*
 * Nobody was told of this row by the answer: it is gone, unless our own transactions have put
 * it after the question was asked.
 */
static void settle_missing(const void *node, VISIT visit, void *arg)
{
	const struct change *change = *(struct change *const *)node;
	struct mirror *mirror = arg;
	const uint64_t now = segment_writer_version(mirror->agent->segment, change->name);

	if ((visit != preorder && visit != leaf) || change->version == UINT64_MAX)
		return;
	if (now == change->put)
		mirror_gone(mirror, change->name);
	else
		note_heard(mirror, &mirror->urgent, change->name, now, true, change->heard);
}

static void on_changed(struct unit *unit, enum unit_end end, void *arg)
{
	struct mirror *mirror = arg;
	const PGresult *rows = unit_result(unit, 0);
	struct change *change;

	if (answered(mirror, unit, end)) {
		for (int i = 0; i < PQntuples(rows); i++) {
			change = changes_find(&mirror->asked, PQgetvalue(rows, i, 0));
			put(mirror, rows, i,
			    change != NULL && change->counter ? MIRROR_COUNTERS : MIRROR_NOTIFIED,
			    false, false);
			if (change != NULL)
				change->version = UINT64_MAX;
		}
		segment_writer_publish(mirror->agent->segment);
		twalk_r(mirror->asked.tree, settle_missing, mirror);
		changes_clear(&mirror->asked);
		check_barriers(mirror);
		ask(mirror);
	}
}

struct question {
	struct mirror *mirror;
	struct text names;
	struct change *taken[NAMES_AT_ONCE];
	unsigned count;
};

/* Moves names into the question; those that the segment has in the meantime are dropped with it. */
static void collect(const void *node, VISIT visit, void *arg)
{
	struct question *question = arg;

	if ((visit == preorder || visit == leaf) && question->count < NAMES_AT_ONCE)
		question->taken[question->count++] = *(struct change *const *)node;
}

static void take_changes(struct question *question, struct changes *from)
{
	struct mirror *mirror = question->mirror;
	struct change *change, *asked;
	uint64_t put;

	question->count = 0;
	twalk_r(from->tree, collect, question);
	for (unsigned i = 0; i < question->count; i++) {
		change = question->taken[i];
		tdelete(change, &from->tree, by_name);
		from->count--;
		put = segment_writer_version(mirror->agent->segment, change->name);
		/* The version that a deletion tells is the one we have if we have heard of everything else. */
		if (put > change->version || (put == change->version && !change->deleted)) {
			free(change);
			continue;
		}
		if (changes_find(&mirror->asked, change->name) == NULL) {
			asked = changes_add(&mirror->asked, change->name);
			asked->put = put;
			asked->counter = from == &mirror->counters;
			asked->heard = change->heard;
			text_array_add(&question->names, change->name);
		}
		free(change);
	}
}

static void ask_changed(struct mirror *mirror)
{
	struct question *question = memory_new(1, sizeof(*question));
	struct unit *unit;

	question->mirror = mirror;
	take_changes(question, &mirror->urgent);
	take_changes(question, &mirror->counters);
	if (mirror->asked.count > 0) {
		unit = unit_new(on_changed, mirror);
		unit_add(unit, sql_names, 1, text_array_end(&question->names));
		unit_binary(unit);
		unit_prepared(unit);
		mirror->busy = true;
		connection_run(mirror->control, unit);
	}
	free(question);
	if (!mirror->busy) {
		/* All that was taken is in the segment, and no answer will come to say so. */
		check_barriers(mirror);
		if (mirror->urgent.count > 0)
			event_active(mirror->kick, EV_TIMEOUT, 0);
	}
}

/* ---- the comparison ---- */

static void on_version_row(const PGresult *row, void *arg)
{
	struct mirror *mirror = arg;
	const char *name = PQgetvalue(row, 0, 0);
	const uint64_t version = (uint64_t)get_int8(row, 0, 1);
	const uint64_t put = segment_writer_version(mirror->agent->segment, name);

	mirror->compare_rows++;
	if (put > 0)
		mirror->compare_matches++;
	if (put >= version)
		return;
	mirror->compare_behind += *PQgetvalue(row, 0, 2) != 0;
	note_change(mirror, &mirror->urgent, name, version, false);
}

static void on_compared(struct unit *unit, enum unit_end end, void *arg)
{
	struct mirror *mirror = arg;
	const uint64_t breakers = segment_writer_breakers(mirror->agent->segment);

	if (!answered(mirror, unit, end))
		return;
	/* Every breaker of the segment has a row, or else one was deleted and a load finds which. */
	if (mirror->compare_matches != breakers ||
	    (mirror->settings_text != NULL &&
	     strcmp(mirror->settings_text, PQgetvalue(unit_result(unit, 1), 0, 0)) != 0))
		want_reload(mirror);
	else if (mirror->urgent.count == 0)
		segment_writer_database_confirmed(mirror->agent->segment);
	if (mirror->compare_behind > 0 || mirror->reload) {
		mirror->counted.behind++;
		log_problem(
			database_is_deaf(mirror->agent->database) ? LOG_LEVEL_DEBUG
								  : LOG_LEVEL_WARNING,
			"mirror_was_behind",
			"nothing to do, it has caught up; if this repeats, notifications get lost: "
			"see what is between agent and server",
			"changed=%u rows=%" PRIu64 " breakers=%" PRIu64, mirror->urgent.count,
			mirror->compare_rows, breakers);
	}
	hear_barrier(mirror, get_barrier(unit));
	ask(mirror);
}

static void compare(struct mirror *mirror)
{
	struct unit *unit = unit_new(on_compared, mirror);

	mirror->busy = true;
	mirror->compare = false;
	mirror->compare_matches = mirror->compare_rows = mirror->compare_behind = 0;
	unit_add(unit, sql_barrier, 0);
	unit_add(unit, sql_settings, 0);
	unit_add(unit, sql_versions, 0);
	unit_binary(unit);
	unit_streamed(unit, on_version_row);
	connection_run(mirror->control, unit);
}

/* ---- what comes next ---- */

static void ask(struct mirror *mirror)
{
	if (mirror->control == NULL || mirror->busy)
		return;
	if (mirror->reload)
		load(mirror, false);
	else if (mirror->urgent.count > 0)
		ask_changed(mirror);
	else if (mirror->compare)
		compare(mirror);
}

static void on_kick(evutil_socket_t fd, short what, void *arg)
{
	struct mirror *mirror = arg;

	(void)fd;
	(void)what;
	segment_writer_publish(mirror->agent->segment);
	ask(mirror);
}

void mirror_tick(struct mirror *mirror)
{
	const unsigned every = database_is_deaf(mirror->agent->database) ? 1 : COMPARE_EVERY;

	mirror->ticks++;
	if (mirror->ticks % every == 0)
		mirror->compare = true;
	if (mirror->busy)
		return;
	if (mirror->counters.count > 0 && !mirror->reload)
		ask_changed(mirror);
	else
		ask(mirror);
}

/*
 * True if the notification itself has brought the row. Not if the policy in it may be of other settings than those that
 * were loaded; nor if the segment does not have the name: then it may have been deleted since, and that be known already.
 */
static bool take_announced(struct mirror *mirror, const struct announcement *announced)
{
	if (!announced->whole || mirror->loading || mirror->reload ||
	    announced->settings_version != mirror->settings_version ||
	    segment_writer_version(mirror->agent->segment, announced->row.name) == 0)
		return false;
	put_row(mirror, &announced->row, MIRROR_NOTIFIED, false);
	/* Its readers are woken when all that has come with it is there. */
	event_active(mirror->kick, EV_TIMEOUT, 0);
	return true;
}

static void hear_change(struct mirror *mirror, char *payload)
{
	struct announcement announced;
	const struct breaker_row *row = &announced.row;

	if (!announcement_parse(payload, &mirror->key, &announced)) {
		mirror_reload(mirror, NULL, NULL);
		return;
	}
	if (announced.kind != 'd' &&
	    segment_writer_version(mirror->agent->segment, row->name) >= row->version)
		return;
	if (take_announced(mirror, &announced))
		return;
	note_change(mirror, announced.kind == 'n' ? &mirror->counters : &mirror->urgent, row->name,
		    row->version, announced.kind == 'd');
}

/* What somebody else than the database has said makes the agent ask the database, no more. */
static void hear_announced_barrier(struct mirror *mirror, char *payload)
{
	int64_t number;

	if (announcement_barrier(payload, &mirror->key, &number))
		hear_barrier(mirror, number);
	else
		mirror_reload(mirror, NULL, NULL);
}

/*
 * "s", "b 7", and what announcement.c knows; "a" is about alerts. Anything else is from a schema that is newer than this agent:
 * something has changed, and no barrier may be acknowledged before it is here.
 */
void mirror_notified(struct mirror *mirror, const char *payload)
{
	char *copy;

	if (strcmp(payload, "s") == 0) {
		mirror_reload(mirror, NULL, NULL);
		return;
	}
	if (strcmp(payload, "a") == 0)
		return;
	copy = memory_copy(payload);
	if (copy[0] == 'b' && copy[1] == ' ')
		hear_announced_barrier(mirror, copy);
	else
		hear_change(mirror, copy);
	free(copy);
}

bool mirror_is_current(const struct mirror *mirror)
{
	return mirror->control != NULL && !mirror->loading && !mirror->reload &&
	       mirror->urgent.count == 0 && mirror->asked.count == 0;
}

uint64_t mirror_applied(const struct mirror *mirror)
{
	return mirror->applied;
}

void mirror_connected(struct mirror *mirror, struct connection *control)
{
	mirror->control = control;
	mirror->applied = 0;
	mirror->reached = 0;
	load(mirror, true);
}

void mirror_disconnected(struct mirror *mirror)
{
	/* A load under way is ended by its unit, which is lost with the connection. */
	mirror->control = NULL;
	mirror->reload = mirror->compare = false;
	changes_clear(&mirror->urgent);
	changes_clear(&mirror->counters);
	changes_clear(&mirror->asked);
	mirror->barrier = mirror->next_barrier = (struct barrier){0};
	serve_waiters(&mirror->waiting);
}

const struct mirror_counters *mirror_counters(const struct mirror *mirror)
{
	return &mirror->counted;
}

bool mirror_is_incomplete(const struct mirror *mirror)
{
	return mirror->left_out;
}

struct mirror *mirror_new(struct agent *agent)
{
	struct mirror *mirror = memory_new(1, sizeof(*mirror));

	mirror->agent = agent;
	for (int source = 0; source < MIRROR_LOAD; source++)
		mirror->counted.lag[source] = (struct histogram)HISTOGRAM(histogram_seconds);
	mirror->kick = evtimer_new(agent->base, on_kick, mirror);
	return mirror;
}

void mirror_free(struct mirror *mirror)
{
	if (mirror == NULL)
		return;
	mirror_disconnected(mirror);
	event_free(mirror->kick);
	free(mirror->settings_text);
	free(mirror);
}
