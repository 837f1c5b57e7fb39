/*
 * report.h - the calls that come by the thousand, read without a tree
 *
 * SPDX-License-Identifier: ISC
 *
 * A report as clients usually write it is taken from its text by one pass over it. Whatever is unusual, be it right or
 * wrong, is left to message_parse() and arguments_parse(), which say what a call may look like: what is read here,
 * they would have accepted, and understood in the same way. tests/support/same_report.c proves it on what it is given.
 */
#ifndef AGENT_REPORT_H
#define AGENT_REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct report {
	bool schema_error; /* ReportSchemaError; else ReportDrift */
	bool oneway;
	const char *name; /* in the text, without a NUL */
	size_t name_length;
	double score;
	int64_t count;
	int64_t timeout_ms; /* 0: not given */
};

/* `text` is NUL-terminated, and `size` is its length without that NUL. False: not such a text, and *report is of no use. */
bool report_read(const char *text, size_t size, struct report *report);

#endif /* AGENT_REPORT_H */
