/*
 * message.c - takes Varlink calls apart and puts replies together
 *
 * SPDX-License-Identifier: ISC
 *
 * cJSON parses; what it would let through, json_text_scan() and utf8_valid() refuse before.
 */
#include <config.h>

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/message.h"
#include "libcbshm/json_text.h"
#include "libcbshm/name.h"

static const struct {
	const char *name;
	const char *subject; /* the error's parameter that takes fault.subject */
	bool message;        /* has the parameter `message` */
} errors[REPLY_ERRORS] = {
	[REPLY_OK] = {NULL, NULL, false},
	[REPLY_MALFORMED] = {"io.cbshm.Malformed", NULL, true},
	[REPLY_INVALID_ARGUMENT] = {"io.cbshm.InvalidArgument", "field", true},
	[REPLY_NOT_FOUND] = {"io.cbshm.NotFound", "name", true},
	[REPLY_PERMISSION_DENIED] = {"io.cbshm.PermissionDenied", NULL, true},
	[REPLY_DATABASE_UNAVAILABLE] = {"io.cbshm.DatabaseUnavailable", NULL, true},
	[REPLY_BUSY] = {"io.cbshm.Busy", "name", true},
	[REPLY_TIMEOUT] = {"io.cbshm.Timeout", NULL, true},
	[REPLY_OUTCOME_UNKNOWN] = {"io.cbshm.OutcomeUnknown", NULL, true},
	[REPLY_LIMIT_EXCEEDED] = {"io.cbshm.LimitExceeded", NULL, true},
	[REPLY_DATABASE_ERROR] = {"io.cbshm.DatabaseError", "sqlstate", true},
	[REPLY_INTERFACE_NOT_FOUND] = {"org.varlink.service.InterfaceNotFound", "interface", false},
	[REPLY_METHOD_NOT_FOUND] = {"org.varlink.service.MethodNotFound", "method", false},
	[REPLY_INVALID_PARAMETER] = {"org.varlink.service.InvalidParameter", "parameter", false},
	[REPLY_EXPECTED_MORE] = {"org.varlink.service.ExpectedMore", NULL, false},
};

const char *reply_error_name(enum reply_error error)
{
	return errors[error].name;
}

/* Copies what fits, whole characters only. */
static void copy_cut(char *out, size_t room, const char *text)
{
	const size_t length = utf8_cut(text, strlen(text), room - 1);

	memcpy(out, text, length);
	out[length] = '\0';
}

bool fault_set(struct fault *fault, enum reply_error error, const char *subject, const char *format,
	       ...)
{
	char message[1024];
	va_list args;

	fault->error = error;
	copy_cut(fault->subject, sizeof(fault->subject), subject != NULL ? subject : "");
	va_start(args, format);
	vsnprintf(message, sizeof(message), format, args);
	va_end(args);
	utf8_copy_sentence(fault->message, sizeof(fault->message), message);
	return false;
}

static bool malformed(struct fault *fault, const char *what, size_t offset)
{
	return fault_set(fault, REPLY_MALFORMED, NULL, "%s at byte %zu of the message", what,
			 offset);
}

static bool take_flag(const cJSON *member, bool *seen, bool *value, struct fault *fault)
{
	if (*seen)
		return fault_set(fault, REPLY_MALFORMED, NULL, "\"%s\" stands twice",
				 member->string);
	*seen = true;
	if (!cJSON_IsBool(member))
		return fault_set(fault, REPLY_MALFORMED, NULL, "\"%s\" is neither true nor false",
				 member->string);
	*value = cJSON_IsTrue(member);
	return true;
}

static bool take_member(const cJSON *member, struct message *message, bool seen[4],
			struct fault *fault)
{
	if (strcmp(member->string, "oneway") == 0)
		return take_flag(member, &seen[0], &message->oneway, fault);
	if (strcmp(member->string, "more") == 0)
		return take_flag(member, &seen[1], &message->more, fault);
	if (strcmp(member->string, "upgrade") == 0)
		return take_flag(member, &seen[2], &message->upgrade, fault);
	if (strcmp(member->string, "method") == 0) {
		if (message->method != NULL)
			return fault_set(fault, REPLY_MALFORMED, NULL, "\"method\" stands twice");
		if (!cJSON_IsString(member))
			return fault_set(fault, REPLY_MALFORMED, NULL, "\"method\" is not a text");
		message->method = member->valuestring;
		return true;
	}
	if (strcmp(member->string, "parameters") == 0) {
		if (seen[3])
			return fault_set(fault, REPLY_MALFORMED, NULL,
					 "\"parameters\" stands twice");
		seen[3] = true;
		if (!cJSON_IsObject(member) && !cJSON_IsNull(member))
			return fault_set(fault, REPLY_MALFORMED, NULL,
					 "\"parameters\" is not an object");
		message->parameters = cJSON_IsObject(member) ? member : NULL;
		return true;
	}
	return fault_set(fault, REPLY_MALFORMED, NULL,
			 "\"%.64s\" is no member of a Varlink call: method, parameters, oneway, "
			 "more or upgrade",
			 member->string);
}

static bool take_members(struct message *message, struct fault *fault)
{
	bool seen[4] = {false};

	if (!cJSON_IsObject(message->root))
		return fault_set(fault, REPLY_MALFORMED, NULL, "the message is not a JSON object");
	for (const cJSON *member = message->root->child; member != NULL; member = member->next) {
		if (!take_member(member, message, seen, fault))
			return false;
	}
	if (message->method == NULL)
		return fault_set(fault, REPLY_MALFORMED, NULL, "the message has no \"method\"");
	return true;
}

bool message_parse(const char *text, size_t size, struct message *message, struct fault *fault)
{
	const char *end = NULL, *what;
	size_t at;

	memset(message, 0, sizeof(*message));
	message->text = text;
	if (size > MESSAGE_SIZE_MAX)
		return fault_set(fault, REPLY_MALFORMED, NULL,
				 "the message is longer than %u bytes", MESSAGE_SIZE_MAX);
	if (!utf8_valid(text, size))
		return malformed(fault, "invalid UTF-8", utf8_cut(text, size, size));
	what = json_text_scan(text, size, MESSAGE_DEPTH_MAX, &at);
	if (what != NULL)
		return malformed(fault, what, at);
	message->root = cJSON_ParseWithLengthOpts(text, size + 1, &end, 1);
	if (message->root == NULL)
		return malformed(fault, "no valid JSON", end != NULL ? (size_t)(end - text) : 0);
	if (!take_members(message, fault)) {
		message_free(message);
		return false;
	}
	return true;
}

void message_free(struct message *message)
{
	cJSON_Delete(message->root);
	memset(message, 0, sizeof(*message));
}

/* cJSON keeps the members in the order of the text. */
static size_t index_of(const cJSON *object, const cJSON *member)
{
	size_t index = 0;

	for (const cJSON *p = object->child; p != member; p = p->next)
		index++;
	return index;
}

char *message_parameter_text(const struct message *message, const cJSON *parameter)
{
	const char *p = message->text + strspn(message->text, " \t\n\r");

	p = json_text_nth(p, index_of(message->root, message->parameters));
	return json_text_copy(json_text_nth(p, index_of(message->parameters, parameter)));
}

/* Prints and frees; NULL: out of memory, here or when it was made. */
static char *print_and_delete(cJSON *reply)
{
	char *text = reply != NULL ? cJSON_PrintUnformatted(reply) : NULL;

	cJSON_Delete(reply);
	return text;
}

char *message_reply(cJSON *parameters)
{
	cJSON *reply = cJSON_CreateObject();

	if (parameters == NULL)
		parameters = cJSON_CreateObject();
	if (!cJSON_AddItemToObject(reply, "parameters", parameters)) {
		cJSON_Delete(parameters);
		cJSON_Delete(reply);
		return NULL;
	}
	return print_and_delete(reply);
}

char *message_error(const struct fault *fault)
{
	cJSON *reply = cJSON_CreateObject();
	cJSON *parameters;
	bool complete;

	complete = cJSON_AddStringToObject(reply, "error", errors[fault->error].name) != NULL;
	parameters = cJSON_AddObjectToObject(reply, "parameters");
	complete = complete && parameters != NULL;
	if (errors[fault->error].subject != NULL)
		complete = complete &&
			   cJSON_AddStringToObject(parameters, errors[fault->error].subject,
						   fault->subject) != NULL;
	if (errors[fault->error].message)
		complete = complete &&
			   cJSON_AddStringToObject(parameters, "message", fault->message) != NULL;
	if (!complete) {
		cJSON_Delete(reply);
		return NULL;
	}
	return print_and_delete(reply);
}
