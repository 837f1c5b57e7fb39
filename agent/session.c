/*
 * session.c - frames from a client, calls in their order, replies back
 *
 * SPDX-License-Identifier: ISC
 *
 * What a call means is methods.c's business. The writer may answer in any order; a reply waits here
 * until all earlier ones are out. How much a client can make the agent hold is bounded: before the next frame is read
 * there must be room for the largest reply to it and to all calls under way. Calls take effect in their order, too: one that
 * could overtake the calls before it waits for them.
 */
#include <config.h>

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <event2/event.h>

#include "agent/handout.h"
#include "agent/log.h"
#include "agent/report.h"
#include "agent/session.h"
#include "agent/subscription.h"
#include "agent/wire.h"
#include "agent/writer.h"

#define INPUT_MAX         (2 * (size_t)MESSAGE_SIZE_MAX) /* bytes read ahead */
#define CALLS_PER_TURN    64                             /* then other clients have theirs */
#define REPLY_SIZE_COMMON 256 /* a reply, but for what it repeats of the call */

enum session_state {
	SESSION_READING,
	SESSION_PAUSED,    /* too much under way: reads on when there is room */
	SESSION_STREAMING, /* a subscription tells what changes, and nothing is read but the end */
	SESSION_DRAINING,  /* reads no more, answers what it has */
	SESSION_ENDED,     /* to be freed by the next turn of the event loop */
	SESSION_STATES
};

static const char *const state_names[SESSION_STATES] = {"reading", "paused", "streaming",
							"draining", "ended"};

static const bool state_moves[SESSION_STATES][SESSION_STATES] = {
	[SESSION_READING] = {[SESSION_PAUSED] = true,
			     [SESSION_STREAMING] = true,
			     [SESSION_DRAINING] = true,
			     [SESSION_ENDED] = true},
	[SESSION_PAUSED] =
		{[SESSION_READING] = true, [SESSION_DRAINING] = true, [SESSION_ENDED] = true},
	[SESSION_STREAMING] = {[SESSION_DRAINING] = true, [SESSION_ENDED] = true},
	[SESSION_DRAINING] = {[SESSION_ENDED] = true},
};

/* A call, from its frame to its reply. One that waits for the writer outlives its session. */
struct call {
	struct session *session; /* NULL: it has ended */
	struct call *next;
	enum method_id method;
	bool oneway;
	bool handout;            /* it is answered when its turn has come, with a descriptor */
	bool submitted;          /* the writer has a request that points here */
	struct request *request; /* that one, while it has it */
	bool answered;
	size_t reserved;   /* bytes set aside for the reply */
	const char *reply; /* NULL until answered, and of a oneway call */
	char *own_reply;   /* the same, if it is to be freed */
};

struct session {
	const struct session_host *host;
	struct wire *wire;
	struct event *turn;  /* fires when there is more to do than this turn of the loop allowed */
	struct event *flush; /* sends the replies that this turn of the loop has brought */
	bool unreceived;     /* handout_send()'s */
	enum session_state state;
	uint64_t id;
	struct peer peer;
	enum access access;
	struct call *first, **last; /* in the order in which they came */
	unsigned calls;
	unsigned handouts;         /* of these, how many wait for their turn to be answered */
	unsigned submitted;        /* and how many the writer has */
	enum method_effect effect; /* of those */
	bool waiting;              /* the next frame must not overtake them */
	size_t reserved;           /* for the calls that are not answered */
	size_t held;               /* bytes of replies that wait for an earlier one */
	struct subscription *subscription; /* or NULL: the first call is the one that it answers */
};

static void session_process(struct session *session);

/* ---- states ----------------------------------------------------------------------------- */

static void set_state(struct session *session, enum session_state state)
{
	assert(state_moves[session->state][state]);
	log_event(LOG_LEVEL_DEBUG, "session_state", "session=%ju uid=%ju from=%s to=%s",
		  (uintmax_t)session->id, (uintmax_t)session->peer.uid, state_names[session->state],
		  state_names[state]);
	session->state = state;
	wire_listen(session->wire, state == SESSION_READING || state == SESSION_STREAMING);
}

static void next_turn(struct session *session)
{
	static const struct timeval now = {0, 0};

	event_add(session->turn, &now);
}

/* The memory goes by the next turn of the loop: callers up the stack still look at the session. */
static void end(struct session *session)
{
	if (session->state == SESSION_ENDED)
		return;
	set_state(session, SESSION_ENDED);
	next_turn(session);
}

static void drop(struct session *session, const char *why)
{
	log_problem(LOG_LEVEL_WARNING, "session_dropped",
		    "the client must read what it has asked for: see what that process does",
		    "session=%ju uid=%ju pid=%jd user=%s reason=%s", (uintmax_t)session->id,
		    (uintmax_t)session->peer.uid, (intmax_t)session->peer.pid,
		    LOG_VALUE(session->peer.user), why);
	session->host->counters->dropped++;
	end(session);
}

static void drain(struct session *session)
{
	set_state(session, SESSION_DRAINING);
	wire_forget(session->wire);
}

/* ---- replies ---------------------------------------------------------------------------- */

static size_t unsent(const struct session *session)
{
	return wire_unsent(session->wire) + session->held;
}

static bool has_room(const struct session *session)
{
	if (session->waiting && session->submitted + session->handouts > 0)
		return false;
	return session->calls < SESSION_PIPELINE_MAX &&
	       unsent(session) + session->reserved + METHODS_REPLY_MAX <= SESSION_PROMISED_MAX;
}

static void call_free(struct call *call)
{
	free(call->own_reply);
	free(call);
}

/* The reply stays where it is. NULL for want of memory: an order with a gap is none, so the session ends. */
static void answer_with(struct call *call, enum reply_error error, const char *reply)
{
	struct session *session = call->session;

	if (call->submitted)
		session->submitted--;
	if (call->handout)
		session->handouts--;
	session->host->counters->replies[call->method][error]++;
	call->answered = true;
	session->reserved -= call->reserved;
	if (call->oneway)
		return;
	if (reply != NULL) {
		call->reply = reply;
		session->held += strlen(reply) + 1;
	} else {
		drop(session, "memory");
	}
}

/* Takes the reply over. */
static void answer(struct call *call, enum reply_error error, char *reply)
{
	call->own_reply = reply;
	answer_with(call, error, reply);
}

static void flush(struct session *session)
{
	if (session->state != SESSION_ENDED && wire_flush(session->wire) < 0)
		end(session);
}

/* Its reply goes out by itself, after all that comes before it: the descriptor belongs to it alone. */
static void hand_out(struct session *session, struct call *call)
{
	struct fault fault;

	flush(session);
	if (session->state == SESSION_ENDED || wire_is_blocked(session->wire))
		return;
	switch (handout_send(session->host->segment, wire_socket(session->wire), &session->peer,
			     &session->unreceived, &fault)) {
	case HANDOUT_SENT:
		call->oneway = true; /* there is no more to be sent */
		answer(call, REPLY_OK, NULL);
		break;
	case HANDOUT_REFUSED:
		answer(call, fault.error, message_error(&fault));
		break;
	case HANDOUT_LATER:
		wire_wait(session->wire);
		break;
	case HANDOUT_LOST:
		end(session);
		break;
	}
}

/* The replies whose turn it is. */
static void send_replies(struct session *session)
{
	while (session->first != NULL) {
		struct call *call = session->first;

		if (call->handout && !call->answered)
			hand_out(session, call);
		if (!call->answered)
			break;
		session->first = call->next;
		if (session->first == NULL)
			session->last = &session->first;
		session->calls--;
		if (call->reply != NULL) {
			const size_t size = strlen(call->reply) + 1;

			session->held -= size;
			wire_send(session->wire, call->reply, size);
		}
		call_free(call);
	}
}

static void stream_end(struct session *session, enum reply_error error, char *reply)
{
	subscription_free(session->subscription);
	session->subscription = NULL;
	answer(session->first, error, reply);
	if (session->state == SESSION_STREAMING)
		drain(session);
}

/* The call that the subscription answers gets a last reply, an error. */
static void stream_fail(struct session *session, enum reply_error error, const char *why)
{
	struct fault fault;

	fault_set(&fault, error, NULL, "%s", why);
	stream_end(session, error, message_error(&fault));
}

/* Or none: the peer wants no more, or the agent stops. */
static void stream_close(struct session *session)
{
	session->first->oneway = true;
	stream_end(session, REPLY_OK, NULL);
}

/* As much as the peer may have ahead. */
static void stream(struct session *session)
{
	while (session->state == SESSION_STREAMING && unsent(session) < SESSION_STREAM_AHEAD) {
		char *reply;
		enum subscription_news news = subscription_next(session->subscription, &reply);

		if (news == SUBSCRIPTION_NOTHING)
			break;
		if (news == SUBSCRIPTION_BEHIND) {
			stream_fail(
				session, REPLY_LIMIT_EXCEEDED,
				"the subscriber reads too slowly for what is removed: subscribe "
				"anew");
			break;
		}
		wire_send(session->wire, reply, strlen(reply) + 1);
		free(reply);
	}
}

/* At once if nothing more is expected; else with all others that this turn of the loop brings. */
static void send_out(struct session *session)
{
	if (session->calls == 0)
		flush(session);
	else if (wire_unsent(session->wire) > 0 && !wire_is_blocked(session->wire))
		event_active(session->flush, EV_TIMEOUT, 0);
}

/* After anything that may have let a session go on: to read, or to its end. */
static void settle(struct session *session)
{
	if (session->state == SESSION_ENDED)
		return;
	send_replies(session);
	if (session->state == SESSION_STREAMING)
		stream(session);
	send_replies(session); /* a stream's last */
	if (session->state == SESSION_ENDED)
		return;
	if (unsent(session) > SESSION_UNSENT_MAX)
		drop(session, "unread_replies");
	else
		send_out(session);
	if (session->state == SESSION_PAUSED && has_room(session)) {
		set_state(session, SESSION_READING);
		next_turn(session);
	} else if (session->state == SESSION_DRAINING && session->calls == 0 &&
		   unsent(session) == 0) {
		end(session);
	}
}

static void request_done(struct request *request, const struct answer *result)
{
	struct call *call = request->arg;
	struct session *session = call->session;
	const char *common;
	enum reply_error error;
	char *reply;

	if (session == NULL) {
		call_free(call);
	} else {
		common = methods_common_reply(request, result);
		if (common != NULL) {
			answer_with(call, REPLY_OK, common);
		} else {
			reply = methods_reply(request, result, &error);
			answer(call, error, reply);
		}
		settle(session);
	}
	request_free(request);
}

/* ---- calls ------------------------------------------------------------------------------ */

static struct call *call_new(struct session *session)
{
	struct call *call = calloc(1, sizeof(*call));

	if (call == NULL)
		return NULL;
	call->session = session;
	*session->last = call;
	session->last = &call->next;
	session->calls++;
	return call;
}

static void refuse_frame(struct session *session, struct call *call, const struct fault *fault)
{
	log_event(LOG_LEVEL_INFO, "session_malformed", "session=%ju uid=%ju pid=%jd message=%s",
		  (uintmax_t)session->id, (uintmax_t)session->peer.uid, (intmax_t)session->peer.pid,
		  LOG_VALUE(fault->message));
	call->method = METHOD_UNKNOWN;
	answer(call, fault->error, message_error(fault));
	if (session->state == SESSION_READING)
		drain(session);
}

static void on_news(void *arg)
{
	settle(arg);
}

/* Everything before it has been answered: see must_wait(). */
static void subscribe(struct session *session, struct request *request)
{
	session->subscription =
		subscription_new(session->host->subscriptions, (const char *const *)request->names,
				 request->name_count, on_news, session);
	request_free(request);
	set_state(session, SESSION_STREAMING);
}

/* A call takes effect, or is answered at once. */
static void carry_out(struct session *session, struct call *call, const struct dispatch *dispatch,
		      enum method_effect effect, size_t size)
{
	struct request *request = dispatch->request;

	call->method = dispatch->method;
	call->handout = dispatch->handout;
	if (dispatch->handout) {
		session->handouts++;
		return;
	}
	if (request == NULL) {
		answer(call, dispatch->error, dispatch->reply);
		return;
	}
	if (dispatch->stream) {
		subscribe(session, request);
		return;
	}
	call->reserved = methods_reply_room(request);
	if (call->reserved == 0)
		call->reserved = REPLY_SIZE_COMMON + size;
	session->reserved += call->reserved;
	request->done = request_done;
	request->arg = call;
	call->submitted = true;
	call->request = request;
	session->submitted++;
	session->effect = effect;
	writer_submit(session->host->writer, request);
}

/* Could a call overtake what the writer has of this session? */
static bool must_wait(const struct session *session, enum method_effect effect)
{
	if (effect == EFFECT_STREAM && session->handouts > 0)
		return true;
	return session->submitted > 0 && effect != EFFECT_NONE && effect != session->effect;
}

static struct caller caller_of(const struct session *session)
{
	return (struct caller){&session->peer, session->access, session->host->segment};
}

/* Returns whether it was one that need not wait. */
static bool handle_report(struct session *session, const struct report *report, size_t size)
{
	const struct caller caller = caller_of(session);
	struct dispatch dispatch;
	struct call *call;

	session->waiting = must_wait(session, EFFECT_WRITE);
	if (session->waiting)
		return false;
	call = call_new(session);
	if (call == NULL || methods_dispatch_report(report, &caller, &dispatch) < 0) {
		drop(session, "memory");
		return true;
	}
	call->oneway = report->oneway;
	carry_out(session, call, &dispatch, EFFECT_WRITE, size);
	return true;
}

static void handle_message(struct session *session, struct call *call,
			   const struct message *message, size_t size)
{
	const struct caller caller = caller_of(session);
	struct dispatch dispatch;

	call->oneway = message->oneway;
	if (methods_dispatch(message, &caller, &dispatch) < 0)
		drop(session, "memory");
	else
		carry_out(session, call, &dispatch, method_effect(message->method), size);
}

/* Returns what it cost of CALLS_PER_TURN. */
static unsigned handle_frame(struct session *session, const char *text, size_t size)
{
	struct message message;
	struct fault fault;
	struct call *call;
	struct report report;
	unsigned cost = CALLS_PER_TURN;
	bool parsed;

	if (report_read(text, size, &report)) {
		if (!handle_report(session, &report, size))
			return cost;
		wire_drop_frame(session->wire);
		return 1;
	}
	parsed = message_parse(text, size, &message, &fault);
	session->waiting = parsed && must_wait(session, method_effect(message.method));
	if (session->waiting) {
		message_free(&message);
		return cost;
	}
	call = call_new(session);
	if (call == NULL) {
		drop(session, "memory");
	} else if (parsed) {
		handle_message(session, call, &message, size);
		cost = call->method == METHOD_LIST ? CALLS_PER_TURN : 1;
	} else {
		refuse_frame(session, call, &fault);
	}
	if (parsed)
		message_free(&message);
	wire_drop_frame(session->wire);
	return cost;
}

/* A frame that cannot be taken from the stream at all. */
static void broken_frame(struct session *session, const char *message)
{
	struct call *call = call_new(session);
	struct fault fault;

	if (call == NULL) {
		drop(session, "memory");
		return;
	}
	fault_set(&fault, REPLY_MALFORMED, NULL, "%s", message);
	refuse_frame(session, call, &fault);
}

/* Of a peer that has subscribed nothing but the end is expected. */
static void stream_input(struct session *session)
{
	if (wire_unread(session->wire) > 0) {
		stream_fail(session, REPLY_MALFORMED,
			    "this connection belongs to a subscription: open another one");
	} else if (wire_ended(session->wire)) {
		stream_close(session);
	}
}

/* Nobody reads the answers: those that are still to come need not be looked for. */
static void abandon(struct session *session)
{
	for (struct call *call = session->first; call != NULL; call = call->next) {
		if (call->submitted && !call->answered)
			call->request->abandoned = true;
	}
}

/* No whole frame is there. Will one come? */
static void input_exhausted(struct session *session)
{
	const size_t rest = wire_unread(session->wire);
	const bool ended = wire_ended(session->wire);

	if (rest > MESSAGE_SIZE_MAX)
		broken_frame(session, "the message is longer than 65536 bytes");
	else if (ended && rest > 0)
		broken_frame(session, "the connection ended within a message: its NUL is missing");
	else if (ended)
		drain(session);
	if (ended && wire_is_closed(session->wire))
		abandon(session);
}

static void session_process(struct session *session)
{
	unsigned spent = 0;

	while (session->state == SESSION_READING) {
		const char *text;
		size_t size;

		if (!has_room(session)) {
			set_state(session, SESSION_PAUSED);
			break;
		}
		if (spent >= CALLS_PER_TURN) {
			next_turn(session);
			break;
		}
		text = wire_frame(session->wire, &size);
		if (text == NULL) {
			input_exhausted(session);
			break;
		}
		spent += handle_frame(session, text, size);
		send_replies(session);
	}
	if (session->state == SESSION_STREAMING)
		stream_input(session);
	settle(session);
}

/* ---- events ----------------------------------------------------------------------------- */

static void on_readable(void *arg)
{
	struct session *session = arg;

	if (wire_receive(session->wire) < 0)
		end(session);
	else
		session_process(session);
}

static void on_writable(void *arg)
{
	flush(arg);
	settle(arg);
}

static void on_stalled(void *arg)
{
	struct session *session = arg;

	if (session->state != SESSION_ENDED)
		drop(session, "stalled");
}

/* A stream goes on by the next turn: a peer that is as fast as the agent must not have the loop for itself. */
static void on_flush(evutil_socket_t fd, short what, void *arg)
{
	struct session *session = arg;
	const bool more = wire_unsent(session->wire) >= SESSION_STREAM_AHEAD;

	(void)fd;
	(void)what;
	flush(session);
	if (session->state == SESSION_STREAMING && more && !wire_is_blocked(session->wire))
		next_turn(session);
	else if (session->state != SESSION_STREAMING)
		settle(session);
}

static void on_turn(evutil_socket_t fd, short what, void *arg)
{
	struct session *session = arg;

	(void)fd;
	(void)what;
	if (session->state != SESSION_ENDED) {
		session_process(session);
		return;
	}
	session->host->ended(session->host->arg, session);
	session_free(session);
}

/* ---- life ------------------------------------------------------------------------------- */

static int open_wire(struct session *session, int fd)
{
	static const struct wire_events events = {
		.readable = on_readable, .writable = on_writable, .stalled = on_stalled};
	const struct session_host *host = session->host;
	const unsigned stall_ms =
		host->stall_ms != 0 ? host->stall_ms : SESSION_STALL_SECONDS * 1000;
	int r = wire_new(host->event_base, fd, INPUT_MAX, stall_ms, &events, session,
			 &session->wire);

	if (r < 0)
		return r;
	session->turn = evtimer_new(host->event_base, on_turn, session);
	session->flush = evtimer_new(host->event_base, on_flush, session);
	if (session->turn == NULL || session->flush == NULL)
		return -ENOMEM;
	wire_listen(session->wire, true);
	return 0;
}

int session_new(const struct session_host *host, int fd, uint64_t id, const struct peer *peer,
		enum access access, struct session **session)
{
	struct session *made = calloc(1, sizeof(*made));
	int r;

	if (made == NULL) {
		close(fd);
		return -ENOMEM;
	}
	made->host = host;
	made->id = id;
	made->peer = *peer;
	made->access = access;
	made->last = &made->first;
	r = open_wire(made, fd);
	if (r < 0) {
		session_free(made);
		return r;
	}
	*session = made;
	return 0;
}

const struct peer *session_peer(const struct session *session)
{
	return &session->peer;
}

void session_stop(struct session *session)
{
	if (session->state == SESSION_STREAMING) {
		stream_close(session);
		settle(session);
	}
	if (session->state != SESSION_READING && session->state != SESSION_PAUSED)
		return;
	drain(session);
	settle(session);
}

void session_free(struct session *session)
{
	struct call *call, *next;

	if (session == NULL)
		return;
	abandon(session);
	for (call = session->first; call != NULL; call = next) {
		next = call->next;
		if (call->submitted && !call->answered)
			call->session = NULL; /* request_done() frees it */
		else
			call_free(call);
	}
	subscription_free(session->subscription);
	/* What the loop has no turn left to send: as much as the socket takes now. */
	if (session->wire != NULL && session->state != SESSION_ENDED &&
	    wire_flush(session->wire) < 0)
		log_event(LOG_LEVEL_DEBUG, "session_unsent", "session=%ju", (uintmax_t)session->id);
	if (session->turn != NULL)
		event_free(session->turn);
	if (session->flush != NULL)
		event_free(session->flush);
	wire_free(session->wire);
	free(session);
}
