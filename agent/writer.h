/*
 * writer.h - carries requests to the database, many in one transaction
 *
 * SPDX-License-Identifier: ISC
 *
 * Requests that arrive while a transaction is in flight form the next one. The answer to a write
 * is given after its commit and after the segment shows the result.
 */
#ifndef AGENT_WRITER_H
#define AGENT_WRITER_H

#include "agent/request.h"

struct agent;
struct writer;

int writer_new(struct agent *agent, struct writer **writer);

/* Answers everything that still waits (unavailable, or unknown for what was sent). NULL is fine. */
void writer_free(struct writer *writer);

/* Takes a request in; `request->done` is called once, later, from the event loop. */
void writer_submit(struct writer *writer, struct request *request);

#endif /* AGENT_WRITER_H */
