/*
 * torn_reads.c - readers against a writer that does nothing but flip
 *
 * SPDX-License-Identifier: ISC
 *
 *	torn_reads [SECONDS [READERS]]
 *
 * Every field of a row follows from its version, so a record mixed of two versions is seen at once (the
 * form of ck_sequence's validation in Concurrency Kit). Two rounds:
 *
 *	latch	    one record in plain memory, written and read through latch.h alone. Both sides use the same
 *	addresses here, which they do not in a segment mapped twice; only so can ThreadSanitizer see them.
 *	segment     the segment writer and libcbshm: flips, removals, slots used again at once.
 *
 * Build with -fsanitize=thread for a proof of the ordering; without, the plain machine is tested.
 */
#include "config.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "agent/segment_writer_test.h"
#include "cbshm/latch.h"
#include "tests/support/segment.h"

#define READERS_MAX 64
#define BREAKERS    8

static bool stop;
static int readers = 3;

struct tally {
	uint64_t reads;
	uint64_t busy;
	uint64_t gone;
	const char *wrong; /* the first thing that was */
};

static bool stopping(void)
{
	return __atomic_load_n(&stop, __ATOMIC_RELAXED);
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* ---- one latch -------------------------------------------------------------------------- */

static struct cbshm_record record;
static uint64_t word;

static uint64_t mixed(uint64_t version, size_t i)
{
	return i == 0 ? version : version * UINT64_C(0x9e3779b97f4a7c15) + i;
}

static void *latch_reader(void *arg)
{
	struct tally *tally = arg;
	uint64_t newest = 0;

	while (!stopping()) {
		uint64_t words[CBSHM_DETAIL_WORDS], value;

		tally->reads++;
		if (!latch_read(&record, &word, &value, words, CBSHM_DETAIL_WORDS)) {
			tally->busy++;
			continue;
		}
		for (size_t i = 0; i < CBSHM_DETAIL_WORDS; i++) {
			if (words[i] != mixed(words[0], i))
				tally->wrong = "a copy is torn";
		}
		if ((value & 1) != words[0] % 2 || word_epoch(value) != (uint32_t)words[0])
			tally->wrong = "the word is of another version";
		if (words[0] < newest)
			tally->wrong = "an older version after a newer one";
		newest = words[0];
	}
	return NULL;
}

static uint64_t latch_flip(double until)
{
	union latch_detail detail;
	uint64_t version = 0;

	while (seconds() < until) {
		for (int round = 0; round < 256; round++) {
			version++;
			for (size_t i = 0; i < CBSHM_DETAIL_WORDS; i++)
				detail.words[i] = mixed(version, i);
			latch_write(&record, &word,
				    version << CBSHM_WORD_EPOCH_SHIFT |
					    1 << CBSHM_WORD_GENERATION_SHIFT | version % 2,
				    &detail);
			/* Now and then a pause, as a real writer makes. */
			for (unsigned int i = 0; i < version % 64; i++)
				__asm__ volatile("" ::: "memory");
		}
	}
	return version;
}

/* ---- a whole segment -------------------------------------------------------------------- */

static const char *segment;

static void breaker_name(char name[32], unsigned int i)
{
	snprintf(name, 32, "torn-%u", i);
}

/* One reading of one breaker. Number 0 is always there. */
static void look(struct tally *tally, struct cbshm_breaker *handle, bool always, uint64_t *newest)
{
	struct cbshm_decision decision = cbshm_check(handle);
	struct cbshm_state state;
	int error = cbshm_get_state(handle, &state);

	tally->reads++;
	if (always && decision.basis != CBSHM_BASIS_SEGMENT)
		tally->wrong = "a breaker that stays was not found";
	if (decision.basis == CBSHM_BASIS_SEGMENT && decision.disabled != decision.epoch % 2)
		tally->wrong = "decision and epoch do not fit";
	if (error == CBSHM_ERR_BUSY) {
		tally->busy++;
		return;
	}
	if (error == CBSHM_ERR_NOT_FOUND && !always) {
		tally->gone++;
		return;
	}
	if (error)
		tally->wrong = cbshm_strerror(error);
	else if (strcmp(state.name, cbshm_breaker_name(handle)) != 0)
		tally->wrong = "another breaker's name";
	else if (pattern_wrong(&state))
		tally->wrong = pattern_wrong(&state);
	else if (decision.basis == CBSHM_BASIS_SEGMENT && state.version < decision.epoch)
		tally->wrong = "a record older than the decision";
	else if (state.version < *newest)
		tally->wrong = "an older version after a newer one";
	else
		*newest = state.version;
}

static int look_at_each(const struct cbshm_state *state, void *arg)
{
	struct tally *tally = arg;

	tally->reads++;
	if (pattern_wrong(state))
		tally->wrong = pattern_wrong(state);
	return 0;
}

static void *segment_reader(void *arg)
{
	struct tally *tally = arg;
	struct cbshm *client = scratch_client(segment);
	struct cbshm_breaker *handles[BREAKERS];
	uint64_t newest[BREAKERS] = {0};
	char name[32];

	for (unsigned int i = 0; i < BREAKERS; i++) {
		breaker_name(name, i);
		handles[i] = scratch_breaker(client, name);
	}
	while (!stopping()) {
		for (unsigned int i = 0; i < BREAKERS; i++)
			look(tally, handles[i], i == 0, &newest[i]);
		if (cbshm_foreach(client, look_at_each, tally) != 0)
			tally->wrong = "cbshm_foreach()";
	}
	cbshm_close(client);
	return NULL;
}

/*
 * All breakers go through the same versions, so that a slot often passes to a breaker of the version that its last one had.
 */
static uint64_t segment_flip(struct segment_writer *writer, double until)
{
	struct pattern pattern;
	unsigned int seed = 1;
	uint64_t version = 1;
	char name[32];

	while (seconds() < until) {
		version++;
		for (unsigned int i = 0; i < BREAKERS; i++) {
			breaker_name(name, i);
			pattern_fill(&pattern, name, version);
			if (segment_writer_put(writer, &pattern.row, false) < 0)
				return 0;
			if (i != 0 && rand_r(&seed) % 3 == 0)
				segment_writer_remove(writer, name);
		}
	}
	return version * BREAKERS;
}

/* ---- the rounds ------------------------------------------------------------------------- */

static int run(int number, const char *title, void *(*reader)(void *),
	       struct segment_writer *writer, double length)
{
	pthread_t threads[READERS_MAX];
	struct tally tallies[READERS_MAX], sum = {0};

	memset(tallies, 0, sizeof(tallies));
	__atomic_store_n(&stop, false, __ATOMIC_RELAXED);
	for (int i = 0; i < readers; i++)
		pthread_create(&threads[i], NULL, reader, &tallies[i]);
	double until = seconds() + length;
	uint64_t flips = writer ? segment_flip(writer, until) : latch_flip(until);
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	for (int i = 0; i < readers; i++) {
		pthread_join(threads[i], NULL);
		sum.reads += tallies[i].reads;
		sum.busy += tallies[i].busy;
		sum.gone += tallies[i].gone;
		if (tallies[i].wrong)
			sum.wrong = tallies[i].wrong;
	}
	/* Busy is an honest answer, but it must be a rare one. */
	if (!sum.wrong && sum.busy * 20 > sum.reads)
		sum.wrong = "more than one read in twenty found the record busy";
	if (!sum.wrong && (flips < 100 || sum.reads < 100))
		sum.wrong = "hardly anything was done";
	printf("# %llu changes, %d readers: %llu reads, %llu busy, %llu not there\n",
	       (unsigned long long)flips, readers, (unsigned long long)sum.reads,
	       (unsigned long long)sum.busy, (unsigned long long)sum.gone);
	printf("%sok %d - torn reads: %s%s%s\n", sum.wrong ? "not " : "", number, title,
	       sum.wrong ? ": " : "", sum.wrong ? sum.wrong : "");
	fflush(stdout);
	return sum.wrong != NULL;
}

int main(int argc, char **argv)
{
	double length = argc > 1 ? atof(argv[1]) : 2.0;
	struct pattern pattern;
	int failed;

	if (argc > 2)
		readers = atoi(argv[2]);
	if (argc > 3 || length <= 0 || readers < 1 || readers > READERS_MAX) {
		fprintf(stderr, "usage: torn_reads [SECONDS [READERS (1 to %d)]]\n", READERS_MAX);
		return 2;
	}
	puts("1..2");
	for (size_t i = 0; i < CBSHM_DETAIL_WORDS; i++)
		record.copies[0][i] = record.copies[1][i] = mixed(0, i);
	word = 1 << CBSHM_WORD_GENERATION_SHIFT;
	failed = run(1, "one latch in plain memory", latch_reader, NULL, length / 2);

	segment = scratch_segment();
	struct segment_writer *writer = scratch_writer(segment, 16);
	segment_writer_set_cool_down(writer, 0);
	pattern_fill(&pattern, "torn-0", 1);
	put(writer, pattern.row);
	failed +=
		run(2, "a segment whose breakers come and go", segment_reader, writer, length / 2);
	segment_writer_close(writer);
	return failed != 0;
}
