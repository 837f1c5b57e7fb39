/*
 * validate.c - is this a segment, and where is what in it?
 *
 * SPDX-License-Identifier: ISC
 *
 * Judges the measures only. Whose file it is, is judged where it is opened (attach.c, agent/segment_file.c);
 * names, buckets and texts are checked where they are read.
 */
#include "config.h"

#include "libcbshm/validate.h"

#include <string.h>

#define NAME_BYTES_MAX 200
#define PAGE           UINT64_C(4096)
#define INDEX_SIZE_MAX (UINT32_C(1) << 24)
#define TOTAL_SIZE_MAX (UINT64_C(1) << 40) /* keeps every sum below far from an overflow */

bool segment_name_valid(const char *name)
{
	if (!name || name[0] != '/')
		return false;
	size_t length = strnlen(name + 1, NAME_BYTES_MAX + 1);
	if (length == 0 || length > NAME_BYTES_MAX || strchr(name + 1, '/'))
		return false;
	return strcmp(name, "/.") != 0 && strcmp(name, "/..") != 0;
}

static uint64_t page_up(uint64_t offset)
{
	return (offset + PAGE - 1) & ~(PAGE - 1);
}

struct segment_layout segment_layout_for(uint32_t capacity)
{
	struct segment_layout layout = {.capacity = capacity, .index_size = 1};

	while (layout.index_size < 2 * capacity)
		layout.index_size *= 2;
	layout.index_offset = CBSHM_HEADER_SIZE;
	layout.words_offset = page_up(layout.index_offset + layout.index_size * sizeof(uint64_t));
	layout.records_offset = page_up(layout.words_offset + capacity * sizeof(uint64_t));
	layout.total_size = layout.records_offset + capacity * sizeof(struct cbshm_record);
	return layout;
}

/* Is it ours at all? */
static const char *validate_kind(const struct cbshm_segment_header *header)
{
	if (header->magic != CBSHM_SEGMENT_MAGIC)
		return "it is no cbshm segment (bad magic)";
	if (header->byte_order != CBSHM_BYTE_ORDER)
		return "its byte order is another host's";
	if (header->layout_major != CBSHM_LAYOUT_MAJOR || header->layout_hash != CBSHM_LAYOUT_HASH)
		return "its layout is of another version";
	if (header->feature_incompat != 0)
		return "it needs features of a newer version";
	if (header->state == CBSHM_SEGMENT_NEW)
		return "it was never finished";
	if (header->state > CBSHM_SEGMENT_RETIRED)
		return "its state is none";
	return NULL;
}

/* An area of `count` items of `size` bytes at `offset`, after `*end`, aligned to a cache line. */
static bool area_fits(uint64_t offset, uint64_t count, uint64_t size, uint64_t *end)
{
	if (offset % 64 != 0 || offset < *end || offset > TOTAL_SIZE_MAX)
		return false;
	*end = offset + count * size; /* below 2^40 + 2^24 * 2^10 */
	return true;
}

static const char *validate_measures(const struct cbshm_segment_header *header, uint64_t file_size)
{
	uint64_t end = header->header_size;

	if (header->header_size < sizeof(*header) || header->header_size > file_size)
		return "its header size is impossible";
	if (header->record_size != sizeof(struct cbshm_record))
		return "its record size is impossible";
	if (header->capacity < CBSHM_CAPACITY_MIN || header->capacity > CBSHM_CAPACITY_MAX)
		return "its capacity is impossible";
	if (header->index_size < 2 * header->capacity || header->index_size > INDEX_SIZE_MAX ||
	    (header->index_size & (header->index_size - 1)) != 0)
		return "its index size is impossible";
	if (!area_fits(header->index_offset, header->index_size, sizeof(uint64_t), &end) ||
	    !area_fits(header->words_offset, header->capacity, sizeof(uint64_t), &end) ||
	    !area_fits(header->records_offset, header->capacity, header->record_size, &end))
		return "its offsets are impossible";
	if (header->total_size < end || header->total_size > TOTAL_SIZE_MAX)
		return "its total size is impossible";
	if (header->allocated > header->capacity)
		return "it has more records than its capacity";
	if (file_size < header->records_offset + header->allocated * header->record_size)
		return "the file is shorter than its contents";
	return NULL;
}

const char *segment_validate(const struct cbshm_segment_header *header, uint64_t file_size,
			     struct segment_layout *layout)
{
	const char *wrong =
		file_size < CBSHM_HEADER_SIZE ? "it is too short" : validate_kind(header);

	if (!wrong)
		wrong = validate_measures(header, file_size);
	if (wrong)
		return wrong;
	*layout = (struct segment_layout){
		.capacity = header->capacity,
		.index_size = header->index_size,
		.index_offset = header->index_offset,
		.words_offset = header->words_offset,
		.records_offset = header->records_offset,
		.total_size = header->total_size,
		.hash_key = {header->hash_key[0], header->hash_key[1]},
	};
	return NULL;
}
