/*
 * cbctl.h - what the commands of cbctl share
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef CBCTL_CBCTL_H
#define CBCTL_CBCTL_H

#include <stdbool.h>

#include "cbctl/options.h"
#include "cbshm.h"

/* Exit statuses; cbctl(1) documents them. */
enum exit_status {
	STATUS_DONE = 0,
	STATUS_DISABLED = 1,   /* `check` only */
	STATUS_USAGE = 2,      /* an argument is missing, unknown or out of range */
	STATUS_NO_SEGMENT = 3, /* none, damaged, or not to be trusted; the socket likewise */
	STATUS_DOWN = 4,       /* agent or database away, deadline passed: nothing applied */
	STATUS_DENIED = 5,
	STATUS_UNKNOWN = 6, /* the answer is lost: it may have been applied */
	STATUS_OTHER = 7,   /* not found, refused, and everything else */
	STATUS_BEHIND = 8,  /* done, but not known to be in force on every host */
};

struct cbctl {
	const char *socket;  /* --socket, or NULL */
	const char *segment; /* --segment, or NULL */
	struct cbshm *client;
};

struct command {
	const char *name;
	const char *arguments;        /* as the usage shows them */
	const char *summary;          /* one line for the list of commands */
	const char *help;             /* what its --help says below the usage */
	const struct option *options; /* ends with a NULL name; NULL: none */
	int least, most;              /* how many words it takes; most < 0: any number */
	int (*run)(struct cbctl *cbctl, const struct parsed *parsed);
};

extern const struct command command_check, command_status, command_list, command_incidents,
	command_disable, command_enable, command_reset, command_drift, command_schema_error,
	command_policy, command_migrate, command_watch, command_bench, command_agents, command_log,
	command_alerts;

#endif /* CBCTL_CBCTL_H */
