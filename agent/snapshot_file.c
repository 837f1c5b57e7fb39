/*
 * snapshot_file.c - the mirror on disk: what a snapshot's file holds, writing and reading one
 *
 * SPDX-License-Identifier: ISC
 *
 * A header, then the breakers one after another: numbers, then texts, padded to 8 bytes. The header has a checksum of its own
 * and one of all the rest, and says how long the file is: a file that was cut off or changed by one bit is not read. Whoever
 * could make a file with right checksums could as well change the segment; still nothing in it is used before it
 * has been found possible.
 */
#include <config.h>

#include "agent/snapshot_file.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cbshm/latch.h"
#include "libcbshm/hash.h"
#include "libcbshm/index.h"

#define MAGIC      UINT64_C(0x50414e534d534243) /* "CBSMSNAP" on a little-endian host */
#define FORMAT     1u
#define BLOCK      65536u /* hashed and written at once */
#define READ_TRIES 64

struct header {
	uint64_t magic;
	uint32_t version;
	uint32_t byte_order;
	uint64_t size; /* of the file */
	struct snapshot_about about;
	uint64_t body_hash;
	uint64_t header_hash; /* of all before it */
};

#define NUMBERS offsetof(struct cbshm_detail, disabled_by)

struct entry {
	uint64_t name_length;
	uint8_t numbers
		[NUMBERS]; /* of a struct cbshm_detail; its deadline is of the boot and counts nothing */
};

_Static_assert(sizeof(struct header) == 5 * 8 + sizeof(struct snapshot_about),
	       "no padding in the file");
_Static_assert(sizeof(struct snapshot_about) == 4 * 8 + 96, "no padding in the file");
_Static_assert(sizeof(struct entry) == 8 + NUMBERS, "no padding in the file");

#define ENTRY_MAX                                                            \
	(sizeof(struct entry) + CBSHM_NAME_ROOM + CBSHM_DETAIL_ACTOR_BYTES + \
	 CBSHM_DETAIL_REASON_BYTES + 8)

static uint64_t hash_header(const struct header *header)
{
	static const uint64_t key[2] = {MAGIC, FORMAT};

	return hash_siphash(key, header, offsetof(struct header, header_hash));
}

/* Blocks are chained, so that neither one of them nor their order can change. */
static uint64_t hash_block(uint64_t before, const void *block, size_t size)
{
	const uint64_t key[2] = {before, MAGIC};

	return hash_siphash(key, block, size);
}

static size_t padded(size_t size)
{
	return (size + 7) & ~(size_t)7;
}

/* ---- writing ---------------------------------------------------------------------------- */

struct output {
	int fd;
	unsigned char block[BLOCK];
	size_t used;
	uint64_t size; /* of the body */
	uint64_t hash;
};

static int write_all(int fd, const void *data, size_t size)
{
	const char *at = data;

	while (size > 0) {
		ssize_t count = write(fd, at, size);

		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0)
			return -errno;
		at += count;
		size -= (size_t)count;
	}
	return 0;
}

static int flush(struct output *output)
{
	int error = write_all(output->fd, output->block, output->used);

	if (output->used > 0)
		output->hash = hash_block(output->hash, output->block, output->used);
	output->size += output->used;
	output->used = 0;
	return error;
}

static int put(struct output *output, const void *data, size_t size)
{
	const unsigned char *at = data;
	int error = 0;

	while (size > 0 && !error) {
		size_t part = BLOCK - output->used < size ? BLOCK - output->used : size;

		memcpy(output->block + output->used, at, part);
		output->used += part;
		at += part;
		size -= part;
		if (output->used == BLOCK)
			error = flush(output);
	}
	return error;
}

/* The record of a slot with its name, whole; false: there is none. */
static bool read_slot(const struct segment_view *view, uint32_t slot, struct name_key *key,
		      union latch_detail *detail)
{
	const uint64_t *word = segment_word(view, slot);
	uint64_t value;

	for (int i = 0; i < READ_TRIES; i++) {
		uint32_t generation = word_generation(word_load(word));

		if (generation == 0)
			return false;
		if (index_slot_name(view, slot, generation, key) &&
		    latch_read(segment_record(view, slot), word, &value, detail->words,
			       CBSHM_DETAIL_WORDS) &&
		    word_generation(value) == generation)
			return true;
	}
	return false;
}

static int put_breaker(struct output *output, const struct name_key *key,
		       const struct cbshm_detail *detail)
{
	static const char zeros[8];
	struct entry entry = {.name_length = key->length};
	size_t texts = key->length + detail->actor_length + detail->reason_length;
	char name[CBSHM_NAME_ROOM];

	if (!name_key_get(key, name))
		return 0;
	memcpy(entry.numbers, detail, NUMBERS);
	int error = put(output, &entry, sizeof(entry));
	if (!error)
		error = put(output, name, key->length);
	if (!error)
		error = put(output, detail->disabled_by, detail->actor_length);
	if (!error)
		error = put(output, detail->disabled_reason, detail->reason_length);
	if (!error)
		error = put(output, zeros, padded(texts) - texts);
	return error;
}

static int put_breakers(struct output *output, const struct segment_view *view, uint64_t *entries)
{
	int error = 0;

	*entries = 0;
	for (uint32_t slot = 0; slot < segment_allocated(view) && !error; slot++) {
		union latch_detail detail = {.words = {0}};
		struct name_key key;

		if (!read_slot(view, slot, &key, &detail))
			continue;
		error = put_breaker(output, &key, &detail.detail);
		(*entries)++;
	}
	return error ? error : flush(output);
}

static int write_file(int fd, const struct segment_view *view, struct snapshot_about *about)
{
	struct output *output = calloc(1, sizeof(*output));
	struct header header = {.magic = MAGIC, .version = FORMAT, .byte_order = CBSHM_BYTE_ORDER};
	int error;

	if (!output)
		return -ENOMEM;
	output->fd = fd;
	error = write_all(fd, &(struct header){0}, sizeof(header));
	if (!error)
		error = put_breakers(output, view, &about->entries);
	header.about = *about;
	header.size = sizeof(header) + output->size;
	header.body_hash = output->hash;
	header.header_hash = hash_header(&header);
	free(output);
	if (!error && pwrite(fd, &header, sizeof(header), 0) != (ssize_t)sizeof(header))
		error = errno ? -errno : -EIO;
	if (!error && fsync(fd) < 0)
		error = -errno;
	return error;
}

/* The new name itself has to reach the disk. */
static int sync_directory(const char *path)
{
	const char *slash = strrchr(path, '/');
	char *directory = strndup(path, slash && slash > path ? (size_t)(slash - path) : 1);
	int fd = directory ? open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	int error = fd < 0 || fsync(fd) < 0 ? -errno : 0;

	if (fd >= 0)
		close(fd);
	free(directory);
	return error;
}

int snapshot_file_write(const char *path, const struct segment_view *view,
			struct snapshot_about *about, const struct segment_message *message)
{
	char *aside = NULL;
	int fd = -1, error;

	if (asprintf(&aside, "%s.new", path) < 0)
		return segment_fail(message, -ENOMEM, "out of memory");
	unlink(aside); /* what a killed agent has left */
	fd = open(aside, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	error = fd < 0 ? -errno : write_file(fd, view, about);
	if (!error && rename(aside, path) < 0)
		error = -errno;
	if (!error)
		error = sync_directory(path);
	else if (fd >= 0)
		unlink(aside);
	if (fd >= 0)
		close(fd);
	if (error)
		segment_fail(message, error, "%s: %s", aside, strerror(-error));
	free(aside);
	return error;
}

/* ---- reading ---------------------------------------------------------------------------- */

static int refuse(const struct segment_message *message, const char *path, const char *why)
{
	return segment_fail(message, -EINVAL, "%s: %s", path, why);
}

static int read_all(int fd, void *data, size_t size)
{
	char *at = data;

	while (size > 0) {
		ssize_t count = read(fd, at, size);

		if (count < 0 && errno == EINTR)
			continue;
		if (count <= 0)
			return count < 0 ? -errno : -EIO;
		at += count;
		size -= (size_t)count;
	}
	return 0;
}

static const char *judge_header(const struct header *header, uint64_t size, uint64_t target)
{
	if (header->magic != MAGIC)
		return "it is no snapshot";
	if (header->version != FORMAT || header->byte_order != CBSHM_BYTE_ORDER)
		return "it is of another version of cbagent, or of another kind of machine";
	if (header->header_hash != hash_header(header))
		return "its header is damaged";
	if (header->size != size || header->about.entries > CBSHM_CAPACITY_MAX ||
	    memchr(header->about.identity, '\0', sizeof(header->about.identity)) == NULL)
		return "it is shorter or longer than it was written";
	if (header->about.target != target)
		return "it is of another database than [postgres] conninfo names";
	return NULL;
}

static bool time_possible(int64_t time)
{
	return time == INT64_MIN || (time > -(INT64_C(1) << 61) && time < INT64_C(1) << 61);
}

static bool numbers_possible(const struct cbshm_detail *detail)
{
	return detail->actor_length <= CBSHM_DETAIL_ACTOR_BYTES &&
	       detail->reason_length <= CBSHM_DETAIL_REASON_BYTES &&
	       time_possible(detail->opened_at) && time_possible(detail->last_failure_at) &&
	       time_possible(detail->updated_at) && detail->default_ttl >= 0 &&
	       isfinite(detail->drift_threshold);
}

/* One breaker, in place. */
struct parsed {
	struct cbshm_detail detail; /* without the texts */
	char name[CBSHM_NAME_ROOM];
	char actor[CBSHM_DETAIL_ACTOR_BYTES + 1];
	char reason[CBSHM_DETAIL_REASON_BYTES + 1];
	size_t size; /* in the file */
};

static bool take_text(char *to, const unsigned char **at, size_t length)
{
	memcpy(to, *at, length);
	to[length] = '\0';
	*at += length;
	return strlen(to) == length && utf8_valid(to, length);
}

static bool parse_breaker(const unsigned char *at, size_t left, struct parsed *parsed)
{
	struct entry entry;
	size_t texts;

	if (left < sizeof(entry))
		return false;
	memcpy(&entry, at, sizeof(entry));
	memset(&parsed->detail, 0, sizeof(parsed->detail));
	memcpy(&parsed->detail, entry.numbers, NUMBERS);
	if (entry.name_length > CBSHM_NAME_ROOM - 1 || !numbers_possible(&parsed->detail))
		return false;
	texts = entry.name_length + parsed->detail.actor_length + parsed->detail.reason_length;
	parsed->size = sizeof(entry) + padded(texts);
	if (parsed->size > left)
		return false;
	at += sizeof(entry);
	return take_text(parsed->name, &at, entry.name_length) && name_length(parsed->name) != 0 &&
	       take_text(parsed->actor, &at, parsed->detail.actor_length) &&
	       take_text(parsed->reason, &at, parsed->detail.reason_length);
}

static void tell(const struct parsed *parsed, const struct snapshot_reader *reader)
{
	const struct cbshm_detail *detail = &parsed->detail;
	struct breaker_row row = {
		.name = parsed->name,
		.version = detail->version,
		.disabled = detail->flags & CBSHM_DETAIL_DISABLED,
		.disabled_by = parsed->actor,
		.disabled_reason = parsed->reason,
		.opened_at = detail->opened_at,
		.disabled_until = detail->disabled_until,
		.consecutive_failures = detail->consecutive_failures,
		.last_failure_at = detail->last_failure_at,
		.updated_at = detail->updated_at,
		.drift_threshold = detail->drift_threshold,
		.failure_threshold = detail->failure_threshold,
		.schema_error_threshold = detail->schema_error_threshold,
		.default_ttl = detail->default_ttl,
		.auto_recover = detail->flags & CBSHM_DETAIL_AUTO_RECOVER,
	};

	memcpy(row.incident_id, detail->incident_id, sizeof(row.incident_id));
	reader->breaker(reader->arg, &row);
}

/* Twice: nothing is told of a body that is not possible to its end. */
static bool walk(const unsigned char *body, size_t size, uint64_t entries,
		 const struct snapshot_reader *reader)
{
	struct parsed parsed;

	for (; entries > 0; entries--) {
		if (!parse_breaker(body, size, &parsed))
			return false;
		if (reader)
			tell(&parsed, reader);
		body += parsed.size;
		size -= parsed.size;
	}
	return size == 0;
}

static uint64_t hash_body(const unsigned char *body, size_t size)
{
	uint64_t hash = 0;

	for (size_t at = 0; at < size; at += BLOCK)
		hash = hash_block(hash, body + at, size - at < BLOCK ? size - at : BLOCK);
	return hash;
}

/* Nobody else's, and nobody else can have written to it. */
static const char *judge_file(const struct stat *status)
{
	if (!S_ISREG(status->st_mode))
		return "it is not a regular file";
	if (status->st_uid != geteuid())
		return "it belongs to another user than the one that cbagent runs as";
	if (status->st_nlink != 1 || (status->st_mode & (S_IWGRP | S_IWOTH)) != 0)
		return "others may have written to it";
	if ((uint64_t)status->st_size < sizeof(struct header))
		return "it is too short";
	if ((uint64_t)status->st_size > sizeof(struct header) + CBSHM_CAPACITY_MAX * ENTRY_MAX)
		return "it is too long";
	return NULL;
}

static int read_body(int fd, const char *path, const struct header *header,
		     const struct snapshot_reader *reader, const struct segment_message *message)
{
	size_t size = header->size - sizeof(*header);
	unsigned char *body = malloc(size + 1);
	int error = body ? read_all(fd, body, size) : -ENOMEM;

	if (error)
		segment_fail(message, error, "%s: %s", path, strerror(-error));
	else if (hash_body(body, size) != header->body_hash)
		error = refuse(message, path, "it is damaged");
	else if (!walk(body, size, header->about.entries, NULL))
		error = refuse(message, path, "what it says is not possible");
	if (!error) {
		reader->about(reader->arg, &header->about);
		walk(body, size, header->about.entries, reader);
	}
	free(body);
	return error;
}

int snapshot_file_read(const char *path, uint64_t target, const struct snapshot_reader *reader,
		       const struct segment_message *message)
{
	int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct header header;
	struct stat status;
	const char *wrong;
	int error;

	if (fd < 0)
		return segment_fail(message, -errno, "%s: %s", path, strerror(errno));
	error = fstat(fd, &status) < 0 ? -errno : 0;
	wrong = error ? strerror(-error) : judge_file(&status);
	if (!wrong) {
		error = read_all(fd, &header, sizeof(header));
		wrong = error ? strerror(-error)
			      : judge_header(&header, (uint64_t)status.st_size, target);
	}
	error = wrong ? refuse(message, path, wrong)
		      : read_body(fd, path, &header, reader, message);
	close(fd);
	return error;
}
