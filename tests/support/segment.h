/*
 * segment.h - segments, rows and readers for tests
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef TESTS_SUPPORT_SEGMENT_H
#define TESTS_SUPPORT_SEGMENT_H

#include <stdbool.h>
#include <stdint.h>

#include "agent/segment_writer.h"
#include "cbshm.h"
#include "libcbshm/validate.h"

/* A name that no other test has; what stands under it is removed when the process that asked for it ends. */
const char *scratch_segment(void);

/* Removes a segment, its lock and what was left aside. */
void scratch_remove(const char *name);

/* "/dev/shm" + name + suffix, in a buffer of its own for each call (up to 8). */
const char *scratch_path(const char *name, const char *suffix);

/* Opens a writer (mode 0644) whose clock says that the database's is this host's. Ends the test program on failure. */
struct segment_writer *scratch_writer(const char *name, uint32_t capacity);

/* Opens a client of the segment. Ends the test program on failure. */
struct cbshm *scratch_client(const char *name);
struct cbshm_breaker *scratch_breaker(struct cbshm *client, const char *name);

/* Microseconds since the Unix epoch. */
int64_t scratch_now(void);

/* A closed, and an open breaker without TTL. Strings are borrowed. */
struct breaker_row row_closed(const char *name, uint64_t version);
struct breaker_row row_open(const char *name, uint64_t version);

/* Puts a row and publishes; ends the test program if that fails. */
void put(struct segment_writer *writer, struct breaker_row row);

/*
 * A row whose every field follows from name and version (open if the version is odd), and the proof that a
 * state is one such row, whole: NULL, or the field that is not.
 */
struct pattern {
	struct breaker_row row;
	char reason[CBSHM_REASON_SIZE];
	char by[CBSHM_ACTOR_SIZE];
};
void pattern_fill(struct pattern *pattern, const char *name, uint64_t version);
const char *pattern_wrong(const struct cbshm_state *state);

/* The segment mapped for writing, to be damaged or looked at. */
struct segment_view scratch_map(const char *name);
void scratch_unmap(struct segment_view *view);

#endif /* TESTS_SUPPORT_SEGMENT_H */
