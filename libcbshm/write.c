/*
 * write.c - the writes of cbshm.h, and the reads that ask the database
 *
 * SPDX-License-Identifier: ISC
 *
 * One function a method: check the arguments, call the agent, take the answer apart. No I/O of its own.
 */
#include "config.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <uuid/uuid.h>

#include "libcbshm/answer.h"
#include "libcbshm/arguments.h"
#include "libcbshm/cbshm_private.h"
#include "libcbshm/client.h"
#include "libcbshm/error.h"
#include "libcbshm/write.h"

#define INCIDENTS_MAX     1000
#define INCIDENTS_DEFAULT 10

/* A call being put together, made, and taken apart. */
struct writing {
	struct cbshm_call spare; /* of a caller that gave none */
	struct cbshm_call *call;
	cJSON *parameters; /* NULL: out of memory, or handed over */
	cJSON *root;
	const cJSON *answer;
	int error;
};

static void writing_begin(struct writing *writing, struct cbshm_call *call)
{
	memset(writing, 0, sizeof(*writing));
	writing->call = call != NULL ? call : &writing->spare;
	writing->call->message[0] = '\0';
	writing->parameters = cJSON_CreateObject();
	if (writing->parameters == NULL)
		writing->error = call_fail_memory(writing->call);
}

/* For a pointer that has to be there: an answer without a place to go, or a name. */
static int need(const void *pointer, const char *what, struct cbshm_call *call)
{
	return pointer != NULL ? 0
			       : call_fail(call, CBSHM_ERR_INVALID, "%s must not be NULL", what);
}

/* Keeps the first error. The arguments of `step` are not evaluated after one. */
#define THEN(writing, step)                        \
	do {                                       \
		if ((writing)->error == 0)         \
			(writing)->error = (step); \
	} while (0)

static int add_request_id(cJSON *parameters, struct cbshm_call *call)
{
	uuid_t uuid;
	char text[UUID_STR_LEN];

	uuid_generate_random(uuid);
	uuid_unparse_lower(uuid, text);
	if (cJSON_AddStringToObject(parameters, "request_id", text) == NULL)
		return call_fail_memory(call);
	return 0;
}

static void writing_call(struct writing *writing, struct cbshm *client, const char *method,
			 enum client_kind kind)
{
	cJSON *parameters = writing->parameters;

	if (kind == CLIENT_REPEAT)
		THEN(writing, add_request_id(parameters, writing->call));
	if (writing->error != 0)
		return;
	writing->parameters = NULL;
	writing->error = client_call(client, method, kind, parameters, writing->call,
				     &writing->root, &writing->answer);
}

static int writing_end(struct writing *writing)
{
	const int saved_errno = errno;

	cJSON_Delete(writing->parameters);
	cJSON_Delete(writing->root);
	errno = saved_errno;
	return writing->error;
}

/* ---- reports ---------------------------------------------------------------------------- */

static int report(struct writing *writing, struct cbshm *client, const char *method,
		  char tripped[CBSHM_UUID_SIZE])
{
	char id[CBSHM_UUID_SIZE] = "";

	writing_call(writing, client, method, CLIENT_WRITE);
	THEN(writing, answer_incident_id(writing->answer, writing->call, id));
	if (tripped != NULL)
		memcpy(tripped, id, sizeof(id));
	return writing_end(writing);
}

int cbshm_report_drift(struct cbshm *client, const char *name, double score, int64_t samples,
		       const char *details, struct cbshm_call *call, char tripped[CBSHM_UUID_SIZE])
{
	struct writing w;

	writing_begin(&w, call);
	THEN(&w, add_name(w.parameters, name, w.call));
	THEN(&w, add_fraction(w.parameters, "drift_score", "score", score, w.call));
	THEN(&w, add_whole(w.parameters, "sample_count", "samples", samples, 1, ARGUMENT_COUNT_MAX,
			   w.call));
	THEN(&w, add_details(w.parameters, details, w.call));
	return report(&w, client, "ReportDrift", tripped);
}

int cbshm_report_schema_error(struct cbshm *client, const char *name, int64_t count,
			      const char *details, struct cbshm_call *call,
			      char tripped[CBSHM_UUID_SIZE])
{
	struct writing w;

	writing_begin(&w, call);
	THEN(&w, add_name(w.parameters, name, w.call));
	THEN(&w, add_whole(w.parameters, "count", "count", count, 0, ARGUMENT_COUNT_MAX, w.call));
	THEN(&w, add_details(w.parameters, details, w.call));
	return report(&w, client, "ReportSchemaError", tripped);
}

/* ---- decisions -------------------------------------------------------------------------- */

int cbshm_disable(struct cbshm *client, const char *name, const char *reason, const char *by,
		  int64_t until, int64_t for_us, struct cbshm_call *call, bool *changed,
		  char incident[CBSHM_UUID_SIZE])
{
	struct writing w;
	char id[CBSHM_UUID_SIZE] = "";
	bool done = false;

	writing_begin(&w, call);
	THEN(&w, add_name(w.parameters, name, w.call));
	THEN(&w, add_reason(w.parameters, reason, true, w.call));
	THEN(&w, add_by(w.parameters, by, w.call));
	THEN(&w, add_end(w.parameters, until, for_us, w.call));
	writing_call(&w, client, "Disable", CLIENT_REPEAT);
	THEN(&w, answer_changed(w.answer, w.call, &done));
	THEN(&w, answer_incident_id(w.answer, w.call, id));
	if (changed != NULL)
		*changed = done;
	if (incident != NULL)
		memcpy(incident, id, sizeof(id));
	return writing_end(&w);
}

static int enable(struct cbshm *client, const char *method, const char *name, const char *by,
		  const char *reason, struct cbshm_call *call, bool *changed)
{
	struct writing w;
	bool done = false;

	writing_begin(&w, call);
	THEN(&w, add_name(w.parameters, name, w.call));
	THEN(&w, add_by(w.parameters, by, w.call));
	THEN(&w, add_reason(w.parameters, reason, false, w.call));
	writing_call(&w, client, method, CLIENT_REPEAT);
	THEN(&w, answer_changed(w.answer, w.call, &done));
	if (changed != NULL)
		*changed = done;
	return writing_end(&w);
}

int cbshm_enable(struct cbshm *client, const char *name, const char *by, const char *reason,
		 struct cbshm_call *call, bool *changed)
{
	return enable(client, "Enable", name, by, reason, call, changed);
}

int cbshm_reset(struct cbshm *client, const char *name, const char *by, const char *reason,
		struct cbshm_call *call, bool *changed)
{
	return enable(client, "Reset", name, by, reason, call, changed);
}

int cbshm_set_policy(struct cbshm *client, const char *name, const struct cbshm_policy *policy,
		     uint32_t set, uint32_t clear, const char *by, struct cbshm_call *call,
		     struct cbshm_policy *result)
{
	struct writing w;
	struct cbshm_policy answered;

	writing_begin(&w, call);
	if (name != NULL)
		THEN(&w, add_name(w.parameters, name, w.call));
	THEN(&w, add_policy(w.parameters, name == NULL, policy, set, clear, w.call));
	THEN(&w, add_by(w.parameters, by, w.call));
	writing_call(&w, client, "SetPolicy", set == 0 && clear == 0 ? CLIENT_READ : CLIENT_WRITE);
	THEN(&w, answer_policy(w.answer, w.call, &answered));
	if (w.error == 0 && result != NULL)
		*result = answered;
	return writing_end(&w);
}

/* ---- reads ------------------------------------------------------------------------------ */

int cbshm_get_incidents(struct cbshm *client, const char *name, bool include_resolved,
			uint32_t limit, struct cbshm_call *call, struct cbshm_incident **incidents,
			size_t *count)
{
	struct writing w;

	if (incidents != NULL)
		*incidents = NULL;
	if (count != NULL)
		*count = 0;
	writing_begin(&w, call);
	THEN(&w, need(incidents, "incidents", w.call));
	THEN(&w, need(count, "count", w.call));
	if (name != NULL)
		THEN(&w, add_name(w.parameters, name, w.call));
	if (w.error == 0 &&
	    cJSON_AddBoolToObject(w.parameters, "include_resolved", include_resolved) == NULL)
		w.error = call_fail_memory(w.call);
	THEN(&w, add_whole(w.parameters, "limit", "limit", limit != 0 ? limit : INCIDENTS_DEFAULT,
			   1, INCIDENTS_MAX, w.call));
	writing_call(&w, client, "GetIncidents", CLIENT_READ);
	THEN(&w, answer_incidents(w.answer, w.call, incidents, count));
	return writing_end(&w);
}

static int check_fleet(const struct cbshm_fleet *fleet, struct cbshm_call *call)
{
	if (fleet->hosts == 0)
		return call_fail(call, CBSHM_ERR_BEHIND, "no agent is seen alive");
	if (fleet->in_force == fleet->hosts)
		return 0;
	return call_fail(call, CBSHM_ERR_BEHIND, "%u of %u hosts have it; %s/%s has not%s",
			 fleet->in_force, fleet->hosts,
			 fleet->behind_count > 0 ? fleet->behind[0].host : "",
			 fleet->behind_count > 0 ? fleet->behind[0].instance : "",
			 fleet->behind_count > 1 ? ", nor have others" : "");
}

int cbshm_wait_fleet(struct cbshm *client, struct cbshm_call *call, struct cbshm_fleet *fleet)
{
	struct writing w;

	writing_begin(&w, call);
	THEN(&w, need(fleet, "fleet", w.call));
	if (fleet != NULL) {
		memset(fleet, 0, sizeof(*fleet));
		fleet->slowest_ms = NAN;
	}
	writing_call(&w, client, "WaitFleet", CLIENT_WAIT);
	THEN(&w, answer_fleet(w.answer, w.call, fleet));
	THEN(&w, check_fleet(fleet, w.call));
	return writing_end(&w);
}

/* ---- any other -------------------------------------------------------------------------- */

static int parse_parameters(struct writing *writing, const char *text)
{
	if (text == NULL)
		return 0;
	cJSON_Delete(writing->parameters);
	writing->parameters = cJSON_ParseWithOpts(text, NULL, 1);
	if (!cJSON_IsObject(writing->parameters))
		return call_fail(writing->call, CBSHM_ERR_INVALID,
				 "parameters must be a JSON object");
	return 0;
}

static int print_reply(struct writing *writing, char **reply)
{
	char *text = writing->answer != NULL ? cJSON_PrintUnformatted(writing->answer)
					     : cJSON_PrintUnformatted(writing->root);

	if (text == NULL)
		return call_fail_memory(writing->call);
	*reply = strdup(text); /* to be freed with free(), whatever cJSON uses */
	cJSON_free(text);
	return *reply != NULL ? 0 : call_fail_memory(writing->call);
}

int cbshm_call_json(struct cbshm *client, const char *method, const char *parameters,
		    struct cbshm_call *call, char **reply)
{
	const bool reads = method != NULL && strncmp(method, "Get", 3) == 0;
	struct writing w;

	writing_begin(&w, call);
	THEN(&w, need(method, "method", w.call));
	THEN(&w, need(reply, "reply", w.call));
	if (reply != NULL)
		*reply = NULL;
	THEN(&w, parse_parameters(&w, parameters));
	writing_call(&w, client, method, reads ? CLIENT_READ : CLIENT_WRITE);
	THEN(&w, print_reply(&w, reply));
	return writing_end(&w);
}

/* ---- the row as it is ------------------------------------------------------------------- */

/* The database's clock as this host knows it: its own, corrected by what the agent last measured. */
static int64_t database_now(struct cbshm *client)
{
	struct cbshm_health health;
	struct timespec now;
	int64_t offset = 0;

	if (cbshm_health(client, &health) == 0)
		offset = health.clock_offset_us;
	clock_gettime(CLOCK_REALTIME, &now);
	return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000 + offset;
}

void state_apply_ttl(struct cbshm *client, struct cbshm_state *state)
{
	const int64_t now = database_now(client);
	const bool has_end = state->row_disabled && state->disabled_until != CBSHM_NO_TIME;
	const bool passed = has_end && state->disabled_until <= now;

	state->remaining_us = CBSHM_NO_TIME;
	if (has_end)
		state->remaining_us = passed ? 0 : state->disabled_until - now;
	state->disabled = state->row_disabled && !(passed && state->policy.auto_recover);
}

int cbshm_fetch_state(struct cbshm *client, const char *name, struct cbshm_call *call,
		      struct cbshm_state *state)
{
	struct writing w;

	writing_begin(&w, call);
	THEN(&w, add_name(w.parameters, name, w.call));
	THEN(&w, need(state, "state", w.call));
	writing_call(&w, client, "GetState", CLIENT_READ);
	THEN(&w, answer_state(w.answer, w.call, state));
	if (w.error == 0)
		state_apply_ttl(client, state);
	return writing_end(&w);
}
