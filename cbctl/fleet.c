/*
 * fleet.c - waits until every host has a decision, and names those that have not
 *
 * SPDX-License-Identifier: ISC
 */
#include "config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cbctl/fleet.h"
#include "cbctl/output.h"
#include "cbctl/timespec.h"

#define WAIT_DEFAULT_MS 30000
#define WAIT_MAX_US     INT64_C(3600000000)

int fleet_parse(const struct command *command, const char *value, int *timeout_ms)
{
	const char *wrong;
	int64_t us;

	*timeout_ms = value != NULL ? WAIT_DEFAULT_MS : 0;
	if (value == NULL || *value == '\0')
		return 0;
	wrong = duration_parse(value, &us);
	if (wrong != NULL)
		return fail_usage(command, "--wait=%s %s", value, wrong);
	if (us < 1000 || us > WAIT_MAX_US)
		return fail_usage(command, "--wait=%s must be from 1ms to 1h", value);
	*timeout_ms = (int)(us / 1000);
	return 0;
}

const char *fleet_name(const char *host, const char *instance, const char *version)
{
	const bool plain = strcmp(host, instance) == 0;
	const bool same = strcmp(version, PACKAGE_VERSION) == 0;

	return formatted("%s%s%s%s%s%s", clean(host), plain ? "" : "/",
			 plain ? "" : clean(instance), same ? "" : " (cbagent ",
			 same ? "" : clean(version), same ? "" : ")");
}

/* "web3, web7/second and 12 more" */
static const char *names(const struct cbshm_agent *agents, size_t count, size_t all)
{
	const char *text = "";

	for (size_t i = 0; i < count && i < 10; i++)
		text = formatted("%s%s%s", text, i > 0 ? ", " : "",
				 fleet_name(agents[i].host, agents[i].instance, agents[i].version));
	return all > 10 ? formatted("%s and %zu more", text, all - 10) : text;
}

/* "3 ms"; "0.8 ms"; "1.2 s". */
static const char *milliseconds(double ms)
{
	if (ms >= 1000)
		return formatted("%.1f s", ms / 1000);
	return formatted(ms < 10 ? "%.1f ms" : "%.0f ms", ms);
}

const char *fleet_words(const struct cbshm_fleet *fleet)
{
	const bool timed = !isnan(fleet->slowest_ms);

	return formatted("on %u of %u host%s%s%s", fleet->in_force, fleet->hosts,
			 fleet->hosts == 1 ? "" : "s", timed ? ", slowest " : "",
			 timed ? milliseconds(fleet->slowest_ms) : "");
}

static void print_fleet(const struct cbshm_fleet *fleet)
{
	const bool all = fleet->hosts > 0 && fleet->in_force == fleet->hosts;

	printf("  in force  %s\n", coloured(all ? COLOUR_GOOD : COLOUR_BAD, fleet_words(fleet)));
	if (fleet->silent_count > 0)
		warn("not counted, as their agents are silent: %s; engines there, if they run, may "
		     "still go by an earlier state",
		     names(fleet->silent, fleet->silent_count, fleet->silent_count));
}

static void json_agents(cJSON *object, const char *name, const struct cbshm_agent *agents,
			size_t count)
{
	cJSON *array = json_array(object, name);

	for (size_t i = 0; i < count; i++) {
		cJSON *agent = json_object(array, NULL);

		json_text(agent, "host", agents[i].host);
		json_text(agent, "instance", agents[i].instance);
		json_text(agent, "version", agents[i].version);
		json_time(agent, "last_seen_at", agents[i].last_seen_at);
	}
}

/* With an error other than BEHIND nothing is known but that. */
void fleet_json(cJSON *document, int error, const struct cbshm_call *call,
		const struct cbshm_fleet *fleet)
{
	cJSON *object = json_object(document, "fleet");

	json_text(object, "error", error == 0 ? NULL : error_word(error));
	json_text(object, "message", error == 0 ? NULL : call->message);
	if (error != 0 && error != CBSHM_ERR_BEHIND)
		return;
	json_whole(object, "hosts", fleet->hosts);
	json_whole(object, "in_force", fleet->in_force);
	json_number(object, "slowest_ms", fleet->slowest_ms);
	json_agents(object, "behind", fleet->behind, fleet->behind_count);
	json_agents(object, "silent", fleet->silent, fleet->silent_count);
}

static int say(int error, const struct cbshm_call *call, const struct cbshm_fleet *fleet)
{
	if (error == 0 || error == CBSHM_ERR_BEHIND)
		print_fleet(fleet);
	if (error == CBSHM_ERR_BEHIND && fleet->hosts == 0)
		fail(STATUS_BEHIND, error_word(error),
		     "no agent is seen alive; cbctl agents shows since when");
	else if (error == CBSHM_ERR_BEHIND)
		fail(STATUS_BEHIND, error_word(error), "not in force yet on %s",
		     names(fleet->behind, fleet->behind_count, fleet->hosts - fleet->in_force));
	else if (error != 0)
		fail(STATUS_BEHIND, error_word(error),
		     "it is committed, but whether every host has it is not known: %s",
		     call->message);
	return error == 0 ? STATUS_DONE : STATUS_BEHIND;
}

int fleet_wait(struct cbctl *cbctl, int timeout_ms, cJSON *document)
{
	struct cbshm_call call = {.timeout_ms = timeout_ms};
	struct cbshm_fleet fleet;
	int error, status;

	if (timeout_ms == 0)
		return STATUS_DONE;
	fflush(stdout);
	error = cbshm_wait_fleet(cbctl->client, &call, &fleet);
	if (document != NULL) {
		fleet_json(document, error, &call, &fleet);
		status = error == 0 ? STATUS_DONE : STATUS_BEHIND;
	} else {
		status = say(error, &call, &fleet);
	}
	cbshm_fleet_free(&fleet);
	return status;
}
