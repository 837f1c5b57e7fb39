/*
 * announcement.c - takes apart what cbshm.announce() has put together
 *
 * SPDX-License-Identifier: ISC
 *
 * Not here: what to do with it (mirror.c).
 */
#include <config.h>

#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#include "agent/announcement.h"
#include "cbshm/segment.h"

#define SEPARATOR "\x01" /* no text of a breaker holds it */
#define DIGEST    32     /* bytes of a SHA-256 */

/* What is left to be read; `bad` once something was not as expected. */
struct fields {
	char *rest;
	bool bad;
};

static char *text(struct fields *fields)
{
	char *field = strsep(&fields->rest, SEPARATOR);

	fields->bad = fields->bad || field == NULL;
	return field != NULL ? field : (char *)"";
}

/* `null` stands for the empty field. */
static int64_t number(struct fields *fields, int64_t min, int64_t max, int64_t null)
{
	const char *field = text(fields);
	char *end;
	long long value;

	if (*field == '\0' && null != 0)
		return null;
	errno = 0;
	value = strtoll(field, &end, 10);
	fields->bad = fields->bad || errno != 0 || end == field || *end != '\0' || value < min ||
		      value > max;
	return value;
}

static int64_t moment(struct fields *fields)
{
	return number(fields, INT64_MIN + 1, INT64_MAX, INT64_MIN);
}

static double fraction(struct fields *fields)
{
	const char *field = text(fields);
	char *end;
	double value = strtod(field, &end);

	fields->bad = fields->bad || end == field || *end != '\0' || !(value >= 0 && value <= 1);
	return value;
}

static int digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Exactly so many bytes from digits, dashes apart. */
static bool from_hex(const char *digits, uint8_t *bytes, unsigned size)
{
	unsigned count = 0;

	for (; *digits != '\0'; digits++) {
		if (*digits == '-')
			continue;
		if (digit(*digits) < 0 || count == 2 * size)
			return false;
		bytes[count / 2] = (uint8_t)(bytes[count / 2] << 4 | digit(*digits));
		count++;
	}
	return count == 2 * size;
}

static void uuid(struct fields *fields, uint8_t bytes[16])
{
	const char *field = text(fields);

	fields->bad = fields->bad || (*field != '\0' && !from_hex(field, bytes, 16));
}

/* ---- the seal ---- */

void announcement_key_set(struct announcement_key *key, const char *digits)
{
	key->known = from_hex(digits, key->bytes, sizeof(key->bytes));
}

static bool digest(const struct announcement_key *key, const void *said, size_t length,
		   uint8_t result[DIGEST])
{
	EVP_MD_CTX *context = EVP_MD_CTX_new();
	const bool done = context != NULL && EVP_DigestInit_ex(context, EVP_sha256(), NULL) == 1 &&
			  EVP_DigestUpdate(context, key->bytes, sizeof(key->bytes)) == 1 &&
			  EVP_DigestUpdate(context, said, length) == 1 &&
			  EVP_DigestFinal_ex(context, result, NULL) == 1;

	EVP_MD_CTX_free(context);
	return done;
}

/* As cbshm.seal() makes it. The last field is cut off. */
static bool take_seal(char *payload, const struct announcement_key *key)
{
	char *last = strrchr(payload, *SEPARATOR);
	uint8_t seal[DIGEST], inner[DIGEST], outer[DIGEST];

	if (last == NULL || !key->known || !from_hex(last + 1, seal, DIGEST))
		return false;
	*last = '\0';
	return digest(key, payload, (size_t)(last - payload), inner) &&
	       digest(key, inner, DIGEST, outer) && CRYPTO_memcmp(seal, outer, DIGEST) == 0;
}

/* ---- the row ---- */

/* In the order of cbshm.announce(). */
static bool parse_row(char *payload, struct announcement *announcement)
{
	struct breaker_row *row = &announcement->row;
	struct fields fields = {.rest = payload};

	announcement->settings_version = (uint64_t)number(&fields, 1, INT64_MAX, 0);
	row->disabled = number(&fields, 0, 1, 0) != 0;
	row->disabled_by = text(&fields);
	row->disabled_reason = text(&fields);
	row->opened_at = moment(&fields);
	row->disabled_until = moment(&fields);
	uuid(&fields, row->incident_id);
	row->consecutive_failures = (uint32_t)number(&fields, 0, INT32_MAX, 0);
	row->last_failure_at = moment(&fields);
	row->updated_at = moment(&fields);
	row->drift_threshold = fraction(&fields);
	row->failure_threshold = (uint32_t)number(&fields, 1, INT32_MAX, 0);
	row->schema_error_threshold = (uint32_t)number(&fields, 1, INT32_MAX, 0);
	row->default_ttl = number(&fields, 0, INT64_MAX, 0);
	row->auto_recover = number(&fields, 0, 1, 0) != 0;
	return !fields.bad && fields.rest == NULL;
}

bool announcement_parse(char *payload, const struct announcement_key *key,
			struct announcement *announcement)
{
	const bool sealed = take_seal(payload, key);
	char *name, *rest;

	*announcement = (struct announcement){.kind = payload[0]};
	if (payload[0] == '\0' || strchr("cnd", payload[0]) == NULL || payload[1] != ' ')
		return false;
	announcement->row.version = strtoull(payload + 2, &name, 10);
	if (name == payload + 2 || *name++ != ' ')
		return false;
	rest = name;
	announcement->row.name = strsep(&rest, SEPARATOR);
	if (*announcement->row.name == '\0' || strlen(announcement->row.name) >= CBSHM_NAME_ROOM)
		return false;
	announcement->whole = sealed && rest != NULL && parse_row(rest, announcement);
	return true;
}

bool announcement_barrier(char *payload, const struct announcement_key *key, int64_t *barrier)
{
	if (!take_seal(payload, key) || strncmp(payload, "b ", 2) != 0)
		return false;
	*barrier = strtoll(payload + 2, NULL, 10);
	return true;
}
