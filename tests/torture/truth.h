/*
 * truth.h - what may be true of a breaker at this moment, and readers that hold every answer against it
 *
 * SPDX-License-Identifier: ISC
 *
 * Whoever changes the segment says before each change what may be seen from now on, and after it what may be seen no
 * longer. Both stand in memory that the processes of a test share, apart from the segment. So a reader knows
 * more of an answer than that it is whole: that it was true at some moment between the question and the answer, even if the
 * writer was killed in between.
 *
 * Every field of a breaker follows from its number and its version; the thresholds and default_ttl from the number of
 * the policy, which changes without a new version. Versions with an odd number are open, in turn without a TTL, with one that lies
 * ahead, one that has passed, and one that has passed but closes nothing.
 */
#ifndef TESTS_TORTURE_TRUTH_H
#define TESTS_TORTURE_TRUTH_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent/segment_writer.h"
#include "cbshm.h"

/* Breakers "truth-0" to "truth-11"; number 0 is never removed. */
#define TRUTH_BREAKERS 12

/* What a reader has counted; `wrong` is the first thing that was, or "". */
struct tally {
	uint64_t checks;  /* cbshm_check() */
	uint64_t records; /* cbshm_get_state(), cbshm_foreach() */
	uint64_t absent;  /* of both: the breaker was not there */
	uint64_t busy;    /* the record changed under every attempt */
	uint64_t signals; /* of the checks: in a signal handler */
	uint64_t forks;   /* children that a reader made, which read as well */
	uint64_t late;    /* reads that took longer than 1 ms, the processor being elsewhere ... */
	uint64_t waited;  /* ... or because they spun or slept */
	uint64_t looks;   /* at everything */
	uint64_t longest; /* nanoseconds, of those that did not */
	char wrong[160];
};

/* Makes the shared memory. Before any fork(2); once a process. */
void truth_create(void);

/*
 * The changes. Each returns what the segment writer does, and ends the process if that is an error.
 * A kill in any of them leaves both the old and the new to be true, until the same breaker is changed again.
 */
int truth_put(struct segment_writer *writer, unsigned int breaker, uint64_t version);
/* Many changes of one breaker in a row, any of which may be true until the end: most of the time is spent in the segment. */
void truth_burst(struct segment_writer *writer, unsigned int breaker, unsigned int changes);
int truth_remove(struct segment_writer *writer, unsigned int breaker);
/* The next policy, in force for every breaker that is there. */
void truth_policy(struct segment_writer *writer);
/* A load that holds the breakers whose bit is set: the others are removed. */
void truth_load(struct segment_writer *writer, uint32_t breakers);

/* The newest version that was ever to be put. */
uint64_t truth_version(unsigned int breaker);
/* Is it surely there? */
bool truth_is_there(unsigned int breaker);

/* One client, a handle on each breaker, and what it has seen of them. */
struct witness;
struct witness *witness_open(const char *segment);
void witness_close(struct witness *witness);
/* One question of each kind about each breaker, or about all through cbshm_foreach(). */
void witness_look(struct witness *witness, struct tally *tally);
void witness_list(struct witness *witness, struct tally *tally);
/* A check and a record of one breaker, as a signal handler does it: nothing but the two calls and a comparison. */
void witness_glance(const struct witness *witness, unsigned int breaker, struct tally *tally);

/* Processes that look, each in `threads` threads, until they are stopped. */
enum readers_manner {
	READERS_BUSY, /* without a pause */
	READERS_CALM, /* with one after each look at everything, so that they leave the processor to others */
	READERS_UPSET, /* busy, interrupted by signals whose handlers look, and now and then fork a child that looks */
};
#define READERS_MAX 16
void readers_start(const char *segment, unsigned int processes, unsigned int threads,
		   enum readers_manner manner);
/* What all have counted up to now. */
void readers_sum(struct tally *sum);
/* Returns when each thread, and the children it has, has looked at everything once more. */
void readers_pass(void);
/* The same once they have ended. A reader that died counts as wrong. */
void readers_stop(struct tally *sum);

/* Lines of diagnosis. */
void tally_print(const struct tally *tally);

/* Nanoseconds of CLOCK_MONOTONIC. */
int64_t truth_now(void);

#endif /* TESTS_TORTURE_TRUTH_H */
