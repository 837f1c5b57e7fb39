/*
 * pipeline.h - the connections that all threads of a process share
 *
 * SPDX-License-Identifier: ISC
 *
 * Any number of calls are under way on a connection; the agent answers them in their order. There
 * is no thread behind it: one of those who wait reads for all. Normally there is one connection.
 * Since an answer can be held up by the one before it (a row that somebody has locked), a call that
 * finds the connection without progress takes the next one, up to PIPELINE_LINES.
 */
#ifndef LIBCBSHM_PIPELINE_H
#define LIBCBSHM_PIPELINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cbshm.h"
#include "libcbshm/cbshm_private.h"

#define PIPELINE_LINES 4
#define PIPELINE_CALLS_MAX \
	1024u /* under way on one connection: what the agent takes before it stops to read */

struct pipelines;

/* What became of a message. */
struct pipeline_result {
	char *reply; /* free(); or NULL */
	bool sent;   /* the agent may have the whole message; if false it has not, and never will */
	bool reused; /* another call had connected */
	/* For pipelines_distrust(). */
	unsigned line;
	uint64_t connection;
};

struct pipelines *pipelines_new(struct cbshm *client);

/* Closes everything. Nobody may be waiting. NULL is fine. */
void pipelines_free(struct pipelines *pipelines);

/* In the child of a fork(): closes its copies of the descriptors, and leaves all else as the parent had it. */
void pipelines_disown(struct pipelines *pipelines);

/*
 * Sends `text`, which was allocated with malloc(), is `size` bytes with its NUL, and is taken over,
 * and waits for the reply. `alone`: on a connection of its own, for a call whose answer takes its
 * time by nature. `deadline`: microseconds of CLOCK_MONOTONIC.
 *
 * Errors: those of varlink_connect(); CBSHM_ERR_AGENT_DOWN (the connection is lost),
 * CBSHM_ERR_TIMEOUT, CBSHM_ERR_PROTOCOL, CBSHM_ERR_MEMORY, CBSHM_ERR_SYSTEM. With a reply: 0.
 */
int pipelines_exchange(struct pipelines *pipelines, bool alone, char *text, size_t size,
		       int64_t deadline, struct cbshm_call *call, struct pipeline_result *result);

/*
 * The reply showed that nothing more is to be sent on the connection it came from. Calls that are
 * under way get their answers.
 */
void pipelines_distrust(struct pipelines *pipelines, const struct pipeline_result *result);

#endif /* LIBCBSHM_PIPELINE_H */
