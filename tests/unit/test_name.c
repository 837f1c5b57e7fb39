/*
 * test_name.c - names, UTF-8, and the hash of the index
 *
 * SPDX-License-Identifier: ISC
 */
#include "config.h"

#include <string.h>

#include "libcbshm/hash.h"
#include "libcbshm/name.h"
#include "libcbshm/validate.h"
#include "tests/support/tap.h"

/* The published vectors: key 00 01 .. 0f, message 00 01 .. (i - 1). */
static void test_siphash_vectors(void)
{
	static const uint8_t expected[16][8] = {
		{0x31, 0x0e, 0x0e, 0xdd, 0x47, 0xdb, 0x6f, 0x72},
		{0xfd, 0x67, 0xdc, 0x93, 0xc5, 0x39, 0xf8, 0x74},
		{0x5a, 0x4f, 0xa9, 0xd9, 0x09, 0x80, 0x6c, 0x0d},
		{0x2d, 0x7e, 0xfb, 0xd7, 0x96, 0x66, 0x67, 0x85},
		{0xb7, 0x87, 0x71, 0x27, 0xe0, 0x94, 0x27, 0xcf},
		{0x8d, 0xa6, 0x99, 0xcd, 0x64, 0x55, 0x76, 0x18},
		{0xce, 0xe3, 0xfe, 0x58, 0x6e, 0x46, 0xc9, 0xcb},
		{0x37, 0xd1, 0x01, 0x8b, 0xf5, 0x00, 0x02, 0xab},
		{0x62, 0x24, 0x93, 0x9a, 0x79, 0xf5, 0xf5, 0x93},
		{0xb0, 0xe4, 0xa9, 0x0b, 0xdf, 0x82, 0x00, 0x9e},
		{0xf3, 0xb9, 0xdd, 0x94, 0xc5, 0xbb, 0x5d, 0x7a},
		{0xa7, 0xad, 0x6b, 0x22, 0x46, 0x2f, 0xb3, 0xf4},
		{0xfb, 0xe5, 0x0e, 0x86, 0xbc, 0x8f, 0x1e, 0x75},
		{0x90, 0x3d, 0x84, 0xc0, 0x27, 0x56, 0xea, 0x14},
		{0xee, 0xf2, 0x7a, 0x8e, 0x90, 0xca, 0x23, 0xf7},
		{0xe5, 0x45, 0xbe, 0x49, 0x61, 0xca, 0x29, 0xa1},
	};
	const uint64_t key[2] = {UINT64_C(0x0706050403020100), UINT64_C(0x0f0e0d0c0b0a0908)};
	uint8_t message[16];

	for (uint8_t i = 0; i < 16; i++) {
		uint64_t want = 0;

		message[i] = i;
		for (int byte = 7; byte >= 0; byte--)
			want = want << 8 | expected[i][byte];
		CU_ASSERT_EQUAL(hash_siphash(key, message, i), want);
	}
}

static void test_names_accepted(void)
{
	char longest[129 + 1];

	memset(longest, 'x', sizeof(longest));
	longest[128] = '\0';
	CU_ASSERT_EQUAL(name_length(longest), 128);
	CU_ASSERT_EQUAL(name_length("a"), 1);
	CU_ASSERT_EQUAL(name_length("tenant-42/search"), 16);
	CU_ASSERT_EQUAL(name_length(" "), 1);
	CU_ASSERT_EQUAL(name_length("gr\xc3\xbc\xc3\x9f"), 6);
	CU_ASSERT_EQUAL(name_length("\xe2\x82\xac"), 3);
	CU_ASSERT_EQUAL(name_length("\xf0\x9f\x94\x8c"), 4);
	CU_ASSERT_EQUAL(name_length("\xc2\xa0"), 2);         /* the first after C1 */
	CU_ASSERT_EQUAL(name_length("\xed\x9f\xbf"), 3);     /* the last before the surrogates */
	CU_ASSERT_EQUAL(name_length("\xee\x80\x80"), 3);     /* the first after them */
	CU_ASSERT_EQUAL(name_length("\xf4\x8f\xbf\xbf"), 4); /* U+10FFFF */
}

static void test_names_refused(void)
{
	static const char *const wrong[] = {
		"",
		"a\nb",
		"\x1f",
		"\x7f",
		"a\xc2\x80",        /* C1 */
		"a\xc2\x9f",        /* C1 */
		"\x80",             /* a continuation alone */
		"\xc3",             /* cut */
		"\xe2\x82",         /* cut */
		"\xf0\x9f\x94",     /* cut */
		"\xc0\x80",         /* overlong */
		"\xc1\xbf",         /* overlong */
		"\xe0\x9f\xbf",     /* overlong */
		"\xf0\x8f\xbf\xbf", /* overlong */
		"\xed\xa0\x80",     /* surrogate */
		"\xed\xbf\xbf",     /* surrogate */
		"\xf4\x90\x80\x80", /* above U+10FFFF */
		"\xf8\x88\x80\x80\x80",
		"\xff",
		"\xc3(",
	};
	char longer[130];

	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		CU_ASSERT_EQUAL(name_length(wrong[i]), 0);
		if (name_length(wrong[i]))
			tap_note("case %zu", i);
	}
	CU_ASSERT_EQUAL(name_length(NULL), 0);
	memset(longer, 'x', sizeof(longer));
	longer[129] = '\0';
	CU_ASSERT_EQUAL(name_length(longer), 0);
	/* 128 bytes of which the last begins a character */
	longer[127] = '\xc3';
	longer[128] = '\0';
	CU_ASSERT_EQUAL(name_length(longer), 0);
}

static void test_keys(void)
{
	struct name_key key;
	char name[129];

	CU_ASSERT(name_key_set(&key, "abc"));
	CU_ASSERT_EQUAL(key.length, 3);
	CU_ASSERT(name_key_get(&key, name));
	CU_ASSERT_STRING_EQUAL(name, "abc");
	CU_ASSERT(!name_key_set(&key, "a\tb"));
	key.length = 129;
	CU_ASSERT(!name_key_get(&key, name));
	key.length = UINT64_MAX;
	CU_ASSERT(!name_key_get(&key, name));
	key.length = 0;
	CU_ASSERT(!name_key_get(&key, name));
	CU_ASSERT(name_key_set(&key, "abc"));
	key.length = 4; /* takes a NUL in */
	CU_ASSERT(!name_key_get(&key, name));
}

static void test_sentences(void)
{
	char text[12];

	utf8_copy_sentence(text, sizeof(text), "twelve byte");
	CU_ASSERT_STRING_EQUAL(text, "twelve byte");
	utf8_copy_sentence(text, sizeof(text), "thirteen byte");
	CU_ASSERT_STRING_EQUAL(text, "thirteen...");
	utf8_copy_sentence(text, sizeof(text), "one two three");
	CU_ASSERT_STRING_EQUAL(text, "one two...");
	utf8_copy_sentence(text, sizeof(text), "\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac");
	CU_ASSERT_STRING_EQUAL(text, "\xe2\x82\xac\xe2\x82\xac...");
	utf8_copy_sentence(text, 4, "abcd");
	CU_ASSERT_STRING_EQUAL(text, "...");
	utf8_copy_sentence(text, 4, "");
	CU_ASSERT_STRING_EQUAL(text, "");
}

static void test_cut(void)
{
	CU_ASSERT_EQUAL(utf8_cut("abc", 3, 10), 3);
	CU_ASSERT_EQUAL(utf8_cut("abc", 3, 3), 3);
	CU_ASSERT_EQUAL(utf8_cut("abc", 3, 2), 2);
	CU_ASSERT_EQUAL(utf8_cut("a\xe2\x82\xac", 4, 4), 4);
	CU_ASSERT_EQUAL(utf8_cut("a\xe2\x82\xac", 4, 3), 1);
	CU_ASSERT_EQUAL(utf8_cut("a\xe2\x82\xac", 4, 2), 1);
	CU_ASSERT_EQUAL(utf8_cut("a\xe2\x82\xac", 4, 1), 1);
	CU_ASSERT_EQUAL(utf8_cut("\xe2\x82\xac", 3, 2), 0);
	CU_ASSERT_EQUAL(utf8_cut("ab\xff"
				 "cd",
				 5, 5),
			2);
	CU_ASSERT_EQUAL(utf8_cut("", 0, 5), 0);
	CU_ASSERT(utf8_valid("gr\xc3\xbc", 4));
	CU_ASSERT(!utf8_valid("gr\xc3\xbc", 3));
}

static void test_segment_names(void)
{
	char name[203];

	CU_ASSERT(segment_name_valid("/cbshm"));
	CU_ASSERT(segment_name_valid("/..x"));
	CU_ASSERT(!segment_name_valid(NULL));
	CU_ASSERT(!segment_name_valid(""));
	CU_ASSERT(!segment_name_valid("/"));
	CU_ASSERT(!segment_name_valid("cbshm"));
	CU_ASSERT(!segment_name_valid("/a/b"));
	CU_ASSERT(!segment_name_valid("//a"));
	CU_ASSERT(!segment_name_valid("/."));
	CU_ASSERT(!segment_name_valid("/.."));
	memset(name, 'n', sizeof(name));
	name[0] = '/';
	name[201] = '\0';
	CU_ASSERT(segment_name_valid(name));
	name[201] = 'n';
	name[202] = '\0';
	CU_ASSERT(!segment_name_valid(name));
}

int main(void)
{
	CU_initialize_registry();
	CU_pSuite suite = CU_add_suite("name", NULL, NULL);
	CU_add_test(suite, "SipHash-2-4 gives the published values", test_siphash_vectors);
	CU_add_test(suite, "names that are names", test_names_accepted);
	CU_add_test(suite, "names that are none", test_names_refused);
	CU_add_test(suite, "keys, and keys from a damaged segment", test_keys);
	CU_add_test(suite, "text is cut between characters", test_cut);
	CU_add_test(suite, "a sentence is cut behind a word", test_sentences);
	CU_add_test(suite, "names of segments", test_segment_names);
	return tap_run_cunit();
}
