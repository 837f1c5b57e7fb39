/*
 * state.c - what a whole record costs, beside a copy of as many bytes under a plain seqlock
 *
 * SPDX-License-Identifier: ISC
 *
 *	state [--repetitions N] [--iterations N] [--json FILE]
 *
 * The seqlock is the textbook's: one copy, a sequence that is odd while it changes. It copies what the caller of
 * cbshm_get_state() gets, as relaxed atomic words, for that is what makes it right, and as memcpy(3), which is
 * what is written in most programs. It looks nothing up, checks no lengths, formats no UUID and asks no clock.
 */
#include "config.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "tests/bench/measure.h"
#include "tests/support/segment.h"

#define STATE_WORDS ((sizeof(struct cbshm_state) + 7) / 8)

struct seqlock {
	uint64_t sequence;
	uint64_t words[STATE_WORDS];
};

struct subject {
	const struct cbshm_breaker *breaker;
	const struct seqlock *seqlock;
};

MEASURED static uint64_t run_state(const void *arg, uint64_t iterations)
{
	const struct subject *subject = arg;
	struct cbshm_state state;
	uint64_t sum = 0;

	for (uint64_t i = 0; i < iterations; i++) {
		if (cbshm_get_state(subject->breaker, &state) == 0)
			sum += state.version;
		FORGET();
	}
	return sum;
}

/* A call, as cbshm_get_state() is one. */
MEASURED static void seqlock_read(const struct seqlock *seqlock, uint64_t *to)
{
	uint64_t sequence;

	do {
		sequence = __atomic_load_n(&seqlock->sequence, __ATOMIC_ACQUIRE);
		for (size_t i = 0; i < STATE_WORDS; i++)
			to[i] = __atomic_load_n(&seqlock->words[i], __ATOMIC_RELAXED);
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
	} while ((sequence & 1) ||
		 __atomic_load_n(&seqlock->sequence, __ATOMIC_RELAXED) != sequence);
}

MEASURED static void seqlock_memcpy(const struct seqlock *seqlock, uint64_t *to)
{
	uint64_t sequence;

	do {
		sequence = __atomic_load_n(&seqlock->sequence, __ATOMIC_ACQUIRE);
		memcpy(to, seqlock->words, sizeof(seqlock->words));
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
	} while ((sequence & 1) ||
		 __atomic_load_n(&seqlock->sequence, __ATOMIC_RELAXED) != sequence);
}

MEASURED static uint64_t run_seqlock(const void *arg, uint64_t iterations)
{
	const struct subject *subject = arg;
	uint64_t words[STATE_WORDS];
	uint64_t sum = 0;

	for (uint64_t i = 0; i < iterations; i++) {
		seqlock_read(subject->seqlock, words);
		sum += words[0];
		FORGET();
	}
	return sum;
}

MEASURED static uint64_t run_memcpy(const void *arg, uint64_t iterations)
{
	const struct subject *subject = arg;
	uint64_t words[STATE_WORDS];
	uint64_t sum = 0;

	for (uint64_t i = 0; i < iterations; i++) {
		seqlock_memcpy(subject->seqlock, words);
		sum += words[0];
		FORGET();
	}
	return sum;
}

/* What a caller of the other two pays on top if it wants to know how long an opening lasts. */
MEASURED static uint64_t run_seqlock_clock(const void *arg, uint64_t iterations)
{
	const struct subject *subject = arg;
	uint64_t words[STATE_WORDS];
	uint64_t sum = 0;

	for (uint64_t i = 0; i < iterations; i++) {
		struct timespec now;

		seqlock_read(subject->seqlock, words);
		clock_gettime(CLOCK_BOOTTIME, &now);
		sum += words[0] + (uint64_t)now.tv_nsec;
		FORGET();
	}
	return sum;
}

static const struct {
	const char *key, *title, *breaker, *beside_title;
	measured_run *beside;
} measurements[] = {
	{"state_closed", "state, closed", "closed", "plain seqlock", run_seqlock},
	{"state_open", "state, open", "open", "plain seqlock", run_seqlock},
	{"state_long", "state, open, longest texts", "long", "plain seqlock", run_seqlock},
	{"state_ttl", "state, open with a TTL", "ttl", "plain seqlock, one clock",
	 run_seqlock_clock},
	{"state_open_memcpy", "state, open", "open", "the same with memcpy", run_memcpy},
};

#define MEASUREMENTS (sizeof(measurements) / sizeof(measurements[0]))

static void fill_segment(const char *name)
{
	char reason[CBSHM_REASON_SIZE], by[CBSHM_ACTOR_SIZE];
	struct segment_writer *writer = scratch_writer(name, 16);
	struct breaker_row ttl = row_open("ttl", 3), longest = row_open("long", 4);

	memset(reason, 'r', sizeof(reason) - 1);
	memset(by, 'b', sizeof(by) - 1);
	reason[sizeof(reason) - 1] = by[sizeof(by) - 1] = '\0';
	longest.disabled_reason = reason;
	longest.disabled_by = by;
	ttl.disabled_until = scratch_now() + INT64_C(3600000000);
	put(writer, row_closed("closed", 1));
	put(writer, row_open("open", 2));
	put(writer, ttl);
	put(writer, longest);
	segment_writer_close(writer);
}

int main(int argc, char **argv)
{
	struct bench_options options = {.repetitions = 1001, .iterations = 5000};
	static struct seqlock seqlock = {.words = {1}};
	struct subject subjects[MEASUREMENTS];
	struct pair pairs[MEASUREMENTS];

	if (!bench_options_parse(&options, argc, argv))
		return 2;
	const char *name = scratch_segment();
	fill_segment(name);
	struct cbshm *client = scratch_client(name);
	stay_here();
	for (size_t m = 0; m < MEASUREMENTS; m++) {
		subjects[m] = (struct subject){scratch_breaker(client, measurements[m].breaker),
					       &seqlock};
		pairs[m] = (struct pair){
			.key = measurements[m].key,
			.title = measurements[m].title,
			.beside_title = measurements[m].beside_title,
			.run = {run_state, &subjects[m], options.iterations, NULL},
			.beside = {measurements[m].beside, &subjects[m], options.iterations, NULL}};
	}
	measure(pairs, MEASUREMENTS, options.repetitions);
	print_table(pairs, MEASUREMENTS, options.repetitions);
	cbshm_close(client);
	if (options.json &&
	    print_json(options.json, "state", pairs, MEASUREMENTS, options.repetitions, "") != 0)
		return 2;
	return 0;
}
