/*
 * json_text.c - what cJSON does not do with a JSON text: be strict, and give a value back as it was written
 *
 * SPDX-License-Identifier: ISC
 *
 * Scanning takes any bytes; everything after it relies on a grammar that has been checked.
 */
#include "config.h"

#include "libcbshm/json_text.h"

#include <stdlib.h>
#include <string.h>

#define BLANKS " \t\n\r"

/* ---- scanning --------------------------------------------------------------------------- */

static const char *wrong(const char *what, size_t offset, size_t *at)
{
	*at = offset;
	return what;
}

/* Checks the string that begins at text[*i] == '"' and moves *i to its closing quote. */
static const char *scan_string(const char *text, size_t size, size_t *i, size_t *at)
{
	size_t end = *i + 1;

	while (end < size && text[end] != '"') {
		if ((unsigned char)text[end] < 0x20)
			return wrong("a control character that is not escaped", end, at);
		if (text[end] == '\\') {
			if (strncmp(text + end, "\\u0000", 6) == 0)
				return wrong("an escaped NUL in a text", end, at);
			end++;
		}
		end++;
	}
	if (end >= size)
		return wrong("a text that does not end", *i, at);
	*i = end;
	return NULL;
}

static size_t digits(const char *text)
{
	return strspn(text, "0123456789");
}

/* Behind the number, or NULL if JSON does not know it. */
static const char *number_end(const char *p)
{
	size_t n;

	p += *p == '-';
	n = digits(p);
	if (n == 0 || (n > 1 && *p == '0'))
		return NULL;
	p += n;
	if (*p == '.') {
		n = digits(++p);
		if (n == 0)
			return NULL;
		p += n;
	}
	if (*p == 'e' || *p == 'E') {
		p++;
		p += *p == '+' || *p == '-';
		n = digits(p);
		if (n == 0)
			return NULL;
		p += n;
	}
	return p;
}

const char *json_text_scan(const char *text, size_t size, int depth_max, size_t *at)
{
	int depth = 0;

	for (size_t i = 0; i < size; i++) {
		const unsigned char c = (unsigned char)text[i];

		if (c == '"') {
			const char *what = scan_string(text, size, &i, at);

			if (what != NULL)
				return what;
		} else if (c == '-' || (c >= '0' && c <= '9')) {
			const char *end = number_end(text + i);

			if (end == NULL)
				return wrong("a number that JSON does not know", i, at);
			i = (size_t)(end - text) - 1;
		} else if (c == '{' || c == '[') {
			if (++depth > depth_max)
				return wrong("objects or arrays nested too deeply", i, at);
		} else if (c == '}' || c == ']') {
			depth--;
		} else if ((c < 0x20 && strchr(BLANKS, c) == NULL) || c >= 0x7f) {
			return wrong("a byte that JSON does not know", i, at);
		}
	}
	return NULL;
}

/* ---- values ----------------------------------------------------------------------------- */

static const char *skip_blanks(const char *p)
{
	return p + strspn(p, BLANKS);
}

/* From an opening quote to behind the closing one. */
static const char *skip_string(const char *p)
{
	for (p++; *p != '"'; p++)
		p += *p == '\\';
	return p + 1;
}

static const char *skip_value(const char *p)
{
	int depth = 0;

	do {
		if (*p == '"') {
			p = skip_string(p);
			continue;
		}
		if (*p == '{' || *p == '[')
			depth++;
		else if (*p == '}' || *p == ']')
			depth--;
		p++;
	} while (depth > 0 || (p[-1] != '}' && p[-1] != ']' && p[-1] != '"' &&
			       strchr(",}]" BLANKS, *p) == NULL));
	return p;
}

/* From the beginning of an element, or of a member's name, to the value. */
static const char *value_of(const char *p)
{
	const char *behind;

	p = skip_blanks(p);
	if (*p != '"')
		return p;
	behind = skip_blanks(skip_string(p));
	return *behind == ':' ? skip_blanks(behind + 1) : p;
}

const char *json_text_first(const char *container)
{
	return value_of(container + 1);
}

const char *json_text_next(const char *value)
{
	const char *behind = skip_blanks(skip_value(value));

	return *behind == ',' ? value_of(behind + 1) : NULL;
}

const char *json_text_nth(const char *container, size_t index)
{
	const char *value = json_text_first(container);

	while (index-- > 0)
		value = json_text_next(value);
	return value;
}

char *json_text_copy(const char *value)
{
	const char *const end = skip_value(value);
	char *text = malloc((size_t)(end - value) + 1), *out = text;

	while (text != NULL && value < end) {
		const char *next = *value == '"' ? skip_string(value) : value + 1;

		if (strchr(BLANKS, *value) == NULL)
			out = mempcpy(out, value, (size_t)(next - value));
		value = next;
	}
	if (text != NULL)
		*out = '\0';
	return text;
}
