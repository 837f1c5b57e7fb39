/*
 * check.c - what a check costs, beside the least that it could cost
 *
 * SPDX-License-Identifier: ISC
 *
 *	check [--repetitions N] [--iterations N] [--limit RATIO] [--json FILE]
 *
 * Each subject and its bare counterpart are measured in turn, in short runs, many times over; a ratio is the
 * median of the ratios of neighbouring runs, so that a change of the machine's speed meets both. --limit: exit 1 if
 * the inlined, closed check costs more than that many times its counterpart.
 */
#include "config.h"

#include <getopt.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/bench/bare.h"
#include "tests/support/segment.h"

#define REPETITIONS 301
#define ITERATIONS  500000

/* Nothing is kept in registers from one round to the next, so that each round does all its loads. */
#define FORGET() __asm__ volatile("" ::: "memory")

#define MEASURED __attribute__((noinline, aligned(64)))

struct subject {
	const struct cbshm_breaker *breaker;
	const uint64_t *word;
	bool (*check)(const struct cbshm_breaker *breaker);
	bool (*bare)(const uint64_t *word);
};

typedef uint64_t run_function(const struct subject *subject, uint64_t iterations);

/*
 * One acquire load and a branch on it: what cannot be saved. The way out leads to a call in both loops, so that the
 * compiler makes a branch of it in both.
 */
MEASURED static uint64_t bare_slow(const uint64_t *word)
{
	return *word;
}

MEASURED static uint64_t run_bare(const struct subject *subject, uint64_t iterations)
{
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
MEASURED static uint64_t run_inlined(const struct subject *subject, uint64_t iterations)
{
	return checks(subject, iterations);
}

MEASURED static uint64_t run_unknown(const struct subject *subject, uint64_t iterations)
{
	FORGET(); /* keeps the compiler from making one function of the three */
	return checks(subject, iterations) + 1;
}

MEASURED static uint64_t run_open(const struct subject *subject, uint64_t iterations)
{
	FORGET();
	return checks(subject, iterations) + 2;
}

MEASURED static uint64_t run_decision(const struct subject *subject, uint64_t iterations)
{
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
MEASURED static uint64_t run_bare_call(const struct subject *subject, uint64_t iterations)
{
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

MEASURED static uint64_t run_call(const struct subject *subject, uint64_t iterations)
{
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

MEASURED static uint64_t run_clock(const struct subject *subject, uint64_t iterations)
{
	uint64_t sum = 0;

	(void)subject;
	for (uint64_t i = 0; i < iterations; i++) {
		struct timespec now;

		clock_gettime(CLOCK_BOOTTIME, &now);
		sum += (uint64_t)now.tv_nsec;
	}
	return sum;
}

struct measurement {
	const char *title;
	const char *key; /* in JSON */
	const char *breaker;
	run_function *run;
	run_function *bare;
	const char *bare_title;
	uint64_t share; /* of the iterations: the slow ones make do with fewer */
	double *cost, *bare_cost, *ratio;
};

static struct measurement measurements[] = {
	{"closed, inlined", "closed_inlined", "closed", run_inlined, run_bare,
	 "acquire load, branch", 1, NULL, NULL, NULL},
	{"closed, inlined, with epoch", "closed_decision", "closed", run_decision, run_bare,
	 "acquire load, branch", 1, NULL, NULL, NULL},
	{"closed, called", "closed_called", "closed", run_call, run_bare_call,
	 "call of such a load", 1, NULL, NULL, NULL},
	{"unknown, inlined", "unknown_inlined", "unknown", run_unknown, run_bare,
	 "acquire load, branch", 1, NULL, NULL, NULL},
	{"open", "open", "open", run_open, run_bare_call, "call of such a load", 10, NULL, NULL,
	 NULL},
	{"open with a TTL", "open_ttl", "ttl", run_open, run_clock, "clock_gettime(BOOTTIME)", 20,
	 NULL, NULL, NULL},
};

#define MEASUREMENTS (sizeof(measurements) / sizeof(measurements[0]))

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Of sorted values. */
static double quantile(const double *values, int count, double q)
{
	return values[(int)(q * (count - 1) + 0.5)];
}

static volatile uint64_t sink;

static double nanoseconds(run_function *run, const struct subject *subject, uint64_t iterations)
{
	struct timespec from, to;

	clock_gettime(CLOCK_MONOTONIC, &from);
	sink = run(subject, iterations);
	clock_gettime(CLOCK_MONOTONIC, &to);
	return ((double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec)) /
	       (double)iterations;
}

static void measure(struct cbshm *client, int repetitions, uint64_t iterations)
{
	struct subject subjects[MEASUREMENTS];

	for (size_t m = 0; m < MEASUREMENTS; m++) {
		struct measurement *this = &measurements[m];
		struct cbshm_breaker *breaker = scratch_breaker(client, this->breaker);

		this->cost = calloc((size_t)repetitions, sizeof(double));
		this->bare_cost = calloc((size_t)repetitions, sizeof(double));
		this->ratio = calloc((size_t)repetitions, sizeof(double));
		if (!this->cost || !this->bare_cost || !this->ratio)
			exit(2);
		/* The bare loops read the word of the closed breaker, whatever they stand beside. */
		subjects[m] = (struct subject){breaker, scratch_breaker(client, "closed")->word,
					       cbshm_is_disabled_call, bare_function};
	}
	for (int r = -1; r < repetitions; r++) { /* the first one only warms up */
		for (size_t m = 0; m < MEASUREMENTS; m++) {
			struct measurement *this = &measurements[m];
			uint64_t count = iterations / this->share;
			double bare, cost;

			/* Who goes first changes with every repetition. */
			if (r % 2) {
				bare = nanoseconds(this->bare, &subjects[m], count);
				cost = nanoseconds(this->run, &subjects[m], count);
			} else {
				cost = nanoseconds(this->run, &subjects[m], count);
				bare = nanoseconds(this->bare, &subjects[m], count);
			}
			if (r < 0)
				continue;
			this->cost[r] = cost;
			this->bare_cost[r] = bare;
			this->ratio[r] = cost / bare;
		}
	}
	for (size_t m = 0; m < MEASUREMENTS; m++) {
		qsort(measurements[m].cost, (size_t)repetitions, sizeof(double), compare);
		qsort(measurements[m].bare_cost, (size_t)repetitions, sizeof(double), compare);
		qsort(measurements[m].ratio, (size_t)repetitions, sizeof(double), compare);
	}
}

static void print_table(int repetitions, uint64_t iterations)
{
	printf("%d repetitions of %llu checks; ns per check: median (10th to 90th percentile)\n\n",
	       repetitions, (unsigned long long)iterations);
	printf("%-28s %-21s  %-24s %-21s  %s\n", "check", "ns", "beside", "ns",
	       "ratio (10th to 90th)");
	for (size_t m = 0; m < MEASUREMENTS; m++) {
		const struct measurement *this = &measurements[m];

		printf("%-28s %6.2f (%5.2f to %5.2f)  %-24s %6.2f (%5.2f to %5.2f)  %5.2f (%.2f to "
		       "%.2f)\n",
		       this->title, quantile(this->cost, repetitions, 0.5),
		       quantile(this->cost, repetitions, 0.1),
		       quantile(this->cost, repetitions, 0.9), this->bare_title,
		       quantile(this->bare_cost, repetitions, 0.5),
		       quantile(this->bare_cost, repetitions, 0.1),
		       quantile(this->bare_cost, repetitions, 0.9),
		       quantile(this->ratio, repetitions, 0.5),
		       quantile(this->ratio, repetitions, 0.1),
		       quantile(this->ratio, repetitions, 0.9));
	}
}

static void print_spread(FILE *file, const char *key, const double *values, int count)
{
	fprintf(file, "\"%s\": {\"median\": %.4f, \"p10\": %.4f, \"p90\": %.4f, \"min\": %.4f}",
		key, quantile(values, count, 0.5), quantile(values, count, 0.1),
		quantile(values, count, 0.9), values[0]);
}

static int print_json(const char *path, int repetitions, uint64_t iterations)
{
	FILE *file = fopen(path, "w");

	if (!file) {
		perror(path);
		return 2;
	}
	fprintf(file, "{\"benchmark\": \"check\", \"version\": \"%s\", \"compiler\": \"%s\", ",
		cbshm_version(), __VERSION__);
	fprintf(file, "\"repetitions\": %d, \"iterations\": %llu, \"results\": {", repetitions,
		(unsigned long long)iterations);
	for (size_t m = 0; m < MEASUREMENTS; m++) {
		const struct measurement *this = &measurements[m];

		fprintf(file, "%s\n\t\"%s\": {\"beside\": \"%s\", ", m ? "," : "", this->key,
			this->bare_title);
		print_spread(file, "ns", this->cost, repetitions);
		fputs(", ", file);
		print_spread(file, "beside_ns", this->bare_cost, repetitions);
		fputs(", ", file);
		print_spread(file, "ratio", this->ratio, repetitions);
		fputs("}", file);
	}
	fputs("\n}}\n", file);
	if (fclose(file) != 0) {
		perror(path);
		return 2;
	}
	return 0;
}

/* A run that moves between processors measures the moving. */
static void stay_here(void)
{
	cpu_set_t here;
	int cpu = sched_getcpu();

	if (cpu < 0)
		return;
	CPU_ZERO(&here);
	CPU_SET((size_t)cpu, &here);
	if (sched_setaffinity(0, sizeof(here), &here) != 0)
		fprintf(stderr, "not bound to one processor\n");
}

static int usage(void)
{
	fprintf(stderr,
		"usage: check [--repetitions N] [--iterations N] [--limit RATIO] [--json FILE]\n");
	return 2;
}

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

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"repetitions", required_argument, NULL, 'r'},
		{"iterations", required_argument, NULL, 'i'},
		{"limit", required_argument, NULL, 'l'},
		{"json", required_argument, NULL, 'j'},
		{NULL, 0, NULL, 0},
	};
	long repetitions = REPETITIONS, iterations = ITERATIONS;
	const char *json = NULL;
	double limit = 0;
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (option == 'r')
			repetitions = atol(optarg);
		else if (option == 'i')
			iterations = atol(optarg);
		else if (option == 'l')
			limit = atof(optarg);
		else if (option == 'j')
			json = optarg;
		else
			return usage();
	}
	if (optind != argc || repetitions < 1 || repetitions > 1000000 || iterations < 100)
		return usage();

	const char *name = scratch_segment();
	fill_segment(name);
	struct cbshm *client = scratch_client(name);
	stay_here();
	measure(client, (int)repetitions, (uint64_t)iterations);
	print_table((int)repetitions, (uint64_t)iterations);
	cbshm_close(client);
	if (json && print_json(json, (int)repetitions, (uint64_t)iterations) != 0)
		return 2;
	double ratio = quantile(measurements[0].ratio, (int)repetitions, 0.5);
	if (limit > 0 && ratio > limit) {
		printf("\nclosed, inlined: %.3f times the bare check, more than %.3f\n", ratio,
		       limit);
		return 1;
	}
	return 0;
}
