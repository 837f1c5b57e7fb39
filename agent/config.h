/*
 * config.h - the configuration file of the agent, cbagent.conf(5)
 *
 * SPDX-License-Identifier: ISC
 *
 * Read once at start and again at SIGHUP, always as a whole: a file with one mistake changes nothing.
 */
#ifndef AGENT_CONFIG_H
#define AGENT_CONFIG_H

/* autoconf's: a file in this folder that says "config.h" finds this one. */
#include <config.h>

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "agent/log.h"

#define CONFIG_DEFAULT_PATH CBSHM_SYSCONFDIR "/cbshm/cbagent.conf"
#define CONFIG_NO_GROUP     ((gid_t)-1)

/* All strings are set, unless NULL is mentioned, and owned by the configuration. */
struct config {
	char *conninfo; /* [postgres]; "" = the defaults of libpq */

	char *segment_name; /* [segment] */
	uint32_t segment_capacity;
	mode_t segment_mode;
	char *snapshot;      /* a path; "" = off */
	gid_t segment_group; /* CONFIG_NO_GROUP = leave it as it is; likewise below */

	char *socket_path; /* [socket] */
	mode_t socket_mode;
	gid_t socket_group;
	gid_t admin_group;

	char *alertmanager_url;  /* [alertmanager]; a list of URLs, "" = none */
	char *bearer_token_file; /* NULL = none, likewise below */
	char *basic_auth_file;
	char *ca_file;
	char *runbook_url;
	unsigned resend_interval; /* seconds */

	char *metrics_listen; /* [metrics]; "" = off */
	unsigned metrics_breakers;

	char *host;     /* this machine's name; not a key */
	char *instance; /* [agent]; the host name unless given */
	enum log_level log_level;
};

/*
 * Reads a file (config_parse: a stream, with `path` for messages). Returns 0, or -errno with what is wrong
 * in `message`, "FILE:LINE: ..." and all mistakes of the file one on a line: -EINVAL for a wrong
 * file, else why it could not be read.
 */
int config_load(const char *path, struct config **config, char *message, size_t message_size);
int config_parse(FILE *file, const char *path, struct config **config, char *message,
		 size_t message_size);

/* NULL is fine. */
void config_free(struct config *config);

#endif /* AGENT_CONFIG_H */
