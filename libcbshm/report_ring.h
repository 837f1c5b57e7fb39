/*
 * report_ring.h - reports on their way from any thread to whoever sends them
 *
 * SPDX-License-Identifier: ISC
 *
 * A ring in one piece of memory, made once. Any number of threads push, and none of them waits: not
 * for each other, not for the one that takes. A report stays in the ring until it is released, so
 * that the ring also holds what is sent and not answered.
 *
 * Positions count bytes since the beginning and never go back.
 */
#ifndef LIBCBSHM_REPORT_RING_H
#define LIBCBSHM_REPORT_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum report_kind {
	REPORT_DRIFT,
	REPORT_SCHEMA_ERROR,
};

/* What is reported. The texts are not terminated, and in the ring behind it. */
struct report {
	enum report_kind kind;
	double score;   /* of REPORT_DRIFT */
	int64_t number; /* its samples, or the count of REPORT_SCHEMA_ERROR */
	const char *name;
	const char *details; /* NULL: none */
	size_t name_length, details_length;
};

struct report_ring;

/*
 * NULL: out of memory. `size` is a power of two, at least four times the largest report. Nothing of
 * it is touched before it is used.
 */
struct report_ring *report_ring_new(size_t size);
void report_ring_free(struct report_ring *ring);

/* Copies the report into the ring. false: it is full. Any thread, also within a signal handler. */
bool report_ring_push(struct report_ring *ring, const struct report *report);

/* Behind the last report that was pushed before the call. */
uint64_t report_ring_end(const struct report_ring *ring);

/* The following are for one thread at a time. */

/*
 * The report at *position, which becomes where it begins (there may be a gap at the end of the
 * memory); *next is the position behind it. false: there is none yet. Its texts are valid until it
 * is released.
 */
bool report_ring_look(struct report_ring *ring, uint64_t *position, struct report *report,
		      uint64_t *next);

/* Room for new reports: everything before `position` is done with. */
void report_ring_release(struct report_ring *ring, uint64_t position);

/* What is released. */
uint64_t report_ring_begin(const struct report_ring *ring);

#endif /* LIBCBSHM_REPORT_RING_H */
