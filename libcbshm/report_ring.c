/*
 * report_ring.c - a bounded queue of many writers and one reader, without locks
 *
 * SPDX-License-Identifier: ISC
 *
 * A writer first moves `end` to have a place of its own, then fills it, and stores the place's size
 * last. So a report is seen whole or not at all, and the reader stops at one that is being written.
 * Free memory is all zero, which is what it stops at.
 */
#include "config.h"

#include "libcbshm/report_ring.h"

#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#define ALIGNMENT  16
#define CACHE_LINE 64
#define GAP        0x80000000u /* in `size`: no report, up to the end of the memory */

struct place {
	_Atomic uint32_t size; /* bytes, this structure included; 0: not there yet */
	uint32_t details_length;
	uint16_t name_length;
	uint8_t kind;
	bool has_details;
	double score;
	int64_t number;
	char texts[]; /* the name, the details */
};

struct report_ring {
	size_t size;
	_Alignas(CACHE_LINE) _Atomic uint64_t end;   /* the writers' */
	_Alignas(CACHE_LINE) _Atomic uint64_t begin; /* the reader's */
	_Alignas(CACHE_LINE) unsigned char memory[];
};

static struct place *place_at(struct report_ring *ring, uint64_t position)
{
	return (struct place *)(void *)(ring->memory + (position & (ring->size - 1)));
}

struct report_ring *report_ring_new(size_t size)
{
	struct report_ring *ring = mmap(NULL, sizeof(*ring) + size, PROT_READ | PROT_WRITE,
					MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (ring == MAP_FAILED)
		return NULL;
	ring->size = size;
	return ring;
}

void report_ring_free(struct report_ring *ring)
{
	if (ring != NULL)
		munmap(ring, sizeof(*ring) + ring->size);
}

/*
 * A place of `size` bytes in one piece, and the gap before it if there must be one. `end` may be
 * long past when `begin` is loaded: the ring is full only if it was still the end after that.
 */
static bool reserve(struct report_ring *ring, size_t size, uint64_t *position, size_t *gap)
{
	uint64_t end = atomic_load_explicit(&ring->end, memory_order_relaxed);

	for (;;) {
		const size_t rest = ring->size - (end & (ring->size - 1));
		/* Pairs with the release in report_ring_release(): what is free is zero. */
		const uint64_t begin = atomic_load_explicit(&ring->begin, memory_order_acquire);

		*position = end;
		*gap = rest < size ? rest : 0;
		if (end + *gap + size - begin > ring->size) {
			end = atomic_load_explicit(&ring->end, memory_order_relaxed);
			if (end == *position)
				return false;
		} else if (atomic_compare_exchange_weak(&ring->end, &end, end + *gap + size)) {
			return true;
		}
	}
}

/* Pairs with the acquire in report_ring_look(). */
static void publish(struct place *place, uint32_t size)
{
	atomic_store_explicit(&place->size, size, memory_order_release);
}

bool report_ring_push(struct report_ring *ring, const struct report *report)
{
	const size_t needed = sizeof(struct place) + report->name_length + report->details_length;
	const size_t size = (needed + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
	struct place *place;
	uint64_t position;
	size_t gap;

	if (!reserve(ring, size, &position, &gap))
		return false;
	if (gap > 0)
		publish(place_at(ring, position), (uint32_t)gap | GAP);
	place = place_at(ring, position + gap);
	place->kind = (uint8_t)report->kind;
	place->score = report->score;
	place->number = report->number;
	place->name_length = (uint16_t)report->name_length;
	place->details_length = (uint32_t)report->details_length;
	place->has_details = report->details != NULL;
	memcpy(place->texts, report->name, report->name_length);
	if (report->details != NULL)
		memcpy(place->texts + report->name_length, report->details, report->details_length);
	publish(place, (uint32_t)size);
	return true;
}

uint64_t report_ring_end(const struct report_ring *ring)
{
	return atomic_load(&ring->end);
}

bool report_ring_look(struct report_ring *ring, uint64_t *position, struct report *report,
		      uint64_t *next)
{
	struct place *place;
	uint32_t size;

	/* At the end of what is reserved the ring may begin again with a report that is not released. */
	while (*position < report_ring_end(ring)) {
		place = place_at(ring, *position);
		size = atomic_load_explicit(&place->size, memory_order_acquire);
		if (size == 0)
			return false;
		*next = *position + (size & ~GAP);
		if ((size & GAP) != 0) {
			*position = *next;
			continue;
		}
		report->kind = place->kind;
		report->score = place->score;
		report->number = place->number;
		report->name = place->texts;
		report->name_length = place->name_length;
		report->details = place->has_details ? place->texts + place->name_length : NULL;
		report->details_length = place->details_length;
		return true;
	}
	return false;
}

void report_ring_release(struct report_ring *ring, uint64_t position)
{
	const uint64_t begin = atomic_load_explicit(&ring->begin, memory_order_relaxed);
	const size_t offset = begin & (ring->size - 1);
	const size_t length = (size_t)(position - begin);
	const size_t first = length < ring->size - offset ? length : ring->size - offset;

	memset(ring->memory + offset, 0, first);
	memset(ring->memory, 0, length - first);
	atomic_store_explicit(&ring->begin, position, memory_order_release);
}

uint64_t report_ring_begin(const struct report_ring *ring)
{
	return atomic_load_explicit(&ring->begin, memory_order_relaxed);
}
