/*
 * query.h - requests that one statement over the control connection answers
 *
 * SPDX-License-Identifier: ISC
 *
 * What GetState and its like ask the database. Decisions, reports and policies are the writer's.
 */
#ifndef AGENT_QUERY_H
#define AGENT_QUERY_H

#include "agent/request.h"

struct agent;
struct queries;

struct queries *queries_new(struct agent *agent);

/* Answers everything that still waits. After database_stop(). */
void queries_stop(struct queries *queries);

/* The same, and frees it. NULL is fine. */
void queries_free(struct queries *queries);

/* Is it a request for queries_submit()? */
bool query_answers(enum request_kind kind);

/* Takes a request in; `request->done` is called once, later, from the event loop. */
void queries_submit(struct queries *queries, struct request *request);

/* The database has become live or is away: looks again at what waits. */
void queries_database_changed(struct queries *queries);

#endif /* AGENT_QUERY_H */
