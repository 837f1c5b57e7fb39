/*
 * snapshot.h - keeps the mirror on disk, for the reboot after which the database is not there
 *
 * SPDX-License-Identifier: ISC
 *
 * A child process writes it, from its own view of the shared memory: the event loop does nothing but to start it.
 */
#ifndef AGENT_SNAPSHOT_H
#define AGENT_SNAPSHOT_H

#include "agent/segment_writer.h"

struct agent;
struct config;
struct snapshot;

/* agent->config is there. */
struct snapshot *snapshot_new(struct agent *agent);

/*
 * For segment_options.fill, with the snapshot as the argument: puts what it knows into a segment that has just been made. Says in
 * the log what it did.
 */
void snapshot_restore(struct segment_writer *segment, void *snapshot);

/* Begins to keep it, if [segment] snapshot names a file. The rest of the agent is there. */
void snapshot_start(struct snapshot *snapshot);

/* When the last one was written, microseconds of CLOCK_REALTIME, 0: none; and how many could not be. */
int64_t snapshot_written_at(const struct snapshot *snapshot);
uint64_t snapshot_failures(const struct snapshot *snapshot);

/* The last one, at the end, before the database is left; waits for the disk. NULL is fine, as for free. */
void snapshot_finish(struct snapshot *snapshot);
void snapshot_free(struct snapshot *snapshot);

#endif /* AGENT_SNAPSHOT_H */
