/*
 * test_takeover.c - a segment outlives its writers: restarts, kills, replacement
 *
 * SPDX-License-Identifier: ISC
 */
#include "config.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agent/segment_writer_test.h"
#include "cbshm/latch.h"
#include "libcbshm/index.h"
#include "tests/support/child.h"
#include "tests/support/segment.h"
#include "tests/support/tap.h"

static ino_t inode_of(const char *name)
{
	struct stat status;

	return stat(scratch_path(name, ""), &status) == 0 ? status.st_ino : 0;
}

static int try_writer(const char *name, uint32_t capacity, mode_t mode, char message[256])
{
	struct segment_options options = {
		.name = name, .capacity = capacity, .mode = mode, .group = (gid_t)-1};
	struct segment_writer *writer;
	int error = segment_writer_open(&options, &writer, message, 256);

	if (error == 0)
		segment_writer_close(writer);
	return error;
}

static void put_pattern(struct segment_writer *writer, const char *name, uint64_t version)
{
	struct pattern pattern;

	pattern_fill(&pattern, name, version);
	put(writer, pattern.row);
}

/* The state of a breaker is the pattern of this version, and the check says the same. */
static bool shows(struct cbshm_breaker *breaker, uint64_t version)
{
	struct cbshm_state state;
	struct cbshm_decision decision = cbshm_check(breaker);

	if (cbshm_get_state(breaker, &state) != 0)
		return false;
	const char *wrong = pattern_wrong(&state);
	if (wrong)
		tap_note("version %llu: %s is wrong", (unsigned long long)state.version, wrong);
	return !wrong && state.version == version && decision.epoch == version &&
	       decision.basis == CBSHM_BASIS_SEGMENT && decision.disabled == version % 2;
}

static void test_restart(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 64);
	struct cbshm *client = scratch_client(name);
	struct cbshm_breaker *open_one = scratch_breaker(client, "open");
	struct cbshm_breaker *closed_one = scratch_breaker(client, "closed");
	struct cbshm_breaker *unknown = scratch_breaker(client, "unknown");
	struct cbshm_health health;
	struct stat status;

	put_pattern(writer, "open", 5);
	put_pattern(writer, "closed", 6);
	ino_t inode = inode_of(name);
	segment_writer_close(writer);
	CU_ASSERT(shows(open_one, 5));
	CU_ASSERT(shows(closed_one, 6));
	const uint64_t *word = open_one->word;

	writer = scratch_writer(name, 64);
	CU_ASSERT_EQUAL(inode_of(name), inode);
	CU_ASSERT_EQUAL(segment_writer_boot_epoch(writer), 2);
	CU_ASSERT_EQUAL(segment_writer_breakers(writer), 2);
	CU_ASSERT_EQUAL(segment_writer_version(writer, "open"), 5);
	CU_ASSERT(shows(open_one, 5));
	CU_ASSERT(shows(closed_one, 6));
	CU_ASSERT_PTR_EQUAL(open_one->word, word);
	CU_ASSERT_EQUAL(cbshm_health(client, &health), 0);
	CU_ASSERT(health.agent_alive);
	CU_ASSERT(!health.database_live); /* recovering */
	CU_ASSERT_EQUAL(health.boot_epoch, 2);
	put_pattern(writer, "open", 8);
	put_pattern(writer, "unknown", 9);
	CU_ASSERT(shows(open_one, 8));
	CU_ASSERT(shows(unknown, 9));
	segment_writer_close(writer);

	char message[256];
	CU_ASSERT_EQUAL(try_writer(name, 64, 0600, message), 0);
	CU_ASSERT_EQUAL(stat(scratch_path(name, ""), &status), 0);
	CU_ASSERT_EQUAL(status.st_mode & 07777, 0600);
	CU_ASSERT_EQUAL(inode_of(name), inode);
	cbshm_close(client);
}

static void test_two_agents(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 64);
	char message[256] = "";
	int status;

	/* In this process, and in another. */
	CU_ASSERT_EQUAL(try_writer(name, 64, 0644, message), -EAGAIN);
	CU_ASSERT_PTR_NOT_NULL(strstr(message, "another cbagent"));
	fflush(stdout);
	pid_t child = child_fork();
	if (child == 0)
		_exit(try_writer(name, 128, 0644, message) == -EAGAIN ? 0 : 1);
	waitpid(child, &status, 0);
	CU_ASSERT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	put_pattern(writer, "a", 1);
	segment_writer_close(writer);
	CU_ASSERT_EQUAL(try_writer(name, 64, 0644, message), 0);
}

static void test_options(void)
{
	const char *name = scratch_segment();
	char message[256];

	CU_ASSERT_EQUAL(try_writer("wrong", 64, 0644, message), -EINVAL);
	CU_ASSERT_PTR_NOT_NULL(strstr(message, "name"));
	CU_ASSERT_EQUAL(try_writer(name, 15, 0644, message), -EINVAL);
	CU_ASSERT_PTR_NOT_NULL(strstr(message, "capacity"));
	CU_ASSERT_EQUAL(try_writer(name, (1u << 20) + 1, 0644, message), -EINVAL);
	CU_ASSERT_EQUAL(try_writer(name, 64, 0664, message), -EINVAL);
	CU_ASSERT_PTR_NOT_NULL(strstr(message, "mode"));
	CU_ASSERT_EQUAL(try_writer(name, 64, 0400, message), -EINVAL);
	CU_ASSERT_EQUAL(inode_of(name), 0);
}

/* ---- a writer killed in an update, step by step ----------------------------------------- */

static void pattern_detail(const char *name, uint64_t version, union latch_detail *detail)
{
	const char *other = scratch_segment();
	struct segment_writer *writer = scratch_writer(other, 16);
	char found[CBSHM_NAME_ROOM];

	put_pattern(writer, name, version);
	CU_ASSERT(segment_writer_read(writer, 0, found, &detail->detail));
	segment_writer_close(writer);
	scratch_remove(other);
}

#define LATCH_STEPS 8

/* The stores of latch_write() up to `steps`. */
static void latch_write_until(struct cbshm_record *record, uint64_t *word, uint64_t value,
			      const union latch_detail *detail, int steps)
{
	uint64_t sequence = record->sequence;

	if (steps >= 1)
		record->sequence = sequence + 1;
	if (steps >= 2)
		payload_write(record->copies[0], detail->words, CBSHM_DETAIL_WORDS / 2);
	if (steps >= 3)
		payload_write(record->copies[0], detail->words, CBSHM_DETAIL_WORDS);
	if (steps >= 4)
		word_store(word, value);
	if (steps >= 5)
		record->sequence = sequence + 2;
	if (steps >= 6)
		payload_write(record->copies[1], detail->words, CBSHM_DETAIL_WORDS / 2);
	if (steps >= 7)
		payload_write(record->copies[1], detail->words, CBSHM_DETAIL_WORDS);
}

static void kill_in_latch(uint64_t from, uint64_t to, int steps)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 16);
	struct cbshm *client = scratch_client(name);
	struct cbshm_breaker *breaker = scratch_breaker(client, "a");
	uint64_t expected = steps >= 4 ? to : from;
	union latch_detail detail;

	pattern_detail("a", to, &detail);
	put_pattern(writer, "a", from);
	struct segment_view view = scratch_map(name);
	struct cbshm_record *record = segment_record(&view, 0);
	uint64_t *word = segment_word(&view, 0);
	uint64_t value = to << CBSHM_WORD_EPOCH_SHIFT | (*word & CBSHM_WORD_GENERATION_MASK);
	if (to % 2)
		value |= CBSHM_WORD_DISABLED | (to % 3 == 0 ? CBSHM_WORD_AUTO_RECOVER : 0);
	latch_write_until(record, word, value, &detail, steps);

	CU_ASSERT(shows(breaker, expected));
	segment_writer_close(writer);
	writer = scratch_writer(name, 16);
	CU_ASSERT(shows(breaker, expected));
	CU_ASSERT_EQUAL(segment_writer_version(writer, "a"), expected);
	CU_ASSERT_EQUAL(record->sequence % 2, 0);
	CU_ASSERT_EQUAL(memcmp(record->copies[0], record->copies[1], sizeof(record->copies[0])), 0);
	put_pattern(writer, "a", to + 1);
	CU_ASSERT(shows(breaker, to + 1));
	scratch_unmap(&view);
	segment_writer_close(writer);
	cbshm_close(client);
	scratch_remove(name);
}

static void test_killed_in_latch(void)
{
	for (int steps = 0; steps < LATCH_STEPS; steps++) {
		kill_in_latch(4, 5, steps);
		kill_in_latch(5, 6, steps);
		kill_in_latch(9, 11, steps);
	}
}

/* A policy that changed without a new version, killed after the word; when the agent is back it has changed back. */
static void test_killed_in_policy_change(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 16);
	struct cbshm *client = scratch_client(name);
	struct cbshm_breaker *breaker = scratch_breaker(client, "a");
	struct segment_view view = scratch_map(name);
	struct breaker_row row = row_open("a", 5);

	row.disabled_until = -INT64_MAX; /* whose deadline does not depend on the clock */
	row.auto_recover = true;
	put(writer, row);
	CU_ASSERT(!cbshm_is_disabled(breaker)); /* long over */
	segment_record(&view, 0)->sequence++;
	*segment_word(&view, 0) &= ~CBSHM_WORD_AUTO_RECOVER;
	CU_ASSERT(cbshm_is_disabled(breaker));
	segment_writer_close(writer);
	writer = scratch_writer(name, 16);
	CU_ASSERT_EQUAL(segment_writer_put(writer, &row, true), 1);
	CU_ASSERT(!cbshm_is_disabled(breaker));
	CU_ASSERT_EQUAL(segment_writer_put(writer, &row, true), 0);
	scratch_unmap(&view);
	segment_writer_close(writer);
	cbshm_close(client);
}

/* ---- a writer killed in an insert or a remove ------------------------------------------- */

static uint64_t *bucket_of(const struct segment_view *view, const char *name)
{
	struct index_hit hit;
	struct name_key key;

	CU_ASSERT(name_key_set(&key, name));
	CU_ASSERT_FATAL(index_find(view, &key, &hit));
	return &segment_index(view)[hit.bucket];
}

static void test_killed_in_insert(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 16);
	struct cbshm *client = scratch_client(name);
	struct segment_view view = scratch_map(name);
	uint64_t *index_word = &segment_header(&view)->index_word;

	put_pattern(writer, "before", 3);
	uint64_t index_before = *index_word;
	struct cbshm_breaker *handle = scratch_breaker(client, "new");
	CU_ASSERT_EQUAL(cbshm_check(handle).basis, CBSHM_BASIS_UNKNOWN);
	put_pattern(writer, "new", 5);

	/* Killed after the word, before the bucket. */
	*bucket_of(&view, "new") = CBSHM_BUCKET_EMPTY;
	*index_word = index_before;
	CU_ASSERT_EQUAL(cbshm_check(handle).basis, CBSHM_BASIS_UNKNOWN);
	segment_writer_close(writer);
	writer = scratch_writer(name, 16);
	CU_ASSERT(shows(handle, 5));
	CU_ASSERT_EQUAL(segment_writer_breakers(writer), 2);

	/* Killed after the bucket, before the index word. */
	cbshm_breaker_close(handle);
	index_before = *index_word;
	handle = scratch_breaker(client, "newer");
	put_pattern(writer, "newer", 7);
	*index_word = index_before;
	segment_writer_close(writer);
	writer = scratch_writer(name, 16);
	CU_ASSERT(shows(handle, 7));

	/* Killed before the word: a name without a breaker. */
	uint64_t *word = (uint64_t *)(uintptr_t)segment_word(&view, 2);
	put_pattern(writer, "newest", 9);
	*bucket_of(&view, "newest") = CBSHM_BUCKET_EMPTY;
	word = segment_word(&view, 3);
	*word = 0;
	segment_writer_close(writer);
	writer = scratch_writer(name, 16);
	CU_ASSERT_EQUAL(segment_writer_breakers(writer), 3);
	CU_ASSERT_EQUAL(cbshm_check(scratch_breaker(client, "newest")).basis, CBSHM_BASIS_UNKNOWN);
	put_pattern(writer, "newest", 11);
	CU_ASSERT(shows(scratch_breaker(client, "newest"), 11));
	scratch_unmap(&view);
	segment_writer_close(writer);
	cbshm_close(client);
}

/* A slot used again, and killed before its new breaker lives: neither may show through. */
static void test_killed_in_reuse(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 16);
	struct cbshm *client = scratch_client(name);
	struct segment_view view = scratch_map(name);
	union latch_detail detail;

	segment_writer_set_cool_down(writer, 0);
	put_pattern(writer, "old", 5);
	segment_writer_remove(writer, "old");
	pattern_detail("new", 5, &detail);
	latch_write_until(segment_record(&view, 0), segment_word(&view, 0), 0, &detail, 2);
	segment_writer_close(writer);
	writer = scratch_writer(name, 16);
	segment_writer_set_cool_down(writer, 0);
	CU_ASSERT_EQUAL(segment_writer_breakers(writer), 0);
	put_pattern(writer, "third", 5);
	CU_ASSERT(shows(scratch_breaker(client, "third"), 5));
	scratch_unmap(&view);
	segment_writer_close(writer);
	cbshm_close(client);
}

static void test_damaged_index(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 32);
	struct cbshm *client = scratch_client(name);
	struct segment_view view = scratch_map(name);
	uint64_t *index = segment_index(&view);
	char breaker[32];

	for (unsigned int i = 0; i < 20; i++) {
		snprintf(breaker, sizeof(breaker), "b%u", i);
		put_pattern(writer, breaker, 101 + 2 * i);
	}
	/* A removal that stopped after the word. */
	struct cbshm_breaker *removed = scratch_breaker(client, "b4");
	*segment_word(&view, 4) = 0;
	CU_ASSERT_EQUAL(cbshm_check(removed).basis, CBSHM_BASIS_UNKNOWN);
	/* Two live slots of one name, of which the second is the newer one. */
	memcpy(segment_record(&view, 7)->name, segment_record(&view, 9)->name, 128);
	segment_record(&view, 7)->name_length = segment_record(&view, 9)->name_length;
	/* Buckets that lead nowhere. */
	for (uint32_t i = 0, junk = 0; i < view.layout.index_size && junk < 4; i++) {
		static const uint64_t values[] = {UINT64_C(0xffffffff00000005),
						  UINT64_C(0x12345678ffffff00), 1, 33};
		if (index[i] == CBSHM_BUCKET_EMPTY)
			index[i] = values[junk++];
	}
	/* A word above what is allocated, and bits no slot has. */
	*segment_word(&view, 31) = UINT64_C(0x0000000500000140);
	*segment_word(&view, 2) |= CBSHM_WORD_INDEX | CBSHM_WORD_MOVED;
	segment_writer_close(writer);

	writer = scratch_writer(name, 32);
	CU_ASSERT_EQUAL(segment_writer_breakers(writer), 18); /* without b4 and b7 */
	unsigned int buckets = 0;
	for (uint32_t i = 0; i < view.layout.index_size; i++)
		buckets += index[i] != CBSHM_BUCKET_EMPTY && index[i] != CBSHM_BUCKET_TOMBSTONE;
	CU_ASSERT_EQUAL(buckets, 18);
	for (unsigned int i = 0; i < 20; i++) {
		snprintf(breaker, sizeof(breaker), "b%u", i);
		struct cbshm_breaker *handle = scratch_breaker(client, breaker);
		if (i == 4 || i == 7)
			CU_ASSERT_EQUAL(cbshm_check(handle).basis, CBSHM_BASIS_UNKNOWN)
		else
			CU_ASSERT(shows(handle, 101 + 2 * i));
	}
	for (unsigned int i = 0; i < 14; i++) { /* every free slot can be used */
		snprintf(breaker, sizeof(breaker), "more%u", i);
		put_pattern(writer, breaker, 201 + i);
		CU_ASSERT(shows(scratch_breaker(client, breaker), 201 + i));
	}
	CU_ASSERT(!segment_writer_has_room(writer));
	scratch_unmap(&view);
	segment_writer_close(writer);
	cbshm_close(client);
}

/* Damage that no kill can do: the word fits neither copy. The decision stays, without an end. */
static void test_damaged_record(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 16);
	struct cbshm *client = scratch_client(name);
	struct cbshm_breaker *breaker = scratch_breaker(client, "a");
	struct segment_view view = scratch_map(name);
	struct breaker_row row = row_open("a", 5);
	struct cbshm_state state;

	row.disabled_until = 1;
	put(writer, row);
	CU_ASSERT(!cbshm_is_disabled(breaker)); /* long over */
	segment_record(&view, 0)->copies[0][0] = 77;
	segment_record(&view, 0)->copies[1][0] = 78;
	CU_ASSERT(cbshm_is_disabled(breaker)); /* nothing ends what cannot be read */
	CU_ASSERT_EQUAL(cbshm_get_state(breaker, &state), CBSHM_ERR_BUSY);
	segment_writer_close(writer);
	writer = scratch_writer(name, 16);
	CU_ASSERT(cbshm_is_disabled(breaker));
	CU_ASSERT_EQUAL(cbshm_get_state(breaker, &state), 0);
	CU_ASSERT_EQUAL(state.version, 5);
	scratch_unmap(&view);
	segment_writer_close(writer);
	cbshm_close(client);
}

/* ---- killed at any moment --------------------------------------------------------------- */

#define KILLS        500
#define KILL_NAMES   24
#define KILL_READERS 2

static void kill_name(char text[32], unsigned int i)
{
	snprintf(text, 32, "kill-%u", i);
}

/* Changes everything as fast as it can, until it is killed. Number 0 is never removed. */
static void busy_writer(const char *name, uint64_t first, unsigned int seed)
{
	struct segment_writer *writer = scratch_writer(name, 32);
	uint64_t version = first;
	struct pattern pattern;

	segment_writer_set_cool_down(writer, 0);
	for (;;) {
		unsigned int i = (unsigned int)rand_r(&seed) % KILL_NAMES;
		char breaker[32];

		kill_name(breaker, i);
		pattern_fill(&pattern, breaker, ++version);
		if (i != 0 && rand_r(&seed) % 4 == 0)
			segment_writer_remove(writer, breaker);
		else
			segment_writer_put(writer, &pattern.row, false);
	}
}

static volatile sig_atomic_t asked_to_stop;

static void stop(int signal)
{
	(void)signal;
	asked_to_stop = 1;
}

/* Looks at everything all the time; exits with what was wrong, 0 for nothing. */
static int busy_reader(const char *name)
{
	struct cbshm *client = scratch_client(name);
	struct cbshm_breaker *handles[KILL_NAMES];
	uint64_t versions[KILL_NAMES] = {0};
	uint64_t reads = 0;
	char breaker[32];

	for (unsigned int i = 0; i < KILL_NAMES; i++) {
		kill_name(breaker, i);
		handles[i] = scratch_breaker(client, breaker);
	}
	while (!asked_to_stop) {
		for (unsigned int i = 0; i < KILL_NAMES; i++) {
			struct cbshm_decision decision = cbshm_check(handles[i]);
			struct cbshm_state state;
			int error = cbshm_get_state(handles[i], &state);

			reads++;
			if (decision.basis == CBSHM_BASIS_NO_SEGMENT)
				return 1;
			if (i == 0 && (decision.basis != CBSHM_BASIS_SEGMENT || error))
				return 2;
			if (decision.basis == CBSHM_BASIS_SEGMENT &&
			    decision.disabled != decision.epoch % 2)
				return 3;
			if (error == CBSHM_ERR_NOT_FOUND || error == CBSHM_ERR_BUSY)
				continue;
			if (error)
				return 4;
			if (pattern_wrong(&state) ||
			    strcmp(state.name, cbshm_breaker_name(handles[i])) != 0)
				return 5;
			/* Never older than what a check has said, or an earlier state. */
			if (state.version < versions[i] || (decision.basis == CBSHM_BASIS_SEGMENT &&
							    state.version < decision.epoch))
				return 6;
			versions[i] = state.version;
		}
	}
	return reads > 1000 ? 0 : 7;
}

static unsigned int odd_sequences(const char *name)
{
	struct segment_view view = scratch_map(name);
	unsigned int odd = 0;

	for (uint32_t slot = 0; slot < segment_allocated(&view); slot++)
		odd += segment_record(&view, slot)->sequence % 2 != 0;
	scratch_unmap(&view);
	return odd;
}

static void kill_writer(const char *name, unsigned int seed)
{
	struct timespec pause = {0, 200000 + (long)(seed * 7919u % 4000u) * 1000};

	fflush(stdout);
	pid_t child = child_fork();
	if (child == 0) {
		busy_writer(name, (uint64_t)seed * 1000000, seed);
		_exit(1);
	}
	nanosleep(&pause, NULL);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

static void check_survivors(const char *name, struct cbshm *client)
{
	struct segment_writer *writer = scratch_writer(name, 32);
	char breaker[CBSHM_NAME_ROOM];
	struct cbshm_detail detail;
	uint32_t live = 0;

	for (uint32_t slot = 0; slot < segment_writer_slots(writer); slot++) {
		if (!segment_writer_read(writer, slot, breaker, &detail))
			continue;
		live++;
		struct cbshm_breaker *handle = scratch_breaker(client, breaker);
		CU_ASSERT(shows(handle, detail.version));
		cbshm_breaker_close(handle);
	}
	CU_ASSERT_EQUAL(live, segment_writer_breakers(writer));
	segment_writer_close(writer);
}

static void test_killed_at_random(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 32);
	struct cbshm *client = scratch_client(name);
	pid_t readers[KILL_READERS];
	struct cbshm_health health;
	unsigned int odd = 0;

	put_pattern(writer, "kill-0", 1);
	segment_writer_close(writer);
	ino_t inode = inode_of(name);
	fflush(stdout);
	for (int i = 0; i < KILL_READERS; i++) {
		readers[i] = child_fork();
		if (readers[i] == 0) {
			signal(SIGTERM, stop);
			_exit(busy_reader(name));
		}
	}
	for (unsigned int i = 0; i < KILLS; i++) {
		kill_writer(name, i + 1);
		CU_ASSERT_EQUAL(cbshm_health(client, &health), 0);
		CU_ASSERT(!health.agent_alive);
		odd += odd_sequences(name);
		check_survivors(name, client);
	}
	CU_ASSERT_EQUAL(inode_of(name), inode);
	for (int i = 0; i < KILL_READERS; i++) {
		int status;

		kill(readers[i], SIGTERM);
		waitpid(readers[i], &status, 0);
		CU_ASSERT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
		if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
			tap_note("reader: status %#x", (unsigned int)status);
	}
	tap_note("%d kills, %u in the middle of a latch", KILLS, odd);
	cbshm_close(client);
}

/* ---- replacement ------------------------------------------------------------------------ */

static void test_capacity_change(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 16);
	struct cbshm *client = scratch_client(name);
	struct cbshm_breaker *closed_one = scratch_breaker(client, "closed");
	struct cbshm_breaker *open_one = scratch_breaker(client, "open");
	struct cbshm_breaker *ttl = scratch_breaker(client, "ttl");
	struct cbshm_breaker *unknown = scratch_breaker(client, "unknown");
	struct breaker_row row = row_open("ttl", 3);
	struct cbshm_health health;
	char breaker[32];

	row.disabled_until = scratch_now() + 60000000;
	put_pattern(writer, "removed", 1);
	put_pattern(writer, "closed", 4);
	put_pattern(writer, "open", 5);
	put(writer, row);
	segment_writer_remove(writer, "removed");
	CU_ASSERT(shows(closed_one, 4));
	ino_t inode = inode_of(name);
	segment_writer_close(writer);

	/* Nothing is lost, and nobody sees an empty segment. */
	writer = scratch_writer(name, 4000);
	CU_ASSERT_NOT_EQUAL(inode_of(name), inode);
	CU_ASSERT(shows(closed_one, 4));
	CU_ASSERT(shows(open_one, 5));
	CU_ASSERT(cbshm_is_disabled(ttl));
	CU_ASSERT_EQUAL(cbshm_check(unknown).basis, CBSHM_BASIS_UNKNOWN);
	CU_ASSERT_EQUAL(cbshm_health(client, &health), 0);
	CU_ASSERT_EQUAL(health.capacity, 4000);
	CU_ASSERT_EQUAL(health.boot_epoch, 2);
	CU_ASSERT(health.agent_alive);
	/* And all follow what happens in the new one. */
	put_pattern(writer, "closed", 7);
	put_pattern(writer, "open", 8);
	put_pattern(writer, "unknown", 9);
	CU_ASSERT(shows(closed_one, 7));
	CU_ASSERT(shows(open_one, 8));
	CU_ASSERT(shows(unknown, 9));
	for (unsigned int i = 0; i < 50; i++) {
		snprintf(breaker, sizeof(breaker), "b%u", i);
		put_pattern(writer, breaker, i + 1);
	}
	segment_writer_close(writer);

	/* Less than there are is refused, and changes nothing. */
	char message[256];
	inode = inode_of(name);
	CU_ASSERT_EQUAL(try_writer(name, 32, 0644, message), -ENOSPC);
	CU_ASSERT_PTR_NOT_NULL(strstr(message, "54"));
	CU_ASSERT_EQUAL(inode_of(name), inode);
	CU_ASSERT(shows(closed_one, 7));
	writer = scratch_writer(name, 54);
	CU_ASSERT(shows(closed_one, 7));
	CU_ASSERT(!segment_writer_has_room(writer));
	segment_writer_close(writer);
	cbshm_close(client);
}

/* MOVED is set, and the replacement never came. */
static void test_killed_in_replacement(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 16);
	struct cbshm *client = scratch_client(name);
	struct cbshm_breaker *open_one = scratch_breaker(client, "open");
	struct cbshm_breaker *closed_one = scratch_breaker(client, "closed");
	struct cbshm_breaker *unknown = scratch_breaker(client, "unknown");
	struct segment_view view = scratch_map(name);

	put_pattern(writer, "open", 3);
	put_pattern(writer, "closed", 4);
	for (uint32_t slot = 0; slot < 16; slot++)
		*segment_word(&view, slot) |= CBSHM_WORD_MOVED;
	segment_header(&view)->index_word |= CBSHM_WORD_MOVED;
	/* A handle that is made now must go on looking for the replacement. */
	struct cbshm_breaker *late = scratch_breaker(client, "late");
	CU_ASSERT_EQUAL(late->live & CBSHM_WORD_MOVED, 0);
	CU_ASSERT_EQUAL(cbshm_check(late).basis, CBSHM_BASIS_UNKNOWN);
	for (int i = 0; i < 2; i++) {
		CU_ASSERT(shows(open_one, 3));
		CU_ASSERT(shows(closed_one, 4));
		CU_ASSERT_EQUAL(cbshm_check(unknown).basis, CBSHM_BASIS_UNKNOWN);
	}
	segment_writer_close(writer);
	writer = scratch_writer(name, 16);
	CU_ASSERT_EQUAL(*segment_word(&view, 1) & CBSHM_WORD_MOVED, 0);
	CU_ASSERT_EQUAL(segment_header(&view)->index_word & CBSHM_WORD_MOVED, 0);
	put_pattern(writer, "unknown", 5);
	CU_ASSERT(shows(open_one, 3));
	CU_ASSERT(shows(closed_one, 4));
	CU_ASSERT(shows(unknown, 5));
	scratch_unmap(&view);
	segment_writer_close(writer);
	cbshm_close(client);
}

static void test_generations_used_up(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 16);
	struct cbshm *client = scratch_client(name);
	struct cbshm_breaker *stays = scratch_breaker(client, "stays");
	struct segment_view view = scratch_map(name);

	put_pattern(writer, "stays", 4);
	CU_ASSERT(shows(stays, 4));
	segment_writer_close(writer);
	segment_header(&view)->index_word =
		CBSHM_WORD_INDEX | (uint64_t)(CBSHM_GENERATION_MAX - 3)
					   << CBSHM_WORD_GENERATION_SHIFT;
	scratch_unmap(&view);
	writer = scratch_writer(name, 16);
	ino_t inode = inode_of(name);
	for (uint64_t i = 0; i < 8; i++) {
		put_pattern(writer, "comes", 2 * i + 1);
		CU_ASSERT(shows(scratch_breaker(client, "comes"), 2 * i + 1));
		segment_writer_remove(writer, "comes");
		CU_ASSERT(shows(stays, 4));
	}
	CU_ASSERT_NOT_EQUAL(inode_of(name), inode);
	put_pattern(writer, "stays", 5);
	CU_ASSERT(shows(stays, 5));
	view = scratch_map(name);
	CU_ASSERT(word_generation(segment_header(&view)->index_word) <
		  CBSHM_GENERATION_MAX / 2 + 20);
	/* Also when the last one was handed out by an agent that is gone. */
	segment_writer_close(writer);
	segment_header(&view)->index_word = CBSHM_WORD_INDEX | CBSHM_WORD_GENERATION_MASK;
	scratch_unmap(&view);
	inode = inode_of(name);
	writer = scratch_writer(name, 16);
	CU_ASSERT_NOT_EQUAL(inode_of(name), inode);
	CU_ASSERT(shows(stays, 5));
	segment_writer_close(writer);
	cbshm_close(client);
}

static void test_name_lost(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 16);
	struct cbshm *client = scratch_client(name);
	struct cbshm_breaker *breaker = scratch_breaker(client, "a");

	put_pattern(writer, "a", 4);
	CU_ASSERT(shows(breaker, 4));
	unlink(scratch_path(name, ""));
	put_pattern(writer, "a", 6);
	CU_ASSERT(shows(breaker, 6));
	segment_writer_heartbeat(writer);
	CU_ASSERT(inode_of(name) != 0);
	put_pattern(writer, "a", 7);
	CU_ASSERT(shows(breaker, 7));
	struct cbshm *late = scratch_client(name);
	CU_ASSERT(shows(scratch_breaker(late, "a"), 7));
	cbshm_close(late);
	segment_writer_close(writer);
	cbshm_close(client);
}

static void test_other_boot(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 16);
	struct cbshm *client = scratch_client(name);
	struct cbshm_breaker *breaker = scratch_breaker(client, "a");
	struct segment_view view = scratch_map(name);

	put_pattern(writer, "a", 5);
	segment_writer_close(writer);
	segment_header(&view)->boot_id[3] ^= 1;
	scratch_unmap(&view);
	ino_t inode = inode_of(name);
	writer = scratch_writer(name, 16);
	CU_ASSERT_NOT_EQUAL(inode_of(name), inode);
	CU_ASSERT_EQUAL(segment_writer_breakers(writer), 0);
	put_pattern(writer, "a", 6);
	CU_ASSERT(shows(breaker, 6));
	segment_writer_close(writer);
	cbshm_close(client);
}

int main(void)
{
	CU_initialize_registry();
	CU_pSuite suite = CU_add_suite("takeover", NULL, NULL);
	CU_add_test(suite, "a restart keeps inode, slots and contents", test_restart);
	CU_add_test(suite, "two agents on one segment", test_two_agents);
	CU_add_test(suite, "impossible options", test_options);
	CU_add_test(suite, "killed at each step of an update", test_killed_in_latch);
	CU_add_test(suite, "killed while a policy changes", test_killed_in_policy_change);
	CU_add_test(suite, "killed at each step of an insert", test_killed_in_insert);
	CU_add_test(suite, "killed while a slot is used again", test_killed_in_reuse);
	CU_add_test(suite, "a damaged index is repaired", test_damaged_index);
	CU_add_test(suite, "a damaged record holds its decision", test_damaged_record);
	CU_add_test(suite, "killed at random moments under readers", test_killed_at_random);
	CU_add_test(suite, "another capacity moves the readers", test_capacity_change);
	CU_add_test(suite, "killed in a replacement", test_killed_in_replacement);
	CU_add_test(suite, "used-up generations", test_generations_used_up);
	CU_add_test(suite, "a name that was taken away", test_name_lost);
	CU_add_test(suite, "a segment of another boot", test_other_boot);
	return tap_run_cunit();
}
