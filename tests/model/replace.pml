/*
 * replace.pml - a segment that is replaced, under a writer that may be killed, as a model for spin(1)
 *
 * SPDX-License-Identifier: ISC
 *
 * What is modelled: files, of which one has the name; a writer that changes a breaker in the file it has, or makes another file
 * and puts it in its place (put_in_place() in agent/segment_writer.c); its death between any two of these steps, and the next
 * writer, which goes on in the file that has the name; and a reader that follows (handle_resolve() and segment_follow() in
 * libcbshm). Two threads of a reader share the newest mapping, but each has a handle that may still be on an older one. Proved: no answer is older than what had been published when the question was asked, and none was never true.
 */
#define FILES	3
#define UPDATES 2
#ifndef READS
#define READS 1
#endif

byte version[FILES];	/* of the breaker: with the next, the decision word */
bool moved[FILES];
bool retired[FILES];
byte name = 0;		/* which file has it */
byte files = 1;
byte low = 0, high = 0;	/* what has surely been published, and what may have been */
byte kills = 0;
byte current = 0;	/* the reader's newest mapping */

inline maybe_die()
{
	if
	:: kills < KILLS -> kills++; goto killed
	:: true
	fi
}

active proctype writer()
{
	byte mine = 0, next, updates = 0;

again:
	do
	:: updates < UPDATES ->
		updates++;
		high++;
		maybe_die();
		version[mine] = high;
		maybe_die();
		low = high
	:: files < FILES ->
		next = files;
		files++;
		version[next] = version[mine];
		maybe_die();
#ifdef BREAK_NAME_FIRST
		name = next;
		maybe_die();
		moved[mine] = true;
#else
		moved[mine] = true;
		maybe_die();
		name = next;
#endif
		maybe_die();
		retired[mine] = true;
		mine = next
	:: updates == UPDATES && files == FILES -> goto end
	od;

killed:	/* recover_slots() takes MOVED away; what the reload then puts is an update */
	mine = name;
	moved[mine] = false;
	goto again;
end:
	skip
}

active [2] proctype reader()
{
	byte mapping = 0, answer, was_low, found, asked = 0;
	bool saw_moved, first;

	do
	:: asked < READS ->
		asked++;
		was_low = low;
		first = true;
look:
		atomic { answer = version[mapping]; saw_moved = moved[mapping] }
#ifdef BREAK_NO_RECHECK
		if :: !first -> saw_moved = false :: else fi;
#endif
		first = false;
		if
#ifdef BREAK_LEFT_TO_ANOTHER
		:: saw_moved -> skip	/* another thread is about to attach the next one */
#endif
#ifdef BREAK_WAIT_UNTIL_RETIRED
		:: saw_moved && !retired[mapping] -> skip
		:: saw_moved && retired[mapping] ->
#else
		:: saw_moved ->
#endif
			if
			:: current != mapping -> mapping = current; goto look
			:: else ->
				found = name;
				atomic {	/* compare and exchange */
					if
					:: current == mapping -> current = found
					:: else
					fi
				}
				if
				:: current != mapping -> mapping = current; goto look
				:: else
				fi
			fi
		:: !saw_moved
		fi;
		assert(answer >= was_low);
		assert(answer <= high)
	:: else -> break
	od
}
