/*
 * target.h - where a conninfo leads: its servers one by one, and how to connect to them
 *
 * SPDX-License-Identifier: ISC
 *
 * Adds to the user's settings what the agent needs, and takes the list of servers apart, so that
 * names can be looked up beforehand and a server that hangs can be put last. No I/O but the
 * environment (PGHOST).
 */
#ifndef AGENT_TARGET_H
#define AGENT_TARGET_H

#include <stdbool.h>
#include <stdint.h>

#include "agent/resolver.h"

#define TARGET_SERVERS_MAX  32
#define TARGET_SETTINGS_MAX 64
#define TARGET_NONE         TARGET_SERVERS_MAX /* no server's number */

struct target;

/* NULL: the conninfo is wrong (config.c has checked it before). */
struct target *target_new(const char *conninfo);
void target_free(struct target *target);

/* The names that have to be looked up, at most TARGET_SERVERS_MAX; they live as long as the target. */
unsigned target_names(const struct target *target, const char *names[TARGET_SERVERS_MAX]);

/* Puts addresses for names. Servers without any are left out; returns how many there are. */
unsigned target_resolve(struct target *target, const struct resolution *resolutions,
			unsigned count);

/*
 * How long to wait for them, in microseconds, after so many failures in a row. Where there are several, one that hangs is soon
 * put last; if all have been, they are given more time.
 */
int64_t target_timeout(const struct target *target, unsigned failures);

/*
 * For PQconnectStartParams(), ending with NULL: the servers beginning with number `first` (modulo their
 * number), then those before it. Valid until the next call or target_free().
 */
void target_settings(struct target *target, unsigned first, const char *const **keywords,
		     const char *const **values);

/* The number of the server to which a connection leads, see connection_peer(); TARGET_NONE if it cannot be told. */
unsigned target_find(const struct target *target, const char *host, const char *address,
		     const char *port);

/* How many servers there are of which only one is wanted, that which takes writes; 0 if another one would do. */
unsigned target_choice(const struct target *target);

/* As target_settings(), for this server alone. */
void target_one(struct target *target, unsigned server, const char *const **keywords,
		const char *const **values);

#endif /* AGENT_TARGET_H */
