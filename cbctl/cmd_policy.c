/*
 * cmd_policy.c - cbctl policy: the thresholds of a breaker or of the fleet, shown or changed live
 *
 * SPDX-License-Identifier: ISC
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cbctl/fleet.h"
#include "cbctl/output.h"
#include "cbctl/segment.h"
#include "cbctl/timespec.h"

enum { FLEET, BY, YES, WAIT };

static const struct option options[] = {
	[FLEET] = {"fleet", NULL},  [BY] = {"by", "WHO"}, [YES] = {"yes", NULL},
	[WAIT] = FLEET_WAIT_OPTION, {NULL, NULL},
};

/* ---- values ----------------------------------------------------------------------------- */

/* Each takes a value into its field; returns NULL, or what the value must be. */
static const char *take_fraction(const char *text, struct cbshm_policy *policy)
{
	char *end;
	const double value = strtod(text, &end);

	if (end == text || *end != '\0' || strspn(text, "0123456789.eE+-") != strlen(text) ||
	    !(value >= 0 && value <= 1))
		return "must be a number from 0 to 1";
	policy->drift_threshold = value;
	return NULL;
}

static const char *take_threshold(const char *text, uint32_t *threshold)
{
	char *end;
	long long value;

	errno = 0;
	value = strtoll(text, &end, 10);
	if (errno != 0 || end == text || *end != '\0' || value < 1 || value > INT32_MAX)
		return "must be a whole number, 1 or more";
	*threshold = (uint32_t)value;
	return NULL;
}

static const char *take_failures(const char *text, struct cbshm_policy *policy)
{
	return take_threshold(text, &policy->failure_threshold);
}

static const char *take_schema_errors(const char *text, struct cbshm_policy *policy)
{
	return take_threshold(text, &policy->schema_error_threshold);
}

static const char *take_ttl(const char *text, struct cbshm_policy *policy)
{
	policy->default_ttl_us = 0;
	if (strcmp(text, "0") == 0 || strcmp(text, "never") == 0)
		return NULL;
	if (duration_parse(text, &policy->default_ttl_us) != NULL)
		return "must be a duration such as 30m, 2h or 7d, at most 3650d, or never";
	return NULL;
}

static const char *take_auto_recover(const char *text, struct cbshm_policy *policy)
{
	static const char *const yes[] = {"on", "true", "yes"}, *const no[] = {"off", "false",
									       "no"};

	for (int i = 0; i < 3; i++) {
		policy->auto_recover = strcmp(text, yes[i]) == 0;
		if (policy->auto_recover || strcmp(text, no[i]) == 0)
			return NULL;
	}
	return "must be on or off";
}

static const struct key {
	const char *name;
	uint32_t bit;
	const char *(*take)(const char *text, struct cbshm_policy *policy);
} keys[] = {
	{"drift_threshold", CBSHM_POLICY_DRIFT_THRESHOLD, take_fraction},
	{"failure_threshold", CBSHM_POLICY_FAILURE_THRESHOLD, take_failures},
	{"schema_error_threshold", CBSHM_POLICY_SCHEMA_ERROR_THRESHOLD, take_schema_errors},
	{"default_ttl", CBSHM_POLICY_DEFAULT_TTL, take_ttl},
	{"auto_recover", CBSHM_POLICY_AUTO_RECOVER, take_auto_recover},
};

#define KEYS (sizeof(keys) / sizeof(*keys))

/* ---- changes ---------------------------------------------------------------------------- */

struct changes {
	struct cbshm_policy policy;
	uint32_t set, clear;
};

static const struct key *find_key(const char *word, size_t length, struct suggestion *near)
{
	const char *name = formatted("%.*s", (int)length, word);

	suggestion_begin(near, name);
	for (size_t i = 0; i < KEYS; i++) {
		if (strcmp(keys[i].name, name) == 0)
			return &keys[i];
		suggestion_consider(near, keys[i].name);
	}
	return NULL;
}

/* 0, or the exit status after the mistake has been printed. */
static int take_change(const char *word, bool fleet, struct changes *changes)
{
	const char *equals = strchr(word, '=');
	const size_t length = equals != NULL ? (size_t)(equals - word) : strlen(word);
	struct suggestion near;
	const struct key *key = find_key(word, length, &near);
	const char *wrong;

	if (key == NULL && near.best[0] != '\0')
		return fail_usage(&command_policy,
				  "\"%.*s\" is no key of a policy; did you mean %s?", (int)length,
				  word, near.best);
	if (key == NULL)
		return fail_usage(&command_policy,
				  "\"%.*s\" is no key of a policy: drift_threshold, "
				  "failure_threshold, schema_error_threshold, default_ttl or "
				  "auto_recover",
				  (int)length, word);
	if (equals == NULL)
		return fail_usage(&command_policy, "%s needs a value: %s=VALUE", key->name,
				  key->name);
	if ((changes->set | changes->clear) & key->bit)
		return fail_usage(&command_policy, "%s is given twice", key->name);
	if (strcmp(equals + 1, "default") == 0 && fleet)
		return fail_usage(&command_policy,
				  "%s=default is for a breaker: the fleet has nothing to follow",
				  key->name);
	if (strcmp(equals + 1, "default") == 0) {
		changes->clear |= key->bit;
		return 0;
	}
	wrong = key->take(equals + 1, &changes->policy);
	if (wrong != NULL)
		return fail_usage(&command_policy, "%s %s%s; it is \"%s\"", key->name, wrong,
				  fleet ? "" : ", or default", equals + 1);
	changes->set |= key->bit;
	return 0;
}

/* ---- output ----------------------------------------------------------------------------- */

/* A field of a policy, as it is written on the command line. */
static const char *value_of(const struct cbshm_policy *policy, uint32_t bit)
{
	char ttl[64] = "never";

	switch (bit) {
	case CBSHM_POLICY_DRIFT_THRESHOLD:
		return formatted("%g", policy->drift_threshold);
	case CBSHM_POLICY_FAILURE_THRESHOLD:
		return formatted("%u", policy->failure_threshold);
	case CBSHM_POLICY_SCHEMA_ERROR_THRESHOLD:
		return formatted("%u", policy->schema_error_threshold);
	case CBSHM_POLICY_DEFAULT_TTL:
		if (policy->default_ttl_us > 0)
			duration_write(policy->default_ttl_us, ttl, sizeof(ttl));
		return formatted("%s", ttl);
	default:
		return policy->auto_recover ? "on" : "off";
	}
}

static int print_policy(struct cbctl *cbctl, const char *name, const struct cbshm_policy *policy,
			int wait_ms)
{
	int status;

	if (output_is_json()) {
		cJSON *document = json_object(NULL, NULL);

		json_text(document, "name", name);
		json_policy(json_object(document, "policy"), policy);
		status = fleet_wait(cbctl, wait_ms, document);
		json_print(document);
		return status;
	}
	printf("%s\n", name != NULL ? clean(name) : "The fleet's defaults");
	for (size_t i = 0; i < KEYS; i++)
		printf("  %-22s  %s\n", keys[i].name, value_of(policy, keys[i].bit));
	return fleet_wait(cbctl, wait_ms, NULL);
}

/* A breaker's policy stands in the segment; no agent is needed to see it. */
static int show_from_segment(struct cbctl *cbctl, const char *name, int wait_ms)
{
	struct cbshm_health health;
	struct cbshm_state state;
	struct suggestion near;
	int error = segment_open(cbctl);

	if (error != 0)
		return error;
	error = segment_state(cbctl, name, &state);
	if (error == CBSHM_ERR_NOT_FOUND) {
		segment_nearest(cbctl, name, &near);
		return fail(STATUS_OTHER, error_word(error), "there is no breaker %s%s%s%s", name,
			    near.best[0] != '\0' ? "; did you mean " : "", near.best,
			    near.best[0] != '\0' ? "?" : "");
	}
	if (error != 0)
		return fail_library(error, NULL);
	segment_warn(cbctl, &health);
	return print_policy(cbctl, name, &state.policy, wait_ms);
}

/* Shows a person what would change for the whole fleet. 0: go on; else the exit status. */
static int confirm(struct cbctl *cbctl, const struct changes *changes)
{
	struct cbshm_call call = {0};
	struct cbshm_policy now;
	const int error = cbshm_set_policy(cbctl->client, NULL, NULL, 0, 0, NULL, &call, &now);

	if (error != 0)
		return fail_library(error, &call);
	fputs("This counts at once, on every host, for all breakers that have no value of their "
	      "own:\n",
	      stderr);
	for (size_t i = 0; i < KEYS; i++) {
		if (changes->set & keys[i].bit)
			fprintf(stderr, "  %-22s  %s -> %s\n", keys[i].name,
				value_of(&now, keys[i].bit),
				value_of(&changes->policy, keys[i].bit));
	}
	if (ask("Change the defaults of the fleet?"))
		return 0;
	return fail(STATUS_OTHER, "declined", "nothing was changed");
}

static int run(struct cbctl *cbctl, const struct parsed *parsed)
{
	const bool fleet = parsed->values[FLEET] != NULL;
	const char *name = fleet ? NULL : parsed->words[0];
	struct changes changes = {.set = 0};
	struct cbshm_call call = {0};
	struct cbshm_policy policy;
	struct suggestion near;
	bool is_new;
	int error, wait_ms;

	if (!fleet && name == NULL)
		return fail_usage(&command_policy, "policy needs a NAME, or --fleet");
	error = fleet_parse(&command_policy, parsed->values[WAIT], &wait_ms);
	for (int i = fleet ? 0 : 1; i < parsed->count && error == 0; i++)
		error = take_change(parsed->words[i], fleet, &changes);
	if (error != 0)
		return error;
	if (!fleet && changes.set == 0 && changes.clear == 0)
		return show_from_segment(cbctl, name, wait_ms);
	error = client_open(cbctl);
	if (error != 0)
		return error;
	if (fleet && changes.set != 0 && parsed->values[YES] == NULL && can_ask())
		error = confirm(cbctl, &changes);
	if (error != 0)
		return error;
	is_new = !fleet && segment_lacks(cbctl, name, &near);
	error = cbshm_set_policy(cbctl->client, name, &changes.policy, changes.set, changes.clear,
				 parsed->values[BY], &call, &policy);
	if (error != 0)
		return fail_library(error, &call);
	if (is_new)
		segment_warn_made(name, &near);
	return print_policy(cbctl, name, &policy, wait_ms);
}

const struct command command_policy = {
	.name = "policy",
	.arguments = "NAME|--fleet [KEY=VALUE ...] [--by WHO] [--yes] " FLEET_WAIT_ARGUMENT,
	.summary = "show or change the thresholds of a breaker or of all",
	.help = "Without KEY=VALUE shows the policy in force. Changes count at once, state and\n"
		"failures stay as they are, and the audit log has the old and the new values.\n"
		"\n"
		"  drift_threshold=0.2       a drift score above it is a failure\n"
		"  failure_threshold=3       so many failures in a row trip\n"
		"  schema_error_threshold=5  so many schema errors in one report trip\n"
		"  default_ttl=24h           after that an opening ends by itself; or never\n"
		"  auto_recover=on           whether it does; or off\n"
		"  KEY=default               a breaker follows the fleet again\n"
		"  --fleet                   the defaults of all breakers\n"
		"  --by WHO                  who decided it; your user name if left out\n"
		"  --yes                     do not ask before the fleet's are changed\n"
		"  --wait[=TIME]             until every live host has it (30s); else exit 8\n"
		"\n"
		"Example:\n"
		"  cbctl policy costsim_v2 drift_threshold=0.3 default_ttl=2h\n",
	.options = options,
	.least = 0,
	.most = -1,
	.run = run,
};
