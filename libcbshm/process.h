/*
 * process.h - what of a client belongs to one process: connections and what is under way on them
 *
 * SPDX-License-Identifier: ISC
 *
 * The child of a fork() has copies of the parent's descriptors, locks and calls, and no business
 * with any of them: it begins with a struct process of its own. That it is a child is seen from a
 * page which the kernel wipes there, so that it costs a load and no system call.
 *
 * It is made by the first write. So nothing of the read path leads here, and a program that only
 * reads, and is linked with the static library, needs libc alone.
 */
#ifndef LIBCBSHM_PROCESS_H
#define LIBCBSHM_PROCESS_H

#include "cbshm.h"
#include "libcbshm/cbshm_private.h"

struct pipelines;
struct reports;

struct process {
	void (*close)(struct cbshm *client); /* for cbshm_close(), which so need not name it */
	struct process_mark *mark;
	struct pipelines *pipelines;
	struct reports *reports;
	struct process *
		older; /* the parent's, kept until cbshm_close(): another thread may be looking at it */
};

/* This process's own, or NULL: out of memory. Any thread; does not wait. */
struct process *process_of(struct cbshm *client);

#endif /* LIBCBSHM_PROCESS_H */
