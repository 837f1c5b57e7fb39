/*
 * report.c - one pass over the text of a report
 *
 * SPDX-License-Identifier: ISC
 *
 * No JSON parser: it knows an object in an object, texts of plain ASCII, numbers and two flags. The NUL behind the
 * text is part of no token, so that nothing here can run past it.
 */
#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "agent/arguments.h"
#include "agent/message.h"
#include "agent/report.h"

#define DIGITS_EXACT 15 /* so many make a number that a double holds exactly */
#define NUMBER_MAX   40 /* bytes; cJSON takes no more than 63 */
#define NAME_MAX     128

enum { METHOD = 1, PARAMETERS = 2, ONEWAY = 4 };
enum { NAME = 1, SCORE = 2, SAMPLES = 4, COUNT = 8, TIMEOUT = 16 };

struct token {
	const char *text;
	size_t length;
};

static const char *skip_blanks(const char *p)
{
	while (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r')
		p++;
	return p;
}

/* Each of these returns what stands behind it, blanks skipped, or NULL. */

static const char *read_mark(const char *p, char mark)
{
	return *p == mark ? skip_blanks(p + 1) : NULL;
}

static const char *read_text(const char *p, struct token *token)
{
	if (*p != '"')
		return NULL;
	token->text = ++p;
	while (*p >= 0x20 && *p < 0x7f && *p != '"' && *p != '\\')
		p++;
	token->length = (size_t)(p - token->text);
	return *p == '"' ? skip_blanks(p + 1) : NULL;
}

static bool is(const struct token *token, const char *text, size_t length)
{
	return token->length == length && memcmp(token->text, text, length) == 0;
}

#define IS(token, literal) is(token, literal, sizeof(literal) - 1)

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static const char *read_digits(const char *p, int64_t *value, int *digits)
{
	for (; is_digit(*p); p++) {
		if (++*digits <= DIGITS_EXACT)
			*value = *value * 10 + (*p - '0');
	}
	return p;
}

/* No leading zeros, and not so many digits that they are not exact. */
static const char *read_whole(const char *p, int64_t *value)
{
	const bool zero = *p == '0';
	int digits = 0;

	*value = 0;
	p = read_digits(p, value, &digits);
	if (digits == 0 || digits > DIGITS_EXACT || (zero && digits > 1) || *p == '.' ||
	    *p == 'e' || *p == 'E')
		return NULL;
	return skip_blanks(p);
}

/*
 * A score. Few digits are two whole numbers that a double holds, and their quotient is rounded once: the same that
 * strtod() finds, which is slow, and takes the others.
 */
static const char *read_score(const char *begin, double *value)
{
	static const double powers[] = {1e0, 1e1, 1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
					1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15};
	int64_t mantissa = 0;
	int digits = 0, whole;
	const char *p = read_digits(begin, &mantissa, &digits);

	whole = digits;
	if (whole != 1)
		return NULL; /* none, or more than 1 */
	if (*p == '.') {
		p = read_digits(p + 1, &mantissa, &digits);
		if (digits == whole)
			return NULL;
	}
	if (p - begin > NUMBER_MAX || *p == 'e' || *p == 'E')
		return NULL;
	*value = digits <= DIGITS_EXACT ? (double)mantissa / powers[digits - whole]
					: strtod(begin, NULL);
	return *value <= 1 ? skip_blanks(p) : NULL;
}

static const char *read_parameter(const char *p, const struct token *key, struct report *report,
				  unsigned *bit)
{
	struct token name;

	if (IS(key, "name")) {
		*bit = NAME;
		p = read_text(p, &name);
		report->name = name.text;
		report->name_length = name.length;
		return p != NULL && name.length >= 1 && name.length <= NAME_MAX ? p : NULL;
	}
	if (IS(key, "drift_score")) {
		*bit = SCORE;
		return read_score(p, &report->score);
	}
	if (IS(key, "sample_count") || IS(key, "count")) {
		*bit = IS(key, "count") ? COUNT : SAMPLES;
		p = read_whole(p, &report->count);
		return *bit == COUNT || report->count >= 1 ? p : NULL;
	}
	if (IS(key, "timeout_ms")) {
		*bit = TIMEOUT;
		p = read_whole(p, &report->timeout_ms);
		return report->timeout_ms >= 1 && report->timeout_ms <= ARGUMENT_TIMEOUT_MAX_MS
			       ? p
			       : NULL;
	}
	return NULL;
}

static const char *read_parameters(const char *p, struct report *report, unsigned *given)
{
	struct token key;
	unsigned bit;

	p = read_mark(p, '{');
	while (p != NULL) {
		p = read_text(p, &key);
		if (p != NULL)
			p = read_mark(p, ':');
		if (p != NULL)
			p = read_parameter(p, &key, report, &bit);
		if (p == NULL || (*given & bit) != 0)
			return NULL;
		*given |= bit;
		if (*p == '}')
			return skip_blanks(p + 1);
		p = read_mark(p, ',');
	}
	return NULL;
}

static const char *read_method(const char *p, struct report *report)
{
	struct token method;

	p = read_text(p, &method);
	if (p == NULL)
		return NULL;
	report->schema_error = IS(&method, "io.cbshm.ReportSchemaError");
	return report->schema_error || IS(&method, "io.cbshm.ReportDrift") ? p : NULL;
}

static const char *read_flag(const char *p, bool *flag)
{
	*flag = *p == 't';
	if (strncmp(p, "true", 4) == 0)
		return skip_blanks(p + 4);
	return strncmp(p, "false", 5) == 0 ? skip_blanks(p + 5) : NULL;
}

static const char *read_members(const char *p, struct report *report, unsigned *members,
				unsigned *given)
{
	struct token key;
	unsigned bit;

	while (p != NULL) {
		p = read_text(p, &key);
		if (p == NULL || (p = read_mark(p, ':')) == NULL)
			return NULL;
		if (IS(&key, "method"))
			bit = METHOD, p = read_method(p, report);
		else if (IS(&key, "parameters"))
			bit = PARAMETERS, p = read_parameters(p, report, given);
		else if (IS(&key, "oneway"))
			bit = ONEWAY, p = read_flag(p, &report->oneway);
		else
			return NULL;
		if (p == NULL || (*members & bit) != 0)
			return NULL;
		*members |= bit;
		if (*p == '}')
			return skip_blanks(p + 1);
		p = read_mark(p, ',');
	}
	return NULL;
}

bool report_read(const char *text, size_t size, struct report *report)
{
	unsigned members = 0, given = 0;
	const char *p;

	if (size > MESSAGE_SIZE_MAX)
		return false;
	memset(report, 0, sizeof(*report));
	p = read_mark(skip_blanks(text), '{');
	if (p != NULL)
		p = read_members(p, report, &members, &given);
	return p == text + size && (members & METHOD) != 0 &&
	       (given & ~(unsigned)TIMEOUT) ==
		       (report->schema_error ? NAME | COUNT : NAME | SCORE | SAMPLES);
}
