/*
 * fleet.h - what this agent tells the others, and what it learns of them
 *
 * SPDX-License-Identifier: ISC
 *
 * Acknowledges barriers (see sql/0006_fleet.sql) once the segment has what came before them, carries out
 * WaitFleet, and takes the agent's row away when it stops.
 */
#ifndef AGENT_FLEET_H
#define AGENT_FLEET_H

#include <stdbool.h>
#include <stdint.h>

#include "agent/request.h"

struct agent;
struct fleet;

struct fleet *fleet_new(struct agent *agent);

/* Answers whoever still waits. After database_stop(). */
void fleet_stop(struct fleet *fleet);

/* The same, and frees it. NULL is fine. */
void fleet_free(struct fleet *fleet);

/* The mirror's word that everything before this barrier is in the segment. While connected. */
void fleet_applied(struct fleet *fleet, int64_t barrier);

/* This agent's row was locked, or not there, and may have missed that. */
void fleet_row_is_back(struct fleet *fleet);

/* Takes a REQUEST_WAIT_FLEET in; `request->done` is called once, later, from the event loop. */
void fleet_wait(struct fleet *fleet, struct request *request);

/* The database has become live or is away: looks again at what waits. */
void fleet_database_changed(struct fleet *fleet);

/* The agent is about to end: nobody is to wait for it. `done` is called when the row is gone or cannot be removed. */
void fleet_leave(struct fleet *fleet, void (*done)(void *arg), void *arg);

/* Since then there must be no heartbeat: it would make the row again. */
bool fleet_is_leaving(const struct fleet *fleet);

#endif /* AGENT_FLEET_H */
