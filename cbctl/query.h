/*
 * query.h - what only operators ask the agent: methods that libcbshm has no function for
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef CBCTL_QUERY_H
#define CBCTL_QUERY_H

#include <cjson/cJSON.h>

#include "cbctl/cbctl.h"

/*
 * Calls `method` of io.cbshm; takes `parameters` over. 0, and *answer is the reply's parameters, to
 * be deleted; or the exit status after the error has been printed.
 */
int query_agent(struct cbctl *cbctl, const char *method, cJSON *parameters, cJSON **answer);

/* A --limit from 1 to 1000 into `parameters`, if it was given. 0, or the exit status after the mistake was printed. */
int query_limit(const struct command *command, const char *text, cJSON *parameters);

/* Fields of a reply. Texts that are missing or null are ""; times likewise CBSHM_NO_TIME, numbers 0. */
const char *query_text(const cJSON *object, const char *name);
int64_t query_time(const cJSON *object, const char *name);
int64_t query_whole(const cJSON *object, const char *name);
bool query_bool(const cJSON *object, const char *name);

#endif /* CBCTL_QUERY_H */
