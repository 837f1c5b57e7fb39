/*
 * version_1_0.h - layout 1.0 of the segment, a reader and a writer of it, as they were when it was published. Frozen.
 *
 * SPDX-License-Identifier: ISC
 *
 * Not to be changed together with include/cbshm/segment.h: it stands for the programs out there that were built with 1.0. As
 * long as the major version is 1, test_compat.c must pass with this file as it is. It takes nothing from the rest of
 * the source, and does as little as a reader and a writer can.
 */
#ifndef TESTS_COMPAT_VERSION_1_0_H
#define TESTS_COMPAT_VERSION_1_0_H

#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct v10_header {
	uint64_t magic;
	uint32_t byte_order;
	uint16_t layout_major, layout_minor;
	uint64_t layout_hash;
	uint32_t feature_compat, feature_incompat;
	uint32_t header_size, record_size, capacity, index_size;
	uint64_t index_offset, words_offset, records_offset, total_size;
	uint64_t hash_key[2];
	uint8_t boot_id[16];
	uint64_t reserved0[2];
	uint64_t state, boot_epoch, allocated, breakers;
	int64_t clock_offset;
	uint64_t owner_pid, reserved1[2];
	uint64_t index_word, reserved2[7];
	uint64_t change_sequence, reserved3[7];
	uint64_t heartbeat, database_confirmed, reserved4[6];
	uint32_t owner_word_offset, reserved5;
	uint64_t owner_mutex[7];
};

struct v10_detail {
	uint64_t version;
	int64_t opened_at, disabled_until, last_failure_at, updated_at, deadline, default_ttl;
	double drift_threshold;
	uint32_t failure_threshold, schema_error_threshold, consecutive_failures, flags;
	uint8_t incident_id[16];
	uint16_t actor_length, reason_length;
	uint32_t reserved0;
	char disabled_by[72], disabled_reason[240];
};

struct v10_record {
	uint64_t sequence, name_length, reserved[6];
	char name[128];
	uint64_t copies[2][52];
};

_Static_assert(sizeof(struct v10_header) == 448 && sizeof(struct v10_record) == 1024 &&
		       sizeof(struct v10_detail) == 416,
	       "layout 1.0");

#define V10_MAGIC UINT64_C(0x4745534d48534243)
#define V10_HASH  UINT64_C(0x000101c0040001a0)

struct v10_segment {
	unsigned char *base;
	struct v10_header header; /* as it was when it was mapped */
};

static inline struct v10_header *v10_live_header(const struct v10_segment *segment)
{
	return (struct v10_header *)(void *)segment->base;
}

static inline uint64_t *v10_word(const struct v10_segment *segment, uint32_t slot)
{
	return (uint64_t *)(void *)(segment->base + segment->header.words_offset) + slot;
}

static inline struct v10_record *v10_record(const struct v10_segment *segment, uint32_t slot)
{
	return (struct v10_record *)(void *)(segment->base + segment->header.records_offset) + slot;
}

static inline uint64_t *v10_bucket(const struct v10_segment *segment, uint32_t bucket)
{
	return (uint64_t *)(void *)(segment->base + segment->header.index_offset) +
	       (bucket & (segment->header.index_size - 1));
}

/* SipHash-2-4, for names that fit in 15 bytes and a little more. */
static inline uint64_t v10_hash(const uint64_t key[2], const char *name, size_t length)
{
	uint64_t v0 = key[0] ^ UINT64_C(0x736f6d6570736575);
	uint64_t v1 = key[1] ^ UINT64_C(0x646f72616e646f6d);
	uint64_t v2 = key[0] ^ UINT64_C(0x6c7967656e657261);
	uint64_t v3 = key[1] ^ UINT64_C(0x7465646279746573);
	size_t words = length / 8 + 1;

	for (size_t i = 0; i <= words; i++) {
		uint64_t m = 0;
		int rounds = i < words ? 2 : 4;

		if (i < words) {
			memcpy(&m, name + 8 * i, i + 1 < words ? 8 : length % 8);
			if (i + 1 == words)
				m |= (uint64_t)length << 56;
			v3 ^= m;
		} else {
			v2 ^= 0xff;
		}
		while (rounds--) {
			v0 += v1, v1 = v1 << 13 | v1 >> 51, v1 ^= v0, v0 = v0 << 32 | v0 >> 32;
			v2 += v3, v3 = v3 << 16 | v3 >> 48, v3 ^= v2;
			v0 += v3, v3 = v3 << 21 | v3 >> 43, v3 ^= v0;
			v2 += v1, v1 = v1 << 17 | v1 >> 47, v1 ^= v2, v2 = v2 << 32 | v2 >> 32;
		}
		v0 ^= m;
	}
	return v0 ^ v1 ^ v2 ^ v3;
}

/* ---- the reader of 1.0 ------------------------------------------------------------------ */

static inline bool v10_accepts(const struct v10_header *header)
{
	return header->magic == V10_MAGIC && header->byte_order == 0x01020304 &&
	       header->layout_major == 1 && header->layout_hash == V10_HASH &&
	       header->feature_incompat == 0 && header->state != 0 && header->header_size >= 448 &&
	       header->record_size == 1024;
}

static inline bool v10_map(struct v10_segment *segment, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	bool good = fd >= 0 &&
		    pread(fd, &segment->header, sizeof(segment->header), 0) ==
			    (ssize_t)sizeof(segment->header) &&
		    v10_accepts(&segment->header);

	if (good) {
		segment->base =
			mmap(NULL, segment->header.total_size, PROT_READ, MAP_SHARED, fd, 0);
		good = segment->base != MAP_FAILED;
	}
	if (fd >= 0)
		close(fd);
	return good;
}

/* The slot of a name, or -1. */
static inline int64_t v10_find(const struct v10_segment *segment, const char *name)
{
	size_t length = strlen(name);
	uint64_t hash = v10_hash(segment->header.hash_key, name, length);

	for (uint32_t i = 0; i < segment->header.index_size; i++) {
		uint64_t bucket =
			__atomic_load_n(v10_bucket(segment, (uint32_t)hash + i), __ATOMIC_ACQUIRE);
		uint32_t slot = (uint32_t)bucket - 1;

		if (bucket == 0)
			return -1;
		if (bucket == UINT64_MAX || bucket >> 32 != hash >> 32 ||
		    slot >= v10_live_header(segment)->allocated)
			continue;
		const struct v10_record *record = v10_record(segment, slot);
		if (record->name_length == length && memcmp(record->name, name, length) == 0 &&
		    (*v10_word(segment, slot) >> 6 & 0x3ffffff) != 0)
			return slot;
	}
	return -1;
}

/* Only while nobody writes: the tests of the latch are elsewhere. */
static inline bool v10_read(const struct v10_segment *segment, uint32_t slot, uint64_t *word,
			    struct v10_detail *detail)
{
	const struct v10_record *record = v10_record(segment, slot);
	uint64_t sequence = __atomic_load_n(&record->sequence, __ATOMIC_ACQUIRE);

	*word = __atomic_load_n(v10_word(segment, slot), __ATOMIC_ACQUIRE);
	memcpy(detail, record->copies[sequence & 1], sizeof(*detail));
	return (uint32_t)detail->version == *word >> 32;
}

/* ---- the writer of 1.0 ------------------------------------------------------------------ */

static inline bool v10_create(struct v10_segment *segment, const char *path,
			      const uint8_t boot_id[16])
{
	struct v10_header header = {
		.magic = V10_MAGIC,
		.byte_order = 0x01020304,
		.layout_major = 1,
		.layout_minor = 0,
		.layout_hash = V10_HASH,
		.header_size = 4096,
		.record_size = 1024,
		.capacity = 16,
		.index_size = 32,
		.index_offset = 4096,
		.words_offset = 8192,
		.records_offset = 12288,
		.total_size = 12288 + 16 * 1024,
		.hash_key = {UINT64_C(0x0123456789abcdef), UINT64_C(0xfedcba9876543210)},
		.state = 2,
		.boot_epoch = 7,
		.allocated = 16,
		.index_word = 8,
		.owner_word_offset = 392,
	};
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);

	if (fd < 0 || posix_fallocate(fd, 0, (off_t)header.total_size) != 0)
		return false;
	segment->base = mmap(NULL, header.total_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (segment->base == MAP_FAILED)
		return false;
	memcpy(header.boot_id, boot_id, 16);
	header.owner_mutex[0] = (uint64_t)gettid();
	segment->header = header;
	memcpy(segment->base, &header, sizeof(header));
	return true;
}

static inline void v10_latch(const struct v10_segment *segment, uint32_t slot, uint64_t word,
			     const struct v10_detail *detail)
{
	struct v10_record *record = v10_record(segment, slot);

	__atomic_store_n(&record->sequence, record->sequence + 1, __ATOMIC_SEQ_CST);
	memcpy(record->copies[0], detail, sizeof(*detail));
	__atomic_store_n(v10_word(segment, slot), word, __ATOMIC_SEQ_CST);
	__atomic_store_n(&record->sequence, record->sequence + 1, __ATOMIC_SEQ_CST);
	memcpy(record->copies[1], detail, sizeof(*detail));
}

/* A breaker comes or changes; one slot each, never given back. */
static inline void v10_put(const struct v10_segment *segment, uint32_t slot, const char *name,
			   const struct v10_detail *detail)
{
	struct v10_header *header = v10_live_header(segment);
	struct v10_record *record = v10_record(segment, slot);
	uint64_t generation = *v10_word(segment, slot) >> 6 & 0x3ffffff;
	bool comes = generation == 0;

	if (comes) {
		generation = (header->index_word >> 6 & 0x3ffffff) + 1;
		record->name_length = strlen(name);
		memcpy(record->name, name, strlen(name));
	}
	v10_latch(segment, slot,
		  detail->version << 32 | generation << 6 | (detail->flags & 1) |
			  ((detail->flags & 1) ? (detail->flags & 2) << 1 : 0),
		  detail);
	if (comes) {
		uint64_t hash = v10_hash(segment->header.hash_key, name, strlen(name));
		uint32_t bucket = (uint32_t)hash;

		while (*v10_bucket(segment, bucket) != 0)
			bucket++;
		__atomic_store_n(v10_bucket(segment, bucket), hash >> 32 << 32 | (slot + 1),
				 __ATOMIC_SEQ_CST);
		__atomic_store_n(&header->index_word, 8 | generation << 6, __ATOMIC_SEQ_CST);
		header->breakers++;
	}
	__atomic_store_n(&header->change_sequence, header->change_sequence + 1, __ATOMIC_SEQ_CST);
}

#endif /* TESTS_COMPAT_VERSION_1_0_H */
