/*
 * timestamp.h - times in text (RFC 3339) and in microseconds since the Unix epoch
 *
 * SPDX-License-Identifier: ISC
 *
 * Independent of locale and time zone of the process.
 */
#ifndef LIBCBSHM_TIMESTAMP_H
#define LIBCBSHM_TIMESTAMP_H

#include <stdbool.h>
#include <stdint.h>

#define TIMESTAMP_SIZE 28 /* "2030-01-31T18:00:00.000000Z" and its NUL */

/* The years 1 to 9999. */
#define TIMESTAMP_MIN INT64_C(-62135596800000000)
#define TIMESTAMP_MAX INT64_C(253402300799999999)

/*
 * Reads a date and time with a zone, such as "2030-01-31T18:00:00Z" or "2030-01-31 19:00:00.5+01:00". Digits
 * beyond the microsecond are dropped. False: it is none, or no such day or time exists.
 */
bool timestamp_parse(const char *text, int64_t *microseconds);

/* Writes it with a "Z". False: not between TIMESTAMP_MIN and TIMESTAMP_MAX. */
bool timestamp_format(int64_t microseconds, char text[TIMESTAMP_SIZE]);

#endif /* LIBCBSHM_TIMESTAMP_H */
