/*
 * varlink.h - a connection to a Varlink server over its Unix socket: bytes out, messages in
 *
 * SPDX-License-Identifier: ISC
 *
 * Deadlines are microseconds of CLOCK_MONOTONIC. Nothing here blocks beyond its deadline or raises SIGPIPE.
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

/* For poll(): rounded up, so that it does not spin through the last millisecond. */
int varlink_milliseconds_until(int64_t deadline);

/* Sleeps, but not beyond the deadline. */
void varlink_pause(int milliseconds, int64_t deadline);

/*
 * Connects, and checks that whoever listens there is one of the `trusted` users.
 * Errors: CBSHM_ERR_AGENT_DOWN, CBSHM_ERR_UNTRUSTED, CBSHM_ERR_DENIED, CBSHM_ERR_INVALID (the path),
 * CBSHM_ERR_TIMEOUT, CBSHM_ERR_SYSTEM.
 */
int varlink_connect(const char *path, const uid_t *trusted, int trusted_count, int64_t deadline,
		    struct cbshm_call *call, int *fd);

/*
 * A connection and what has been received on it. Its descriptor is looked at before each use: one
 * that the application has closed or overwritten is neither read, written nor closed. One thread at
 * a time.
 */
struct varlink {
	int fd; /* -1: none, and all else is 0 */
	dev_t device;
	ino_t inode;
	char *text; /* received: messages from `begin`, of the first up to `scanned` no NUL */
	size_t begin, scanned, used, size;
	size_t end; /* behind the NUL of the message that varlink_message() found */
};

/* varlink_connect(), into `stream`. */
int varlink_open(struct varlink *stream, const char *path, const uid_t *trusted, int trusted_count,
		 int64_t deadline, struct cbshm_call *call);

/* Is the descriptor still the socket that was opened? */
bool varlink_is_ours(const struct varlink *stream);

/* Closes, if the descriptor is still ours. errno stays. */
void varlink_close(struct varlink *stream);

/* Whether nothing has come, not even the end: a connection without calls that is not idle is of no use. */
bool varlink_is_idle(const struct varlink *stream);

/*
 * Sends as much as the socket takes at once: *taken bytes, even if it fails. Errors:
 * CBSHM_ERR_AGENT_DOWN (the connection is lost; a last message may still be there to be received),
 * CBSHM_ERR_SYSTEM.
 */
int varlink_send(struct varlink *stream, const char *text, size_t size, struct cbshm_call *call,
		 size_t *taken);

/*
 * Receives what is there, perhaps nothing.
 * Errors: CBSHM_ERR_AGENT_DOWN (the connection is lost), CBSHM_ERR_PROTOCOL (a message without end), CBSHM_ERR_MEMORY,
 * CBSHM_ERR_SYSTEM. After any of them the connection is of no use.
 */
int varlink_receive(struct varlink *stream, struct cbshm_call *call);

/*
 * The first message that is whole, in place, or NULL. It is there until it is dropped or taken,
 * which is the next thing to do.
 */
const char *varlink_message(struct varlink *stream);
void varlink_drop_message(struct varlink *stream);
char *varlink_take_message(
	struct varlink *stream); /* free(); NULL: out of memory, and it is lost */

#endif /* LIBCBSHM_VARLINK_H */
