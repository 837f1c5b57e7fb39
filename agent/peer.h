/*
 * peer.h - who is at the other end of a socket, as the kernel proves it, and what that allows
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef AGENT_PEER_H
#define AGENT_PEER_H

#include "agent/request.h"

enum access {
	ACCESS_ANYBODY, /* introspection only */
	ACCESS_REPORT,  /* reports and reads */
	ACCESS_ADMIN,   /* everything */
};

/* Names of users that have been looked up. */
struct peer_names;

int peer_names_new(struct peer_names **names);
void peer_names_free(struct peer_names *names);

/*
 * Fills *peer and *access from SO_PEERCRED and SO_PEERGROUPS. Root and the agent's own user are admins. Either group may be
 * (gid_t)-1: it has no members. The user name is looked up only for peers with more than ACCESS_ANYBODY; for others it is
 * the number. Returns 0 or -errno.
 */
int peer_identify(int fd, gid_t group, gid_t admin_group, struct peer_names *names,
		  struct peer *peer, enum access *access);

/* Is the peer a member of this group, by what the kernel says of the socket? Returns 0 or -errno. */
int peer_in_group(int fd, const struct peer *peer, gid_t group, bool *member);

#endif /* AGENT_PEER_H */
