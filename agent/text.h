/*
 * text.h - strings that grow, and the two notations in which they go to Postgres
 *
 * SPDX-License-Identifier: ISC
 *
 * Nothing here fails: an agent without memory can do nothing useful any more, so it says so and aborts. Readers go
 * on with what the segment holds.
 */
#ifndef AGENT_TEXT_H
#define AGENT_TEXT_H

#include <stddef.h>

struct text {
	char *data; /* NUL-terminated once anything was appended */
	size_t length;
	size_t room;
};

/* Zeroed memory; the same with another size, as realloc() does it; a copy of a string (NULL stays NULL). free() them. */
void *memory_new(size_t count, size_t size);
void *memory_resize(void *memory, size_t size);
char *memory_copy(const char *string);

/* Makes room for so many bytes more, and the NUL. */
void text_reserve(struct text *text, size_t more);

void text_append(struct text *text, const char *bytes, size_t length);
void text_add(struct text *text, const char *string);
void text_format(struct text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The string itself ("" if nothing was appended), to be freed by the caller; *text is empty again. */
char *text_take(struct text *text);

/*
 * An array in Postgres' notation: {"a","b",NULL}. Items are quoted, so that every string is itself; NULL
 * is null. text_array_end() closes it and takes it.
 */
void text_array_add(struct text *text, const char *item);
char *text_array_end(struct text *text);

/* A JSON string with its quotes; control characters are escaped, bytes that are no UTF-8 become '?'. */
void text_json(struct text *text, const char *string);

#endif /* AGENT_TEXT_H */
