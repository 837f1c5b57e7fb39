/*
 * alertmanager.h - brings alerts to the members of an Alertmanager cluster
 *
 * SPDX-License-Identifier: ISC
 *
 * Knows HTTP and nothing of the queue. Every member gets every alert: members of a cluster tell each other what they
 * have notified of, but not which alerts they have.
 */
#ifndef AGENT_ALERTMANAGER_H
#define AGENT_ALERTMANAGER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct alertmanager;
struct config;
struct delivery;
struct event_base;

#define ALERTMANAGER_MEMBERS_MAX 16

/* What came of a post to one member. */
enum post_result {
	POST_ACCEPTED,
	POST_REFUSED,  /* the member says that these alerts are wrong */
	POST_STATUS,   /* it is in trouble itself */
	POST_LOOKUP,   /* its name leads nowhere */
	POST_CONNECT,  /* there was no connection, or it broke before the answer */
	POST_TLS,      /* its certificate is refused, or it speaks no TLS of ours */
	POST_TIMEOUT,  /* it did not answer in time */
	POST_INTERNAL, /* it was not asked: no credentials, no thread, ... */
	POST_RESULTS
};

/* "accepted" and so on. */
const char *post_result_name(enum post_result result);

enum delivery_end {
	DELIVERY_ACCEPTED, /* by every member */
	DELIVERY_REFUSED,  /* a member says that these alerts are wrong, and none says nothing */
	DELIVERY_FAILED,   /* a member could not be asked, or is in trouble itself */
};

/* `reason` is for people; "" if accepted. Valid until delivery_free(). */
typedef void delivery_done(enum delivery_end end, const char *reason, void *arg);

/* Is this list of URLs, between commas or blanks, right? If not: why, in `reason`. */
bool alertmanager_check(const char *urls, char *reason, size_t size);

/*
 * The members that the configuration names; NULL if it names none. Keeps no pointers into it. Every post is counted in
 * `posts`, by its result.
 */
struct alertmanager *alertmanager_new(struct event_base *base, const struct config *config,
				      uint64_t posts[POST_RESULTS]);

/* NULL is fine. There must be no deliveries. */
void alertmanager_free(struct alertmanager *alertmanager);

/*
 * POSTs a JSON array of alerts (copied) to all members at once. `done` is called once, from the event loop and never
 * from here, at the latest after `timeout` microseconds; delivery_free() in any case, in `done` or before it.
 */
struct delivery *alertmanager_deliver(struct alertmanager *alertmanager, const char *alerts,
				      int64_t timeout, delivery_done *done, void *arg);
void delivery_free(struct delivery *delivery);

#endif /* AGENT_ALERTMANAGER_H */
