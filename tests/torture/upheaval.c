/*
 * upheaval.c - everything that happens to a segment, under readers to which everything happens
 *
 * SPDX-License-Identifier: ISC
 *
 *	upheaval [READS [READERS]]
 *
 * A writer flips breakers as fast as it can, removes them and makes them again, loads, grows the file, ends in order and comes
 * back, changes the capacity (so that readers move to another segment), loses the segment's name, stands still, and is killed.
 * Several processes read, each in several threads that share their handles, interrupted by SIGPROF and SIGALRM whose handlers
 * check as well, and fork children that go on reading. Every answer is held against what was ever true (truth.h), until
 * READS were (10,000,000 if not given).
 *
 * Reads that take over 1 ms and have slept are told. Nearly all of them wait for a fork of their own process, which holds the lock
 * of its memory while it copies it: of 10^8 reads 48 and 49 in two runs, and 2 and 2 in the same runs without forks.
 */
#include "config.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agent/segment_writer_test.h"
#include "tests/support/child.h"
#include "tests/support/segment.h"
#include "tests/torture/truth.h"

#define THREADS 2
#define FILLERS 1500 /* more than the file holds to begin with */

static const char *segment;
static unsigned int seed = 1;
static uint32_t capacity = 4096;

static unsigned int below(unsigned int limit)
{
	return (unsigned int)rand_r(&seed) % limit;
}

static struct segment_writer *open_writer(void)
{
	struct segment_writer *writer = scratch_writer(segment, capacity);

	segment_writer_set_cool_down(writer, 0);
	segment_writer_set_state(writer, CBSHM_SEGMENT_LIVE);
	return writer;
}

static void flip(struct segment_writer *writer, unsigned int count)
{
	for (unsigned int i = 0; i < count; i++) {
		unsigned int breaker = below(TRUTH_BREAKERS);

		if (breaker != 0 && below(8) == 0)
			truth_remove(writer, breaker);
		else
			truth_put(writer, breaker, truth_version(breaker) + 1);
	}
}

/* Breakers that nobody looks at, so that the file has to grow, and the index to be swept. */
static void fill(struct segment_writer *writer)
{
	char name[32];

	for (unsigned int i = 0; i < FILLERS; i++) {
		snprintf(name, sizeof(name), "filler-%u", i);
		struct breaker_row row = row_open(name, 1);
		segment_writer_put(writer, &row, false);
		if (i % 16 == 0)
			flip(writer, 1);
	}
	for (unsigned int i = 0; i < FILLERS; i++) {
		snprintf(name, sizeof(name), "filler-%u", i);
		segment_writer_remove(writer, name);
	}
	segment_writer_publish(writer);
}

static void load(struct segment_writer *writer)
{
	truth_load(writer, 1 | below(1u << TRUTH_BREAKERS));
}

/* Not before everybody has come from the last segment to this one: without a name it cannot be found any more. */
static void lose_name(struct segment_writer *writer)
{
	readers_pass();
	unlink(scratch_path(segment, ""));
	segment_writer_heartbeat(writer);
	flip(writer, 10);
}

/* In a process of its own, which the caller stops, goes on with, and kills: any of it may meet anything. */
static void hang_and_die(void)
{
	struct timespec little = {0, 2000000};

	fflush(stdout);
	pid_t child = child_fork();
	if (child == 0) {
		struct segment_writer *writer = open_writer();

		for (;;)
			flip(writer, 100);
	}
	nanosleep(&little, NULL);
	kill(child, SIGSTOP);
	nanosleep(&little, NULL);
	kill(child, SIGCONT);
	nanosleep(&little, NULL);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

static struct {
	const char *title;
	unsigned long count;
} events[] = {{"loads", 0},
	      {"growths", 0},
	      {"restarts in order", 0},
	      {"changes of capacity", 0},
	      {"lost names", 0},
	      {"writers stopped, continued and killed", 0}};
#define EVENTS (sizeof(events) / sizeof(events[0]))

static struct segment_writer *happen(struct segment_writer *writer, unsigned int event)
{
	events[event].count++;
	switch (event) {
	case 0:
		load(writer);
		return writer;
	case 1:
		fill(writer);
		return writer;
	case 3:
		capacity = 2048 + below(4096);
		break;
	case 4:
		lose_name(writer);
		return writer;
	}
	segment_writer_close(writer);
	if (event == 5)
		hang_and_die();
	return open_writer();
}

int main(int argc, char **argv)
{
	uint64_t reads = argc > 1 ? strtoull(argv[1], NULL, 10) : 10000000;
	unsigned long count = argc > 2 ? strtoul(argv[2], NULL, 10) : 2;
	struct tally sum = {.wrong = ""};
	unsigned long rounds = 0;

	if (argc > 3 || reads == 0 || count == 0 || count > READERS_MAX) {
		fprintf(stderr, "usage: upheaval [READS [READERS (1 to %d)]]\n", READERS_MAX);
		return 2;
	}
	puts("1..1");
	truth_create();
	segment = scratch_segment();
	struct segment_writer *writer = open_writer();
	for (unsigned int i = 0; i < TRUTH_BREAKERS; i++)
		truth_put(writer, i, 1 + i);
	segment_writer_close(writer);
	/* Not with a copy of the writer's lock. */
	readers_start(segment, (unsigned int)count, THREADS, READERS_UPSET);
	writer = open_writer();
	do {
		flip(writer, 1 + below(5000));
		writer = happen(writer, rounds < EVENTS ? (unsigned int)rounds : below(EVENTS));
		rounds++;
		readers_sum(&sum);
	} while (!sum.wrong[0] && (sum.checks + sum.records < reads || rounds < 2 * EVENTS));
	readers_stop(&sum);
	segment_writer_close(writer);
	for (size_t i = 0; i < EVENTS; i++)
		printf("# %lu %s\n", events[i].count, events[i].title);
	tally_print(&sum);
	printf("%sok 1 - upheaval: no reader saw what was never true\n",
	       sum.wrong[0] ? "not " : "");
	return sum.wrong[0] != '\0';
}
