/*
 * arguments.c - checks every parameter of every method, one function for each kind of value
 *
 * SPDX-License-Identifier: ISC
 *
 * What can be said without the database is said here. Whether `until` lies in the past is not: the
 * database's clock decides that.
 */
#include <config.h>

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/arguments.h"
#include "agent/subscription.h"
#include "libcbshm/name.h"
#include "libcbshm/timestamp.h"

#define BY_MAX             128
#define REASON_MAX         1024
#define DETAILS_MAX        32768
#define EXPONENT_MAX       308 /* of a double */
#define TIMEOUT_DEFAULT_MS 5000
#define TTL_MIN_SECONDS    0.000001
#define TTL_MAX_SECONDS    315360000.0 /* ten years */
#define LINES_DEFAULT      10          /* of what the database lists */
#define LINES_MAX          1000
#define LIST_MAX           100
#define SEGMENT_NAME_MAX   201 /* the slash included */

typedef bool take_function(const char *field, const cJSON *value, struct request *request,
			   struct fault *fault);

struct argument {
	const char *name;
	take_function *take;
	bool required;
};

#define ARGUMENTS_MAX 8 /* of one method */

static bool invalid(struct fault *fault, const char *field, const char *message)
{
	return fault_set(fault, REPLY_INVALID_ARGUMENT, field, "%s %s", field, message);
}

static bool out_of_memory(struct fault *fault)
{
	return fault_set(fault, REPLY_LIMIT_EXCEEDED, NULL, "the agent is out of memory");
}

static bool keep(char **where, const char *text, struct fault *fault)
{
	*where = strdup(text);
	return *where != NULL || out_of_memory(fault);
}

/* ---- kinds of values -------------------------------------------------------------------- */

/* A text of 1 to `max` bytes. That it is UTF-8 has been seen to when the message was taken apart. */
static bool take_text(const char *field, const cJSON *value, size_t max, const char *allowed,
		      char **where, struct fault *fault)
{
	size_t length;

	if (!cJSON_IsString(value))
		return invalid(fault, field, "must be a text");
	length = strlen(value->valuestring);
	if (length < 1 || length > max)
		return fault_set(fault, REPLY_INVALID_ARGUMENT, field,
				 "%s must be 1 to %zu bytes long; it has %zu", field, max, length);
	if (utf8_has_control(value->valuestring, allowed))
		return invalid(fault, field, "must not contain control characters");
	return keep(where, value->valuestring, fault);
}

static bool take_whole(const char *field, const cJSON *value, int64_t min, int64_t max,
		       int64_t *where, struct fault *fault)
{
	if (!cJSON_IsNumber(value) || !(value->valuedouble >= (double)min) ||
	    !(value->valuedouble <= (double)max) || floor(value->valuedouble) != value->valuedouble)
		return fault_set(fault, REPLY_INVALID_ARGUMENT, field,
				 "%s must be a whole number from %lld to %lld", field,
				 (long long)min, (long long)max);
	*where = (int64_t)value->valuedouble;
	return true;
}

static bool take_fraction(const char *field, const cJSON *value, double *where, struct fault *fault)
{
	if (!cJSON_IsNumber(value) || !(value->valuedouble >= 0 && value->valuedouble <= 1))
		return invalid(fault, field, "must be a number from 0 to 1");
	*where = value->valuedouble;
	return true;
}

static bool take_bool(const char *field, const cJSON *value, bool *where, struct fault *fault)
{
	if (!cJSON_IsBool(value))
		return invalid(fault, field, "must be true or false");
	*where = cJSON_IsTrue(value);
	return true;
}

static bool is_uuid(const char *text)
{
	for (int i = 0; i < 36; i++) {
		if (i == 8 || i == 13 || i == 18 || i == 23 ? text[i] != '-'
							    : !isxdigit((unsigned char)text[i]))
			return false;
	}
	return text[36] == '\0';
}

/*
 * What the numbers of a JSON text take in the database beyond what they take here: jsonb writes 1e300 out
 * in 301 digits. Without this, 32 KiB of details could become megabytes in every reply about their
 * incident. False: an exponent that no double has, and some of them no numeric either.
 */
static bool numbers_cost(const char *text, size_t *cost)
{
	bool in_string = false;

	for (const char *p = text; *p != '\0'; p++) {
		if (*p == '"')
			in_string = !in_string;
		else if (in_string && *p == '\\')
			p++;
		else if (!in_string && (*p == 'e' || *p == 'E') && isdigit((unsigned char)p[-1])) {
			const long exponent = strtol(p + 1, NULL, 10);

			if (exponent < -EXPONENT_MAX || exponent > EXPONENT_MAX)
				return false;
			*cost += (size_t)labs(exponent);
		}
	}
	return true;
}

/* ---- the arguments ---------------------------------------------------------------------- */

static bool take_name(const char *field, const cJSON *value, struct request *request,
		      struct fault *fault)
{
	if (!cJSON_IsString(value) || name_length(value->valuestring) == 0)
		return invalid(fault, field,
			       "must be a text of 1 to 128 bytes without control characters");
	return keep(&request->name, value->valuestring, fault);
}

static bool take_score(const char *field, const cJSON *value, struct request *request,
		       struct fault *fault)
{
	return take_fraction(field, value, &request->score, fault);
}

static bool take_sample_count(const char *field, const cJSON *value, struct request *request,
			      struct fault *fault)
{
	return take_whole(field, value, 1, ARGUMENT_COUNT_MAX, &request->count, fault);
}

static bool take_count(const char *field, const cJSON *value, struct request *request,
		       struct fault *fault)
{
	return take_whole(field, value, 0, ARGUMENT_COUNT_MAX, &request->count, fault);
}

/* The text itself is taken by keep_details(). */
static bool take_details(const char *field, const cJSON *value, struct request *request,
			 struct fault *fault)
{
	(void)request;
	return cJSON_IsObject(value) || invalid(fault, field, "must be an object");
}

static bool keep_details(const struct message *message, struct request *request,
			 struct fault *fault)
{
	const cJSON *value = cJSON_GetObjectItemCaseSensitive(message->parameters, "details");
	size_t size = 0;

	if (!cJSON_IsObject(value))
		return true;
	request->details = message_parameter_text(message, value);
	if (request->details == NULL)
		return out_of_memory(fault);
	if (!numbers_cost(request->details, &size))
		return invalid(fault, "details", "holds a number that no double holds");
	size += strlen(request->details);
	if (size > DETAILS_MAX)
		return fault_set(fault, REPLY_INVALID_ARGUMENT, "details",
				 "details may take %d bytes, numbers written out; these take %zu",
				 DETAILS_MAX, size);
	return true;
}

static bool take_reason(const char *field, const cJSON *value, struct request *request,
			struct fault *fault)
{
	return take_text(field, value, REASON_MAX, "\t\n", &request->reason, fault);
}

static bool take_by(const char *field, const cJSON *value, struct request *request,
		    struct fault *fault)
{
	return take_text(field, value, BY_MAX, "", &request->by, fault);
}

static bool take_until(const char *field, const cJSON *value, struct request *request,
		       struct fault *fault)
{
	char text[TIMESTAMP_SIZE];
	int64_t time;

	if (cJSON_IsString(value) && strcmp(value->valuestring, "never") == 0)
		return keep(&request->until, "infinity", fault);
	if (!cJSON_IsString(value) || !timestamp_parse(value->valuestring, &time) ||
	    !timestamp_format(time, text))
		return invalid(fault, field,
			       "must be a time with its zone, such as 2030-01-31T18:00:00Z, or "
			       "\"never\"");
	return keep(&request->until, text, fault);
}

static bool take_since(const char *field, const cJSON *value, struct request *request,
		       struct fault *fault)
{
	char text[TIMESTAMP_SIZE];
	int64_t time;

	if (!cJSON_IsString(value) || !timestamp_parse(value->valuestring, &time) ||
	    !timestamp_format(time, text))
		return invalid(fault, field,
			       "must be a time with its zone, such as 2030-01-31T18:00:00Z");
	return keep(&request->since, text, fault);
}

static bool take_ttl(const char *field, const cJSON *value, struct request *request,
		     struct fault *fault)
{
	if (!cJSON_IsNumber(value) || !(value->valuedouble >= TTL_MIN_SECONDS) ||
	    !(value->valuedouble <= TTL_MAX_SECONDS))
		return invalid(fault, field, "must be more than 0 and at most 315360000 seconds");
	request->ttl_us = llround(value->valuedouble * 1e6);
	return true;
}

static bool take_request_id(const char *field, const cJSON *value, struct request *request,
			    struct fault *fault)
{
	if (!cJSON_IsString(value) || !is_uuid(value->valuestring))
		return invalid(fault, field,
			       "must be a UUID, such as 5a0b1c9e-8d1f-4c57-9a55-6d3f0c2b7e41");
	return keep(&request->request_id, value->valuestring, fault);
}

static bool take_include_resolved(const char *field, const cJSON *value, struct request *request,
				  struct fault *fault)
{
	return take_bool(field, value, &request->include_resolved, fault);
}

static bool take_include_sent(const char *field, const cJSON *value, struct request *request,
			      struct fault *fault)
{
	return take_bool(field, value, &request->include_sent, fault);
}

static bool take_limit(const char *field, const cJSON *value, int64_t max, struct request *request,
		       struct fault *fault)
{
	int64_t limit = 0;

	if (!take_whole(field, value, 1, max, &limit, fault))
		return false;
	request->limit = (uint32_t)limit;
	return true;
}

static bool take_lines_limit(const char *field, const cJSON *value, struct request *request,
			     struct fault *fault)
{
	return take_limit(field, value, LINES_MAX, request, fault);
}

static bool take_list_limit(const char *field, const cJSON *value, struct request *request,
			    struct fault *fault)
{
	return take_limit(field, value, LIST_MAX, request, fault);
}

static bool take_timeout(const char *field, const cJSON *value, struct request *request,
			 struct fault *fault)
{
	int64_t timeout = 0;

	if (!take_whole(field, value, 1, ARGUMENT_TIMEOUT_MAX_MS, &timeout, fault))
		return false;
	request->deadline = request_deadline(timeout);
	return true;
}

static bool take_segment(const char *field, const cJSON *value, struct request *request,
			 struct fault *fault)
{
	return take_text(field, value, SEGMENT_NAME_MAX, "", &request->name, fault);
}

static bool take_names(const char *field, const cJSON *value, struct request *request,
		       struct fault *fault)
{
	const int count = cJSON_GetArraySize(value);

	if (!cJSON_IsArray(value) || count < 1 || count > SUBSCRIPTION_NAMES_MAX)
		return fault_set(fault, REPLY_INVALID_ARGUMENT, field,
				 "%s must be an array of 1 to %d names", field,
				 SUBSCRIPTION_NAMES_MAX);
	request->names = calloc((size_t)count, sizeof(*request->names));
	if (request->names == NULL)
		return out_of_memory(fault);
	for (const cJSON *child = value->child; child != NULL; child = child->next) {
		if (!cJSON_IsString(child) || name_length(child->valuestring) == 0)
			return invalid(
				fault, field,
				"must be texts of 1 to 128 bytes without control characters");
		if (!keep(&request->names[request->name_count], child->valuestring, fault))
			return false;
		request->name_count++;
	}
	return true;
}

/* ---- policies --------------------------------------------------------------------------- */

static bool take_drift_threshold(const char *field, const cJSON *value, struct request *request,
				 struct fault *fault)
{
	return take_fraction(field, value, &request->drift_threshold, fault);
}

static bool take_failure_threshold(const char *field, const cJSON *value, struct request *request,
				   struct fault *fault)
{
	return take_whole(field, value, 1, INT32_MAX, &request->failure_threshold, fault);
}

static bool take_schema_error_threshold(const char *field, const cJSON *value,
					struct request *request, struct fault *fault)
{
	return take_whole(field, value, 1, INT32_MAX, &request->schema_error_threshold, fault);
}

static bool take_default_ttl(const char *field, const cJSON *value, struct request *request,
			     struct fault *fault)
{
	/* What is less than a microsecond must not become a "never". */
	if (!cJSON_IsNumber(value) || !(value->valuedouble <= TTL_MAX_SECONDS) ||
	    !(value->valuedouble == 0 || value->valuedouble >= TTL_MIN_SECONDS))
		return invalid(fault, field,
			       "must be 0 (never ends), or 0.000001 to 315360000 seconds");
	request->default_ttl_us = llround(value->valuedouble * 1e6);
	return true;
}

static bool take_auto_recover(const char *field, const cJSON *value, struct request *request,
			      struct fault *fault)
{
	return take_bool(field, value, &request->auto_recover, fault);
}

static const struct {
	const char *name;
	uint32_t bit;
	take_function *take;
} policy_fields[] = {
	{"drift_threshold", REQUEST_POLICY_DRIFT_THRESHOLD, take_drift_threshold},
	{"failure_threshold", REQUEST_POLICY_FAILURE_THRESHOLD, take_failure_threshold},
	{"schema_error_threshold", REQUEST_POLICY_SCHEMA_ERROR_THRESHOLD,
	 take_schema_error_threshold},
	{"default_ttl_seconds", REQUEST_POLICY_DEFAULT_TTL, take_default_ttl},
	{"auto_recover", REQUEST_POLICY_AUTO_RECOVER, take_auto_recover},
};

#define POLICY_FIELDS (sizeof(policy_fields) / sizeof(*policy_fields))

/* Index into policy_fields; POLICY_FIELDS and a fault if there is none of that name, or it came before. */
static size_t find_policy_field(const char *name, const struct request *request,
				struct fault *fault)
{
	for (size_t i = 0; i < POLICY_FIELDS; i++) {
		if (strcmp(policy_fields[i].name, name) != 0)
			continue;
		if (((request->policy_set | request->policy_clear) & policy_fields[i].bit) == 0)
			return i;
		invalid(fault, policy_fields[i].name, "is named twice");
		return POLICY_FIELDS;
	}
	fault_set(fault, REPLY_INVALID_ARGUMENT, name,
		  "\"%.64s\" is no field of a policy: drift_threshold, failure_threshold, "
		  "schema_error_threshold, default_ttl_seconds or auto_recover",
		  name);
	return POLICY_FIELDS;
}

static bool take_policy_set(const char *field, const cJSON *value, struct request *request,
			    struct fault *fault)
{
	if (!cJSON_IsObject(value))
		return invalid(fault, field, "must be an object");
	for (const cJSON *child = value->child; child != NULL; child = child->next) {
		size_t i = find_policy_field(child->string, request, fault);

		if (i == POLICY_FIELDS ||
		    !policy_fields[i].take(child->string, child, request, fault))
			return false;
		request->policy_set |= policy_fields[i].bit;
	}
	return true;
}

static bool take_policy_clear(const char *field, const cJSON *value, struct request *request,
			      struct fault *fault)
{
	if (!cJSON_IsArray(value))
		return invalid(fault, field, "must be an array of field names");
	for (const cJSON *child = value->child; child != NULL; child = child->next) {
		size_t i;

		if (!cJSON_IsString(child))
			return invalid(fault, field, "must be an array of field names");
		i = find_policy_field(child->valuestring, request, fault);
		if (i == POLICY_FIELDS)
			return false;
		request->policy_clear |= policy_fields[i].bit;
	}
	return true;
}

/* ---- the methods ------------------------------------------------------------------------ */

#define TIMEOUT                                   \
	{                                         \
		"timeout_ms", take_timeout, false \
	}
#define ENABLE_ARGUMENTS                                                                           \
	{                                                                                          \
		{"name", take_name, true}, {"by", take_by, false}, {"reason", take_reason, false}, \
			{"request_id", take_request_id, false}, TIMEOUT                            \
	}

static const struct argument method_arguments[METHODS][ARGUMENTS_MAX] = {
	[METHOD_REPORT_DRIFT] = {{"name", take_name, true},
				 {"drift_score", take_score, true},
				 {"sample_count", take_sample_count, true},
				 {"details", take_details, false},
				 TIMEOUT},
	[METHOD_REPORT_SCHEMA_ERROR] = {{"name", take_name, true},
					{"count", take_count, true},
					{"details", take_details, false},
					TIMEOUT},
	[METHOD_DISABLE] = {{"name", take_name, true},
			    {"reason", take_reason, true},
			    {"by", take_by, false},
			    {"until", take_until, false},
			    {"ttl_seconds", take_ttl, false},
			    {"request_id", take_request_id, false},
			    TIMEOUT},
	[METHOD_ENABLE] = ENABLE_ARGUMENTS,
	[METHOD_RESET] = ENABLE_ARGUMENTS,
	[METHOD_GET_STATE] = {{"name", take_name, true}, TIMEOUT},
	[METHOD_GET_INCIDENTS] = {{"name", take_name, false},
				  {"include_resolved", take_include_resolved, false},
				  {"limit", take_lines_limit, false},
				  TIMEOUT},
	[METHOD_SET_POLICY] = {{"name", take_name, false},
			       {"set", take_policy_set, false},
			       {"clear", take_policy_clear, false},
			       {"by", take_by, false},
			       TIMEOUT},
	[METHOD_SUBSCRIBE] = {{"names", take_names, false}},
	[METHOD_GET_SEGMENT] = {{"name", take_segment, false}},
	[METHOD_GET_AGENTS] = {{"limit", take_lines_limit, false}, TIMEOUT},
	[METHOD_WAIT_FLEET] = {TIMEOUT},
	[METHOD_GET_LOG] = {{"name", take_name, false},
			    {"since", take_since, false},
			    {"limit", take_lines_limit, false},
			    TIMEOUT},
	[METHOD_GET_ALERTS] = {{"include_sent", take_include_sent, false},
			       {"limit", take_lines_limit, false},
			       TIMEOUT},
	[METHOD_RETRY_ALERTS] = {TIMEOUT},
	[METHOD_PURGE_ALERTS] = {TIMEOUT},
	[METHOD_LIST] = {{"after", take_name, false}, {"limit", take_list_limit, false}},
};

static bool take_one(const struct argument *arguments, const cJSON *value, struct request *request,
		     uint32_t *given, struct fault *fault)
{
	for (unsigned i = 0; i < ARGUMENTS_MAX && arguments[i].name != NULL; i++) {
		if (strcmp(arguments[i].name, value->string) != 0)
			continue;
		if ((*given & 1u << i) != 0)
			return invalid(fault, arguments[i].name, "is given twice");
		*given |= 1u << i;
		if (cJSON_IsNull(value) && !arguments[i].required)
			return true;
		return arguments[i].take(arguments[i].name, value, request, fault);
	}
	return fault_set(fault, REPLY_INVALID_ARGUMENT, value->string,
			 "\"%.64s\" is no parameter of this method", value->string);
}

/* What no single argument can tell. */
static bool check_together(const struct request *request, struct fault *fault)
{
	if (request->until != NULL && request->ttl_us != 0)
		return invalid(fault, "ttl_seconds", "and until exclude each other: give one");
	if (request->policy_clear != 0 && request->name == NULL)
		return invalid(fault, "clear", "needs a name: the fleet has nothing to follow");
	return true;
}

static uint32_t default_limit(enum method_id method)
{
	switch (method) {
	case METHOD_LIST:
		return LIST_MAX;
	case METHOD_GET_AGENTS:
		return LINES_MAX;
	default:
		return LINES_DEFAULT;
	}
}

bool arguments_parse(enum method_id method, const struct message *message, struct request *request,
		     struct fault *fault)
{
	const struct argument *arguments = method_arguments[method];
	const cJSON *parameters = message->parameters;
	uint32_t given = 0;

	request->deadline = request_deadline(TIMEOUT_DEFAULT_MS);
	request->limit = default_limit(method);
	for (const cJSON *value = parameters != NULL ? parameters->child : NULL; value != NULL;
	     value = value->next) {
		if (!take_one(arguments, value, request, &given, fault))
			return false;
	}
	for (unsigned i = 0; i < ARGUMENTS_MAX && arguments[i].name != NULL; i++) {
		if (arguments[i].required && (given & 1u << i) == 0)
			return invalid(fault, arguments[i].name, "is missing");
	}
	return keep_details(message, request, fault) && check_together(request, fault);
}

bool arguments_of_report(const struct report *report, struct request *request, struct fault *fault)
{
	request->deadline =
		request_deadline(report->timeout_ms > 0 ? report->timeout_ms : TIMEOUT_DEFAULT_MS);
	request->limit = LINES_DEFAULT;
	request->score = report->score;
	request->count = report->count;
	request->name = strndup(report->name, report->name_length);
	return request->name != NULL || out_of_memory(fault);
}
