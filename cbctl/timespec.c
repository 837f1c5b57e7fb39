/*
 * timespec.c - reads and writes times for people
 *
 * SPDX-License-Identifier: ISC
 *
 * What goes over the wire is not here but in libcbshm/timestamp.c. Knows no clock: `now` is given.
 */
#include "config.h"

#include "cbctl/timespec.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "libcbshm/timestamp.h"

#define SECOND INT64_C(1000000)
#define MINUTE (60 * SECOND)
#define HOUR   (60 * MINUTE)
#define DAY    (24 * HOUR)
#define WEEK   (7 * DAY)

static const struct unit {
	const char *name;
	int64_t us;
} units[] = {
	{"w", WEEK},   {"d", DAY},    {"h", HOUR},  {"min", MINUTE},
	{"m", MINUTE}, {"s", SECOND}, {"ms", 1000},
};

/* The unit that `text` begins with: its whole run of letters must be it. */
static const struct unit *find_unit(const char *text, size_t *length)
{
	*length = strspn(text, "abcdefghijklmnopqrstuvwxyz");
	for (size_t i = 0; i < sizeof(units) / sizeof(*units); i++) {
		if (strlen(units[i].name) == *length && memcmp(units[i].name, text, *length) == 0)
			return &units[i];
	}
	return NULL;
}

const char *duration_parse(const char *text, int64_t *microseconds)
{
	static const char form[] = "must be a duration such as 90s, 30m, 2h, 1h30m or 7d";
	int64_t last_unit = INT64_MAX;
	double sum = 0;

	if (*text == '-')
		return "must be a duration of more than 0; it is negative";
	if (strcmp(text, "never") == 0)
		return "must be a duration; what does not end by itself is --until never";
	if (*text == '\0')
		return form;
	while (*text != '\0') {
		const size_t digits = strspn(text, "0123456789.");
		const struct unit *unit;
		size_t length;
		char *end;
		double value;

		value = strtod(text, &end);
		if (digits == 0 || end != text + digits || digits > 20)
			return form;
		unit = find_unit(end, &length);
		if (unit == NULL)
			return *end == '\0' && value != 0
				       ? "needs a unit, such as 90s, 30m, 2h, 1h30m or 7d"
				       : (*end == '\0' ? "must be a duration of more than 0"
						       : form);
		if (unit->us >= last_unit)
			return "must name each unit once, the larger first, as in 1h30m";
		last_unit = unit->us;
		sum += value * (double)unit->us;
		text = end + length;
	}
	if (sum < 1)
		return "must be a duration of more than 0";
	if (sum > (double)DURATION_MAX_US)
		return "must be at most 3650d (ten years)";
	*microseconds = (int64_t)(sum + 0.5);
	return NULL;
}

/* ---- times of the local zone ------------------------------------------------------------ */

enum day { DAY_NEAREST, DAY_TODAY, DAY_TOMORROW, DAY_OF_WEEK, DAY_GIVEN };

/* For strptime(3): what is not there is taken from today. */
static const struct {
	const char *format;
	enum day day;
} forms[] = {
	{"%H:%M", DAY_NEAREST},    {"today %H:%M", DAY_TODAY},    {"tomorrow %H:%M", DAY_TOMORROW},
	{"%A %H:%M", DAY_OF_WEEK}, {"%Y-%m-%d %H:%M", DAY_GIVEN},
};

/* The moment at which the local clocks show this time: false if they skip it or show it twice. */
static bool moment_of(const struct tm *shown, int64_t *us)
{
	bool found = false;

	for (int summer = 0; summer <= 1; summer++) {
		struct tm tm = *shown;
		time_t seconds;

		tm.tm_isdst = summer;
		seconds = mktime(&tm);
		if (tm.tm_hour != shown->tm_hour || tm.tm_min != shown->tm_min)
			continue;
		if (found && seconds * SECOND != *us)
			return false;
		found = true;
		*us = seconds * SECOND;
	}
	return found;
}

/* Which one of those that a form may mean: the next, or the last. */
enum side { TO_COME, PAST };

/* Puts the form's day into *tm, in which strptime() has put the rest; `today` is now. */
static void set_day(enum day day, enum side side, const struct tm *today, struct tm *tm)
{
	const bool passed = tm->tm_hour * 60 + tm->tm_min <= today->tm_hour * 60 + today->tm_min;

	tm->tm_sec = 0;
	if (day == DAY_TOMORROW)
		tm->tm_mday++;
	if (day == DAY_NEAREST && side == TO_COME && passed)
		tm->tm_mday++;
	if (day == DAY_NEAREST && side == PAST && !passed)
		tm->tm_mday--;
	if (day == DAY_OF_WEEK) {
		int days = (tm->tm_wday - today->tm_wday + 7) % 7;

		if (side == TO_COME && days == 0 && passed)
			days = 7;
		if (side == PAST && (days != 0 || !passed))
			days -= 7;
		tm->tm_mday += days;
	}
}

/* strptime() takes a 30th of February. */
static bool is_date(const struct tm *given)
{
	struct tm tm = *given;

	return timegm(&tm) != (time_t)-1 && tm.tm_mday == given->tm_mday;
}

static const char until_form[] =
	"must be a time such as 18:00, \"tomorrow 09:00\", \"friday 17:00\" or \"2030-01-31 "
	"18:00\", "
	"one with its zone such as 2030-01-31T18:00:00Z, or never (for a duration take --for)";

static const char since_form[] =
	"must be a duration before now, such as 2h, or a time such as 18:00, \"today 09:00\", "
	"\"friday 17:00\", \"2030-01-31 18:00\" or 2030-01-31T18:00:00Z";

static const char *local_parse(const char *text, int64_t now, enum side side, int64_t *us)
{
	const time_t seconds = (time_t)(now / SECOND);
	struct tm today;

	if (localtime_r(&seconds, &today) == NULL)
		return "cannot be told here: the local time is not known; take a time with its "
		       "zone";
	for (size_t i = 0; i < sizeof(forms) / sizeof(*forms); i++) {
		struct tm tm = today;
		const char *end = strptime(text, forms[i].format, &tm);

		if (end == NULL || *end != '\0' || !is_date(&tm))
			continue;
		set_day(forms[i].day, side, &today, &tm);
		return moment_of(&tm, us) ? NULL
					  : "does not exist or is there twice, as the clocks are "
					    "changed then; "
					    "take a time with its zone";
	}
	return side == TO_COME ? until_form : since_form;
}

const char *until_parse(const char *text, int64_t now, int64_t *microseconds)
{
	const char *wrong = NULL;

	if (strcmp(text, "never") == 0) {
		*microseconds = INT64_MAX;
		return NULL;
	}
	if (!timestamp_parse(text, microseconds))
		wrong = local_parse(text, now, TO_COME, microseconds);
	if (wrong != NULL)
		return wrong;
	if (*microseconds <= now)
		return "must be a time to come; it has passed";
	return NULL;
}

const char *since_parse(const char *text, int64_t now, int64_t *microseconds)
{
	if (duration_parse(text, microseconds) == NULL) {
		*microseconds = now - *microseconds;
		return NULL;
	}
	return timestamp_parse(text, microseconds) ? NULL
						   : local_parse(text, now, PAST, microseconds);
}

void duration_format(int64_t us, char *text, size_t size)
{
	static const struct {
		int64_t us;
		const char *name;
	} names[] = {{DAY, "d"}, {HOUR, "h"}, {MINUTE, "min"}, {SECOND, "s"}};
	size_t i = 0;
	long long major, minor;

	if (us < SECOND) {
		snprintf(text, size, "less than 1 s");
		return;
	}
	while (us < names[i].us)
		i++;
	major = us / names[i].us;
	minor = i < 3 ? us % names[i].us / names[i + 1].us : 0;
	if (minor != 0)
		snprintf(text, size, "%lld %s %lld %s", major, names[i].name, minor,
			 names[i + 1].name);
	else
		snprintf(text, size, "%lld %s", major, names[i].name);
}

void duration_write(int64_t us, char *text, size_t size)
{
	static const struct unit whole[] = {{"d", DAY}, {"h", HOUR}, {"m", MINUTE}};
	char fraction[8] = "";
	size_t used = 0;

	if (us % SECOND != 0) {
		snprintf(fraction, sizeof(fraction), ".%06u", (unsigned)(us % SECOND) % 1000000);
		for (size_t i = strlen(fraction); fraction[i - 1] == '0'; i--)
			fraction[i - 1] = '\0';
	}
	text[0] = '\0';
	for (size_t i = 0; i < sizeof(whole) / sizeof(*whole); i++) {
		if (us >= whole[i].us && used < size)
			used += (size_t)snprintf(text + used, size - used, "%lld%s",
						 (long long)(us / whole[i].us), whole[i].name);
		us %= whole[i].us;
	}
	if ((us > 0 || used == 0) && used < size)
		snprintf(text + used, size - used, "%lld%ss", (long long)(us / SECOND), fraction);
}

void time_format(int64_t us, char *text, size_t size)
{
	const time_t seconds = (time_t)((us - ((us % SECOND) + SECOND) % SECOND) / SECOND);
	struct tm tm;

	if (localtime_r(&seconds, &tm) == NULL ||
	    strftime(text, size, "%Y-%m-%d %H:%M:%S %Z", &tm) == 0)
		snprintf(text, size, "%lld s since 1970", (long long)seconds);
}
