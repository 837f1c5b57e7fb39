/*
 * attach.c - cbshm_open() and cbshm_close(), and mapping the segment read-only
 *
 * SPDX-License-Identifier: ISC
 *
 * Decides whose segment is believed; what stands in it is judged in validate.c. The descriptor is closed
 * once the segment is mapped, so that nothing an engine does to its descriptors can reach it.
 *
 * Attaching also happens inside a check, perhaps in a signal handler: it takes no memory from
 * malloc(3), waits for nobody, and uses open(2) on the object's file, since shm_open(3) is not
 * promised to be async-signal-safe. Where the name leads to nothing the agent is asked (descriptor.c).
 */
#include "config.h"

#include "libcbshm/attach.h"

#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "cbshm.h"
#include "cbshm/latch.h"
#include "libcbshm/boot.h"
#include "libcbshm/health.h"
#include "libcbshm/lookup.h"
#include "libcbshm/process.h"

#define DEFAULT_SEGMENT "/cbshm"
#define DEFAULT_SOCKET  "/run/cbshm/io.cbshm"
#define DEFAULT_OWNER   "cbagent"
#define RETRY_NS        INT64_C(1000000000)
#define MISSING_NS      INT64_C(10000000)
#define FOLLOW_TRIES    8 /* replacements under one call */

bool try_enter(_Atomic pid_t *flag)
{
	pid_t self = getpid();
	pid_t holder = 0;

	if (atomic_compare_exchange_strong_explicit(flag, &holder, self, memory_order_acquire,
						    memory_order_relaxed))
		return true;
	/* Held by a thread that fork() has not copied? */
	return holder != self &&
	       atomic_compare_exchange_strong_explicit(flag, &holder, self, memory_order_acquire,
						       memory_order_relaxed);
}

void try_leave(_Atomic pid_t *flag)
{
	atomic_store_explicit(flag, 0, memory_order_release);
}

struct mapping *segment_mapping_of(const struct cbshm *client, const uint64_t *word)
{
	const unsigned char *at = (const unsigned char *)word;
	struct mapping *mapping = segment_current(client);

	while (mapping && (at < mapping->view.base ||
			   at >= mapping->view.base + mapping->view.layout.total_size))
		mapping = mapping->older;
	return mapping;
}

bool segment_trusts(const struct cbshm *client, uid_t uid)
{
	for (int i = 0; i < client->trusted_count; i++) {
		if (client->trusted[i] == uid)
			return true;
	}
	return false;
}

/*
 * O_NONBLOCK: a FIFO that somebody has put in place of the segment must not hold the caller up. Root and owner
 * aside, whoever can write to the file could show each reader something else, or shorten it.
 */
static int open_by_name(const struct cbshm *client, int *descriptor)
{
	*descriptor = open(client->reader->path,
			   O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (*descriptor >= 0)
		return 0;
	return errno == ENOENT  ? CBSHM_ERR_NO_SEGMENT
	       : errno == ELOOP ? CBSHM_ERR_UNTRUSTED
				: CBSHM_ERR_SYSTEM;
}

/* By its name, and only where that leads to nothing from the agent, which sends nobody's file but its own user's, or root's. */
static int open_trusted(struct cbshm *client, bool may_wait, struct stat *status, int *descriptor)
{
	int error = open_by_name(client, descriptor);
	bool asked = error == CBSHM_ERR_NO_SEGMENT;
	uid_t server = 0;

	if (asked)
		error = descriptor_ask(client, may_wait, descriptor, &server);
	if (error)
		return error;
	if (fstat(*descriptor, status) < 0)
		return CBSHM_ERR_SYSTEM;
	bool owner = asked ? status->st_uid == server || status->st_uid == 0
			   : segment_trusts(client, status->st_uid);
	if (!owner || !S_ISREG(status->st_mode) || status->st_nlink != 1 ||
	    (status->st_mode & (S_IWGRP | S_IWOTH)) != 0)
		return CBSHM_ERR_UNTRUSTED;
	return 0;
}

/* The header, copied once, and the file's size, taken after it: the file may have grown meanwhile. */
static int read_layout(int fd, struct segment_layout *layout)
{
	struct cbshm_segment_header header;
	struct stat status;
	ssize_t count;

	do {
		count = pread(fd, &header, sizeof(header), 0);
	} while (count < 0 && errno == EINTR);
	if (count < 0 || fstat(fd, &status) < 0)
		return CBSHM_ERR_SYSTEM;
	if ((size_t)count != sizeof(header) ||
	    segment_validate(&header, (uint64_t)status.st_size, layout) != NULL ||
	    header.state == CBSHM_SEGMENT_RETIRED)
		return CBSHM_ERR_LAYOUT;
	return 0;
}

static bool made_in_this_boot(const struct segment_view *view)
{
	uint8_t id[16];

	return !boot_id_read(id) || memcmp(id, segment_header(view)->boot_id, sizeof(id)) == 0;
}

/* The address range of the full capacity: what the agent allocates later is then already mapped. */
static int map_segment(int fd, const struct segment_layout *layout, const struct stat *status,
		       struct mapping *older, struct mapping **result)
{
	struct mapping *mapping = mmap(NULL, sizeof(*mapping), PROT_READ | PROT_WRITE,
				       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (mapping == MAP_FAILED)
		return CBSHM_ERR_SYSTEM;
	mapping->view.base = mmap(NULL, layout->total_size, PROT_READ, MAP_SHARED, fd, 0);
	if (mapping->view.base == MAP_FAILED) {
		munmap(mapping, sizeof(*mapping));
		return CBSHM_ERR_SYSTEM;
	}
	mapping->view.layout = *layout;
	mapping->same_boot = made_in_this_boot(&mapping->view);
	mapping->device = status->st_dev;
	mapping->inode = status->st_ino;
	mapping->older = older;
	*result = mapping;
	return 0;
}

static bool same_file(const struct mapping *mapping, const struct stat *status)
{
	return mapping && mapping->inode == status->st_ino && mapping->device == status->st_dev;
}

static void unmap(struct mapping *mapping)
{
	munmap(mapping->view.base, mapping->view.layout.total_size);
	munmap(mapping, sizeof(*mapping));
}

/*
 * One look at the name. 0 also if it still leads to the current mapping. Threads, and the handler
 * that interrupts one, may each look at once: the first whose mapping becomes the current one wins,
 * and nobody has seen that of another. None may leave it to another, as its answer would be one of
 * a segment that has been replaced.
 */
static int attach_once(struct cbshm *client, bool may_wait, int *fd)
{
	struct mapping *current = segment_current(client);
	struct segment_layout layout;
	struct mapping *mapping;
	struct stat status;
	int error = open_trusted(client, may_wait, &status, fd);

	if (error || same_file(current, &status))
		return error;
	error = read_layout(*fd, &layout);
	if (!error)
		error = map_segment(*fd, &layout, &status, current, &mapping);
	/* The release pairs with segment_current(). */
	if (!error &&
	    !atomic_compare_exchange_strong_explicit(&client->reader->current, &current, mapping,
						     memory_order_release, memory_order_relaxed))
		unmap(mapping);
	return error;
}

/* What has been opened is no longer under any name: another file has got it meanwhile. */
static bool has_lost_name(int fd)
{
	struct stat status;

	return fd >= 0 && fstat(fd, &status) == 0 && status.st_nlink == 0;
}

static int attach_file(struct cbshm *client, bool may_wait)
{
	bool again = true;
	int error = 0;

	for (int i = 0; again && i < FOLLOW_TRIES; i++) {
		int fd = -1;

		error = attach_once(client, may_wait, &fd);
		if (error == CBSHM_ERR_SYSTEM)
			atomic_store_explicit(&client->reader->system_error, errno,
					      memory_order_relaxed);
		again = error < 0 && has_lost_name(fd);
		if (fd >= 0)
			close(fd);
	}
	return error;
}

static int64_t coarse_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static bool is_retired(const struct mapping *mapping)
{
	return word_load(&segment_header(&mapping->view)->state) == CBSHM_SEGMENT_RETIRED;
}

/* The name of a retired one's successor is missing: an agent sets that right within a second. */
static int64_t pause_after(const struct cbshm *client, int error)
{
	const struct mapping *mapping = segment_current(client);

	return error == CBSHM_ERR_NO_SEGMENT && mapping && is_retired(mapping) ? MISSING_NS
									       : RETRY_NS;
}

/*
 * Makes an attempt, unless it is too soon after the last one and it is not to be made `now`. One that has only sent
 * a question to the agent goes on by the clock's next tick, some milliseconds.
 */
static bool attempt(struct cbshm *client, bool now, bool may_wait)
{
	struct segment_reader *reader = client->reader;
	int64_t time = coarse_now();

	if (!now && time < atomic_load_explicit(&reader->next_attempt, memory_order_relaxed))
		return false;
	atomic_store_explicit(&reader->next_attempt, time + RETRY_NS, memory_order_relaxed);
	int error = attach_file(client, may_wait);
	atomic_store_explicit(&reader->next_attempt, time + pause_after(client, error),
			      memory_order_relaxed);
	if (error == DESCRIPTOR_PENDING) {
		atomic_store_explicit(&reader->next_attempt, time + 1, memory_order_relaxed);
		error = CBSHM_ERR_NO_SEGMENT;
	}
	atomic_store_explicit(&reader->error, error, memory_order_relaxed);
	return true;
}

int segment_attach(struct cbshm *client, bool now)
{
	struct segment_reader *reader = client->reader;

	if (segment_current(client))
		return 0;
	attempt(client, now, now);
	if (segment_current(client))
		return 0;
	int error = atomic_load_explicit(&reader->error, memory_order_relaxed);
	if (error == CBSHM_ERR_SYSTEM)
		errno = atomic_load_explicit(&reader->system_error, memory_order_relaxed);
	return error ? error : CBSHM_ERR_NO_SEGMENT;
}

/*
 * The agent first sets MOVED in every word, then gives the name to the new segment, then retires the old one.
 * In between, or after a kill in between, only the name tells which of the two counts: it is looked at each time. A
 * retired one has a successor: one attempt at once finds it, or else one a second, or one in 10 ms while the name is missing.
 */
bool segment_follow(struct cbshm *client, struct mapping *from, bool may_wait)
{
	if (segment_current(client) != from)
		return true;
	bool retired = is_retired(from);
	bool now = !retired || !atomic_load_explicit(&from->followed, memory_order_relaxed);
	bool made = attempt(client, now, may_wait);

	if (segment_current(client) != from)
		return true;
	/* Only now: a child could have got this from another thread, and not the new mapping. */
	if (made && retired)
		atomic_store_explicit(&from->followed, true, memory_order_relaxed);
	return false;
}

bool segment_seek(struct cbshm *client, struct mapping *from)
{
	attempt(client, false, false);
	return segment_current(client) != from;
}

struct mapping *segment_newest(struct cbshm *client, int *error)
{
	*error = segment_attach(client, true);
	if (*error)
		return NULL;
	/* MOVED, not RETIRED: an agent that was killed in between has left the one without the other. */
	struct mapping *mapping = segment_current(client);
	for (int i = 0; i < FOLLOW_TRIES; i++, mapping = segment_current(client)) {
		uint64_t word = word_load(&segment_header(&mapping->view)->index_word);

		if (!(word & CBSHM_WORD_MOVED) || !segment_follow(client, mapping, true))
			break;
	}
	return mapping;
}

void segment_catch_up(struct cbshm *client)
{
	const struct mapping *mapping = segment_current(client);
	int ignored;

	if (mapping && (word_load(&segment_header(&mapping->view)->index_word) & CBSHM_WORD_MOVED))
		segment_newest(client, &ignored);
}

int cbshm_segment_status(struct cbshm *client)
{
	int error;

	if (!client)
		return CBSHM_ERR_INVALID;
	segment_newest(client, &error);
	return error;
}

/* ---- open and close --------------------------------------------------------------------- */

/* The field if the caller's structure has it and it is set, else the environment, else the default. */
static const char *setting(const struct cbshm_options *options, size_t offset, const char *variable,
			   const char *fallback)
{
	const char *value = NULL;

	if (options && (options->size == 0 || options->size >= offset + sizeof(value)))
		memcpy(&value, (const char *)options + offset, sizeof(value));
	if (!value || !*value)
		value = secure_getenv(variable);
	return value && *value ? value : fallback;
}

/* A name or a number. 0, or CBSHM_ERR_NOT_FOUND. */
static int find_user(const char *user, uid_t *uid)
{
	struct passwd entry, *found;
	char buffer[4096];
	char *end;

	if (getpwnam_r(user, &entry, buffer, sizeof(buffer), &found) == 0 && found) {
		*uid = found->pw_uid;
		return 0;
	}
	errno = 0;
	unsigned long number = strtoul(user, &end, 10);
	if (user[0] < '0' || user[0] > '9' || *end || errno || number >= (uid_t)-1)
		return CBSHM_ERR_NOT_FOUND;
	*uid = (uid_t)number;
	return 0;
}

/*
 * The default owner need not exist: then root's segment and the caller's own are believed. One that
 * somebody has named must.
 */
static int set_trusted(struct cbshm *client, const char *owner)
{
	uid_t uid;

	client->trusted[client->trusted_count++] = geteuid();
	client->trusted[client->trusted_count++] = 0;
	if (find_user(owner, &uid) == 0)
		client->trusted[client->trusted_count++] = uid;
	else if (strcmp(owner, DEFAULT_OWNER) != 0)
		return CBSHM_ERR_INVALID;
	return 0;
}

static int set_names(struct cbshm *client, const char *segment, const char *socket)
{
	if (!segment_name_valid(segment) ||
	    strlen(socket) >= sizeof(((struct sockaddr_un *)0)->sun_path))
		return CBSHM_ERR_INVALID;
	client->segment = strdup(segment);
	client->socket = strdup(socket);
	client->reader = calloc(1, sizeof(*client->reader));
	if (!client->reader || descriptors_init(&client->reader->descriptors, segment) != 0 ||
	    !client->segment || !client->socket)
		return CBSHM_ERR_MEMORY;
	if (asprintf(&client->reader->path, "%s%s", SEGMENT_DIRECTORY, segment) < 0) {
		client->reader->path = NULL;
		return CBSHM_ERR_MEMORY;
	}
	return 0;
}

/* Rounded up to a power of two. */
static int set_report_buffer(struct cbshm *client, const struct cbshm_options *options)
{
	size_t wanted = 0;

	if (options &&
	    (options->size == 0 ||
	     options->size >= offsetof(struct cbshm_options, report_buffer) + sizeof(wanted)))
		wanted = options->report_buffer;
	if (wanted == 0)
		wanted = CBSHM_DEFAULT_REPORT_BUFFER;
	if (wanted < CBSHM_REPORT_BUFFER_MIN || wanted > CBSHM_REPORT_BUFFER_MAX)
		return CBSHM_ERR_INVALID;
	client->report_buffer = CBSHM_REPORT_BUFFER_MIN;
	while (client->report_buffer < wanted)
		client->report_buffer *= 2;
	return 0;
}

/* A structure of a newer header may be longer; what this library does not know of it must be unused. */
static bool options_valid(const struct cbshm_options *options)
{
	if (!options || options->size <= sizeof(*options))
		return true;
	if (options->size > 4096)
		return false;
	for (size_t i = sizeof(*options); i < options->size; i++) {
		if (((const unsigned char *)options)[i])
			return false;
	}
	return true;
}

int cbshm_open(const struct cbshm_options *options, struct cbshm **client)
{
	if (!client)
		return CBSHM_ERR_INVALID;
	*client = NULL;
	if (!options_valid(options))
		return CBSHM_ERR_INVALID;
	struct cbshm *opened = calloc(1, sizeof(*opened));
	if (!opened)
		return CBSHM_ERR_MEMORY;

	int error = set_names(opened,
			      setting(options, offsetof(struct cbshm_options, segment),
				      "CBSHM_SEGMENT", DEFAULT_SEGMENT),
			      setting(options, offsetof(struct cbshm_options, socket),
				      "CBSHM_SOCKET", DEFAULT_SOCKET));
	if (!error)
		error = set_trusted(opened, setting(options, offsetof(struct cbshm_options, owner),
						    "CBSHM_OWNER", DEFAULT_OWNER));
	if (!error)
		error = set_report_buffer(opened, options);
	if (error) {
		cbshm_close(opened);
		return error;
	}
	opened->reader->opened = health_now();
	segment_attach(opened, true);
	*client = opened;
	return 0;
}

static void reader_free(struct segment_reader *reader)
{
	struct mapping *mapping = atomic_load(&reader->current);

	while (reader->handles)
		cbshm_breaker_close(&reader->handles->breaker);
	while (mapping) {
		struct mapping *older = mapping->older;

		unmap(mapping);
		mapping = older;
	}
	descriptors_close(&reader->descriptors);
	free(reader->path);
	free(reader);
}

void cbshm_close(struct cbshm *client)
{
	if (!client)
		return;
	struct process *process = atomic_load(&client->process);

	if (client->reader)
		reader_free(client->reader);
	if (process)
		process->close(client);
	free(client->segment);
	free(client->socket);
	free(client);
}
