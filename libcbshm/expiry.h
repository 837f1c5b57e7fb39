/*
 * expiry.h - when an opening ends by itself: the one rule, for the check and for the state
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef LIBCBSHM_EXPIRY_H
#define LIBCBSHM_EXPIRY_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "cbshm/segment.h"

/* Open, with a deadline, and passing it closes the breaker? Without auto_recover it changes nothing. */
static inline bool word_may_expire(uint64_t word)
{
	const uint64_t all = CBSHM_WORD_DISABLED | CBSHM_WORD_HAS_TTL | CBSHM_WORD_AUTO_RECOVER;

	return (word & all) == all;
}

/* The clock of the deadlines: it goes on in suspend, and nobody can set it. */
static inline int64_t boottime_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

#endif /* LIBCBSHM_EXPIRY_H */
