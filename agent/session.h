/*
 * session.h - one client: frames in, replies out, in order
 *
 * SPDX-License-Identifier: ISC
 *
 * A session reads, pauses when too much is under way, streams (a subscription has taken it over), drains (reads no more, but
 * still answers what it has read) and ends. All in the event loop's thread.
 */
#ifndef AGENT_SESSION_H
#define AGENT_SESSION_H

#include <stdint.h>

#include "agent/methods.h"
#include "agent/peer.h"

struct event_base;
struct segment_writer;
struct session;
struct subscriptions;
struct writer;

#define SESSION_PIPELINE_MAX 1024u      /* calls read and not yet answered */
#define SESSION_PROMISED_MAX (1u << 20) /* bytes of replies not taken or to come: no more is read */
#define SESSION_UNSENT_MAX   (2u << 20) /* bytes of replies not taken: the peer is cut off */
#define SESSION_STREAM_AHEAD \
	(1u << 17)               /* bytes of a subscription's replies not taken: no more are made */
#define SESSION_STALL_SECONDS 10 /* without any progress in sending */

struct session_counters {
	uint64_t dropped;                        /* the peer did not read, and was cut off */
	uint64_t replies[METHODS][REPLY_ERRORS]; /* by outcome, those to oneway calls included */
};

/* What sessions share; outlives them. */
struct session_host {
	struct event_base *event_base;
	struct writer *writer;
	const struct segment_writer *segment;
	struct subscriptions *subscriptions;
	struct session_counters *counters;
	unsigned stall_ms; /* 0 = SESSION_STALL_SECONDS */
	/* The session has ended by itself; it is freed when this returns. Not called by session_free(). */
	void (*ended)(void *arg, struct session *session);
	void *arg;
};

/*
 * Takes over `fd`, which is non-blocking, also if it fails. `id` is for the log. Returns 0 or -errno.
 */
int session_new(const struct session_host *host, int fd, uint64_t id, const struct peer *peer,
		enum access access, struct session **session);

const struct peer *session_peer(const struct session *session);

/* Reads no more; ends when what was read is answered. `ended` is called later, never from here. */
void session_stop(struct session *session);

/*
 * Ends at once, from outside the session's own callbacks; replies that are ready are sent as far as the
 * socket takes them without waiting. Submitted requests go on. NULL is fine.
 */
void session_free(struct session *session);

#endif /* AGENT_SESSION_H */
