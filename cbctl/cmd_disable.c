/*
 * cmd_disable.c - cbctl disable: a person opens a breaker
 *
 * SPDX-License-Identifier: ISC
 */
#include "config.h"

#include <stdio.h>

#include "cbctl/fleet.h"
#include "cbctl/output.h"
#include "cbctl/segment.h"
#include "cbctl/timespec.h"

enum { REASON, BY, UNTIL, FOR, WAIT };

static const struct option options[] = {
	[REASON] = {"reason", "TEXT"}, [BY] = {"by", "WHO"},       [UNTIL] = {"until", "TIME"},
	[FOR] = {"for", "DURATION"},   [WAIT] = FLEET_WAIT_OPTION, {NULL, NULL},
};

/* 0, or the exit status after the mistake has been printed. */
static int parse_end(struct cbctl *cbctl, const struct parsed *parsed, int64_t *until,
		     int64_t *for_us)
{
	const char *until_text = parsed->values[UNTIL];
	const char *for_text = parsed->values[FOR];
	const char *wrong = NULL;

	*until = CBSHM_UNTIL_DEFAULT;
	*for_us = 0;
	if (until_text != NULL && for_text != NULL)
		return fail_usage(&command_disable,
				  "--until and --for exclude each other: give one");
	if (for_text != NULL) {
		wrong = duration_parse(for_text, for_us);
		if (wrong != NULL)
			return fail_usage(&command_disable, "--for \"%s\" %s", for_text, wrong);
	}
	if (until_text != NULL) {
		wrong = until_parse(until_text, database_now(cbctl), until);
		if (wrong != NULL)
			return fail_usage(&command_disable, "--until \"%s\" %s", until_text, wrong);
	}
	return 0;
}

static int print_result(struct cbctl *cbctl, const char *name, bool changed, const char *incident,
			int wait_ms)
{
	struct cbshm_state state;

	printf("%s %s %s\n", clean(name), changed ? "is" : "was already",
	       coloured(COLOUR_BAD,
			changed ? "disabled"
				: "disabled, with that reason and end: nothing changed"));
	if (segment_state(cbctl, name, &state) == 0)
		state_print_opening(&state);
	else if (incident[0] != '\0')
		printf("  incident  %s\n", clean(incident));
	return fleet_wait(cbctl, wait_ms, NULL);
}

static int print_json(struct cbctl *cbctl, const char *name, bool changed, const char *incident,
		      int wait_ms)
{
	cJSON *document = json_object(NULL, NULL);
	struct cbshm_state state;
	int status;

	json_text(document, "name", name);
	json_bool(document, "changed", changed);
	json_text(document, "incident_id", incident[0] != '\0' ? incident : NULL);
	if (segment_state(cbctl, name, &state) == 0)
		json_state(json_object(document, "state"), &state);
	status = fleet_wait(cbctl, wait_ms, document);
	json_print(document);
	return status;
}

static int run(struct cbctl *cbctl, const struct parsed *parsed)
{
	const char *name = parsed->words[0];
	struct cbshm_call call = {0};
	struct cbshm_state state;
	struct suggestion near;
	char incident[CBSHM_UUID_SIZE];
	int64_t until, for_us;
	bool changed;
	int error, wait_ms;

	if (parsed->values[REASON] == NULL)
		return fail_usage(&command_disable,
				  "--reason is needed: it is what everybody else will see");
	error = client_open(cbctl);
	if (error == 0)
		error = parse_end(cbctl, parsed, &until, &for_us);
	if (error == 0)
		error = fleet_parse(&command_disable, parsed->values[WAIT], &wait_ms);
	if (error != 0)
		return error;
	/* Somebody who mistypes a name in an emergency must learn it now; afterwards the name exists. */
	suggestion_begin(&near, name);
	if (segment_state(cbctl, name, &state) == CBSHM_ERR_NOT_FOUND)
		segment_nearest(cbctl, name, &near);
	error = cbshm_disable(cbctl->client, name, parsed->values[REASON], parsed->values[BY],
			      until, for_us, &call, &changed, incident);
	if (error != 0)
		return fail_library(error, &call);
	if (near.best[0] != '\0')
		warn("%s did not exist before and has been made; if you meant %s, that one is not "
		     "disabled by this",
		     name, near.best);
	return output_is_json() ? print_json(cbctl, name, changed, incident, wait_ms)
				: print_result(cbctl, name, changed, incident, wait_ms);
}

const struct command command_disable = {
	.name = "disable",
	.arguments = "NAME --reason TEXT [--by WHO] [--until TIME | --for "
		     "DURATION] " FLEET_WAIT_ARGUMENT,
	.summary = "open it: keep traffic away, now, on every host",
	.help = "Opens the breaker. When this returns, it is committed in Postgres and every\n"
		"process of this host sees it. A breaker that does not exist is made.\n"
		"\n"
		"  --reason TEXT   why; needed\n"
		"  --by WHO        who decided it; your user name if left out\n"
		"  --until TIME    when it ends by itself: \"tomorrow 09:00\", 18:00, \"friday\n"
		"                  17:00\", \"2030-01-31 18:00\", 2030-01-31T18:00:00Z, or never\n"
		"  --for DURATION  the same from now on: 90s, 30m, 2h, 1h30m, 7d\n"
		"  --wait[=TIME]   until every live host has it, TIME at most (30s); else exit 8\n"
		"\n"
		"With neither, the breaker's default_ttl counts (24 h unless changed).\n"
		"Repeating the same call changes nothing, but --for begins a new incident.\n"
		"\n"
		"Example:\n"
		"  cbctl disable costsim_v2 --reason \"wrong totals, ticket 4711\" --for 2h\n",
	.options = options,
	.least = 1,
	.most = 1,
	.run = run,
};
