/*
 * listener.h - the Unix socket: who may come in, and how many at once
 *
 * SPDX-License-Identifier: ISC
 *
 * Owns the socket, its name in the file system and all sessions. Everything here runs in the
 * event loop's thread. SIGPIPE must be ignored by the process.
 */
#ifndef AGENT_LISTENER_H
#define AGENT_LISTENER_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent/session.h"

struct agent;
struct listener;

#define LISTENER_SESSIONS_DEFAULT 1024u
#define LISTENER_PER_UID_DEFAULT  128u

struct listener_options {
	const char *path;      /* its directory must exist */
	mode_t mode;           /* of the socket */
	gid_t group;           /* of the socket; its members report and read. (gid_t)-1: none */
	gid_t admin_group;     /* may do everything. (gid_t)-1: none */
	unsigned max_sessions; /* in all; 0 = LISTENER_SESSIONS_DEFAULT */
	unsigned max_per_uid;  /* but for root and the agent's own; 0 = LISTENER_PER_UID_DEFAULT */
};

/* Why a client was turned away at the door. */
enum listener_refusal {
	LISTENER_REFUSED_TOTAL,   /* max_sessions */
	LISTENER_REFUSED_PER_UID, /* max_per_uid */
	LISTENER_REFUSED_FILES,   /* no file descriptor was free */
	LISTENER_REFUSED_PEER,    /* the kernel did not say who it is, or no memory */
	LISTENER_REFUSALS
};

struct listener_counters {
	uint64_t accepted;
	uint64_t refused[LISTENER_REFUSALS];
	unsigned sessions; /* at this moment */
	struct session_counters calls;
};

/*
 * Binds the socket and begins to accept. A socket that a dead agent of this user left behind is
 * replaced. A live one, another user's, or anything that is no socket is left alone and an error.
 * agent->base, ->writer and ->segment must be there and stay.
 *
 * Returns 0 or -errno; then *message says what is wrong and what to do.
 */
int listener_new(struct agent *agent, const struct listener_options *options,
		 struct listener **listener, char *message, size_t message_size);

/*
 * No new clients, no new requests: takes the name away if it is still ours, and ends every session as soon
 * as it has its answers. `stopped` is called once from the event loop when the last one is gone.
 */
void listener_stop(struct listener *listener, void (*stopped)(void *arg), void *arg);

/* Ends what is left at once. Requests already submitted stay with the writer, which may be freed
 * later. NULL is fine. */
void listener_free(struct listener *listener);

/* Valid until listener_free(). */
const struct listener_counters *listener_counters(const struct listener *listener);

#endif /* AGENT_LISTENER_H */
