/*
 * recovery.h - closes breakers whose TTL has passed
 *
 * SPDX-License-Identifier: ISC
 *
 * Readers judge the end of a TTL themselves; this commits it. Every agent does; the database lets one of them
 * win. One timer for each open breaker that has a TTL and closes by itself.
 */
#ifndef AGENT_RECOVERY_H
#define AGENT_RECOVERY_H

#include "agent/breaker_row.h"

struct agent;
struct recovery;

struct recovery *recovery_new(struct agent *agent);
void recovery_free(struct recovery *recovery);

/* What now stands in the segment. */
void recovery_note(struct recovery *recovery, const struct breaker_row *row);
void recovery_forget(struct recovery *recovery, const char *name);

/* The database is live, or its lane has opened: what is overdue can be done. */
void recovery_ready(struct recovery *recovery);

/* The offset of the database's clock has changed: deadlines are elsewhere now. */
void recovery_clock_changed(struct recovery *recovery);

/* How many breakers this agent has closed. */
uint64_t recovery_closed(const struct recovery *recovery);

#endif /* AGENT_RECOVERY_H */
