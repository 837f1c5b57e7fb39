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
#include "libcbshm/health.h"
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

/* What the segment says, whatever its age. *mapping: which one. */
static struct cbshm_decision decide(struct handle *handle, struct mapping **mapping)
{
	for (int i = 0; i < DECIDE_TRIES; i++) {
		enum expiry expiry = EXPIRY_UNREADABLE;
		int64_t deadline = INT64_MAX;
		struct resolved resolved;

		handle_resolve(handle, &resolved);
		*mapping = resolved.binding.mapping;
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

static bool is_stale(const struct handle *handle, uint64_t stale, const struct mapping *mapping)
{
	return health_without_news(handle->client, mapping) > (int64_t)(stale >> STALE_TIME_SHIFT);
}

/* A segment without news may be one that was removed while its agent was dead: the news are then in another one. */
static struct cbshm_decision decide_by_policy(struct handle *handle, uint64_t stale)
{
	struct mapping *mapping = NULL;
	struct cbshm_decision decision = decide(handle, &mapping);

	if (!is_stale(handle, stale, mapping))
		return decision;
	if (mapping && segment_seek(handle->client, mapping)) {
		handle_follow(handle);
		decision = decide(handle, &mapping);
		if (!is_stale(handle, stale, mapping))
			return decision;
	}
	decision.disabled = (stale & STALE_POLICY_MASK) == CBSHM_FAIL_CLOSED;
	decision.basis = CBSHM_BASIS_STALE;
	return decision;
}

/* Everything that the two short ways below leave; of its own, so that they need no stack frame. */
static __attribute__((noinline, cold)) struct cbshm_decision decide_fully(
	const struct cbshm_breaker *breaker)
{
	int saved = errno;
	struct handle *handle = handle_of(breaker);
	uint64_t stale = atomic_load_explicit(&handle->stale, memory_order_relaxed);
	struct mapping *ignored;
	struct cbshm_decision decision =
		stale != 0 ? decide_by_policy(handle, stale) : decide(handle, &ignored);

	errno = saved;
	return decision;
}

/*
 * The deadline of an open breaker that is where the handle says. If anything has changed since `word` was loaded, the
 * long way decides.
 */
static inline bool read_deadline_in_place(const struct cbshm_breaker *breaker, const uint64_t *at,
					  uint64_t word, int64_t *deadline)
{
	struct place place;
	uint64_t value;

	return place_of(breaker, at, &place) &&
	       latch_read_deadline(segment_record(place.view, place.slot), at, &value, deadline) &&
	       value == word;
}

/* A clock in the vDSO leaves errno alone, and so does a system call that cannot fail. */
static __attribute__((noinline)) struct cbshm_decision decide_in_place(
	const struct cbshm_breaker *breaker, const uint64_t *at, uint64_t word)
{
	/* First, so that the loads below are done while the counter behind the clock is still being read. */
	int64_t now = boottime_now(), deadline;

	if (!read_deadline_in_place(breaker, at, word, &deadline))
		return decide_fully(breaker);
	return (struct cbshm_decision){word_epoch(word), deadline > now, CBSHM_BASIS_SEGMENT, 0};
}

/*
 * Open in a segment that is in use: without a TTL the word says it all, as it does for a closed breaker. The loads
 * are those of the inline check, and so is the reason why their order does not matter.
 */
struct cbshm_decision cbshm_check_slow(const struct cbshm_breaker *breaker)
{
	const uint64_t *at = __atomic_load_n(&breaker->word, __ATOMIC_ACQUIRE);
	uint64_t word = word_load(at);
	uint32_t live = __atomic_load_n(&breaker->live, __ATOMIC_RELAXED);

	if (!(word & CBSHM_WORD_DISABLED) || !word_in_place(word, live))
		return decide_fully(breaker);
	if (word_may_expire(word))
		return decide_in_place(breaker, at, word);
	return (struct cbshm_decision){word_epoch(word), 1, CBSHM_BASIS_SEGMENT, 0};
}

bool cbshm_is_disabled_call(const struct cbshm_breaker *breaker)
{
	return cbshm_is_disabled(breaker);
}
