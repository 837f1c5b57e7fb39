/*
 * cbshm_private.h - what a client is inside: shared by the reader (attach.c) and the writer (process.c)
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef LIBCBSHM_CBSHM_PRIVATE_H
#define LIBCBSHM_CBSHM_PRIVATE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct process;
struct segment_reader;

struct cbshm {
	/* Set by cbshm_open(), never changed afterwards. */
	char *segment;     /* a name for shm_open() */
	char *socket;      /* a path */
	uid_t trusted[3];  /* whose segment and socket are believed: the caller, root, the owner */
	int trusted_count; /* 2 if the owner's name is unknown on this host */
	size_t report_buffer;          /* bytes, a power of two */
	struct segment_reader *reader; /* attach.c's; never NULL */

	struct process *_Atomic process; /* process.c's: connections; NULL before the first write */
};

#endif /* LIBCBSHM_CBSHM_PRIVATE_H */
