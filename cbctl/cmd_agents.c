/*
 * cmd_agents.c - cbctl agents: which agents there are, and whether they have everything
 *
 * SPDX-License-Identifier: ISC
 *
 * The roll is called first: every agent is to say that it has what is committed now.
 */
#include "config.h"

#include <stdio.h>
#include <string.h>

#include "cbctl/query.h"
#include "cbctl/fleet.h"
#include "cbctl/output.h"
#include "cbctl/segment.h"

#define ROLL_CALL_MS 3000

/* At the deadline is time enough: it is known then who is behind. */
static bool was_asked(int error)
{
	return error == 0 || error == CBSHM_ERR_BEHIND;
}

static const char *name_of(const cJSON *agent)
{
	return fleet_name(query_text(agent, "host"), query_text(agent, "instance"),
			  query_text(agent, "version"));
}

/* Who is behind has not answered an earlier question either; who is not may be, if nobody could be asked now. */
static const char *state_of(const cJSON *agent, bool asked)
{
	if (!query_bool(agent, "live"))
		return "silent";
	if (query_bool(agent, "behind"))
		return "behind";
	return asked ? "ok" : "unknown";
}

static void print_state(const char *state, bool asked)
{
	const enum colour colour = strcmp(state, "ok") == 0 ? COLOUR_GOOD : COLOUR_BAD;

	printf("%s", coloured(colour, formatted(asked ? "%-6s" : "%-7s", state)));
}

static void print_agents(const cJSON *agents, bool asked)
{
	const cJSON *agent;
	int column = 0;

	cJSON_ArrayForEach(agent, agents)
	{
		const int columns = width(name_of(agent));

		column = columns > column ? columns : column;
	}
	cJSON_ArrayForEach(agent, agents)
	{
		const char *name = name_of(agent);

		print_state(state_of(agent, asked), asked);
		printf("  %s%*s  seen %s\n", name, column - width(name), "",
		       time_and_distance(query_time(agent, "last_seen_at")));
	}
}

static int print_all(const cJSON *answer, int error, const struct cbshm_call *call,
		     const struct cbshm_fleet *fleet)
{
	const bool asked = was_asked(error);

	print_agents(cJSON_GetObjectItemCaseSensitive(answer, "agents"), asked);
	if (!asked)
		return fail(error_status(error), error_word(error),
			    "the agents could not be asked whether they have everything: %s",
			    call->message);
	if (fleet->hosts == 0)
		printf("No agent is seen alive.\n");
	else
		printf("Everything is in force %s.\n", fleet_words(fleet));
	return STATUS_DONE;
}

static int json_all(cJSON *answer, int error, const struct cbshm_call *call,
		    const struct cbshm_fleet *fleet)
{
	const bool asked = was_asked(error);
	cJSON *agent;

	cJSON_ArrayForEach(agent, cJSON_GetObjectItemCaseSensitive(answer, "agents"))
		json_text(agent, "state", state_of(agent, asked));
	fleet_json(answer, error, call, fleet);
	json_print(answer);
	return asked ? STATUS_DONE : error_status(error);
}

static int run(struct cbctl *cbctl, const struct parsed *parsed)
{
	struct cbshm_call call = {.timeout_ms = ROLL_CALL_MS};
	struct cbshm_fleet fleet;
	cJSON *answer, *parameters = json_object(NULL, NULL);
	int error, status = query_limit(&command_agents, parsed->values[0], parameters);

	if (status == 0)
		status = client_open(cbctl);
	if (status != 0) {
		cJSON_Delete(parameters);
		return status;
	}
	error = cbshm_wait_fleet(cbctl->client, &call, &fleet);
	status = query_agent(cbctl, "GetAgents", parameters, &answer);
	if (status == 0 && output_is_json()) {
		status = json_all(answer, error, &call, &fleet);
	} else if (status == 0) {
		status = print_all(answer, error, &call, &fleet);
		cJSON_Delete(answer);
	}
	cbshm_fleet_free(&fleet);
	return status;
}

static const struct option options[] = {
	{"limit", "N"},
	{NULL, NULL},
};

const struct command command_agents = {
	.name = "agents",
	.arguments = "[--limit N]",
	.summary = "which hosts there are, and whether they have everything",
	.help = "The agents of all hosts, those first that are in trouble. Each is asked whether\n"
		"it has what is committed, and has 3 s to answer; behind a pooler it needs about\n"
		"one. The exit status is 0 all the same; scripts look at .fleet of --json.\n"
		"\n"
		"  ok       it has\n"
		"  behind   it lives, but has not said so\n"
		"  silent   not seen for 10 s, and not stopped in order; forgotten after a day\n"
		"  unknown  it lives, but none could be asked; the exit status tells why\n"
		"\n"
		"  --limit N  list at most so many, 1 to 1000; 1000 if left out\n",
	.options = options,
	.least = 0,
	.most = 0,
	.run = run,
};
