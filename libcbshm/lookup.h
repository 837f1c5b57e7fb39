/*
 * lookup.h - handles: from a name to a decision word, and back again when that has moved
 *
 * SPDX-License-Identifier: ISC
 *
 * Everything but cbshm_breaker_open() and _close() is thread-safe and async-signal-safe.
 */
#ifndef LIBCBSHM_LOOKUP_H
#define LIBCBSHM_LOOKUP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "cbshm.h"
#include "cbshm/segment.h"
#include "libcbshm/attach.h"
#include "libcbshm/name.h"

/* A handle. What the inline check uses comes first; the rest but `binding` never changes. */
struct handle {
	struct cbshm_breaker breaker;
	struct cbshm *client;
	struct name_key key;
	char name[CBSHM_NAME_MAX + 1];
	_Atomic pid_t binding; /* try-flag of whoever changes breaker.word and breaker.live */
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

/* The value of a word where the slot is known; its breaker's generation has been checked. */
struct resolved {
	enum cbshm_basis basis; /* the rest counts only with CBSHM_BASIS_SEGMENT */
	struct binding binding;
	uint64_t word;
};

/* Follows the handle to where its breaker is now, and remembers that in the handle if it has changed. */
void handle_resolve(struct handle *handle, struct resolved *resolved);

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

#endif /* LIBCBSHM_LOOKUP_H */
