/*
 * cmd_bench.c - cbctl bench: what reads cost on this host, at this moment
 *
 * SPDX-License-Identifier: ISC
 *
 * Only reads, and takes the breakers that there are: what none of them can show is not measured.
 * The benchmark with something beside each figure is tests/bench/.
 */
#include "config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cbctl/output.h"
#include "cbctl/segment.h"

#define ROUNDS   51      /* medians are taken of so many */
#define ROUND_NS 2000000 /* each takes about as long */

struct subject {
	struct cbshm *client;
	struct cbshm_breaker *breaker;
	const char *name;
};

/* Nothing of what is before may be left out, or moved behind. */
static inline void barrier(void)
{
	__asm__ volatile("" ::: "memory");
}

/* ---- what is measured ------------------------------------------------------------------- */

static void run_check(const struct subject *subject, uint64_t calls)
{
	const struct cbshm_breaker *breaker = subject->breaker;

	for (uint64_t i = 0; i < calls; i++) {
		bool disabled = cbshm_is_disabled(breaker);

		__asm__ volatile("" ::"r"(disabled) : "memory");
	}
}

static void run_state(const struct subject *subject, uint64_t calls)
{
	struct cbshm_state state;

	for (uint64_t i = 0; i < calls; i++) {
		if (cbshm_get_state(subject->breaker, &state) != 0)
			return;
		barrier();
	}
}

static void run_lookup(const struct subject *subject, uint64_t calls)
{
	for (uint64_t i = 0; i < calls; i++) {
		struct cbshm_breaker *breaker;

		if (cbshm_breaker_open(subject->client, subject->name, &breaker) != 0)
			return;
		cbshm_breaker_close(breaker);
	}
}

enum kind { KIND_CLOSED, KIND_OPEN, KIND_TTL, KIND_UNKNOWN, KINDS };

static const struct measurement {
	const char *word;    /* for programs */
	const char *text;    /* for people */
	const char *missing; /* why it cannot be measured if there is no such breaker */
	enum kind kind;      /* the breaker it takes */
	void (*run)(const struct subject *subject, uint64_t calls);
} measurements[] = {
	{"check_closed", "check, closed", "no breaker is closed", KIND_CLOSED, run_check},
	{"check_open", "check, open for good", "none is open without an end", KIND_OPEN, run_check},
	{"check_ttl", "check, open with a TTL", "none is open with a TTL", KIND_TTL, run_check},
	{"check_unknown", "check, no such breaker", "", KIND_UNKNOWN, run_check},
	{"state_closed", "whole record, closed", "no breaker is closed", KIND_CLOSED, run_state},
	{"state_ttl", "whole record, open with a TTL", "none is open with a TTL", KIND_TTL,
	 run_state},
	{"lookup", "name to handle, and back", "no breaker is closed", KIND_CLOSED, run_lookup},
};

#define MEASUREMENTS (sizeof(measurements) / sizeof(*measurements))

/* ---- measuring -------------------------------------------------------------------------- */

struct figures {
	double median, low,
		high; /* nanoseconds a call; low and high: a tenth of the rounds is beyond each */
};

static double time_of(const struct measurement *measurement, const struct subject *subject,
		      uint64_t calls)
{
	struct timespec from, to;

	clock_gettime(CLOCK_MONOTONIC, &from);
	measurement->run(subject, calls);
	clock_gettime(CLOCK_MONOTONIC, &to);
	return (double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec);
}

static int compare(const void *a, const void *b)
{
	const double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static struct figures measure(const struct measurement *measurement, const struct subject *subject)
{
	double rounds[ROUNDS];
	uint64_t calls = 64;

	while (time_of(measurement, subject, calls) < ROUND_NS && calls < UINT64_C(1) << 32)
		calls *= 2;
	for (int i = 0; i < ROUNDS; i++)
		rounds[i] = time_of(measurement, subject, calls) / (double)calls;
	qsort(rounds, ROUNDS, sizeof(*rounds), compare);
	return (struct figures){rounds[ROUNDS / 2], rounds[ROUNDS / 10],
				rounds[ROUNDS - 1 - ROUNDS / 10]};
}

/* ---- finding breakers ------------------------------------------------------------------- */

struct found {
	char names[KINDS][CBSHM_NAME_MAX + 1]; /* "" if there is none */
};

static int look(const struct cbshm_state *state, void *arg)
{
	struct found *found = arg;
	enum kind kind = KIND_CLOSED;

	if (state->disabled)
		kind = state->remaining_us == CBSHM_NO_TIME || !state->policy.auto_recover
			       ? KIND_OPEN
			       : KIND_TTL;
	/* The first by name: the same one as last time, if it is still there. */
	if (found->names[kind][0] == '\0' || strcmp(state->name, found->names[kind]) < 0)
		snprintf(found->names[kind], sizeof(found->names[kind]), "%s", state->name);
	return 0;
}

/* A name that nobody has. */
static void invent(struct cbctl *cbctl, char name[CBSHM_NAME_MAX + 1])
{
	struct cbshm_state state;

	for (int i = 0; i == 0 || segment_state(cbctl, name, &state) == 0; i++)
		snprintf(name, CBSHM_NAME_MAX + 1, "no such breaker %d", i);
}

/* ---- output ----------------------------------------------------------------------------- */

static void report(cJSON *results, const struct measurement *measurement, const char *name,
		   const struct figures *figures)
{
	cJSON *object;

	if (results == NULL && figures == NULL) {
		printf("  %-30s  %s\n", measurement->text, measurement->missing);
		return;
	}
	if (results == NULL) {
		printf("  %-30s  %8.2f  %8.2f - %.2f\n", measurement->text, figures->median,
		       figures->low, figures->high);
		return;
	}
	object = json_object(results, NULL);
	json_text(object, "name", measurement->word);
	json_text(object, "breaker", figures != NULL ? name : NULL);
	json_number(object, "median_ns", figures != NULL ? figures->median : NAN);
	json_number(object, "p10_ns", figures != NULL ? figures->low : NAN);
	json_number(object, "p90_ns", figures != NULL ? figures->high : NAN);
}

static int measure_one(struct cbctl *cbctl, const struct measurement *measurement, const char *name,
		       cJSON *results)
{
	struct subject subject = {.client = cbctl->client, .name = name};
	struct figures figures;
	int error;

	if (name[0] == '\0') {
		report(results, measurement, name, NULL);
		return 0;
	}
	error = cbshm_breaker_open(cbctl->client, name, &subject.breaker);
	if (error != 0)
		return error;
	figures = measure(measurement, &subject);
	cbshm_breaker_close(subject.breaker);
	report(results, measurement, name, &figures);
	fflush(stdout);
	return 0;
}

static int run(struct cbctl *cbctl, const struct parsed *parsed)
{
	cJSON *document = NULL, *results = NULL;
	struct found found = {0};
	int error = segment_open(cbctl);

	(void)parsed;
	if (error != 0)
		return error;
	error = cbshm_foreach(cbctl->client, look, &found);
	if (error != 0)
		return fail_library(error, NULL);
	invent(cbctl, found.names[KIND_UNKNOWN]);
	if (output_is_json()) {
		document = json_object(NULL, NULL);
		results = json_array(document, "results");
	} else {
		printf("Nanoseconds a call             median of %d  from - to (10 %%, 90 %%)\n",
		       ROUNDS);
	}
	for (size_t i = 0; i < MEASUREMENTS && error == 0; i++)
		error = measure_one(cbctl, &measurements[i], found.names[measurements[i].kind],
				    results);
	if (error != 0) {
		cJSON_Delete(document);
		return fail_library(error, NULL);
	}
	if (document != NULL)
		json_print(document);
	return STATUS_DONE;
}

const struct command command_bench = {
	.name = "bench",
	.arguments = "",
	.summary = "measure what reads cost here",
	.help = "Measures checks, whole records and look-ups in the live segment, about a second.\n"
		"It only reads, and takes the breakers that there are: what none of them can\n"
		"show, such as a check of an open one, is not measured. How fast the host is at\n"
		"other things, and how the figures compare, `make bench` of the sources tells.\n",
	.least = 0,
	.most = 0,
	.run = run,
};
