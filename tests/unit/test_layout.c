/*
 * test_layout.c - the header of a new segment, byte by byte
 *
 * SPDX-License-Identifier: ISC
 *
 * Readers in other languages, and older ones of ours, live by these bytes. If this fails, cbshm-segment(5) is
 * wrong, and perhaps CBSHM_LAYOUT_MAJOR or _MINOR too.
 */
#include "config.h"

#include <CUnit/CUnit.h>
#include <stdio.h>
#include <string.h>

#include "tests/support/segment.h"
#include "tests/support/tap.h"

#define HEADER_BYTES 448

/* Of a segment for 16 breakers in which nothing has happened; what differs each time is taken as 0. */
static const char golden[] =
	"00000000  43 42 53 48 4d 53 45 47 04 03 02 01 01 00 01 00\n" /* magic, byte order, version 1.1 */
	"00000010  a0 01 00 04 c0 01 01 00 00 00 00 00 00 00 00 00\n" /* layout hash, features */
	"00000020  00 10 00 00 00 04 00 00 10 00 00 00 20 00 00 00\n" /* header 4096, record 1024, 16, 32 */
	"00000030  00 10 00 00 00 00 00 00 00 20 00 00 00 00 00 00\n" /* index, words */
	"00000040  00 30 00 00 00 00 00 00 00 70 00 00 00 00 00 00\n" /* records, total size */
	"00000080  01 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00\n" /* recovering, boot epoch 1 */
	"00000090  10 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00\n" /* allocated */
	"000000c0  08 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00\n" /* index word, without its generation */
	;

static void blank(unsigned char *header, size_t offset, size_t length)
{
	memset(header + offset, 0, length);
}

/* The lines that are not all zero. */
static void dump(char *text, size_t size, const unsigned char *bytes)
{
	static const unsigned char zeros[16];
	size_t at = 0;

	text[0] = '\0';
	for (size_t i = 0; i < HEADER_BYTES; i += 16) {
		if (memcmp(&bytes[i], zeros, 16) == 0)
			continue;
		at += (size_t)snprintf(text + at, size - at, "%08zx ", i);
		for (size_t k = 0; k < 16; k++)
			at += (size_t)snprintf(text + at, size - at, " %02x", bytes[i + k]);
		at += (size_t)snprintf(text + at, size - at, "\n");
	}
}

static void test_golden_header(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 16);
	struct segment_view view = scratch_map(name);
	unsigned char header[HEADER_BYTES];
	char text[4096];

	memcpy(header, view.base, sizeof(header));
	CU_ASSERT_NOT_EQUAL(header[384], 0);
	blank(header, 80, 16);  /* hash_key */
	blank(header, 96, 16);  /* boot_id */
	blank(header, 160, 16); /* clock_offset, owner_pid */
	blank(header, 196, 4);  /* no epoch in the index word */
	header[192] &= 0x3f;    /* its generation */
	blank(header, 193, 3);
	blank(header, 256, 8);  /* change_sequence */
	blank(header, 320, 16); /* heartbeat, database_confirmed */
	blank(header, 384, 64); /* the owner */
	dump(text, sizeof(text), header);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	CU_ASSERT_STRING_EQUAL(text, golden);
	if (strcmp(text, golden) != 0)
		tap_note("%s", text);
#else
	tap_skip("the bytes are those of a little-endian host");
#endif
	scratch_unmap(&view);
	segment_writer_close(writer);
}

/* A record whose every field has bytes of its own, as the page has their offsets. */
static void test_golden_record(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 16);
	struct segment_view view = scratch_map(name);
	struct breaker_row row = {
		.name = "golden",
		.version = UINT64_C(0x0102030405060708),
		.disabled = true,
		.disabled_by = "somebody",
		.disabled_reason = "something",
		.opened_at = INT64_C(0x1112131415161718),
		.disabled_until = INT64_MIN,
		.consecutive_failures = 0x21222324,
		.last_failure_at = INT64_C(0x3132333435363738),
		.updated_at = INT64_C(0x4142434445464748),
		.drift_threshold = 0.5,
		.failure_threshold = 0x51525354,
		.schema_error_threshold = 0x61626364,
		.default_ttl = INT64_C(0x7172737475767778),
		.auto_recover = true,
	};
	for (int i = 0; i < 16; i++)
		row.incident_id[i] = (uint8_t)(0x80 + i);
	put(writer, row);
	const unsigned char *record = view.base + 0x3000;
	const unsigned char *copy = record + 192;
	const uint64_t word = *(const uint64_t *)(const void *)(view.base + 0x2000);
	uint64_t length = *(const uint64_t *)(const void *)(record + 8);

	CU_ASSERT_EQUAL(length, 6);
	CU_ASSERT_EQUAL(memcmp(record + 64, "golden\0", 8), 0);
	CU_ASSERT_EQUAL(memcmp(copy, record + 608, 416), 0);
	CU_ASSERT_EQUAL(memcmp(copy, &row.version, 8), 0);
	CU_ASSERT_EQUAL(memcmp(copy + 8, &row.opened_at, 8), 0);
	CU_ASSERT_EQUAL(memcmp(copy + 16, &row.disabled_until, 8), 0);
	CU_ASSERT_EQUAL(memcmp(copy + 24, &row.last_failure_at, 8), 0);
	CU_ASSERT_EQUAL(memcmp(copy + 32, &row.updated_at, 8), 0);
	CU_ASSERT_EQUAL(memcmp(copy + 40, &(int64_t){INT64_MAX}, 8), 0);
	CU_ASSERT_EQUAL(memcmp(copy + 48, &row.default_ttl, 8), 0);
	CU_ASSERT_EQUAL(memcmp(copy + 56, &row.drift_threshold, 8), 0);
	CU_ASSERT_EQUAL(memcmp(copy + 64, &row.failure_threshold, 4), 0);
	CU_ASSERT_EQUAL(memcmp(copy + 68, &row.schema_error_threshold, 4), 0);
	CU_ASSERT_EQUAL(memcmp(copy + 72, &row.consecutive_failures, 4), 0);
	CU_ASSERT_EQUAL(memcmp(copy + 76, &(uint32_t){3}, 4), 0);
	CU_ASSERT_EQUAL(memcmp(copy + 80, row.incident_id, 16), 0);
	CU_ASSERT_EQUAL(memcmp(copy + 96, &(uint16_t){8}, 2), 0);
	CU_ASSERT_EQUAL(memcmp(copy + 98, &(uint16_t){9}, 2), 0);
	CU_ASSERT_EQUAL(memcmp(copy + 104, "somebody\0", 9), 0);
	CU_ASSERT_EQUAL(memcmp(copy + 176, "something\0", 10), 0);
	CU_ASSERT_EQUAL(word >> 32, 0x05060708);
	CU_ASSERT_EQUAL(word & 0x3f, 5); /* DISABLED, AUTO_RECOVER */
	CU_ASSERT_NOT_EQUAL(word >> 6 & 0x3ffffff, 0);
	scratch_unmap(&view);
	segment_writer_close(writer);
}

int main(void)
{
	CU_initialize_registry();
	CU_pSuite suite = CU_add_suite("layout", NULL, NULL);
	CU_add_test(suite, "the header of a new segment", test_golden_header);
	CU_add_test(suite, "a record", test_golden_record);
	return tap_run_cunit();
}
