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

#include <stdint.h>

#include "agent/alertmanager.h"

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

/* All since the start of the agent. */
struct outbox_counters {
	uint64_t sent;                /* alerts that every member has taken, for the first time; */
	uint64_t repeated;            /* or again */
	uint64_t put_off;             /* attempts in vain */
	uint64_t failed;              /* given up for now */
	uint64_t skipped;             /* nobody knew an Alertmanager */
	uint64_t posts[POST_RESULTS]; /* to members; empty ones are among them */
};

/* The queue of the whole fleet, as of the last sample. */
struct outbox_depth {
	uint64_t pending; /* those under way not counted */
	uint64_t leased;  /* under way */
	uint64_t failed;
	double oldest_pending; /* seconds that the oldest pending or leased one waits */
	int64_t sampled_at;    /* microseconds of CLOCK_MONOTONIC; 0: never */
};

/* Asks the database for a new sample, if it is live. */
void outbox_sample(struct outbox *outbox);

/* Both valid until outbox_free(). */
const struct outbox_depth *outbox_depth(const struct outbox *outbox);
const struct outbox_counters *outbox_counters(const struct outbox *outbox);

#endif /* AGENT_OUTBOX_H */
