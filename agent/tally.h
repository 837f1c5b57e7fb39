/*
 * tally.h - what the writer has committed, counted
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef AGENT_TALLY_H
#define AGENT_TALLY_H

#include <stdint.h>

#include "agent/histogram.h"
#include "agent/request.h"

/* Why a breaker is open, as a class; each has its severity. */
enum opening { OPENING_DRIFT, OPENING_SCHEMA_ERROR, OPENING_MANUAL, OPENINGS };

const char *opening_reason(enum opening opening);   /* "drift" */
const char *opening_severity(enum opening opening); /* "P1" */

/* The class of an open breaker, from its row. Neither text need be terminated. */
enum opening opening_of(const char *by, size_t by_length, const char *reason, size_t reason_length);

/* All since the start of the agent. */
struct tally {
	uint64_t drift_reports;
	uint64_t schema_error_reports;
	uint64_t disables[OPENINGS];
	uint64_t enables;
	struct histogram drift_score;
	struct histogram commit; /* seconds from sending a transaction to the end of its commit */
	struct histogram batch;  /* requests in a transaction */
};

void tally_init(struct tally *tally);

/* A request has been carried out, and its transaction is committed. */
void tally_answer(struct tally *tally, const struct request *request, const struct answer *answer);

/* A transaction with so many requests has been committed within so many microseconds. */
void tally_commit(struct tally *tally, unsigned requests, int64_t microseconds);

#endif /* AGENT_TALLY_H */
