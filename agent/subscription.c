/*
 * subscription.c - who wants to hear of changes, and what each has not been told yet
 *
 * SPDX-License-Identifier: ISC
 *
 * One list for all: the slots of the segment that have changed, in the order in which they last did. A subscription is a marker in it: what
 * stands behind it has not been told. A slot that changes moves to the end, behind every marker, so that a subscriber costs a
 * marker, however slow it is. A removed breaker has an entry of its own, for the few who have not heard of it: the slot may
 * serve another one by then.
 *
 * Nothing of this exists while nobody has subscribed.
 */
#include <config.h>

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <event2/event.h>

#include "agent/listing.h"
#include "agent/message.h"
#include "agent/segment_writer.h"
#include "agent/subscription.h"
#include "agent/text.h"

#define CHUNK         1024u /* slots whose entries are allocated at once */
#define CHUNKS        (CBSHM_CAPACITY_MAX / CHUNK)
#define STATES_MAX    100  /* in one reply */
#define WORK_MAX      5000 /* entries looked at in one turn of the loop */
#define PAUSE_US      5000 /* between two replies, so that a flood of changes becomes few */
#define ENVELOPE_SIZE 128

/* entry.slot of what is no slot */
#define ENTRY_MARKER UINT32_MAX
#define ENTRY_GONE   (UINT32_MAX - 1)

struct entry {
	struct entry *next, *previous; /* NULL: not in the list */
	uint32_t slot;
};

struct gone {
	struct entry entry;
	uint64_t serial;  /* subscriptions that joined later never knew the breaker */
	unsigned waiting; /* subscriptions that have not been told; the last one frees it */
	char name[CBSHM_NAME_ROOM];
};

struct subscriptions {
	struct event_base *base;
	struct segment_writer *segment;
	struct entry list;            /* its head */
	struct entry *chunks[CHUNKS]; /* NULL: not needed yet */
	struct subscription *first;
	unsigned count;
	uint64_t serial;
};

struct subscription {
	struct subscriptions *hub;
	struct subscription *next, *previous;
	char **names; /* sorted; NULL: all */
	size_t name_count;
	struct entry at; /* what stands before it has been told */
	size_t listed;   /* so many names, or slots, have been told at the beginning */
	bool listing;
	bool idle; /* a change calls `ready` */
	uint64_t joined;
	unsigned gone; /* removed breakers that it has not been told of */
	struct event *timer;
	int64_t not_before; /* microseconds of CLOCK_MONOTONIC */
	void (*ready)(void *arg);
	void *arg;
};

static int64_t now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* ---- the list --------------------------------------------------------------------------- */

static void entry_remove(struct entry *entry)
{
	if (entry->next == NULL)
		return;
	entry->next->previous = entry->previous;
	entry->previous->next = entry->next;
	entry->next = entry->previous = NULL;
}

static void entry_insert(struct entry *after, struct entry *entry)
{
	entry->next = after->next;
	entry->previous = after;
	after->next->previous = entry;
	after->next = entry;
}

static void entry_append(struct subscriptions *hub, struct entry *entry)
{
	entry_insert(hub->list.previous, entry);
}

static struct entry *slot_entry(struct subscriptions *hub, uint32_t slot)
{
	struct entry **chunk = &hub->chunks[slot / CHUNK];

	if (*chunk == NULL) {
		*chunk = memory_new(CHUNK, sizeof(**chunk));
		for (uint32_t i = 0; i < CHUNK; i++)
			(*chunk)[i].slot = slot / CHUNK * CHUNK + i;
	}
	return &(*chunk)[slot % CHUNK];
}

static struct gone *gone_of(struct entry *entry)
{
	return (struct gone *)(void *)((char *)entry - offsetof(struct gone, entry));
}

/* One more subscription has been told, or will not be. */
static void gone_release(struct gone *gone)
{
	if (--gone->waiting > 0)
		return;
	entry_remove(&gone->entry);
	free(gone);
}

static bool gone_concerns(const struct subscription *subscription, const struct gone *gone)
{
	return gone->serial > subscription->joined;
}

/* ---- changes ---------------------------------------------------------------------------- */

static void schedule(struct subscription *subscription)
{
	int64_t wait = subscription->not_before - now_us();
	struct timeval time = {0};

	if (wait > 0)
		time.tv_usec = (suseconds_t)(wait < PAUSE_US ? wait : PAUSE_US);
	subscription->idle = false;
	event_add(subscription->timer, &time);
}

static void wake_all(struct subscriptions *hub)
{
	for (struct subscription *s = hub->first; s != NULL; s = s->next) {
		if (s->idle)
			schedule(s);
	}
}

static void append_gone(struct subscriptions *hub, const char *name)
{
	struct gone *gone = memory_new(1, sizeof(*gone));

	gone->entry.slot = ENTRY_GONE;
	gone->serial = ++hub->serial;
	gone->waiting = hub->count;
	strncpy(gone->name, name, sizeof(gone->name) - 1);
	entry_append(hub, &gone->entry);
	for (struct subscription *s = hub->first; s != NULL; s = s->next)
		s->gone++;
}

/* The slots have new numbers: everything counts as changed. */
static void append_all(struct subscriptions *hub)
{
	const uint32_t slots = segment_writer_slots(hub->segment);

	for (uint32_t chunk = 0; chunk < CHUNKS; chunk++) {
		for (uint32_t i = 0; hub->chunks[chunk] != NULL && i < CHUNK; i++)
			entry_remove(&hub->chunks[chunk][i]);
	}
	for (uint32_t slot = 0; slot < slots; slot++)
		entry_append(hub, slot_entry(hub, slot));
}

static void on_change(void *arg, uint32_t slot, const char *removed)
{
	struct subscriptions *hub = arg;

	if (slot == SEGMENT_WRITER_ALL_SLOTS) {
		append_all(hub);
	} else {
		struct entry *entry = slot_entry(hub, slot);

		entry_remove(entry);
		if (removed != NULL)
			append_gone(hub, removed);
		else
			entry_append(hub, entry);
	}
	wake_all(hub);
}

static void hub_stop(struct subscriptions *hub)
{
	segment_writer_watch(hub->segment, NULL, NULL);
	for (uint32_t i = 0; i < CHUNKS; i++) {
		free(hub->chunks[i]);
		hub->chunks[i] = NULL;
	}
	hub->list.next = hub->list.previous = &hub->list;
}

struct subscriptions *subscriptions_new(struct event_base *base, struct segment_writer *segment)
{
	struct subscriptions *hub = memory_new(1, sizeof(*hub));

	hub->base = base;
	hub->segment = segment;
	hub->list.slot = ENTRY_MARKER;
	hub->list.next = hub->list.previous = &hub->list;
	return hub;
}

void subscriptions_free(struct subscriptions *hub)
{
	assert(hub == NULL || hub->count == 0);
	free(hub);
}

/* ---- one reply -------------------------------------------------------------------------- */

struct draft {
	struct text breakers;
	struct text unknown;
	unsigned items;
	bool full;
};

/* An item of a JSON array. False: it is for the next reply. */
static bool draft_add(struct draft *draft, struct text *array, const char *json)
{
	size_t size = draft->breakers.length + draft->unknown.length + strlen(json);

	if (draft->items == STATES_MAX ||
	    (draft->items > 0 && size + ENVELOPE_SIZE > MESSAGE_SIZE_MAX)) {
		draft->full = true;
		return false;
	}
	if (array->length > 0)
		text_add(array, ",");
	text_add(array, json);
	draft->items++;
	return true;
}

static bool draft_state(struct draft *draft, const char *name, const struct cbshm_detail *detail)
{
	char *json = listing_state(name, detail);
	bool added = json != NULL && draft_add(draft, &draft->breakers, json);

	draft->full |= json == NULL; /* out of memory: another time */
	free(json);
	return added;
}

static bool draft_unknown(struct draft *draft, const char *name)
{
	struct text json = {0};

	text_json(&json, name);
	bool added = draft_add(draft, &draft->unknown, json.data);
	free(json.data);
	return added;
}

static char *draft_finish(struct draft *draft, bool complete)
{
	char *breakers = text_take(&draft->breakers), *unknown = text_take(&draft->unknown);
	struct text reply = {0};

	text_add(&reply, "{\"parameters\":{\"breakers\":[");
	text_add(&reply, breakers);
	text_add(&reply, "],\"unknown\":[");
	text_add(&reply, unknown);
	text_add(&reply, complete ? "],\"complete\":true}" : "],\"complete\":false}");
	text_add(&reply, ",\"continues\":true}");
	free(breakers);
	free(unknown);
	return text_take(&reply);
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool is_wanted(const struct subscription *subscription, const char *name)
{
	return subscription->names == NULL ||
	       bsearch(&name, subscription->names, subscription->name_count, sizeof(name),
		       compare_names) != NULL;
}

/* The next of those that are to be told at the beginning. False: there is no room for it. */
static bool tell_name(const struct subscription *subscription, const char *wanted,
		      struct draft *draft)
{
	struct segment_writer *segment = subscription->hub->segment;
	char name[CBSHM_NAME_ROOM];
	struct cbshm_detail detail;
	uint32_t slot;

	if (segment_writer_find(segment, wanted, &slot) &&
	    segment_writer_read(segment, slot, name, &detail))
		return draft_state(draft, name, &detail);
	return draft_unknown(draft, wanted);
}

static bool tell_slot(const struct subscription *subscription, uint32_t slot, struct draft *draft)
{
	char name[CBSHM_NAME_ROOM];
	struct cbshm_detail detail;

	return !segment_writer_read(subscription->hub->segment, slot, name, &detail) ||
	       !is_wanted(subscription, name) || draft_state(draft, name, &detail);
}

/*
 * What there is at the beginning, by number of name or slot and not by the list: a slot that changes again and again is
 * always at its end.
 */
static void tell_beginning(struct subscription *subscription, struct draft *draft)
{
	const size_t count = subscription->names != NULL
				     ? subscription->name_count
				     : segment_writer_slots(subscription->hub->segment);
	size_t *at = &subscription->listed;

	for (unsigned work = 0; work < WORK_MAX && *at < count; work++, (*at)++) {
		if (subscription->names != NULL
			    ? !tell_name(subscription, subscription->names[*at], draft)
			    : !tell_slot(subscription, (uint32_t)*at, draft))
			return;
	}
	subscription->listing = *at < count;
}

/* If the breaker has come back, its slot is in the list. */
static bool tell_gone(const struct subscription *subscription, const struct gone *gone,
		      struct draft *draft)
{
	uint32_t slot;

	return !gone_concerns(subscription, gone) || !is_wanted(subscription, gone->name) ||
	       segment_writer_find(subscription->hub->segment, gone->name, &slot) ||
	       draft_unknown(draft, gone->name);
}

/* Tells what an entry is about, if it concerns this subscription. False: there is no room for it. */
static bool tell_entry(struct subscription *subscription, struct entry *entry, struct draft *draft)
{
	if (entry->slot == ENTRY_MARKER)
		return true;
	if (entry->slot == ENTRY_GONE)
		return tell_gone(subscription, gone_of(entry), draft);
	return tell_slot(subscription, entry->slot, draft);
}

static void step_over(struct subscription *subscription, struct entry *entry)
{
	entry_remove(&subscription->at);
	entry_insert(entry, &subscription->at);
	if (entry->slot == ENTRY_GONE && gone_concerns(subscription, gone_of(entry))) {
		subscription->gone--;
		gone_release(gone_of(entry));
	}
}

static bool at_end(const struct subscription *subscription)
{
	return subscription->at.next == &subscription->hub->list;
}

/* The entries behind the marker, until the reply holds `most` items. */
static void tell_changes(struct subscription *subscription, struct draft *draft, unsigned most)
{
	for (unsigned work = 0; work < WORK_MAX && draft->items < most && !at_end(subscription);
	     work++) {
		struct entry *entry = subscription->at.next;

		if (!tell_entry(subscription, entry, draft))
			break;
		step_over(subscription, entry);
	}
}

enum subscription_news subscription_next(struct subscription *subscription, char **reply)
{
	const bool was_listing = subscription->listing;
	struct draft draft = {.items = 0};

	if (subscription->gone > SUBSCRIPTION_GONE_MAX)
		return SUBSCRIPTION_BEHIND;
	/* Neither waits for all of the other. */
	tell_changes(subscription, &draft, was_listing ? STATES_MAX / 2 : STATES_MAX);
	if (was_listing && !draft.full)
		tell_beginning(subscription, &draft);
	subscription->not_before = now_us() + PAUSE_US;
	if (draft.items > 0 || was_listing != subscription->listing) {
		*reply = draft_finish(&draft, !subscription->listing);
		return SUBSCRIPTION_REPLY;
	}
	subscription->idle = at_end(subscription) && !subscription->listing;
	if (!subscription->idle)
		schedule(subscription);
	return SUBSCRIPTION_NOTHING;
}

/* ---- life ------------------------------------------------------------------------------- */

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
	struct subscription *subscription = arg;

	(void)fd;
	(void)what;
	subscription->ready(subscription->arg);
}

static void copy_names(struct subscription *subscription, const char *const *names, size_t count)
{
	subscription->names = memory_new(count, sizeof(*subscription->names));
	for (size_t i = 0; i < count; i++)
		subscription->names[i] = memory_copy(names[i]);
	qsort(subscription->names, count, sizeof(*subscription->names), compare_names);
	for (size_t i = 0; i < count; i++) {
		char **last = &subscription->names[subscription->name_count];

		if (subscription->name_count > 0 && strcmp(last[-1], subscription->names[i]) == 0) {
			free(subscription->names[i]); /* named twice */
			continue;
		}
		*last = subscription->names[i];
		subscription->name_count++;
	}
}

struct subscription *subscription_new(struct subscriptions *hub, const char *const *names,
				      size_t count, void (*ready)(void *arg), void *arg)
{
	struct subscription *subscription = memory_new(1, sizeof(*subscription));

	if (hub->count++ == 0)
		segment_writer_watch(hub->segment, on_change, hub);
	subscription->hub = hub;
	subscription->joined = hub->serial;
	subscription->listing = true;
	subscription->ready = ready;
	subscription->arg = arg;
	subscription->at.slot = ENTRY_MARKER;
	entry_append(hub, &subscription->at);
	if (count > 0)
		copy_names(subscription, names, count);
	subscription->next = hub->first;
	if (hub->first != NULL)
		hub->first->previous = subscription;
	hub->first = subscription;
	subscription->timer = evtimer_new(hub->base, on_timer, subscription);
	schedule(subscription);
	return subscription;
}

void subscription_free(struct subscription *subscription)
{
	struct subscriptions *hub;
	struct entry *entry, *next;

	if (subscription == NULL)
		return;
	hub = subscription->hub;
	for (entry = subscription->at.next; entry != &hub->list; entry = next) {
		next = entry->next;
		if (entry->slot == ENTRY_GONE && gone_concerns(subscription, gone_of(entry)))
			gone_release(gone_of(entry));
	}
	entry_remove(&subscription->at);
	if (subscription->next != NULL)
		subscription->next->previous = subscription->previous;
	if (subscription->previous != NULL)
		subscription->previous->next = subscription->next;
	else
		hub->first = subscription->next;
	if (--hub->count == 0)
		hub_stop(hub);
	event_free(subscription->timer);
	for (size_t i = 0; i < subscription->name_count; i++)
		free(subscription->names[i]);
	free(subscription->names);
	free(subscription);
}
