/*
 * message.c - takes Varlink calls apart and puts replies together
 *
 * SPDX-License-Identifier: ISC
 *
 * cJSON parses. Before it, one pass over the text refuses what cJSON would let through or stumble over:
 * invalid UTF-8, raw control characters, escaped NULs (which would cut a C string short of what
 * was meant), loose numbers and deep nesting.
 */
#include <config.h>

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/message.h"
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
	copy_cut(fault->message, sizeof(fault->message), message);
	return false;
}

static bool malformed(struct fault *fault, const char *what, size_t offset)
{
	return fault_set(fault, REPLY_MALFORMED, NULL, "%s at byte %zu of the message", what,
			 offset);
}

/* Checks the string that begins after text[*at] == '"' and moves *at to its closing quote. */
static bool scan_string(const char *text, size_t size, size_t *at, struct fault *fault)
{
	size_t i = *at + 1;

	while (i < size && text[i] != '"') {
		if ((unsigned char)text[i] < 0x20)
			return malformed(fault, "a control character that is not escaped", i);
		if (text[i] == '\\') {
			if (strncmp(text + i, "\\u0000", 6) == 0)
				return malformed(fault, "an escaped NUL in a text", i);
			i++;
		}
		i++;
	}
	if (i >= size)
		return malformed(fault, "a text that does not end", *at);
	*at = i;
	return true;
}

static size_t digits(const char *text)
{
	return strspn(text, "0123456789");
}

/* Checks the number at text[*at] against JSON's grammar and moves *at to its last character. */
static bool scan_number(const char *text, size_t *at, struct fault *fault)
{
	const char *p = text + *at;
	size_t n;

	p += *p == '-';
	n = digits(p);
	if (n == 0 || (n > 1 && *p == '0'))
		return malformed(fault, "a number that JSON does not know", *at);
	p += n;
	if (*p == '.') {
		n = digits(++p);
		if (n == 0)
			return malformed(fault, "a number that JSON does not know", *at);
		p += n;
	}
	if (*p == 'e' || *p == 'E') {
		p++;
		p += *p == '+' || *p == '-';
		n = digits(p);
		if (n == 0)
			return malformed(fault, "a number that JSON does not know", *at);
		p += n;
	}
	*at = (size_t)(p - text) - 1;
	return true;
}

static bool scan(const char *text, size_t size, struct fault *fault)
{
	int depth = 0;

	for (size_t i = 0; i < size; i++) {
		const unsigned char c = (unsigned char)text[i];

		if (c == '"') {
			if (!scan_string(text, size, &i, fault))
				return false;
		} else if (c == '-' || (c >= '0' && c <= '9')) {
			if (!scan_number(text, &i, fault))
				return false;
		} else if (c == '{' || c == '[') {
			if (++depth > MESSAGE_DEPTH_MAX)
				return malformed(fault, "objects or arrays nested too deeply", i);
		} else if (c == '}' || c == ']') {
			depth--;
		} else if ((c < 0x20 && strchr("\t\n\r", c) == NULL) || c >= 0x7f) {
			return malformed(fault, "a byte that JSON does not know", i);
		}
	}
	return true;
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
	const char *end = NULL;

	memset(message, 0, sizeof(*message));
	message->text = text;
	if (size > MESSAGE_SIZE_MAX)
		return fault_set(fault, REPLY_MALFORMED, NULL,
				 "the message is longer than %u bytes", MESSAGE_SIZE_MAX);
	if (!utf8_valid(text, size))
		return malformed(fault, "invalid UTF-8", utf8_cut(text, size, size));
	if (!scan(text, size, fault))
		return false;
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

/* ---- the text behind a value: it has been parsed, so that its grammar can be relied on ---- */

static const char *skip_blanks(const char *p)
{
	return p + strspn(p, " \t\n\r");
}

/* From an opening quote to behind the closing one. */
static const char *skip_string(const char *p)
{
	for (p++; *p != '"'; p++)
		p += *p == '\\';
	return p + 1;
}

static const char *skip_value(const char *p)
{
	int depth = 0;

	do {
		if (*p == '"') {
			p = skip_string(p);
			continue;
		}
		if (*p == '{' || *p == '[')
			depth++;
		else if (*p == '}' || *p == ']')
			depth--;
		p++;
	} while (depth > 0 || (p[-1] != '}' && p[-1] != ']' && p[-1] != '"' &&
			       strchr(",}] \t\n\r", *p) == NULL));
	return p;
}

/* The value of the member number `index` of the object at `p`. */
static const char *find_value(const char *p, size_t index)
{
	for (p++;; p++) {
		p = skip_string(skip_blanks(p));
		p = skip_blanks(skip_blanks(p) + 1);
		if (index-- == 0)
			return p;
		p = skip_blanks(skip_value(p));
	}
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
	const char *p = skip_blanks(message->text);
	const char *end, *next;
	char *text, *out;

	p = find_value(p, index_of(message->root, message->parameters));
	p = find_value(p, index_of(message->parameters, parameter));
	end = skip_value(p);
	text = out = malloc((size_t)(end - p) + 1);
	while (text != NULL && p < end) {
		next = *p == '"' ? skip_string(p) : p + 1;
		if (strchr(" \t\n\r", *p) == NULL)
			out = mempcpy(out, p, (size_t)(next - p));
		p = next;
	}
	if (text != NULL)
		*out = '\0';
	return text;
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
