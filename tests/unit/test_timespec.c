/*
 * test_timespec.c - times and durations, as they travel and as people write them; suggestions
 *
 * SPDX-License-Identifier: ISC
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cbctl/suggest.h"
#include "cbctl/timespec.h"
#include "libcbshm/timestamp.h"
#include "tests/support/tap.h"

#define SECOND INT64_C(1000000)

static void parses(const char *text, int64_t expected)
{
	int64_t us = -1;

	CU_ASSERT_TRUE(timestamp_parse(text, &us));
	CU_ASSERT_EQUAL(us, expected);
	if (us != expected)
		tap_note("%s: %lld", text, (long long)us);
}

static void test_timestamp_parse(void)
{
	parses("1970-01-01T00:00:00Z", 0);
	parses("1970-01-01t00:00:00.000001z", 1);
	parses("1969-12-31T23:59:59.999999Z", -1);
	parses("2000-02-29T12:00:00Z", INT64_C(951825600) * SECOND);
	parses("2026-11-23 22:00:00+01:00", INT64_C(1795467600) * SECOND);
	parses("2026-11-23T15:29:59.5-05:30", INT64_C(1795467599) * SECOND + 500000);
	parses("2026-11-23T21:00:00.1234567891Z", INT64_C(1795467600) * SECOND + 123456);
	parses("9999-12-31T23:59:59.999999Z", TIMESTAMP_MAX);
	parses("0001-01-01T00:00:00Z", TIMESTAMP_MIN);
}

static void test_timestamp_refuses(void)
{
	static const char *const wrong[] = {
		"",
		"never",
		"2026-11-23",
		"2026-11-23T22:00:00",
		"2026-11-23T22:00Z",
		"2026-02-29T00:00:00Z",
		"2026-04-31T00:00:00Z",
		"2026-13-01T00:00:00Z",
		"2026-00-01T00:00:00Z",
		"2026-01-00T00:00:00Z",
		"2026-01-01T24:00:00Z",
		"2026-01-01T00:60:00Z",
		"2026-01-01T00:00:60Z",
		"2026-01-01T00:00:00.Z",
		"2026-01-01T00:00:00Z ",
		"2026-01-01T00:00:00+1:00",
		"2026-01-01T00:00:00+16:00",
		"2026-01-01T00:00:00+01:60",
		"2026-01-01T00:00:00+0100",
		"0000-01-01T00:00:00Z",
		"0001-01-01T00:00:00+01:00",
		"9999-12-31T23:59:59-00:01",
		"-026-01-01T00:00:00Z",
		"2026-01-01T00:00:00ZZ",
		"2026-1-1T00:00:00Z",
	};
	int64_t us;

	for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
		CU_ASSERT_FALSE(timestamp_parse(wrong[i], &us));
		if (timestamp_parse(wrong[i], &us))
			tap_note("taken: %s", wrong[i]);
	}
}

static void test_timestamp_round_trip(void)
{
	static const int64_t times[] = {TIMESTAMP_MIN,
					-1,
					0,
					1,
					INT64_C(951825600) * SECOND + 42,
					INT64_C(1795467600123456),
					TIMESTAMP_MAX};
	char text[TIMESTAMP_SIZE];
	int64_t us;

	for (size_t i = 0; i < sizeof(times) / sizeof(*times); i++) {
		CU_ASSERT_TRUE(timestamp_format(times[i], text));
		CU_ASSERT_EQUAL(strlen(text), TIMESTAMP_SIZE - 1);
		CU_ASSERT_TRUE(timestamp_parse(text, &us));
		CU_ASSERT_EQUAL(us, times[i]);
	}
	CU_ASSERT_FALSE(timestamp_format(TIMESTAMP_MIN - 1, text));
	CU_ASSERT_FALSE(timestamp_format(TIMESTAMP_MAX + 1, text));
	CU_ASSERT_FALSE(timestamp_format(INT64_MIN, text));
	CU_ASSERT_FALSE(timestamp_format(INT64_MAX, text));
}

static void test_duration_parse(void)
{
	static const struct {
		const char *text;
		int64_t us;
	} right[] = {
		{"90s", 90 * SECOND},         {"2h", 7200 * SECOND},      {"1h30m", 5400 * SECOND},
		{"1h30min", 5400 * SECOND},   {"7d", 604800 * SECOND},    {"1w", 604800 * SECOND},
		{"1.5h", 5400 * SECOND},      {"250ms", 250000},          {"0.5s", 500000},
		{"1d2h3m4s", 93784 * SECOND}, {"3650d", DURATION_MAX_US},
	};
	int64_t us;

	for (size_t i = 0; i < sizeof(right) / sizeof(*right); i++) {
		CU_ASSERT_PTR_NULL(duration_parse(right[i].text, &us));
		CU_ASSERT_EQUAL(us, right[i].us);
	}
}

static void refuses(const char *text, const char *because)
{
	int64_t us;
	const char *wrong = duration_parse(text, &us);

	CU_ASSERT_PTR_NOT_NULL_FATAL(wrong);
	CU_ASSERT_PTR_NOT_NULL(strstr(wrong, because));
	if (strstr(wrong, because) == NULL)
		tap_note("%s: %s", text, wrong);
}

static void test_duration_refuses(void)
{
	refuses("", "such as");
	refuses("-1h", "negative");
	refuses("0", "more than 0");
	refuses("0s", "more than 0");
	refuses("90", "unit");
	refuses("1y", "such as");
	refuses("1h1h", "once");
	refuses("30m1h", "larger first");
	refuses("1 h", "such as");
	refuses("h", "such as");
	refuses("1..5h", "such as");
	refuses("1e3s", "such as");
	refuses("0x10s", "such as");
	refuses("infs", "such as");
	refuses("2hours", "such as");
	refuses("3651d", "at most");
	refuses("99999999999999999999d", "at most");
	refuses("999999999999999999999d", "such as");
}

static void test_until(void)
{
	const int64_t now = INT64_C(1795467600) * SECOND;
	int64_t us;

	CU_ASSERT_PTR_NULL(until_parse("never", now, &us));
	CU_ASSERT_EQUAL(us, INT64_MAX);
	CU_ASSERT_PTR_NULL(until_parse("2026-11-23T21:00:00.000001Z", now, &us));
	CU_ASSERT_EQUAL(us, now + 1);
	CU_ASSERT_PTR_NOT_NULL(strstr(until_parse("2026-11-23T21:00:00Z", now, &us), "passed"));
	CU_ASSERT_PTR_NOT_NULL(strstr(until_parse("tomorrow", now, &us), "zone"));
	CU_ASSERT_PTR_NOT_NULL(strstr(until_parse("2h", now, &us), "--for"));
}

/* Monday, 2026-11-23 22:00, in Central Europe. */
#define MONDAY (INT64_C(1795467600) * SECOND)
#define DAY    (86400 * SECOND)

static void means(const char *text, int64_t now, int64_t expected)
{
	int64_t us = -1;
	const char *wrong = until_parse(text, now, &us);

	CU_ASSERT_PTR_NULL(wrong);
	CU_ASSERT_EQUAL(us, expected);
	if (us != expected)
		tap_note("%s: %s, %lld s from now", text, wrong != NULL ? wrong : "taken",
			 (long long)((us - now) / SECOND));
}

static void refuses_until(const char *text, int64_t now, const char *why)
{
	int64_t us;
	const char *wrong = until_parse(text, now, &us);

	CU_ASSERT_TRUE(wrong != NULL && strstr(wrong, why) != NULL);
	if (wrong == NULL || strstr(wrong, why) == NULL)
		tap_note("%s: %s", text, wrong != NULL ? wrong : "taken");
}

static void test_until_local(void)
{
	static const char *const wrong[] = {
		"tomorrow",     "today",           "24:00",  "18",     "18:60",     "tomorrow 9",
		"someday 9:00", "2030-02-30 9:00", "18:00 ", "18:00Z", "2030-01-31"};

	setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3", 1);
	tzset();
	means("23:30", MONDAY, MONDAY + 5400 * SECOND);
	means("21:30", MONDAY, MONDAY + DAY - 1800 * SECOND);
	means("22:00", MONDAY, MONDAY + DAY);
	means("today 22:01", MONDAY, MONDAY + 60 * SECOND);
	refuses_until("today 22:00", MONDAY, "passed");
	means("tomorrow 09:00", MONDAY, MONDAY + 11 * 3600 * SECOND);
	means("tomorrow  9:00", MONDAY, MONDAY + 11 * 3600 * SECOND);
	means("friday 22:00", MONDAY, MONDAY + 4 * DAY);
	means("Mon 22:00", MONDAY, MONDAY + 7 * DAY);
	means("monday 22:01", MONDAY, MONDAY + 60 * SECOND);
	means("sunday 22:00", MONDAY, MONDAY + 6 * DAY);
	means("2026-12-01 22:00", MONDAY, MONDAY + 8 * DAY);
	refuses_until("2026-11-22 22:00", MONDAY, "passed");
	/* Summer begins on 2027-03-28, when 02:30 does not exist; it ends on 2027-10-31, when 02:30 is there twice. */
	means("2027-07-01 22:00", MONDAY, MONDAY + 220 * DAY - 3600 * SECOND);
	refuses_until("2027-03-28 02:30", MONDAY, "clocks");
	means("2027-03-28 03:30", MONDAY, MONDAY + 124 * DAY + (3 * 60 + 30 + 60) * 60 * SECOND);
	refuses_until("2027-10-31 02:30", MONDAY, "clocks");
	for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++)
		refuses_until(wrong[i], MONDAY, "must be a time");
	unsetenv("TZ");
	tzset();
}

static void since(const char *text, int64_t expected)
{
	int64_t us = -1;
	const char *wrong = since_parse(text, MONDAY, &us);

	CU_ASSERT_PTR_NULL(wrong);
	CU_ASSERT_EQUAL(us, expected);
	if (us != expected)
		tap_note("%s: %s, %lld s ago", text, wrong != NULL ? wrong : "taken",
			 (long long)((MONDAY - us) / SECOND));
}

static void test_since(void)
{
	static const char *const wrong[] = {"never", "soon", "", "-1h", "yesterday"};
	int64_t us;

	setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3", 1);
	tzset();
	since("2h", MONDAY - 7200 * SECOND);
	since("2026-11-23T20:00:00Z", MONDAY - 3600 * SECOND);
	since("21:30", MONDAY - 1800 * SECOND);
	since("22:00", MONDAY);
	since("23:30", MONDAY - DAY + 5400 * SECOND);
	since("today 00:00", MONDAY - 22 * 3600 * SECOND);
	since("monday 21:00", MONDAY - 3600 * SECOND);
	since("monday 22:01", MONDAY - 7 * DAY + 60 * SECOND);
	since("friday 22:00", MONDAY - 3 * DAY);
	since("2026-11-21 22:00", MONDAY - 2 * DAY);
	CU_ASSERT_PTR_NOT_NULL(strstr(since_parse("2026-10-25 02:30", MONDAY, &us), "clocks"));
	for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++)
		CU_ASSERT_PTR_NOT_NULL(strstr(since_parse(wrong[i], MONDAY, &us), "before now"));
	unsetenv("TZ");
	tzset();
}

static void formats(int64_t us, const char *expected)
{
	char text[64];

	duration_format(us, text, sizeof(text));
	CU_ASSERT_STRING_EQUAL(text, expected);
}

static void test_duration_format(void)
{
	formats(0, "less than 1 s");
	formats(SECOND - 1, "less than 1 s");
	formats(SECOND, "1 s");
	formats(59 * SECOND, "59 s");
	formats(60 * SECOND, "1 min");
	formats(61 * SECOND, "1 min 1 s");
	formats(24 * 3600 * SECOND - 1, "23 h 59 min");
	formats(24 * 3600 * SECOND, "1 d");
	formats(25 * 3600 * SECOND + 59 * SECOND, "1 d 1 h");
	formats(DURATION_MAX_US, "3650 d");
}

static void test_duration_write(void)
{
	static const int64_t durations[] = {1,
					    SECOND,
					    90 * SECOND,
					    5400 * SECOND,
					    86400 * SECOND,
					    93784 * SECOND + 500000,
					    3600 * SECOND + 1,
					    DURATION_MAX_US};
	char text[64];
	int64_t us;

	for (size_t i = 0; i < sizeof(durations) / sizeof(*durations); i++) {
		duration_write(durations[i], text, sizeof(text));
		CU_ASSERT_PTR_NULL(duration_parse(text, &us));
		CU_ASSERT_EQUAL(us, durations[i]);
	}
	duration_write(86400 * SECOND, text, sizeof(text));
	CU_ASSERT_STRING_EQUAL(text, "1d");
	duration_write(500000, text, sizeof(text));
	CU_ASSERT_STRING_EQUAL(text, "0.5s");
}

static void test_time_format(void)
{
	char text[64];

	setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3", 1);
	tzset();
	time_format(INT64_C(1795467600) * SECOND + 999999, text, sizeof(text));
	CU_ASSERT_STRING_EQUAL(text, "2026-11-23 22:00:00 CET");
	time_format(-1, text, sizeof(text));
	CU_ASSERT_STRING_EQUAL(text, "1970-01-01 00:59:59 CET");
	time_format(INT64_MAX, text, sizeof(text));
	CU_ASSERT_TRUE(strlen(text) > 0);
}

static const char *nearest(const char *word)
{
	static const char *const words[] = {"check",  "status", "list",   "disable",
					    "enable", "reset",  "policy", "incidents"};
	static struct suggestion near;

	suggestion_begin(&near, word);
	for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++)
		suggestion_consider(&near, words[i]);
	return near.best;
}

static void test_suggestions(void)
{
	static char longest[400];

	CU_ASSERT_STRING_EQUAL(nearest("disabel"), "disable");
	CU_ASSERT_STRING_EQUAL(nearest("dissable"), "disable");
	CU_ASSERT_STRING_EQUAL(nearest("enabled"), "enable");
	CU_ASSERT_STRING_EQUAL(nearest("lst"), "list");
	CU_ASSERT_STRING_EQUAL(nearest("inc"), "incidents");
	CU_ASSERT_STRING_EQUAL(nearest("frobnicate"), "");
	CU_ASSERT_STRING_EQUAL(nearest(""), "");
	CU_ASSERT_STRING_EQUAL(nearest("x"), "");
	memset(longest, 'a', sizeof(longest) - 1);
	CU_ASSERT_STRING_EQUAL(nearest(longest), "");
}

int main(void)
{
	CU_initialize_registry();
	CU_pSuite suite = CU_add_suite("timespec", NULL, NULL);
	CU_add_test(suite, "RFC 3339 is read", test_timestamp_parse);
	CU_add_test(suite, "what is no time is refused", test_timestamp_refuses);
	CU_add_test(suite, "times survive the way to text and back", test_timestamp_round_trip);
	CU_add_test(suite, "durations are read", test_duration_parse);
	CU_add_test(suite, "what is no duration is refused, and why", test_duration_refuses);
	CU_add_test(suite, "until lies in the future", test_until);
	CU_add_test(suite, "until in the local zone", test_until_local);
	CU_add_test(suite, "since in the local zone", test_since);
	CU_add_test(suite, "durations for people", test_duration_format);
	CU_add_test(suite, "durations as they are read", test_duration_write);
	CU_add_test(suite, "times for people are local", test_time_format);
	CU_add_test(suite, "what was meant by a mistyped word", test_suggestions);
	return tap_run_cunit();
}
