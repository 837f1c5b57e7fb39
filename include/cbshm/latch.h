/*
 * latch.h - every load, store and fence on words that the agent changes while readers look
 *
 * SPDX-License-Identifier: ISC
 *
 * Nothing else touches such words (but for the inline check in cbshm.h, which is one acquire load), and fences are
 * nowhere else. What orders words of one process alone, handles and the list of mappings, stands where they
 * are. Used by the agent (write side) and libcbshm (read side); not installed.
 *
 * A record is a two-copy latch, after seqcount_latch of the Linux kernel, joined with the decision
 * word so that word and details always belong together. One writer, any number of readers.
 *
 * The writer, from a state in which both copies and the word say v1:
 *
 *	W1  sequence = odd             release     readers turn to copies[1]
 *	W2  fence                      release
 *	W3  copies[0] = v2             relaxed
 *	W4  word = v2                  release     the decision is taken here
 *	W5  sequence = even            release     readers turn to copies[0]
 *	W6  fence                      release
 *	W7  copies[1] = v2             relaxed
 *
 * The reader:
 *
 *	R1  q = sequence               acquire     pairs with W1 (copies[1] is whole) and W5 (copies[0] is whole)
 *	R2  w = word                   acquire     pairs with W4: who sees v2 also sees all of copies[0]
 *	R3  copies[q & 1]              relaxed
 *	R4  fence                      acquire     pairs with W2 and W6: who has read anything of W3 or W7 sees
 *	R5  sequence == q?             relaxed     the sequence stored before it, and starts again
 *	R6  version matches w's epoch?             then this is the record that explains w
 *
 * Since w is loaded between two equal sequences it is either the word from before the update q or the one of
 * W4. Between W4 and W5 (where a writer may have been killed) the stable copy, copies[1], is older than the
 * word; copies[0] is then whole, and R2 makes it visible. So when R6 fails under an odd sequence the
 * reader takes copies[0] and checks R5 again.
 *
 * An update without a new version (a policy of the fleet, a clock that was set) cannot fail R6: between W4 and W5
 * the reader takes copies[1], whole but older than the word. It has the same decision, but for a database that
 * went back in a failover, and the deadline that counted before.
 *
 * A killed writer thus leaves, wherever it was, one copy that is whole and of the word's version.
 *
 * The other words, each with what stores it (release, unless it says otherwise), what loads it
 * (acquire), and what the one who sees the store also sees:
 *
 *	allocated         segment_file_grow()  segment_allocated()   the file holds those records: fallocate(2) came before
 *	word, live        slot_fill()          cbshm_check(), ...    the slot's name and both of its copies
 *	bucket            index_add()          index_find()          the same: the word came before
 *	word, 0           slot_free()          index_slot_name()     see the fence
 *	fence, release    slot_free()          fence, acquire, in index_slot_name(): who has read a byte of the next name sees
 *	                                       that the word has not its old generation any more
 *	bucket, tombstone index_clear()        index_find()          nothing: the slot's name decides
 *	index_word        index_announce()     binding_search()      the bucket. It is loaded before the search: one that misses
 *	                                       a breaker has begun before the store, and the next check sees another value
 *	MOVED             mark_moved()         handle_resolve()      nothing: who sees it asks the kernel for the name, before
 *	                                       and after rename(2), and nothing is published in the new segment before
 *	state, RETIRED    put_in_place()       segment_follow()      rename(2): the name leads to the successor
 *	change_sequence   segment_wake()       cbshm_wait()          the whole batch; FUTEX_WAIT compares it again
 *	owner word        segment_owner_take() owner_alive()         of owner_word_offset: the mutex. The kernel's mark for a
 *	                                       dead owner carries nothing but itself
 *	current mapping   attach_once()        segment_current()     the mapping, in one process
 *	handle's word     handle_set()         cbshm_check()         the mapping that it points into, in one process
 *
 * Stamps (heartbeat, database_confirmed, clock_offset) stand for themselves. Between two writers
 * the lock is a full barrier.
 *
 * tests/model has the latch for spin(1), with kills, on orderly and on reordering memory: leaving
 * out any step, W1 to W6 or R1 to R6, is found; and, on the same memory, slots that pass from one breaker to another and
 * the index. tests/torture/test_aarch64.py looks for the
 * barriers in machine code.
 */
#ifndef CBSHM_LATCH_H
#define CBSHM_LATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "cbshm/segment.h"

/*
 * ThreadSanitizer does not understand fences. Under it every payload store is a release and every
 * payload load an acquire, which orders at least as much.
 */
#if defined(__SANITIZE_THREAD__)
#define CBSHM_LATCH_WITHOUT_FENCES 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define CBSHM_LATCH_WITHOUT_FENCES 1
#endif
#endif

#ifdef CBSHM_LATCH_WITHOUT_FENCES
#define CBSHM_PAYLOAD_STORE __ATOMIC_RELEASE
#define CBSHM_PAYLOAD_LOAD  __ATOMIC_ACQUIRE
static inline void latch_fence_release(void) {}
static inline void latch_fence_acquire(void) {}
#else
#define CBSHM_PAYLOAD_STORE __ATOMIC_RELAXED
#define CBSHM_PAYLOAD_LOAD  __ATOMIC_RELAXED
static inline void latch_fence_release(void)
{
	__atomic_thread_fence(__ATOMIC_RELEASE);
}
static inline void latch_fence_acquire(void)
{
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
}
#endif

/*
 * Where a test kills the writer: before every store here, and before every step that changes a file
 * (agent/segment_file.c). Nothing in the product; tests/torture/crash_points.c is built with it.
 */
#ifdef CBSHM_CRASH_POINTS
void crash_point(void);
#else
static inline void crash_point(void) {}
#endif

static inline uint64_t word_load(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static inline void word_store(uint64_t *word, uint64_t value)
{
	crash_point();
	__atomic_store_n(word, value, __ATOMIC_RELEASE);
}

static inline uint32_t word32_load(const uint32_t *word)
{
	return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static inline void word32_store(uint32_t *word, uint32_t value)
{
	crash_point();
	__atomic_store_n(word, value, __ATOMIC_RELEASE);
}

static inline uint32_t word_generation(uint64_t word)
{
	return (uint32_t)(word & CBSHM_WORD_GENERATION_MASK) >> CBSHM_WORD_GENERATION_SHIFT;
}

static inline uint32_t word_epoch(uint64_t word)
{
	return (uint32_t)(word >> CBSHM_WORD_EPOCH_SHIFT);
}

/* Copies `count` words out of, or into, memory that the other side may be using. */
static inline void payload_read(uint64_t *to, const uint64_t *from, size_t count)
{
	for (size_t i = 0; i < count; i++)
		to[i] = __atomic_load_n(&from[i], CBSHM_PAYLOAD_LOAD);
}

static inline void payload_write(uint64_t *to, const uint64_t *from, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		crash_point();
		__atomic_store_n(&to[i], from[i], CBSHM_PAYLOAD_STORE);
	}
}

/* A detail as words: a union, so that no aliasing rule is bent. */
union latch_detail {
	struct cbshm_detail detail;
	uint64_t words[CBSHM_DETAIL_WORDS];
};

/* W1 to W7. `word` becomes `value` between the two copies. The only writer calls it. */
static inline void latch_write(struct cbshm_record *record, uint64_t *word, uint64_t value,
			       const union latch_detail *detail)
{
	uint64_t sequence = __atomic_load_n(&record->sequence, __ATOMIC_RELAXED);

	word_store(&record->sequence, sequence + 1);
	latch_fence_release();
	payload_write(record->copies[0], detail->words, CBSHM_DETAIL_WORDS);
	word_store(word, value);
	word_store(&record->sequence, sequence + 2);
	latch_fence_release();
	payload_write(record->copies[1], detail->words, CBSHM_DETAIL_WORDS);
}

/*
 * Finishes what a killed writer left half done, without ever taking the whole copy away from
 * readers. After it both copies agree and the sequence is even.
 *
 * Under an odd sequence copies[1] is whole. If it belongs to the word, the kill came before W4 (or the
 * epoch did not change) and copies[0] may be torn; else W4 had happened and copies[0] is whole.
 */
static inline void latch_recover(struct cbshm_record *record, const uint64_t *word)
{
	uint64_t sequence = word_load(&record->sequence);
	union latch_detail whole;

	if (sequence & 1) {
		payload_read(whole.words, record->copies[1], CBSHM_DETAIL_WORDS);
		if ((uint32_t)whole.detail.version == word_epoch(word_load(word))) {
			latch_fence_release();
			payload_write(record->copies[0], whole.words, CBSHM_DETAIL_WORDS);
		}
		word_store(&record->sequence, sequence + 1);
	}
	payload_read(whole.words, record->copies[0], CBSHM_DETAIL_WORDS);
	latch_fence_release();
	payload_write(record->copies[1], whole.words, CBSHM_DETAIL_WORDS);
}

/* How often a reader tries before it says that the record is busy. */
#define CBSHM_LATCH_TRIES 64

/* What of a record is to be read, and where to. */
struct latch_parts {
	uint64_t *words; /* the first `count` of a copy; at least 1, the version */
	size_t count;
	char *actor; /* the texts, if not NULL: as many whole words as they take, not terminated; `words` must hold */
	char *reason; /* their lengths */
};

/* The words before the texts, which say how long those are. */
#define CBSHM_LATCH_NUMBERS     (offsetof(struct cbshm_detail, disabled_by) / sizeof(uint64_t))
#define CBSHM_LATCH_REASON      (offsetof(struct cbshm_detail, disabled_reason) / sizeof(uint64_t))
#define CBSHM_LATCH_ACTOR_STEP  (3 * sizeof(uint64_t))
#define CBSHM_LATCH_REASON_STEP (6 * sizeof(uint64_t))

_Static_assert(CBSHM_DETAIL_ACTOR_BYTES % CBSHM_LATCH_ACTOR_STEP == 0 &&
		       CBSHM_DETAIL_REASON_BYTES % CBSHM_LATCH_REASON_STEP == 0,
	       "payload_read_text()");

static inline void payload_read_bytes(char *to, const uint64_t *from)
{
	uint64_t word = __atomic_load_n(from, CBSHM_PAYLOAD_LOAD);

	memcpy(to, &word, sizeof(word));
}

/*
 * However wrong the length is: until R5 has been passed it may be of another version than the text.
 * Several words at once, of which the field has a whole number: a loop of few rounds is one whose
 * end a processor foresees.
 */
static inline __attribute__((always_inline)) void payload_read_text(char *to, const uint64_t *from,
								    size_t length, size_t room,
								    size_t step)
{
	if (length > room)
		length = room;
	for (size_t i = 0; i < length; i += step, from += step / sizeof(*from)) {
#pragma GCC unroll 8
		for (size_t at = 0; at < step; at += sizeof(*from))
			payload_read_bytes(&to[i + at], &from[at / sizeof(*from)]);
	}
}

static inline void payload_read_parts(const struct latch_parts *parts, const uint64_t *copy)
{
	uint16_t lengths[2];

	payload_read(parts->words, copy, parts->count);
	if (!parts->actor)
		return;
	memcpy(lengths, (const char *)parts->words + offsetof(struct cbshm_detail, actor_length),
	       sizeof(lengths));
	payload_read_text(parts->actor, &copy[CBSHM_LATCH_NUMBERS], lengths[0],
			  CBSHM_DETAIL_ACTOR_BYTES, CBSHM_LATCH_ACTOR_STEP);
	payload_read_text(parts->reason, &copy[CBSHM_LATCH_REASON], lengths[1],
			  CBSHM_DETAIL_REASON_BYTES, CBSHM_LATCH_REASON_STEP);
}

/* R3 to R5 on one copy. */
static inline bool latch_read_copy(const struct cbshm_record *record, uint64_t sequence,
				   size_t copy, const struct latch_parts *parts)
{
	payload_read_parts(parts, record->copies[copy]);
	latch_fence_acquire();
	return __atomic_load_n(&record->sequence, __ATOMIC_RELAXED) == sequence;
}

/*
 * R1 to R6: reads parts of the copy that belongs to the decision word, and the word itself. Returns false if
 * the record changed under every one of CBSHM_LATCH_TRIES attempts. The caller checks the generation of *value.
 */
static inline bool latch_read_parts(const struct cbshm_record *record, const uint64_t *word,
				    uint64_t *value, const struct latch_parts *parts)
{
	for (int i = 0; i < CBSHM_LATCH_TRIES; i++) {
		uint64_t sequence = word_load(&record->sequence);
		uint64_t w = word_load(word);
		bool odd = sequence & 1;

		*value = w;
		if (latch_read_copy(record, sequence, odd, parts) &&
		    (uint32_t)parts->words[0] == word_epoch(w))
			return true;
		if (odd && latch_read_copy(record, sequence, 0, parts) &&
		    (uint32_t)parts->words[0] == word_epoch(w))
			return true;
	}
	return false;
}

/* The same for the words [0, count). */
static inline bool latch_read(const struct cbshm_record *record, const uint64_t *word,
			      uint64_t *value, uint64_t *out, size_t count)
{
	const struct latch_parts parts = {out, count, NULL, NULL};

	return latch_read_parts(record, word, value, &parts);
}

/* Where the deadline stands in a copy. */
#define CBSHM_LATCH_DEADLINE (offsetof(struct cbshm_detail, deadline) / sizeof(uint64_t))

/*
 * R1 to R6 for the deadline alone, once: the check of an open breaker with a TTL spends most of its
 * time on the clock, and this is made to be lost in it. The sequence is loaded before the word and
 * again after both loads of the copy, so that the same pairs hold as in latch_read(). False if an
 * update is under way: latch_read() then does it in full.
 */
static inline bool latch_read_deadline(const struct cbshm_record *record, const uint64_t *word,
				       uint64_t *value, int64_t *deadline)
{
	uint64_t sequence = word_load(&record->sequence); /* R1, pairs with W1 and W5 */
	uint64_t w = word_load(word);                     /* R2, pairs with W4 */
	const uint64_t *copy = record->copies[sequence & 1];
	uint64_t version = __atomic_load_n(&copy[0], CBSHM_PAYLOAD_LOAD); /* R3, as the next */
	uint64_t end = __atomic_load_n(&copy[CBSHM_LATCH_DEADLINE], CBSHM_PAYLOAD_LOAD);

	latch_fence_acquire(); /* R4, pairs with W2 and W6 */
	*value = w;
	*deadline = (int64_t)end;
	return __atomic_load_n(&record->sequence, __ATOMIC_RELAXED) == sequence && /* R5 */
	       (uint32_t)version == word_epoch(w);                                 /* R6 */
}

#endif /* CBSHM_LATCH_H */
