/*
 * attach.h - the client's mappings of the segment
 *
 * SPDX-License-Identifier: ISC
 *
 * A mapping is never taken away before cbshm_close(): another thread may be reading it. Where no other
 * remark stands: thread-safe, async-signal-safe, without locks, and errno may change.
 */
#ifndef LIBCBSHM_ATTACH_H
#define LIBCBSHM_ATTACH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "libcbshm/cbshm_private.h"
#include "libcbshm/descriptor.h"
#include "libcbshm/validate.h"

struct handle;

struct mapping {
	struct segment_view view;
	dev_t device;
	ino_t inode;
	bool same_boot; /* made under the kernel that runs now, as far as anybody can say */
	_Atomic bool
		followed; /* its replacement has been looked for in vain since it was retired */
	struct mapping *older; /* the one that it replaced */
};

struct segment_reader {
	char *path;
	int64_t opened; /* nanoseconds of CLOCK_MONOTONIC */
	struct mapping *_Atomic current;
	_Atomic int64_t next_attempt; /* nanoseconds of CLOCK_MONOTONIC_COARSE */
	_Atomic int error;            /* of the last attempt, a CBSHM_ERR_* */
	_Atomic int system_error;     /* and its errno */
	struct descriptors descriptors;
	struct handle *handles; /* see handles_lock() */
};

/*
 * A try-flag: says whether the caller may do what only one may do at a time, and never waits. The flag
 * holds the process id, so that one which another thread held while the process forked does not stay
 * taken in the child for ever.
 */
bool try_enter(_Atomic pid_t *flag);
void try_leave(_Atomic pid_t *flag);

/* The newest mapping, or NULL. The load pairs with the release store in attach.c. */
static inline struct mapping *segment_current(const struct cbshm *client)
{
	return atomic_load_explicit(&client->reader->current, memory_order_acquire);
}

/* The mapping that `word` lies in, or NULL. */
struct mapping *segment_mapping_of(const struct cbshm *client, const uint64_t *word);

/* Is this the caller, root or the agent's user, whose segment and socket are believed? */
bool segment_trusts(const struct cbshm *client, uid_t uid);

/*
 * Attaches if nothing is attached. Unless `now`, at most one attempt a second is made, and the agent, if it has to be asked for the
 * segment, is not waited for: see descriptor_ask(). 0, or why nothing is attached (errno is set with CBSHM_ERR_SYSTEM).
 */
int segment_attach(struct cbshm *client, bool now);

/* `from` has been replaced: is there a newer mapping, or can it be attached now? May the agent be waited for? */
bool segment_follow(struct cbshm *client, struct mapping *from, bool may_wait);

/*
 * The agent of `from` is dead, and cannot have said that there is another segment: does the name
 * lead to one? At most one look a second; true if there is a newer mapping.
 */
bool segment_seek(struct cbshm *client, struct mapping *from);

/*
 * The newest mapping, attached and followed as far as that is possible now; NULL and *error if there is none. May wait for the
 * agent: not for a check.
 */
struct mapping *segment_newest(struct cbshm *client, int *error);

/* After a write has been answered: if the segment was replaced meanwhile, its result is in the newer one. Likewise. */
void segment_catch_up(struct cbshm *client);

#endif /* LIBCBSHM_ATTACH_H */
