/*
 * subscription.h - who wants to hear of changes, and what each has not been told yet
 *
 * SPDX-License-Identifier: ISC
 *
 * The replies to a Subscribe call: first the breakers as they are, then each that changes. A subscriber is told the newest state
 * of a breaker, once, however often it has changed since the last time: who reads slowly hears less, and nothing piles up for it.
 * Knows the segment's slots, no sockets. All in the event loop's thread.
 */
#ifndef AGENT_SUBSCRIPTION_H
#define AGENT_SUBSCRIPTION_H

#include <stddef.h>

struct event_base;
struct segment_writer;
struct subscription;
struct subscriptions;

#define SUBSCRIPTION_NAMES_MAX 1000
#define SUBSCRIPTION_GONE_MAX \
	10000u /* removed breakers that one has not been told of: it is cut off */

struct subscriptions *subscriptions_new(struct event_base *base, struct segment_writer *segment);

/* After all its subscriptions. NULL is fine. */
void subscriptions_free(struct subscriptions *subscriptions);

/*
 * Of the breakers of these names, which are copied; or of all (NULL, 0). `ready` is called, from the event loop, whenever
 * there is something to be told after subscription_next() had nothing; once at the beginning too.
 */
struct subscription *subscription_new(struct subscriptions *subscriptions, const char *const *names,
				      size_t count, void (*ready)(void *arg), void *arg);
void subscription_free(struct subscription *subscription);

enum subscription_news {
	SUBSCRIPTION_NOTHING, /* `ready` will be called */
	SUBSCRIPTION_REPLY,   /* *reply is to be sent; free() */
	SUBSCRIPTION_BEHIND,  /* too much that it has not been told is gone: it must begin anew */
};

/* The next reply, of about MESSAGE_SIZE_MAX at most. */
enum subscription_news subscription_next(struct subscription *subscription, char **reply);

#endif /* AGENT_SUBSCRIPTION_H */
