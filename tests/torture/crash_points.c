/*
 * crash_points.c - the segment's writer killed at each of its stores, one after the other
 *
 * SPDX-License-Identifier: ISC
 *
 *	crash_points [STRIDE]
 *
 * The writer is built with CBSHM_CRASH_POINTS here: crash_point() is called before every store that a reader may see, and
 * before every step that changes a file. Each kind of update is begun again and again, and killed by SIGKILL at its first,
 * second, third ... store, until one comes through. After each kill, while nobody owns the segment, engines that were there
 * before and one that has just come must get whole answers which are the old or the new ones; then the next writer takes over,
 * repeats the update as a reload would, and the new answers are the only ones. All the time other processes read.
 *
 * Taking over is killed in the same way at every STRIDE-th of its stores, after kills at every STRIDE-th of the update.
 */
#include "config.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/segment_writer_test.h"
#include "cbshm/latch.h"
#include "tests/support/child.h"
#include "tests/support/segment.h"
#include "tests/torture/truth.h"

#define CAPACITY   16u
#define READERS    1
#define POINTS_MAX 100000

static const char *segment;
static uint32_t capacity = CAPACITY; /* of the writer that comes next */
static unsigned long stride = 61;
static unsigned long kills;

/* ---- the kill --------------------------------------------------------------------------- */

static long countdown; /* 0: no kill */

void crash_point(void)
{
	if (countdown > 0 && --countdown == 0)
		kill(getpid(), SIGKILL);
}

static struct segment_writer *open_writer(void)
{
	struct segment_writer *writer = scratch_writer(segment, capacity);

	segment_writer_set_cool_down(writer, 0);
	return writer;
}

static uint64_t next_version(unsigned int breaker)
{
	return truth_version(breaker) + 1;
}

/* ---- the updates ------------------------------------------------------------------------ */

/*
 * `before` brings the segment to where the update can begin, `update` is what is killed, and `again` does the same anew, as
 * far as it has not been done.
 */
struct scenario {
	const char *title;
	void (*before)(struct segment_writer *writer);
	void (*update)(struct segment_writer *writer);
	void (*again)(struct segment_writer *writer);
	bool takeover; /* opening the segment belongs to the update: update(NULL) */
};

static void nothing(struct segment_writer *writer)
{
	(void)writer;
}

static void put_one(struct segment_writer *writer)
{
	truth_put(writer, 1, next_version(1));
}

static void change_policy(struct segment_writer *writer)
{
	truth_policy(writer);
}

static void ensure_gone(struct segment_writer *writer)
{
	truth_remove(writer, 2);
}

static void ensure_there(struct segment_writer *writer)
{
	truth_put(writer, 2, next_version(2));
}

/* Number 2 leaves its slot to number 3, which is of the version that number 2 was of: nothing but the generation tells. */
static void before_reuse(struct segment_writer *writer)
{
	uint64_t version = next_version(2) > next_version(3) ? next_version(2) : next_version(3);

	truth_put(writer, 2, version);
	truth_remove(writer, 3);
}

static void reuse(struct segment_writer *writer)
{
	uint64_t version = truth_version(2);

	truth_remove(writer, 2);
	truth_put(writer, 3, version > truth_version(3) ? version : next_version(3));
}

static void load_most(struct segment_writer *writer)
{
	truth_load(writer, 0x557);
}

static void load_all(struct segment_writer *writer)
{
	truth_load(writer, 0xfff);
}

/* Breakers come and go, so that tombstones are swept. */
static void come_and_go(struct segment_writer *writer)
{
	for (unsigned int i = 6; i < 10; i++) {
		truth_put(writer, i, next_version(i));
		truth_remove(writer, i);
	}
}

static void set_clock(struct segment_writer *writer)
{
	segment_writer_set_clock(writer, (int64_t)(truth_version(1) % 2) * 1000000, 0);
}

static void confirm(struct segment_writer *writer)
{
	segment_writer_set_state(writer, CBSHM_SEGMENT_DISCONNECTED);
	segment_writer_set_state(writer, CBSHM_SEGMENT_LIVE);
	segment_writer_heartbeat(writer);
	segment_writer_database_confirmed(writer);
	segment_writer_publish(writer);
}

static void end(struct segment_writer *writer)
{
	segment_writer_close(writer);
}

static void take_over(struct segment_writer *unused)
{
	(void)unused;
	segment_writer_close(open_writer());
}

/* ---- one kill --------------------------------------------------------------------------- */

static struct witness *before_all;

/* In a child: the update, killed at store `point`. True if that came before its end. */
static bool run_killed(const struct scenario *scenario, unsigned long point)
{
	int status;

	fflush(stdout);
	pid_t child = child_fork();
	if (child == 0) {
		struct segment_writer *writer = scenario->takeover ? NULL : open_writer();

		countdown = (long)point;
		scenario->update(writer);
		countdown = 0;
		_exit(0);
	}
	if (child < 0 || waitpid(child, &status, 0) != child) {
		printf("Bail out! no child: %s\n", strerror(errno));
		exit(99);
	}
	if (WIFEXITED(status) && WEXITSTATUS(status) != 0) {
		printf("Bail out! the writer ended with %d\n", WEXITSTATUS(status));
		exit(99);
	}
	kills += WIFSIGNALED(status);
	return WIFSIGNALED(status);
}

/* With the writer dead nothing changes: no answer may be "busy". */
static void look_around(struct tally *tally)
{
	struct witness *late = witness_open(segment);

	witness_look(before_all, tally);
	witness_list(before_all, tally);
	witness_look(late, tally);
	witness_list(late, tally);
	witness_close(late);
	if (tally->busy != 0 && !tally->wrong[0])
		snprintf(tally->wrong, sizeof(tally->wrong), "busy, and nobody writes");
}

static bool survives(const struct scenario *scenario, unsigned long point, bool *killed,
		     struct tally *tally)
{
	struct segment_writer *writer = open_writer();

	scenario->before(writer);
	segment_writer_close(writer);
	*killed = run_killed(scenario, point);
	look_around(tally);
	writer = open_writer();
	look_around(tally);
	scenario->again(writer);
	look_around(tally);
	segment_writer_close(writer);
	if (tally->wrong[0])
		printf("# killed at store %lu: %s\n", point, tally->wrong);
	return !tally->wrong[0];
}

static bool sweep(const struct scenario *scenario, struct tally *tally)
{
	bool killed = true;

	for (unsigned long point = 1; killed && point < POINTS_MAX; point++) {
		if (!survives(scenario, point, &killed, tally))
			return false;
		if (!killed)
			printf("# %lu stores\n", point - 1);
	}
	return !killed;
}

/* ---- kills of the takeover after a kill ------------------------------------------------- */

static bool killed_twice(const struct scenario *first, const struct scenario *second,
			 unsigned long point, struct tally *tally)
{
	bool killed = true;

	for (unsigned long next = 1 + point % stride; killed; next += stride) {
		struct segment_writer *writer = open_writer();

		first->before(writer);
		segment_writer_close(writer);
		if (!run_killed(first, point))
			return true;
		killed = run_killed(second, next);
		look_around(tally);
		writer = open_writer();
		first->again(writer);
		segment_writer_close(writer);
		if (tally->wrong[0]) {
			printf("# killed at store %lu, and at store %lu of taking over: %s\n",
			       point, next, tally->wrong);
			return false;
		}
	}
	return true;
}

/* ---- the rounds ------------------------------------------------------------------------- */

static const struct scenario scenarios[] = {
	{"an update", nothing, put_one, put_one, false},
	{"a change of every policy, without new versions", nothing, change_policy, change_policy,
	 false},
	{"a breaker that comes", ensure_gone, ensure_there, ensure_there, false},
	{"a breaker that goes", ensure_there, ensure_gone, ensure_gone, false},
	{"a slot that passes to another breaker", before_reuse, reuse, reuse, false},
	{"a load without some of the breakers", load_all, load_most, load_most, false},
	{"tombstones", load_all, come_and_go, come_and_go, false},
	{"another time of the database's clock", load_all, set_clock, set_clock, false},
	{"state, heartbeat, confirmation", nothing, confirm, confirm, false},
	{"the writer's end", nothing, end, nothing, false},
	{"taking over", nothing, take_over, nothing, true},
};
#define SCENARIOS (sizeof(scenarios) / sizeof(scenarios[0]))

static int result(int number, const char *title, bool good)
{
	printf("%sok %d - killed at each store: %s\n", good ? "" : "not ", number, title);
	fflush(stdout);
	return !good;
}

/*
 * Every opening asks for another capacity, so that each makes a new segment and moves the readers to it. Then a breaker
 * changes: who has stayed in a segment that the name has left says what is true no more.
 */
static bool sweep_replacement(struct tally *tally)
{
	const struct scenario replacement = {"", nothing, take_over, nothing, true};
	bool killed = true;

	for (unsigned long point = 1; killed; point++) {
		capacity = CAPACITY + (unsigned int)(point % 7);
		struct segment_writer *writer = open_writer();
		segment_writer_close(writer);
		capacity += 8;
		killed = run_killed(&replacement, point);
		look_around(tally);
		writer = open_writer();
		look_around(tally);
		put_one(writer);
		look_around(tally);
		segment_writer_close(writer);
		if (tally->wrong[0]) {
			printf("# killed at store %lu: %s\n", point, tally->wrong);
			return false;
		}
		if (!killed)
			printf("# %lu stores\n", point - 1);
	}
	capacity = CAPACITY;
	segment_writer_close(open_writer());
	return true;
}

static bool sweep_takeovers(struct tally *tally)
{
	const struct scenario *taking_over = &scenarios[SCENARIOS - 1];
	static const int firsts[] = {0, 2, 3, 4};

	for (size_t i = 0; i < sizeof(firsts) / sizeof(firsts[0]); i++) {
		const struct scenario *first = &scenarios[firsts[i]];

		for (unsigned long point = 1 + i; point < 260; point += stride) {
			if (!killed_twice(first, taking_over, point, tally))
				return false;
		}
	}
	return true;
}

int main(int argc, char **argv)
{
	struct tally tally = {.wrong = ""}, sum;
	int failed = 0, number = 0;

	if (argc > 1)
		stride = strtoul(argv[1], NULL, 10);
	if (argc > 2 || stride == 0) {
		fprintf(stderr, "usage: crash_points [STRIDE]\n");
		return 2;
	}
	printf("1..%zu\n", SCENARIOS + 3);
	truth_create();
	segment = scratch_segment();
	struct segment_writer *writer = open_writer();
	for (unsigned int i = 0; i < TRUTH_BREAKERS; i++)
		truth_put(writer, i, 1 + i);
	segment_writer_close(writer);
	before_all = witness_open(segment);
	readers_start(segment, READERS, 1, READERS_CALM);
	for (size_t i = 0; i < SCENARIOS && !failed; i++)
		failed += result(++number, scenarios[i].title, sweep(&scenarios[i], &tally));
	if (!failed)
		failed += result(++number, "a segment that is replaced", sweep_replacement(&tally));
	if (!failed)
		failed += result(++number, "taking over after a kill", sweep_takeovers(&tally));
	readers_stop(&sum);
	printf("# %lu kills\n", kills);
	tally_print(&sum);
	failed += result(++number, "readers meanwhile", !sum.wrong[0]);
	witness_close(before_all);
	return failed != 0;
}
