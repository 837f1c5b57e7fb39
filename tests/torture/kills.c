/*
 * kills.c - the segment's writer killed at random moments, thousands of times
 *
 * SPDX-License-Identifier: ISC
 *
 *	kills [KILLS [READERS]]
 *
 * What crash_points.c does at each store in turn, here happens when it happens: a writer changes breakers as fast as it can,
 * dies of SIGKILL, and the next one takes over, under processes that read without a pause and hold every answer against what
 * was ever true (truth.h). Every second kill comes from outside at a random time; it mostly meets the writer between two
 * records, so the others come at a random store. Counted are those that left a record half written (its
 * sequence is odd, or its two copies differ): a third of all, at least, or little would have been shown.
 */
#include "config.h"

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agent/segment_writer_test.h"
#include "cbshm/latch.h"
#include "tests/support/child.h"
#include "tests/support/segment.h"
#include "tests/torture/truth.h"

#define CAPACITY 16u

static const char *segment;
static unsigned int seed = 1;

static struct segment_writer *open_writer(void)
{
	struct segment_writer *writer = scratch_writer(segment, CAPACITY);

	segment_writer_set_cool_down(writer, 0);
	return writer;
}

static long countdown; /* stores until the kill; 0: none */

void crash_point(void)
{
	if (countdown > 0 && --countdown == 0)
		kill(getpid(), SIGKILL);
}

/* Mostly updates; now and then one that goes or comes. */
static void change_on(volatile uint32_t *begun, long stores)
{
	struct segment_writer *writer = open_writer();

	countdown = stores;
	*begun = 1;
	for (;;) {
		unsigned int breaker = (unsigned int)rand_r(&seed) % TRUTH_BREAKERS;

		if (breaker != 0 && rand_r(&seed) % 16 == 0)
			truth_remove(writer, breaker);
		else
			truth_burst(writer, breaker, 1 + (unsigned int)rand_r(&seed) % 200);
	}
}

static unsigned int half_written(void)
{
	struct segment_view view = scratch_map(segment);
	unsigned int found = 0;

	for (uint32_t slot = 0; slot < segment_allocated(&view) && !found; slot++) {
		const struct cbshm_record *record = segment_record(&view, slot);

		found = record->sequence % 2 != 0 || memcmp(record->copies[0], record->copies[1],
							    sizeof(record->copies[0])) != 0;
	}
	scratch_unmap(&view);
	return found;
}

/* Returns whether the kill came in the middle of a record. */
static unsigned int one_kill(volatile uint32_t *begun)
{
	/* Half of them soon after the writer has taken over, the others any time within 2 ms. */
	long after = rand_r(&seed) % 2 ? rand_r(&seed) % 2000000 : rand_r(&seed) % 50000;
	struct timespec pause = {0, after};

	bool outside = rand_r(&seed) % 2;

	*begun = 0;
	seed++;
	pid_t child = child_fork();
	if (child == 0) {
		change_on(begun, outside ? 0 : 1 + rand_r(&seed) % 20000);
		_exit(1);
	}
	if (outside) {
		while (!*begun)
			sched_yield();
		nanosleep(&pause, NULL);
		kill(child, SIGKILL);
	}
	waitpid(child, NULL, 0);
	return half_written();
}

int main(int argc, char **argv)
{
	unsigned long kills = argc > 1 ? strtoul(argv[1], NULL, 10) : 300;
	unsigned long count = argc > 2 ? strtoul(argv[2], NULL, 10) : 2;
	unsigned long middle = 0, done = 0;
	struct tally sum = {.wrong = ""};

	if (argc > 3 || kills == 0 || count == 0 || count > READERS_MAX) {
		fprintf(stderr, "usage: kills [KILLS [READERS (1 to %d)]]\n", READERS_MAX);
		return 2;
	}
	puts("1..2");
	truth_create();
	segment = scratch_segment();
	struct segment_writer *writer = open_writer();
	for (unsigned int i = 0; i < TRUTH_BREAKERS; i++)
		truth_put(writer, i, 1 + i);
	segment_writer_close(writer);
	uint32_t *begun = mmap(NULL, sizeof(*begun), PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (begun == MAP_FAILED)
		return 99;
	readers_start(segment, (unsigned int)count, 1, READERS_BUSY);
	for (; done < kills && !sum.wrong[0]; done++) {
		middle += one_kill(begun);
		readers_sum(&sum);
	}
	readers_stop(&sum);
	segment_writer_close(open_writer());
	printf("# %lu kills, %lu of them left a record half written\n", done, middle);
	tally_print(&sum);
	printf("%sok 1 - killed at random: no reader saw what was never true\n",
	       sum.wrong[0] ? "not " : "");
	printf("%sok 2 - killed at random: a third of the kills, at least, came in the middle of a "
	       "record\n",
	       middle * 3 < done ? "not " : "");
	return sum.wrong[0] || middle * 3 < done;
}
