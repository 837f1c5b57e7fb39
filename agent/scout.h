/*
 * scout.h - asks the other servers of the conninfo whether one of them takes writes
 *
 * SPDX-License-Identifier: ISC
 *
 * For when the present server is silent: it may only be slow, or its standby has been promoted; and for when none has been found,
 * and one that hangs may keep the others from being tried. To find out costs each a connection twice a second, and disturbs nobody.
 */
#ifndef AGENT_SCOUT_H
#define AGENT_SCOUT_H

#include <stdbool.h>

struct connection;
struct event_base;
struct scout;
struct target;

/* Called once, from the loop, when one is found: its number. It may free the scout. */
typedef void scout_done(unsigned server, void *arg);

/*
 * Where `present` leads is not asked (NULL: all are): `answer` is what that server says to `question`, a statement, and whoever says
 * the same is that server. NULL: there is nobody else. The target and the texts must outlive the scout, which goes on until freed.
 * Asks for the first time at once, or after half a second.
 */
struct scout *scout_start(struct event_base *base, struct target *target,
			  const struct connection *present, const char *question,
			  const char *answer, bool at_once, scout_done *done, void *arg);

/* NULL is fine. */
void scout_free(struct scout *scout);

#endif /* AGENT_SCOUT_H */
