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
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "agent/agent.h"
#include "agent/connection.h"
#include "agent/counts.h"
#include "agent/database.h"
#include "agent/text.h"

/* Breakers that are remembered after they have been told of. */
#define TOLD_MAX 65536

struct count {
	char *name;
	uint64_t version;
	uint64_t told; /* most reports change nothing: the version is still this one */
};

struct counts {
	struct agent *agent;
	void *tree; /* by name */
	unsigned size;
	struct count *latest;
	bool news; /* something is to be told */
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
	counts->size++;
	return made;
}

void counts_note(struct counts *counts, const char *name, uint64_t version)
{
	if (counts->latest == NULL || strcmp(counts->latest->name, name) != 0)
		counts->latest = find(counts, name);
	if (version <= counts->latest->version)
		return;
	counts->latest->version = version;
	counts->news = true;
}

static void add(const void *node, VISIT visit, void *arg)
{
	struct count *count = *(struct count *const *)node;
	struct text payload = {0};

	if ((visit != postorder && visit != leaf) || count->told == count->version)
		return;
	count->told = count->version;
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
	counts->size = 0;
}

static void forget_told(const void *node, VISIT visit, void *arg)
{
	struct count *count = *(struct count *const *)node;

	(void)arg;
	if (visit != postorder && visit != leaf)
		return;
	if (count->told == count->version)
		count->version = 0;
	count->told = 0;
}

void counts_disconnected(struct counts *counts)
{
	twalk_r(counts->tree, forget_told, NULL);
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

	if (!counts->news)
		return;
	twalk_r(counts->tree, add, &payloads);
	counts->news = false;
	if (counts->size > TOLD_MAX)
		clear(counts);
	unit = unit_new(on_notified, NULL);
	unit_add(unit, sql_notify, 1, text_array_end(&payloads));
	unit_prepared(unit);
	/* As everything here: nothing hangs on it. */
	unit_asynchronous(unit);
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
