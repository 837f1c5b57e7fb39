/*
 * validate.h - is this a segment, and where is what in it?
 *
 * SPDX-License-Identifier: ISC
 *
 * Shared by the library and the agent. Everything here is async-signal-safe.
 */
#ifndef LIBCBSHM_VALIDATE_H
#define LIBCBSHM_VALIDATE_H

#include <stdbool.h>
#include <stdint.h>

#include "cbshm/latch.h"
#include "cbshm/segment.h"

/* Where POSIX shared memory objects are files, in glibc as in musl. */
#define SEGMENT_DIRECTORY "/dev/shm"

/* The header's measures, copied once and found consistent. Never read from the segment again. */
struct segment_layout {
	uint32_t capacity;
	uint32_t index_size;
	uint64_t index_offset;
	uint64_t words_offset;
	uint64_t records_offset;
	uint64_t total_size;
	uint64_t hash_key[2];
};

/* A mapped segment. The library maps it read-only; only the agent writes through these pointers. */
struct segment_view {
	unsigned char *base;
	struct segment_layout layout;
};

/* A name for shm_open(3): a slash, then 1 to 200 bytes without a slash (room is left for suffixes). */
bool segment_name_valid(const char *name);

/*
 * Takes a copy of the header and the size of the file. NULL and a filled layout if everything in it
 * is possible, else what is wrong, in words. The size must have been taken after the copy.
 */
const char *segment_validate(const struct cbshm_segment_header *header, uint64_t file_size,
			     struct segment_layout *layout);

/* The layout that the agent gives to a segment of this capacity. */
struct segment_layout segment_layout_for(uint32_t capacity);

static inline struct cbshm_segment_header *segment_header(const struct segment_view *view)
{
	return (struct cbshm_segment_header *)(void *)view->base;
}

static inline uint64_t *segment_index(const struct segment_view *view)
{
	return (uint64_t *)(void *)(view->base + view->layout.index_offset);
}

static inline uint64_t *segment_word(const struct segment_view *view, uint32_t slot)
{
	return (uint64_t *)(void *)(view->base + view->layout.words_offset) + slot;
}

static inline struct cbshm_record *segment_record(const struct segment_view *view, uint32_t slot)
{
	return (struct cbshm_record *)(void *)(view->base + view->layout.records_offset) + slot;
}

/*
 * Slots whose records the file holds, at this moment. The load pairs with the release store after the
 * agent has allocated them; what is above the capacity is not believed.
 */
static inline uint32_t segment_allocated(const struct segment_view *view)
{
	uint64_t allocated = word_load(&segment_header(view)->allocated);

	return allocated < view->layout.capacity ? (uint32_t)allocated : view->layout.capacity;
}

#endif /* LIBCBSHM_VALIDATE_H */
