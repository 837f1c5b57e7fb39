/*
 * timespec.h - times and durations as people write and read them
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef CBCTL_TIMESPEC_H
#define CBCTL_TIMESPEC_H

#include <stddef.h>
#include <stdint.h>

/* The longest duration, ten years. */
#define DURATION_MAX_US INT64_C(315360000000000)

/*
 * "90s", "2h", "1h30m", "7d", "1.5h": to microseconds. Units are w, d, h, m or min, s, ms; each at
 * most once, the larger first. Returns NULL, or what is wrong with it, to be put behind the
 * option's name.
 */
const char *duration_parse(const char *text, int64_t *microseconds);

/*
 * A time with its zone as in RFC 3339; or one in the local zone ($TZ): "18:00", the next one, "today 18:00",
 * "tomorrow 09:00", "friday 17:00", "2030-01-31 18:00"; or "never": to microseconds since the Unix epoch, or
 * INT64_MAX. `now` is what the time must lie after. Returns NULL, or what is wrong with it.
 */
const char *until_parse(const char *text, int64_t now, int64_t *microseconds);

/*
 * A duration before `now`, as in duration_parse(), or a time as in until_parse(), but the last 18:00 or friday, and not
 * "never". Returns likewise.
 */
const char *since_parse(const char *text, int64_t now, int64_t *microseconds);

/* "23 h 59 min", "45 s": the two largest units, rounded down. */
void duration_format(int64_t microseconds, char *text, size_t size);

/* "1d", "1h30m", "0.5s": exactly, as duration_parse() reads it. */
void duration_write(int64_t microseconds, char *text, size_t size);

/* "2030-01-31 19:00:00 CET": the time in the local zone ($TZ). */
void time_format(int64_t microseconds, char *text, size_t size);

#endif /* CBCTL_TIMESPEC_H */
