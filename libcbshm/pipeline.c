/*
 * pipeline.c - calls of many threads on one connection: who sends, who waits, who reads for all
 *
 * SPDX-License-Identifier: ISC
 *
 * Not the transport (varlink.c), and nothing about repeating (client.c).
 *
 * A line is a connection and the calls on it, in the order in which they are sent and answered. All
 * of it is under the line's lock, which nobody holds while waiting. One of the threads that wait
 * leads: it connects, polls, and hands the answers out; the others sleep until theirs is there or
 * the lead is free. Only who leads closes the connection, so that nobody polls a descriptor that
 * means something else by then.
 *
 * The first call on a new connection goes alone: an agent that turns clients away at the door does
 * not read, and what else had been sent would be neither applied nor certain not to be.
 */
#include "config.h"

#include "libcbshm/pipeline.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "libcbshm/error.h"
#include "libcbshm/varlink.h"

#define STALLED_US 50000 /* without an answer: new calls take another line */
#define RETRY_US   10000 /* how often a call that is not sent looks for a way */
#define LOOK_SIZE  4096  /* of a reply, for may_be_farewell() */

/* A call, from its message to its answer. Its caller may leave before that, if the agent may have begun to read it. */
struct flight {
	struct flight *next;
	char *text;
	size_t size, sent; /* bytes */
	bool abandoned;    /* the caller has left */
	bool done;         /* with a reply, or an error and call.message */
	bool reused;
	int error, system_error; /* the latter is errno, which was set in the thread that led */
	char *reply;
	struct cbshm_call call;
	pthread_cond_t changed; /* done, or the lead is free */
};

struct line {
	pthread_mutex_t lock;
	struct varlink stream;
	struct flight *first, **last;
	struct flight *unsent; /* the first that is not wholly sent */
	unsigned under_way;    /* begun to be sent and not answered */
	uint64_t connection;   /* counts them */
	bool leading;          /* somebody waits for all */
	bool answered;         /* on this connection, once at least */
	bool closing;          /* no other call is sent on it */
	bool broken;           /* nothing more can be sent on it; the leader will see why */
	int64_t progress; /* when the last answer came, or the first of the calls under way was sent */
};

struct pipelines {
	struct cbshm *client;
	struct line lines[PIPELINE_LINES];
};

/* ---- flights ---------------------------------------------------------------------------- */

static struct flight *flight_new(char *text, size_t size)
{
	struct flight *flight = calloc(1, sizeof(*flight));
	pthread_condattr_t attributes;

	if (flight == NULL)
		return NULL;
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&flight->changed, &attributes);
	pthread_condattr_destroy(&attributes);
	flight->text = text;
	flight->size = size;
	return flight;
}

static void flight_free(struct flight *flight)
{
	pthread_cond_destroy(&flight->changed);
	free(flight->text);
	free(flight->reply);
	free(flight);
}

static bool was_sent(const struct flight *flight)
{
	return flight->sent == flight->size;
}

/* Takes the first out of the line. Its owner, if it still waits, gets it. */
static void finish_first(struct line *line, char *reply, int error, const struct cbshm_call *call)
{
	struct flight *flight = line->first;

	line->first = flight->next;
	if (line->first == NULL)
		line->last = &line->first;
	if (line->unsent == flight)
		line->unsent = flight->next;
	if (flight->sent > 0)
		line->under_way--;
	flight->reply = reply;
	if (flight->abandoned) {
		flight_free(flight);
		return;
	}
	flight->error = error;
	flight->system_error = errno;
	if (error != 0)
		flight->call = *call;
	flight->done = true;
	pthread_cond_signal(&flight->changed);
}

/* Of which nothing is sent. */
static void take_out(struct line *line, struct flight *flight)
{
	struct flight **at = &line->first;

	while (*at != flight)
		at = &(*at)->next;
	*at = flight->next;
	if (line->last == &flight->next)
		line->last = at;
	if (line->unsent == flight)
		line->unsent = flight->next;
}

static void append(struct line *line, struct flight *flight)
{
	flight->next = NULL;
	*line->last = flight;
	line->last = &flight->next;
	if (line->unsent == NULL)
		line->unsent = flight;
}

/* ---- connections ------------------------------------------------------------------------ */

static void hang_up(struct line *line)
{
	varlink_close(&line->stream);
	line->closing = line->broken = line->answered = false;
}

/* Every call on it fails; what was not sent may be sent again by its caller, on the next one. */
static void lose(struct line *line, int error, const struct cbshm_call *call)
{
	while (line->first != NULL)
		finish_first(line, NULL, error, call);
	hang_up(line);
}

/* By the leader. What listens there is asked without the lock; nobody else touches the stream meanwhile. */
static int connect_line(struct pipelines *pipelines, struct line *line, int64_t deadline,
			struct cbshm_call *call)
{
	const struct cbshm *client = pipelines->client;
	struct varlink stream;
	int error;

	pthread_mutex_unlock(&line->lock);
	error = varlink_open(&stream, client->socket, client->trusted, client->trusted_count,
			     deadline, call);
	pthread_mutex_lock(&line->lock);
	if (error != 0)
		return error;
	line->stream = stream;
	line->connection++;
	return 0;
}

/* A message that is begun goes to its end, or its place in the line would never be free. */
static bool may_send(const struct line *line)
{
	if (line->unsent == NULL || line->broken)
		return false;
	if (line->unsent->sent > 0)
		return true;
	return !line->closing &&
	       (line->under_way == 0 || (line->answered && line->under_way < PIPELINE_CALLS_MAX));
}

/* As much as the socket takes. */
static void send_some(struct line *line)
{
	struct cbshm_call ignored;
	size_t taken;
	int error;

	while (may_send(line)) {
		struct flight *flight = line->unsent;

		error = varlink_send(&line->stream, flight->text + flight->sent,
				     flight->size - flight->sent, &ignored, &taken);
		if (taken > 0 && flight->sent == 0 && line->under_way++ == 0)
			line->progress = varlink_now();
		flight->sent += taken;
		line->broken = error != 0;
		if (!was_sent(flight))
			return;
		free(flight->text);
		flight->text = NULL;
		line->unsent = flight->next;
	}
}

/*
 * An agent that is at a limit says so before it closes, perhaps without reading. The caller will
 * look at the reply properly; but nothing is to be sent before that. The words in another short
 * reply cost a new connection, no more.
 */
static bool may_be_farewell(const char *reply)
{
	const size_t length = strnlen(reply, LOOK_SIZE);

	return length < LOOK_SIZE && strstr(reply, "io.cbshm.LimitExceeded") != NULL;
}

/* Hands out what has come. */
static void deliver(struct line *line)
{
	struct cbshm_call call;
	const char *text;

	while ((text = varlink_message(&line->stream)) != NULL) {
		const bool farewell = may_be_farewell(text);
		char *reply;

		if (line->first == NULL) {
			hang_up(line);
			return;
		}
		reply = varlink_take_message(&line->stream);
		line->answered = true;
		line->closing |= farewell;
		line->progress = varlink_now();
		finish_first(line, reply, reply != NULL ? 0 : call_fail_memory(&call), &call);
	}
}

static void receive_some(struct line *line)
{
	struct cbshm_call call;
	const int error = varlink_receive(&line->stream, &call);
	const int saved_errno = errno;

	deliver(line);
	errno = saved_errno;
	if (error != 0)
		lose(line, error, &call);
	else if (line->closing && line->under_way == 0)
		hang_up(line);
}

/* ---- waiting ---------------------------------------------------------------------------- */

static bool is_stalled(const struct line *line)
{
	return line->under_way > 0 && varlink_now() - line->progress > STALLED_US;
}

/* One turn of the leader's. An error is that of its own call, which is still in the line. */
static int lead(struct pipelines *pipelines, struct line *line, struct flight *flight,
		int64_t deadline, struct cbshm_call *call)
{
	struct pollfd poll_fd = {.events = POLLIN};
	int error;

	if (line->stream.fd >= 0 && line->under_way == 0 &&
	    (line->closing || !varlink_is_idle(&line->stream)))
		hang_up(line);
	if (line->stream.fd < 0) {
		flight->reused = false;
		error = connect_line(pipelines, line, deadline, call);
		if (error != 0)
			return error;
	}
	send_some(line);
	if (may_send(line))
		poll_fd.events |= POLLOUT;
	poll_fd.fd = line->stream.fd;
	if (!line->broken) {
		pthread_mutex_unlock(&line->lock);
		poll(&poll_fd, 1, varlink_milliseconds_until(deadline));
		pthread_mutex_lock(&line->lock);
	}
	receive_some(line);
	return 0;
}

static void sleep_until(struct line *line, struct flight *flight, int64_t deadline)
{
	const int64_t retry = varlink_now() + RETRY_US;
	struct timespec until;

	if (flight->sent < flight->size && retry < deadline)
		deadline = retry;
	until.tv_sec = deadline / 1000000;
	until.tv_nsec = deadline % 1000000 * 1000;
	pthread_cond_timedwait(&flight->changed, &line->lock, &until);
}

/* Somebody who waits takes the lead. */
static void hand_over(struct line *line)
{
	struct flight *flight = line->first;

	while (flight != NULL && flight->abandoned)
		flight = flight->next;
	if (!line->leading && flight != NULL)
		pthread_cond_signal(&flight->changed);
}

/* A line that moves, other than the one whose lock is held. */
static struct line *better_line(struct pipelines *pipelines, const struct line *held)
{
	for (struct line *line = pipelines->lines; line < pipelines->lines + PIPELINE_LINES;
	     line++) {
		if (line == held || pthread_mutex_trylock(&line->lock) != 0)
			continue;
		const bool moves = !is_stalled(line);

		pthread_mutex_unlock(&line->lock);
		if (moves)
			return line;
	}
	return NULL;
}

/*
 * Until the call is done, or it fails with its error; or, if nothing of it is sent and this line
 * does not move, *move to a better one.
 */
static int wait_for(struct pipelines *pipelines, struct line *line, struct flight *flight,
		    int64_t deadline, struct cbshm_call *call, struct line **move)
{
	int error = 0;

	while (error == 0 && !flight->done) {
		if (varlink_now() >= deadline)
			return call_fail(call, CBSHM_ERR_TIMEOUT,
					 "the agent did not answer in time: is it hanging? "
					 "systemctl status cbagent");
		if (flight->sent == 0 && line->leading && is_stalled(line)) {
			*move = better_line(pipelines, line);
			if (*move != NULL)
				return 0;
		}
		if (line->leading) {
			if (line->stream.fd >= 0)
				send_some(line);
			if (!flight->done)
				sleep_until(line, flight, deadline);
		} else {
			line->leading = true;
			error = lead(pipelines, line, flight, deadline, call);
			line->leading = false;
		}
	}
	return error;
}

/* What became of it is for the caller; the flight itself, if the agent may still answer it, stays in the line. */
static int land(struct line *line, struct flight *flight, int error, struct cbshm_call *call,
		struct pipeline_result *result)
{
	result->connection = line->connection;
	result->reused = flight->reused;
	if (!flight->done && flight->sent > 0) {
		flight->abandoned = true;
		result->sent = true; /* the rest is on its way */
		return error;
	}
	if (flight->done) {
		error = flight->error;
		/* The message, not the deadline: whoever led the line at that moment had a call of his own. */
		if (error != 0)
			memcpy(call->message, flight->call.message, sizeof(call->message));
		if (error == CBSHM_ERR_SYSTEM)
			errno = flight->system_error;
		result->sent = was_sent(flight);
		result->reply = flight->reply;
		flight->reply = NULL;
	} else {
		take_out(line, flight);
	}
	flight_free(flight);
	return error;
}

/* Returns a line to move to, or NULL, and then the flight is landed. */
static struct line *fly(struct pipelines *pipelines, struct line *line, struct flight *flight,
			int64_t deadline, struct cbshm_call *call, struct pipeline_result *result,
			int *error)
{
	struct line *move = NULL;

	pthread_mutex_lock(&line->lock);
	append(line, flight);
	flight->reused = true;
	*error = wait_for(pipelines, line, flight, deadline, call, &move);
	if (move != NULL)
		take_out(line, flight);
	else
		*error = land(line, flight, *error, call, result);
	hand_over(line);
	pthread_mutex_unlock(&line->lock);
	return move;
}

/* The first that moves, or else the one with the fewest calls. */
static struct line *choose_line(struct pipelines *pipelines)
{
	struct line *fewest = NULL;
	unsigned calls = 0;

	for (struct line *line = pipelines->lines; line < pipelines->lines + PIPELINE_LINES;
	     line++) {
		pthread_mutex_lock(&line->lock);
		const bool moves = !is_stalled(line);
		const unsigned under_way = line->under_way;

		pthread_mutex_unlock(&line->lock);
		if (moves)
			return line;
		if (fewest == NULL || under_way < calls) {
			fewest = line;
			calls = under_way;
		}
	}
	return fewest;
}

/* ---- lines ------------------------------------------------------------------------------ */

static void line_init(struct line *line)
{
	memset(line, 0, sizeof(*line));
	pthread_mutex_init(&line->lock, NULL);
	line->stream.fd = -1;
	line->last = &line->first;
}

/* Nobody waits; what is still in the line is abandoned. */
static void line_free(struct line *line)
{
	const struct cbshm_call none = {0};

	lose(line, CBSHM_ERR_AGENT_DOWN, &none);
	pthread_mutex_destroy(&line->lock);
}

static int fly_alone(struct pipelines *pipelines, struct flight *flight, int64_t deadline,
		     struct cbshm_call *call, struct pipeline_result *result)
{
	struct line line;
	int error;

	line_init(&line);
	result->line = PIPELINE_LINES;
	fly(pipelines, &line, flight, deadline, call, result, &error);
	line_free(&line);
	return error;
}

int pipelines_exchange(struct pipelines *pipelines, bool alone, char *text, size_t size,
		       int64_t deadline, struct cbshm_call *call, struct pipeline_result *result)
{
	struct flight *flight = flight_new(text, size);
	struct line *line, *move;
	int error;

	memset(result, 0, sizeof(*result));
	if (flight == NULL) {
		free(text);
		return call_fail_memory(call);
	}
	if (alone)
		return fly_alone(pipelines, flight, deadline, call, result);
	move = choose_line(pipelines);
	do {
		line = move;
		result->line = (unsigned)(line - pipelines->lines);
		move = fly(pipelines, line, flight, deadline, call, result, &error);
	} while (move != NULL);
	return error;
}

void pipelines_distrust(struct pipelines *pipelines, const struct pipeline_result *result)
{
	struct line *line = &pipelines->lines[result->line];

	if (result->line >= PIPELINE_LINES)
		return;
	pthread_mutex_lock(&line->lock);
	if (line->connection == result->connection)
		line->closing = line->stream.fd >= 0;
	pthread_mutex_unlock(&line->lock);
}

struct pipelines *pipelines_new(struct cbshm *client)
{
	struct pipelines *pipelines = malloc(sizeof(*pipelines));

	if (pipelines == NULL)
		return NULL;
	pipelines->client = client;
	for (int i = 0; i < PIPELINE_LINES; i++)
		line_init(&pipelines->lines[i]);
	return pipelines;
}

void pipelines_free(struct pipelines *pipelines)
{
	for (int i = 0; pipelines != NULL && i < PIPELINE_LINES; i++)
		line_free(&pipelines->lines[i]);
	free(pipelines);
}

/*
 * The parent's threads are not here. If one of them held the lock, what it was changing is in no
 * state to be freed; if one slept on a condition, destroying that would wait for it.
 */
void pipelines_disown(struct pipelines *pipelines)
{
	for (int i = 0; i < PIPELINE_LINES; i++) {
		struct line *line = &pipelines->lines[i];

		if (varlink_is_ours(&line->stream))
			close(line->stream.fd);
		if (pthread_mutex_trylock(&line->lock) == 0)
			free(line->stream.text);
		line_init(line);
	}
}
