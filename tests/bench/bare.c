/*
 * bare.c - the least that a shared library's function can do to look at a word
 *
 * SPDX-License-Identifier: ISC
 *
 * In a library of its own, so that the call of it goes as far as the call of cbshm_is_disabled_call() does.
 */
#include "config.h"

#include "tests/bench/bare.h"

bool bare_function(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_ACQUIRE) & 1;
}
