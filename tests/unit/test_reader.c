/*
 * test_reader.c - what readers see of a real segment writer
 *
 * SPDX-License-Identifier: ISC
 *
 * Also from processes forked before and after a handle was made.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
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
#include "tests/support/tap.h"

static void sleep_us(int64_t us)
{
	struct timespec time = {us / 1000000, us % 1000000 * 1000};

	nanosleep(&time, NULL);
}

/* Runs `look` in a child; what it returns. */
static int in_child(int (*look)(void *arg), void *arg)
{
	int status;

	fflush(stdout);
	pid_t child = child_fork();
	if (child == 0)
		_exit(look(arg));
	if (child < 0 || waitpid(child, &status, 0) < 0 || !WIFEXITED(status))
		return -1;
	return WEXITSTATUS(status);
}

struct other {
	const char *segment;
	const char *breaker;
	struct cbshm_breaker *handle; /* NULL: opens one itself */
};

/* 0 closed, 1 open; + 2 times the basis */
static int look(void *arg)
{
	struct other *other = arg;
	struct cbshm_breaker *handle = other->handle;

	if (!handle)
		handle = scratch_breaker(scratch_client(other->segment), other->breaker);
	struct cbshm_decision decision = cbshm_check(handle);
	return decision.disabled + 2 * decision.basis;
}

static void test_open_and_close(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 64);
	struct cbshm *client = scratch_client(name);
	struct cbshm_decision decision;

	put(writer, row_closed("a", 1));
	struct cbshm_breaker *breaker = scratch_breaker(client, "a");
	struct other inherited = {name, "a", breaker}, own = {name, "a", NULL};
	CU_ASSERT_STRING_EQUAL(cbshm_breaker_name(breaker), "a");
	CU_ASSERT(!cbshm_is_disabled(breaker));
	CU_ASSERT(cbshm_is_closed(breaker));
	decision = cbshm_check(breaker);
	CU_ASSERT_EQUAL(decision.epoch, 1);
	CU_ASSERT_EQUAL(decision.basis, CBSHM_BASIS_SEGMENT);
	CU_ASSERT_EQUAL(in_child(look, &inherited), 0);
	CU_ASSERT_EQUAL(in_child(look, &own), 0);

	put(writer, row_open("a", 2));
	CU_ASSERT(cbshm_is_disabled(breaker));
	CU_ASSERT(cbshm_is_disabled_call(breaker));
	CU_ASSERT(cbshm_is_open(breaker));
	decision = cbshm_check(breaker);
	CU_ASSERT(decision.disabled);
	CU_ASSERT_EQUAL(decision.epoch, 2);
	CU_ASSERT_EQUAL(decision.basis, CBSHM_BASIS_SEGMENT);
	CU_ASSERT_EQUAL(in_child(look, &inherited), 1);
	CU_ASSERT_EQUAL(in_child(look, &own), 1);

	put(writer, row_closed("a", 3));
	CU_ASSERT(!cbshm_is_disabled(breaker));
	CU_ASSERT_EQUAL(cbshm_check(breaker).epoch, 3);
	CU_ASSERT_EQUAL(in_child(look, &inherited), 0);

	/* The word that a closed breaker leaves has no flags, whatever its policy says. */
	struct segment_view view = scratch_map(name);
	CU_ASSERT_EQUAL((uint32_t)word_load(segment_word(&view, 0)) & 0x3f, 0);
	scratch_unmap(&view);
	cbshm_close(client);
	segment_writer_close(writer);
}

static void test_versions(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 64);
	struct cbshm *client = scratch_client(name);
	struct breaker_row old = row_open("a", 4), newer = row_closed("a", 5);
	struct breaker_row big = row_open("a", UINT64_C(0x1fffffffe));

	CU_ASSERT_EQUAL(segment_writer_put(writer, &newer, false), 1);
	struct cbshm_breaker *breaker = scratch_breaker(client, "a");
	CU_ASSERT_EQUAL(segment_writer_put(writer, &old, false), 0);
	CU_ASSERT_EQUAL(segment_writer_put(writer, &newer, false), 0);
	CU_ASSERT(!cbshm_is_disabled(breaker));
	CU_ASSERT_EQUAL(segment_writer_version(writer, "a"), 5);
	CU_ASSERT_EQUAL(segment_writer_version(writer, "b"), 0);
	/* A failover may go back: then the database is right. */
	CU_ASSERT_EQUAL(segment_writer_put(writer, &old, true), 1);
	CU_ASSERT_EQUAL(segment_writer_put(writer, &old, true), 0);
	CU_ASSERT(cbshm_is_disabled(breaker));
	CU_ASSERT_EQUAL(cbshm_check(breaker).epoch, 4);
	/* Versions beyond 32 bits. */
	CU_ASSERT_EQUAL(segment_writer_put(writer, &big, false), 1);
	CU_ASSERT_EQUAL(cbshm_check(breaker).epoch, UINT32_C(0xfffffffe));
	struct cbshm_state state;
	CU_ASSERT_EQUAL(cbshm_get_state(breaker, &state), 0);
	CU_ASSERT_EQUAL(state.version, UINT64_C(0x1fffffffe));
	struct breaker_row bad = row_open("a\n", 1);
	CU_ASSERT_EQUAL(segment_writer_put(writer, &bad, false), -EINVAL);
	CU_ASSERT_EQUAL(segment_writer_remove(writer, "a\n"), 0);
	cbshm_close(client);
	segment_writer_close(writer);
}

static void test_unknown_appears(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 64);
	struct cbshm *client = scratch_client(name);
	struct cbshm_breaker *breaker = scratch_breaker(client, "late");
	struct cbshm_state state;

	for (int i = 0; i < 3; i++) {
		CU_ASSERT(!cbshm_is_disabled(breaker));
		CU_ASSERT_EQUAL(cbshm_check(breaker).basis, CBSHM_BASIS_UNKNOWN);
		CU_ASSERT_EQUAL(cbshm_check(breaker).epoch, 0);
	}
	CU_ASSERT_EQUAL(cbshm_get_state(breaker, &state), CBSHM_ERR_NOT_FOUND);
	put(writer, row_open("another", 9));
	CU_ASSERT_EQUAL(cbshm_check(breaker).basis, CBSHM_BASIS_UNKNOWN);
	put(writer, row_open("late", 7));
	CU_ASSERT(cbshm_is_disabled(breaker));
	CU_ASSERT_EQUAL(cbshm_check(breaker).basis, CBSHM_BASIS_SEGMENT);
	CU_ASSERT_EQUAL(cbshm_get_state(breaker, &state), 0);
	cbshm_close(client);
	segment_writer_close(writer);
}

static void test_deleted_and_recreated(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 64);
	struct cbshm *client = scratch_client(name);
	struct cbshm_breaker *breaker = scratch_breaker(client, "a");
	struct cbshm_state state;

	for (uint64_t version = 1; version < 20; version += 2) {
		put(writer, row_open("a", version));
		CU_ASSERT(cbshm_is_disabled(breaker));
		CU_ASSERT_EQUAL(segment_writer_remove(writer, "a"), 1);
		CU_ASSERT_EQUAL(segment_writer_remove(writer, "a"), 0);
		CU_ASSERT(!cbshm_is_disabled(breaker));
		CU_ASSERT_EQUAL(cbshm_check(breaker).basis, CBSHM_BASIS_UNKNOWN);
		CU_ASSERT_EQUAL(cbshm_get_state(breaker, &state), CBSHM_ERR_NOT_FOUND);
		put(writer, row_closed("a", version + 1));
		CU_ASSERT_EQUAL(cbshm_check(breaker).basis, CBSHM_BASIS_SEGMENT);
		CU_ASSERT_EQUAL(cbshm_check(breaker).epoch, version + 1);
		segment_writer_remove(writer, "a");
	}
	cbshm_close(client);
	segment_writer_close(writer);
}

/* A handle on a removed breaker whose slot serves another one now. */
static void test_slot_reuse(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 16);
	struct cbshm *client = scratch_client(name);
	struct cbshm_state state;

	segment_writer_set_cool_down(writer, 0);
	put(writer, row_closed("old", 1));
	struct cbshm_breaker *stale = scratch_breaker(client, "old");
	CU_ASSERT_EQUAL(cbshm_check(stale).basis, CBSHM_BASIS_SEGMENT);
	const uint64_t *word = stale->word;
	segment_writer_remove(writer, "old");
	put(writer, row_open("new", 1));
	struct cbshm_breaker *fresh = scratch_breaker(client, "new");
	CU_ASSERT_PTR_EQUAL(fresh->word, word);
	CU_ASSERT(cbshm_is_disabled(fresh));
	CU_ASSERT(!cbshm_is_disabled(stale));
	CU_ASSERT_EQUAL(cbshm_check(stale).basis, CBSHM_BASIS_UNKNOWN);
	CU_ASSERT_EQUAL(cbshm_get_state(stale, &state), CBSHM_ERR_NOT_FOUND);
	CU_ASSERT_EQUAL(cbshm_get_state(fresh, &state), 0);
	CU_ASSERT_STRING_EQUAL(state.name, "new");
	cbshm_close(client);
	segment_writer_close(writer);
}

/*
 * What a thread can see while another one moves a handle from a slot to the index word: the old word with the new
 * `live`. The newest generation, which is in that, is the one of the slot's next breaker.
 */
static void test_half_moved_handle(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 16);
	struct cbshm *client = scratch_client(name);
	struct breaker_row rows[] = {row_open("new", 1), row_open("new", 2), row_closed("new", 3)};
	struct cbshm_state state;

	segment_writer_set_cool_down(writer, 0);
	put(writer, row_closed("old", 1));
	struct cbshm_breaker *stale = scratch_breaker(client, "old");
	const uint64_t *word = stale->word;
	segment_writer_remove(writer, "old");
	rows[1].disabled_until = scratch_now() + 3600000000;
	rows[1].auto_recover = true;
	for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
		put(writer, rows[i]);
		CU_ASSERT_EQUAL(cbshm_check(stale).basis, CBSHM_BASIS_UNKNOWN);
		CU_ASSERT_PTR_NOT_EQUAL_FATAL(stale->word, word);
		uint32_t live = stale->live;
		CU_ASSERT_EQUAL(word_generation(live), word_generation(word_load(word)));

		stale->word = word;
		CU_ASSERT(!cbshm_is_disabled(stale));
		stale->word = word;
		stale->live = live;
		CU_ASSERT_EQUAL(cbshm_check(stale).basis, CBSHM_BASIS_UNKNOWN);
		stale->word = word;
		stale->live = live;
		CU_ASSERT_EQUAL(cbshm_get_state(stale, &state), CBSHM_ERR_NOT_FOUND);
	}
	cbshm_close(client);
	segment_writer_close(writer);
}

static void test_cool_down_and_full(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 16);
	struct cbshm *client = scratch_client(name);
	char breaker[32];

	put(writer, row_closed("first", 1));
	const uint64_t *word = scratch_breaker(client, "first")->word;
	segment_writer_remove(writer, "first");
	for (int i = 0; i < 16; i++) {
		CU_ASSERT(segment_writer_has_room(writer));
		snprintf(breaker, sizeof(breaker), "b%d", i);
		put(writer, row_open(breaker, 1));
		/* The resting slot is taken last, when nothing else is left. */
		CU_ASSERT_EQUAL(scratch_breaker(client, breaker)->word == word, i == 15);
	}
	CU_ASSERT(!segment_writer_has_room(writer));
	CU_ASSERT_EQUAL(segment_writer_breakers(writer), 16);
	struct breaker_row more = row_open("more", 1);
	CU_ASSERT_EQUAL(segment_writer_put(writer, &more, false), -ENOSPC);
	more.name = "b3";
	more.version = 2;
	CU_ASSERT_EQUAL(segment_writer_put(writer, &more, false), 1);
	segment_writer_remove(writer, "b7");
	more.name = "more";
	CU_ASSERT_EQUAL(segment_writer_put(writer, &more, false), 1);
	CU_ASSERT(cbshm_is_disabled(scratch_breaker(client, "more")));
	cbshm_close(client);
	segment_writer_close(writer);
}

static int count_states(const struct cbshm_state *state, void *arg)
{
	unsigned int *count = arg;

	CU_ASSERT_PTR_NULL(pattern_wrong(state));
	++*count;
	return 0;
}

static int stop_at_third(const struct cbshm_state *state, void *arg)
{
	unsigned int *count = arg;

	(void)state;
	return ++*count == 3 ? 42 : 0;
}

/* Through several allocations, with a client that has mapped the segment before them. */
static void test_growth(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 5000);
	struct cbshm *client = scratch_client(name);
	struct cbshm_breaker *last = scratch_breaker(client, "breaker-4999");
	struct pattern pattern;
	struct cbshm_health health;
	char breaker[32];
	unsigned int seen = 0;

	for (unsigned int i = 0; i < 5000; i++) {
		snprintf(breaker, sizeof(breaker), "breaker-%u", i);
		pattern_fill(&pattern, breaker, i + 1000);
		put(writer, pattern.row);
	}
	CU_ASSERT(cbshm_is_disabled(last)); /* 5999 is odd */
	CU_ASSERT_EQUAL(cbshm_foreach(client, count_states, &seen), 0);
	CU_ASSERT_EQUAL(seen, 5000);
	seen = 0;
	CU_ASSERT_EQUAL(cbshm_foreach(client, stop_at_third, &seen), 42);
	CU_ASSERT_EQUAL(seen, 3);
	CU_ASSERT_EQUAL(cbshm_health(client, &health), 0);
	CU_ASSERT_EQUAL(health.breakers, 5000);
	CU_ASSERT_EQUAL(health.capacity, 5000);
	for (unsigned int i = 0; i < 5000; i += 7) {
		snprintf(breaker, sizeof(breaker), "breaker-%u", i);
		struct cbshm_breaker *handle = scratch_breaker(client, breaker);
		CU_ASSERT_EQUAL(cbshm_is_disabled(handle), (i + 1000) % 2);
		cbshm_breaker_close(handle);
	}
	cbshm_close(client);
	segment_writer_close(writer);
}

static void test_state(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 64);
	struct cbshm *client = scratch_client(name);
	struct cbshm_breaker *breaker = scratch_breaker(client, "a");
	struct breaker_row row = row_open("a", 8);
	struct cbshm_state state;

	row.consecutive_failures = 3;
	row.disabled_until = scratch_now() + 10000000;
	row.last_failure_at = 12345;
	put(writer, row);
	CU_ASSERT_EQUAL(cbshm_get_state(breaker, &state), 0);
	CU_ASSERT_STRING_EQUAL(state.name, "a");
	CU_ASSERT(state.disabled);
	CU_ASSERT(state.row_disabled);
	CU_ASSERT_EQUAL(state.flags, 0);
	CU_ASSERT_EQUAL(state.version, 8);
	CU_ASSERT_EQUAL(state.opened_at, row.opened_at);
	CU_ASSERT_EQUAL(state.disabled_until, row.disabled_until);
	CU_ASSERT_EQUAL(state.last_failure_at, 12345);
	CU_ASSERT_EQUAL(state.updated_at, row.updated_at);
	CU_ASSERT(state.remaining_us > 9000000 && state.remaining_us <= 10001000);
	CU_ASSERT_EQUAL(state.consecutive_failures, 3);
	CU_ASSERT_STRING_EQUAL(state.incident_id, "5a5a5a5a-5a5a-5a5a-5a5a-5a5a5a5a5a5a");
	CU_ASSERT_STRING_EQUAL(state.disabled_by, "somebody");
	CU_ASSERT_STRING_EQUAL(state.disabled_reason, "some reason");
	CU_ASSERT_EQUAL(state.policy.drift_threshold, 0.2);
	CU_ASSERT_EQUAL(state.policy.failure_threshold, 3);
	CU_ASSERT_EQUAL(state.policy.schema_error_threshold, 5);
	CU_ASSERT_EQUAL(state.policy.default_ttl_us, INT64_C(86400000000));
	CU_ASSERT(state.policy.auto_recover);

	put(writer, row_closed("a", 9));
	CU_ASSERT_EQUAL(cbshm_get_state(breaker, &state), 0);
	CU_ASSERT(!state.disabled && !state.row_disabled);
	CU_ASSERT_EQUAL(state.opened_at, CBSHM_NO_TIME);
	CU_ASSERT_EQUAL(state.remaining_us, CBSHM_NO_TIME);
	CU_ASSERT_STRING_EQUAL(state.incident_id, "");
	CU_ASSERT_STRING_EQUAL(state.disabled_by, "");
	CU_ASSERT_STRING_EQUAL(state.disabled_reason, "");
	CU_ASSERT(state.policy.auto_recover);
	cbshm_close(client);
	segment_writer_close(writer);
}

static void test_long_texts(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 64);
	struct cbshm *client = scratch_client(name);
	struct cbshm_breaker *breaker = scratch_breaker(client, "a");
	struct breaker_row row = row_open("a", 1);
	struct cbshm_state state;
	char reason[300] = "", by[300] = "";

	/* Exactly what fits. */
	memset(reason, 'r', 240);
	memset(by, 'b', 72);
	row.disabled_reason = reason;
	row.disabled_by = by;
	put(writer, row);
	CU_ASSERT_EQUAL(cbshm_get_state(breaker, &state), 0);
	CU_ASSERT_STRING_EQUAL(state.disabled_reason, reason);
	CU_ASSERT_STRING_EQUAL(state.disabled_by, by);
	CU_ASSERT_EQUAL(state.flags, 0);
	/* A character across the end. */
	memcpy(reason + 238, "\xe2\x82\xac tail", 9);
	memcpy(by + 71, "\xc3\xbc", 3);
	row.version++;
	put(writer, row);
	CU_ASSERT_EQUAL(cbshm_get_state(breaker, &state), 0);
	CU_ASSERT_EQUAL(strlen(state.disabled_reason), 238);
	CU_ASSERT_EQUAL(strlen(state.disabled_by), 71);
	CU_ASSERT_EQUAL(state.flags, CBSHM_STATE_REASON_CUT | CBSHM_STATE_ACTOR_CUT);
	/* And back: flags do not stick. */
	row = row_open("a", 3);
	put(writer, row);
	CU_ASSERT_EQUAL(cbshm_get_state(breaker, &state), 0);
	CU_ASSERT_EQUAL(state.flags, 0);
	cbshm_close(client);
	segment_writer_close(writer);
}

/* The writer is gone; the reader decides at the instant. */
static void test_ttl(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 64);
	struct cbshm *client = scratch_client(name);
	struct cbshm_breaker *breaker = scratch_breaker(client, "a");
	struct cbshm_breaker *stays = scratch_breaker(client, "stays");
	struct breaker_row row = row_open("a", 1);
	struct cbshm_state state;

	row.disabled_until = scratch_now() + 200000;
	put(writer, row);
	row.name = "stays";
	row.auto_recover = false;
	put(writer, row);
	segment_writer_close(writer);

	/* Judged by when a check began and when it had ended: this process may have to wait for a processor. */
	int64_t began = scratch_now(), last_disabled = 0;

	while (cbshm_is_disabled(breaker) && began < row.disabled_until + 5000000) {
		last_disabled = began;
		began = scratch_now();
	}
	CU_ASSERT(scratch_now() > row.disabled_until - 2000);
	CU_ASSERT(last_disabled < row.disabled_until + 2000);
	CU_ASSERT(!cbshm_is_disabled(breaker));
	CU_ASSERT_EQUAL(cbshm_check(breaker).epoch, 1);
	CU_ASSERT_EQUAL(cbshm_check(breaker).basis, CBSHM_BASIS_SEGMENT);
	CU_ASSERT_EQUAL(cbshm_get_state(breaker, &state), 0);
	CU_ASSERT(!state.disabled);
	CU_ASSERT(state.row_disabled);
	CU_ASSERT_EQUAL(state.remaining_us, 0);
	/* Without auto_recover a TTL that has passed changes nothing. */
	CU_ASSERT(cbshm_is_disabled(stays));
	CU_ASSERT_EQUAL(cbshm_get_state(stays, &state), 0);
	CU_ASSERT(state.disabled);
	CU_ASSERT_EQUAL(state.remaining_us, 0);
	cbshm_close(client);
}

static void test_clock(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 64);
	struct cbshm *client = scratch_client(name);
	struct cbshm_breaker *breaker = scratch_breaker(client, "a");
	struct breaker_row row = row_open("a", 1);
	struct timespec boot;
	struct cbshm_health health;

	clock_gettime(CLOCK_BOOTTIME, &boot);
	int64_t offset = scratch_now() - ((int64_t)boot.tv_sec * 1000000 + boot.tv_nsec / 1000);
	row.disabled_until = scratch_now() + 60000000;
	put(writer, row);
	CU_ASSERT(cbshm_is_disabled(breaker));
	/* Within the tolerance nothing moves, although it would be over. */
	segment_writer_set_clock(writer, offset + 90000000, 100000000);
	CU_ASSERT(cbshm_is_disabled(breaker));
	/* The database's clock is two minutes ahead: it is over. */
	segment_writer_set_clock(writer, offset + 120000000, 100000);
	CU_ASSERT(!cbshm_is_disabled(breaker));
	CU_ASSERT_EQUAL(cbshm_health(client, &health), 0);
	CU_ASSERT(llabs(health.clock_offset_us - 120000000) < 50000);
	segment_writer_set_clock(writer, offset, 100000);
	CU_ASSERT(cbshm_is_disabled(breaker));

	CU_ASSERT_EQUAL(segment_writer_deadline(writer, INT64_MIN), INT64_MAX);
	CU_ASSERT_EQUAL(segment_writer_deadline(writer, offset + 5), 5000);
	CU_ASSERT(segment_writer_deadline(writer, INT64_MAX) > INT64_MAX / 2);
	CU_ASSERT(segment_writer_deadline(writer, INT64_MIN + 1) < 0);
	cbshm_close(client);
	segment_writer_close(writer);
}

static void test_load(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 64);
	struct cbshm *client = scratch_client(name);
	struct cbshm_breaker *stays = scratch_breaker(client, "stays");
	struct cbshm_breaker *goes = scratch_breaker(client, "goes");
	struct breaker_row row = row_open("stays", 1);

	put(writer, row_open("stays", 1));
	put(writer, row_open("goes", 1));
	segment_writer_load_begin(writer);
	segment_writer_load_abort(writer);
	segment_writer_load_end(writer);
	CU_ASSERT(cbshm_is_disabled(goes));
	segment_writer_load_begin(writer);
	CU_ASSERT_EQUAL(segment_writer_put(writer, &row, true) >= 0, 1);
	put(writer, row_open("comes", 1));
	CU_ASSERT(cbshm_is_disabled(goes));
	segment_writer_load_end(writer);
	CU_ASSERT(cbshm_is_disabled(stays));
	CU_ASSERT(!cbshm_is_disabled(goes));
	CU_ASSERT_EQUAL(segment_writer_breakers(writer), 2);

	char found[CBSHM_NAME_ROOM];
	struct cbshm_detail detail;
	unsigned int live = 0;
	for (uint32_t slot = 0; slot < segment_writer_slots(writer); slot++)
		live += segment_writer_read(writer, slot, found, &detail);
	CU_ASSERT_EQUAL(live, 2);
	CU_ASSERT(!segment_writer_read(writer, 63, found, &detail));
	cbshm_close(client);
	segment_writer_close(writer);
}

static void test_no_segment(void)
{
	const char *name = scratch_segment();
	struct cbshm *client = scratch_client(name);
	struct cbshm_breaker *breaker = scratch_breaker(client, "a");
	struct cbshm_state state;
	struct cbshm_health health;
	unsigned int seen = 0;

	sleep_us(1100000); /* so that the check tries, and fails, to attach */
	errno = 77;
	CU_ASSERT(!cbshm_is_disabled(breaker));
	CU_ASSERT_EQUAL(cbshm_check(breaker).basis, CBSHM_BASIS_NO_SEGMENT);
	CU_ASSERT_EQUAL(errno, 77);
	CU_ASSERT_EQUAL(cbshm_segment_status(client), CBSHM_ERR_NO_SEGMENT);
	CU_ASSERT_EQUAL(cbshm_get_state(breaker, &state), CBSHM_ERR_NO_SEGMENT);
	CU_ASSERT_EQUAL(cbshm_health(client, &health), CBSHM_ERR_NO_SEGMENT);
	CU_ASSERT_EQUAL(cbshm_foreach(client, count_states, &seen), CBSHM_ERR_NO_SEGMENT);

	/* It comes; the checks find it by themselves, within about a second. */
	struct segment_writer *writer = scratch_writer(name, 16);
	put(writer, row_open("a", 1));
	int64_t begin = scratch_now();
	while (!cbshm_is_disabled(breaker) && scratch_now() < begin + 5000000)
		sleep_us(10000);
	CU_ASSERT(cbshm_is_disabled(breaker));
	CU_ASSERT(scratch_now() - begin < 2000000);
	CU_ASSERT_EQUAL(cbshm_segment_status(client), 0);
	cbshm_close(client);
	segment_writer_close(writer);
}

static void test_health(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 16);
	struct cbshm *client = scratch_client(name);
	struct cbshm_health health;

	CU_ASSERT_EQUAL(cbshm_health(client, &health), 0);
	CU_ASSERT(health.agent_alive);
	CU_ASSERT(!health.database_live);
	CU_ASSERT_EQUAL(health.heartbeat_age_us, CBSHM_NO_TIME);
	CU_ASSERT_EQUAL(health.database_age_us, CBSHM_NO_TIME);
	CU_ASSERT_EQUAL(health.boot_epoch, 1);
	CU_ASSERT(llabs(health.clock_offset_us) < 50000);
	segment_writer_set_state(writer, CBSHM_SEGMENT_LIVE);
	segment_writer_heartbeat(writer);
	segment_writer_database_confirmed(writer);
	CU_ASSERT_EQUAL(cbshm_health(client, &health), 0);
	CU_ASSERT(health.database_live);
	CU_ASSERT(health.heartbeat_age_us >= 0 && health.heartbeat_age_us < 5000000);
	CU_ASSERT(health.database_age_us >= 0 && health.database_age_us < 5000000);
	segment_writer_set_state(writer, CBSHM_SEGMENT_DISCONNECTED);
	CU_ASSERT_EQUAL(cbshm_health(client, &health), 0);
	CU_ASSERT(health.agent_alive && !health.database_live);
	segment_writer_close(writer);
	CU_ASSERT_EQUAL(cbshm_health(client, &health), 0);
	CU_ASSERT(!health.agent_alive && !health.database_live);
	cbshm_close(client);
}

static void test_publish(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 16);
	struct segment_view view = scratch_map(name);
	const uint64_t *sequence = &segment_header(&view)->change_sequence;
	struct breaker_row row = row_open("a", 1);

	segment_writer_publish(writer);
	uint64_t before = word_load(sequence);
	segment_writer_publish(writer);
	CU_ASSERT_EQUAL(word_load(sequence), before);
	CU_ASSERT_EQUAL(segment_writer_put(writer, &row, false), 1);
	CU_ASSERT_EQUAL(word_load(sequence), before);
	segment_writer_publish(writer);
	CU_ASSERT_EQUAL(word_load(sequence), before + 1);
	segment_writer_remove(writer, "a");
	segment_writer_publish(writer);
	CU_ASSERT_EQUAL(word_load(sequence), before + 2);
	scratch_unmap(&view);
	segment_writer_close(writer);
}

static void test_arguments(void)
{
	const char *name = scratch_segment();
	struct cbshm_options options = {.size = sizeof(options), .segment = name};
	struct {
		struct cbshm_options known;
		const char *later;
	} newer = {{.size = sizeof(newer), .segment = name}, NULL};
	struct cbshm_breaker *breaker;
	struct cbshm *client;
	char socket[200];

	CU_ASSERT_EQUAL(cbshm_open(&options, NULL), CBSHM_ERR_INVALID);
	options.segment = "no-slash";
	CU_ASSERT_EQUAL(cbshm_open(&options, &client), CBSHM_ERR_INVALID);
	CU_ASSERT_PTR_NULL(client);
	options.segment = name;
	options.owner = "no such user";
	CU_ASSERT_EQUAL(cbshm_open(&options, &client), CBSHM_ERR_INVALID);
	options.owner = "12345";
	memset(socket, 's', sizeof(socket));
	socket[sizeof(socket) - 1] = '\0';
	options.socket = socket;
	CU_ASSERT_EQUAL(cbshm_open(&options, &client), CBSHM_ERR_INVALID);
	options.socket = NULL;
	CU_ASSERT_EQUAL(cbshm_open(&options, &client), 0);
	CU_ASSERT_EQUAL(cbshm_breaker_open(client, "", &breaker), CBSHM_ERR_INVALID);
	CU_ASSERT_PTR_NULL(breaker);
	CU_ASSERT_EQUAL(cbshm_breaker_open(client, "a\n", &breaker), CBSHM_ERR_INVALID);
	CU_ASSERT_EQUAL(cbshm_breaker_open(client, NULL, &breaker), CBSHM_ERR_INVALID);
	CU_ASSERT_EQUAL(cbshm_breaker_open(NULL, "a", &breaker), CBSHM_ERR_INVALID);
	CU_ASSERT_EQUAL(cbshm_segment_status(NULL), CBSHM_ERR_INVALID);
	cbshm_close(client);
	cbshm_close(NULL);
	cbshm_breaker_close(NULL);
	/* A structure of a later version: fine while what is not known here is not used. */
	CU_ASSERT_EQUAL(cbshm_open(&newer.known, &client), 0);
	cbshm_close(client);
	newer.later = "x";
	CU_ASSERT_EQUAL(cbshm_open(&newer.known, &client), CBSHM_ERR_INVALID);
}

static void test_environment(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 16);
	struct cbshm_options none = {.size = sizeof(none)};
	struct cbshm *client;

	setenv("CBSHM_SEGMENT", name, 1);
	CU_ASSERT_EQUAL(cbshm_open(NULL, &client), 0);
	CU_ASSERT_EQUAL(cbshm_segment_status(client), 0);
	cbshm_close(client);
	CU_ASSERT_EQUAL(cbshm_open(&none, &client), 0);
	CU_ASSERT_EQUAL(cbshm_segment_status(client), 0);
	cbshm_close(client);
	setenv("CBSHM_SEGMENT", "wrong", 1);
	CU_ASSERT_EQUAL(cbshm_open(NULL, &client), CBSHM_ERR_INVALID);
	unsetenv("CBSHM_SEGMENT");
	setenv("CBSHM_OWNER", "no such user", 1);
	CU_ASSERT_EQUAL(cbshm_open(NULL, &client), CBSHM_ERR_INVALID);
	unsetenv("CBSHM_OWNER");
	segment_writer_close(writer);
}

/* Readers look for names, known and not, while those come and go and the segment grows. */
static struct {
	const char *segment;
	bool stop;
	unsigned int wrong;
} crowd;

static void *crowd_reader(void *arg)
{
	struct cbshm *client = scratch_client(crowd.segment);
	struct cbshm_breaker *always = scratch_breaker(client, "always");
	struct cbshm_breaker *never = scratch_breaker(client, "never");
	unsigned int wrong = 0;

	(void)arg;
	while (!__atomic_load_n(&crowd.stop, __ATOMIC_RELAXED)) {
		struct cbshm_breaker *again = scratch_breaker(client, "always");

		/* One that stays is never missed, by a new search either. */
		wrong += !cbshm_is_disabled(always) || !cbshm_is_disabled(again);
		wrong += cbshm_check(never).basis != CBSHM_BASIS_UNKNOWN;
		cbshm_breaker_close(again);
	}
	cbshm_close(client);
	__atomic_fetch_add(&crowd.wrong, wrong, __ATOMIC_RELAXED);
	return NULL;
}

static void test_churn(void)
{
	struct segment_writer *writer;
	pthread_t readers[3];
	char breaker[32];

	crowd.segment = scratch_segment();
	writer = scratch_writer(crowd.segment, 3000);
	segment_writer_set_cool_down(writer, 0);
	for (int i = 0; i < 100; i++) {
		snprintf(breaker, sizeof(breaker), "early-%d", i);
		put(writer, row_closed(breaker, 1));
	}
	put(writer, row_open("always", 1));
	for (int i = 0; i < 3; i++)
		pthread_create(&readers[i], NULL, crowd_reader, NULL);
	for (int round = 0; round < 20; round++) {
		for (int i = 0; i < 2500; i++) {
			snprintf(breaker, sizeof(breaker), "churn-%d-%d", round, i);
			put(writer, row_open(breaker, 1));
		}
		for (int i = 0; i < 100; i++) {
			snprintf(breaker, sizeof(breaker), "early-%d", i);
			segment_writer_remove(writer, breaker);
		}
		for (int i = 0; i < 2500; i++) {
			snprintf(breaker, sizeof(breaker), "churn-%d-%d", round, i);
			segment_writer_remove(writer, breaker);
		}
	}
	__atomic_store_n(&crowd.stop, true, __ATOMIC_RELAXED);
	for (int i = 0; i < 3; i++)
		pthread_join(readers[i], NULL);
	CU_ASSERT_EQUAL(crowd.wrong, 0);
	CU_ASSERT_EQUAL(segment_writer_breakers(writer), 1);
	segment_writer_close(writer);
}

/* The sanitizers' own locks do not survive such a fork. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true
#elif defined(__has_feature)
#define SANITIZED (__has_feature(address_sanitizer) || __has_feature(thread_sanitizer))
#else
#define SANITIZED false
#endif

static _Atomic bool forks_done;

static void *open_and_close(void *arg)
{
	while (!forks_done)
		cbshm_breaker_close(scratch_breaker(arg, "other"));
	return NULL;
}

/* A child that hangs is ended by SIGALRM: in_child() returns -1. */
static int open_in_child(void *arg)
{
	struct cbshm_breaker *handle;

	alarm(5);
	if (cbshm_breaker_open(arg, "own", &handle))
		return 1;
	cbshm_breaker_close(handle);
	return 0;
}

/* A fork while other threads open and close handles. */
static void test_fork_in_the_middle(void)
{
	pthread_t threads[3];
	int failed = 0;

	if (SANITIZED) {
		tap_skip("a sanitizer's own locks do not survive such a fork");
		return;
	}
	struct cbshm *client = scratch_client(scratch_segment());
	forks_done = false;
	for (int i = 0; i < 3; i++)
		pthread_create(&threads[i], NULL, open_and_close, client);
	for (int i = 0; i < 300 && failed == 0; i++)
		failed = in_child(open_in_child, client);
	CU_ASSERT_EQUAL(failed, 0);
	forks_done = true;
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	cbshm_close(client);
}

int main(void)
{
	CU_initialize_registry();
	CU_pSuite suite = CU_add_suite("reader", NULL, NULL);
	CU_add_test(suite, "a decision is seen at once, in every process", test_open_and_close);
	CU_add_test(suite, "only newer versions count, unless forced", test_versions);
	CU_add_test(suite, "an unknown breaker that appears", test_unknown_appears);
	CU_add_test(suite, "deleted and created again", test_deleted_and_recreated);
	CU_add_test(suite, "a stale handle never reads the slot's next breaker", test_slot_reuse);
	CU_add_test(suite, "nor does one that is seen half moved", test_half_moved_handle);
	CU_add_test(suite, "slots rest, and a full segment says so", test_cool_down_and_full);
	CU_add_test(suite, "growth past several chunks", test_growth);
	CU_add_test(suite, "the whole record", test_state);
	CU_add_test(suite, "long texts are cut between characters", test_long_texts);
	CU_add_test(suite, "a TTL ends at the instant without a writer", test_ttl);
	CU_add_test(suite, "deadlines follow the database's clock", test_clock);
	CU_add_test(suite, "a full load removes what it did not bring", test_load);
	CU_add_test(suite, "no segment, and one that comes", test_no_segment);
	CU_add_test(suite, "health", test_health);
	CU_add_test(suite, "publishing counts changes", test_publish);
	CU_add_test(suite, "arguments", test_arguments);
	CU_add_test(suite, "environment", test_environment);
	CU_add_test(suite, "a fork while handles come and go", test_fork_in_the_middle);
	CU_add_test(suite, "a breaker that stays is never missed while others come and go",
		    test_churn);
	return tap_run_cunit();
}
