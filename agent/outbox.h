/*
 * outbox.h - delivers the alerts that the database has queued
 *
 * SPDX-License-Identifier: ISC
 *
 * Any number of agents work on one queue: each claims what is due by a lease, sends it, and says what became of it. The
 * rules (order, backoff, repetition, who has what) stand in sql/0004_alerts.sql; here is only when to ask, and the
 * sending.
 */
#ifndef AGENT_OUTBOX_H
#define AGENT_OUTBOX_H

struct agent;
struct outbox;

struct outbox *outbox_new(struct agent *agent);

/* NULL is fine. What was being sent is sent again by whoever gets its lease. */
void outbox_free(struct outbox *outbox);

/* The database is live. */
void outbox_ready(struct outbox *outbox);

/* The payload of a notification on the channel cbshm: there may be something to send. */
void outbox_notified(struct outbox *outbox, const char *payload);

/* agent->config names others, or none. */
void outbox_reconfigure(struct outbox *outbox);

/* Gives back what it holds, and begins nothing new. */
void outbox_stop(struct outbox *outbox);

#endif /* AGENT_OUTBOX_H */
