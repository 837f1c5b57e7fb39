/*
 * test_index.c - the index stays short under years of coming and going
 *
 * SPDX-License-Identifier: ISC
 *
 * The segment writer never builds the index anew; what it does about tombstones has to be enough.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>

#include "agent/segment_writer_test.h"
#include "cbshm/latch.h"
#include "libcbshm/index.h"
#include "tests/support/segment.h"
#include "tests/support/tap.h"

struct searches {
	double hit;   /* buckets looked at to find a breaker, on average */
	double miss;  /* to learn that there is none, on average over all beginnings */
	uint32_t run; /* the longest */
	uint32_t tombstones;
};

static struct searches measure(const struct segment_view *view)
{
	const uint64_t *index = segment_index(view);
	uint32_t size = view->layout.index_size, mask = size - 1, live = 0;
	struct searches searches = {0};

	for (uint32_t bucket = 0; bucket < size; bucket++) {
		uint64_t value = word_load(&index[bucket]);
		uint32_t run = 0;

		while (run < size && word_load(&index[(bucket + run) & mask]) != CBSHM_BUCKET_EMPTY)
			run++;
		searches.miss += (double)run + 1;
		if (run > searches.run)
			searches.run = run;
		searches.tombstones += value == CBSHM_BUCKET_TOMBSTONE;
		if (value == CBSHM_BUCKET_EMPTY || value == CBSHM_BUCKET_TOMBSTONE)
			continue;
		struct name_key key = {.length = 0};
		uint32_t slot = (uint32_t)value - 1;
		live++;
		if (index_slot_name(view, slot,
				    word_generation(word_load(segment_word(view, slot))), &key))
			searches.hit += ((bucket - (uint32_t)index_hash(view, &key)) & mask) + 1;
	}
	searches.miss /= size;
	searches.hit /= live ? live : 1;
	return searches;
}

static void note(const char *when, const struct searches *searches)
{
	tap_note("%s: hit %.2f, miss %.2f, longest %u, tombstones %u", when, searches->hit,
		 searches->miss, searches->run, searches->tombstones);
}

/* Half of the buckets live, which is as many as there can be, and each breaker replaced hundreds of times. */
static void test_churn(void)
{
	enum { COUNT = 2048, ROUNDS = 600000 };
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, COUNT);
	struct segment_view view = scratch_map(name);
	static unsigned int names[COUNT];
	unsigned int seed = 1, next = 0;
	char breaker[32];

	segment_writer_set_cool_down(writer, 0);
	for (unsigned int i = 0; i < COUNT; i++) {
		names[i] = next++;
		snprintf(breaker, sizeof(breaker), "n%u", names[i]);
		struct breaker_row row = row_closed(breaker, 1);
		CU_ASSERT_EQUAL_FATAL(segment_writer_put(writer, &row, false), 1);
	}
	struct searches fresh = measure(&view);
	note("fresh", &fresh);
	for (unsigned int round = 0; round < ROUNDS; round++) {
		unsigned int i = (unsigned int)rand_r(&seed) % COUNT;

		snprintf(breaker, sizeof(breaker), "n%u", names[i]);
		CU_ASSERT_EQUAL_FATAL(segment_writer_remove(writer, breaker), 1);
		names[i] = next++;
		snprintf(breaker, sizeof(breaker), "n%u", names[i]);
		struct breaker_row row = row_closed(breaker, 1);
		CU_ASSERT_EQUAL_FATAL(segment_writer_put(writer, &row, false), 1);
	}
	struct searches used = measure(&view);
	note("after the churn", &used);
	CU_ASSERT(used.hit < 4);
	CU_ASSERT(used.miss < 60);
	CU_ASSERT(used.run < 1000);
	for (unsigned int i = 0; i < COUNT; i++) {
		snprintf(breaker, sizeof(breaker), "n%u", names[i]);
		CU_ASSERT_EQUAL(segment_writer_version(writer, breaker), 1);
		CU_ASSERT_EQUAL(segment_writer_remove(writer, breaker), 1);
	}
	/* Empty again means empty: no tombstone outlives its run. */
	struct searches empty = measure(&view);
	CU_ASSERT_EQUAL(empty.tombstones, 0);
	CU_ASSERT_EQUAL(empty.run, 0);
	scratch_unmap(&view);
	segment_writer_close(writer);
}

/* Fill and empty, over and over: what a full load does. */
static void test_tides(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 256);
	struct segment_view view = scratch_map(name);
	unsigned int next = 0;
	char breaker[32];

	for (unsigned int tide = 0; tide < 200; tide++) {
		segment_writer_load_begin(writer);
		segment_writer_load_end(writer);
		CU_ASSERT_EQUAL(segment_writer_breakers(writer), 0);
		CU_ASSERT_EQUAL(measure(&view).tombstones, 0);
		for (unsigned int i = 0; i < 256; i++) {
			snprintf(breaker, sizeof(breaker), "t%u", next++);
			struct breaker_row row = row_closed(breaker, 1);
			CU_ASSERT_EQUAL(segment_writer_put(writer, &row, false), 1);
		}
	}
	scratch_unmap(&view);
	segment_writer_close(writer);
}

/* A name counts only under the generation with which it was looked for. */
static void test_generation(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 16);
	struct segment_view view = scratch_map(name);
	struct name_key key;

	segment_writer_set_cool_down(writer, 0);
	put(writer, row_closed("old", 1));
	uint32_t old = word_generation(word_load(segment_word(&view, 0)));
	CU_ASSERT(index_slot_name(&view, 0, old, &key));
	segment_writer_remove(writer, "old");
	CU_ASSERT(!index_slot_name(&view, 0, old, &key));
	put(writer, row_closed("new", 1));
	CU_ASSERT(!index_slot_name(&view, 0, old, &key));
	CU_ASSERT(index_slot_name(&view, 0, word_generation(word_load(segment_word(&view, 0))),
				  &key));
	scratch_unmap(&view);
	segment_writer_close(writer);
}

int main(void)
{
	CU_initialize_registry();
	CU_pSuite suite = CU_add_suite("index", NULL, NULL);
	CU_add_test(suite, "searches stay short under churn at the highest load", test_churn);
	CU_add_test(suite, "searches stay short under full loads", test_tides);
	CU_add_test(suite, "a name of another generation does not count", test_generation);
	return tap_run_cunit();
}
