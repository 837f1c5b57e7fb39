/*
 * handout.h - GetSegment: a read-only descriptor of the segment for a client that cannot open it by its name
 *
 * SPDX-License-Identifier: ISC
 *
 * Keeps nothing per client: the descriptor is opened for the reply that it goes with, and closed when that is sent.
 */
#ifndef AGENT_HANDOUT_H
#define AGENT_HANDOUT_H

#include <stdbool.h>

#include "agent/message.h"
#include "agent/request.h"

struct segment_writer;

enum handout {
	HANDOUT_SENT,    /* the reply, with the descriptor on its first byte */
	HANDOUT_LATER,   /* nothing: the socket takes nothing now */
	HANDOUT_REFUSED, /* nothing: *fault is to be the reply */
	HANDOUT_LOST,    /* the connection is of no use any more */
};

/*
 * Sends the reply to a call of GetSegment, at once and past all buffers: what comes before it on the connection must be
 * with the kernel. Who may read the segment's file may have it, by the identity that the kernel has of the peer.
 * *unreceived belongs to the connection, false at first: there may be a descriptor on its way, and there is never a second.
 */
enum handout handout_send(const struct segment_writer *segment, int socket, const struct peer *peer,
			  bool *unreceived, struct fault *fault);

#endif /* AGENT_HANDOUT_H */
