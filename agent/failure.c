/*
 * failure.c - the SQLSTATEs that do not mean the request is wrong
 *
 * SPDX-License-Identifier: ISC
 */
#include <config.h>

#include <string.h>

#include "agent/failure.h"

enum failure failure_classify(const PGresult *error)
{
	static const struct {
		const char *prefix;
		enum failure failure;
	} known[] = {
		{"55P03", FAILURE_LOCK},      {"40001", FAILURE_TRANSIENT},
		{"40P01", FAILURE_TRANSIENT}, {"23505", FAILURE_TRANSIENT},
		{"57014", FAILURE_TRANSIENT}, {"26000", FAILURE_TRANSIENT},
		{"0A000", FAILURE_TRANSIENT}, {"42P05", FAILURE_TRANSIENT},
		{"57P", FAILURE_SERVER},      {"08", FAILURE_SERVER},
		{"25006", FAILURE_SERVER},    {"25P03", FAILURE_SERVER},
	};
	const char *sqlstate = PQresultErrorField(error, PG_DIAG_SQLSTATE);

	for (size_t i = 0; sqlstate != NULL && i < sizeof(known) / sizeof(*known); i++) {
		if (strncmp(sqlstate, known[i].prefix, strlen(known[i].prefix)) == 0)
			return known[i].failure;
	}
	return FAILURE_PERMANENT;
}
