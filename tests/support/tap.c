/*
 * tap.c - CUnit results as TAP
 *
 * SPDX-License-Identifier: ISC
 *
 * Not a test framework: CUnit runs the tests, this only writes down what came of them. Assertions
 * are made from the main thread; a forked child must leave with _exit(), never by returning.
 */
#include "config.h"

#include "tests/support/tap.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static unsigned int number;
static unsigned int failures;
static char skip_reason[256];

static void one_line(const char *text)
{
	for (; text && *text; text++)
		putchar(*text == '\n' || *text == '#' ? ' ' : *text);
}

static void test_done(const CU_pTest test, const CU_pSuite suite, const CU_pFailureRecord failed)
{
	number++;
	for (CU_pFailureRecord f = failed; f; f = f->pNext)
		printf("# %s:%u: %s\n", f->strFileName ? f->strFileName : "?", f->uiLineNumber,
		       f->strCondition ? f->strCondition : "?");
	printf("%s %u - %s: %s", failed ? "not ok" : "ok", number, suite->pName, test->pName);
	if (!failed && skip_reason[0]) {
		fputs(" # SKIP ", stdout);
		one_line(skip_reason);
	}
	putchar('\n');
	fflush(stdout);
	failures += failed != NULL;
	skip_reason[0] = '\0';
}

static void suite_init_failed(const CU_pSuite suite)
{
	for (unsigned int i = 0; i < suite->uiNumberOfTests; i++)
		printf("not ok %u - %s: the suite's initialisation failed\n", ++number,
		       suite->pName);
	failures++;
}

static void suite_cleanup_failed(const CU_pSuite suite)
{
	printf("# %s: the suite's cleanup failed\n", suite->pName);
	failures++;
}

void tap_add_suite(const char *name, const CU_TestInfo *tests)
{
	CU_pSuite suite = CU_add_suite(name, NULL, NULL);

	for (; tests->pName != NULL; tests++)
		CU_add_test(suite, tests->pName, tests->pTestFunc);
}

int tap_run_cunit(void)
{
	CU_pTestRegistry registry = CU_get_registry();

	if (!registry || registry->uiNumberOfTests == 0) {
		puts("Bail out! no tests are registered");
		return EXIT_FAILURE;
	}
	CU_set_test_complete_handler(test_done);
	CU_set_suite_init_failure_handler(suite_init_failed);
	CU_set_suite_cleanup_failure_handler(suite_cleanup_failed);
	printf("1..%u\n", registry->uiNumberOfTests);
	fflush(stdout);

	CU_ErrorCode error = CU_run_all_tests();
	if (error != CUE_SUCCESS && !failures) {
		printf("# CUnit: %s\n", CU_get_error_msg());
		failures++;
	}
	CU_cleanup_registry();
	return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}

void tap_skip(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(skip_reason, sizeof(skip_reason), format, args);
	va_end(args);
}

void tap_note(const char *format, ...)
{
	char text[1024];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	printf("# ");
	one_line(text);
	putchar('\n');
	fflush(stdout);
}
