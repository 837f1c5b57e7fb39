/*
 * fleet.h - what cbctl says of the other hosts
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef CBCTL_FLEET_H
#define CBCTL_FLEET_H

#include <cjson/cJSON.h>

#include "cbctl/cbctl.h"

/* The option's entry in a command's table: --wait, or --wait=TIME, which is a duration. */
#define FLEET_WAIT_OPTION       \
	{                       \
		"wait", "=TIME" \
	}
#define FLEET_WAIT_ARGUMENT "[--wait[=TIME]]"

/* `value`: of --wait, NULL if it was not given. 0, or the exit status after the mistake has been printed. */
int fleet_parse(const struct command *command, const char *value, int *timeout_ms);

/*
 * Waits until every host has what was just committed, if timeout_ms is not 0, and says what came of
 * it: for people, or as "fleet" in `document` (not NULL with --json). Returns the exit status.
 */
int fleet_wait(struct cbctl *cbctl, int timeout_ms, cJSON *document);

/* "on 43 of 43 hosts, slowest 3.1 ms". Lives until output_end(). */
const char *fleet_words(const struct cbshm_fleet *fleet);

/* "fleet" in the document: what cbshm_wait_fleet() said. */
void fleet_json(cJSON *document, int error, const struct cbshm_call *call,
		const struct cbshm_fleet *fleet);

/* "web7", "web7/second (cbagent 0.0.9)". Lives until output_end(). */
const char *fleet_name(const char *host, const char *instance, const char *version);

#endif /* CBCTL_FLEET_H */
