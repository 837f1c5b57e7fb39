/*
 * cmd_log.c - cbctl log: who has decided what, and what changed by it
 *
 * SPDX-License-Identifier: ISC
 */
#include "config.h"

#include <stdio.h>
#include <string.h>

#include "cbctl/query.h"
#include "cbctl/output.h"
#include "cbctl/segment.h"
#include "cbctl/timespec.h"
#include "libcbshm/timestamp.h"

enum { SINCE, LIMIT };

static const struct option options[] = {
	[SINCE] = {"since", "TIME"},
	[LIMIT] = {"limit", "N"},
	{NULL, NULL},
};

/* ---- for people ------------------------------------------------------------------------- */

/* A value as in JSON, but a plain text without its quotes; "-" if there is none. */
static const char *value_text(const cJSON *value)
{
	char *text;
	const char *kept;

	if (value == NULL || cJSON_IsNull(value))
		return "-";
	if (cJSON_IsString(value))
		return clean(value->valuestring);
	text = cJSON_PrintUnformatted(value);
	kept = clean(text);
	cJSON_free(text);
	return kept;
}

static void print_change(const char *name, const cJSON *was, const cJSON *is_now)
{
	if (was != NULL && is_now != NULL)
		printf("  %s: %s -> %s\n", clean(name), value_text(was), value_text(is_now));
	else
		printf("  %s: %s\n", clean(name),
		       is_now != NULL ? value_text(is_now) : formatted("was %s", value_text(was)));
}

static void print_changes(const cJSON *entry)
{
	const cJSON *was = cJSON_GetObjectItemCaseSensitive(entry, "old_values");
	const cJSON *is_now = cJSON_GetObjectItemCaseSensitive(entry, "new_values");
	const cJSON *value;

	cJSON_ArrayForEach(value, is_now)
	{
		print_change(value->string, cJSON_GetObjectItemCaseSensitive(was, value->string),
			     value);
	}
	cJSON_ArrayForEach(value, was)
	{
		if (cJSON_GetObjectItemCaseSensitive(is_now, value->string) == NULL)
			print_change(value->string, value, NULL);
	}
}

/* "  proven: host=web3 uid=1000 user=carol": what the agent has from the kernel, or the database of a session. */
static void print_proof(const cJSON *entry)
{
	const cJSON *proof = cJSON_GetObjectItemCaseSensitive(entry, "proof"), *value;

	printf("  proven:");
	cJSON_ArrayForEach(value, proof)
	{
		printf(" %s=%s", clean(value->string), value_text(value));
	}
	putchar('\n');
	if (*query_text(entry, "request_id") != '\0')
		printf("  request: %s\n", clean(query_text(entry, "request_id")));
}

static void print_entry(const cJSON *entry)
{
	const char *breaker = query_text(entry, "breaker");

	printf("%s  %s  %s  by %s, version %lld\n", time_and_distance(query_time(entry, "time")),
	       clean(query_text(entry, "action")),
	       *breaker != '\0' ? clean(breaker) : coloured(COLOUR_DIM, "(the fleet)"),
	       clean(query_text(entry, "actor")), (long long)query_whole(entry, "version"));
	print_changes(entry);
	print_proof(entry);
}

static void print_entries(const cJSON *entries)
{
	const cJSON *entry;

	if (cJSON_GetArraySize(entries) == 0)
		puts("The log has nothing of that.");
	cJSON_ArrayForEach(entry, entries)
	{
		if (entry != entries->child)
			putchar('\n');
		print_entry(entry);
	}
}

/* ---- the command ------------------------------------------------------------------------ */

/* "2h" ago, or a time. 0, or the exit status after the mistake has been printed. */
static int add_since(struct cbctl *cbctl, const char *text, cJSON *parameters)
{
	const char *wrong;
	int64_t us;

	if (text == NULL)
		return 0;
	wrong = since_parse(text, database_now(cbctl), &us);
	if (wrong != NULL)
		return fail_usage(&command_log, "--since \"%s\" %s", text, wrong);
	json_time(parameters, "since", us);
	return 0;
}

static int run(struct cbctl *cbctl, const struct parsed *parsed)
{
	cJSON *answer, *parameters = json_object(NULL, NULL);
	int status = query_limit(&command_log, parsed->values[LIMIT], parameters);

	if (status == 0)
		status = client_open(cbctl);
	if (status == 0)
		status = add_since(cbctl, parsed->values[SINCE], parameters);
	if (status != 0) {
		cJSON_Delete(parameters);
		return status;
	}
	if (parsed->words[0] != NULL)
		json_text(parameters, "name", parsed->words[0]);
	status = query_agent(cbctl, "GetLog", parameters, &answer);
	if (status != 0)
		return status;
	if (cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(answer, "entries")) == 0)
		segment_warn_unknown(cbctl, parsed->words[0]);
	if (output_is_json()) {
		json_print(answer);
	} else {
		print_entries(cJSON_GetObjectItemCaseSensitive(answer, "entries"));
		cJSON_Delete(answer);
	}
	return STATUS_DONE;
}

const struct command command_log = {
	.name = "log",
	.arguments = "[NAME] [--since TIME] [--limit N]",
	.summary = "who has decided what, and who that was",
	.help = "The audit log, newest first: every change of a decision or a policy, of one\n"
		"breaker, or of all and the fleet's policy; who claims to have made it, and who\n"
		"that was as the kernel, or the database for changes by SQL, has proven.\n"
		"\n"
		"  --since TIME  not what is older: 2h, \"today 09:00\", or as for disable "
		"--until\n"
		"  --limit N     at most so many, 1 to 1000; 10 if left out\n",
	.options = options,
	.least = 0,
	.most = 1,
	.run = run,
};
