/*
 * state.c - whole records, all records, and the state of the mirror
 *
 * SPDX-License-Identifier: ISC
 *
 * Reads only. Lengths that stand in a record are bounded by its fields before they are used.
 */
#include "config.h"

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

enum record_read { RECORD_READ, RECORD_BUSY, RECORD_GONE };

static void copy_text(char *to, const char *from, size_t length, size_t room)
{
	if (length > room)
		length = room;
	memcpy(to, from, length);
	to[length] = '\0';
}

static void format_uuid(char text[CBSHM_UUID_SIZE], const uint8_t uuid[16])
{
	static const char digits[] = "0123456789abcdef";
	static const uint8_t none[16];
	char *at = text;

	if (memcmp(uuid, none, sizeof(none)) != 0) {
		for (int i = 0; i < 16; i++) {
			if (i == 4 || i == 6 || i == 8 || i == 10)
				*at++ = '-';
			*at++ = digits[uuid[i] >> 4];
			*at++ = digits[uuid[i] & 15];
		}
	}
	*at = '\0';
}

static void fill_decision(struct cbshm_state *state, uint64_t word,
			  const struct cbshm_detail *detail)
{
	int64_t now = boottime_now();
	bool passed = detail->deadline <= now;

	state->row_disabled = word & CBSHM_WORD_DISABLED;
	state->disabled = state->row_disabled && !(word_may_expire(word) && passed);
	state->remaining_us = CBSHM_NO_TIME;
	if (state->row_disabled && detail->deadline != INT64_MAX)
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

/* Everything but the name. */
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
	state->incident_id[0] = state->disabled_by[0] = state->disabled_reason[0] = '\0';
	if (!state->row_disabled)
		return;
	if (detail->flags & CBSHM_DETAIL_REASON_CUT)
		state->flags |= CBSHM_STATE_REASON_CUT;
	if (detail->flags & CBSHM_DETAIL_ACTOR_CUT)
		state->flags |= CBSHM_STATE_ACTOR_CUT;
	format_uuid(state->incident_id, detail->incident_id);
	copy_text(state->disabled_by, detail->disabled_by, detail->actor_length,
		  CBSHM_DETAIL_ACTOR_BYTES);
	copy_text(state->disabled_reason, detail->disabled_reason, detail->reason_length,
		  CBSHM_DETAIL_REASON_BYTES);
}

/* The record of a slot, if it still is of this generation. */
static enum record_read read_record(const struct segment_view *view, uint32_t slot,
				    uint32_t generation, struct cbshm_state *state)
{
	union latch_detail copy = {.words = {0}};
	uint64_t word;
	bool whole = latch_read(segment_record(view, slot), segment_word(view, slot), &word,
				copy.words, CBSHM_DETAIL_WORDS);

	if (word_generation(word) != generation)
		return RECORD_GONE;
	if (!whole)
		return RECORD_BUSY;
	fill_state(state, word, &copy.detail);
	return RECORD_READ;
}

static int get_state(struct handle *handle, struct cbshm_state *state)
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
			memcpy(state->name, handle->name, sizeof(state->name));
			return 0;
		case RECORD_BUSY:
			return CBSHM_ERR_BUSY;
		case RECORD_GONE:
			break;
		}
	}
	return CBSHM_ERR_BUSY;
}

int cbshm_get_state(const struct cbshm_breaker *breaker, struct cbshm_state *state)
{
	if (!breaker || !state)
		return CBSHM_ERR_INVALID;
	int saved = errno;
	int error = get_state(handle_of(breaker), state);
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

/* ---- health ----------------------------------------------------------------------------- */

/* The kernel changes this word when the agent's thread ends; 0 = given back in order. */
static bool owner_alive(const struct segment_view *view)
{
	uint32_t offset = word32_load(&segment_header(view)->owner_word_offset);

	if (offset % 4 != 0 || offset > sizeof(struct cbshm_segment_header) - 4)
		return false;
	uint32_t owner = word32_load((const uint32_t *)(const void *)(view->base + offset));
	return (owner & CBSHM_OWNER_TID_MASK) != 0 && !(owner & CBSHM_OWNER_DIED);
}

/* A stamp from the future is one of another time namespace: nothing can be said. */
static int64_t age_us(uint64_t stamp)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	int64_t age = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec - (int64_t)stamp;
	return stamp == 0 || age < 0 ? CBSHM_NO_TIME : age / 1000;
}

int cbshm_health(struct cbshm *client, struct cbshm_health *health)
{
	int error;

	if (!client || !health)
		return CBSHM_ERR_INVALID;
	const struct mapping *mapping = segment_newest(client, &error);
	if (!mapping)
		return error;
	const struct cbshm_segment_header *header = segment_header(&mapping->view);
	*health = (struct cbshm_health){
		.agent_alive = owner_alive(&mapping->view),
		.heartbeat_age_us = age_us(word_load(&header->heartbeat)),
		.database_age_us = age_us(word_load(&header->database_confirmed)),
		.boot_epoch = word_load(&header->boot_epoch),
		.breakers = (uint32_t)word_load(&header->breakers),
		.capacity = mapping->view.layout.capacity,
		.clock_offset_us =
			(int64_t)word_load((const uint64_t *)(const void *)&header->clock_offset),
	};
	health->database_live =
		health->agent_alive && word_load(&header->state) == CBSHM_SEGMENT_LIVE;
	return 0;
}
