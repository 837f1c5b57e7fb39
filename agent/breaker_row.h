/*
 * breaker_row.h - one row of the view cbshm.mirror: what the database side hands to the segment
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef AGENT_BREAKER_ROW_H
#define AGENT_BREAKER_ROW_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Strings are NUL-terminated and borrowed: they live as long as the call they are passed to. Times
 * are microseconds since the Unix epoch on the database's clock, INT64_MIN = null. The policy is the
 * effective one.
 */
struct breaker_row {
	const char *name;
	uint64_t version;
	bool disabled;
	const char *disabled_by;     /* "" = null */
	const char *disabled_reason; /* "" = null */
	int64_t opened_at;
	int64_t disabled_until;
	uint8_t incident_id[16]; /* all zero = null */
	uint32_t consecutive_failures;
	int64_t last_failure_at;
	int64_t updated_at;
	double drift_threshold;
	uint32_t failure_threshold;
	uint32_t schema_error_threshold;
	int64_t default_ttl; /* microseconds */
	bool auto_recover;
};

#endif /* AGENT_BREAKER_ROW_H */
