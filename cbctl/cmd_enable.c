/*
 * cmd_enable.c - cbctl enable, and its other name reset: a person closes a breaker
 *
 * SPDX-License-Identifier: ISC
 */
#include "config.h"

#include <stdio.h>

#include "cbctl/fleet.h"
#include "cbctl/output.h"
#include "cbctl/segment.h"

enum { BY, REASON, WAIT };

static const struct option options[] = {
	[BY] = {"by", "WHO"},
	[REASON] = {"reason", "TEXT"},
	[WAIT] = FLEET_WAIT_OPTION,
	{NULL, NULL},
};

typedef int close_breaker(struct cbshm *client, const char *name, const char *by,
			  const char *reason, struct cbshm_call *call, bool *changed);

static int run_with(const struct command *command, close_breaker *close_it, struct cbctl *cbctl,
		    const struct parsed *parsed)
{
	const char *name = parsed->words[0];
	struct cbshm_call call = {0};
	struct suggestion near;
	bool changed, was_unknown;
	int wait_ms, status;
	int error = fleet_parse(command, parsed->values[WAIT], &wait_ms);

	if (error == 0)
		error = client_open(cbctl);
	if (error != 0)
		return error;
	was_unknown = segment_lacks(cbctl, name, &near);
	error = close_it(cbctl->client, name, parsed->values[BY], parsed->values[REASON], &call,
			 &changed);
	if (error != 0)
		return fail_library(error, &call);
	if (was_unknown && !changed)
		segment_warn_made(name, &near);
	if (output_is_json()) {
		cJSON *document = json_object(NULL, NULL);

		json_text(document, "name", name);
		json_bool(document, "changed", changed);
		status = fleet_wait(cbctl, wait_ms, document);
		json_print(document);
		return status;
	}
	if (changed || was_unknown)
		printf("%s %s\n", clean(name), coloured(COLOUR_GOOD, "is enabled"));
	else
		printf("%s was enabled already: nothing changed\n", clean(name));
	return fleet_wait(cbctl, wait_ms, NULL);
}

static int run_enable(struct cbctl *cbctl, const struct parsed *parsed)
{
	return run_with(&command_enable, cbshm_enable, cbctl, parsed);
}

static int run_reset(struct cbctl *cbctl, const struct parsed *parsed)
{
	return run_with(&command_reset, cbshm_reset, cbctl, parsed);
}

#define HELP                                                                                   \
	"Closes the breaker, sets its failures to 0 and resolves its incident. When this\n"    \
	"returns, it is committed in Postgres and every process of this host sees it.\n"       \
	"A breaker that does not exist is made, with a warning.\n"                             \
	"\n"                                                                                   \
	"  --by WHO       who decided it; your user name if left out\n"                        \
	"  --reason TEXT  what goes into the incident's notes; \"Manual reset\" if left out\n" \
	"  --wait[=TIME]  until every live host has it, TIME at most (30s); else exit 8\n"

const struct command command_enable = {
	.name = "enable",
	.arguments = "NAME [--by WHO] [--reason TEXT] " FLEET_WAIT_ARGUMENT,
	.summary = "close it: let traffic pass again",
	.help = HELP,
	.options = options,
	.least = 1,
	.most = 1,
	.run = run_enable,
};

const struct command command_reset = {
	.name = "reset",
	.arguments = "NAME [--by WHO] [--reason TEXT] " FLEET_WAIT_ARGUMENT,
	.summary = "another name for enable",
	.help = HELP,
	.options = options,
	.least = 1,
	.most = 1,
	.run = run_reset,
};
