/*
 * check.c - the slow path of the check
 *
 * SPDX-License-Identifier: ISC
 *
 * Everything but "exists and is closed", which the inline functions of cbshm.h answer alone. It may run in a signal
 * handler: no locks, no malloc(3), and errno is left as it was.
 */
#include "config.h"

#include <errno.h>
#include <stddef.h>

#include "cbshm/latch.h"
#include "libcbshm/expiry.h"
#include "libcbshm/lookup.h"

_Static_assert(offsetof(struct handle, breaker) == 0, "handle_of()");
_Static_assert(CBSHM_WORD_INDEX == 1 << 3 && CBSHM_BASIS_UNKNOWN == 1 && CBSHM_BASIS_SEGMENT == 0,
	       "cbshm_check() makes the basis of the word's INDEX bit");

/* How often the breaker may be replaced by a new one of its name while its deadline is read. */
#define DECIDE_TRIES 4

/* The words up to the deadline of the copy that belongs to `word`. */
#define DEADLINE_WORDS (offsetof(struct cbshm_detail, deadline) / sizeof(uint64_t) + 1)

enum expiry { EXPIRY_KNOWN, EXPIRY_UNREADABLE, EXPIRY_GONE };

/* Reads the deadline together with the word it belongs to, which may be newer than *word was. */
static enum expiry read_deadline(const struct binding *binding, uint64_t *word, int64_t *deadline)
{
	const struct segment_view *view = &binding->mapping->view;
	uint64_t words[DEADLINE_WORDS];
	uint64_t value;

	if (binding->slot >= segment_allocated(view))
		return EXPIRY_UNREADABLE;
	bool whole = latch_read(segment_record(view, binding->slot), binding->word, &value, words,
				DEADLINE_WORDS);
	if (word_generation(value) != word_generation(*word))
		return EXPIRY_GONE;
	*word = value;
	*deadline = (int64_t)words[DEADLINE_WORDS - 1];
	return whole ? EXPIRY_KNOWN : EXPIRY_UNREADABLE;
}

static struct cbshm_decision decide(struct handle *handle)
{
	for (int i = 0; i < DECIDE_TRIES; i++) {
		enum expiry expiry = EXPIRY_UNREADABLE;
		int64_t deadline = INT64_MAX;
		struct resolved resolved;

		handle_resolve(handle, &resolved);
		if (resolved.basis != CBSHM_BASIS_SEGMENT)
			return (struct cbshm_decision){0, 0, (uint8_t)resolved.basis, 0};
		uint64_t word = resolved.word;
		if (word_may_expire(word))
			expiry = read_deadline(&resolved.binding, &word, &deadline);
		if (expiry == EXPIRY_GONE)
			continue;
		bool disabled = word & CBSHM_WORD_DISABLED;
		/* A record that cannot be read does not end anything: the word holds. */
		if (expiry == EXPIRY_KNOWN && word_may_expire(word) && deadline <= boottime_now())
			disabled = false;
		return (struct cbshm_decision){word_epoch(word), disabled, CBSHM_BASIS_SEGMENT, 0};
	}
	return (struct cbshm_decision){0, 0, CBSHM_BASIS_UNKNOWN, 0};
}

/* Open without an end, in a segment that is in use: the word says it all, as it does for a closed breaker. */
static bool is_plainly_open(const struct cbshm_breaker *breaker, uint64_t *word)
{
	*word = word_load(__atomic_load_n(&breaker->word, __ATOMIC_ACQUIRE));
	uint32_t live = __atomic_load_n(&breaker->live, __ATOMIC_RELAXED);

	return (*word & (CBSHM_WORD_DISABLED | CBSHM_WORD_INDEX | CBSHM_WORD_MOVED)) ==
		       CBSHM_WORD_DISABLED &&
	       live_fits(live, *word) && !word_may_expire(*word);
}

struct cbshm_decision cbshm_check_slow(const struct cbshm_breaker *breaker)
{
	uint64_t word;

	if (is_plainly_open(breaker, &word))
		return (struct cbshm_decision){word_epoch(word), 1, CBSHM_BASIS_SEGMENT, 0};
	int saved = errno;
	struct cbshm_decision decision = decide(handle_of(breaker));
	errno = saved;
	return decision;
}

bool cbshm_is_disabled_call(const struct cbshm_breaker *breaker)
{
	return cbshm_is_disabled(breaker);
}
