/*
 * check.c - what a check costs, beside the least that it could cost
 *
 * SPDX-License-Identifier: ISC
 *
 *	check [--repetitions N] [--iterations N] [--limit RATIO] [--json FILE]
 *
 * --limit: exit 1 if the inlined, closed check costs more than that many times its bare counterpart.
 */
#include "config.h"

#include <stdio.h>
#include <time.h>

#include "tests/bench/bare.h"
#include "tests/bench/measure.h"
#include "tests/support/segment.h"

struct subject {
	const struct cbshm_breaker *breaker;
	const uint64_t *word;
	bool (*check)(const struct cbshm_breaker *breaker);
	bool (*bare)(const uint64_t *word);
};

/*
 * One acquire load and a branch on it: what cannot be saved. The way out leads to a call in both loops, so that the
 * compiler makes a branch of it in both.
 */
MEASURED static uint64_t bare_slow(const uint64_t *word)
{
	return *word;
}

MEASURED static uint64_t run_bare(const void *arg, uint64_t iterations)
{
	const struct subject *subject = arg;
	const uint64_t *word = subject->word;
	uint64_t open = 0;

	for (uint64_t i = 0; i < iterations; i++) {
		if (__builtin_expect(__atomic_load_n(word, __ATOMIC_ACQUIRE) & 1, 0))
			open += bare_slow(word);
		FORGET();
	}
	return open;
}

static inline __attribute__((always_inline)) uint64_t checks(const struct subject *subject,
							     uint64_t iterations)
{
	const struct cbshm_breaker *breaker = subject->breaker;
	uint64_t open = 0;

	for (uint64_t i = 0; i < iterations; i++) {
		if (__builtin_expect(cbshm_is_disabled(breaker), 0))
			open++;
		FORGET();
	}
	return open;
}

/*
 * A loop for closed breakers and one for the others: a processor remembers that a branch was taken, and a loop that
 * served an open breaker before is slower for a while. (On a Zen 4, one cycle more for each round.)
 */
MEASURED static uint64_t run_inlined(const void *arg, uint64_t iterations)
{
	return checks(arg, iterations);
}

MEASURED static uint64_t run_unknown(const void *arg, uint64_t iterations)
{
	const struct subject *subject = arg;

	FORGET(); /* keeps the compiler from making one function of the three */
	return checks(subject, iterations) + 1;
}

MEASURED static uint64_t run_open(const void *arg, uint64_t iterations)
{
	const struct subject *subject = arg;

	FORGET();
	return checks(subject, iterations) + 2;
}

MEASURED static uint64_t run_decision(const void *arg, uint64_t iterations)
{
	const struct subject *subject = arg;
	const struct cbshm_breaker *breaker = subject->breaker;
	uint64_t open = 0;

	for (uint64_t i = 0; i < iterations; i++) {
		struct cbshm_decision decision = cbshm_check(breaker);

		if (__builtin_expect(decision.disabled, 0))
			open += decision.epoch;
		FORGET();
	}
	return open;
}

/* Both calls go through a pointer to a function of a shared library. */
MEASURED static uint64_t run_bare_call(const void *arg, uint64_t iterations)
{
	const struct subject *subject = arg;
	bool (*bare)(const uint64_t *) = subject->bare;
	const uint64_t *word = subject->word;
	uint64_t open = 0;

	for (uint64_t i = 0; i < iterations; i++) {
		if (__builtin_expect(bare(word), 0))
			open++;
		FORGET();
	}
	return open;
}

MEASURED static uint64_t run_call(const void *arg, uint64_t iterations)
{
	const struct subject *subject = arg;
	bool (*check)(const struct cbshm_breaker *) = subject->check;
	const struct cbshm_breaker *breaker = subject->breaker;
	uint64_t open = 0;

	for (uint64_t i = 0; i < iterations; i++) {
		if (__builtin_expect(check(breaker), 0))
			open++;
		FORGET();
	}
	return open;
}

MEASURED static uint64_t run_clock(const void *arg, uint64_t iterations)
{
	uint64_t sum = 0;

	(void)arg;
	for (uint64_t i = 0; i < iterations; i++) {
		struct timespec now;

		clock_gettime(CLOCK_BOOTTIME, &now);
		sum += (uint64_t)now.tv_nsec;
	}
	return sum;
}

struct measurement {
	const char *key, *title, *breaker;
	measured_run *run;
	measured_run *bare;
	const char *bare_title;
	uint64_t share; /* of the iterations: the slow ones make do with fewer */
};

static const struct measurement measurements[] = {
	{"closed_inlined", "closed, inlined", "closed", run_inlined, run_bare,
	 "acquire load, branch", 1},
	{"closed_decision", "closed, inlined, with epoch", "closed", run_decision, run_bare,
	 "acquire load, branch", 1},
	{"closed_called", "closed, called", "closed", run_call, run_bare_call,
	 "call of such a load", 1},
	{"unknown_inlined", "unknown, inlined", "unknown", run_unknown, run_bare,
	 "acquire load, branch", 1},
	{"open", "open", "open", run_open, run_bare_call, "call of such a load", 10},
	{"open_ttl", "open with a TTL", "ttl", run_open, run_clock, "clock_gettime(BOOTTIME)", 20},
};

#define MEASUREMENTS (sizeof(measurements) / sizeof(measurements[0]))

static void fill_segment(const char *name)
{
	struct segment_writer *writer = scratch_writer(name, 16);
	struct breaker_row ttl = row_open("ttl", 3);

	ttl.disabled_until = scratch_now() + INT64_C(3600000000);
	put(writer, row_closed("closed", 1));
	put(writer, row_open("open", 2));
	put(writer, ttl);
	segment_writer_close(writer);
}

static void prepare(struct cbshm *client, uint64_t iterations, struct subject *subjects,
		    struct pair *pairs)
{
	/* The bare loops read the word of the closed breaker, whatever they stand beside. */
	const uint64_t *word = scratch_breaker(client, "closed")->word;

	for (size_t m = 0; m < MEASUREMENTS; m++) {
		const struct measurement *this = &measurements[m];
		uint64_t count = iterations / this->share;

		subjects[m] = (struct subject){scratch_breaker(client, this->breaker), word,
					       cbshm_is_disabled_call, bare_function};
		pairs[m] = (struct pair){.key = this->key,
					 .title = this->title,
					 .beside_title = this->bare_title,
					 .run = {this->run, &subjects[m], count, NULL},
					 .beside = {this->bare, &subjects[m], count, NULL}};
	}
}

int main(int argc, char **argv)
{
	struct bench_options options = {.repetitions = 1001, .iterations = 100000};
	struct subject subjects[MEASUREMENTS];
	struct pair pairs[MEASUREMENTS];

	if (!bench_options_parse(&options, argc, argv))
		return 2;
	const char *name = scratch_segment();
	fill_segment(name);
	struct cbshm *client = scratch_client(name);
	stay_here();
	prepare(client, options.iterations, subjects, pairs);
	measure(pairs, MEASUREMENTS, options.repetitions);
	print_table(pairs, MEASUREMENTS, options.repetitions);
	cbshm_close(client);
	if (options.json &&
	    print_json(options.json, "check", pairs, MEASUREMENTS, options.repetitions, "") != 0)
		return 2;
	double ratio = quantile(pairs[0].ratio, (size_t)options.repetitions, 0.5);
	if (options.limit > 0 && ratio > options.limit) {
		printf("\nclosed, inlined: %.3f times the bare check, more than %.3f\n", ratio,
		       options.limit);
		return 1;
	}
	return 0;
}
