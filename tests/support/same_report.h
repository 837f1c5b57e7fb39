/*
 * same_report.h - holds report_read() against what it stands in for
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef TESTS_SUPPORT_SAME_REPORT_H
#define TESTS_SUPPORT_SAME_REPORT_H

#include <stdbool.h>
#include <stddef.h>

enum same_report {
	REPORT_LEFT,   /* report_read() leaves it to the others */
	REPORT_SAME,   /* it reads what they read */
	REPORT_DIFFERS /* they refuse it, or read something else */
};

/* `text` is NUL-terminated, and `size` is its length without that NUL. */
enum same_report same_report(const char *text, size_t size);

#endif /* TESTS_SUPPORT_SAME_REPORT_H */
