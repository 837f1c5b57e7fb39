/*
 * fuzz_announcement.c - throws bytes at what takes notifications apart
 *
 * SPDX-License-Identifier: ISC
 *
 * A libFuzzer target like fuzz_session.c, whose head says how it is run. Anybody who may connect to the database can say
 * anything on the channel. Each input is heard twice: as it is, when nothing of it may be believed; and with the seal that
 * the database would have put to it, which a fuzzer cannot find by itself, when its fields must be in their ranges.
 */
#include <config.h>

#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/announcement.h"
#include "cbshm/segment.h"
#include "tests/fuzz/target.h"

#define PAYLOAD_MAX 8000 /* of a notification */
#define SEAL        (1 + 2 * SHA256_DIGEST_LENGTH)

static const char digits[] = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

const char fuzz_corpus[] = "tests/fuzz/corpus-announcement";

static void must(int condition, const char *what)
{
	if (condition)
		return;
	fprintf(stderr, "fuzz_announcement: %s\n", what);
	abort();
}

/* As cbshm.seal() does: the digest of the key and of the digest of the key and what is said. */
static void seal(const struct announcement_key *key, char *said)
{
	const size_t length = strlen(said);
	unsigned char block[SHA256_DIGEST_LENGTH + PAYLOAD_MAX], digest[SHA256_DIGEST_LENGTH];

	memcpy(block, key->bytes, sizeof(key->bytes));
	memcpy(block + sizeof(key->bytes), said, length);
	SHA256(block, sizeof(key->bytes) + length, digest);
	memcpy(block + sizeof(key->bytes), digest, sizeof(digest));
	SHA256(block, sizeof(key->bytes) + sizeof(digest), digest);
	said[length] = '\x01';
	for (unsigned i = 0; i < sizeof(digest); i++)
		sprintf(said + length + 1 + 2 * (size_t)i, "%02x", digest[i]);
}

static void check_row(const struct announcement *announced)
{
	const struct breaker_row *row = &announced->row;

	must(announced->settings_version >= 1, "settings without a version");
	must(row->disabled_by != NULL && row->disabled_reason != NULL, "a text that is not there");
	must(row->drift_threshold >= 0 && row->drift_threshold <= 1, "a threshold out of range");
	must(row->failure_threshold >= 1 && row->failure_threshold <= INT32_MAX &&
		     row->schema_error_threshold >= 1 && row->schema_error_threshold <= INT32_MAX &&
		     row->consecutive_failures <= INT32_MAX && row->default_ttl >= 0,
	     "a number out of range");
}

static void hear(const char *said, const struct announcement_key *key, bool sealed)
{
	char payload[PAYLOAD_MAX + SEAL + 1];
	struct announcement announced;
	int64_t barrier;

	strcpy(payload, said);
	if (announcement_parse(payload, key, &announced)) {
		must(strchr("cnd", announced.kind) != NULL, "of no kind");
		must(announced.row.name[0] != '\0' && strlen(announced.row.name) < CBSHM_NAME_ROOM,
		     "a name that is none");
		must(sealed || !announced.whole, "believed without a seal");
		if (announced.whole)
			check_row(&announced);
	}
	strcpy(payload, said);
	must(!announcement_barrier(payload, key, &barrier) || sealed, "a barrier without a seal");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct announcement_key key, unknown;
	char said[PAYLOAD_MAX + SEAL + 1] = "";

	if (size > PAYLOAD_MAX || memchr(data, '\0', size) != NULL)
		return 0;
	if (!key.known)
		announcement_key_set(&key, digits);
	must(key.known, "a key that is none");
	memcpy(said, data, size);
	hear(said, &key, false);
	seal(&key, said);
	hear(said, &key, true);
	hear(said, &unknown, false);
	return 0;
}
