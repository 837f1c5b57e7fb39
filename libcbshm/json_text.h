/*
 * json_text.h - what cJSON does not do with a JSON text: be strict, and give a value back as it was written
 *
 * SPDX-License-Identifier: ISC
 *
 * No parser: cJSON parses the same text, and says where what is. Shared by the library and the agent.
 */
#ifndef LIBCBSHM_JSON_TEXT_H
#define LIBCBSHM_JSON_TEXT_H

#include <stddef.h>

/*
 * Refuses what cJSON would let through or stumble over: raw control characters, escaped NULs (which would cut
 * a C string short of what was meant), loose numbers, more than `depth_max` levels. NULL, or what is wrong,
 * in words, at byte *at. `text` ends with a NUL, and `size` is its length without that.
 */
const char *json_text_scan(const char *text, size_t size, int depth_max, size_t *at);

/*
 * The text of a value in an object or array: of the first, of the one after `value` (NULL: that is the last), and of
 * number `index` of those there are. Only for a text that has been scanned and parsed; `container` begins with its
 * bracket and is not empty.
 */
const char *json_text_first(const char *container);
const char *json_text_next(const char *value);
const char *json_text_nth(const char *container, size_t index);

/*
 * The value that begins there, without blanks between its tokens; free(). cJSON's own printing would change numbers of
 * more than 15 digits. NULL: out of memory.
 */
char *json_text_copy(const char *value);

#endif /* LIBCBSHM_JSON_TEXT_H */
