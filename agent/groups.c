/*
 * groups.c - which requests of a batch are about the same breaker
 *
 * SPDX-License-Identifier: ISC
 *
 * A balanced tree, so that no choice of names makes it slow; one hot breaker costs a comparison a request.
 */
#include <config.h>

#include <search.h>
#include <stdlib.h>
#include <string.h>

#include "agent/groups.h"
#include "agent/text.h"

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct group *)a)->name, ((const struct group *)b)->name);
}

static bool is_report(const struct request *request)
{
	return request->kind == REQUEST_REPORT_DRIFT ||
	       request->kind == REQUEST_REPORT_SCHEMA_ERROR;
}

/* The group of that name, which may be a new one. */
static struct group *find(struct groups *groups, const char *name)
{
	struct group *candidate = &groups->groups[groups->count];
	struct group **node;

	*candidate = (struct group){.name = name, .only_reports = true};
	node = tsearch(candidate, &groups->tree, by_name);
	if (node == NULL)
		abort();
	groups->count += *node == candidate;
	return *node;
}

static void append(struct groups *groups, struct group *group, uint32_t number,
		   const struct request *request)
{
	if (group->count++ == 0)
		group->first = number;
	else
		groups->next[group->last] = number;
	group->last = number;
	groups->next[number] = GROUPS_END;
	group->only_reports = group->only_reports && is_report(request);
}

static void list(const void *node, VISIT visit, void *arg)
{
	struct group ***end = arg;

	if (visit == postorder || visit == leaf)
		*(*end)++ = *(struct group *const *)node;
}

void groups_make(struct groups *groups, const struct request *const *requests, uint32_t count)
{
	struct group *group = NULL, **end;

	*groups = (struct groups){0};
	groups->groups = memory_new(count, sizeof(*groups->groups));
	groups->next = memory_new(count, sizeof(*groups->next));
	for (uint32_t i = 0; i < count; i++) {
		if (group == NULL || strcmp(group->name, requests[i]->name) != 0)
			group = find(groups, requests[i]->name);
		append(groups, group, i, requests[i]);
	}
	groups->sorted = end = memory_new(groups->count, sizeof(*groups->sorted));
	twalk_r(groups->tree, list, &end);
}

static void keep(void *node)
{
	(void)node;
}

void groups_free(struct groups *groups)
{
	tdestroy(groups->tree, keep);
	free(groups->sorted);
	free(groups->next);
	free(groups->groups);
}
