/*
 * text.c - strings that grow, arrays of Postgres and strings of JSON
 *
 * SPDX-License-Identifier: ISC
 *
 * Written by hand and not with cJSON, since a batch holds thousands of them.
 */
#include <config.h>

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/log.h"
#include "agent/text.h"
#include "libcbshm/name.h"

static void *checked(void *memory)
{
	if (memory == NULL) {
		log_problem(LOG_LEVEL_ERROR, "out_of_memory",
			    "the agent aborts, readers go on: give it more memory", "pid=%d",
			    (int)getpid());
		abort();
	}
	return memory;
}

void *memory_new(size_t count, size_t size)
{
	return checked(calloc(count > 0 ? count : 1, size));
}

void *memory_resize(void *memory, size_t size)
{
	return checked(realloc(memory, size));
}

char *memory_copy(const char *string)
{
	return string == NULL ? NULL : checked(strdup(string));
}

void text_reserve(struct text *text, size_t more)
{
	if (text->room - text->length > more)
		return;
	text->room = (text->length + more + 1) * 2;
	if (text->room < 64)
		text->room = 64;
	text->data = memory_resize(text->data, text->room);
}

void text_append(struct text *text, const char *bytes, size_t length)
{
	text_reserve(text, length);
	memcpy(text->data + text->length, bytes, length);
	text->length += length;
	text->data[text->length] = '\0';
}

void text_add(struct text *text, const char *string)
{
	text_append(text, string, strlen(string));
}

void text_format(struct text *text, const char *format, ...)
{
	va_list args;
	int length;

	va_start(args, format);
	length = vsnprintf(NULL, 0, format, args);
	va_end(args);
	if (length < 0)
		return;
	text_reserve(text, (size_t)length);
	va_start(args, format);
	vsnprintf(text->data + text->length, (size_t)length + 1, format, args);
	va_end(args);
	text->length += (size_t)length;
}

char *text_take(struct text *text)
{
	char *taken = text->data;

	if (taken == NULL)
		taken = memory_copy("");
	*text = (struct text){0};
	return taken;
}

void text_array_add(struct text *text, const char *item)
{
	text_append(text, text->length == 0 ? "{" : ",", 1);
	if (item == NULL) {
		text_append(text, "NULL", 4);
		return;
	}
	text_append(text, "\"", 1);
	for (size_t span; *item != '\0'; item += span) {
		span = strcspn(item, "\"\\");
		text_append(text, item, span);
		if (span == 0) {
			text_append(text, "\\", 1);
			text_append(text, item, span = 1);
		}
	}
	text_append(text, "\"", 1);
}

char *text_array_end(struct text *text)
{
	text_add(text, text->length == 0 ? "{}" : "}");
	return text_take(text);
}

/* Bytes of the character at `p`, which is no ASCII; 0: it is none. */
static size_t character_length(const char *p)
{
	const unsigned char c = (unsigned char)*p;
	const size_t length = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;

	return strnlen(p, length) == length && utf8_valid(p, length) ? length : 0;
}

void text_json(struct text *text, const char *string)
{
	size_t length;

	text_append(text, "\"", 1);
	for (const char *p = string; *p != '\0'; p++) {
		const unsigned char c = (unsigned char)*p;

		if (c == '"' || c == '\\')
			text_format(text, "\\%c", c);
		else if (c < 0x20 || c == 0x7f)
			text_format(text, "\\u%04x", c);
		else if (c < 0x80)
			text_append(text, p, 1);
		else if ((length = character_length(p)) > 0)
			text_append(text, p, length), p += length - 1;
		else
			text_append(text, "?", 1);
	}
	text_append(text, "\"", 1);
}
