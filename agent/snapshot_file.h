/*
 * snapshot_file.h - the mirror on disk: what a snapshot's file holds, writing and reading one
 *
 * SPDX-License-Identifier: ISC
 *
 * The format is nobody's business but the agent's: a reader of another version refuses it. Functions return 0 or -errno,
 * and then *message says what is wrong.
 */
#ifndef AGENT_SNAPSHOT_FILE_H
#define AGENT_SNAPSHOT_FILE_H

#include <stdint.h>

#include "agent/breaker_row.h"
#include "agent/segment_file.h"

/* What belongs to all of it. Times in microseconds. */
struct snapshot_about {
	uint64_t entries;     /* breakers */
	int64_t confirmed_at; /* CLOCK_REALTIME when the database last confirmed the mirror */
	int64_t clock_offset; /* the database's clock minus CLOCK_REALTIME */
	uint64_t target;      /* which database the configuration named */
	char identity[96];    /* which database it was, as it said itself; "" if it did not */
};

/*
 * Writes what the segment holds, as a reader of it: each record whole, whatever the writer does meanwhile. Aside, under the suffix
 * ".new", then it takes the name; both are on disk when this returns. `entries` is filled in.
 */
int snapshot_file_write(const char *path, const struct segment_view *view,
			struct snapshot_about *about, const struct segment_message *message);

/* Who is told what a file holds: first what belongs to all of it, then every breaker. */
struct snapshot_reader {
	void (*about)(void *arg, const struct snapshot_about *about);
	void (*breaker)(void *arg, const struct breaker_row *row);
	void *arg;
};

/*
 * Reads a file, judges all of it, and only then tells the reader. The file must be this user's own, and its `target` be `target`.
 * -ENOENT: there is none.
 */
int snapshot_file_read(const char *path, uint64_t target, const struct snapshot_reader *reader,
		       const struct segment_message *message);

#endif /* AGENT_SNAPSHOT_FILE_H */
