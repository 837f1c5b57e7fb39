/*
 * index.h - the way from a name to its slot
 *
 * SPDX-License-Identifier: ISC
 *
 * Shared by the library and the agent. Async-signal-safe, takes no lock.
 */
#ifndef LIBCBSHM_INDEX_H
#define LIBCBSHM_INDEX_H

#include <stdbool.h>
#include <stdint.h>

#include "libcbshm/name.h"
#include "libcbshm/validate.h"

struct index_hit {
	uint32_t slot;
	uint32_t bucket;
	uint64_t word; /* as it was when the name was found in the slot */
};

uint64_t index_hash(const struct segment_view *view, const struct name_key *key);

/*
 * Finds the live slot of a name. While the agent changes the index a breaker that comes or goes may be
 * found or not; one that stays is always found (agent/segment_writer.c says why). The hit's generation
 * tells whether the slot is still the same one later.
 */
bool index_find(const struct segment_view *view, const struct name_key *key, struct index_hit *hit);

/* The name in a slot whose generation is known, read whole; false if the slot has changed meanwhile. */
bool index_slot_name(const struct segment_view *view, uint32_t slot, uint32_t generation,
		     struct name_key *key);

#endif /* LIBCBSHM_INDEX_H */
