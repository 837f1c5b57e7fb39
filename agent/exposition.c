/*
 * exposition.c - names, types, escaped labels and numbers
 *
 * SPDX-License-Identifier: ISC
 */
#include <config.h>

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "agent/exposition.h"

#define NUMBER_SIZE 40

/* ---- what the client takes -------------------------------------------------------------- */

/* Does the media range [at, end) name this type, parameters aside? */
static bool names(const char *at, const char *end, const char *type)
{
	const size_t length = strlen(type);

	return (size_t)(end - at) >= length && strncasecmp(at, type, length) == 0 &&
	       (at + length == end || strchr(" \t;", at[length]) != NULL);
}

/* The range's weight, 1 unless it says otherwise. */
static double weight(const char *at, const char *end)
{
	while ((at = memchr(at, ';', (size_t)(end - at))) != NULL) {
		at++;
		at += strspn(at, " \t");
		if (end - at >= 2 && (*at == 'q' || *at == 'Q') && at[1] == '=')
			return strtod(at + 2, NULL);
	}
	return 1;
}

bool exposition_wants_openmetrics(const char *accept)
{
	double openmetrics = 0, text = 0;
	const char *end;

	for (const char *at = accept; *at != '\0'; at = *end != '\0' ? end + 1 : end) {
		at += strspn(at, " \t");
		end = at + strcspn(at, ",");
		if (names(at, end, "application/openmetrics-text"))
			openmetrics = fmax(openmetrics, weight(at, end));
		else if (names(at, end, "text/plain"))
			text = fmax(text, weight(at, end));
	}
	return openmetrics > 0 && openmetrics >= text;
}

/* ---- what it gets ----------------------------------------------------------------------- */

static const struct {
	const char *openmetrics, *text, *ending;
} types[] = {
	[EXPOSITION_GAUGE] = {"gauge", "gauge", ""},
	[EXPOSITION_COUNTER] = {"counter", "counter", "_total"},
	[EXPOSITION_HISTOGRAM] = {"histogram", "histogram", ""},
	[EXPOSITION_INFO] = {"info", "gauge", "_info"},
};

void exposition_family(struct exposition *exposition, const char *name, enum exposition_type type,
		       const char *help)
{
	const char *family;

	snprintf(exposition->room, sizeof(exposition->room), "%s%s", name, types[type].ending);
	exposition->name = exposition->room;
	/* The older format knows no families: there a counter's name is that of its samples. */
	family = exposition->openmetrics ? name : exposition->name;
	text_format(exposition->text, "# HELP %s %s\n# TYPE %s %s\n", family, help, family,
		    exposition->openmetrics ? types[type].openmetrics : types[type].text);
}

/* The shortest text that reads as this number. `point`: with a point, as OpenMetrics has it in labels. */
static const char *number(double value, bool point, char room[NUMBER_SIZE])
{
	if (isnan(value) || isinf(value))
		return isnan(value) ? "NaN" : value > 0 ? "+Inf" : "-Inf";
	if (value == floor(value) && fabs(value) < 1e15) {
		snprintf(room, NUMBER_SIZE, point ? "%.1f" : "%.0f", value);
		return room;
	}
	snprintf(room, NUMBER_SIZE, "%.15g", value);
	if (strtod(room, NULL) != value)
		snprintf(room, NUMBER_SIZE, "%.17g", value);
	return room;
}

static void add_label(struct text *text, bool first, const char *name, const char *value)
{
	text_add(text, first ? "{" : ",");
	text_add(text, name);
	text_add(text, "=\"");
	for (size_t span; *value != '\0'; value += span) {
		span = strcspn(value, "\"\\\n");
		text_append(text, value, span);
		if (span == 0) {
			text_add(text, *value == '\n' ? "\\n" : *value == '"' ? "\\\"" : "\\\\");
			span = 1;
		}
	}
	text_add(text, "\"");
}

static void add_value(struct text *text, double value)
{
	char room[NUMBER_SIZE];

	text_add(text, " ");
	text_add(text, number(value, false, room));
	text_add(text, "\n");
}

void exposition_sample(struct exposition *exposition, double value, ...)
{
	struct text *text = exposition->text;
	const char *label;
	bool first = true;
	va_list labels;

	text_add(text, exposition->name);
	va_start(labels, value);
	while ((label = va_arg(labels, const char *)) != NULL) {
		add_label(text, first, label, va_arg(labels, const char *));
		first = false;
	}
	va_end(labels);
	if (!first)
		text_add(text, "}");
	add_value(text, value);
}

static void add_part(struct exposition *exposition, const char *ending, double value,
		     const char *label, const char *label_value, const char *bound)
{
	struct text *text = exposition->text;

	text_add(text, exposition->name);
	text_add(text, ending);
	if (label != NULL)
		add_label(text, true, label, label_value);
	if (bound != NULL)
		add_label(text, label == NULL, "le", bound);
	if (label != NULL || bound != NULL)
		text_add(text, "}");
	add_value(text, value);
}

void exposition_histogram(struct exposition *exposition, const struct histogram *histogram,
			  const char *label, const char *label_value)
{
	char room[NUMBER_SIZE];
	uint64_t below = 0;

	for (unsigned i = 0; i <= histogram->count; i++) {
		below += histogram->buckets[i];
		add_part(
			exposition, "_bucket", (double)below, label, label_value,
			number(i < histogram->count ? histogram->bounds[i] : INFINITY, true, room));
	}
	add_part(exposition, "_sum", histogram->sum, label, label_value, NULL);
	add_part(exposition, "_count", (double)below, label, label_value, NULL);
}

void exposition_end(struct exposition *exposition)
{
	if (exposition->openmetrics)
		text_add(exposition->text, "# EOF\n");
}
