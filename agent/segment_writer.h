/*
 * segment_writer.h - the single writer of the shared-memory segment
 *
 * SPDX-License-Identifier: ISC
 *
 * Owns the mapping, the lock that makes it the only writer, and the robust mutex by which readers see
 * that the process lives. Knows nothing of Postgres: it is told rows. One thread, the agent's main
 * thread, calls everything here. Functions return 0 or -errno unless they say otherwise.
 */
#ifndef AGENT_SEGMENT_WRITER_H
#define AGENT_SEGMENT_WRITER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent/breaker_row.h"
#include "cbshm/segment.h"

struct segment_writer;

struct segment_options {
	const char *name;  /* shm_overview(7) name, "/cbshm" */
	uint32_t capacity; /* CBSHM_CAPACITY_MIN to CBSHM_CAPACITY_MAX */
	mode_t mode;       /* at most 0644 */
	gid_t group;       /* (gid_t)-1: leave as it is */
	/* Or NULL: called once, from segment_writer_open(), to fill a segment that begins empty before anybody can see it. */
	void (*fill)(struct segment_writer *writer, void *arg);
	void *fill_arg;
};

/* What has happened to the breakers since this writer was opened. */
struct segment_changes {
	uint64_t all;
	uint64_t decisions; /* of these, those after which some check may answer differently */
};

/*
 * Takes the segment over, or makes it. A usable segment of the same layout and capacity is kept, inode and all: readers
 * go on with what was last known, half-done updates are finished, boot_epoch rises. One of
 * another capacity is replaced by a new one built aside, to which its readers move; so is one of another layout or with
 * a damaged header, whose readers stay, as nobody can say where its words are. One that belongs to somebody
 * else, has other hard links, is a symlink or is no regular file is refused.
 * Afterwards the state is CBSHM_SEGMENT_RECOVERING.
 *
 * On error *message says what is wrong and what to do. -EAGAIN: another agent holds it.
 */
int segment_writer_open(const struct segment_options *options, struct segment_writer **writer,
			char *message, size_t message_size);

/* Marks the segment CBSHM_SEGMENT_STOPPED, wakes waiters, lets go. The segment stays. NULL is fine. */
void segment_writer_close(struct segment_writer *writer);

/* CBSHM_SEGMENT_RECOVERING, _LIVE or _DISCONNECTED; publishes. */
void segment_writer_set_state(struct segment_writer *writer, enum cbshm_segment_state state);

/* "The event loop turned" and "the database has confirmed the mirror", now. */
void segment_writer_heartbeat(struct segment_writer *writer);
void segment_writer_database_confirmed(struct segment_writer *writer);

/* When the latter was said last, nanoseconds of CLOCK_MONOTONIC; 0: never. */
int64_t segment_writer_confirmed_at(const struct segment_writer *writer);

/*
 * Tells how the database's clock stands to this host's: database time (microseconds since the
 * Unix epoch) = CLOCK_BOOTTIME in microseconds + offset. Deadlines that are already published are
 * moved if the offset has changed by more than `tolerance` microseconds (or was not known), else the
 * old offset stays. Must be called before the first put.
 */
void segment_writer_set_clock(struct segment_writer *writer, int64_t offset, int64_t tolerance);

/* The end of a TTL in database time as nanoseconds of CLOCK_BOOTTIME; INT64_MAX for INT64_MIN. */
int64_t segment_writer_deadline(const struct segment_writer *writer, int64_t disabled_until);

/*
 * Publishes a row. Without `force` a version that is not newer than the published one changes
 * nothing. Returns 1 if the segment changed, 0 if not; -ENOSPC: the segment is full, or the file system
 * under it; -EINVAL: the name is none.
 */
int segment_writer_put(struct segment_writer *writer, const struct breaker_row *row, bool force);

/* Removes a breaker. Returns 1 if it was there, else 0. */
int segment_writer_remove(struct segment_writer *writer, const char *name);

/* A full load: what is not put between begin and end is removed at the end. abort: keep everything. */
void segment_writer_load_begin(struct segment_writer *writer);
void segment_writer_load_end(struct segment_writer *writer);
void segment_writer_load_abort(struct segment_writer *writer);

/* Ends a batch of changes: change_sequence + 1 and a futex wake, if anything changed since the last. */
void segment_writer_publish(struct segment_writer *writer);

/* The version published for a name; 0 if there is none. */
uint64_t segment_writer_version(const struct segment_writer *writer, const char *name);

/* Is there room for one more name? */
bool segment_writer_has_room(const struct segment_writer *writer);
/* Makes sure that so many more find their place, also in the file system. False: there is none to be had. */
bool segment_writer_reserve(struct segment_writer *writer, uint32_t more);

/*
 * The slots, for listing: *detail and *name (NUL-terminated) of a live slot; false for a free one. Does its row say
 * disabled, at far less cost?
 * Slots are 0 to segment_writer_slots() - 1.
 */
uint32_t segment_writer_slots(const struct segment_writer *writer);
bool segment_writer_disabled(const struct segment_writer *writer, uint32_t slot);
bool segment_writer_read(const struct segment_writer *writer, uint32_t slot,
			 char name[CBSHM_NAME_ROOM], struct cbshm_detail *detail);

/* The slot of a name. False: there is none. */
bool segment_writer_find(const struct segment_writer *writer, const char *name, uint32_t *slot);

/*
 * From now on `changed` is called after each change of a slot, from within the function that makes it; with `removed`, the
 * name, if its breaker is gone; with SEGMENT_WRITER_ALL_SLOTS when the slots have been numbered anew. NULL: no more.
 */
#define SEGMENT_WRITER_ALL_SLOTS UINT32_MAX
typedef void segment_writer_watcher(void *arg, uint32_t slot, const char *removed);
void segment_writer_watch(struct segment_writer *writer, segment_writer_watcher *changed,
			  void *arg);

struct segment_changes segment_writer_changes(const struct segment_writer *writer);

const char *segment_writer_name(const struct segment_writer *writer);

/* Opens the segment once more, only to read it: a descriptor for the caller to close, or -errno. -ESTALE: it has lost its name. */
int segment_writer_open_reader(const struct segment_writer *writer);

/* For readers in this process: until the next call of this header. */
struct segment_view;
const struct segment_view *segment_writer_view(const struct segment_writer *writer);

/*
 * Says that what is put was last confirmed at this time of CLOCK_REALTIME, in microseconds, before the segment was made; until
 * segment_writer_database_confirmed().
 */
void segment_writer_set_restored(struct segment_writer *writer, int64_t confirmed_at);

/* The database's clock minus CLOCK_REALTIME as published, in microseconds. */
int64_t segment_writer_clock_offset(const struct segment_writer *writer);

/* Live breakers, and the start count of the segment. */
uint32_t segment_writer_breakers(const struct segment_writer *writer);
uint64_t segment_writer_boot_epoch(const struct segment_writer *writer);

#endif /* AGENT_SEGMENT_WRITER_H */
