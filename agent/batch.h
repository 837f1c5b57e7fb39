/*
 * batch.h - requests that become one transaction
 *
 * SPDX-License-Identifier: ISC
 *
 * Makes the statements and reads the results; decides nothing. The writer decides what goes into a batch, over which connection,
 * and what becomes of it.
 */
#ifndef AGENT_BATCH_H
#define AGENT_BATCH_H

#include <stdbool.h>
#include <stdint.h>

#include "agent/connection.h"
#include "agent/request.h"

#define BATCH_MAX 4096

struct agent;
struct counts;
struct found;
struct lane;
struct writer;

/* A request in the writer's hands. */
struct ticket {
	struct request *request; /* NULL once answered */
	bool boundary;           /* a batch ends with it: its likes have failed together */
	bool finished;           /* answered, or moved on: the batch no longer owns it */
	bool uncertain; /* may have been applied; its request id tells when it is sent again */
	struct ticket *next;
};

struct batch {
	struct writer *writer;
	struct lane *lane; /* NULL = over the write connection */
	bool policy;       /* a SetPolicy, alone */
	struct ticket **tickets;
	unsigned count;
	unsigned moment; /* of the mirror, when it was sent */

	/* The numbers of the statements, and what came of them. */
	int report, work, rows, xid; /* -1 = there is none */
	unsigned commit;
	PGresult *report_result; /* cbshm.report(), rows included */
	PGresult *work_result;   /* cbshm.apply(), or the policy */
	PGresult *rows_result;
	bool xid_heard;     /* sent by the server before it begins to commit */
	uint64_t xid_value; /* 0: it has changed nothing */
	uint32_t *reported; /* tickets in the order of report()'s arrays */
	uint32_t *applied;  /* and of apply()'s */
	uint32_t reported_count, applied_count;
	struct found *found; /* by ticket */

	/* For one that was lost. */
	bool heard_all; /* see unit_heard_all() */
	bool asked;     /* its outcome is being looked up */
	char incarnation[96];
	struct batch *next;
};

/* Room for `room` tickets. */
struct batch *batch_new(struct writer *writer, unsigned room);

/* The batch's own memory; the tickets only if they are finished. */
void batch_free(struct batch *batch);

/*
 * The transaction for the tickets in it. `patience` (milliseconds) is how long it may wait for locks; 0: rows that are
 * locked are left out and their requests answered as locked.
 */
struct unit *batch_unit(struct batch *batch, const struct agent *agent, int patience,
			unit_done *done);

/* Keeps the results beyond the life of the unit. */
void batch_keep_results(struct batch *batch, struct unit *unit);

/* Tells `counts` which rows report() may have changed without a notification. */
void batch_note_counts(const struct batch *batch, struct counts *counts);

/* Looks through the results of a committed batch; before batch_answer(). */
void batch_find_answers(struct batch *batch);

/* The answer for a ticket, by number. False: the row is locked, nothing was applied. */
bool batch_answer(const struct batch *batch, unsigned ticket, struct answer *answer);

#endif /* AGENT_BATCH_H */
