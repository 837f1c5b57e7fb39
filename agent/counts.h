/*
 * counts.h - tells other agents of breakers that have only counted
 *
 * SPDX-License-Identifier: ISC
 *
 * cbshm.report() sends no notifications for them, so that transactions need not wait for each other; each agent does
 * for its own, once a second and once a version of a breaker. If it dies before, the others find out by their
 * comparisons.
 */
#ifndef AGENT_COUNTS_H
#define AGENT_COUNTS_H

#include <stdint.h>

struct agent;
struct counts;

struct counts *counts_new(struct agent *agent);
void counts_free(struct counts *counts); /* NULL is fine */

/* A committed transaction of ours has left the breaker at this version; it may have found it there, too. */
void counts_note(struct counts *counts, const char *name, uint64_t version);

/* The next server may have been restored to lower versions than those that were told of. */
void counts_disconnected(struct counts *counts);

/* Once a second while live. */
void counts_tick(struct counts *counts);

#endif /* AGENT_COUNTS_H */
