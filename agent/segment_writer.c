/*
 * segment_writer.c - the single writer of the shared-memory segment
 *
 * SPDX-License-Identifier: ISC
 *
 * Puts rows into slots, names into the index, and takes over what the last agent left. It
 * does not open or make files (segment_file.c) and does not know how a record is read (libcbshm).
 *
 * The process may be killed between any two stores, and the next one goes on in the same memory. What holds
 * at every moment, and is all that readers rely on:
 *
 *	- A word is 0 (free) or that of a breaker whose name and both copies are whole, but for one latch under way.
 *	- Every generation in a word or in the index word has been handed out once.
 *	- index_word changes after a breaker has got its word and its bucket.
 *
 * Inserting goes name, details, word, bucket, index word; removing goes word, bucket. A kill in
 * between leaves a live slot without a bucket, or a bucket of a free slot: take_over() finds both.
 *
 * The index under readers: entries are never moved and a bucket is never taken from a live breaker, so a reader
 * cannot miss one that stays. Removing leaves a tombstone; inserting reuses the first one on its way. A tombstone
 * becomes empty once no way of a live breaker leads over it: at once if the bucket behind it is empty, the
 * others when they have become many (index_sweep()). A search that stops there stops for a name that is not in the index;
 * one that comes later changes the index word. So searches stay short (tests/unit/test_index.c measures them).
 *
 * A reader that follows the way to a name while that breaker goes and comes back may miss it; but then it
 * was not there at some moment of the search, and the index word has changed, so the reader will look again.
 */
#include <config.h>

#include "agent/segment_writer.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "agent/segment_file.h"
#include "agent/segment_writer_test.h"
#include "cbshm/latch.h"
#include "libcbshm/index.h"
#include "libcbshm/name.h"

/* How long a slot rests before it serves another breaker, unless no other is free. */
#define COOL_DOWN_NS INT64_C(60000000000)

struct resting_slot {
	uint32_t slot;
	int64_t since; /* nanoseconds of CLOCK_MONOTONIC */
};

struct segment_writer {
	struct segment_options options;
	char *name;
	int lock;
	struct segment_file file;
	uint32_t generation; /* the last one handed out */
	uint32_t breakers;
	bool changed; /* since the last publish */

	/* Free slots: a ring of those that were used, in the order in which they were freed; and from `fresh` on, never used. */
	struct resting_slot *resting;
	uint32_t resting_first;
	uint32_t resting_count;
	uint32_t fresh;
	int64_t cool_down;

	/* In the index; at `sweep_at` they are looked through. */
	uint32_t tombstones;
	uint32_t sweep_at;

	/* The load in which each slot was last seen. */
	uint32_t *seen;
	uint32_t load;
	bool loading;

	bool clock_known;
	int64_t clock_offset;

	struct segment_changes changes;
	segment_writer_watcher *watcher; /* or NULL */
	void *watcher_arg;
};

static struct cbshm_segment_header *header_of(const struct segment_writer *writer)
{
	return segment_header(&writer->file.view);
}

static uint64_t *word_of(const struct segment_writer *writer, uint32_t slot)
{
	return segment_word(&writer->file.view, slot);
}

static struct cbshm_record *record_of(const struct segment_writer *writer, uint32_t slot)
{
	return segment_record(&writer->file.view, slot);
}

static bool is_live(const struct segment_writer *writer, uint32_t slot)
{
	return word_generation(word_load(word_of(writer, slot))) != 0;
}

static int64_t clock_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* What stands in a slot, for the writer itself: after recovery copies[0] is always whole. */
static void read_detail(const struct segment_writer *writer, uint32_t slot,
			union latch_detail *detail)
{
	payload_read(detail->words, record_of(writer, slot)->copies[0], CBSHM_DETAIL_WORDS);
}

static void read_key(const struct segment_writer *writer, uint32_t slot, struct name_key *key)
{
	payload_read(&key->length, &record_of(writer, slot)->name_length, 1);
	payload_read(key->words, record_of(writer, slot)->name, NAME_WORDS);
}

/* Everything that happens to a breaker ends here. */
static void tell_change(struct segment_writer *writer, uint32_t slot, const char *removed,
			bool decision)
{
	writer->changes.all++;
	writer->changes.decisions += decision;
	if (writer->watcher)
		writer->watcher(writer->watcher_arg, slot, removed);
}

/* ---- the index -------------------------------------------------------------------------- */

static bool index_holds(uint64_t value)
{
	return value != CBSHM_BUCKET_EMPTY && value != CBSHM_BUCKET_TOMBSTONE;
}

static void index_add(struct segment_writer *writer, const struct name_key *key, uint32_t slot)
{
	uint64_t *index = segment_index(&writer->file.view);
	uint32_t mask = writer->file.view.layout.index_size - 1;
	uint64_t hash = index_hash(&writer->file.view, key);
	uint64_t bucket = (hash & UINT64_C(0xffffffff00000000)) | (slot + 1);

	for (uint32_t i = 0; i <= mask; i++) {
		uint64_t *at = &index[((uint32_t)hash + i) & mask];
		uint64_t value = word_load(at);

		if (!index_holds(value)) {
			word_store(at, bucket); /* pairs with the load in index_find() */
			writer->tombstones -= value == CBSHM_BUCKET_TOMBSTONE;
			return;
		}
	}
	assert(!"at least half of the buckets are free");
}

static void index_clear(struct segment_writer *writer, uint32_t bucket)
{
	uint64_t *index = segment_index(&writer->file.view);
	uint32_t mask = writer->file.view.layout.index_size - 1;

	word_store(&index[bucket], CBSHM_BUCKET_TOMBSTONE);
	writer->tombstones++;
	if (word_load(&index[(bucket + 1) & mask]) != CBSHM_BUCKET_EMPTY)
		return;
	for (; word_load(&index[bucket]) == CBSHM_BUCKET_TOMBSTONE; bucket = (bucket - 1) & mask) {
		word_store(&index[bucket], CBSHM_BUCKET_EMPTY);
		writer->tombstones--;
	}
}

/* Marks the buckets that the searches for live breakers go over, the last one left out. */
static void index_mark_ways(const struct segment_writer *writer, bool *ways)
{
	const uint64_t *index = segment_index(&writer->file.view);
	uint32_t size = writer->file.view.layout.index_size;

	for (uint32_t bucket = 0; bucket < size; bucket++) {
		uint64_t value = word_load(&index[bucket]);
		struct name_key key;

		if (!index_holds(value))
			continue;
		read_key(writer, (uint32_t)value - 1, &key);
		uint32_t at = (uint32_t)index_hash(&writer->file.view, &key) & (size - 1);
		for (; at != bucket; at = (at + 1) & (size - 1))
			ways[at] = true;
	}
}

/*
 * Makes the tombstones empty that are on no live breaker's way. Since inserting takes the first one on its way, ways
 * are short and most tombstones go. It costs one hash for each breaker, once for every so many removals.
 */
static void index_sweep(struct segment_writer *writer)
{
	uint64_t *index = segment_index(&writer->file.view);
	uint32_t size = writer->file.view.layout.index_size;
	bool *ways = calloc(size, sizeof(*ways));

	if (ways) {
		index_mark_ways(writer, ways);
		writer->tombstones = 0;
		for (uint32_t bucket = 0; bucket < size; bucket++) {
			if (word_load(&index[bucket]) != CBSHM_BUCKET_TOMBSTONE)
				continue;
			if (ways[bucket])
				writer->tombstones++;
			else
				word_store(&index[bucket], CBSHM_BUCKET_EMPTY);
		}
		free(ways);
	}
	writer->sweep_at = writer->tombstones + size / 8; /* without memory: the next time */
}

/* Tells those who wait for a name that one has come. */
static void index_announce(struct segment_writer *writer)
{
	word_store(&header_of(writer)->index_word,
		   CBSHM_WORD_INDEX | (uint64_t)writer->generation << CBSHM_WORD_GENERATION_SHIFT);
}

/* ---- slots ------------------------------------------------------------------------------ */

static void slot_rest(struct segment_writer *writer, uint32_t slot, int64_t since)
{
	uint32_t capacity = writer->file.view.layout.capacity;
	uint32_t at = (writer->resting_first + writer->resting_count) % capacity;

	assert(writer->resting_count < capacity);
	writer->resting[at] = (struct resting_slot){slot, since};
	writer->resting_count++;
}

static uint32_t slot_wake(struct segment_writer *writer)
{
	uint32_t slot = writer->resting[writer->resting_first].slot;

	writer->resting_first = (writer->resting_first + 1) % writer->file.view.layout.capacity;
	writer->resting_count--;
	return slot;
}

static bool slot_rested(const struct segment_writer *writer)
{
	return writer->resting_count != 0 &&
	       clock_ns(CLOCK_MONOTONIC) - writer->resting[writer->resting_first].since >=
		       writer->cool_down;
}

static int slots_grow(struct segment_writer *writer)
{
	uint32_t allocated = segment_allocated(&writer->file.view);
	uint32_t room = writer->file.view.layout.capacity - allocated;

	if (room == 0)
		return -ENOSPC;
	return segment_file_grow(
		&writer->file, allocated + (room < CBSHM_GROWTH_CHUNK ? room : CBSHM_GROWTH_CHUNK));
}

/*
 * The rest is a second line of defence behind the generations, so that a full segment or file system rather ends it
 * than to leave a breaker out.
 */
static int slot_take(struct segment_writer *writer, uint32_t *slot)
{
	int error = 0;

	if (slot_rested(writer)) {
		*slot = slot_wake(writer);
		return 0;
	}
	if (writer->fresh >= segment_allocated(&writer->file.view))
		error = slots_grow(writer);
	if (!error)
		*slot = writer->fresh++;
	else if (writer->resting_count != 0)
		*slot = slot_wake(writer);
	else
		return error;
	return 0;
}

static void slot_free(struct segment_writer *writer, uint32_t slot, uint32_t bucket)
{
	bool disabled = word_load(word_of(writer, slot)) & CBSHM_WORD_DISABLED;
	char name[CBSHM_NAME_ROOM];
	struct name_key key;

	read_key(writer, slot, &key);
	word_store(word_of(writer, slot), 0);
	/* The name is written after this fence: see index_slot_name(). */
	latch_fence_release();
	index_clear(writer, bucket);
	if (writer->tombstones >= writer->sweep_at)
		index_sweep(writer);
	slot_rest(writer, slot, clock_ns(CLOCK_MONOTONIC));
	writer->breakers--;
	word_store(&header_of(writer)->breakers, writer->breakers);
	writer->changed = true;
	if (name_key_get(&key, name))
		tell_change(writer, slot, name, disabled);
}

/*
 * Both copies are written while the word is 0, and then the word: a latch that were under way in a live slot could
 * fall back to the copy of the slot's last breaker, if that had the same version.
 */
static void slot_fill(struct segment_writer *writer, uint32_t slot, const struct name_key *key,
		      uint64_t flags, const union latch_detail *detail)
{
	struct cbshm_record *record = record_of(writer, slot);
	uint64_t *word = word_of(writer, slot);
	uint64_t generation = ++writer->generation;

	payload_write(&record->name_length, &key->length, 1);
	payload_write(record->name, key->words, NAME_WORDS);
	latch_write(record, word, 0, detail);
	word_store(word, (uint64_t)(uint32_t)detail->detail.version << CBSHM_WORD_EPOCH_SHIFT |
				 generation << CBSHM_WORD_GENERATION_SHIFT | flags);
	index_add(writer, key, slot);
	index_announce(writer);
	writer->breakers++;
	word_store(&header_of(writer)->breakers, writer->breakers);
	writer->changed = true;
}

/* ---- taking over what is there ---------------------------------------------------------- */

/* The state of the writer that belongs to the capacity. */
static int writer_allocate(struct segment_writer *writer, uint32_t capacity)
{
	struct resting_slot *resting = calloc(capacity, sizeof(*resting));
	uint32_t *seen = calloc(capacity, sizeof(*seen));

	if (!resting || !seen) {
		free(resting);
		free(seen);
		return -ENOMEM;
	}
	free(writer->resting);
	free(writer->seen);
	writer->resting = resting;
	writer->seen = seen;
	writer->resting_first = writer->resting_count = writer->fresh = writer->breakers = 0;
	writer->tombstones = 0;
	writer->sweep_at = capacity / 4;
	return 0;
}

/* A generation is never handed out twice in a segment's life. */
static uint32_t newest_generation(const struct segment_writer *writer)
{
	uint32_t newest = word_generation(word_load(&header_of(writer)->index_word));

	for (uint32_t slot = 0; slot < writer->file.view.layout.capacity; slot++) {
		uint32_t generation = word_generation(word_load(word_of(writer, slot)));

		if (generation > newest)
			newest = generation;
	}
	return newest;
}

/*
 * Ends a half-done update. Only damage, no kill, can leave a word that fits neither copy; then the decision stays
 * what the word says, and the record is made readable again without a TTL, until the database is read.
 */
static void recover_record(struct segment_writer *writer, uint32_t slot)
{
	struct cbshm_record *record = record_of(writer, slot);
	uint64_t *word = word_of(writer, slot);
	union latch_detail detail = {.words = {0}};

	latch_recover(record, word);
	read_detail(writer, slot, &detail);
	uint64_t value = word_load(word);
	if (!is_live(writer, slot) || (uint32_t)detail.detail.version == word_epoch(value))
		return;
	detail.detail.version = word_epoch(value);
	detail.detail.deadline = INT64_MAX;
	latch_write(record, word, value & ~(CBSHM_WORD_HAS_TTL | CBSHM_WORD_AUTO_RECOVER), &detail);
}

/* Words above what is allocated, of a name that is none, or with bits that no slot has, are damage. */
static void recover_slots(struct segment_writer *writer)
{
	uint32_t allocated = segment_allocated(&writer->file.view);
	const uint64_t known = CBSHM_WORD_GENERATION_MASK | CBSHM_WORD_DISABLED |
			       CBSHM_WORD_HAS_TTL | CBSHM_WORD_AUTO_RECOVER |
			       UINT64_C(0xffffffff00000000);

	for (uint32_t slot = 0; slot < writer->file.view.layout.capacity; slot++) {
		uint64_t *word = word_of(writer, slot);
		uint64_t value = word_load(word);
		char name[CBSHM_NAME_ROOM];
		struct name_key key;

		if (slot < allocated) {
			recover_record(writer, slot);
			value = word_load(word);
			read_key(writer, slot, &key);
		}
		if (slot >= allocated || word_generation(value) == 0 || !name_key_get(&key, name))
			value = 0;
		if (word_load(word) != (value & known))
			word_store(word, value & known); /* MOVED: a replacement that never came */
	}
	latch_fence_release(); /* as in slot_free() */
}

/* Buckets that do not lead to a live breaker of their hash go; of two of one breaker the first stays. */
static void recover_buckets(struct segment_writer *writer)
{
	const struct segment_view *view = &writer->file.view;
	const uint64_t *index = segment_index(view);

	for (uint32_t bucket = 0; bucket < view->layout.index_size; bucket++) {
		uint64_t value = word_load(&index[bucket]);
		uint32_t slot = (uint32_t)value - 1;
		struct index_hit hit;
		struct name_key key;

		if (!index_holds(value))
			continue;
		if (slot < segment_allocated(view) && is_live(writer, slot)) {
			read_key(writer, slot, &key);
			if (index_find(view, &key, &hit) && hit.bucket == bucket)
				continue;
		}
		index_clear(writer, bucket);
	}
}

/* Breakers without a bucket get one; of two of one name the newer one stays. Free slots are found. */
static void recover_index(struct segment_writer *writer)
{
	const struct segment_view *view = &writer->file.view;
	uint32_t allocated = segment_allocated(view);
	int64_t now = clock_ns(CLOCK_MONOTONIC);

	recover_buckets(writer);
	for (uint32_t slot = 0; slot < allocated; slot++) {
		struct index_hit hit;
		struct name_key key;

		if (!is_live(writer, slot))
			continue;
		read_key(writer, slot, &key);
		if (!index_find(view, &key, &hit)) {
			index_add(writer, &key, slot);
			continue;
		}
		if (hit.slot == slot)
			continue;
		bool newer = word_generation(word_load(word_of(writer, slot))) >
			     word_generation(hit.word);
		word_store(word_of(writer, newer ? hit.slot : slot), 0);
		if (newer) {
			index_clear(writer, hit.bucket);
			index_add(writer, &key, slot);
		}
	}
	latch_fence_release(); /* as in slot_free() */
	for (uint32_t slot = 0; slot < allocated; slot++) {
		struct name_key key;

		read_key(writer, slot, &key);
		if (is_live(writer, slot) || key.length != 0)
			writer->fresh = slot + 1;
		writer->breakers += is_live(writer, slot);
	}
	for (uint32_t slot = 0; slot < writer->fresh; slot++) {
		if (!is_live(writer, slot))
			slot_rest(writer, slot, now);
	}
	word_store(&header_of(writer)->breakers, writer->breakers);
}

/* A mapping of a valid segment becomes the writer's. One generation is spent to make every search start again. */
static int take_over(struct segment_writer *writer, const struct segment_message *message)
{
	int error = writer_allocate(writer, writer->file.view.layout.capacity);

	if (!error)
		error = segment_owner_take(&writer->file, message);
	if (error == -ENOMEM)
		segment_fail(message, error, "out of memory");
	if (error)
		return error;
	writer->generation = newest_generation(writer);
	recover_slots(writer);
	recover_index(writer);
	index_sweep(writer);
	if (writer->generation < CBSHM_GENERATION_MAX)
		writer->generation++;
	index_announce(writer);
	return 0;
}

/* ---- replacing the segment -------------------------------------------------------------- */

/*
 * Too few generations left for a copy of everything? Then it begins somewhere else, where it is next to impossible to meet,
 * in the moment of the change, a generation of the old segment that a handle still knows.
 */
static bool generations_short(const struct segment_writer *writer)
{
	return writer->generation >= CBSHM_GENERATION_MAX - CBSHM_CAPACITY_MAX;
}

static int random_generation(uint32_t *generation)
{
	if (getrandom(generation, sizeof(*generation), 0) != (ssize_t)sizeof(*generation))
		return -EIO;
	*generation %= CBSHM_GENERATION_MAX / 2;
	return 0;
}

/* The same breakers, in the first slots, under new generations. Deadlines stay: it is the same boot. */
static void copy_breakers(struct segment_writer *to, const struct segment_writer *from)
{
	for (uint32_t slot = 0; slot < segment_allocated(&from->file.view); slot++) {
		union latch_detail detail = {.words = {0}};
		struct name_key key;

		if (!is_live(from, slot))
			continue;
		read_detail(from, slot, &detail);
		read_key(from, slot, &key);
		to->seen[to->fresh] = from->seen[slot];
		slot_fill(to, to->fresh++, &key,
			  word_load(word_of(from, slot)) &
				  (CBSHM_WORD_DISABLED | CBSHM_WORD_HAS_TTL |
				   CBSHM_WORD_AUTO_RECOVER),
			  &detail);
	}
}

/* Sends readers to the slow path, where they look for the new segment; or takes that back. */
static void mark_moved(const struct segment_file *file, bool moved)
{
	uint64_t *index_word = &segment_header(&file->view)->index_word;

	for (uint32_t slot = 0; slot < file->view.layout.capacity; slot++) {
		uint64_t *word = segment_word(&file->view, slot);

		word_store(word, moved ? word_load(word) | CBSHM_WORD_MOVED
				       : word_load(word) & ~CBSHM_WORD_MOVED);
	}
	word_store(index_word, moved ? word_load(index_word) | CBSHM_WORD_MOVED
				     : word_load(index_word) & ~CBSHM_WORD_MOVED);
}

/* What the new header takes over from the old one. */
static void copy_header(struct segment_writer *to, const struct segment_writer *from)
{
	struct cbshm_segment_header *new = header_of(to);
	const struct cbshm_segment_header *old = header_of(from);

	new->boot_epoch = word_load(&old->boot_epoch);
	new->change_sequence = word_load(&old->change_sequence);
	if (!segment_file_same_boot(&from->file))
		return; /* the clocks have begun anew */
	new->clock_offset = old->clock_offset;
	new->restored_at = old->restored_at;
	new->heartbeat = word_load(&old->heartbeat);
	new->database_confirmed = word_load(&old->database_confirmed);
	word_store(&new->state, word_load(&old->state));
}

/*
 * MOVED first, then the name, then RETIRED. Killed before the name changes, the next agent finds the old segment and
 * takes MOVED away; killed after, the old one's readers already look for the new one.
 */
static int put_in_place(struct segment_writer *writer, struct segment_writer *old,
			const struct segment_message *message)
{
	if (old->file.fd >= 0)
		mark_moved(&old->file, true);
	int error = segment_file_install(writer->name, message);
	if (old->file.fd < 0)
		return error;
	if (error) {
		mark_moved(&old->file, false);
		return error;
	}
	word_store(&header_of(old)->state, CBSHM_SEGMENT_RETIRED);
	segment_wake(&old->file);
	segment_owner_release(&old->file);
	segment_file_close(&old->file);
	return 0;
}

/*
 * Builds a segment aside and puts it in place of writer->file, which may be none. `keep`: with its breakers. On
 * error nothing has changed.
 */
static int replace(struct segment_writer *writer, uint32_t capacity, bool keep,
		   const struct segment_message *message)
{
	struct segment_writer old = *writer;
	uint32_t slots = keep ? old.breakers : 0;

	slots = slots / CBSHM_GROWTH_CHUNK * CBSHM_GROWTH_CHUNK + CBSHM_GROWTH_CHUNK;
	writer->resting = NULL;
	writer->seen = NULL;
	int error = segment_file_create(&writer->file, &old.options, capacity,
					slots < capacity ? slots : capacity, message);
	if (!error) {
		error = writer_allocate(writer, capacity);
		if (!error && (old.file.fd < 0 || generations_short(&old)))
			error = random_generation(&writer->generation);
		if (error)
			segment_fail(message, error, "a new segment cannot be set up: %s",
				     strerror(-error));
	}
	if (!error)
		error = segment_owner_take(&writer->file, message);
	if (!error) {
		word_store(&header_of(writer)->state, CBSHM_SEGMENT_RECOVERING);
		if (old.file.fd >= 0)
			copy_header(writer, &old);
		if (keep)
			copy_breakers(writer, &old);
		else if (old.options.fill)
			old.options.fill(writer, old.options.fill_arg);
		index_announce(writer);
		error = put_in_place(writer, &old, message);
		if (error)
			segment_owner_release(&writer->file);
	}
	if (error) {
		segment_file_discard(&writer->file, old.name);
		free(writer->resting);
		free(writer->seen);
		*writer = old;
		return error;
	}
	free(old.resting);
	free(old.seen);
	return 0;
}

/* While the agent runs there is nobody to explain an error to but through its code. */
static int replace_quietly(struct segment_writer *writer)
{
	char text[256];

	int error = replace(writer, writer->file.view.layout.capacity, true,
			    &(struct segment_message){text, sizeof(text)});
	if (!error)
		tell_change(writer, SEGMENT_WRITER_ALL_SLOTS, NULL, false);
	return error;
}

/* ---- open and close --------------------------------------------------------------------- */

static int check_options(const struct segment_options *options,
			 const struct segment_message *message)
{
	if (!segment_name_valid(options->name))
		return segment_fail(message, -EINVAL,
				    "segment name '%s': it must be a slash and 1 to 200 bytes "
				    "without a slash",
				    options->name ? options->name : "");
	if (options->capacity < CBSHM_CAPACITY_MIN || options->capacity > CBSHM_CAPACITY_MAX)
		return segment_fail(message, -EINVAL, "segment capacity %u: it must be %u to %u",
				    (unsigned int)options->capacity, CBSHM_CAPACITY_MIN,
				    CBSHM_CAPACITY_MAX);
	if ((options->mode & ~(mode_t)0644) != 0 || (options->mode & 0600) != 0600)
		return segment_fail(message, -EINVAL,
				    "segment mode %04o: it must be at least 0600 and at most 0644",
				    (unsigned int)options->mode);
	return 0;
}

/* A usable segment of another capacity, or without generations, is replaced with its breakers; one of another boot, without. */
static int adopt(struct segment_writer *writer, const struct segment_message *message)
{
	uint32_t capacity = writer->options.capacity;
	bool same_boot = segment_file_same_boot(&writer->file);
	int error = take_over(writer, message);

	if (error)
		return error;
	if (same_boot && writer->file.view.layout.capacity == capacity &&
	    writer->generation < CBSHM_GENERATION_MAX)
		return segment_file_permit(&writer->file, &writer->options, message);
	if (same_boot && writer->breakers > capacity)
		return segment_fail(
			message, -ENOSPC,
			"the segment holds %u breakers, more than [segment] capacity %u",
			(unsigned int)writer->breakers, (unsigned int)capacity);
	return replace(writer, capacity, same_boot, message);
}

static int start(struct segment_writer *writer, const struct segment_message *message)
{
	int error = segment_lock(writer->name, &writer->lock, message);

	if (error)
		return error;
	error = segment_file_open(&writer->file, writer->name, message);
	if (error == 0) {
		error = adopt(writer, message);
		if (error && writer->seen)
			segment_owner_release(&writer->file);
	} else if (error == 1 || error == -ENOENT) {
		error = replace(writer, writer->options.capacity, false, message);
	}
	if (error)
		return error;
	struct cbshm_segment_header *header = header_of(writer);
	word_store(&header->boot_epoch, word_load(&header->boot_epoch) + 1);
	segment_writer_set_state(writer, CBSHM_SEGMENT_RECOVERING);
	writer->changed = true;
	segment_writer_publish(writer);
	return 0;
}

static void writer_free(struct segment_writer *writer)
{
	segment_file_close(&writer->file);
	if (writer->lock >= 0)
		close(writer->lock);
	free(writer->resting);
	free(writer->seen);
	free(writer->name);
	free(writer);
}

int segment_writer_open(const struct segment_options *options, struct segment_writer **result,
			char *text, size_t text_size)
{
	struct segment_message message = {text, text_size};
	int error = check_options(options, &message);

	*result = NULL;
	if (error)
		return error;
	struct segment_writer *writer = calloc(1, sizeof(*writer));
	if (!writer)
		return segment_fail(&message, -ENOMEM, "out of memory");
	writer->options = *options;
	writer->lock = -1;
	writer->file.fd = -1;
	writer->cool_down = COOL_DOWN_NS;
	writer->name = strdup(options->name);
	writer->options.name = writer->name;
	error = writer->name ? start(writer, &message)
			     : segment_fail(&message, -ENOMEM, "out of memory");
	if (error) {
		writer_free(writer);
		return error;
	}
	*result = writer;
	return 0;
}

void segment_writer_close(struct segment_writer *writer)
{
	if (!writer)
		return;
	segment_writer_set_state(writer, CBSHM_SEGMENT_STOPPED);
	segment_owner_release(&writer->file);
	segment_wake(&writer->file);
	writer_free(writer);
}

/* ---- state and clocks ------------------------------------------------------------------- */

void segment_writer_set_state(struct segment_writer *writer, enum cbshm_segment_state state)
{
	if (word_load(&header_of(writer)->state) == (uint64_t)state)
		return;
	word_store(&header_of(writer)->state, state);
	writer->changed = true;
	segment_writer_publish(writer);
}

/* Takes the lock again if somebody has removed it. -EAGAIN: another agent was faster. */
static int keep_lock(struct segment_writer *writer)
{
	char text[256];
	int lock, error;

	if (segment_lock_in_place(writer->lock, writer->name))
		return 0;
	error = segment_lock(writer->name, &lock, &(struct segment_message){text, sizeof(text)});
	if (error)
		return error;
	close(writer->lock);
	writer->lock = lock;
	return 0;
}

/*
 * Also the moment to see whether the segment still has its name: without it no new client finds it, and the next
 * agent would make another one that today's readers never hear of. The same goes for the lock: without its name,
 * a second agent would write into the segment of this one.
 */
void segment_writer_heartbeat(struct segment_writer *writer)
{
	if (keep_lock(writer) != -EAGAIN && !segment_file_in_place(&writer->file, writer->name))
		replace_quietly(writer); /* if that fails, the next turn tries again */
	word_store(&header_of(writer)->heartbeat, (uint64_t)clock_ns(CLOCK_MONOTONIC));
}

void segment_writer_database_confirmed(struct segment_writer *writer)
{
	word_store(&header_of(writer)->database_confirmed, (uint64_t)clock_ns(CLOCK_MONOTONIC));
	if (word_load(&header_of(writer)->restored_at) != 0)
		word_store(&header_of(writer)->restored_at, 0);
}

int64_t segment_writer_deadline(const struct segment_writer *writer, int64_t disabled_until)
{
	int64_t deadline;

	if (disabled_until == INT64_MIN)
		return INT64_MAX;
	if (__builtin_sub_overflow(disabled_until, writer->clock_offset, &deadline) ||
	    __builtin_mul_overflow(deadline, 1000, &deadline))
		return disabled_until < 0 ? INT64_MIN : INT64_MAX - 1; /* some 290 years away */
	return deadline;
}

static bool has_ttl(const struct cbshm_detail *detail)
{
	return (detail->flags & CBSHM_DETAIL_DISABLED) && detail->disabled_until != INT64_MIN;
}

static void move_deadlines(struct segment_writer *writer)
{
	for (uint32_t slot = 0; slot < writer->fresh; slot++) {
		union latch_detail detail = {.words = {0}};

		if (!is_live(writer, slot))
			continue;
		read_detail(writer, slot, &detail);
		int64_t deadline = segment_writer_deadline(writer, detail.detail.disabled_until);
		if (!has_ttl(&detail.detail) || detail.detail.deadline == deadline)
			continue;
		detail.detail.deadline = deadline;
		latch_write(record_of(writer, slot), word_of(writer, slot),
			    word_load(word_of(writer, slot)), &detail);
		writer->changed = true;
	}
}

void segment_writer_set_clock(struct segment_writer *writer, int64_t offset, int64_t tolerance)
{
	int64_t wall = clock_ns(CLOCK_REALTIME) / 1000 - clock_ns(CLOCK_BOOTTIME) / 1000;
	int64_t drift;
	int64_t *published = &header_of(writer)->clock_offset;

	word_store((uint64_t *)(void *)published, (uint64_t)(offset - wall));
	if (writer->clock_known && !__builtin_sub_overflow(offset, writer->clock_offset, &drift) &&
	    drift <= tolerance && drift >= -tolerance)
		return;
	writer->clock_known = true;
	writer->clock_offset = offset;
	move_deadlines(writer);
}

/* ---- rows ------------------------------------------------------------------------------- */

/* Puts as much of a text as fits, whole characters, and says whether that was all. */
static bool put_text(char *to, size_t room, uint16_t *length, const char *text)
{
	size_t all = text ? strlen(text) : 0;
	size_t fits = utf8_cut(text ? text : "", all, room);

	if (fits)
		memcpy(to, text, fits);
	*length = (uint16_t)fits;
	return fits == all;
}

static void row_detail(const struct segment_writer *writer, const struct breaker_row *row,
		       union latch_detail *result)
{
	struct cbshm_detail *detail = &result->detail;

	memset(result, 0, sizeof(*result));
	detail->version = row->version;
	detail->opened_at = row->opened_at;
	detail->disabled_until = row->disabled_until;
	detail->last_failure_at = row->last_failure_at;
	detail->updated_at = row->updated_at;
	detail->default_ttl = row->default_ttl;
	detail->drift_threshold = row->drift_threshold;
	detail->failure_threshold = row->failure_threshold;
	detail->schema_error_threshold = row->schema_error_threshold;
	detail->consecutive_failures = row->consecutive_failures;
	memcpy(detail->incident_id, row->incident_id, sizeof(detail->incident_id));
	if (row->disabled)
		detail->flags |= CBSHM_DETAIL_DISABLED;
	if (row->auto_recover)
		detail->flags |= CBSHM_DETAIL_AUTO_RECOVER;
	if (!put_text(detail->disabled_by, sizeof(detail->disabled_by), &detail->actor_length,
		      row->disabled_by))
		detail->flags |= CBSHM_DETAIL_ACTOR_CUT;
	if (!put_text(detail->disabled_reason, sizeof(detail->disabled_reason),
		      &detail->reason_length, row->disabled_reason))
		detail->flags |= CBSHM_DETAIL_REASON_CUT;
	detail->deadline =
		has_ttl(detail) ? segment_writer_deadline(writer, row->disabled_until) : INT64_MAX;
}

static uint64_t row_flags(const struct breaker_row *row)
{
	uint64_t flags = 0;

	if (row->disabled) {
		flags |= CBSHM_WORD_DISABLED;
		if (row->disabled_until != INT64_MIN)
			flags |= CBSHM_WORD_HAS_TTL;
		if (row->auto_recover)
			flags |= CBSHM_WORD_AUTO_RECOVER;
	}
	return flags;
}

static int insert(struct segment_writer *writer, const struct breaker_row *row,
		  const struct name_key *key)
{
	union latch_detail detail = {.words = {0}};
	uint32_t slot;
	int error = 0;

	if (!segment_writer_has_room(writer))
		return -ENOSPC;
	if (writer->generation >= CBSHM_GENERATION_MAX)
		error = replace_quietly(writer);
	if (!error)
		error = slot_take(writer, &slot);
	if (error)
		return error;
	row_detail(writer, row, &detail);
	slot_fill(writer, slot, key, row_flags(row), &detail);
	writer->seen[slot] = writer->load;
	tell_change(writer, slot, NULL, row->disabled);
	return 1;
}

static int update(struct segment_writer *writer, const struct breaker_row *row, bool force,
		  uint32_t slot, uint64_t word)
{
	union latch_detail detail, old = {.words = {0}};
	uint64_t value = (uint64_t)(uint32_t)row->version << CBSHM_WORD_EPOCH_SHIFT |
			 (word & CBSHM_WORD_GENERATION_MASK) | row_flags(row);

	writer->seen[slot] = writer->load;
	read_detail(writer, slot, &old);
	if (!force && row->version <= old.detail.version)
		return 0;
	row_detail(writer, row, &detail);
	/* A kill in a change without a new version, of the policy, may have left the new word with the old details. */
	if (value == word && memcmp(&detail, &old, sizeof(detail)) == 0)
		return 0;
	latch_write(record_of(writer, slot), word_of(writer, slot), value, &detail);
	writer->changed = true;
	tell_change(writer, slot, NULL,
		    ((value ^ word) & CBSHM_WORD_DECISION) != 0 ||
			    detail.detail.disabled_until != old.detail.disabled_until);
	return 1;
}

int segment_writer_put(struct segment_writer *writer, const struct breaker_row *row, bool force)
{
	struct index_hit hit;
	struct name_key key;

	/* Versions count from 1 up in a bigint: one beyond was negative. */
	if (!name_key_set(&key, row->name) || row->version > INT64_MAX)
		return -EINVAL;
	if (index_find(&writer->file.view, &key, &hit))
		return update(writer, row, force, hit.slot, hit.word);
	return insert(writer, row, &key);
}

int segment_writer_remove(struct segment_writer *writer, const char *name)
{
	struct index_hit hit;
	struct name_key key;

	if (!name_key_set(&key, name) || !index_find(&writer->file.view, &key, &hit))
		return 0;
	slot_free(writer, hit.slot, hit.bucket);
	return 1;
}

void segment_writer_load_begin(struct segment_writer *writer)
{
	writer->load++;
	writer->loading = true;
}

void segment_writer_load_end(struct segment_writer *writer)
{
	if (!writer->loading)
		return;
	writer->loading = false;
	for (uint32_t slot = 0; slot < writer->fresh; slot++) {
		struct index_hit hit;
		struct name_key key;

		if (!is_live(writer, slot) || writer->seen[slot] == writer->load)
			continue;
		read_key(writer, slot, &key);
		if (index_find(&writer->file.view, &key, &hit) && hit.slot == slot)
			slot_free(writer, slot, hit.bucket);
	}
}

void segment_writer_load_abort(struct segment_writer *writer)
{
	writer->loading = false;
}

void segment_writer_publish(struct segment_writer *writer)
{
	if (!writer->changed)
		return;
	writer->changed = false;
	segment_wake(&writer->file);
}

/* ---- looking ---------------------------------------------------------------------------- */

uint64_t segment_writer_version(const struct segment_writer *writer, const char *name)
{
	union latch_detail detail = {.words = {0}};
	struct index_hit hit;
	struct name_key key;

	if (!name_key_set(&key, name) || !index_find(&writer->file.view, &key, &hit))
		return 0;
	read_detail(writer, hit.slot, &detail);
	return detail.detail.version;
}

bool segment_writer_has_room(const struct segment_writer *writer)
{
	return writer->breakers < writer->file.view.layout.capacity;
}

bool segment_writer_reserve(struct segment_writer *writer, uint32_t more)
{
	if (more > writer->file.view.layout.capacity - writer->breakers)
		return false;
	while (segment_allocated(&writer->file.view) - writer->fresh + writer->resting_count <
	       more) {
		if (slots_grow(writer) < 0)
			return false;
	}
	return true;
}

uint32_t segment_writer_slots(const struct segment_writer *writer)
{
	return writer->fresh;
}

bool segment_writer_disabled(const struct segment_writer *writer, uint32_t slot)
{
	return (word_load(word_of(writer, slot)) & CBSHM_WORD_DISABLED) != 0;
}

bool segment_writer_read(const struct segment_writer *writer, uint32_t slot,
			 char name[CBSHM_NAME_ROOM], struct cbshm_detail *detail)
{
	union latch_detail copy = {.words = {0}};
	struct name_key key;

	if (slot >= writer->fresh || !is_live(writer, slot))
		return false;
	read_key(writer, slot, &key);
	read_detail(writer, slot, &copy);
	*detail = copy.detail;
	return name_key_get(&key, name);
}

bool segment_writer_find(const struct segment_writer *writer, const char *name, uint32_t *slot)
{
	struct index_hit hit;
	struct name_key key;

	if (!name_key_set(&key, name) || !index_find(&writer->file.view, &key, &hit))
		return false;
	*slot = hit.slot;
	return true;
}

void segment_writer_watch(struct segment_writer *writer, segment_writer_watcher *changed, void *arg)
{
	writer->watcher = changed;
	writer->watcher_arg = arg;
}

struct segment_changes segment_writer_changes(const struct segment_writer *writer)
{
	return writer->changes;
}

const struct segment_view *segment_writer_view(const struct segment_writer *writer)
{
	return &writer->file.view;
}

void segment_writer_set_restored(struct segment_writer *writer, int64_t confirmed_at)
{
	word_store(&header_of(writer)->restored_at, (uint64_t)confirmed_at);
}

int64_t segment_writer_clock_offset(const struct segment_writer *writer)
{
	const int64_t *offset = &header_of(writer)->clock_offset;

	return (int64_t)word_load((const uint64_t *)(const void *)offset);
}

const char *segment_writer_name(const struct segment_writer *writer)
{
	return writer->name;
}

int segment_writer_open_reader(const struct segment_writer *writer)
{
	return segment_file_open_reader(&writer->file, writer->name);
}

uint32_t segment_writer_breakers(const struct segment_writer *writer)
{
	return writer->breakers;
}

int64_t segment_writer_confirmed_at(const struct segment_writer *writer)
{
	return (int64_t)word_load(&header_of(writer)->database_confirmed);
}

uint64_t segment_writer_boot_epoch(const struct segment_writer *writer)
{
	return word_load(&header_of(writer)->boot_epoch);
}

/* ---- for tests -------------------------------------------------------------------------- */

void segment_writer_set_cool_down(struct segment_writer *writer, int64_t nanoseconds)
{
	writer->cool_down = nanoseconds;
}
