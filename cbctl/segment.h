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

/* All breakers, or those that are disabled now. 0 or an error of the library. */
int segment_states(struct cbctl *cbctl, bool disabled_only, struct states *states);
void states_free(struct states *states);

/* The name in the segment that is nearest to a mistyped one, or "". */
void segment_nearest(struct cbctl *cbctl, const char *name, struct suggestion *near);

/* ---- printing a state ------------------------------------------------------------------- */

/* "ends 2030-... (in 3 h)", "until a person enables it", ...: when this opening will end. */
const char *state_end(const struct cbshm_state *state);

/* The lines below the name: why, by whom, since when, until when. */
void state_print_opening(const struct cbshm_state *state);

/* Adds the fields of a state, of a health. */
void json_state(cJSON *object, const struct cbshm_state *state);
void json_health(cJSON *object, const struct cbshm_health *health);

#endif /* CBCTL_SEGMENT_H */
