/*
 * resolver.h - host names to addresses, without stopping the event loop
 *
 * SPDX-License-Identifier: ISC
 *
 * libpq looks names up while the caller waits. getaddrinfo(3) in a thread of its own is asked instead: unlike a DNS
 * client it honours nsswitch.conf(5), so names mean what they mean to every other program.
 */
#ifndef AGENT_RESOLVER_H
#define AGENT_RESOLVER_H

#define RESOLVER_ADDRESSES_MAX 8

struct event_base;
struct resolver;

struct resolution {
	char *host;
	char addresses[RESOLVER_ADDRESSES_MAX][64]; /* numeric, in the order to try them */
	unsigned count;                             /* 0: unknown, or the lookup failed */
	const char *error;                          /* then why; static */
};

typedef void resolver_done(const struct resolution *resolutions, unsigned count, void *arg);

/* Looks all names up; `done` is called once from the event loop. NULL: no thread could be made (errno). */
struct resolver *resolver_start(struct event_base *base, const char *const *hosts, unsigned count,
				resolver_done *done, void *arg);

/* Lets go, before or after `done`; must be called. NULL is fine. Does not wait for a lookup under way. */
void resolver_free(struct resolver *resolver);

#endif /* AGENT_RESOLVER_H */
