/*
 * outbox.c - claims alerts, has them sent, marks them; and watches for an Alertmanager that comes back
 *
 * SPDX-License-Identifier: ISC
 *
 * One batch at a time, in the states idle - claiming - sending, changed in change_state() only. Statements go over the
 * control connection: none of them waits for a lock that somebody holds for long.
 *
 * When a delivery fails, an empty list of alerts is posted at once. If Alertmanager does not answer that either, it is
 * posted again every second; when it is answered, everything that was put off is due. If it is answered at once, the same
 * alerts are sent again, one incident after the other: what fails again is a suspect, which from then on is sent by itself,
 * after all others. If none fails, Alertmanager was away for a moment, and that is its comeback.
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
#include <unistd.h>

#include "agent/agent.h"
#include "agent/alertmanager.h"
#include "agent/config.h"
#include "agent/connection.h"
#include "agent/database.h"
#include "agent/log.h"
#include "agent/outbox.h"
#include "agent/text.h"

/* Microseconds. */
#define SEND_TIMEOUT  5000000
#define PROBE_TIMEOUT 2000000
#define PROBE_EVERY   1000000
#define LEASE         20000000
#define LEASE_MARGIN  1000000 /* no sending that could last until so shortly before its end */
#define TURN_MIN      1000000 /* due, but not to be had: somebody else is at it */
#define TURN_MAX      60000000
#define TURN_DEAF     1000000 /* without notifications */
#define TURN_SPREAD   20000   /* not all agents of the fleet ask in the same millisecond */
#define SKIP_AFTER    5000000 /* as long are other agents given that may know an Alertmanager */
#define SKIP_PAUSE    20000   /* between two helpings: there is no hurry */
#define REPEAT_LOG    60000000
#define SUSPECTS_TIME 2000000
#define PRESUME_EVERY 30000000

#define INCIDENTS_MAX 12 /* in one turn: while a statement runs, its session hears of no change */

enum outbox_state { OUTBOX_IDLE, OUTBOX_CLAIMING, OUTBOX_SENDING };

struct outbox {
	struct agent *agent;
	char name[256]; /* of the lease: this process and no other */
	enum outbox_state state;
	struct event *timer; /* the next turn */
	bool hurried;        /* and it is soon */
	bool stopping;
	struct alertmanager *alertmanager; /* NULL: none is configured */
	bool told_skipped;

	PGresult *claimed;
	int at;      /* the first row that has not got its end */
	int in_post; /* rows that are being sent */
	int again; /* those before it are sent for the second time, one incident after the other */
	bool guilty;         /* and one of these has failed again, or was refused */
	int64_t presumed_at; /* last, that none has, and Alertmanager was away for a moment */
	int64_t claimed_at;
	struct delivery *delivery;
	char *failure; /* of a delivery, until it is known whether Alertmanager answers at all; or NULL */
	int64_t told_at; /* last, of an alert that is not taken */
	bool unmarked;   /* the database does not take the ends: slow down */

	bool failing;
	int64_t failed_at;    /* last */
	int64_t not_woken_at; /* told last */
	struct event *probe;
	struct delivery *probing;
	char logged[512];
	int64_t logged_at;

	struct outbox_counters counters;
	struct outbox_depth depth;
	bool sampling;
};

/* Whatever this agent still holds is from a turn that has not come to its end, or stands beside what was sent. */
static const char sql_release[] = "SELECT cbshm.alerts_release($1)";
static const char sql_claim[] =
	"SELECT id, breaker, kind, repeated,"
	" CASE WHEN $4::pg_catalog.text = '' THEN payload ELSE payload ||"
	"  pg_catalog.jsonb_build_object('annotations', (payload -> 'annotations') ||"
	"   pg_catalog.jsonb_build_object('runbook_url', $4::pg_catalog.text)) END,"
	" suspect, incident_id"
	" FROM cbshm.claim_alerts($1, $2::pg_catalog.int4,"
	"  pg_catalog.make_interval(secs => $3::pg_catalog.float8)) WITH ORDINALITY"
	" ORDER BY ordinality";
static const char sql_due[] = "SELECT cbshm.alerts_due(true)";
static const char sql_sent[] = "SELECT cbshm.alerts_sent($1, $2::pg_catalog.int8[],"
			       " pg_catalog.make_interval(secs => $3::pg_catalog.float8))";
static const char sql_put_off[] =
	"SELECT id, breaker, kind"
	" FROM cbshm.alerts_put_off($1, $2::pg_catalog.int8[], $3, $4::pg_catalog.int4)";
static const char sql_wake[] =
	"SELECT cbshm.alerts_wake_some(pg_catalog.make_interval(secs => $1::pg_catalog.float8),"
	" $2::pg_catalog.timestamptz)";
static const char sql_skip[] =
	"SELECT cbshm.alerts_skipped(pg_catalog.make_interval(secs => $1::pg_catalog.float8))";
static const char sql_depth[] =
	"SELECT pending, leased, failed, oldest_pending_seconds FROM cbshm.alerts_depth()";
static const char sql_due_to_skip[] = "SELECT cbshm.alerts_due(false)";

static const char again_hint[] =
	"it is tried again by itself; if this repeats, the server's log says more";

static void send_next(struct outbox *outbox);

static int64_t now(void)
{
	/* Goes on during a suspend, as leases do. */
	return clock_microseconds(CLOCK_BOOTTIME);
}

static void set_timer(struct event *event, int64_t microseconds)
{
	const struct timeval delay = {.tv_sec = microseconds / 1000000,
				      .tv_usec = microseconds % 1000000};

	event_add(event, &delay);
}

static int64_t spread(void)
{
	uint32_t random = 0;

	if (getrandom(&random, sizeof(random), GRND_NONBLOCK) != (ssize_t)sizeof(random))
		random = (uint32_t)now();
	return random % TURN_SPREAD;
}

static char *number_text(double number)
{
	struct text text = {0};

	text_format(&text, "%.6f", number);
	return text_take(&text);
}

static bool is_live(const struct outbox *outbox)
{
	return !outbox->stopping && database_state(outbox->agent->database) == DATABASE_LIVE;
}

static void run_unit(struct outbox *outbox, struct unit *unit)
{
	connection_run(database_control(outbox->agent->database), unit);
}

/* Whatever of it is lost in a crash is done again: not worth a wait for the disk, or for a standby that is away. */
static void run_change(struct outbox *outbox, struct unit *unit)
{
	unit_asynchronous(unit);
	unit_prepared(unit);
	run_unit(outbox, unit);
}

/* ---- the state machine ---- */

static void change_state(struct outbox *outbox, enum outbox_state to)
{
	/* One step forward at a time, and back to idle from anywhere. */
	assert(to == OUTBOX_IDLE || to == outbox->state + 1);
	outbox->state = to;
	if (to != OUTBOX_IDLE)
		return;
	delivery_free(outbox->delivery);
	outbox->delivery = NULL;
	PQclear(outbox->claimed);
	outbox->claimed = NULL;
	free(outbox->failure);
	outbox->failure = NULL;
}

static void next_turn(struct outbox *outbox, int64_t microseconds)
{
	set_timer(outbox->timer, microseconds);
}

/* Something new is due, which nobody waits for if it is not to be sent. */
static int64_t soon(const struct outbox *outbox)
{
	return (outbox->alertmanager != NULL ? 0 : SKIP_AFTER) + spread();
}

static void hurry(struct outbox *outbox)
{
	if (outbox->hurried)
		return;
	outbox->hurried = true;
	if (outbox->state == OUTBOX_IDLE)
		next_turn(outbox, soon(outbox));
}

/* Nothing is left of this batch. */
static void end_batch(struct outbox *outbox)
{
	change_state(outbox, OUTBOX_IDLE);
	next_turn(outbox, 0);
}

/* When the database says that something is due. */
static void wait_for_due(struct outbox *outbox, const PGresult *due, int64_t patience)
{
	const int64_t limit = database_is_deaf(outbox->agent->database) ? TURN_DEAF : TURN_MAX;
	int64_t delay = limit;

	if (!PQgetisnull(due, 0, 0))
		delay = atoll(PQgetvalue(due, 0, 0)) * 1000 + patience;
	if (delay == 0)
		delay = TURN_MIN;
	delay = (delay < limit ? delay : limit) + spread();
	next_turn(outbox, outbox->hurried ? soon(outbox) : delay);
}

/* ---- how Alertmanager is ---- */

/* Not only doubted. */
static bool is_down(const struct outbox *outbox)
{
	return outbox->failing && *outbox->logged != '\0';
}

static void note_failure(struct outbox *outbox, const char *reason)
{
	outbox->failed_at = now();
	if (!is_down(outbox))
		set_timer(outbox->probe, PROBE_EVERY);
	outbox->failing = true;
	if (strncmp(outbox->logged, reason, sizeof(outbox->logged) - 1) == 0 &&
	    outbox->failed_at - outbox->logged_at < REPEAT_LOG)
		return;
	log_problem(LOG_LEVEL_WARNING, "alertmanager_unavailable",
		    "alerts wait in the queue: see that the url in [alertmanager] is right and "
		    "answers",
		    "reason=%s", LOG_VALUE(reason));
	snprintf(outbox->logged, sizeof(outbox->logged), "%s", reason);
	outbox->logged_at = outbox->failed_at;
}

/* It may know nothing of what is open: to be probed, and what waits is due once it answers. */
static void doubt(struct outbox *outbox)
{
	outbox->failing = outbox->alertmanager != NULL;
	if (outbox->failing)
		set_timer(outbox->probe, PROBE_EVERY);
}

/*
 * It has taken again what had failed: it has been away for a moment, or is well again. Or there was too much at once; so not each
 * time.
 */
static void presume_comeback(struct outbox *outbox)
{
	const int64_t next = outbox->presumed_at + PRESUME_EVERY - now();

	if (outbox->failing)
		return;
	doubt(outbox);
	if (next > PROBE_EVERY)
		set_timer(outbox->probe, next);
	outbox->presumed_at = now() + (next > 0 ? next : 0);
}

static void wake(struct outbox *outbox, const char *position);

static void on_woken(struct unit *unit, enum unit_end end, void *arg)
{
	struct outbox *outbox = arg;
	const PGresult *position = unit_result(unit, 0);

	if (end == UNIT_FAILED && now() - outbox->not_woken_at >= REPEAT_LOG) {
		outbox->not_woken_at = now();
		log_problem(LOG_LEVEL_WARNING, "alerts_not_woken", again_hint, "reason=%s",
			    LOG_VALUE(PQresultErrorMessage(unit_error(unit))));
	}
	if (end != UNIT_DONE)
		doubt(outbox);
	hurry(outbox);
	if (end == UNIT_DONE && !is_down(outbox) && is_live(outbox) && !PQgetisnull(position, 0, 0))
		wake(outbox, PQgetvalue(position, 0, 0));
}

/* What waited for it is due, a helping at a time. */
static void wake(struct outbox *outbox, const char *position)
{
	struct unit *unit = unit_new(on_woken, outbox);

	unit_add(unit, sql_wake, 2, number_text((double)(now() - outbox->failed_at) / 1000000),
		 memory_copy(position));
	run_change(outbox, unit);
}

static void end_failure(struct outbox *outbox)
{
	outbox->failing = false;
	event_del(outbox->probe);
	if (*outbox->logged != '\0')
		log_event(LOG_LEVEL_INFO, "alertmanager_available", "after=%.1f",
			  (double)(now() - outbox->failed_at) / 1000000);
	*outbox->logged = '\0';
}

static void judge(struct outbox *outbox, bool answers);

static void on_probed(enum delivery_end end, const char *reason, void *arg)
{
	/* A refusal of nothing is an answer too. */
	const bool answers = end != DELIVERY_FAILED;
	struct outbox *outbox = arg;
	/* It was asked because of a delivery: what is only doubted stays so until its time. */
	const bool out_of_turn = !is_down(outbox) && event_pending(outbox->probe, EV_TIMEOUT, NULL);

	if (!answers)
		note_failure(outbox, reason);
	delivery_free(outbox->probing);
	outbox->probing = NULL;
	if (answers && out_of_turn) {
		/* The timer goes on. */
	} else if (outbox->failing && answers && is_live(outbox)) {
		end_failure(outbox);
		wake(outbox, "-infinity");
	} else if (outbox->failing) {
		set_timer(outbox->probe, PROBE_EVERY);
	}
	if (outbox->failure != NULL)
		judge(outbox, answers);
}

static void start_probe(struct outbox *outbox)
{
	if (outbox->probing == NULL)
		outbox->probing = alertmanager_deliver(outbox->alertmanager, "[]", PROBE_TIMEOUT,
						       on_probed, outbox);
}

static void on_probe(evutil_socket_t fd, short what, void *arg)
{
	struct outbox *outbox = arg;

	(void)fd;
	(void)what;
	if (outbox->failing && outbox->alertmanager != NULL && !outbox->stopping)
		start_probe(outbox);
}

/* ---- sending a batch ---- */

/* The ids of the rows in the post. */
static char *posted_ids(const struct outbox *outbox)
{
	struct text text = {0};

	for (int i = outbox->at; i < outbox->at + outbox->in_post; i++)
		text_array_add(&text, PQgetvalue(outbox->claimed, i, 0));
	return text_array_end(&text);
}

static void on_marked(struct unit *unit, enum unit_end end, void *arg)
{
	struct outbox *outbox = arg;

	if (end != UNIT_FAILED)
		return;
	outbox->unmarked = true;
	log_problem(LOG_LEVEL_WARNING, "alerts_unmarked", again_hint, "reason=%s",
		    LOG_VALUE(PQresultErrorMessage(unit_error(unit))));
}

static void on_put_off(struct unit *unit, enum unit_end end, void *arg)
{
	const PGresult *failed = unit_result(unit, 0);
	struct outbox *outbox = arg;

	on_marked(unit, end, arg);
	if (end == UNIT_DONE)
		outbox->counters.failed += (uint64_t)PQntuples(failed);
	for (int i = 0; end == UNIT_DONE && i < PQntuples(failed); i++)
		log_problem(LOG_LEVEL_ERROR, "alert_failed",
			    "when its cause is mended: cbctl alerts retry",
			    "breaker=%s kind=%s id=%s", LOG_VALUE(PQgetvalue(failed, i, 1)),
			    PQgetvalue(failed, i, 2), PQgetvalue(failed, i, 0));
}

static void mark_sent(struct outbox *outbox)
{
	const int count = outbox->in_post;
	struct unit *unit = unit_new(on_marked, outbox);

	unit_add(unit, sql_sent, 3, memory_copy(outbox->name), posted_ids(outbox),
		 number_text(outbox->agent->config->resend_interval));
	unit_prepared(unit);
	run_change(outbox, unit);
	for (int i = outbox->at; i < outbox->at + count; i++) {
		const bool repeated = *PQgetvalue(outbox->claimed, i, 3) == 't';

		*(repeated ? &outbox->counters.repeated : &outbox->counters.sent) += 1;
		log_event(repeated ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO, "alert_sent",
			  "breaker=%s kind=%s repeated=%s",
			  LOG_VALUE(PQgetvalue(outbox->claimed, i, 1)),
			  PQgetvalue(outbox->claimed, i, 2), repeated ? "yes" : "no");
	}
	outbox->at += count;
}

static void mark_put_off(struct outbox *outbox, const char *reason, const char *suspicion)
{
	const int count = outbox->in_post;
	struct unit *unit = unit_new(on_put_off, outbox);

	unit_add(unit, sql_put_off, 4, memory_copy(outbox->name), posted_ids(outbox),
		 memory_copy(reason), suspicion != NULL ? memory_copy(suspicion) : NULL);
	unit_prepared(unit);
	run_change(outbox, unit);
	outbox->counters.put_off += (uint64_t)count;
	log_event(LOG_LEVEL_DEBUG, "alerts_put_off", "count=%d reason=%s", count,
		  LOG_VALUE(reason));
	outbox->at += count;
}

static bool is_suspect(const struct outbox *outbox, int row)
{
	return *PQgetvalue(outbox->claimed, row, 5) == 't';
}

static bool same_incident(const struct outbox *outbox, int row)
{
	return strcmp(PQgetvalue(outbox->claimed, row, 6),
		      PQgetvalue(outbox->claimed, outbox->at, 6)) == 0;
}

static bool is_one_incident(const struct outbox *outbox)
{
	return same_incident(outbox, outbox->at + outbox->in_post - 1);
}

/* How many rows make the next post. The alerts of an incident go together: one that fails holds up the next. */
static int next_post(const struct outbox *outbox)
{
	const int rows = PQntuples(outbox->claimed);
	/* While Alertmanager is down, nothing is learnt of a single one. */
	const bool alone =
		outbox->at < outbox->again || (!is_down(outbox) && is_suspect(outbox, outbox->at));
	int end = outbox->at + 1;

	while (end < rows &&
	       (alone ? same_incident(outbox, end) : is_down(outbox) || !is_suspect(outbox, end)))
		end++;
	return end - outbox->at;
}

/* Alertmanager answers, but not to the rows in the post. */
static void not_taken(struct outbox *outbox, const char *reason)
{
	if (now() - outbox->told_at >= REPEAT_LOG) {
		outbox->told_at = now();
		log_problem(LOG_LEVEL_WARNING, "alert_not_taken",
			    "Alertmanager answers, but not to this: it is tried again later and "
			    "later; its own log says more",
			    "breaker=%s kind=%s reason=%s",
			    LOG_VALUE(PQgetvalue(outbox->claimed, outbox->at, 1)),
			    PQgetvalue(outbox->claimed, outbox->at, 2), LOG_VALUE(reason));
	}
	outbox->guilty = true;
	mark_put_off(outbox, reason, "2");
}

static void send_again(struct outbox *outbox)
{
	outbox->again = outbox->at + outbox->in_post;
	outbox->guilty = false;
}

/* Whether it answers at all is known now. */
static void judge(struct outbox *outbox, bool answers)
{
	char *reason = outbox->failure;

	outbox->failure = NULL;
	if (!is_live(outbox)) {
		change_state(outbox, OUTBOX_IDLE);
	} else {
		const bool by_itself = is_one_incident(outbox) && (outbox->at < outbox->again ||
								   is_suspect(outbox, outbox->at));

		if (answers && by_itself) {
			not_taken(outbox, reason);
		} else if (answers) {
			send_again(outbox);
		} else {
			outbox->again = 0;
			mark_put_off(outbox, reason, by_itself ? "2" : "1");
		}
		send_next(outbox);
	}
	free(reason);
}

static void accepted(struct outbox *outbox)
{
	const bool suspect = is_suspect(outbox, outbox->at);

	mark_sent(outbox);
	if (suspect || (outbox->at == outbox->again && !outbox->guilty))
		presume_comeback(outbox);
}

static void refused(struct outbox *outbox, const char *reason)
{
	if (is_one_incident(outbox)) {
		not_taken(outbox, reason);
	} else {
		send_again(outbox);
		outbox->guilty = true;
	}
}

static void failed(struct outbox *outbox, const char *reason)
{
	outbox->failed_at = now();
	if (is_down(outbox)) {
		note_failure(outbox, reason);
		mark_put_off(outbox, reason, NULL);
	} else {
		outbox->failure = memory_copy(reason);
		start_probe(outbox);
	}
}

static void on_delivered(enum delivery_end end, const char *reason, void *arg)
{
	struct outbox *outbox = arg;

	if (!is_live(outbox)) {
		change_state(outbox, OUTBOX_IDLE);
		return;
	}
	switch (end) {
	case DELIVERY_ACCEPTED:
		accepted(outbox);
		break;
	case DELIVERY_REFUSED:
		refused(outbox, reason);
		break;
	case DELIVERY_FAILED:
		failed(outbox, reason);
		break;
	}
	delivery_free(outbox->delivery);
	outbox->delivery = NULL;
	if (outbox->failure == NULL)
		send_next(outbox);
}

/* No time is left of the lease; or suspects have taken long, and something else may have come since. */
static bool has_to_end(const struct outbox *outbox)
{
	const int64_t held = now() - outbox->claimed_at;

	return held > LEASE - SEND_TIMEOUT - PROBE_TIMEOUT - LEASE_MARGIN ||
	       (held > SUSPECTS_TIME && outbox->at > 0 && is_suspect(outbox, outbox->at - 1));
}

static void send_next(struct outbox *outbox)
{
	struct text alerts = {0};

	if (outbox->at == PQntuples(outbox->claimed) || has_to_end(outbox)) {
		outbox->in_post = outbox->again - outbox->at;
		if (outbox->in_post > 0)
			mark_put_off(outbox, "it was among others that failed", "1");
		end_batch(outbox);
		return;
	}
	outbox->in_post = next_post(outbox);
	text_add(&alerts, "[");
	for (int i = outbox->at; i < outbox->at + outbox->in_post; i++) {
		text_add(&alerts, i > outbox->at ? "," : "");
		text_add(&alerts, PQgetvalue(outbox->claimed, i, 4));
	}
	text_add(&alerts, "]");
	outbox->delivery = alertmanager_deliver(outbox->alertmanager, alerts.data, SEND_TIMEOUT,
						on_delivered, outbox);
	free(alerts.data);
}

/* ---- the turns ---- */

static void turn_failed(struct outbox *outbox, const struct unit *unit, enum unit_end end)
{
	change_state(outbox, OUTBOX_IDLE);
	if (end == UNIT_LOST)
		return; /* outbox_ready() goes on */
	log_problem(LOG_LEVEL_WARNING, "alerts_not_claimed", again_hint, "reason=%s",
		    LOG_VALUE(PQresultErrorMessage(unit_error(unit))));
	next_turn(outbox, 5 * TURN_MIN);
}

static void on_due(struct unit *unit, enum unit_end end, void *arg)
{
	struct outbox *outbox = arg;

	if (end != UNIT_DONE) {
		turn_failed(outbox, unit, end);
		return;
	}
	change_state(outbox, OUTBOX_IDLE);
	wait_for_due(outbox, unit_result(unit, 0), 0);
}

static void on_claimed(struct unit *unit, enum unit_end end, void *arg)
{
	struct outbox *outbox = arg;

	if (end != UNIT_DONE) {
		turn_failed(outbox, unit, end);
	} else if (outbox->unmarked || outbox->alertmanager == NULL) {
		/* The next turn gives back what this one has claimed. */
		outbox->unmarked = false;
		change_state(outbox, OUTBOX_IDLE);
		next_turn(outbox, TURN_MIN);
	} else if (PQntuples(unit_result(unit, 1)) == 0) {
		unit = unit_new(on_due, outbox);
		unit_add(unit, sql_due, 0);
		unit_prepared(unit);
		run_unit(outbox, unit);
	} else {
		outbox->claimed = unit_take_result(unit, 1);
		outbox->claimed_at = unit_sent_at(unit);
		outbox->at = 0;
		outbox->again = 0;
		change_state(outbox, OUTBOX_SENDING);
		send_next(outbox);
	}
}

static void on_skipped(struct unit *unit, enum unit_end end, void *arg)
{
	struct outbox *outbox = arg;
	int64_t skipped;

	if (end != UNIT_DONE) {
		turn_failed(outbox, unit, end);
		return;
	}
	skipped = atoll(PQgetvalue(unit_result(unit, 1), 0, 0));
	outbox->counters.skipped += (uint64_t)skipped;
	if (skipped > 0 && !outbox->told_skipped) {
		outbox->told_skipped = true;
		log_problem(LOG_LEVEL_WARNING, "alerts_skipped",
			    "no Alertmanager is configured, so nobody is told of breakers that "
			    "open: set url in [alertmanager]",
			    "count=%s", PQgetvalue(unit_result(unit, 1), 0, 0));
	}
	change_state(outbox, OUTBOX_IDLE);
	if (skipped > 0) {
		outbox->hurried = true; /* nothing that is new makes it later */
		next_turn(outbox, SKIP_PAUSE);
	} else {
		wait_for_due(outbox, unit_result(unit, 2), SKIP_AFTER);
	}
}

static void turn(struct outbox *outbox)
{
	const char *runbook = outbox->agent->config->runbook_url;
	struct unit *unit;
	struct text max = {0};

	outbox->hurried = false;
	change_state(outbox, OUTBOX_CLAIMING);
	unit = unit_new(outbox->alertmanager != NULL ? on_claimed : on_skipped, outbox);
	unit_add(unit, sql_release, 1, memory_copy(outbox->name));
	unit_prepared(unit);
	if (outbox->alertmanager == NULL) {
		unit_add(unit, sql_skip, 1, number_text((double)SKIP_AFTER / 1000000));
		unit_add(unit, sql_due_to_skip, 0);
	} else {
		text_format(&max, "%d", INCIDENTS_MAX);
		unit_add(unit, sql_claim, 4, memory_copy(outbox->name), text_take(&max),
			 number_text((double)LEASE / 1000000),
			 memory_copy(runbook != NULL ? runbook : ""));
		unit_prepared(unit);
	}
	run_change(outbox, unit);
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
	struct outbox *outbox = arg;

	(void)fd;
	(void)what;
	if (outbox->state == OUTBOX_IDLE && is_live(outbox))
		turn(outbox);
}

void outbox_ready(struct outbox *outbox)
{
	outbox->hurried = false;
	hurry(outbox);
}

void outbox_notified(struct outbox *outbox, const char *payload)
{
	/* Changes of decisions, deletions, and what an admin has done to the queue. */
	if (payload[0] == 'c' || payload[0] == 'd' || payload[0] == 'a')
		hurry(outbox);
}

/* ---- for the metrics ---- */

static void on_sampled(struct unit *unit, enum unit_end end, void *arg)
{
	struct outbox *outbox = arg;
	const PGresult *result = unit_result(unit, 0);

	outbox->sampling = false;
	if (end != UNIT_DONE)
		return;
	outbox->depth = (struct outbox_depth){
		.pending = strtoull(PQgetvalue(result, 0, 0), NULL, 10),
		.leased = strtoull(PQgetvalue(result, 0, 1), NULL, 10),
		.failed = strtoull(PQgetvalue(result, 0, 2), NULL, 10),
		.oldest_pending = strtod(PQgetvalue(result, 0, 3), NULL),
		.sampled_at = clock_microseconds(CLOCK_MONOTONIC),
	};
}

void outbox_sample(struct outbox *outbox)
{
	struct unit *unit;

	if (outbox->sampling || !is_live(outbox))
		return;
	outbox->sampling = true;
	unit = unit_new(on_sampled, outbox);
	unit_add(unit, sql_depth, 0);
	unit_prepared(unit);
	run_unit(outbox, unit);
}

const struct outbox_depth *outbox_depth(const struct outbox *outbox)
{
	return &outbox->depth;
}

const struct outbox_counters *outbox_counters(const struct outbox *outbox)
{
	return &outbox->counters;
}

/* ---- start and end ---- */

/* Members that have just been named, or have met with an agent that just starts, may know nothing. */
static void begin(struct outbox *outbox)
{
	outbox->alertmanager = alertmanager_new(outbox->agent->base, outbox->agent->config,
						outbox->counters.posts);
	outbox->told_skipped = false;
	*outbox->logged = '\0';
	outbox->failed_at = now();
	outbox->told_at = outbox->not_woken_at = outbox->presumed_at = -REPEAT_LOG;
	doubt(outbox);
}

static void let_go(struct outbox *outbox)
{
	event_del(outbox->probe);
	delivery_free(outbox->probing);
	outbox->probing = NULL;
	if (outbox->state == OUTBOX_SENDING)
		change_state(outbox, OUTBOX_IDLE);
	alertmanager_free(outbox->alertmanager);
	outbox->alertmanager = NULL;
	outbox->failing = false;
}

void outbox_reconfigure(struct outbox *outbox)
{
	let_go(outbox);
	begin(outbox);
	outbox_ready(outbox);
}

static void on_released(struct unit *unit, enum unit_end end, void *arg)
{
	(void)unit;
	(void)end;
	(void)arg;
}

void outbox_stop(struct outbox *outbox)
{
	struct unit *unit;

	if (is_live(outbox) && outbox->alertmanager != NULL) {
		unit = unit_new(on_released, NULL);
		unit_add(unit, sql_release, 1, memory_copy(outbox->name));
		run_change(outbox, unit);
	}
	outbox->stopping = true;
	let_go(outbox);
	event_del(outbox->timer);
}

struct outbox *outbox_new(struct agent *agent)
{
	struct outbox *outbox = memory_new(1, sizeof(*outbox));

	outbox->agent = agent;
	snprintf(outbox->name, sizeof(outbox->name), "%.100s/%.128s/%d", agent->config->host,
		 agent->config->instance, (int)getpid());
	outbox->timer = evtimer_new(agent->base, on_timer, outbox);
	outbox->probe = evtimer_new(agent->base, on_probe, outbox);
	begin(outbox);
	return outbox;
}

void outbox_free(struct outbox *outbox)
{
	if (outbox == NULL)
		return;
	let_go(outbox);
	event_free(outbox->timer);
	event_free(outbox->probe);
	free(outbox);
}
