/*
 * health.c - how much of what the segment says is news
 *
 * SPDX-License-Identifier: ISC
 *
 * A flag that an agent clears when it ends says nothing about one that was killed: the kernel says who is dead, the
 * age of the heartbeat who hangs.
 */
#include "config.h"

#include "libcbshm/health.h"

#include <time.h>

#include "cbshm.h"
#include "cbshm/latch.h"
#include "libcbshm/lookup.h"

/* The kernel changes this word when the agent's thread ends; 0 = given back in order. */
static bool owner_alive(const struct segment_view *view)
{
	uint32_t offset = word32_load(&segment_header(view)->owner_word_offset);

	if (offset % 4 != 0 || offset > sizeof(struct cbshm_segment_header) - 4)
		return false;
	uint32_t owner = word32_load((const uint32_t *)(const void *)(view->base + offset));
	return (owner & CBSHM_OWNER_TID_MASK) != 0 && !(owner & CBSHM_OWNER_DIED);
}

int64_t health_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/*
 * Nanoseconds since a stamp, or -1. Agent and readers of one kernel stop and go on together, in
 * suspend too; but a stamp of another boot says nothing, and one from the future is of another time
 * namespace.
 */
static int64_t age(const struct mapping *mapping, const uint64_t *stamp)
{
	uint64_t then = word_load(stamp);
	uint64_t now = (uint64_t)health_now();

	return then == 0 || then > now || !mapping->same_boot ? -1 : (int64_t)(now - then);
}

static int64_t age_us(const struct mapping *mapping, const uint64_t *stamp)
{
	int64_t since = age(mapping, stamp);

	return since < 0 ? CBSHM_NO_TIME : since / 1000;
}

unsigned int health_trouble(const struct mapping *mapping)
{
	const struct cbshm_segment_header *header = segment_header(&mapping->view);
	bool live = word_load(&header->state) == CBSHM_SEGMENT_LIVE;

	if (!mapping->same_boot || !owner_alive(&mapping->view))
		return HEALTH_AGENT_DEAD | HEALTH_DATABASE_AWAY;
	if (age_us(mapping, &header->heartbeat) > CBSHM_HUNG_AFTER_US)
		return HEALTH_AGENT_HUNG | HEALTH_DATABASE_AWAY;
	return live ? 0 : HEALTH_DATABASE_AWAY;
}

/* By the wall clock, the only one that goes on over a reboot. It may have been set: what cannot be is unknown. */
static int64_t restored_age(uint64_t restored_at)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	uint64_t wall = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
	return restored_at > wall ? CBSHM_NO_TIME : (int64_t)(wall - restored_at);
}

static int64_t database_age_us(const struct mapping *mapping)
{
	const struct cbshm_segment_header *header = segment_header(&mapping->view);
	uint64_t restored_at = word_load(&header->restored_at);

	return restored_at != 0 ? restored_age(restored_at)
				: age_us(mapping, &header->database_confirmed);
}

int64_t health_without_news(const struct cbshm *client, const struct mapping *mapping)
{
	int64_t since = mapping ? database_age_us(mapping) : CBSHM_NO_TIME;

	return since == CBSHM_NO_TIME ? health_now() - client->reader->opened : since * 1000;
}

void health_seek_agent(struct cbshm *client)
{
	struct mapping *mapping = segment_current(client);

	if (mapping && (health_trouble(mapping) & HEALTH_AGENT_DEAD) &&
	    segment_seek(client, mapping))
		handles_follow(client);
}

int cbshm_health(struct cbshm *client, struct cbshm_health *health)
{
	int error;

	if (!client || !health)
		return CBSHM_ERR_INVALID;
	health_seek_agent(client);
	const struct mapping *mapping = segment_newest(client, &error);
	if (!mapping)
		return error;
	const struct cbshm_segment_header *header = segment_header(&mapping->view);
	unsigned int trouble = health_trouble(mapping);
	*health = (struct cbshm_health){
		.agent_alive = !(trouble & HEALTH_AGENT_DEAD),
		.agent_hung = trouble & HEALTH_AGENT_HUNG,
		.database_live = !(trouble & HEALTH_DATABASE_AWAY),
		.heartbeat_age_us = age_us(mapping, &header->heartbeat),
		.restored = word_load(&header->restored_at) != 0,
		.database_age_us = database_age_us(mapping),
		.boot_epoch = word_load(&header->boot_epoch),
		.breakers = (uint32_t)word_load(&header->breakers),
		.capacity = mapping->view.layout.capacity,
		.clock_offset_us =
			(int64_t)word_load((const uint64_t *)(const void *)&header->clock_offset),
	};
	return 0;
}
