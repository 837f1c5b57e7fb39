/*
 * answer.c - the agent's replies, from JSON to the structures of cbshm.h
 *
 * SPDX-License-Identifier: ISC
 *
 * The agent is trusted but not believed blindly: a field that is missing, of another type or too
 * long is a protocol error, never a crash or a guess. What this library does not know is ignored.
 */
#include "config.h"

#include "libcbshm/answer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libcbshm/error.h"
#include "libcbshm/json_text.h"
#include "libcbshm/name.h"
#include "libcbshm/timestamp.h"

#define MALFORMED "io.cbshm.Malformed"
#define DEPTH_MAX 1000 /* of objects and arrays in a reply; cJSON takes no more either */

static int not_cbshm(struct cbshm_call *call, const char *what)
{
	return call_fail(call, CBSHM_ERR_PROTOCOL,
			 "the agent's answer is not what io.cbshm says (%s): do the versions of "
			 "cbagent and libcbshm fit?",
			 what);
}

/* ---- errors ----------------------------------------------------------------------------- */

static const struct {
	const char *name;
	int error;
} errors[] = {
	{"io.cbshm.InvalidArgument", CBSHM_ERR_INVALID},
	{"io.cbshm.NotFound", CBSHM_ERR_NOT_FOUND},
	{"io.cbshm.PermissionDenied", CBSHM_ERR_DENIED},
	{"io.cbshm.DatabaseUnavailable", CBSHM_ERR_DATABASE_DOWN},
	{"io.cbshm.Busy", CBSHM_ERR_BUSY},
	{"io.cbshm.Timeout", CBSHM_ERR_TIMEOUT},
	{"io.cbshm.OutcomeUnknown", CBSHM_ERR_UNKNOWN},
	{"io.cbshm.LimitExceeded", CBSHM_ERR_REFUSED},
	{MALFORMED, CBSHM_ERR_PROTOCOL},
	{"io.cbshm.DatabaseError", CBSHM_ERR_REFUSED},
};

/* Those that come without a message; what they are about stands in a parameter. Not one was carried out. */
static const struct {
	const char *name;
	const char *subject;
	const char *message;
} service_errors[] = {
	{"org.varlink.service.MethodNotFound", "method",
	 "the agent does not have this method: is its name right, and do the versions of cbagent "
	 "and libcbshm fit?"},
	{"org.varlink.service.InterfaceNotFound", "interface",
	 "the agent does not have this interface: is the method's name right?"},
	{"org.varlink.service.InvalidParameter", "parameter",
	 "the agent does not take this parameter"},
	{"org.varlink.service.ExpectedMore", NULL,
	 "this method answers more than once: there is cbshm_subscribe() for it"},
};

static const char *string_of(const cJSON *object, const char *name)
{
	return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, name));
}

static int service_error(const char *name, const cJSON *parameters, struct cbshm_call *call)
{
	for (size_t i = 0; i < sizeof(service_errors) / sizeof(*service_errors); i++) {
		const char *subject = service_errors[i].subject;

		if (strcmp(service_errors[i].name, name) != 0)
			continue;
		subject = subject != NULL ? string_of(parameters, subject) : NULL;
		return call_fail(call, CBSHM_ERR_INVALID, "%s%s%s", subject != NULL ? subject : "",
				 subject != NULL ? ": " : "", service_errors[i].message);
	}
	return call_fail(call, CBSHM_ERR_PROTOCOL,
			 "the agent answered %.100s: do the versions of cbagent and libcbshm fit?",
			 name);
}

static int answered_error(const char *name, const cJSON *parameters, struct cbshm_call *call)
{
	const char *message = string_of(parameters, "message");
	const char *sqlstate = string_of(parameters, "sqlstate");

	for (size_t i = 0; i < sizeof(errors) / sizeof(*errors); i++) {
		if (strcmp(errors[i].name, name) != 0)
			continue;
		if (message == NULL || message[0] == '\0')
			message = cbshm_strerror(errors[i].error);
		if (sqlstate != NULL)
			return call_fail(call, errors[i].error, "%s (SQLSTATE %s)", message,
					 sqlstate);
		return call_fail(call, errors[i].error, "%s", message);
	}
	return service_error(name, parameters, call);
}

bool answer_is_malformed(const cJSON *root)
{
	const char *error = string_of(root, "error");

	return error != NULL && strcmp(error, MALFORMED) == 0;
}

/* The text of a member of the object that begins at `text`; NULL if there is none. */
static const char *text_of(const cJSON *object, const char *text, const char *name,
			   const cJSON **member)
{
	size_t index = 0;

	*member = cJSON_GetObjectItemCaseSensitive(object, name);
	if (*member == NULL)
		return NULL;
	for (const cJSON *p = object->child; p != *member; p = p->next)
		index++;
	return json_text_nth(text, index);
}

/*
 * Puts the text of each incident's details into the place of what cJSON made of them, since it would print numbers
 * of more than 15 digits rounded. The text has been scanned.
 */
static bool keep_details(const cJSON *root, const char *reply)
{
	const cJSON *parameters, *details, *array = NULL;
	const char *text = reply + strspn(reply, " \t\n\r");

	text = text_of(root, text, "parameters", &parameters);
	if (cJSON_IsObject(parameters))
		text = text_of(parameters, text, "incidents", &array);
	if (!cJSON_IsArray(array) || array->child == NULL)
		return true;
	text = json_text_first(text);
	for (cJSON *incident = array->child; incident != NULL; incident = incident->next) {
		const char *found = cJSON_IsObject(incident)
					    ? text_of(incident, text, "details", &details)
					    : NULL;

		if (found != NULL && cJSON_IsObject(details)) {
			char *copy = json_text_copy(found);
			cJSON *raw = copy != NULL ? cJSON_CreateRaw(copy) : NULL;

			free(copy);
			if (!cJSON_ReplaceItemInObjectCaseSensitive(incident, "details", raw)) {
				cJSON_Delete(raw);
				return false;
			}
		}
		text = json_text_next(text);
	}
	return true;
}

int answer_parse(const char *reply, struct cbshm_call *call, cJSON **root, const cJSON **parameters)
{
	const cJSON *error;
	size_t at;

	*root = NULL;
	if (json_text_scan(reply, strlen(reply), DEPTH_MAX, &at) == NULL)
		*root = cJSON_ParseWithOpts(reply, NULL, 1);
	if (!cJSON_IsObject(*root))
		return not_cbshm(call, "no JSON object");
	if (!keep_details(*root, reply))
		return call_fail_memory(call);
	error = cJSON_GetObjectItemCaseSensitive(*root, "error");
	*parameters = cJSON_GetObjectItemCaseSensitive(*root, "parameters");
	if (cJSON_IsString(error))
		return answered_error(error->valuestring, *parameters, call);
	if (error != NULL)
		return not_cbshm(call, "error");
	return 0;
}

/* ---- fields ----------------------------------------------------------------------------- */

/* Reads fields one after another; the first that is wrong stays in `wrong`. */
struct fields {
	const cJSON *object;
	const char *wrong;
	bool memory;
};

/* NULL for null and for nothing. */
static const cJSON *field(const struct fields *fields, const char *name)
{
	const cJSON *value = cJSON_GetObjectItemCaseSensitive(fields->object, name);

	return cJSON_IsNull(value) ? NULL : value;
}

static bool take_bool(struct fields *fields, const char *name)
{
	const cJSON *value = field(fields, name);

	if (!cJSON_IsBool(value))
		fields->wrong = name;
	return cJSON_IsTrue(value);
}

static double take_number(struct fields *fields, const char *name, double none)
{
	const cJSON *value = field(fields, name);

	if (value == NULL && isnan(none))
		return none;
	if (!cJSON_IsNumber(value)) {
		fields->wrong = name;
		return 0;
	}
	return value->valuedouble;
}

/* `none` is returned for null if it is below `min`; else null is wrong. */
static int64_t take_whole(struct fields *fields, const char *name, int64_t min, int64_t max,
			  int64_t none)
{
	const cJSON *value = field(fields, name);

	if (value == NULL && none < min)
		return none;
	if (!cJSON_IsNumber(value) || !(value->valuedouble >= (double)min) ||
	    !(value->valuedouble <= (double)max)) {
		fields->wrong = name;
		return 0;
	}
	return (int64_t)value->valuedouble;
}

static int64_t take_time(struct fields *fields, const char *name)
{
	const cJSON *value = field(fields, name);
	int64_t time = CBSHM_NO_TIME;

	if (value != NULL &&
	    (!cJSON_IsString(value) || !timestamp_parse(value->valuestring, &time)))
		fields->wrong = name;
	return time;
}

/* Into an array of `size` bytes; true: it had to be cut. */
static bool take_text(struct fields *fields, const char *name, char *to, size_t size)
{
	const cJSON *value = field(fields, name);
	size_t length, used;

	to[0] = '\0';
	if (value == NULL)
		return false;
	if (!cJSON_IsString(value)) {
		fields->wrong = name;
		return false;
	}
	length = strlen(value->valuestring);
	used = utf8_cut(value->valuestring, length, size - 1);
	memcpy(to, value->valuestring, used);
	to[used] = '\0';
	return used < length;
}

/* A text that must be there and fit. */
static void take_whole_text(struct fields *fields, const char *name, char *to, size_t size)
{
	if (take_text(fields, name, to, size) || to[0] == '\0')
		fields->wrong = name;
}

static char *take_copy(struct fields *fields, const char *name)
{
	const cJSON *value = field(fields, name);
	char *copy = NULL;

	if (value != NULL && !cJSON_IsString(value)) {
		fields->wrong = name;
	} else if (value != NULL) {
		copy = strdup(value->valuestring);
		fields->memory |= copy == NULL;
	}
	return copy;
}

/* An object that keep_details() has made a text. */
static char *take_object(struct fields *fields, const char *name)
{
	const cJSON *value = field(fields, name);
	char *copy = NULL;

	if (value != NULL && !cJSON_IsRaw(value)) {
		fields->wrong = name;
	} else if (value != NULL) {
		copy = strdup(value->valuestring);
		fields->memory |= copy == NULL;
	}
	return copy;
}

static int fields_done(const struct fields *fields, struct cbshm_call *call)
{
	if (fields->memory)
		return call_fail_memory(call);
	return fields->wrong != NULL ? not_cbshm(call, fields->wrong) : 0;
}

/* ---- replies ---------------------------------------------------------------------------- */

int answer_changed(const cJSON *parameters, struct cbshm_call *call, bool *changed)
{
	struct fields fields = {.object = parameters};

	*changed = take_bool(&fields, "changed");
	return fields_done(&fields, call);
}

int answer_incident_id(const cJSON *parameters, struct cbshm_call *call, char id[CBSHM_UUID_SIZE])
{
	struct fields outer = {.object = parameters};
	struct fields fields = {.object = field(&outer, "incident")};

	id[0] = '\0';
	if (fields.object == NULL)
		return 0;
	take_whole_text(&fields, "id", id, CBSHM_UUID_SIZE);
	return fields_done(&fields, call);
}

static int take_incident(const cJSON *object, struct cbshm_call *call,
			 struct cbshm_incident *incident)
{
	struct fields fields = {.object = object};

	take_whole_text(&fields, "id", incident->id, sizeof(incident->id));
	take_whole_text(&fields, "breaker", incident->breaker, sizeof(incident->breaker));
	incident->timestamp = take_time(&fields, "timestamp");
	incident->reason = take_copy(&fields, "reason");
	take_whole_text(&fields, "severity", incident->severity, sizeof(incident->severity));
	incident->drift_score = take_number(&fields, "drift_score", NAN);
	incident->sample_count = take_whole(&fields, "sample_count", 0, INT64_C(1) << 62, -1);
	incident->details = take_object(&fields, "details");
	incident->resolved = take_bool(&fields, "resolved");
	incident->resolved_at = take_time(&fields, "resolved_at");
	incident->resolved_by = take_copy(&fields, "resolved_by");
	incident->resolution_notes = take_copy(&fields, "resolution_notes");
	incident->alert_sent = take_bool(&fields, "alert_sent");
	incident->alert_sent_at = take_time(&fields, "alert_sent_at");
	if (incident->timestamp == CBSHM_NO_TIME)
		fields.wrong = "timestamp";
	if (incident->reason == NULL && !fields.memory)
		fields.wrong = "reason";
	return fields_done(&fields, call);
}

int answer_incidents(const cJSON *parameters, struct cbshm_call *call,
		     struct cbshm_incident **incidents, size_t *count)
{
	const cJSON *array = cJSON_GetObjectItemCaseSensitive(parameters, "incidents");
	const cJSON *element;
	const int size = cJSON_GetArraySize(array);
	struct cbshm_incident *list;
	size_t used = 0;
	int error = 0;

	if (!cJSON_IsArray(array))
		return not_cbshm(call, "incidents");
	if (size == 0)
		return 0;
	list = calloc((size_t)size, sizeof(*list));
	if (list == NULL)
		return call_fail_memory(call);
	cJSON_ArrayForEach(element, array)
	{
		error = take_incident(element, call, &list[used++]);
		if (error != 0) {
			cbshm_incidents_free(list, used);
			return error;
		}
	}
	*incidents = list;
	*count = used;
	return 0;
}

static void take_policy(struct fields *fields, struct cbshm_policy *policy)
{
	double seconds;

	policy->drift_threshold = take_number(fields, "drift_threshold", 0);
	policy->failure_threshold =
		(uint32_t)take_whole(fields, "failure_threshold", 0, UINT32_MAX, 0);
	policy->schema_error_threshold =
		(uint32_t)take_whole(fields, "schema_error_threshold", 0, UINT32_MAX, 0);
	seconds = take_number(fields, "default_ttl_seconds", 0);
	if (!(seconds >= 0 && seconds <= 9e12))
		fields->wrong = "default_ttl_seconds";
	else
		policy->default_ttl_us = (int64_t)(seconds * 1e6 + 0.5);
	policy->auto_recover = take_bool(fields, "auto_recover");
}

int answer_policy(const cJSON *parameters, struct cbshm_call *call, struct cbshm_policy *policy)
{
	struct fields fields = {.object = cJSON_GetObjectItemCaseSensitive(parameters, "policy")};

	memset(policy, 0, sizeof(*policy));
	take_policy(&fields, policy);
	return fields_done(&fields, call);
}

int answer_state(const cJSON *parameters, struct cbshm_call *call, struct cbshm_state *state)
{
	return answer_one_state(cJSON_GetObjectItemCaseSensitive(parameters, "state"), call, state);
}

int answer_one_state(const cJSON *object, struct cbshm_call *call, struct cbshm_state *state)
{
	struct fields fields = {.object = object};
	struct fields policy = {.object =
					cJSON_GetObjectItemCaseSensitive(fields.object, "policy")};

	memset(state, 0, sizeof(*state));
	take_whole_text(&fields, "name", state->name, sizeof(state->name));
	state->row_disabled = take_bool(&fields, "is_open");
	state->version = (uint64_t)take_whole(&fields, "version", 0, INT64_C(1) << 62, 0);
	state->opened_at = take_time(&fields, "opened_at");
	state->disabled_until = take_time(&fields, "disabled_until");
	state->last_failure_at = take_time(&fields, "last_failure_at");
	state->updated_at = take_time(&fields, "updated_at");
	state->consecutive_failures =
		(uint32_t)take_whole(&fields, "consecutive_failures", 0, UINT32_MAX, 0);
	take_text(&fields, "incident_id", state->incident_id, sizeof(state->incident_id));
	if (take_text(&fields, "disabled_by", state->disabled_by, sizeof(state->disabled_by)))
		state->flags |= CBSHM_STATE_ACTOR_CUT;
	if (take_text(&fields, "reason", state->disabled_reason, sizeof(state->disabled_reason)))
		state->flags |= CBSHM_STATE_REASON_CUT;
	take_policy(&policy, &state->policy);
	if (fields.wrong == NULL)
		fields.wrong = policy.wrong;
	return fields_done(&fields, call);
}

static void take_agents(struct fields *outer, const char *name, struct cbshm_agent **agents,
			size_t *count)
{
	const cJSON *array = field(outer, name), *element;
	const int size = cJSON_GetArraySize(array);

	if (!cJSON_IsArray(array)) {
		outer->wrong = name;
		return;
	}
	*agents = size > 0 ? calloc((size_t)size, sizeof(**agents)) : NULL;
	outer->memory |= size > 0 && *agents == NULL;
	cJSON_ArrayForEach(element, array)
	{
		struct fields fields = {.object = element};
		struct cbshm_agent *agent;

		if (outer->memory)
			return;
		agent = &(*agents)[(*count)++];
		agent->host = take_copy(&fields, "host");
		agent->instance = take_copy(&fields, "instance");
		agent->version = take_copy(&fields, "version");
		agent->last_seen_at = take_time(&fields, "last_seen_at");
		outer->memory |= fields.memory;
		if (fields.wrong != NULL || agent->host == NULL || agent->instance == NULL ||
		    agent->version == NULL)
			outer->wrong = name;
	}
}

int answer_fleet(const cJSON *parameters, struct cbshm_call *call, struct cbshm_fleet *fleet)
{
	struct fields fields = {.object = cJSON_GetObjectItemCaseSensitive(parameters, "fleet")};

	fleet->hosts = (uint32_t)take_whole(&fields, "hosts", 0, UINT32_MAX, 0);
	fleet->in_force = (uint32_t)take_whole(&fields, "in_force", 0, UINT32_MAX, 0);
	fleet->slowest_ms = take_number(&fields, "slowest_ms", NAN);
	take_agents(&fields, "behind", &fleet->behind, &fleet->behind_count);
	take_agents(&fields, "silent", &fleet->silent, &fleet->silent_count);
	return fields_done(&fields, call);
}

static void agents_free(struct cbshm_agent *agents, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		free(agents[i].host);
		free(agents[i].instance);
		free(agents[i].version);
	}
	free(agents);
}

void cbshm_fleet_free(struct cbshm_fleet *fleet)
{
	if (fleet == NULL)
		return;
	agents_free(fleet->behind, fleet->behind_count);
	agents_free(fleet->silent, fleet->silent_count);
	memset(fleet, 0, sizeof(*fleet));
}

void cbshm_incidents_free(struct cbshm_incident *incidents, size_t count)
{
	for (size_t i = 0; incidents != NULL && i < count; i++) {
		free(incidents[i].reason);
		free(incidents[i].details);
		free(incidents[i].resolved_by);
		free(incidents[i].resolution_notes);
	}
	free(incidents);
}
