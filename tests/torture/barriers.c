/*
 * barriers.c - each step of the segment's protocol as a function of its own, to look at what a compiler makes of it
 *
 * SPDX-License-Identifier: ISC
 *
 * Not run: tests/torture/test_aarch64.py reads the instructions.
 */
#include <stddef.h>

#include "cbshm.h"
#include "cbshm/latch.h"

void asm_latch_write(struct cbshm_record *record, uint64_t *word, uint64_t value,
		     const union latch_detail *detail);
void asm_latch_write(struct cbshm_record *record, uint64_t *word, uint64_t value,
		     const union latch_detail *detail)
{
	latch_write(record, word, value, detail);
}

bool asm_latch_read(const struct cbshm_record *record, uint64_t sequence, size_t copy,
		    const struct latch_parts *parts);
bool asm_latch_read(const struct cbshm_record *record, uint64_t sequence, size_t copy,
		    const struct latch_parts *parts)
{
	return latch_read_copy(record, sequence, copy, parts);
}

bool asm_latch_read_deadline(const struct cbshm_record *record, const uint64_t *word,
			     uint64_t *value, int64_t *deadline);
bool asm_latch_read_deadline(const struct cbshm_record *record, const uint64_t *word,
			     uint64_t *value, int64_t *deadline)
{
	return latch_read_deadline(record, word, value, deadline);
}

void asm_slot_free(uint64_t *word, uint64_t *name, const uint64_t *next);
void asm_slot_free(uint64_t *word, uint64_t *name, const uint64_t *next)
{
	word_store(word, 0);
	latch_fence_release();
	payload_write(name, next, 16);
}

struct cbshm_decision asm_check(const struct cbshm_breaker *breaker);
struct cbshm_decision asm_check(const struct cbshm_breaker *breaker)
{
	return cbshm_check(breaker);
}
