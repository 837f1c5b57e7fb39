/*
 * methods.c - the table of methods, and the way from call to request and from answer to reply
 *
 * SPDX-License-Identifier: ISC
 *
 * The single parameters are arguments.c's, the segment is listing.c's. Permission is looked at before
 * parameters: who may not call a method learns nothing from it.
 */
#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/arguments.h"
#include "agent/introspection.h"
#include "agent/listing.h"
#include "agent/methods.h"
#include "agent/segment_writer.h"
#include "agent/text.h"

#define INTERFACE "io.cbshm."
#define SERVICE   "org.varlink.service."

enum handler {
	HANDLER_INFO,
	HANDLER_DESCRIPTION,
	HANDLER_LIST,
	HANDLER_STREAM,
	HANDLER_HANDOUT, /* who may is the segment file's business: handout.c */
	HANDLER_WRITER,  /* goes to the writer as a request of `kind` */
};

static const struct method {
	const char *name;
	enum access access;
	enum method_effect effect;
	enum handler handler;
	enum request_kind kind;
} methods[METHOD_UNKNOWN] = {
	[METHOD_GET_INFO] = {SERVICE "GetInfo", ACCESS_ANYBODY, EFFECT_NONE, HANDLER_INFO, 0},
	[METHOD_GET_INTERFACE_DESCRIPTION] = {SERVICE "GetInterfaceDescription", ACCESS_ANYBODY,
					      EFFECT_NONE, HANDLER_DESCRIPTION, 0},
	[METHOD_REPORT_DRIFT] = {INTERFACE "ReportDrift", ACCESS_REPORT, EFFECT_WRITE,
				 HANDLER_WRITER, REQUEST_REPORT_DRIFT},
	[METHOD_REPORT_SCHEMA_ERROR] = {INTERFACE "ReportSchemaError", ACCESS_REPORT, EFFECT_WRITE,
					HANDLER_WRITER, REQUEST_REPORT_SCHEMA_ERROR},
	[METHOD_DISABLE] = {INTERFACE "Disable", ACCESS_ADMIN, EFFECT_WRITE, HANDLER_WRITER,
			    REQUEST_DISABLE},
	[METHOD_ENABLE] = {INTERFACE "Enable", ACCESS_ADMIN, EFFECT_WRITE, HANDLER_WRITER,
			   REQUEST_ENABLE},
	[METHOD_RESET] = {INTERFACE "Reset", ACCESS_ADMIN, EFFECT_WRITE, HANDLER_WRITER,
			  REQUEST_ENABLE},
	[METHOD_GET_STATE] = {INTERFACE "GetState", ACCESS_REPORT, EFFECT_READ, HANDLER_WRITER,
			      REQUEST_GET_STATE},
	[METHOD_GET_INCIDENTS] = {INTERFACE "GetIncidents", ACCESS_REPORT, EFFECT_READ,
				  HANDLER_WRITER, REQUEST_GET_INCIDENTS},
	[METHOD_SET_POLICY] = {INTERFACE "SetPolicy", ACCESS_ADMIN, EFFECT_POLICY, HANDLER_WRITER,
			       REQUEST_SET_POLICY},
	[METHOD_GET_AGENTS] = {INTERFACE "GetAgents", ACCESS_REPORT, EFFECT_READ, HANDLER_WRITER,
			       REQUEST_GET_AGENTS},
	[METHOD_WAIT_FLEET] = {INTERFACE "WaitFleet", ACCESS_REPORT, EFFECT_READ, HANDLER_WRITER,
			       REQUEST_WAIT_FLEET},
	[METHOD_GET_LOG] = {INTERFACE "GetLog", ACCESS_REPORT, EFFECT_READ, HANDLER_WRITER,
			    REQUEST_GET_LOG},
	[METHOD_GET_ALERTS] = {INTERFACE "GetAlerts", ACCESS_REPORT, EFFECT_READ, HANDLER_WRITER,
			       REQUEST_GET_ALERTS},
	[METHOD_RETRY_ALERTS] = {INTERFACE "RetryAlerts", ACCESS_ADMIN, EFFECT_ALERTS,
				 HANDLER_WRITER, REQUEST_RETRY_ALERTS},
	[METHOD_PURGE_ALERTS] = {INTERFACE "PurgeAlerts", ACCESS_ADMIN, EFFECT_ALERTS,
				 HANDLER_WRITER, REQUEST_PURGE_ALERTS},
	[METHOD_LIST] = {INTERFACE "List", ACCESS_REPORT, EFFECT_READ, HANDLER_LIST, 0},
	[METHOD_SUBSCRIBE] = {INTERFACE "Subscribe", ACCESS_REPORT, EFFECT_STREAM, HANDLER_STREAM,
			      0},
	[METHOD_GET_SEGMENT] = {INTERFACE "GetSegment", ACCESS_ANYBODY, EFFECT_NONE,
				HANDLER_HANDOUT, 0},
};

const char *method_name(enum method_id method)
{
	return method < METHOD_UNKNOWN ? methods[method].name : "unknown";
}

static enum method_id find_method(const char *name)
{
	for (int i = 0; i < METHOD_UNKNOWN; i++) {
		if (strcmp(methods[i].name, name) == 0)
			return (enum method_id)i;
	}
	return METHOD_UNKNOWN;
}

enum method_effect method_effect(const char *name)
{
	const enum method_id method = find_method(name);

	return method < METHOD_UNKNOWN ? methods[method].effect : EFFECT_NONE;
}

/* The interface of a method's name is what stands before the last dot. */
static bool unknown_method(const char *name, struct fault *fault)
{
	const char *dot = strrchr(name, '.');
	char interface[sizeof(fault->subject)];

	if (dot == NULL || (size_t)(dot - name) >= sizeof(interface))
		return fault_set(fault, REPLY_INTERFACE_NOT_FOUND, name, "%s", "");
	snprintf(interface, sizeof(interface), "%.*s", (int)(dot - name), name);
	if (strcmp(interface, "io.cbshm") != 0 && strcmp(interface, "org.varlink.service") != 0)
		return fault_set(fault, REPLY_INTERFACE_NOT_FOUND, interface, "%s", "");
	return fault_set(fault, REPLY_METHOD_NOT_FOUND, name, "%s", "");
}

static bool check_flags(enum handler handler, const struct message *message, struct fault *fault)
{
	const bool stream = handler == HANDLER_STREAM;

	if (message->upgrade)
		return fault_set(fault, REPLY_INVALID_PARAMETER, "upgrade", "%s", "");
	if (stream && !message->more)
		return fault_set(fault, REPLY_EXPECTED_MORE, NULL, "%s", "");
	if ((stream || handler == HANDLER_HANDOUT) && message->oneway)
		return fault_set(fault, REPLY_INVALID_PARAMETER, "oneway", "%s", "");
	if (message->more && !stream)
		return fault_set(fault, REPLY_INVALID_PARAMETER, "more", "%s", "");
	return true;
}

static bool check_access(const struct method *method, const struct caller *caller,
			 struct fault *fault)
{
	if (caller->access >= method->access)
		return true;
	return fault_set(fault, REPLY_PERMISSION_DENIED, NULL,
			 "user %s (uid %ju) may not call %s: that takes membership of the agent's "
			 "%s",
			 caller->peer->user, (uintmax_t)caller->peer->uid, method->name,
			 method->access == ACCESS_ADMIN ? "[socket] admin_group"
							: "[socket] group or admin_group");
}

/* Who does it, where the client does not say: who the kernel says it is. */
static bool default_actor(enum method_id method, const struct peer *peer, struct request *request)
{
	if (method != METHOD_DISABLE && method != METHOD_ENABLE && method != METHOD_RESET &&
	    method != METHOD_SET_POLICY)
		return true;
	if (request->by == NULL)
		request->by = strdup(peer->user);
	return request->by != NULL;
}

/* NULL: out of memory, or *fault. */
static struct request *make_request(enum method_id method, const struct message *message,
				    const struct peer *peer, struct fault *fault)
{
	struct request *request = request_new(methods[method].kind);

	if (request == NULL)
		return NULL;
	if (arguments_parse(method, message, request, fault) &&
	    default_actor(method, peer, request)) {
		request->peer = *peer;
		return request;
	}
	request_free(request);
	return NULL;
}

static cJSON *list(const struct message *message, const struct caller *caller, struct fault *fault)
{
	struct request *request = make_request(METHOD_LIST, message, caller->peer, fault);
	cJSON *reply = NULL;

	if (request != NULL)
		reply = listing_page(caller->segment, request->name, request->limit);
	request_free(request);
	return reply;
}

/* A client that has another segment in mind must not take this one for it. */
static bool is_our_segment(const struct message *message, const struct caller *caller,
			   struct fault *fault)
{
	struct request *request = make_request(METHOD_GET_SEGMENT, message, caller->peer, fault);
	const char *ours = segment_writer_name(caller->segment);
	bool same = request != NULL && (request->name == NULL || strcmp(request->name, ours) == 0);

	if (request != NULL && !same)
		fault_set(fault, REPLY_NOT_FOUND, request->name,
			  "this agent's segment is %s: ask the agent of %s, or for no name", ours,
			  request->name);
	request_free(request);
	return same;
}

/* Fills dispatch->request, dispatch->handout or *reply; none: out of memory, or *fault. */
static void handle(const struct message *message, const struct caller *caller,
		   struct dispatch *dispatch, cJSON **reply, struct fault *fault)
{
	switch (methods[dispatch->method].handler) {
	case HANDLER_INFO:
		*reply = introspection_info(message->parameters, fault);
		break;
	case HANDLER_DESCRIPTION:
		*reply = introspection_description(message->parameters, fault);
		break;
	case HANDLER_LIST:
		*reply = list(message, caller, fault);
		break;
	case HANDLER_HANDOUT:
		dispatch->handout = is_our_segment(message, caller, fault);
		break;
	case HANDLER_STREAM:
	case HANDLER_WRITER:
		dispatch->stream = methods[dispatch->method].handler == HANDLER_STREAM;
		dispatch->request = make_request(dispatch->method, message, caller->peer, fault);
		break;
	}
}

int methods_dispatch(const struct message *message, const struct caller *caller,
		     struct dispatch *dispatch)
{
	struct fault fault = {.error = REPLY_OK};
	cJSON *reply = NULL;

	memset(dispatch, 0, sizeof(*dispatch));
	dispatch->method = find_method(message->method);
	if (dispatch->method == METHOD_UNKNOWN)
		unknown_method(message->method, &fault);
	else if (check_access(&methods[dispatch->method], caller, &fault) &&
		 check_flags(methods[dispatch->method].handler, message, &fault))
		handle(message, caller, dispatch, &reply, &fault);
	dispatch->error = fault.error;
	if (fault.error != REPLY_OK)
		dispatch->reply = message_error(&fault);
	else if (reply != NULL)
		dispatch->reply = message_reply(reply);
	return dispatch->reply != NULL || dispatch->request != NULL || dispatch->handout ? 0
											 : -ENOMEM;
}

int methods_dispatch_report(const struct report *report, const struct caller *caller,
			    struct dispatch *dispatch)
{
	struct request *request = NULL;
	struct fault fault;

	memset(dispatch, 0, sizeof(*dispatch));
	dispatch->method = report->schema_error ? METHOD_REPORT_SCHEMA_ERROR : METHOD_REPORT_DRIFT;
	if (!check_access(&methods[dispatch->method], caller, &fault)) {
		dispatch->error = fault.error;
		dispatch->reply = message_error(&fault);
		return dispatch->reply != NULL ? 0 : -ENOMEM;
	}
	request = request_new(methods[dispatch->method].kind);
	if (request == NULL || !arguments_of_report(report, request, &fault)) {
		request_free(request);
		return -ENOMEM;
	}
	request->peer = *caller->peer;
	dispatch->request = request;
	return 0;
}

/* ---- replies ---------------------------------------------------------------------------- */

/* The answers of requests that carry a JSON text, by kind; `absent` stands where there is none. */
static const struct {
	const char *key; /* NULL: none */
	const char *absent;
	bool changed; /* has the parameter `changed` */
	bool list;    /* is as long as its limit allows */
} shapes[] = {
	[REQUEST_REPORT_DRIFT] = {"incident", "null", false, false},
	[REQUEST_REPORT_SCHEMA_ERROR] = {"incident", "null", false, false},
	[REQUEST_DISABLE] = {"incident", "null", true, false},
	[REQUEST_ENABLE] = {NULL, NULL, true, false},
	[REQUEST_SET_POLICY] = {"policy", NULL, false, false},
	[REQUEST_GET_STATE] = {"state", NULL, false, false},
	[REQUEST_GET_INCIDENTS] = {"incidents", "[]", false, true},
	[REQUEST_GET_AGENTS] = {"agents", "[]", false, true},
	[REQUEST_WAIT_FLEET] = {"fleet", NULL, false, false},
	[REQUEST_GET_LOG] = {"entries", "[]", false, true},
	[REQUEST_GET_ALERTS] = {"alerts", "[]", false, true},
	[REQUEST_RETRY_ALERTS] = {"count", NULL, false, false},
	[REQUEST_PURGE_ALERTS] = {"count", NULL, false, false},
};

const char *methods_common_reply(const struct request *request, const struct answer *answer)
{
	if (request->kind != REQUEST_REPORT_DRIFT && request->kind != REQUEST_REPORT_SCHEMA_ERROR)
		return NULL;
	if (answer->status != ANSWER_OK || answer->json != NULL)
		return NULL;
	return "{\"parameters\":{\"incident\":null}}";
}

/* Put together by hand: most replies are these, and all they hold is JSON already. */
static char *success(const struct request *request, const struct answer *answer)
{
	const char *json = answer->json != NULL ? answer->json : shapes[request->kind].absent;
	const char *key = shapes[request->kind].key;
	struct text reply = {0};

	text_add(&reply, "{\"parameters\":{");
	if (shapes[request->kind].changed)
		text_add(&reply, answer->changed ? "\"changed\":true" : "\"changed\":false");
	if (shapes[request->kind].changed && key != NULL)
		text_add(&reply, ",");
	if (key != NULL) {
		text_add(&reply, "\"");
		text_add(&reply, key);
		text_add(&reply, "\":");
		text_add(&reply, json);
	}
	text_add(&reply, "}}");
	return text_take(&reply);
}

static void not_found(const struct request *request, struct fault *fault)
{
	fault_set(fault, REPLY_NOT_FOUND, request->name, "there is no breaker \"%s\"",
		  request->name != NULL ? request->name : "");
}

static const struct {
	enum reply_error error;
	const char *message; /* where the answer has none */
} statuses[] = {
	[ANSWER_OK] = {REPLY_OK, NULL},
	[ANSWER_INVALID] = {REPLY_INVALID_ARGUMENT, "the database refused it"},
	[ANSWER_NOT_FOUND] = {REPLY_NOT_FOUND, NULL},
	[ANSWER_DATABASE_UNAVAILABLE] = {REPLY_DATABASE_UNAVAILABLE,
					 "Postgres cannot be reached; nothing was applied"},
	[ANSWER_BUSY] = {REPLY_BUSY,
			 "somebody else holds the breaker's row locked; nothing was applied"},
	[ANSWER_TIMEOUT] = {REPLY_TIMEOUT, "the deadline passed; nothing was applied"},
	[ANSWER_OUTCOME_UNKNOWN] = {REPLY_OUTCOME_UNKNOWN,
				    "the connection to Postgres was lost during the commit; it may "
				    "or may not have been applied"},
	[ANSWER_LIMIT] = {REPLY_LIMIT_EXCEEDED, "the agent is at a limit; nothing was applied"},
	[ANSWER_DATABASE_ERROR] = {REPLY_DATABASE_ERROR, "Postgres refused it"},
};

static void failure(const struct request *request, const struct answer *answer, struct fault *fault)
{
	const char *subject = request->name;
	const char *message = statuses[answer->status].message;

	if (answer->status == ANSWER_NOT_FOUND) {
		not_found(request, fault);
		return;
	}
	if (answer->status == ANSWER_INVALID)
		subject = answer->field;
	else if (answer->status == ANSWER_DATABASE_ERROR)
		subject = answer->sqlstate;
	if (answer->message != NULL && *answer->message != '\0')
		message = answer->message;
	fault_set(fault, statuses[answer->status].error, subject, "%s", message);
}

size_t methods_reply_room(const struct request *request)
{
	const size_t room = (size_t)request->limit * MESSAGE_SIZE_MAX;

	if (request->kind == REQUEST_WAIT_FLEET)
		return MESSAGE_SIZE_MAX;
	if (!shapes[request->kind].list)
		return 0;
	return room < METHODS_REPLY_MAX ? room : METHODS_REPLY_MAX;
}

/* Reading too much at once can be said; a write that was applied is always answered as such. */
static bool is_too_long(const struct request *request, const char *reply)
{
	return shapes[request->kind].list && strlen(reply) > methods_reply_room(request);
}

char *methods_reply(const struct request *request, const struct answer *answer,
		    enum reply_error *error)
{
	struct fault fault = {.error = REPLY_OK};
	char *reply = NULL;

	if (answer->status != ANSWER_OK)
		failure(request, answer, &fault);
	else if (answer->json == NULL && shapes[request->kind].key != NULL &&
		 shapes[request->kind].absent == NULL)
		not_found(request, &fault);
	else
		reply = success(request, answer);
	if (reply != NULL && is_too_long(request, reply)) {
		free(reply);
		reply = NULL;
		fault_set(&fault, REPLY_LIMIT_EXCEEDED, NULL,
			  "these %s take more than %zu bytes: ask for fewer (limit)",
			  shapes[request->kind].key, methods_reply_room(request));
	}
	*error = fault.error;
	return fault.error != REPLY_OK ? message_error(&fault) : reply;
}
