/*
 * array.h - one-dimensional arrays in Postgres' binary format
 *
 * SPDX-License-Identifier: ISC
 *
 * What a batch sends by the thousand, and neither side should have to print and parse. Like text.h, nothing here fails.
 */
#ifndef AGENT_ARRAY_H
#define AGENT_ARRAY_H

#include <stdbool.h>
#include <stdint.h>

#include "agent/text.h"

/* Object ids of types, fixed for ever: src/include/catalog/pg_type.dat of Postgres. */
enum array_type {
	ARRAY_INT8 = 20,
	ARRAY_INT4 = 23,
	ARRAY_TEXT = 25,
	ARRAY_FLOAT8 = 701,
};

struct array {
	struct text bytes;
	uint32_t count;
	bool has_null;
};

/* `room` is how many bytes the elements are expected to take. */
void array_begin(struct array *array, enum array_type type, size_t room);

void array_add_int4(struct array *array, int32_t value);
void array_add_int8(struct array *array, int64_t value);
void array_add_float8(struct array *array, double value);
void array_add_text(struct array *array, const char *value); /* NULL is null */
void array_add_null(struct array *array);

/* The whole array, to be freed by the caller. */
struct text array_end(struct array *array);

#endif /* AGENT_ARRAY_H */
