/*
 * tally.c - what the writer has committed, counted
 *
 * SPDX-License-Identifier: ISC
 */
#include <config.h>

#include <string.h>

#include "agent/tally.h"

static const double scores[] = {0.001, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25,
				0.3,   0.4,  0.5,  0.6, 0.7,  0.8, 0.9};
static const double batches[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096};

static const struct {
	const char *reason, *severity;
} openings[OPENINGS] = {
	[OPENING_DRIFT] = {"drift", "P1"},
	[OPENING_SCHEMA_ERROR] = {"schema_error", "P3"},
	[OPENING_MANUAL] = {"manual", "P2"},
};

const char *opening_reason(enum opening opening)
{
	return openings[opening].reason;
}

const char *opening_severity(enum opening opening)
{
	return openings[opening].severity;
}

static bool begins(const char *text, size_t length, const char *with)
{
	return length >= strlen(with) && strncmp(text, with, strlen(with)) == 0;
}

enum opening opening_of(const char *by, size_t by_length, const char *reason, size_t reason_length)
{
	static const char breaker[] = "circuit_breaker";

	/* The words of cbshm.trip_by() in 0007_reports.sql. */
	if (by_length != strlen(breaker) || !begins(by, by_length, breaker))
		return OPENING_MANUAL;
	if (begins(reason, reason_length, "Drift exceeded threshold: "))
		return OPENING_DRIFT;
	if (begins(reason, reason_length, "Schema error threshold exceeded: "))
		return OPENING_SCHEMA_ERROR;
	return OPENING_MANUAL;
}

void tally_init(struct tally *tally)
{
	*tally = (struct tally){
		.drift_score = HISTOGRAM(scores),
		.commit = HISTOGRAM(histogram_seconds),
		.batch = HISTOGRAM(batches),
	};
}

void tally_answer(struct tally *tally, const struct request *request, const struct answer *answer)
{
	if (answer->status != ANSWER_OK)
		return;
	switch (request->kind) {
	case REQUEST_REPORT_DRIFT:
		tally->drift_reports++;
		histogram_add(&tally->drift_score, request->score);
		tally->disables[OPENING_DRIFT] += answer->json != NULL; /* the incident */
		break;
	case REQUEST_REPORT_SCHEMA_ERROR:
		tally->schema_error_reports++;
		tally->disables[OPENING_SCHEMA_ERROR] += answer->json != NULL;
		break;
	case REQUEST_DISABLE:
		tally->disables[OPENING_MANUAL] += answer->changed;
		break;
	case REQUEST_ENABLE:
		tally->enables += answer->changed;
		break;
	default:
		break;
	}
}

void tally_commit(struct tally *tally, unsigned requests, int64_t microseconds)
{
	histogram_add(&tally->batch, requests);
	histogram_add(&tally->commit, (double)microseconds / 1000000);
}
