/*
 * same_report.c - what report_read() reads, message_parse() and arguments_parse() accept, and read likewise
 *
 * SPDX-License-Identifier: ISC
 */
#include <config.h>

#include <string.h>

#include "agent/arguments.h"
#include "agent/message.h"
#include "agent/report.h"
#include "agent/request.h"
#include "tests/support/same_report.h"

/* `spent` is the time in which both were made: each deadline counts from when it was. */
static bool same_request(const struct request *a, const struct request *b, int64_t spent)
{
	const int64_t apart = b->deadline - a->deadline;

	return strcmp(a->name, b->name) == 0 &&
	       memcmp(&a->score, &b->score, sizeof(a->score)) == 0 && a->count == b->count &&
	       a->limit == b->limit && a->details == NULL && a->policy_set == 0 && apart >= 0 &&
	       apart <= spent;
}

static bool same_call(const struct message *message, const struct report *report)
{
	const enum method_id method =
		report->schema_error ? METHOD_REPORT_SCHEMA_ERROR : METHOD_REPORT_DRIFT;
	struct request *general = request_new(REQUEST_REPORT_DRIFT);
	struct request *quick = request_new(REQUEST_REPORT_DRIFT);
	const int64_t begin = request_deadline(0);
	struct fault fault;
	bool same;

	same = strcmp(message->method, method_name(method)) == 0 &&
	       message->oneway == report->oneway && !message->more && !message->upgrade &&
	       arguments_parse(method, message, general, &fault) &&
	       arguments_of_report(report, quick, &fault) &&
	       same_request(general, quick, request_deadline(0) - begin);
	request_free(general);
	request_free(quick);
	return same;
}

enum same_report same_report(const char *text, size_t size)
{
	struct report report;
	struct message message;
	struct fault fault;
	bool same;

	if (!report_read(text, size, &report))
		return REPORT_LEFT;
	if (!message_parse(text, size, &message, &fault))
		return REPORT_DIFFERS;
	same = same_call(&message, &report);
	message_free(&message);
	return same ? REPORT_SAME : REPORT_DIFFERS;
}
