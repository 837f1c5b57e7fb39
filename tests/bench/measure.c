/*
 * measure.c - two things measured in turn, many times over
 *
 * SPDX-License-Identifier: ISC
 */
#include "config.h"

#include "tests/bench/measure.h"

#include <getopt.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

#include "cbshm.h"

static volatile uint64_t sink;

int64_t monotonic_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void *bench_memory(size_t count, size_t size)
{
	void *memory = calloc(count, size);

	if (!memory) {
		fprintf(stderr, "out of memory\n");
		exit(2);
	}
	return memory;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

void sort_values(double *values, size_t count)
{
	qsort(values, count, sizeof(*values), compare);
}

double quantile(const double *values, size_t count, double q)
{
	return values[(size_t)(q * (double)(count - 1) + 0.5)];
}

static double run_once(const struct measured *measured)
{
	int64_t from = monotonic_ns();

	sink = measured->run(measured->subject, measured->iterations);
	return (double)(monotonic_ns() - from) / (double)measured->iterations;
}

static void repeat(struct pair *pair, int r)
{
	double run, beside;

	if (r % 2) {
		beside = run_once(&pair->beside);
		run = run_once(&pair->run);
	} else {
		run = run_once(&pair->run);
		beside = run_once(&pair->beside);
	}
	if (r < 0)
		return;
	pair->run.ns[r] = run;
	pair->beside.ns[r] = beside;
	pair->ratio[r] = run / beside;
}

void measure(struct pair *pairs, size_t count, int repetitions)
{
	size_t values = (size_t)repetitions;

	for (size_t p = 0; p < count; p++) {
		pairs[p].run.ns = bench_memory(values, sizeof(double));
		pairs[p].beside.ns = bench_memory(values, sizeof(double));
		pairs[p].ratio = bench_memory(values, sizeof(double));
	}
	for (int r = -1; r < repetitions; r++) { /* the first one only warms up */
		for (size_t p = 0; p < count; p++)
			repeat(&pairs[p], r);
	}
	for (size_t p = 0; p < count; p++) {
		sort_values(pairs[p].run.ns, values);
		sort_values(pairs[p].beside.ns, values);
		sort_values(pairs[p].ratio, values);
	}
}

void print_table(const struct pair *pairs, size_t count, int repetitions)
{
	size_t n = (size_t)repetitions;

	printf("%d repetitions; ns for each: median (10th to 90th percentile)\n\n", repetitions);
	printf("%-28s %-25s  %-26s %-25s  %s\n", "", "ns", "beside", "ns", "ratio (10th to 90th)");
	for (size_t p = 0; p < count; p++) {
		const struct pair *pair = &pairs[p];
		const double *run = pair->run.ns, *beside = pair->beside.ns;

		printf("%-28s %8.2f (%6.2f to %6.2f)  %-26s %8.2f (%6.2f to %6.2f)  %5.2f (%.2f to "
		       "%.2f)\n",
		       pair->title, quantile(run, n, 0.5), quantile(run, n, 0.1),
		       quantile(run, n, 0.9), pair->beside_title, quantile(beside, n, 0.5),
		       quantile(beside, n, 0.1), quantile(beside, n, 0.9),
		       quantile(pair->ratio, n, 0.5), quantile(pair->ratio, n, 0.1),
		       quantile(pair->ratio, n, 0.9));
	}
}

static void print_spread(FILE *file, const char *key, const double *values, size_t count)
{
	fprintf(file, "\"%s\": {\"median\": %.6g, \"p10\": %.6g, \"p90\": %.6g, \"min\": %.6g}",
		key, quantile(values, count, 0.5), quantile(values, count, 0.1),
		quantile(values, count, 0.9), values[0]);
}

int print_json(const char *path, const char *benchmark, const struct pair *pairs, size_t count,
	       int repetitions, const char *extra)
{
	size_t n = (size_t)repetitions;
	FILE *file = fopen(path, "w");

	if (!file) {
		perror(path);
		return 2;
	}
	fprintf(file, "{\"benchmark\": \"%s\", \"version\": \"%s\", \"compiler\": \"%s\", ",
		benchmark, cbshm_version(), __VERSION__);
	fprintf(file, "\"repetitions\": %d, %s\"results\": {", repetitions, extra);
	for (size_t p = 0; p < count; p++) {
		fprintf(file, "%s\n\t\"%s\": {\"title\": \"%s\", \"beside\": \"%s\", ",
			p ? "," : "", pairs[p].key, pairs[p].title, pairs[p].beside_title);
		print_spread(file, "ns", pairs[p].run.ns, n);
		fputs(", ", file);
		print_spread(file, "beside_ns", pairs[p].beside.ns, n);
		fputs(", ", file);
		print_spread(file, "ratio", pairs[p].ratio, n);
		fputs("}", file);
	}
	fputs("\n}}\n", file);
	if (fclose(file) != 0) {
		perror(path);
		return 2;
	}
	return 0;
}

void stay_here(void)
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

bool stay_on(int which)
{
	cpu_set_t allowed, chosen;

	if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0)
		return false;
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET((size_t)cpu, &allowed) || which-- != 0)
			continue;
		CPU_ZERO(&chosen);
		CPU_SET((size_t)cpu, &chosen);
		return sched_setaffinity(0, sizeof(chosen), &chosen) == 0;
	}
	return false;
}

static bool usage(const char *program)
{
	fprintf(stderr,
		"usage: %s [--repetitions N] [--iterations N] [--reads N] [--limit RATIO] [--json "
		"FILE] "
		"[--redis SOCKET] [--postgres CONNINFO]\n",
		program);
	return false;
}

bool bench_options_parse(struct bench_options *options, int argc, char **argv)
{
	static const struct option known[] = {
		{"repetitions", required_argument, NULL, 'r'},
		{"iterations", required_argument, NULL, 'i'},
		{"reads", required_argument, NULL, 'n'},
		{"limit", required_argument, NULL, 'l'},
		{"json", required_argument, NULL, 'j'},
		{"redis", required_argument, NULL, 'R'},
		{"postgres", required_argument, NULL, 'P'},
		{NULL, 0, NULL, 0},
	};
	int option;

	while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
		if (option == 'r')
			options->repetitions = atoi(optarg);
		else if (option == 'i')
			options->iterations = strtoull(optarg, NULL, 10);
		else if (option == 'n')
			options->reads = strtoull(optarg, NULL, 10);
		else if (option == 'l')
			options->limit = atof(optarg);
		else if (option == 'j')
			options->json = optarg;
		else if (option == 'R')
			options->redis = optarg;
		else if (option == 'P')
			options->postgres = optarg;
		else
			return usage(argv[0]);
	}
	if (optind != argc || options->repetitions < 1 || options->repetitions > 1000000 ||
	    options->iterations < 100)
		return usage(argv[0]);
	return true;
}
