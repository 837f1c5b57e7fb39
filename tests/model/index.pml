/*
 * index.pml - slots that pass from one breaker to another, and the way from a name to them, as a model for spin(1)
 *
 * SPDX-License-Identifier: ISC
 *
 * What is modelled, on reordering memory (memory.pml): a writer that inserts and removes two breakers in any order
 * (slot_fill(), slot_free(), index_add(), index_clear() in agent/segment_writer.c), into any slot that is free, its death between
 * any two stores, and the next writer's recovery of slots and index; and readers with a handle on one breaker that they share, like
 * threads do (cbshm_check(), binding_search() and handle_resolve() in libcbshm). Both names have the same hash, so that each is on
 * the other's way. The latch, which weak.pml has, is left out; a name is two words. A slot is used again at once: its rest is a
 * second line of defence, of which the proof needs nothing.
 *
 * Proved: who has found its breaker has the newest one of that name, and never another one's slot; who has not found it asks at
 * a moment at which it may have been away. What happens to the other breaker changes none of that.
 */
#define A 1
#define B 2
#define NAMES 3
#define SLOTS 2
#define BUCKETS 2

#define WORD(s)   (s)			/* its generation, or 0 */
#define NAME(s)   (2 + 2 * (s))		/* and the next */
#define BUCKET(b) (6 + (b))		/* slot + 1; the bucket after the last is always empty */
#define INDEX     8
#define TRUTH     9			/* how many changes have surely been made */

#define EMPTY     0
#define TOMBSTONE 9
#define NONE      7
#ifdef BREAK_INDEX_BIT
#define INDEX_BIT 0
#else
#define INDEX_BIT 128			/* no breaker's word has it */
#endif

#ifndef CHANGES
#define CHANGES 3
#endif
#ifndef CHECKS
#define CHECKS 2
#endif

#include "memory.pml"

byte generation = 2;
byte owner[20];	/* whose each generation is */
#ifdef BREAK_GENERATIONS
byte used[SLOTS] = 2;	/* the generations of each slot */
#define OWNER(s, g) owner[(s) * 10 + (g)]
#else
#define OWNER(s, g) owner[g]
#endif
byte newest[NAMES];	/* the generation of each that is there, or 0 */
byte begun = 0;		/* changes */
byte touched[NAMES];	/* the last of them that was one of this breaker */
byte handle_word = WORD(0), handle_live = 1;
bool binding = false;

init
{
	/* A is in slot 0, but behind B, which is in slot 1. */
	atomic {
		memory[WORD(0)] = 1; memory[NAME(0)] = A; memory[NAME(0) + 1] = A; memory[BUCKET(1)] = 1;
		memory[WORD(1)] = 2; memory[NAME(1)] = B; memory[NAME(1) + 1] = B; memory[BUCKET(0)] = 2;
		memory[INDEX] = INDEX_BIT + 2;
		OWNER(0, 1) = A; OWNER(1, 2) = B; newest[A] = 1; newest[B] = 2;
		run writer();
		run reader();
#ifdef THREADS
		run reader()
#endif
	}
}

inline index_add(s)
{
	b = 0;
	do
	:: own(BUCKET(b)) == EMPTY || own(BUCKET(b)) == TOMBSTONE -> break
	:: else -> b++
	od;
	release(3, BUCKET(b), s + 1)
}

/* The bucket b. */
inline index_clear()
{
#ifdef BREAK_TOMBSTONE
	release(0, BUCKET(b), EMPTY);
#else
	release(0, BUCKET(b), TOMBSTONE);
	if
	:: b + 1 == BUCKETS || own(BUCKET(b + 1)) == EMPTY ->
		do
		:: own(BUCKET(b)) == TOMBSTONE ->
			maybe_die();
			release(0, BUCKET(b), EMPTY);
			if :: b == 0 -> break :: else -> b-- fi
		:: else -> break
		od
	:: else
	fi;
#endif
	b = 0
}

inline index_announce()
{
	release(4, INDEX, INDEX_BIT + generation)
}

/* What the writer knows of slot s. */
#define is(s, name) (own(WORD(s)) != 0 && own(NAME(s)) == name)
#define find(name) (is(0, name) -> 0 : (is(1, name) -> 1 : NONE))
#define bucket_of(s) (own(BUCKET(0)) == s + 1 -> 0 : (own(BUCKET(1)) == s + 1 -> 1 : NONE))

inline slot_fill(s)
{
#ifdef BREAK_GENERATIONS
	used[s]++;
	generation = used[s];
#else
	generation++;
#endif
	OWNER(s, generation) = name;
	newest[name] = generation;
	relaxed(NAME(s), name);
	maybe_die();
	relaxed(NAME(s) + 1, name);
	maybe_die();
#ifdef BREAK_ANNOUNCE_FIRST
	index_announce();
	maybe_die();
#endif
	release(2, WORD(s), generation);
	maybe_die();
	index_add(s);
#ifndef BREAK_ANNOUNCE_FIRST
	maybe_die();
	index_announce()
#endif
}

inline slot_free(s)
{
	newest[name] = 0;
	release(1, WORD(s), 0);
	fence(1);
	maybe_die();
	b = bucket_of(s);
	index_clear()
}

proctype writer()
{
	byte name = 0, slot = 0, b = 0;

again:
	do
	:: begun < CHANGES ->
		if :: name = A :: name = B fi;
		d_step { begun++; touched[name] = begun };
		slot = find(name);
		if
		:: slot != NONE -> slot_free(slot)
		:: else ->
			if
			:: own(WORD(0)) == 0 -> slot = 0
			:: own(WORD(1)) == 0 -> slot = 1
			fi;
			slot_fill(slot)
		fi;
		release(5, TRUTH, begun)
	:: else -> goto end
	od;

killed:	/* recover_index(), and what take_over() does after it */
	drained;
	slot = 0;
	do
	:: slot < SLOTS ->
		if	/* recover_buckets() */
		:: memory[WORD(slot)] == 0 && bucket_of(slot) != NONE ->
			b = bucket_of(slot);
			index_clear()
		:: else
		fi;
		slot++
	:: else -> break
	od;
#ifndef BREAK_RECOVERY
	slot = 0;
	do
	:: slot < SLOTS ->
		if
		:: own(WORD(slot)) != 0 && bucket_of(slot) == NONE -> index_add(slot); maybe_die()
		:: else
		fi;
		slot++
	:: else -> break
	od;
#endif
	atomic {	/* newest_generation() */
		generation = memory[INDEX] & 127;
#ifndef BREAK_NEWEST_GENERATION
		if :: memory[WORD(0)] > generation -> generation = memory[WORD(0)] :: else fi;
		if :: memory[WORD(1)] > generation -> generation = memory[WORD(1)] :: else fi;
		generation++;
#endif
		slot = find(name);
		newest[name] = (slot == NONE -> 0 : own(WORD(slot)))
	};
#ifndef BREAK_RECOVERY_UNSAID
	index_announce();
#endif
	release(5, TRUTH, begun);
	goto again;
end:
	skip
}

/* index_find() for A. */
inline search()
{
	slot = NONE;
	b = 0;
	do
	:: slot == NONE && b < BUCKETS ->
		x = memory[BUCKET(b)];
		if
		:: x == EMPTY -> break
		:: x == TOMBSTONE
		:: x != EMPTY && x != TOMBSTONE ->
			found = memory[WORD(x - 1)];
			if
			:: found == 0
			:: else ->
#ifdef WITHOUT_ACQUIRE
				again = memory[WORD(x - 1)];
#endif
				/* Relaxed, in either order. */
				if
				:: n = memory[NAME(x - 1)]; m = memory[NAME(x - 1) + 1]
				:: m = memory[NAME(x - 1) + 1]; n = memory[NAME(x - 1)]
				fi;
#ifndef WITHOUT_ACQUIRE
				again = memory[WORD(x - 1)];
#endif
#ifdef BREAK_NO_RECHECK
				again = found;
#endif
				if
				:: again == found && n == A && m == A ->
					slot = x - 1;
					assert(OWNER(slot, found) == A)
				:: else
				fi
			fi
		fi;
		b++
	:: else -> break
	od;
	b = 0; x = 0; n = 0; m = 0; again = 0
}

/* What is found goes to the handle, in two stores of which none need be the first, if nobody else is just doing that. */
inline bind()
{
	if
	:: atomic { !binding -> binding = true };
		if
		:: handle_live = live; handle_word = at
		:: handle_word = at; handle_live = live
		fi;
		binding = false
	:: atomic { binding -> skip }
	fi
}

proctype reader()
{
	byte checks = 0, before, at, now, live, found, again, slot, b, x, n, m;

	do
	:: checks < CHECKS ->
		checks++;
		before = memory[TRUTH];
		at = handle_word;
		now = memory[at];
		live = handle_live;
		do
#ifdef BREAK_NO_GENERATION
		:: now == live || (at != INDEX && now != 0 && now < 100) -> break
#else
		:: now == live -> break
#endif
		:: else ->
#ifndef BREAK_INDEX_WORD_LATE
			now = memory[INDEX];
#endif
			search();
#ifdef BREAK_INDEX_WORD_LATE
			now = memory[INDEX];
#endif
			if
			:: slot == NONE -> at = INDEX; live = now; bind(); break
			:: else -> at = WORD(slot); live = found; bind(); now = memory[at]
			fi
		od;
		if
		:: at == INDEX -> found = 0
		:: else -> found = now; assert(OWNER(at, found) == A)
		fi;
		atomic {
			if
			:: touched[A] <= before -> assert(found == newest[A])
			:: else
			fi
		}
	:: else -> break
	od
}
