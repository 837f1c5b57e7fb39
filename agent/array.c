/*
 * array.c - one-dimensional arrays in Postgres' binary format
 *
 * SPDX-License-Identifier: ISC
 *
 * The format is that of array_send() and the types' own send functions: everything in network order, each element behind its
 * length, -1 for null.
 */
#include <config.h>

#include <endian.h>
#include <string.h>

#include "agent/array.h"

/* Before the elements; each field is 32 bits. */
enum { DIMENSIONS, HAS_NULL, TYPE, COUNT, FIRST_INDEX, FIELDS };

static void put_field(struct array *array, size_t field, uint32_t value)
{
	value = htobe32(value);
	memcpy(array->bytes.data + field * sizeof(value), &value, sizeof(value));
}

void array_begin(struct array *array, enum array_type type, size_t room)
{
	*array = (struct array){0};
	text_reserve(&array->bytes, FIELDS * sizeof(uint32_t) + room);
	array->bytes.length = FIELDS * sizeof(uint32_t);
	put_field(array, TYPE, (uint32_t)type);
	put_field(array, FIRST_INDEX, 1);
}

static void add(struct array *array, const void *value, uint32_t size)
{
	const uint32_t length = htobe32(size);

	text_reserve(&array->bytes, sizeof(length) + size);
	memcpy(array->bytes.data + array->bytes.length, &length, sizeof(length));
	memcpy(array->bytes.data + array->bytes.length + sizeof(length), value, size);
	array->bytes.length += sizeof(length) + size;
	array->count++;
}

void array_add_int4(struct array *array, int32_t value)
{
	const uint32_t bits = htobe32((uint32_t)value);

	add(array, &bits, sizeof(bits));
}

void array_add_int8(struct array *array, int64_t value)
{
	const uint64_t bits = htobe64((uint64_t)value);

	add(array, &bits, sizeof(bits));
}

void array_add_float8(struct array *array, double value)
{
	uint64_t bits;

	memcpy(&bits, &value, sizeof(bits));
	array_add_int8(array, (int64_t)bits);
}

void array_add_text(struct array *array, const char *value)
{
	if (value != NULL)
		add(array, value, (uint32_t)strlen(value));
	else
		array_add_null(array);
}

void array_add_null(struct array *array)
{
	const uint32_t null = htobe32(UINT32_MAX);

	text_append(&array->bytes, (const char *)&null, sizeof(null));
	array->count++;
	array->has_null = true;
}

struct text array_end(struct array *array)
{
	struct text taken;

	put_field(array, DIMENSIONS, array->count > 0 ? 1 : 0);
	put_field(array, HAS_NULL, array->has_null ? 1 : 0);
	put_field(array, COUNT, array->count);
	/* An array of nothing has no dimensions, and so no sizes. */
	if (array->count == 0)
		array->bytes.length = COUNT * sizeof(uint32_t);
	taken = array->bytes;
	*array = (struct array){0};
	return taken;
}
