/*
 * cmd_watch.c - cbctl watch: what changes, as it changes
 *
 * SPDX-License-Identifier: ISC
 *
 * Looks at the segment again and again, and compares. On a terminal that makes a table (watch_table.c), else a line
 * for each difference. Reads shared memory alone, so that it can tell of an agent that dies.
 */
#include "config.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cbctl/output.h"
#include "cbctl/screen.h"
#include "cbctl/segment.h"
#include "cbctl/timespec.h"
#include "cbctl/watch.h"

#define LINES_WAIT_MS \
	1000 /* how long to sleep while nothing changes; a reader that has gone waits for it */
#define SCREEN_WAIT_MS 100 /* likewise; keys and a new size of the terminal wait for it */

/* ---- looking ---------------------------------------------------------------------------- */

static void look_again(struct cbctl *cbctl, const struct parsed *parsed, struct look *look)
{
	memset(look, 0, sizeof(*look));
	look->by_names = parsed->count > 0;
	look->now = database_now(cbctl);
	look->error = cbshm_health(cbctl->client, &look->health);
	if (look->error == 0 && look->by_names)
		look->error = segment_states_of(cbctl, parsed->words, (size_t)parsed->count,
						&look->states);
	else if (look->error == 0)
		look->error = segment_states(cbctl, false, "", &look->states);
	for (size_t i = 0; i < look->states.count; i++)
		look->disabled += look->states.list[i].disabled;
}

/* The end of the next TTL is a change that nobody announces: milliseconds until then, at most `most`. */
static int until_next_end(const struct look *look, int most)
{
	for (size_t i = 0; i < look->states.count; i++) {
		const struct cbshm_state *state = &look->states.list[i];

		if (state->disabled && state->policy.auto_recover &&
		    state->remaining_us != CBSHM_NO_TIME && state->remaining_us / 1000 < most)
			most = (int)(state->remaining_us / 1000) + 1;
	}
	return most;
}

/*
 * Sleeps until something changes, but no longer than so many milliseconds. `seen` is what the library knows us to have
 * seen. True if something has changed.
 */
static bool wait_for_change(struct cbctl *cbctl, const struct look *look, uint64_t *seen, int most)
{
	const int timeout = until_next_end(look, most);
	const int error = cbshm_wait(cbctl->client, NULL, 0, seen, timeout);

	if (error == CBSHM_ERR_SYSTEM && errno != EINTR)
		poll(NULL, 0, timeout);
	return error != CBSHM_ERR_TIMEOUT || timeout < most;
}

static bool output_is_read(void)
{
	struct pollfd output = {.fd = STDOUT_FILENO};

	return poll(&output, 1, 0) <= 0 || !(output.revents & (POLLERR | POLLNVAL));
}

/* ---- lines ------------------------------------------------------------------------------ */

static cJSON *json_event(const struct look *look, const char *event)
{
	cJSON *document = json_object(NULL, NULL);

	json_time(document, "time", look->now);
	json_text(document, "event", event);
	return document;
}

static void print_line(const struct look *look, const char *event, const char *text)
{
	char time_text[64];

	time_format(look->now, time_text, sizeof(time_text));
	printf("%s  %-8s  %s\n", time_text, event, text);
}

/* What a line says of a breaker, after its name. */
static const char *state_words(const char *event, const struct cbshm_state *before,
			       const struct cbshm_state *now)
{
	const struct cbshm_policy *policy = &now->policy;
	const bool ends = now->remaining_us != CBSHM_NO_TIME && policy->auto_recover;
	char lasted[64];

	if (strcmp(event, "disabled") == 0)
		return formatted("  %s%s, %s%s (%s)", ends ? "ends in " : "",
				 ends ? state_left(now) : "for good", clean(now->disabled_reason),
				 now->flags & CBSHM_STATE_REASON_CUT ? "..." : "",
				 clean(now->disabled_by));
	if (strcmp(event, "enabled") == 0 && now->row_disabled)
		return "  its time is up";
	if (strcmp(event, "enabled") == 0 && before->opened_at != CBSHM_NO_TIME) {
		duration_format(now->updated_at - before->opened_at, lasted, sizeof(lasted));
		return formatted("  after %s", lasted);
	}
	if (strcmp(event, "failures") == 0)
		return formatted("  %u of %u in a row", now->consecutive_failures,
				 policy->failure_threshold);
	if (strcmp(event, "policy") == 0)
		return formatted("  drift > %g, %u failures, %u schema errors, %g h, %s",
				 policy->drift_threshold, policy->failure_threshold,
				 policy->schema_error_threshold,
				 (double)policy->default_ttl_us / 3.6e9,
				 policy->auto_recover ? "auto_recover" : "no auto_recover");
	return "";
}

static void tell_breaker(const struct look *look, const char *event,
			 const struct cbshm_state *before, const struct cbshm_state *now)
{
	cJSON *document;

	if (!output_is_json()) {
		print_line(look, event,
			   formatted("%s%s", clean(now->name), state_words(event, before, now)));
		return;
	}
	document = json_event(look, event);
	json_text(document, "name", now->name);
	if (now->version > 0)
		json_state(json_object(document, "state"), now);
	json_print(document);
}

static bool same_policy(const struct cbshm_policy *a, const struct cbshm_policy *b)
{
	return a->drift_threshold == b->drift_threshold &&
	       a->failure_threshold == b->failure_threshold &&
	       a->schema_error_threshold == b->schema_error_threshold &&
	       a->default_ttl_us == b->default_ttl_us && a->auto_recover == b->auto_recover;
}

/* What has become of a breaker; NULL: nothing that is told. Version 0: it does not exist. */
static const char *difference(const struct cbshm_state *before, const struct cbshm_state *now)
{
	if (now->version == 0)
		return before->version != 0 ? "deleted" : NULL;
	if (now->disabled && (!before->disabled || before->disabled_until != now->disabled_until ||
			      strcmp(before->incident_id, now->incident_id) != 0))
		return "disabled";
	if (before->version == 0)
		return "created";
	if (before->disabled && !now->disabled)
		return "enabled";
	if (before->consecutive_failures != now->consecutive_failures)
		return "failures";
	return same_policy(&before->policy, &now->policy) ? NULL : "policy";
}

/* Both lists are sorted: goes through them side by side. */
static void tell_breakers(const struct look *before, const struct look *now)
{
	const struct states *old = &before->states, *new = &now->states;
	size_t i = 0, j = 0;

	while (i < old->count || j < new->count) {
		struct cbshm_state none = {.version = 0};
		const struct cbshm_state *a = i < old->count ? &old->list[i] : NULL;
		const struct cbshm_state *b = j < new->count ? &new->list[j] : NULL;
		const int order = a == NULL ? 1 : b == NULL ? -1 : strcmp(a->name, b->name);
		const char *event;

		i += order <= 0;
		j += order >= 0;
		snprintf(none.name, sizeof(none.name), "%s", order <= 0 ? a->name : b->name);
		a = order <= 0 ? a : &none;
		b = order >= 0 ? b : &none;
		event = difference(a, b);
		if (event != NULL)
			tell_breaker(now, event, a, b);
	}
}

static const char *look_condition(const struct look *look)
{
	return look->error != 0 ? error_word(look->error)
				: condition_word(condition_of(&look->health));
}

static void tell_condition(const struct look *look)
{
	const char *advice = look->error == 0 ? condition_advice(&look->health) : NULL;
	cJSON *document;

	if (!output_is_json()) {
		print_line(look, "health",
			   look->error != 0 ? cbshm_strerror(look->error)
			   : advice != NULL ? advice
					    : "agent and database are there, the mirror is up to "
					      "date");
		return;
	}
	document = json_event(look, "health");
	json_text(document, "condition", look_condition(look));
	if (look->error == 0)
		json_health(json_object(document, "health"), &look->health);
	json_print(document);
}

static void tell_start(const struct look *look)
{
	static const struct cbshm_state none = {.version = 0};
	cJSON *document;

	if (output_is_json()) {
		document = json_event(look, "start");
		json_whole(document, "disabled", (int64_t)look->disabled);
		json_whole(document, "total", (int64_t)look->states.total);
		json_print(document);
	} else {
		print_line(look, "start",
			   formatted("%zu of %zu %sdisabled", look->disabled, look->states.total,
				     look->by_names ? "" : "breakers are "));
	}
	for (size_t i = 0; i < look->states.count; i++) {
		if (look->states.list[i].disabled)
			tell_breaker(look, "disabled", &none, &look->states.list[i]);
	}
}

static int run_lines(struct cbctl *cbctl, const struct parsed *parsed)
{
	const char *condition = condition_word(CONDITION_GOOD);
	struct look before, now;
	uint64_t seen = 0;

	look_again(cbctl, parsed, &before);
	tell_start(&before);
	now = before;
	while (true) {
		if (strcmp(condition, look_condition(&now)) != 0)
			tell_condition(&now);
		condition = look_condition(&now);
		output_forget();
		if (fflush(stdout) != 0 || !output_is_read())
			break;
		wait_for_change(cbctl, &before, &seen, LINES_WAIT_MS);
		look_again(cbctl, parsed, &now);
		/* A segment that cannot be read tells nothing of its breakers. */
		if (now.error == 0) {
			tell_breakers(&before, &now);
			states_free(&before.states);
			before = now;
		}
	}
	states_free(&before.states);
	return STATUS_DONE;
}

/* ---- the table -------------------------------------------------------------------------- */

/* Times are shown in seconds, and so a page of the second before is old. */
static int64_t second_of(struct cbctl *cbctl)
{
	return database_now(cbctl) / 1000000;
}

static int run_screen(struct cbctl *cbctl, const struct parsed *parsed)
{
	struct look look = {.error = 0};
	bool is_old = true;
	uint64_t seen = 0;

	screen_enter();
	while (screen_goes_on()) {
		if (is_old || screen_is_stale() || second_of(cbctl) != look.now / 1000000) {
			states_free(&look.states);
			look_again(cbctl, parsed, &look);
			watch_draw(&look);
			output_forget();
		}
		is_old = wait_for_change(cbctl, &look, &seen, SCREEN_WAIT_MS);
	}
	states_free(&look.states);
	screen_leave();
	return STATUS_DONE;
}

static int run(struct cbctl *cbctl, const struct parsed *parsed)
{
	const int status = segment_open(cbctl);

	if (status != 0)
		return status;
	for (int i = 0; i < parsed->count; i++) {
		struct cbshm_breaker *breaker;

		if (cbshm_breaker_open(cbctl->client, parsed->words[i], &breaker) != 0)
			return fail_usage(&command_watch,
					  "NAME must be 1 to %d bytes of valid UTF-8 without "
					  "control characters",
					  CBSHM_NAME_MAX);
		cbshm_breaker_close(breaker);
		/* It may come, or be mistyped; the table covers this until it ends. */
		segment_warn_unknown(cbctl, parsed->words[i]);
	}
	return screen_possible() && !output_is_json() ? run_screen(cbctl, parsed)
						      : run_lines(cbctl, parsed);
}

const struct command command_watch = {
	.name = "watch",
	.arguments = "[NAME ...]",
	.summary = "the breakers, or some of them, as they change",
	.help = "On a terminal: a table that follows the segment; q or ^C ends it. Else: a line\n"
		"for each change, the first ones being what is disabled at the start; with\n"
		"--json, one JSON object a line. Both tell when the agent dies and comes back.\n"
		"Reads shared memory: it needs neither agent nor database.\n"
		"\n"
		"What a line can be about (\"event\" of --json):\n"
		"  start              how many are disabled to begin with\n"
		"  disabled, enabled  the decision, or why and how long it holds\n"
		"  created, deleted   a breaker\n"
		"  failures, policy   bad reports in a row; the thresholds\n"
		"  health             whether agent and database keep this up to date\n"
		"\n"
		"Example:\n"
		"  cbctl watch --json | jq -r 'select(.event == \"disabled\").name'\n",
	.least = 0,
	.most = -1,
	.run = run,
};
