/*
 * weak.pml - the latch (include/cbshm/latch.h) on a processor that reorders stores and loads, as a model for spin(1)
 *
 * SPDX-License-Identifier: ISC
 *
 * latch.pml takes for granted that the fences, releases and acquires order what they are there to order; this is
 * the model in which they are what does it, on the memory of memory.pml, and in which leaving one out is found.
 * As in latch.pml a value stands for (version, content), and a copy is two words.
 */
#define SEQ   0
#define WORD  1
#define COPY0 2 /* and 3 */
#define COPY1 4 /* and 5 */

#define UPDATES 2

#include "memory.pml"

inline write_copy(c, v)
{
	relaxed(c, v);
	maybe_die();
	relaxed(c + 1, v)
}

active proctype writer()
{
	byte v = 0, q = 0, done = 0, x;

again:
	do
	:: done < UPDATES ->
		done++; v++; q++;
		release(1, SEQ, q);			/* W1 */
		fence(2);				/* W2 */
		maybe_die();
		write_copy(COPY0, v);			/* W3 */
		maybe_die();
		release(4, WORD, v);			/* W4 */
		maybe_die();
		q++;
		release(5, SEQ, q);			/* W5 */
		fence(6);				/* W6 */
		maybe_die();
		write_copy(COPY1, v)			/* W7 */
	:: else -> goto end
	od;

killed:
	drained;
	/* latch_recover() */
	q = memory[SEQ];
	if
	:: q % 2 == 1 ->
		x = memory[COPY1];
		if
		:: x == memory[WORD] ->
			fence(7);
			write_copy(COPY0, x)
		:: else
		fi;
		q++;
		release(8, SEQ, q);
		x = own(COPY0)
	:: else -> x = memory[COPY0]
	fi;
	fence(9);
	write_copy(COPY1, x);
	v = memory[WORD];
	goto again;
end:
	skip
}

/* Two relaxed loads, and the second look at the sequence: after them because of the fence R4. */
inline read_and_check(c)
{
#ifdef WITHOUT_R4
	if
	:: recheck = memory[SEQ]; a = memory[c]; b = memory[c + 1]
	:: a = memory[c]; recheck = memory[SEQ]; b = memory[c + 1]
	:: true ->
#endif
	if
	:: a = memory[c]; b = memory[c + 1]
	:: b = memory[c + 1]; a = memory[c]
	fi;
	recheck = memory[SEQ]
#ifdef WITHOUT_R4
	fi
#endif
}

active proctype reader()
{
	byte q, w, a, b, recheck, newest = 0;
	byte tries = 0;

	do
	:: tries < 2 ->
		tries++;
#ifdef WITHOUT_R1
		if	/* the word before the sequence */
		:: w = memory[WORD]; q = memory[SEQ]
		:: q = memory[SEQ]; w = memory[WORD]
		fi;
#else
		q = memory[SEQ];			/* R1 */
		w = memory[WORD];			/* R2 */
#endif
		read_and_check((q % 2 == 1 -> COPY1 : COPY0));	/* R3 to R5 */
#ifdef WITHOUT_R2
		if	/* the word after the copy */
		:: w = memory[WORD]
		:: true
		fi;
#endif
		if
		:: recheck == q && a == w ->
			assert(a == b);			/* not torn */
			assert(w >= newest);		/* not older than before */
			newest = w
		:: recheck == q && a != w ->
			assert(q % 2 == 1);		/* under an even sequence it always fits */
			read_and_check(COPY0);
			if
			:: recheck == q && a == w -> assert(a == b)
			:: else
			fi
		:: else
		fi
	:: else -> break
	od
}
