/*
 * fuzz_segment.c - throws bytes at whoever maps a segment: the library's readers, and the agent that takes it over
 *
 * SPDX-License-Identifier: ISC
 *
 * A libFuzzer target like fuzz_session.c, whose head says how it is run. An input changes a segment that is whole: it is a
 * list of 12 bytes each, 4 for a place and 8 for what to put there; a place above the end makes the file
 * that long. Whatever comes of it: either it is refused, or every question is answered within the bounds of its answer; and
 * after an agent has taken it over, or made another, what that publishes is what is read.
 *
 * First the same is done in memory of exactly the file's length, with what libcbshm has below its files: the judgement of the
 * measures, the index, the latch. What that accepts, a client must have attached. CBSHM_FUZZ_MEMORY=1 leaves it at that, which
 * is tens of times as fast.
 */
#include <config.h>

#include <fcntl.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/segment_writer.h"
#include "cbshm.h"
#include "cbshm/latch.h"
#include "libcbshm/index.h"
#include "libcbshm/validate.h"
#include "tests/fuzz/target.h"

#define CAPACITY  16u
#define IMAGE_MAX 65536u
#define PATCHES   64

const char fuzz_corpus[] = "tests/fuzz/corpus-segment";

static char segment[64], path[128], lock[136], aside[136];
static unsigned char image[IMAGE_MAX];
static size_t image_size;
static const char *const names[] = {"a", "b", "ttl", "never there"};
#define NAMES (sizeof(names) / sizeof(names[0]))

/* In place of libc's, which would ask the host's directories of users each time. There is nobody. */
int getpwnam_r(const char *name, struct passwd *entry, char *buffer, size_t size,
	       struct passwd **found)
{
	(void)name, (void)entry, (void)buffer, (void)size;
	*found = NULL;
	return 0;
}

static void must(int condition, const char *what)
{
	if (condition)
		return;
	fprintf(stderr, "fuzz_segment: %s\n", what);
	abort();
}

static struct breaker_row row(const char *name, uint64_t version, int64_t until)
{
	return (struct breaker_row){
		.name = name,
		.version = version,
		.disabled = version % 2,
		.disabled_by = "somebody",
		.disabled_reason =
			"some reason that is long enough to be read in more than one step",
		.opened_at = 1,
		.disabled_until = until,
		.last_failure_at = CBSHM_NO_TIME,
		.updated_at = 1,
		.incident_id = {1, 2, 3},
		.failure_threshold = 3,
		.schema_error_threshold = 5,
		.auto_recover = true,
	};
}

static void forget(void)
{
	unlink(path);
	unlink(lock);
	unlink(aside);
}

static struct segment_writer *take_over(void)
{
	struct segment_options options = {
		.name = segment, .capacity = CAPACITY, .mode = 0644, .group = (gid_t)-1};
	struct segment_writer *writer;
	char message[256] = "";

	if (segment_writer_open(&options, &writer, message, sizeof(message)) != 0) {
		must(message[0] != '\0', "an error of the writer without a message");
		return NULL;
	}
	segment_writer_set_clock(writer, 0, 0);
	return writer;
}

/* A whole segment with each kind of breaker, and a slot that has been one's. */
static void make_image(void)
{
	snprintf(segment, sizeof(segment), "/cbshm-fuzz-%d", (int)getpid());
	snprintf(path, sizeof(path), "%s%s", SEGMENT_DIRECTORY, segment);
	snprintf(lock, sizeof(lock), "%s.lock", path);
	snprintf(aside, sizeof(aside), "%s.new", path);
	atexit(forget);
	struct segment_writer *writer = take_over();
	must(writer != NULL, "no segment can be made");
	for (size_t i = 0; i + 1 < NAMES; i++) {
		struct breaker_row one = row(names[i], i + 2, i == 2 ? 1 : CBSHM_NO_TIME);

		must(segment_writer_put(writer, &one, false) == 1, "put");
	}
	struct breaker_row gone = row("gone", 1, CBSHM_NO_TIME);
	must(segment_writer_put(writer, &gone, false) == 1, "put");
	segment_writer_remove(writer, "gone");
	segment_writer_close(writer);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t count = read(fd, image, sizeof(image));
	must(count > CBSHM_HEADER_SIZE, "the segment cannot be read");
	image_size = (size_t)count;
	close(fd);
}

/* A place that is odd is a length, an even one is one of eight bytes. Returns how long the file is. */
static size_t change(unsigned char *changed, const uint8_t *data, size_t size)
{
	size_t length = image_size;

	memcpy(changed, image, IMAGE_MAX);
	for (size_t i = 0; i + 12 <= size && i < (size_t)12 * PATCHES; i += 12) {
		uint32_t place;

		memcpy(&place, &data[i], 4);
		if (place % 2 && place / 2 < IMAGE_MAX)
			length = place / 2;
		else if (place / 2 + 8 <= IMAGE_MAX)
			memcpy(&changed[place / 2], &data[i + 4], 8);
	}
	return length;
}

static void write_file(const unsigned char *bytes, size_t length)
{
	unlink(path);
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	must(fd >= 0 && write(fd, bytes, length) == (ssize_t)length,
	     "the segment cannot be written");
	close(fd);
}

static void check_state(const struct cbshm_state *state)
{
	must(memchr(state->name, '\0', sizeof(state->name)) != NULL, "a name without an end");
	must(memchr(state->disabled_by, '\0', sizeof(state->disabled_by)) != NULL,
	     "an actor without an end");
	must(memchr(state->disabled_reason, '\0', sizeof(state->disabled_reason)) != NULL,
	     "a reason without an end");
	must(memchr(state->incident_id, '\0', sizeof(state->incident_id)) != NULL,
	     "an incident without an end");
	must(state->row_disabled || !state->disabled, "disabled, but not in its row");
}

static int each(const struct cbshm_state *state, void *arg)
{
	uint32_t *count = arg;

	check_state(state);
	must(++*count <= CBSHM_CAPACITY_MAX, "more breakers than fit");
	return 0;
}

static void read_all(struct cbshm *client, struct cbshm_breaker *const handles[NAMES])
{
	struct cbshm_health health;
	uint32_t count = 0;

	for (size_t i = 0; i < NAMES; i++) {
		struct cbshm_decision decision = cbshm_check(handles[i]);
		struct cbshm_state state;
		int error = cbshm_get_state(handles[i], &state);

		must(decision.disabled <= 1 && decision.basis <= CBSHM_BASIS_NO_SEGMENT,
		     "a decision that is none");
		must(!decision.disabled || decision.basis == CBSHM_BASIS_SEGMENT,
		     "disabled by nothing");
		must(error <= 0 && error > -64, "an error that is none");
		if (error == 0)
			check_state(&state);
	}
	int error = cbshm_foreach(client, each, &count);
	must(error <= 0, "cbshm_foreach()");
	must((cbshm_health(client, &health) == 0) == (error == 0), "cbshm_health()");
}

static struct cbshm *attach(struct cbshm_breaker *handles[NAMES])
{
	struct cbshm_options options = {.size = sizeof(options), .segment = segment};
	struct cbshm *client;

	must(cbshm_open(&options, &client) == 0, "cbshm_open()");
	for (size_t i = 0; i < NAMES; i++)
		must(cbshm_breaker_open(client, names[i], &handles[i]) == 0,
		     "cbshm_breaker_open()");
	return client;
}

/* Rows as the database has them: after a load nothing of the damage is left. */
static void check_writer(struct segment_writer *writer)
{
	struct cbshm_breaker *handles[NAMES];
	struct cbshm_state state;

	segment_writer_load_begin(writer);
	for (size_t i = 0; i < NAMES; i++) {
		struct breaker_row one = row(names[i], 101 + i, CBSHM_NO_TIME);
		int result = segment_writer_put(writer, &one, true);

		must(result >= 0, "a row cannot be put");
	}
	segment_writer_load_end(writer);
	segment_writer_publish(writer);
	must(segment_writer_breakers(writer) == NAMES, "breakers that are not in the load");
	struct cbshm *client = attach(handles);
	for (size_t i = 0; i < NAMES; i++) {
		must(cbshm_is_disabled(handles[i]) == (101 + i) % 2, "not what was put");
		must(cbshm_get_state(handles[i], &state) == 0 && state.version == 101 + i,
		     "not the record that was put");
	}
	cbshm_close(client);
}

/* ---- in memory -------------------------------------------------------------------------- */

static void read_slot(const struct segment_view *view, uint32_t slot)
{
	char actor[CBSHM_DETAIL_ACTOR_BYTES], reason[CBSHM_DETAIL_REASON_BYTES];
	union latch_detail detail;
	const struct latch_parts parts = {detail.words, CBSHM_LATCH_NUMBERS, actor, reason};
	struct name_key key;
	char name[CBSHM_NAME_ROOM];
	uint64_t word;

	latch_read_parts(segment_record(view, slot), segment_word(view, slot), &word, &parts);
	must(word == word_load(segment_word(view, slot)), "a word that changes by itself");
	if (index_slot_name(view, slot, word_generation(word), &key) && name_key_get(&key, name))
		must(strlen(name) == key.length && key.length <= CBSHM_NAME_MAX,
		     "a name of another length");
}

/* Is it accepted? If so, every question has an answer within the memory. */
static bool read_memory(unsigned char *bytes, size_t length)
{
	struct segment_view view = {.base = bytes};
	struct cbshm_segment_header header;

	if (length < sizeof(header))
		return false;
	memcpy(&header, bytes, sizeof(header));
	if (segment_validate(&header, length, &view.layout) != NULL)
		return false;
	for (uint32_t slot = 0; slot < segment_allocated(&view); slot++)
		read_slot(&view, slot);
	for (size_t i = 0; i < NAMES; i++) {
		struct name_key key;
		struct index_hit hit;

		must(name_key_set(&key, names[i]), "name_key_set()");
		if (index_find(&view, &key, &hit))
			must(hit.slot < segment_allocated(&view) && word_generation(hit.word) != 0,
			     "a hit that is none");
	}
	return header.state != CBSHM_SEGMENT_RETIRED; /* whose successor a client looks for */
}

static bool read_copy(const unsigned char *bytes, size_t length)
{
	void *copy;

	must(posix_memalign(&copy, 64, length) == 0, "no memory");
	memcpy(copy, bytes, length);
	bool accepted = read_memory(copy, length);
	free(copy);
	return accepted;
}

/* ---- files ------------------------------------------------------------------------------ */

static void read_files(bool accepted)
{
	struct cbshm_breaker *handles[NAMES];
	struct cbshm *client = attach(handles);

	must((cbshm_segment_status(client) == 0) == accepted, "attached or not, against the rules");
	read_all(client, handles);
	struct segment_writer *writer = take_over();
	read_all(client, handles);
	if (writer)
		check_writer(writer);
	segment_writer_close(writer);
	read_all(client, handles);
	cbshm_close(client);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static unsigned char changed[IMAGE_MAX];
	static bool memory;

	if (image_size == 0) {
		make_image();
		memory = getenv("CBSHM_FUZZ_MEMORY") != NULL;
	}
	size_t length = change(changed, data, size);
	bool accepted = read_copy(changed, length);
	if (memory)
		return 0;
	write_file(changed, length);
	read_files(accepted);
	return 0;
}
