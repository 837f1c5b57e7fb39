/*
 * announcement.h - the row of a breaker as a notification brings it
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef AGENT_ANNOUNCEMENT_H
#define AGENT_ANNOUNCEMENT_H

#include <stdbool.h>
#include <stdint.h>

#include "agent/breaker_row.h"

struct announcement {
	char kind;                 /* 'c' a decision or policy, 'n' only counters, 'd' deleted */
	struct breaker_row row;    /* of its fields, name and version are always there */
	bool whole;                /* the others are there too, and the seal is the database's */
	uint64_t settings_version; /* of the settings that its policy was made of */
};

/* What announcements are sealed with, see sql/0010_announce.sql. */
struct announcement_key {
	uint8_t bytes[32];
	bool known;
};

/* From hexadecimal digits. */
void announcement_key_set(struct announcement_key *key, const char *digits);

/*
 * Takes a payload apart, in place: the row points into it. False if it is of another kind, or of an agent of
 * another version. It may come from anybody who can connect to the database: only what is `whole` is to be believed.
 */
bool announcement_parse(char *payload, const struct announcement_key *key,
			struct announcement *announcement);

/* "b 7" and its seal; changes the payload. False if the database has not said it. */
bool announcement_barrier(char *payload, const struct announcement_key *key, int64_t *barrier);

#endif /* AGENT_ANNOUNCEMENT_H */
