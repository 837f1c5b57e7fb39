/*
 * arguments.c - checks what the caller of a write gave, and makes JSON of it
 *
 * SPDX-License-Identifier: ISC
 *
 * What can be seen to be wrong is refused here, before a connection is made, with the name of the argument. Whether
 * `until` lies in the past is left to the database, whose clock decides that.
 */
#include "config.h"

#include "libcbshm/arguments.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libcbshm/error.h"
#include "libcbshm/json_text.h"
#include "libcbshm/name.h"
#include "libcbshm/timestamp.h"

#define DETAILS_DEPTH_MAX 60 /* the agent takes 64 for the whole message */

/* ---- texts ------------------------------------------------------------------------------ */

int add_name(cJSON *parameters, const char *name, struct cbshm_call *call)
{
	if (name_length(name) == 0)
		return call_fail(call, CBSHM_ERR_INVALID,
				 "name must be 1 to %d bytes of valid UTF-8 without control "
				 "characters",
				 CBSHM_NAME_MAX);
	if (cJSON_AddStringToObject(parameters, "name", name) == NULL)
		return call_fail_memory(call);
	return 0;
}

static int add_text(cJSON *parameters, const char *field, const char *text, size_t max,
		    const char *allowed, struct cbshm_call *call)
{
	const size_t length = strlen(text);

	if (length < 1 || length > max)
		return call_fail(call, CBSHM_ERR_INVALID,
				 "%s must be 1 to %zu bytes long; it has %zu", field, max, length);
	if (!utf8_valid(text, length))
		return call_fail(call, CBSHM_ERR_INVALID, "%s must be valid UTF-8", field);
	if (utf8_has_control(text, allowed))
		return call_fail(call, CBSHM_ERR_INVALID,
				 "%s must not contain control characters%s", field,
				 allowed[0] != '\0' ? " other than tab and newline" : "");
	if (cJSON_AddStringToObject(parameters, field, text) == NULL)
		return call_fail_memory(call);
	return 0;
}

int add_by(cJSON *parameters, const char *by, struct cbshm_call *call)
{
	return by == NULL ? 0 : add_text(parameters, "by", by, ARGUMENT_BY_MAX, "", call);
}

int add_reason(cJSON *parameters, const char *reason, bool required, struct cbshm_call *call)
{
	if (reason != NULL)
		return add_text(parameters, "reason", reason, ARGUMENT_REASON_MAX, "\t\n", call);
	if (required)
		return call_fail(call, CBSHM_ERR_INVALID, "reason must be given");
	return 0;
}

/* ---- details ---------------------------------------------------------------------------- */

/* What the agent would refuse in a number. */
static bool has_infinite(const cJSON *value)
{
	if (cJSON_IsNumber(value) && !isfinite(value->valuedouble))
		return true;
	for (const cJSON *child = value->child; child != NULL; child = child->next) {
		if (has_infinite(child))
			return true;
	}
	return false;
}

static int check_object(const char *details, struct cbshm_call *call)
{
	cJSON *object = cJSON_ParseWithOpts(details, NULL, 1);
	int error = 0;

	if (!cJSON_IsObject(object))
		error = call_fail(call, CBSHM_ERR_INVALID,
				  "details must be a JSON object, such as {\"batch\": 7}; %s",
				  object != NULL ? "it is JSON, but no object" : "it is no JSON");
	else if (has_infinite(object))
		error = call_fail(call, CBSHM_ERR_INVALID,
				  "details must not hold a number larger than a double can hold");
	cJSON_Delete(object);
	return error;
}

int check_details(const char *details, struct cbshm_call *call)
{
	const size_t length = strlen(details);
	const char *what;
	size_t at;

	if (length > ARGUMENT_DETAILS_MAX)
		return call_fail(call, CBSHM_ERR_INVALID,
				 "details must be at most %d bytes long; they have %zu",
				 ARGUMENT_DETAILS_MAX, length);
	if (!utf8_valid(details, length))
		return call_fail(call, CBSHM_ERR_INVALID, "details must be valid UTF-8");
	what = json_text_scan(details, length, DETAILS_DEPTH_MAX, &at);
	if (what != NULL)
		return call_fail(call, CBSHM_ERR_INVALID,
				 "details must be a JSON object; there is %s at byte %zu", what,
				 at);
	return check_object(details, call);
}

/* The text itself goes out, since cJSON would round numbers of more than 15 digits. */
int add_details(cJSON *parameters, const char *details, struct cbshm_call *call)
{
	bool added;
	char *text;
	int error;

	if (details == NULL)
		return 0;
	error = check_details(details, call);
	if (error != 0)
		return error;
	text = json_text_copy(details + strspn(details, " \t\n\r"));
	added = text != NULL && cJSON_AddRawToObject(parameters, "details", text) != NULL;
	free(text);
	return added ? 0 : call_fail_memory(call);
}

/* ---- numbers ---------------------------------------------------------------------------- */

/* Whatever the locale's decimal point is. */
void number_format(char text[NUMBER_SIZE], double value)
{
	char *to = text;

	snprintf(text, NUMBER_SIZE, "%.17g", value);
	for (const char *from = text; *from != '\0'; from++) {
		if (strchr("0123456789+-e", *from) != NULL)
			*to++ = *from;
		else if (to == text || to[-1] != '.')
			*to++ = '.';
	}
	*to = '\0';
}

static bool add_number(cJSON *parameters, const char *field, double value)
{
	char text[NUMBER_SIZE];

	number_format(text, value);
	return cJSON_AddRawToObject(parameters, field, text) != NULL;
}

int add_fraction(cJSON *parameters, const char *field, const char *argument, double value,
		 struct cbshm_call *call)
{
	if (!(value >= 0 && value <= 1))
		return call_fail(call, CBSHM_ERR_INVALID, "%s must be a number from 0 to 1",
				 argument);
	return add_number(parameters, field, value) ? 0 : call_fail_memory(call);
}

int add_whole(cJSON *parameters, const char *field, const char *argument, int64_t value,
	      int64_t min, int64_t max, struct cbshm_call *call)
{
	char text[24];

	if (value < min || value > max)
		return call_fail(call, CBSHM_ERR_INVALID,
				 "%s must be from %lld to %lld; it is %lld", argument,
				 (long long)min, (long long)max, (long long)value);
	snprintf(text, sizeof(text), "%lld", (long long)value);
	if (cJSON_AddRawToObject(parameters, field, text) == NULL)
		return call_fail_memory(call);
	return 0;
}

int add_seconds(cJSON *parameters, const char *field, const char *argument, int64_t microseconds,
		int64_t min, struct cbshm_call *call)
{
	if (microseconds < min || microseconds > ARGUMENT_TTL_MAX_US)
		return call_fail(
			call, CBSHM_ERR_INVALID,
			"%s must be from %lld to %lld microseconds (ten years); it is %lld",
			argument, (long long)min, (long long)ARGUMENT_TTL_MAX_US,
			(long long)microseconds);
	return add_number(parameters, field, (double)microseconds / 1e6) ? 0
									 : call_fail_memory(call);
}

int add_end(cJSON *parameters, int64_t until, int64_t for_us, struct cbshm_call *call)
{
	char text[TIMESTAMP_SIZE] = "never";

	if (for_us != 0 && until != CBSHM_UNTIL_DEFAULT)
		return call_fail(call, CBSHM_ERR_INVALID,
				 "until and for_us exclude each other: give one");
	if (for_us != 0)
		return add_seconds(parameters, "ttl_seconds", "for_us", for_us, 1, call);
	if (until == CBSHM_UNTIL_DEFAULT)
		return 0;
	if (until != CBSHM_UNTIL_NEVER && (until < 0 || !timestamp_format(until, text)))
		return call_fail(call, CBSHM_ERR_INVALID,
				 "until must be microseconds since 1970, before the year 10000");
	if (cJSON_AddStringToObject(parameters, "until", text) == NULL)
		return call_fail_memory(call);
	return 0;
}

/* ---- policies --------------------------------------------------------------------------- */

#define POLICY_ALL                                                        \
	(CBSHM_POLICY_DRIFT_THRESHOLD | CBSHM_POLICY_FAILURE_THRESHOLD |  \
	 CBSHM_POLICY_SCHEMA_ERROR_THRESHOLD | CBSHM_POLICY_DEFAULT_TTL | \
	 CBSHM_POLICY_AUTO_RECOVER)

static int set_fields(cJSON *object, const struct cbshm_policy *policy, uint32_t set,
		      struct cbshm_call *call)
{
	int error = 0;

	if (set & CBSHM_POLICY_DRIFT_THRESHOLD)
		error = add_fraction(object, "drift_threshold", "drift_threshold",
				     policy->drift_threshold, call);
	if (error == 0 && (set & CBSHM_POLICY_FAILURE_THRESHOLD))
		error = add_whole(object, "failure_threshold", "failure_threshold",
				  policy->failure_threshold, 1, INT32_MAX, call);
	if (error == 0 && (set & CBSHM_POLICY_SCHEMA_ERROR_THRESHOLD))
		error = add_whole(object, "schema_error_threshold", "schema_error_threshold",
				  policy->schema_error_threshold, 1, INT32_MAX, call);
	if (error == 0 && (set & CBSHM_POLICY_DEFAULT_TTL))
		error = add_seconds(object, "default_ttl_seconds", "default_ttl_us",
				    policy->default_ttl_us, 0, call);
	if (error == 0 && (set & CBSHM_POLICY_AUTO_RECOVER) &&
	    cJSON_AddBoolToObject(object, "auto_recover", policy->auto_recover) == NULL)
		error = call_fail_memory(call);
	return error;
}

static bool clear_fields(cJSON *array, uint32_t clear)
{
	static const struct {
		uint32_t bit;
		const char *name;
	} fields[] = {
		{CBSHM_POLICY_DRIFT_THRESHOLD, "drift_threshold"},
		{CBSHM_POLICY_FAILURE_THRESHOLD, "failure_threshold"},
		{CBSHM_POLICY_SCHEMA_ERROR_THRESHOLD, "schema_error_threshold"},
		{CBSHM_POLICY_DEFAULT_TTL, "default_ttl_seconds"},
		{CBSHM_POLICY_AUTO_RECOVER, "auto_recover"},
	};

	for (size_t i = 0; i < sizeof(fields) / sizeof(*fields); i++) {
		if ((clear & fields[i].bit) == 0)
			continue;
		cJSON *name = cJSON_CreateString(fields[i].name);

		if (!cJSON_AddItemToArray(array, name)) {
			cJSON_Delete(name);
			return false;
		}
	}
	return true;
}

int add_policy(cJSON *parameters, bool fleet, const struct cbshm_policy *policy, uint32_t set,
	       uint32_t clear, struct cbshm_call *call)
{
	cJSON *member;

	if (((set | clear) & ~POLICY_ALL) != 0 || (set & clear) != 0)
		return call_fail(
			call, CBSHM_ERR_INVALID,
			"set and clear must be made of CBSHM_POLICY_*, each in one of them");
	if (set != 0 && policy == NULL)
		return call_fail(call, CBSHM_ERR_INVALID, "policy must be given if set is");
	if (fleet && clear != 0)
		return call_fail(call, CBSHM_ERR_INVALID,
				 "clear needs a name: the fleet has nothing to follow");
	if (set != 0) {
		member = cJSON_AddObjectToObject(parameters, "set");
		if (member == NULL)
			return call_fail_memory(call);
		const int error = set_fields(member, policy, set, call);

		if (error != 0)
			return error;
	}
	if (clear != 0) {
		member = cJSON_AddArrayToObject(parameters, "clear");
		if (member == NULL || !clear_fields(member, clear))
			return call_fail_memory(call);
	}
	return 0;
}
