/*
 * cmd_check.c - cbctl check: the engines' question, asked by a person or a script
 *
 * SPDX-License-Identifier: ISC
 */
#include "config.h"

#include <stdio.h>

#include "cbctl/output.h"
#include "cbctl/segment.h"

static void print_json(struct cbctl *cbctl, const char *name, struct cbshm_decision decision,
		       const struct cbshm_state *state, const struct suggestion *near)
{
	cJSON *document = json_object(NULL, NULL);
	struct cbshm_health health;

	json_text(document, "name", name);
	json_bool(document, "disabled", decision.disabled);
	json_bool(document, "known", decision.basis == CBSHM_BASIS_SEGMENT);
	json_whole(document, "epoch", decision.epoch);
	if (near != NULL && near->best[0] != '\0')
		json_text(document, "did_you_mean", near->best);
	if (state != NULL)
		json_state(json_object(document, "state"), state);
	if (cbshm_health(cbctl->client, &health) == 0)
		json_health(json_object(document, "health"), &health);
	json_print(document);
}

static void print_unknown(const char *name, const struct suggestion *near)
{
	printf("%s is enabled: there is no breaker of that name%s%s%s\n", clean(name),
	       near->best[0] != '\0' ? "; did you mean " : "", clean(near->best),
	       near->best[0] != '\0' ? "?" : "");
}

static void print_known(const char *name, bool disabled, const struct cbshm_state *state)
{
	printf("%s is %s\n", clean(name),
	       disabled ? coloured(COLOUR_BAD, "disabled") : coloured(COLOUR_GOOD, "enabled"));
	if (state != NULL && disabled)
		state_print_opening(state);
}

static int run(struct cbctl *cbctl, const struct parsed *parsed)
{
	const char *name = parsed->words[0];
	struct cbshm_breaker *breaker;
	struct cbshm_decision decision;
	struct cbshm_health health;
	struct cbshm_state state;
	struct suggestion near;
	bool has_state;
	int status = segment_open(cbctl);

	if (status != 0)
		return status;
	if (cbshm_breaker_open(cbctl->client, name, &breaker) != 0)
		return fail_usage(&command_check,
				  "NAME must be 1 to %d bytes of valid UTF-8 without control "
				  "characters",
				  CBSHM_NAME_MAX);
	decision = cbshm_check(breaker);
	has_state = cbshm_get_state(breaker, &state) == 0;
	cbshm_breaker_close(breaker);
	suggestion_begin(&near, name);
	if (decision.basis != CBSHM_BASIS_SEGMENT)
		segment_nearest(cbctl, name, &near);
	segment_warn(cbctl, &health);
	if (output_is_json())
		print_json(cbctl, name, decision, has_state ? &state : NULL, &near);
	else if (decision.basis == CBSHM_BASIS_SEGMENT)
		print_known(name, decision.disabled, has_state ? &state : NULL);
	else
		print_unknown(name, &near);
	return decision.disabled ? STATUS_DISABLED : STATUS_DONE;
}

const struct command command_check = {
	.name = "check",
	.arguments = "NAME",
	.summary = "is it enabled? exit status 0 if so, 1 if not",
	.help = "Answers as an engine's check does, from shared memory: it needs neither agent\n"
		"nor database. A breaker that does not exist counts as enabled.\n"
		"\n"
		"Exit status: 0 enabled, 1 disabled, 2 or more: no answer (see cbctl(1)).\n"
		"\n"
		"Example:\n"
		"  if cbctl check costsim_v2 >/dev/null; then ./new_path; else ./old_path; fi\n",
	.least = 1,
	.most = 1,
	.run = run,
};
