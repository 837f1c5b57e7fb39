/*
 * test_stale.c - stale policies: what a handle answers without news
 *
 * SPDX-License-Identifier: ISC
 *
 * The stamps are set as if time had passed; but for one sleep nothing here waits.
 */
#include "config.h"

#include <pthread.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "agent/segment_writer_test.h"
#include "cbshm/latch.h"
#include "tests/support/segment.h"
#include "tests/support/tap.h"

#define LIMIT INT64_C(10000000) /* microseconds */

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* The database confirmed the mirror so many microseconds ago. */
static void confirmed(const struct segment_view *view, int64_t ago)
{
	word_store(&segment_header(view)->database_confirmed, now_ns() - (uint64_t)ago * 1000);
}

static struct cbshm_breaker *with_policy(struct cbshm *client, const char *name,
					 enum cbshm_stale_policy policy, int64_t limit)
{
	struct cbshm_breaker *breaker = scratch_breaker(client, name);

	CU_ASSERT_EQUAL(cbshm_breaker_set_stale_policy(breaker, policy, limit), 0);
	return breaker;
}

static void answers(const struct cbshm_breaker *breaker, bool disabled, enum cbshm_basis basis)
{
	struct cbshm_decision decision = cbshm_check(breaker);

	CU_ASSERT_EQUAL(decision.disabled, disabled);
	CU_ASSERT_EQUAL(decision.basis, basis);
	CU_ASSERT_EQUAL(cbshm_is_disabled(breaker), disabled);
	CU_ASSERT_EQUAL(cbshm_is_disabled_call(breaker), disabled);
}

static void test_policies(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 64);
	struct segment_view view = scratch_map(name);
	struct cbshm *client = scratch_client(name);
	static const char *const names[] = {"closed", "open", "ending", "unknown"};
	static const bool disabled[] = {false, true, true, false};
	struct breaker_row ending = row_open("ending", 3);

	ending.disabled_until = scratch_now() + INT64_C(3600000000);
	ending.auto_recover = true;
	put(writer, row_closed("closed", 1));
	put(writer, row_open("open", 2));
	put(writer, ending);
	for (int i = 0; i < 4; i++) {
		enum cbshm_basis basis = i == 3 ? CBSHM_BASIS_UNKNOWN : CBSHM_BASIS_SEGMENT;
		struct cbshm_breaker *fixed = scratch_breaker(client, names[i]);
		struct cbshm_breaker *open = with_policy(client, names[i], CBSHM_FAIL_OPEN, LIMIT);
		struct cbshm_breaker *closed =
			with_policy(client, names[i], CBSHM_FAIL_CLOSED, LIMIT);
		uint32_t epoch = cbshm_check(fixed).epoch;

		confirmed(&view, LIMIT / 2);
		answers(fixed, disabled[i], basis);
		answers(open, disabled[i], basis);
		answers(closed, disabled[i], basis);
		confirmed(&view, LIMIT + 1000000);
		answers(fixed, disabled[i], basis);
		answers(open, false, CBSHM_BASIS_STALE);
		answers(closed, true, CBSHM_BASIS_STALE);
		if (i < 3) {
			struct cbshm_state state;

			CU_ASSERT_EQUAL(cbshm_check(closed).epoch, epoch);
			CU_ASSERT_EQUAL(cbshm_get_state(closed, &state), 0);
			CU_ASSERT_EQUAL(state.disabled, disabled[i]);
		}
		confirmed(&view, 0);
		answers(open, disabled[i], basis);
		answers(closed, disabled[i], basis);
	}
	scratch_unmap(&view);
	cbshm_close(client);
	segment_writer_close(writer);
}

/* Fail static is the fast path, whichever policy a handle had before; with another one there is none. */
static void test_fast_path(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 64);
	struct cbshm *client = scratch_client(name);

	put(writer, row_closed("a", 1));
	struct cbshm_breaker *breaker = scratch_breaker(client, "a");
	uint32_t live = breaker->live;
	CU_ASSERT_EQUAL((uint32_t)*breaker->word, live);
	CU_ASSERT_EQUAL(cbshm_breaker_set_stale_policy(breaker, CBSHM_FAIL_CLOSED, LIMIT), 0);
	CU_ASSERT_EQUAL(breaker->live, CBSHM_LIVE_NEVER);
	put(writer, row_open("a", 2));
	CU_ASSERT(cbshm_is_disabled(breaker));
	put(writer, row_closed("a", 3));
	/* Removed and made again: the handle is bound anew. */
	segment_writer_remove(writer, "a");
	answers(breaker, false, CBSHM_BASIS_UNKNOWN);
	put(writer, row_closed("a", 4));
	answers(breaker, false, CBSHM_BASIS_SEGMENT);
	CU_ASSERT_EQUAL(breaker->live, CBSHM_LIVE_NEVER);
	CU_ASSERT_EQUAL(cbshm_breaker_set_stale_policy(breaker, CBSHM_FAIL_STATIC, 0), 0);
	CU_ASSERT_EQUAL((uint32_t)*breaker->word, breaker->live);
	CU_ASSERT_NOT_EQUAL(breaker->live, live);
	answers(breaker, false, CBSHM_BASIS_SEGMENT);
	cbshm_close(client);
	segment_writer_close(writer);
}

/* No segment, one that was never confirmed, clocks of elsewhere, another boot: the time counts from cbshm_open(). */
static void test_age_unknown(void)
{
	enum { NONE, NEVER, FUTURE, BOOT, CASES };
	struct segment_writer *writers[CASES] = {NULL};
	struct cbshm_breaker *breakers[CASES];
	struct cbshm *clients[CASES];

	for (int i = 0; i < CASES; i++) {
		const char *name = scratch_segment();

		if (i != NONE) {
			writers[i] = scratch_writer(name, 64);
			put(writers[i], row_closed("a", 1));
			struct segment_view view = scratch_map(name);
			if (i == FUTURE)
				confirmed(&view, -INT64_C(3600000000));
			if (i == BOOT) {
				confirmed(&view, 0);
				segment_header(&view)->boot_id[0] ^= 1;
			}
			scratch_unmap(&view);
		}
		clients[i] = scratch_client(name);
		breakers[i] =
			with_policy(clients[i], "a", CBSHM_FAIL_CLOSED, CBSHM_MAX_STALE_MIN_US);
		answers(breakers[i], false, i ? CBSHM_BASIS_SEGMENT : CBSHM_BASIS_NO_SEGMENT);
	}
	struct cbshm_health health;
	CU_ASSERT_EQUAL(cbshm_health(clients[FUTURE], &health), 0);
	CU_ASSERT_EQUAL(health.database_age_us, CBSHM_NO_TIME);
	CU_ASSERT_EQUAL(cbshm_health(clients[BOOT], &health), 0);
	CU_ASSERT_EQUAL(health.database_age_us, CBSHM_NO_TIME);
	CU_ASSERT(!health.agent_alive);
	nanosleep(&(struct timespec){3, 100000000}, NULL);
	for (int i = 0; i < CASES; i++) {
		answers(breakers[i], true, CBSHM_BASIS_STALE);
		cbshm_close(clients[i]);
		segment_writer_close(writers[i]);
	}
}

/* What is stale may be a segment that was removed while its agent was dead. */
static void test_finds_the_next_segment(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 64);
	struct segment_view view = scratch_map(name);
	struct cbshm *client = scratch_client(name);

	put(writer, row_closed("a", 1));
	struct cbshm_breaker *breaker = with_policy(client, "a", CBSHM_FAIL_CLOSED, LIMIT);
	confirmed(&view, LIMIT + 1);
	answers(breaker, true, CBSHM_BASIS_STALE);
	segment_writer_close(writer);
	scratch_remove(name);
	scratch_unmap(&view);
	writer = scratch_writer(name, 64);
	put(writer, row_closed("a", 2));
	segment_writer_database_confirmed(writer);
	for (int i = 0; i < 100 && cbshm_is_disabled(breaker); i++)
		nanosleep(&(struct timespec){0, 50000000}, NULL);
	answers(breaker, false, CBSHM_BASIS_SEGMENT);
	CU_ASSERT_EQUAL(cbshm_check(breaker).epoch, 2);
	cbshm_close(client);
	segment_writer_close(writer);
}

struct race {
	struct cbshm_breaker *breaker;
	bool stop;
	long wrong;
};

static void *check_all_the_time(void *arg)
{
	struct race *race = arg;

	while (!__atomic_load_n(&race->stop, __ATOMIC_ACQUIRE)) {
		struct cbshm_decision decision = cbshm_check(race->breaker);

		race->wrong += decision.disabled ? decision.basis != CBSHM_BASIS_STALE
						 : decision.basis != CBSHM_BASIS_SEGMENT;
	}
	return NULL;
}

/* The mirror is stale and the breaker closed: the answer is one of two. */
static void test_changed_under_checks(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 64);
	struct segment_view view = scratch_map(name);
	struct cbshm *client = scratch_client(name);
	struct race race = {NULL, false, 0};
	pthread_t thread;

	put(writer, row_closed("a", 1));
	confirmed(&view, LIMIT + 1);
	race.breaker = scratch_breaker(client, "a");
	CU_ASSERT_EQUAL_FATAL(pthread_create(&thread, NULL, check_all_the_time, &race), 0);
	for (int i = 0; i < 20000; i++)
		CU_ASSERT_EQUAL(
			cbshm_breaker_set_stale_policy(
				race.breaker, i % 2 ? CBSHM_FAIL_STATIC : CBSHM_FAIL_CLOSED, LIMIT),
			0);
	__atomic_store_n(&race.stop, true, __ATOMIC_RELEASE);
	pthread_join(thread, NULL);
	CU_ASSERT_EQUAL(race.wrong, 0);
	scratch_unmap(&view);
	cbshm_close(client);
	segment_writer_close(writer);
}

static void test_arguments(void)
{
	struct cbshm *client = scratch_client(scratch_segment());
	struct cbshm_breaker *breaker = scratch_breaker(client, "a");
	const enum cbshm_stale_policy closed = CBSHM_FAIL_CLOSED;
	const int64_t least = CBSHM_MAX_STALE_MIN_US, most = CBSHM_MAX_STALE_MAX_US;

	CU_ASSERT_EQUAL(cbshm_breaker_set_stale_policy(NULL, closed, least), CBSHM_ERR_INVALID);
	CU_ASSERT_EQUAL(cbshm_breaker_set_stale_policy(breaker, 3, least), CBSHM_ERR_INVALID);
	CU_ASSERT_EQUAL(cbshm_breaker_set_stale_policy(breaker, closed, least - 1),
			CBSHM_ERR_INVALID);
	CU_ASSERT_EQUAL(cbshm_breaker_set_stale_policy(breaker, closed, most + 1),
			CBSHM_ERR_INVALID);
	CU_ASSERT_EQUAL(cbshm_breaker_set_stale_policy(breaker, closed, INT64_MIN),
			CBSHM_ERR_INVALID);
	CU_ASSERT_EQUAL(cbshm_breaker_set_stale_policy(breaker, closed, most), 0);
	answers(breaker, false, CBSHM_BASIS_NO_SEGMENT);
	CU_ASSERT_EQUAL(cbshm_breaker_set_stale_policy(breaker, CBSHM_FAIL_STATIC, -1), 0);
	cbshm_close(client);
}

int main(void)
{
	CU_initialize_registry();
	CU_pSuite suite = CU_add_suite("stale", NULL, NULL);
	CU_add_test(suite, "each policy on each kind of answer", test_policies);
	CU_add_test(suite, "fail static is the fast path", test_fast_path);
	CU_add_test(suite, "news that never came, or of unknown age", test_age_unknown);
	CU_add_test(suite, "the next segment is found", test_finds_the_next_segment);
	CU_add_test(suite, "a policy is changed under checks", test_changed_under_checks);
	CU_add_test(suite, "arguments", test_arguments);
	return tap_run_cunit();
}
