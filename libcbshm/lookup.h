/*
 * lookup.h - handles: from a name to a decision word, and back again when that has moved
 *
 * SPDX-License-Identifier: ISC
 *
 * Everything but cbshm_breaker_open(), _close() and handles_follow() is thread-safe and async-signal-safe.
 */
#ifndef LIBCBSHM_LOOKUP_H
#define LIBCBSHM_LOOKUP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "cbshm.h"
#include "cbshm/latch.h"
#include "libcbshm/attach.h"
#include "libcbshm/name.h"

/* A handle. What the inline check uses comes first; the rest but `stale`, `live` and `binding` never changes. */
struct handle {
	struct cbshm_breaker breaker;
	struct cbshm *client;
	struct name_key key;
	char name[CBSHM_NAME_MAX + 1];
	/*
	 * What to answer without news: enum cbshm_stale_policy, and from bit 2 on the nanoseconds
	 * until then. But for fail static, breaker.live is CBSHM_LIVE_NEVER, so that every check
	 * takes the slow path, and `live` is what it would be.
	 */
	_Atomic uint64_t stale;
	_Atomic uint32_t live;
	_Atomic pid_t
		binding; /* try-flag of whoever changes breaker.word, the two lives and `stale` */
	struct handle *next, *previous;
};

/* What a name led to. A copy: the handle may change meanwhile, this does not. */
struct binding {
	struct mapping *mapping; /* NULL: nothing is attached */
	const uint64_t *word;
	uint32_t live;
	uint32_t slot; /* BINDING_UNKNOWN: the word is the index word */
};

#define BINDING_UNKNOWN UINT32_MAX

#define STALE_POLICY_MASK 3u
#define STALE_TIME_SHIFT  2

/* The value of a word where the slot is known; its breaker's generation has been checked. */
struct resolved {
	enum cbshm_basis basis; /* the rest counts only with CBSHM_BASIS_SEGMENT */
	struct binding binding;
	uint64_t word;
};

/* Follows the handle to where its breaker is now, and remembers that in the handle if it has changed. */
void handle_resolve(struct handle *handle, struct resolved *resolved);

/* Takes the handle to where its breaker is in the newest mapping, if nobody else is just binding it. */
void handle_follow(struct handle *handle);

/*
 * Takes every handle of the client to the newest mapping, for when the one before says nothing about that. Waits for
 * a lock: not for a signal handler.
 */
void handles_follow(struct cbshm *client);

/*
 * Is this the word of the breaker that `live` was made for? A `live` of the index word has a generation in it too, the
 * newest one, which may be that of any breaker: so all of `live` is compared, never its generation alone.
 */
static inline bool live_fits(uint32_t live, uint64_t word)
{
	return live != 0 && live == (uint32_t)(word & CBSHM_WORD_GENERATION_MASK);
}

/* A breaker handle is the first member of a struct handle, which is never const. */
static inline struct handle *handle_of(const struct cbshm_breaker *breaker)
{
	return (struct handle *)(uintptr_t)breaker;
}

/* Where a word that a handle has led to is: a slot of the client's newest mapping. */
struct place {
	const struct segment_view *view;
	uint32_t slot;
};

/*
 * The short way from a handle's word to its slot: false if it takes handle_resolve(). Found by
 * arithmetic on the word's address, never remembered beside it: another thread may be changing the
 * handle, and versions are so small that the record of one breaker may fit the word of another.
 * Only the mapping may be newer than the word's, and that shows: mappings do not overlap and stay
 * until cbshm_close(), so a word of another one (as the index word, or that of a handle without a
 * segment) is no slot of this one.
 */
static inline bool place_of(const struct cbshm_breaker *breaker, const uint64_t *word,
			    struct place *place)
{
	const struct mapping *mapping = segment_current(handle_of(breaker)->client);

	if (!mapping)
		return false;
	place->view = &mapping->view;
	uint64_t slot = ((uintptr_t)word - (uintptr_t)segment_word(place->view, 0)) / sizeof(*word);
	place->slot = (uint32_t)slot;
	return slot < segment_allocated(place->view);
}

/* Is `word` the decision of the breaker that `live` belongs to, in a segment that is in use? */
static inline bool word_in_place(uint64_t word, uint32_t live)
{
	return (word & (CBSHM_WORD_INDEX | CBSHM_WORD_MOVED)) == 0 && live_fits(live, word);
}

#endif /* LIBCBSHM_LOOKUP_H */
