/*
 * request.h - one request of a client, on its way from the socket to the database and back
 *
 * SPDX-License-Identifier: ISC
 *
 * The session parses and authorizes it, the writer carries it out, and `done` is called exactly
 * once with the answer, from the event loop, never from within writer_submit() itself.
 * The session owns the request and frees it after `done`; a client that went away does not take its
 * writes back: what was submitted is carried out.
 */
#ifndef AGENT_REQUEST_H
#define AGENT_REQUEST_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "cbshm/segment.h"

enum request_kind {
	REQUEST_REPORT_DRIFT,
	REQUEST_REPORT_SCHEMA_ERROR,
	REQUEST_DISABLE,
	REQUEST_ENABLE,
	REQUEST_SET_POLICY,
	REQUEST_GET_STATE,
	REQUEST_GET_INCIDENTS,
	REQUEST_GET_AGENTS,
	REQUEST_WAIT_FLEET,
	REQUEST_GET_LOG,
	REQUEST_GET_ALERTS,
	REQUEST_RETRY_ALERTS,
	REQUEST_PURGE_ALERTS,
	REQUEST_KINDS
};

/* Who the kernel says is at the other end of the socket. */
struct peer {
	uid_t uid;
	gid_t gid;
	pid_t pid;
	char user[64]; /* name of the uid, or its number */
	char exe[256]; /* path of the executable, "" if it cannot be known */
};

#define REQUEST_POLICY_DRIFT_THRESHOLD        0x01u
#define REQUEST_POLICY_FAILURE_THRESHOLD      0x02u
#define REQUEST_POLICY_SCHEMA_ERROR_THRESHOLD 0x04u
#define REQUEST_POLICY_DEFAULT_TTL            0x08u
#define REQUEST_POLICY_AUTO_RECOVER           0x10u

enum answer_status {
	ANSWER_OK,
	ANSWER_INVALID, /* `field` and `message` */
	ANSWER_NOT_FOUND,
	ANSWER_DATABASE_UNAVAILABLE,
	ANSWER_BUSY,
	ANSWER_TIMEOUT,
	ANSWER_OUTCOME_UNKNOWN,
	ANSWER_LIMIT,
	ANSWER_DATABASE_ERROR, /* `sqlstate` and `message` */
};

/* What came of a request. Everything is borrowed for the time of `done`. */
struct answer {
	enum answer_status status;
	const char *field;
	const char *message;
	const char *sqlstate;
	bool changed; /* disable, enable */
	const char *
		json; /* by kind: the Incident, State, Policy, Fleet or array of io.cbshm, or NULL */
};

struct request {
	enum request_kind kind;
	struct peer peer;
	int64_t deadline; /* microseconds of CLOCK_MONOTONIC */
	bool abandoned; /* the client has gone: what changes nothing may end now, with any answer */

	/* Arguments; strings are owned by the request, NULL = not given. All are validated. */
	char *name;
	double score;
	int64_t count; /* sample_count, or count of schema errors */
	char *details; /* compact JSON object */
	char *reason;
	char *by;
	char *until;      /* RFC 3339 in UTC, or "infinity" */
	int64_t ttl_us;   /* 0 = not given */
	char *request_id; /* UUID in text */
	char *since;      /* likewise, in UTC */
	bool include_resolved;
	bool include_sent;
	uint32_t limit;
	char **names; /* Subscribe's; NULL: all */
	size_t name_count;
	uint32_t policy_set;   /* REQUEST_POLICY_* */
	uint32_t policy_clear; /* likewise */
	double drift_threshold;
	int64_t failure_threshold;
	int64_t schema_error_threshold;
	int64_t default_ttl_us;
	bool auto_recover;

	void (*done)(struct request *request, const struct answer *answer);
	void *arg; /* the session's */
};

/* Everything 0 or NULL but the kind. NULL: out of memory. */
struct request *request_new(enum request_kind kind);

/* Frees the strings too. NULL is fine. */
void request_free(struct request *request);

/* The deadline of a request that may take this long from now on. */
int64_t request_deadline(int64_t timeout_ms);

#endif /* AGENT_REQUEST_H */
