/*
 * batch.c - requests to arrays, rows to answers
 *
 * SPDX-License-Identifier: ISC
 */
#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/agent.h"
#include "agent/batch.h"
#include "agent/config.h"
#include "agent/mirror.h"
#include "agent/text.h"

static const char sql_patience[] = "SELECT pg_catalog.set_config('lock_timeout', $1, true)";
static const char sql_apply[] =
	"SELECT \"position\", outcome, field, message, changed, incident FROM cbshm.apply("
	"$1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.float8[],"
	" $4::pg_catalog.int8[], $5::pg_catalog.text[], $6::pg_catalog.text[],"
	" $7::pg_catalog.text[], $8::pg_catalog.timestamptz[], $9::pg_catalog.interval[],"
	" $10::pg_catalog.uuid[], $11::pg_catalog.text[], $12::pg_catalog.bool)";
static const char sql_set_policy[] =
	"SELECT cbshm.set_policy_json($1, $2::pg_catalog.jsonb, $3, $4)";
static const char sql_rows[] = MIRROR_SELECT_NAMES;
static const char sql_xid[] = "SELECT pg_catalog.pg_current_xact_id_if_assigned()";

static const char *const kinds[] = {
	[REQUEST_REPORT_DRIFT] = "report_drift",
	[REQUEST_REPORT_SCHEMA_ERROR] = "report_schema_error",
	[REQUEST_DISABLE] = "disable",
	[REQUEST_ENABLE] = "enable",
};

struct batch *batch_new(struct writer *writer, unsigned room)
{
	struct batch *batch = memory_new(1, sizeof(*batch));

	batch->writer = writer;
	batch->tickets = memory_new(room, sizeof(*batch->tickets));
	return batch;
}

void batch_free(struct batch *batch)
{
	for (unsigned i = 0; i < batch->count; i++) {
		if (batch->tickets[i] != NULL && batch->tickets[i]->finished)
			free(batch->tickets[i]);
	}
	PQclear(batch->work_result);
	PQclear(batch->rows_result);
	PQclear(batch->xid_result);
	free(batch->tickets);
	free(batch);
}

/* ---- what goes out ---- */

/* What the kernel says of the client, and who passes it on. */
static char *proof(const struct agent *agent, const struct peer *peer)
{
	struct text text = {0};

	text_format(&text, "{\"uid\":%u,\"gid\":%u,\"pid\":%d,\"user\":", (unsigned)peer->uid,
		    (unsigned)peer->gid, (int)peer->pid);
	text_json(&text, peer->user);
	text_add(&text, ",\"exe\":");
	text_json(&text, peer->exe);
	text_add(&text, ",\"host\":");
	text_json(&text, agent->config->host);
	text_add(&text, ",\"agent\":");
	text_json(&text, agent->config->instance);
	text_add(&text, "}");
	return text_take(&text);
}

/* Who acts, as claimed; without a claim it is the user. */
static const char *actor(const struct request *request)
{
	return request->by != NULL ? request->by : request->peer.user;
}

enum column { KIND, NAME, SCORE, COUNT, DETAILS, REASON, ACTOR, UNTIL, TTL, ID, PROOF, COLUMNS };

static void add_request(struct text columns[COLUMNS], const struct agent *agent,
			const struct request *request)
{
	const bool drift = request->kind == REQUEST_REPORT_DRIFT;
	const bool report = drift || request->kind == REQUEST_REPORT_SCHEMA_ERROR;
	char *proven = proof(agent, &request->peer);
	char number[48];

	text_array_add(&columns[KIND], kinds[request->kind]);
	text_array_add(&columns[NAME], request->name);
	snprintf(number, sizeof(number), "%.17g", request->score);
	text_array_add(&columns[SCORE], drift ? number : NULL);
	snprintf(number, sizeof(number), "%" PRId64, request->count);
	text_array_add(&columns[COUNT], report ? number : NULL);
	text_array_add(&columns[DETAILS], request->details);
	text_array_add(&columns[REASON], request->reason);
	text_array_add(&columns[ACTOR], actor(request));
	text_array_add(&columns[UNTIL], request->until);
	snprintf(number, sizeof(number), "%" PRId64 ".%06" PRId64 " seconds",
		 request->ttl_us / 1000000, request->ttl_us % 1000000);
	text_array_add(&columns[TTL], request->ttl_us != 0 ? number : NULL);
	text_array_add(&columns[ID], request->request_id);
	text_array_add(&columns[PROOF], proven);
	free(proven);
}

static void add_apply(struct unit *unit, const struct batch *batch, const struct agent *agent,
		      bool wait)
{
	struct text columns[COLUMNS] = {{0}};
	char *arrays[COLUMNS];

	for (unsigned i = 0; i < batch->count; i++)
		add_request(columns, agent, batch->tickets[i]->request);
	for (unsigned i = 0; i < COLUMNS; i++)
		arrays[i] = text_array_end(&columns[i]);
	unit_add(unit, sql_apply, COLUMNS + 1, arrays[0], arrays[1], arrays[2], arrays[3],
		 arrays[4], arrays[5], arrays[6], arrays[7], arrays[8], arrays[9], arrays[10],
		 memory_copy(wait ? "true" : "false"));
	unit_prepared(unit);
}

static void add_member(struct text *json, const struct request *request, unsigned bit,
		       const char *key, const char *value)
{
	const bool clear = (request->policy_clear & bit) != 0;

	if (!clear && (request->policy_set & bit) == 0)
		return;
	text_format(json, "%s\"%s\":%s", json->length > 1 ? "," : "", key, clear ? "null" : value);
}

static char *policy_changes(const struct request *request)
{
	struct text json = {0};
	char number[48];

	text_add(&json, "{");
	snprintf(number, sizeof(number), "%.17g", request->drift_threshold);
	add_member(&json, request, REQUEST_POLICY_DRIFT_THRESHOLD, "drift_threshold", number);
	snprintf(number, sizeof(number), "%" PRId64, request->failure_threshold);
	add_member(&json, request, REQUEST_POLICY_FAILURE_THRESHOLD, "failure_threshold", number);
	snprintf(number, sizeof(number), "%" PRId64, request->schema_error_threshold);
	add_member(&json, request, REQUEST_POLICY_SCHEMA_ERROR_THRESHOLD, "schema_error_threshold",
		   number);
	snprintf(number, sizeof(number), "%" PRId64 ".%06" PRId64,
		 request->default_ttl_us / 1000000, request->default_ttl_us % 1000000);
	add_member(&json, request, REQUEST_POLICY_DEFAULT_TTL, "default_ttl_seconds", number);
	add_member(&json, request, REQUEST_POLICY_AUTO_RECOVER, "auto_recover",
		   request->auto_recover ? "true" : "false");
	text_add(&json, "}");
	return text_take(&json);
}

struct unit *batch_unit(struct batch *batch, const struct agent *agent, int patience,
			unit_done *done)
{
	const struct request *first = batch->tickets[0]->request;
	struct unit *unit = unit_new(done, batch);
	struct text names = {0}, limit = {0};

	unit_add(unit, "BEGIN", 0);
	if (patience > 0) {
		text_format(&limit, "%dms", patience);
		unit_add(unit, sql_patience, 1, text_take(&limit));
	}
	batch->work = patience > 0 ? 2 : 1;
	batch->rows = batch->work + 1;
	batch->xid = batch->work + 2;
	batch->commit = batch->work + 3;
	if (batch->policy)
		unit_add(unit, sql_set_policy, 4, memory_copy(first->name), policy_changes(first),
			 memory_copy(actor(first)), proof(agent, &first->peer));
	else
		add_apply(unit, batch, agent, patience > 0);
	for (unsigned i = 0; i < batch->count; i++) {
		if (batch->tickets[i]->request->name != NULL)
			text_array_add(&names, batch->tickets[i]->request->name);
	}
	unit_add(unit, sql_rows, 1, text_array_end(&names));
	unit_binary(unit);
	unit_prepared(unit);
	/* Sent at once: when the connection breaks during the commit, this tells what to ask for. */
	unit_add(unit, sql_xid, 0);
	unit_prepared(unit);
	unit_flushed(unit);
	unit_add(unit, "COMMIT", 0);
	return unit;
}

/* ---- what comes back ---- */

void batch_keep_results(struct batch *batch, struct unit *unit)
{
	batch->work_result = unit_take_result(unit, batch->work);
	batch->rows_result = unit_take_result(unit, batch->rows);
	batch->xid_result = unit_take_result(unit, batch->xid);
}

/* The text of a column, NULL for null. */
static const char *value(const PGresult *result, int row, int column)
{
	return PQgetisnull(result, row, column) ? NULL : PQgetvalue(result, row, column);
}

int *batch_answer_rows(const struct batch *batch)
{
	int *rows = memory_new(batch->count, sizeof(*rows));
	unsigned long position;

	for (unsigned i = 0; i < batch->count; i++)
		rows[i] = batch->policy ? 0 : -1;
	for (int row = 0; !batch->policy && row < PQntuples(batch->work_result); row++) {
		position = strtoul(PQgetvalue(batch->work_result, row, 0), NULL, 10);
		if (position >= 1 && position <= batch->count)
			rows[position - 1] = row;
	}
	return rows;
}

static void policy_answer(const PGresult *result, int row, struct answer *answer)
{
	answer->json = value(result, row, 0);
	answer->status = answer->json != NULL ? ANSWER_OK : ANSWER_NOT_FOUND;
}

bool batch_answer(const struct batch *batch, int row, struct answer *answer)
{
	const PGresult *result = batch->work_result;
	const char *outcome;

	*answer = (struct answer){0};
	if (batch->policy) {
		policy_answer(result, row, answer);
		return true;
	}
	outcome = PQgetvalue(result, row, 1);
	if (strcmp(outcome, "locked") == 0)
		return false;
	answer->field = value(result, row, 2);
	answer->message = value(result, row, 3);
	answer->changed = *PQgetvalue(result, row, 4) == 't';
	answer->json = value(result, row, 5);
	if (strcmp(outcome, "ok") == 0) {
		answer->status = ANSWER_OK;
	} else if (strcmp(outcome, "invalid") == 0) {
		answer->status = ANSWER_INVALID;
	} else {
		answer->status = ANSWER_DATABASE_ERROR;
		answer->sqlstate = "XX000";
	}
	return true;
}
