/*
 * batch.c - requests to arrays, rows to answers
 *
 * SPDX-License-Identifier: ISC
 */
#include <config.h>

#include <endian.h>
#include <inttypes.h>
#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/agent.h"
#include "agent/array.h"
#include "agent/batch.h"
#include "agent/config.h"
#include "agent/counts.h"
#include "agent/groups.h"
#include "agent/mirror.h"
#include "agent/text.h"

static const char sql_patience[] = "SELECT pg_catalog.set_config('lock_timeout', $1, true)";
static const char sql_apply[] =
	"SELECT \"position\", outcome, field, message, changed, incident::pg_catalog.text"
	" FROM cbshm.apply("
	"$1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.float8[],"
	" $4::pg_catalog.int8[], $5::pg_catalog.text[], $6::pg_catalog.text[],"
	" $7::pg_catalog.text[], $8::pg_catalog.timestamptz[], $9::pg_catalog.interval[],"
	" $10::pg_catalog.uuid[], $11::pg_catalog.text[], $12::pg_catalog.bool)";
/* The row of cbshm.mirror first: mirror_apply() takes it from there. The id is that of the transaction, null if it has none. */
static const char sql_report[] =
	"SELECT (is_now).*, \"position\", outcome, field, message, changed,"
	" incident::pg_catalog.text, pg_catalog.pg_current_xact_id_if_assigned() FROM cbshm.report("
	"$1::pg_catalog.text[], $2::pg_catalog.int4[], $3::pg_catalog.float8[],"
	" $4::pg_catalog.int8[], $5::pg_catalog.text[], $6::pg_catalog.int4[],"
	" $7::pg_catalog.text[], $8::pg_catalog.bool)";
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
	PQclear(batch->report_result);
	PQclear(batch->work_result);
	PQclear(batch->rows_result);
	free(batch->reported);
	free(batch->applied);
	free(batch->found);
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

/* The requests to breakers about which something is decided in this batch: few. */
static void add_apply(struct unit *unit, struct batch *batch, const struct agent *agent, bool wait)
{
	struct text columns[COLUMNS] = {{0}};
	char *arrays[COLUMNS];

	for (uint32_t i = 0; i < batch->applied_count; i++)
		add_request(columns, agent, batch->tickets[batch->applied[i]]->request);
	for (unsigned i = 0; i < COLUMNS; i++)
		arrays[i] = text_array_end(&columns[i]);
	batch->work =
		(int)unit_add(unit, sql_apply, COLUMNS + 1, arrays[0], arrays[1], arrays[2],
			      arrays[3], arrays[4], arrays[5], arrays[6], arrays[7], arrays[8],
			      arrays[9], arrays[10], memory_copy(wait ? "true" : "false"));
	unit_prepared(unit);
	unit_binary(unit);
}

/* ---- reports: what many have in common goes out once ---- */

enum { NAMES, LAST, SCORES, COUNTS, ALL_DETAILS, PROVERS, PROOFS, WAIT, REPORT_VALUES };

/* The distinct peers of a batch. */
struct provers {
	struct prover {
		const struct peer *peer;
		int32_t number; /* from 1 */
	} * list, *latest;
	int32_t count;
	void *tree;
};

static int by_peer(const void *a, const void *b)
{
	const struct peer *x = ((const struct prover *)a)->peer;
	const struct peer *y = ((const struct prover *)b)->peer;
	int order = (x->pid > y->pid) - (x->pid < y->pid);

	if (order == 0)
		order = (x->uid > y->uid) - (x->uid < y->uid);
	if (order == 0)
		order = (x->gid > y->gid) - (x->gid < y->gid);
	if (order == 0)
		order = strcmp(x->exe, y->exe);
	return order != 0 ? order : strcmp(x->user, y->user);
}

/* Those of one session come one after the other. */
static int32_t prover_number(struct provers *provers, const struct peer *peer)
{
	struct prover *candidate = &provers->list[provers->count];
	struct prover **node;

	*candidate = (struct prover){.peer = peer, .number = provers->count + 1};
	if (provers->latest != NULL && by_peer(candidate, provers->latest) == 0)
		return provers->latest->number;
	node = tsearch(candidate, &provers->tree, by_peer);
	if (node == NULL)
		abort();
	provers->count += *node == candidate;
	provers->latest = *node;
	return (*node)->number;
}

static void keep(void *node)
{
	(void)node;
}

static struct text proofs(struct provers *provers, const struct agent *agent)
{
	struct array array;
	char *text;

	array_begin(&array, ARRAY_TEXT, 0);
	for (int32_t i = 0; i < provers->count; i++) {
		text = proof(agent, provers->list[i].peer);
		array_add_text(&array, text);
		free(text);
	}
	tdestroy(provers->tree, keep);
	free(provers->list);
	return array_end(&array);
}

static bool has_details(const struct batch *batch)
{
	for (uint32_t i = 0; i < batch->reported_count; i++) {
		if (batch->tickets[batch->reported[i]]->request->details != NULL)
			return true;
	}
	return false;
}

static void add_report_values(const struct batch *batch, struct array arrays[REPORT_VALUES],
			      struct provers *provers, bool details)
{
	for (uint32_t i = 0; i < batch->reported_count; i++) {
		const struct request *request = batch->tickets[batch->reported[i]]->request;

		if (request->kind == REQUEST_REPORT_DRIFT)
			array_add_float8(&arrays[SCORES], request->score);
		else
			array_add_null(&arrays[SCORES]);
		array_add_int8(&arrays[COUNTS], request->count);
		if (details)
			array_add_text(&arrays[ALL_DETAILS], request->details);
		array_add_int4(&arrays[PROVERS], prover_number(provers, &request->peer));
	}
}

static void add_report(struct unit *unit, struct batch *batch, const struct agent *agent,
		       const struct groups *groups, bool wait)
{
	const size_t room = (size_t)batch->reported_count * 12;
	struct provers provers = {
		.list = memory_new(batch->reported_count + 1, sizeof(*provers.list))};
	struct text values[REPORT_VALUES] = {{0}};
	struct array arrays[REPORT_VALUES];
	const bool details = has_details(batch);
	const char wait_value = wait ? 1 : 0;
	int32_t last = 0;

	array_begin(&arrays[NAMES], ARRAY_TEXT, 0);
	array_begin(&arrays[LAST], ARRAY_INT4, 0);
	array_begin(&arrays[SCORES], ARRAY_FLOAT8, room);
	array_begin(&arrays[COUNTS], ARRAY_INT8, room);
	if (details)
		array_begin(&arrays[ALL_DETAILS], ARRAY_TEXT, 0);
	array_begin(&arrays[PROVERS], ARRAY_INT4, room);
	for (uint32_t i = 0; i < groups->count; i++) {
		if (!groups->sorted[i]->only_reports)
			continue;
		array_add_text(&arrays[NAMES], groups->sorted[i]->name);
		array_add_int4(&arrays[LAST], last += (int32_t)groups->sorted[i]->count);
	}
	add_report_values(batch, arrays, &provers, details);
	for (int i = 0; i < PROOFS; i++) {
		if (i != ALL_DETAILS || details)
			values[i] = array_end(&arrays[i]);
	}
	values[PROOFS] = proofs(&provers, agent);
	text_append(&values[WAIT], &wait_value, 1);
	batch->report = (int)unit_add_binary(unit, sql_report, REPORT_VALUES, values);
	unit_prepared(unit);
	unit_binary(unit);
}

/* Which function each ticket goes to; both get them breaker by breaker. */
static void sort_tickets(struct batch *batch, const struct groups *groups)
{
	batch->reported = memory_new(batch->count, sizeof(*batch->reported));
	batch->applied = memory_new(batch->count, sizeof(*batch->applied));
	for (uint32_t i = 0; i < groups->count; i++) {
		const struct group *group = groups->sorted[i];

		for (uint32_t n = group->first; n != GROUPS_END; n = groups->next[n]) {
			if (group->only_reports)
				batch->reported[batch->reported_count++] = n;
			else
				batch->applied[batch->applied_count++] = n;
		}
	}
}

/* ---- a change of policy ---- */

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

/* What no row of report() tells: the rows of these names as they are now, and the id of the transaction. */
static void add_rows(struct unit *unit, struct batch *batch, struct array *names)
{
	struct text values = array_end(names);

	batch->rows = (int)unit_add_binary(unit, sql_rows, 1, &values);
	unit_binary(unit);
	unit_prepared(unit);
	batch->xid = (int)unit_add(unit, sql_xid, 0);
	unit_binary(unit);
	unit_prepared(unit);
}

static void add_applied(struct unit *unit, struct batch *batch, const struct agent *agent,
			const struct groups *groups, bool wait)
{
	struct array names;

	add_apply(unit, batch, agent, wait);
	array_begin(&names, ARRAY_TEXT, 0);
	for (uint32_t i = 0; i < groups->count; i++) {
		if (!groups->sorted[i]->only_reports)
			array_add_text(&names, groups->sorted[i]->name);
	}
	add_rows(unit, batch, &names);
}

static void add_work(struct unit *unit, struct batch *batch, const struct agent *agent, bool wait)
{
	const struct request **requests = memory_new(batch->count, sizeof(*requests));
	struct groups groups;

	for (unsigned i = 0; i < batch->count; i++)
		requests[i] = batch->tickets[i]->request;
	groups_make(&groups, requests, batch->count);
	sort_tickets(batch, &groups);
	if (batch->reported_count > 0)
		add_report(unit, batch, agent, &groups, wait);
	if (batch->applied_count > 0)
		add_applied(unit, batch, agent, &groups, wait);
	groups_free(&groups);
	free(requests);
}

static void add_policy(struct unit *unit, struct batch *batch, const struct agent *agent)
{
	const struct request *request = batch->tickets[0]->request;
	struct array names;

	batch->work = (int)unit_add(unit, sql_set_policy, 4, memory_copy(request->name),
				    policy_changes(request), memory_copy(actor(request)),
				    proof(agent, &request->peer));
	array_begin(&names, ARRAY_TEXT, 0);
	if (request->name != NULL)
		array_add_text(&names, request->name);
	add_rows(unit, batch, &names);
}

struct unit *batch_unit(struct batch *batch, const struct agent *agent, int patience,
			unit_done *done)
{
	struct unit *unit = unit_new(done, batch);
	struct text limit = {0};

	unit_add(unit, "BEGIN", 0);
	if (patience > 0) {
		text_format(&limit, "%dms", patience);
		unit_add(unit, sql_patience, 1, text_take(&limit));
	}
	batch->report = batch->work = batch->rows = batch->xid = -1;
	if (batch->policy)
		add_policy(unit, batch, agent);
	else
		add_work(unit, batch, agent, patience > 0);
	/* All that is sent before the commit begins; among it the id: if the connection breaks, it tells what to ask for. */
	unit_flushed(unit);
	batch->commit = unit_add(unit, "COMMIT", 0);
	return unit;
}

/* ---- what comes back ---- */

/* Where the answer to a ticket is. */
struct found {
	const PGresult *result; /* NULL = nothing was said */
	int row;
	int first; /* the column of its position */
};

#define NO_ROW (-1) /* where something should have been said */

/* Of the statement that was the last to write. */
static void keep_xid(struct batch *batch, struct unit *unit)
{
	const PGresult *result =
		batch->xid >= 0 ? unit_result(unit, (unsigned)batch->xid) : batch->report_result;
	uint64_t xid;
	int column;

	if (result == NULL)
		return;
	batch->xid_heard = true;
	column = PQnfields(result) - 1;
	if (PQntuples(result) == 0 || PQgetlength(result, 0, column) != sizeof(xid))
		return;
	memcpy(&xid, PQgetvalue(result, 0, column), sizeof(xid));
	batch->xid_value = be64toh(xid);
}

void batch_keep_results(struct batch *batch, struct unit *unit)
{
	if (batch->report >= 0)
		batch->report_result = unit_take_result(unit, (unsigned)batch->report);
	if (batch->work >= 0)
		batch->work_result = unit_take_result(unit, (unsigned)batch->work);
	if (batch->rows >= 0)
		batch->rows_result = unit_take_result(unit, (unsigned)batch->rows);
	keep_xid(batch, unit);
}

void batch_note_counts(const struct batch *batch, struct counts *counts)
{
	const PGresult *rows = batch->report_result;
	uint64_t version;

	for (int i = 0; i < PQntuples(rows); i++) {
		if (PQgetlength(rows, i, 1) != sizeof(version))
			continue;
		memcpy(&version, PQgetvalue(rows, i, 1), sizeof(version));
		counts_note(counts, PQgetvalue(rows, i, 0), be64toh(version));
	}
}

/* The text of a column, NULL for null. */
static const char *value(const PGresult *result, int row, int column)
{
	return PQgetisnull(result, row, column) ? NULL : PQgetvalue(result, row, column);
}

static void find_in(struct batch *batch, const PGresult *result, const uint32_t *tickets,
		    uint32_t count)
{
	const int first = result == batch->report_result ? MIRROR_COLUMNS : 0;
	uint32_t position;

	for (int row = 0; row < PQntuples(result); row++) {
		if (PQgetlength(result, row, first) != sizeof(position))
			continue;
		memcpy(&position, PQgetvalue(result, row, first), sizeof(position));
		position = be32toh(position);
		if (position >= 1 && position <= count)
			batch->found[tickets[position - 1]] = (struct found){result, row, first};
	}
}

void batch_find_answers(struct batch *batch)
{
	batch->found = memory_new(batch->count, sizeof(*batch->found));
	if (batch->policy) {
		batch->found[0] = (struct found){.result = batch->work_result};
		return;
	}
	for (uint32_t i = 0; i < batch->applied_count; i++)
		batch->found[batch->applied[i]].row = NO_ROW;
	find_in(batch, batch->report_result, batch->reported, batch->reported_count);
	find_in(batch, batch->work_result, batch->applied, batch->applied_count);
}

static void policy_answer(const struct found *found, struct answer *answer)
{
	answer->json = value(found->result, found->row, 0);
	answer->status = answer->json != NULL ? ANSWER_OK : ANSWER_NOT_FOUND;
}

/* report() is silent about what it has only counted; apply() is about nothing. */
static void silent_answer(const struct found *found, struct answer *answer)
{
	if (found->row != NO_ROW)
		answer->status = ANSWER_OK;
	else
		*answer = (struct answer){.status = ANSWER_DATABASE_ERROR,
					  .sqlstate = "XX000",
					  .message = "cbshm.apply gave no answer"};
}

bool batch_answer(const struct batch *batch, unsigned ticket, struct answer *answer)
{
	const struct found *found = &batch->found[ticket];
	const char *outcome;

	*answer = (struct answer){0};
	if (batch->policy) {
		policy_answer(found, answer);
		return true;
	}
	if (found->result == NULL) {
		silent_answer(found, answer);
		return true;
	}
	outcome = PQgetvalue(found->result, found->row, found->first + 1);
	if (strcmp(outcome, "locked") == 0)
		return false;
	answer->field = value(found->result, found->row, found->first + 2);
	answer->message = value(found->result, found->row, found->first + 3);
	answer->changed = *PQgetvalue(found->result, found->row, found->first + 4) != 0;
	answer->json = value(found->result, found->row, found->first + 5);
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
