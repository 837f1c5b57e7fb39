/*
 * many.c - does it matter how many breakers there are?
 *
 * SPDX-License-Identifier: ISC
 *
 *	many [--repetitions N] [--iterations N] [--json FILE]
 *
 * Segments of full capacity with 1, 10^3 and 10^6 breakers. One breaker of each is checked all the time; and names are
 * resolved, always the same one, which shows the work, and names drawn at random, which shows the caches too: of a
 * million records hardly one is in them. 10^6 breakers take 1.1 GB of /dev/shm; without that room they are left out.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/statvfs.h>

#include "libcbshm/index.h"
#include "libcbshm/name.h"
#include "tests/bench/measure.h"
#include "tests/support/segment.h"

#define NEEDED_BYTES (UINT64_C(1300) << 20)
#define SIZES        3
#define DRAWN        4096

static const uint32_t sizes[SIZES] = {1, 1000, 1000000};

struct crowd {
	struct cbshm *client;
	struct cbshm_breaker *hot;
	struct segment_view view;
	struct name_key hot_key;
	struct name_key drawn[DRAWN];
};

static void crowd_name(char name[32], uint32_t i)
{
	snprintf(name, 32, "breaker-%u", (unsigned int)i);
}

static struct crowd *crowd_open(uint32_t size)
{
	struct crowd *crowd = bench_memory(1, sizeof(*crowd));
	const char *segment = scratch_segment();
	struct segment_writer *writer = scratch_writer(segment, CBSHM_CAPACITY_MAX);
	unsigned int seed = 1;
	char name[32];

	for (uint32_t i = 0; i < size; i++) {
		struct breaker_row row = row_closed(name, 1);

		crowd_name(name, i);
		if (segment_writer_put(writer, &row, false) != 1) {
			fprintf(stderr, "no room for breaker %u\n", (unsigned int)i);
			exit(2);
		}
	}
	segment_writer_close(writer);
	crowd->client = scratch_client(segment);
	crowd->view = scratch_map(segment);
	crowd_name(name, size / 2);
	crowd->hot = scratch_breaker(crowd->client, name);
	name_key_set(&crowd->hot_key, name);
	for (int i = 0; i < DRAWN; i++) {
		crowd_name(name, (uint32_t)(rand_r(&seed) % (int)size));
		name_key_set(&crowd->drawn[i], name);
	}
	return crowd;
}

MEASURED static uint64_t run_hot(const void *arg, uint64_t iterations)
{
	const struct crowd *crowd = arg;
	const struct cbshm_breaker *breaker = crowd->hot;
	uint64_t open = 0;

	for (uint64_t i = 0; i < iterations; i++) {
		if (__builtin_expect(cbshm_is_disabled(breaker), 0))
			open++;
		FORGET();
	}
	return open;
}

/* What cbshm_breaker_open() does beside making the handle. */
MEASURED static uint64_t run_resolve(const void *arg, uint64_t iterations)
{
	const struct crowd *crowd = arg;
	struct index_hit hit;
	uint64_t found = 0;

	for (uint64_t i = 0; i < iterations; i++)
		found += index_find(&crowd->view, &crowd->hot_key, &hit);
	return found;
}

MEASURED static uint64_t run_resolve_drawn(const void *arg, uint64_t iterations)
{
	static unsigned int next;
	const struct crowd *crowd = arg;
	struct index_hit hit;
	uint64_t found = 0;

	for (uint64_t i = 0; i < iterations; i++)
		found += index_find(&crowd->view, &crowd->drawn[next++ % DRAWN], &hit);
	return found;
}

static bool room_for_all(void)
{
	struct statvfs status;

	return statvfs(SEGMENT_DIRECTORY, &status) == 0 &&
	       (uint64_t)status.f_bavail * status.f_frsize >= NEEDED_BYTES;
}

static const struct {
	const char *key, *title, *beside_title;
	measured_run *run;
	uint64_t share;
	int size;
} measurements[] = {
	{"hot_1e3", "hot breaker of 10^3", "of 1", run_hot, 1, 1},
	{"resolve_1e3", "same name of 10^3", "of 1", run_resolve, 100, 1},
	{"resolve_drawn_1e3", "any name of 10^3", "of 1", run_resolve_drawn, 100, 1},
	{"hot_1e6", "hot breaker of 10^6", "of 1", run_hot, 1, 2},
	{"resolve_1e6", "same name of 10^6", "of 1", run_resolve, 100, 2},
	{"resolve_drawn_1e6", "any name of 10^6", "of 1", run_resolve_drawn, 100, 2},
};

#define MEASUREMENTS (sizeof(measurements) / sizeof(measurements[0]))

int main(int argc, char **argv)
{
	struct bench_options options = {.repetitions = 501, .iterations = 100000};
	struct crowd *crowds[SIZES] = {NULL};
	struct pair pairs[MEASUREMENTS];
	size_t count = 0;

	if (!bench_options_parse(&options, argc, argv))
		return 2;
	int filled = room_for_all() ? SIZES : SIZES - 1;
	if (filled != SIZES)
		printf("SKIP 10^6 breakers: less than %llu MB of room in %s\n",
		       (unsigned long long)(NEEDED_BYTES >> 20), SEGMENT_DIRECTORY);
	for (int i = 0; i < filled; i++)
		crowds[i] = crowd_open(sizes[i]);
	stay_here();
	for (size_t m = 0; m < MEASUREMENTS; m++) {
		uint64_t iterations = options.iterations / measurements[m].share;
		const struct crowd *crowd = crowds[measurements[m].size];

		if (crowd)
			pairs[count++] = (struct pair){
				.key = measurements[m].key,
				.title = measurements[m].title,
				.beside_title = measurements[m].beside_title,
				.run = {measurements[m].run, crowd, iterations, NULL},
				.beside = {measurements[m].run, crowds[0], iterations, NULL}};
	}
	measure(pairs, count, options.repetitions);
	print_table(pairs, count, options.repetitions);
	for (int i = 0; i < filled; i++) {
		cbshm_close(crowds[i]->client);
		scratch_unmap(&crowds[i]->view);
	}
	return options.json
		       ? print_json(options.json, "many", pairs, count, options.repetitions, "")
		       : 0;
}
