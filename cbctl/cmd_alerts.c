/*
 * cmd_alerts.c - cbctl alerts: what Alertmanager has still to be told, and what it would not take
 *
 * SPDX-License-Identifier: ISC
 */
#include "config.h"

#include <stdio.h>
#include <string.h>

#include "cbctl/query.h"
#include "cbctl/output.h"
#include "cbctl/segment.h"

enum { ALL, LIMIT };

static const struct option options[] = {
	[ALL] = {"all", NULL},
	[LIMIT] = {"limit", "N"},
	{NULL, NULL},
};

static void print_alert(const cJSON *alert)
{
	const char *status = query_text(alert, "status");
	const int64_t next = query_time(alert, "next_attempt_at");

	printf("%s  %s %s\n",
	       coloured(strcmp(status, "failed") == 0 ? COLOUR_BAD : COLOUR_DIM, clean(status)),
	       clean(query_text(alert, "kind")), clean(query_text(alert, "breaker")));
	printf("  queued    %s\n", time_and_distance(query_time(alert, "created_at")));
	if (next != CBSHM_NO_TIME)
		printf("  next try  %s\n", time_and_distance(next));
	if (query_time(alert, "sent_at") != CBSHM_NO_TIME)
		printf("  sent      %s\n", time_and_distance(query_time(alert, "sent_at")));
	printf("  attempts  %lld\n", (long long)query_whole(alert, "attempts"));
	if (*query_text(alert, "last_error") != '\0')
		printf("  error     %s\n", clean(query_text(alert, "last_error")));
	printf("  incident  %s\n", clean(query_text(alert, "incident_id")));
}

static void print_alerts(const cJSON *alerts, bool all)
{
	const cJSON *alert;

	if (cJSON_GetArraySize(alerts) == 0)
		printf("No alert %s.%s\n", all ? "was ever queued" : "waits, and none has failed",
		       all ? "" : " Those that were sent: --all");
	cJSON_ArrayForEach(alert, alerts)
	{
		if (alert != alerts->child)
			putchar('\n');
		print_alert(alert);
	}
}

static int list(struct cbctl *cbctl, const struct parsed *parsed)
{
	const bool all = parsed->values[ALL] != NULL;
	cJSON *answer, *parameters = json_object(NULL, NULL);
	int status = query_limit(&command_alerts, parsed->values[LIMIT], parameters);

	if (status != 0) {
		cJSON_Delete(parameters);
		return status;
	}
	json_bool(parameters, "include_sent", all);
	status = query_agent(cbctl, "GetAlerts", parameters, &answer);
	if (status != 0)
		return status;
	if (output_is_json()) {
		json_print(answer);
	} else {
		print_alerts(cJSON_GetObjectItemCaseSensitive(answer, "alerts"), all);
		cJSON_Delete(answer);
	}
	return STATUS_DONE;
}

static int change(struct cbctl *cbctl, const char *method, const char *done)
{
	cJSON *answer;
	int64_t count;
	int status = query_agent(cbctl, method, json_object(NULL, NULL), &answer);

	if (status != 0)
		return status;
	if (output_is_json()) {
		json_print(answer);
		return STATUS_DONE;
	}
	count = query_whole(answer, "count");
	printf("%lld alert%s %s\n", (long long)count, count == 1 ? "" : "s", done);
	cJSON_Delete(answer);
	return STATUS_DONE;
}

static int run(struct cbctl *cbctl, const struct parsed *parsed)
{
	const char *word = parsed->words[0];
	int status;

	if (word != NULL && strcmp(word, "retry") != 0 && strcmp(word, "purge") != 0)
		return fail_usage(&command_alerts, "\"%s\" is neither retry nor purge", word);
	if (word != NULL && (parsed->values[ALL] != NULL || parsed->values[LIMIT] != NULL))
		return fail_usage(&command_alerts, "%s takes all that failed: no options", word);
	status = client_open(cbctl);
	if (status != 0)
		return status;
	if (word == NULL)
		return list(cbctl, parsed);
	return strcmp(word, "retry") == 0
		       ? change(cbctl, "RetryAlerts", "that had failed will be tried again")
		       : change(cbctl, "PurgeAlerts", "that had failed are gone");
}

const struct command command_alerts = {
	.name = "alerts",
	.arguments = "[retry | purge] [--all] [--limit N]",
	.summary = "what Alertmanager has still to be told, or would not take",
	.help = "The queue of alerts: those first that have failed for good, then those that are\n"
		"still to be sent.\n"
		"\n"
		"  retry      has all that failed tried again (admin group)\n"
		"  purge      removes them, but no opening whose breaker is open or whose closing\n"
		"             is still to be sent (admin group)\n"
		"  --all      those that were sent or skipped, too\n"
		"  --limit N  at most so many, 1 to 1000; 10 if left out\n",
	.options = options,
	.least = 0,
	.most = 1,
	.run = run,
};
