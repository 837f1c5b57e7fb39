/*
 * answer.h - what the agent answered: JSON taken apart
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef LIBCBSHM_ANSWER_H
#define LIBCBSHM_ANSWER_H

#include <stdbool.h>
#include <stddef.h>

#include <cjson/cJSON.h>

#include "cbshm.h"

/*
 * A whole reply: 0, and *parameters is an object of the reply's `root`; or the error that the agent
 * answered, with its message; or CBSHM_ERR_PROTOCOL. *root is to be deleted in any case.
 */
int answer_parse(const char *reply, struct cbshm_call *call, cJSON **root,
		 const cJSON **parameters);

/* Does the reply say that the agent could not read the call, and so has not carried it out? */
bool answer_is_malformed(const cJSON *root);

/* The parts of a reply. CBSHM_ERR_PROTOCOL if they are not what io.cbshm says. */
int answer_changed(const cJSON *parameters, struct cbshm_call *call, bool *changed);
int answer_incident_id(const cJSON *parameters, struct cbshm_call *call, char id[CBSHM_UUID_SIZE]);
int answer_incidents(const cJSON *parameters, struct cbshm_call *call,
		     struct cbshm_incident **incidents, size_t *count);
int answer_policy(const cJSON *parameters, struct cbshm_call *call, struct cbshm_policy *policy);

/* `fleet` is to be freed, whatever comes of it. */
int answer_fleet(const cJSON *parameters, struct cbshm_call *call, struct cbshm_fleet *fleet);

/*
 * Fills everything but `disabled` and `remaining_us`, which take a clock. answer_one_state(): of a
 * State object itself.
 */
int answer_state(const cJSON *parameters, struct cbshm_call *call, struct cbshm_state *state);
int answer_one_state(const cJSON *object, struct cbshm_call *call, struct cbshm_state *state);

#endif /* LIBCBSHM_ANSWER_H */
