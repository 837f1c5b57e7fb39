/*
 * tap.h - CUnit results as TAP, so that the test driver counts every case
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef TESTS_SUPPORT_TAP_H
#define TESTS_SUPPORT_TAP_H

#include <CUnit/CUnit.h>

/* Adds a suite of the tests up to CU_TEST_INFO_NULL to the initialised CUnit registry. */
void tap_add_suite(const char *name, const CU_TestInfo *tests);

/*
 * Runs all suites of the initialised CUnit registry, prints TAP on stdout, and cleans the registry up.
 * Returns the exit status of the test program: 0, or 1 if anything failed.
 */
int tap_run_cunit(void);

/* Marks the running test as skipped, and why. The test returns right afterwards, without assertions. */
void tap_skip(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* A line of diagnosis ("# ..."). */
void tap_note(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif /* TESTS_SUPPORT_TAP_H */
