/*
 * index.c - the way from a name to its slot
 *
 * SPDX-License-Identifier: ISC
 *
 * Reading only; agent/segment_writer.c changes the index. Nothing in it is believed: a bucket may be
 * older than the slot it points to, or simply wrong, so the slot's own name decides.
 */
#include "config.h"

#include "libcbshm/index.h"

#include <string.h>

#include "cbshm/latch.h"
#include "libcbshm/hash.h"

uint64_t index_hash(const struct segment_view *view, const struct name_key *key)
{
	return hash_siphash(view->layout.hash_key, key->words, key->length);
}

/*
 * The name of a slot changes only while its generation is 0, and the agent puts a release fence between
 * making it 0 and writing the name: who has read a byte of the new name sees, after the acquire fence, another
 * word than the one it began with.
 */
bool index_slot_name(const struct segment_view *view, uint32_t slot, uint32_t generation,
		     struct name_key *key)
{
	const struct cbshm_record *record = segment_record(view, slot);

	payload_read(&key->length, &record->name_length, 1);
	payload_read(key->words, record->name, NAME_WORDS);
	latch_fence_acquire();
	return word_generation(word_load(segment_word(view, slot))) == generation;
}

/* So many bytes, and the zeros behind them; no cache line more than they are in. */
static bool words_are(const uint64_t *words, const uint64_t *expected, uint64_t length)
{
	uint64_t word;

	for (size_t i = 0; i * sizeof(word) < length; i++) {
		payload_read(&word, &words[i], 1);
		if (word != expected[i])
			return false;
	}
	return true;
}

/* As index_slot_name(), for one name. */
static bool slot_is(const struct segment_view *view, uint32_t slot, const struct name_key *key,
		    uint64_t *word)
{
	const struct cbshm_record *record = segment_record(view, slot);
	uint64_t length;

	if (slot >= segment_allocated(view))
		return false;
	*word = word_load(segment_word(view, slot));
	payload_read(&length, &record->name_length, 1);
	if (length != key->length || !words_are(record->name, key->words, length))
		return false;
	latch_fence_acquire();
	uint64_t now = word_load(segment_word(view, slot));
	return word_generation(*word) != 0 && word_generation(now) == word_generation(*word);
}

bool index_find(const struct segment_view *view, const struct name_key *key, struct index_hit *hit)
{
	const uint64_t *index = segment_index(view);
	uint32_t mask = view->layout.index_size - 1;
	uint64_t hash = index_hash(view, key);

	for (uint32_t i = 0; i <= mask; i++) {
		uint32_t bucket = ((uint32_t)hash + i) & mask;
		uint64_t value =
			word_load(&index[bucket]); /* pairs with the agent's release store */

		if (value == CBSHM_BUCKET_EMPTY)
			return false;
		if (value == CBSHM_BUCKET_TOMBSTONE || value >> 32 != hash >> 32)
			continue;
		hit->slot = (uint32_t)value - 1;
		hit->bucket = bucket;
		if (slot_is(view, hit->slot, key, &hit->word))
			return true;
	}
	return false;
}
