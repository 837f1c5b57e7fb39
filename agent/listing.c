/*
 * listing.c - picks a page of breakers out of the segment's slots, which are in no order
 *
 * SPDX-License-Identifier: ISC
 *
 * A page costs one walk over all slots: some milliseconds for 65,536 of them. Whoever needs all breakers
 * often maps the segment.
 */
#include <config.h>

#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/listing.h"
#include "agent/message.h"
#include "agent/segment_writer.h"
#include "libcbshm/timestamp.h"

#define ENVELOPE_SIZE 64 /* {"parameters":{"breakers":[],"complete":false}} */

struct entry {
	char name[CBSHM_NAME_ROOM];
	uint32_t slot;
};

/* The smallest names so far, sorted; one more than the page takes, to know whether it is the last. */
struct page {
	struct entry entries[LISTING_MAX + 1];
	size_t count;
};

static void page_offer(struct page *page, size_t room, const char *name, uint32_t slot)
{
	size_t at = page->count;

	if (at == room && strcmp(name, page->entries[at - 1].name) >= 0)
		return;
	if (at == room)
		at--;
	else
		page->count++;
	for (; at > 0 && strcmp(page->entries[at - 1].name, name) > 0; at--)
		page->entries[at] = page->entries[at - 1];
	strcpy(page->entries[at].name, name);
	page->entries[at].slot = slot;
}

static void page_collect(struct page *page, size_t room, const struct segment_writer *segment,
			 const char *after)
{
	const uint32_t slots = segment_writer_slots(segment);
	char name[CBSHM_NAME_ROOM];
	struct cbshm_detail detail;

	page->count = 0;
	for (uint32_t slot = 0; slot < slots; slot++) {
		if (!segment_writer_read(segment, slot, name, &detail))
			continue;
		if (after == NULL || strcmp(name, after) > 0)
			page_offer(page, room, name, slot);
	}
}

static bool add_time(cJSON *object, const char *key, int64_t microseconds)
{
	char text[TIMESTAMP_SIZE];

	if (!timestamp_format(microseconds, text)) /* INT64_MIN: there is none */
		return cJSON_AddNullToObject(object, key) != NULL;
	return cJSON_AddStringToObject(object, key, text) != NULL;
}

static bool add_text(cJSON *object, const char *key, const char *text, size_t length)
{
	char copy[CBSHM_DETAIL_REASON_BYTES + 1];

	if (length == 0 || length >= sizeof(copy))
		return cJSON_AddNullToObject(object, key) != NULL;
	memcpy(copy, text, length);
	copy[length] = '\0';
	return cJSON_AddStringToObject(object, key, copy) != NULL;
}

static bool add_incident_id(cJSON *object, const uint8_t id[16])
{
	static const uint8_t none[16];
	char text[37], *p = text;

	if (memcmp(id, none, sizeof(none)) == 0)
		return cJSON_AddNullToObject(object, "incident_id") != NULL;
	for (int i = 0; i < 16; i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*p++ = '-';
		p += sprintf(p, "%02x", id[i]);
	}
	return cJSON_AddStringToObject(object, "incident_id", text) != NULL;
}

/* As text: a double does not hold every version. */
static bool add_integer(cJSON *object, const char *key, uint64_t value)
{
	char text[sizeof("18446744073709551615")];

	snprintf(text, sizeof(text), "%" PRIu64, value);
	return cJSON_AddRawToObject(object, key, text) != NULL;
}

static bool add_policy(cJSON *state, const struct cbshm_detail *detail)
{
	cJSON *policy = cJSON_AddObjectToObject(state, "policy");

	return policy != NULL &&
	       cJSON_AddNumberToObject(policy, "drift_threshold", detail->drift_threshold) &&
	       add_integer(policy, "failure_threshold", detail->failure_threshold) &&
	       add_integer(policy, "schema_error_threshold", detail->schema_error_threshold) &&
	       cJSON_AddNumberToObject(policy, "default_ttl_seconds",
				       (double)detail->default_ttl / 1e6) &&
	       cJSON_AddBoolToObject(policy, "auto_recover",
				     (detail->flags & CBSHM_DETAIL_AUTO_RECOVER) != 0);
}

static bool add_state(cJSON *state, const char *name, const struct cbshm_detail *detail)
{
	return cJSON_AddStringToObject(state, "name", name) &&
	       cJSON_AddBoolToObject(state, "is_open",
				     (detail->flags & CBSHM_DETAIL_DISABLED) != 0) &&
	       add_time(state, "opened_at", detail->opened_at) &&
	       add_text(state, "reason", detail->disabled_reason, detail->reason_length) &&
	       add_incident_id(state, detail->incident_id) &&
	       add_integer(state, "consecutive_failures", detail->consecutive_failures) &&
	       add_time(state, "last_failure_at", detail->last_failure_at) &&
	       add_time(state, "disabled_until", detail->disabled_until) &&
	       add_text(state, "disabled_by", detail->disabled_by, detail->actor_length) &&
	       add_integer(state, "version", detail->version) &&
	       add_time(state, "updated_at", detail->updated_at) && add_policy(state, detail);
}

char *listing_state(const char *name, const struct cbshm_detail *detail)
{
	cJSON *state = cJSON_CreateObject();
	char *text = NULL;

	if (add_state(state, name, detail))
		text = cJSON_PrintUnformatted(state);
	cJSON_Delete(state);
	return text;
}

static bool add_entries(cJSON *breakers, const struct segment_writer *segment,
			const struct page *page, uint32_t limit, bool *complete)
{
	size_t size = ENVELOPE_SIZE;

	*complete = page->count <= limit;
	for (size_t i = 0; i < page->count && i < limit; i++) {
		char name[CBSHM_NAME_ROOM];
		struct cbshm_detail detail;
		char *text;
		bool added;

		if (!segment_writer_read(segment, page->entries[i].slot, name, &detail))
			continue;
		text = listing_state(name, &detail);
		if (text == NULL)
			return false;
		size += strlen(text) + 1;
		if (size > MESSAGE_SIZE_MAX) {
			free(text);
			*complete = false;
			return true;
		}
		added = cJSON_AddItemToArray(breakers, cJSON_CreateRaw(text));
		free(text);
		if (!added)
			return false;
	}
	return true;
}

cJSON *listing_page(const struct segment_writer *segment, const char *after, uint32_t limit)
{
	struct page *page = malloc(sizeof(*page));
	cJSON *reply = cJSON_CreateObject();
	cJSON *breakers = cJSON_AddArrayToObject(reply, "breakers");
	bool complete, added;

	if (page != NULL && breakers != NULL) {
		page_collect(page, limit + 1, segment, after);
		added = add_entries(breakers, segment, page, limit, &complete) &&
			cJSON_AddBoolToObject(reply, "complete", complete);
	} else {
		added = false;
	}
	free(page);
	if (added)
		return reply;
	cJSON_Delete(reply);
	return NULL;
}
