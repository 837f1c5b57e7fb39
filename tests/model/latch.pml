/*
 * latch.pml - the record's latch (include/cbshm/latch.h) as a model for spin(1)
 *
 * SPDX-License-Identifier: ISC
 *
 * What is modelled: a writer that may be killed before each of its stores, the next writer's recovery (which
 * may be killed as well), and readers. Relaxed payload accesses happen in any order; everything else
 * is ordered by the releases, acquires and fences that latch.h names, which is what they are for.
 * A store is visible at once when it happens, so memories that show stores to different readers
 * in different orders are beyond this model; each reader follows one record, where coherence suffices.
 *
 * A value stands for (version, content): two payload words, both equal to it in a whole copy, and the
 * epoch of the word is its version. Values 1, 2, 3 are versions 1, 2, 2 (a rewrite that keeps the
 * version) and 4 is version 1 again (the database went back).
 *
 * Proved: a reader that succeeds has a whole copy, of the version that the word had; no reader ever sees
 * a value that was not written; with the writer dead a read succeeds at the first attempt.
 */
#define VERSION(v) ((v) == 3 -> 2 : ((v) == 4 -> 1 : (v)))
#define UPDATES 3

byte word = 1;		/* the version in the decision word */
byte seq = 0;
byte copy_a[2] = 1;	/* payload word 0: implies the version */
byte copy_b[2] = 1;	/* payload word 1 */
bool dead = false;
byte kills = 0;
byte done = 0;

inline maybe_die()
{
	if
	:: kills < KILLS -> kills++; dead = true; goto killed
	:: true
	fi
}

/* Two relaxed stores in either order; the second may never come. */
inline write_copy(c, v)
{
	maybe_die();
	if
	:: copy_a[c] = v; maybe_die(); copy_b[c] = v
	:: copy_b[c] = v; maybe_die(); copy_a[c] = v
	fi
}

active proctype writer()
{
	byte v, x;

again:
	do
	:: done < UPDATES ->
		if
		:: v = 1 :: v = 2 :: v = 3 :: v = 4
		fi;
		done++;
#ifndef BREAK_ODD
		maybe_die(); seq++;			/* W1 */
#endif
#ifdef BREAK_WORD_FIRST
		maybe_die(); word = VERSION(v);
#endif
		write_copy(0, v);			/* W3 */
#ifndef BREAK_WORD_FIRST
		maybe_die(); word = VERSION(v);		/* W4 */
#endif
#ifndef BREAK_EVEN
		maybe_die(); seq++;			/* W5 */
#endif
		write_copy(1, v)			/* W7 */
	:: else -> goto end
	od;

killed:	/* and the next writer's latch_recover() */
	dead = false;
	if
	:: seq % 2 == 1 ->
		if
#ifdef BREAK_RECOVERY
		:: false -> x = 0
#else
		:: VERSION(copy_a[1]) == word -> x = copy_a[1]; write_copy(0, x)
#endif
		:: else
		fi;
		maybe_die(); seq++
	:: else
	fi;
	x = copy_a[0];
	write_copy(1, x);
	goto again;
end:
	skip
}

/* Two relaxed loads in either order. */
inline read_copy(c)
{
	if
	:: a = copy_a[c]; b = copy_b[c]
	:: b = copy_b[c]; a = copy_a[c]
	fi
}

active [READERS] proctype reader()
{
	byte q, w, a, b;
	bool ok = false;

	do
	:: !ok ->
		q = seq;				/* R1 */
		w = word;				/* R2 */
		read_copy(q % 2);			/* R3 */
		if
#ifdef BREAK_NO_RECHECK
		:: VERSION(a) == w -> ok = true
		:: else
#else
		:: seq == q && VERSION(a) == w -> ok = true	/* R5, R6 */
		:: seq == q && VERSION(a) != w ->
			assert(q % 2 == 1);		/* an even sequence always matches */
			read_copy(0);
			if
			:: seq == q && VERSION(a) == w -> ok = true
			:: else
			fi
		:: else
#endif
		fi
	:: ok ->
		assert(a == b);				/* not torn */
		break
	od
}
