/*
 * segment.c - reads breakers and the health of the mirror, and says them
 *
 * SPDX-License-Identifier: ISC
 *
 * Asks nobody: everything here works with the agent and the database dead.
 */
#include "config.h"

#include "cbctl/segment.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cbctl/output.h"
#include "cbctl/timespec.h"

#define DATABASE_LATE_US INT64_C(30000000) /* about 1 s is normal */

/* ---- opening ---------------------------------------------------------------------------- */

int client_open(struct cbctl *cbctl)
{
	const struct cbshm_options options = {
		.size = sizeof(options), .segment = cbctl->segment, .socket = cbctl->socket};
	int error = 0;

	if (cbctl->client == NULL)
		error = cbshm_open(&options, &cbctl->client);
	if (error == CBSHM_ERR_INVALID)
		return fail(STATUS_USAGE, "invalid",
			    "the segment must be a name such as /cbshm, the socket a path of at "
			    "most 107 bytes, and the owner a user that exists: see --segment, "
			    "--socket, CBSHM_SEGMENT, CBSHM_SOCKET and CBSHM_OWNER");
	return error != 0 ? fail_library(error, NULL) : 0;
}

/* As cbshm_open() has it. */
static const char *setting(const char *option, const char *variable, const char *otherwise)
{
	const char *environment = getenv(variable);

	if (option != NULL)
		return option;
	return environment != NULL && environment[0] != '\0' ? environment : otherwise;
}

int segment_open(struct cbctl *cbctl)
{
	int error = client_open(cbctl);
	const char *name = setting(cbctl->segment, "CBSHM_SEGMENT", "/cbshm");
	const char *socket = setting(cbctl->socket, "CBSHM_SOCKET", "/run/cbshm/io.cbshm");

	if (error != 0)
		return error;
	errno = 0;
	error = cbshm_segment_status(cbctl->client);
	switch (error) {
	case 0:
		return 0;
	case CBSHM_ERR_NO_SEGMENT:
		return fail(STATUS_NO_SEGMENT, error_word(error),
			    "there is no segment %s in /dev/shm, and no agent at %s that hands one "
			    "out, so engines take every breaker for enabled: has cbagent ever run "
			    "here? systemctl status cbagent",
			    name, socket);
	case CBSHM_ERR_UNTRUSTED:
		return fail(STATUS_NO_SEGMENT, error_word(error),
			    "the segment %s is not to be trusted: it must belong to this user, "
			    "root or the agent's user ($CBSHM_OWNER, else cbagent), and others "
			    "must not be able to write it; see ls -l /dev/shm%s%s, or %s if that "
			    "hands it out",
			    name, name[0] == '/' ? "" : "/", name, socket);
	case CBSHM_ERR_DENIED:
		return fail(STATUS_DENIED, "denied",
			    "there is no segment %s in /dev/shm, and the agent at %s does not give "
			    "it to this user: it takes membership in the segment's group",
			    name, socket);
	case CBSHM_ERR_TIMEOUT:
	case CBSHM_ERR_REFUSED:
	case CBSHM_ERR_PROTOCOL:
		return fail(error_status(error), error_word(error),
			    "there is no segment %s in /dev/shm, and the agent at %s does not hand "
			    "it out now (%s): systemctl status cbagent",
			    name, socket, cbshm_strerror(error));
	case CBSHM_ERR_LAYOUT:
		return fail(STATUS_NO_SEGMENT, error_word(error),
			    "the segment %s is damaged, or of another version than this cbctl: "
			    "systemctl restart cbagent makes it anew",
			    name);
	default:
		if (errno == EACCES)
			return fail(STATUS_DENIED, "denied",
				    "this user may not read the segment %s: it takes membership "
				    "in its group, see ls -l /dev/shm%s%s",
				    name, name[0] == '/' ? "" : "/", name);
		return fail(STATUS_NO_SEGMENT, error_word(error), "cannot read the segment %s: %s",
			    name, errno != 0 ? strerror(errno) : cbshm_strerror(error));
	}
}

/* ---- health ----------------------------------------------------------------------------- */

static const char *age(int64_t us)
{
	char text[64];

	if (us == CBSHM_NO_TIME)
		return "an unknown time";
	duration_format(us, text, sizeof(text));
	return formatted("%s", text);
}

enum condition condition_of(const struct cbshm_health *health)
{
	if (!health->agent_alive)
		return CONDITION_AGENT_DOWN;
	if (health->agent_hung)
		return CONDITION_AGENT_HANGS;
	if (!health->database_live || health->database_age_us > DATABASE_LATE_US)
		return CONDITION_DATABASE_LOST;
	return CONDITION_GOOD;
}

const char *condition_word(enum condition condition)
{
	static const char *const words[] = {
		[CONDITION_GOOD] = "good",
		[CONDITION_AGENT_DOWN] = "agent_down",
		[CONDITION_AGENT_HANGS] = "agent_hangs",
		[CONDITION_DATABASE_LOST] = "database_lost",
	};

	return words[condition];
}

const char *condition_advice(const struct cbshm_health *health)
{
	switch (condition_of(health)) {
	case CONDITION_AGENT_DOWN:
		return formatted("cbagent is not running: this is the state of %s ago, and engines "
				 "go on with it; systemctl start cbagent",
				 age(health->heartbeat_age_us));
	case CONDITION_AGENT_HANGS:
		return formatted("cbagent has been hanging for %s: this is the state of then; "
				 "systemctl status cbagent, then systemctl restart cbagent",
				 age(health->heartbeat_age_us));
	case CONDITION_DATABASE_LOST:
		return formatted("cbagent has had no news from Postgres for %s: this is the state "
				 "of then; journalctl -u cbagent says why",
				 age(health->database_age_us));
	case CONDITION_GOOD:
		break;
	}
	return NULL;
}

bool segment_warn(struct cbctl *cbctl, struct cbshm_health *health)
{
	const char *advice;

	if (cbctl->client == NULL || cbshm_health(cbctl->client, health) != 0)
		return false;
	advice = condition_advice(health);
	if (advice != NULL)
		warn("%s", advice);
	return true;
}

int64_t database_now(struct cbctl *cbctl)
{
	struct cbshm_health health;
	struct timespec now;
	int64_t offset = 0;

	if (cbctl->client != NULL && cbshm_health(cbctl->client, &health) == 0)
		offset = health.clock_offset_us;
	clock_gettime(CLOCK_REALTIME, &now);
	return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000 + offset;
}

/* ---- states ----------------------------------------------------------------------------- */

int segment_state(struct cbctl *cbctl, const char *name, struct cbshm_state *state)
{
	struct cbshm_breaker *breaker;
	int error = cbshm_breaker_open(cbctl->client, name, &breaker);

	if (error != 0)
		return error;
	error = cbshm_get_state(breaker, state);
	cbshm_breaker_close(breaker);
	return error;
}

struct collecting {
	struct states *states;
	size_t room;
	bool disabled_only;
	const char *prefix;
	size_t prefix_length;
};

static int collect(const struct cbshm_state *state, void *arg)
{
	struct collecting *collecting = arg;
	struct states *states = collecting->states;

	states->total++;
	if ((collecting->disabled_only && !state->disabled) ||
	    strncmp(state->name, collecting->prefix, collecting->prefix_length) != 0)
		return 0;
	if (states->count == collecting->room) {
		const size_t room = collecting->room > 0 ? collecting->room * 2 : 64;
		struct cbshm_state *list = realloc(states->list, room * sizeof(*list));

		if (list == NULL)
			return CBSHM_ERR_MEMORY;
		states->list = list;
		collecting->room = room;
	}
	states->list[states->count++] = *state;
	return 0;
}

static int compare(const void *a, const void *b)
{
	return strcmp(((const struct cbshm_state *)a)->name, ((const struct cbshm_state *)b)->name);
}

int segment_states(struct cbctl *cbctl, bool disabled_only, const char *prefix,
		   struct states *states)
{
	struct collecting collecting = {.states = states,
					.disabled_only = disabled_only,
					.prefix = prefix,
					.prefix_length = strlen(prefix)};
	int error;

	memset(states, 0, sizeof(*states));
	error = cbshm_foreach(cbctl->client, collect, &collecting);
	if (error != 0)
		states_free(states);
	else if (states->count > 0)
		qsort(states->list, states->count, sizeof(*states->list), compare);
	return error;
}

int segment_states_of(struct cbctl *cbctl, const char *const *names, size_t count,
		      struct states *states)
{
	int error;

	memset(states, 0, sizeof(*states));
	states->list = calloc(count, sizeof(*states->list));
	if (states->list == NULL)
		return CBSHM_ERR_MEMORY;
	for (size_t i = 0; i < count; i++) {
		struct cbshm_state *state = &states->list[i];

		error = segment_state(cbctl, names[i], state);
		if (error == CBSHM_ERR_NOT_FOUND) {
			memset(state, 0, sizeof(*state));
			snprintf(state->name, sizeof(state->name), "%s", names[i]);
		} else if (error != 0) {
			states_free(states);
			return error;
		}
	}
	states->count = states->total = count;
	qsort(states->list, count, sizeof(*states->list), compare);
	return 0;
}

void states_free(struct states *states)
{
	free(states->list);
	memset(states, 0, sizeof(*states));
}

static int consider(const struct cbshm_state *state, void *arg)
{
	suggestion_consider(arg, state->name);
	return 0;
}

void segment_nearest(struct cbctl *cbctl, const char *name, struct suggestion *near)
{
	suggestion_begin(near, name);
	if (cbctl->client == NULL || cbshm_foreach(cbctl->client, consider, near) != 0)
		near->best[0] = '\0';
}

bool segment_lacks(struct cbctl *cbctl, const char *name, struct suggestion *near)
{
	struct cbshm_state state;

	if (segment_state(cbctl, name, &state) != CBSHM_ERR_NOT_FOUND)
		return false;
	segment_nearest(cbctl, name, near);
	return true;
}

void segment_warn_made(const char *name, const struct suggestion *near)
{
	warn("there was no breaker %s, it has been made%s%s%s", name,
	     near->best[0] != '\0' ? "; did you mean " : "", near->best,
	     near->best[0] != '\0' ? "?" : "");
}

void segment_warn_unknown(struct cbctl *cbctl, const char *name)
{
	struct suggestion near;

	if (name != NULL && segment_lacks(cbctl, name, &near))
		warn("there is no breaker %s%s%s%s", name,
		     near.best[0] != '\0' ? "; did you mean " : "", near.best,
		     near.best[0] != '\0' ? "?" : "");
}

/* ---- printing --------------------------------------------------------------------------- */

/* What is left is counted on the clock that decides, not on this host's wall clock. */
const char *state_end(const struct cbshm_state *state)
{
	char time_text[64], left[64];

	if (state->disabled_until == CBSHM_NO_TIME)
		return "never by itself: a person must enable it";
	if (!state->policy.auto_recover)
		return formatted("never by itself (auto_recover is off); due %s",
				 time_and_distance(state->disabled_until));
	time_format(state->disabled_until, time_text, sizeof(time_text));
	duration_format(state->remaining_us, left, sizeof(left));
	return formatted("%s (in %s)", time_text, left);
}

const char *state_left(const struct cbshm_state *state)
{
	char text[64];

	if (state->remaining_us == CBSHM_NO_TIME || !state->policy.auto_recover)
		return "never";
	duration_format(state->remaining_us, text, sizeof(text));
	return formatted("%s", text);
}

void state_print_opening(const struct cbshm_state *state)
{
	if (!state->row_disabled)
		return;
	printf("  reason    %s%s\n", clean(state->disabled_reason),
	       state->flags & CBSHM_STATE_REASON_CUT ? "..." : "");
	printf("  by        %s%s\n", clean(state->disabled_by),
	       state->flags & CBSHM_STATE_ACTOR_CUT ? "..." : "");
	if (state->opened_at != CBSHM_NO_TIME)
		printf("  since     %s\n", time_and_distance(state->opened_at));
	if (state->disabled)
		printf("  ends      %s\n", state_end(state));
	else
		printf("  ended     %s; the agent has yet to commit that\n",
		       time_and_distance(state->disabled_until));
	if (state->incident_id[0] != '\0')
		printf("  incident  %s\n", state->incident_id);
}

static const char *or_null(const char *text)
{
	return text[0] != '\0' ? text : NULL;
}

void json_state(cJSON *object, const struct cbshm_state *state)
{
	json_text(object, "name", state->name);
	json_bool(object, "is_open", state->disabled);
	json_bool(object, "row_disabled", state->row_disabled);
	json_time(object, "opened_at", state->opened_at);
	json_text(object, "reason", or_null(state->disabled_reason));
	json_bool(object, "reason_cut", state->flags & CBSHM_STATE_REASON_CUT);
	json_text(object, "disabled_by", or_null(state->disabled_by));
	json_bool(object, "disabled_by_cut", state->flags & CBSHM_STATE_ACTOR_CUT);
	json_time(object, "disabled_until", state->disabled_until);
	if (state->remaining_us == CBSHM_NO_TIME)
		json_text(object, "remaining_seconds", NULL);
	else
		json_number(object, "remaining_seconds", (double)state->remaining_us / 1e6);
	json_text(object, "incident_id", or_null(state->incident_id));
	json_whole(object, "consecutive_failures", state->consecutive_failures);
	json_time(object, "last_failure_at", state->last_failure_at);
	json_whole(object, "version", (int64_t)state->version);
	json_time(object, "updated_at", state->updated_at);
	json_policy(json_object(object, "policy"), &state->policy);
}

static void json_age(cJSON *object, const char *name, int64_t us)
{
	if (us == CBSHM_NO_TIME)
		json_text(object, name, NULL);
	else
		json_number(object, name, (double)us / 1e6);
}

void json_health(cJSON *object, const struct cbshm_health *health)
{
	json_bool(object, "agent_alive", health->agent_alive);
	json_bool(object, "agent_hung", health->agent_hung);
	json_bool(object, "database_live", health->database_live);
	json_bool(object, "restored", health->restored);
	json_age(object, "heartbeat_age_seconds", health->heartbeat_age_us);
	json_age(object, "database_age_seconds", health->database_age_us);
	json_whole(object, "boot_epoch", (int64_t)health->boot_epoch);
	json_whole(object, "breakers", health->breakers);
	json_whole(object, "capacity", health->capacity);
}
