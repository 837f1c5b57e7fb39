/*
 * test_compat.c - old readers and a new agent, and the other way round, within major version 1 of the layout
 *
 * SPDX-License-Identifier: ISC
 *
 * The old side is version_1_0.h, which never changes; the new one is the source as it is.
 */
#include "config.h"

#include <CUnit/CUnit.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "cbshm/latch.h"
#include "libcbshm/boot.h"
#include "tests/compat/version_1_0.h"
#include "tests/support/segment.h"
#include "tests/support/tap.h"

static struct v10_detail old_detail(uint64_t version, bool disabled)
{
	struct v10_detail detail = {
		.version = version,
		.opened_at = disabled ? 11 : INT64_MIN,
		.disabled_until = INT64_MIN,
		.last_failure_at = 12,
		.updated_at = 13,
		.deadline = INT64_MAX,
		.default_ttl = 14,
		.drift_threshold = 0.25,
		.failure_threshold = 15,
		.schema_error_threshold = 16,
		.consecutive_failures = 17,
		.flags = (disabled ? 1 : 0) | 2,
		.actor_length = disabled ? 3 : 0,
		.reason_length = disabled ? 6 : 0,
	};
	if (disabled) {
		memcpy(detail.disabled_by, "old", 3);
		memcpy(detail.disabled_reason, "agents", 6);
		memset(detail.incident_id, 0xab, 16);
	}
	return detail;
}

static void old_put(const struct v10_segment *segment, uint32_t slot, const char *name,
		    uint64_t version, bool disabled)
{
	struct v10_detail detail = old_detail(version, disabled);

	v10_put(segment, slot, name, &detail);
}

static void old_sees(const struct v10_segment *segment, const char *name, uint64_t version,
		     bool disabled)
{
	int64_t slot = v10_find(segment, name);
	struct v10_detail detail;
	uint64_t word;

	CU_ASSERT_FATAL(slot >= 0);
	CU_ASSERT(v10_read(segment, (uint32_t)slot, &word, &detail));
	CU_ASSERT_EQUAL(detail.version, version);
	CU_ASSERT_EQUAL(word & 1, disabled);
	CU_ASSERT_EQUAL(detail.flags & 1, disabled);
	if (disabled) {
		CU_ASSERT_EQUAL(detail.actor_length, strlen("somebody"));
		CU_ASSERT_EQUAL(memcmp(detail.disabled_by, "somebody", 8), 0);
		CU_ASSERT_EQUAL(memcmp(detail.disabled_reason, "some reason", 11), 0);
	}
}

/* Engines that were built with 1.0 stay when the agent is upgraded, and go on being right. */
static void test_old_reader(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 3000);
	struct v10_segment old;
	char breaker[32];

	put(writer, row_open("open", 3));
	put(writer, row_closed("closed", 4));
	CU_ASSERT_FATAL(v10_map(&old, scratch_path(name, "")));
	old_sees(&old, "open", 3, true);
	old_sees(&old, "closed", 4, false);
	CU_ASSERT_EQUAL(v10_find(&old, "unknown"), -1);
	/* What changes, goes, comes and grows. */
	put(writer, row_closed("open", 5));
	put(writer, row_open("closed", 7));
	old_sees(&old, "open", 5, false);
	old_sees(&old, "closed", 7, true);
	segment_writer_remove(writer, "open");
	CU_ASSERT_EQUAL(v10_find(&old, "open"), -1);
	for (unsigned int i = 0; i < 2500; i++) {
		snprintf(breaker, sizeof(breaker), "b%u", i);
		put(writer, row_open(breaker, i + 1));
	}
	old_sees(&old, "b0", 1, true);
	old_sees(&old, "b2499", 2500, true);
	/* A restart of the agent goes on in the same file, and the old reader sees what comes. */
	segment_writer_close(writer);
	writer = scratch_writer(name, 3000);
	put(writer, row_closed("b7", 9));
	old_sees(&old, "b7", 9, false);
	CU_ASSERT_EQUAL(v10_live_header(&old)->boot_epoch, 2);
	/* A replacement sets bit 4 in every word, and then the state 5. */
	segment_writer_close(writer);
	writer = scratch_writer(name, 4000);
	CU_ASSERT(*v10_word(&old, 0) & 16);
	CU_ASSERT_EQUAL(v10_live_header(&old)->state, 5);
	munmap(old.base, old.header.total_size);
	CU_ASSERT_FATAL(v10_map(&old, scratch_path(name, "")));
	old_sees(&old, "b7", 9, false);
	munmap(old.base, old.header.total_size);
	segment_writer_close(writer);
}

/* An agent of 1.0 that has not been upgraded yet serves engines that have. */
static void test_old_writer(void)
{
	const char *name = scratch_segment();
	struct v10_segment old;
	struct cbshm_health health;
	struct cbshm_state state;
	uint8_t boot_id[16] = {0};

	boot_id_read(boot_id);
	CU_ASSERT_FATAL(v10_create(&old, scratch_path(name, ""), boot_id));
	old_put(&old, 0, "open", 3, true);
	struct cbshm *client = scratch_client(name);
	struct cbshm_breaker *open_one = scratch_breaker(client, "open");
	struct cbshm_breaker *later = scratch_breaker(client, "later");
	CU_ASSERT_EQUAL(cbshm_segment_status(client), 0);
	CU_ASSERT(cbshm_is_disabled(open_one));
	CU_ASSERT_EQUAL(cbshm_get_state(open_one, &state), 0);
	CU_ASSERT_EQUAL(state.version, 3);
	CU_ASSERT_EQUAL(state.consecutive_failures, 17);
	CU_ASSERT_EQUAL(state.policy.drift_threshold, 0.25);
	CU_ASSERT_STRING_EQUAL(state.disabled_by, "old");
	CU_ASSERT_STRING_EQUAL(state.disabled_reason, "agents");
	CU_ASSERT_STRING_EQUAL(state.incident_id, "abababab-abab-abab-abab-abababababab");
	CU_ASSERT_EQUAL(cbshm_check(later).basis, CBSHM_BASIS_UNKNOWN);
	old_put(&old, 1, "later", 5, true);
	CU_ASSERT(cbshm_is_disabled(later));
	old_put(&old, 0, "open", 4, false);
	CU_ASSERT(!cbshm_is_disabled(open_one));
	CU_ASSERT_EQUAL(cbshm_check(open_one).epoch, 4);
	CU_ASSERT_EQUAL(cbshm_health(client, &health), 0);
	CU_ASSERT_EQUAL(health.boot_epoch, 7);
	CU_ASSERT_EQUAL(health.breakers, 2);
	CU_ASSERT(health.agent_alive);

	/* The upgraded agent takes the file over as it is; nobody has to map anything anew. */
	struct stat before, after;
	CU_ASSERT_EQUAL(stat(scratch_path(name, ""), &before), 0);
	struct segment_writer *writer = scratch_writer(name, 16);
	CU_ASSERT_EQUAL(stat(scratch_path(name, ""), &after), 0);
	CU_ASSERT_EQUAL(before.st_ino, after.st_ino);
	CU_ASSERT_EQUAL(segment_writer_breakers(writer), 2);
	CU_ASSERT_EQUAL(segment_writer_boot_epoch(writer), 8);
	CU_ASSERT(cbshm_is_disabled(later));
	put(writer, row_closed("later", 6));
	CU_ASSERT(!cbshm_is_disabled(later));
	old_sees(&old, "later", 6, false);
	segment_writer_close(writer);
	munmap(old.base, old.header.total_size);
	cbshm_close(client);
}

/* Minor versions and compatible features of the future are accepted by both, incompatible ones by neither. */
static void test_future(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 16);
	struct segment_view view = scratch_map(name);
	struct cbshm_segment_header *header = segment_header(&view);
	struct v10_segment old;

	put(writer, row_open("open", 3));
	header->layout_minor = 9;
	header->feature_compat = 0x80000001;
	header->reserved1 = header->reserved2[3] = UINT64_MAX;
	struct cbshm *client = scratch_client(name);
	CU_ASSERT_EQUAL(cbshm_segment_status(client), 0);
	CU_ASSERT(cbshm_is_disabled(scratch_breaker(client, "open")));
	CU_ASSERT_FATAL(v10_map(&old, scratch_path(name, "")));
	old_sees(&old, "open", 3, true);
	munmap(old.base, old.header.total_size);
	cbshm_close(client);

	header->feature_incompat = 0x100;
	client = scratch_client(name);
	CU_ASSERT_EQUAL(cbshm_segment_status(client), CBSHM_ERR_LAYOUT);
	CU_ASSERT(!v10_map(&old, scratch_path(name, "")));
	cbshm_close(client);
	header->feature_incompat = 0;
	header->layout_major = 2;
	client = scratch_client(name);
	CU_ASSERT_EQUAL(cbshm_segment_status(client), CBSHM_ERR_LAYOUT);
	CU_ASSERT(!v10_map(&old, scratch_path(name, "")));
	cbshm_close(client);
	scratch_unmap(&view);
	segment_writer_close(writer);
}

int main(void)
{
	CU_initialize_registry();
	CU_pSuite suite = CU_add_suite("compat", NULL, NULL);
	CU_add_test(suite, "a reader of layout 1.0", test_old_reader);
	CU_add_test(suite, "a writer of layout 1.0", test_old_writer);
	CU_add_test(suite, "layouts of the future", test_future);
	return tap_run_cunit();
}
