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

#include "libcbshm/cbshm_private.h"
#include "libcbshm/validate.h"

#define HEALTH_AGENT_DEAD 0x1u
#define HEALTH_AGENT_HUNG \
	0x2u /* it lives, but its event loop has stood still for CBSHM_HUNG_AFTER_US */
#define HEALTH_DATABASE_AWAY 0x4u /* it says so, or cannot say */

/* The HEALTH_* that are true at this moment; 0: the segment mirrors the database. */
unsigned int health_trouble(const struct segment_view *view);

/* Microseconds since a stamp of CLOCK_MONOTONIC; CBSHM_NO_TIME: never, or nobody can say. */
int64_t health_age_us(uint64_t stamp);

/*
 * An agent that died and whose segment was removed since has a successor that cannot tell the readers of the old
 * segment: once a second at most, this looks whether the name leads to another one, and takes all handles there.
 */
void health_seek_agent(struct cbshm *client);

#endif /* LIBCBSHM_HEALTH_H */
