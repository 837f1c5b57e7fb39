/*
 * weak.pml - the latch (include/cbshm/latch.h) on a processor that reorders stores and loads, as a model for spin(1)
 *
 * SPDX-License-Identifier: ISC
 *
 * latch.pml takes for granted that the fences, releases and acquires order what they are there to order; this is
 * the model in which they are what does it, and in which leaving one out is found. The memory is that of ARMv8 as far as one
 * writer needs it: a store waits in a buffer and reaches memory, and so every reader, at once, at some later moment and
 * in any order but for
 *
 *	- stores to the same word, which stay in order;
 *	- a release store, which waits for all stores before it;
 *	- a release fence: what comes after it waits for all stores before it.
 *
 * Of a reader's loads, those before an acquire load or fence are done before those after it; others may be done in any order. A killed
 * writer's buffer still drains: the next writer begins after that, as the kernel's lock between the two is a full barrier.
 * As in latch.pml a value stands for (version, content), and a copy is two words.
 */
#define SEQ   0
#define WORD  1
#define COPY0 2 /* and 3 */
#define COPY1 4 /* and 5 */
#define WORDS 6

#define UPDATES 2

byte memory[WORDS];
bool waiting[WORDS];	/* a store in the buffer, at most one for each word */
byte value[WORDS];
byte since[WORDS];	/* the number of the store */
byte after[WORDS];	/* all stores with a number below must have reached memory before */
byte stores = 1;
byte fenced = 0;	/* stores with a number below this came before the last fence */
byte kills = 0;

#define before(w, i) (waiting[w] && since[w] < after[i])
#define may_drain(i) \
	(waiting[i] && !before(0, i) && !before(1, i) && !before(2, i) && !before(3, i) && !before(4, i) && !before(5, i))
#define drained \
	(!waiting[0] && !waiting[1] && !waiting[2] && !waiting[3] && !waiting[4] && !waiting[5])

active proctype buffer()
{
	byte i;

end:
	do
	:: atomic {
		!drained ->
		if
		:: may_drain(0) -> i = 0
		:: may_drain(1) -> i = 1
		:: may_drain(2) -> i = 2
		:: may_drain(3) -> i = 3
		:: may_drain(4) -> i = 4
		:: may_drain(5) -> i = 5
		fi;
		memory[i] = value[i];
		waiting[i] = false; value[i] = 0; since[i] = 0; after[i] = 0
	}
	od
}

/* The word's last store must be on its way before the next takes its place. */
inline store(w, v, needs)
{
	atomic {
		!waiting[w] ->
		waiting[w] = true; value[w] = v; since[w] = stores; after[w] = needs; stores++
	}
}

#define relaxed(w, v) store(w, v, fenced)
#ifdef WITHOUT_RELEASE
#define release(n, w, v) if :: (WITHOUT_RELEASE == n) -> store(w, v, fenced) :: else -> store(w, v, stores) fi
#else
#define release(n, w, v) store(w, v, stores)
#endif
#ifdef WITHOUT_FENCE
#define fence(n) if :: (WITHOUT_FENCE == n) -> skip :: else -> fenced = stores fi
#else
#define fence(n) fenced = stores
#endif

inline maybe_die()
{
	if
	:: kills < KILLS -> kills++; goto killed
	:: true
	fi
}

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
		/* one thread's own stores are what it reads */
		x = (waiting[COPY0] -> value[COPY0] : memory[COPY0])
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
