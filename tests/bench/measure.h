/*
 * measure.h - two things measured in turn, many times over
 *
 * SPDX-License-Identifier: ISC
 *
 * A subject and what it is measured beside run one after the other, in short runs, and so often that a change of the
 * machine's speed meets both; the ratio is the median of the ratios of neighbouring runs.
 */
#ifndef TESTS_BENCH_MEASURE_H
#define TESTS_BENCH_MEASURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Nothing is kept in registers from one round to the next, so that each round does all its loads. */
#define FORGET() __asm__ volatile("" ::: "memory")

#define MEASURED __attribute__((noinline, aligned(64)))

/* Does it `iterations` times; what is returned only keeps the compiler from leaving it out. */
typedef uint64_t measured_run(const void *subject, uint64_t iterations);

struct measured {
	measured_run *run;
	const void *subject;
	uint64_t iterations; /* of one run */
	double *ns;          /* measure()'s: one for each repetition, sorted */
};

struct pair {
	const char *key;          /* in JSON */
	const char *title;        /* in the table */
	const char *beside_title; /* likewise */
	struct measured run, beside;
	double *ratio; /* measure()'s: run / beside, sorted */
};

/* Fills ns and ratio of all pairs. Who of a pair goes first changes with every repetition. */
void measure(struct pair *pairs, size_t count, int repetitions);

/* Of sorted values; q from 0 to 1. */
double quantile(const double *values, size_t count, double q);
void sort_values(double *values, size_t count);

void print_table(const struct pair *pairs, size_t count, int repetitions);

/* A JSON object, "results" by key and beside it what `extra` says (members, or ""). 0, or 2 after a message. */
int print_json(const char *path, const char *benchmark, const struct pair *pairs, size_t count,
	       int repetitions, const char *extra);

/* Binds this thread to the processor it runs on: a run that moves between processors measures the moving. */
void stay_here(void);

/* Binds this process to the first or second (0, 1) of the processors it may use; false if there is none. */
bool stay_on(int which);

/* The options that all programs take; NULL and 0 where they are not given. */
struct bench_options {
	int repetitions;
	uint64_t iterations;
	double limit;
	uint64_t reads;
	const char *json;
	const char *redis;    /* a Unix socket */
	const char *postgres; /* a conninfo */
};

/* Returns false after a usage message. What `options` holds before is the default. */
bool bench_options_parse(struct bench_options *options, int argc, char **argv);

/* Memory or nothing: ends the program. */
void *bench_memory(size_t count, size_t size);

int64_t monotonic_ns(void);

#endif /* TESTS_BENCH_MEASURE_H */
