/*
 * test_exposition.c - metrics as text: labels, numbers, histograms, and who gets which format
 *
 * SPDX-License-Identifier: ISC
 */
#include <config.h>

#include <CUnit/Basic.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "agent/exposition.h"
#include "agent/tally.h"
#include "tests/support/tap.h"

static struct text text;

/* What was written since the last time is this. */
static void written(const char *expected)
{
	const char *data = text.data != NULL ? text.data : "";

	CU_ASSERT_STRING_EQUAL(data, expected);
	if (strcmp(data, expected) != 0)
		fprintf(stderr, "# '%s', not '%s'\n", data, expected);
	free(text_take(&text));
}

static void test_families(void)
{
	struct exposition old = {.text = &text}, new = {.text = &text, .openmetrics = true};

	exposition_family(&old, "a", EXPOSITION_COUNTER, "Some.");
	exposition_sample(&old, 1, NULL);
	exposition_end(&old);
	written("# HELP a_total Some.\n# TYPE a_total counter\na_total 1\n");
	exposition_family(&new, "a", EXPOSITION_COUNTER, "Some.");
	exposition_sample(&new, 1, NULL);
	exposition_end(&new);
	written("# HELP a Some.\n# TYPE a counter\na_total 1\n# EOF\n");
	exposition_family(&old, "a", EXPOSITION_INFO, "Some.");
	written("# HELP a_info Some.\n# TYPE a_info gauge\n");
	exposition_family(&new, "a", EXPOSITION_INFO, "Some.");
	written("# HELP a Some.\n# TYPE a info\n");
}

static void test_labels(void)
{
	struct exposition out = {.text = &text, .name = "m"};

	exposition_sample(&out, 0, "a", "", "b", "x", NULL);
	written("m{a=\"\",b=\"x\"} 0\n");
	exposition_sample(&out, 0, "a", "quote\" back\\slash new\nline \xc3\xbc", NULL);
	written("m{a=\"quote\\\" back\\\\slash new\\nline \xc3\xbc\"} 0\n");
	exposition_sample(&out, 0, "a", "\\", "b", "\"", "c", "\n", NULL);
	written("m{a=\"\\\\\",b=\"\\\"\",c=\"\\n\"} 0\n");
}

static void test_numbers(void)
{
	static const struct {
		double value;
		const char *expected;
	} numbers[] = {
		{0, "m 0\n"},
		{-1, "m -1\n"},
		{0.1, "m 0.1\n"},
		{1.0 / 3, "m 0.33333333333333331\n"},
		{4294967296, "m 4294967296\n"},
		{1732485600.123456, "m 1732485600.123456\n"},
		{9007199254740993.0, "m 9007199254740992\n"},
		{1e300, "m 1e+300\n"},
		{INFINITY, "m +Inf\n"},
		{-INFINITY, "m -Inf\n"},
		{NAN, "m NaN\n"},
	};
	struct exposition out = {.text = &text, .name = "m"};

	for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++) {
		exposition_sample(&out, numbers[i].value, NULL);
		written(numbers[i].expected);
	}
}

static void test_histograms(void)
{
	static const double bounds[] = {0.5, 1, 10};
	struct histogram histogram = HISTOGRAM(bounds);
	struct exposition out = {.text = &text, .name = "h"};

	for (double value = 0; value < 2; value += 0.5)
		histogram_add(&histogram, value);
	histogram_add(&histogram, 10);
	histogram_add(&histogram, 11);
	exposition_histogram(&out, &histogram, NULL, NULL);
	written("h_bucket{le=\"0.5\"} 2\nh_bucket{le=\"1.0\"} 3\nh_bucket{le=\"10.0\"} 5\n"
		"h_bucket{le=\"+Inf\"} 6\nh_sum 24\nh_count 6\n");
	exposition_histogram(&out, &(struct histogram)HISTOGRAM(bounds), "a", "\"");
	written("h_bucket{a=\"\\\"\",le=\"0.5\"} 0\nh_bucket{a=\"\\\"\",le=\"1.0\"} 0\n"
		"h_bucket{a=\"\\\"\",le=\"10.0\"} 0\nh_bucket{a=\"\\\"\",le=\"+Inf\"} 0\n"
		"h_sum{a=\"\\\"\"} 0\nh_count{a=\"\\\"\"} 0\n");
}

static void test_negotiation(void)
{
	static const char *const wanted[] = {
		"application/openmetrics-text",
		"APPLICATION/OPENMETRICS-TEXT;version=1.0.0",
		"application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.4,*/*;q=0.9",
		"text/plain;q=0,application/openmetrics-text ; q=0.1",
		",,\t application/openmetrics-text,",
	};
	static const char *const unwanted[] = {
		"",
		"*/*",
		"text/plain",
		"application/openmetrics-text;q=0",
		"application/*",
		"text/plain,application/openmetrics-text;q=0.9",
		"application/openmetrics-text;q=",
		"xapplication/openmetrics-text",
		"application/openmetrics-textx",
		";",
		",",
		"application/openmetrics-text;q=-1",
	};

	for (size_t i = 0; i < sizeof(wanted) / sizeof(*wanted); i++)
		CU_ASSERT(exposition_wants_openmetrics(wanted[i]));
	for (size_t i = 0; i < sizeof(unwanted) / sizeof(*unwanted); i++)
		CU_ASSERT(!exposition_wants_openmetrics(unwanted[i]));
}

static enum opening opening(const char *by, const char *reason)
{
	return opening_of(by, strlen(by), reason, strlen(reason));
}

static void test_openings(void)
{
	CU_ASSERT_EQUAL(opening("circuit_breaker", "Drift exceeded threshold: 0.3 > 0.2"),
			OPENING_DRIFT);
	CU_ASSERT_EQUAL(opening("circuit_breaker", "Schema error threshold exceeded: 7 >= 5"),
			OPENING_SCHEMA_ERROR);
	CU_ASSERT_EQUAL(opening("circuit_breaker", "Drift exceeded threshold"), OPENING_MANUAL);
	CU_ASSERT_EQUAL(opening("anna", "Drift exceeded threshold: 0.3 > 0.2"), OPENING_MANUAL);
	CU_ASSERT_EQUAL(opening("", ""), OPENING_MANUAL);
}

int main(void)
{
	CU_initialize_registry();
	CU_pSuite suite = CU_add_suite("exposition", NULL, NULL);
	CU_add_test(suite, "families in both formats", test_families);
	CU_add_test(suite, "labels cannot be broken", test_labels);
	CU_add_test(suite, "numbers", test_numbers);
	CU_add_test(suite, "histograms", test_histograms);
	CU_add_test(suite, "who gets which format", test_negotiation);
	CU_add_test(suite, "why a breaker is open", test_openings);
	return tap_run_cunit();
}
