/*
 * failure.h - what an error of Postgres means for what was asked
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef AGENT_FAILURE_H
#define AGENT_FAILURE_H

#include <libpq-fe.h>

enum failure {
	FAILURE_PERMANENT, /* it would fail again */
	FAILURE_LOCK,      /* somebody else holds a row */
	FAILURE_TRANSIENT, /* it may succeed if it is repeated */
	FAILURE_SERVER,    /* this server takes no writes now */
};

/* Microseconds before what clashed with others is tried again. */
#define CLASH_PAUSE 20000

enum failure failure_classify(const PGresult *error);

#endif /* AGENT_FAILURE_H */
