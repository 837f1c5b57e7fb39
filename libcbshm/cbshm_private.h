/*
 * cbshm_private.h - what a client is inside: shared by the reader (attach.c) and the writer (client.c)
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef LIBCBSHM_CBSHM_PRIVATE_H
#define LIBCBSHM_CBSHM_PRIVATE_H

#include <stdatomic.h>
#include <stdint.h>
#include <sys/types.h>

struct segment_reader;

struct cbshm {
	/* Set by cbshm_open(), never changed afterwards. */
	char *segment;     /* a name for shm_open() */
	char *socket;      /* a path */
	uid_t trusted[3];  /* whose segment and socket are believed: the caller, root, the owner */
	int trusted_count; /* 2 if the owner's name is unknown on this host */
	struct segment_reader *reader; /* attach.c's; never NULL */

	/*
	 * client.c's: a connection that nobody uses at the moment, or -1. Whoever takes it exchanges it for
	 * -1; a process that finds itself not to be `idle_pid` (fork) leaves it alone. cbshm_close() closes it.
	 */
	_Atomic int idle_fd;
	_Atomic pid_t idle_pid;
};

#endif /* LIBCBSHM_CBSHM_PRIVATE_H */
