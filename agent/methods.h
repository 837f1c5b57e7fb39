/*
 * methods.h - the methods of io.cbshm and org.varlink.service: who may call them, what they take
 *
 * SPDX-License-Identifier: ISC
 *
 * Turns a call into a request for the writer, or into a reply where nobody has to be asked; and an
 * answer of the writer into a reply. No I/O, no state.
 */
#ifndef AGENT_METHODS_H
#define AGENT_METHODS_H

#include "agent/message.h"
#include "agent/peer.h"
#include "agent/request.h"

struct report;
struct segment_writer;

enum method_id {
	METHOD_GET_INFO,
	METHOD_GET_INTERFACE_DESCRIPTION,
	METHOD_REPORT_DRIFT,
	METHOD_REPORT_SCHEMA_ERROR,
	METHOD_DISABLE,
	METHOD_ENABLE,
	METHOD_RESET,
	METHOD_GET_STATE,
	METHOD_GET_INCIDENTS,
	METHOD_SET_POLICY,
	METHOD_LIST,
	METHOD_SUBSCRIBE,
	METHOD_GET_SEGMENT,
	METHOD_GET_AGENTS,
	METHOD_WAIT_FLEET,
	METHOD_GET_LOG,
	METHOD_GET_ALERTS,
	METHOD_RETRY_ALERTS,
	METHOD_PURGE_ALERTS,
	METHOD_UNKNOWN, /* for counting what was called by no known name */
	METHODS
};

/* "io.cbshm.Disable"; "unknown" for METHOD_UNKNOWN. */
const char *method_name(enum method_id method);

/*
 * What a call touches. Calls of one kind may be under way together: the writer keeps their order, or it
 * does not matter. Calls of different kinds go different ways there, so that a later one could overtake.
 */
enum method_effect {
	EFFECT_NONE, /* introspection, and what is refused anyway */
	EFFECT_READ,
	EFFECT_WRITE,
	EFFECT_POLICY,
	EFFECT_ALERTS, /* the queue of alerts */
	EFFECT_STREAM, /* takes the connection for itself */
};

enum method_effect method_effect(const char *name);

/* Who calls. */
struct caller {
	const struct peer *peer;
	enum access access;
	const struct segment_writer *segment;
};

/* What becomes of a call: exactly one of request, reply and handout is set. */
struct dispatch {
	enum method_id method;
	struct request *request; /* to be submitted; the receiver sets done and arg */
	bool stream;             /* or the names in it to be subscribed to, and the request freed */
	bool handout;            /* a descriptor of the segment is to be sent: handout_send() */
	char *reply;             /* to be sent; free() */
	enum reply_error error;  /* of the reply */
};

/* Authorizes, then parses. Returns 0 or -ENOMEM. */
int methods_dispatch(const struct message *message, const struct caller *caller,
		     struct dispatch *dispatch);

/* The same for a report that was read without a tree. */
int methods_dispatch_report(const struct report *report, const struct caller *caller,
			    struct dispatch *dispatch);

#define METHODS_REPLY_MAX \
	(8u * MESSAGE_SIZE_MAX) /* bytes of the longest reply, such as GetIncidents' */

/*
 * The most that the reply takes if it is a list, by its limit; what is longer becomes an error. 0: it is none, and its
 * reply is about as long as the call.
 */
size_t methods_reply_room(const struct request *request);

/* The reply to a request if it is the one that most get; else NULL, and methods_reply() has it. */
const char *methods_common_reply(const struct request *request, const struct answer *answer);

/* The reply to a request that dispatch made; free(). NULL: out of memory. */
char *methods_reply(const struct request *request, const struct answer *answer,
		    enum reply_error *error);

#endif /* AGENT_METHODS_H */
