/*
 * name.h - what a breaker's name is, and UTF-8
 *
 * SPDX-License-Identifier: ISC
 *
 * Shared by the library and the agent, so that both refuse the same. Everything here is
 * async-signal-safe.
 */
#ifndef LIBCBSHM_NAME_H
#define LIBCBSHM_NAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NAME_WORDS 16

/* A name as a record holds it: padded with zero bytes. */
struct name_key {
	uint64_t words[NAME_WORDS];
	uint64_t length;
};

/*
 * The length of a breaker's name, or 0 if it is none: 1 to 128 bytes of valid UTF-8 without control
 * characters (C0, DEL, C1). NULL is none.
 */
size_t name_length(const char *name);

/* Fills the key; false if the name is none. */
bool name_key_set(struct name_key *key, const char *name);

/* Writes the key's name and a NUL; false if the key (which may come from a damaged segment) holds none. */
bool name_key_get(const struct name_key *key, char name[129]);

/* Valid UTF-8: no overlong form, no surrogate, nothing above U+10FFFF. */
bool utf8_valid(const char *text, size_t length);

/* Does valid UTF-8 hold a control character (C0, DEL, C1) that is not in `allowed`? */
bool utf8_has_control(const char *text, const char *allowed);

/* The longest prefix of valid UTF-8 of at most `room` bytes that ends at a character's end. */
size_t utf8_cut(const char *text, size_t length, size_t room);

/* Copies a sentence into `size` >= 4 bytes. One that does not fit is cut behind a word, if there is one, and ends in "...". */
void utf8_copy_sentence(char *to, size_t size, const char *text);

#endif /* LIBCBSHM_NAME_H */
