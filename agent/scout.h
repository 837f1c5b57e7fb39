/*
 * scout.h - asks the other servers of the conninfo whether one of them takes writes
 *
 * SPDX-License-Identifier: ISC
 *
 * For when the present server is silent: it may only be slow, or its standby has been promoted. To find out costs a connection
 * to each, and disturbs nobody.
 */
#ifndef AGENT_SCOUT_H
#define AGENT_SCOUT_H

struct connection;
struct event_base;
struct scout;
struct target;

/* Called once, from the loop: the number of the server, or TARGET_NONE. It may free the scout. */
typedef void scout_done(unsigned server, void *arg);

/*
 * `present` is not asked: `answer` is what its server says to `question`, a statement, and whoever says the same is that server.
 * NULL: there is nobody else. The texts must outlive the scout.
 */
struct scout *scout_start(struct event_base *base, struct target *target,
			  const struct connection *present, const char *question,
			  const char *answer, scout_done *done, void *arg);

/* NULL is fine. */
void scout_free(struct scout *scout);

#endif /* AGENT_SCOUT_H */
