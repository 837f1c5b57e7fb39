/*
 * cmd_status.c - cbctl status and cbctl list: what is disabled, and what there is
 *
 * SPDX-License-Identifier: ISC
 */
#include "config.h"

#include <stdio.h>
#include <unistd.h>

#include "cbctl/output.h"
#include "cbctl/segment.h"
#include "cbctl/timespec.h"

#define NAME_WIDTH_MAX 40

/* ---- many ------------------------------------------------------------------------------- */

static void json_many(const struct states *states, size_t disabled,
		      const struct cbshm_health *health)
{
	cJSON *document = json_object(NULL, NULL);
	cJSON *array = json_array(document, "breakers");

	for (size_t i = 0; i < states->count; i++)
		json_state(json_object(array, NULL), &states->list[i]);
	json_whole(document, "disabled", (int64_t)disabled);
	json_whole(document, "total", (int64_t)states->total);
	if (health != NULL)
		json_health(json_object(document, "health"), health);
	json_print(document);
}

static const char *short_age(int64_t us)
{
	char text[64];

	if (us == CBSHM_NO_TIME)
		return "never";
	duration_format(us, text, sizeof(text));
	return formatted("%s ago", text);
}

static void print_summary(size_t disabled, size_t total, const struct cbshm_health *health)
{
	if (total == 0)
		puts("There is no breaker yet: the first report or disable makes one.");
	else
		printf("%zu of %zu breaker%s disabled.\n", disabled, total,
		       total == 1 ? " is" : "s are");
	if (health != NULL)
		printf("Agent %s, heartbeat %s; database %s, confirmed %s.\n",
		       health->agent_alive ? coloured(COLOUR_GOOD, "running")
					   : coloured(COLOUR_BAD, "not running"),
		       short_age(health->heartbeat_age_us),
		       health->database_live ? coloured(COLOUR_GOOD, "connected")
					     : coloured(COLOUR_BAD, "not connected"),
		       short_age(health->database_age_us));
}

static int run_many(struct cbctl *cbctl, bool disabled_only, const char *prefix,
		    void (*print)(const struct states *states))
{
	struct cbshm_health health;
	struct states states;
	size_t disabled = 0;
	bool has_health;
	int error = segment_open(cbctl);

	if (error != 0)
		return error;
	error = segment_states(cbctl, disabled_only, prefix, &states);
	if (error != 0)
		return fail_library(error, NULL);
	for (size_t i = 0; i < states.count; i++)
		disabled += states.list[i].disabled;
	has_health = segment_warn(cbctl, &health);
	if (output_is_json()) {
		json_many(&states, disabled, has_health ? &health : NULL);
	} else {
		print(&states);
		if (disabled_only || states.total == 0)
			print_summary(disabled, states.total, has_health ? &health : NULL);
	}
	states_free(&states);
	return STATUS_DONE;
}

/* ---- list ------------------------------------------------------------------------------- */

static int name_column(const struct states *states)
{
	int column = 0;

	for (size_t i = 0; i < states->count; i++) {
		const int w = width(clean(states->list[i].name));

		if (w > column && w <= NAME_WIDTH_MAX)
			column = w;
	}
	return column;
}

static void print_line(const struct cbshm_state *state, int column)
{
	const char *name = clean(state->name);
	const int padding = column > width(name) ? column - width(name) : 0;
	char left[64] = "for good";

	if (!state->disabled) {
		printf("%s   %s", coloured(COLOUR_GOOD, "enabled"), name);
		if (state->consecutive_failures > 0)
			printf("%*s  %u of %u failures in a row", padding, "",
			       state->consecutive_failures, state->policy.failure_threshold);
		putchar('\n');
		return;
	}
	if (state->disabled_until != CBSHM_NO_TIME && state->policy.auto_recover)
		duration_format(state->remaining_us, left, sizeof(left));
	printf("%s  %s%*s  %s%s, %s%s\n", coloured(COLOUR_BAD, "disabled"), name, padding, "",
	       state->remaining_us != CBSHM_NO_TIME && state->policy.auto_recover ? "ends in " : "",
	       left, clean(state->disabled_reason),
	       state->flags & CBSHM_STATE_REASON_CUT ? "..." : "");
}

static void print_list(const struct states *states)
{
	const int column = name_column(states);

	for (size_t i = 0; i < states->count; i++)
		print_line(&states->list[i], column);
	if (states->count == 0 && states->total > 0)
		warn("no breaker's name begins with that");
}

/* As they are, for programs; a terminal gets nothing that would control it. */
static void print_names(const struct states *states)
{
	const bool as_is = !isatty(STDOUT_FILENO);

	for (size_t i = 0; i < states->count; i++)
		puts(as_is ? states->list[i].name : clean(states->list[i].name));
}

enum { NAMES };

static const struct option list_options[] = {[NAMES] = {"names", NULL}, {NULL, NULL}};

static int run_list(struct cbctl *cbctl, const struct parsed *parsed)
{
	const char *prefix = parsed->count > 0 ? parsed->words[0] : "";

	if (parsed->values[NAMES] == NULL)
		return run_many(cbctl, false, prefix, print_list);
	if (output_is_json())
		return fail_usage(&command_list, "--names is plain text: leave out --json");
	return run_many(cbctl, false, prefix, print_names);
}

/* ---- status ----------------------------------------------------------------------------- */

static void print_policy(const struct cbshm_policy *policy)
{
	char ttl[64] = "never";

	if (policy->default_ttl_us > 0)
		duration_write(policy->default_ttl_us, ttl, sizeof(ttl));
	printf("  policy    drift > %g counts, %u in a row trip; %u schema errors trip; ends after "
	       "%s%s\n",
	       policy->drift_threshold, policy->failure_threshold, policy->schema_error_threshold,
	       ttl, policy->auto_recover ? "" : " (auto_recover off)");
}

static void print_one(const struct cbshm_state *state)
{
	printf("%s is %s\n", clean(state->name),
	       state->disabled ? coloured(COLOUR_BAD, "disabled")
			       : coloured(COLOUR_GOOD, "enabled"));
	state_print_opening(state);
	if (state->last_failure_at != CBSHM_NO_TIME)
		printf("  failures  %u in a row, the last one %s\n", state->consecutive_failures,
		       time_and_distance(state->last_failure_at));
	print_policy(&state->policy);
	printf("  changed   %s, version %llu\n", time_and_distance(state->updated_at),
	       (unsigned long long)state->version);
}

static void print_disabled(const struct states *states)
{
	for (size_t i = 0; i < states->count; i++) {
		const struct cbshm_state *state = &states->list[i];

		printf("%s is %s\n", clean(state->name), coloured(COLOUR_BAD, "disabled"));
		state_print_opening(state);
		putchar('\n');
	}
}

/* The states of some names; what went wrong with one must not hide the others. */
struct found {
	cJSON *document, *breakers;
	int status;
	const char *word, *message;
};

static const char *why_not(struct cbctl *cbctl, const char *name, int error)
{
	struct suggestion near;

	if (error == CBSHM_ERR_INVALID)
		return formatted("NAME must be 1 to %d bytes of valid UTF-8 without control "
				 "characters",
				 CBSHM_NAME_MAX);
	if (error != CBSHM_ERR_NOT_FOUND)
		return formatted("%s: %s", name, cbshm_strerror(error));
	segment_nearest(cbctl, name, &near);
	if (near.best[0] != '\0')
		return formatted("there is no breaker %s (so it counts as enabled); did you mean "
				 "%s?",
				 name, near.best);
	return formatted("there is no breaker %s (so it counts as enabled); cbctl list shows them",
			 name);
}

static void show_one(struct cbctl *cbctl, const char *name, struct found *found)
{
	struct cbshm_state state;
	const int error = segment_state(cbctl, name, &state);

	if (error != 0) {
		const char *message = why_not(cbctl, name, error);

		if (found->message == NULL) {
			found->status = error_status(error);
			found->word = error_word(error);
			found->message = message;
		}
		if (found->document == NULL)
			fail(found->status, found->word, "%s", message);
	} else if (found->document != NULL) {
		json_state(json_object(found->breakers, NULL), &state);
	} else {
		print_one(&state);
	}
}

static int run_some(struct cbctl *cbctl, const struct parsed *parsed)
{
	struct found found = {.status = STATUS_DONE};
	struct cbshm_health health;
	bool has_health;

	if (output_is_json()) {
		found.document = json_object(NULL, NULL);
		found.breakers = json_array(found.document, "breakers");
	}
	has_health = segment_warn(cbctl, &health);
	for (int i = 0; i < parsed->count; i++)
		show_one(cbctl, parsed->words[i], &found);
	if (found.document != NULL) {
		if (found.message != NULL) {
			json_text(found.document, "error", found.word);
			json_text(found.document, "message", found.message);
		}
		if (has_health)
			json_health(json_object(found.document, "health"), &health);
		json_print(found.document);
	}
	return found.status;
}

static int run_status(struct cbctl *cbctl, const struct parsed *parsed)
{
	int status;

	if (parsed->count == 0)
		return run_many(cbctl, true, "", print_disabled);
	status = segment_open(cbctl);
	return status != 0 ? status : run_some(cbctl, parsed);
}

const struct command command_status = {
	.name = "status",
	.arguments = "[NAME ...]",
	.summary = "what is disabled and why, or all about some; and the agent",
	.help = "Without names: every breaker that is disabled now, how many there are, and\n"
		"whether agent and database are there. With names: all that is known of each.\n"
		"Reads shared memory: it needs neither agent nor database.\n"
		"\n"
		"Exit status: 0, 7 if a NAME does not exist, others: see cbctl(1).\n",
	.least = 0,
	.most = -1,
	.run = run_status,
};

const struct command command_list = {
	.name = "list",
	.arguments = "[PREFIX] [--names]",
	.summary = "all breakers, by name",
	.help = "One line for each breaker, by name: state, name, and what there is to say.\n"
		"\n"
		"  PREFIX   only those whose names begin with it\n"
		"  --names  the names alone\n"
		"\n"
		"Reads shared memory: it needs neither agent nor database.\n",
	.options = list_options,
	.least = 0,
	.most = 1,
	.run = run_list,
};
