/*
 * segment.h - what the commands read from shared memory
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef CBCTL_SEGMENT_H
#define CBCTL_SEGMENT_H

#include <stdbool.h>
#include <stddef.h>

#include <cjson/cJSON.h>

#include "cbctl/cbctl.h"
#include "cbctl/suggest.h"

/* Opens cbctl->client. 0, or the exit status after an error has been printed. */
int client_open(struct cbctl *cbctl);

/* The same, and insists on a segment. */
int segment_open(struct cbctl *cbctl);

/* Whether the mirror is kept up to date, else why not. */
enum condition {
	CONDITION_GOOD,
	CONDITION_AGENT_DOWN,
	CONDITION_AGENT_HANGS,
	CONDITION_DATABASE_LOST,
};
enum condition condition_of(const struct cbshm_health *health);

/* "good", "agent_down", ...: for programs. */
const char *condition_word(enum condition condition);

/* What is wrong, since when, and what to do about it; NULL if all is well. Lives until output_end(). */
const char *condition_advice(const struct cbshm_health *health);

/* Warns on stderr if the mirror may be out of date, and says what to do. Fills *health, if there is a segment. */
bool segment_warn(struct cbctl *cbctl, struct cbshm_health *health);

/* The database's clock as this host knows it. */
int64_t database_now(struct cbctl *cbctl);

/* The state of one breaker: 0 or an error of cbshm_get_state(), or of cbshm_breaker_open(). */
int segment_state(struct cbctl *cbctl, const char *name, struct cbshm_state *state);

/* States, sorted by name. */
struct states {
	struct cbshm_state *list;
	size_t count;
	size_t total; /* all breakers, listed or not */
};

/* All breakers, or those that are disabled now, whose names begin with `prefix`. 0 or an error of the library. */
int segment_states(struct cbctl *cbctl, bool disabled_only, const char *prefix,
		   struct states *states);
void states_free(struct states *states);

/* Those of some names; of one that does not exist the version is 0 and the rest, but for its name, empty. */
int segment_states_of(struct cbctl *cbctl, const char *const *names, size_t count,
		      struct states *states);

/* The name in the segment that is nearest to a mistyped one, or "". */
void segment_nearest(struct cbctl *cbctl, const char *name, struct suggestion *near);

/* The name is in no slot of a segment that can be read; *near is the one that may have been meant. */
bool segment_lacks(struct cbctl *cbctl, const char *name, struct suggestion *near);

/* Warns that a write has made the breaker, with the name that may have been meant. */
void segment_warn_made(const char *name, const struct suggestion *near);

/* Warns, where nothing was found of a name (or NULL), if there is no breaker of it. */
void segment_warn_unknown(struct cbctl *cbctl, const char *name);

/* ---- printing a state ------------------------------------------------------------------- */

/* "ends 2030-... (in 3 h)", "until a person enables it", ...: when this opening will end. */
const char *state_end(const struct cbshm_state *state);

/* How long until this opening ends by itself: "1 h 59 min", or "never". */
const char *state_left(const struct cbshm_state *state);

/* The lines below the name: why, by whom, since when, until when. */
void state_print_opening(const struct cbshm_state *state);

/* Adds the fields of a state, of a health. */
void json_state(cJSON *object, const struct cbshm_state *state);
void json_health(cJSON *object, const struct cbshm_health *health);

#endif /* CBCTL_SEGMENT_H */
