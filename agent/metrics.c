/*
 * metrics.c - the families of /metrics, and the answers to probes
 *
 * SPDX-License-Identifier: ISC
 *
 * What is counted belongs to the module that counts it; here are only names, and the walk over the breakers, which is
 * done in parts. Labels are classes, of which there are few; only `breaker` is not, and how many of those are shown is
 * limited ([metrics] breakers).
 */
#include <config.h>

#include <dirent.h>
#include <errno.h>
#include <event2/event.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "agent/agent.h"
#include "agent/config.h"
#include "agent/connection.h"
#include "agent/database.h"
#include "agent/exposition.h"
#include "agent/http.h"
#include "agent/listener.h"
#include "agent/metrics.h"
#include "agent/mirror.h"
#include "agent/outbox.h"
#include "agent/recovery.h"
#include "agent/segment_writer.h"
#include "agent/snapshot.h"
#include "agent/tally.h"
#include "agent/text.h"
#include "agent/writer.h"
#include "cbshm/segment.h"

#define FRESH_WITHIN 10000000 /* microseconds: five heartbeats */
#define SAMPLE_EVERY 5        /* seconds, of the queue in the database */
#define SAMPLE_GOOD  30000000 /* microseconds: no longer shown then */
#define PART_SIZE    32768    /* bytes of a part, about */
#define PART_COST    65536    /* of the walk over the slots: 1 for each, and */
#define READ_COST    32       /* for a record that has to be read */

struct metrics {
	struct agent *agent;
	struct http *http;
	struct event *sample;
	double started; /* seconds since the Unix epoch */
};

static void gauge(struct exposition *out, const char *name, double value, const char *help)
{
	exposition_family(out, name, EXPOSITION_GAUGE, help);
	exposition_sample(out, value, NULL);
}

static void counter(struct exposition *out, const char *name, uint64_t value, const char *help)
{
	exposition_family(out, name, EXPOSITION_COUNTER, help);
	exposition_sample(out, (double)value, NULL);
}

static void histogram(struct exposition *out, const char *name, const struct histogram *histogram,
		      const char *help)
{
	exposition_family(out, name, EXPOSITION_HISTOGRAM, help);
	exposition_histogram(out, histogram, NULL, NULL);
}

/* ---- the families that do not depend on the number of breakers -------------------------- */

static void decisions(struct exposition *out, const struct agent *agent)
{
	const struct tally *tally = writer_tally(agent->writer);
	const uint64_t recovered = recovery_closed(agent->recovery);
	uint64_t incidents = 0;

	exposition_family(out, "cbshm_reports", EXPOSITION_COUNTER,
			  "Reports that this agent has committed.");
	exposition_sample(out, (double)tally->drift_reports, "kind", "drift", NULL);
	exposition_sample(out, (double)tally->schema_error_reports, "kind", "schema_error", NULL);
	exposition_family(out, "cbshm_disables", EXPOSITION_COUNTER,
			  "Openings of breakers that this agent has committed.");
	for (int i = 0; i < OPENINGS; i++) {
		incidents += tally->disables[i];
		exposition_sample(out, (double)tally->disables[i], "reason",
				  opening_reason((enum opening)i), "severity",
				  opening_severity((enum opening)i), NULL);
	}
	exposition_family(out, "cbshm_enables", EXPOSITION_COUNTER,
			  "Closings of breakers that this agent has committed.");
	exposition_sample(out, (double)tally->enables, "reason", "manual", NULL);
	exposition_sample(out, (double)recovered, "reason", "recovered", NULL);
	counter(out, "cbshm_incidents", incidents, "Incidents that this agent has begun.");
	counter(out, "cbshm_automatic_recoveries", recovered,
		"Breakers that this agent has closed because their TTL had passed.");
	histogram(out, "cbshm_drift_score", &tally->drift_score, "Scores of drift reports.");
	histogram(out, "cbshm_commit_duration_seconds", &tally->commit,
		  "Time from sending a transaction of writes to the end of its commit.");
	histogram(out, "cbshm_batch_requests", &tally->batch, "Requests in one transaction.");
}

static void mirror(struct exposition *out, const struct agent *agent)
{
	static const char *const sources[MIRROR_LOAD] = {
		[MIRROR_OWN] = "own",
		[MIRROR_NOTIFIED] = "notified",
		[MIRROR_COUNTERS] = "counters",
	};
	const struct mirror_counters *counters = mirror_counters(agent->mirror);

	exposition_family(out, "cbshm_mirror_lag_seconds", EXPOSITION_HISTOGRAM,
			  "Time from the change of a row to the segment, by how it came there.");
	for (int i = 0; i < MIRROR_LOAD; i++)
		exposition_histogram(out, &counters->lag[i], "source", sources[i]);
	counter(out, "cbshm_mirror_loads", counters->loads, "Full loads of all breakers.");
	counter(out, "cbshm_mirror_behind", counters->behind,
		"Comparisons that have found changes of which no notification came.");
	gauge(out, "cbshm_mirror_incomplete", mirror_is_incomplete(agent->mirror),
	      "1 if breakers are missing from the segment for want of room.");
}

/* Microseconds since the database has confirmed the mirror; -1: not yet. */
static int64_t mirror_age(const struct agent *agent)
{
	const int64_t confirmed = segment_writer_confirmed_at(agent->segment);

	return confirmed == 0 ? -1 : clock_microseconds(CLOCK_MONOTONIC) - confirmed / 1000;
}

static void database(struct exposition *out, const struct agent *agent)
{
	const struct database_counters *counters = database_counters(agent->database);
	const int64_t age = mirror_age(agent);

	gauge(out, "cbshm_database_up", database_state(agent->database) == DATABASE_LIVE,
	      "1 if the agent is connected to the database and mirrors it.");
	exposition_family(out, "cbshm_mirror_age_seconds", EXPOSITION_GAUGE,
			  "Time since the database has confirmed what stands in the segment.");
	if (age >= 0)
		exposition_sample(out, (double)age / 1000000, NULL);
	gauge(out, "cbshm_database_notifies", !database_is_deaf(agent->database),
	      "0 if notifications do not arrive, as behind a connection pooler.");
	counter(out, "cbshm_database_connects", counters->connects,
		"Times the database has become usable.");
	counter(out, "cbshm_database_losses", counters->losses,
		"Times a usable database was lost.");
	counter(out, "cbshm_database_connect_failures", counters->failures,
		"Attempts to connect that did not lead to a usable database.");
}

static void alerts(struct exposition *out, const struct agent *agent)
{
	const struct outbox_counters *counters = outbox_counters(agent->outbox);
	const struct outbox_depth *depth = outbox_depth(agent->outbox);
	const bool known = depth->sampled_at != 0 &&
			   clock_microseconds(CLOCK_MONOTONIC) - depth->sampled_at < SAMPLE_GOOD;

	exposition_family(out, "cbshm_alert_queue", EXPOSITION_GAUGE,
			  "Alerts of the whole fleet that are not delivered.");
	if (known) {
		exposition_sample(out, (double)depth->pending, "status", "pending", NULL);
		exposition_sample(out, (double)depth->leased, "status", "leased", NULL);
		exposition_sample(out, (double)depth->failed, "status", "failed", NULL);
	}
	exposition_family(out, "cbshm_alert_queue_oldest_seconds", EXPOSITION_GAUGE,
			  "How long the oldest pending or leased alert has been there; 0: none.");
	if (known)
		exposition_sample(out, depth->oldest_pending, NULL);
	exposition_family(out, "cbshm_alerts", EXPOSITION_COUNTER,
			  "What became of alerts in the hands of this agent.");
	exposition_sample(out, (double)counters->sent, "result", "sent", NULL);
	exposition_sample(out, (double)counters->repeated, "result", "repeated", NULL);
	exposition_sample(out, (double)counters->put_off, "result", "put_off", NULL);
	exposition_sample(out, (double)counters->failed, "result", "failed", NULL);
	exposition_sample(out, (double)counters->skipped, "result", "skipped", NULL);
	exposition_family(out, "cbshm_alert_posts", EXPOSITION_COUNTER,
			  "Posts to Alertmanagers, empty ones included.");
	for (int i = 0; i < POST_RESULTS; i++)
		exposition_sample(out, (double)counters->posts[i], "result",
				  post_result_name((enum post_result)i), NULL);
}

/* All pairs of methods and errors would be hundreds: only those are shown that there were, and the errors once more in sum. */
static void replies(struct exposition *out, const struct session_counters *calls)
{
	uint64_t errors[REPLY_ERRORS] = {0};

	exposition_family(out, "cbshm_replies", EXPOSITION_COUNTER,
			  "Replies to calls at the socket; error is empty for those without.");
	for (int method = 0; method < METHODS; method++) {
		for (int i = 0; i < REPLY_ERRORS; i++) {
			errors[i] += calls->replies[method][i];
			if (calls->replies[method][i] == 0 &&
			    (i != REPLY_OK || method == METHOD_UNKNOWN))
				continue;
			exposition_sample(
				out, (double)calls->replies[method][i], "method",
				method_name((enum method_id)method), "error",
				i == REPLY_OK ? "" : reply_error_name((enum reply_error)i), NULL);
		}
	}
	exposition_family(out, "cbshm_error_replies", EXPOSITION_COUNTER,
			  "Replies with an error, to calls of any method.");
	for (int i = REPLY_OK + 1; i < REPLY_ERRORS; i++)
		exposition_sample(out, (double)errors[i], "error",
				  reply_error_name((enum reply_error)i), NULL);
}

static void clients(struct exposition *out, const struct agent *agent)
{
	static const char *const reasons[LISTENER_REFUSALS] = {
		[LISTENER_REFUSED_TOTAL] = "total",
		[LISTENER_REFUSED_PER_UID] = "per_uid",
		[LISTENER_REFUSED_FILES] = "files",
		[LISTENER_REFUSED_PEER] = "peer",
	};
	const struct listener_counters *counters = listener_counters(agent->listener);

	gauge(out, "cbshm_connections", counters->sessions, "Clients at the socket.");
	counter(out, "cbshm_connections_accepted", counters->accepted, "Clients let in.");
	exposition_family(out, "cbshm_connections_refused", EXPOSITION_COUNTER,
			  "Clients turned away at the socket.");
	for (int i = 0; i < LISTENER_REFUSALS; i++)
		exposition_sample(out, (double)counters->refused[i], "reason", reasons[i], NULL);
	counter(out, "cbshm_connections_dropped", counters->calls.dropped,
		"Clients cut off because they did not read their replies.");
	replies(out, &counters->calls);
}

static void snapshot(struct exposition *out, const struct snapshot *snapshot)
{
	gauge(out, "cbshm_snapshot_timestamp_seconds",
	      (double)snapshot_written_at(snapshot) / 1000000,
	      "When the last snapshot was on disk, in seconds since the Unix epoch; 0 if none "
	      "was.");
	counter(out, "cbshm_snapshot_failures", snapshot_failures(snapshot),
		"Snapshots that could not be written.");
}

static void segment(struct exposition *out, const struct agent *agent)
{
	gauge(out, "cbshm_segment_capacity", agent->config->segment_capacity,
	      "Breakers that the segment has room for.");
	gauge(out, "cbshm_segment_breakers", segment_writer_breakers(agent->segment),
	      "Breakers in the segment.");
	snapshot(out, agent->snapshot);
	gauge(out, "cbshm_segment_boot_epoch", (double)segment_writer_boot_epoch(agent->segment),
	      "How often agents have taken the segment over.");
}

static double seconds(const struct timeval *time)
{
	return (double)time->tv_sec + (double)time->tv_usec / 1000000;
}

/* Of the agent, in bytes; 0: unknown. */
static double resident_memory(void)
{
	FILE *file = fopen("/proc/self/statm", "re");
	unsigned long pages = 0;

	if (file == NULL)
		return 0;
	if (fscanf(file, "%*u %lu", &pages) != 1)
		pages = 0;
	fclose(file);
	return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

static unsigned open_files(void)
{
	DIR *directory = opendir("/proc/self/fd");
	unsigned count = 0;

	if (directory == NULL)
		return 0;
	for (const struct dirent *entry; (entry = readdir(directory)) != NULL;)
		count += entry->d_name[0] != '.';
	closedir(directory);
	return count - 1; /* not the one that looks */
}

static void process(struct exposition *out, const struct metrics *metrics)
{
	struct rusage usage;
	struct rlimit files;

	exposition_family(out, "cbshm_build", EXPOSITION_INFO, "What runs here.");
	exposition_sample(out, 1, "version", PACKAGE_VERSION, "agent",
			  metrics->agent->config->instance, NULL);
	gauge(out, "process_start_time_seconds", metrics->started,
	      "When the agent was started, since the Unix epoch.");
	if (getrusage(RUSAGE_SELF, &usage) == 0) {
		exposition_family(out, "process_cpu_seconds", EXPOSITION_COUNTER,
				  "Processor time that the agent has taken.");
		exposition_sample(out, seconds(&usage.ru_utime) + seconds(&usage.ru_stime), NULL);
	}
	gauge(out, "process_resident_memory_bytes", resident_memory(),
	      "Memory of the agent, the parts of the segment that it has touched included.");
	gauge(out, "process_open_fds", open_files(), "Open file descriptors.");
	if (getrlimit(RLIMIT_NOFILE, &files) == 0)
		gauge(out, "process_max_fds", (double)files.rlim_cur, "As many there may be.");
	counter(out, "cbshm_http_cut_off", http_cut_off(metrics->http),
		"Connections to this server that were cut off.");
}

/* ---- the breakers ----------------------------------------------------------------------- */

/* One pass over all slots for each, as the samples of a family stand together. */
enum pass { PASS_DISABLED, PASS_FAILURES, PASS_OPENED, PASSES };

struct scrape {
	struct metrics *metrics;
	struct exposition out; /* its family may go on in the next part */
	bool begun;            /* the other families are out */
	enum pass pass;
	uint32_t slot; /* the next one; 0: the family is to begin */
	unsigned limit;
	unsigned shown; /* in this pass */
	unsigned open;
	bool open_only; /* there are more than may be shown */
};

/* As a reader decides: an opening ends at its instant. */
static bool is_open(const struct cbshm_detail *detail)
{
	struct timespec now;

	if ((detail->flags & CBSHM_DETAIL_DISABLED) == 0)
		return false;
	if ((detail->flags & CBSHM_DETAIL_AUTO_RECOVER) == 0 || detail->deadline == INT64_MAX)
		return true;
	clock_gettime(CLOCK_BOOTTIME, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec < detail->deadline;
}

static void begin_pass(struct exposition *out, enum pass pass)
{
	static const struct {
		const char *name, *help;
	} families[PASSES] = {
		[PASS_DISABLED] = {"cbshm_breaker_disabled", "1 if the breaker is open."},
		[PASS_FAILURES] = {"cbshm_breaker_consecutive_failures",
				   "Bad drift reports in a row."},
		[PASS_OPENED] = {"cbshm_breaker_opened_timestamp_seconds",
				 "When an open breaker was opened, since the Unix epoch."},
	};

	exposition_family(out, families[pass].name, EXPOSITION_GAUGE, families[pass].help);
}

static void breaker(struct exposition *out, struct scrape *scrape, const char *name,
		    const struct cbshm_detail *detail, bool open)
{
	const enum opening opening = opening_of(detail->disabled_by, detail->actor_length,
						detail->disabled_reason, detail->reason_length);

	if (scrape->shown == scrape->limit || (scrape->open_only && !open) ||
	    (scrape->pass == PASS_OPENED && !open))
		return;
	scrape->shown++;
	if (scrape->pass == PASS_DISABLED)
		exposition_sample(out, open, "breaker", name, NULL);
	else if (scrape->pass == PASS_FAILURES)
		exposition_sample(out, detail->consecutive_failures, "breaker", name, NULL);
	else
		exposition_sample(out, (double)detail->opened_at / 1000000, "breaker", name,
				  "reason", opening_reason(opening), "severity",
				  opening_severity(opening), NULL);
}

static bool closed_ones_do_not_count(const struct scrape *scrape)
{
	return scrape->open_only || scrape->pass == PASS_OPENED;
}

/* Goes on where the last part has ended. */
static void breakers(struct scrape *scrape)
{
	struct exposition *out = &scrape->out;
	const struct segment_writer *segment = scrape->metrics->agent->segment;
	const uint32_t slots = segment_writer_slots(segment);
	char name[CBSHM_NAME_ROOM];
	struct cbshm_detail detail;
	int cost = 0;
	bool open;

	if (scrape->slot == 0) {
		scrape->shown = 0;
		begin_pass(out, scrape->pass);
	}
	for (; scrape->slot < slots && cost < PART_COST && out->text->length < PART_SIZE;
	     scrape->slot++) {
		cost++;
		if (closed_ones_do_not_count(scrape) &&
		    !segment_writer_disabled(segment, scrape->slot))
			continue;
		cost += READ_COST;
		if (!segment_writer_read(segment, scrape->slot, name, &detail))
			continue;
		open = is_open(&detail);
		scrape->open += open && scrape->pass == PASS_DISABLED;
		breaker(out, scrape, name, &detail, open);
	}
	if (scrape->slot < slots)
		return;
	scrape->slot = 0;
	scrape->pass++;
}

/* ---- /metrics --------------------------------------------------------------------------- */

static bool next_part(struct text *text, void *arg)
{
	struct scrape *scrape = arg;
	struct metrics *metrics = scrape->metrics;
	struct exposition *out = &scrape->out;

	out->text = text;
	if (!scrape->begun) {
		scrape->begun = true;
		process(out, metrics);
		database(out, metrics->agent);
		mirror(out, metrics->agent);
		segment(out, metrics->agent);
		clients(out, metrics->agent);
		decisions(out, metrics->agent);
		alerts(out, metrics->agent);
	} else if (scrape->pass < PASSES) {
		breakers(scrape);
	} else {
		gauge(out, "cbshm_breakers_open", scrape->open,
		      "Breakers that are open, shown or not.");
		exposition_end(out);
		return false;
	}
	return true;
}

static void scrape(struct metrics *metrics, struct http_request *request)
{
	const struct agent *agent = metrics->agent;
	struct scrape *scrape = memory_new(1, sizeof(*scrape));

	*scrape = (struct scrape){
		.metrics = metrics,
		.out = {.openmetrics = exposition_wants_openmetrics(http_accept(request))},
		.limit = agent->config->metrics_breakers,
		.open_only =
			segment_writer_breakers(agent->segment) > agent->config->metrics_breakers,
	};
	http_reply_parts(request,
			 scrape->out.openmetrics ? EXPOSITION_OPENMETRICS_TYPE
						 : EXPOSITION_TEXT_TYPE,
			 next_part, free, scrape);
}

/* ---- probes ----------------------------------------------------------------------------- */

/* NULL: the segment shows what the database says. Else why that is not sure. */
static const char *not_ready(const struct agent *agent, char *room, size_t size)
{
	const int64_t age = mirror_age(agent);
	const char *trouble = database_trouble(agent->database);

	if (database_state(agent->database) != DATABASE_LIVE) {
		snprintf(room, size, "the database is away: %s\n",
			 *trouble != '\0' ? trouble : "the agent is just connecting");
		return room;
	}
	if (age >= 0 && age <= FRESH_WITHIN)
		return NULL;
	snprintf(room, size, "the database has not confirmed the mirror for %" PRId64 " s\n",
		 age / 1000000);
	return room;
}

static void on_request(struct http_request *request, const char *path, void *arg)
{
	struct metrics *metrics = arg;
	char room[640];
	const char *reason;

	if (strcmp(path, "/metrics") == 0) {
		scrape(metrics, request);
	} else if (strcmp(path, "/healthz") == 0) {
		/* Who reads this knows that the loop turns. */
		http_reply(request, 200, "text/plain", "ok\n");
	} else if (strcmp(path, "/readyz") == 0) {
		reason = not_ready(metrics->agent, room, sizeof(room));
		http_reply(request, reason == NULL ? 200 : 503, "text/plain",
			   reason == NULL ? "ok\n" : reason);
	} else {
		http_reply(request, 404, "text/plain", "there is: /metrics /healthz /readyz\n");
	}
}

/* ---- the queue -------------------------------------------------------------------------- */

static void on_sample(evutil_socket_t fd, short what, void *arg)
{
	struct metrics *metrics = arg;

	(void)fd;
	(void)what;
	outbox_sample(metrics->agent->outbox);
	event_add(metrics->sample, &(struct timeval){.tv_sec = SAMPLE_EVERY});
}

/* ---- life ------------------------------------------------------------------------------- */

int metrics_new(struct agent *agent, struct metrics **metrics, char *message, size_t message_size)
{
	struct metrics *made;
	int rc;

	*metrics = NULL;
	if (*agent->config->metrics_listen == '\0')
		return 0;
	made = memory_new(1, sizeof(*made));
	made->agent = agent;
	made->started = (double)clock_microseconds(CLOCK_REALTIME) / 1000000;
	rc = http_new(agent->base, agent->config->metrics_listen, on_request, made, &made->http,
		      message, message_size);
	if (rc != 0) {
		metrics_free(made);
		return rc;
	}
	made->sample = evtimer_new(agent->base, on_sample, made);
	event_add(made->sample, &(struct timeval){.tv_sec = 1});
	*metrics = made;
	return 0;
}

void metrics_free(struct metrics *metrics)
{
	if (metrics == NULL)
		return;
	http_free(metrics->http);
	if (metrics->sample != NULL)
		event_free(metrics->sample);
	free(metrics);
}
