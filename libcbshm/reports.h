/*
 * reports.h - reports that nobody waits for: queued, sent, answered, counted
 *
 * SPDX-License-Identifier: ISC
 *
 * They have a connection of their own, so that a full queue delays no call, and an event loop can
 * watch it without seeing the answers of others. There is no thread: whoever comes by pumps, one
 * thread at a time, and nobody waits for that. A report is sent once; one that was lost with a
 * connection is counted as unknown, and not repeated.
 */
#ifndef LIBCBSHM_REPORTS_H
#define LIBCBSHM_REPORTS_H

#include "cbshm.h"
#include "libcbshm/cbshm_private.h"
#include "libcbshm/report_ring.h"

struct reports;

/* NULL: out of memory. */
struct reports *reports_new(struct cbshm *client);

/* What is not sent is lost. NULL is fine. */
void reports_free(struct reports *reports);

/* In the child of a fork(): closes its copies of the descriptors. The parent's reports are the parent's. */
void reports_disown(struct reports *reports);

/* Queues a report. Does not wait. 0 or CBSHM_ERR_FULL. */
int reports_push(struct reports *reports, const struct report *report);

/* If no event loop takes care of it, and something is under way: as much as goes without waiting. */
void reports_nudge(struct reports *reports);

/* See cbshm.h. */
int reports_flush(struct reports *reports, int64_t deadline, struct cbshm_call *call,
		  uint64_t *failed);
void reports_get_stats(const struct reports *reports, struct cbshm_report_stats *stats);
int reports_fd(struct reports *reports);
int reports_dispatch(struct reports *reports);

#endif /* LIBCBSHM_REPORTS_H */
