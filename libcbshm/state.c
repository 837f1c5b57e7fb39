/*
 * state.c - whole records, and all records
 *
 * SPDX-License-Identifier: ISC
 *
 * Reads only. Lengths that stand in a record are bounded by its fields before they are used.
 */
#include "config.h"

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cbshm/latch.h"
#include "libcbshm/expiry.h"
#include "libcbshm/index.h"
#include "libcbshm/lookup.h"

_Static_assert(CBSHM_ACTOR_SIZE == CBSHM_DETAIL_ACTOR_BYTES + 1, "cbshm_state.disabled_by");
_Static_assert(CBSHM_REASON_SIZE == CBSHM_DETAIL_REASON_BYTES + 1, "cbshm_state.disabled_reason");
_Static_assert(CBSHM_NAME_MAX + 1 == CBSHM_NAME_ROOM, "cbshm_state.name");

/* How often a record may be busy, or its breaker replaced, before cbshm_foreach() passes it over. */
#define FOREACH_TRIES 256
#define STATE_TRIES   4

#define NAME_STEP 32
_Static_assert(CBSHM_NAME_MAX % NAME_STEP == 0, "put_name()");

enum record_read { RECORD_READ, RECORD_BUSY, RECORD_GONE };

/* Ends a text that read_detail() has put there. */
static void end_text(char *text, size_t length, size_t room)
{
	text[length < room ? length : room] = '\0';
}

/*
 * The eight digits of four bytes, as a number whose lowest byte is the first. Digits that carry into bit 4 when 6
 * is added are letters, which stand 39 characters further on than '0' plus their value.
 */
static inline __attribute__((always_inline)) uint64_t hex_digits(const uint8_t bytes[4])
{
	const uint64_t ones = UINT64_C(0x0101010101010101);
	uint32_t four;

	memcpy(&four, bytes, sizeof(four));
	uint64_t x = le32toh(four);
	x = (x | x << 16) & UINT64_C(0x0000ffff0000ffff);
	x = (x | x << 8) & UINT64_C(0x00ff00ff00ff00ff);
	x = (x >> 4 & UINT64_C(0x000f000f000f000f)) | (x << 8 & UINT64_C(0x0f000f000f000f00));
	return x + ones * '0' + ((x + ones * 6) >> 4 & ones) * ('a' - '0' - 10);
}

static void put_digits(char *text, uint64_t digits, size_t count)
{
	digits = htole64(digits);
	memcpy(text, &digits, count);
}

static void format_uuid(char text[CBSHM_UUID_SIZE], const uint8_t uuid[16])
{
	static const uint8_t none[16];

	memset(text, '-', CBSHM_UUID_SIZE - 1);
	text[36] = text[0] = '\0';
	if (memcmp(uuid, none, sizeof(none)) == 0)
		return;
	uint64_t second = hex_digits(&uuid[4]), third = hex_digits(&uuid[8]);
	put_digits(&text[0], hex_digits(&uuid[0]), 8);
	put_digits(&text[9], second, 4);
	put_digits(&text[14], second >> 32, 4);
	put_digits(&text[19], third, 4);
	put_digits(&text[24], third >> 32, 4);
	put_digits(&text[28], hex_digits(&uuid[12]), 8);
}

static void fill_decision(struct cbshm_state *state, uint64_t word,
			  const struct cbshm_detail *detail)
{
	state->row_disabled = state->disabled = word & CBSHM_WORD_DISABLED;
	state->remaining_us = CBSHM_NO_TIME;
	if (!state->row_disabled || detail->deadline == INT64_MAX)
		return; /* whatever the time is */
	int64_t now = boottime_now();
	bool passed = detail->deadline <= now;
	state->disabled = !(word_may_expire(word) && passed);
	state->remaining_us = passed ? 0 : (detail->deadline - now) / 1000;
}

static void fill_policy(struct cbshm_policy *policy, const struct cbshm_detail *detail)
{
	policy->drift_threshold = detail->drift_threshold;
	policy->failure_threshold = detail->failure_threshold;
	policy->schema_error_threshold = detail->schema_error_threshold;
	policy->default_ttl_us = detail->default_ttl;
	policy->auto_recover = detail->flags & CBSHM_DETAIL_AUTO_RECOVER;
}

/* Everything but the name; the texts are there already. */
static void fill_state(struct cbshm_state *state, uint64_t word, const struct cbshm_detail *detail)
{
	fill_decision(state, word, detail);
	fill_policy(&state->policy, detail);
	state->flags = 0;
	state->version = detail->version;
	state->opened_at = detail->opened_at;
	state->disabled_until = detail->disabled_until;
	state->last_failure_at = detail->last_failure_at;
	state->updated_at = detail->updated_at;
	state->consecutive_failures = detail->consecutive_failures;
	if (!state->row_disabled) {
		state->incident_id[0] = state->disabled_by[0] = state->disabled_reason[0] = '\0';
		return;
	}
	if (detail->flags & CBSHM_DETAIL_REASON_CUT)
		state->flags |= CBSHM_STATE_REASON_CUT;
	if (detail->flags & CBSHM_DETAIL_ACTOR_CUT)
		state->flags |= CBSHM_STATE_ACTOR_CUT;
	format_uuid(state->incident_id, detail->incident_id);
	end_text(state->disabled_by, detail->actor_length, CBSHM_DETAIL_ACTOR_BYTES);
	end_text(state->disabled_reason, detail->reason_length, CBSHM_DETAIL_REASON_BYTES);
}

/*
 * The texts go straight to the state, the rest to *detail. Not inline: the compiler does not see
 * that nothing is used unless it has been read, and clearing it first would take longer.
 */
static __attribute__((noinline)) bool read_detail(const struct segment_view *view, uint32_t slot,
						  uint64_t *word, union latch_detail *detail,
						  struct cbshm_state *state)
{
	const struct latch_parts parts = {detail->words, CBSHM_LATCH_NUMBERS, state->disabled_by,
					  state->disabled_reason};

	return latch_read_parts(segment_record(view, slot), segment_word(view, slot), word, &parts);
}

/* The record of a slot, if it still is of this generation. */
static enum record_read read_record(const struct segment_view *view, uint32_t slot,
				    uint32_t generation, struct cbshm_state *state)
{
	union latch_detail copy;
	uint64_t word;
	bool whole = read_detail(view, slot, &word, &copy, state);

	if (word_generation(word) != generation)
		return RECORD_GONE;
	if (!whole)
		return RECORD_BUSY;
	fill_state(state, word, &copy.detail);
	return RECORD_READ;
}

/* While the breaker is where the handle says. False: get_state_fully() has to look. */
static bool get_state_in_place(const struct cbshm_breaker *breaker, struct cbshm_state *state)
{
	const uint64_t *at = __atomic_load_n(&breaker->word, __ATOMIC_ACQUIRE);
	uint64_t word = word_load(at);
	uint32_t live = __atomic_load_n(&breaker->live, __ATOMIC_RELAXED);
	struct place place;

	return word_in_place(word, live) && place_of(breaker, at, &place) &&
	       read_record(place.view, place.slot, word_generation(word), state) == RECORD_READ;
}

static int get_state_fully(struct handle *handle, struct cbshm_state *state)
{
	for (int i = 0; i < STATE_TRIES; i++) {
		struct resolved resolved;
		const struct binding *binding = &resolved.binding;

		handle_resolve(handle, &resolved);
		if (resolved.basis == CBSHM_BASIS_NO_SEGMENT)
			return CBSHM_ERR_NO_SEGMENT;
		if (resolved.basis == CBSHM_BASIS_UNKNOWN)
			return CBSHM_ERR_NOT_FOUND;
		if (binding->slot >= segment_allocated(&binding->mapping->view))
			return CBSHM_ERR_NOT_FOUND;
		switch (read_record(&binding->mapping->view, binding->slot,
				    word_generation(resolved.word), state)) {
		case RECORD_READ:
			return 0;
		case RECORD_BUSY:
			return CBSHM_ERR_BUSY;
		case RECORD_GONE:
			break;
		}
	}
	return CBSHM_ERR_BUSY;
}

/* As much as there is, in steps that the field has a whole number of. */
static void put_name(struct cbshm_state *state, const struct handle *handle)
{
	size_t length = handle->key.length;

	for (size_t i = 0; i < length; i += NAME_STEP)
		memcpy(&state->name[i], &handle->name[i], NAME_STEP);
	state->name[length] = '\0';
}

int cbshm_get_state(const struct cbshm_breaker *breaker, struct cbshm_state *state)
{
	if (!breaker || !state)
		return CBSHM_ERR_INVALID;
	put_name(state, handle_of(breaker));
	if (get_state_in_place(breaker, state))
		return 0;
	int saved = errno;
	int error = get_state_fully(handle_of(breaker), state);
	errno = saved;
	return error;
}

/* The breaker in a slot, whichever it is. */
static bool read_slot(const struct segment_view *view, uint32_t slot, struct cbshm_state *state)
{
	for (int i = 0; i < FOREACH_TRIES; i++) {
		uint32_t generation = word_generation(word_load(segment_word(view, slot)));
		struct name_key key;

		if (generation == 0)
			return false;
		if (index_slot_name(view, slot, generation, &key) &&
		    name_key_get(&key, state->name) &&
		    read_record(view, slot, generation, state) == RECORD_READ)
			return true;
	}
	return false;
}

int cbshm_foreach(struct cbshm *client, int (*each)(const struct cbshm_state *state, void *arg),
		  void *arg)
{
	struct cbshm_state state;
	int error;

	if (!client || !each)
		return CBSHM_ERR_INVALID;
	const struct mapping *mapping = segment_newest(client, &error);
	if (!mapping)
		return error;
	for (uint32_t slot = 0; slot < segment_allocated(&mapping->view); slot++) {
		if (!read_slot(&mapping->view, slot, &state))
			continue;
		int stop = each(&state, arg);
		if (stop)
			return stop;
	}
	return 0;
}
