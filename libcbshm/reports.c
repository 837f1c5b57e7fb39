/*
 * reports.c - sends what is in the ring, takes the answers, and counts what became of each report
 *
 * SPDX-License-Identifier: ISC
 *
 * Reports are answered, not sent `oneway`: an answer is the only thing that tells one which was
 * applied from one that was refused or lost.
 *
 * A report moves through the ring: pushed, formatted (its message is in `out`), sent (its message
 * is with the kernel to the last byte), settled. What was not wholly sent when a connection is lost
 * goes out on the next one; what was, and has no answer, is unknown.
 */
#include "config.h"

#include "libcbshm/reports.h"

#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "libcbshm/answer.h"
#include "libcbshm/arguments.h"
#include "libcbshm/error.h"
#include "libcbshm/loop_fd.h"
#include "libcbshm/pipeline.h"
#include "libcbshm/varlink.h"

#define OUT_SIZE         131072
#define MESSAGE_ROOM     (ARGUMENT_DETAILS_MAX + 2 * CBSHM_NAME_MAX + 256) /* of one report */
#define UNREAD_MAX       128 /* answers that surely fit into the socket while nobody reads them */
#define BACKOFF_FIRST_US 50000
#define BACKOFF_MAX_US   5000000
#define FLUSH_KNOCK_US   50000 /* a flush does not wait for a long backoff */
#define FLUSH_SLICE_MS   5     /* another thread may be pumping */
#define ROUNDS_MAX       4
#define PASSING_MAX \
	8 /* messages that somebody who passes by makes at a time: its own, and a few of those before */

/* Who pumps. */
enum pace {
	PACE_PASSING,  /* a thread that has something better to do: one system call, mostly */
	PACE_LOOPING,  /* an event loop, or a call that will wait anyway */
	PACE_FLUSHING, /* somebody who waits for the answers */
};

struct reports {
	struct cbshm *client;
	struct report_ring *ring;

	_Atomic bool looped;  /* an event loop has the descriptor */
	_Atomic bool armed;   /* it sleeps; wake it for the next report */
	_Atomic bool pumping; /* who sets it has what follows */
	struct loop_fd loop;  /* set before `looped` */
	struct varlink stream;
	_Atomic int poll_fd;      /* the stream's, for who waits in a flush; -1 */
	_Atomic bool unsent_out;  /* there is something in `out` */
	bool answered;            /* on this connection, once at least */
	bool closing;             /* nothing more is sent on it */
	int64_t attempt, backoff; /* to connect: the last, and the time until the next */
	unsigned formatted_count, in_flight;
	uint64_t formatted, sent; /* positions in the ring: behind what is */
	char *out;
	size_t out_used, out_sent;
	size_t out_whole; /* of out_sent: messages that are whole */

	_Atomic uint64_t queued, dropped, sent_count, acknowledged, failed, unknown;
	_Atomic uint64_t unflushed; /* failed or unknown since the last flush */
	_Atomic int last_error;
};

/* The release pairs with read_count(): who sees that a report is settled sees that it was queued. */
static void count(_Atomic uint64_t *counter, uint64_t number)
{
	atomic_fetch_add_explicit(counter, number, memory_order_release);
}

/* ---- messages --------------------------------------------------------------------------- */

/* A name has no control characters. */
static char *put_name(char *to, const char *name, size_t length)
{
	for (size_t i = 0; i < length; i++) {
		if (name[i] == '"' || name[i] == '\\')
			*to++ = '\\';
		*to++ = name[i];
	}
	return to;
}

static char *put(char *to, const char *text)
{
	return stpcpy(to, text);
}

/* At most MESSAGE_ROOM bytes with the NUL. Returns their number. */
static size_t format_report(char *text, const struct report *report)
{
	const bool drift = report->kind == REPORT_DRIFT;
	char number[NUMBER_SIZE];
	char *to = text;

	to = put(to, "{\"method\":\"io.cbshm.");
	to = put(to, drift ? "ReportDrift" : "ReportSchemaError");
	to = put(to, "\",\"parameters\":{\"name\":\"");
	to = put_name(to, report->name, report->name_length);
	if (drift) {
		number_format(number, report->score);
		to += sprintf(to, "\",\"drift_score\":%s,\"sample_count\":%lld", number,
			      (long long)report->number);
	} else {
		to += sprintf(to, "\",\"count\":%lld", (long long)report->number);
	}
	if (report->details != NULL) {
		to = put(to, ",\"details\":");
		to = mempcpy(to, report->details, report->details_length);
	}
	to += sprintf(to, ",\"timeout_ms\":%d}}", CBSHM_DEFAULT_TIMEOUT_MS);
	return (size_t)(to - text) + 1;
}

/* ---- settling --------------------------------------------------------------------------- */

/* The oldest report is done with. */
static void settle(struct reports *reports, int error)
{
	uint64_t position = report_ring_begin(reports->ring), next;
	struct report report;

	if (!report_ring_look(reports->ring, &position, &report, &next))
		return;
	if (error == 0) {
		count(&reports->acknowledged, 1);
	} else {
		atomic_store(&reports->last_error, error);
		count(error == CBSHM_ERR_UNKNOWN ? &reports->unknown : &reports->failed, 1);
		count(&reports->unflushed, 1);
	}
	reports->in_flight--;
	report_ring_release(reports->ring, next);
}

static void hang_up(struct reports *reports)
{
	loop_fd_watch(&reports->loop, -1, 0);
	atomic_store(&reports->poll_fd, -1);
	varlink_close(&reports->stream);
	while (reports->in_flight > 0)
		settle(reports, CBSHM_ERR_UNKNOWN);
	reports->formatted = reports->sent;
	reports->formatted_count = 0;
	reports->out_used = reports->out_sent = reports->out_whole = 0;
	reports->answered = reports->closing = false;
}

/* The next attempt waits longer, and not as long as everybody else's. */
static void back_off(struct reports *reports, int error)
{
	const int64_t doubled = reports->backoff * 2;

	atomic_store(&reports->last_error, error);
	if (reports->backoff == 0)
		reports->backoff = BACKOFF_FIRST_US;
	else
		reports->backoff = doubled < BACKOFF_MAX_US ? doubled : BACKOFF_MAX_US;
	reports->backoff -= varlink_now() % (reports->backoff / 4);
}

/* What the agent says of one report. */
static int judge(struct reports *reports, const char *text)
{
	static const char usual[] = "{\"parameters\":{\"incident\":null}}";
	const cJSON *parameters;
	struct cbshm_call call;
	cJSON *root = NULL;
	int error;

	if (strcmp(text, usual) == 0)
		return 0;
	error = answer_parse(text, &call, &root, &parameters);
	cJSON_Delete(root);
	/* After these the agent may be closing: what is sent into that is lost. */
	if (error == CBSHM_ERR_PROTOCOL || error == CBSHM_ERR_REFUSED)
		reports->closing = true;
	/* Whatever it was that it did not understand, or that we do not. */
	return error == CBSHM_ERR_PROTOCOL || error == CBSHM_ERR_MEMORY ? CBSHM_ERR_UNKNOWN : error;
}

/* Takes the answers that are there. false: none is, or the connection is lost. */
static bool receive(struct reports *reports)
{
	struct cbshm_call call;
	int lost = varlink_receive(&reports->stream, &call);
	bool progress = false;
	const char *text;

	while ((text = varlink_message(&reports->stream)) != NULL) {
		const int error = judge(reports, text);

		if (reports->in_flight > 0)
			settle(reports, error);
		else
			reports->closing = true; /* at the door: an answer to what was not read */
		varlink_drop_message(&reports->stream);
		reports->answered = true;
		if (!reports->closing)
			reports->backoff = 0;
		else if (lost == 0)
			lost = error;
		progress = true;
	}
	if (lost != 0 || (reports->closing && reports->in_flight == 0)) {
		if (!reports->answered || reports->closing)
			back_off(reports, lost != 0 ? lost : CBSHM_ERR_PROTOCOL);
		hang_up(reports);
	}
	return progress;
}

/* ---- sending ---------------------------------------------------------------------------- */

/*
 * The first report on a connection goes alone: an agent that turns clients away at the door has not
 * read it, and of more than one that would not be certain. Without a loop there may be nobody who
 * reads for a while: then no more are under way than answers surely fit into the socket.
 */
static bool may_format(const struct reports *reports)
{
	const unsigned most = atomic_load(&reports->looped) ? PIPELINE_CALLS_MAX : UNREAD_MAX;
	const unsigned under_way = reports->in_flight + reports->formatted_count;

	if (reports->closing || reports->out_used + MESSAGE_ROOM > OUT_SIZE)
		return false;
	if (!reports->answered)
		return under_way == 0;
	return under_way < most;
}

static void format_some(struct reports *reports, enum pace pace)
{
	const unsigned most = pace == PACE_PASSING ? PASSING_MAX : PIPELINE_CALLS_MAX;
	struct report report;
	uint64_t next;

	for (unsigned i = 0; i < most && may_format(reports) &&
			     report_ring_look(reports->ring, &reports->formatted, &report, &next);
	     i++) {
		reports->out_used += format_report(reports->out + reports->out_used, &report);
		reports->formatted = next;
		reports->formatted_count++;
	}
}

/* The messages that have gone to the last byte. */
static void count_sent(struct reports *reports)
{
	uint64_t position = reports->sent, next;
	struct report report;
	const char *end;

	while ((end = memchr(reports->out + reports->out_whole, '\0',
			     reports->out_sent - reports->out_whole)) != NULL) {
		reports->out_whole = (size_t)(end - reports->out) + 1;
		report_ring_look(reports->ring, &position, &report, &next);
		position = reports->sent = next;
		reports->formatted_count--;
		reports->in_flight++;
		count(&reports->sent_count, 1);
	}
	if (reports->out_sent == reports->out_used)
		reports->out_used = reports->out_sent = reports->out_whole = 0;
}

/* false: nothing went, or the connection is lost. */
static bool send_some(struct reports *reports, enum pace pace)
{
	struct cbshm_call call;
	size_t taken;

	format_some(reports, pace);
	if (reports->out_sent == reports->out_used)
		return false;
	/* What a lost connection still has to say is received next. */
	if (varlink_send(&reports->stream, reports->out + reports->out_sent,
			 reports->out_used - reports->out_sent, &call, &taken) != 0)
		reports->closing = true;
	reports->out_sent += taken;
	count_sent(reports);
	return taken > 0;
}

static bool is_empty(const struct reports *reports)
{
	return report_ring_begin(reports->ring) == report_ring_end(reports->ring);
}

/* An attempt to connect does not wait either: the agent's queue of connections is full, or it is not. */
static bool connect_now(struct reports *reports, enum pace pace)
{
	const struct cbshm *client = reports->client;
	const int64_t now = varlink_now();
	int64_t pause = reports->backoff;
	struct cbshm_call call;
	int error;

	if (pace == PACE_FLUSHING && pause > FLUSH_KNOCK_US)
		pause = FLUSH_KNOCK_US;
	if (is_empty(reports) || now < reports->attempt + pause)
		return false;
	reports->attempt = now;
	error = varlink_open(&reports->stream, client->socket, client->trusted,
			     client->trusted_count, now, &call);
	if (error != 0) {
		back_off(reports, error);
		return false;
	}
	atomic_store(&reports->poll_fd, reports->stream.fd);
	return true;
}

/* ---- pumping ---------------------------------------------------------------------------- */

/* Who only passes by reads the answers when there are many, or nothing can go without them. */
static bool worth_receiving(const struct reports *reports, enum pace pace)
{
	return pace != PACE_PASSING || reports->closing || !reports->answered ||
	       reports->in_flight >= UNREAD_MAX / 2;
}

static void pump_once(struct reports *reports, enum pace pace)
{
	static const int turns_max[] = {2, 64, 1024};
	bool progress = true;

	for (int turns = 0; progress && turns < turns_max[pace]; turns++) {
		if (reports->stream.fd < 0 && !connect_now(reports, pace))
			break;
		progress = send_some(reports, pace);
		if (worth_receiving(reports, pace))
			progress |= receive(reports);
	}
	atomic_store(&reports->unsent_out, reports->out_used > reports->out_sent);
}

/*
 * Takes back the wake-up, whoever it was for: what has been pushed by now is in the ring that is
 * looked into next, and what is pushed after this wakes the loop.
 */
static void attend(struct reports *reports)
{
	if (!atomic_load(&reports->looped))
		return;
	atomic_store(&reports->armed, true);
	if (!loop_fd_wake(&reports->loop, 0))
		atomic_store(&reports->looped, false); /* the descriptor is somebody else's now */
}

/* What the event loop is to wait for. */
static void arrange(struct reports *reports)
{
	const uint32_t out = reports->out_used > reports->out_sent ? EPOLLOUT : 0;

	if (!atomic_load(&reports->looped))
		return;
	loop_fd_watch(&reports->loop, reports->stream.fd, EPOLLIN | out);
	if (is_empty(reports))
		return;
	if (reports->stream.fd < 0)
		loop_fd_wake(&reports->loop, reports->attempt + reports->backoff);
	else if (reports->in_flight == 0 && out == 0)
		loop_fd_wake(&reports->loop, 1);
}

/*
 * Without waiting: if another thread is pumping, that is left to it, and the loop's descriptor as
 * it is. It looks again when it has let go (both are sequentially consistent), but not for ever,
 * since others may go on pushing.
 */
static void pump(struct reports *reports, enum pace pace)
{
	uint64_t seen;
	int rounds = 0;

	do {
		if (atomic_exchange(&reports->pumping, true))
			return;
		attend(reports);
		seen = report_ring_end(reports->ring);
		pump_once(reports, pace);
		arrange(reports);
		atomic_store(&reports->pumping, false);
	} while (report_ring_end(reports->ring) != seen && ++rounds < ROUNDS_MAX);
}

/* ---- from outside ----------------------------------------------------------------------- */

int reports_push(struct reports *reports, const struct report *report)
{
	bool looped = atomic_load(&reports->looped);
	bool pushed;

	count(&reports->queued, 1);
	pushed = report_ring_push(reports->ring, report);
	if (!looped) {
		pump(reports, PACE_PASSING);
		if (!pushed) /* there may be room now */
			pushed = report_ring_push(reports->ring, report);
	} else if (atomic_load(&reports->armed) && atomic_exchange(&reports->armed, false) &&
		   !loop_fd_wake(&reports->loop, 1)) {
		atomic_store(&reports->looped, false); /* the descriptor is somebody else's now */
	}
	if (pushed)
		return 0;
	atomic_fetch_sub_explicit(&reports->queued, 1, memory_order_relaxed);
	count(&reports->dropped, 1);
	return CBSHM_ERR_FULL;
}

void reports_nudge(struct reports *reports)
{
	if (!atomic_load(&reports->looped) && !is_empty(reports))
		pump(reports, PACE_LOOPING);
}

/* Another thread may be the one that pumps, and see the answer first. */
static void wait_a_moment(struct reports *reports, int64_t deadline)
{
	struct pollfd poll_fd = {.fd = atomic_load(&reports->poll_fd), .events = POLLIN};
	const int left = varlink_milliseconds_until(deadline);

	if (atomic_load(&reports->unsent_out))
		poll_fd.events |= POLLOUT;
	poll(&poll_fd, 1, left < FLUSH_SLICE_MS ? left : FLUSH_SLICE_MS);
}

int reports_flush(struct reports *reports, int64_t deadline, struct cbshm_call *call,
		  uint64_t *failed)
{
	const uint64_t end = report_ring_end(reports->ring);
	int error = 0;

	for (;;) {
		pump(reports, PACE_FLUSHING);
		if (report_ring_begin(reports->ring) >= end)
			break;
		if (varlink_now() >= deadline) {
			error = call_fail(call, CBSHM_ERR_TIMEOUT,
					  "not all reports are answered; they stay queued. The "
					  "last trouble was: %s",
					  cbshm_strerror(atomic_load(&reports->last_error)));
			break;
		}
		wait_a_moment(reports, deadline);
	}
	*failed = atomic_exchange(&reports->unflushed, 0);
	return error;
}

static uint64_t read_count(const _Atomic uint64_t *counter)
{
	return atomic_load_explicit(counter, memory_order_acquire);
}

void reports_get_stats(const struct reports *reports, struct cbshm_report_stats *stats)
{
	stats->acknowledged = read_count(&reports->acknowledged);
	stats->failed = read_count(&reports->failed);
	stats->unknown = read_count(&reports->unknown);
	stats->sent = read_count(&reports->sent_count);
	stats->dropped = read_count(&reports->dropped);
	/* The last to be read, since it is the first to be counted. */
	stats->queued = read_count(&reports->queued);
	stats->pending = stats->queued - stats->acknowledged - stats->failed - stats->unknown;
	stats->last_error = atomic_load(&reports->last_error);
}

/* ---- event loops ------------------------------------------------------------------------ */

int reports_fd(struct reports *reports)
{
	int error = 0;

	while (atomic_exchange(&reports->pumping, true))
		poll(NULL, 0, 1);
	if (!atomic_load(&reports->looped) || !loop_fd_wake(&reports->loop, 1)) {
		loop_fd_close(&reports->loop);
		error = loop_fd_open(&reports->loop);
		atomic_store(&reports->armed, false);
		atomic_store(&reports->looped, error == 0);
		loop_fd_wake(&reports->loop, 1); /* to dispatch, which arms */
	}
	atomic_store(&reports->pumping, false);
	return error == 0 ? reports->loop.epoll_fd : CBSHM_ERR_SYSTEM;
}

int reports_dispatch(struct reports *reports)
{
	pump(reports, PACE_LOOPING);
	return atomic_load(&reports->poll_fd) >= 0 || is_empty(reports)
		       ? 0
		       : atomic_load(&reports->last_error);
}

/* ---- life ------------------------------------------------------------------------------- */

struct reports *reports_new(struct cbshm *client)
{
	struct reports *reports = calloc(1, sizeof(*reports));

	if (reports == NULL)
		return NULL;
	reports->client = client;
	reports->stream.fd = reports->loop.epoll_fd = reports->loop.timer_fd = -1;
	reports->loop.watched = -1;
	atomic_init(&reports->poll_fd, -1);
	reports->ring = report_ring_new(client->report_buffer);
	reports->out = malloc(OUT_SIZE);
	if (reports->ring == NULL || reports->out == NULL) {
		reports_free(reports);
		return NULL;
	}
	return reports;
}

void reports_free(struct reports *reports)
{
	if (reports == NULL)
		return;
	loop_fd_close(&reports->loop);
	varlink_close(&reports->stream);
	report_ring_free(reports->ring);
	free(reports->out);
	free(reports);
}

void reports_disown(struct reports *reports)
{
	if (varlink_is_ours(&reports->stream))
		close(reports->stream.fd);
	loop_fd_close(&reports->loop);
	/* What a thread of the parent was changing is in no state to be freed. */
	if (!atomic_load(&reports->pumping))
		free(reports->stream.text);
	memset(&reports->stream, 0, sizeof(reports->stream));
	reports->stream.fd = -1;
}
