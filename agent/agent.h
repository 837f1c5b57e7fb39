/*
 * agent.h - what one agent consists of
 *
 * SPDX-License-Identifier: ISC
 *
 * main.c makes the modules in the order in which they stand here and frees them in the reverse order;
 * each is opaque to the others and reached through this structure. One thread, the event loop's, owns
 * everything.
 */
#ifndef AGENT_AGENT_H
#define AGENT_AGENT_H

struct event_base;
struct config;
struct segment_writer;
struct snapshot;
struct database;
struct counts;
struct mirror;
struct notify;
struct recovery;
struct outbox;
struct queries;
struct subscriptions;
struct fleet;
struct writer;
struct listener;
struct metrics;

struct agent {
	struct event_base *base;
	struct config *config; /* replaced as a whole by a reload: do not keep pointers into it */
	struct notify *notify; /* what the service manager is told */
	struct snapshot *snapshot; /* segment <-> disk */
	struct segment_writer *segment;
	struct mirror *mirror;     /* database -> segment */
	struct counts *counts;     /* counters -> other agents */
	struct recovery *recovery; /* closes what its TTL has ended */
	struct outbox *outbox;     /* alerts -> Alertmanager */
	struct queries *queries;   /* questions -> database */
	/* changes -> sessions */
	struct subscriptions *subscriptions;
	struct fleet *fleet;       /* barriers: what all agents have applied */
	struct writer *writer;     /* requests -> database */
	struct database *database; /* the connections to Postgres */
	struct listener *listener; /* the socket and its sessions */
	struct metrics *metrics;   /* counters and probes over HTTP; NULL: not wanted */
};

#endif /* AGENT_AGENT_H */
