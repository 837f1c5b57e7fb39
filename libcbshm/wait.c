/*
 * wait.c - cbshm_wait(): sleeping until a breaker changes
 *
 * SPDX-License-Identifier: ISC
 *
 * One futex for the segment, the low half of change_sequence, in the read-only mapping. The agent
 * first changes words, then the sequence (release), then wakes. The waiter loads the sequence
 * (acquire), then looks at the words, and the kernel puts it to sleep only if the sequence still is
 * the one it loaded: a change that it did not see has changed the sequence since. No sleep is
 * longer than a second, for an agent that was killed before it woke anybody, for TTLs that end
 * without a store, and for a segment that comes or is replaced.
 */
#include "config.h"

#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "cbshm.h"
#include "cbshm/latch.h"
#include "libcbshm/health.h"
#include "libcbshm/lookup.h"

#define SLEEP_MAX_NS INT64_C(1000000000)

/*
 * A token is everything that an answer rests on. That of a breaker: its word, in which the bits that no breaker has
 * tell of the agent, the database and the answer. 0 is none.
 */
#define TOKEN_AGENT_TROUBLE CBSHM_WORD_INDEX
#define TOKEN_DATABASE_AWAY CBSHM_WORD_MOVED
#define TOKEN_DISABLED      UINT64_C(0x20)
#define TOKEN_UNKNOWN       CBSHM_WORD_HAS_TTL      /* which never stands without DISABLED */
#define TOKEN_NO_SEGMENT    CBSHM_WORD_AUTO_RECOVER /* likewise */

static uint64_t trouble_bits(const struct mapping *mapping)
{
	unsigned int trouble = mapping ? health_trouble(mapping) : 0;

	return (trouble & (HEALTH_AGENT_DEAD | HEALTH_AGENT_HUNG) ? TOKEN_AGENT_TROUBLE : 0) |
	       (trouble & HEALTH_DATABASE_AWAY ? TOKEN_DATABASE_AWAY : 0);
}

static uint64_t breaker_token(const struct cbshm_breaker *breaker, uint64_t trouble)
{
	struct resolved resolved;
	uint64_t token;

	handle_resolve(handle_of(breaker), &resolved);
	if (resolved.basis == CBSHM_BASIS_SEGMENT)
		token = resolved.word & ~(CBSHM_WORD_INDEX | CBSHM_WORD_MOVED | TOKEN_DISABLED);
	else
		token = resolved.basis == CBSHM_BASIS_UNKNOWN ? TOKEN_UNKNOWN : TOKEN_NO_SEGMENT;
	return token | trouble | (cbshm_check(breaker).disabled ? TOKEN_DISABLED : 0);
}

/* That of all: what the agent counts, made different by the state of the mirror. */
static uint64_t segment_token(const struct mapping *mapping, uint64_t trouble)
{
	return mapping ? word_load(&segment_header(&mapping->view)->change_sequence) << 5 |
				 trouble | 1
		       : TOKEN_NO_SEGMENT;
}

static bool take_token(uint64_t *seen, uint64_t token)
{
	if (*seen == token)
		return false;
	*seen = token;
	return true;
}

/* Is anything different from what the caller has seen? All of *seen is brought up to date. */
static bool look(const struct mapping *mapping, struct cbshm_breaker *const *breakers, size_t count,
		 uint64_t *seen)
{
	uint64_t trouble = trouble_bits(mapping);
	bool changed = false;

	if (count == 0)
		return take_token(seen, segment_token(mapping, trouble));
	for (size_t i = 0; i < count; i++)
		changed |= take_token(&seen[i], breaker_token(breakers[i], trouble));
	return changed;
}

static const uint32_t *futex_of(const struct mapping *mapping)
{
	const uint32_t *futex =
		(const uint32_t *)(const void *)&segment_header(&mapping->view)->change_sequence;

#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	futex++; /* its low half */
#endif
	return futex;
}

/*
 * Until `sequence` changes, and at most so long. 0, or CBSHM_ERR_SYSTEM: a signal handler has run
 * (EINTR), or no futexes.
 */
static int sleep_until_change(const struct mapping *mapping, uint32_t sequence, int64_t most)
{
	struct timespec time;
	long result;

	if (most > SLEEP_MAX_NS)
		most = SLEEP_MAX_NS;
	time = (struct timespec){most / 1000000000, most % 1000000000};
	/* Not FUTEX_PRIVATE: agent and waiter share nothing but the file. */
	if (mapping)
		result =
			syscall(SYS_futex, futex_of(mapping), FUTEX_WAIT, sequence, &time, NULL, 0);
	else
		result = nanosleep(&time, NULL);
	return result == 0 || errno == EAGAIN || errno == ETIMEDOUT ? 0 : CBSHM_ERR_SYSTEM;
}

static int wait_for_change(struct cbshm *client, struct cbshm_breaker *const *breakers,
			   size_t count, uint64_t *seen, int64_t end)
{
	for (;;) {
		int ignored;

		health_seek_agent(client);
		const struct mapping *mapping = segment_newest(client, &ignored);
		/* Before look(): pairs with the release store in segment_wake(). */
		uint32_t sequence = mapping ? word32_load(futex_of(mapping)) : 0;
		if (look(mapping, breakers, count, seen))
			return 0;
		int64_t left = end == INT64_MAX ? SLEEP_MAX_NS : end - health_now();
		if (left <= 0)
			return CBSHM_ERR_TIMEOUT;
		int error = sleep_until_change(mapping, sequence, left);
		if (error)
			return error;
	}
}

int cbshm_wait(struct cbshm *client, struct cbshm_breaker *const *breakers, size_t count,
	       uint64_t *seen, int timeout_ms)
{
	if (!client || !seen || (count != 0) != (breakers != NULL) || timeout_ms < -1)
		return CBSHM_ERR_INVALID;
	for (size_t i = 0; i < count; i++) {
		if (!breakers[i] || handle_of(breakers[i])->client != client)
			return CBSHM_ERR_INVALID;
	}
	int64_t end = timeout_ms < 0 ? INT64_MAX : health_now() + timeout_ms * INT64_C(1000000);
	return wait_for_change(client, breakers, count, seen, end);
}
