/*
 * test_hostile.c - segments that somebody else has made, or that are damaged, and a full file system
 *
 * SPDX-License-Identifier: ISC
 *
 * Most cases with another uid need root; they are skipped without.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cbshm/latch.h"
#include "tests/support/child.h"
#include "tests/support/segment.h"
#include "tests/support/tap.h"

#define STRANGER 65501
#define AGENT    65502

static int status_of(const char *name, const char *owner)
{
	struct cbshm_options options = {.size = sizeof(options), .segment = name, .owner = owner};
	struct cbshm *client;
	int error = cbshm_open(&options, &client);

	if (error)
		return error;
	error = cbshm_segment_status(client);
	int saved = errno;
	cbshm_close(client);
	errno = saved;
	return error;
}

static int try_writer(const char *name, char message[256])
{
	struct segment_options options = {
		.name = name, .capacity = 16, .mode = 0644, .group = (gid_t)-1};
	struct segment_writer *writer;

	message[0] = '\0';
	int error = segment_writer_open(&options, &writer, message, 256);
	if (error == 0)
		segment_writer_close(writer);
	return error;
}

/* A segment with an open breaker "a", whose writer is gone. */
static const char *made_segment(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 16);

	put(writer, row_open("a", 1));
	segment_writer_close(writer);
	return name;
}

/* Both sides refuse it, and the agent says why. */
static void both_refuse(const char *name, const char *why)
{
	char message[256];
	struct stat before, after;

	CU_ASSERT_EQUAL(status_of(name, NULL), CBSHM_ERR_UNTRUSTED);
	CU_ASSERT_EQUAL(lstat(scratch_path(name, ""), &before), 0);
	CU_ASSERT(try_writer(name, message) < 0);
	CU_ASSERT_PTR_NOT_NULL(strstr(message, why));
	CU_ASSERT_PTR_NOT_NULL(strstr(message, "remove it"));
	if (!strstr(message, why))
		tap_note("message: %s", message);
	CU_ASSERT_EQUAL(lstat(scratch_path(name, ""), &after), 0);
	CU_ASSERT_EQUAL(before.st_ino, after.st_ino);
}

static void test_symlink(void)
{
	const char *real = made_segment(), *name = scratch_segment();

	CU_ASSERT_EQUAL(symlink(scratch_path(real, ""), scratch_path(name, "")), 0);
	both_refuse(name, "symbolic link");
	CU_ASSERT_EQUAL(status_of(real, NULL), 0);
}

static void test_hard_link(void)
{
	const char *name = made_segment(), *other = scratch_segment();

	CU_ASSERT_EQUAL(link(scratch_path(name, ""), scratch_path(other, "")), 0);
	both_refuse(name, "hard links");
	unlink(scratch_path(other, ""));
	CU_ASSERT_EQUAL(status_of(name, NULL), 0);
}

static void test_writable(void)
{
	static const mode_t modes[] = {0666, 0664, 0646};
	const char *name = made_segment();

	for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
		CU_ASSERT_EQUAL(chmod(scratch_path(name, ""), modes[i]), 0);
		both_refuse(name, "open to other users");
	}
	CU_ASSERT_EQUAL(chmod(scratch_path(name, ""), 0644), 0);
	CU_ASSERT_EQUAL(status_of(name, NULL), 0);
}

static void test_no_file(void)
{
	const char *name = scratch_segment();
	char message[256];

	/* A FIFO would hold up whoever opens it without care. */
	alarm(10);
	CU_ASSERT_EQUAL(mkfifo(scratch_path(name, ""), 0600), 0);
	both_refuse(name, "not a regular file");
	unlink(scratch_path(name, ""));
	CU_ASSERT_EQUAL(mkdir(scratch_path(name, ""), 0700), 0);
	CU_ASSERT_EQUAL(status_of(name, NULL), CBSHM_ERR_UNTRUSTED);
	CU_ASSERT(try_writer(name, message) < 0);
	rmdir(scratch_path(name, ""));
	alarm(0);
}

static void test_lock_and_leftover(void)
{
	const char *name = made_segment();
	char message[256];
	int fd;

	unlink(scratch_path(name, ".lock"));
	CU_ASSERT_EQUAL(symlink("/etc/passwd", scratch_path(name, ".lock")), 0);
	CU_ASSERT_EQUAL(try_writer(name, message), -ELOOP);
	CU_ASSERT_PTR_NOT_NULL(strstr(message, ".lock"));
	unlink(scratch_path(name, ".lock"));
	/* A lock that others may open could be held by them. */
	fd = open(scratch_path(name, ".lock"), O_CREAT | O_RDWR, 0600);
	CU_ASSERT_EQUAL(fchmod(fd, 0644), 0);
	CU_ASSERT_EQUAL(try_writer(name, message), -EPERM);
	CU_ASSERT_EQUAL(fchmod(fd, 0600), 0);
	close(fd);
	/* What a killed agent left aside does not matter. */
	fd = open(scratch_path(name, ".new"), O_CREAT | O_RDWR, 0600);
	CU_ASSERT(fd >= 0);
	close(fd);
	unlink(scratch_path(name, ""));
	CU_ASSERT_EQUAL(try_writer(name, message), 0);
	CU_ASSERT_EQUAL(access(scratch_path(name, ".new"), F_OK), -1);
	CU_ASSERT_EQUAL(status_of(name, NULL), 0);
	struct stat status;
	CU_ASSERT_EQUAL(stat(scratch_path(name, ".lock"), &status), 0);
	CU_ASSERT_EQUAL(status.st_mode & 07777, 0600);
}

/* ---- other users ------------------------------------------------------------------------ */

static bool is_root(void)
{
	if (geteuid() == 0)
		return true;
	tap_skip("needs root to become another user");
	return false;
}

struct errand {
	const char *name;
	const char *owner;
};

/* Runs `go` as another user; its value. */
static int as_user(uid_t uid, int (*go)(const struct errand *), const struct errand *errand)
{
	int status;

	fflush(stdout);
	pid_t child = child_fork();
	if (child == 0) {
		if (setgid(uid) != 0 || setuid(uid) != 0)
			_exit(98);
		_exit(go(errand) & 0x7f);
	}
	if (child < 0 || waitpid(child, &status, 0) < 0 || !WIFEXITED(status))
		return -1;
	return WEXITSTATUS(status);
}

static int go_status(const struct errand *errand)
{
	return -status_of(errand->name, errand->owner);
}

static int go_make(const struct errand *errand)
{
	struct segment_writer *writer = scratch_writer(errand->name, 16);

	put(writer, row_open("a", 1));
	segment_writer_close(writer);
	return 0;
}

static int go_open_for_writing(const struct errand *errand)
{
	int fd = open(scratch_path(errand->name, ""), O_RDWR);
	int read_only = open(scratch_path(errand->name, ""), O_RDONLY);

	if (fd >= 0 || read_only < 0)
		return 1;
	if (mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, read_only, 0) != MAP_FAILED)
		return 2;
	void *map = mmap(NULL, 4096, PROT_READ, MAP_SHARED, read_only, 0);
	if (map == MAP_FAILED || mprotect(map, 4096, PROT_READ | PROT_WRITE) == 0)
		return 3;
	return ftruncate(read_only, 0) == 0 ? 4 : 0;
}

static int go_agent(const struct errand *errand)
{
	char message[256];
	int error = try_writer(errand->name, message);

	return strstr(message, "remove it") ? -error : 0;
}

static int go_squat(const struct errand *errand)
{
	int fd = open(scratch_path(errand->name, errand->owner), O_CREAT | O_EXCL | O_RDWR, 0666);

	return fd < 0 || fchmod(fd, 0666) < 0;
}

/* Made beforehand by a stranger: nobody takes it but the stranger himself, or who names him. */
static void test_strangers_segment(void)
{
	struct errand errand = {.name = scratch_segment()};
	struct errand named = {errand.name, "65501"};
	char message[256];

	if (!is_root())
		return;
	CU_ASSERT_EQUAL(as_user(STRANGER, go_make, &errand), 0);
	both_refuse(errand.name, "belongs to uid 65501");
	CU_ASSERT_EQUAL(as_user(AGENT, go_status, &errand), -CBSHM_ERR_UNTRUSTED);
	CU_ASSERT_EQUAL(as_user(STRANGER, go_status, &errand), 0);
	CU_ASSERT_EQUAL(as_user(AGENT, go_status, &named), 0);
	CU_ASSERT_EQUAL(status_of(errand.name, "65501"), 0);
	CU_ASSERT(as_user(AGENT, go_agent, &errand) != 0);
	CU_ASSERT_EQUAL(status_of(errand.name, "65503"), CBSHM_ERR_UNTRUSTED);
	unlink(scratch_path(errand.name, ""));
	CU_ASSERT_EQUAL(try_writer(errand.name, message), -EPERM); /* the lock is his, too */
	CU_ASSERT_PTR_NOT_NULL(strstr(message, ".lock"));
}

/* The environment is believed as the option is. */
static void test_owner_variable(void)
{
	struct errand errand = {.name = scratch_segment()};

	if (!is_root())
		return;
	CU_ASSERT_EQUAL(as_user(STRANGER, go_make, &errand), 0);
	CU_ASSERT_EQUAL(status_of(errand.name, NULL), CBSHM_ERR_UNTRUSTED);
	setenv("CBSHM_OWNER", "65501", 1);
	CU_ASSERT_EQUAL(status_of(errand.name, NULL), 0);
	CU_ASSERT_EQUAL(status_of(errand.name, "65503"), CBSHM_ERR_UNTRUSTED);
	unsetenv("CBSHM_OWNER");
}

static void test_roots_segment(void)
{
	struct errand errand = {.name = made_segment()};

	if (!is_root())
		return;
	CU_ASSERT_EQUAL(as_user(STRANGER, go_status, &errand), 0);
	CU_ASSERT_EQUAL(as_user(STRANGER, go_open_for_writing, &errand), 0);
	CU_ASSERT(as_user(STRANGER, go_agent, &errand) != 0);
	/* The default mode keeps everybody out who is not in the group. */
	CU_ASSERT_EQUAL(chmod(scratch_path(errand.name, ""), 0640), 0);
	CU_ASSERT_EQUAL(as_user(STRANGER, go_status, &errand), -CBSHM_ERR_SYSTEM);
}

static void test_squatters(void)
{
	struct errand segment = {scratch_segment(), ""};
	struct errand lock = {scratch_segment(), ".lock"};
	struct errand aside = {scratch_segment(), ".new"};
	char message[256];

	if (!is_root())
		return;
	CU_ASSERT_EQUAL(as_user(STRANGER, go_squat, &segment), 0);
	both_refuse(segment.name, "belongs to uid 65501");
	CU_ASSERT_EQUAL(as_user(STRANGER, go_squat, &lock), 0);
	CU_ASSERT_EQUAL(try_writer(lock.name, message), -EPERM);
	CU_ASSERT_EQUAL(as_user(STRANGER, go_squat, &aside), 0);
	CU_ASSERT_EQUAL(try_writer(aside.name, message), -EPERM);
	CU_ASSERT_PTR_NOT_NULL(strstr(message, ".new"));
	CU_ASSERT_EQUAL(access(scratch_path(aside.name, ""), F_OK), -1);
}

/* ---- what comes under the name of a segment that is in use ------------------------------- */

static void put_nothing(const char *path)
{
	(void)path;
}

static void put_symlink(const char *path)
{
	CU_ASSERT_EQUAL(symlink("/dev/shm/somewhere-else", path), 0);
}

static void put_fifo(const char *path)
{
	CU_ASSERT_EQUAL(mkfifo(path, 0600), 0);
}

static void put_bytes(const char *path, const void *bytes, size_t size)
{
	int fd = open(path, O_CREAT | O_EXCL | O_RDWR, 0600);

	CU_ASSERT_FATAL(fd >= 0);
	CU_ASSERT_EQUAL(write(fd, bytes, size), (ssize_t)size);
	close(fd);
}

static void put_short_file(const char *path)
{
	put_bytes(path, "CBSHMSEG", 8);
}

static void put_random_bytes(const char *path)
{
	unsigned char bytes[16384];
	unsigned int seed = 42;

	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = (unsigned char)rand_r(&seed);
	put_bytes(path, bytes, sizeof(bytes));
}

static void put_other_layout(const char *path)
{
	static unsigned char bytes[32768];
	struct cbshm_segment_header header = {.magic = CBSHM_SEGMENT_MAGIC,
					      .byte_order = CBSHM_BYTE_ORDER,
					      .layout_major = CBSHM_LAYOUT_MAJOR + 1,
					      .state = CBSHM_SEGMENT_LIVE};

	memcpy(bytes, &header, sizeof(header));
	put_bytes(path, bytes, sizeof(bytes));
}

static void put_directory(const char *path)
{
	CU_ASSERT_EQUAL(mkdir(path, 0700), 0);
}

static const struct intruder {
	const char *title;
	void (*put)(const char *path);
	int status; /* of who comes now */
	bool stays; /* the agent cannot put a segment in its place */
} intruders[] = {
	{"nothing", put_nothing, CBSHM_ERR_NO_SEGMENT, false},
	{"a symbolic link", put_symlink, CBSHM_ERR_UNTRUSTED, false},
	{"a FIFO", put_fifo, CBSHM_ERR_UNTRUSTED, false},
	{"a short file", put_short_file, CBSHM_ERR_LAYOUT, false},
	{"random bytes", put_random_bytes, CBSHM_ERR_LAYOUT, false},
	{"another layout", put_other_layout, CBSHM_ERR_LAYOUT, false},
	{"a directory", put_directory, CBSHM_ERR_UNTRUSTED, true},
};

/* Engines go on with what they have, which the agent still writes to; who comes is refused; and the agent sets it right. */
static void intrude(const struct intruder *intruder)
{
	const char *name = scratch_segment();
	const char *path = scratch_path(name, "");
	struct segment_writer *writer = scratch_writer(name, 16);
	struct cbshm *before = scratch_client(name);
	struct cbshm_breaker *engine = scratch_breaker(before, "a");

	put(writer, row_open("a", 1));
	CU_ASSERT(cbshm_is_disabled(engine));
	CU_ASSERT_EQUAL(unlink(path), 0);
	intruder->put(path);
	CU_ASSERT(cbshm_is_disabled(engine));
	put(writer, row_closed("a", 2));
	CU_ASSERT(!cbshm_is_disabled(engine));
	struct cbshm *after = scratch_client(name);
	struct cbshm_breaker *newcomer = scratch_breaker(after, "a");
	CU_ASSERT_EQUAL(cbshm_check(newcomer).basis, CBSHM_BASIS_NO_SEGMENT);
	CU_ASSERT_EQUAL(cbshm_segment_status(after), intruder->status);
	segment_writer_heartbeat(writer);
	put(writer, row_open("a", 3));
	CU_ASSERT(cbshm_is_disabled(engine));
	if (intruder->stays) {
		CU_ASSERT_EQUAL(cbshm_segment_status(after), intruder->status);
		CU_ASSERT_EQUAL(rmdir(path), 0);
		segment_writer_heartbeat(writer);
		put(writer, row_open("a", 5));
	}
	CU_ASSERT_EQUAL(cbshm_segment_status(after), 0);
	CU_ASSERT(cbshm_is_disabled(engine));
	CU_ASSERT(cbshm_is_disabled(newcomer));
	put(writer, row_closed("a", 6));
	CU_ASSERT(!cbshm_is_disabled(engine));
	CU_ASSERT(!cbshm_is_disabled(newcomer));
	cbshm_close(before);
	cbshm_close(after);
	segment_writer_close(writer);
}

static void test_intruders(void)
{
	for (size_t i = 0; i < sizeof(intruders) / sizeof(intruders[0]); i++) {
		unsigned int failures = CU_get_number_of_failures();

		intrude(&intruders[i]);
		if (CU_get_number_of_failures() != failures)
			tap_note("%s", intruders[i].title);
	}
}

/* As the agent's user: another user's file cannot be removed from a sticky directory, so the engines stay with the last one. */
static int go_squatted(const struct errand *errand)
{
	struct segment_writer *writer = scratch_writer(errand->name, 16);
	struct cbshm *client = scratch_client(errand->name);
	struct cbshm_breaker *engine = scratch_breaker(client, "a");

	put(writer, row_open("a", 1));
	if (!cbshm_is_disabled(engine))
		return 1;
	raise(SIGSTOP); /* and a stranger takes the name */
	if (!cbshm_is_disabled(engine))
		return 2;
	segment_writer_heartbeat(writer);
	put(writer, row_closed("a", 2));
	if (cbshm_is_disabled(engine) || cbshm_check(engine).epoch != 2)
		return 3;
	if (status_of(errand->name, NULL) != CBSHM_ERR_UNTRUSTED)
		return 4;
	raise(SIGSTOP); /* and goes away again */
	segment_writer_heartbeat(writer);
	put(writer, row_open("a", 3));
	if (!cbshm_is_disabled(engine) || status_of(errand->name, NULL) != 0)
		return 5;
	segment_writer_close(writer);
	return 0;
}

static void test_stranger_takes_the_name(void)
{
	struct errand errand = {.name = scratch_segment()};
	const char *path = scratch_path(errand.name, "");
	int status;

	if (!is_root())
		return;
	fflush(stdout);
	pid_t child = child_fork();
	if (child == 0) {
		if (setgid(AGENT) != 0 || setuid(AGENT) != 0)
			_exit(99);
		_exit(go_squatted(&errand));
	}
	CU_ASSERT_EQUAL(waitpid(child, &status, WUNTRACED), child);
	CU_ASSERT(WIFSTOPPED(status));
	CU_ASSERT_EQUAL(unlink(path), 0);
	put_random_bytes(path);
	CU_ASSERT_EQUAL(chmod(path, 0644), 0);
	CU_ASSERT_EQUAL(chown(path, STRANGER, STRANGER), 0);
	kill(child, SIGCONT);
	CU_ASSERT_EQUAL(waitpid(child, &status, WUNTRACED), child);
	CU_ASSERT(WIFSTOPPED(status));
	unlink(path);
	kill(child, SIGCONT);
	CU_ASSERT_EQUAL(waitpid(child, &status, 0), child);
	CU_ASSERT_EQUAL(status, 0);
	if (status)
		tap_note("status %#x", (unsigned int)status);
}

/* ---- damaged segments ------------------------------------------------------------------- */

static void write_file(const char *name, const void *bytes, size_t size, off_t offset)
{
	int fd = open(scratch_path(name, ""), O_CREAT | O_RDWR, 0600);

	CU_ASSERT_FATAL(fd >= 0);
	CU_ASSERT_EQUAL(pwrite(fd, bytes, size, offset), (ssize_t)size);
	close(fd);
}

/* No reader takes it; the agent makes a new one of it. */
static void is_damaged(const char *name, const char *what)
{
	char message[256];
	int error = status_of(name, NULL);

	CU_ASSERT_EQUAL(error, CBSHM_ERR_LAYOUT);
	if (error != CBSHM_ERR_LAYOUT)
		tap_note("%s: %d", what, error);
	error = try_writer(name, message);
	CU_ASSERT_EQUAL(error, 0);
	if (error)
		tap_note("%s: %s", what, message);
	CU_ASSERT_EQUAL(status_of(name, NULL), 0);
}

static void test_short_files(void)
{
	static const size_t sizes[] = {0, 1, 8, 100, 447, 448, 4095};

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		const char *name = made_segment();

		CU_ASSERT_EQUAL(truncate(scratch_path(name, ""), (off_t)sizes[i]), 0);
		is_damaged(name, "short");
	}
	/* Shorter than the records it says it has. */
	const char *name = made_segment();
	struct stat status;
	CU_ASSERT_EQUAL(stat(scratch_path(name, ""), &status), 0);
	CU_ASSERT_EQUAL(truncate(scratch_path(name, ""), status.st_size - 1), 0);
	is_damaged(name, "one byte short");
}

static void test_random_bytes(void)
{
	unsigned char bytes[16384];
	unsigned int seed = 4711;

	for (int round = 0; round < 20; round++) {
		const char *name = scratch_segment();

		for (size_t i = 0; i < sizeof(bytes); i++)
			bytes[i] = (unsigned char)rand_r(&seed);
		write_file(name, bytes, sizeof(bytes), 0);
		is_damaged(name, "random");
		scratch_remove(name);
	}
}

#define FIELD(name, value)                                                                  \
	{                                                                                   \
#name, offsetof(struct cbshm_segment_header, name),                         \
			sizeof(((struct cbshm_segment_header *)0)->name), (uint64_t)(value) \
	}

/* Each of them alone makes a header one of no segment. */
static const struct {
	const char *name;
	size_t offset, size;
	uint64_t value;
} wrong_fields[] = {
	FIELD(magic, 0),
	FIELD(magic, UINT64_C(0x4342534853454743)),
	FIELD(byte_order, 0x04030201),
	FIELD(layout_major, 2),
	FIELD(layout_major, 0),
	FIELD(layout_hash, CBSHM_LAYOUT_HASH + 1),
	FIELD(feature_incompat, 1),
	FIELD(header_size, 0),
	FIELD(header_size, 100),
	FIELD(header_size, UINT32_MAX),
	FIELD(record_size, 0),
	FIELD(record_size, 1023),
	FIELD(record_size, 2048),
	FIELD(capacity, 0),
	FIELD(capacity, 15),
	FIELD(capacity, CBSHM_CAPACITY_MAX + 1),
	FIELD(capacity, UINT32_MAX),
	FIELD(capacity, 17),
	FIELD(index_size, 0),
	FIELD(index_size, 16),
	FIELD(index_size, 33),
	FIELD(index_size, UINT32_C(1) << 31),
	FIELD(index_offset, 0),
	FIELD(index_offset, 4097),
	FIELD(index_offset, 4104),
	FIELD(index_offset, UINT64_MAX - 63),
	FIELD(words_offset, 0),
	FIELD(words_offset, 4096),
	FIELD(words_offset, 8196),
	FIELD(words_offset, UINT64_C(1) << 63),
	FIELD(records_offset, 0),
	FIELD(records_offset, 8192),
	FIELD(records_offset, 12288 + 8),
	FIELD(records_offset, UINT64_MAX & ~UINT64_C(63)),
	FIELD(total_size, 0),
	FIELD(total_size, 4096),
	FIELD(total_size, UINT64_MAX),
	FIELD(allocated, 17),
	FIELD(allocated, UINT64_MAX),
	FIELD(state, CBSHM_SEGMENT_NEW),
	FIELD(state, 6),
	FIELD(state, UINT64_MAX),
};

static void test_headers(void)
{
	for (size_t i = 0; i < sizeof(wrong_fields) / sizeof(wrong_fields[0]); i++) {
		const char *name = made_segment();

		write_file(name, &wrong_fields[i].value, wrong_fields[i].size,
			   (off_t)wrong_fields[i].offset);
		is_damaged(name, wrong_fields[i].name);
		scratch_remove(name);
	}
}

/* What a later minor version may add is no reason to refuse it. */
static void test_newer_header(void)
{
	const char *name = made_segment();
	uint16_t minor = 7;
	uint32_t compat = UINT32_MAX;

	write_file(name, &minor, sizeof(minor),
		   offsetof(struct cbshm_segment_header, layout_minor));
	write_file(name, &compat, sizeof(compat),
		   offsetof(struct cbshm_segment_header, feature_compat));
	CU_ASSERT_EQUAL(status_of(name, NULL), 0);
	/* Retired, and still under its name: nothing to attach to. */
	uint64_t retired = CBSHM_SEGMENT_RETIRED;
	write_file(name, &retired, sizeof(retired), offsetof(struct cbshm_segment_header, state));
	CU_ASSERT_EQUAL(status_of(name, NULL), CBSHM_ERR_LAYOUT);
}

static int touch(const struct cbshm_state *state, void *arg)
{
	size_t *bytes = arg;

	*bytes += strlen(state->name) + strlen(state->disabled_by) +
		  strlen(state->disabled_reason) + strlen(state->incident_id);
	return 0;
}

/* Everything that a client can do, in a child that would die of a wild access. */
static int use_everything(const char *name)
{
	struct cbshm *client = scratch_client(name);
	struct cbshm_health health;
	struct cbshm_state state;
	size_t bytes = 0;
	char breaker[32];

	if (cbshm_foreach(client, touch, &bytes) < 0)
		return 1;
	if (cbshm_health(client, &health) != 0)
		return 2;
	for (int i = 0; i < 20; i++) {
		snprintf(breaker, sizeof(breaker), "b%d", i);
		struct cbshm_breaker *handle = scratch_breaker(client, breaker);
		(void)cbshm_is_disabled(handle);
		if (cbshm_get_state(handle, &state) == 0)
			touch(&state, &bytes);
	}
	cbshm_close(client);
	return 0;
}

/* The header is right and everything behind it is not: readers and the next agent survive. */
static void test_random_contents(void)
{
	unsigned int seed = 99;

	for (int round = 0; round < 60; round++) {
		const char *name = scratch_segment();
		struct segment_writer *writer = scratch_writer(name, 24);
		char breaker[32];
		int status;

		for (int i = 0; i < 20; i++) {
			snprintf(breaker, sizeof(breaker), "b%d", i);
			put(writer, row_open(breaker, 5));
		}
		segment_writer_close(writer);
		struct segment_view view = scratch_map(name);
		uint64_t size = view.layout.total_size;
		/* From a few bytes to many, and small numbers as often as wild ones. */
		for (int i = 0; i < 1 << (round % 12); i++) {
			uint64_t at = view.layout.index_offset +
				      (uint64_t)rand_r(&seed) % (size - view.layout.index_offset);
			view.base[at] = (unsigned char)(rand_r(&seed) % 2 ? rand_r(&seed)
									  : rand_r(&seed) % 4);
		}
		segment_header(&view)->owner_word_offset = (uint32_t)rand_r(&seed);
		scratch_unmap(&view);
		fflush(stdout);
		pid_t child = child_fork();
		if (child == 0)
			_exit(use_everything(name));
		waitpid(child, &status, 0);
		CU_ASSERT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
		writer = scratch_writer(name, 24);
		for (int i = 0; i < 20; i++) {
			snprintf(breaker, sizeof(breaker), "b%d", i);
			struct breaker_row row = row_open(breaker, 6);
			int put_result = segment_writer_put(writer, &row, true);
			CU_ASSERT(put_result == 1 || put_result == -ENOSPC);
		}
		segment_writer_close(writer);
		scratch_remove(name);
	}
}

/* ---- a full file system ----------------------------------------------------------------- */

#define NO_MOUNT 77

static bool small_dev_shm(const char *size)
{
	return unshare(CLONE_NEWNS) == 0 &&
	       mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
	       mount("tmpfs", SEGMENT_DIRECTORY, "tmpfs", 0, size) == 0;
}

/* Too small for the segment itself. */
static int go_no_room(const struct errand *errand)
{
	struct segment_options options = {
		.name = errand->name, .capacity = 65536, .mode = 0644, .group = (gid_t)-1};
	struct segment_writer *writer;
	char message[256] = "";

	if (!small_dev_shm("size=1m"))
		return NO_MOUNT;
	if (segment_writer_open(&options, &writer, message, sizeof(message)) != -ENOSPC)
		return 1;
	if (!strstr(message, "is full") || !strstr(message, "capacity"))
		return 2;
	if (access(scratch_path(errand->name, ""), F_OK) == 0 ||
	    access(scratch_path(errand->name, ".new"), F_OK) == 0)
		return 3;
	return 0;
}

/* Enough for the first records, not for more. */
static int go_no_growth(const struct errand *errand)
{
	char breaker[32];
	uint32_t count = 0;
	int error = 0;

	if (!small_dev_shm("size=2500k"))
		return NO_MOUNT;
	struct segment_writer *writer = scratch_writer(errand->name, 8192);
	struct cbshm *client = scratch_client(errand->name);
	while (error >= 0 && count < 8192) {
		snprintf(breaker, sizeof(breaker), "b%u", count++);
		struct breaker_row row = row_open(breaker, 1);
		error = segment_writer_put(writer, &row, false);
	}
	if (error != -ENOSPC || count < 1024 || count > 3000)
		return 1;
	count--;
	for (uint32_t i = 0; i < count; i++) {
		snprintf(breaker, sizeof(breaker), "b%u", i);
		if (!cbshm_is_disabled(scratch_breaker(client, breaker)))
			return 2;
	}
	/* Another capacity needs another segment, for which there is no room: the old one stays. */
	segment_writer_close(writer);
	struct segment_options options = {
		.name = errand->name, .capacity = 8000, .mode = 0644, .group = (gid_t)-1};
	char message[256];
	if (segment_writer_open(&options, &writer, message, sizeof(message)) != -ENOSPC)
		return 3;
	if (!cbshm_is_disabled(scratch_breaker(client, "b7")))
		return 4;
	writer = scratch_writer(errand->name, 8192);
	if (segment_writer_breakers(writer) != count)
		return 5;
	/* What is removed makes room. */
	segment_writer_remove(writer, "b0");
	struct breaker_row row = row_open("late", 1);
	if (segment_writer_put(writer, &row, false) != 1)
		return 6;
	return !cbshm_is_disabled(scratch_breaker(client, "late"));
}

static void in_small_dev_shm(int (*go)(const struct errand *))
{
	struct errand errand = {.name = scratch_segment()};
	int status;

	fflush(stdout);
	pid_t child = child_fork();
	if (child == 0)
		_exit(go(&errand));
	waitpid(child, &status, 0);
	if (WIFEXITED(status) && WEXITSTATUS(status) == NO_MOUNT) {
		tap_skip("cannot mount a small tmpfs (needs root and mount namespaces)");
		return;
	}
	CU_ASSERT(WIFEXITED(status));
	CU_ASSERT_EQUAL(status, 0);
	if (status)
		tap_note("status %#x", (unsigned int)status);
}

static void test_full_at_start(void)
{
	in_small_dev_shm(go_no_room);
}

static void test_full_later(void)
{
	in_small_dev_shm(go_no_growth);
}

int main(void)
{
	CU_initialize_registry();
	CU_pSuite suite = CU_add_suite("hostile", NULL, NULL);
	CU_add_test(suite, "a symbolic link", test_symlink);
	CU_add_test(suite, "a hard link", test_hard_link);
	CU_add_test(suite, "writable by others", test_writable);
	CU_add_test(suite, "no regular file", test_no_file);
	CU_add_test(suite, "the lock, and what was left aside", test_lock_and_leftover);
	CU_add_test(suite, "a stranger's segment", test_strangers_segment);
	CU_add_test(suite, "CBSHM_OWNER", test_owner_variable);
	CU_add_test(suite, "root's segment, read by others and written by none",
		    test_roots_segment);
	CU_add_test(suite, "names that were taken beforehand", test_squatters);
	CU_add_test(suite, "what comes under the name of a segment in use", test_intruders);
	CU_add_test(suite, "a stranger takes the name of a segment in use",
		    test_stranger_takes_the_name);
	CU_add_test(suite, "short files", test_short_files);
	CU_add_test(suite, "random bytes", test_random_bytes);
	CU_add_test(suite, "every measure of the header", test_headers);
	CU_add_test(suite, "a header of a newer version", test_newer_header);
	CU_add_test(suite, "random contents under a right header", test_random_contents);
	CU_add_test(suite, "a file system too small to begin with", test_full_at_start);
	CU_add_test(suite, "a file system that is full later", test_full_later);
	return tap_run_cunit();
}
