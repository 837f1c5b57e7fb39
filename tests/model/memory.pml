/*
 * memory.pml - a processor's memory under one writer, for the models that include it
 *
 * SPDX-License-Identifier: ISC
 *
 * That of ARMv8 as far as one writer needs it: a store waits in a buffer and reaches memory, and so every reader, at
 * once, at some later moment and in any order but for
 *
 *	- stores to the same word, which stay in order;
 *	- a release store, which waits for all stores before it;
 *	- a release fence: what comes after it waits for all stores before it.
 *
 * Of a reader's loads, those before an acquire load or fence are done before those after it; others may be done in any order,
 * which the models spell out. A killed writer's buffer still drains: the next writer begins after that, as the kernel's lock
 * between the two is a full barrier.
 *
 * Who includes this uses the words from 0 to 9, and defines KILLS. With WITHOUT_RELEASE=n or WITHOUT_FENCE=n the one of that number is left out.
 */
#define WORDS 10
#define BIT(w) (1 << (w))

byte memory[WORDS];
short waiting = 0;	/* words whose store is in the buffer, at most one for each */
byte value[WORDS];
short needs[WORDS];	/* of those, the ones that must have reached memory before it */
short fenced = 0;	/* of those, the ones that came before the last fence */
byte kills = 0;

#define drained (waiting == 0)
/* One thread's own stores are what it reads. */
#define own(w) (waiting & BIT(w) -> value[w] : memory[w])

#define may_drain(w) ((waiting & BIT(w)) && needs[w] == 0)

active proctype buffer()
{
	byte i, k;

end:
	do
	:: atomic {
		waiting != 0 ->
		if
		:: may_drain(0) -> i = 0
		:: may_drain(1) -> i = 1
		:: may_drain(2) -> i = 2
		:: may_drain(3) -> i = 3
		:: may_drain(4) -> i = 4
		:: may_drain(5) -> i = 5
		:: may_drain(6) -> i = 6
		:: may_drain(7) -> i = 7
		:: may_drain(8) -> i = 8
		:: may_drain(9) -> i = 9
		fi;
		memory[i] = value[i];
		value[i] = 0;
		waiting = waiting & ~BIT(i);
		fenced = fenced & ~BIT(i);
		k = 0;
		do
		:: k < WORDS -> needs[k] = needs[k] & ~BIT(i); k++
		:: else -> break
		od;
		i = 0; k = 0
	}
	od
}

#define needed(w) ((needs[0] | needs[1] | needs[2] | needs[3] | needs[4] | needs[5] | needs[6] | needs[7] | needs[8] | needs[9]) & BIT(w))

/* The word's last store must be on its way before the next takes its place, or is never seen if nothing waits for it. */
inline store(w, v, before)
{
	atomic {
		if
		:: !(waiting & BIT(w)) -> needs[w] = before
		:: (waiting & BIT(w)) && !needed(w) -> needs[w] = needs[w] | (before & ~BIT(w))
		fi;
		value[w] = v; waiting = waiting | BIT(w)
	}
}

#define relaxed(w, v) store(w, v, fenced)
#ifdef WITHOUT_RELEASE
#define release(n, w, v) if :: (WITHOUT_RELEASE == n) -> store(w, v, fenced) :: else -> store(w, v, waiting) fi
#else
#define release(n, w, v) store(w, v, waiting)
#endif
#ifdef WITHOUT_FENCE
#define fence(n) if :: (WITHOUT_FENCE == n) -> skip :: else -> fenced = waiting fi
#else
#define fence(n) fenced = waiting
#endif

inline maybe_die()
{
	if
	:: kills < KILLS -> kills++; goto killed
	:: true
	fi
}
