/*
 * cmd_incidents.c - cbctl incidents: what opened, why, and how it ended
 *
 * SPDX-License-Identifier: ISC
 */
#include "config.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cbctl/output.h"
#include "cbctl/segment.h"

#define LIMIT_MAX 1000

enum { ALL, LIMIT };

static const struct option options[] = {
	[ALL] = {"all", NULL},
	[LIMIT] = {"limit", "N"},
	{NULL, NULL},
};

static void json_incident(cJSON *object, const struct cbshm_incident *incident)
{
	/* As it stands: cJSON would round numbers of more than 15 digits. */
	cJSON *details = incident->details != NULL ? cJSON_CreateRaw(incident->details) : NULL;

	json_text(object, "id", incident->id);
	json_text(object, "breaker", incident->breaker);
	json_time(object, "timestamp", incident->timestamp);
	json_text(object, "reason", incident->reason);
	json_text(object, "severity", incident->severity);
	json_number(object, "drift_score", incident->drift_score);
	if (incident->sample_count >= 0)
		json_whole(object, "sample_count", incident->sample_count);
	else
		json_text(object, "sample_count", NULL);
	if (details == NULL || !cJSON_AddItemToObject(object, "details", details)) {
		cJSON_Delete(details);
		json_text(object, "details", NULL);
	}
	json_bool(object, "resolved", incident->resolved);
	json_time(object, "resolved_at", incident->resolved_at);
	json_text(object, "resolved_by", incident->resolved_by);
	json_text(object, "resolution_notes", incident->resolution_notes);
	json_bool(object, "alert_sent", incident->alert_sent);
	json_time(object, "alert_sent_at", incident->alert_sent_at);
}

static void print_json(const struct cbshm_incident *incidents, size_t count)
{
	cJSON *document = json_object(NULL, NULL);
	cJSON *array = json_array(document, "incidents");

	for (size_t i = 0; i < count; i++)
		json_incident(json_object(array, NULL), &incidents[i]);
	json_print(document);
}

static void print_incident(const struct cbshm_incident *incident)
{
	printf("%s  %s  %s\n", clean(incident->severity), clean(incident->breaker),
	       incident->resolved ? coloured(COLOUR_GOOD, "resolved")
				  : coloured(COLOUR_BAD, "open"));
	printf("  reason    %s\n", clean(incident->reason));
	printf("  opened    %s\n", time_and_distance(incident->timestamp));
	if (strcmp(incident->severity, "P3") == 0 && incident->sample_count >= 0)
		printf("  measured  %lld schema error%s\n", (long long)incident->sample_count,
		       incident->sample_count == 1 ? "" : "s");
	else if (!isnan(incident->drift_score) && incident->sample_count >= 0)
		printf("  measured  drift %g from %lld sample%s\n", incident->drift_score,
		       (long long)incident->sample_count, incident->sample_count == 1 ? "" : "s");
	if (incident->details != NULL)
		printf("  details   %s\n", clean(incident->details));
	if (incident->resolved_at != CBSHM_NO_TIME)
		printf("  resolved  %s by %s: %s\n", time_and_distance(incident->resolved_at),
		       clean(incident->resolved_by), clean(incident->resolution_notes));
	printf("  incident  %s\n", clean(incident->id));
}

static void print_incidents(const char *name, bool all, const struct cbshm_incident *incidents,
			    size_t count)
{
	if (count == 0)
		printf("No %sincident%s%s.%s\n", all ? "" : "open ", name != NULL ? " of " : "",
		       clean(name), all ? "" : " Those that are over: --all");
	for (size_t i = 0; i < count; i++) {
		if (i > 0)
			putchar('\n');
		print_incident(&incidents[i]);
	}
}

static int parse_limit(const char *text, uint32_t *limit)
{
	char *end;
	long value;

	*limit = 0;
	if (text == NULL)
		return 0;
	errno = 0;
	value = strtol(text, &end, 10);
	if (errno != 0 || end == text || *end != '\0' || value < 1 || value > LIMIT_MAX)
		return fail_usage(&command_incidents,
				  "--limit must be a whole number from 1 to %d; it is %s",
				  LIMIT_MAX, text);
	*limit = (uint32_t)value;
	return 0;
}

static int run(struct cbctl *cbctl, const struct parsed *parsed)
{
	const char *name = parsed->words[0];
	const bool all = parsed->values[ALL] != NULL;
	struct cbshm_call call = {0};
	struct cbshm_incident *incidents;
	uint32_t limit;
	size_t count;
	int error = parse_limit(parsed->values[LIMIT], &limit);

	if (error == 0)
		error = client_open(cbctl);
	if (error != 0)
		return error;
	error = cbshm_get_incidents(cbctl->client, name, all, limit, &call, &incidents, &count);
	if (error != 0)
		return fail_library(error, &call);
	if (count == 0)
		segment_warn_unknown(cbctl, name);
	if (output_is_json())
		print_json(incidents, count);
	else
		print_incidents(name, all, incidents, count);
	cbshm_incidents_free(incidents, count);
	return STATUS_DONE;
}

const struct command command_incidents = {
	.name = "incidents",
	.arguments = "[NAME] [--all] [--limit N]",
	.summary = "what opened, why, and how it ended",
	.help = "The incidents of one breaker or of all, newest first, as the database has them.\n"
		"\n"
		"  --all      those that are over, too\n"
		"  --limit N  at most so many, 1 to 1000; 10 if left out\n",
	.options = options,
	.least = 0,
	.most = 1,
	.run = run,
};
