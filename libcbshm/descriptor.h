/*
 * descriptor.h - asking the agent for a descriptor of the segment, where its name leads to nothing
 *
 * SPDX-License-Identifier: ISC
 *
 * As in a container that has a /dev/shm of its own, and of the host only the agent's socket. Everything here is
 * thread-safe and async-signal-safe, takes no memory from malloc(3), and may change errno.
 */
#ifndef LIBCBSHM_DESCRIPTOR_H
#define LIBCBSHM_DESCRIPTOR_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct cbshm;

#define DESCRIPTOR_PENDING \
	1 /* no error of the library: it has been asked for, and the answer is not there yet */

/* A question on its way, on a connection of its own. */
struct asking {
	_Atomic int socket; /* -1: none, and the rest means nothing */
	dev_t device; /* of the socket: the application may have closed or replaced the descriptor */
	ino_t inode;
	pid_t process;    /* a child has no business with its parent's question */
	uid_t server;     /* who listens there */
	int64_t deadline; /* nanoseconds of CLOCK_MONOTONIC_COARSE */
	uint32_t size;    /* bytes of the answer that have come */
	char answer[96];  /* the first of them */
	int descriptor;   /* -1: none has come yet */
	bool too_many;    /* or more than one, or the kernel had no room */
};

/* What a client has to ask with; descriptors_init() and descriptors_close() are for cbshm_open() and cbshm_close() alone. */
struct descriptors {
	char *question;        /* the call, without its NUL */
	_Atomic pid_t entered; /* try-flag of whoever uses `asking` */
	struct asking asking;  /* of those who do not wait */
	_Atomic int64_t
		not_before; /* nanoseconds of CLOCK_MONOTONIC_COARSE: an agent that does not answer is left alone */
	_Atomic int error;        /* how the last question ended, */
	_Atomic int system_error; /* and its errno */
};

/* 0 or CBSHM_ERR_MEMORY. */
int descriptors_init(struct descriptors *descriptors, const char *segment);
void descriptors_close(struct descriptors *descriptors);

/*
 * 0: *descriptor, which the caller closes, and *server, the user whose agent has sent it. Nothing is known of it but that
 * it came alone, and cannot be written through. If it `may_wait`, the answer is waited for, a second at most, and that at most
 * once a second; else it is looked at by the next call, and DESCRIPTOR_PENDING returned.
 * Errors: CBSHM_ERR_NO_SEGMENT (no agent, or one of another segment), CBSHM_ERR_UNTRUSTED (whose agent, or a descriptor that
 * can be written), CBSHM_ERR_DENIED, CBSHM_ERR_REFUSED, CBSHM_ERR_TIMEOUT, CBSHM_ERR_PROTOCOL, CBSHM_ERR_SYSTEM.
 */
int descriptor_ask(struct cbshm *client, bool may_wait, int *descriptor, uid_t *server);

#endif /* LIBCBSHM_DESCRIPTOR_H */
