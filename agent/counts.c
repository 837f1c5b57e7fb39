/*
 * counts.c - tells other agents of breakers that have only counted
 *
 * SPDX-License-Identifier: ISC
 *
 * The notification is the one that the database's triggers send: cbshm-sql(7) lists them.
 */
#include <config.h>

#include <inttypes.h>
#include <search.h>
#include <stdlib.h>
#include <string.h>

#include "agent/agent.h"
#include "agent/connection.h"
#include "agent/counts.h"
#include "agent/database.h"
#include "agent/text.h"

struct count {
	char *name;
	uint64_t version;
};

struct counts {
	struct agent *agent;
	void *tree; /* by name */
	struct count *latest;
};

static const char sql_notify[] = "SELECT pg_catalog.pg_notify('cbshm', n)"
				 " FROM pg_catalog.unnest($1::pg_catalog.text[]) AS n";

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct count *)a)->name, ((const struct count *)b)->name);
}

static struct count *find(struct counts *counts, const char *name)
{
	struct count key = {.name = (char *)(uintptr_t)name}, *made;
	struct count *const *node = tfind(&key, &counts->tree, by_name);

	if (node != NULL)
		return *node;
	made = memory_new(1, sizeof(*made));
	made->name = memory_copy(name);
	if (tsearch(made, &counts->tree, by_name) == NULL)
		abort();
	return made;
}

void counts_note(struct counts *counts, const char *name, uint64_t version)
{
	if (counts->latest == NULL || strcmp(counts->latest->name, name) != 0)
		counts->latest = find(counts, name);
	if (version > counts->latest->version)
		counts->latest->version = version;
}

static void add(const void *node, VISIT visit, void *arg)
{
	const struct count *count = *(const struct count *const *)node;
	struct text payload = {0};

	if (visit != postorder && visit != leaf)
		return;
	text_format(&payload, "n %" PRIu64 " %s", count->version, count->name);
	text_array_add(arg, payload.data);
	free(payload.data);
}

static void free_count(void *node)
{
	struct count *count = node;

	free(count->name);
	free(count);
}

static void clear(struct counts *counts)
{
	tdestroy(counts->tree, free_count);
	counts->tree = NULL;
	counts->latest = NULL;
}

/* Nothing hangs on it: see counts.h. */
static void on_notified(struct unit *unit, enum unit_end end, void *arg)
{
	(void)unit;
	(void)end;
	(void)arg;
}

void counts_tick(struct counts *counts)
{
	struct text payloads = {0};
	struct unit *unit;

	if (counts->tree == NULL)
		return;
	twalk_r(counts->tree, add, &payloads);
	clear(counts);
	unit = unit_new(on_notified, NULL);
	unit_add(unit, sql_notify, 1, text_array_end(&payloads));
	unit_prepared(unit);
	connection_run(database_control(counts->agent->database), unit);
}

struct counts *counts_new(struct agent *agent)
{
	struct counts *counts = memory_new(1, sizeof(*counts));

	counts->agent = agent;
	return counts;
}

void counts_free(struct counts *counts)
{
	if (counts == NULL)
		return;
	clear(counts);
	free(counts);
}
