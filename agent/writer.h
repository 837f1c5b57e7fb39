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
struct tally;
struct writer;

int writer_new(struct agent *agent, struct writer **writer);

/* Answers everything that still waits (unavailable, or unknown for what was sent). After database_stop(). */
void writer_stop(struct writer *writer);

/* The same, and frees it; the database may not be gone yet. NULL is fine. */
void writer_free(struct writer *writer);

/* Takes a request in; `request->done` is called once, later, from the event loop. */
void writer_submit(struct writer *writer, struct request *request);

/* The database has become live or is away, or its lane has opened: looks again at what waits. */
void writer_database_changed(struct writer *writer);

/* Nothing waits and nothing is under way. */
bool writer_is_idle(const struct writer *writer);

/* What it has committed. Valid until writer_free(). */
const struct tally *writer_tally(const struct writer *writer);

#endif /* AGENT_WRITER_H */
