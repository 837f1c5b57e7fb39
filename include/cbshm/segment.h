/*
 * segment.h - the layout of the shared-memory segment: the contract between cbagent, which
 * writes it, and everything that maps it read-only
 *
 * SPDX-License-Identifier: ISC
 *
 * Nothing here but the format: how it is read is in libcbshm, how it is written is in
 * agent/segment_writer.c, and the loads, stores and fences both use are in latch.h. Every field is
 * of fixed width, in the byte order of the host. Words that change while readers look are
 * accessed only through latch.h.
 *
 *	offset 0          header                    CBSHM_HEADER_SIZE bytes
 *	index_offset      uint64_t index[index_size]     the hash table: name -> slot
 *	words_offset      uint64_t words[capacity]       the decision words, dense
 *	records_offset    struct cbshm_record[capacity]  the details; the file ends after `allocated` of them
 *
 * A slot is a number below `capacity`; words[slot] and records[slot] belong together.
 */
#ifndef CBSHM_SEGMENT_H
#define CBSHM_SEGMENT_H

#include <stddef.h>
#include <stdint.h>

#define CBSHM_SEGMENT_MAGIC \
	UINT64_C(0x4745534d48534243) /* the bytes "CBSHMSEG" on a little-endian host */
#define CBSHM_BYTE_ORDER       UINT32_C(0x01020304)
#define CBSHM_LAYOUT_MAJOR     1 /* a reader refuses another */
#define CBSHM_LAYOUT_MINOR     1 /* a reader ignores what it does not know of a higher one */
#define CBSHM_HEADER_SIZE      4096
#define CBSHM_CAPACITY_DEFAULT 65536u
#define CBSHM_CAPACITY_MIN     16u
#define CBSHM_CAPACITY_MAX     (1u << 20)
#define CBSHM_NAME_ROOM        129   /* the longest name and a NUL */
#define CBSHM_GROWTH_CHUNK     1024u /* records that the agent allocates at once */

/*
 * The decision word.
 *
 *	bit  0       DISABLED      the row says disabled
 *	bit  1       HAS_TTL       and the record holds a deadline
 *	bit  2       AUTO_RECOVER  and passing it closes the breaker
 *	bit  3       INDEX         not a decision: the header's index word (below)
 *	bit  4       MOVED         the segment has been replaced: map the new one
 *	bit  5       reserved      a reader that finds it set takes the slow path and ignores it
 *	bits 6-31    generation    0 = free; else the number of this incarnation of this breaker
 *	bits 32-63   epoch         the low 32 bits of the row's version
 *
 * DISABLED, HAS_TTL and AUTO_RECOVER are 0 in a closed breaker, so the low half of a live, closed breaker's
 * word is its generation alone, which a handle knows in advance.
 *
 * Generations come from one counter for the whole segment and are never handed out twice in its
 * life: one that matches proves that the slot still is what it was when the handle found it.
 * When the counter is used up the agent replaces the segment.
 *
 * The index word (header.index_word) holds INDEX and the newest generation handed out: a handle on a
 * name that does not exist watches it, since no breaker can come without changing it.
 */
#define CBSHM_WORD_DISABLED         UINT64_C(0x01)
#define CBSHM_WORD_HAS_TTL          UINT64_C(0x02)
#define CBSHM_WORD_AUTO_RECOVER     UINT64_C(0x04)
#define CBSHM_WORD_INDEX            UINT64_C(0x08)
#define CBSHM_WORD_MOVED            UINT64_C(0x10)
#define CBSHM_WORD_GENERATION_SHIFT 6
#define CBSHM_WORD_GENERATION_MASK  UINT64_C(0xffffffc0)
#define CBSHM_WORD_EPOCH_SHIFT      32
#define CBSHM_WORD_DECISION         UINT64_C(0x07) /* DISABLED, HAS_TTL and AUTO_RECOVER */
#define CBSHM_GENERATION_MAX        ((UINT32_C(1) << 26) - 1)

/* A `live` that no word equals: INDEX and DISABLED never stand together. */
#define CBSHM_LIVE_NEVER (CBSHM_WORD_INDEX | CBSHM_WORD_DISABLED)

/*
 * A bucket of the index: the high 32 bits of the name's hash, and slot + 1 in the low 32.
 * Open addressing, linear probing from (hash & (index_size - 1)); an empty bucket ends a search, a
 * tombstone does not. The hash is SipHash-2-4 of the name under header.hash_key.
 */
#define CBSHM_BUCKET_EMPTY     UINT64_C(0)
#define CBSHM_BUCKET_TOMBSTONE UINT64_MAX

/* One copy of a breaker's details. Times: microseconds since the Unix epoch, INT64_MIN = none. */
#define CBSHM_DETAIL_WORDS        52
#define CBSHM_DETAIL_ACTOR_BYTES  72  /* text, not terminated */
#define CBSHM_DETAIL_REASON_BYTES 240 /* likewise */

struct cbshm_detail {
	uint64_t version;
	int64_t opened_at;
	int64_t disabled_until;
	int64_t last_failure_at;
	int64_t updated_at;
	int64_t deadline; /* end of the TTL, nanoseconds of this host's CLOCK_BOOTTIME; INT64_MAX = none */
	int64_t default_ttl; /* microseconds, 0 = never ends; the effective policy, as the next five */
	double drift_threshold;
	uint32_t failure_threshold;
	uint32_t schema_error_threshold;
	uint32_t consecutive_failures;
	uint32_t flags;          /* CBSHM_DETAIL_* */
	uint8_t incident_id[16]; /* all zero = none */
	uint16_t actor_length;   /* bytes used of disabled_by */
	uint16_t reason_length;  /* bytes used of disabled_reason */
	uint32_t reserved0;
	char disabled_by[CBSHM_DETAIL_ACTOR_BYTES];
	char disabled_reason[CBSHM_DETAIL_REASON_BYTES];
};

#define CBSHM_DETAIL_DISABLED     0x01u
#define CBSHM_DETAIL_AUTO_RECOVER 0x02u /* the effective policy, whether open or closed */
#define CBSHM_DETAIL_REASON_CUT   0x04u
#define CBSHM_DETAIL_ACTOR_CUT    0x08u

/*
 * A record: the name, and the details twice. The sequence says which copy is being rewritten: even,
 * copies[1]; odd, copies[0]; the other one is stable, unless its version differs from the epoch in the
 * decision word, which is written between the two (latch.h tells the whole protocol).
 * The name changes only while the word's generation is 0.
 */
struct cbshm_record {
	uint64_t sequence;
	uint64_t name_length; /* bytes, 1 to 128 */
	uint64_t reserved[6];
	uint64_t name[16]; /* padded with zero bytes */
	uint64_t copies[2][CBSHM_DETAIL_WORDS];
};

/* header.state */
enum cbshm_segment_state {
	CBSHM_SEGMENT_NEW = 0, /* being made: never visible under its name */
	CBSHM_SEGMENT_RECOVERING =
		1,              /* an agent has started; what stands here is what was last known */
	CBSHM_SEGMENT_LIVE = 2, /* mirrors the database */
	CBSHM_SEGMENT_DISCONNECTED = 3, /* the agent runs, the database is away: last known */
	CBSHM_SEGMENT_STOPPED = 4,      /* the agent ended in order: last known */
	CBSHM_SEGMENT_RETIRED = 5,      /* replaced; the name leads to another one */
};

struct cbshm_segment_header {
	/* Written once, before the segment gets its name; `magic` last. */
	uint64_t magic;
	uint32_t byte_order;
	uint16_t layout_major;
	uint16_t layout_minor;
	uint64_t layout_hash;      /* CBSHM_LAYOUT_HASH of the writer's major version */
	uint32_t feature_compat;   /* a reader may ignore bits it does not know */
	uint32_t feature_incompat; /* and must refuse these */
	uint32_t header_size;
	uint32_t record_size;
	uint32_t capacity;
	uint32_t index_size; /* a power of two, at least 2 * capacity */
	uint64_t index_offset;
	uint64_t words_offset;
	uint64_t records_offset;
	uint64_t total_size; /* of the address range at full capacity; the file may be shorter */
	uint64_t hash_key[2];
	uint8_t boot_id[16]; /* of the kernel under which the segment was made */
	uint64_t reserved0[2];

	/* Changed by the agent at start, at growth and when it loses or finds the database. */
	_Alignas(64) uint64_t state; /* enum cbshm_segment_state */
	uint64_t boot_epoch;         /* +1 with every start of an agent */
	uint64_t
		allocated; /* records that the file holds: a slot at or above it must not be touched */
	uint64_t breakers;    /* live slots */
	int64_t clock_offset; /* database's clock minus this host's CLOCK_REALTIME, microseconds */
	uint64_t owner_pid;   /* in the agent's pid namespace; for people */
	/*
	 * Since minor version 1. Not 0: the contents are from before the segment was made, last
	 * confirmed by the database at this time of CLOCK_REALTIME, microseconds; until the
	 * database confirms them again.
	 */
	uint64_t restored_at;
	uint64_t reserved1;

	/* What unknown breakers' handles watch; changes when a breaker comes into being. */
	_Alignas(64) uint64_t index_word;
	uint64_t reserved2[7];

	/* +1 after every batch of changes; a futex (its low half) for waiters. */
	_Alignas(64) uint64_t change_sequence;
	uint64_t reserved3[7];

	/* Both on CLOCK_MONOTONIC of this host, nanoseconds, 0 = never. */
	_Alignas(64) uint64_t heartbeat; /* the agent's event loop turned */
	uint64_t database_confirmed;     /* the database answered, and the mirror was complete */
	uint64_t reserved4[6];

	/*
	 * A robust, process-shared mutex that the agent's main thread holds for life. The kernel
	 * sets FUTEX_OWNER_DIED (0x40000000) in the 32-bit word at `owner_word_offset` from the
	 * segment's start when the thread ends, however it ends; readers only load that word.
	 */
	_Alignas(64) uint32_t owner_word_offset;
	uint32_t reserved5;
	uint64_t owner_mutex[7]; /* a pthread_mutex_t of the agent's C library */
};

#define CBSHM_OWNER_DIED     UINT32_C(0x40000000)
#define CBSHM_OWNER_TID_MASK UINT32_C(0x3fffffff)

/* Changes with every incompatible change of the structures above. */
#define CBSHM_LAYOUT_HASH                                      \
	((uint64_t)CBSHM_LAYOUT_MAJOR << 48 |                  \
	 (uint64_t)sizeof(struct cbshm_segment_header) << 32 | \
	 (uint64_t)sizeof(struct cbshm_record) << 16 | (uint64_t)sizeof(struct cbshm_detail))

#define CBSHM_OFFSET(type, field, offset) \
	_Static_assert(offsetof(struct type, field) == (offset), #type "." #field " moved")

_Static_assert(sizeof(void *) == 8, "cbshm needs a 64-bit platform: a decision must be one load");
_Static_assert(sizeof(struct cbshm_detail) == CBSHM_DETAIL_WORDS * 8, "cbshm_detail");
_Static_assert(sizeof(struct cbshm_record) == 1024, "cbshm_record");
_Static_assert(sizeof(struct cbshm_segment_header) == 448, "cbshm_segment_header");

CBSHM_OFFSET(cbshm_detail, version, 0);
CBSHM_OFFSET(cbshm_detail, opened_at, 8);
CBSHM_OFFSET(cbshm_detail, disabled_until, 16);
CBSHM_OFFSET(cbshm_detail, last_failure_at, 24);
CBSHM_OFFSET(cbshm_detail, updated_at, 32);
CBSHM_OFFSET(cbshm_detail, deadline, 40);
CBSHM_OFFSET(cbshm_detail, default_ttl, 48);
CBSHM_OFFSET(cbshm_detail, drift_threshold, 56);
CBSHM_OFFSET(cbshm_detail, failure_threshold, 64);
CBSHM_OFFSET(cbshm_detail, schema_error_threshold, 68);
CBSHM_OFFSET(cbshm_detail, consecutive_failures, 72);
CBSHM_OFFSET(cbshm_detail, flags, 76);
CBSHM_OFFSET(cbshm_detail, incident_id, 80);
CBSHM_OFFSET(cbshm_detail, actor_length, 96);
CBSHM_OFFSET(cbshm_detail, reason_length, 98);
CBSHM_OFFSET(cbshm_detail, disabled_by, 104);
CBSHM_OFFSET(cbshm_detail, disabled_reason, 176);

CBSHM_OFFSET(cbshm_record, sequence, 0);
CBSHM_OFFSET(cbshm_record, name_length, 8);
CBSHM_OFFSET(cbshm_record, name, 64);
CBSHM_OFFSET(cbshm_record, copies, 192);

CBSHM_OFFSET(cbshm_segment_header, magic, 0);
CBSHM_OFFSET(cbshm_segment_header, byte_order, 8);
CBSHM_OFFSET(cbshm_segment_header, layout_major, 12);
CBSHM_OFFSET(cbshm_segment_header, layout_minor, 14);
CBSHM_OFFSET(cbshm_segment_header, layout_hash, 16);
CBSHM_OFFSET(cbshm_segment_header, feature_compat, 24);
CBSHM_OFFSET(cbshm_segment_header, feature_incompat, 28);
CBSHM_OFFSET(cbshm_segment_header, header_size, 32);
CBSHM_OFFSET(cbshm_segment_header, record_size, 36);
CBSHM_OFFSET(cbshm_segment_header, capacity, 40);
CBSHM_OFFSET(cbshm_segment_header, index_size, 44);
CBSHM_OFFSET(cbshm_segment_header, index_offset, 48);
CBSHM_OFFSET(cbshm_segment_header, words_offset, 56);
CBSHM_OFFSET(cbshm_segment_header, records_offset, 64);
CBSHM_OFFSET(cbshm_segment_header, total_size, 72);
CBSHM_OFFSET(cbshm_segment_header, hash_key, 80);
CBSHM_OFFSET(cbshm_segment_header, boot_id, 96);
CBSHM_OFFSET(cbshm_segment_header, state, 128);
CBSHM_OFFSET(cbshm_segment_header, boot_epoch, 136);
CBSHM_OFFSET(cbshm_segment_header, allocated, 144);
CBSHM_OFFSET(cbshm_segment_header, breakers, 152);
CBSHM_OFFSET(cbshm_segment_header, clock_offset, 160);
CBSHM_OFFSET(cbshm_segment_header, owner_pid, 168);
CBSHM_OFFSET(cbshm_segment_header, restored_at, 176);
CBSHM_OFFSET(cbshm_segment_header, index_word, 192);
CBSHM_OFFSET(cbshm_segment_header, change_sequence, 256);
CBSHM_OFFSET(cbshm_segment_header, heartbeat, 320);
CBSHM_OFFSET(cbshm_segment_header, database_confirmed, 328);
CBSHM_OFFSET(cbshm_segment_header, owner_word_offset, 384);
CBSHM_OFFSET(cbshm_segment_header, owner_mutex, 392);

#endif /* CBSHM_SEGMENT_H */
