/*
 * timestamp.c - RFC 3339 to microseconds and back
 *
 * SPDX-License-Identifier: ISC
 *
 * Not for people: what a person reads and writes is cbctl's. The calendar is libc's, whose
 * timegm() and gmtime_r() look at no time zone; what timegm() would normalise (the 31st of April)
 * is refused by comparing its result with what was asked for.
 */
#include "config.h"

#include "libcbshm/timestamp.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static bool read_digits(const char **text, int digits, int *value)
{
	*value = 0;
	for (int i = 0; i < digits; i++, (*text)++) {
		if (**text < '0' || **text > '9')
			return false;
		*value = *value * 10 + (**text - '0');
	}
	return true;
}

static bool read_char(const char **text, const char *one_of)
{
	if (**text == '\0' || strchr(one_of, **text) == NULL)
		return false;
	(*text)++;
	return true;
}

static bool read_date(const char **text, struct tm *tm)
{
	if (!read_digits(text, 4, &tm->tm_year) || !read_char(text, "-") ||
	    !read_digits(text, 2, &tm->tm_mon) || !read_char(text, "-") ||
	    !read_digits(text, 2, &tm->tm_mday) || tm->tm_year < 1)
		return false;
	tm->tm_year -= 1900;
	tm->tm_mon -= 1;
	return true;
}

static bool read_time(const char **text, struct tm *tm)
{
	return read_digits(text, 2, &tm->tm_hour) && read_char(text, ":") &&
	       read_digits(text, 2, &tm->tm_min) && read_char(text, ":") &&
	       read_digits(text, 2, &tm->tm_sec) && tm->tm_hour <= 23 && tm->tm_min <= 59 &&
	       tm->tm_sec <= 59;
}

/* ".5" and its like; nothing is fine. */
static bool read_fraction(const char **text, int64_t *microseconds)
{
	int64_t unit = 100000;

	*microseconds = 0;
	if (!read_char(text, "."))
		return true;
	if (**text < '0' || **text > '9')
		return false;
	for (; **text >= '0' && **text <= '9'; (*text)++, unit /= 10)
		*microseconds += unit * (**text - '0');
	return true;
}

/* Seconds east of Greenwich. */
static bool read_zone(const char **text, int64_t *offset)
{
	int hours, minutes;
	int sign;

	*offset = 0;
	if (read_char(text, "Zz"))
		return true;
	sign = **text == '-' ? -1 : 1;
	if (!read_char(text, "+-") || !read_digits(text, 2, &hours) || !read_char(text, ":") ||
	    !read_digits(text, 2, &minutes) || hours > 15 || minutes > 59)
		return false;
	*offset = sign * (hours * 3600 + minutes * 60);
	return true;
}

bool timestamp_parse(const char *text, int64_t *microseconds)
{
	struct tm tm = {0};
	struct tm asked;
	int64_t fraction, offset;
	time_t seconds;

	if (!read_date(&text, &tm) || !read_char(&text, "Tt ") || !read_time(&text, &tm) ||
	    !read_fraction(&text, &fraction) || !read_zone(&text, &offset) || *text != '\0')
		return false;
	asked = tm;
	seconds = timegm(&tm);
	if (tm.tm_mday != asked.tm_mday || tm.tm_mon != asked.tm_mon)
		return false;
	*microseconds = ((int64_t)seconds - offset) * 1000000 + fraction;
	return *microseconds >= TIMESTAMP_MIN && *microseconds <= TIMESTAMP_MAX;
}

bool timestamp_format(int64_t microseconds, char text[TIMESTAMP_SIZE])
{
	int64_t fraction = microseconds % 1000000;
	time_t seconds;
	struct tm tm;
	char whole[20];

	if (microseconds < TIMESTAMP_MIN || microseconds > TIMESTAMP_MAX)
		return false;
	if (fraction < 0)
		fraction += 1000000;
	seconds = (time_t)((microseconds - fraction) / 1000000);
	if (gmtime_r(&seconds, &tm) == NULL)
		return false;
	tm.tm_year += 1900;
	/* By hand, as strftime("%Y") does not pad years before 1000 everywhere. */
	snprintf(whole, sizeof(whole), "%04u-%02u-%02uT%02u:%02u:%02u",
		 (unsigned)tm.tm_year % 10000, (unsigned)(tm.tm_mon + 1) % 100,
		 (unsigned)tm.tm_mday % 100, (unsigned)tm.tm_hour % 100, (unsigned)tm.tm_min % 100,
		 (unsigned)tm.tm_sec % 100);
	snprintf(text, TIMESTAMP_SIZE, "%s.%06uZ", whole, (unsigned)fraction % 1000000);
	return true;
}
