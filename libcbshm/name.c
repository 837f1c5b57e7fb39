/*
 * name.c - what a breaker's name is, and UTF-8
 *
 * SPDX-License-Identifier: ISC
 *
 * Not a Unicode library: it says yes or no, and finds the end of a character. Names are compared as
 * bytes; no normalisation is done anywhere.
 */
#include "config.h"

#include "libcbshm/name.h"

#include <string.h>

#include "cbshm/segment.h"

#define NAME_MAX_BYTES (CBSHM_NAME_ROOM - 1)

_Static_assert(sizeof(((struct cbshm_record *)0)->name) == NAME_MAX_BYTES, "a record's name");
_Static_assert(sizeof(((struct name_key *)0)->words) == NAME_MAX_BYTES, "a key's name");

/* The bytes of the character at `text`, 0 if it is not valid UTF-8; *character becomes the code point. */
static size_t utf8_character(const unsigned char *text, size_t left, uint32_t *character)
{
	static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
	unsigned char first = text[0];
	size_t bytes = first < 0x80           ? 1
		       : (first >> 5) == 0x06 ? 2
		       : (first >> 4) == 0x0e ? 3
		       : (first >> 3) == 0x1e ? 4
					      : 0;

	if (bytes == 0 || bytes > left)
		return 0;
	uint32_t point = bytes == 1 ? first : first & (0x7fu >> bytes);
	for (size_t i = 1; i < bytes; i++) {
		if ((text[i] & 0xc0) != 0x80)
			return 0;
		point = point << 6 | (text[i] & 0x3f);
	}
	if (point < smallest[bytes] || point > 0x10ffff || (point >= 0xd800 && point <= 0xdfff))
		return 0;
	*character = point;
	return bytes;
}

static bool is_control(uint32_t character)
{
	return character < 0x20 || (character >= 0x7f && character <= 0x9f);
}

static bool name_valid(const char *name, size_t length)
{
	const unsigned char *text = (const unsigned char *)name;

	if (length == 0 || length > NAME_MAX_BYTES)
		return false;
	while (length) {
		uint32_t character;
		size_t bytes = utf8_character(text, length, &character);

		if (bytes == 0 || is_control(character))
			return false;
		text += bytes;
		length -= bytes;
	}
	return true;
}

size_t name_length(const char *name)
{
	size_t length = name ? strnlen(name, NAME_MAX_BYTES + 1) : 0;

	return name_valid(name, length) ? length : 0;
}

bool name_key_set(struct name_key *key, const char *name)
{
	memset(key, 0, sizeof(*key));
	key->length = name_length(name);
	if (key->length)
		memcpy(key->words, name, key->length);
	return key->length != 0;
}

bool name_key_get(const struct name_key *key, char name[CBSHM_NAME_ROOM])
{
	char bytes[NAME_MAX_BYTES];

	memcpy(bytes, key->words, sizeof(bytes));
	if (key->length > NAME_MAX_BYTES || !name_valid(bytes, key->length))
		return false;
	memcpy(name, bytes, key->length);
	name[key->length] = '\0';
	return true;
}

bool utf8_valid(const char *text, size_t length)
{
	return utf8_cut(text, length, length) == length;
}

size_t utf8_cut(const char *text, size_t length, size_t room)
{
	const unsigned char *bytes = (const unsigned char *)text;
	size_t end = 0;

	while (end < length) {
		uint32_t character;
		size_t more = utf8_character(bytes + end, length - end, &character);

		if (more == 0 || end + more > room)
			break;
		end += more;
	}
	return end;
}

void utf8_copy_sentence(char *to, size_t size, const char *text)
{
	static const char more[] = "...";
	const size_t length = strlen(text);
	size_t used = utf8_cut(text, length, size - 1);

	if (used < length) {
		used = utf8_cut(text, length, size - sizeof(more));
		for (size_t i = used; i > used / 2; i--) {
			if (text[i] == ' ') {
				used = i;
				break;
			}
		}
	}
	memcpy(to, text, used);
	strcpy(to + used, used < length ? more : "");
}

bool utf8_has_control(const char *text, const char *allowed)
{
	for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
		if ((*p < 0x20 || *p == 0x7f) && !strchr(allowed, *p))
			return true;
		if (p[0] == 0xc2 && p[1] >= 0x80 && p[1] < 0xa0)
			return true;
	}
	return false;
}
