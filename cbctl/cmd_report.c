/*
 * cmd_report.c - cbctl drift and cbctl schema-error: what engines report, by hand or from a script
 *
 * SPDX-License-Identifier: ISC
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cbctl/output.h"
#include "cbctl/segment.h"

enum { DRIFT_SAMPLES, DRIFT_DETAILS };
static const struct option drift_options[] = {
	[DRIFT_SAMPLES] = {"samples", "N"},
	[DRIFT_DETAILS] = {"details", "JSON"},
	{NULL, NULL},
};

enum { SCHEMA_DETAILS };
static const struct option schema_options[] = {
	[SCHEMA_DETAILS] = {"details", "JSON"},
	{NULL, NULL},
};

static bool parse_whole(const char *text, int64_t *value)
{
	char *end;

	errno = 0;
	*value = strtoll(text, &end, 10);
	return errno == 0 && end != text && *end == '\0' && strchr("0123456789-", text[0]) != NULL;
}

static bool parse_number(const char *text, double *value)
{
	char *end;

	*value = strtod(text, &end);
	return end != text && *end == '\0' && strspn(text, "0123456789.+-eE") == strlen(text);
}

static void print_json(struct cbctl *cbctl, const char *name, const char *incident)
{
	cJSON *document = json_object(NULL, NULL);
	struct cbshm_state state;

	json_text(document, "name", name);
	json_bool(document, "tripped", incident[0] != '\0');
	json_text(document, "incident_id", incident[0] != '\0' ? incident : NULL);
	if (segment_state(cbctl, name, &state) == 0)
		json_state(json_object(document, "state"), &state);
	json_print(document);
}

/* What is still missing for a trip; nothing is while the breaker is open. */
static const char *to_trip(const struct cbshm_state *state, bool schema)
{
	if (schema && !state->disabled)
		return formatted("; %u schema errors at once trip it",
				 state->policy.schema_error_threshold);
	if (schema)
		return "";
	if (state->disabled)
		return formatted(", %u failures in a row", state->consecutive_failures);
	return formatted(", %u of %u failures in a row", state->consecutive_failures,
			 state->policy.failure_threshold);
}

static int print_result(struct cbctl *cbctl, const char *name, bool schema, const char *incident)
{
	struct cbshm_state state;
	const bool has_state = segment_state(cbctl, name, &state) == 0;

	if (output_is_json()) {
		print_json(cbctl, name, incident);
		return STATUS_DONE;
	}
	if (incident[0] != '\0')
		printf("reported; %s tripped: it is %s now\n", clean(name),
		       coloured(COLOUR_BAD, "disabled"));
	else if (has_state)
		printf("reported; %s is %s%s\n", clean(name),
		       state.disabled ? coloured(COLOUR_BAD, "disabled")
				      : coloured(COLOUR_GOOD, "enabled"),
		       to_trip(&state, schema));
	else
		printf("reported; %s did not trip\n", clean(name));
	if (incident[0] != '\0' && has_state)
		state_print_opening(&state);
	return STATUS_DONE;
}

static int run_drift(struct cbctl *cbctl, const struct parsed *parsed)
{
	const char *name = parsed->words[0], *samples_text = parsed->values[DRIFT_SAMPLES];
	struct cbshm_call call = {0};
	char incident[CBSHM_UUID_SIZE];
	int64_t samples = 1;
	double score;
	int error;

	if (!parse_number(parsed->words[1], &score))
		return fail_usage(&command_drift, "SCORE must be a number from 0 to 1; it is %s",
				  parsed->words[1]);
	if (samples_text != NULL && !parse_whole(samples_text, &samples))
		return fail_usage(&command_drift, "--samples must be a whole number; it is %s",
				  samples_text);
	error = client_open(cbctl);
	if (error != 0)
		return error;
	error = cbshm_report_drift(cbctl->client, name, score, samples,
				   parsed->values[DRIFT_DETAILS], &call, incident);
	return error != 0 ? fail_library(error, &call) : print_result(cbctl, name, false, incident);
}

static int run_schema_error(struct cbctl *cbctl, const struct parsed *parsed)
{
	const char *name = parsed->words[0];
	struct cbshm_call call = {0};
	char incident[CBSHM_UUID_SIZE];
	int64_t count;
	int error;

	if (!parse_whole(parsed->words[1], &count))
		return fail_usage(&command_schema_error,
				  "COUNT must be a whole number, 0 or more; it is %s",
				  parsed->words[1]);
	error = client_open(cbctl);
	if (error != 0)
		return error;
	error = cbshm_report_schema_error(cbctl->client, name, count,
					  parsed->values[SCHEMA_DETAILS], &call, incident);
	return error != 0 ? fail_library(error, &call) : print_result(cbctl, name, true, incident);
}

const struct command command_drift = {
	.name = "drift",
	.arguments = "NAME SCORE [--samples N] [--details JSON]",
	.summary = "report how far the guarded path is off",
	.help = "Reports one observation. A SCORE (0 to 1) above the breaker's drift_threshold\n"
		"is a failure; failure_threshold failures in a row trip it, a good report sets\n"
		"them to 0.\n"
		"\n"
		"  --samples N     from how many samples the score is; 1 if left out\n"
		"  --details JSON  an object for the incident, such as '{\"batch\": 7}'\n",
	.options = drift_options,
	.least = 2,
	.most = 2,
	.run = run_drift,
};

const struct command command_schema_error = {
	.name = "schema-error",
	.arguments = "NAME COUNT [--details JSON]",
	.summary = "report how many schema errors there were",
	.help = "Reports COUNT schema errors at once; as many as the breaker's\n"
		"schema_error_threshold, or more, trip it.\n"
		"\n"
		"  --details JSON  an object for the incident, such as '{\"batch\": 7}'\n",
	.options = schema_options,
	.least = 2,
	.most = 2,
	.run = run_schema_error,
};
