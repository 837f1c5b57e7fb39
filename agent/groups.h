/*
 * groups.h - which requests of a batch are about the same breaker
 *
 * SPDX-License-Identifier: ISC
 *
 * Groups come sorted by the bytes of their names: the order in which rows are locked. Within a group the
 * requests keep the order in which they came. Borrows the requests and their strings.
 */
#ifndef AGENT_GROUPS_H
#define AGENT_GROUPS_H

#include <stdbool.h>
#include <stdint.h>

#include "agent/request.h"

#define GROUPS_END UINT32_MAX

struct group {
	const char *name;
	uint32_t first, last; /* requests, by number */
	uint32_t count;
	bool only_reports;
};

struct groups {
	struct group **sorted;
	uint32_t count;
	uint32_t *next;       /* by request: the next of its group, GROUPS_END = none */
	struct group *groups; /* in the order of their first requests */
	void *tree;
};

/* `requests` have names. To be given to groups_free(). */
void groups_make(struct groups *groups, const struct request *const *requests, uint32_t count);
void groups_free(struct groups *groups);

#endif /* AGENT_GROUPS_H */
