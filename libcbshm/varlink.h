/*
 * varlink.h - one message to a Varlink server over its Unix socket, and one back
 *
 * SPDX-License-Identifier: ISC
 *
 * Deadlines are microseconds of CLOCK_MONOTONIC. Nothing here blocks beyond its deadline, raises
 * SIGPIPE, or keeps anything between two calls. Any thread may call, each with a connection of its own.
 */
#ifndef LIBCBSHM_VARLINK_H
#define LIBCBSHM_VARLINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "cbshm.h"

#define VARLINK_MESSAGE_MAX 65536u              /* bytes of a call, its NUL not counted */
#define VARLINK_REPLY_MAX   (64u * 1024 * 1024) /* a thousand incidents with full details fit */

/* Microseconds of CLOCK_MONOTONIC. */
int64_t varlink_now(void);

/* Sleeps, but not beyond the deadline. */
void varlink_pause(int milliseconds, int64_t deadline);

/*
 * Connects, and checks that whoever listens there is one of the `trusted` users.
 * Errors: CBSHM_ERR_AGENT_DOWN, CBSHM_ERR_UNTRUSTED, CBSHM_ERR_DENIED, CBSHM_ERR_INVALID (the path),
 * CBSHM_ERR_TIMEOUT, CBSHM_ERR_SYSTEM.
 */
int varlink_connect(const char *path, const uid_t *trusted, int trusted_count, int64_t deadline,
		    struct cbshm_call *call, int *fd);

/* Whether an unused connection still can be used: the peer has not closed it and has said nothing. */
bool varlink_is_usable(int fd);

/*
 * Sends `text`, `size` bytes with its NUL, and waits for the reply, which is to be freed with free(). *sent: the
 * peer may have the whole message, so that it may have acted on it; if false it has not.
 * Errors: CBSHM_ERR_AGENT_DOWN (the connection is lost), CBSHM_ERR_TIMEOUT, CBSHM_ERR_PROTOCOL (the reply
 * does not end), CBSHM_ERR_MEMORY, CBSHM_ERR_SYSTEM. After any of them the connection is of no use.
 */
int varlink_exchange(int fd, const char *text, size_t size, int64_t deadline,
		     struct cbshm_call *call, bool *sent, char **reply);

#endif /* LIBCBSHM_VARLINK_H */
