/*
 * health.h - how much of what the segment says is news
 *
 * SPDX-License-Identifier: ISC
 *
 * Three questions, which have three answers: is the agent dead, does it hang, is it cut off from the database?
 * Everything here but health_seek_agent() is async-signal-safe.
 */
#ifndef LIBCBSHM_HEALTH_H
#define LIBCBSHM_HEALTH_H

#include <stdbool.h>
#include <stdint.h>

#include "libcbshm/attach.h"

#define HEALTH_AGENT_DEAD 0x1u
#define HEALTH_AGENT_HUNG \
	0x2u /* it lives, but its event loop has stood still for CBSHM_HUNG_AFTER_US */
#define HEALTH_DATABASE_AWAY 0x4u /* it says so, or cannot say */

/* Nanoseconds of CLOCK_MONOTONIC. */
int64_t health_now(void);

/* The HEALTH_* that are true at this moment; 0: the segment mirrors the database. */
unsigned int health_trouble(const struct mapping *mapping);

/*
 * Nanoseconds without news: since the database last confirmed the mirror. If it never has, or nobody can say when (no
 * segment, another boot, another time namespace), since cbshm_open().
 */
int64_t health_without_news(const struct cbshm *client, const struct mapping *mapping);

/*
 * An agent that died and whose segment was removed since has a successor that cannot tell the readers of the old
 * segment: once a second at most, this looks whether the name leads to another one, and takes all handles there.
 */
void health_seek_agent(struct cbshm *client);

#endif /* LIBCBSHM_HEALTH_H */
