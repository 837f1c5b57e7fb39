/*
 * test_snapshot.c - the snapshot's file: what goes in comes out, and nothing else is believed
 *
 * SPDX-License-Identifier: ISC
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/snapshot_file.h"
#include "tests/support/segment.h"
#include "tests/support/tap.h"

#define TARGET   UINT64_C(0x1234567890abcdef)
#define BREAKERS 3000 /* some blocks of the file */

static char directory[64], path[96], message[512];
static const struct segment_message explain = {message, sizeof(message)};

/* What a reader is told, put into a segment of its own. */
struct told {
	unsigned abouts, breakers;
	struct snapshot_about about;
	struct segment_writer *writer;
};

static void take_about(void *arg, const struct snapshot_about *about)
{
	struct told *told = arg;

	told->abouts++;
	told->about = *about;
}

static void take_breaker(void *arg, const struct breaker_row *row)
{
	struct told *told = arg;

	told->breakers++;
	if (told->writer)
		CU_ASSERT_EQUAL(segment_writer_put(told->writer, row, true), 1);
}

static int read_snapshot(uint64_t target, struct told *told)
{
	const struct snapshot_reader reader = {take_about, take_breaker, told};

	return snapshot_file_read(path, target, &reader, &explain);
}

static void write_snapshot(const struct segment_writer *writer)
{
	struct snapshot_about about = {.confirmed_at = INT64_C(1767225600000000),
				       .clock_offset = -12345,
				       .target = TARGET,
				       .identity = "7412345678901234567"};
	int error = snapshot_file_write(path, segment_writer_view(writer), &about, &explain);

	CU_ASSERT_EQUAL(error, 0);
}

/* A snapshot of so many breakers of known patterns. */
static void make_snapshot(unsigned count)
{
	struct segment_writer *writer = scratch_writer(scratch_segment(), BREAKERS);
	struct pattern pattern;
	char name[32];

	for (unsigned i = 0; i < count; i++) {
		snprintf(name, sizeof(name), "b%u", i);
		pattern_fill(&pattern, name, i + 1);
		put(writer, pattern.row);
	}
	write_snapshot(writer);
	segment_writer_close(writer);
}

static char *load(size_t *size)
{
	int fd = open(path, O_RDONLY);
	struct stat status;

	CU_ASSERT_FATAL(fd >= 0 && fstat(fd, &status) == 0);
	char *bytes = malloc((size_t)status.st_size);
	CU_ASSERT_EQUAL_FATAL(read(fd, bytes, (size_t)status.st_size), status.st_size);
	close(fd);
	*size = (size_t)status.st_size;
	return bytes;
}

static void store(const char *bytes, size_t size)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	CU_ASSERT_FATAL(fd >= 0);
	CU_ASSERT_EQUAL_FATAL(write(fd, bytes, size), (ssize_t)size);
	close(fd);
}

static void refused(const char *why)
{
	struct told told = {0};

	CU_ASSERT_EQUAL(read_snapshot(TARGET, &told), -EINVAL);
	CU_ASSERT_EQUAL(told.abouts + told.breakers, 0);
	CU_ASSERT_PTR_NOT_NULL(strstr(message, why));
}

static void test_round_trip(void)
{
	const char *name = scratch_segment();
	struct told told = {0};
	struct cbshm_state state;
	struct stat status;

	make_snapshot(BREAKERS);
	CU_ASSERT(stat(path, &status) == 0 && (status.st_mode & 07777) == 0600);
	told.writer = scratch_writer(name, BREAKERS);
	CU_ASSERT_EQUAL(read_snapshot(TARGET, &told), 0);
	CU_ASSERT_EQUAL(told.abouts, 1);
	CU_ASSERT_EQUAL(told.breakers, BREAKERS);
	CU_ASSERT_EQUAL(told.about.entries, BREAKERS);
	CU_ASSERT_EQUAL(told.about.confirmed_at, INT64_C(1767225600000000));
	CU_ASSERT_EQUAL(told.about.clock_offset, -12345);
	CU_ASSERT_STRING_EQUAL(told.about.identity, "7412345678901234567");
	struct cbshm *client = scratch_client(name);
	for (unsigned i = 0; i < BREAKERS; i++) {
		char breaker[32];
		struct cbshm_breaker *handle;

		snprintf(breaker, sizeof(breaker), "b%u", i);
		handle = scratch_breaker(client, breaker);
		CU_ASSERT_EQUAL(cbshm_get_state(handle, &state), 0);
		CU_ASSERT_EQUAL(state.version, i + 1);
		CU_ASSERT_PTR_NULL(pattern_wrong(&state));
		cbshm_breaker_close(handle);
	}
	cbshm_close(client);
	segment_writer_close(told.writer);
}

static void test_empty(void)
{
	struct told told = {0};

	make_snapshot(0);
	CU_ASSERT_EQUAL(read_snapshot(TARGET, &told), 0);
	CU_ASSERT_EQUAL(told.abouts, 1);
	CU_ASSERT_EQUAL(told.breakers, 0);
	unlink(path);
	CU_ASSERT_EQUAL(read_snapshot(TARGET, &told), -ENOENT);
}

static void test_every_truncation(void)
{
	size_t size;

	make_snapshot(4);
	char *bytes = load(&size);
	for (size_t cut = size; cut-- > 0;) {
		CU_ASSERT_EQUAL_FATAL(truncate(path, (off_t)cut), 0);
		refused(path);
	}
	bytes = realloc(bytes, size + 1);
	bytes[size] = 0;
	store(bytes, size + 1);
	refused("shorter or longer");
	free(bytes);
}

static void test_every_bit(void)
{
	size_t size;

	make_snapshot(4);
	char *bytes = load(&size);
	int fd = open(path, O_WRONLY);
	for (size_t bit = 0; bit < 8 * size; bit++) {
		const off_t at = (off_t)(bit / 8);
		const char flipped = (char)(bytes[at] ^ 1 << bit % 8);

		CU_ASSERT_EQUAL(pwrite(fd, &flipped, 1, at), 1);
		refused(path);
		CU_ASSERT_EQUAL(pwrite(fd, &bytes[at], 1, at), 1);
	}
	close(fd);
	CU_ASSERT_EQUAL(read_snapshot(TARGET, &(struct told){0}), 0);
	free(bytes);
}

static void test_other_database(void)
{
	struct told told = {0};

	make_snapshot(1);
	CU_ASSERT_EQUAL(read_snapshot(TARGET + 1, &told), -EINVAL);
	CU_ASSERT_PTR_NOT_NULL(strstr(message, "another database"));
	CU_ASSERT_EQUAL(told.abouts + told.breakers, 0);
}

static void test_other_files(void)
{
	char other[128];

	make_snapshot(1);
	snprintf(other, sizeof(other), "%s.other", path);
	CU_ASSERT_EQUAL_FATAL(link(path, other), 0);
	refused("others may have written");
	unlink(other);
	chmod(path, 0620);
	refused("others may have written");
	chmod(path, 0600);
	CU_ASSERT_EQUAL_FATAL(rename(path, other), 0);
	CU_ASSERT_EQUAL_FATAL(symlink(other, path), 0);
	CU_ASSERT_EQUAL(read_snapshot(TARGET, &(struct told){0}), -ELOOP);
	unlink(path);
	CU_ASSERT_EQUAL_FATAL(mkfifo(path, 0600), 0);
	refused("not a regular file");
	unlink(path);
	if (geteuid() == 0) {
		CU_ASSERT_EQUAL_FATAL(rename(other, path), 0);
		CU_ASSERT_EQUAL_FATAL(chown(path, 12345, (gid_t)-1), 0);
		refused("another user");
	}
	unlink(other);
	unlink(path);
}

/* What it was before stays when it cannot be written; leftovers do not matter. */
static void test_no_room(void)
{
	struct segment_writer *writer = scratch_writer(scratch_segment(), 16);
	struct snapshot_about about = {.target = TARGET};
	struct told told = {0};
	char aside[128];

	make_snapshot(2);
	snprintf(aside, sizeof(aside), "%s.new", path);
	CU_ASSERT_EQUAL_FATAL(mkdir(aside, 0700), 0);
	CU_ASSERT(snapshot_file_write(path, segment_writer_view(writer), &about, &explain) < 0);
	CU_ASSERT_PTR_NOT_NULL(strstr(message, aside));
	CU_ASSERT_EQUAL(read_snapshot(TARGET, &told), 0);
	CU_ASSERT_EQUAL(told.breakers, 2);
	rmdir(aside);
	CU_ASSERT_EQUAL_FATAL(symlink("/nonexistent/file", aside), 0);
	write_snapshot(writer);
	CU_ASSERT_EQUAL(access(aside, F_OK), -1);
	told = (struct told){0};
	CU_ASSERT_EQUAL(read_snapshot(TARGET, &told), 0);
	CU_ASSERT_EQUAL(told.breakers, 0);
	segment_writer_close(writer);
}

int main(void)
{
	CU_initialize_registry();
	CU_pSuite suite = CU_add_suite("snapshot", NULL, NULL);
	int failed;

	snprintf(directory, sizeof(directory), "/tmp/cbshm-snapshot-XXXXXX");
	if (!mkdtemp(directory))
		return 99;
	snprintf(path, sizeof(path), "%s/s", directory);
	CU_add_test(suite, "what goes in comes out", test_round_trip);
	CU_add_test(suite, "empty, and none", test_empty);
	CU_add_test(suite, "cut off at every byte", test_every_truncation);
	CU_add_test(suite, "every bit flipped", test_every_bit);
	CU_add_test(suite, "of another database", test_other_database);
	CU_add_test(suite, "files of others, links, and no files", test_other_files);
	CU_add_test(suite, "no room, and leftovers", test_no_room);
	failed = tap_run_cunit();
	unlink(path);
	rmdir(directory);
	return failed;
}
